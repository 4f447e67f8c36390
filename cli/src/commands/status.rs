//! `tombolo status`: the health of the clusterset at a glance. Exit code 1 when something is wrong.

pub(super) mod findings;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use futures_util::future::join_all;
use serde::Serialize;
use tokio::time::timeout;
use tombolo_clusterset::Drill;
use tombolo_wire::v1;
use tombolo_wire::v1::rotate_root_request::Step;

use super::get::{ClusterItem, Clusters, LinkItem, Links};
use crate::args::Target;
use crate::operator::view::{From, Source, View};
use crate::operator::{Operators, refusal};
use crate::output::{Tone, paint, print, span, table};
use crate::up::Layout;
use crate::up::control::{self, Answer, ProcessInfo, Request};
use findings::Finding;

/// Everything. JSON kind `status`.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Status {
    /// False when a finding is a problem.
    healthy: bool,
    source: Source,
    /// Null when no broker answers.
    group: Option<Group>,
    /// Empty when no broker answers.
    brokers: Vec<Broker>,
    clusters: Vec<ClusterStatus>,
    /// The running drill; null when there is none.
    drill: Option<DrillItem>,
    findings: Vec<Finding>,
    /// What `up` runs on this machine; null when it does not run here. `pid` is 0 while a process is held down.
    processes: Option<Vec<ProcessInfo>>,
}

/// The broker group as its most knowing member tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Group {
    trust_domain: String,
    incarnation: u64,
    term: u64,
    /// Id of the leader; null when there is none.
    leader: Option<u64>,
    /// Whether the leader heard from a quorum within [`QUORUM_AGE_MAX_MS`].
    quorum: bool,
    millis_since_quorum_ack: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Broker {
    id: u64,
    api: String,
    peer: String,
    /// False while it catches up.
    voter: bool,
    leader: bool,
    /// Whether it answered us.
    reachable: bool,
    /// Log entries that it is behind the leader; null when the leader does not know.
    lag: Option<u64>,
}

/// A cluster with its links.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct ClusterStatus {
    #[serde(flatten)]
    cluster: ClusterItem,
    links: Vec<LinkItem>,
}

/// A drill, as `drill show` prints it too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct DrillItem {
    pub(super) id: u64,
    pub(super) kind: &'static str,
    pub(super) target: String,
    pub(super) from: String,
    pub(super) service: String,
    pub(super) real: bool,
    pub(super) baseline_ms: u64,
    pub(super) duration_ms: u64,
    pub(super) recovery_ms: u64,
}

impl DrillItem {
    pub(super) fn of(drill: &Drill) -> Self {
        let ms = |phase: Duration| u64::try_from(phase.as_millis()).unwrap_or(u64::MAX);
        Self {
            id: drill.id.0,
            kind: drill.kind.as_str(),
            target: drill.target.to_string(),
            from: drill.from.to_string(),
            service: drill.service.to_string(),
            real: drill.real,
            baseline_ms: ms(drill.baseline),
            duration_ms: ms(drill.duration),
            recovery_ms: ms(drill.recovery),
        }
    }
}

/// A leader that no quorum has acknowledged for this long may have been deposed without knowing.
const QUORUM_AGE_MAX_MS: u64 = 5_000;

/// A broker that takes longer is told as one that does not answer: whoever asks for the status is waiting.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) async fn run(target: &Target) -> Result<ExitCode> {
    let (view, groups, rotation, processes) = tokio::join!(
        View::gather(target),
        groups(target),
        rotation(target),
        processes(target)
    );
    let status = Status::of(&view?, &groups, rotation.as_ref(), processes);
    print(target.output, "status", &status, text)?;
    Ok(if status.healthy {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What each broker says of the group; those that do not answer are absent.
async fn groups(target: &Target) -> Vec<v1::GroupStatusReply> {
    let Ok(operators) = Operators::find(target) else {
        return Vec::new();
    };
    let answers = operators.brokers.iter().map(|broker| async {
        let one = Operators {
            brokers: vec![*broker],
            identity: operators.identity.clone(),
        };
        timeout(ASK_TIMEOUT, group_status(&one)).await.ok()?.ok()
    });
    join_all(answers).await.into_iter().flatten().collect()
}

/// What one broker says of the group.
pub(super) async fn group_status(operators: &Operators) -> Result<v1::GroupStatusReply> {
    let mut client = operators.connect().await?;
    let reply = client.group_status(v1::GroupStatusRequest {}).await;
    Ok(reply.map_err(|status| refusal(&status))?.into_inner())
}

async fn rotation(target: &Target) -> Option<v1::RotateRootReply> {
    let operators = Operators::find(target).ok()?;
    let asked = async {
        let mut client = operators.connect().await.ok()?;
        let request = v1::RotateRootRequest {
            step: Step::Status.into(),
            force: false,
        };
        Some(client.rotate_root(request).await.ok()?.into_inner())
    };
    timeout(ASK_TIMEOUT, asked).await.ok().flatten()
}

async fn processes(target: &Target) -> Option<Vec<ProcessInfo>> {
    let layout = Layout::new(&target.data_dir);
    match control::ask(&layout.root, &Request::Status).await {
        Ok(Answer::Status { processes, .. }) => Some(processes),
        Ok(_) | Err(_) => None,
    }
}

impl Status {
    fn of(
        view: &View,
        groups: &[v1::GroupStatusReply],
        rotation: Option<&v1::RotateRootReply>,
        processes: Option<Vec<ProcessInfo>>,
    ) -> Self {
        let links = Links::of(&view.observed).items;
        let clusters: Vec<ClusterStatus> = Clusters::of_view(view)
            .items
            .into_iter()
            .map(|cluster| {
                let own = links
                    .iter()
                    .filter(|link| link.from == cluster.id)
                    .cloned()
                    .collect();
                ClusterStatus { cluster, links: own }
            })
            .collect();
        let (group, brokers) = group(groups);
        let findings = findings::of(view, group.as_ref(), &brokers, rotation, processes.as_deref());
        Self {
            healthy: !findings.iter().any(Finding::is_problem),
            source: view.source.clone(),
            group,
            brokers,
            clusters,
            drill: view.records.drill.as_ref().map(DrillItem::of),
            findings,
            processes,
        }
    }
}

/// The group, by the leader's word where it answers: only it knows how far the others are.
fn group(replies: &[v1::GroupStatusReply]) -> (Option<Group>, Vec<Broker>) {
    let knowing =
        |reply: &&v1::GroupStatusReply| (reply.term, reply.leader == reply.answered_by, reply.applied);
    let Some(best) = replies.iter().max_by_key(knowing) else {
        return (None, Vec::new());
    };
    let by_leader = best.leader != 0 && best.leader == best.answered_by;
    let group = Group {
        trust_domain: best.trust_domain.clone(),
        incarnation: best.incarnation,
        term: best.term,
        leader: (best.leader != 0).then_some(best.leader),
        quorum: by_leader && best.millis_since_quorum_ack <= QUORUM_AGE_MAX_MS,
        millis_since_quorum_ack: best.millis_since_quorum_ack,
    };
    let newest = best
        .brokers
        .iter()
        .map(|broker| broker.matched_log_index)
        .max()
        .unwrap_or(0)
        .max(best.applied);
    let broker = |broker: &v1::BrokerStatus| Broker {
        id: broker.id,
        api: broker.api_address.clone(),
        peer: broker.peer_address.clone(),
        voter: broker.voter,
        leader: broker.id == best.leader,
        reachable: replies.iter().any(|reply| reply.answered_by == broker.id),
        lag: match (by_leader, broker.matched_log_index) {
            (true, _) if broker.id == best.leader => Some(0),
            (true, matched) if matched != 0 => Some(newest.saturating_sub(matched)),
            _ => None,
        },
    };
    (Some(group), best.brokers.iter().map(broker).collect())
}

fn text(status: &Status) -> String {
    let mut blocks = Vec::new();
    blocks.push(match &status.group {
        Some(group) => {
            let leader = group
                .leader
                .map_or_else(|| paint(Tone::Bad, "no leader"), |id| format!("leader {id}"));
            let head = format!(
                "{} {}: {leader}, term {}, incarnation {}",
                paint(Tone::Bold, "CLUSTERSET"),
                group.trust_domain,
                group.term,
                group.incarnation
            );
            let rows = status.brokers.iter().map(|broker| {
                let role = match (broker.leader, broker.voter) {
                    (true, _) => "leader",
                    (false, true) => "voter",
                    (false, false) => "learner",
                };
                let answers = if broker.reachable {
                    paint(Tone::Good, "yes")
                } else {
                    paint(Tone::Bad, "no")
                };
                let lag = broker.lag.map_or_else(|| "-".to_owned(), |lag| lag.to_string());
                [
                    broker.id.to_string(),
                    broker.api.clone(),
                    role.to_owned(),
                    lag,
                    answers,
                ]
            });
            format!(
                "{head}\n{}",
                table(["BROKER", "API", "ROLE", "LAG", "ANSWERS"], rows)
            )
        }
        None => match status.source {
            Source {
                from: From::Agent,
                ref by,
                age_ms,
                ..
            } => {
                let age = age_ms.map_or_else(
                    || "never confirmed".to_owned(),
                    |age| format!("{} old", span(age)),
                );
                format!(
                    "{}: none answers; view of the agent of {by}, {age}",
                    paint(Tone::Bad, "BROKERS")
                )
            }
            _ => paint(Tone::Warn, "BROKERS: their group status is unknown"),
        },
    });
    blocks.push(format!(
        "{}\n{}",
        paint(Tone::Bold, "CLUSTERS"),
        clusters_table(&status.clusters)
    ));
    if let Some(drill) = &status.drill {
        blocks.push(format!(
            "{}: {} of {} on {} from {}; stop it with `tombolo drill stop`",
            paint(Tone::Warn, "DRILL"),
            drill.kind,
            drill.target,
            drill.service,
            drill.from
        ));
    }
    blocks.push(if status.findings.is_empty() {
        paint(Tone::Good, "all is well")
    } else {
        status
            .findings
            .iter()
            .map(Finding::line)
            .collect::<Vec<_>>()
            .join("\n")
    });
    blocks.join("\n\n")
}

fn clusters_table(clusters: &[ClusterStatus]) -> String {
    let rows = clusters.iter().map(|status| {
        let links: Vec<String> = status
            .links
            .iter()
            .map(|link| {
                let rtt = link.rtt_ms.map_or_else(String::new, |rtt| format!(" {rtt:.1}ms"));
                format!("{} {}{rtt}", link.to, super::get::state_cell(link.state))
            })
            .collect();
        let cluster = &status.cluster;
        [
            cluster.id.clone(),
            super::get::or_dash(&cluster.region),
            cluster.network.clone(),
            super::get::lease_cell(cluster.lease),
            super::get::or_dash(&links.join(", ")),
        ]
    });
    table(["ID", "REGION", "NETWORK", "LEASE", "LINKS"], rows)
}

#[cfg(test)]
mod tests {
    use super::super::get::fixtures;
    use super::*;
    use crate::operator::Records;

    fn view() -> View {
        let observed = fixtures::west();
        View {
            source: Source {
                from: From::Broker,
                by: "127.10.0.1:7400".into(),
                age_ms: Some(0),
                fresh: true,
            },
            records: Records::of_agent(&observed.snapshot, &observed.inspect.records),
            observed: vec![observed],
            silent: Vec::new(),
            notes: std::collections::BTreeMap::new(),
        }
    }

    pub(super) fn reply(answered_by: u64, leader: u64) -> v1::GroupStatusReply {
        let broker = |id: u64, matched_log_index| v1::BrokerStatus {
            id,
            api_address: format!("127.10.0.{id}:7400"),
            peer_address: format!("127.10.0.{id}:7401"),
            voter: id < 3,
            leader: id == leader,
            matched_log_index,
        };
        v1::GroupStatusReply {
            answered_by,
            term: 4,
            applied: 100,
            incarnation: 1,
            trust_domain: "demo-0123".into(),
            brokers: vec![broker(1, 100), broker(2, 98), broker(3, 0)],
            leader,
            millis_since_quorum_ack: 10,
            unix_ms: 0,
        }
    }

    #[test]
    fn the_leader_s_word_counts() {
        let (group, brokers) = group(&[reply(2, 1), reply(1, 1)]);
        let group = group.expect("a group");
        assert_eq!((group.leader, group.quorum, group.term), (Some(1), true, 4));
        let told: Vec<_> = brokers
            .iter()
            .map(|b| (b.id, b.leader, b.voter, b.reachable, b.lag))
            .collect();
        assert_eq!(
            told,
            [
                (1, true, true, true, Some(0)),
                (2, false, true, true, Some(2)),
                (3, false, false, false, None)
            ]
        );
        let (group, _) = super::group(&[reply(2, 0)]);
        assert_eq!(
            group.map(|group| (group.leader, group.quorum)),
            Some((None, false))
        );
    }

    #[test]
    fn reads_from_brokers_to_findings() {
        let text = text(&Status::of(
            &view(),
            &[reply(1, 1), reply(2, 1), reply(3, 1)],
            None,
            None,
        ));
        assert_eq!(
            text,
            "CLUSTERSET demo-0123: leader 1, term 4, incarnation 1\n\
             BROKER  API              ROLE     LAG  ANSWERS\n\
             1       127.10.0.1:7400  leader   0    yes\n\
             2       127.10.0.2:7400  voter    2    yes\n\
             3       127.10.0.3:7400  learner  -    yes\n\
             \n\
             CLUSTERS\n\
             ID    REGION  NETWORK  LEASE  LINKS\n\
             east  us      east     lost   -\n\
             west  eu      west     alive  east up 1.5ms\n\
             \n\
             problem: east: its lease is lost; see whether its agent runs and reaches a broker"
        );
    }

    #[test]
    fn the_fields_scripts_read() {
        let processes = vec![ProcessInfo {
            role: "dns".into(),
            cluster: "west".into(),
            pid: 7,
        }];
        let status = Status::of(&view(), &[reply(1, 1)], None, Some(processes));
        let json = serde_json::to_value(&status).expect("json");
        assert_eq!(json["healthy"], false);
        assert_eq!(json["source"]["from"], "broker");
        assert_eq!(json["group"]["leader"], 1);
        assert_eq!(json["brokers"][0]["leader"], true);
        assert_eq!(json["clusters"][1]["id"], "west");
        assert_eq!(json["clusters"][1]["links"][0]["state"], "up");
        assert_eq!(
            json["processes"],
            serde_json::json!([{"role": "dns", "cluster": "west", "pid": 7}])
        );
        assert!(json["drill"].is_null());
    }
}
