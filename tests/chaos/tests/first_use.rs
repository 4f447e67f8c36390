//! What a new user does: `up`, dig, curl, a datagram.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tombolo_test_support::{Clusterset, dig, http_get, tcp_bytes, udp_exchange};

use crate::{AKS, EKS, GKE};

const CHECKOUT: &str = "checkout.shop.svc.clusterset.local";

#[test]
fn three_clusters_are_one() {
    let clusterset = Clusterset::start();
    assert!(
        clusterset.ready_after() < Duration::from_secs(15),
        "ready after {:?}",
        clusterset.ready_after()
    );
    names_resolve_in_every_cluster(&clusterset);
    headless_names_lead_to_each_pod(&clusterset);
    what_must_not_exist_does_not(&clusterset);
    truncated_answers_come_whole_over_tcp(&clusterset);
    traffic_stays_local(&clusterset);
    remote_backends_are_reached(&clusterset);
    operators_see_it(&clusterset);
    random_bytes_hurt_nobody(&clusterset);
}

/// The address of a ClusterSetIP service as a client in `cluster` learns it.
fn clusterset_ip(clusterset: &Clusterset, cluster: &str, name: &str) -> IpAddr {
    let answer = dig(clusterset.dns(cluster), name, "A", &[]);
    let [address] = answer.addresses()[..] else {
        panic!("{name} in {cluster}: {answer:?}")
    };
    address
}

fn names_resolve_in_every_cluster(clusterset: &Clusterset) {
    for cluster in [AKS, EKS, GKE] {
        let server = clusterset.dns(cluster);
        for name in ["checkout", "invoices", "telemetry"] {
            clusterset_ip(clusterset, cluster, &format!("{name}.shop.svc.clusterset.local"));
        }
        let srv = dig(server, CHECKOUT, "SRV", &[]);
        assert_eq!(
            srv.records,
            [format!("0 100 8080 {CHECKOUT}.")],
            "{cluster}: one record, port and own name"
        );
        let named = dig(server, &format!("_http._tcp.{CHECKOUT}"), "SRV", &[]);
        assert_eq!(named.records, srv.records, "{cluster}");
        let version = dig(server, "dns-version.clusterset.local", "TXT", &[]);
        assert_eq!(version.records, ["\"1.0.0\""], "{cluster}");
        let upper = dig(server, "CheckOut.Shop.svc.CLUSTERSET.local", "A", &[]);
        assert_eq!(
            upper.addresses(),
            dig(server, CHECKOUT, "A", &[]).addresses(),
            "{cluster}: case does not matter"
        );
    }
}

fn headless_names_lead_to_each_pod(clusterset: &Clusterset) {
    for cluster in [AKS, EKS, GKE] {
        let server = clusterset.dns(cluster);
        let all: BTreeSet<IpAddr> = dig(server, "ledger.shop.svc.clusterset.local", "A", &[])
            .addresses()
            .into_iter()
            .collect();
        assert_eq!(
            all.len(),
            4,
            "{cluster} sees two pods of each of two clusters: {all:?}"
        );
        for exporter in [AKS, GKE] {
            for pod in ["ledger-0", "ledger-1"] {
                let name = format!("{pod}.{exporter}.ledger.shop.svc.clusterset.local");
                let answer = dig(server, &name, "A", &[]);
                let [address] = answer.addresses()[..] else {
                    panic!("{name} in {cluster}: {answer:?}")
                };
                assert!(all.contains(&address), "{name} is one of all");
                let body = http_get(SocketAddr::new(address, 8082))
                    .unwrap_or_else(|error| panic!("{name} from {cluster}: {error}"));
                assert!(
                    body.starts_with(&format!("ledger from {exporter} at ")),
                    "{name} from {cluster}: {body}"
                );
            }
        }
    }
}

fn what_must_not_exist_does_not(clusterset: &Clusterset) {
    let server = clusterset.dns(AKS);
    for (name, record_type, rcode) in [
        ("internal.shop.svc.clusterset.local", "A", "NXDOMAIN"),
        ("nothing.shop.svc.clusterset.local", "A", "NXDOMAIN"),
        (
            "aks-westeurope.checkout.shop.svc.clusterset.local",
            "A",
            "NXDOMAIN",
        ),
        ("aks-westeurope.ledger.shop.svc.clusterset.local", "A", "NOERROR"),
        (CHECKOUT, "AAAA", "NOERROR"),
        ("example.com", "A", "REFUSED"),
    ] {
        let answer = dig(server, name, record_type, &[]);
        assert_eq!(
            (answer.rcode.as_str(), answer.records.len()),
            (rcode, 0),
            "{name} {record_type}"
        );
    }
}

fn truncated_answers_come_whole_over_tcp(clusterset: &Clusterset) {
    let server = clusterset.dns(EKS);
    let name = "ledger.shop.svc.clusterset.local";
    let small = dig(server, name, "SRV", &["+noedns", "+ignore"]);
    let whole = dig(server, name, "SRV", &["+tcp"]);
    let followed = dig(server, name, "SRV", &["+noedns"]);
    assert_eq!(whole.records.len(), 4, "{whole:?}");
    assert_eq!(
        followed.records, whole.records,
        "truncated over UDP ({small:?}), whole after the retry"
    );
}

fn traffic_stays_local(clusterset: &Clusterset) {
    for cluster in [AKS, EKS, GKE] {
        let address = SocketAddr::new(clusterset_ip(clusterset, cluster, CHECKOUT), 8080);
        for _ in 0..20 {
            let body = http_get(address).unwrap_or_else(|error| panic!("checkout in {cluster}: {error}"));
            assert!(
                body.contains(&format!(" from {cluster} ")),
                "{cluster} calls {body}"
            );
        }
    }
}

fn remote_backends_are_reached(clusterset: &Clusterset) {
    for cluster in [AKS, GKE] {
        let invoices = clusterset_ip(clusterset, cluster, "invoices.shop.svc.clusterset.local");
        let body = http_get(SocketAddr::new(invoices, 8081))
            .unwrap_or_else(|error| panic!("invoices from {cluster}: {error}"));
        assert!(body.contains(&format!("invoices from {EKS} ")), "{body}");
    }
    let telemetry = clusterset_ip(clusterset, AKS, "telemetry.shop.svc.clusterset.local");
    for len in [1, 1_400, 8_000, 60_000] {
        let payload = vec![b'x'; len];
        let answer = udp_exchange(SocketAddr::new(telemetry, 8125), &payload)
            .unwrap_or_else(|error| panic!("{len} bytes to telemetry: {error}"));
        let words = String::from_utf8_lossy(&answer[..answer.len() - len]);
        assert!(words.contains(&format!("telemetry from {GKE} ")), "{words}");
        assert_eq!(
            answer[answer.len() - len..],
            payload,
            "{len} bytes come back whole"
        );
    }
}

fn operators_see_it(clusterset: &Clusterset) {
    let clusters = clusterset.json(&["get", "clusters"]);
    let items = clusters["items"].as_array().expect("a list");
    assert_eq!(items.len(), 3, "{clusters}");
    for item in items {
        for field in ["id", "region", "zone", "network", "dns", "gateway", "lease"] {
            assert!(
                item.get(field).is_some_and(|value| !value.is_null()),
                "{field} in {item}"
            );
        }
        assert_eq!(item["lease"], "alive", "{item}");
    }
    let status = clusterset.json(&["status"]);
    let processes = status["processes"].as_array().expect("processes");
    for role in ["broker", "agent", "gateway", "dns", "sidecar"] {
        let count = processes
            .iter()
            .filter(|process| process["role"] == role && process["pid"].as_u64() > Some(0))
            .count();
        assert_eq!(count, 3, "{role}: {processes:?}");
    }
    let resolved = clusterset.tombolo(&["resolve", CHECKOUT, "--cluster", AKS]);
    assert_eq!(resolved.code, 0, "{resolved:?}");
    let explained = clusterset.tombolo(&["explain", "shop/checkout", "--from", AKS]);
    assert_eq!(explained.code, 0, "{explained:?}");
    for word in [AKS, EKS, GKE, "127.11.1.1"] {
        assert!(explained.stdout.contains(word), "{word}: {}", explained.stdout);
    }
    let check = clusterset.tombolo(&["check"]);
    assert_eq!(check.code, 0, "{check:?}");
}

fn random_bytes_hurt_nobody(clusterset: &Clusterset) {
    let before = clusterset.json(&["status"])["processes"].clone();
    let noise: Vec<u8> = (0..4096_u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let listeners = [
        "127.10.0.1:7400",
        "127.10.0.1:7401",
        "127.10.0.1:7402",
        "127.11.0.1:7412",
        "127.11.0.2:7443",
        "127.11.0.2:7422",
        "127.11.0.10:5353",
        "127.11.0.10:7432",
        "127.11.0.3:7442",
    ];
    let listeners = listeners
        .into_iter()
        .map(|listener| listener.parse().expect("an address"));
    for address in listeners.chain(places_of_imports(clusterset)) {
        for len in [1, 17, 512, noise.len()] {
            // Whether the peer answers, resets or waits is its choice; that it lives on is checked below.
            let _ = tcp_bytes(address, &noise[..len], Duration::from_millis(300));
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
            let _ = socket.send_to(&noise[..len.min(1400)], address);
        }
    }
    for path in [
        "up.sock",
        "clusters/aks-westeurope/agent.sock",
        "clusters/aks-westeurope/gateway.sock",
    ] {
        for len in [1, 17, 512, noise.len()] {
            let mut socket = UnixStream::connect(clusterset.data_dir().join(path)).expect("it listens");
            // As above: it may hang up before it has read all.
            let _ = socket.write_all(&noise[..len]);
        }
    }
    assert_eq!(
        clusterset.json(&["status"])["processes"],
        before,
        "no process ended"
    );
    names_resolve_in_every_cluster(clusterset);
    traffic_stays_local(clusterset);
}

/// Where imports are served in the first cluster: at the gateway, and by the sidecar at the same offset of its own range.
fn places_of_imports(clusterset: &Clusterset) -> Vec<SocketAddr> {
    let imports = clusterset.json(&["get", "imports"]);
    let mut places = Vec::new();
    for import in imports["items"].as_array().expect("a list") {
        if import["seen_from"] != AKS {
            continue;
        }
        for ip in import["ips"].as_array().expect("addresses") {
            let vip: Ipv4Addr = ip.as_str().expect("text").parse().expect("an address");
            // 127.11.64.0/20 is vip_range, 127.11.80.0/20 the sidecar's range.
            let [a, b, c, d] = vip.octets();
            for port in import["ports"].as_array().expect("ports") {
                let port = port["port"].as_u64().expect("a number");
                let port = u16::try_from(port).expect("a port");
                places.push(SocketAddr::from((vip, port)));
                places.push(SocketAddr::from(([a, b, c + 16, d], port)));
            }
        }
    }
    assert!(places.len() >= 6, "three services with an address: {places:?}");
    places
}
