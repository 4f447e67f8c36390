//! The immutable, versioned view of the clusterset that one cluster acts on.

mod delta;
mod interest;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::endpoint::{Endpoint, EndpointSlice, IpFamily, Protocol};
use crate::export::{ServicePort, ServiceSpec};
use crate::locality::Locality;
use crate::name::{ClusterId, Label, ServiceKey};
use crate::policy::LossPolicy;
use crate::reachability::Lease;

pub use delta::{Change, Delta, Trust, WrongBase, apply, diff};
pub use interest::Interest;

/// (incarnation, revision, local sequence): never goes back (DESIGN §7, Restore).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Incarnation of the clusterset: rises with each restore from a back-up.
    pub incarnation: u64,
    /// Log index at the broker.
    pub revision: u64,
    /// Counts local changes at the same revision.
    pub local: u64,
}

/// What one cluster knows of another (or of itself).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterView {
    /// Which cluster.
    pub id: ClusterId,
    /// Region and zone of the cluster; `node` is empty.
    pub locality: Locality,
    /// Clusters of one network reach each other's endpoints directly.
    pub network: Label,
    /// Tunnel addresses of its gateways; empty when it only dials out.
    pub gateways: Vec<SocketAddr>,
    /// Its proof of life.
    pub lease: Lease,
}

/// What one cluster contributes to an import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedCluster {
    /// Service ports this cluster serves under the merged (name, protocol, number): per-port truth.
    /// A merged port that this cluster does not expose is absent, and its slices do not serve it.
    pub ports: Vec<ServicePort>,
    /// Its backends, with ports under the merged names. Empty in the snapshot of a client on another network only where the
    /// service is not headless and the exporting gateway chooses; kept in full here for selection and DNS.
    pub slices: Vec<EndpointSlice>,
    /// What its loss means for this service.
    pub loss_policy: LossPolicy,
    /// For headless services of clusters on other networks: the local address that stands for each remote endpoint
    /// (the gateway listens there). Absent: use the endpoint's own address.
    pub stand_ins: BTreeMap<IpAddr, IpAddr>,
}

/// A merged service as this cluster sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// Which service.
    pub key: ServiceKey,
    /// The merged properties (ports are the union).
    pub spec: ServiceSpec,
    /// Clusterset IPs, in the order of `spec.ip_families`; empty for headless.
    pub ips: Vec<IpAddr>,
    /// Who serves it: exporters that granted it to this cluster, itself included.
    pub clusters: BTreeMap<ClusterId, ImportedCluster>,
}

impl Import {
    /// The merged port with this number.
    #[must_use]
    pub fn port(&self, protocol: Protocol, number: u16) -> Option<&ServicePort> {
        self.spec
            .ports
            .iter()
            .find(|port| port.protocol == protocol && port.port == number)
    }
}

impl ImportedCluster {
    /// Whether this cluster serves the merged port.
    #[must_use]
    pub fn exposes(&self, port: &ServicePort) -> bool {
        self.ports
            .iter()
            .any(|own| own.protocol == port.protocol && own.port == port.port)
    }

    /// Endpoints that serve the merged port, with the port number at the endpoint. None of them when the cluster does not expose it.
    pub fn endpoints<'a>(
        &'a self,
        port: &'a ServicePort,
        family: Option<IpFamily>,
    ) -> impl Iterator<Item = (&'a Endpoint, u16)> + 'a {
        let exposed = self.exposes(port);
        self.slices
            .iter()
            .filter(move |slice| exposed && family.is_none_or(|family| family == slice.family))
            .filter_map(move |slice| {
                slice
                    .port(&port.name, port.protocol)
                    .map(|number| (slice, number))
            })
            .flat_map(|(slice, number)| slice.endpoints.iter().map(move |endpoint| (endpoint, number)))
    }
}

/// An export of this cluster, as its gateway must enforce it: who may reach which port, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalExport {
    /// Which service.
    pub key: ServiceKey,
    /// Service ports that are exported, as the own Service names them.
    pub spec: ServiceSpec,
    /// Own backends.
    pub slices: Vec<EndpointSlice>,
    /// None: every cluster of the clusterset may call it.
    pub granted: Option<std::collections::BTreeSet<ClusterId>>,
}

/// The view of one cluster. Swapped whole; readers never see half of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Which state this is.
    pub version: Version,
    /// Whose view it is.
    pub cluster: ClusterId,
    /// False while the broker cannot be asked: leases are then [`Lease::Unknown`].
    pub fresh: bool,
    /// When the broker last confirmed it, milliseconds since the Unix epoch; 0 when never.
    pub confirmed_unix_ms: u64,
    /// Every member, this cluster included.
    pub clusters: BTreeMap<ClusterId, ClusterView>,
    /// Every service this cluster may call. Shared: a new snapshot copies pointers for whatever did not change.
    pub imports: BTreeMap<ServiceKey, Arc<Import>>,
    /// What this cluster offers. Shared likewise.
    pub exports: BTreeMap<ServiceKey, Arc<LocalExport>>,
    /// Trust: roots (DER), in the order of their staging.
    pub roots: Vec<Vec<u8>>,
    /// Trust: SHA-256 of the subject public key info of every denied intermediate.
    pub denied: Vec<[u8; 32]>,
    /// Trust domain of the clusterset.
    pub trust_domain: String,
}

impl Snapshot {
    /// The view of `cluster` before it knows anything.
    #[must_use]
    pub fn empty(cluster: ClusterId) -> Self {
        Self {
            version: Version::default(),
            cluster,
            fresh: false,
            confirmed_unix_ms: 0,
            clusters: BTreeMap::new(),
            imports: BTreeMap::new(),
            exports: BTreeMap::new(),
            roots: Vec::new(),
            denied: Vec::new(),
            trust_domain: String::new(),
        }
    }

    /// The lease of `cluster`: unknown while the snapshot is not fresh, None when it is no member.
    #[must_use]
    pub fn lease(&self, cluster: &ClusterId) -> Option<Lease> {
        let view = self.clusters.get(cluster)?;
        Some(if self.fresh { view.lease } else { Lease::Unknown })
    }
}
