//! A small clusterset for the tests of what commands print: west (here, alive) and east (lease lost, link up).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tombolo_clusterset::endpoint::{IpFamily, Protocol};
use tombolo_clusterset::export::SessionAffinity;
use tombolo_clusterset::{
    ClusterId, ClusterView, Endpoint, EndpointSlice, Export, ExportRecord, Import, ImportedCluster, Label,
    Lease, LinkState, Locality, LossPolicy, Readiness, ServiceKey, ServicePort, ServiceSpec, ServiceType,
    SlicePort, Snapshot,
};
use tombolo_wire::convert::LinkReport;
use tombolo_wire::v1;

use crate::operator::local::Observed;
use crate::up::SiteNote;

pub(crate) const TYPE_CONFLICT: &str = "type is ClusterSetIP in west (oldest, wins) but Headless in east";

pub(crate) fn id(text: &str) -> ClusterId {
    ClusterId::parse(text).expect("a valid id")
}

pub(crate) fn key() -> ServiceKey {
    ServiceKey::parse("shop/checkout").expect("a valid key")
}

fn member(cluster: &str, region: &str, block: u8, lease: Lease) -> (ClusterId, ClusterView) {
    let view = ClusterView {
        id: id(cluster),
        locality: Locality {
            region: region.into(),
            zone: format!("{region}-1"),
            node: String::new(),
        },
        network: Label::parse(cluster).expect("a label"),
        gateways: vec![format!("127.{block}.0.2:7443").parse().expect("an address")],
        lease,
    };
    (id(cluster), view)
}

fn spec(service_type: ServiceType) -> ServiceSpec {
    let http = ServicePort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: 8080,
        app_protocol: String::new(),
    };
    ServiceSpec {
        service_type,
        ports: vec![http],
        ip_families: vec![IpFamily::V4],
        session_affinity: SessionAffinity::None,
        session_affinity_timeout_seconds: None,
        internal_traffic_policy: String::new(),
        traffic_distribution: String::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    }
}

fn slices(endpoints: &[(&str, &str, Readiness)]) -> Vec<EndpointSlice> {
    let endpoint = |(address, zone, readiness): &(&str, &str, Readiness)| Endpoint {
        address: address.parse().expect("an address"),
        readiness: *readiness,
        hostname: None,
        zone: (*zone).to_owned(),
        node: String::new(),
    };
    vec![EndpointSlice {
        name: "slice".into(),
        family: IpFamily::V4,
        ports: vec![SlicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        endpoints: endpoints.iter().map(endpoint).collect(),
    }]
}

fn of_west() -> Vec<EndpointSlice> {
    slices(&[
        ("127.11.1.1", "eu-1", Readiness::Ready),
        ("127.11.1.2", "eu-1", Readiness::NotReady),
    ])
}

fn of_east() -> Vec<EndpointSlice> {
    slices(&[("127.12.1.1", "", Readiness::Ready)])
}

fn record(
    cluster: &str,
    created_ms: u64,
    service_type: ServiceType,
    slices: Vec<EndpointSlice>,
) -> ExportRecord {
    let export = Export {
        key: key(),
        cluster: id(cluster),
        uid: cluster.into(),
        claimed_created_ms: created_ms,
        spec: spec(service_type),
        loss_policy: LossPolicy::Degrade,
        slices,
    };
    ExportRecord {
        export,
        admitted: created_ms,
        created_ms,
    }
}

pub(crate) fn condition(name: &str, status: &str, reason: &str, message: &str) -> v1::Condition {
    v1::Condition {
        r#type: name.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
    }
}

fn status(name: &str, conditions: Vec<v1::Condition>) -> v1::ExportStatus {
    let key = v1::ServiceKey {
        namespace: "shop".into(),
        name: name.into(),
    };
    v1::ExportStatus {
        key: Some(key),
        conditions,
    }
}

/// As the processes of west see it.
pub(crate) fn west() -> Observed {
    let mut snapshot = Snapshot::empty(id("west"));
    snapshot.fresh = true;
    snapshot.confirmed_unix_ms = 1_000;
    snapshot.clusters = BTreeMap::from([
        member("west", "eu", 11, Lease::Alive),
        member("east", "us", 12, Lease::Lost),
    ]);
    let imported = |slices| ImportedCluster {
        ports: spec(ServiceType::ClusterSetIp).ports,
        slices,
        loss_policy: LossPolicy::Degrade,
        stand_ins: BTreeMap::new(),
    };
    let import = Import {
        key: key(),
        spec: spec(ServiceType::ClusterSetIp),
        ips: vec!["127.11.64.1".parse().expect("an address")],
        clusters: BTreeMap::from([
            (id("west"), imported(of_west())),
            (id("east"), imported(of_east())),
        ]),
    };
    snapshot.imports = BTreeMap::from([(key(), Arc::new(import))]);
    let link = LinkReport {
        cluster: id("east"),
        state: LinkState::Up,
        rtt: Some(Duration::from_micros(1_500)),
        transport: "quic".into(),
        peer: "127.12.0.2:7443".into(),
        reversed: false,
        reason: String::new(),
    };
    let records = [
        record("west", 100, ServiceType::ClusterSetIp, of_west()),
        record("east", 200, ServiceType::Headless, of_east()),
    ];
    let fine = |conflict| {
        vec![
            condition("Valid", "True", "Valid", "fine"),
            condition("Ready", "True", "Exported", "published"),
            conflict,
        ]
    };
    let inspect = v1::InspectReply {
        records: records.iter().map(Into::into).collect(),
        exports: vec![
            status(
                "checkout",
                fine(condition("Conflict", "True", "TypeConflict", TYPE_CONFLICT)),
            ),
            status(
                "ghost",
                vec![
                    condition("Valid", "False", "NoService", "no Service of this name"),
                    condition("Ready", "False", "Failed", "see Valid"),
                    condition("Conflict", "False", "NoConflicts", "all agree"),
                ],
            ),
        ],
        imports: vec![status(
            "checkout",
            vec![condition("Ready", "False", "Pending", "the range is exhausted")],
        )],
        broker: "127.10.0.1:7400".into(),
        confirmed_unix_ms: 1_000,
        fresh: true,
        ..v1::InspectReply::default()
    };
    let note = SiteNote {
        dns: "127.11.0.10:5353".parse().expect("an address"),
        gateway: "127.11.0.2:7443".parse().expect("an address"),
        admin: BTreeMap::new(),
        config: "/west/cluster.toml".into(),
    };
    Observed {
        cluster: id("west"),
        snapshot: Arc::new(snapshot),
        links: BTreeMap::from([(id("east"), link)]),
        inspect,
        note: Some(note),
    }
}

/// East, whose gateway does not answer.
pub(crate) fn silent_gateway() -> Observed {
    let west = west();
    let mut snapshot = (*west.snapshot).clone();
    snapshot.cluster = id("east");
    Observed {
        cluster: id("east"),
        snapshot: Arc::new(snapshot),
        links: BTreeMap::new(),
        inspect: v1::InspectReply::default(),
        note: None,
    }
}
