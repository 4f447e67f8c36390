//! Listens on every VIP and stand-in, and serves the TCP flows that come in there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tombolo_clusterset::endpoint::Protocol;
use tombolo_clusterset::places::{Action, Place, Target, reconcile};
use tombolo_daemon::seam::net::{ACCEPT_PAUSE, Listener, Stream};
use tombolo_daemon::supervise::TaskResult;
use tombolo_tunnel::{Ended, forward};
use tracing::{debug, info, warn};

use super::context::Context;
use super::metrics::{Direction, Outcome};
use super::outbound::{self, ClientFlow, Connected, Way};
use super::udp;
use crate::listeners::wanted;

/// Flows of clients at once: each holds two descriptors and a few KiB; a gateway at its bound takes about a gibibyte.
pub(super) const FLOWS_MAX: usize = 65_536;

/// Of those from one address: a quarter, so that one client cannot take them all.
pub(super) const FLOWS_PER_SOURCE: usize = 16_384;

/// How long a place that could not be bound waits for the next try: someone has to free the address.
const REBIND_AFTER: Duration = Duration::from_secs(2);

/// Bytes that a flow within this cluster holds per direction.
const RELAY_BUFFER: usize = 16 * 1024;

/// Counts flows by source.
#[derive(Debug)]
pub(super) struct Limiter {
    most: usize,
    per_source: usize,
    held: Arc<Mutex<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    by_source: HashMap<IpAddr, usize>,
}

/// One flow's place under the limits; given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    source: IpAddr,
    held: Arc<Mutex<Held>>,
}

impl Limiter {
    pub(super) fn new(most: usize, per_source: usize) -> Self {
        Self {
            most,
            per_source,
            held: Arc::default(),
        }
    }

    /// A place for a flow from `source`, or the limit that it meets.
    pub(super) fn admit(&self, source: IpAddr) -> Result<Permit, String> {
        let mut held = self.held.lock();
        if held.all >= self.most {
            return Err(format!("{} flows run through this gateway, its limit", self.most));
        }
        let of_source = held.by_source.entry(source).or_default();
        if *of_source >= self.per_source {
            return Err(format!(
                "{} flows run from {source}, the limit of one address",
                self.per_source
            ));
        }
        *of_source += 1;
        held.all += 1;
        Ok(Permit {
            source,
            held: Arc::clone(&self.held),
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut held = self.held.lock();
        held.all = held.all.saturating_sub(1);
        if let Some(of_source) = held.by_source.get_mut(&self.source) {
            *of_source -= 1;
            if *of_source == 0 {
                held.by_source.remove(&self.source);
            }
        }
    }
}

/// What is bound, for `/state`.
pub(super) type Board = Arc<Mutex<BTreeMap<Place, ListenerState>>>;

/// One place as an operator sees it.
#[derive(Debug, Clone)]
pub(super) struct ListenerState {
    pub(super) target: Target,
    /// Why it is not bound; None when it is.
    pub(super) failure: Option<String>,
}

struct Bound {
    target: Arc<ArcSwap<Target>>,
    stop: CancellationToken,
}

/// Keeps what is bound equal to what the snapshot asks for, until the drain begins. `settled` is called once the places of the
/// first snapshot were tried.
pub(super) async fn keep(context: Arc<Context>, board: Board, settled: impl FnOnce() + Send) -> TaskResult {
    let mut snapshots = context.snapshots.receiver();
    let mut bound: BTreeMap<Place, Bound> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    let mut settled = Some(settled);
    let result = loop {
        let snapshot = snapshots.borrow_and_update().clone();
        let mut retry = false;
        if let Some(snapshot) = snapshot {
            let (wanted, left_out) = wanted(&snapshot);
            if left_out > 0 {
                let now = context.seams.clock.now();
                context.log.write(now, |_| {
                    warn!(
                        left_out,
                        "more imports than one gateway listens for; the last ones are left out"
                    )
                });
            }
            let now_bound = bound
                .iter()
                .map(|(place, bound)| (*place, bound.target.load().as_ref().clone()))
                .collect();
            for action in reconcile(&now_bound, &wanted) {
                retry |= !apply(&context, &board, &mut bound, &mut tasks, action).await;
            }
            let mut board = board.lock();
            board.retain(|place, _| wanted.contains_key(place));
            context.metrics.listeners(bound.len(), board.len() - bound.len());
            drop(board);
            if let Some(settled) = settled.take() {
                settled();
            }
        }
        let rebind = async {
            if retry {
                tokio::time::sleep(REBIND_AFTER).await
            } else {
                std::future::pending().await
            }
        };
        tokio::select! {
            () = context.shutdown.drain() => break Ok(()),
            changed = snapshots.changed() => if let Err(error) = changed { break Err(error.into()) },
            () = rebind => {}
            Some(ended) = tasks.join_next() => if let Err(error) = ended { break Err(error.into()) },
        }
    };
    for bound in bound.values() {
        bound.stop.cancel();
    }
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    result
}

/// Does one action; false when a place could not be bound.
async fn apply(
    context: &Arc<Context>,
    board: &Board,
    bound: &mut BTreeMap<Place, Bound>,
    tasks: &mut JoinSet<()>,
    action: Action,
) -> bool {
    let (place, target) = match action {
        Action::Unbind(place) => {
            if let Some(bound) = bound.remove(&place) {
                bound.stop.cancel();
                info!(address = %place.address, protocol = %place.protocol, "stopped listening");
            }
            return true;
        }
        Action::Retarget(place, target) => {
            if let Some(bound) = bound.get(&place) {
                bound.target.store(Arc::new(target.clone()));
            }
            board.lock().insert(
                place,
                ListenerState {
                    target,
                    failure: None,
                },
            );
            return true;
        }
        Action::Bind(place, target) => (place, target),
    };
    let current = Arc::new(ArcSwap::from_pointee(target.clone()));
    let stop = CancellationToken::new();
    let started = start(context, place, Arc::clone(&current), stop.clone(), tasks).await;
    let failure = match started {
        Ok(()) => {
            info!(address = %place.address, protocol = %place.protocol, service = %target.service, "listening");
            bound.insert(
                place,
                Bound {
                    target: current,
                    stop,
                },
            );
            None
        }
        Err(error) => {
            let now = context.seams.clock.now();
            context.log.write(now, |suppressed| warn!(service = %target.service, %error, suppressed, "cannot listen; trying again"));
            Some(error.to_string())
        }
    };
    let is_bound = failure.is_none();
    board.lock().insert(place, ListenerState { target, failure });
    is_bound
}

async fn start(
    context: &Arc<Context>,
    place: Place,
    target: Arc<ArcSwap<Target>>,
    stop: CancellationToken,
    tasks: &mut JoinSet<()>,
) -> io::Result<()> {
    match place.protocol {
        Protocol::Tcp => {
            let listener = context.seams.network.listen(place.address).await?;
            tasks.spawn(accept(Arc::clone(context), listener, target, stop));
        }
        Protocol::Udp => {
            let socket = tokio::net::UdpSocket::bind(place.address).await?;
            tasks.spawn(udp::serve(Arc::clone(context), Arc::new(socket), target, stop));
        }
        Protocol::Sctp => return Err(io::Error::new(io::ErrorKind::Unsupported, "SCTP is not carried")),
    }
    Ok(())
}

async fn accept(
    context: Arc<Context>,
    listener: Listener,
    target: Arc<ArcSwap<Target>>,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => admit(&context, stream, client, target.load_full()),
            Err(error) => {
                context.log.write(context.seams.clock.now(), |suppressed| {
                    warn!(%error, suppressed, "cannot accept; check the limit of open files");
                });
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
    }
}

/// Starts the flow's own task, which a drain waits for and resets at its deadline.
fn admit(context: &Arc<Context>, stream: Stream, client: SocketAddr, target: Arc<Target>) {
    let permit = match context.limiter.admit(client.ip()) {
        Ok(permit) => permit,
        Err(limit) => {
            context
                .metrics
                .flow(Direction::Outbound)
                .set_outcome(Outcome::OverLimit);
            context.log.write(context.seams.clock.now(), |suppressed| {
                warn!(%client, service = %target.service, limit, suppressed, "flow reset: over a limit");
            });
            return stream.abort();
        }
    };
    let guard = context.shutdown.guard("flow");
    let context = Arc::clone(context);
    tokio::spawn(async move {
        let _held = (permit, guard);
        let flow = ClientFlow {
            target: target.as_ref().clone(),
            protocol: Protocol::Tcp,
            client,
            hidden: BTreeSet::new(),
        };
        serve(&context, stream, &flow).await;
    });
}

/// Connects a client's flow and carries it to its end. The client sees a reset when nobody connects it.
async fn serve(context: &Arc<Context>, stream: Stream, flow: &ClientFlow) {
    let mut running = context.metrics.flow(Direction::Outbound);
    // Until it is forwarded, whatever ends this flow must read as a reset.
    if let Err(error) = stream.reset_on_drop() {
        debug!(client = %flow.client, %error, "client was gone at once");
    }
    let started = context.now();
    let connected = tokio::select! {
        connected = outbound::connect(context, flow) => connected,
        () = context.shutdown.deadline_passed() => return running.set_outcome(Outcome::ResetAtDrain),
    };
    let Connected { way, cluster } = match connected {
        Ok(connected) => connected,
        Err(error) => {
            let waited = outbound::since(context, started);
            context.log.write(context.seams.clock.now(), |suppressed| {
                warn!(client = %flow.client, service = %flow.target.service, port = flow.target.port, %error, ?waited, suppressed, "flow not connected");
            });
            return stream.abort();
        }
    };
    running.set_direction(way.direction());
    debug!(client = %flow.client, service = %flow.target.service, %cluster, "flow connected");
    let outcome = match way {
        Way::RemoteTcp(tunnel_flow) => tokio::select! {
            forwarded = forward(stream, tunnel_flow) => {
                context.metrics.carried(Direction::Outbound, forwarded.bytes_out, forwarded.bytes_in);
                match forwarded.ended {
                    Ended::Normally => Outcome::Ended,
                    Ended::ByLocal(_) => Outcome::ResetByLocal,
                    Ended::ByFlow(_) => Outcome::ResetByTunnel,
                }
            }
            () = context.shutdown.deadline_passed() => Outcome::ResetAtDrain,
        },
        Way::LocalTcp(backend) => tokio::select! {
            outcome = relay(context, stream, backend) => outcome,
            () = context.shutdown.deadline_passed() => Outcome::ResetAtDrain,
        },
        Way::LocalUdp(..) | Way::RemoteUdp(_) => Outcome::NotConnected,
    };
    running.set_outcome(outcome);
}

/// Carries a flow that stays within this cluster. A reset of one side resets the other.
async fn relay(context: &Context, mut client: Stream, mut backend: Stream) -> Outcome {
    if let Err(error) = backend.reset_on_drop() {
        debug!(%error, "backend was gone at once");
        return Outcome::ResetByLocal;
    }
    match tokio::io::copy_bidirectional_with_sizes(&mut client, &mut backend, RELAY_BUFFER, RELAY_BUFFER)
        .await
    {
        Ok((to_backend, to_client)) => {
            context.metrics.carried(Direction::Local, to_backend, to_client);
            for stream in [&client, &backend] {
                end_in_order(stream);
            }
            Outcome::Ended
        }
        Err(error) => {
            debug!(%error, "local flow reset");
            Outcome::ResetByLocal
        }
    }
}

/// Both directions have ended: what is still in the socket's buffer is to be delivered, not reset.
fn end_in_order(stream: &Stream) {
    if let Stream::Tcp(tcp) = stream
        && let Err(error) = socket2::SockRef::from(tcp).set_linger(None)
    {
        debug!(%error, "connection was gone at its end");
    }
}

/// Used by `run` to tell readiness apart from a snapshot's arrival.
pub(super) async fn first_snapshot(context: &Context) -> bool {
    let mut snapshots: watch::Receiver<_> = context.snapshots.receiver();
    tokio::select! {
        first = snapshots.wait_for(Option::is_some) => first.is_ok(),
        () = context.shutdown.drain() => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold_per_source_and_in_all_and_are_given_back() {
        let [a, b]: [IpAddr; 2] = [[127, 0, 0, 1].into(), [127, 0, 0, 2].into()];
        let limiter = Limiter::new(3, 2);
        let first = limiter.admit(a).unwrap();
        let _second = limiter.admit(a).unwrap();
        assert!(limiter.admit(a).unwrap_err().contains("from 127.0.0.1"));
        let _third = limiter.admit(b).unwrap();
        assert!(limiter.admit(b).unwrap_err().contains("its limit"));
        drop(first);
        assert!(limiter.admit(a).is_ok());
    }
}
