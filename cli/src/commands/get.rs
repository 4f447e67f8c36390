//! `tombolo get`: lists of what the clusterset holds. With `-o json`: `{"version":1,"kind":…,"source":{…},"items":[…]}`;
//! the fields of an item stand on its type.

mod clusters;
mod endpoints;
mod exports;
mod imports;
mod links;

use anyhow::Result;
use serde::Serialize;
use tombolo_clusterset::ClusterId;
use tombolo_clusterset::endpoint::IpFamily;
use tombolo_clusterset::export::ServicePort;
use tombolo_wire::v1;

use crate::args::{Target, What};
use crate::operator::local::Observed;
use crate::operator::view::{Source, View};
use crate::output::{Tone, paint, print};

pub(crate) use clusters::{ClusterItem, Clusters, lease_cell};
pub(crate) use endpoints::Endpoints;
pub(crate) use exports::Exports;
pub(crate) use imports::Imports;
pub(crate) use links::{LinkItem, Links, state_cell};

/// A list and where it comes from.
#[derive(Debug, Serialize)]
struct Listing<'a, T> {
    source: &'a Source,
    items: &'a [T],
}

pub(crate) async fn run(target: &Target, what: What, cluster: Option<ClusterId>) -> Result<()> {
    let view = View::gather(target).await?;
    let seen: Vec<&Observed> = match &cluster {
        Some(cluster) => vec![view.of_cluster(cluster)?],
        None => view.observed.iter().collect(),
    };
    if seen.is_empty() && matches!(what, What::Imports | What::Endpoints | What::Links) {
        eprintln!(
            "no cluster runs on this machine: imports, links and verdicts are known to the clusters' own processes only"
        );
    }
    let source = &view.source;
    let format = target.output;
    match what {
        What::Clusters => {
            let clusters = match &cluster {
                Some(_) => Clusters::of(seen),
                None => Clusters::of_view(&view),
            };
            print(
                format,
                "clusters",
                &Listing {
                    source,
                    items: &clusters.items,
                },
                |_| clusters.table(),
            )
        }
        What::Exports => {
            let mut exports = Exports::of_view(&view);
            exports.items.retain(|item| {
                cluster
                    .as_ref()
                    .is_none_or(|cluster| item.cluster == cluster.as_str())
            });
            print(
                format,
                "exports",
                &Listing {
                    source,
                    items: &exports.items,
                },
                |_| exports.table(),
            )
        }
        What::Imports => {
            let imports = Imports::of(seen);
            print(
                format,
                "imports",
                &Listing {
                    source,
                    items: &imports.items,
                },
                |_| imports.table(),
            )
        }
        What::Endpoints => {
            let endpoints = Endpoints::of(&view.records, &seen);
            print(
                format,
                "endpoints",
                &Listing {
                    source,
                    items: &endpoints.items,
                },
                |_| endpoints.table(),
            )
        }
        What::Links => {
            let links = Links::of(seen);
            print(
                format,
                "links",
                &Listing {
                    source,
                    items: &links.items,
                },
                |_| links.table(),
            )
        }
    }
}

/// A condition of an export or import, in the words of `multicluster.x-k8s.io/v1beta1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ConditionItem {
    #[serde(rename = "type")]
    pub(crate) condition_type: String,
    /// `True`, `False` or `Unknown`.
    pub(crate) status: String,
    pub(crate) reason: String,
    pub(crate) message: String,
}

impl From<&v1::Condition> for ConditionItem {
    fn from(condition: &v1::Condition) -> Self {
        Self {
            condition_type: condition.r#type.clone(),
            status: condition.status.clone(),
            reason: condition.reason.clone(),
            message: condition.message.clone(),
        }
    }
}

impl From<&tombolo_clusterset::conditions::Condition> for ConditionItem {
    fn from(condition: &tombolo_clusterset::conditions::Condition) -> Self {
        Self {
            condition_type: condition.condition_type.as_str().to_owned(),
            status: condition.status.as_str().to_owned(),
            reason: condition.reason.clone(),
            message: condition.message.clone(),
        }
    }
}

/// The cell of condition `name`; green where it holds as `wanted`.
fn condition_cell(conditions: &[ConditionItem], name: &str, wanted: &str) -> String {
    let Some(condition) = conditions
        .iter()
        .find(|condition| condition.condition_type == name)
    else {
        return "-".to_owned();
    };
    if condition.status == wanted {
        return paint(Tone::Good, &condition.status);
    }
    let tone = if condition.status == "Unknown" {
        Tone::Warn
    } else {
        Tone::Bad
    };
    paint(tone, &format!("{} {}", condition.status, condition.reason))
}

/// What the conditions that do not hold say, one line each.
fn messages<'a>(about: &'a str, conditions: &'a [ConditionItem]) -> impl Iterator<Item = String> + 'a {
    let wrong = |condition: &&ConditionItem| {
        let wanted = if condition.condition_type == "Conflict" {
            "False"
        } else {
            "True"
        };
        condition.status != wanted
    };
    let line = move |condition: &ConditionItem| {
        format!(
            "{about}: {} {}: {}",
            condition.condition_type, condition.status, condition.message
        )
    };
    conditions.iter().filter(wrong).map(line)
}

/// A table and the notes under it.
fn with_notes(table: String, notes: Vec<String>) -> String {
    if notes.is_empty() {
        table
    } else {
        format!("{table}\n\n{}", notes.join("\n"))
    }
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct PortItem {
    /// Empty for the unnamed port.
    pub(crate) name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub(crate) protocol: &'static str,
    pub(crate) port: u16,
}

impl PortItem {
    fn all(ports: &[ServicePort]) -> Vec<Self> {
        let item = |port: &ServicePort| Self {
            name: port.name.clone(),
            protocol: port.protocol.as_str(),
            port: port.port,
        };
        ports.iter().map(item).collect()
    }

    fn cell(ports: &[Self]) -> String {
        let texts: Vec<String> = ports
            .iter()
            .map(|port| format!("{}/{}", port.port, port.protocol))
            .collect();
        or_dash(&texts.join(","))
    }
}

fn families(families: &[IpFamily]) -> Vec<&'static str> {
    families.iter().map(|family| family.as_str()).collect()
}

pub(crate) fn or_dash(text: &str) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
pub(crate) mod fixtures;
