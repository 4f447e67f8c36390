//! What a reader of the local stream wants to see (DESIGN §2): a sidecar holds only what its pod may call.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Snapshot;
use crate::name::{Namespace, ServiceKey};

/// Which services a reader wants. Members and trust are always sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Interest {
    /// Everything.
    All,
    /// The services of these namespaces, and these services.
    Only {
        /// Whole namespaces.
        namespaces: BTreeSet<Namespace>,
        /// Single services.
        services: BTreeSet<ServiceKey>,
    },
}

impl Interest {
    /// Interest from lists, as a request names them; two empty lists mean everything.
    #[must_use]
    pub fn of(namespaces: BTreeSet<Namespace>, services: BTreeSet<ServiceKey>) -> Self {
        if namespaces.is_empty() && services.is_empty() {
            Self::All
        } else {
            Self::Only { namespaces, services }
        }
    }

    /// Whether the reader wants `key`.
    #[must_use]
    pub fn covers(&self, key: &ServiceKey) -> bool {
        match self {
            Self::All => true,
            Self::Only { namespaces, services } => {
                namespaces.contains(&key.namespace) || services.contains(key)
            }
        }
    }

    /// `snapshot` without the imports and exports that the reader does not want.
    #[must_use]
    pub fn filter(&self, snapshot: &Snapshot) -> Snapshot {
        let wanted = |key: &ServiceKey| self.covers(key);
        Snapshot {
            imports: kept(&snapshot.imports, wanted),
            exports: kept(&snapshot.exports, wanted),
            clusters: snapshot.clusters.clone(),
            cluster: snapshot.cluster.clone(),
            roots: snapshot.roots.clone(),
            denied: snapshot.denied.clone(),
            trust_domain: snapshot.trust_domain.clone(),
            ..*snapshot
        }
    }
}

fn kept<V>(
    map: &BTreeMap<ServiceKey, Arc<V>>,
    wanted: impl Fn(&ServiceKey) -> bool,
) -> BTreeMap<ServiceKey, Arc<V>> {
    map.iter()
        .filter(|(key, _)| wanted(key))
        .map(|(key, value)| (key.clone(), Arc::clone(value)))
        .collect()
}
