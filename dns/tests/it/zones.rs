//! Which endpoints are named: verdicts, stand-ins, ports, and a zone that follows its snapshot.

use std::collections::BTreeMap;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use tombolo_clusterset::endpoint::Protocol;
use tombolo_clusterset::reachability::{Lease, LinkState};
use tombolo_clusterset::{LossPolicy, Snapshot};

use crate::answers::{Expect, ask, check};
use crate::fixture::{EKS, GKE, HERE, import, ip, port, shop, snapshot, zone};

/// Which of the addresses of `shop/ledger` are named.
fn named(snapshot: &Snapshot, links: &[(&str, LinkState)]) -> Vec<String> {
    let answer = ask(
        &zone(snapshot, links),
        "ledger.shop.svc.clusterset.local.",
        RecordType::A,
    );
    let mut named: Vec<_> = answer
        .answers
        .iter()
        .map(|record| record.data.to_string())
        .collect();
    named.sort();
    named
}

#[test]
fn verdicts_decide_who_is_named() {
    let http = port("http", Protocol::Tcp, 80);
    let ledger = |here: &[&'static str], policy| {
        let mut ledger = import(
            "shop/ledger",
            &[],
            std::slice::from_ref(&http),
            &[(HERE, here), (EKS, &["10.2.0.1"]), (GKE, &["10.3.0.1~"])],
        );
        ledger
            .clusters
            .values_mut()
            .for_each(|cluster| cluster.loss_policy = policy);
        snapshot([ledger])
    };
    let lost = |mut snapshot: Snapshot| {
        snapshot
            .clusters
            .values_mut()
            .for_each(|view| view.lease = Lease::Lost);
        snapshot
    };
    let evicted = |mut snapshot: Snapshot| {
        snapshot.clusters.remove(EKS);
        snapshot
    };
    use LossPolicy::{Degrade, Keep, Withdraw};
    let local: &[&str] = &["10.1.0.1"];
    let (down, up) = ([(EKS, LinkState::Down)], [(EKS, LinkState::Up)]);
    type Row<'a> = (&'a str, Snapshot, &'a [(&'a str, LinkState)], &'a [&'a str]);
    let table: &[Row<'_>] = &[
        ("all well", ledger(local, Degrade), &up, &["10.1.0.1", "10.2.0.1"]),
        (
            "link lost: not while others are there",
            ledger(local, Degrade),
            &down,
            &["10.1.0.1"],
        ),
        (
            "link lost: as last resort, before a terminating one",
            ledger(&[], Degrade),
            &down,
            &["10.2.0.1"],
        ),
        (
            "lease lost, link up",
            lost(ledger(local, Degrade)),
            &up,
            &["10.1.0.1", "10.2.0.1"],
        ),
        (
            "both lost, within the grace",
            lost(ledger(&[], Degrade)),
            &down,
            &["10.2.0.1"],
        ),
        (
            "withdraw at the first loss",
            ledger(&[], Withdraw),
            &down,
            &["10.3.0.1"],
        ),
        (
            "keep is last resort for ever",
            lost(ledger(&[], Keep)),
            &down,
            &["10.2.0.1"],
        ),
        ("evicted", evicted(ledger(&[], Keep)), &up, &["10.3.0.1"]),
    ];
    for (about, snapshot, links, expected) in table {
        assert_eq!(named(snapshot, links), *expected, "{about}");
    }
    let gone = zone(&evicted(ledger(&[], Keep)), &[]);
    check(
        &gone,
        "10-2-0-1.eks-us-east-1.ledger.shop.svc.clusterset.local.",
        RecordType::A,
        &Expect::NoSuchName,
    );
    check(&gone, "1.0.2.10.in-addr.arpa.", RecordType::PTR, &Expect::Refused);
}

#[test]
fn stand_ins_are_given_under_the_endpoints_own_name() {
    let mut ledger = import(
        "shop/ledger",
        &[],
        &[port("http", Protocol::Tcp, 80)],
        &[(EKS, &["10.2.0.7", "ledger-0@10.2.0.1"])],
    );
    for cluster in ledger.clusters.values_mut() {
        cluster.stand_ins = BTreeMap::from([
            (ip("10.2.0.7"), ip("127.11.70.7")),
            (ip("10.2.0.1"), ip("127.11.70.1")),
        ]);
    }
    let zone = zone(&snapshot([ledger]), &[]);
    let records = Expect::Records(
        &["ledger.shop A 1 127.11.70.1", "ledger.shop A 1 127.11.70.7"],
        &[],
    );
    check(
        &zone,
        "ledger.shop.svc.clusterset.local.",
        RecordType::A,
        &records,
    );
    let name = "10-2-0-7.eks-us-east-1.ledger.shop.svc.clusterset.local.";
    check(
        &zone,
        name,
        RecordType::A,
        &Expect::Records(&["10-2-0-7.eks-us-east-1.ledger.shop A 1 127.11.70.7"], &[]),
    );
}

#[test]
fn a_port_is_named_only_for_clusters_that_expose_it() {
    let (http, admin) = (
        port("http", Protocol::Tcp, 80),
        port("admin", Protocol::Tcp, 9000),
    );
    let mut ledger = import(
        "shop/ledger",
        &[],
        &[http.clone(), admin],
        &[(HERE, &["a@10.1.0.1"]), (EKS, &["b@10.2.0.1"])],
    );
    ledger.clusters.get_mut(EKS).unwrap().ports = vec![http];
    let zone = zone(&snapshot([ledger]), &[]);
    let srv = Expect::Records(
        &["_admin._tcp.ledger.shop SRV 1 0 100 9000 a.aks-westeurope.ledger.shop"],
        &["a.aks-westeurope.ledger.shop A 1 10.1.0.1"],
    );
    check(
        &zone,
        "_admin._tcp.ledger.shop.svc.clusterset.local.",
        RecordType::SRV,
        &srv,
    );
}

#[test]
fn a_zone_follows_its_snapshot() {
    use std::sync::Arc;
    use std::time::Instant;
    use tombolo_dns::signals::Tracker;
    let mut tracker = Tracker::default();
    let mut zones = tombolo_dns::zone::Zones::new(&[], 1);
    let mut build = |snapshot: &Snapshot, links: BTreeMap<_, _>| {
        let verdicts = tracker.observe(Instant::now(), snapshot, &links);
        zones.build(snapshot, &verdicts)
    };
    let mut current = shop();
    let before = build(&current, BTreeMap::new());
    let same = build(&current, BTreeMap::new());
    assert_eq!(before.records(), same.records());
    assert_ne!(before.serial(), same.serial());
    let name = "checkout.shop.svc.clusterset.local.";
    // The import changes its address.
    let mut import = current.imports["shop/checkout"
        .parse::<tombolo_clusterset::ServiceKey>()
        .as_ref()
        .unwrap()]
    .as_ref()
    .clone();
    import.ips = vec![ip("127.11.64.77")];
    let key = import.key.clone();
    current.imports.insert(key.clone(), Arc::new(import));
    let changed = build(&current, BTreeMap::new());
    assert_eq!(
        ask(&changed, name, RecordType::A).answers[0].data.to_string(),
        "127.11.64.77"
    );
    assert_eq!(
        ask(&before, name, RecordType::A).answers[0].data.to_string(),
        "127.11.64.1",
        "an old zone stays as it was"
    );
    assert_eq!(
        ask(&changed, "77.64.11.127.in-addr.arpa.", RecordType::PTR)
            .answers
            .len(),
        1
    );
    assert_eq!(
        ask(&changed, "1.64.11.127.in-addr.arpa.", RecordType::PTR)
            .answers
            .len(),
        0
    );
    // It goes.
    current.imports.remove(&key);
    let gone = build(&current, BTreeMap::new());
    assert_eq!(
        ask(&gone, name, RecordType::A).metadata.response_code,
        ResponseCode::NXDomain
    );
    assert_eq!(
        ask(&gone, "77.64.11.127.in-addr.arpa.", RecordType::PTR)
            .metadata
            .response_code,
        ResponseCode::Refused
    );
    // A verdict changes under an import that did not.
    let eks = crate::fixture::id(EKS);
    let degraded = build(&current, BTreeMap::from([(eks, LinkState::Down)]));
    assert_eq!(
        ask(&degraded, "ledger.shop.svc.clusterset.local.", RecordType::A)
            .answers
            .len(),
        1
    );
    assert_eq!(
        ask(&gone, "ledger.shop.svc.clusterset.local.", RecordType::A)
            .answers
            .len(),
        3
    );
}

#[test]
fn of_one_host_name_the_ready_endpoints_are_named() {
    let (http, admin) = (
        port("http", Protocol::Tcp, 80),
        port("admin", Protocol::Tcp, 9000),
    );
    let mut ledger = import(
        "shop/ledger",
        &[],
        &[http.clone(), admin.clone()],
        &[(EKS, &["a@10.2.0.1"])],
    );
    let draining = crate::fixture::imported(std::slice::from_ref(&admin), &["a@10.2.0.2~"]);
    let eks = ledger.clusters.get_mut(EKS).unwrap();
    eks.slices[0].ports.retain(|port| port.name == "http");
    eks.slices.extend(draining.slices);
    let zone = zone(&snapshot([ledger]), &[]);
    let name = "a.eks-us-east-1.ledger.shop.svc.clusterset.local.";
    let records = Expect::Records(&["a.eks-us-east-1.ledger.shop A 1 10.2.0.1"], &[]);
    check(&zone, name, RecordType::A, &records);
    check(
        &zone,
        "_admin._tcp.ledger.shop.svc.clusterset.local.",
        RecordType::SRV,
        &Expect::NoSuchName,
    );
}
