//! `get endpoints`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;
use tombolo_clusterset::reachability::verdict;
use tombolo_clusterset::{ClusterId, ExportRecord, Readiness, ServiceKey};

use super::or_dash;
use crate::operator::Records;
use crate::operator::local::Observed;
use crate::output::{Tone, paint, table};

/// A backend at one port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct EndpointItem {
    /// `namespace/name`.
    pub(crate) service: String,
    /// Whose backend.
    pub(crate) cluster: String,
    /// In the network of its own cluster.
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub(crate) protocol: &'static str,
    /// Empty when unknown.
    pub(crate) zone: String,
    /// Empty when unknown.
    pub(crate) node: String,
    /// Pod host name; null when it has none.
    pub(crate) hostname: Option<String>,
    /// `ready`, `terminating` or `not ready`.
    pub(crate) readiness: &'static str,
    /// What each cluster makes of the endpoint's cluster: `local`, `use`, `last resort`, `withdrawn` or `not imported`.
    pub(crate) verdicts: BTreeMap<String, &'static str>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Endpoints {
    pub(crate) items: Vec<EndpointItem>,
}

impl Endpoints {
    /// Every endpoint of `records`, with the verdicts of the clusters that were asked.
    pub(crate) fn of(records: &Records, observed: &[&Observed]) -> Self {
        let mut items = Vec::new();
        for ((key, cluster), record) in &records.exports {
            let verdicts: BTreeMap<String, &'static str> = observed
                .iter()
                .map(|one| (one.cluster.to_string(), verdict_of(one, key, cluster)))
                .collect();
            items.extend(of_record(record, &verdicts));
        }
        Self { items }
    }

    pub(crate) fn table(&self) -> String {
        let rows = self.items.iter().map(|item| {
            [
                item.service.clone(),
                item.cluster.clone(),
                item.address.to_string(),
                format!("{}/{}", item.port, item.protocol),
                or_dash(&item.zone),
                item.hostname.clone().unwrap_or_else(|| "-".to_owned()),
                readiness_cell(item.readiness),
                verdict_cell(&item.verdicts),
            ]
        });
        table(
            [
                "SERVICE",
                "CLUSTER",
                "ADDRESS",
                "PORT",
                "ZONE",
                "HOST NAME",
                "READINESS",
                "VERDICT",
            ],
            rows,
        )
    }
}

fn of_record(record: &ExportRecord, verdicts: &BTreeMap<String, &'static str>) -> Vec<EndpointItem> {
    let mut items = Vec::new();
    for slice in &record.export.slices {
        for port in &slice.ports {
            for endpoint in &slice.endpoints {
                items.push(EndpointItem {
                    service: record.export.key.to_string(),
                    cluster: record.export.cluster.to_string(),
                    address: endpoint.address,
                    port: port.port,
                    protocol: port.protocol.as_str(),
                    zone: endpoint.zone.clone(),
                    node: endpoint.node.clone(),
                    hostname: endpoint.hostname.as_ref().map(ToString::to_string),
                    readiness: readiness_word(endpoint.readiness),
                    verdicts: verdicts.clone(),
                });
            }
        }
    }
    items
}

fn verdict_of(observed: &Observed, key: &ServiceKey, cluster: &ClusterId) -> &'static str {
    let snapshot = &observed.snapshot;
    if &observed.cluster == cluster {
        return "local";
    }
    let Some(lease) = snapshot.lease(cluster) else {
        return "not imported";
    };
    let Some(imported) = snapshot
        .imports
        .get(key)
        .and_then(|import| import.clusters.get(cluster))
    else {
        return "not imported";
    };
    verdict(lease, observed.signals().link(cluster), imported.loss_policy).as_str()
}

pub(crate) fn readiness_word(readiness: Readiness) -> &'static str {
    match readiness {
        Readiness::Ready => "ready",
        Readiness::Terminating => "terminating",
        Readiness::NotReady => "not ready",
    }
}

fn readiness_cell(readiness: &str) -> String {
    paint(
        if readiness == "ready" {
            Tone::Good
        } else {
            Tone::Warn
        },
        readiness,
    )
}

/// One word where all other clusters agree, else each with its own.
fn verdict_cell(verdicts: &BTreeMap<String, &'static str>) -> String {
    let others: Vec<(&String, &str)> = verdicts
        .iter()
        .filter(|(_, verdict)| **verdict != "local")
        .map(|(id, verdict)| (id, *verdict))
        .collect();
    match others.as_slice() {
        [] if verdicts.is_empty() => "-".to_owned(),
        [] => "local".to_owned(),
        [(_, first), rest @ ..] if rest.iter().all(|(_, verdict)| verdict == first) => verdict_word(first),
        _ => others
            .iter()
            .map(|(id, verdict)| format!("{id}: {verdict}"))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

fn verdict_word(verdict: &str) -> String {
    let tone = match verdict {
        "use" => Tone::Good,
        "withdrawn" => Tone::Bad,
        _ => Tone::Warn,
    };
    paint(tone, verdict)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;

    #[test]
    fn one_line_an_endpoint_and_port() {
        let observed = fixtures::west();
        let records = Records::of_agent(&observed.snapshot, &observed.inspect.records);
        assert_eq!(
            Endpoints::of(&records, &[&observed]).table(),
            "SERVICE        CLUSTER  ADDRESS     PORT      ZONE  HOST NAME  READINESS  VERDICT\n\
             shop/checkout  east     127.12.1.1  8080/TCP  -     -          ready      use\n\
             shop/checkout  west     127.11.1.1  8080/TCP  eu-1  -          ready      local\n\
             shop/checkout  west     127.11.1.2  8080/TCP  eu-1  -          not ready  local"
        );
    }

    #[test]
    fn verdicts_that_differ_are_told_apart() {
        let table = [
            (vec![], "-"),
            (vec![("west", "local")], "local"),
            (vec![("west", "local"), ("east", "use"), ("north", "use")], "use"),
            (
                vec![("east", "use"), ("north", "last resort")],
                "east: use, north: last resort",
            ),
        ];
        for (verdicts, expected) in table {
            let verdicts = verdicts
                .into_iter()
                .map(|(id, verdict)| (id.to_owned(), verdict))
                .collect();
            assert_eq!(verdict_cell(&verdicts), expected);
        }
    }
}
