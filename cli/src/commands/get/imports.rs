//! `get imports`.

use std::net::IpAddr;

use serde::Serialize;
use tombolo_clusterset::ServiceKey;
use tombolo_wire::v1;

use super::{ConditionItem, PortItem, condition_cell, families, messages, or_dash, with_notes};
use crate::operator::local::Observed;
use crate::output::table;

/// A merged service as one cluster sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ImportItem {
    /// `namespace/name`.
    pub(crate) service: String,
    /// Who sees it so.
    pub(crate) seen_from: String,
    /// `ClusterSetIP` or `Headless`.
    #[serde(rename = "type")]
    pub(crate) service_type: &'static str,
    pub(crate) ports: Vec<PortItem>,
    pub(crate) ip_families: Vec<&'static str>,
    /// Clusterset IPs; empty for headless.
    pub(crate) ips: Vec<IpAddr>,
    /// Who serves it to `seen_from`.
    pub(crate) clusters: Vec<String>,
    /// Conditions of `ServiceImport`.
    pub(crate) conditions: Vec<ConditionItem>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Imports {
    pub(crate) items: Vec<ImportItem>,
}

impl Imports {
    /// As each of these clusters sees them.
    pub(crate) fn of<'a>(observed: impl IntoIterator<Item = &'a Observed>) -> Self {
        let mut items: Vec<ImportItem> = observed.into_iter().flat_map(of_one).collect();
        items.sort_by(|a, b| (&a.service, &a.seen_from).cmp(&(&b.service, &b.seen_from)));
        Self { items }
    }

    pub(crate) fn table(&self) -> String {
        let rows = self.items.iter().map(|item| {
            let ips: Vec<String> = item.ips.iter().map(ToString::to_string).collect();
            [
                item.service.clone(),
                item.service_type.to_owned(),
                PortItem::cell(&item.ports),
                or_dash(&ips.join(",")),
                item.clusters.join(","),
                condition_cell(&item.conditions, "Ready", "True"),
                item.seen_from.clone(),
            ]
        });
        let about = |item: &ImportItem| format!("{} in {}", item.service, item.seen_from);
        let notes = self
            .items
            .iter()
            .flat_map(|item| messages(&about(item), &item.conditions).collect::<Vec<_>>());
        let table = table(
            ["SERVICE", "TYPE", "PORTS", "IP", "CLUSTERS", "READY", "SEEN FROM"],
            rows,
        );
        with_notes(table, notes.collect())
    }
}

fn of_one(observed: &Observed) -> impl Iterator<Item = ImportItem> + '_ {
    observed.snapshot.imports.values().map(|import| ImportItem {
        service: import.key.to_string(),
        seen_from: observed.cluster.to_string(),
        service_type: import.spec.service_type.as_str(),
        ports: PortItem::all(&import.spec.ports),
        ip_families: families(&import.spec.ip_families),
        ips: import.ips.clone(),
        clusters: import.clusters.keys().map(ToString::to_string).collect(),
        conditions: conditions(&observed.inspect.imports, &import.key),
    })
}

/// The conditions that an agent reports for `key`.
pub(super) fn conditions(statuses: &[v1::ExportStatus], key: &ServiceKey) -> Vec<ConditionItem> {
    let of_key = |status: &&v1::ExportStatus| {
        status
            .key
            .as_ref()
            .is_some_and(|own| own.namespace == key.namespace.as_str() && own.name == key.name.as_str())
    };
    let conditions = statuses
        .iter()
        .find(of_key)
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    conditions.iter().map(ConditionItem::from).collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;

    #[test]
    fn one_line_an_import_and_viewer() {
        let table = Imports::of([&fixtures::west()]).table();
        assert_eq!(
            table,
            "SERVICE        TYPE          PORTS     IP           CLUSTERS   READY          SEEN FROM\n\
             shop/checkout  ClusterSetIP  8080/TCP  127.11.64.1  east,west  False Pending  west\n\
             \n\
             shop/checkout in west: Ready False: the range is exhausted"
        );
    }

    #[test]
    fn the_fields_scripts_read() {
        let items = Imports::of([&fixtures::west()]).items;
        assert_eq!(
            serde_json::to_value(&items).expect("json"),
            serde_json::json!([{
                "service": "shop/checkout", "seen_from": "west", "type": "ClusterSetIP",
                "ports": [{"name": "http", "protocol": "TCP", "port": 8080}], "ip_families": ["IPv4"],
                "ips": ["127.11.64.1"], "clusters": ["east", "west"],
                "conditions": [{"type": "Ready", "status": "False", "reason": "Pending", "message": "the range is exhausted"}]
            }])
        );
    }
}
