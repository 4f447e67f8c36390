//! A clusterset on this machine's loopback.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, SystemTime};

use tokio::task::JoinHandle;
use tombolo_clusterset::endpoint::{IpFamily, Protocol};
use tombolo_clusterset::export::SessionAffinity;
use tombolo_clusterset::snapshot::LocalExport;
use tombolo_clusterset::{
    ClusterId, ClusterView, Endpoint, EndpointSlice, Import, ImportedCluster, Label, Lease, LinkState,
    Locality, LossPolicy, Readiness, ServiceKey, ServicePort, ServiceSpec, ServiceType, SlicePort, Snapshot,
    Version,
};
use tombolo_daemon::{Seams, Shutdown, telemetry};
use tombolo_gateway::{Config, Error, LinkProfileName, Section, Transport};
use tombolo_trust::issue::INTERMEDIATE_TTL;
use tombolo_trust::{Intermediate, Root, Serial, new_key_and_csr};
use tombolo_wire::local::{ClusterSite, LinksFeed};

use crate::agent::{self, Desk};

/// Longest wait for a condition: generous, since the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Tests run at once: each has a block of addresses of its own.
static BLOCK: AtomicU8 = AtomicU8::new(1);

/// Waits until `condition` holds.
pub(crate) async fn eventually<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let found = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(found) = condition().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    found
        .await
        .unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

pub(crate) fn id(name: &str) -> ClusterId {
    ClusterId::parse(name).unwrap()
}

/// With `TOMBOLO_LOG=debug` a failing test tells its story.
fn log_when_asked() {
    if std::env::var_os(telemetry::FILTER_VARIABLE).is_some() {
        let identity = telemetry::Identity {
            role: "test".into(),
            cluster: "all".into(),
            version: "0".into(),
        };
        // Every test after the first finds it set up.
        drop(telemetry::init(&telemetry::Logs::default(), &identity));
    }
}

/// A service and who serves it where.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) name: &'static str,
    pub(crate) protocol: Protocol,
    pub(crate) headless: bool,
    pub(crate) backends: BTreeMap<&'static str, Vec<SocketAddr>>,
    /// Exporters that others believe in, and that do not export it (any more).
    pub(crate) phantoms: BTreeSet<&'static str>,
    /// None: all may call it.
    pub(crate) granted: Option<BTreeSet<&'static str>>,
    /// Number of its VIP.
    pub(crate) vip: u8,
}

impl Service {
    pub(crate) fn tcp(name: &'static str, vip: u8) -> Self {
        Self {
            name,
            protocol: Protocol::Tcp,
            headless: false,
            backends: BTreeMap::new(),
            phantoms: BTreeSet::new(),
            granted: None,
            vip,
        }
    }

    pub(crate) fn at(
        mut self,
        cluster: &'static str,
        backends: impl IntoIterator<Item = SocketAddr>,
    ) -> Self {
        self.backends.insert(cluster, backends.into_iter().collect());
        self
    }

    fn key(&self) -> ServiceKey {
        ServiceKey::parse(&format!("shop/{}", self.name)).unwrap()
    }

    fn spec(&self) -> ServiceSpec {
        ServiceSpec {
            service_type: if self.headless {
                ServiceType::Headless
            } else {
                ServiceType::ClusterSetIp
            },
            ports: vec![ServicePort {
                name: "main".into(),
                protocol: self.protocol,
                port: PORT,
                app_protocol: String::new(),
            }],
            ip_families: vec![IpFamily::V4],
            session_affinity: SessionAffinity::None,
            session_affinity_timeout_seconds: None,
            internal_traffic_policy: String::new(),
            traffic_distribution: String::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        }
    }

    fn slices(&self, cluster: &str) -> Vec<EndpointSlice> {
        let backends = self.backends.get(cluster).into_iter().flatten();
        let slice = |(at, backend): (usize, &SocketAddr)| EndpointSlice {
            name: format!("slice-{at}"),
            family: IpFamily::V4,
            ports: vec![SlicePort {
                name: "main".into(),
                protocol: self.protocol,
                port: backend.port(),
            }],
            endpoints: vec![Endpoint {
                address: backend.ip(),
                readiness: Readiness::Ready,
                hostname: None,
                zone: String::new(),
                node: String::new(),
            }],
        };
        backends.enumerate().map(slice).collect()
    }
}

/// Every service's port.
pub(crate) const PORT: u16 = 18_080;

/// The clusters of one test, and its block of addresses.
pub(crate) struct World {
    block: u8,
    root: Root,
    members: Vec<(&'static str, bool)>,
    services: Vec<Service>,
}

/// One gateway that runs.
pub(crate) struct Site {
    pub(crate) cluster: &'static str,
    pub(crate) desk: Desk,
    pub(crate) shutdown: Shutdown,
    pub(crate) gateway: JoinHandle<Result<(), Error>>,
    pub(crate) links: LinksFeed,
    pub(crate) admin: SocketAddr,
    listen: SocketAddr,
    _dir: tempfile::TempDir,
}

impl World {
    /// Clusters by name; `true`: it only dials out.
    pub(crate) fn new(members: &[(&'static str, bool)]) -> Self {
        log_when_asked();
        let block = BLOCK.fetch_add(1, Ordering::Relaxed);
        let root = Root::create("demo", Serial::from_random([1; 16]), SystemTime::now()).unwrap();
        Self {
            block,
            root,
            members: members.to_vec(),
            services: Vec::new(),
        }
    }

    pub(crate) fn with(mut self, service: Service) -> Self {
        self.services.push(service);
        self
    }

    /// An address of this test's block; a part of it follows the process, so that two runs of the tests stay apart.
    pub(crate) fn address(&self, host: u8, port: u16) -> SocketAddr {
        let process = u8::try_from(std::process::id() % 100).unwrap();
        SocketAddr::new(
            IpAddr::V4(Ipv4Addr::new(127, 100 + process, self.block, host)),
            port,
        )
    }

    /// Where clients of `cluster` find service number `vip`.
    pub(crate) fn vip(&self, cluster: &str, vip: u8) -> SocketAddr {
        self.address(self.base(cluster) + 10 + vip, PORT)
    }

    /// Where clients of `cluster` find the headless endpoint number `number` of another.
    pub(crate) fn stand_in(&self, cluster: &str, number: u8) -> IpAddr {
        self.address(self.base(cluster) + 25 + number, 0).ip()
    }

    /// Backend number `number` of `cluster`.
    pub(crate) fn backend(&self, cluster: &str, number: u8) -> SocketAddr {
        self.address(self.base(cluster) + 3 + number, 28_080)
    }

    fn base(&self, cluster: &str) -> u8 {
        let at = self
            .members
            .iter()
            .position(|(name, _)| *name == cluster)
            .unwrap();
        u8::try_from(1 + at * 40).unwrap()
    }

    fn listen(&self, cluster: &str) -> SocketAddr {
        self.address(self.base(cluster) + 1, 27_443)
    }

    /// What `here` sees.
    pub(crate) fn snapshot(&self, here: &str) -> Snapshot {
        let views = self.members.iter().map(|(name, outbound_only)| ClusterView {
            id: id(name),
            locality: Locality::default(),
            network: Label::parse(name).unwrap(),
            gateways: if *outbound_only {
                Vec::new()
            } else {
                vec![self.listen(name)]
            },
            lease: Lease::Alive,
        });
        let exports = self
            .services
            .iter()
            .filter(|service| service.backends.contains_key(here) && !service.phantoms.contains(here));
        let export = |service: &Service| LocalExport {
            key: service.key(),
            spec: service.spec(),
            slices: service.slices(here),
            granted: service
                .granted
                .as_ref()
                .map(|granted| granted.iter().map(|name| id(name)).collect()),
        };
        Snapshot {
            version: Version {
                incarnation: 1,
                revision: 1,
                local: 0,
            },
            cluster: id(here),
            fresh: true,
            confirmed_unix_ms: 1,
            clusters: views.map(|view| (view.id.clone(), view)).collect(),
            imports: self
                .services
                .iter()
                .map(|service| (service.key(), Arc::new(self.import(here, service))))
                .collect(),
            exports: exports
                .map(|service| (service.key(), Arc::new(export(service))))
                .collect(),
            roots: vec![self.root.cert().as_ref().to_vec()],
            denied: Vec::new(),
            trust_domain: self.root.trust_domain().to_string(),
        }
    }

    fn import(&self, here: &str, service: &Service) -> Import {
        let clusters = service.backends.iter().map(|(name, backends)| {
            let numbered = backends.iter().zip(0..);
            let stand_ins = numbered.map(|(backend, number)| (backend.ip(), self.stand_in(here, number)));
            let imported = ImportedCluster {
                ports: service.spec().ports,
                slices: service.slices(name),
                loss_policy: LossPolicy::Degrade,
                stand_ins: if service.headless && *name != here {
                    stand_ins.collect()
                } else {
                    BTreeMap::new()
                },
            };
            (id(name), imported)
        });
        let ips = if service.headless {
            Vec::new()
        } else {
            vec![self.vip(here, service.vip).ip()]
        };
        Import {
            key: service.key(),
            spec: service.spec(),
            ips,
            clusters: clusters.collect(),
        }
    }

    /// Starts the gateway of `cluster`.
    pub(crate) async fn start(&self, cluster: &'static str, transport: Transport) -> Site {
        self.start_with(cluster, transport, Duration::from_secs(30)).await
    }

    pub(crate) async fn start_with(
        &self,
        cluster: &'static str,
        transport: Transport,
        grace: Duration,
    ) -> Site {
        let outbound_only = self
            .members
            .iter()
            .any(|(name, outbound_only)| *name == cluster && *outbound_only);
        let dir = tempfile::tempdir().unwrap();
        let site = ClusterSite {
            cluster: id(cluster),
            locality: Locality::default(),
            network: Label::parse(cluster).unwrap(),
            data_dir: dir.path().to_owned(),
        };
        let desk = agent::start(
            &site.agent_socket(),
            self.intermediate(cluster),
            self.snapshot(cluster),
        )
        .await;
        let links = LinksFeed::start(&site.gateway_socket(), Seams::host());
        let admin = self.address(self.base(cluster), 27_422);
        let section = Section {
            listen: self.listen(cluster),
            advertise: None,
            outbound_only,
            transport,
            profile: LinkProfileName::Lan,
            admin,
            drain_seconds: 30,
        };
        let shutdown = Shutdown::new(grace);
        let gateway = tokio::spawn(tombolo_gateway::run(
            Config { site, section },
            Seams::host(),
            shutdown.clone(),
        ));
        Site {
            cluster,
            desk,
            shutdown,
            gateway,
            links,
            admin,
            listen: self.listen(cluster),
            _dir: dir,
        }
    }

    /// Starts every gateway and waits until each has a link to each.
    pub(crate) async fn start_all(&self, transport: Transport) -> Vec<Site> {
        let mut sites = Vec::new();
        for (cluster, _) in &self.members {
            sites.push(self.start(cluster, transport).await);
        }
        for site in &sites {
            site.wait_up(
                self.members
                    .iter()
                    .map(|(name, _)| *name)
                    .filter(|name| *name != site.cluster),
            )
            .await;
        }
        sites
    }

    fn intermediate(&self, cluster: &str) -> Intermediate {
        let (key, csr) = new_key_and_csr().unwrap();
        let serial = Serial::from_random([2; 16]);
        let cert = self
            .root
            .issue_intermediate(&csr, &id(cluster), serial, SystemTime::now(), INTERMEDIATE_TTL)
            .unwrap();
        Intermediate::load(cert, &key).unwrap()
    }
}

impl Site {
    /// Ends the gateway and waits until its addresses are free for the next one.
    pub(crate) async fn end(self) {
        self.shutdown.begin(tokio::time::Instant::now());
        self.gateway.await.unwrap().unwrap();
        eventually("addresses are free", async || {
            let tcp = [self.admin, self.listen].map(std::net::TcpListener::bind);
            let udp = std::net::UdpSocket::bind(self.listen);
            (tcp.iter().all(Result::is_ok) && udp.is_ok()).then_some(())
        })
        .await;
    }

    /// Publishes a changed snapshot.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Snapshot)) -> Arc<Snapshot> {
        let mut snapshot = self.desk.snapshots.borrow().as_ref().clone();
        change(&mut snapshot);
        snapshot.version.local += 1;
        let snapshot = Arc::new(snapshot);
        self.desk.snapshots.send_replace(Arc::clone(&snapshot));
        snapshot
    }

    /// Waits until the gateway serves its snapshot and has a link to each of `peers`.
    pub(crate) async fn wait_up(&self, peers: impl IntoIterator<Item = &'static str>) {
        for peer in peers {
            self.wait_state(peer, LinkState::Up).await;
        }
        self.wait_ready().await;
    }

    pub(crate) async fn wait_state(&self, peer: &str, state: LinkState) {
        let what = format!("link from {} to {peer} {state:?}", self.cluster);
        eventually(&what, async || (self.state_of(peer) == state).then_some(())).await;
    }

    pub(crate) fn state_of(&self, peer: &str) -> LinkState {
        self.links
            .current()
            .get(peer)
            .map_or(LinkState::Unknown, |report| report.state)
    }

    pub(crate) async fn wait_ready(&self) {
        eventually(&format!("{} ready", self.cluster), async || {
            let answer = self.http("/readyz").await?;
            answer.starts_with("HTTP/1.1 200").then_some(())
        })
        .await;
    }

    /// Head and body of an admin page.
    pub(crate) async fn http(&self, path: &str) -> Option<String> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(self.admin).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }

    pub(crate) async fn metrics(&self) -> String {
        self.http("/metrics").await.unwrap()
    }
}
