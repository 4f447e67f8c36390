//! Flows that come out of tunnels: admission, an endpoint of this cluster's own export, connected and forwarded.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tombolo_clusterset::endpoint::{Protocol, Readiness};
use tombolo_clusterset::export::SessionAffinity;
use tombolo_clusterset::local::{LocalRequest, pick_local};
use tombolo_clusterset::snapshot::LocalExport;
use tombolo_clusterset::{ServicePort, Snapshot};
use tombolo_daemon::seam::net::Stream;
use tombolo_tunnel::{Accept, Ended, IncomingFlow, Kind, Refusal, Tunnel, forward};
use tracing::{debug, warn};

use super::context::Context;
use super::health::Group;
use super::metrics::{Direction, Outcome};
use super::outbound::{dial_endpoint, udp_to};
use super::udp;
use crate::admission::{Admission, Request, admit};
use crate::route::LOCAL_HOPS_MAX;

/// What the tunnels of this gateway call.
pub(super) struct Inbound {
    pub(super) context: Arc<Context>,
    /// Tunnels that other gateways dialled.
    pub(super) tunnels: mpsc::Sender<Tunnel>,
}

impl Accept for Inbound {
    fn tunnel(&self, tunnel: Tunnel) {
        // A sidecar's tunnel brings flows and says nothing about a link.
        if tunnel.peer_kind() != Kind::Gateway || !tunnel.takes_flows() {
            return;
        }
        if self.tunnels.try_send(tunnel.clone()).is_err() {
            warn!(cluster = %tunnel.cluster(), "too many new tunnels at once; this one is closed and dialled again");
            tunnel.close("too many new tunnels at once");
        }
    }

    fn flow(&self, flow: IncomingFlow) -> BoxFuture<'static, ()> {
        let context = Arc::clone(&self.context);
        Box::pin(async move { serve(&context, flow).await })
    }
}

/// Why a flow is not forwarded.
struct Refused(Refusal, String);

async fn serve(context: &Arc<Context>, mut flow: IncomingFlow) {
    let header = flow.header();
    let protocol = header.protocol;
    let group: Group = (header.service.clone(), protocol, header.port);
    let mut running = match protocol {
        Protocol::Udp => context.metrics.udp_flow(Direction::Inbound),
        _ => context.metrics.flow(Direction::Inbound),
    };
    let started = context.now();
    // Peers share nothing but this gateway: one that floods it leaves room for the others.
    let permit = context.inbound_limiter.admit(flow.tunnel().remote_addr().ip());
    let endpoints = match &permit {
        Ok(_) => endpoints(context, &flow),
        Err(limit) => Err(Refused(Refusal::Overloaded, limit.clone())),
    };
    let backend = match endpoints {
        Ok(endpoints) => connect(context, &mut flow, &group, &endpoints).await,
        Err(refused) => Err(refused),
    };
    let backend = match backend {
        Ok(Some(backend)) => backend,
        Ok(None) => return debug!(service = %group.0, "flow abandoned by its opener"),
        Err(Refused(refusal, detail)) => {
            running.set_outcome(Outcome::Refused);
            context.metrics.refused(refusal);
            return flow.refuse(refusal, &detail).await;
        }
    };
    context.metrics.opened(
        Direction::Inbound,
        context.now().saturating_duration_since(started),
        1,
    );
    match backend {
        Backend::Tcp(stream) => match flow.accept().await {
            Ok(flow) => {
                let forwarded = forward(stream, flow).await;
                context
                    .metrics
                    .carried(Direction::Inbound, forwarded.bytes_in, forwarded.bytes_out);
                running.set_outcome(match forwarded.ended {
                    Ended::Normally => Outcome::Ended,
                    Ended::ByLocal(_) => Outcome::ResetByLocal,
                    Ended::ByFlow(_) => Outcome::ResetByTunnel,
                });
            }
            Err(error) => {
                debug!(service = %group.0, %error, "flow abandoned by its opener");
                stream.abort();
            }
        },
        Backend::Udp(socket, endpoint) => match flow.accept_udp().await {
            Ok(flow) => {
                running.set_outcome(udp::carry_inbound(context, &group, socket, endpoint, flow).await)
            }
            Err(error) => debug!(service = %group.0, %error, "UDP flow abandoned by its opener"),
        },
    }
}

/// The endpoints to try, in order, for an admitted flow.
fn endpoints(context: &Context, flow: &IncomingFlow) -> Result<Vec<SocketAddr>, Refused> {
    if context.shutdown.is_draining() {
        return Err(Refused(
            Refusal::Draining,
            "the gateway is shutting down".to_owned(),
        ));
    }
    let snapshot = context.snapshots.current();
    let snapshot =
        snapshot.ok_or_else(|| Refused(Refusal::NoEndpoint, "the gateway has no snapshot yet".to_owned()))?;
    let header = flow.header();
    let request = Request {
        peer: flow.tunnel().cluster(),
        service: &header.service,
        port: header.port,
        protocol: header.protocol,
        endpoint: header.endpoint,
    };
    match admit(request, &snapshot) {
        Admission::Refuse { refusal, detail } => Err(Refused(refusal, detail)),
        Admission::Admit {
            export,
            port,
            only: Some(address),
        } => Ok(only(&export, &port, address)),
        Admission::Admit {
            export,
            port,
            only: None,
        } => drawn(context, &snapshot, &export, &port, header.client.ip()),
    }
}

fn only(export: &LocalExport, port: &ServicePort, address: IpAddr) -> Vec<SocketAddr> {
    let serving = export
        .slices
        .iter()
        .filter(|slice| slice.endpoints.iter().any(|endpoint| endpoint.address == address));
    let number = serving
        .filter_map(|slice| slice.port(&port.name, port.protocol))
        .next();
    number
        .map(|number| SocketAddr::new(address, number))
        .into_iter()
        .collect()
}

fn drawn(
    context: &Context,
    snapshot: &Snapshot,
    export: &LocalExport,
    port: &ServicePort,
    client: IpAddr,
) -> Result<Vec<SocketAddr>, Refused> {
    let sticky = export.spec.session_affinity == SessionAffinity::ClientIp;
    let request = LocalRequest {
        protocol: port.protocol,
        port: port.port,
        family: None,
        from: &context.site.locality,
        client: sticky.then_some(client),
    };
    let ejected = context.health.ejected();
    let picks = context.with_rng(|rng| pick_local(snapshot, export, request, &ejected, rng));
    let picks = picks.map_err(|error| Refused(Refusal::NoEndpoint, error.to_string()))?;
    Ok(picks
        .into_iter()
        .take(LOCAL_HOPS_MAX)
        .map(|pick| SocketAddr::new(pick.endpoint.address, pick.port))
        .collect())
}

enum Backend {
    Tcp(Stream),
    Udp(tokio::net::UdpSocket, SocketAddr),
}

/// Tries `endpoints` in order: nothing was sent yet, so that a refusal costs one round trip. None: the opener has given up.
async fn connect(
    context: &Context,
    flow: &mut IncomingFlow,
    group: &Group,
    endpoints: &[SocketAddr],
) -> Result<Option<Backend>, Refused> {
    let mut last = Refused(
        Refusal::NoEndpoint,
        format!("nothing serves {} port {}", group.0, group.2),
    );
    for endpoint in endpoints {
        let tried = async {
            match group.1 {
                Protocol::Udp => udp_to(*endpoint)
                    .await
                    .map(|socket| Backend::Udp(socket, *endpoint)),
                _ => dial_endpoint(context, group, *endpoint).await.map(Backend::Tcp),
            }
        };
        let tried = tokio::select! {
            tried = tried => tried,
            () = flow.abandoned() => return Ok(None),
        };
        match tried {
            Ok(backend) => return Ok(Some(backend)),
            Err(reason) => last = Refused(Refusal::BackendRefused, reason),
        }
    }
    Err(last)
}

/// Whether the own export still offers this endpoint to flows that began with it.
pub(super) fn still_serves(snapshot: &Snapshot, group: &Group, endpoint: SocketAddr) -> bool {
    snapshot.exports.get(&group.0).is_some_and(|export| {
        export
            .slices
            .iter()
            .flat_map(|slice| &slice.endpoints)
            .any(|candidate| candidate.address == endpoint.ip() && candidate.readiness != Readiness::NotReady)
    })
}
