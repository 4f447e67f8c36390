//! Flows of the workload: where they go, and where they go next.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tombolo_clusterset::LinkState;
use tombolo_clusterset::endpoint::Protocol;
use tombolo_daemon::seam::net::{Accept, HostNetwork, Listener, Network, Stream};
use tombolo_tunnel::Refusal;

use super::site::{
    PORT, Remote, Site, World, backend, exchange, in_time, name_of, nobody, reached, retry, udp_backend,
};
use crate::fixtures::{cluster, key};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_endpoint_is_reached_straight() {
    let mut site = Site::start(&World::new());
    let local = backend("home").await;
    site.import("shop/checkout", 1, Protocol::Tcp, &[("home", &[local])]);
    site.publish().await;
    let mut stream = TcpStream::connect(site.listener(1)).await.unwrap();
    assert_eq!(name_of(&mut stream).await.as_deref(), Some("home"));
    let bytes = vec![7; 300_000];
    assert_eq!(exchange(stream, &bytes).await.unwrap(), bytes);
    let metrics = site.admin("/metrics").await;
    assert!(
        metrics.contains(r#"tombolo_sidecar_attempts_total{way="Endpoint",connected="true"}"#),
        "{metrics}"
    );
    assert!(site.admin("/readyz").await.ends_with("ready\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_remote_cluster_is_reached_through_a_tunnel_of_our_own() {
    let world = World::new();
    let mut site = Site::start(&world);
    let mut gke = Remote::start(&world, "gke", None).await;
    site.member("gke", &[gke.address]);
    site.import(
        "shop/checkout",
        1,
        Protocol::Tcp,
        &[("gke", &["10.0.0.7:80".parse().unwrap()])],
    );
    site.publish().await;
    let mut stream = TcpStream::connect(site.listener(1)).await.unwrap();
    assert_eq!(name_of(&mut stream).await.as_deref(), Some("gke"));
    let client = stream.local_addr().unwrap();
    let bytes = vec![7; 300_000];
    assert_eq!(exchange(stream, &bytes).await.unwrap(), bytes);
    // The first flow may be the probe that waited for the listener.
    let header = loop {
        let header = in_time(gke.headers.recv()).await.unwrap();
        if header.client == client {
            break header;
        }
    };
    assert_eq!(
        (header.service, header.port, header.endpoint),
        (key("shop/checkout"), 8080, None)
    );
    assert!(
        header
            .source
            .to_string()
            .ends_with("/cluster/home/ns/shop/sa/client"),
        "{}",
        header.source
    );
    site.admin_says("/state", r#""gke":{"rtt_ms":"#).await;
    assert_eq!(gke.endpoint.tunnels().len(), 1, "one tunnel per gateway");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flow_moves_on_when_its_first_candidate_refuses() {
    let world = World::new();
    let mut site = Site::start(&world);
    let gke = Remote::start(&world, "gke", None).await;
    site.member("gke", &[gke.address]);
    let exporters = [
        ("home", &[nobody().await][..]),
        ("gke", &["10.0.0.7:80".parse().unwrap()][..]),
    ];
    site.import("shop/checkout", 1, Protocol::Tcp, &exporters);
    site.publish().await;
    assert_eq!(reached(site.listener(1)).await.as_deref(), Some("gke"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusing_cluster_and_a_dead_gateway_are_left_behind() {
    let world = World::new();
    let mut site = Site::start(&world);
    let aks = Remote::start(&world, "aks", Some(Refusal::NoEndpoint)).await;
    let gke = Remote::start(&world, "gke", None).await;
    site.member("aks", &[aks.address]);
    site.member("eks", &[nobody().await]);
    // The first gateway of gke is dead, the second is not.
    site.member("gke", &[nobody().await, gke.address]);
    let remote = ["10.0.0.7:80".parse().unwrap()];
    let exporters = ["aks", "eks", "gke"].map(|id| (id, &remote[..]));
    site.import("shop/checkout", 1, Protocol::Tcp, &exporters);
    site.link(&[
        ("aks", LinkState::Up, 1),
        ("eks", LinkState::Up, 2),
        ("gke", LinkState::Up, 30),
    ]);
    site.publish().await;
    for _ in 0..5 {
        assert_eq!(reached(site.listener(1)).await.as_deref(), Some("gke"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_that_nothing_serves_resets_its_flows() {
    let mut site = Site::start(&World::new());
    site.import("shop/checkout", 1, Protocol::Tcp, &[]);
    site.publish().await;
    let ended = async {
        let mut stream = TcpStream::connect(site.listener(1)).await?;
        stream.read_u8().await
    };
    assert_eq!(
        in_time(ended).await.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_flows_survive_a_silent_cut() {
    let world = World::new();
    let mut site = Site::start(&world);
    let (gke, eks) = (
        Remote::start(&world, "gke", None).await,
        Remote::start(&world, "eks", None).await,
    );
    site.member("gke", &[gke.address]);
    site.member("eks", &[eks.address]);
    let remote = ["10.0.0.7:80".parse().unwrap()];
    site.import(
        "shop/checkout",
        1,
        Protocol::Tcp,
        &[("gke", &remote), ("eks", &remote)],
    );
    site.link(&[("gke", LinkState::Unknown, 1), ("eks", LinkState::Unknown, 2)]);
    site.publish().await;
    // Both are equally near, so noise decides which one is preferred.
    let mut old = TcpStream::connect(site.listener(1)).await.unwrap();
    let lost = name_of(&mut old).await.unwrap();
    let (remote, left) = if lost == "gke" {
        (&gke, "eks")
    } else {
        (&eks, "gke")
    };
    site.admin_says(
        "/state",
        &format!(r#""cluster":"{lost}","link":"up","phase":"open""#),
    )
    .await;

    remote.endpoint.set_cut([cluster("home")].into(), true);
    for _ in 0..5 {
        let reached = tokio::time::timeout(Duration::from_secs(1), reached(site.listener(1))).await;
        assert_eq!(reached.expect("within a second").as_deref(), Some(left));
    }
    // Down resets what ran.
    assert!(in_time(old.read_u8()).await.is_err());
    site.admin_says("/state", r#""state":"down""#).await;

    remote.endpoint.set_cut([].into(), false);
    site.admin_says(
        "/state",
        &format!(r#""cluster":"{lost}","link":"up","phase":"open""#),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_dialled_goes_through_the_own_gateway() {
    let mut site = Site::start(&World::new());
    site.member("kind", &[]);
    site.import(
        "shop/checkout",
        1,
        Protocol::Tcp,
        &[("kind", &["10.0.0.7:80".parse().unwrap()])],
    );
    let gateway = TcpListener::bind(site.vip(1)).await.unwrap();
    site.publish().await;
    let mut client = TcpStream::connect(site.listener(1)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = gateway.accept().await {
            drop(tokio::io::AsyncWriteExt::write_all(&mut stream, b"own gateway\n").await);
        }
    });
    assert_eq!(name_of(&mut client).await.as_deref(), Some("own gateway"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_endpoint_is_put_aside() {
    let mut site = Site::start(&World::new());
    let dead = nobody().await;
    let exporters = [("home", &[dead, backend("home").await][..])];
    site.import("shop/checkout", 1, Protocol::Tcp, &exporters);
    site.publish().await;
    let text = format!(r#""endpoint":"{dead}""#);
    let put_aside = async {
        while !site.admin("/state").await.contains(&text) {
            assert_eq!(reached(site.listener(1)).await.as_deref(), Some("home"));
        }
    };
    in_time(put_aside).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_follow_the_snapshot() {
    let mut site = Site::start(&World::new());
    let (one, two) = (backend("one").await, backend("two").await);
    site.import("shop/one", 1, Protocol::Tcp, &[("home", &[one])]);
    site.import("shop/two", 2, Protocol::Tcp, &[("home", &[two])]);
    site.publish().await;
    assert_eq!(reached(site.listener(2)).await.as_deref(), Some("two"));
    site.snapshot.imports.remove(&key("shop/one"));
    site.snapshot.imports.remove(&key("shop/two"));
    site.import("shop/two", 1, Protocol::Tcp, &[("home", &[two])]);
    site.publish().await;
    let moved = async {
        while reached(site.listener(1)).await.as_deref() != Some("two") {}
        while TcpStream::connect(site.listener(2)).await.is_ok() {}
    };
    in_time(moved).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_with_a_sidecar_is_reached_over_mtls_and_never_plain() {
    let world = World::new();
    let application = backend("application").await;
    let mut site = Site::start_with(&world, Some((application, crate::config::Mode::Strict)));
    site.import("shop/checkout", 1, Protocol::Tcp, &[("home", &[site.inbound()])]);
    site.import("shop/plain", 2, Protocol::Tcp, &[("home", &[application])]);
    // In another namespace: the workload that answers may not speak for it.
    site.import("bank/checkout", 3, Protocol::Tcp, &[("home", &[site.inbound()])]);
    for service in ["shop/checkout", "shop/plain", "bank/checkout"] {
        let export = site.snapshot.exports.get_mut(&key(service)).unwrap();
        let annotations = &mut Arc::make_mut(export).spec.annotations;
        annotations.insert(
            crate::plan::MTLS_ANNOTATION.into(),
            crate::plan::MTLS_REQUIRED.into(),
        );
    }
    site.publish().await;
    let mut stream = TcpStream::connect(site.listener(1)).await.unwrap();
    assert_eq!(name_of(&mut stream).await.as_deref(), Some("application"));
    let bytes = vec![7; 300_000];
    assert_eq!(exchange(stream, &bytes).await.unwrap(), bytes);
    assert_eq!(reached(site.listener(2)).await, None, "it does not speak mTLS");
    assert_eq!(
        reached(site.listener(3)).await,
        None,
        "it is of another namespace"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn udp_flows_keep_their_backend_and_move_when_it_refuses() {
    let world = World::new();
    let mut site = Site::start(&world);
    let gke = Remote::start(&world, "gke", None).await;
    site.member("gke", &[gke.address]);
    let remote = ["10.0.0.7:53".parse().unwrap()];
    site.import(
        "shop/local",
        1,
        Protocol::Udp,
        &[("home", &[udp_backend("home").await])],
    );
    site.import("shop/remote", 2, Protocol::Udp, &[("gke", &remote)]);
    site.import(
        "shop/moves",
        3,
        Protocol::Udp,
        &[("home", &[nobody().await]), ("gke", &remote)],
    );
    site.publish().await;
    site.admin_says("/readyz", "ready").await;
    let large = vec![b'x'; 20_000];
    for (last, payload, expected) in [
        (1, b"hello".to_vec(), b"home:hello".to_vec()),
        (2, b"hello".to_vec(), b"gke:hello".to_vec()),
        (2, large.clone(), [b"gke:".to_vec(), large].concat()),
        // The local endpoint refuses the first datagram.
        (3, b"hello".to_vec(), b"gke:hello".to_vec()),
    ] {
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(site.listener(last)).await.unwrap();
        assert_eq!(ask(&client, &payload).await, expected, "{last}");
        assert_eq!(ask(&client, &payload).await, expected, "{last}");
    }
}

/// Sends until there is an answer, as a client of UDP does.
async fn ask(client: &UdpSocket, payload: &[u8]) -> Vec<u8> {
    let mut buffer = vec![0; 65_535];
    let asked = retry(|| async {
        client.send(payload).await?;
        let answer = tokio::time::timeout(Duration::from_millis(500), client.readable()).await;
        answer.map_err(std::io::Error::from)?
    });
    in_time(asked).await;
    let len = in_time(client.recv(&mut buffer)).await.unwrap();
    buffer.truncate(len);
    buffer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_headless_endpoint_is_reached_by_its_stand_in() {
    let world = World::new();
    let mut site = Site::start(&world);
    let mut gke = Remote::start(&world, "gke", None).await;
    site.member("gke", &[gke.address]);
    let remote = "10.0.0.7:8080".parse().unwrap();
    site.import("shop/db", 9, Protocol::Tcp, &[("gke", &[remote])]);
    let stand_in = site.vip(9).ip();
    let import = Arc::make_mut(site.snapshot.imports.get_mut(&key("shop/db")).unwrap());
    import.spec.service_type = tombolo_clusterset::ServiceType::Headless;
    import.ips.clear();
    let imported = import.clusters.get_mut(&cluster("gke")).unwrap();
    imported.stand_ins.insert(remote.ip(), stand_in);
    site.publish().await;
    let mut stream = in_time(retry(|| TcpStream::connect(site.listener(9)))).await;
    assert_eq!(name_of(&mut stream).await.as_deref(), Some("gke"));
    assert_eq!(
        in_time(gke.headers.recv()).await.unwrap().endpoint,
        Some(remote.ip())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_straight_to_the_capture_listener_is_reset() {
    let site = Site::start(&World::new());
    site.publish().await;
    let mut stream = in_time(retry(|| TcpStream::connect(site.capture()))).await;
    assert!(in_time(stream.read_u8()).await.is_err());
}

/// The host's network, but for the first listener of an import, which dies.
#[derive(Debug, Default)]
struct DeadlyNetwork {
    died: AtomicBool,
}

#[derive(Debug)]
struct DeadlyListener(SocketAddr);

impl Accept for DeadlyListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<(Stream, SocketAddr)>> {
        panic!("as the test asked");
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.0)
    }
}

impl Network for DeadlyNetwork {
    fn dial(&self, peer: SocketAddr) -> BoxFuture<'static, io::Result<Stream>> {
        HostNetwork.dial(peer)
    }

    fn listen(&self, address: SocketAddr) -> BoxFuture<'static, io::Result<Listener>> {
        if address.port() != PORT || self.died.swap(true, Ordering::Relaxed) {
            return HostNetwork.listen(address);
        }
        Box::pin(async move { Ok(Listener::Other(Box::new(DeadlyListener(address)))) })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_died_is_bound_anew() {
    let network = Arc::new(DeadlyNetwork::default());
    let mut site = Site::start_on(&World::new(), Arc::clone(&network) as _);
    let local = backend("home").await;
    site.import("shop/checkout", 1, Protocol::Tcp, &[("home", &[local])]);
    site.publish().await;
    assert!(network.died.load(Ordering::Relaxed));
    assert_eq!(reached(site.listener(1)).await.as_deref(), Some("home"));
}
