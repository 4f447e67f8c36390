//! A tunnel: one authenticated connection between two gateways, or a sidecar and a gateway, that carries many flows.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::task::TaskTracker;
use tombolo_clusterset::ClusterId;
use tombolo_clusterset::endpoint::Protocol;
use tombolo_daemon::seam::Seams;
use tombolo_trust::SpiffeId;
use tombolo_wire::{frame, v1};

use crate::control::{Action, Control, ControlError, Hello, Kind};
use crate::endpoint::Accept;
use crate::flow::{Flow, IncomingFlow, Running, refuse};
use crate::header::{self, FlowHeader, HEADER_MAX, HeaderError};
use crate::limits::{AGE_GRACE, CONTROL_QUEUE, EVENTS_BEHIND, Limits};
use crate::metrics::{Direction, Metrics, Transport};
use crate::reply::{DETAIL_MAX, Refusal, Reply};
use crate::shell::carrier::Carrier;
use crate::shell::cut::NamedAddress;
use crate::shell::halves::{FrameReadError, RecvHalf, SendHalf};
use crate::udp::{Datagrams, UdpFlow};

/// Longest control frame, bytes: a reason and a few numbers.
const CONTROL_MAX: usize = 1024;

/// Longest answer, bytes: a refusal with its detail.
const REPLY_MAX: usize = DETAIL_MAX + 64;

/// Authority of the control stream's CONNECT.
const CONTROL_AUTHORITY: &str = "control.tombolo.internal:0";

/// How long the side that asked a tunnel to go away waits for the other to say that its flows have ended too.
const IDLE_ANSWER: Duration = Duration::from_secs(1);

/// Why a tunnel could not open a flow. In every case no byte of it has reached a backend: it may be tried elsewhere.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The other side answered no.
    #[error("refused by {cluster}: {refusal}{}", if detail.is_empty() { String::new() } else { format!(" ({detail})") })]
    Refused {
        /// Who refused.
        cluster: ClusterId,
        /// Why.
        refusal: Refusal,
        /// One line of the other side's; may be empty.
        detail: String,
    },
    /// One of the sides has asked for no new flows: dial another tunnel.
    #[error("the tunnel to {cluster} is going away; open the flow in a new one")]
    GoingAway {
        /// The peer's cluster.
        cluster: ClusterId,
    },
    /// The tunnel is closed, or closed meanwhile.
    #[error("the tunnel to {cluster} is closed: {reason}")]
    Closed {
        /// The peer's cluster.
        cluster: ClusterId,
        /// Why.
        reason: String,
    },
    /// The peer takes no flows over a tunnel that it dialled.
    #[error("{cluster} takes no flows over this tunnel, which it dialled itself")]
    NotReversible {
        /// The peer's cluster.
        cluster: ClusterId,
    },
    /// The header cannot be sent.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The peer does not keep to the protocol.
    #[error("{cluster} broke the protocol: {reason}")]
    Protocol {
        /// The peer's cluster.
        cluster: ClusterId,
        /// How.
        reason: String,
    },
}

/// What happens to a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TunnelEvent {
    /// The peer answered a ping.
    Pong {
        /// Round trip time.
        rtt: Duration,
    },
    /// No new flows, for this reason; those that run may end.
    GoingAway {
        /// Why.
        reason: Arc<str>,
    },
    /// It is over, and so are its flows.
    Closed {
        /// Why.
        reason: Arc<str>,
    },
}

/// A tunnel. Cheap to clone; it lives until it is closed, not until the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Tunnel(Arc<Inner>);

/// What an endpoint gives each of its tunnels.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    pub(crate) limits: Limits,
    pub(crate) ping_every: Duration,
    pub(crate) metrics: Metrics,
    pub(crate) seams: Seams,
    pub(crate) tasks: TaskTracker,
}

/// A connection whose peer is authenticated.
#[derive(Debug)]
pub(crate) struct Authenticated {
    pub(crate) id: u64,
    pub(crate) carrier: Carrier,
    pub(crate) direction: Direction,
    pub(crate) peer: SpiffeId,
    pub(crate) cluster: ClusterId,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// Generation of our identity that the handshake used.
    pub(crate) generation: u64,
    pub(crate) named: NamedAddress,
}

#[derive(Debug)]
pub(crate) struct Inner {
    id: u64,
    pub(crate) carrier: Carrier,
    direction: Direction,
    peer: SpiffeId,
    cluster: ClusterId,
    peer_hello: Hello,
    chain: Vec<CertificateDer<'static>>,
    generation: u64,
    current_generation: watch::Receiver<u64>,
    since: Instant,
    around: Surroundings,
    pub(crate) metrics: Metrics,
    pub(crate) datagrams: Arc<Datagrams>,
    flows: AtomicUsize,
    /// Told when the last flow ends.
    no_flows: Notify,
    /// We want no new flows.
    we_leave: AtomicBool,
    /// The peer wants no new flows.
    peer_leaves: AtomicBool,
    /// The peer has no flow left, after our go-away.
    peer_idle: watch::Sender<bool>,
    /// Control messages to write.
    control: mpsc::Sender<Command>,
    rtt_micros: AtomicU64,
    events: broadcast::Sender<TunnelEvent>,
    closed: watch::Sender<Option<Arc<str>>>,
    _named: NamedAddress,
}

#[derive(Debug)]
enum Command {
    GoAway { reason: String, grace: Duration },
}

/// The control stream, after both hellos.
pub(crate) struct Greeted {
    control: Control,
    send: SendHalf,
    recv: RecvHalf,
    peer: Hello,
}

/// The control stream of a tunnel that is about to run.
pub(crate) struct ControlStream {
    control: Control,
    send: SendHalf,
    recv: RecvHalf,
    orders: mpsc::Receiver<Command>,
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

/// Opens or awaits the control stream and says hello on it. The caller bounds the time.
pub(crate) async fn greet(
    carrier: &Carrier,
    direction: Direction,
    own: &Hello,
    cluster: &ClusterId,
) -> Result<Greeted, HelloError> {
    let (mut send, mut recv) = match direction {
        Direction::Outbound => carrier.open(CONTROL_AUTHORITY).await?,
        Direction::Inbound => carrier.accept().await.ok_or(HelloError::NoControlStream)?,
    };
    send.prefer();
    let (mut control, hello) = Control::new(own, cluster.clone());
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
    /// The tunnel, not running yet, and its control stream.
    pub(crate) fn prepare(
        authenticated: Authenticated,
        greeted: Greeted,
        around: Surroundings,
        current_generation: watch::Receiver<u64>,
    ) -> (Self, ControlStream) {
        let Authenticated {
            id,
            carrier,
            direction,
            peer,
            cluster,
            chain,
            generation,
            named,
        } = authenticated;
        let Greeted {
            control,
            send,
            recv,
            peer: peer_hello,
        } = greeted;
        let (commands, orders) = mpsc::channel(CONTROL_QUEUE);
        let metrics = around.metrics.clone();
        metrics.tunnel_opened(carrier.transport(), direction);
        let inner = Inner {
            id,
            carrier,
            direction,
            peer,
            cluster,
            peer_hello,
            chain,
            generation,
            current_generation,
            since: around.seams.clock.now(),
            datagrams: Arc::new(Datagrams::new(direction, metrics.clone())),
            metrics,
            flows: AtomicUsize::new(0),
            no_flows: Notify::new(),
            we_leave: AtomicBool::new(false),
            peer_leaves: AtomicBool::new(false),
            peer_idle: watch::Sender::new(false),
            control: commands,
            rtt_micros: AtomicU64::new(0),
            events: broadcast::Sender::new(EVENTS_BEHIND),
            closed: watch::Sender::new(None),
            around,
            _named: named,
        };
        (
            Self(Arc::new(inner)),
            ControlStream {
                control,
                send,
                recv,
                orders,
            },
        )
    }

    /// Runs it in a task. `handler` takes the flows that the peer opens; `on_end` runs when it is over.
    pub(crate) fn start(
        &self,
        control: ControlStream,
        handler: Arc<dyn Accept>,
        on_end: impl FnOnce() + Send + 'static,
    ) {
        let tunnel = self.clone();
        self.0.around.tasks.spawn(async move {
            tunnel.run(control, handler).await;
            on_end();
        });
    }

    /// The chain that the peer presented.
    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0.chain
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.0
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> &SpiffeId {
        &self.0.peer
    }

    /// Its cluster, from its certificate.
    #[must_use]
    pub fn cluster(&self) -> &ClusterId {
        &self.0.cluster
    }

    /// Gateway or sidecar.
    #[must_use]
    pub fn peer_kind(&self) -> Kind {
        self.0.peer_hello.kind
    }

    /// Over what it runs.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.0.carrier.transport()
    }

    /// Who dialled.
    #[must_use]
    pub fn direction(&self) -> Direction {
        self.0.direction
    }

    /// Where the peer is.
    #[must_use]
    pub fn remote_addr(&self) -> SocketAddr {
        self.0.carrier.remote_addr()
    }

    /// A number that names this tunnel within the process.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// How long it has been open.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.0
            .around
            .seams
            .clock
            .now()
            .saturating_duration_since(self.0.since)
    }

    /// Round trip time of the last answered ping.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        match self.0.rtt_micros.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }

    /// What happens from now on. Whoever is more than [`EVENTS_BEHIND`] events behind loses the oldest.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<TunnelEvent> {
        self.0.events.subscribe()
    }

    /// Whether new flows can be opened: live, and neither side has asked to go away.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        !self.0.is_leaving() && self.close_reason().is_none() && self.takes_flows()
    }

    /// Whether the peer takes flows over it at all: a peer that dialled us may not.
    #[must_use]
    pub fn takes_flows(&self) -> bool {
        self.0.direction == Direction::Outbound || self.0.peer_hello.reversible
    }

    /// Whether our certificate has been renewed since: new flows belong in a new tunnel (DESIGN §4.11).
    #[must_use]
    pub fn is_outdated(&self) -> bool {
        *self.0.current_generation.borrow() != self.0.generation
    }

    /// Flows that run, in both directions.
    #[must_use]
    pub fn open_flows(&self) -> usize {
        self.0.flows.load(Ordering::Acquire)
    }

    /// Why it is over; None while it lives.
    #[must_use]
    pub fn close_reason(&self) -> Option<Arc<str>> {
        self.0.closed.borrow().clone()
    }

    /// Resolves when it is over, with the reason. Cancel-safe.
    pub async fn closed(&self) -> Arc<str> {
        let mut closed = self.0.closed.subscribe();
        match closed
            .wait_for(Option::is_some)
            .await
            .map(|reason| reason.clone())
        {
            Ok(Some(reason)) => reason,
            // `self` holds the sender, and `wait_for` returns only what it waited for.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Ends it at once; all its flows see a reset.
    pub fn close(&self, reason: &str) {
        self.0.close(reason);
    }

    /// Asks for no new flows on either side, lets those that run end, and closes: at once when there are none, at the latest
    /// after `grace`. The first call counts.
    pub fn go_away(&self, reason: &str, grace: Duration) {
        if self.0.we_leave.swap(true, Ordering::AcqRel) || self.close_reason().is_some() {
            return;
        }
        // Zero would mean that nothing runs.
        let grace = grace.max(Duration::from_millis(1));
        let order = Command::GoAway {
            reason: reason.to_owned(),
            grace,
        };
        if self.0.control.try_send(order).is_err() {
            return self.close(reason);
        }
        self.0.tell(TunnelEvent::GoingAway {
            reason: Arc::from(reason),
        });
        let (tunnel, reason) = (self.clone(), reason.to_owned());
        self.0.around.tasks.spawn(async move {
            let deadline = Instant::now() + grace;
            tokio::select! {
                () = tunnel.both_idle(deadline) => {}
                () = tokio::time::sleep_until(deadline) => {}
                _ = tunnel.closed() => {}
            }
            tunnel.close(&reason);
        });
    }

    /// Waits until neither side has a flow. A peer that does not answer soon after our last one is not waited for.
    async fn both_idle(&self, deadline: Instant) {
        self.no_flows().await;
        let mut idle = self.0.peer_idle.subscribe();
        let patience = deadline.min(Instant::now() + IDLE_ANSWER);
        // Either outcome ends the wait.
        drop(tokio::time::timeout_at(patience, idle.wait_for(|idle| *idle)).await);
    }

    /// Resolves when no flow runs.
    pub(crate) async fn no_flows(&self) {
        loop {
            // Subscribe before the check, or the last flow could end in between.
            let ended = self.0.no_flows.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if self.open_flows() == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Opens a TCP flow: resolves when the far side is *connected* or has refused. There is no time limit here: the caller
    /// knows when it has a better candidate. Dropping the future resets the stream, and the far side abandons the flow.
    ///
    /// # Errors
    /// [`OpenError`]; in each case no byte of the flow has reached a backend.
    pub async fn open(&self, header: &FlowHeader) -> Result<Flow, OpenError> {
        let (flow, _) = self.begin(header, Protocol::Tcp).await?;
        Ok(flow)
    }

    /// Opens a UDP flow; as [`Tunnel::open`].
    ///
    /// # Errors
    /// As [`Tunnel::open`].
    pub async fn open_udp(&self, header: &FlowHeader) -> Result<UdpFlow, OpenError> {
        let (flow, id) = self.begin(header, Protocol::Udp).await?;
        let lane = self
            .0
            .datagrams
            .join(id)
            .ok_or_else(|| self.broke(format!("UDP flow id {id} is not free")))?;
        Ok(UdpFlow::new(self.clone(), flow, lane))
    }

    async fn begin(&self, header: &FlowHeader, protocol: Protocol) -> Result<(Flow, u64), OpenError> {
        if header.protocol != protocol {
            let reason = format!("{} cannot be opened as {protocol}", header.protocol);
            return Err(HeaderError::Field {
                field: "protocol",
                reason,
            }
            .into());
        }
        let wire = header.to_wire();
        let len = prost::Message::encoded_len(&wire);
        if len > HEADER_MAX {
            return Err(HeaderError::TooLong { len }.into());
        }
        self.check_usable()?;
        let running = Running::new(Arc::clone(&self.0), Direction::Outbound);
        let failed = |error: &dyn std::fmt::Display| self.broken_off(error);
        let (send, recv) = self
            .0
            .carrier
            .open(&header::authority(header))
            .await
            .map_err(|error| failed(&error))?;
        // From here on, dropping the flow resets the stream.
        let mut flow = Flow { send, recv, running };
        let frame = frame::encode(&wire).map_err(|_| HeaderError::TooLong { len })?;
        flow.send.write(frame).await.map_err(|error| failed(&error))?;
        let reply: v1::FlowReply = match flow.recv.frame(REPLY_MAX).await {
            Ok(reply) => reply,
            Err(FrameReadError::Io(error)) => return Err(failed(&error)),
            Err(error) => return Err(self.broke(error.to_string())),
        };
        match Reply::from_wire(reply) {
            Some(Reply::Connected { datagram_flow }) => Ok((flow, datagram_flow)),
            Some(Reply::Refused { refusal, detail }) => {
                // The far side has ended its direction; so do we, and nothing is left to reset.
                if let Err(error) = flow.send.finish() {
                    tracing::trace!(%error, "a refused flow was over already");
                }
                Err(OpenError::Refused {
                    cluster: self.cluster().clone(),
                    refusal,
                    detail,
                })
            }
            None => Err(self.broke("an answer without content".to_owned())),
        }
    }

    fn check_usable(&self) -> Result<(), OpenError> {
        let cluster = || self.cluster().clone();
        if let Some(reason) = self.close_reason() {
            return Err(OpenError::Closed {
                cluster: cluster(),
                reason: reason.to_string(),
            });
        }
        if self.0.is_leaving() {
            return Err(OpenError::GoingAway { cluster: cluster() });
        }
        if !self.takes_flows() {
            return Err(OpenError::NotReversible { cluster: cluster() });
        }
        Ok(())
    }

    fn broken_off(&self, error: &dyn std::fmt::Display) -> OpenError {
        let reason = self
            .close_reason()
            .map_or_else(|| error.to_string(), |reason| reason.to_string());
        OpenError::Closed {
            cluster: self.cluster().clone(),
            reason,
        }
    }

    fn broke(&self, reason: String) -> OpenError {
        OpenError::Protocol {
            cluster: self.cluster().clone(),
            reason,
        }
    }

    /// Everything a tunnel does, until it is over.
    async fn run(&self, control: ControlStream, handler: Arc<dyn Accept>) {
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

impl Inner {
    fn is_leaving(&self) -> bool {
        self.we_leave.load(Ordering::Acquire) || self.peer_leaves.load(Ordering::Acquire)
    }

    fn close(&self, reason: &str) {
        let first = self.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            closed.get_or_insert_with(|| Arc::from(reason));
            first
        });
        if first {
            self.carrier.close(reason);
        }
    }

    fn tell(&self, event: TunnelEvent) {
        // An error says that nobody listens.
        drop(self.events.send(event));
    }

    pub(crate) fn flow_began(&self, direction: Direction) {
        self.flows.fetch_add(1, Ordering::AcqRel);
        self.metrics.flow_began(direction);
    }

    pub(crate) fn flow_ended(&self) {
        self.metrics.flow_ended();
        if self.flows.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.no_flows.notify_waiters();
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
