use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::*;
use crate::ready::Blocker;
use crate::seam::clock::HostClock;
use crate::seam::net::{HostNetwork, Network};

struct Bench {
    address: SocketAddr,
    blocker: Blocker,
    shutdown: Shutdown,
    _server: JoinSet<TaskResult>,
}

async fn bench() -> Bench {
    let readiness = Readiness::new();
    let blocker = readiness.block("broker-watch");
    let shutdown = Shutdown::new(Duration::from_secs(1));
    let mut registry = Registry::default();
    let flows = Counter::<u64, AtomicU64>::default();
    flows.inc_by(3);
    registry.register("flows", "Flows forwarded", flows);
    let admin = Admin {
        readiness,
        shutdown: shutdown.clone(),
        registry: Arc::new(registry),
        state: Arc::new(|| serde_json::json!({ "clusters": 2 })),
    };
    let listener = HostNetwork.listen(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = JoinSet::new();
    server.spawn(serve(listener, admin.router(), Arc::new(HostClock)));
    Bench {
        address,
        blocker,
        shutdown,
        _server: server,
    }
}

impl Bench {
    /// Sends `request` as it is and returns all that comes back.
    async fn say(&self, request: &str) -> String {
        let mut stream = HostNetwork.dial(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn check(&self, path: &str, status: u16, body: &str) {
        let answer = self
            .say(&format!(
                "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
            ))
            .await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{path}: {answer}"
        );
        assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{path}: {answer}");
    }
}

#[tokio::test]
async fn probes_follow_readiness_and_drain() {
    let bench = bench().await;
    bench.check("/livez", 200, "alive\n").await;
    bench.check("/readyz", 503, "broker-watch: waiting\n").await;
    bench.blocker.mark_ready();
    bench.check("/readyz", 200, "ready\n").await;
    bench.blocker.mark_unready("lost the leader");
    bench
        .check("/readyz", 503, "broker-watch: lost the leader\n")
        .await;
    bench.blocker.mark_ready();
    bench.shutdown.begin(Instant::now());
    bench.check("/readyz", 503, "draining\n").await;
    bench.check("/livez", 200, "alive\n").await;
}

#[tokio::test]
async fn metrics_are_openmetrics_and_state_is_json() {
    let bench = bench().await;
    let metrics = "# HELP flows Flows forwarded.\n# TYPE flows counter\nflows_total 3\n# EOF\n";
    bench.check("/metrics", 200, metrics).await;
    let head = bench
        .say("HEAD /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await;
    assert!(
        head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"),
        "{head}"
    );
    bench.check("/state", 200, r#"{"clusters":2}"#).await;
    bench.check("/nothing", 404, "").await;
}

#[tokio::test]
async fn only_reads_without_a_body_are_served() {
    let bench = bench().await;
    let table = [
        (
            "POST /state HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 405 ",
        ),
        ("DELETE /state HTTP/1.1\r\nhost: x\r\n\r\n", "HTTP/1.1 405 "),
        (
            "GET /state HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n",
            "HTTP/1.1 413 ",
        ),
        (
            "GET /state HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 413 ",
        ),
        ("nonsense\r\n\r\n", "HTTP/1.1 400 "),
    ];
    for (request, status) in table {
        let answer = bench.say(request).await;
        assert!(answer.starts_with(status), "{request:?}: {answer}");
    }
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(2 * BUFFER_BYTES));
    let answer = bench.say(&long).await;
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
}

#[tokio::test]
async fn silent_clients_are_cut_off_and_then_others_are_served() {
    let bench = bench().await;
    let mut silent = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        silent.push(HostNetwork.dial(bench.address).await.unwrap());
    }
    let start = Instant::now();
    tokio::time::timeout(6 * HEADER_TIMEOUT, bench.check("/livez", 200, "alive\n"))
        .await
        .unwrap();
    assert!(
        start.elapsed() > HEADER_TIMEOUT / 2,
        "the bound on connections held it back"
    );
}
