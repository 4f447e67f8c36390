//! Where tunnels begin: one address that listens for both transports, and dials.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tombolo_clusterset::ClusterId;
use tombolo_daemon::seam::Seams;
use tombolo_trust::{Permit, Role, SpiffeId, Subject};

use crate::control::{Hello, Kind};
use crate::flow::IncomingFlow;
use crate::identity::LocalIdentity;
use crate::limits::{GOODBYE, Limits, PING_EVERY};
use crate::metrics::Metrics;
use crate::shell::cut::CutSet;
use crate::shell::quic;
use crate::tunnel::{Surroundings, Tunnel};

mod admit;
mod dial;
mod listen;

pub use dial::DialError;

/// How to dial.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TransportChoice {
    /// QUIC, and HTTP/2 where QUIC does not answer.
    #[default]
    Auto,
    /// QUIC only.
    Quic,
    /// HTTP/2 only.
    H2,
}

/// What an endpoint is.
#[derive(Debug, Clone)]
pub struct EndpointConfig {
    /// Our cluster.
    pub cluster: ClusterId,
    /// Gateway or sidecar: what the hello says.
    pub kind: Kind,
    /// Where to listen, UDP and TCP. Port 0 lets the host choose one for both. None only dials.
    pub listen: Option<SocketAddr>,
    /// Whether peers may open flows over tunnels that we dialled.
    pub reversible: bool,
    /// How often to ping; default [`PING_EVERY`].
    pub ping_every: Duration,
    /// Default [`Limits::default`].
    pub limits: Limits,
    /// Default: counted, and not reported.
    pub metrics: Metrics,
}

impl EndpointConfig {
    /// A gateway: takes flows in both directions.
    #[must_use]
    pub fn gateway(cluster: ClusterId, listen: Option<SocketAddr>) -> Self {
        Self {
            cluster,
            kind: Kind::Gateway,
            listen,
            reversible: true,
            ping_every: PING_EVERY,
            limits: Limits::default(),
            metrics: Metrics::default(),
        }
    }

    /// A sidecar: only dials, and takes no flows.
    #[must_use]
    pub fn sidecar(cluster: ClusterId) -> Self {
        Self {
            kind: Kind::Sidecar,
            reversible: false,
            ..Self::gateway(cluster, None)
        }
    }
}

/// What takes in the tunnels and flows of peers.
pub trait Accept: Send + Sync + 'static {
    /// A peer has opened a tunnel. Called before any of its flows.
    fn tunnel(&self, tunnel: Tunnel);

    /// A peer opens a flow, over a tunnel of either direction. The future runs in a task of its own, to the flow's end.
    fn flow(&self, flow: IncomingFlow) -> BoxFuture<'static, ()>;
}

/// Takes no flows: for who only dials.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFlows;

impl Accept for NoFlows {
    fn tunnel(&self, _tunnel: Tunnel) {}

    fn flow(&self, flow: IncomingFlow) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            flow.refuse(crate::reply::Refusal::NotExported, "this process takes no flows")
                .await
        })
    }
}

/// Why an endpoint did not come up.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The UDP socket.
    #[error("tunnels over QUIC: {0}")]
    Udp(#[source] io::Error),
    /// The TCP listener.
    #[error("tunnels over HTTP/2: {0}")]
    Tcp(#[source] io::Error),
}

/// What a drain did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drained {
    /// Flows that ended by themselves.
    pub ended: usize,
    /// Flows that were reset because the time was over.
    pub reset: usize,
}

/// Listens and dials. Cheap to clone; when the last clone is dropped, everything closes.
#[derive(Clone)]
pub struct Endpoint {
    shared: Arc<Shared>,
    _stop: Arc<DropGuard>,
}

struct Shared {
    own: Hello,
    limits: Limits,
    ping_every: Duration,
    metrics: Metrics,
    identity: LocalIdentity,
    seams: Seams,
    handler: Arc<dyn Accept>,
    quic: quinn::Endpoint,
    local_addr: Option<SocketAddr>,
    cut: Arc<CutSet>,
    tunnels: Mutex<Tunnels>,
    next_id: AtomicU64,
    draining: AtomicBool,
    handshakes: Arc<Semaphore>,
    /// When each address was found not to answer over QUIC.
    prefers_h2: Mutex<BTreeMap<SocketAddr, Instant>>,
    tasks: TaskTracker,
    /// Cancelled when a drain begins: the sockets that listen are closed, and peers fail over without waiting.
    accepting: CancellationToken,
    stop: CancellationToken,
}

#[derive(Default)]
struct Tunnels {
    by_id: BTreeMap<u64, Tunnel>,
    /// Inbound ones, counted.
    by_peer: HashMap<SpiffeId, usize>,
}

impl Endpoint {
    /// Binds, listens if `config` says so, and keeps its tunnels true to the trust state.
    ///
    /// # Errors
    /// [`BindError`] names the address and what to do.
    pub async fn bind(
        config: EndpointConfig,
        identity: LocalIdentity,
        seams: Seams,
        handler: Arc<dyn Accept>,
    ) -> Result<Self, BindError> {
        let EndpointConfig {
            cluster,
            kind,
            listen,
            reversible,
            ping_every,
            limits,
            metrics,
        } = config;
        let cut = Arc::new(CutSet::default());
        // TCP first: with port 0, the port that it gets is then wanted for UDP too.
        let listener = match listen {
            Some(address) => Some(seams.network.listen(address).await.map_err(BindError::Tcp)?),
            None => None,
        };
        let local_addr = listener
            .as_ref()
            .map(|listener| listener.local_addr())
            .transpose()
            .map_err(BindError::Tcp)?;
        let server = match listen {
            Some(_) => Some(
                quic::server_config(identity.server_tls(dialler_permit(), quic::ALPN), &limits)
                    .map_err(BindError::Udp)?,
            ),
            None => None,
        };
        let quic = quic::bind(local_addr, server, Arc::clone(&cut)).map_err(BindError::Udp)?;
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            own: Hello {
                cluster,
                kind,
                reversible,
            },
            limits,
            ping_every,
            metrics,
            identity,
            seams,
            handler,
            quic,
            local_addr,
            cut,
            tunnels: Mutex::default(),
            next_id: AtomicU64::new(1),
            draining: AtomicBool::new(false),
            handshakes: Arc::new(Semaphore::new(limits.handshakes)),
            prefers_h2: Mutex::default(),
            tasks: TaskTracker::new(),
            accepting: stop.child_token(),
            stop: stop.clone(),
        });
        if let Some(listener) = listener {
            shared.spawn_until(&shared.accepting, listen::quic);
            shared.spawn_until(&shared.accepting, |shared| listen::h2(shared, listener));
        }
        shared.spawn(admit::keep_trust);
        shared.tasks.spawn({
            let shared = Arc::clone(&shared);
            async move {
                shared.stop.cancelled().await;
                shared.close("the endpoint was closed");
            }
        });
        Ok(Self {
            shared,
            _stop: Arc::new(stop.drop_guard()),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.shared.local_addr
    }

    /// Opens a tunnel to a gateway of cluster `expect`. Takes 5 s at most; dropping the future abandons it.
    ///
    /// # Errors
    /// [`DialError`] names the address.
    pub async fn dial(
        &self,
        address: SocketAddr,
        expect: &ClusterId,
        transport: TransportChoice,
    ) -> Result<Tunnel, DialError> {
        dial::dial(&self.shared, address, expect, transport).await
    }

    /// Cuts the paths to these clusters (or to all peers), both ways, silently: nothing closes, dials get no answer. What is
    /// not named heals.
    pub fn set_cut(&self, clusters: BTreeSet<ClusterId>, everything: bool) {
        self.shared.cut.set(clusters, everything);
    }

    /// The live tunnels, of both directions, oldest first.
    #[must_use]
    pub fn tunnels(&self) -> Vec<Tunnel> {
        self.shared.tunnels()
    }

    /// Takes no new tunnels and flows, asks all tunnels to go away, and resets at the deadline what still runs.
    pub async fn drain(&self, deadline: Instant) -> Drained {
        self.shared.draining.store(true, Ordering::Release);
        self.shared.accepting.cancel();
        self.shared.quic.set_server_config(None);
        let tunnels = self.tunnels();
        let before: usize = tunnels.iter().map(Tunnel::open_flows).sum();
        let grace = deadline.saturating_duration_since(Instant::now());
        for tunnel in &tunnels {
            tunnel.go_away("the gateway is shutting down", grace);
        }
        let all = async {
            for tunnel in &tunnels {
                tunnel.no_flows().await;
            }
        };
        // Either outcome ends the wait; what is left is counted next.
        drop(tokio::time::timeout_at(deadline, all).await);
        let reset: usize = tunnels.iter().map(Tunnel::open_flows).sum();
        if reset > 0 {
            self.shared.metrics.reset_at_drain(reset);
        } else {
            // The last bytes are delivered when the peers say that they have no flow left.
            let gone = async {
                for tunnel in &tunnels {
                    tunnel.closed().await;
                }
            };
            drop(tokio::time::timeout_at(deadline, gone).await);
        }
        self.close("the gateway has shut down");
        // Peers are told that it is over; those that do not confirm are not waited for.
        drop(tokio::time::timeout(GOODBYE, self.shared.quic.wait_idle()).await);
        Drained {
            ended: before.saturating_sub(reset),
            reset,
        }
    }

    /// Closes everything at once.
    pub fn close(&self, reason: &str) {
        self.shared.close(reason);
        self.shared.stop.cancel();
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("own", &self.shared.own)
            .field("local_addr", &self.shared.local_addr)
            .finish_non_exhaustive()
    }
}

/// Who may dial a gateway: other gateways, and workloads through their sidecars.
fn dialler_permit() -> Permit {
    Permit::custom("a gateway, a sidecar or a workload", |id| {
        matches!(
            id.subject(),
            Subject::Role {
                role: Role::Gateway | Role::Sidecar,
                ..
            } | Subject::Workload { .. }
        )
    })
}

impl Shared {
    /// Spawns a task that ends with the endpoint.
    fn spawn<F>(self: &Arc<Self>, task: impl FnOnce(Arc<Self>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn_until(&self.stop, task);
    }

    fn spawn_until<F>(self: &Arc<Self>, stop: &CancellationToken, task: impl FnOnce(Arc<Self>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (task, stop) = (task(Arc::clone(self)), stop.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = stop.cancelled() => {}
            }
        });
    }

    fn tunnels(&self) -> Vec<Tunnel> {
        self.tunnels.lock().by_id.values().cloned().collect()
    }

    fn close(&self, reason: &str) {
        self.draining.store(true, Ordering::Release);
        for tunnel in self.tunnels() {
            tunnel.close(reason);
        }
        self.quic.close(quinn::VarInt::from_u32(0), reason.as_bytes());
    }

    fn surroundings(&self) -> Surroundings {
        Surroundings {
            reversible: self.own.reversible,
            limits: self.limits,
            ping_every: self.ping_every,
            metrics: self.metrics.clone(),
            seams: self.seams.clone(),
            tasks: self.tasks.clone(),
        }
    }
}
