//! The root is rotated under traffic; a cluster is evicted.

use std::net::SocketAddr;
use std::time::Duration;

use tombolo_test_support::{Clusterset, dig, eventually, http_get, within};

use crate::{AKS, EKS, GKE};

/// Leaves and intermediates renew themselves, spread over some seconds so that 250 clusters do not ask at once.
const RENEWAL: Duration = Duration::from_secs(60);

/// invoices is served by eks alone, so a call from aks crosses a tunnel.
fn crosses(clusterset: &Clusterset) -> bool {
    let answer = dig(
        clusterset.dns(AKS),
        "invoices.shop.svc.clusterset.local",
        "A",
        &[],
    );
    let address = answer.addresses().first().map(|ip| SocketAddr::new(*ip, 8081));
    address.is_some_and(|address| http_get(address).is_ok_and(|body| body.contains(EKS)))
}

fn stage(clusterset: &Clusterset) -> String {
    let status = clusterset.json(&["ca", "status"]);
    status["stage"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn the_root_is_rotated_and_a_cluster_evicted() {
    let mut clusterset = Clusterset::start();
    for expected in ["staged", "switched", "steady"] {
        let (_, took) = within(RENEWAL, "the next stage", || {
            let finished = clusterset.tombolo(&["ca", "rotate"]);
            if finished.code == 0 {
                Ok(())
            } else {
                Err(finished.stderr)
            }
        });
        eprintln!("{expected} after {} ms", took.as_millis());
        assert_eq!(stage(&clusterset), expected, "the operator is not left behind");
        assert!(crosses(&clusterset), "traffic goes on when {expected}");
    }
    // New tunnels, under the new root alone.
    clusterset.kill(EKS, Some("gateway"), Duration::from_millis(100));
    eventually(Duration::from_secs(15), "new tunnels under the new root", || {
        crosses(&clusterset)
    });
    assert_eq!(clusterset.stop(), 0);
    clusterset.up();
    assert!(crosses(&clusterset), "and after a restart of everything");

    assert_eq!(clusterset.tombolo(&["evict", EKS, "--yes"]).code, 0);
    let cut = eventually(Duration::from_secs(5), "the evicted cluster is cut off", || {
        !crosses(&clusterset)
    });
    eprintln!("evicted → no traffic: {} ms", cut.as_millis());
    eventually(Duration::from_secs(5), "its exports are gone", || {
        dig(
            clusterset.dns(GKE),
            "invoices.shop.svc.clusterset.local",
            "A",
            &[],
        )
        .rcode
            == "NXDOMAIN"
    });
    assert_eq!(clusterset.stop(), 0);
    clusterset.up();
    assert!(
        clusterset
            .printed()
            .contains("eks-us-east-1 was evicted or has left"),
        "{}",
        clusterset.printed()
    );
    let clusters = clusterset.json(&["get", "clusters"]);
    assert_eq!(clusters["items"].as_array().map(Vec::len), Some(2), "{clusters}");
}
