//! The difference between two snapshots of one cluster, in entries: what a stream sends between two full states.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{ClusterView, Import, LocalExport, Snapshot, Version};
use crate::name::{ClusterId, ServiceKey};

/// A change of one entry of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<K, V> {
    /// The entry is this now, new or not.
    Upsert(K, V),
    /// The entry is gone.
    Remove(K),
}

/// The trust of a clusterset; sent whole, since it changes with a rotation or an eviction only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {
    /// [`Snapshot::trust_domain`].
    pub trust_domain: String,
    /// [`Snapshot::roots`].
    pub roots: Vec<Vec<u8>>,
    /// [`Snapshot::denied`].
    pub denied: Vec<[u8; 32]>,
}

/// What leads from one snapshot to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta {
    /// Whose view it is.
    pub cluster: ClusterId,
    /// The state it applies to, and no other.
    pub from: Version,
    /// The state it leads to.
    pub to: Version,
    /// [`Snapshot::fresh`] from now on.
    pub fresh: bool,
    /// [`Snapshot::confirmed_unix_ms`] from now on.
    pub confirmed_unix_ms: u64,
    /// Trust, when it changed.
    pub trust: Option<Trust>,
    /// Members, by id.
    pub clusters: Vec<Change<ClusterId, ClusterView>>,
    /// Imports, by key.
    pub imports: Vec<Change<ServiceKey, Arc<Import>>>,
    /// Own exports, by key.
    pub exports: Vec<Change<ServiceKey, Arc<LocalExport>>>,
}

impl Delta {
    /// True when no entry changes: only the version, freshness or the time of confirmation.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.trust.is_none() && self.clusters.is_empty() && self.imports.is_empty() && self.exports.is_empty()
    }
}

/// A delta was offered to a state it was not made for; ask for a full state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a delta from version {from:?} of cluster '{of}' does not fit version {have:?} of cluster '{cluster}'; \
     ask for the full state"
)]
pub struct WrongBase {
    /// Cluster of the delta.
    pub of: ClusterId,
    /// Version the delta applies to.
    pub from: Version,
    /// Cluster of the snapshot.
    pub cluster: ClusterId,
    /// Version of the snapshot.
    pub have: Version,
}

/// What leads from `old` to `new`, two views of one cluster. Entries that both share cost one comparison of pointers.
#[must_use]
pub fn diff(old: &Snapshot, new: &Snapshot) -> Delta {
    let same = |a: &ClusterView, b: &ClusterView| a == b;
    let trust = trust(new);
    Delta {
        cluster: new.cluster.clone(),
        from: old.version,
        to: new.version,
        fresh: new.fresh,
        confirmed_unix_ms: new.confirmed_unix_ms,
        trust: (trust != self::trust(old)).then_some(trust),
        clusters: changes(&old.clusters, &new.clusters, same),
        imports: changes(&old.imports, &new.imports, |a, b| Arc::ptr_eq(a, b) || a == b),
        exports: changes(&old.exports, &new.exports, |a, b| Arc::ptr_eq(a, b) || a == b),
    }
}

/// The state that `delta` leads to.
///
/// # Errors
/// [`WrongBase`] when the delta was made for another version or another cluster's view.
pub fn apply(old: &Snapshot, delta: Delta) -> Result<Snapshot, WrongBase> {
    if old.version != delta.from || old.cluster != delta.cluster {
        return Err(WrongBase {
            of: delta.cluster,
            from: delta.from,
            cluster: old.cluster.clone(),
            have: old.version,
        });
    }
    let Trust {
        trust_domain,
        roots,
        denied,
    } = delta.trust.unwrap_or_else(|| trust(old));
    Ok(Snapshot {
        version: delta.to,
        cluster: delta.cluster,
        fresh: delta.fresh,
        confirmed_unix_ms: delta.confirmed_unix_ms,
        clusters: changed(&old.clusters, delta.clusters),
        imports: changed(&old.imports, delta.imports),
        exports: changed(&old.exports, delta.exports),
        roots,
        denied,
        trust_domain,
    })
}

fn trust(snapshot: &Snapshot) -> Trust {
    Trust {
        trust_domain: snapshot.trust_domain.clone(),
        roots: snapshot.roots.clone(),
        denied: snapshot.denied.clone(),
    }
}

/// Removals first, then upserts, each in the order of the keys.
fn changes<K: Ord + Clone, V: Clone>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
    same: impl Fn(&V, &V) -> bool,
) -> Vec<Change<K, V>> {
    let removed = old
        .keys()
        .filter(|key| !new.contains_key(key))
        .map(|key| Change::Remove(key.clone()));
    let upserted = new
        .iter()
        .filter(|(key, value)| !old.get(key).is_some_and(|old| same(old, value)))
        .map(|(key, value)| Change::Upsert(key.clone(), value.clone()));
    removed.chain(upserted).collect()
}

fn changed<K: Ord + Clone, V: Clone>(old: &BTreeMap<K, V>, changes: Vec<Change<K, V>>) -> BTreeMap<K, V> {
    let mut map = old.clone();
    for change in changes {
        match change {
            Change::Upsert(key, value) => map.insert(key, value),
            Change::Remove(key) => map.remove(&key),
        };
    }
    map
}

#[cfg(test)]
mod tests;
