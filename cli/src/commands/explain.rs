//! `tombolo explain`: why a name leads where it does, told by the code that decides.

mod text;

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tombolo_clusterset::endpoint::Protocol;
use tombolo_clusterset::explain::{Explanation, Question, explain};
use tombolo_clusterset::select::Rank;
use tombolo_clusterset::{ClusterId, ExportRecord, Label, Namespace, ServiceKey, ServiceName};

use super::get::PortItem;
use crate::args::Target;
use crate::operator::Records;
use crate::operator::local::Observed;
use crate::operator::view::{Source, View};
use crate::output::print;

pub(crate) async fn run(target: &Target, name: &str, from: ClusterId, port: Option<u16>) -> Result<()> {
    let (key, hostname) = parse(name)?;
    let view = View::gather(target).await?;
    let observed = view.of_cluster(&from)?;
    let explained = story(
        view.source.clone(),
        &view.records,
        observed,
        &key,
        port,
        hostname.as_ref(),
    )?;
    print(target.output, "explanation", &explained, text::of)
}

/// `shop/checkout`, `checkout.shop.svc.clusterset.local`, or with a host name before it (and its cluster's id after that).
fn parse(name: &str) -> Result<(ServiceKey, Option<Label>)> {
    if name.contains('/') {
        return Ok((ServiceKey::parse(name)?, None));
    }
    let lower = name.trim_end_matches('.').to_ascii_lowercase();
    let form = || {
        format!(
            "'{name}' names no service; use NAMESPACE/NAME or NAME.NAMESPACE.svc.clusterset.local, for example shop/checkout"
        )
    };
    let Some(labels) = lower.strip_suffix(".svc.clusterset.local") else {
        bail!(form())
    };
    let labels: Vec<&str> = labels.split('.').collect();
    let (host, service, namespace) = match labels.as_slice() {
        [service, namespace] => (None, service, namespace),
        // DNS specification 1.0.0: <host>.<cluster>.<service>.<namespace>
        [host, _, service, namespace] => (Some(Label::parse(host).with_context(form)?), service, namespace),
        [host, service, namespace] => (Some(Label::parse(host).with_context(form)?), service, namespace),
        _ => bail!(form()),
    };
    let key = ServiceKey::new(
        Namespace::parse(namespace).with_context(form)?,
        ServiceName::parse(service).with_context(form)?,
    );
    Ok((key, host))
}

/// Everything that was asked. JSON kind `explanation`.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Explained {
    source: Source,
    /// `namespace/name`.
    service: String,
    /// Who calls.
    from: String,
    /// Whether this cluster's agent hears from a quorum.
    fresh: bool,
    /// `ClusterSetIP` or `Headless`; null when `from` does not import it.
    #[serde(rename = "type")]
    service_type: Option<&'static str>,
    /// Clusterset IPs in `from`.
    ips: Vec<IpAddr>,
    /// Null when no record is known here.
    merge: Option<Merge>,
    /// Exporters that `from` imports from, nearest first.
    clusters: Vec<Exporter>,
    /// Exporters that `from` does not import from, with the reason.
    not_imported: Vec<NotImported>,
    ports: Vec<Port>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Merge {
    winner: String,
    /// What put the winner first; null when it is alone.
    decided_by: Option<&'static str>,
    /// The winner first.
    precedence: Vec<Claim>,
    conflicts: Vec<Conflict>,
    /// `keep`, `degrade` or `withdraw`.
    loss_policy: &'static str,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Claim {
    cluster: String,
    created_unix_ms: u64,
    /// Log position of its first acceptance.
    admitted: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Conflict {
    reason: &'static str,
    message: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Exporter {
    cluster: String,
    own: bool,
    /// Null when it is no member any more.
    lease: Option<&'static str>,
    link: &'static str,
    rtt_ms: Option<f64>,
    loss_policy: &'static str,
    /// `use`, `last resort` or `withdrawn`.
    verdict: &'static str,
    /// The verdict with the signals it follows from.
    why: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct NotImported {
    cluster: String,
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Port {
    #[serde(flatten)]
    port: PortItem,
    /// Endpoints in the order in which they are tried.
    order: Vec<Tier>,
    left_out: Vec<Left>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Tier {
    /// `zone`, `region`, `cluster`, `remote`, `last resort` or `terminating`.
    rank: &'static str,
    /// Part of new flows, 0 to 1.
    share: f64,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Endpoint {
    cluster: String,
    address: IpAddr,
    port: u16,
    zone: String,
    hostname: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Left {
    cluster: String,
    /// Null: the whole cluster.
    address: Option<IpAddr>,
    /// `not ready`, `port not exposed`, `withdrawn`, `unhealthy` or `hidden by drill`.
    reason: &'static str,
}

/// Asks the clusterset's own code and words the answer.
fn story(
    source: Source,
    records: &Records,
    observed: &Observed,
    key: &ServiceKey,
    port: Option<u16>,
    hostname: Option<&Label>,
) -> Result<Explained> {
    let snapshot = &observed.snapshot;
    let of_service: Vec<&ExportRecord> = records.of_service(key);
    let import = snapshot.imports.get(key);
    let port = port.map(|number| {
        let tcp = import.is_none_or(|import| import.port(Protocol::Tcp, number).is_some());
        let udp = import.is_some_and(|import| import.port(Protocol::Udp, number).is_some());
        (if udp && !tcp { Protocol::Udp } else { Protocol::Tcp }, number)
    });
    let here = snapshot
        .clusters
        .get(&observed.cluster)
        .map(|view| view.locality.clone())
        .unwrap_or_default();
    let question = Question {
        key,
        port,
        family: None,
        from: &here,
    };
    let explanation = explain(snapshot, &of_service, &question, &observed.signals())?;
    let Explanation {
        key,
        merge,
        clusters,
        ports,
        not_imported,
    } = explanation;
    let reason = |cluster: &ClusterId| {
        let why = if records.grants.may_import(&key, cluster, &observed.cluster) {
            "not granted, or not synchronised yet; see `tombolo grant list`"
        } else {
            "its grant does not name this cluster; see `tombolo grant list`"
        };
        NotImported {
            cluster: cluster.to_string(),
            reason: why.to_owned(),
        }
    };
    Ok(Explained {
        source,
        service: key.to_string(),
        from: observed.cluster.to_string(),
        fresh: snapshot.fresh,
        service_type: import.map(|import| import.spec.service_type.as_str()),
        ips: import.map(|import| import.ips.clone()).unwrap_or_default(),
        merge: merge.map(|story| Merge {
            winner: story.merged.winner.to_string(),
            decided_by: story.decided_by.map(|decided| decided.as_str()),
            precedence: story
                .precedence
                .iter()
                .map(|claim| Claim {
                    cluster: claim.cluster.to_string(),
                    created_unix_ms: claim.created_ms,
                    admitted: claim.admitted,
                })
                .collect(),
            conflicts: story
                .merged
                .conflicts
                .iter()
                .map(|(kind, message)| Conflict {
                    reason: kind.reason(),
                    message: message.clone(),
                })
                .collect(),
            loss_policy: story.merged.loss_policy.as_str(),
        }),
        clusters: clusters
            .iter()
            .map(|story| Exporter {
                cluster: story.cluster.to_string(),
                own: story.own,
                lease: story.lease.map(|lease| lease.as_str()),
                link: story.link.state.as_str(),
                rtt_ms: story.link.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
                loss_policy: story.loss_policy.as_str(),
                verdict: story.verdict.as_str(),
                why: story.why(),
            })
            .collect(),
        not_imported: not_imported.iter().map(reason).collect(),
        ports: ports
            .iter()
            .map(|(port, plan)| port_story(port, plan, hostname))
            .collect(),
    })
}

fn port_story(
    port: &tombolo_clusterset::ServicePort,
    plan: &tombolo_clusterset::select::Plan,
    hostname: Option<&Label>,
) -> Port {
    let asked = |endpoint: &tombolo_clusterset::Endpoint| {
        hostname.is_none() || endpoint.hostname.as_ref() == hostname
    };
    let tiers = plan.tiers.iter().map(|tier| Tier {
        rank: rank_word(tier.rank),
        share: f64::from(tier.share) / f64::from(tombolo_clusterset::select::SHARE_ALL),
        endpoints: tier
            .candidates
            .iter()
            .filter(|candidate| asked(&candidate.endpoint))
            .map(|candidate| Endpoint {
                cluster: candidate.cluster.to_string(),
                address: candidate.endpoint.address,
                port: candidate.port,
                zone: candidate.endpoint.zone.clone(),
                hostname: candidate.endpoint.hostname.as_ref().map(ToString::to_string),
            })
            .collect(),
    });
    let left = plan
        .left_out
        .iter()
        .filter(|(_, endpoint, _)| endpoint.as_ref().is_none_or(asked));
    Port {
        port: PortItem {
            name: port.name.clone(),
            protocol: port.protocol.as_str(),
            port: port.port,
        },
        order: tiers.filter(|tier| !tier.endpoints.is_empty()).collect(),
        left_out: left
            .map(|(cluster, endpoint, reason)| Left {
                cluster: cluster.to_string(),
                address: endpoint.as_ref().map(|endpoint| endpoint.address),
                reason: reason.as_str(),
            })
            .collect(),
    }
}

fn rank_word(rank: Rank) -> &'static str {
    match rank {
        Rank::Zone => "zone",
        Rank::Region => "region",
        Rank::Cluster => "cluster",
        Rank::Remote(_) => "remote",
        Rank::LastResort(_) => "last resort",
        Rank::Terminating => "terminating",
    }
}

#[cfg(test)]
mod tests {
    use super::super::get::fixtures;
    use super::*;
    use crate::operator::view::From;

    pub(super) fn explained() -> Explained {
        let observed = fixtures::west();
        let records = Records::of_agent(&observed.snapshot, &observed.inspect.records);
        let source = Source {
            from: From::Broker,
            by: "127.10.0.1:7400".into(),
            age_ms: Some(0),
            fresh: true,
        };
        story(source, &records, &observed, &fixtures::key(), None, None).expect("a story")
    }

    #[test]
    fn names_and_keys_lead_to_the_service() {
        let table = [
            ("shop/checkout", Some(("shop/checkout", None))),
            (
                "checkout.shop.svc.clusterset.local",
                Some(("shop/checkout", None)),
            ),
            (
                "Checkout.Shop.svc.clusterset.local.",
                Some(("shop/checkout", None)),
            ),
            (
                "ledger-0.west.ledger.shop.svc.clusterset.local",
                Some(("shop/ledger", Some("ledger-0"))),
            ),
            ("checkout.shop", None),
            ("checkout.shop.svc.cluster.local", None),
            ("shop/", None),
        ];
        for (text, expected) in table {
            let parsed = parse(text).ok();
            let parsed = parsed
                .as_ref()
                .map(|(key, host)| (key.to_string(), host.as_ref().map(Label::as_str)));
            let expected = expected.map(|(key, host)| (key.to_owned(), host));
            assert_eq!(parsed, expected, "{text}");
        }
    }

    #[test]
    fn the_order_and_its_reasons() {
        let explained = explained();
        let merge = explained.merge.as_ref().expect("records");
        assert_eq!(
            (merge.winner.as_str(), merge.decided_by),
            ("west", Some("its export is the oldest"))
        );
        assert_eq!(merge.conflicts.len(), 1);
        let order: Vec<(&str, f64)> = explained.ports[0]
            .order
            .iter()
            .map(|tier| (tier.rank, tier.share))
            .collect();
        assert_eq!(order, [("zone", 1.0), ("remote", 0.0)]);
        assert_eq!(explained.ports[0].left_out[0].reason, "not ready");
    }
}
