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

/// The cluster that serves most of what `from` sends when its own backends are hidden: the one a drill must hit.
fn nearest(clusterset: &Clusterset, from: &str) -> &'static str {
    let links = clusterset.json(&["get", "links", "--cluster", from]);
    let rtt = |cluster: &str| {
        let items = links["items"].as_array().expect("a list");
        items
            .iter()
            .find(|link| link["to"] == cluster)
            .and_then(|link| link["rtt_ms"].as_f64())
            .unwrap_or(f64::MAX)
    };
    [AKS, EKS, GKE]
        .into_iter()
        .filter(|cluster| *cluster != from)
        .min_by(|a, b| rtt(a).total_cmp(&rtt(b)))
        .expect("two")
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

    let target = nearest(&clusterset, AKS);
    assert_proved(
        "cluster-down",
        drill(&clusterset, "cluster-down", target, AKS, &short),
    );
    let http = [&short[..], &["--http-get", "/"]].concat();
    let target = nearest(&clusterset, AKS);
    assert_proved("link-cut", drill(&clusterset, "link-cut", target, AKS, &http));
    let real = [&short[..], &["--real", "--recovery", "10s"]].concat();
    let target = nearest(&clusterset, AKS);
    let report = clusterset.path("report.html");
    let reported = [&real[..], &["--report", report.to_str().expect("a path")]].concat();
    assert_proved(
        "cluster-down --real",
        drill(&clusterset, "cluster-down", target, AKS, &reported),
    );
    let page = std::fs::read_to_string(&report).expect("the report is written");
    assert!(
        page.contains("<svg") && !page.contains("http-equiv") && !page.contains("src="),
        "one self-contained page"
    );

    // The target serves nothing that `from` sends: its traffic all goes to the nearer cluster.
    let far = [AKS, EKS, GKE]
        .into_iter()
        .find(|cluster| *cluster != AKS && *cluster != nearest(&clusterset, AKS));
    let (code, result) = drill(&clusterset, "cluster-down", far.expect("a third"), AKS, &short);
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
        AKS,
        "--service",
        "shop/invoices",
    ];
    let refused = clusterset.tombolo(&only);
    assert_ne!(refused.code, 0);
    assert!(
        refused.stderr.contains("without a healthy endpoint"),
        "{refused:?}"
    );
}
