//! What operators apply in a run: a handful of services that several clusters export, with differences to merge.

use std::net::{IpAddr, Ipv4Addr};

use rand::Rng;
use rand::rngs::StdRng;
use tombolo_clusterset::endpoint::{IpFamily, Protocol};
use tombolo_clusterset::export::SessionAffinity;
use tombolo_clusterset::{
    Endpoint, EndpointSlice, Label, LossPolicy, Readiness, ServiceKey, ServicePort, SlicePort,
};
use tombolo_discovery::manifest::{ExportManifest, Manifests, ServiceKind, ServiceManifest, SliceManifest};

/// Services of a run; the last two are headless.
const KEYS: [&str; 5] = [
    "shop/cart",
    "shop/checkout",
    "bank/ledger",
    "shop/db",
    "bank/queue",
];

/// Every service there can be.
#[must_use]
pub fn keys() -> Vec<ServiceKey> {
    KEYS.iter()
        .filter_map(|key| ServiceKey::parse(key).ok())
        .collect()
}

/// Changes one service in the manifests of cluster `number`: new, other, or gone.
pub fn change(manifests: &mut Manifests, number: usize, rng: &mut StdRng) -> String {
    let keys = keys();
    let at = rng.random_range(0..keys.len());
    let key = keys[at].clone();
    if manifests.exports.contains_key(&key) && rng.random_bool(0.25) {
        manifests.exports.remove(&key);
        manifests.services.remove(&key);
        manifests.slices.remove(&key);
        return format!("c{number} withdraws {key}");
    }
    let is_headless = at >= 3;
    let port = |name: &str, port| ServicePort {
        name: name.to_owned(),
        protocol: Protocol::Tcp,
        port,
        app_protocol: String::new(),
    };
    let mut ports = vec![port("http", 80)];
    if rng.random_bool(0.3) {
        ports.push(port(
            "admin",
            9000 + u16::try_from(number).unwrap_or_default() % 2,
        ));
    }
    let backends = rng.random_range(0..4_u8);
    let slice = EndpointSlice {
        name: format!("{}-1", key.name.as_str()),
        family: IpFamily::V4,
        ports: ports
            .iter()
            .map(|port| SlicePort {
                name: port.name.clone(),
                protocol: port.protocol,
                port: 8080,
            })
            .collect(),
        endpoints: (0..backends)
            .map(|backend| endpoint(number, at, backend, rng))
            .collect(),
    };
    let affinity = if rng.random_bool(0.2) {
        SessionAffinity::ClientIp
    } else {
        SessionAffinity::None
    };
    let service = ServiceManifest {
        line: 1,
        key: key.clone(),
        kind: if is_headless {
            ServiceKind::Headless
        } else {
            ServiceKind::ClusterIp
        },
        ports,
        ip_families: vec![IpFamily::V4],
        session_affinity: affinity,
        session_affinity_timeout_seconds: (affinity == SessionAffinity::ClientIp).then_some(10_800),
        internal_traffic_policy: "Cluster".to_owned(),
        traffic_distribution: String::new(),
    };
    let policies = [
        LossPolicy::Keep,
        LossPolicy::Degrade,
        LossPolicy::Degrade,
        LossPolicy::Withdraw,
    ];
    let export = ExportManifest {
        line: 1,
        key: key.clone(),
        uid: None,
        created_ms: None,
        labels: [("team".to_owned(), format!("t{}", rng.random_range(0..3)))].into(),
        annotations: std::collections::BTreeMap::new(),
        loss_policy: policies[rng.random_range(0..policies.len())],
    };
    let slices = [(
        slice.name.clone(),
        SliceManifest {
            line: 1,
            service: key.clone(),
            slice,
        },
    )]
    .into();
    manifests.slices.insert(key.clone(), slices);
    manifests.services.insert(key.clone(), service);
    manifests.exports.insert(key.clone(), export);
    format!("c{number} exports {key} with {backends} endpoints")
}

fn endpoint(number: usize, service: usize, backend: u8, rng: &mut StdRng) -> Endpoint {
    let octet = |value: usize| u8::try_from(value).unwrap_or(u8::MAX);
    let readiness = match rng.random_range(0..6) {
        0 => Readiness::NotReady,
        1 => Readiness::Terminating,
        _ => Readiness::Ready,
    };
    Endpoint {
        address: IpAddr::V4(Ipv4Addr::new(10, 1 + octet(number), octet(service), 1 + backend)),
        readiness,
        hostname: Label::parse(&format!("pod-{backend}")).ok(),
        zone: String::new(),
        node: String::new(),
    }
}
