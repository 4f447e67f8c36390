//! A flow from a client of this cluster: asks [`crate::route`] where it goes, and tries until one hop is connected.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::net::UdpSocket;
use tombolo_clusterset::dispatch::{Dispatch, OPEN_LIMIT, Step};
use tombolo_clusterset::endpoint::Protocol;
use tombolo_clusterset::places::Target;
use tombolo_clusterset::select::Signals;
use tombolo_clusterset::{ClusterId, LinkState};
use tombolo_daemon::seam::net::Stream;
use tombolo_tunnel::{Flow, FlowHeader, OpenError, Tunnel, UdpFlow};

use super::context::{Context, LinkView};
use super::health::Group;
use super::metrics::Direction;
use crate::route::{self, Hop, NewFlow};

/// Time for a connect to an endpoint of the own cluster: it is a round trip within a data centre, and one lost SYN (1 s,
/// RFC 6298 §2.1) is where another endpoint is the better bet.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a hop waits for a tunnel that is being dialled: a peer's gateway restarts in less, and the hedge tries other
/// hops meanwhile.
const TUNNEL_WAIT: Duration = Duration::from_secs(1);

/// A new flow of a client.
#[derive(Debug, Clone)]
pub(super) struct ClientFlow {
    pub(super) target: Target,
    pub(super) protocol: Protocol,
    pub(super) client: SocketAddr,
    /// Clusters whose endpoints this flow must not use: a drill hides the own ones from its requests.
    pub(super) hidden: BTreeSet<ClusterId>,
}

/// A connected flow.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) way: Way,
    /// Whose endpoint serves it.
    pub(super) cluster: ClusterId,
}

/// What it runs over.
#[derive(Debug)]
pub(super) enum Way {
    LocalTcp(Stream),
    LocalUdp(UdpSocket, SocketAddr),
    RemoteTcp(Flow),
    RemoteUdp(UdpFlow),
}

impl Way {
    pub(super) fn direction(&self) -> Direction {
        match self {
            Self::LocalTcp(_) | Self::LocalUdp(..) => Direction::Local,
            Self::RemoteTcp(_) | Self::RemoteUdp(_) => Direction::Outbound,
        }
    }
}

/// Why a flow was not connected: the reason of the hop that failed last.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotConnected {
    #[error("this gateway has no snapshot yet; see whether the agent runs")]
    NoSnapshot,
    #[error("{0} is not imported here any more")]
    NotImported(String),
    #[error("no endpoint: nothing that serves {0} is ready and reachable; see `tombolo explain`")]
    NoHop(String),
    #[error("{0}")]
    Failed(String),
    #[error("no answer within {} s; last: {last}", OPEN_LIMIT.as_secs())]
    TimedOut { last: String },
}

/// Connects `flow`, moving it between hops as [`crate::route`] says.
pub(super) async fn connect(context: &Arc<Context>, flow: &ClientFlow) -> Result<Connected, NotConnected> {
    let started = context.now();
    let hops = hops(context, flow)?;
    let header = Arc::new(header(context, flow));
    let mut dispatch = Dispatch::new(hops.len(), started);
    let mut attempts: FuturesUnordered<BoxFuture<'_, (usize, Result<Way, HopError>)>> =
        FuturesUnordered::new();
    let mut pending: BTreeSet<usize> = BTreeSet::new();
    let mut links = context.links.clone();
    let mut last = None;
    let mut tries = 0;
    loop {
        match dispatch.poll(context.now()) {
            Step::Try(index) => {
                let Some(hop) = hops.get(index) else {
                    return Err(NotConnected::NoHop(flow.target.service.to_string()));
                };
                dispatch.on_begun(index, rtt(&links.borrow_and_update(), hop), context.now());
                tries += 1;
                pending.insert(index);
                let (header, hop) = (Arc::clone(&header), hop.clone());
                attempts.push(Box::pin(async move {
                    (index, attempt(context, flow, &hop, &header).await)
                }));
            }
            Step::GiveUp => {
                return Err(match last {
                    None => NotConnected::NoHop(flow.target.service.to_string()),
                    Some(last) if context.now() >= started + OPEN_LIMIT => NotConnected::TimedOut { last },
                    Some(last) => NotConnected::Failed(last),
                });
            }
            Step::Wait(until) => tokio::select! {
                Some((index, outcome)) = attempts.next() => {
                    pending.remove(&index);
                    match outcome {
                        Ok(way) => {
                            let waited = context.now().saturating_duration_since(started);
                            context.metrics.opened(way.direction(), waited, tries);
                            let cluster = hops.get(index).map_or_else(|| context.site.cluster.clone(), |hop| cluster_of(context, hop));
                            return Ok(Connected { way, cluster });
                        }
                        Err(HopError { reason, may_move }) => {
                            tracing::debug!(service = %flow.target.service, hop = ?hops.get(index), reason, "hop failed");
                            dispatch.on_failed(index, may_move);
                            last = Some(reason);
                        }
                    }
                }
                Ok(()) = links.changed() => {
                    let view = links.borrow_and_update().clone();
                    for index in pending.iter().filter(|index| hops.get(**index).is_some_and(|hop| is_doubtful(&view, hop))) {
                        dispatch.on_suspect(*index, context.now());
                    }
                }
                () = tokio::time::sleep_until(until.into()) => {
                    last.get_or_insert_with(|| "no hop has answered".to_owned());
                }
            },
        }
    }
}

/// A hop that did not connect.
#[derive(Debug)]
struct HopError {
    reason: String,
    may_move: bool,
}

impl HopError {
    fn movable(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            may_move: true,
        }
    }
}

fn hops(context: &Context, flow: &ClientFlow) -> Result<Vec<Hop>, NotConnected> {
    let ClientFlow {
        target,
        protocol,
        client,
        hidden,
    } = flow;
    let snapshot = context.snapshots.current().ok_or(NotConnected::NoSnapshot)?;
    let import = snapshot.imports.get(&target.service);
    let found = import.and_then(|import| Some((import, import.port(*protocol, target.port)?)));
    let (import, port) =
        found.ok_or_else(|| NotConnected::NotImported(format!("{}:{}", target.service, target.port)))?;
    let signals = Signals {
        links: context.link_view().links.clone(),
        ejected: context.health.ejected().as_ref().clone(),
        hidden: hidden.clone(),
    };
    let flow = NewFlow {
        snapshot: &snapshot,
        import,
        port,
        endpoint: target.endpoint.as_ref(),
        client: client.ip(),
        from: &context.site.locality,
        signals: &signals,
    };
    let hops = context.with_rng(|rng| route::hops(flow, rng));
    if hops.is_empty() {
        Err(NotConnected::NoHop(target.service.to_string()))
    } else {
        Ok(hops)
    }
}

fn header(context: &Context, flow: &ClientFlow) -> FlowHeader {
    FlowHeader {
        service: flow.target.service.clone(),
        port: flow.target.port,
        protocol: flow.protocol,
        endpoint: flow.target.endpoint.as_ref().map(|(_, address)| *address),
        source: context.source.clone(),
        client: flow.client,
        traceparent: None,
    }
}

fn cluster_of(context: &Context, hop: &Hop) -> ClusterId {
    match hop {
        Hop::Local(_) => context.site.cluster.clone(),
        Hop::Remote { cluster, .. } => cluster.clone(),
    }
}

fn rtt(view: &LinkView, hop: &Hop) -> Option<Duration> {
    match hop {
        Hop::Local(_) => None,
        Hop::Remote { cluster, .. } => view.links.get(cluster).and_then(|link| link.rtt),
    }
}

fn is_doubtful(view: &LinkView, hop: &Hop) -> bool {
    let Hop::Remote { cluster, .. } = hop else {
        return false;
    };
    view.links
        .get(cluster)
        .is_some_and(|link| matches!(link.state, LinkState::Suspect | LinkState::Down))
}

async fn attempt(
    context: &Context,
    flow: &ClientFlow,
    hop: &Hop,
    header: &FlowHeader,
) -> Result<Way, HopError> {
    match hop {
        Hop::Local(endpoint) => local(context, flow, *endpoint).await,
        Hop::Remote { cluster, .. } => remote(context, cluster, header).await,
    }
}

async fn local(context: &Context, flow: &ClientFlow, endpoint: SocketAddr) -> Result<Way, HopError> {
    let group = (flow.target.service.clone(), flow.protocol, flow.target.port);
    match flow.protocol {
        Protocol::Tcp => dial_endpoint(context, &group, endpoint)
            .await
            .map(Way::LocalTcp)
            .map_err(HopError::movable),
        Protocol::Udp => udp_to(endpoint)
            .await
            .map(|socket| Way::LocalUdp(socket, endpoint))
            .map_err(HopError::movable),
        Protocol::Sctp => Err(HopError {
            reason: "SCTP is not carried".to_owned(),
            may_move: false,
        }),
    }
}

/// Connects to an endpoint of this cluster and records the outcome.
pub(super) async fn dial_endpoint(
    context: &Context,
    group: &Group,
    endpoint: SocketAddr,
) -> Result<Stream, String> {
    let dialled = match tokio::time::timeout(CONNECT_TIMEOUT, context.seams.network.dial(endpoint)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!(
            "cannot connect to {endpoint}: no answer within {} s",
            CONNECT_TIMEOUT.as_secs()
        )),
    };
    context.health.outcome(
        group,
        &context.site.cluster,
        endpoint,
        dialled.is_ok(),
        context.now(),
    );
    dialled
}

/// A UDP socket of its own towards an endpoint, so that the endpoint's errors reach it.
pub(super) async fn udp_to(endpoint: SocketAddr) -> Result<UdpSocket, String> {
    let any: SocketAddr = if endpoint.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0u16; 8], 0).into()
    };
    let connected = async {
        let socket = UdpSocket::bind(any).await?;
        socket.connect(endpoint).await?;
        Ok::<_, std::io::Error>(socket)
    };
    connected
        .await
        .map_err(|error| format!("no UDP socket towards {endpoint}: {error}"))
}

/// Opens the flow in the best tunnel to `cluster`, in the next when that one is gone by then.
async fn remote(context: &Context, cluster: &ClusterId, header: &FlowHeader) -> Result<Way, HopError> {
    let tunnels = tunnels_to(context, cluster).await?;
    let mut last = HopError::movable(format!("no tunnel to {cluster} takes flows"));
    for tunnel in tunnels {
        let opened = match header.protocol {
            Protocol::Udp => tunnel.open_udp(header).await.map(Way::RemoteUdp),
            _ => tunnel.open(header).await.map(Way::RemoteTcp),
        };
        match opened {
            Ok(way) => return Ok(way),
            Err(error @ OpenError::Refused { refusal, .. }) => {
                return Err(HopError {
                    reason: error.to_string(),
                    may_move: route::may_move(refusal),
                });
            }
            Err(OpenError::Header(error)) => {
                return Err(HopError {
                    reason: error.to_string(),
                    may_move: false,
                });
            }
            Err(error) => last = HopError::movable(error.to_string()),
        }
    }
    Err(last)
}

/// The tunnels to `cluster`, best first; waits a little for the first one.
async fn tunnels_to(context: &Context, cluster: &ClusterId) -> Result<Vec<Tunnel>, HopError> {
    let mut links = context.links.clone();
    let has_one = |view: &Arc<LinkView>| {
        view.tunnels
            .get(cluster)
            .is_some_and(|tunnels| !tunnels.is_empty())
    };
    let found = tokio::time::timeout(TUNNEL_WAIT, links.wait_for(has_one)).await;
    let view = match found {
        Ok(Ok(view)) => view.clone(),
        Ok(Err(_)) | Err(_) => {
            let reason = context
                .link_view()
                .reports
                .get(cluster)
                .map(|report| report.reason.clone());
            let reason = reason.unwrap_or_else(|| "it is no member of the clusterset".to_owned());
            return Err(HopError::movable(format!("no tunnel to {cluster}: {reason}")));
        }
    };
    Ok(view.tunnels.get(cluster).cloned().unwrap_or_default())
}

/// The instant of a flow's start, for its log line.
pub(super) fn since(context: &Context, started: Instant) -> Duration {
    context.now().saturating_duration_since(started)
}
