//! Drills: cuts the paths that a drill cuts, and sends its traffic when this cluster is its `from`.

use std::collections::BTreeSet;
use std::future::pending;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tombolo_clusterset::endpoint::Protocol;
use tombolo_clusterset::places::Target;
use tombolo_clusterset::{ClusterId, Drill, DrillId, DrillKind};
use tombolo_daemon::backoff::Backoff;
use tombolo_daemon::supervise::TaskResult;
use tombolo_tunnel::Endpoint;
use tombolo_wire::local::{DrillFeed, RunningDrill, connect_uds};
use tombolo_wire::v1;
use tombolo_wire::v1::agent_client::AgentClient;
use tracing::{info, warn};

use super::context::Context;
use super::outbound::{self, ClientFlow, Way};
use crate::drill_plan::{self, Answer, REQUEST_TIMEOUT, Schedule};

/// Tries to hand the report to the agent, which keeps it from there: with [`Backoff::default`] they span two minutes, and an
/// agent restarts in seconds.
const REPORT_TRIES: u32 = 20;

/// Time for one try: the agent is on this machine, and a report is a few megabytes at most.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// A request that is later than this is not sent: the way from the broker takes less.
const LATE_MAX: Duration = Duration::from_secs(1);

/// Bytes of an answer that are read: a drill measures reachability, and a page of this size has shown it.
const ANSWER_MAX: usize = 1024 * 1024;

/// The client that a drill's flows name: this gateway itself.
const DRILL_CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Cuts what the running drill cuts, and heals it the moment it ends, whoever dies.
pub(super) async fn obey(context: Arc<Context>, drills: DrillFeed, endpoint: Endpoint) -> TaskResult {
    let mut running = drills.receiver();
    let mut snapshots = context.snapshots.receiver();
    let mut cut = (BTreeSet::new(), false);
    loop {
        let drill = running.borrow_and_update().clone();
        let now = context.seams.clock.now();
        let wanted = drill
            .as_ref()
            .map(|drill| wanted_cut(&context, drill, now))
            .unwrap_or_default();
        if wanted != cut {
            info!(clusters = ?wanted.0, everything = wanted.1, "drill: paths cut");
            endpoint.set_cut(wanted.0.clone(), wanted.1);
            cut = wanted;
        }
        let boundary = drill.as_ref().and_then(|drill| next_boundary(drill, now));
        let boundary = async {
            match boundary {
                Some(at) => tokio::time::sleep_until(at).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = context.shutdown.drain() => return Ok(()),
            changed = running.changed() => changed?,
            changed = snapshots.changed() => changed?,
            () = boundary => {}
        }
    }
}

fn wanted_cut(context: &Context, running: &RunningDrill, now: Instant) -> (BTreeSet<ClusterId>, bool) {
    let RunningDrill { drill, .. } = running;
    let here = &context.site.cluster;
    let age = running.age(now);
    let Some(snapshot) = context.snapshots.current() else {
        return Default::default();
    };
    let is_cut = |peer: &ClusterId| peer != here && drill.cuts(here, peer, age);
    let clusters: BTreeSet<ClusterId> = snapshot
        .clusters
        .keys()
        .filter(|peer| is_cut(peer))
        .cloned()
        .collect();
    // A cluster that is down, or whose gateway is, answers nobody: not even who is not in its snapshot.
    let alone =
        matches!(drill.kind, DrillKind::ClusterDown | DrillKind::GatewayKill) && here == &drill.target;
    let everything = alone && drill.cuts(here, &drill.from, age);
    (clusters, everything)
}

/// When the cut begins or ends next.
fn next_boundary(running: &RunningDrill, now: Instant) -> Option<Instant> {
    let RunningDrill { drill, began } = running;
    let begins = *began + drill.baseline;
    [begins, begins + drill.duration].into_iter().find(|at| *at > now)
}

/// Sends the traffic of each drill that names this cluster as its `from`, and reports it.
pub(super) async fn send(context: Arc<Context>, drills: DrillFeed, agent: PathBuf) -> TaskResult {
    let mut running = drills.receiver();
    let mut done: Option<DrillId> = None;
    loop {
        let mine = running
            .borrow_and_update()
            .clone()
            .filter(|running| running.drill.from == context.site.cluster && done != Some(running.drill.id));
        if let Some(drill) = mine {
            done = Some(drill.drill.id);
            let report = tokio::select! {
                report = traffic(&context, &drill, &drills) => report,
                () = context.shutdown.drain() => return Ok(()),
            };
            let id = drill.drill.id.0;
            // A drill begins once the one before has ended: what is not reported by then is of no use any more.
            let begins = |now: &Option<RunningDrill>| {
                now.as_ref()
                    .is_some_and(|now| now.drill.from == context.site.cluster && done != Some(now.drill.id))
            };
            tokio::select! {
                () = hand_over(&context, report, &agent) => {}
                Ok(_) = running.wait_for(begins) => {
                    warn!(drill = id, "drill report given up: the next drill begins");
                }
                () = context.shutdown.drain() => return Ok(()),
            }
            continue;
        }
        tokio::select! {
            () = context.shutdown.drain() => return Ok(()),
            changed = running.changed() => changed?,
        }
    }
}

/// All requests of a drill, to its end or until it is stopped.
async fn traffic(context: &Arc<Context>, running: &RunningDrill, drills: &DrillFeed) -> v1::DrillReport {
    let RunningDrill { drill, began } = running;
    let received = context
        .seams
        .clock
        .wall()
        .checked_sub(running.age(context.seams.clock.now()));
    let since_epoch = received
        .and_then(|at| at.duration_since(UNIX_EPOCH).ok())
        .unwrap_or_default();
    let mut report = v1::DrillReport {
        drill: drill.id.0,
        received_unix_us: micros(since_epoch),
        samples: Vec::new(),
        stale_dns_answers: 0,
        error: String::new(),
    };
    let flow = match flow(context, drill) {
        Ok(flow) => flow,
        Err(error) => {
            warn!(drill = drill.id.0, error, "drill cannot send");
            report.error = error;
            return report;
        }
    };
    let schedule = Schedule::of(drill);
    // Heard of late (this gateway or its agent was away): what is long past is not made up for in a burst.
    let joined = running.age(context.seams.clock.now()).saturating_sub(LATE_MAX);
    let first =
        (0..schedule.requests()).find(|number| schedule.due(*number).is_some_and(|due| due >= joined));
    info!(drill = drill.id.0, service = %drill.service, requests = schedule.requests(), "drill: sending");
    let mut requests = JoinSet::new();
    let mut feed = drills.receiver();
    let is_over = |now: &Option<RunningDrill>| now.as_ref().is_none_or(|now| now.drill.id != drill.id);
    for number in first.unwrap_or_default()..schedule.requests() {
        let Some(due) = schedule.due(number) else { break };
        tokio::select! {
            // What is due is sent, also when this loop is late and the drill has just ended.
            biased;
            () = tokio::time::sleep_until(*began + due) => {}
            // The drill was stopped, or has ended.
            _ = feed.wait_for(is_over) => break,
        }
        let (context, flow, path, began) =
            (Arc::clone(context), flow.clone(), drill.http_get.clone(), *began);
        requests.spawn(async move { request(&context, &flow, path.as_deref(), began).await });
        while let Some(ended) = requests.try_join_next() {
            keep(&mut report, ended);
        }
    }
    while let Some(ended) = requests.join_next().await {
        keep(&mut report, ended);
    }
    report.samples.sort_by_key(|sample| sample.started_us);
    let failed = report
        .samples
        .iter()
        .filter(|sample| !sample.failure.is_empty())
        .count();
    info!(
        drill = drill.id.0,
        requests = report.samples.len(),
        failed,
        "drill: sent"
    );
    report
}

fn keep(report: &mut v1::DrillReport, ended: Result<v1::DrillSample, tokio::task::JoinError>) {
    match ended {
        Ok(sample) => report.samples.push(sample),
        Err(error) => {
            report.error = format!("a request of the gateway died: {error}; please report it with the log")
        }
    }
}

/// The flow that every request opens, with the own endpoints hidden.
fn flow(context: &Context, drill: &Drill) -> Result<ClientFlow, String> {
    let snapshot = context
        .snapshots
        .current()
        .ok_or("the gateway has no snapshot yet")?;
    let import = snapshot
        .imports
        .get(&drill.service)
        .ok_or_else(|| format!("{} is not imported in {}", drill.service, context.site.cluster))?;
    let port = drill_plan::port(drill, import)?;
    Ok(ClientFlow {
        target: Target {
            service: drill.service.clone(),
            port: port.port,
            endpoint: None,
        },
        protocol: Protocol::Tcp,
        client: DRILL_CLIENT,
        hidden: BTreeSet::from([context.site.cluster.clone()]),
    })
}

/// One request: a new connection, one exchange, no retry.
async fn request(
    context: &Arc<Context>,
    flow: &ClientFlow,
    path: Option<&str>,
    began: Instant,
) -> v1::DrillSample {
    let since = || micros(context.seams.clock.now().saturating_duration_since(began));
    let started_us = since();
    let mut served_by = String::new();
    let exchanged = tokio::time::timeout(REQUEST_TIMEOUT, async {
        let connected = outbound::connect(context, flow)
            .await
            .map_err(|error| error.to_string())?;
        served_by = connected.cluster.to_string();
        let host = format!(
            "{}.{}.svc.clusterset.local",
            flow.target.service.name, flow.target.service.namespace
        );
        match connected.way {
            Way::RemoteTcp(stream) => exchange(stream, path, &host).await,
            Way::LocalTcp(stream) => exchange(stream, path, &host).await,
            Way::RemoteUdp(_) | Way::LocalUdp(..) => Err("a drill sends TCP only".to_owned()),
        }
    })
    .await;
    let failure = match exchanged {
        Ok(Ok(())) => String::new(),
        Ok(Err(error)) => error,
        Err(_) => format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()),
    };
    if !failure.is_empty() {
        served_by.clear();
    }
    v1::DrillSample {
        started_us,
        ended_us: since(),
        served_by,
        failure,
    }
}

/// Nothing for a TCP connect; with a path, one HTTP GET.
async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    path: Option<&str>,
    host: &str,
) -> Result<(), String> {
    let io = |error: std::io::Error| error.to_string();
    let Some(path) = path else {
        return stream.shutdown().await.map_err(io);
    };
    stream
        .write_all(drill_plan::http_request(path, host).as_bytes())
        .await
        .map_err(io)?;
    let mut received = Vec::new();
    loop {
        let read = stream.read_buf(&mut received).await.map_err(io)?;
        match drill_plan::judge(&received, read == 0) {
            Answer::Success => return Ok(()),
            Answer::Failure(reason) => return Err(reason),
            Answer::Incomplete if received.len() > ANSWER_MAX => return Ok(()),
            Answer::Incomplete => {}
        }
    }
}

/// Gives the report to the agent, which brings it to the broker.
async fn hand_over(context: &Context, report: v1::DrillReport, agent: &std::path::Path) {
    let mut client = AgentClient::new(connect_uds(agent));
    let mut backoff = Backoff::default();
    for _ in 0..REPORT_TRIES {
        let reason = match tokio::time::timeout(REPORT_TIMEOUT, client.report_drill(report.clone())).await {
            Ok(Ok(_)) => return,
            Ok(Err(status)) => status.to_string(),
            Err(_) => format!("the agent does not answer within {} s", REPORT_TIMEOUT.as_secs()),
        };
        let pause = context.with_rng(|rng| backoff.next(rng));
        warn!(
            drill = report.drill,
            reason,
            retry_in_ms = pause.as_millis(),
            "drill report not taken"
        );
        tokio::time::sleep(pause).await;
    }
    warn!(
        drill = report.drill,
        "drill report given up; the drill ends without it"
    );
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
