//! mTLS in front of a local application.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tombolo_trust::{Permit, TrustState};
use tombolo_tunnel::LocalIdentity;

use super::site::{Site, World, backend, exchange, in_time, name_of, nobody, retry};
use crate::config::Mode;
use crate::shell::inbound::ALPN;

async fn plain(site: &Site) -> TcpStream {
    in_time(retry(|| TcpStream::connect(site.inbound()))).await
}

async fn mtls(site: &Site, identity: &LocalIdentity) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = plain(site).await;
    let connector = TlsConnector::from(identity.client_tls(Permit::AnyMember, ALPN));
    in_time(connector.connect(ServerName::from(site.inbound().ip()), stream)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_takes_mtls_and_nothing_else() {
    let world = World::new();
    let site = Site::start_with(&world, Some((backend("application").await, Mode::Strict)));
    let mut stream = plain(&site).await;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    // The answer is a TLS alert at most, never the application's.
    assert_ne!(name_of(&mut stream).await.as_deref(), Some("application"));

    let mut stream = mtls(&site, &world.identity("gke", "ns/shop/sa/other"))
        .await
        .unwrap();
    assert_eq!(name_of(&mut stream).await.as_deref(), Some("application"));
    assert_eq!(exchange(stream, b"hello").await.unwrap(), b"hello");

    // A genuine identity of another clusterset, and one of this that is no workload.
    for identity in [
        World::new().identity("gke", "ns/shop/sa/other"),
        world.identity("gke", "role/dns"),
    ] {
        let name = match mtls(&site, &identity).await {
            Ok(mut stream) => name_of(&mut stream).await,
            Err(_) => None,
        };
        assert_eq!(name, None, "{}", identity.id());
    }
    site.admin_says("/metrics", r#"inbound_connections_total{outcome="Mtls"} 1"#)
        .await;
    site.admin_says("/metrics", r#"inbound_connections_total{outcome="Refused"} 3"#)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permissive_takes_both() {
    let world = World::new();
    let site = Site::start_with(&world, Some((backend("application").await, Mode::Permissive)));
    let mut stream = plain(&site).await;
    // Nothing is said first: the server speaks first in some protocols.
    assert_eq!(name_of(&mut stream).await.as_deref(), Some("application"));
    for head in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\x16",
        b"\x16\x03\x01 not TLS",
        b"",
    ] {
        let mut stream = plain(&site).await;
        stream.write_all(head).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(
            name_of(&mut stream).await.as_deref(),
            Some("application"),
            "{head:?}"
        );
        assert_eq!(exchange(stream, b"").await.unwrap(), head, "every byte arrives");
    }
    let mut stream = mtls(&site, &world.identity("home", "ns/shop/sa/other"))
        .await
        .unwrap();
    assert_eq!(name_of(&mut stream).await.as_deref(), Some("application"));
    assert_eq!(exchange(stream, b"hello").await.unwrap(), b"hello");
    // Who begins with TLS gets no less than mTLS.
    let stranger = mtls(&site, &World::new().identity("home", "ns/shop/sa/other")).await;
    assert!(stranger.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_bytes_do_no_harm() {
    let world = World::new();
    let mut rng = StdRng::seed_from_u64(7);
    for mode in [Mode::Strict, Mode::Permissive] {
        let site = Site::start_with(&world, Some((backend("application").await, mode)));
        for round in 0..50 {
            let mut bytes: Vec<u8> = (0..rng.random_range(1..2_000)).map(|_| rng.random()).collect();
            if round % 2 == 0 {
                // What passes for a ClientHello.
                let len = bytes.len().min(6);
                bytes[..len].copy_from_slice(&[22, 3, 1, 2, 0, 1][..len]);
            }
            let stream = plain(&site).await;
            // Whatever comes back; it must only end.
            drop(exchange(stream, &bytes).await);
        }
        let mut stream = mtls(&site, &world.identity("home", "ns/shop/sa/other"))
            .await
            .unwrap();
        assert_eq!(
            name_of(&mut stream).await.as_deref(),
            Some("application"),
            "{mode:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_is_away_resets_its_callers() {
    let world = World::new();
    let site = Site::start_with(&world, Some((nobody().await, Mode::Permissive)));
    let mut stream = plain(&site).await;
    stream.write_all(b"hello").await.unwrap();
    assert_eq!(name_of(&mut stream).await, None);
    site.admin_says(
        "/metrics",
        r#"inbound_connections_total{outcome="TargetFailed"} 1"#,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evicted_caller_is_cut() {
    let world = World::new();
    let site = Site::start_with(&world, Some((backend("application").await, Mode::Strict)));
    let gone = world.identity("gke", "ns/shop/sa/other");
    let mut cut = mtls(&site, &gone).await.unwrap();
    let mut stays = mtls(&site, &world.identity("eks", "ns/shop/sa/other"))
        .await
        .unwrap();
    for stream in [&mut cut, &mut stays] {
        assert_eq!(name_of(stream).await.as_deref(), Some("application"));
    }
    let evicted = tombolo_trust::cert::fingerprint(&gone.certs().load().chain()[1]).unwrap();
    let before = site.trust.load();
    let (domain, roots) = (before.trust_domain().clone(), before.roots().to_vec());
    let trust = TrustState::new(domain, roots, [evicted].into(), before.revision() + 1).unwrap();
    site.trust.replace(trust).unwrap();
    assert!(
        in_time(cut.read_u8()).await.is_err(),
        "it ends without another byte"
    );
    assert_eq!(exchange(stays, b"hello").await.unwrap(), b"hello");
    site.admin_says("/metrics", r#"inbound_connections_total{outcome="Evicted"} 1"#)
        .await;
}
