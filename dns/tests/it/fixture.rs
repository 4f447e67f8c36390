//! Snapshots written as a few words, and zones of them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use tombolo_clusterset::endpoint::{IpFamily, Protocol};
use tombolo_clusterset::export::SessionAffinity;
use tombolo_clusterset::reachability::{Lease, LinkState};
use tombolo_clusterset::{
    ClusterId, ClusterView, Endpoint, EndpointSlice, Import, ImportedCluster, Label, Locality, LossPolicy,
    Readiness, ServiceKey, ServicePort, ServiceSpec, ServiceType, SlicePort, Snapshot, Version,
};
use tombolo_dns::signals::Tracker;
use tombolo_dns::zone::{Zone, Zones};

pub(crate) const HERE: &str = "aks-westeurope";
pub(crate) const EKS: &str = "eks-us-east-1";
pub(crate) const GKE: &str = "gke-us-central1";

pub(crate) fn id(text: &str) -> ClusterId {
    ClusterId::parse(text).unwrap()
}

pub(crate) fn ip(text: &str) -> IpAddr {
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

/// `hostname@address`, `address`; with `!` behind it not ready, with `~` terminating.
pub(crate) fn endpoint(text: &str) -> Endpoint {
    let (text, readiness) = match text.strip_suffix('!') {
        Some(text) => (text, Readiness::NotReady),
        None => text
            .strip_suffix('~')
            .map_or((text, Readiness::Ready), |text| (text, Readiness::Terminating)),
    };
    let (hostname, address) = match text.split_once('@') {
        Some((hostname, address)) => (Some(Label::parse(hostname).unwrap()), address),
        None => (None, text),
    };
    Endpoint {
        address: ip(address),
        readiness,
        hostname,
        zone: String::new(),
        node: String::new(),
    }
}

pub(crate) fn imported(ports: &[ServicePort], endpoints: &[&str]) -> ImportedCluster {
    let endpoints: Vec<_> = endpoints.iter().map(|text| endpoint(text)).collect();
    let slices = [IpFamily::V4, IpFamily::V6]
        .into_iter()
        .map(|family| EndpointSlice {
            name: family.as_str().to_lowercase(),
            family,
            ports: ports
                .iter()
                .map(|port| SlicePort {
                    name: port.name.clone(),
                    protocol: port.protocol,
                    port: port.port,
                })
                .collect(),
            endpoints: endpoints
                .iter()
                .filter(|one| IpFamily::of(one.address) == family)
                .cloned()
                .collect(),
        })
        .filter(|slice| !slice.endpoints.is_empty())
        .collect();
    ImportedCluster {
        ports: ports.to_vec(),
        slices,
        loss_policy: LossPolicy::Degrade,
        stand_ins: BTreeMap::new(),
    }
}

pub(crate) fn import(key: &str, ips: &[&str], ports: &[ServicePort], clusters: &[(&str, &[&str])]) -> Import {
    let service_type = if ips.is_empty() {
        ServiceType::Headless
    } else {
        ServiceType::ClusterSetIp
    };
    Import {
        key: ServiceKey::parse(key).unwrap(),
        spec: ServiceSpec {
            service_type,
            ports: ports.to_vec(),
            ip_families: ips.iter().map(|text| IpFamily::of(ip(text))).collect(),
            session_affinity: SessionAffinity::None,
            session_affinity_timeout_seconds: None,
            internal_traffic_policy: String::new(),
            traffic_distribution: String::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        },
        ips: ips.iter().map(|text| ip(text)).collect(),
        clusters: clusters
            .iter()
            .map(|(cluster, endpoints)| (id(cluster), imported(ports, endpoints)))
            .collect(),
    }
}

pub(crate) fn snapshot(imports: impl IntoIterator<Item = Import>) -> Snapshot {
    let view = |cluster: &str| ClusterView {
        id: id(cluster),
        locality: Locality::default(),
        network: Label::parse(cluster).unwrap(),
        gateways: vec![],
        lease: Lease::Alive,
    };
    Snapshot {
        version: Version {
            incarnation: 1,
            revision: 1,
            local: 0,
        },
        cluster: id(HERE),
        fresh: true,
        confirmed_unix_ms: 0,
        clusters: [HERE, EKS, GKE]
            .into_iter()
            .map(|cluster| (id(cluster), view(cluster)))
            .collect(),
        imports: imports
            .into_iter()
            .map(|import| (import.key.clone(), Arc::new(import)))
            .collect(),
        exports: BTreeMap::new(),
        roots: vec![],
        denied: vec![],
        trust_domain: "demo-0000".to_owned(),
    }
}

/// The zone of `snapshot` with all links up but for `links`.
pub(crate) fn zone(snapshot: &Snapshot, links: &[(&str, LinkState)]) -> Zone {
    let mut states: BTreeMap<_, _> = snapshot
        .clusters
        .keys()
        .map(|cluster| (cluster.clone(), LinkState::Up))
        .collect();
    states.extend(links.iter().map(|(cluster, state)| (id(cluster), *state)));
    let verdicts = Tracker::default().observe(Instant::now(), snapshot, &states);
    Zones::new(&[ip("127.11.0.10")], 6).build(snapshot, &verdicts)
}

/// The demo's services, and one of each kind beside them.
pub(crate) fn shop() -> Snapshot {
    let http = port("http", Protocol::Tcp, 80);
    let metrics = port("metrics", Protocol::Tcp, 9090);
    let ledger = import(
        "shop/ledger",
        &[],
        std::slice::from_ref(&http),
        &[
            (HERE, &["ledger-0@10.1.0.1", "ledger-1@10.1.0.2!"]),
            (EKS, &["ledger-0@10.2.0.1", "10.2.0.7"]),
        ],
    );
    snapshot([
        import(
            "shop/checkout",
            &["127.11.64.1"],
            &[http.clone(), metrics],
            &[(HERE, &["127.11.1.1"]), (EKS, &["10.2.0.9"])],
        ),
        import(
            "shop/conformance",
            &["127.11.64.2"],
            &[port("tcp", Protocol::Tcp, 42), port("udp", Protocol::Udp, 42)],
            &[(HERE, &["127.11.1.1"])],
        ),
        import(
            "shop/plain",
            &["127.11.64.3"],
            &[port("", Protocol::Tcp, 25)],
            &[(EKS, &["10.2.0.9"])],
        ),
        import(
            "shop/dual",
            &["127.11.64.4", "2001:db8::4"],
            std::slice::from_ref(&http),
            &[(GKE, &["10.3.0.9"])],
        ),
        ledger,
        import(
            "shop/idle",
            &[],
            std::slice::from_ref(&http),
            &[(EKS, &["10.2.0.1!"])],
        ),
        import(
            "shop/draining",
            &[],
            std::slice::from_ref(&http),
            &[(EKS, &["d-0@10.2.0.1~", "d-1@10.2.0.2!"])],
        ),
        import(
            "six/many",
            &[],
            &[http.clone(), port("metrics", Protocol::Tcp, 9090)],
            &[(GKE, &["m-0@10.3.0.8", "m-1@10.3.0.9"]), (EKS, &["m-0@10.2.0.8"])],
        ),
        import(
            "six/pods",
            &[],
            &[http, port("", Protocol::Udp, 80)],
            &[(GKE, &["p-0@10.3.0.1", "p-0@2001:db8::1", "2001:db8::2"])],
        ),
    ])
}
