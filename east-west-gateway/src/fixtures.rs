//! A small clusterset for the tables of the pure modules: `aks` is here, `kind` and `gke` are elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use tombolo_clusterset::endpoint::{IpFamily, Protocol};
use tombolo_clusterset::export::SessionAffinity;
use tombolo_clusterset::snapshot::LocalExport;
use tombolo_clusterset::{
    ClusterId, ClusterView, Endpoint, EndpointSlice, Import, ImportedCluster, Label, Lease, Locality,
    LossPolicy, Readiness, ServiceKey, ServicePort, ServiceSpec, ServiceType, SlicePort, Snapshot, Version,
};

pub(crate) fn cluster(id: &str) -> ClusterId {
    ClusterId::parse(id).unwrap()
}

pub(crate) fn key(text: &str) -> ServiceKey {
    ServiceKey::parse(text).unwrap()
}

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn port(name: &str, protocol: Protocol, port: u16) -> ServicePort {
    ServicePort {
        name: name.to_owned(),
        protocol,
        port,
        app_protocol: String::new(),
    }
}

pub(crate) fn spec(service_type: ServiceType, ports: Vec<ServicePort>) -> ServiceSpec {
    ServiceSpec {
        service_type,
        ports,
        ip_families: vec![IpFamily::V4],
        session_affinity: SessionAffinity::None,
        session_affinity_timeout_seconds: None,
        internal_traffic_policy: String::new(),
        traffic_distribution: String::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    }
}

/// A slice whose endpoints serve every port of `ports` at the number given beside it.
pub(crate) fn slice(ports: &[(&str, Protocol, u16)], endpoints: &[&str]) -> EndpointSlice {
    let endpoint = |text: &&str| Endpoint {
        address: address(text),
        readiness: Readiness::Ready,
        hostname: None,
        zone: String::new(),
        node: String::new(),
    };
    let port = |(name, protocol, port): &(&str, Protocol, u16)| SlicePort {
        name: (*name).to_owned(),
        protocol: *protocol,
        port: *port,
    };
    EndpointSlice {
        name: "slice".to_owned(),
        family: IpFamily::V4,
        ports: ports.iter().map(port).collect(),
        endpoints: endpoints.iter().map(endpoint).collect(),
    }
}

pub(crate) fn view(id: &str, gateways: &[&str]) -> ClusterView {
    ClusterView {
        id: cluster(id),
        locality: Locality::default(),
        network: Label::parse(id).unwrap(),
        gateways: gateways.iter().map(|text| text.parse().unwrap()).collect(),
        lease: Lease::Alive,
    }
}

pub(crate) fn imported(ports: Vec<ServicePort>, slices: Vec<EndpointSlice>) -> ImportedCluster {
    ImportedCluster {
        ports,
        slices,
        loss_policy: LossPolicy::Degrade,
        stand_ins: BTreeMap::new(),
    }
}

fn exports() -> Vec<LocalExport> {
    let web = || vec![port("http", Protocol::Tcp, 80)];
    let checkout = vec![port("http", Protocol::Tcp, 80), port("dns", Protocol::Udp, 53)];
    vec![
        LocalExport {
            key: key("shop/checkout"),
            spec: spec(ServiceType::ClusterSetIp, checkout),
            slices: vec![slice(
                &[("http", Protocol::Tcp, 8080), ("dns", Protocol::Udp, 5353)],
                &["127.0.0.2"],
            )],
            granted: None,
        },
        LocalExport {
            key: key("shop/private"),
            spec: spec(ServiceType::ClusterSetIp, web()),
            slices: vec![slice(&[("http", Protocol::Tcp, 8080)], &["127.0.0.3"])],
            granted: Some(BTreeSet::from([cluster("gke")])),
        },
        LocalExport {
            key: key("shop/db"),
            spec: spec(ServiceType::Headless, vec![port("sql", Protocol::Tcp, 5432)]),
            slices: vec![slice(&[("sql", Protocol::Tcp, 5432)], &["127.0.0.1"])],
            granted: None,
        },
    ]
}

fn imports() -> Vec<Import> {
    let web = || vec![port("http", Protocol::Tcp, 80)];
    let checkout = || vec![port("http", Protocol::Tcp, 80), port("dns", Protocol::Udp, 53)];
    let both = [("http", Protocol::Tcp, 8080), ("dns", Protocol::Udp, 5353)];
    let mut db = imported(
        vec![port("sql", Protocol::Tcp, 5432)],
        vec![slice(&[("sql", Protocol::Tcp, 15432)], &["10.9.0.1", "10.9.0.2"])],
    );
    db.stand_ins = BTreeMap::from([
        (address("10.9.0.1"), address("127.11.65.1")),
        (address("10.9.0.2"), address("127.11.65.2")),
    ]);
    vec![
        Import {
            key: key("shop/checkout"),
            spec: spec(ServiceType::ClusterSetIp, checkout()),
            ips: vec![address("127.11.64.1")],
            clusters: BTreeMap::from([
                (
                    cluster("aks"),
                    imported(checkout(), vec![slice(&both, &["127.0.0.2"])]),
                ),
                (
                    cluster("gke"),
                    imported(checkout(), vec![slice(&both, &["10.1.0.1", "10.1.0.2"])]),
                ),
                (
                    cluster("kind"),
                    imported(web(), vec![slice(&both, &["10.2.0.1", "10.2.0.2", "10.2.0.3"])]),
                ),
            ]),
        },
        Import {
            key: key("shop/elsewhere"),
            spec: spec(ServiceType::ClusterSetIp, web()),
            ips: vec![address("127.11.64.2")],
            clusters: BTreeMap::from([(
                cluster("kind"),
                imported(
                    web(),
                    vec![slice(&[("http", Protocol::Tcp, 8080)], &["10.2.0.9"])],
                ),
            )]),
        },
        Import {
            key: key("shop/db"),
            spec: spec(ServiceType::Headless, vec![port("sql", Protocol::Tcp, 5432)]),
            ips: vec![],
            clusters: BTreeMap::from([(cluster("kind"), db)]),
        },
    ]
}

/// The view of `aks`.
pub(crate) fn snapshot() -> Snapshot {
    let views = [
        view("aks", &["127.11.0.2:7443"]),
        view("gke", &["127.12.0.2:7443"]),
        view("kind", &["127.13.0.2:7443"]),
    ];
    Snapshot {
        version: Version::default(),
        cluster: cluster("aks"),
        fresh: true,
        confirmed_unix_ms: 1,
        clusters: views.into_iter().map(|view| (view.id.clone(), view)).collect(),
        imports: imports()
            .into_iter()
            .map(|import| (import.key.clone(), Arc::new(import)))
            .collect(),
        exports: exports()
            .into_iter()
            .map(|export| (export.key.clone(), Arc::new(export)))
            .collect(),
        roots: Vec::new(),
        denied: Vec::new(),
        trust_domain: "demo-abc".to_owned(),
    }
}
