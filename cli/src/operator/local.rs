//! What the agents and gateways of this machine know, asked over their Unix sockets. Answers also with every broker down.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use futures_util::future::join_all;
use tokio::time::timeout;
use tombolo_clusterset::reachability::WITHDRAW_GRACE;
use tombolo_clusterset::select::Signals;
use tombolo_clusterset::{ClusterId, Lease, Link, LinkState, Snapshot};
use tombolo_wire::convert::{LinkReport, SnapshotBatch};
use tombolo_wire::local::{AGENT_SOCKET, GATEWAY_SOCKET, LinkTable, connect_uds};
use tombolo_wire::v1;
use tombolo_wire::v1::agent_client::AgentClient;
use tombolo_wire::v1::gateway_client::GatewayClient;
use tombolo_wire::version::PROTOCOL_VERSION;

use crate::args::Target;
use crate::up::{Layout, SiteNote};

/// A process of this machine that does not answer within this is counted as away.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Largest message of a snapshot stream.
const MAX_MESSAGE: usize = 16 << 20;

/// One cluster, as its own processes see the clusterset.
#[derive(Debug, Clone)]
pub(crate) struct Observed {
    pub(crate) cluster: ClusterId,
    pub(crate) snapshot: Arc<Snapshot>,
    /// Empty when the gateway does not answer.
    pub(crate) links: LinkTable,
    pub(crate) inspect: v1::InspectReply,
    /// Where its processes listen; None when `up` did not start them.
    pub(crate) note: Option<SiteNote>,
}

impl Observed {
    /// What its gateway knows, as the selector wants it. For how long both signals have been lost is not told over the
    /// socket: when both are, the grace counts as over, which is where it ends unless one comes back.
    pub(crate) fn signals(&self) -> Signals {
        let link = |report: &LinkReport| {
            let lease = self.snapshot.lease(&report.cluster);
            let both = report.state == LinkState::Down && lease == Some(Lease::Lost);
            Link {
                state: report.state,
                rtt: report.rtt,
                both_lost_for: both.then_some(WITHDRAW_GRACE),
            }
        };
        let links = self.links.iter().map(|(id, report)| (id.clone(), link(report)));
        Signals {
            links: links.collect(),
            ..Signals::default()
        }
    }
}

/// Every cluster of the data directory that has an agent; those that do not answer are named with the reason.
pub(crate) async fn observe_all(target: &Target) -> Result<(Vec<Observed>, Vec<(String, String)>)> {
    let clusters = Layout::new(&target.data_dir).clusters();
    if clusters.is_empty() {
        bail!(
            "there is no clusterset in {}; start one with `tombolo up`, or name its --data-dir",
            target.data_dir.display()
        );
    }
    let answers = join_all(clusters.iter().map(|(name, folder)| observe(name, folder))).await;
    let mut observed = Vec::new();
    let mut silent = Vec::new();
    for ((name, _), answer) in clusters.into_iter().zip(answers) {
        match answer {
            Ok(one) => observed.push(one),
            Err(error) => silent.push((name, format!("{error:#}"))),
        }
    }
    Ok((observed, silent))
}

/// Asks the agent and the gateway in `folder`.
pub(crate) async fn observe(name: &str, folder: &Path) -> Result<Observed> {
    let cluster = ClusterId::parse(name)?;
    let socket = folder.join(AGENT_SOCKET);
    let away = || {
        format!(
            "the agent of {name} does not answer at {}; start it with `tombolo up` or `tombolo agent`",
            socket.display()
        )
    };
    let asked = async { tokio::try_join!(snapshot(&socket, cluster.clone()), inspect(&socket)) };
    let (snapshot, inspect) = timeout(ANSWER_TIMEOUT, asked)
        .await
        .with_context(away)?
        .with_context(away)?;
    let links = timeout(ANSWER_TIMEOUT, links(&folder.join(GATEWAY_SOCKET))).await;
    // A gateway that is away is itself a finding, told by the empty table.
    let links = links.ok().and_then(Result::ok).unwrap_or_default();
    Ok(Observed {
        cluster,
        snapshot: Arc::new(snapshot),
        links,
        inspect,
        note: SiteNote::load(folder),
    })
}

async fn snapshot(socket: &Path, cluster: ClusterId) -> Result<Snapshot> {
    let mut client = AgentClient::new(connect_uds(socket)).max_decoding_message_size(MAX_MESSAGE);
    let request = v1::WatchSnapshotRequest {
        protocol_version: PROTOCOL_VERSION,
        ..Default::default()
    };
    let mut stream = client.watch_snapshot(request).await?.into_inner();
    let mut batch = SnapshotBatch::new(cluster);
    while let Some(event) = stream.message().await? {
        if let Some(snapshot) = batch.take(&event)? {
            return Ok(snapshot);
        }
    }
    Err(anyhow!("the snapshot stream ended early"))
}

async fn inspect(socket: &Path) -> Result<v1::InspectReply> {
    let mut client = AgentClient::new(connect_uds(socket)).max_decoding_message_size(MAX_MESSAGE);
    Ok(client.inspect(v1::InspectRequest {}).await?.into_inner())
}

async fn links(socket: &Path) -> Result<LinkTable> {
    let mut client = GatewayClient::new(connect_uds(socket));
    let mut stream = client.watch_links(v1::WatchLinksRequest {}).await?.into_inner();
    let update = stream.message().await?.context("the links stream ended early")?;
    let reports = update
        .links
        .iter()
        .map(|link| LinkReport::try_from(link).map(|link| (link.cluster.clone(), link)));
    Ok(reports.collect::<Result<_, _>>()?)
}
