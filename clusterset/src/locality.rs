//! Where a backend stands: region, zone, node.

/// `topology.kubernetes.io/region`, `topology.kubernetes.io/zone` and the node's name. An empty text means unknown, and an
/// unknown part equals nothing, not even another unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Locality {
    /// Region, for example `westeurope`.
    pub region: String,
    /// Zone, for example `westeurope-1`.
    pub zone: String,
    /// Node name.
    pub node: String,
}

impl Locality {
    /// True when both regions are known and equal.
    #[must_use]
    pub fn same_region(&self, other: &Self) -> bool {
        !self.region.is_empty() && self.region == other.region
    }

    /// True when both zones are known and equal.
    #[must_use]
    pub fn same_zone(&self, other: &Self) -> bool {
        !self.zone.is_empty() && self.zone == other.zone
    }
}
