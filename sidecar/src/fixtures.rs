//! What the tests of this crate build their tables from: the view of cluster `home`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tombolo_clusterset::endpoint::{IpFamily, Protocol};
use tombolo_clusterset::export::SessionAffinity;
use tombolo_clusterset::snapshot::LocalExport;
use tombolo_clusterset::{
    ClusterId, ClusterView, Endpoint, EndpointSlice, Import, ImportedCluster, Label, Lease, Locality,
    LossPolicy, Readiness, ServiceKey, ServicePort, ServiceSpec, ServiceType, SlicePort, Snapshot,
};

pub(crate) fn cluster(id: &str) -> ClusterId {
    ClusterId::parse(id).unwrap()
}

pub(crate) fn key(text: &str) -> ServiceKey {
    ServiceKey::parse(text).unwrap()
}

pub(crate) fn service_port(port: u16, protocol: Protocol) -> ServicePort {
    ServicePort {
        name: "main".to_owned(),
        protocol,
        port,
        app_protocol: String::new(),
    }
}

pub(crate) fn spec(service_type: ServiceType, port: ServicePort) -> ServiceSpec {
    ServiceSpec {
        service_type,
        ports: vec![port],
        ip_families: vec![IpFamily::V4],
        session_affinity: SessionAffinity::None,
        session_affinity_timeout_seconds: None,
        internal_traffic_policy: String::new(),
        traffic_distribution: String::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    }
}

/// The endpoints of one exporter.
pub(crate) fn slice(protocol: Protocol, backends: &[SocketAddr]) -> EndpointSlice {
    let endpoint = |backend: &SocketAddr| Endpoint {
        address: backend.ip(),
        readiness: Readiness::Ready,
        hostname: None,
        zone: String::new(),
        node: String::new(),
    };
    EndpointSlice {
        name: backends.first().map(ToString::to_string).unwrap_or_default(),
        family: IpFamily::V4,
        ports: vec![SlicePort {
            name: "main".to_owned(),
            protocol,
            port: backends.first().map_or(0, SocketAddr::port),
        }],
        endpoints: backends.iter().map(endpoint).collect(),
    }
}

/// One slice for each backend, since ports may differ.
pub(crate) fn imported(port: &ServicePort, backends: &[SocketAddr]) -> ImportedCluster {
    ImportedCluster {
        ports: vec![port.clone()],
        slices: backends
            .iter()
            .map(|backend| slice(port.protocol, &[*backend]))
            .collect(),
        loss_policy: LossPolicy::default(),
        stand_ins: BTreeMap::new(),
    }
}

pub(crate) fn view(id: &str, gateways: &[SocketAddr]) -> ClusterView {
    ClusterView {
        id: cluster(id),
        locality: Locality::default(),
        network: Label::parse(id).unwrap(),
        gateways: gateways.to_vec(),
        lease: Lease::Alive,
    }
}

/// An import with a VIP, and what this cluster itself exports of it.
pub(crate) fn add_service(
    snapshot: &mut Snapshot,
    service: &str,
    vip: &str,
    port: &ServicePort,
    exporters: &[(&str, &[SocketAddr])],
) {
    let clusters = exporters
        .iter()
        .map(|(id, backends)| (cluster(id), imported(port, backends)));
    let import = Import {
        key: key(service),
        spec: spec(ServiceType::ClusterSetIp, port.clone()),
        ips: vec![vip.parse().unwrap()],
        clusters: clusters.collect(),
    };
    if let Some((_, backends)) = exporters.iter().find(|(id, _)| snapshot.cluster.as_str() == *id) {
        let export = LocalExport {
            key: key(service),
            spec: import.spec.clone(),
            slices: backends
                .iter()
                .map(|backend| slice(port.protocol, &[*backend]))
                .collect(),
            granted: None,
        };
        snapshot.exports.insert(key(service), Arc::new(export));
    }
    snapshot.imports.insert(key(service), Arc::new(import));
}

/// Cluster `home`, with gke and eks, which can be dialled, and kind, which cannot; each has one endpoint of `shop/checkout`.
/// `shop/local` is served by home alone, `shop/db` is headless.
pub(crate) fn snapshot() -> Snapshot {
    let socket = |text: &str| text.parse::<SocketAddr>().unwrap();
    let mut snapshot = Snapshot::empty(cluster("home"));
    snapshot.fresh = true;
    let gateways = [
        ("home", vec![]),
        ("gke", vec![socket("127.12.0.2:7443"), socket("127.12.0.4:7443")]),
        ("eks", vec![socket("127.13.0.2:7443")]),
        ("kind", vec![]),
    ];
    for (id, gateways) in gateways {
        snapshot.clusters.insert(cluster(id), view(id, &gateways));
    }
    let http = service_port(80, Protocol::Tcp);
    let remote = [socket("10.0.0.7:8080")];
    add_service(
        &mut snapshot,
        "shop/checkout",
        "127.11.64.1",
        &http,
        &[
            ("home", &[socket("127.0.0.2:8080")]),
            ("gke", &remote),
            ("eks", &remote),
            ("kind", &remote),
        ],
    );
    add_service(
        &mut snapshot,
        "shop/local",
        "127.11.64.2",
        &http,
        &[("home", &[socket("127.0.0.3:8080")])],
    );

    let sql = service_port(5432, Protocol::Tcp);
    let mut db = Import {
        key: key("shop/db"),
        spec: spec(ServiceType::Headless, sql.clone()),
        ips: vec![],
        clusters: BTreeMap::new(),
    };
    let backends = [
        ("home", "127.0.0.4:5432", None),
        ("gke", "10.0.0.7:5432", Some("127.11.64.9")),
        ("kind", "10.0.0.7:5432", Some("127.11.64.10")),
    ];
    for (id, backend, stand_in) in backends {
        let mut imported = imported(&sql, &[socket(backend)]);
        let stand_in =
            stand_in.map(|address: &str| (socket(backend).ip(), address.parse::<IpAddr>().unwrap()));
        imported.stand_ins.extend(stand_in);
        db.clusters.insert(cluster(id), imported);
    }
    snapshot.imports.insert(key("shop/db"), Arc::new(db));
    snapshot
}
