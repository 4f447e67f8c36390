//! Start without peers, drain, restart of a peer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tombolo_clusterset::LinkState;
use tombolo_gateway::Transport;

use crate::backend::{self, ask};
use crate::world::{PATIENCE, Service, World, eventually};

const BOTH: [(&str, bool); 2] = [("aks", false), ("kind", false)];

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_is_ready_without_any_peer() {
    let world = World::new(&BOTH);
    let site = world.start("aks", Transport::Auto).await;
    site.wait_ready().await;
    assert_ne!(site.state_of("kind"), LinkState::Up);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_lets_flows_end_and_resets_the_rest_at_its_deadline() {
    let world = World::new(&BOTH);
    let backend = world.backend("kind", 0);
    let world = world.with(Service::tcp("k", 0).at("kind", [backend]));
    backend::tcp(backend, "kind").await;
    let aks = world
        .start_with("aks", Transport::Auto, Duration::from_secs(3))
        .await;
    let kind = world.start("kind", Transport::Auto).await;
    aks.wait_up(["kind"]).await;
    kind.wait_up(["aks"]).await;
    let vip = world.vip("aks", 0);
    let [mut ends, mut stays] = [
        TcpStream::connect(vip).await.unwrap(),
        TcpStream::connect(vip).await.unwrap(),
    ];
    for stream in [&mut ends, &mut stays] {
        stream.write_all(b"half").await.unwrap();
    }
    eventually("both flows run", async || {
        let state = aks.http("/state").await?;
        state.contains(r#""tcp":2"#).then_some(())
    })
    .await;

    let began = Instant::now();
    aks.shutdown.begin(began);
    eventually("nothing is accepted any more", async || {
        TcpStream::connect(vip).await.is_err().then_some(())
    })
    .await;
    ends.write_all(b"+half").await.unwrap();
    ends.shutdown().await.unwrap();
    let mut answer = String::new();
    ends.read_to_string(&mut answer).await.unwrap();
    assert_eq!(
        answer, "kind:half+half",
        "a flow that ends before the deadline ends normally"
    );
    let error = tokio::time::timeout(PATIENCE, stays.read(&mut [0; 8]))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(
        began.elapsed() >= Duration::from_secs(2),
        "reset at the deadline, not before: {:?}",
        began.elapsed()
    );
    aks.gateway.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_restarts_is_found_again() {
    let world = World::new(&BOTH);
    let backend = world.backend("kind", 0);
    let world = world.with(Service::tcp("k", 0).at("kind", [backend]));
    backend::tcp(backend, "kind").await;
    let mut sites = world.start_all(Transport::Quic).await;
    assert_eq!(ask(world.vip("aks", 0), "1").await.unwrap(), "kind:1");
    sites.pop().unwrap().end().await;
    sites[0].wait_state("kind", LinkState::Down).await;
    let _kind = world.start("kind", Transport::Quic).await;
    sites[0].wait_state("kind", LinkState::Up).await;
    assert_eq!(ask(world.vip("aks", 0), "2").await.unwrap(), "kind:2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_snapshot_moves_listeners_and_grants_and_an_eviction_cuts_the_tunnel() {
    let world = World::new(&BOTH);
    let backend = world.backend("kind", 0);
    let world = world.with(Service::tcp("k", 0).at("kind", [backend]));
    backend::tcp(backend, "kind").await;
    let sites = world.start_all(Transport::Auto).await;
    let (old, new) = (world.vip("aks", 0), world.vip("aks", 1));
    assert_eq!(ask(old, "1").await.unwrap(), "kind:1");

    // The VIP moves: the old address refuses, the new one serves.
    let moved = sites[0].change(|snapshot| {
        let import = Arc::make_mut(snapshot.imports.values_mut().next().unwrap());
        import.ips = vec![new.ip()];
    });
    eventually("the new VIP serves", async || {
        (ask(new, "2").await.ok()? == "kind:2").then_some(())
    })
    .await;
    eventually("the old VIP is closed", async || {
        TcpStream::connect(old).await.is_err().then_some(())
    })
    .await;
    assert_eq!(moved.version.local, 1);

    // The grant goes: a new flow is refused by the exporter, whatever the caller believes.
    sites[1].change(|snapshot| {
        let export = Arc::make_mut(snapshot.exports.values_mut().next().unwrap());
        export.granted = Some(BTreeSet::new());
    });
    eventually("the grant is gone", async || {
        ask(new, "3").await.is_err().then_some(())
    })
    .await;

    // Evicted: no link is left on either side that knows.
    sites[0].change(|snapshot| {
        snapshot.clusters.remove("kind");
    });
    eventually("no link", async || {
        sites[0].links.current().is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_is_bound_once_it_is_free() {
    let world = World::new(&BOTH);
    let backend = world.backend("aks", 0);
    let world = world.with(Service::tcp("a", 0).at("aks", [backend]));
    backend::tcp(backend, "aks").await;
    let vip = world.vip("aks", 0);
    let taken = tokio::net::TcpListener::bind(vip).await.unwrap();
    let site = world.start("aks", Transport::Auto).await;
    site.wait_ready().await;
    let state = site.http("/state").await.unwrap();
    assert!(state.contains("address already in use"), "{state}");
    drop(taken);
    eventually("the VIP serves", async || {
        (ask(vip, "q").await.ok()? == "aks:q").then_some(())
    })
    .await;
}
