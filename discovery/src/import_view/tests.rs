use tombolo_clusterset::endpoint::{IpFamily, Protocol};
use tombolo_clusterset::export::SessionAffinity;
use tombolo_clusterset::{Endpoint, Label, Locality, LossPolicy, ServiceSpec};

use super::*;

/// A clusterset in the making: this cluster is `here`; `near` shares its network, `far` does not.
struct World {
    site: ClusterSite,
    watch: WatchState,
    watched: Watched,
    exports: BTreeMap<ServiceKey, Arc<Export>>,
    vips: VipBook,
    view: ImportView,
}

fn id(text: &str) -> ClusterId {
    ClusterId::parse(text).unwrap()
}

fn key() -> ServiceKey {
    ServiceKey::parse("shop/web").unwrap()
}

fn port(name: &str, number: u16) -> ServicePort {
    ServicePort {
        name: name.to_owned(),
        protocol: Protocol::Tcp,
        port: number,
        app_protocol: String::new(),
    }
}

/// An export with one slice that serves each port at its number plus 8000.
fn export(cluster: &str, kind: ServiceType, ports: &[(&str, u16)], endpoints: &[&str]) -> Export {
    let spec = ServiceSpec {
        service_type: kind,
        ports: ports.iter().map(|(name, number)| port(name, *number)).collect(),
        ip_families: vec![IpFamily::V4],
        session_affinity: SessionAffinity::None,
        session_affinity_timeout_seconds: None,
        internal_traffic_policy: "Cluster".to_owned(),
        traffic_distribution: String::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    };
    let endpoint = |address: &&str| Endpoint {
        address: address.parse().unwrap(),
        readiness: Readiness::Ready,
        hostname: None,
        zone: String::new(),
        node: String::new(),
    };
    let slice = EndpointSlice {
        name: "s".to_owned(),
        family: IpFamily::V4,
        ports: ports
            .iter()
            .map(|(name, number)| SlicePort {
                name: (*name).to_owned(),
                protocol: Protocol::Tcp,
                port: number + 8000,
            })
            .collect(),
        endpoints: endpoints.iter().map(endpoint).collect(),
    };
    Export {
        key: key(),
        cluster: id(cluster),
        uid: format!("uid-{cluster}"),
        claimed_created_ms: 5,
        spec,
        loss_policy: LossPolicy::Degrade,
        slices: vec![slice],
    }
}

impl World {
    fn new() -> Self {
        let site = ClusterSite {
            cluster: id("here"),
            locality: Locality {
                region: "r".to_owned(),
                ..Locality::default()
            },
            network: Label::parse("lan").unwrap(),
            data_dir: "unused".into(),
        };
        let mut world = Self {
            site,
            watch: WatchState::default(),
            watched: Watched {
                incarnation: 1,
                revision: 7,
                ..Watched::default()
            },
            exports: BTreeMap::new(),
            vips: VipBook::new(vec!["127.11.64.0/20".parse().unwrap()]),
            view: ImportView::default(),
        };
        for (cluster, network) in [("here", "lan"), ("near", "lan"), ("far", "wan")] {
            let view = ClusterView {
                id: id(cluster),
                locality: Locality::default(),
                network: Label::parse(network).unwrap(),
                gateways: Vec::new(),
                lease: Lease::Alive,
            };
            world.watched.members.insert(id(cluster), view);
        }
        world
    }

    /// The broker admitted it as the n-th.
    fn admit(&mut self, admitted: u64, export: Export) {
        let record = ExportRecord {
            created_ms: admitted,
            admitted,
            export,
        };
        let cluster = record.export.cluster.clone();
        self.watched
            .records
            .entry(key())
            .or_default()
            .insert(cluster, Arc::new(record));
    }

    fn offer(&mut self, export: Export) {
        self.exports.insert(key(), Arc::new(export));
    }

    fn refresh(&mut self) -> Option<Arc<Import>> {
        let inputs = Inputs {
            site: &self.site,
            watched: &self.watched,
            exports: &self.exports,
            now_unix_ms: 1,
        };
        self.view.refresh(inputs, &mut self.vips, None);
        self.watch = WatchState::restored(self.watched.clone(), 3);
        self.view
            .snapshot(&self.watch, &self.site, &[], 1)
            .imports
            .get(&key())
            .cloned()
    }

    fn ready(&self) -> &Condition {
        self.view.import_conditions().next().unwrap().1
    }
}

/// "cluster: port>endpoint-port ..., address ..." of each cluster.
fn summary(import: &Import) -> Vec<String> {
    let one = |(cluster, imported): (&ClusterId, &ImportedCluster)| {
        let ports: Vec<String> = imported
            .ports
            .iter()
            .map(|port| {
                let at = imported
                    .slices
                    .iter()
                    .find_map(|slice| slice.port(&port.name, port.protocol));
                format!(
                    "{}={}>{}",
                    port.name,
                    port.port,
                    at.map_or("-".to_owned(), |at| at.to_string())
                )
            })
            .collect();
        let addresses: Vec<String> = endpoints(&imported.slices)
            .iter()
            .map(ToString::to_string)
            .collect();
        format!("{cluster}: {} at {}", ports.join(" "), addresses.join(" "))
    };
    import.clusters.iter().map(one).collect()
}

const VIP: ServiceType = ServiceType::ClusterSetIp;

#[test]
fn all_exporters_make_one_import() {
    let mut world = World::new();
    world.admit(1, export("far", VIP, &[("http", 80)], &["10.0.0.1"]));
    world.admit(2, export("here", VIP, &[("http", 80)], &["10.0.0.1"]));
    world.offer(export("here", VIP, &[("http", 80)], &["10.0.0.2", "10.0.0.3"]));
    let import = world.refresh().unwrap();
    assert_eq!(
        summary(&import),
        [
            "far: http=80>8080 at 10.0.0.1",
            "here: http=80>8080 at 10.0.0.2 10.0.0.3"
        ],
        "own endpoints come from the manifests, not from the broker"
    );
    assert_eq!(import.ips.len(), 1);
    assert_eq!(world.ready().status, Status::True);
    assert!(world.view.conflicts(&key()).is_empty());
    let again = world.refresh().unwrap();
    assert!(Arc::ptr_eq(&import, &again), "what did not change is shared");
}

#[test]
fn ports_keep_to_the_clusters_that_expose_them() {
    let mut world = World::new();
    world.admit(1, export("far", VIP, &[("http", 80)], &["10.0.0.1"]));
    world.admit(
        2,
        export("near", VIP, &[("web", 80), ("admin", 81)], &["10.0.0.2"]),
    );
    world.admit(3, export("here", VIP, &[("http", 8081)], &["10.0.0.3"]));
    world.offer(export("here", VIP, &[("http", 8081)], &["10.0.0.3"]));
    let import = world.refresh().unwrap();
    let ports: Vec<(&str, u16)> = import
        .spec
        .ports
        .iter()
        .map(|port| (port.name.as_str(), port.port))
        .collect();
    assert!(
        ports.contains(&("http", 80)) && ports.contains(&("admin", 81)),
        "{ports:?}"
    );
    for (cluster, imported) in &import.clusters {
        for port in &imported.ports {
            assert!(
                import.spec.ports.contains(port),
                "{cluster}: {port:?} is a merged port"
            );
        }
    }
    let near = &import.clusters[&id("near")];
    assert_eq!(near.slices[0].port("admin", Protocol::Tcp), Some(8081));
    let here = &import.clusters[&id("here")];
    assert!(
        here.slices
            .iter()
            .all(|slice| slice.port("http", Protocol::Tcp).is_none()),
        "its http is another number: {here:?}"
    );
    assert_eq!(world.view.conflicts(&key())[0].0, Conflict::Port);
}

#[test]
fn grants_and_membership_filter_endpoints_and_never_the_merge() {
    let mut world = World::new();
    world.admit(1, export("far", VIP, &[("http", 80)], &["10.0.0.1"]));
    world.admit(2, export("near", VIP, &[("http", 81)], &["10.0.0.2"]));
    world
        .watched
        .grants
        .by_export
        .insert((key(), id("far")), BTreeSet::from([id("near")]));
    let import = world.refresh().unwrap();
    assert!(!import.clusters.contains_key(&id("far")), "not granted to here");
    assert_eq!(
        import.spec.ports[0].port, 80,
        "far is older and still wins the merge"
    );
    world
        .watched
        .grants
        .by_export
        .insert((key(), id("near")), BTreeSet::new());
    assert_eq!(world.refresh(), None, "nothing is left to call");
    world.watched.grants.by_export.clear();
    world.watched.members.remove(&id("far"));
    let import = world.refresh().unwrap();
    assert_eq!(
        import.clusters.keys().collect::<Vec<_>>(),
        [&id("near")],
        "far is no member any more"
    );
}

#[test]
fn own_endpoints_need_no_broker() {
    let mut world = World::new();
    world.watched = Watched::default();
    world.offer(export("here", VIP, &[("http", 80)], &["10.0.0.2"]));
    assert_eq!(
        summary(&world.refresh().unwrap()),
        ["here: http=80>8080 at 10.0.0.2"]
    );
    world.exports.clear();
    assert_eq!(
        world.refresh(),
        None,
        "an export that leaves the manifests is gone at once"
    );
}

#[test]
fn an_export_that_was_not_admitted_never_takes_precedence() {
    let mut world = World::new();
    world.admit(9, export("far", VIP, &[("http", 80)], &["10.0.0.1"]));
    world.offer(export(
        "here",
        ServiceType::Headless,
        &[("http", 80)],
        &["10.0.0.2"],
    ));
    let import = world.refresh().unwrap();
    assert_eq!(
        import.spec.service_type, VIP,
        "the others do not know of ours yet"
    );
    assert_eq!(import.clusters.len(), 2);
    world
        .watched
        .grants
        .reserved
        .insert(key().namespace, BTreeSet::from([id("far")]));
    let import = world.refresh().unwrap();
    assert_eq!(import.clusters.len(), 1, "the namespace is reserved for far");
    assert!(
        world
            .view
            .snapshot(&world.watch, &world.site, &[], 1)
            .exports
            .is_empty()
    );
}

#[test]
fn a_spec_that_was_edited_merges_as_admitted() {
    let mut world = World::new();
    world.admit(1, export("here", VIP, &[("http", 80)], &["10.0.0.1"]));
    world.admit(2, export("far", VIP, &[("http", 80)], &["10.0.0.9"]));
    world.offer(export("here", VIP, &[("http", 90)], &["10.0.0.2"]));
    let import = world.refresh().unwrap();
    assert_eq!(
        import.spec.ports,
        [port("http", 80)],
        "as all other clusters merge it until the broker has the new one"
    );
    let snapshot = world.view.snapshot(&world.watch, &world.site, &[], 1);
    assert_eq!(
        snapshot.exports[&key()].spec.ports,
        [port("http", 90)],
        "the gateway admits what stands in the manifests"
    );
}

#[test]
fn headless_endpoints_on_other_networks_get_stand_ins() {
    let mut world = World::new();
    for (admitted, cluster, address) in [
        (1, "far", "10.0.0.1"),
        (2, "near", "10.0.0.2"),
        (3, "here", "10.0.0.3"),
    ] {
        world.admit(
            admitted,
            export(cluster, ServiceType::Headless, &[("http", 80)], &[address]),
        );
    }
    world.offer(export(
        "here",
        ServiceType::Headless,
        &[("http", 80)],
        &["10.0.0.3"],
    ));
    let import = world.refresh().unwrap();
    assert!(import.ips.is_empty());
    let stand_ins: Vec<usize> = import
        .clusters
        .values()
        .map(|imported| imported.stand_ins.len())
        .collect();
    assert_eq!(stand_ins, [1, 0, 0], "far, here, near");
    let stand_in = import.clusters[&id("far")].stand_ins[&"10.0.0.1".parse::<IpAddr>().unwrap()];
    world.watched.records.clear();
    world.exports.clear();
    assert_eq!(world.refresh(), None);
    assert_eq!(world.vips.held(&Holder::import(&key(), IpFamily::V4)), None);
    world.admit(
        1,
        export("far", ServiceType::Headless, &[("http", 80)], &["10.0.0.1"]),
    );
    let again = world.refresh().unwrap();
    assert_eq!(
        again.clusters[&id("far")]
            .stand_ins
            .values()
            .copied()
            .collect::<Vec<_>>(),
        [stand_in],
        "its own again"
    );
}

#[test]
fn stand_ins_are_bounded_and_say_so() {
    let mut world = World::new();
    let addresses: Vec<String> = (0..=MAX_STAND_INS)
        .map(|number| format!("10.0.1.{number}"))
        .collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    world.admit(
        1,
        export("far", ServiceType::Headless, &[("http", 80)], &addresses),
    );
    let import = world.refresh().unwrap();
    assert_eq!(import.clusters[&id("far")].stand_ins.len(), MAX_STAND_INS);
    assert_eq!(world.ready().status, Status::True);
    assert!(
        world.ready().message.contains("only the first 64"),
        "{:?}",
        world.ready()
    );
}

#[test]
fn an_import_without_an_address_says_why() {
    let mut world = World::new();
    world.vips = VipBook::new(vec!["127.11.64.0/32".parse().unwrap()]);
    world.admit(1, export("far", VIP, &[("http", 80)], &["10.0.0.1"]));
    let import = world.refresh().unwrap();
    assert!(import.ips.is_empty());
    assert_eq!(world.ready().status, Status::False);
    assert!(
        world
            .ready()
            .message
            .contains("127.11.64.0/32 has no free address"),
        "{:?}",
        world.ready()
    );
    let mut v6 = export("far", VIP, &[("http", 80)], &[]);
    v6.spec.ip_families = vec![IpFamily::V6, IpFamily::V4];
    let mut world = World::new();
    world.admit(1, v6);
    let import = world.refresh().unwrap();
    assert_eq!(
        (import.ips.len(), import.spec.ip_families.as_slice()),
        (1, [IpFamily::V4].as_slice()),
        "the family it has a range for"
    );
}

#[test]
fn leases_count_only_while_the_broker_is_fresh() {
    let mut world = World::new();
    world.refresh();
    let snapshot = world
        .view
        .snapshot(&world.watch, &world.site, &["127.0.0.1:7443".parse().unwrap()], 1);
    assert!(!snapshot.fresh);
    assert!(
        snapshot
            .clusters
            .values()
            .all(|view| view.lease == Lease::Unknown)
    );
    assert_eq!(
        snapshot.clusters[&id("here")].gateways.len(),
        1,
        "what we know of ourselves"
    );
    assert_eq!(
        (
            snapshot.version.incarnation,
            snapshot.version.revision,
            snapshot.confirmed_unix_ms
        ),
        (1, 7, 3)
    );
}

#[test]
fn dirty_services_are_enough() {
    let mut world = World::new();
    world.admit(1, export("far", VIP, &[("http", 80)], &["10.0.0.1"]));
    let before = world.refresh().unwrap();
    world.admit(1, export("far", VIP, &[("http", 80)], &["10.0.0.7"]));
    let inputs = Inputs {
        site: &world.site,
        watched: &world.watched,
        exports: &world.exports,
        now_unix_ms: 1,
    };
    world
        .view
        .refresh(inputs, &mut world.vips, Some(&BTreeSet::from([key()])));
    let after = world.view.snapshot(&world.watch, &world.site, &[], 1).imports[&key()].clone();
    assert_eq!(summary(&after), ["far: http=80>8080 at 10.0.0.7"]);
    assert_eq!(before.ips, after.ips);
    world.watched.records.clear();
    let inputs = Inputs {
        site: &world.site,
        watched: &world.watched,
        exports: &world.exports,
        now_unix_ms: 1,
    };
    world
        .view
        .refresh(inputs, &mut world.vips, Some(&BTreeSet::from([key()])));
    assert!(
        world
            .view
            .snapshot(&world.watch, &world.site, &[], 1)
            .imports
            .is_empty()
    );
    assert_eq!(
        world.vips.held(&Holder::import(&key(), IpFamily::V4)),
        None,
        "released"
    );
}
