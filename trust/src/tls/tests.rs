use std::sync::Arc;
use std::time::Duration;

use rustls::time_provider::TimeProvider;
use rustls::{HandshakeKind, ProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tombolo_clusterset::ClusterId;

use super::*;
use crate::cert::peer_identity;
use crate::fixtures::{Cluster, Leaf, cluster_id, id, new_root, now, root_leaf, serial, trust};
use crate::issue::{LEAF_TTL, Root};
use crate::spiffe::SpiffeId;

const ALPN: &[&[u8]] = &[b"tombolo/1"];
const WEST: &str = "/cluster/west/role/gateway";
const EAST: &str = "/cluster/east/role/gateway";

/// The clock of every test, in the seam that `time_provider` is.
#[derive(Debug)]
struct TestClock(Duration);

impl TimeProvider for TestClock {
    fn current_time(&self) -> Option<UnixTime> {
        let now = now().duration_since(std::time::UNIX_EPOCH).unwrap() + self.0;
        Some(UnixTime::since_unix_epoch(now))
    }
}

/// What one side of a handshake found: who the peer is, or why it refused or was refused.
#[derive(Debug, PartialEq)]
enum Outcome {
    Peer(Option<SpiffeId>),
    Refused(TrustError),
    Failed(String),
}

fn outcome(result: io::Result<Option<SpiffeId>>) -> Outcome {
    match result {
        Ok(peer) => Outcome::Peer(peer),
        Err(error) => match refusal(&error) {
            Some(reason) => Outcome::Refused(reason.clone()),
            None => Outcome::Failed(error.to_string()),
        },
    }
}

/// A handshake over memory, with one byte each way afterwards, since a TLS 1.3 client is done before the server has
/// verified it. Returns (client's outcome, server's outcome).
async fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    later: Duration,
) -> (Outcome, Outcome) {
    let (mut client, mut server) = (client, server);
    Arc::make_mut(&mut client).time_provider = Arc::new(TestClock(later));
    Arc::make_mut(&mut server).time_provider = Arc::new(TestClock(later));
    let (near, far) = tokio::io::duplex(64 * 1024);
    let dial = async {
        let name = ServerName::try_from("any.name.at.all").unwrap();
        let mut stream = TlsConnector::from(client).connect(name, near).await?;
        stream.write_all(b"?").await?;
        stream.flush().await?;
        stream.read_exact(&mut [0]).await?;
        let (_, session) = stream.get_ref();
        assert_eq!(session.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(session.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(session.alpn_protocol(), Some(ALPN[0]));
        Ok(session
            .peer_certificates()
            .map(|certs| peer_identity(certs).unwrap()))
    };
    let accept = async {
        let mut stream = TlsAcceptor::from(server).accept(far).await?;
        stream.read_exact(&mut [0]).await?;
        stream.write_all(b"!").await?;
        stream.flush().await?;
        let (_, session) = stream.get_ref();
        Ok(session
            .peer_certificates()
            .map(|certs| peer_identity(certs).unwrap()))
    };
    let (client, server) = tokio::join!(dial, accept);
    (outcome(client), outcome(server))
}

async fn handshake_now(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> (Outcome, Outcome) {
    handshake(client, server, Duration::ZERO).await
}

struct Demo {
    root: Root,
    west: Leaf,
    east: Leaf,
    broker: Leaf,
}

impl Demo {
    fn new() -> Self {
        let root = new_root();
        let west = Cluster::new(&root, "west").leaf(WEST);
        let east = Cluster::new(&root, "east").leaf(EAST);
        let broker = root_leaf(&root, "/broker/1");
        Self {
            root,
            west,
            east,
            broker,
        }
    }

    fn store(&self) -> Arc<TrustStore> {
        TrustStore::new(trust(&[&self.root]))
    }

    fn id(&self, path: &str) -> SpiffeId {
        id(self.root.trust_domain(), path)
    }

    fn peer(&self, path: &str) -> Outcome {
        Outcome::Peer(Some(self.id(path)))
    }

    fn client(&self, leaf: &Leaf, permit: Permit) -> Arc<ClientConfig> {
        client_config(self.store(), CertStore::new(leaf.identity()), permit, ALPN)
    }

    fn server(&self, leaf: &Leaf, permit: Permit) -> Arc<ServerConfig> {
        server_config(self.store(), CertStore::new(leaf.identity()), permit, ALPN)
    }

    fn join_server(&self) -> Arc<ServerConfig> {
        let certs = CertStore::new(self.broker.identity());
        server_config_optional_client(self.store(), certs, Permit::member_or_operator(), ALPN)
    }

    fn pinned(&self, pin: Fingerprint) -> Arc<ClientConfig> {
        pinned_client_config(self.root.trust_domain().clone(), pin, ALPN)
    }
}

fn east() -> ClusterId {
    cluster_id("east")
}

fn failed(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Failed(_))
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is() {
    let demo = Demo::new();
    let client = demo.client(&demo.west, Permit::Gateway(east()));
    let server = demo.server(&demo.east, Permit::AnyGateway);
    // Twice with the same configurations: a resumed session would skip the verifier.
    for _ in 0..2 {
        let found = handshake_now(Arc::clone(&client), Arc::clone(&server)).await;
        assert_eq!(found, (demo.peer(EAST), demo.peer(WEST)));
    }
}

#[tokio::test]
async fn each_side_refuses_a_genuine_peer_that_it_does_not_permit() {
    let demo = Demo::new();
    let not_permitted = |path, wanted: &Permit| {
        Outcome::Refused(TrustError::NotPermitted {
            peer: demo.id(path),
            wanted: wanted.to_string(),
        })
    };
    let wanted = Permit::Gateway(cluster_id("north"));
    let client = demo.client(&demo.west, wanted.clone());
    let (client, server) = handshake_now(client, demo.server(&demo.east, Permit::AnyGateway)).await;
    assert_eq!(client, not_permitted(EAST, &wanted));
    assert!(failed(&server), "{server:?}");

    let wanted = Permit::AnyBroker;
    let client = demo.client(&demo.west, Permit::AnyGateway);
    let (client, server) = handshake_now(client, demo.server(&demo.east, wanted.clone())).await;
    assert!(failed(&client), "{client:?}");
    assert_eq!(server, not_permitted(WEST, &wanted));
}

#[tokio::test]
async fn each_side_refuses_another_clusterset() {
    let (demo, other) = (Demo::new(), Demo::new());
    let foreign = |whose: &Demo, path| {
        let ours = if whose.root.pin() == demo.root.pin() {
            &other
        } else {
            &demo
        };
        let ours = ours.root.trust_domain().clone();
        Outcome::Refused(TrustError::ForeignTrustDomain {
            peer: whose.id(path),
            ours,
        })
    };
    let (client, server) = handshake_now(
        demo.client(&demo.west, Permit::AnyGateway),
        other.server(&other.east, Permit::AnyGateway),
    )
    .await;
    assert_eq!(client, foreign(&other, EAST));
    assert!(failed(&server), "{server:?}");

    // A client that trusts the other side, but is not trusted by it.
    let certs = CertStore::new(demo.west.identity());
    let client = client_config(other.store(), certs, Permit::AnyGateway, ALPN);
    let (client, server) = handshake_now(client, other.server(&other.east, Permit::AnyGateway)).await;
    assert!(failed(&client), "{client:?}");
    assert_eq!(server, foreign(&demo, WEST));
}

#[tokio::test]
async fn a_peer_without_a_certificate_is_refused_but_for_a_join() {
    let demo = Demo::new();
    let pinned = demo.pinned(demo.root.pin());
    let (client, server) =
        handshake_now(Arc::clone(&pinned), demo.server(&demo.broker, Permit::AnyMember)).await;
    assert!(failed(&client) && failed(&server), "{client:?} {server:?}");

    let found = handshake_now(pinned, demo.join_server()).await;
    assert_eq!(found, (demo.peer("/broker/1"), Outcome::Peer(None)));
    let found = handshake_now(demo.client(&demo.west, Permit::AnyBroker), demo.join_server()).await;
    assert_eq!(found, (demo.peer("/broker/1"), demo.peer(WEST)));
    // Presenting a certificate that is not accepted is worse than presenting none.
    let other = Demo::new();
    let certs = CertStore::new(other.west.identity());
    let client = client_config(demo.store(), certs, Permit::AnyBroker, ALPN);
    let (client, server) = handshake_now(client, demo.join_server()).await;
    assert!(failed(&client), "{client:?}");
    assert!(
        matches!(server, Outcome::Refused(TrustError::ForeignTrustDomain { .. })),
        "{server:?}"
    );
}

#[tokio::test]
async fn a_pin_recognises_a_broker_under_that_root_and_nothing_else() {
    let (demo, other) = (Demo::new(), Demo::new());
    assert_eq!(
        pinned_root(&demo.broker.chain, &demo.root.pin()).as_ref(),
        Some(demo.root.cert()),
        "the root is found in the chain"
    );
    assert_eq!(pinned_root(&demo.broker.chain[..1], &demo.root.pin()), None);
    assert_eq!(pinned_root(&[], &demo.root.pin()), None);

    let wrong_pin = Outcome::Refused(TrustError::PinMismatch {
        pin: other.root.pin(),
    });
    let (client, _) = handshake_now(demo.pinned(other.root.pin()), demo.join_server()).await;
    assert_eq!(client, wrong_pin);

    // In a rotation a broker sends the other root, too.
    let next = demo.root.successor(serial(), now()).unwrap();
    let mut leaf = root_leaf(&demo.root, "/broker/1");
    leaf.chain.insert(1, next.cert().clone());
    let server = server_config_optional_client(
        demo.store(),
        CertStore::new(leaf.identity()),
        Permit::AnyMember,
        ALPN,
    );
    let (client, _) = handshake_now(demo.pinned(demo.root.pin()), server).await;
    assert_eq!(client, demo.peer("/broker/1"));

    // An impostor that sends the pinned root along with a leaf which that root did not sign.
    let impostor = Root::load(
        demo.root.trust_domain().clone(),
        other.root.cert().clone(),
        &other.root.key_der(),
    )
    .unwrap();
    let mut leaf = root_leaf(&impostor, "/broker/1");
    leaf.chain[1] = demo.root.cert().clone();
    let server = server_config_optional_client(
        demo.store(),
        CertStore::new(leaf.identity()),
        Permit::AnyMember,
        ALPN,
    );
    let (client, _) = handshake_now(demo.pinned(demo.root.pin()), server).await;
    assert!(
        matches!(client, Outcome::Refused(TrustError::UnknownRoot { .. })),
        "{client:?}"
    );

    // A member is genuine, and yet no broker.
    let mut leaf = Cluster::new(&demo.root, "west").leaf(WEST);
    leaf.chain.push(demo.root.cert().clone());
    let server = server_config_optional_client(
        demo.store(),
        CertStore::new(leaf.identity()),
        Permit::AnyMember,
        ALPN,
    );
    let (client, _) = handshake_now(demo.pinned(demo.root.pin()), server).await;
    assert!(
        matches!(client, Outcome::Refused(TrustError::NotPermitted { .. })),
        "{client:?}"
    );
}

#[tokio::test]
async fn eviction_and_renewal_take_effect_at_the_next_handshake() {
    let demo = Demo::new();
    let (store, certs) = (demo.store(), CertStore::new(demo.west.identity()));
    let client = client_config(demo.store(), Arc::clone(&certs), Permit::AnyGateway, ALPN);
    let server = server_config(
        Arc::clone(&store),
        CertStore::new(demo.east.identity()),
        Permit::AnyGateway,
        ALPN,
    );
    let both = (demo.peer(EAST), demo.peer(WEST));
    assert_eq!(
        handshake_now(Arc::clone(&client), Arc::clone(&server)).await,
        both
    );

    let key = cert::fingerprint(&demo.west.chain[1]).unwrap();
    let denied = BTreeSet::from([key]);
    let roots = vec![demo.root.cert().clone()];
    store
        .replace(TrustState::new(demo.root.trust_domain().clone(), roots, denied, 4).unwrap())
        .unwrap();
    let (_, found) = handshake_now(Arc::clone(&client), Arc::clone(&server)).await;
    assert!(
        matches!(found, Outcome::Refused(TrustError::Denied { .. })),
        "{found:?}"
    );

    certs.replace(Cluster::new(&demo.root, "west").leaf(WEST).identity());
    assert_eq!(handshake_now(client, server).await, both);
}

#[tokio::test]
async fn the_clock_is_the_configurations_own() {
    let demo = Demo::new();
    let client = || demo.client(&demo.west, Permit::AnyGateway);
    let server = || demo.server(&demo.east, Permit::AnyGateway);
    let found = handshake(client(), server(), LEAF_TTL).await;
    assert_eq!(found, (demo.peer(EAST), demo.peer(WEST)));
    let (found, _) = handshake(client(), server(), LEAF_TTL + Duration::from_secs(5)).await;
    assert_eq!(
        found,
        Outcome::Refused(TrustError::Expired {
            leaf: demo.id(EAST),
            ago_secs: 5
        })
    );
}

#[tokio::test]
async fn during_a_rotation_old_and_new_peers_meet() {
    let demo = Demo::new();
    let next = demo.root.successor(serial(), now()).unwrap();
    let renewed = Cluster::new(&next, "east").leaf(EAST);
    let store = || TrustStore::new(trust(&[&demo.root, &next]));
    let client = client_config(
        store(),
        CertStore::new(demo.west.identity()),
        Permit::AnyGateway,
        ALPN,
    );
    let server = server_config(
        store(),
        CertStore::new(renewed.identity()),
        Permit::AnyGateway,
        ALPN,
    );
    assert_eq!(
        handshake_now(client, server).await,
        (demo.peer(EAST), demo.peer(WEST))
    );
}

#[tokio::test]
async fn a_client_does_not_resume_even_where_the_server_offers_it() {
    let demo = Demo::new();
    let client = demo.client(&demo.west, Permit::AnyGateway);
    let mut server = demo.server(&demo.east, Permit::AnyGateway);
    let lavish = Arc::make_mut(&mut server);
    lavish.send_tls13_tickets = 2;
    lavish.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
    // `handshake` asserts that each one is full.
    for _ in 0..2 {
        let found = handshake_now(Arc::clone(&client), Arc::clone(&server)).await;
        assert_eq!(found, (demo.peer(EAST), demo.peer(WEST)));
    }
}

#[test]
fn nothing_is_resumed_and_nothing_sent_early() {
    let demo = Demo::new();
    let server = demo.server(&demo.east, Permit::AnyGateway);
    assert_eq!((server.send_tls13_tickets, server.max_early_data_size), (0, 0));
    assert!(!server.session_storage.can_cache() && !server.ticketer.enabled());
    let client = demo.client(&demo.west, Permit::AnyGateway);
    assert!(!client.enable_early_data && !client.enable_sni);
}
