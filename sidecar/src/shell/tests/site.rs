//! Cluster `home` with one sidecar, and what it talks to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tombolo_clusterset::endpoint::Protocol;
use tombolo_clusterset::{LinkState, Locality, Snapshot};
use tombolo_daemon::seam::net::Network;
use tombolo_daemon::{Seams, Shutdown};
use tombolo_trust::{
    CertStore, Identity, Intermediate, Root, Serial, SpiffeId, TrustState, TrustStore, new_key_and_csr,
};
use tombolo_tunnel::{
    Accept, Endpoint, EndpointConfig, FlowHeader, IncomingFlow, LocalIdentity, Refusal, Tunnel,
};
use tombolo_wire::convert::LinkReport;
use tombolo_wire::local::{ClusterSite, DrillFeed, LinkTable, LinksFeed, SnapshotFeed};

use crate::config::{Config, Inbound, Mode, Section};
use crate::fixtures::{self, cluster};
use crate::shell::run::{Error, Feeds, serve};

/// Longer than any case takes on a loaded machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

const DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) async fn in_time<T>(case: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, case)
        .await
        .expect("the case hangs")
}

/// Each site has addresses of its own.
static SITES: AtomicU8 = AtomicU8::new(1);

/// A clusterset's root.
pub(super) struct World(Root);

impl World {
    pub(super) fn new() -> Self {
        let wall = Seams::host().clock.wall();
        Self(Root::create("demo", serial(), wall).unwrap())
    }

    pub(super) fn identity(&self, id: &str, path: &str) -> LocalIdentity {
        let (id, wall) = (cluster(id), Seams::host().clock.wall());
        let (key, csr) = new_key_and_csr().unwrap();
        let cert = self
            .0
            .issue_intermediate(&csr, &id, serial(), wall, 30 * DAY)
            .unwrap();
        let intermediate = Intermediate::load(cert, &key).unwrap();
        let (key, csr) = new_key_and_csr().unwrap();
        let domain = self.0.trust_domain().clone();
        let name = SpiffeId::parse(&format!("spiffe://{domain}/cluster/{id}/{path}")).unwrap();
        let leaf = intermediate
            .issue_leaf(&csr, &name, serial(), wall, DAY / 4)
            .unwrap();
        let identity = Identity::new(vec![leaf, intermediate.cert().clone()], &key).unwrap();
        let trust = TrustState::new(domain, vec![self.0.cert().clone()], BTreeSet::new(), 1).unwrap();
        LocalIdentity::fixed(CertStore::new(identity), TrustStore::new(trust))
    }
}

fn serial() -> Serial {
    Serial::from_random([7; 16])
}

/// The sidecar, and the hands that feed it.
pub(super) struct Site {
    number: u8,
    pub(super) snapshot: Snapshot,
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    links: watch::Sender<Arc<LinkTable>>,
    _drills: watch::Sender<Option<tombolo_wire::local::RunningDrill>>,
    /// What the sidecar trusts.
    pub(super) trust: Arc<TrustStore>,
    pub(super) shutdown: Shutdown,
    pub(super) running: JoinHandle<Result<(), Error>>,
}

pub(super) const PORT: u16 = 8080;

impl Site {
    pub(super) fn start(world: &World) -> Self {
        Self::start_with(world, None)
    }

    /// With an inbound listener in front of `target`.
    pub(super) fn start_with(world: &World, inbound: Option<(SocketAddr, Mode)>) -> Self {
        let number = SITES.fetch_add(1, Ordering::Relaxed);
        Self::start_at(number, world, inbound, Seams::host())
    }

    /// On a network of its own.
    pub(super) fn start_on(world: &World, network: Arc<dyn Network>) -> Self {
        let seams = Seams {
            network,
            ..Seams::host()
        };
        Self::start_at(SITES.fetch_add(1, Ordering::Relaxed), world, None, seams)
    }

    /// A second sidecar on the same addresses, to its end.
    pub(super) async fn again(&self, world: &World) -> Result<(), Error> {
        in_time(Self::start_at(self.number, world, None, Seams::host()).running)
            .await
            .unwrap()
    }

    fn start_at(number: u8, world: &World, inbound: Option<(SocketAddr, Mode)>, seams: Seams) -> Self {
        let mut snapshot = Snapshot::empty(cluster("home"));
        snapshot.fresh = true;
        snapshot
            .clusters
            .insert(cluster("home"), fixtures::view("home", &[]));
        let config = Config {
            site: ClusterSite {
                cluster: cluster("home"),
                locality: Locality::default(),
                network: "home".parse().unwrap(),
                data_dir: "unused".into(),
            },
            section: Section {
                namespace: "shop".parse().unwrap(),
                service_account: "client".to_owned().try_into().unwrap(),
                range: format!("127.101.{number}.0/24").parse().unwrap(),
                admin: admin(number),
                inbound: inbound
                    .map(|(target, mode)| Inbound {
                        listen: inbound_address(number),
                        target,
                        mode,
                    })
                    .into_iter()
                    .collect(),
                interest: crate::config::Wanted::default(),
                capture: Some(SocketAddr::from(([127, 102, number, 3], 15001))),
            },
            vip_range: format!("127.100.{number}.0/24").parse().unwrap(),
        };
        let (snapshots, newest) = watch::channel(None);
        let (links, links_feed) = watch::channel(Arc::default());
        let (drills, drills_feed) = watch::channel(None);
        let feeds = Feeds {
            snapshots: SnapshotFeed::from_receiver(newest),
            links: LinksFeed::from_receiver(links_feed),
            drills: DrillFeed::from_receiver(drills_feed),
        };
        let identity = world.identity("home", "ns/shop/sa/client");
        let trust = Arc::clone(identity.trust());
        let shutdown = Shutdown::new(Duration::from_millis(500));
        let role = serve(config, feeds, async { Ok(identity) }, seams, shutdown.clone());
        let running = tokio::spawn(role);
        Self {
            number,
            snapshot,
            snapshots,
            links,
            _drills: drills,
            trust,
            shutdown,
            running,
        }
    }

    pub(super) fn vip(&self, last: u8) -> SocketAddr {
        SocketAddr::from(([127, 100, self.number, last], PORT))
    }

    pub(super) fn listener(&self, last: u8) -> SocketAddr {
        SocketAddr::from(([127, 101, self.number, last], PORT))
    }

    pub(super) fn inbound(&self) -> SocketAddr {
        inbound_address(self.number)
    }

    pub(super) fn capture(&self) -> SocketAddr {
        SocketAddr::from(([127, 102, self.number, 3], 15001))
    }

    /// A member with gateways.
    pub(super) fn member(&mut self, id: &str, gateways: &[SocketAddr]) {
        self.snapshot
            .clusters
            .insert(cluster(id), fixtures::view(id, gateways));
    }

    /// An import at the VIP that ends in `last`.
    pub(super) fn import(
        &mut self,
        service: &str,
        last: u8,
        protocol: Protocol,
        exporters: &[(&str, &[SocketAddr])],
    ) {
        let (vip, port) = (
            self.vip(last).ip().to_string(),
            fixtures::service_port(PORT, protocol),
        );
        fixtures::add_service(&mut self.snapshot, service, &vip, &port, exporters);
    }

    /// Publishes the snapshot and waits until the sidecar has taken it.
    pub(super) async fn publish(&self) {
        self.snapshots.send_replace(Some(Arc::new(self.snapshot.clone())));
        for import in self.snapshot.imports.values() {
            let Some(last) = import.ips.first() else { continue };
            let std::net::IpAddr::V4(vip) = last else { continue };
            if import.spec.ports[0].protocol == Protocol::Tcp {
                let listener = self.listener(vip.octets()[3]);
                // A connection that is closed at once is a flow like any other.
                in_time(retry(|| TcpStream::connect(listener))).await;
            }
        }
    }

    pub(super) fn link(&self, states: &[(&str, LinkState, u64)]) {
        let report = |(id, state, rtt): &(&str, LinkState, u64)| {
            let report = LinkReport {
                cluster: cluster(id),
                state: *state,
                rtt: Some(Duration::from_millis(*rtt)),
                transport: String::new(),
                peer: String::new(),
                reversed: false,
                reason: String::new(),
            };
            (cluster(id), report)
        };
        self.links
            .send_replace(Arc::new(states.iter().map(report).collect::<BTreeMap<_, _>>()));
    }

    /// What the admin server answers.
    pub(super) async fn admin(&self, path: &str) -> String {
        let mut stream = in_time(retry(|| TcpStream::connect(admin(self.number)))).await;
        let request = format!("GET {path} HTTP/1.1\r\nHost: sidecar\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Waits until the admin server's answer holds `text`.
    pub(super) async fn admin_says(&self, path: &str, text: &str) {
        let wait = async {
            while !self.admin(path).await.contains(text) {
                tokio::task::yield_now().await;
            }
        };
        in_time(wait).await;
    }
}

fn admin(number: u8) -> SocketAddr {
    SocketAddr::from(([127, 102, number, 2], 7442))
}

fn inbound_address(number: u8) -> SocketAddr {
    SocketAddr::from(([127, 102, number, 1], 7445))
}

/// Tries until it succeeds; the caller bounds the time.
pub(super) async fn retry<T, E, F: Future<Output = Result<T, E>>>(attempt: impl Fn() -> F) -> T {
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

/// Says its name and a newline, then echoes, half-close included.
pub(super) async fn backend(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(echo(name, stream));
        }
    });
    address
}

async fn echo(name: &str, mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) {
    if stream.write_all(format!("{name}\n").as_bytes()).await.is_err() {
        return;
    }
    let (mut reader, mut writer) = tokio::io::split(stream);
    if tokio::io::copy(&mut reader, &mut writer).await.is_ok() {
        drop(writer.shutdown().await);
    }
}

pub(super) async fn udp_backend(name: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_535];
        while let Ok((len, peer)) = socket.recv_from(&mut buffer).await {
            let answer = [name.as_bytes(), b":", &buffer[..len]].concat();
            drop(socket.send_to(&answer, peer).await);
        }
    });
    address
}

/// An address where nobody listens.
pub(super) async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

/// Plays the gateway of another cluster: its flows reach a backend of its name.
pub(super) struct Remote {
    pub(super) endpoint: Endpoint,
    pub(super) address: SocketAddr,
    pub(super) headers: mpsc::UnboundedReceiver<FlowHeader>,
}

struct Backend {
    name: &'static str,
    refusal: Option<Refusal>,
    headers: mpsc::UnboundedSender<FlowHeader>,
}

impl Accept for Backend {
    fn tunnel(&self, _tunnel: Tunnel) {}

    fn flow(&self, flow: IncomingFlow) -> BoxFuture<'static, ()> {
        drop(self.headers.send(flow.header().clone()));
        let (name, refusal) = (self.name, self.refusal);
        Box::pin(async move {
            match (refusal, flow.header().protocol) {
                (Some(refusal), _) => flow.refuse(refusal, "as the test wants").await,
                (None, Protocol::Udp) => {
                    let Ok(mut flow) = flow.accept_udp().await else {
                        return;
                    };
                    while let Some(payload) = flow.recv().await {
                        let answer = [name.as_bytes(), b":", &payload[..]].concat();
                        drop(flow.send(answer.into()).await);
                    }
                }
                (None, _) => {
                    if let Ok(flow) = flow.accept().await {
                        echo(name, flow).await;
                    }
                }
            }
        })
    }
}

impl Remote {
    pub(super) async fn start(world: &World, name: &'static str, refusal: Option<Refusal>) -> Self {
        let (sender, headers) = mpsc::unbounded_channel();
        let handler = Arc::new(Backend {
            name,
            refusal,
            headers: sender,
        });
        let config = EndpointConfig::gateway(cluster(name), Some("127.0.0.1:0".parse().unwrap()));
        let identity = world.identity(name, "role/gateway");
        let endpoint = Endpoint::bind(config, identity, Seams::host(), handler)
            .await
            .unwrap();
        let address = endpoint.local_addr().unwrap();
        Self {
            endpoint,
            address,
            headers,
        }
    }
}

/// The name of the backend that a new flow reaches; None when it is reset or ends before.
pub(super) async fn reached(listener: SocketAddr) -> Option<String> {
    let mut stream = in_time(TcpStream::connect(listener)).await.ok()?;
    name_of(&mut stream).await
}

/// Reads the line that a backend begins with.
pub(super) async fn name_of(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<String> {
    let mut name = String::new();
    loop {
        match in_time(stream.read_u8()).await {
            Ok(b'\n') => return Some(name),
            Ok(byte) => name.push(char::from(byte)),
            Err(_) => return None,
        }
    }
}

/// Sends, ends the own direction, and reads the echo to its end.
pub(super) async fn exchange(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    bytes: &[u8],
) -> std::io::Result<Vec<u8>> {
    stream.write_all(bytes).await?;
    stream.shutdown().await?;
    let mut echoed = Vec::new();
    in_time(stream.read_to_end(&mut echoed)).await?;
    Ok(echoed)
}
