//! UDP: a flow is (client address, service port). It sticks to its endpoint until that one is gone or nothing passes for
//! [`IDLE`], and its replies leave from the socket that its client sent to.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tombolo_clusterset::endpoint::Protocol;
use tombolo_clusterset::places::Target;
use tombolo_tunnel::UdpFlow;
use tracing::{debug, warn};

use super::context::Context;
use super::health::Group;
use super::inbound::still_serves;
use super::listeners::Permit;
use super::metrics::{Direction, Outcome};
use super::outbound::{self, ClientFlow, Way};

/// A flow over which nothing has passed for this long is over: conntrack's `nf_conntrack_udp_timeout_stream` is 120 s, its
/// older default 180 s; the longer one never surprises a client.
pub(super) const IDLE: Duration = Duration::from_secs(180);

/// Client datagrams that wait for their flow to be connected: what a resolver or a game sends in a round trip.
const QUEUE: usize = 64;

/// Flows of one listening socket; beside it the gateway's limits per source and in all hold.
const FLOWS_PER_SOCKET: usize = 16_384;

/// Longest UDP payload (RFC 768, RFC 791): 65,535 less two headers.
const PAYLOAD_MAX: usize = 65_507;

/// Receives client datagrams on one VIP and port until `stop`, then until its flows have ended.
pub(super) async fn serve(
    context: Arc<Context>,
    socket: Arc<UdpSocket>,
    target: Arc<ArcSwap<Target>>,
    stop: CancellationToken,
) {
    let mut place = Place {
        context: Arc::clone(&context),
        socket,
        target,
        flows: HashMap::new(),
        tasks: JoinSet::new(),
    };
    let socket = Arc::clone(&place.socket);
    loop {
        let stopping = stop.is_cancelled();
        if stopping && place.tasks.is_empty() {
            return;
        }
        tokio::select! {
            () = stop.cancelled(), if !stopping => {}
            () = context.shutdown.deadline_passed() => return,
            Some(ended) = place.tasks.join_next() => place.reap(ended),
            received = receive(&socket) => match received {
                Ok((payload, client)) => place.take(client, payload, !stopping),
                // An earlier reply met a closed port: the host tells so here, and the next datagram is another client's.
                Err(error) => debug!(%error, "UDP listener"),
            },
        }
    }
}

/// One listening socket and its flows.
struct Place {
    context: Arc<Context>,
    socket: Arc<UdpSocket>,
    target: Arc<ArcSwap<Target>>,
    flows: HashMap<SocketAddr, mpsc::Sender<Bytes>>,
    tasks: JoinSet<SocketAddr>,
}

impl Place {
    /// Hands a datagram to its flow, which begins with it when there is none and `may_begin`.
    fn take(&mut self, client: SocketAddr, payload: Bytes, may_begin: bool) {
        let payload = match self.flows.get(&client).map(|flow| flow.try_send(payload.clone())) {
            Some(Ok(())) => return,
            Some(Err(mpsc::error::TrySendError::Full(_))) => return self.context.metrics.datagram_dropped(),
            // It has just ended: the next flow of this client begins.
            Some(Err(mpsc::error::TrySendError::Closed(payload))) => payload,
            None => payload,
        };
        if !may_begin || self.flows.len() >= FLOWS_PER_SOCKET {
            return self.context.metrics.datagram_dropped();
        }
        let permit = match self.context.limiter.admit(client.ip()) {
            Ok(permit) => permit,
            Err(limit) => {
                self.context
                    .metrics
                    .udp_flow(Direction::Outbound)
                    .set_outcome(Outcome::OverLimit);
                let now = self.context.seams.clock.now();
                return self.context.log.write(now, |suppressed| {
                    warn!(%client, limit, suppressed, "UDP flow not taken: over a limit");
                });
            }
        };
        let (sender, queue) = mpsc::channel(QUEUE);
        // A new queue has room.
        drop(sender.try_send(payload));
        self.flows.insert(client, sender);
        let flow = ClientFlow {
            target: self.target.load().as_ref().clone(),
            protocol: Protocol::Udp,
            client,
            hidden: BTreeSet::new(),
        };
        let (context, socket) = (Arc::clone(&self.context), Arc::clone(&self.socket));
        let guard = self.context.shutdown.guard("UDP flow");
        self.tasks.spawn(async move {
            let _held: (Permit, _) = (permit, guard);
            run(&context, &socket, &flow, queue).await;
            client
        });
    }

    fn reap(&mut self, ended: Result<SocketAddr, tokio::task::JoinError>) {
        match ended {
            // The same client may have begun a new flow meanwhile.
            Ok(client) => {
                if self.flows.get(&client).is_some_and(mpsc::Sender::is_closed) {
                    self.flows.remove(&client);
                }
            }
            Err(error) => warn!(%error, "UDP flow died; this is a bug, please report it with the log"),
        }
    }
}

/// One flow of a client, from its first datagram to its end.
async fn run(context: &Arc<Context>, socket: &UdpSocket, flow: &ClientFlow, queue: mpsc::Receiver<Bytes>) {
    let mut running = context.metrics.udp_flow(Direction::Outbound);
    let connected = tokio::select! {
        connected = outbound::connect(context, flow) => connected,
        () = context.shutdown.drain() => return running.set_outcome(Outcome::ResetAtDrain),
    };
    let way = match connected {
        Ok(connected) => connected.way,
        Err(error) => {
            return context.log.write(context.seams.clock.now(), |suppressed| {
                warn!(client = %flow.client, service = %flow.target.service, %error, suppressed, "UDP flow not connected");
            });
        }
    };
    running.set_direction(way.direction());
    let carried = async {
        match way {
            Way::RemoteUdp(tunnel_flow) => to_tunnel(context, socket, flow.client, queue, tunnel_flow).await,
            Way::LocalUdp(backend, endpoint) => {
                to_backend(context, socket, flow, queue, &backend, endpoint).await
            }
            Way::LocalTcp(_) | Way::RemoteTcp(_) => Outcome::NotConnected,
        }
    };
    // A UDP flow has no end of its own: a drain does not wait for it to idle.
    let outcome = tokio::select! {
        outcome = carried => outcome,
        () = context.shutdown.drain() => Outcome::Ended,
    };
    running.set_outcome(outcome);
}

/// Between a client and a tunnel.
async fn to_tunnel(
    context: &Context,
    socket: &UdpSocket,
    client: SocketAddr,
    mut queue: mpsc::Receiver<Bytes>,
    flow: UdpFlow,
) -> Outcome {
    let (mut sender, mut receiver) = flow.split();
    let mut idle = Idle::new();
    loop {
        tokio::select! {
            payload = queue.recv() => {
                let Some(payload) = payload else { return Outcome::Ended };
                context.metrics.carried(Direction::Outbound, payload.len() as u64, 0);
                if sender.send(payload).await.is_err() {
                    return Outcome::ResetByTunnel;
                }
            }
            payload = receiver.recv() => {
                let Some(payload) = payload else { return Outcome::ResetByTunnel };
                context.metrics.carried(Direction::Outbound, 0, payload.len() as u64);
                reply(socket, &payload, client).await;
            }
            () = idle.over() => return Outcome::Ended,
        }
        idle.touch();
    }
}

/// Between a client and an endpoint of this cluster.
async fn to_backend(
    context: &Context,
    socket: &UdpSocket,
    flow: &ClientFlow,
    mut queue: mpsc::Receiver<Bytes>,
    backend: &UdpSocket,
    endpoint: SocketAddr,
) -> Outcome {
    let group: Group = (flow.target.service.clone(), Protocol::Udp, flow.target.port);
    let mut judge = Judge {
        context,
        group: &group,
        endpoint,
        answered: false,
    };
    let mut snapshots = context.snapshots.receiver();
    let mut idle = Idle::new();
    loop {
        tokio::select! {
            payload = queue.recv() => {
                let Some(payload) = payload else { return Outcome::Ended };
                context.metrics.carried(Direction::Local, payload.len() as u64, 0);
                if let Err(error) = backend.send(&payload).await {
                    return judge.failed(&error);
                }
            }
            received = receive(backend) => match received {
                Ok((payload, _)) => {
                    judge.answered();
                    context.metrics.carried(Direction::Local, 0, payload.len() as u64);
                    reply(socket, &payload, flow.client).await;
                }
                Err(error) => return judge.failed(&error),
            },
            Ok(()) = snapshots.changed() => {
                if judge.is_gone() {
                    return Outcome::Ended;
                }
                continue;
            }
            () = idle.over() => return Outcome::Ended,
        }
        idle.touch();
    }
}

/// Between a tunnel and an endpoint of this cluster, for a peer's client.
pub(super) async fn carry_inbound(
    context: &Context,
    group: &Group,
    backend: UdpSocket,
    endpoint: SocketAddr,
    flow: UdpFlow,
) -> Outcome {
    let (mut sender, mut receiver) = flow.split();
    let mut judge = Judge {
        context,
        group,
        endpoint,
        answered: false,
    };
    let mut snapshots = context.snapshots.receiver();
    let mut idle = Idle::new();
    loop {
        tokio::select! {
            payload = receiver.recv() => {
                let Some(payload) = payload else { return Outcome::Ended };
                context.metrics.carried(Direction::Inbound, 0, payload.len() as u64);
                if let Err(error) = backend.send(&payload).await {
                    return judge.failed(&error);
                }
            }
            received = receive(&backend) => match received {
                Ok((payload, _)) => {
                    judge.answered();
                    context.metrics.carried(Direction::Inbound, payload.len() as u64, 0);
                    if sender.send(payload).await.is_err() {
                        return Outcome::ResetByTunnel;
                    }
                }
                Err(error) => return judge.failed(&error),
            },
            Ok(()) = snapshots.changed() => {
                if judge.is_gone() {
                    return Outcome::Ended;
                }
                continue;
            }
            () = idle.over() => return Outcome::Ended,
            () = context.shutdown.drain() => return Outcome::Ended,
        }
        idle.touch();
    }
}

/// The next datagram, in a buffer of its own size: thousands of sockets and queues wait, and few payloads are long. Cancel-safe.
async fn receive(socket: &UdpSocket) -> io::Result<(Bytes, SocketAddr)> {
    thread_local! {
        static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; PAYLOAD_MAX]);
    }
    loop {
        socket.readable().await?;
        let received: io::Result<_> = SCRATCH.with_borrow_mut(|scratch| {
            let (length, from) = socket.try_recv_from(scratch)?;
            Ok((
                Bytes::copy_from_slice(scratch.get(..length).unwrap_or_default()),
                from,
            ))
        });
        match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => return received,
        }
    }
}

/// A reply that the host cannot send is lost, as any datagram may be.
async fn reply(socket: &UdpSocket, payload: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(payload, client).await {
        debug!(%client, %error, "reply not sent");
    }
}

/// What an endpoint's answers and errors say about its health.
struct Judge<'a> {
    context: &'a Context,
    group: &'a Group,
    endpoint: SocketAddr,
    answered: bool,
}

impl Judge<'_> {
    /// The first answer of a flow counts as one success.
    fn answered(&mut self) {
        if !self.answered {
            self.answered = true;
            self.tell(true);
        }
    }

    /// The endpoint's host says that nobody listens there.
    fn failed(&self, error: &io::Error) -> Outcome {
        debug!(endpoint = %self.endpoint, %error, "UDP endpoint");
        self.tell(false);
        Outcome::ResetByLocal
    }

    fn is_gone(&self) -> bool {
        let snapshot = self.context.snapshots.current();
        snapshot.is_some_and(|snapshot| !still_serves(&snapshot, self.group, self.endpoint))
    }

    fn tell(&self, well: bool) {
        let Self {
            context,
            group,
            endpoint,
            ..
        } = self;
        context
            .health
            .outcome(group, &context.site.cluster, *endpoint, well, context.now());
    }
}

/// Counts the silence of a flow.
struct Idle {
    until: Instant,
}

impl Idle {
    fn new() -> Self {
        Self {
            until: Instant::now() + IDLE,
        }
    }

    fn touch(&mut self) {
        self.until = Instant::now() + IDLE;
    }

    async fn over(&self) {
        tokio::time::sleep_until(self.until).await;
    }
}
