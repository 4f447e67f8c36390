//! UDP imports. A flow is (client address, service port): it keeps its backend until that one is lost or doubted, or the flow
//! idles out (DESIGN §7). The client's next datagram then begins a new one.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tombolo_clusterset::LinkState;
use tombolo_clusterset::endpoint::Protocol;
use tombolo_clusterset::places::Target;
use tombolo_daemon::log_limit::LogLimit;
use tombolo_daemon::seam::net::ACCEPT_PAUSE;
use tombolo_tunnel::{Tunnel, UdpFlow};

use super::connect::AttemptFailed;
use super::outbound::Outbound;
use crate::metrics::Outcome;
use crate::plan::{Attempt, LOCAL_ATTEMPTS_MAX};
use crate::signals::turned_doubtful;

/// UDP flows at once, over all listeners; a socket each where the backend is local.
pub(super) const FLOWS_MAX: usize = 8_192;

/// A flow without a datagram for this long is over: conntrack's `nf_conntrack_udp_timeout_stream`, 120 s, and some to spare.
const IDLE: Duration = Duration::from_secs(180);

/// Datagrams of one flow that wait for its backend, as a socket's buffer would hold them; more are dropped and counted.
const QUEUE: usize = 64;

/// Largest datagram: what a UDP socket can give.
const DATAGRAM_MAX: usize = 65_535;

/// Where a flow's datagrams go.
enum Backend {
    /// An endpoint of this cluster, or the own gateway's VIP.
    Socket(UdpSocket),
    Tunnel(Box<UdpFlow>),
}

/// Takes in datagrams until `stop`. Flows that run keep the socket, since their replies leave from it.
pub(super) async fn serve(
    outbound: Arc<Outbound>,
    socket: UdpSocket,
    targets: watch::Receiver<Target>,
    stop: CancellationToken,
) {
    let socket = Arc::new(socket);
    let failures = LogLimit::default();
    let mut flows: HashMap<SocketAddr, mpsc::Sender<Bytes>> = HashMap::new();
    let (ended, mut endings) = mpsc::channel::<SocketAddr>(FLOWS_MAX);
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        let (len, client) = tokio::select! {
            () = stop.cancelled() => return,
            Some(client) = endings.recv() => {
                // A flow that has begun anew meanwhile stays.
                if flows.get(&client).is_some_and(mpsc::Sender::is_closed) {
                    flows.remove(&client);
                }
                continue;
            }
            received = socket.recv_from(&mut buffer) => match received {
                Ok(received) => received,
                Err(error) => {
                    failures.write(outbound.connector.seams.clock.now(), |suppressed| {
                        tracing::warn!(%error, suppressed, "cannot receive datagrams");
                    });
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let payload = Bytes::copy_from_slice(&buffer[..len]);
        let payload = match flows.get(&client).map(|queue| queue.try_send(payload.clone())) {
            Some(Ok(())) => continue,
            Some(Err(mpsc::error::TrySendError::Full(_))) => {
                outbound.connector.metrics.datagrams_dropped.inc();
                continue;
            }
            Some(Err(mpsc::error::TrySendError::Closed(payload))) => payload,
            None => payload,
        };
        let target = targets.borrow().clone();
        let Ok(permit) = Arc::clone(&outbound.udp_flows).try_acquire_owned() else {
            outbound
                .connector
                .metrics
                .flow(&target.service, Outcome::Overloaded, Duration::ZERO);
            outbound.connector.metrics.datagrams_dropped.inc();
            continue;
        };
        let (queue, waiting) = mpsc::channel(QUEUE);
        if queue.try_send(payload).is_err() {
            outbound.connector.metrics.datagrams_dropped.inc();
        }
        flows.insert(client, queue);
        let flow = UdpClient {
            outbound: Arc::clone(&outbound),
            socket: Arc::clone(&socket),
            client,
            target,
        };
        let ended = ended.clone();
        let guard = outbound.shutdown.guard("UDP flow");
        tokio::spawn(async move {
            let _held = (permit, guard);
            flow.outbound.connector.metrics.flows_open.inc();
            flow.run(waiting).await;
            flow.outbound.connector.metrics.flows_open.dec();
            // There is room for every flow, and nobody listens once the socket is unbound.
            if ended.try_send(client).is_err() {
                tracing::trace!(%client, "UDP flow ended after its listener");
            }
        });
    }
}

/// One flow.
struct UdpClient {
    outbound: Arc<Outbound>,
    socket: Arc<UdpSocket>,
    client: SocketAddr,
    target: Target,
}

impl UdpClient {
    async fn run(&self, mut waiting: mpsc::Receiver<Bytes>) {
        let connector = &self.outbound.connector;
        // Endpoints that refused a datagram of this flow. Nothing of it has reached them, so the next one gets the flow.
        let mut refused = BTreeSet::new();
        while refused.len() <= LOCAL_ATTEMPTS_MAX {
            let connect = |attempt| self.attempt(attempt, &refused);
            let connected = connector
                .connect(&self.target, Protocol::Udp, self.client, connect)
                .await;
            let (attempt, backend) = match connected {
                Ok(connected) => connected,
                Err(error) => {
                    return tracing::debug!(client = %self.client, %error, "UDP flow has no backend");
                }
            };
            let ended = tokio::select! {
                // A datagram has no end to wait for: the drain ends its flow.
                () = self.outbound.shutdown.drain() => return,
                () = self.doubted(&attempt) => {
                    return tracing::debug!(client = %self.client, ?attempt, "UDP flow moves on");
                }
                ended = self.carry(&attempt, backend, &mut waiting) => ended,
            };
            let Err(error) = ended else { return };
            tracing::debug!(client = %self.client, ?attempt, %error, "UDP flow ended by its backend");
            match attempt {
                // An ICMP "port unreachable" is the only refusal that UDP has.
                Attempt::Endpoint { address, .. } if error.kind() == io::ErrorKind::ConnectionRefused => {
                    connector.view.report(&self.target, Protocol::Udp, address, false);
                    refused.insert(address);
                }
                _ => return,
            }
        }
    }

    async fn attempt(
        &self,
        attempt: Attempt,
        refused: &BTreeSet<SocketAddr>,
    ) -> Result<Backend, AttemptFailed> {
        match attempt {
            Attempt::Endpoint { address, .. } if refused.contains(&address) => Err(AttemptFailed::new(
                format!("{address} refused a datagram of this flow"),
            )),
            // DTLS is spoken by no sidecar: a backend that takes mTLS only takes no plain datagrams either.
            Attempt::Endpoint { mtls: true, .. } => Err(AttemptFailed::new(
                "the service demands mTLS, which UDP endpoints do not have",
            )),
            Attempt::Endpoint { address, .. } | Attempt::OwnGateway(address) => {
                let any: SocketAddr = match address {
                    SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                    SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
                };
                let socket = UdpSocket::bind(any).await.map_err(AttemptFailed::new)?;
                socket.connect(address).await.map_err(AttemptFailed::new)?;
                Ok(Backend::Socket(socket))
            }
            Attempt::Cluster { cluster, endpoint } => {
                let connector = &self.outbound.connector;
                let header = connector.header(&self.target, Protocol::Udp, endpoint, self.client);
                let open = |tunnel: Tunnel| {
                    let header = header.clone();
                    async move { tunnel.open_udp(&header).await }
                };
                let flow = connector.gateways.open(&cluster, open).await?;
                Ok(Backend::Tunnel(Box::new(flow)))
            }
        }
    }

    /// Resolves when the link of the flow's cluster is no longer trusted, or its endpoint was put aside.
    async fn doubted(&self, attempt: &Attempt) {
        let mut signals = self.outbound.connector.view.signals();
        let state = |signals: &tombolo_clusterset::select::Signals| {
            attempt
                .cluster()
                .map_or(LinkState::Unknown, |cluster| signals.link(cluster).state)
        };
        let before = state(&signals.borrow_and_update());
        loop {
            if signals.changed().await.is_err() {
                return std::future::pending().await;
            }
            let signals = signals.borrow_and_update();
            let put_aside = |address: SocketAddr| {
                let mut ejected = signals.ejected.iter();
                ejected.any(|(_, ip, port)| *ip == address.ip() && *port == address.port())
            };
            let aside = matches!(attempt, Attempt::Endpoint { address, .. } if put_aside(*address));
            if aside || turned_doubtful(before, state(&signals)) {
                return;
            }
        }
    }

    /// Both ways, until idle or ended.
    async fn carry(
        &self,
        attempt: &Attempt,
        mut backend: Backend,
        waiting: &mut mpsc::Receiver<Bytes>,
    ) -> io::Result<()> {
        let mut answered = false;
        let clock = &self.outbound.connector.seams.clock;
        let mut idle: Instant = clock.now() + IDLE;
        loop {
            tokio::select! {
                payload = waiting.recv() => match payload {
                    Some(payload) => backend.send(payload).await?,
                    // The listener is gone; what the backend still sends is nobody's.
                    None => return Ok(()),
                },
                reply = backend.recv() => match reply? {
                    Some(payload) => {
                        if let (Attempt::Endpoint { address, .. }, false) = (attempt, answered) {
                            self.outbound.connector.view.report(&self.target, Protocol::Udp, *address, true);
                        }
                        answered = true;
                        self.socket.send_to(&payload, self.client).await?;
                    }
                    None => return Ok(()),
                },
                () = sleep_until(idle) => return Ok(()),
            }
            idle = clock.now() + IDLE;
        }
    }
}

impl Backend {
    async fn send(&mut self, payload: Bytes) -> io::Result<()> {
        match self {
            Self::Socket(socket) => socket.send(&payload).await.map(|_| ()),
            Self::Tunnel(flow) => flow.send(payload).await.map_err(io::Error::other),
        }
    }

    /// The next payload; None when the other side has ended the flow. Cancel-safe.
    async fn recv(&mut self) -> io::Result<Option<Bytes>> {
        match self {
            Self::Socket(socket) => loop {
                socket.readable().await?;
                match receive(socket) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    received => return received.map(Some),
                }
            },
            Self::Tunnel(flow) => Ok(flow.recv().await),
        }
    }
}

/// A datagram that waits in the socket. The buffer is on the stack: a flow that is silent holds none.
fn receive(socket: &UdpSocket) -> io::Result<Bytes> {
    let mut buffer = [0; DATAGRAM_MAX];
    let len = socket.try_recv(&mut buffer)?;
    Ok(Bytes::copy_from_slice(&buffer[..len]))
}
