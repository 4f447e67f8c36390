//! The agent as a whole: real sockets, real files, a broker that does what the test says.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod broker;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use broker::FakeBroker;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tombolo_clusterset::{ClusterId, Label, Lease, Locality, ServiceKey, Snapshot};
use tombolo_daemon::seam::Seams;
use tombolo_daemon::seam::clock::ManualClock;
use tombolo_daemon::shutdown::Shutdown;
use tombolo_discovery::{Config, Error, JoinArgs, JoinError, Section, join};
use tombolo_wire::local::{ClusterSite, DrillFeed, Interest, SnapshotFeed, connect_uds};
use tombolo_wire::v1;
use tombolo_wire::v1::agent_client::AgentClient;
use tombolo_wire::v1::entry::Entry;

const WAIT: Duration = Duration::from_secs(20);

/// One cluster's directory, and its agent while it runs.
struct Site {
    dir: tempfile::TempDir,
    config: Config,
    running: Option<(Shutdown, JoinHandle<Result<(), Error>>)>,
}

impl Site {
    fn new(cluster: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("manifests")).unwrap();
        let config = Config {
            site: ClusterSite {
                cluster: ClusterId::parse(cluster).unwrap(),
                locality: Locality {
                    region: "here".into(),
                    ..Locality::default()
                },
                network: Label::parse(cluster).unwrap(),
                data_dir: dir.path().join("data"),
            },
            section: Section {
                manifests: dir.path().join("manifests"),
                vip_range: "127.11.64.0/20".parse().unwrap(),
                vip_range_v6: None,
                admin: "127.0.0.1:0".parse().unwrap(),
                leaf_ttl_hours: 12,
            },
            gateways: vec!["127.0.0.1:7443".parse().unwrap()],
        };
        std::fs::create_dir_all(&config.site.data_dir).unwrap();
        Self {
            dir,
            config,
            running: None,
        }
    }

    async fn joined(cluster: &str, broker: &FakeBroker) -> Self {
        let site = Self::new(cluster);
        site.join(&broker.token(cluster, 1), broker.address())
            .await
            .unwrap();
        site
    }

    async fn join(&self, token: &str, broker: SocketAddr) -> Result<tombolo_discovery::Joined, JoinError> {
        join(self.args(token, broker), &Seams::host()).await
    }

    fn args(&self, token: &str, broker: SocketAddr) -> JoinArgs {
        JoinArgs {
            token: token.to_owned(),
            brokers: vec![broker],
            config: self.config.clone(),
            replace: false,
        }
    }

    fn write(&self, name: &str, endpoints: &[&str]) {
        let list: Vec<String> = endpoints
            .iter()
            .map(|address| format!("{{addresses: [{address}]}}"))
            .collect();
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: [{{name: http, port: 80}}]}}\n---\n\
             apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {{name: {name}, namespace: shop}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-1, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}\n\
             addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints: [{}]\n",
            list.join(", ")
        );
        let path = self.config.section.manifests.join(format!("{name}.yaml"));
        let scratch = path.with_extension("new");
        std::fs::write(&scratch, text).unwrap();
        std::fs::rename(scratch, path).unwrap();
    }

    fn start(&mut self) {
        let shutdown = Shutdown::new(Duration::from_secs(5));
        let task = tokio::spawn(tombolo_discovery::run(
            self.config.clone(),
            Seams::host(),
            shutdown.clone(),
        ));
        self.running = Some((shutdown, task));
    }

    async fn stop(&mut self) {
        let (shutdown, task) = self.running.take().unwrap();
        shutdown.begin(Instant::now());
        timeout(WAIT, task)
            .await
            .expect("the agent ends")
            .unwrap()
            .unwrap();
    }

    fn feed(&self) -> SnapshotFeed {
        let socket = self.config.site.agent_socket();
        SnapshotFeed::start(
            &socket,
            self.config.site.cluster.clone(),
            Interest::default(),
            Seams::host(),
        )
    }

    fn client(&self) -> AgentClient<tonic::transport::Channel> {
        AgentClient::new(connect_uds(&self.config.site.agent_socket()))
    }

    /// Asks the agent until it answers.
    async fn inspect(&self) -> v1::InspectReply {
        let ask = async {
            loop {
                if let Ok(reply) = self.client().inspect(v1::InspectRequest {}).await {
                    return reply.into_inner();
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(WAIT, ask).await.expect("the agent answers")
    }
}

/// Waits for a snapshot that `holds`.
async fn until(feed: &SnapshotFeed, what: &str, holds: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
    let mut newest = feed.receiver();
    let found = timeout(
        WAIT,
        newest.wait_for(|snapshot| snapshot.as_deref().is_some_and(&holds)),
    )
    .await;
    match found {
        Ok(found) => found.unwrap().clone().unwrap(),
        Err(_) => panic!("{what}: last seen {:#?}", feed.current()),
    }
}

/// Waits until `holds`.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(10)).await;
    }
}

fn key(name: &str) -> ServiceKey {
    ServiceKey::parse(&format!("shop/{name}")).unwrap()
}

fn cluster(id: &str) -> ClusterId {
    ClusterId::parse(id).unwrap()
}

fn addresses(snapshot: &Snapshot, service: &str, from: &str) -> Vec<String> {
    let import = snapshot.imports.get(&key(service));
    let slices = import
        .and_then(|import| import.clusters.get(&cluster(from)))
        .map(|imported| imported.slices.as_slice());
    let endpoints = slices
        .unwrap_or_default()
        .iter()
        .flat_map(|slice| &slice.endpoints);
    endpoints.map(|endpoint| endpoint.address.to_string()).collect()
}

/// An export of another cluster.
fn remote(name: &str, from: &str, address: [u8; 4]) -> v1::Export {
    let port = v1::ServicePort {
        name: "http".into(),
        protocol: v1::Protocol::Tcp.into(),
        port: 80,
        app_protocol: String::new(),
    };
    v1::Export {
        key: Some((&key(name)).into()),
        cluster: from.to_owned(),
        uid: format!("{name}-{from}"),
        claimed_created_ms: 1_000,
        spec: Some(v1::ServiceSpec {
            service_type: v1::ServiceType::ClusterSetIp.into(),
            ports: vec![port],
            ip_families: vec![v1::IpFamily::V4.into()],
            session_affinity: v1::SessionAffinity::None.into(),
            internal_traffic_policy: "Cluster".into(),
            ..Default::default()
        }),
        loss_policy: v1::LossPolicy::Degrade.into(),
        slices: vec![v1::EndpointSlice {
            name: "s".into(),
            family: v1::IpFamily::V4.into(),
            ports: vec![v1::SlicePort {
                name: "http".into(),
                protocol: v1::Protocol::Tcp.into(),
                port: 8080,
            }],
            endpoints: vec![v1::Endpoint {
                address: address.to_vec().into(),
                readiness: v1::Readiness::Ready.into(),
                ..Default::default()
            }],
        }],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_publishes_watches_and_outlives_its_brokers() {
    let mut broker = FakeBroker::start();
    let mut site = Site::joined("west", &broker).await;
    site.write("web", &["127.0.0.5"]);
    broker.core.member("east", v1::Lease::Alive);
    broker.core.admit(remote("web", "east", [127, 0, 0, 9]));
    site.start();
    let feed = site.feed();

    let first = until(&feed, "both clusters serve it", |snapshot| {
        snapshot.fresh
            && addresses(snapshot, "web", "west") == ["127.0.0.5"]
            && addresses(snapshot, "web", "east") == ["127.0.0.9"]
    })
    .await;
    let vip: IpAddr = first.imports[&key("web")].ips[0];
    assert_eq!(first.clusters[&cluster("east")].lease, Lease::Alive);
    assert!(first.exports.contains_key(&key("web")));
    eventually("the broker has the export", || {
        broker.core.exports() == ["export shop/web east", "export shop/web west"]
    })
    .await;
    eventually("the lease is renewed", || broker.core.renewals() > 2).await;

    broker.core.member("east", v1::Lease::Lost);
    until(&feed, "a lease is lost", |snapshot| {
        snapshot.clusters[&cluster("east")].lease == Lease::Lost
    })
    .await;

    broker.stop();
    let alone = until(&feed, "the broker is gone", |snapshot| !snapshot.fresh).await;
    assert_eq!(
        alone.clusters[&cluster("east")].lease,
        Lease::Unknown,
        "nobody to say so"
    );
    site.write("web", &["127.0.0.5", "127.0.0.6"]);
    let grown = until(&feed, "a local pod counts with no broker", |snapshot| {
        addresses(snapshot, "web", "west").len() == 2
    })
    .await;
    assert_eq!(
        addresses(&grown, "web", "east"),
        ["127.0.0.9"],
        "the other cluster stays"
    );
    assert!(grown.version > first.version);

    site.stop().await;
    site.start();
    let cached = until(&site.feed(), "starts with no broker", |snapshot| {
        !snapshot.fresh && snapshot.imports.len() == 1
    })
    .await;
    assert_eq!(cached.imports[&key("web")].ips, [vip], "the address is the same");
    assert_eq!(addresses(&cached, "web", "east"), ["127.0.0.9"]);
    assert_eq!(addresses(&cached, "web", "west").len(), 2);
    assert!(
        cached.version > grown.version,
        "{:?} after {:?}",
        cached.version,
        grown.version
    );

    broker.restart();
    let back = until(&feed, "the broker is back", |snapshot| snapshot.fresh).await;
    assert!(back.version > cached.version);
    eventually("the new endpoint is published", || {
        broker.core.exports().len() == 2
    })
    .await;
    std::fs::remove_file(site.config.section.manifests.join("web.yaml")).unwrap();
    eventually("the export is withdrawn", || {
        broker.core.exports() == ["export shop/web east"]
    })
    .await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_started_with_no_broker_is_not_behind_what_it_served() {
    let mut broker = FakeBroker::start();
    let mut site = Site::joined("west", &broker).await;
    site.write("web", &["127.0.0.5"]);
    broker.core.member("east", v1::Lease::Alive);
    site.start();
    let feed = site.feed();
    until(&feed, "fresh", |snapshot| {
        snapshot.fresh && snapshot.clusters.contains_key(&cluster("east"))
    })
    .await;
    eventually("published", || broker.core.exports().len() == 1).await;
    broker
        .core
        .delete("member east", v1::entry_key::Key::Member("east".to_owned()));
    until(&feed, "evicted", |snapshot| {
        !snapshot.clusters.contains_key(&cluster("east"))
    })
    .await;
    let bytes = std::fs::read(site.config.site.data_dir.join("snapshot.bin")).unwrap();
    let cached = tombolo_discovery::cache::decode(&cluster("west"), &bytes).unwrap();
    assert!(
        !cached.watched.members.contains_key(&cluster("east")),
        "an eviction is stored before it is served"
    );

    for _ in 0..5 {
        broker.core.commit_unseen();
    }
    let told = site.inspect().await.confirmed_unix_ms;
    broker.core.commit_unseen();
    let deadline = Instant::now() + WAIT;
    while site.inspect().await.confirmed_unix_ms <= told {
        assert!(Instant::now() < deadline, "the broker's word arrives");
    }
    broker.stop();
    let lost = until(&feed, "the broker is gone", |snapshot| !snapshot.fresh).await;
    site.stop().await;
    site.write("web", &["127.0.0.5", "127.0.0.6"]);
    site.start();
    let after = until(&feed, "a role that saw more takes the new snapshot", |snapshot| {
        addresses(snapshot, "web", "west").len() == 2
    })
    .await;
    assert!(
        after.version > lost.version,
        "{:?} after {:?}",
        after.version,
        lost.version
    );
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn inspect_tells_conditions_and_errors() {
    let broker = FakeBroker::start();
    let mut site = Site::joined("west", &broker).await;
    site.write("web", &["127.0.0.5"]);
    site.write("refused", &["127.0.0.5"]);
    std::fs::write(site.config.section.manifests.join("bad.yaml"), "kind: [\n").unwrap();
    let alone = "apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {name: nothing, namespace: shop}\n";
    std::fs::write(site.config.section.manifests.join("alone.yaml"), alone).unwrap();
    site.start();
    until(&site.feed(), "fresh", |snapshot| {
        snapshot.fresh && snapshot.exports.len() == 2
    })
    .await;
    let deadline = Instant::now() + WAIT;
    let reply = loop {
        let reply = site.inspect().await;
        let ready = |name: &str| condition(&reply, name, "Ready").map(|(status, reason, _)| (status, reason));
        if ready("web") == Some(("True".into(), "Exported".into()))
            && ready("refused").is_some_and(|(_, reason)| reason == "Failed")
        {
            break reply;
        }
        assert!(Instant::now() < deadline, "{reply:#?}");
    };
    assert_eq!(condition(&reply, "nothing", "Valid").unwrap().1, "NoService");
    assert_eq!(
        condition(&reply, "refused", "Ready").unwrap().2,
        "the broker's test refuses this name"
    );
    assert_eq!(condition(&reply, "web", "Conflict").unwrap().1, "NoConflicts");
    assert_eq!(
        (
            reply.manifest_errors.len(),
            reply.manifest_errors[0].file.as_str()
        ),
        (1, "bad.yaml")
    );
    assert_eq!(reply.broker, broker.address().to_string());
    assert!(
        reply.fresh
            && reply.confirmed_unix_ms > 0
            && reply.intermediate_not_after_unix_ms > reply.confirmed_unix_ms
    );

    let mut other = remote("web", "east", [127, 0, 0, 9]);
    other.spec.as_mut().unwrap().ports[0].port = 81;
    broker.core.member("east", v1::Lease::Alive);
    broker.core.admit(other);
    let deadline = Instant::now() + WAIT;
    loop {
        let (status, reason, message) = condition(&site.inspect().await, "web", "Conflict").unwrap();
        if status == "True" {
            assert_eq!(reason, "PortConflict", "{message}");
            break;
        }
        assert!(Instant::now() < deadline, "no conflict was told");
    }
    site.stop().await;
}

fn condition(reply: &v1::InspectReply, service: &str, kind: &str) -> Option<(String, String, String)> {
    let export = reply
        .exports
        .iter()
        .find(|export| export.key.as_ref().is_some_and(|key| key.name == service))?;
    let found = export
        .conditions
        .iter()
        .find(|condition| condition.r#type == kind)?;
    Some((found.status.clone(), found.reason.clone(), found.message.clone()))
}

#[tokio::test(flavor = "multi_thread")]
async fn leaves_name_this_cluster_only() {
    let broker = FakeBroker::start();
    let mut site = Site::joined("west", &broker).await;
    site.start();
    until(&site.feed(), "fresh", |snapshot| snapshot.fresh).await;
    let (key, csr) = tombolo_trust::new_key_and_csr().unwrap();
    let ask = |subject: &str| {
        let request = v1::IssueLeafRequest {
            subject: subject.to_owned(),
            csr: csr.to_vec().into(),
        };
        let mut client = site.client();
        async move { client.issue_leaf(request).await.map(tonic::Response::into_inner) }
    };
    for subject in ["role/gateway", "role/dns", "role/sidecar", "ns/shop/sa/client"] {
        let reply = ask(subject).await.unwrap();
        let chain: Vec<_> = reply
            .chain
            .iter()
            .map(|cert| tombolo_trust::CertificateDer::from(cert.to_vec()))
            .collect();
        let identity = tombolo_trust::Identity::new(chain, &key).unwrap();
        assert!(
            identity
                .id()
                .to_string()
                .ends_with(&format!("/cluster/west/{subject}")),
            "{}",
            identity.id()
        );
        assert_eq!(reply.trust.unwrap().roots.len(), 1);
    }
    for subject in [
        "role/agent",
        "role/king",
        "",
        "../east/role/gateway",
        "role/gateway/../../east",
        "broker/1",
        "ns/shop",
    ] {
        let status = ask(subject).await.unwrap_err();
        assert!(
            matches!(
                status.code(),
                tonic::Code::InvalidArgument | tonic::Code::PermissionDenied
            ),
            "{subject}: {status}"
        );
    }
    let mut client = site.client();
    let junk = v1::IssueLeafRequest {
        subject: "role/dns".into(),
        csr: vec![7; 99].into(),
    };
    assert!(
        client
            .issue_leaf(junk)
            .await
            .unwrap_err()
            .message()
            .contains("signing request")
    );
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_that_fails_says_why_and_writes_nothing() {
    let broker = FakeBroker::start();
    let other = FakeBroker::start();
    let site = Site::new("west");
    let token = broker.token("west", 1);
    let nobody: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let text = |result: Result<tombolo_discovery::Joined, JoinError>| result.unwrap_err().to_string();

    assert!(text(site.join("tmb1.nonsense", broker.address()).await).starts_with("the token cannot be used"));
    let foreign = text(site.join(&broker.token("east", 2), broker.address()).await);
    assert!(
        foreign.contains("the token is for cluster east, and the configuration says west"),
        "{foreign}"
    );
    let unreached = text(site.join(&token, nobody).await);
    assert!(
        unreached.contains("no broker could be reached:\n  127.0.0.1:1: cannot connect"),
        "{unreached}"
    );
    let elsewhere = text(site.join(&token, other.address()).await);
    assert!(
        elsewhere.contains("is not of the clusterset that made this token")
            && elsewhere.contains("check the address, and that the token is of this clusterset"),
        "{elsewhere}"
    );
    assert!(
        !site.config.site.data_dir.join("identity").exists(),
        "nothing was written"
    );

    let joined = site.join(&token, broker.address()).await.unwrap();
    assert_eq!(joined.brokers, [broker.address().to_string()]);
    assert!(matches!(
        site.join(&token, broker.address()).await,
        Err(JoinError::AlreadyJoined { .. })
    ));
    let again = Site::new("west");
    let used = again.join(&token, broker.address()).await;
    assert!(matches!(used, Err(JoinError::TokenRefused { .. })), "{used:?}");
    assert!(!again.dir.path().join("data/identity/cert.pem").exists());

    tombolo_discovery::leave(&site.config, &Seams::host())
        .await
        .unwrap();
    assert!(!Path::new(&joined.identity).join("key.pem").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_is_told_silences_and_reports() {
    let mut broker = FakeBroker::start();
    let mut site = Site::joined("west", &broker).await;
    site.start();
    let feed = site.feed();
    until(&feed, "fresh", |snapshot| snapshot.fresh).await;
    eventually("the lease is renewed", || broker.core.renewals() > 1).await;
    let drills = DrillFeed::start(&site.config.site.agent_socket(), Seams::host());
    let drill = v1::Drill {
        id: 50,
        kind: v1::DrillKind::ClusterDown.into(),
        target: "west".into(),
        from: "east".into(),
        service: Some((&key("web")).into()),
        rate_per_second: 10,
        baseline_ms: 0,
        duration_ms: 3_000,
        recovery_ms: 500,
        ..Default::default()
    };
    broker.core.apply("drill", Entry::Drill(drill));
    eventually("the drill is told", || drills.current().is_some()).await;
    // One renewal may have been on its way.
    sleep(Duration::from_millis(300)).await;
    let (silent, granted) = (broker.core.renewals(), broker.core.grants());
    sleep(Duration::from_millis(1_500)).await;
    assert_eq!(broker.core.renewals(), silent, "six renewals would have come");
    assert_eq!(broker.core.grants(), granted, "it owes no confirmation");
    eventually("the lease is renewed again", || broker.core.renewals() > silent).await;
    eventually("the drill ends by itself", || drills.current().is_none()).await;

    broker.stop();
    site.client()
        .report_drill(v1::DrillReport {
            drill: 50,
            ..Default::default()
        })
        .await
        .unwrap();
    broker.restart();
    eventually("the report arrives once a broker is back", || {
        broker.core.reports() == 1
    })
    .await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_stored_holds_up_nothing_else() {
    let broker = FakeBroker::start();
    let mut site = Site::joined("west", &broker).await;
    site.write("web", &["127.0.0.5"]);
    broker.core.member("east", v1::Lease::Alive);
    broker.core.admit(remote("far", "east", [127, 0, 0, 9]));
    site.start();
    let feed = site.feed();
    let first = until(&feed, "both imports", |snapshot| {
        snapshot.fresh && snapshot.imports.len() == 2
    })
    .await;
    eventually("published", || broker.core.exports().len() == 2).await;

    // A directory in its place: neither file can be replaced.
    let files = ["vips.json", "exports.json"].map(|name| site.config.site.data_dir.join(name));
    for file in &files {
        std::fs::remove_file(file).unwrap();
        std::fs::create_dir_all(file.join("full")).unwrap();
    }
    site.write("new", &["127.0.0.6"]);
    broker.core.admit(remote("late", "east", [127, 0, 0, 10]));
    broker.core.admit(remote("far", "east", [127, 0, 0, 11]));
    let without = until(&feed, "updates arrive", |snapshot| {
        addresses(snapshot, "far", "east") == ["127.0.0.11"]
            && ["new", "late"]
                .iter()
                .all(|name| snapshot.imports.contains_key(&key(name)))
    })
    .await;
    for name in ["web", "far"] {
        let (before, after) = (&first.imports[&key(name)], &without.imports[&key(name)]);
        assert_eq!(before.ips, after.ips, "{name} keeps its address");
    }
    for name in ["new", "late"] {
        assert!(without.imports[&key(name)].ips.is_empty(), "{name} has none yet");
    }
    let reply = site.inspect().await;
    let late = reply
        .imports
        .iter()
        .find(|import| import.key.as_ref().is_some_and(|key| key.name == "late"));
    let message = &late.unwrap().conditions[0].message;
    assert!(message.contains("cannot be stored"), "{message}");
    assert!(
        !broker.core.exports().contains(&"export shop/new west".to_owned()),
        "its UID is not stored"
    );

    for file in &files {
        std::fs::remove_dir_all(file).unwrap();
    }
    until(&feed, "all have addresses once there is room", |snapshot| {
        snapshot.imports.len() == 4 && snapshot.imports.values().all(|import| !import.ips.is_empty())
    })
    .await;
    eventually("and all is published", || {
        broker.core.exports().contains(&"export shop/new west".to_owned())
    })
    .await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_cut_off_is_left() {
    let broker = FakeBroker::start();
    let mut site = Site::joined("west", &broker).await;
    site.start();
    let feed = site.feed();
    until(&feed, "fresh", |snapshot| snapshot.fresh).await;
    eventually("the lease is renewed", || broker.core.renewals() > 1).await;
    assert_eq!(broker.core.grants(), 1);

    broker.core.set_confirms(false);
    eventually("no lease is confirmed", || broker.core.grants() > 1).await;
    broker.core.set_confirms(true);
    until(&feed, "confirmed", |snapshot| snapshot.fresh).await;

    let before = broker.core.grants();
    broker.core.set_fresh(false);
    until(&feed, "stale", |snapshot| !snapshot.fresh).await;
    eventually("no quorum is heard", || broker.core.grants() > before).await;
    broker.core.set_fresh(true);
    until(&feed, "fresh again", |snapshot| snapshot.fresh).await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_superseded_agent_watches_on_and_publishes_no_more() {
    let broker = FakeBroker::start();
    let mut site = Site::joined("west", &broker).await;
    site.write("web", &["127.0.0.5"]);
    site.start();
    let feed = site.feed();
    eventually("published", || broker.core.exports().len() == 1).await;
    broker.core.supersede();
    site.write("more", &["127.0.0.5"]);
    broker.core.member("east", v1::Lease::Alive);
    broker.core.admit(remote("far", "east", [127, 0, 0, 9]));
    until(&feed, "it still sees the others", |snapshot| {
        snapshot.fresh && snapshot.imports.contains_key(&key("far"))
    })
    .await;
    let silent = broker.core.renewals();
    sleep(Duration::from_millis(700)).await;
    assert!(broker.core.renewals() <= silent + 1, "it renews no lease");
    assert_eq!(
        broker.core.exports(),
        ["export shop/far east", "export shop/web west"]
    );
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_names_a_duplicate_and_a_wrong_clock() {
    let broker = FakeBroker::start();
    let taken = Site::new("taken");
    let duplicate = taken.join(&broker.token("taken", 1), broker.address()).await;
    assert!(
        matches!(&duplicate, Err(JoinError::DuplicateId { .. })),
        "{duplicate:?}"
    );
    let replacing = JoinArgs {
        replace: true,
        ..taken.args(&broker.token("taken", 2), broker.address())
    };
    assert_eq!(
        join(replacing, &Seams::host()).await.unwrap().cluster,
        cluster("taken")
    );

    let late = Site::new("late");
    let clock = ManualClock::new(Instant::now(), SystemTime::now() - Duration::from_secs(3_600));
    let seams = Seams {
        clock: Arc::new(clock),
        ..Seams::host()
    };
    let skewed = join(late.args(&broker.token("late", 3), broker.address()), &seams).await;
    assert!(matches!(&skewed, Err(JoinError::ClockSkew { .. })), "{skewed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn random_bytes_at_the_socket_harm_nobody() {
    let broker = FakeBroker::start();
    let mut site = Site::joined("west", &broker).await;
    site.start();
    let feed = site.feed();
    until(&feed, "fresh", |snapshot| snapshot.fresh).await;
    let mut rng = rand::rngs::StdRng::seed_from_u64(7);
    for length in [1, 24, 300, 5_000] {
        let mut bytes = vec![0; length];
        rng.fill(bytes.as_mut_slice());
        let mut stream = tokio::net::UnixStream::connect(site.config.site.agent_socket())
            .await
            .unwrap();
        // The agent may close before all is written.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let ended = timeout(WAIT, stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "{length} random bytes hold a connection");
    }
    assert!(site.inspect().await.fresh);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_waits_for_what_still_uses_the_old_root() {
    let broker = FakeBroker::start();
    let mut site = Site::joined("west", &broker).await;
    site.start();
    until(&site.feed(), "fresh", |snapshot| snapshot.fresh).await;
    let issue = || {
        let (_, csr) = tombolo_trust::new_key_and_csr().unwrap();
        let request = v1::IssueLeafRequest {
            subject: "role/gateway".to_owned(),
            csr: csr.to_vec().into(),
        };
        let mut client = site.client();
        async move { client.issue_leaf(request).await.unwrap().into_inner() }
    };
    let before = issue().await;
    eventually("the first bundle is acknowledged", || {
        broker.core.last_ack() == (1, String::new())
    })
    .await;
    broker.core.refuse_renewals(2);
    broker.core.rotate();
    eventually("the gateway's certificate lags", || {
        let (revision, lagging) = broker.core.last_ack();
        revision == 2 && lagging.contains("in use by") && lagging.contains("role/gateway")
    })
    .await;
    let requests = broker.core.renew_requests();
    assert_eq!(requests.len(), 3, "two were refused");
    assert!(
        requests.iter().all(|request| *request == requests[0]),
        "one key for one renewal"
    );
    let after = issue().await;
    assert_ne!(before.chain[1], after.chain[1], "another intermediate");
    assert_eq!(after.trust.unwrap().roots.len(), 2);
    eventually("nothing lags", || broker.core.last_ack() == (2, String::new())).await;
    site.stop().await;
    site.start();
    until(&site.feed(), "the renewed identity serves", |snapshot| {
        snapshot.roots.len() == 2
    })
    .await;
    site.stop().await;
}
