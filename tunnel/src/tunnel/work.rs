//! What a tunnel does while it lives: hellos, the control stream, flows and datagrams that come in.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tombolo_clusterset::ClusterId;
use tombolo_wire::{frame, v1};

use super::{Command, Tunnel, TunnelEvent};
use crate::control::{Action, Control, ControlError, Hello, Kind};
use crate::endpoint::Accept;
use crate::flow::{Flow, IncomingFlow, Running, refuse};
use crate::header::{FlowHeader, HEADER_MAX, HeaderError};
use crate::limits::{AGE_GRACE, CONTROL_QUEUE};
use crate::metrics::{Direction, Transport};
use crate::reply::Refusal;
use crate::shell::carrier::Carrier;
use crate::shell::halves::{FrameReadError, RecvHalf, SendHalf};

/// Longest control frame, bytes: a reason and a few numbers.
const CONTROL_MAX: usize = 1024;

/// Authority of the control stream's CONNECT.
const CONTROL_AUTHORITY: &str = "control.tombolo.internal:0";

/// The control stream, after both hellos.
pub(crate) struct Greeted {
    pub(super) control: Control,
    pub(super) send: SendHalf,
    pub(super) recv: RecvHalf,
    pub(super) peer: Hello,
}

/// The control stream of a tunnel that is about to run.
pub(crate) struct ControlStream {
    pub(super) control: Control,
    pub(super) send: SendHalf,
    pub(super) recv: RecvHalf,
    pub(super) orders: mpsc::Receiver<Command>,
}

/// Why there was no hello.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HelloError {
    #[error("the connection ended before its control stream")]
    NoControlStream,
    #[error("control stream: {0}")]
    Io(#[from] io::Error),
    #[error("control stream: {0}")]
    Frame(#[from] FrameReadError),
    #[error("control stream: {0}")]
    Control(#[from] ControlError),
}

/// Opens or awaits the control stream and says hello on it, to a peer that its certificate lets be `certified`. The caller
/// bounds the time.
pub(crate) async fn greet(
    carrier: &Carrier,
    direction: Direction,
    own: &Hello,
    cluster: &ClusterId,
    certified: Kind,
) -> Result<Greeted, HelloError> {
    let (mut send, mut recv) = match direction {
        Direction::Outbound => carrier.open(CONTROL_AUTHORITY).await?,
        Direction::Inbound => carrier.accept().await.ok_or(HelloError::NoControlStream)?,
    };
    send.prefer();
    let (mut control, hello) = Control::new(own, cluster.clone(), certified);
    send.write(encode(&hello)?).await?;
    let received: v1::Control = recv.frame(CONTROL_MAX).await?;
    match control.handle(Instant::now(), received)? {
        Some(Action::Established { version, peer }) => {
            tracing::debug!(%cluster, version, role = peer.kind.as_str(), "hello");
            Ok(Greeted {
                control,
                send,
                recv,
                peer,
            })
        }
        _ => Err(ControlError::HelloMissing.into()),
    }
}

fn encode(message: &v1::Control) -> io::Result<bytes::Bytes> {
    frame::encode(message).map_err(io::Error::other)
}

impl Tunnel {
    /// Everything a tunnel does, until it is over.
    pub(super) async fn run(&self, control: ControlStream, handler: Arc<dyn Accept>) {
        let reason = tokio::select! {
            reason = self.0.carrier.closed() => reason,
            reason = self.speak(control) => reason,
            () = self.accept_flows(handler) => self.0.carrier.closed().await,
            () = self.take_datagrams() => self.0.carrier.closed().await,
            reason = self.closed() => reason.to_string(),
        };
        self.close(&reason);
        self.0.metrics.tunnel_closed();
        let reason = self.close_reason().unwrap_or_else(|| Arc::from(reason));
        tracing::info!(cluster = %self.cluster(), peer = %self.peer(), remote = %self.remote_addr(), %reason, "tunnel closed");
        self.0.tell(TunnelEvent::Closed { reason });
    }

    /// The control stream. Returns why the tunnel ends.
    async fn speak(&self, control: ControlStream) -> String {
        let ControlStream {
            mut control,
            send,
            mut recv,
            mut orders,
        } = control;
        let (outbox, letters) = mpsc::channel(CONTROL_QUEUE);
        let writer = write_control(send, letters);
        tokio::pin!(writer);
        let mut ticks = tokio::time::interval(self.0.around.ping_every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut last_heard = Instant::now();
        loop {
            let letter = tokio::select! {
                error = &mut writer => return format!("control stream: {error}"),
                received = recv.frame::<v1::Control>(CONTROL_MAX) => {
                    let now = Instant::now();
                    last_heard = now;
                    match received.map_err(|error| error.to_string()).and_then(|message| {
                        control.handle(now, message).map_err(|error| error.to_string())
                    }) {
                        Ok(action) => action.and_then(|action| self.obey(action)),
                        Err(error) => return format!("control stream: {error}"),
                    }
                }
                now = ticks.tick() => {
                    if now.saturating_duration_since(last_heard) > self.0.around.limits.idle_timeout {
                        return format!("nothing heard for {} s", self.0.around.limits.idle_timeout.as_secs());
                    }
                    if self.age() > self.0.around.limits.tunnel_age {
                        self.go_away("the tunnel is too old", AGE_GRACE);
                    }
                    // A QUIC peer may move; a cut must follow it.
                    self.0.named.lock().follow(self.remote_addr());
                    Some(control.ping(now))
                }
                Some(Command::GoAway { reason, grace }) = orders.recv() => Some(control.go_away(&reason, grace)),
            };
            if let Some(letter) = letter
                && outbox.try_send(letter).is_err()
            {
                // A ping that is not sent is not answered; so much is true: the peer does not read.
                tracing::trace!(cluster = %self.cluster(), "control stream is full");
            }
        }
    }

    /// Does what the control stream says; returns what is to be sent.
    fn obey(&self, action: Action) -> Option<v1::Control> {
        match action {
            Action::Send(message) => return Some(message),
            Action::Established { .. } => {}
            Action::Pong { rtt } => {
                let micros = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX).max(1);
                self.0.rtt_micros.store(micros, Ordering::Relaxed);
                self.0.tell(TunnelEvent::Pong { rtt });
            }
            Action::PeerIdle => {
                self.0.peer_idle.send_replace(true);
            }
            Action::GoAway { reason, grace } => self.peer_leaves(reason, grace),
        }
        None
    }

    /// The peer wants no new flows: tell it when ours have ended.
    fn peer_leaves(&self, reason: String, grace: Duration) {
        if self.0.peer_leaves.swap(true, Ordering::AcqRel) {
            return;
        }
        tracing::debug!(cluster = %self.cluster(), reason, ?grace, "the peer asks to go away");
        self.0.tell(TunnelEvent::GoingAway {
            reason: Arc::from(reason),
        });
        let tunnel = self.clone();
        self.0.around.tasks.spawn(async move {
            tokio::select! {
                () = tunnel.no_flows() => {
                    let order = Command::GoAway { reason: "idle".to_owned(), grace: Duration::ZERO };
                    if tunnel.0.control.send(order).await.is_err() {
                        tracing::trace!("the tunnel closed before we said that it is idle");
                    }
                }
                _ = tunnel.closed() => {}
            }
        });
    }

    async fn accept_flows(&self, handler: Arc<dyn Accept>) {
        while let Some((send, recv)) = self.0.carrier.accept().await {
            let flow = Flow {
                send,
                recv,
                running: Running::new(Arc::clone(&self.0), Direction::Inbound),
            };
            let (tunnel, handler) = (self.clone(), Arc::clone(&handler));
            self.0
                .around
                .tasks
                .spawn(async move { tunnel.serve(flow, handler).await });
        }
    }

    /// Reads a flow's header in time, checks it, and hands the flow over.
    async fn serve(&self, mut flow: Flow, handler: Arc<dyn Accept>) {
        let limits = &self.0.around.limits;
        let read = tokio::time::timeout(
            limits.header_timeout,
            flow.recv.frame::<v1::FlowHeader>(HEADER_MAX),
        );
        let header = match read.await {
            Ok(Ok(wire)) => FlowHeader::from_wire(&wire).and_then(|header| {
                header.check_source(self.peer())?;
                Ok(header)
            }),
            // The opener gave up before it said anything.
            Ok(Err(FrameReadError::Io(error))) => {
                return tracing::trace!(peer = %self.peer(), %error, "flow abandoned before its header");
            }
            Ok(Err(error)) => Err(HeaderError::Field {
                field: "frame",
                reason: error.to_string(),
            }),
            Err(_) => {
                tracing::debug!(peer = %self.peer(), "flow reset: its header did not come in time");
                return flow.reset();
            }
        };
        let (refusal, detail) = match header {
            Err(error) => (Refusal::Forged, error.to_string()),
            Ok(_) if self.direction() == Direction::Outbound && !self.0.around.reversible => (
                Refusal::NotExported,
                "no flows are taken over this tunnel".to_owned(),
            ),
            Ok(_) if self.0.we_leave.load(Ordering::Acquire) => (Refusal::Draining, String::new()),
            Ok(_) if self.open_flows() > limits.flows_per_tunnel => (
                Refusal::Overloaded,
                format!("{} flows run in this tunnel", limits.flows_per_tunnel),
            ),
            Ok(header) => return handler.flow(IncomingFlow::new(self.clone(), header, flow)).await,
        };
        self.0.metrics.refused(refusal);
        tracing::debug!(peer = %self.peer(), %refusal, detail, "flow refused");
        refuse(&mut flow, refusal, &detail).await;
    }

    async fn take_datagrams(&self) {
        if self.transport() == Transport::H2 {
            std::future::pending::<()>().await;
        }
        while let Some(datagram) = self.0.carrier.datagram().await {
            self.0.datagrams.take(datagram);
        }
    }
}

/// Writes control messages in their order; returns why it cannot.
async fn write_control(mut send: SendHalf, mut letters: mpsc::Receiver<v1::Control>) -> io::Error {
    while let Some(letter) = letters.recv().await {
        let written = match encode(&letter) {
            Ok(frame) => send.write(frame).await,
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            return error;
        }
    }
    io::Error::from(io::ErrorKind::BrokenPipe)
}
