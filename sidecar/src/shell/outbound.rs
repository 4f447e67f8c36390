//! Takes in the workload's connections at a listener of each import, and carries them to a backend.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::sync::{Semaphore, watch};
use tokio::task::{self, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tombolo_clusterset::ClusterId;
use tombolo_clusterset::endpoint::Protocol;
use tombolo_clusterset::places::{Action, Place, Target, reconcile};
use tombolo_daemon::log_limit::LogLimit;
use tombolo_daemon::ready::Blocker;
use tombolo_daemon::seam::net::{ACCEPT_PAUSE, Listener, Stream};
use tombolo_daemon::shutdown::Shutdown;
use tombolo_trust::{Permit, SpiffeId, Subject};
use tombolo_tunnel::{Flow, forward};

use super::connect::{AttemptFailed, CONNECT_TIMEOUT, Connector};
use super::inbound::ALPN;
use super::relay::relay;
use super::udp;
use crate::config::Mirror;
use crate::listeners::{self, Wanted};
use crate::metrics::Outcome;
use crate::plan::Attempt;

/// Outbound TCP flows at once: what one workload has open, two descriptors each; beyond it connections are reset at once
/// rather than left to wait.
pub(super) const FLOWS_MAX: usize = 16_384;

/// A listener that could not be bound is tried again this often: whoever holds the address may let go of it.
const REBIND_EVERY: Duration = Duration::from_secs(5);

/// Serves the workload's flows.
#[derive(Debug)]
pub(super) struct Outbound {
    pub(super) connector: Arc<Connector>,
    pub(super) shutdown: Shutdown,
    pub(super) flows: Arc<Semaphore>,
    pub(super) udp_flows: Arc<Semaphore>,
    /// Own ends of connections that this process has opened to its own cluster, to know them when they are captured.
    pub(super) own: Mutex<BTreeSet<SocketAddr>>,
    pub(super) warnings: LogLimit,
}

/// A connected backend.
enum Backend {
    Plain(Stream, OwnEnd),
    Mtls(Box<TlsStream<Stream>>, OwnEnd),
    Tunnel(Box<Flow>),
}

/// Remembers the own end of a connection for as long as it lives.
struct OwnEnd {
    outbound: Arc<Outbound>,
    address: Option<SocketAddr>,
}

impl Drop for OwnEnd {
    fn drop(&mut self) {
        if let Some(address) = self.address {
            self.outbound.own.lock().remove(&address);
        }
    }
}

/// A socket that listens, and the task behind it.
struct Bound {
    target: watch::Sender<Target>,
    stop: CancellationToken,
    task: task::Id,
}

impl Outbound {
    pub(super) fn new(connector: Arc<Connector>, shutdown: Shutdown) -> Arc<Self> {
        Arc::new(Self {
            connector,
            shutdown,
            flows: Arc::new(Semaphore::new(FLOWS_MAX)),
            udp_flows: Arc::new(Semaphore::new(udp::FLOWS_MAX)),
            own: Mutex::default(),
            warnings: LogLimit::default(),
        })
    }

    /// Keeps one listener for each place of the newest snapshot, until the drain begins. `ready` after the first snapshot.
    pub(super) async fn listen(self: Arc<Self>, mirror: Mirror, ready: Blocker) {
        let mut snapshots = self.connector.view.snapshots();
        let mut bound: BTreeMap<Place, Bound> = BTreeMap::new();
        let mut targets: BTreeMap<Place, Target> = BTreeMap::new();
        let mut tasks = JoinSet::new();
        let mut warned = Wanted::default();
        loop {
            let snapshot = snapshots.borrow_and_update().clone();
            let mut wait = None;
            if let Some(snapshot) = snapshot {
                let wanted = listeners::wanted(&snapshot, mirror);
                if (wanted.outside, wanted.too_many) != (warned.outside, warned.too_many) {
                    let (outside, too_many) = (wanted.outside, wanted.too_many);
                    tracing::warn!(
                        outside,
                        too_many,
                        "places without a listener: their VIP is outside agent.vip_range, or there are too many"
                    );
                }
                for action in reconcile(&targets, &wanted.places) {
                    match action {
                        Action::Unbind(place) => {
                            if let Some(bound) = bound.remove(&place) {
                                bound.stop.cancel();
                            }
                            targets.remove(&place);
                        }
                        Action::Retarget(place, target) => {
                            if let Some(bound) = bound.get(&place) {
                                bound.target.send_replace(target.clone());
                            }
                            targets.insert(place, target);
                        }
                        Action::Bind(place, target) => {
                            match self.bind(place, target.clone(), &mut tasks).await {
                                Ok(listening) => {
                                    bound.insert(place, listening);
                                    targets.insert(place, target);
                                }
                                Err(error) => {
                                    tracing::warn!(%error, service = %target.service, "no listener; trying again");
                                    wait = Some(REBIND_EVERY);
                                }
                            }
                        }
                    }
                }
                self.connector
                    .metrics
                    .listeners
                    .set(i64::try_from(bound.len()).unwrap_or(i64::MAX));
                warned = wanted;
                ready.mark_ready();
            }
            let retry = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.shutdown.drain() => break,
                Ok(()) = snapshots.changed() => {}
                () = retry => {}
                Some(ended) = tasks.join_next_with_id(), if !tasks.is_empty() => {
                    let task = match ended {
                        Ok((task, ())) => task,
                        Err(error) => {
                            tracing::error!(%error, "a listener died; this is a bug, please report it with the log");
                            // One that dies at once must not keep a core busy.
                            tokio::time::sleep(ACCEPT_PAUSE).await;
                            error.id()
                        }
                    };
                    // What is not bound any longer is bound anew; who was told to stop is not found here.
                    let place = bound.iter().find_map(|(place, bound)| (bound.task == task).then_some(*place));
                    if let Some(place) = place {
                        bound.remove(&place);
                        targets.remove(&place);
                    }
                }
            }
        }
        for bound in bound.values() {
            bound.stop.cancel();
        }
        while tasks.join_next().await.is_some() {}
        self.connector.metrics.listeners.set(0);
    }

    async fn bind(
        self: &Arc<Self>,
        place: Place,
        target: Target,
        tasks: &mut JoinSet<()>,
    ) -> io::Result<Bound> {
        let (sender, targets) = watch::channel(target);
        let stop = CancellationToken::new();
        let task = match place.protocol {
            Protocol::Udp => {
                let socket = tokio::net::UdpSocket::bind(place.address)
                    .await
                    .map_err(|error| {
                        io::Error::new(
                            error.kind(),
                            format!("cannot listen on {} over UDP: {error}", place.address),
                        )
                    })?;
                tasks.spawn(udp::serve(Arc::clone(self), socket, targets, stop.clone()))
            }
            Protocol::Tcp | Protocol::Sctp => {
                let listener = self.connector.seams.network.listen(place.address).await?;
                tasks.spawn(Arc::clone(self).accept(listener, targets, stop.clone()))
            }
        };
        Ok(Bound {
            target: sender,
            stop,
            task: task.id(),
        })
    }

    async fn accept(
        self: Arc<Self>,
        listener: Listener,
        targets: watch::Receiver<Target>,
        stop: CancellationToken,
    ) {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((client, peer)) => {
                    let target = targets.borrow().clone();
                    self.begin(client, peer, target);
                }
                Err(error) => self.pause(&error).await,
            }
        }
    }

    pub(super) async fn pause(&self, error: &io::Error) {
        self.warnings.write(self.connector.seams.clock.now(), |suppressed| {
            tracing::warn!(%error, suppressed, "cannot accept connections; is the limit of open files reached?");
        });
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }

    /// Serves one connection in a task of its own.
    pub(super) fn begin(self: &Arc<Self>, client: Stream, peer: SocketAddr, target: Target) {
        let Ok(permit) = Arc::clone(&self.flows).try_acquire_owned() else {
            self.connector
                .metrics
                .flow(&target.service, Outcome::Overloaded, Duration::ZERO);
            return client.abort();
        };
        let outbound = Arc::clone(self);
        let guard = self.shutdown.guard("flow");
        tokio::spawn(async move {
            let _held = (permit, guard);
            outbound.connector.metrics.flows_open.inc();
            tokio::select! {
                () = outbound.flow(client, peer, target) => {}
                // Dropping the flow resets it.
                () = outbound.shutdown.deadline_passed() => {
                    outbound.connector.metrics.flows_reset_at_drain.inc();
                }
            }
            outbound.connector.metrics.flows_open.dec();
        });
    }

    async fn flow(self: &Arc<Self>, client: Stream, peer: SocketAddr, target: Target) {
        // Until the backend has ended properly, letting go of the client must read as a reset.
        if let Err(error) = client.reset_on_drop() {
            return tracing::debug!(%peer, %error, "client was gone before it was served");
        }
        let connect = |attempt| Arc::clone(self).attempt(attempt, target.clone(), peer);
        let connected = self
            .connector
            .connect(&target, Protocol::Tcp, peer, connect)
            .await;
        let ended = match connected {
            Ok((_, Backend::Plain(backend, _own))) => relay(client, backend).await,
            Ok((_, Backend::Mtls(backend, _own))) => relay(client, *backend).await,
            Ok((attempt, Backend::Tunnel(flow))) => {
                let forwarded = forward(client, *flow).await;
                return tracing::debug!(%peer, service = %target.service, ?attempt, ?forwarded, "flow ended");
            }
            Err(error) => {
                tracing::debug!(%peer, %error, "flow reset: it has no backend");
                return client.abort();
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, service = %target.service, %error, "flow ended early");
        }
    }

    async fn attempt(
        self: Arc<Self>,
        attempt: Attempt,
        target: Target,
        client: SocketAddr,
    ) -> Result<Backend, AttemptFailed> {
        match attempt {
            Attempt::Endpoint { address, mtls: false } => {
                let (stream, own) = self.dial(address).await?;
                Ok(Backend::Plain(stream, own))
            }
            Attempt::Endpoint { address, mtls: true } => {
                let (stream, own) = self.dial(address).await?;
                let stream = self.handshake(stream, address.ip(), &target).await?;
                Ok(Backend::Mtls(Box::new(stream), own))
            }
            Attempt::OwnGateway(address) => {
                let (stream, own) = self.dial(address).await?;
                Ok(Backend::Plain(stream, own))
            }
            Attempt::Cluster { cluster, endpoint } => {
                let header = self.connector.header(&target, Protocol::Tcp, endpoint, client);
                let open = |tunnel: tombolo_tunnel::Tunnel| {
                    let header = header.clone();
                    async move { tunnel.open(&header).await }
                };
                let flow = self.connector.gateways.open(&cluster, open).await?;
                Ok(Backend::Tunnel(Box::new(flow)))
            }
        }
    }

    async fn dial(self: &Arc<Self>, address: SocketAddr) -> Result<(Stream, OwnEnd), AttemptFailed> {
        let dialled = timeout(CONNECT_TIMEOUT, self.connector.seams.network.dial(address)).await;
        let stream = match dialled {
            Ok(dialled) => dialled.map_err(AttemptFailed::new)?,
            Err(_) => return Err(AttemptFailed::new(format!("{address} does not answer"))),
        };
        let own = stream.local_addr().ok();
        if let Some(own) = own {
            self.own.lock().insert(own);
        }
        Ok((
            stream,
            OwnEnd {
                outbound: Arc::clone(self),
                address: own,
            },
        ))
    }

    /// mTLS to a sidecar of the own cluster. One that does not prove who it is has failed; there is no way back to plain.
    async fn handshake(
        &self,
        stream: Stream,
        address: IpAddr,
        target: &Target,
    ) -> Result<TlsStream<Stream>, AttemptFailed> {
        let identity = &self.connector.identity;
        let cluster = identity.id().cluster().cloned();
        let permit = backend_permit(cluster, target);
        let connector = TlsConnector::from(identity.client_tls(permit, ALPN));
        // The verifier asks for the SPIFFE id and never for this name; it is not sent either.
        let name = ServerName::from(address);
        match timeout(CONNECT_TIMEOUT, connector.connect(name, stream)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(AttemptFailed::new(format!("mTLS to {address} failed: {error}"))),
            Err(_) => Err(AttemptFailed::new(format!(
                "{address} does not answer the mTLS handshake"
            ))),
        }
    }
}

/// Who may answer for an endpoint: a workload of this cluster in the namespace of the service.
fn backend_permit(cluster: Option<ClusterId>, target: &Target) -> Permit {
    let wanted = target.service.namespace.clone();
    let what = format!("a workload of this cluster in namespace {wanted}");
    Permit::custom(&what, move |id: &SpiffeId| {
        matches!(id.subject(), Subject::Workload { cluster: own, namespace, .. }
            if Some(own) == cluster.as_ref() && *namespace == wanted)
    })
}
