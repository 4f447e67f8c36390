//! `get exports`.

use std::collections::BTreeMap;

use serde::Serialize;
use tombolo_clusterset::conditions::{Exported, Publication, of_export};
use tombolo_clusterset::merge::{Merged, merge};
use tombolo_clusterset::{ClusterId, ExportRecord, ServiceKey};

use super::imports::conditions;
use super::{ConditionItem, PortItem, condition_cell, messages, with_notes};
use crate::operator::Records;
use crate::operator::local::Observed;
use crate::operator::view::View;
use crate::output::table;

/// A service that one cluster offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ExportItem {
    /// `namespace/name`.
    pub(crate) service: String,
    /// Whose export.
    pub(crate) cluster: String,
    /// `ClusterSetIP` or `Headless`; null while the broker has not admitted it.
    #[serde(rename = "type")]
    pub(crate) service_type: Option<&'static str>,
    pub(crate) ports: Vec<PortItem>,
    /// Ready and other endpoints together.
    pub(crate) endpoints: usize,
    /// Whose export decides where the exports of this service disagree; null while none is admitted.
    pub(crate) winner: Option<String>,
    /// Creation, as precedence counts it, milliseconds since the Unix epoch; null while it is not admitted.
    pub(crate) created_unix_ms: Option<u64>,
    /// Who may import it besides the exporter; null: everyone.
    pub(crate) granted_to: Option<Vec<String>>,
    /// Conditions of `ServiceExport`: `Valid`, `Ready`, `Conflict`.
    pub(crate) conditions: Vec<ConditionItem>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Exports {
    pub(crate) items: Vec<ExportItem>,
}

impl Exports {
    /// As the freshest of these clusters knows them, with what each says of its own.
    pub(crate) fn of(observed: &[Observed]) -> Self {
        let best = observed
            .iter()
            .max_by_key(|one| (one.snapshot.fresh, one.snapshot.version));
        let records = best
            .map(|best| Records::of_agent(&best.snapshot, &best.inspect.records))
            .unwrap_or_default();
        Self::from(&records, observed)
    }

    pub(crate) fn of_view(view: &View) -> Self {
        Self::from(&view.records, &view.observed)
    }

    /// What the records hold, and what the agents hold back: an export that is not valid never reaches a broker.
    fn from(records: &Records, observed: &[Observed]) -> Self {
        let mut by_service: BTreeMap<&ServiceKey, Vec<&ExportRecord>> = BTreeMap::new();
        for ((key, _), record) in &records.exports {
            by_service.entry(key).or_default().push(record);
        }
        let merged: BTreeMap<&ServiceKey, Merged> = by_service
            .into_iter()
            .filter_map(|(key, records)| Some((key, merge(&records)?)))
            .collect();
        let mut items: BTreeMap<(ServiceKey, ClusterId), ExportItem> = BTreeMap::new();
        for ((key, cluster), record) in &records.exports {
            let merged = merged.get(key);
            let owner = observed.iter().find(|one| &one.cluster == cluster);
            let told = owner
                .map(|one| conditions(&one.inspect.exports, key))
                .filter(|told| !told.is_empty());
            let granted = records.grants.by_export.get(&(key.clone(), cluster.clone()));
            let item = ExportItem {
                service: key.to_string(),
                cluster: cluster.to_string(),
                service_type: Some(record.export.spec.service_type.as_str()),
                ports: PortItem::all(&record.export.spec.ports),
                endpoints: record
                    .export
                    .slices
                    .iter()
                    .map(|slice| slice.endpoints.len())
                    .sum(),
                winner: merged.map(|merged| merged.winner.to_string()),
                created_unix_ms: Some(record.created_ms),
                granted_to: granted.map(|importers| importers.iter().map(ToString::to_string).collect()),
                conditions: told.unwrap_or_else(|| {
                    let conflicts = merged
                        .map(|merged| merged.conflicts.as_slice())
                        .unwrap_or_default();
                    // What a broker holds has been published, whoever looks.
                    of_export(&Exported::Service, &Publication::Published, conflicts)
                        .iter()
                        .map(Into::into)
                        .collect()
                }),
            };
            items.insert((key.clone(), cluster.clone()), item);
        }
        for (key, owner) in held_back(observed) {
            items
                .entry((key.clone(), owner.cluster.clone()))
                .or_insert_with(|| ExportItem {
                    service: key.to_string(),
                    cluster: owner.cluster.to_string(),
                    service_type: None,
                    ports: Vec::new(),
                    endpoints: 0,
                    winner: merged.get(&key).map(|merged| merged.winner.to_string()),
                    created_unix_ms: None,
                    granted_to: None,
                    conditions: conditions(&owner.inspect.exports, &key),
                });
        }
        Self {
            items: items.into_values().collect(),
        }
    }

    pub(crate) fn table(&self) -> String {
        let rows = self.items.iter().map(|item| {
            [
                item.service.clone(),
                item.cluster.clone(),
                item.service_type.unwrap_or("-").to_owned(),
                PortItem::cell(&item.ports),
                item.endpoints.to_string(),
                item.winner.clone().unwrap_or_else(|| "-".to_owned()),
                condition_cell(&item.conditions, "Valid", "True"),
                condition_cell(&item.conditions, "Ready", "True"),
                condition_cell(&item.conditions, "Conflict", "False"),
            ]
        });
        // A conflict is told to every exporter in the same words: once is enough here.
        let mut notes: Vec<String> = Vec::new();
        for item in &self.items {
            for note in messages(&item.service, &item.conditions) {
                if !notes.contains(&note) {
                    notes.push(note);
                }
            }
        }
        let head = [
            "SERVICE",
            "CLUSTER",
            "TYPE",
            "PORTS",
            "ENDPOINTS",
            "WINNER",
            "VALID",
            "READY",
            "CONFLICT",
        ];
        with_notes(table(head, rows), notes)
    }
}

/// Every export that an agent reports a status for.
fn held_back(observed: &[Observed]) -> impl Iterator<Item = (ServiceKey, &Observed)> {
    observed.iter().flat_map(|one| {
        let keys = one
            .inspect
            .exports
            .iter()
            .filter_map(|status| status.key.as_ref());
        keys.filter_map(move |key| Some((ServiceKey::try_from(key).ok()?, one)))
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;

    #[test]
    fn conflicts_and_unpublished_exports_are_told() {
        let table = Exports::of(&[fixtures::west()]).table();
        assert_eq!(
            table,
            "SERVICE        CLUSTER  TYPE          PORTS     ENDPOINTS  WINNER  VALID            READY         CONFLICT\n\
             shop/checkout  east     ClusterSetIP  8080/TCP  1          west    True             True          True TypeConflict\n\
             shop/checkout  west     ClusterSetIP  8080/TCP  2          west    True             True          True TypeConflict\n\
             shop/ghost     west     -             -         0          -       False NoService  False Failed  False\n"
                .trim_end()
                .replace("east     ClusterSetIP", "east     Headless    ")
                + "\n\n"
                + "shop/checkout: Conflict True: "
                + fixtures::TYPE_CONFLICT
                + "\nshop/ghost: Valid False: no Service of this name\nshop/ghost: Ready False: see Valid"
        );
    }
}
