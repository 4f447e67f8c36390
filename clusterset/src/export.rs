//! Exports: what one cluster offers to the others.

use std::collections::BTreeMap;

use crate::endpoint::{EndpointSlice, IpFamily, Protocol};
use crate::name::{ClusterId, ServiceKey};
use crate::policy::LossPolicy;

/// Type of an imported service (`multicluster.x-k8s.io` ServiceImportType).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceType {
    /// One virtual address for all backends.
    ClusterSetIp,
    /// No virtual address: the backends' own.
    Headless,
}

impl ServiceType {
    /// The word of the MCS API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClusterSetIp => "ClusterSetIP",
            Self::Headless => "Headless",
        }
    }
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePort {
    /// Name; empty for the unnamed port of a single-port Service. Empty counts as a name (KEP-1645).
    pub name: String,
    /// Transport.
    pub protocol: Protocol,
    /// Number at the clusterset IP.
    pub port: u16,
    /// `appProtocol`; empty when unset.
    pub app_protocol: String,
}

/// `sessionAffinity` with its configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SessionAffinity {
    /// Each flow is balanced by itself.
    #[default]
    None,
    /// Flows of one client address go to one backend.
    ClientIp,
}

/// The properties of a Service that an export carries and that clusters must agree on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceSpec {
    /// ClusterSetIP or Headless.
    pub service_type: ServiceType,
    /// Service ports; names and (protocol, port) are unique within one export.
    pub ports: Vec<ServicePort>,
    /// Families in the Service's order.
    pub ip_families: Vec<IpFamily>,
    /// `sessionAffinity`.
    pub session_affinity: SessionAffinity,
    /// `sessionAffinityConfig.clientIP.timeoutSeconds`, seconds.
    pub session_affinity_timeout_seconds: Option<u32>,
    /// `internalTrafficPolicy`; empty when unset.
    pub internal_traffic_policy: String,
    /// `trafficDistribution`; empty when unset.
    pub traffic_distribution: String,
    /// `ServiceExport.spec.exportedLabels`.
    pub labels: BTreeMap<String, String>,
    /// `ServiceExport.spec.exportedAnnotations`.
    pub annotations: BTreeMap<String, String>,
}

/// An export as its cluster publishes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Which service.
    pub key: ServiceKey,
    /// Which cluster offers it.
    pub cluster: ClusterId,
    /// UID of the ServiceExport object: a re-created export is a new one.
    pub uid: String,
    /// `creationTimestamp` the cluster claims, milliseconds since the Unix epoch.
    pub claimed_created_ms: u64,
    /// What clusters must agree on.
    pub spec: ServiceSpec,
    /// What to do when this cluster is lost; the oldest export's choice holds for the service.
    pub loss_policy: LossPolicy,
    /// The backends.
    pub slices: Vec<EndpointSlice>,
}

/// An export as the broker admitted it. Merge reads nothing else (DESIGN §4.7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportRecord {
    /// What the cluster published last.
    pub export: Export,
    /// Log position of this UID's first acceptance: survives resync and restore, breaks ties of `created_ms`.
    pub admitted: u64,
    /// min(claimed, admission time), milliseconds since the Unix epoch.
    pub created_ms: u64,
}

impl ExportRecord {
    /// The order of precedence: the least wins. Oldest first, then log position, then cluster id (DESIGN §4.7).
    #[must_use]
    pub fn precedence(&self) -> (u64, u64, &ClusterId) {
        (self.created_ms, self.admitted, &self.export.cluster)
    }
}
