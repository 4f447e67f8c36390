//! `up` again, `up` twice, `up` where it cannot.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use tombolo_test_support::Clusterset;

use crate::{AKS, EKS, GKE};

fn fingerprint(clusterset: &Clusterset) -> Vec<(String, Vec<u8>)> {
    let identity = |folder: &Path| {
        (
            folder.display().to_string(),
            fs::read(folder.join("key.pem")).expect("a key"),
        )
    };
    let clusters = [AKS, EKS, GKE].map(|cluster| {
        clusterset
            .data_dir()
            .join("clusters")
            .join(cluster)
            .join("identity")
    });
    let brokers = [1, 2, 3].map(|id| clusterset.data_dir().join(format!("brokers/{id}/data/identity")));
    clusters
        .iter()
        .chain(&brokers)
        .map(|folder| identity(folder))
        .collect()
}

fn vips(clusterset: &Clusterset) -> String {
    let imports = clusterset.json(&["get", "imports", "--cluster", AKS]);
    let items = imports["items"].as_array().expect("a list");
    items
        .iter()
        .map(|item| format!("{} {}\n", item["service"], item["ips"]))
        .collect()
}

#[test]
fn a_second_up_has_the_same_identities() {
    let mut clusterset = Clusterset::start();
    let (keys, addresses) = (fingerprint(&clusterset), vips(&clusterset));
    let clusters = clusterset.clusters();
    let again = ["up", "--clusters", clusters.to_str().expect("a path")];

    let twice = clusterset.tombolo(&again);
    assert_ne!(twice.code, 0);
    assert!(
        twice
            .stderr
            .contains("another `tombolo up` runs with data directory"),
        "{twice:?}"
    );

    assert_eq!(clusterset.stop(), 0);
    clusterset.up();
    assert_eq!(fingerprint(&clusterset), keys, "identities");
    assert_eq!(vips(&clusterset), addresses, "clusterset IPs");
    assert_eq!(clusterset.stop(), 0);

    let taken = TcpListener::bind("127.11.0.2:7443").expect("free after the stop");
    let refused = clusterset.tombolo(&again);
    assert_ne!(refused.code, 0);
    assert!(
        refused
            .stderr
            .contains("127.11.0.2:7443 (gateway of aks-westeurope)"),
        "{refused:?}"
    );
    drop(taken);

    let config = clusters.join(AKS).join("cluster.toml");
    let text = fs::read_to_string(&config).expect("readable");
    fs::write(&config, text.replace("region =", "regoin =")).expect("writable");
    let refused = clusterset.tombolo(&again);
    assert_ne!(refused.code, 0);
    assert!(
        refused.stderr.contains("regoin") && refused.stderr.contains("region"),
        "{refused:?}"
    );
    fs::write(&config, text).expect("writable");

    fs::rename(clusters.join(GKE), clusterset.path("gone")).expect("moved");
    let refused = clusterset.tombolo(&again);
    assert_ne!(refused.code, 0);
    assert!(
        refused.stderr.contains("was made for 3 brokers and the clusters"),
        "{refused:?}"
    );
}

#[test]
fn detach_returns_when_ready_and_down_stops_it() {
    let mut clusterset = Clusterset::start();
    assert_eq!(clusterset.stop(), 0);
    let clusters = clusterset.clusters();
    let detached = clusterset.tombolo(&["up", "--detach", "--clusters", clusters.to_str().expect("a path")]);
    assert_eq!(detached.code, 0, "{detached:?}");
    assert_eq!(
        clusterset.json(&["get", "clusters"])["items"]
            .as_array()
            .map(Vec::len),
        Some(3)
    );
    let down = clusterset.tombolo(&["down"]);
    assert_eq!(down.code, 0, "{down:?}");
    TcpListener::bind("127.11.0.2:7443").expect("nothing is left running");
    let again = clusterset.tombolo(&["down"]);
    assert_ne!(again.code, 0);
    assert!(
        again.stderr.contains("no clusterset runs with data directory"),
        "{again:?}"
    );
}
