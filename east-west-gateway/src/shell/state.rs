//! `/state`: what this gateway sees, for people and for `tombolo status`.

use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};

use super::context::Context;
use super::listeners::Board;

fn state(context: &Context, board: &Board) -> Value {
    let view = context.link_view();
    let links: Vec<Value> = view
        .reports
        .values()
        .map(|report| {
            json!({
                "cluster": report.cluster.as_str(),
                "state": format!("{:?}", report.state).to_lowercase(),
                "rtt_us": report.rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
                "transport": report.transport,
                "peer": report.peer,
                "reversed": report.reversed,
                "reason": report.reason,
                "flows": view.tunnels.get(&report.cluster).map_or(0, |tunnels| tunnels.iter().map(|tunnel| tunnel.open_flows()).sum::<usize>()),
            })
        })
        .collect();
    let listeners: Vec<Value> = board
        .lock()
        .iter()
        .map(|(place, state)| {
            json!({
                "address": place.address.to_string(),
                "protocol": place.protocol.as_str(),
                "service": state.target.service.to_string(),
                "port": state.target.port,
                "endpoint": state.target.endpoint.as_ref().map(|(cluster, address)| format!("{cluster}/{address}")),
                "failure": state.failure,
            })
        })
        .collect();
    let ejected: Vec<String> = context
        .health
        .ejected()
        .iter()
        .map(|(_, address, port)| std::net::SocketAddr::new(*address, *port).to_string())
        .collect();
    let (tcp, udp) = context.metrics.open_flows();
    json!({
        "cluster": context.site.cluster.as_str(),
        "snapshot": context.snapshots.current().map(|snapshot| {
            json!({
                "incarnation": snapshot.version.incarnation,
                "revision": snapshot.version.revision,
                "local": snapshot.version.local,
                "fresh": snapshot.fresh,
            })
        }),
        "links": links,
        "listeners": listeners,
        "flows": { "tcp": tcp, "udp": udp },
        "ejected_endpoints": ejected,
        "draining": context.shutdown.is_draining(),
    })
}

/// What the admin server calls.
pub(super) type Reader = Arc<dyn Fn() -> Value + Send + Sync>;

/// Reads the state of `context`.
pub(super) fn reader(context: Arc<Context>, board: Board) -> Reader {
    Arc::new(move || state(&context, &board))
}

/// Reads the state once there is one: the admin server answers before there is an identity.
pub(super) fn late(reader: Arc<OnceLock<Reader>>) -> Reader {
    Arc::new(move || {
        reader
            .get()
            .map_or_else(|| json!({ "starting": true }), |reader| reader())
    })
}
