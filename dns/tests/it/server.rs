//! The whole server on real sockets.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType, rdata};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tombolo_clusterset::drill::{Drill, DrillId, DrillKind};
use tombolo_clusterset::endpoint::Protocol;
use tombolo_clusterset::reachability::LinkState;
use tombolo_clusterset::{Label, Locality, Snapshot};
use tombolo_daemon::seam::Seams;
use tombolo_daemon::shutdown::Shutdown;
use tombolo_dns::shell::client::{Lookup, lookup};
use tombolo_dns::{Config, Error, Feeds, Section, serve};
use tombolo_wire::convert::LinkReport;
use tombolo_wire::local::{ClusterSite, DrillFeed, LinkTable, LinksFeed, RunningDrill, SnapshotFeed};

use crate::answers::query;
use crate::fixture::{EKS, GKE, HERE, id, import, port, shop, snapshot};

const CHECKOUT: &str = "checkout.shop.svc.clusterset.local.";
const LEDGER: &str = "ledger.shop.svc.clusterset.local.";

/// Longest wait for anything that should happen.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long to listen for an answer that must not come.
const QUIET: Duration = Duration::from_millis(200);

struct Server {
    address: SocketAddr,
    admin: SocketAddr,
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    links: watch::Sender<Arc<LinkTable>>,
    drills: watch::Sender<Option<RunningDrill>>,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), Error>>,
}

/// A loopback address of this test alone, so that its ports are free.
fn own_address() -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    let [.., high, low] = std::process::id().to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(
        127,
        150 + NEXT.fetch_add(1, Ordering::Relaxed),
        high,
        low.max(1),
    ))
}

impl Server {
    async fn start(initial: Option<Snapshot>, edit: impl FnOnce(&mut Section)) -> Server {
        let host = own_address();
        let (address, admin) = (SocketAddr::new(host, 5353), SocketAddr::new(host, 7432));
        let mut section: Section =
            toml::from_str(&format!("listen = \"{address}\"\nadmin = \"{admin}\"")).unwrap();
        section.udp_threads = Some(2);
        edit(&mut section);
        let site = ClusterSite {
            cluster: id(HERE),
            locality: Locality::default(),
            network: Label::parse(HERE).unwrap(),
            data_dir: PathBuf::from("/nonexistent"),
        };
        let (snapshots, snapshot_feed) = watch::channel(initial.map(Arc::new));
        let (links, link_feed) = watch::channel(Arc::new(LinkTable::new()));
        let (drills, drill_feed) = watch::channel(None);
        let feeds = Feeds {
            snapshots: SnapshotFeed::from_receiver(snapshot_feed),
            links: LinksFeed::from_receiver(link_feed),
            drills: DrillFeed::from_receiver(drill_feed),
        };
        let shutdown = Shutdown::new(Duration::from_secs(5));
        let task = tokio::spawn(serve(
            Config { site, section },
            feeds,
            Seams::host(),
            shutdown.clone(),
        ));
        let server = Server {
            address,
            admin,
            snapshots,
            links,
            drills,
            shutdown,
            task,
        };
        server
            .until(|| async { TcpStream::connect(admin).await.is_ok() })
            .await;
        server
    }

    /// With the demo's snapshot, once it is served.
    async fn ready(edit: impl FnOnce(&mut Section)) -> Server {
        let server = Server::start(Some(shop()), edit).await;
        server
            .until(|| async { server.http("/readyz").await.starts_with("HTTP/1.1 200") })
            .await;
        server
    }

    async fn until<F: Future<Output = bool>>(&self, condition: impl Fn() -> F) {
        let waiting = async {
            while !condition().await {
                assert!(!self.task.is_finished(), "the server ended");
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, waiting).await.expect("in time");
    }

    async fn lookup(&self, name: &str, rtype: &str) -> Lookup {
        lookup(self.address, name, rtype, &Seams::host()).await.unwrap()
    }

    async fn addresses(&self, name: &str) -> Vec<String> {
        let mut found: Vec<_> = self
            .lookup(name, "A")
            .await
            .answers
            .into_iter()
            .map(|record| record.data)
            .collect();
        found.sort();
        found
    }

    async fn http(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn udp(&self) -> UdpSocket {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        socket.connect(self.address).await.unwrap();
        socket
    }

    async fn stop(self) {
        self.shutdown.begin(Instant::now());
        timeout(PATIENCE, self.task)
            .await
            .expect("ends in time")
            .unwrap()
            .unwrap();
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

async fn read_framed(stream: &mut TcpStream) -> Message {
    let read = async {
        let length = stream.read_u16().await.unwrap();
        let mut message = vec![0; usize::from(length)];
        stream.read_exact(&mut message).await.unwrap();
        Message::from_vec(&message).unwrap()
    };
    timeout(PATIENCE, read).await.expect("an answer in time")
}

#[tokio::test]
async fn it_starts_without_the_agent_and_follows_it() {
    let server = Server::start(None, |_| {}).await;
    server
        .until(|| async { server.lookup(CHECKOUT, "A").await.rcode == "SERVFAIL" })
        .await;
    assert!(server.http("/readyz").await.contains("snapshot: waiting"));
    assert!(server.http("/livez").await.starts_with("HTTP/1.1 200"));
    server.snapshots.send_replace(Some(Arc::new(shop())));
    server
        .until(|| async { server.http("/readyz").await.starts_with("HTTP/1.1 200") })
        .await;
    assert_eq!(server.addresses(CHECKOUT).await, ["127.11.64.1"]);
    assert_eq!(
        server.addresses(LEDGER).await,
        ["10.1.0.1", "10.2.0.1", "10.2.0.7"]
    );
    let report = LinkReport {
        cluster: id(EKS),
        state: LinkState::Suspect,
        rtt: None,
        transport: String::new(),
        peer: String::new(),
        reversed: false,
        reason: "no answer to pings".to_owned(),
    };
    server
        .links
        .send_replace(Arc::new(LinkTable::from([(id(EKS), report)])));
    server
        .until(|| async { server.addresses(LEDGER).await == ["10.1.0.1"] })
        .await;
    server.snapshots.send_replace(Some(Arc::new(snapshot([]))));
    server
        .until(|| async { server.lookup(CHECKOUT, "A").await.rcode == "NXDOMAIN" })
        .await;
    let metrics = server.http("/metrics").await;
    for line in [
        "tombolo_dns_zone_records 0",
        "tombolo_dns_queries_total{transport=\"Udp\",type=\"A\",rcode=\"ServFail\"}",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    assert!(server.http("/state").await.contains("\"loaded\":true"));
    server.stop().await;
}

#[tokio::test]
async fn a_cut_answer_comes_whole_over_tcp() {
    let server = Server::ready(|_| {}).await;
    let addresses: Vec<String> = (0..200_u8).map(|n| format!("10.2.0.{n}")).collect();
    let texts: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let large = snapshot([import(
        "shop/ledger",
        &[],
        &[port("http", Protocol::Tcp, 80)],
        &[(EKS, &texts)],
    )]);
    server.snapshots.send_replace(Some(Arc::new(large)));
    server
        .until(|| async { server.addresses(LEDGER).await.len() == 200 })
        .await;
    assert_eq!(
        server
            .lookup("_http._tcp.ledger.shop.svc.clusterset.local", "SRV")
            .await
            .answers
            .len(),
        200
    );
    let socket = server.udp().await;
    socket
        .send(&query(LEDGER, RecordType::A).to_vec().unwrap())
        .await
        .unwrap();
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).await.unwrap();
    assert!(length <= 512);
    assert!(Message::from_vec(&buffer[..length]).unwrap().metadata.truncation);
    server.stop().await;
}

#[tokio::test]
async fn one_connection_carries_many_queries() {
    let server = Server::ready(|_| {}).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let mut sent = Vec::new();
    for n in 0..100_u16 {
        let mut message = query(CHECKOUT, RecordType::A);
        message.metadata.id = n;
        sent.extend(framed(&message.to_vec().unwrap()));
    }
    stream.write_all(&sent).await.unwrap();
    for n in 0..100 {
        let answer = read_framed(&mut stream).await;
        assert_eq!((answer.metadata.id, answer.answers.len()), (n, 1));
    }
    // Octet by octet.
    for octet in framed(&query(CHECKOUT, RecordType::A).to_vec().unwrap()) {
        stream.write_all(&[octet]).await.unwrap();
    }
    // Half-closed: what was asked is still answered.
    stream.shutdown().await.unwrap();
    assert_eq!(read_framed(&mut stream).await.answers.len(), 1);
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    server.stop().await;
}

#[tokio::test]
async fn random_octets_at_both_sockets_harm_nobody() {
    let server = Server::ready(|_| {}).await;
    let mut rng = StdRng::seed_from_u64(11);
    let socket = server.udp().await;
    let valid = query(CHECKOUT, RecordType::A).to_vec().unwrap();
    for n in 0..2_000 {
        let mut octets = vec![0; rng.random_range(0..3_000)];
        rng.fill(&mut octets[..]);
        if n % 2 == 0 {
            octets.splice(..0, valid[..rng.random_range(0..valid.len())].iter().copied());
        }
        socket.send(&octets).await.unwrap();
    }
    for _ in 0..100 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let mut octets = vec![0; rng.random_range(0..3_000)];
        rng.fill(&mut octets[..]);
        // The server may close before it has read everything.
        let _ = stream.write_all(&octets).await;
    }
    // Too long for its connection, too short for a message, nothing at all: others are still served.
    let mut held = Vec::new();
    for prefix in [&b"\xff\xff\x00"[..], b"\x00", b""] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(prefix).await.unwrap();
        held.push(stream);
    }
    let mut short = TcpStream::connect(server.address).await.unwrap();
    short.write_all(b"\x00\x05hello").await.unwrap();
    let ended = timeout(PATIENCE, short.read(&mut [0; 1]))
        .await
        .expect("closed in time");
    assert!(matches!(ended, Ok(0) | Err(_)));
    assert_eq!(server.addresses(CHECKOUT).await, ["127.11.64.1"]);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&framed(&valid)).await.unwrap();
    assert_eq!(read_framed(&mut stream).await.answers.len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn a_drill_silences_it_and_closes_nothing() {
    let server = Server::ready(|_| {}).await;
    let packet = query(CHECKOUT, RecordType::A).to_vec().unwrap();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&framed(&packet)).await.unwrap();
    read_framed(&mut stream).await;
    let drill = Drill {
        id: DrillId(1),
        kind: DrillKind::ClusterDown,
        target: id(HERE),
        from: id(GKE),
        service: "shop/checkout".parse().unwrap(),
        port: None,
        http_get: None,
        rate_per_second: 100,
        baseline: Duration::ZERO,
        duration: Duration::from_secs(600),
        recovery: Duration::ZERO,
        real: false,
    };
    server.drills.send_replace(Some(RunningDrill {
        drill,
        began: Instant::now(),
    }));
    server
        .until(|| async { server.http("/state").await.contains("\"silenced_by_drill\":true") })
        .await;
    let socket = server.udp().await;
    socket.send(&packet).await.unwrap();
    stream.write_all(&framed(&packet)).await.unwrap();
    assert!(
        timeout(QUIET, socket.recv(&mut [0; 512])).await.is_err(),
        "UDP is silent"
    );
    assert!(
        timeout(QUIET, stream.read_u8()).await.is_err(),
        "TCP is silent, and open"
    );
    server.drills.send_replace(None);
    server
        .until(|| async {
            server
                .http("/state")
                .await
                .contains("\"silenced_by_drill\":false")
        })
        .await;
    socket.send(&packet).await.unwrap();
    timeout(PATIENCE, socket.recv(&mut [0; 512]))
        .await
        .expect("an answer")
        .unwrap();
    stream.write_all(&framed(&packet)).await.unwrap();
    read_framed(&mut stream).await;
    server.stop().await;
}

/// An upstream on UDP and TCP: first a forged answer with another id, then one cut (TC), then the whole one over TCP.
async fn upstream() -> SocketAddr {
    let listener = TcpListener::bind((own_address(), 5353)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let socket = UdpSocket::bind(address).await.unwrap();
    let answer = |query: &[u8], data: [u8; 4]| {
        let mut message = Message::from_vec(query).unwrap().into_response();
        let owner = message.queries[0].name().clone();
        message
            .answers
            .push(Record::from_rdata(owner, 60, RData::A(rdata::A(data.into()))));
        message
    };
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            let mut forged = answer(&buffer[..length], [6, 6, 6, 6]);
            forged.metadata.id ^= 1;
            let mut cut = answer(&buffer[..length], [192, 0, 2, 1]).truncate();
            cut.metadata.truncation = true;
            for message in [forged, cut] {
                socket.send_to(&message.to_vec().unwrap(), client).await.unwrap();
            }
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let length = stream.read_u16().await.unwrap();
            let mut query = vec![0; usize::from(length)];
            stream.read_exact(&mut query).await.unwrap();
            stream
                .write_all(&framed(&answer(&query, [192, 0, 2, 1]).to_vec().unwrap()))
                .await
                .unwrap();
        }
    });
    address
}

#[tokio::test]
async fn other_names_go_to_upstreams_or_are_refused() {
    let server = Server::ready(|_| {}).await;
    assert_eq!(server.lookup("example.com", "A").await.rcode, "REFUSED");
    server.stop().await;

    // The first upstream is not there.
    let absent = SocketAddr::new(own_address(), 5353);
    let upstream = upstream().await;
    let server = Server::ready(|section| section.upstreams = vec![absent, upstream]).await;
    let reply = server.lookup("Example.COM", "A").await;
    assert_eq!(reply.rcode, "NOERROR");
    assert_eq!(
        reply
            .answers
            .iter()
            .map(|record| record.data.as_str())
            .collect::<Vec<_>>(),
        ["192.0.2.1"]
    );
    assert_eq!(
        server.addresses(CHECKOUT).await,
        ["127.11.64.1"],
        "the zone is never forwarded"
    );
    assert_eq!(
        server.lookup("none.shop.svc.clusterset.local", "A").await.rcode,
        "NXDOMAIN"
    );
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream
        .write_all(&framed(&query("example.com.", RecordType::A).to_vec().unwrap()))
        .await
        .unwrap();
    let answer = read_framed(&mut stream).await;
    assert_eq!((answer.metadata.id, answer.answers.len()), (0x1234, 1));
    server.stop().await;

    let server = Server::ready(|section| section.upstreams = vec![absent]).await;
    assert_eq!(server.lookup("example.com", "A").await.rcode, "SERVFAIL");
    server.stop().await;
}

#[tokio::test]
async fn a_flood_is_limited() {
    let server = Server::ready(|section| {
        (
            section.answers_per_second,
            section.limit_loopback,
            section.udp_threads,
        ) = (1, true, Some(1));
    })
    .await;
    let socket = server.udp().await;
    let packet = query(CHECKOUT, RecordType::A).to_vec().unwrap();
    let began = Instant::now();
    for _ in 0..20 {
        socket.send(&packet).await.unwrap();
    }
    const ANSWERED: &str = "tombolo_dns_queries_total{transport=\"Udp\",type=\"A\",rcode=\"NoError\"}";
    const SLIPPED: &str = "tombolo_dns_rate_limit_slipped_total";
    const DROPPED: &str = "tombolo_dns_rate_limit_dropped_total";
    let counts = || async {
        let metrics = server.http("/metrics").await;
        [ANSWERED, SLIPPED, DROPPED].map(|name| {
            let value = metrics.lines().find_map(|line| line.strip_prefix(name));
            value.expect(name).trim().parse::<u64>().unwrap()
        })
    };
    server
        .until(|| async { counts().await.iter().sum::<u64>() == 20 })
        .await;
    let [answered, slipped, dropped] = counts().await;
    // One answer a second, two in a burst.
    assert!(
        answered >= 2 && answered <= 3 + began.elapsed().as_secs(),
        "{answered} answers"
    );
    assert!(
        slipped <= dropped && dropped <= slipped + 1,
        "{slipped} cut, {dropped} dropped"
    );
    let (mut whole, mut cut) = (0, 0);
    let mut buffer = [0; 512];
    while whole + cut < answered + slipped {
        let length = timeout(PATIENCE, socket.recv(&mut buffer))
            .await
            .expect("an answer in time")
            .unwrap();
        let answer = Message::from_vec(&buffer[..length]).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        if answer.metadata.truncation {
            assert!(answer.answers.is_empty() && length <= packet.len());
            cut += 1;
        } else {
            whole += 1;
        }
    }
    assert_eq!((whole, cut), (answered, slipped));
    server.stop().await;
}

#[tokio::test]
async fn a_port_in_use_is_said_clearly() {
    let server = Server::ready(|_| {}).await;
    let other = own_address();
    let section: Section = toml::from_str(&format!(
        "listen = \"{}\"\nadmin = \"{other}:7432\"",
        server.address
    ))
    .unwrap();
    let site = ClusterSite {
        cluster: id(HERE),
        locality: Locality::default(),
        network: Label::parse(HERE).unwrap(),
        data_dir: PathBuf::from("/nonexistent"),
    };
    let error = tombolo_dns::run(Config { site, section }, Seams::host(), Shutdown::new(PATIENCE))
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(&server.address.to_string()) && text.contains("in use") && text.contains("[dns]"),
        "{text}"
    );
    server.stop().await;
    assert!(
        toml::from_str::<Section>("listen = \"127.0.0.1:1\"\nadmin = \"127.0.0.1:2\"\nupstream = []")
            .is_err()
    );
}
