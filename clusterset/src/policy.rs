//! What operators may choose: who may import, and what a lost cluster means to a service.

use std::collections::{BTreeMap, BTreeSet};

use crate::name::{ClusterId, Namespace, ServiceKey};

/// What becomes of a cluster's endpoints once both its lease and the link to it are lost (DESIGN §4.3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LossPolicy {
    /// Never withdraw: they stay as last resort.
    Keep,
    /// Use them last while the link is lost, withdraw once both signals were lost for a grace period.
    #[default]
    Degrade,
    /// Withdraw as soon as one signal is lost.
    Withdraw,
}

impl LossPolicy {
    /// The word of the annotation and the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Degrade => "degrade",
            Self::Withdraw => "withdraw",
        }
    }
}

/// Which clusters may import a service. No grant on record: all may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportGrant {
    /// The service the grant speaks of.
    pub key: ServiceKey,
    /// Which cluster's export it restricts.
    pub exporter: ClusterId,
    /// The clusters that may import it; the exporter itself always may.
    pub importers: BTreeSet<ClusterId>,
}

/// The grants of a clusterset and the namespaces reserved for named clusters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    /// By service and exporter.
    pub by_export: BTreeMap<(ServiceKey, ClusterId), BTreeSet<ClusterId>>,
    /// Namespaces that only these clusters may export from.
    pub reserved: BTreeMap<Namespace, BTreeSet<ClusterId>>,
}

impl Grants {
    /// Whether `importer` may use what `exporter` offers under `key`.
    #[must_use]
    pub fn may_import(&self, key: &ServiceKey, exporter: &ClusterId, importer: &ClusterId) -> bool {
        exporter == importer
            || self
                .by_export
                .get(&(key.clone(), exporter.clone()))
                .is_none_or(|importers| importers.contains(importer))
    }

    /// Whether `cluster` may export from `namespace`.
    #[must_use]
    pub fn may_export(&self, namespace: &Namespace, cluster: &ClusterId) -> bool {
        self.reserved
            .get(namespace)
            .is_none_or(|clusters| clusters.contains(cluster))
    }
}
