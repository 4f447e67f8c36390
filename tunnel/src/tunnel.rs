//! A tunnel: one authenticated connection between two gateways, or a sidecar and a gateway, that carries many flows.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tombolo_clusterset::ClusterId;
use tombolo_daemon::seam::Seams;
use tombolo_trust::SpiffeId;

use crate::control::{Hello, Kind};
use crate::endpoint::Accept;
use crate::limits::{CONTROL_QUEUE, EVENTS_BEHIND, FLOWS_PER_SIDECAR, Limits};
use crate::metrics::{Direction, Metrics, Transport};
use crate::shell::carrier::Carrier;
use crate::shell::cut::NamedAddress;
use crate::udp::Datagrams;

mod open;
mod work;

pub use open::OpenError;
pub(crate) use work::{ControlStream, Greeted, greet};

/// How long the side that asked a tunnel to go away waits for the other to say that its flows have ended too.
const IDLE_ANSWER: Duration = Duration::from_secs(1);

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
    /// Whether we take flows over tunnels that we dialled.
    pub(crate) reversible: bool,
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
    named: Mutex<NamedAddress>,
}

#[derive(Debug)]
enum Command {
    GoAway { reason: String, grace: Duration },
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
        carrier.allow_flows(allowed_flows(&around.limits, peer_hello.kind));
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
            named: Mutex::new(named),
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
}

/// How many flows a peer of this kind may run at once in one tunnel.
fn allowed_flows(limits: &Limits, kind: Kind) -> usize {
    match kind {
        Kind::Gateway => limits.flows_per_tunnel,
        Kind::Sidecar => limits.flows_per_tunnel.min(FLOWS_PER_SIDECAR),
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
