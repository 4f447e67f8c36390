//! A clusterset of two: `west` dials, `east` listens.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tombolo_clusterset::endpoint::Protocol;
use tombolo_clusterset::{ClusterId, ServiceKey};
use tombolo_daemon::seam::Seams;
use tombolo_trust::{
    CertStore, CertificateDer, Fingerprint, Identity, Intermediate, Root, Serial, SpiffeId, TrustState,
    TrustStore, new_key_and_csr,
};

use crate::{
    Accept, Endpoint, EndpointConfig, FlowHeader, IncomingFlow, LocalIdentity, Refusal, Transport,
    TransportChoice, Tunnel, forward,
};

/// Longer than any case takes on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

const DAY: Duration = Duration::from_secs(24 * 3600);

pub(crate) async fn run(patience: Duration, case: impl Future<Output = ()>) {
    tokio::time::timeout(patience, case)
        .await
        .expect("the case hangs");
}

pub(crate) fn cluster_id(name: &str) -> ClusterId {
    ClusterId::parse(name).unwrap()
}

/// A clusterset's root and the identities under it.
pub(crate) struct World {
    pub(crate) root: Root,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            root: Root::create("demo", serial(), SystemTime::now()).unwrap(),
        }
    }

    pub(crate) fn member(&self, name: &str) -> Member {
        let (key, csr) = new_key_and_csr().unwrap();
        let cert = self
            .root
            .issue_intermediate(&csr, &cluster_id(name), serial(), SystemTime::now(), 30 * DAY)
            .unwrap();
        Member {
            cluster: cluster_id(name),
            intermediate: Intermediate::load(cert, &key).unwrap(),
        }
    }

    pub(crate) fn trust(&self, denied: &[&Member]) -> TrustState {
        let keys = denied.iter().map(|member| member.key()).collect::<BTreeSet<_>>();
        TrustState::new(
            self.root.trust_domain().clone(),
            vec![self.root.cert().clone()],
            keys,
            1,
        )
        .unwrap()
    }

    pub(crate) fn identity(&self, member: &Member, path: &str) -> LocalIdentity {
        LocalIdentity::fixed(
            CertStore::new(member.leaf(path)),
            TrustStore::new(self.trust(&[])),
        )
    }
}

pub(crate) fn serial() -> Serial {
    Serial::from_random([7; 16])
}

/// A cluster's intermediate.
pub(crate) struct Member {
    pub(crate) cluster: ClusterId,
    pub(crate) intermediate: Intermediate,
}

impl Member {
    pub(crate) fn id(&self, path: &str) -> SpiffeId {
        let text = format!(
            "spiffe://{}/cluster/{}/{path}",
            self.intermediate.trust_domain(),
            self.cluster
        );
        SpiffeId::parse(&text).unwrap()
    }

    pub(crate) fn chain(&self, csr: &[u8], path: &str) -> Vec<CertificateDer<'static>> {
        let leaf = self
            .intermediate
            .issue_leaf(csr, &self.id(path), serial(), SystemTime::now(), DAY / 4)
            .unwrap();
        vec![leaf, self.intermediate.cert().clone()]
    }

    pub(crate) fn leaf(&self, path: &str) -> Identity {
        let (key, csr) = new_key_and_csr().unwrap();
        Identity::new(self.chain(&csr, path), &key).unwrap()
    }

    pub(crate) fn key(&self) -> Fingerprint {
        tombolo_trust::cert::fingerprint(self.intermediate.cert()).unwrap()
    }
}

/// What a site's handler tells the test.
#[derive(Debug)]
pub(crate) enum Told {
    Tunnel(Tunnel),
    /// A flow to service `hang` came in.
    Hanging,
    /// Its opener gave up.
    Abandoned,
}

/// Serves flows by the name of the service that they call.
pub(crate) struct Backend {
    told: mpsc::UnboundedSender<Told>,
}

impl Accept for Backend {
    fn tunnel(&self, tunnel: Tunnel) {
        drop(self.told.send(Told::Tunnel(tunnel)));
    }

    fn flow(&self, flow: IncomingFlow) -> BoxFuture<'static, ()> {
        Box::pin(serve(flow, self.told.clone()))
    }
}

async fn serve(mut flow: IncomingFlow, told: mpsc::UnboundedSender<Told>) {
    let header = flow.header().clone();
    let name = header.service.name.as_str();
    if header.protocol == Protocol::Udp {
        let Ok(mut flow) = flow.accept_udp().await else {
            return;
        };
        while let Some(payload) = flow.recv().await {
            if flow.send(payload).await.is_err() {
                return;
            }
        }
        return;
    }
    match name {
        "echo" => {
            let Ok(flow) = flow.accept().await else { return };
            let (mut reader, mut writer) = tokio::io::split(flow);
            if tokio::io::copy(&mut reader, &mut writer).await.is_ok() {
                drop(writer.shutdown().await);
            }
        }
        // Accepts, and never reads.
        "sink" => {
            let Ok(flow) = flow.accept().await else { return };
            flow_is_kept(flow).await;
        }
        "hang" => {
            drop(told.send(Told::Hanging));
            flow.abandoned().await;
            drop(told.send(Told::Abandoned));
        }
        // To the backend whose port is the service port.
        "tcp" => match TcpStream::connect(("127.0.0.1", header.port)).await {
            Ok(backend) => {
                let Ok(flow) = flow.accept().await else { return };
                forward(backend.into(), flow).await;
            }
            Err(error) => flow.refuse(Refusal::BackendRefused, &error.to_string()).await,
        },
        _ => {
            let refusal = Refusal::ALL
                .into_iter()
                .find(|refusal| refusal.as_str().replace('_', "-") == name);
            flow.refuse(refusal.unwrap_or(Refusal::NotExported), "as the test asked")
                .await;
        }
    }
}

async fn flow_is_kept(flow: crate::Flow) {
    let _flow = flow;
    std::future::pending().await
}

/// One gateway.
pub(crate) struct Site {
    pub(crate) member: Member,
    pub(crate) identity: LocalIdentity,
    pub(crate) endpoint: Endpoint,
    pub(crate) told: mpsc::UnboundedReceiver<Told>,
}

impl Site {
    pub(crate) async fn start(world: &World, name: &str, adjust: impl FnOnce(&mut EndpointConfig)) -> Self {
        let member = world.member(name);
        let identity = world.identity(&member, "role/gateway");
        let mut config = EndpointConfig::gateway(member.cluster.clone(), Some(loopback()));
        config.ping_every = Duration::from_millis(20);
        adjust(&mut config);
        let (sender, told) = mpsc::unbounded_channel();
        let handler = Arc::new(Backend { told: sender });
        let endpoint = Endpoint::bind(config, identity.clone(), Seams::host(), handler)
            .await
            .unwrap();
        Self {
            member,
            identity,
            endpoint,
            told,
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.endpoint.local_addr().unwrap()
    }

    pub(crate) fn header(&self, service: &str, port: u16) -> FlowHeader {
        FlowHeader {
            service: ServiceKey::parse(&format!("shop/{service}")).unwrap(),
            port,
            protocol: Protocol::Tcp,
            endpoint: None,
            source: self.member.id("ns/shop/sa/client"),
            client: "127.0.0.1:40000".parse().unwrap(),
            traceparent: None,
        }
    }

    /// The next tunnel that a peer opened.
    pub(crate) async fn tunnel(&mut self) -> Tunnel {
        match self.told.recv().await {
            Some(Told::Tunnel(tunnel)) => tunnel,
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

pub(crate) fn choice(transport: Transport) -> TransportChoice {
    match transport {
        Transport::Quic => TransportChoice::Quic,
        Transport::H2 => TransportChoice::H2,
    }
}

/// West has a tunnel to east.
pub(crate) struct Pair {
    pub(crate) world: World,
    pub(crate) west: Site,
    pub(crate) east: Site,
    /// West's end.
    pub(crate) tunnel: Tunnel,
    /// East's end.
    pub(crate) inbound: Tunnel,
}

impl Pair {
    pub(crate) async fn new(transport: Transport) -> Self {
        Self::adjusted(transport, |_| ()).await
    }

    pub(crate) async fn adjusted(transport: Transport, adjust: impl Fn(&mut EndpointConfig)) -> Self {
        let world = World::new();
        let west = Site::start(&world, "west", &adjust).await;
        let mut east = Site::start(&world, "east", &adjust).await;
        let tunnel = west
            .endpoint
            .dial(east.addr(), &east.member.cluster, choice(transport))
            .await
            .unwrap();
        let inbound = east.tunnel().await;
        assert_eq!(
            (tunnel.transport(), tunnel.cluster()),
            (transport, &east.member.cluster)
        );
        assert_eq!(inbound.cluster(), &west.member.cluster);
        Self {
            world,
            west,
            east,
            tunnel,
            inbound,
        }
    }

    /// A client's connection that is forwarded to a backend's: TCP, tunnel, TCP.
    pub(crate) async fn through(&self) -> (TcpStream, TcpStream) {
        let backend = TcpListener::bind(loopback()).await.unwrap();
        let header = self.west.header("tcp", backend.local_addr().unwrap().port());
        let (flow, accepted) = tokio::join!(self.tunnel.open(&header), backend.accept());
        let (client, entry) = connected().await;
        tokio::spawn(forward(entry.into(), flow.unwrap()));
        (client, accepted.unwrap().0)
    }

    /// That the tunnel still carries flows.
    pub(crate) async fn assert_carries(&self) {
        let mut flow = self.tunnel.open(&self.west.header("echo", 1)).await.unwrap();
        flow.write_all(b"ping").await.unwrap();
        let mut heard = [0; 4];
        flow.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"ping");
    }
}

/// Both ends of a TCP connection.
pub(crate) async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let (client, accepted) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    (client.unwrap(), accepted.unwrap().0)
}

/// Bytes that betray a lost, doubled or moved piece.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .take(len)
    .collect()
}
