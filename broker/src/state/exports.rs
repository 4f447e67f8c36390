//! Exports: admission, precedence, bounds.

use std::collections::BTreeSet;
use std::sync::Arc;

use prost::Message as _;
use tombolo_clusterset::{ClusterId, Export, ExportRecord, ServiceKey};
use tombolo_wire::v1;

use super::{Entry, EntryKey, Refusal, State, Verdict};
use crate::bounds::{ENDPOINTS_MAX, EXPORT_MAX_BYTES, SERVICES_MAX};
use crate::command::Reply;

impl State {
    /// What `cluster` offers under `key`.
    #[must_use]
    pub fn export(&self, key: &ServiceKey, cluster: &ClusterId) -> Option<&Arc<ExportRecord>> {
        self.exports.get(key)?.get(cluster)
    }

    /// Every export on record.
    pub fn all_exports(&self) -> impl Iterator<Item = &Arc<ExportRecord>> {
        self.exports.values().flat_map(|by_cluster| by_cluster.values())
    }

    /// How many endpoints all exports have.
    #[must_use]
    pub(crate) fn count_endpoints(&self) -> usize {
        self.all_exports()
            .map(|record| endpoints_of(&record.export))
            .sum()
    }
}

impl Entry<'_> {
    /// Admits an export or refuses this one; the others of its stream stand.
    pub(super) fn upsert(&mut self, epoch: u64, export: Export) -> Verdict {
        self.check_epoch(&export.cluster, epoch)?;
        let (key, cluster) = (export.key.clone(), export.cluster.clone());
        if let Some(clusters) = self.state.grants.reserved.get(&key.namespace)
            && !clusters.contains(&cluster)
        {
            let reserved_for = clusters
                .iter()
                .map(ClusterId::as_str)
                .collect::<Vec<_>>()
                .join(", ");
            return Err(Refusal::Reserved {
                namespace: key.namespace.clone(),
                key,
                reserved_for,
            });
        }
        let bytes = v1::Export::from(&export).encoded_len();
        if bytes > EXPORT_MAX_BYTES {
            return Err(Refusal::ExportTooLarge { key, bytes });
        }
        if !self.state.exports.contains_key(&key) && self.state.exports.len() >= SERVICES_MAX {
            return Err(Refusal::TooManyServices(key));
        }
        let known = self.state.export(&key, &cluster).cloned();
        let replaced = known.as_ref().map_or(0, |known| endpoints_of(&known.export));
        let endpoints = self.state.endpoints - replaced + endpoints_of(&export);
        if endpoints > ENDPOINTS_MAX {
            return Err(Refusal::TooManyEndpoints { key, endpoints });
        }
        if known.as_ref().is_some_and(|known| known.export == export) {
            return Ok(Reply::Done);
        }
        // The first acceptance of a UID decides its precedence for good; a re-created export is a new one.
        let (admitted, created_ms) = match known {
            Some(known) if known.export.uid == export.uid => (known.admitted, known.created_ms),
            _ => (self.index, export.claimed_created_ms.min(self.state.clock_ms)),
        };
        self.state.endpoints = endpoints;
        let record = Arc::new(ExportRecord {
            export,
            admitted,
            created_ms,
        });
        self.state
            .exports
            .entry(key.clone())
            .or_default()
            .insert(cluster.clone(), record);
        self.changed.insert(EntryKey::Export(key, cluster));
        Ok(Reply::Done)
    }

    pub(super) fn delete(&mut self, cluster: &ClusterId, epoch: u64, key: &ServiceKey) -> Verdict {
        self.check_epoch(cluster, epoch)?;
        self.remove_exports(|found, exporter| exporter == cluster && found == key);
        Ok(Reply::Done)
    }

    /// The end of a full state: what it did not name is gone.
    pub(super) fn retain(&mut self, cluster: &ClusterId, epoch: u64, keys: &BTreeSet<ServiceKey>) -> Verdict {
        self.check_epoch(cluster, epoch)?;
        self.remove_exports(|key, exporter| exporter == cluster && !keys.contains(key));
        Ok(Reply::Done)
    }

    /// Removes every export that `gone` names; returns how many.
    pub(super) fn remove_exports(&mut self, gone: impl Fn(&ServiceKey, &ClusterId) -> bool) -> u32 {
        let mut removed = 0;
        let (changed, endpoints) = (&mut self.changed, &mut self.state.endpoints);
        self.state.exports.retain(|key, by_cluster| {
            by_cluster.retain(|cluster, record| {
                let is_gone = gone(key, cluster);
                if is_gone {
                    removed += 1;
                    *endpoints -= endpoints_of(&record.export);
                    changed.insert(EntryKey::Export(key.clone(), cluster.clone()));
                }
                !is_gone
            });
            !by_cluster.is_empty()
        });
        removed
    }
}

fn endpoints_of(export: &Export) -> usize {
    export.slices.iter().map(|slice| slice.endpoints.len()).sum()
}
