//! What the tests of this crate build their tables from.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::endpoint::{Endpoint, EndpointSlice, IpFamily, Protocol, Readiness, SlicePort};
use crate::export::{Export, ExportRecord, ServicePort, ServiceSpec, ServiceType, SessionAffinity};
use crate::locality::Locality;
use crate::name::{ClusterId, Label, ServiceKey};
use crate::policy::LossPolicy;
use crate::reachability::{Lease, Link, LinkState};
use crate::select::Signals;
use crate::snapshot::{ClusterView, Import, ImportedCluster, Snapshot};

pub(crate) fn id(text: &str) -> ClusterId {
    ClusterId::parse(text).expect("a valid cluster id")
}

pub(crate) fn key(text: &str) -> ServiceKey {
    ServiceKey::parse(text).expect("a valid key")
}

pub(crate) fn port(name: &str, number: u16) -> ServicePort {
    ServicePort {
        name: name.to_owned(),
        protocol: Protocol::Tcp,
        port: number,
        app_protocol: String::new(),
    }
}

pub(crate) fn spec(ports: &[(&str, u16)]) -> ServiceSpec {
    ServiceSpec {
        service_type: ServiceType::ClusterSetIp,
        ports: ports.iter().map(|(name, number)| port(name, *number)).collect(),
        ip_families: vec![IpFamily::V4],
        session_affinity: SessionAffinity::None,
        session_affinity_timeout_seconds: None,
        internal_traffic_policy: "Cluster".to_owned(),
        traffic_distribution: String::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    }
}

/// An export of shop/checkout, created and admitted at `created`.
pub(crate) fn record(cluster: &str, created: u64, spec: ServiceSpec) -> ExportRecord {
    let slice_ports: Vec<(&str, u16)> = spec
        .ports
        .iter()
        .map(|own| (own.name.as_str(), own.port))
        .collect();
    let slices = vec![slice(&slice_ports, vec![endpoint("10.0.0.1", "")])];
    let export = Export {
        key: key("shop/checkout"),
        cluster: id(cluster),
        uid: format!("{cluster}-{created}"),
        claimed_created_ms: created,
        spec,
        loss_policy: LossPolicy::default(),
        slices,
    };
    ExportRecord {
        export,
        admitted: created,
        created_ms: created,
    }
}

pub(crate) fn endpoint(address: &str, zone: &str) -> Endpoint {
    Endpoint {
        address: address.parse().expect("an address"),
        readiness: Readiness::Ready,
        hostname: None,
        zone: zone.to_owned(),
        node: String::new(),
    }
}

pub(crate) fn slice(ports: &[(&str, u16)], endpoints: Vec<Endpoint>) -> EndpointSlice {
    let slice_port = |(name, port): &(&str, u16)| SlicePort {
        name: (*name).to_owned(),
        protocol: Protocol::Tcp,
        port: *port,
    };
    EndpointSlice {
        name: "slice".to_owned(),
        family: endpoints
            .first()
            .map_or(IpFamily::V4, |endpoint| IpFamily::of(endpoint.address)),
        ports: ports.iter().map(slice_port).collect(),
        endpoints,
    }
}

/// The view of cluster `home` in region eu, on a service shop/checkout with port http/80.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) snapshot: Snapshot,
    pub(crate) import: Import,
    pub(crate) signals: Signals,
}

impl World {
    pub(crate) fn new() -> Self {
        let import = Import {
            key: key("shop/checkout"),
            spec: spec(&[("http", 80)]),
            ips: Vec::new(),
            clusters: BTreeMap::new(),
        };
        let mut snapshot = Snapshot::empty(id("home"));
        snapshot.fresh = true;
        Self {
            snapshot,
            import,
            signals: Signals::default(),
        }
        .member("home", "eu")
    }

    pub(crate) fn member(mut self, cluster: &str, region: &str) -> Self {
        let view = ClusterView {
            id: id(cluster),
            locality: Locality {
                region: region.to_owned(),
                ..Locality::default()
            },
            network: Label::parse("flat").expect("a label"),
            gateways: Vec::new(),
            lease: Lease::Alive,
        };
        self.snapshot.clusters.insert(id(cluster), view);
        self
    }

    /// Endpoints of a cluster that serve http/80 on 8080.
    pub(crate) fn serves(mut self, cluster: &str, endpoints: Vec<Endpoint>) -> Self {
        let imported = ImportedCluster {
            ports: vec![port("http", 80)],
            slices: vec![slice(&[("http", 8080)], endpoints)],
            loss_policy: LossPolicy::default(),
            stand_ins: BTreeMap::new(),
        };
        self.import.clusters.insert(id(cluster), imported);
        self
    }

    pub(crate) fn lease(mut self, cluster: &str, lease: Lease) -> Self {
        self.snapshot
            .clusters
            .get_mut(&id(cluster))
            .expect("a member")
            .lease = lease;
        self
    }

    pub(crate) fn link(mut self, cluster: &str, state: LinkState, rtt_ms: Option<u64>) -> Self {
        let link = Link {
            state,
            rtt: rtt_ms.map(Duration::from_millis),
            both_lost_for: None,
        };
        self.signals.links.insert(id(cluster), link);
        self
    }

    pub(crate) fn eject(mut self, cluster: &str, address: &str) -> Self {
        let address: IpAddr = address.parse().expect("an address");
        self.signals.ejected.insert((id(cluster), address, 8080));
        self
    }

    /// The snapshot with the import in it.
    pub(crate) fn whole(&self) -> Snapshot {
        let mut snapshot = self.snapshot.clone();
        snapshot
            .imports
            .insert(self.import.key.clone(), Arc::new(self.import.clone()));
        snapshot
    }
}
