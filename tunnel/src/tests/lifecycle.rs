//! Pings, cuts, evictions, renewals, go-away, drain, and the choice of transport.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use super::on_both_transports;
use super::site::{Pair, Site, World, choice, loopback};
use crate::limits::Limits;
use crate::{Drained, OpenError, Transport, TransportChoice, TunnelEvent};

on_both_transports!(
    pings_measure_the_path,
    a_cut_swallows_and_heals,
    a_cut_of_everything_silences_dials,
    silence_ends_a_tunnel,
    an_eviction_cuts_the_tunnel,
    a_renewed_certificate_outdates_a_tunnel,
    a_drain_waits_for_flows,
    a_drain_resets_what_is_left,
    a_tunnel_that_is_too_old_goes_away,
    a_dropped_endpoint_closes_its_tunnels,
);

async fn pings_measure_the_path(transport: Transport) {
    let pair = Pair::new(transport).await;
    for tunnel in [&pair.tunnel, &pair.inbound] {
        let mut events = tunnel.events();
        for _ in 0..3 {
            let event = events.recv().await.unwrap();
            assert!(
                matches!(event, TunnelEvent::Pong { rtt } if rtt < Duration::from_secs(1)),
                "{event:?}"
            );
        }
        assert!(tunnel.rtt().is_some());
    }
    let mut events = pair.inbound.events();
    pair.tunnel.close("the test is over");
    while !matches!(events.recv().await, Ok(TunnelEvent::Closed { .. })) {}
    assert!(pair.tunnel.open(&pair.west.header("echo", 1)).await.is_err());
}

async fn a_cut_swallows_and_heals(transport: Transport) {
    let pair = Pair::new(transport).await;
    let east = BTreeSet::from([pair.east.member.cluster.clone()]);
    let mut flow = pair.tunnel.open(&pair.west.header("echo", 1)).await.unwrap();
    pair.west.endpoint.set_cut(east, false);
    let mut events = pair.tunnel.events();
    let header = pair.west.header("echo", 1);
    let pending = pair.tunnel.open(&header);
    tokio::pin!(pending);
    assert!(
        timeout(Duration::from_millis(300), &mut pending).await.is_err(),
        "an open went through the cut"
    );
    flow.write_all(b"held").await.unwrap();
    let mut heard = [0; 4];
    assert!(
        timeout(Duration::from_millis(300), flow.read_exact(&mut heard))
            .await
            .is_err(),
        "bytes went through"
    );
    // One pong may have been on its way when the cut came.
    let pongs = std::iter::from_fn(|| events.try_recv().ok()).count();
    assert!(pongs <= 2, "{pongs} pongs came through the cut");
    assert_eq!(pair.tunnel.close_reason(), None, "nothing closes");
    pair.west.endpoint.set_cut(BTreeSet::new(), false);
    flow.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"held");
    pending.await.unwrap();
    pair.assert_carries().await;
}

async fn a_cut_of_everything_silences_dials(transport: Transport) {
    let pair = Pair::new(transport).await;
    pair.east.endpoint.set_cut(BTreeSet::new(), true);
    let dial = pair
        .west
        .endpoint
        .dial(pair.east.addr(), &pair.east.member.cluster, choice(transport));
    assert!(
        timeout(Duration::from_millis(500), dial).await.is_err(),
        "a dial was answered"
    );
    let open = timeout(
        Duration::from_millis(300),
        pair.tunnel.open(&pair.west.header("echo", 1)),
    )
    .await;
    assert!(open.is_err(), "{open:?}");
    pair.east.endpoint.set_cut(BTreeSet::new(), false);
    pair.assert_carries().await;
}

async fn silence_ends_a_tunnel(transport: Transport) {
    let limits = Limits {
        idle_timeout: Duration::from_millis(500),
        ..Limits::default()
    };
    let pair = Pair::adjusted(transport, |config| config.limits = limits).await;
    pair.west.endpoint.set_cut(BTreeSet::new(), true);
    pair.tunnel.closed().await;
    pair.inbound.closed().await;
}

async fn an_eviction_cuts_the_tunnel(transport: Transport) {
    let pair = Pair::new(transport).await;
    let mut flow = pair.tunnel.open(&pair.west.header("echo", 1)).await.unwrap();
    let evicted = pair.world.trust(&[&pair.west.member]);
    pair.east.identity.trust().replace(evicted).unwrap();
    let both = async { tokio::join!(pair.tunnel.closed(), pair.inbound.closed()) };
    timeout(Duration::from_secs(5), both)
        .await
        .expect("evictions cut within 5 s");
    assert!(flow.read(&mut [0]).await.is_err());
    let cluster = &pair.east.member.cluster;
    // On QUIC and HTTP/2 alike the dialler may be done before the listener has verified it; then the tunnel closes at once.
    if let Ok(tunnel) = pair
        .west
        .endpoint
        .dial(pair.east.addr(), cluster, choice(transport))
        .await
    {
        tunnel.closed().await;
    }
    assert!(pair.east.endpoint.tunnels().is_empty());
}

async fn a_renewed_certificate_outdates_a_tunnel(transport: Transport) {
    let pair = Pair::new(transport).await;
    assert!(!pair.tunnel.is_outdated());
    pair.west.identity.renew(pair.west.member.leaf("role/gateway"));
    assert!(pair.tunnel.is_outdated() && !pair.inbound.is_outdated());
    let dial = pair
        .west
        .endpoint
        .dial(pair.east.addr(), &pair.east.member.cluster, choice(transport));
    assert!(!dial.await.unwrap().is_outdated());
    pair.assert_carries().await;
}

async fn a_drain_waits_for_flows(transport: Transport) {
    let pair = Pair::new(transport).await;
    let mut flow = pair.tunnel.open(&pair.west.header("echo", 1)).await.unwrap();
    let mut events = pair.tunnel.events();
    let endpoint = pair.east.endpoint.clone();
    let drain = tokio::spawn(async move { endpoint.drain(Instant::now() + Duration::from_secs(30)).await });
    while !matches!(events.recv().await.unwrap(), TunnelEvent::GoingAway { .. }) {}
    assert!(!pair.tunnel.is_usable());
    let refused = pair.tunnel.open(&pair.west.header("echo", 1)).await.unwrap_err();
    assert!(matches!(refused, OpenError::GoingAway { .. }), "{refused}");
    flow.write_all(b"last words").await.unwrap();
    flow.shutdown().await.unwrap();
    let mut heard = Vec::new();
    flow.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"last words");
    drop(flow);
    assert_eq!(drain.await.unwrap(), Drained { ended: 1, reset: 0 });
    pair.tunnel.closed().await;
}

async fn a_drain_resets_what_is_left(transport: Transport) {
    let pair = Pair::new(transport).await;
    let mut flow = pair.tunnel.open(&pair.west.header("sink", 1)).await.unwrap();
    let drained = pair
        .east
        .endpoint
        .drain(Instant::now() + Duration::from_millis(300))
        .await;
    assert_eq!(drained, Drained { ended: 0, reset: 1 });
    assert!(flow.read(&mut [0]).await.is_err());
    pair.tunnel.closed().await;
}

async fn a_tunnel_that_is_too_old_goes_away(transport: Transport) {
    let limits = Limits {
        tunnel_age: Duration::from_millis(100),
        ..Limits::default()
    };
    let pair = Pair::adjusted(transport, |config| config.limits = limits).await;
    pair.tunnel.closed().await;
    pair.inbound.closed().await;
}

async fn a_dropped_endpoint_closes_its_tunnels(transport: Transport) {
    let pair = Pair::new(transport).await;
    drop(pair.west);
    pair.tunnel.closed().await;
    pair.inbound.closed().await;
}

/// A path that lets TCP through and no UDP.
async fn tcp_only(target: std::net::SocketAddr) -> std::net::SocketAddr {
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = TcpStream::connect(target).await.unwrap();
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auto_prefers_quic_and_falls_back() {
    let world = World::new();
    let west = Site::start(&world, "west", |_| ()).await;
    let east = Site::start(&world, "east", |_| ()).await;
    let cluster = &east.member.cluster;
    let tunnel = west
        .endpoint
        .dial(east.addr(), cluster, TransportChoice::Auto)
        .await
        .unwrap();
    assert_eq!(tunnel.transport(), Transport::Quic);
    let blocked = tcp_only(east.addr()).await;
    let tunnel = west
        .endpoint
        .dial(blocked, cluster, TransportChoice::Auto)
        .await
        .unwrap();
    assert_eq!(tunnel.transport(), Transport::H2);
    let start = Instant::now();
    let again = west
        .endpoint
        .dial(blocked, cluster, TransportChoice::Auto)
        .await
        .unwrap();
    assert_eq!(again.transport(), Transport::H2);
    assert!(
        start.elapsed() < crate::limits::QUIC_HEAD_START,
        "it was not remembered that QUIC is blocked there"
    );
}

#[tokio::test]
async fn a_dead_address_is_named() {
    let world = World::new();
    let west = Site::start(&world, "west", |_| ()).await;
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = west
        .endpoint
        .dial(address, &super::site::cluster_id("east"), TransportChoice::H2)
        .await
        .unwrap_err();
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}
