//! The merge of KEP-1645: every export of a service, from all clusters, into one import.

use std::collections::BTreeMap;

use crate::export::{ExportRecord, ServicePort, ServiceSpec};
use crate::name::ClusterId;
use crate::policy::LossPolicy;

/// A property that exports of one service disagree on (`ServiceExport` Conflict reasons of `v1beta1`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Conflict {
    /// Port sets differ.
    Port,
    /// Headless against ClusterSetIP.
    Type,
    /// `sessionAffinity`.
    SessionAffinity,
    /// `sessionAffinityConfig`.
    SessionAffinityConfig,
    /// Exported labels.
    Labels,
    /// Exported annotations.
    Annotations,
    /// `internalTrafficPolicy`.
    InternalTrafficPolicy,
    /// `trafficDistribution`.
    TrafficDistribution,
    /// Address families.
    IpFamily,
}

/// The merged service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// The winner's properties, with the union of the ports.
    pub spec: ServiceSpec,
    /// The cluster whose export took precedence.
    pub winner: ClusterId,
    /// The winner's choice of what a lost cluster means to this service.
    pub loss_policy: LossPolicy,
    /// For each exporter, the merged ports that it serves, as (merged port, name of the port in that cluster's own slices).
    pub serves: BTreeMap<ClusterId, Vec<(ServicePort, String)>>,
    /// What the exports disagree on, with a sentence for the operator; set on every exporter.
    pub conflicts: Vec<(Conflict, String)>,
}

/// Merges all `records` of one service. None when there are none. The order of `records` does not matter.
#[must_use]
pub fn merge(records: &[&ExportRecord]) -> Option<Merged> {
    let _ = records;
    todo!()
}
