//! Rehearsed and real failures, measured.

use serde_json::Value;
use tombolo_test_support::Clusterset;

use crate::{AKS, EKS, GKE};

/// 100 requests per second from `from`, hiding its own backends; the nearest other cluster serves them until it fails.
fn drill(clusterset: &Clusterset, kind: &str, target: &str, from: &str, more: &[&str]) -> (i32, Value) {
    let args = [
        "drill",
        "run",
        "--kind",
        kind,
        "--target",
        target,
        "--from",
        from,
        "--service",
        "shop/checkout",
        "-o",
        "json",
    ];
    let finished = clusterset.tombolo(&[&args[..], more].concat());
    eprintln!("{kind} of {target} {more:?}: {}", finished.stderr);
    (finished.code, finished.json())
}

fn assert_proved(kind: &str, (code, result): (i32, Value)) {
    assert_eq!(result["requests_failed"], 0, "{kind}: {result}");
    let failover = result["failover_ms"]
        .as_f64()
        .unwrap_or_else(|| panic!("{kind} has no failover: {result}"));
    assert!(failover > 0.0 && failover < 1000.0, "{kind}: {failover} ms");
    assert!(
        result["failback_ms"].is_number(),
        "{kind}: traffic returns: {result}"
    );
    assert!(result["requests_total"].as_u64() > Some(500), "{kind}: {result}");
    assert_eq!(
        (code, &result["verdict"]),
        (0, &Value::from("passed")),
        "{kind}: {result}"
    );
}

#[test]
fn drills_prove_something_or_say_that_they_did_not() {
    let clusterset = Clusterset::start();
    let short = ["--duration", "5s", "--baseline", "2s", "--recovery", "5s"];

    // On loopback all clusters are equally far, so the least id serves what the caller's own backends would have.
    assert_proved(
        "cluster-down",
        drill(&clusterset, "cluster-down", AKS, GKE, &short),
    );
    let http = [&short[..], &["--http-get", "/"]].concat();
    assert_proved("link-cut", drill(&clusterset, "link-cut", AKS, EKS, &http));
    let report = clusterset.path("report.html");
    let path = report.to_str().expect("a path");
    let real = [
        "--duration",
        "5s",
        "--baseline",
        "2s",
        "--recovery",
        "10s",
        "--real",
        "--report",
        path,
    ];
    assert_proved(
        "cluster-down --real",
        drill(&clusterset, "cluster-down", AKS, GKE, &real),
    );
    let page = std::fs::read_to_string(&report).expect("the report is written");
    assert!(
        page.contains("<svg") && !page.contains("src="),
        "one self-contained page"
    );

    // The target serves nothing that `from` sends: its traffic all goes to the nearer cluster.
    let (code, result) = drill(
        &clusterset,
        "cluster-down",
        EKS,
        GKE,
        &[&short[..], &["--force"]].concat(),
    );
    assert_ne!(code, 0, "{result}");
    assert_eq!(result["verdict"], "inconclusive", "{result}");
    assert!(result["failover_ms"].is_null(), "{result}");

    // A drill that would leave a service without an endpoint is refused.
    let only = [
        "drill",
        "run",
        "--kind",
        "cluster-down",
        "--target",
        EKS,
        "--from",
        GKE,
        "--service",
        "shop/checkout",
    ];
    let refused = clusterset.tombolo(&only);
    assert_ne!(refused.code, 0);
    assert!(
        refused.stderr.contains("shop/invoices has no healthy endpoint"),
        "{refused:?}"
    );
}
