//! Brokers die; names, traffic and what was acknowledged do not.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use tombolo_test_support::{Clusterset, dig, eventually, http_get};

use crate::{AKS, EKS, GKE};

const CHECKOUT: &str = "checkout.shop.svc.clusterset.local";
const HOLD: Duration = Duration::from_secs(600);

fn leader(clusterset: &Clusterset) -> String {
    let status = clusterset.json(&["status"]);
    let brokers = status["brokers"].as_array().expect("brokers");
    let leader = brokers
        .iter()
        .find(|broker| broker["leader"] == true)
        .unwrap_or_else(|| panic!("no leader: {status}"));
    format!("broker-{}", leader["id"])
}

fn export(clusterset: &Clusterset, cluster: &str, name: &str) {
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  ports: [{{name: http, port: 8080}}]\n---\n\
         apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {{name: {name}, namespace: shop}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-1\n  namespace: shop\n  labels: {{kubernetes.io/service-name: {name}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints: [{{addresses: [127.11.1.1], conditions: {{ready: true}}}}]\n"
    );
    let folder = clusterset.clusters().join(cluster).join("manifests");
    let temporary = folder.join(".new");
    std::fs::write(&temporary, text).expect("written");
    std::fs::rename(temporary, folder.join(format!("{name}.yaml"))).expect("renamed");
}

fn exists(clusterset: &Clusterset, cluster: &str, name: &str) -> bool {
    dig(
        clusterset.dns(cluster),
        &format!("{name}.shop.svc.clusterset.local"),
        "A",
        &[],
    )
    .rcode
        == "NOERROR"
}

#[test]
fn brokers_die_and_nothing_is_lost() {
    let mut clusterset = Clusterset::start();
    export(&clusterset, AKS, "before");
    let visible = eventually(Duration::from_secs(5), "an export is seen elsewhere", || {
        exists(&clusterset, GKE, "before")
    });
    eprintln!("export → name in another cluster: {} ms", visible.as_millis());

    let died = Instant::now();
    let leader = leader(&clusterset);
    clusterset.kill(&leader, None, Duration::from_secs(15));
    export(&clusterset, AKS, "after");
    eventually(
        Duration::from_secs(10),
        "a write after the leader's death",
        || exists(&clusterset, GKE, "after"),
    );
    let resumed = died.elapsed();
    eprintln!("leader killed → next write seen: {} ms", resumed.as_millis());
    assert!(
        resumed < Duration::from_secs(3),
        "writes resume after {resumed:?}"
    );
    assert!(
        exists(&clusterset, EKS, "before") && exists(&clusterset, EKS, "after"),
        "what was acknowledged is there"
    );
    eventually(Duration::from_secs(30), "the dead broker is back", || {
        let processes = clusterset.json(&["status"])["processes"].clone();
        processes
            .as_array()
            .is_some_and(|all| all.iter().all(|process| process["pid"].as_u64() > Some(0)))
    });

    without_any_broker(&clusterset);
    for cluster in [AKS, EKS, GKE] {
        clusterset.kill(cluster, None, Duration::from_millis(200));
    }
    eventually(
        Duration::from_secs(20),
        "every other process is back, still with no broker",
        || {
            [AKS, EKS, GKE].into_iter().all(|cluster| {
                let answer = dig(clusterset.dns(cluster), CHECKOUT, "A", &[]);
                answer
                    .addresses()
                    .first()
                    .is_some_and(|ip| http_get(SocketAddr::new(*ip, 8080)).is_ok())
            }) && observed_without_brokers(&clusterset)
        },
    );
    remote_traffic(&clusterset);
    assert_eq!(clusterset.stop(), 0, "up ends well");
}

fn without_any_broker(clusterset: &Clusterset) {
    for id in 1..=3 {
        clusterset.kill(&format!("broker-{id}"), None, HOLD);
    }
    assert!(observed_without_brokers(clusterset));
    remote_traffic(clusterset);
    let imports = clusterset.json(&["get", "imports"]);
    assert_eq!(imports["source"]["from"], "agent", "{imports}");
    assert!(
        imports["source"]["age_ms"].is_number(),
        "it says how old its view is: {imports}"
    );
    let explained = clusterset.tombolo(&["explain", "shop/checkout", "--from", AKS]);
    assert_eq!(explained.code, 0, "{explained:?}");
    let resolved = clusterset.tombolo(&["resolve", CHECKOUT, "--cluster", EKS]);
    assert_eq!(resolved.code, 0, "{resolved:?}");
    let status: Value = clusterset.tombolo(&["status", "-o", "json"]).json();
    assert_eq!(status["clusters"].as_array().map(Vec::len), Some(3), "{status}");
}

fn observed_without_brokers(clusterset: &Clusterset) -> bool {
    [AKS, EKS, GKE].into_iter().all(|cluster| {
        ["checkout", "invoices", "before", "after"]
            .into_iter()
            .all(|name| exists(clusterset, cluster, name))
    })
}

fn remote_traffic(clusterset: &Clusterset) {
    eventually(Duration::from_secs(10), "traffic to another cluster", || {
        let answer = dig(
            clusterset.dns(AKS),
            "invoices.shop.svc.clusterset.local",
            "A",
            &[],
        );
        let address = answer.addresses().first().map(|ip| SocketAddr::new(*ip, 8081));
        address.is_some_and(|address| http_get(address).is_ok_and(|body| body.contains(EKS)))
    });
}
