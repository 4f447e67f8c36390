//! Start and end.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tombolo_clusterset::endpoint::Protocol;
use tombolo_daemon::Seams;

use super::site::{Site, World, backend, in_time, name_of};
use crate::config::Mode;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_live_at_once_and_ready_with_its_first_snapshot() {
    let site = Site::start(&World::new());
    assert!(site.admin("/livez").await.ends_with("alive\n"));
    site.admin_says("/readyz", "snapshot: waiting").await;
    site.publish().await;
    site.admin_says("/readyz", "\r\n\r\nready\n").await;
    assert!(
        site.admin("/state")
            .await
            .contains(r#""workload":"ns/shop/sa/client""#)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_lets_flows_end_and_resets_the_rest() {
    let world = World::new();
    let local = backend("home").await;
    let mut site = Site::start_with(&world, Some((local, Mode::Permissive)));
    site.import("shop/checkout", 1, Protocol::Tcp, &[("home", &[local])]);
    site.publish().await;
    let mut ends = TcpStream::connect(site.listener(1)).await.unwrap();
    let mut stays = TcpStream::connect(site.listener(1)).await.unwrap();
    let mut inbound = TcpStream::connect(site.inbound()).await.unwrap();
    for stream in [&mut ends, &mut stays, &mut inbound] {
        assert_eq!(name_of(stream).await.as_deref(), Some("home"));
    }
    site.shutdown.begin(Seams::host().clock.now());
    let refused = async { while TcpStream::connect(site.listener(1)).await.is_ok() {} };
    in_time(refused).await;
    ends.write_all(b"last").await.unwrap();
    ends.shutdown().await.unwrap();
    let mut echoed = Vec::new();
    in_time(ends.read_to_end(&mut echoed)).await.unwrap();
    assert_eq!(echoed, b"last", "it ends as if nothing were");
    for mut stream in [stays, inbound] {
        let error = in_time(stream.read_u8()).await.unwrap_err();
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ConnectionReset,
            "never a normal end"
        );
    }
    in_time(site.running).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_that_cannot_work_is_refused() {
    let site = Site::start(&World::new());
    assert!(site.admin("/livez").await.contains("alive"));
    // The same again: its admin address is taken.
    let error = site.again(&World::new()).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("sidecar.admin: address already in use"),
        "{error}"
    );
}
