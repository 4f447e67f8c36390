use super::*;
use crate::endpoint::Protocol;
use crate::export::ServiceType;
use crate::fixtures::{id, port, record, spec};
use proptest::prelude::*;

/// Clusters by age with their ports; the merged ports; which numbers each serves; part of the message, empty for none.
fn check_ports(exports: &[(&str, &[(&str, u16)])], merged: &[(&str, u16)], serves: &[&[u16]], message: &str) {
    let records: Vec<ExportRecord> = exports
        .iter()
        .zip(1..)
        .map(|((cluster, ports), age)| record(cluster, age, spec(ports)))
        .collect();
    let told = merge(&records.iter().collect::<Vec<_>>()).expect("records");
    let expected: Vec<_> = merged.iter().map(|(name, number)| port(name, *number)).collect();
    assert_eq!(told.spec.ports, expected, "{exports:?}");
    for ((cluster, _), numbers) in exports.iter().zip(serves) {
        let served: Vec<u16> = told.serves[&id(cluster)]
            .iter()
            .map(|(port, _)| port.port)
            .collect();
        assert_eq!(served, *numbers, "{cluster} of {exports:?}");
    }
    let conflict = told.conflicts.iter().find(|(kind, _)| *kind == Conflict::Port);
    match message {
        "" => assert_eq!(conflict, None, "{exports:?}"),
        message => assert_eq!(
            conflict.map(|(_, told)| told.as_str()),
            Some(message),
            "{exports:?}"
        ),
    }
}

#[test]
fn ports_form_a_union_by_name_then_by_number() {
    check_ports(&[("a", &[("http", 80)])], &[("http", 80)], &[&[80]], "");
    check_ports(
        &[("a", &[("http", 80)]), ("b", &[("http", 80)])],
        &[("http", 80)],
        &[&[80], &[80]],
        "",
    );
    // Same name, another number: the younger entry is dropped, and its cluster does not serve the merged one.
    check_ports(
        &[
            ("aks-westeurope", &[("http", 80)]),
            ("eks-us-east-1", &[("http", 8080)]),
        ],
        &[("http", 80)],
        &[&[80], &[]],
        "port 'http' is 80/TCP in aks-westeurope (oldest, wins) but 8080/TCP in eks-us-east-1",
    );
    // Same number, another name: both serve it, under the older name.
    check_ports(
        &[("a", &[("http", 80)]), ("b", &[("web", 80)])],
        &[("http", 80)],
        &[&[80], &[80]],
        "name of port 80/TCP is 'http' in a (oldest, wins) but 'web' in b",
    );
    // Different ports: all of them, each from those that have it.
    check_ports(
        &[("a", &[("http", 80)]), ("b", &[("admin", 90)])],
        &[("http", 80), ("admin", 90)],
        &[&[80], &[90]],
        "port 'http' (80/TCP) is exposed by a but not by b; port 'admin' (90/TCP) is exposed by b but not by a",
    );
    // The empty name counts as one.
    check_ports(
        &[("a", &[("", 80)]), ("b", &[("", 81)])],
        &[("", 80)],
        &[&[80], &[]],
        "the unnamed port is 80/TCP in a (oldest, wins) but 81/TCP in b",
    );
    // A number that exists under another name is still served: b's 90 under a's name.
    check_ports(
        &[("a", &[("http", 80), ("admin", 90)]), ("b", &[("http", 90)])],
        &[("http", 80), ("admin", 90)],
        &[&[80, 90], &[90]],
        "port 'http' is 80/TCP in a (oldest, wins) but 90/TCP in b; name of port 90/TCP is 'admin' in a (oldest, wins) \
         but 'http' in b",
    );
    // By name first: c's 81 loses its name to b, whose entry then loses its number to a.
    check_ports(
        &[("a", &[("x", 80)]), ("b", &[("y", 80)]), ("c", &[("y", 81)])],
        &[("x", 80)],
        &[&[80], &[80], &[]],
        "port 'y' is 80/TCP in b (older, wins) but 81/TCP in c; name of port 80/TCP is 'x' in a (oldest, wins) but 'y' in \
         b; port 'x' (80/TCP) is exposed by a, b but not by c",
    );
}

#[test]
fn a_served_port_names_the_port_of_the_clusters_own_slices() {
    let (a, b) = (
        record("a", 1, spec(&[("http", 80)])),
        record("b", 2, spec(&[("web", 80)])),
    );
    let merged = merge(&[&a, &b]).expect("records");
    assert_eq!(
        merged.serves[&id("b")],
        vec![(port("http", 80), "web".to_owned())]
    );
}

#[test]
fn transport_tells_ports_apart() {
    let udp = |name: &str| ServicePort {
        protocol: Protocol::Udp,
        ..port(name, 53)
    };
    let mut both = spec(&[("dns-tcp", 53)]);
    both.ports.push(udp("dns"));
    let (a, b) = (record("a", 1, both.clone()), record("b", 2, both.clone()));
    let merged = merge(&[&a, &b]).expect("records");
    assert_eq!((merged.spec.ports, merged.conflicts), (both.ports, Vec::new()));
}

/// What a change to b's spec, younger than a's, raises; the merged spec is a's either way.
fn check_property(change: impl Fn(&mut ServiceSpec), kind: Conflict, message: &str) {
    let (a, mut b) = (
        record("a", 1, spec(&[("http", 80)])),
        record("b", 2, spec(&[("http", 80)])),
    );
    change(&mut b.export.spec);
    let merged = merge(&[&b, &a]).expect("records");
    assert_eq!(merged.spec, a.export.spec);
    assert_eq!(merged.winner, id("a"));
    assert_eq!(merged.conflicts, vec![(kind, message.to_owned())]);
}

#[test]
fn each_property_is_the_oldests_as_a_whole() {
    check_property(
        |spec| spec.service_type = ServiceType::Headless,
        Conflict::Type,
        "type is ClusterSetIP in a (oldest, wins) but Headless in b",
    );
    check_property(
        |spec| spec.session_affinity = SessionAffinity::ClientIp,
        Conflict::SessionAffinity,
        "sessionAffinity is None in a (oldest, wins) but ClientIP in b",
    );
    check_property(
        |spec| spec.session_affinity_timeout_seconds = Some(10),
        Conflict::SessionAffinityConfig,
        "sessionAffinityConfig.clientIP.timeoutSeconds is unset in a (oldest, wins) but 10 in b",
    );
    check_property(
        |spec| drop(spec.labels.insert("team".to_owned(), "shop".to_owned())),
        Conflict::Labels,
        "exportedLabels is {} in a (oldest, wins) but {team=shop} in b",
    );
    check_property(
        |spec| drop(spec.annotations.insert("note".to_owned(), "x".to_owned())),
        Conflict::Annotations,
        "exportedAnnotations is {} in a (oldest, wins) but {note=x} in b",
    );
    check_property(
        |spec| spec.internal_traffic_policy = "Local".to_owned(),
        Conflict::InternalTrafficPolicy,
        "internalTrafficPolicy is Cluster in a (oldest, wins) but Local in b",
    );
    check_property(
        |spec| spec.traffic_distribution = "PreferClose".to_owned(),
        Conflict::TrafficDistribution,
        "trafficDistribution is unset in a (oldest, wins) but PreferClose in b",
    );
    check_property(
        |spec| spec.ip_families = vec![IpFamily::V6],
        Conflict::IpFamily,
        "ipFamilies is IPv4 in a (oldest, wins) but IPv6 in b",
    );
    check_property(
        |spec| spec.ports[0].app_protocol = "h2c".to_owned(),
        Conflict::Port,
        "appProtocol of port 'http' (80/TCP) is unset in a (oldest, wins) but h2c in b",
    );
}

#[test]
fn a_family_conflicts_only_when_a_listed_one_cannot_be_reached() {
    use IpFamily::{V4, V6};
    let check = |families: &[&[IpFamily]], listed: &[IpFamily], conflicts: bool| {
        let records: Vec<ExportRecord> = families
            .iter()
            .zip(1..)
            .map(|(families, age)| {
                let spec = ServiceSpec {
                    ip_families: families.to_vec(),
                    ..spec(&[("http", 80)])
                };
                record(&format!("c{age}"), age, spec)
            })
            .collect();
        let merged = merge(&records.iter().collect::<Vec<_>>()).expect("records");
        assert_eq!(merged.spec.ip_families, listed, "{families:?}");
        let told = merged
            .conflicts
            .iter()
            .any(|(kind, _)| *kind == Conflict::IpFamily);
        assert_eq!(told, conflicts, "{families:?}");
    };
    check(&[&[V4], &[V4, V6]], &[V4], false);
    check(&[&[V4, V6], &[V4]], &[V4, V6], true);
    check(&[&[V4, V6], &[V6, V4]], &[V4, V6], false);
    check(&[&[V4, V4], &[V4]], &[V4], false);
    check(&[&[V6], &[V4]], &[V6], true);
}

#[test]
fn precedence_is_age_then_admission_then_cluster_id() {
    let check = |a: (u64, u64), b: (u64, u64), winner: &str| {
        let of = |cluster: &str, (created_ms, admitted): (u64, u64)| ExportRecord {
            created_ms,
            admitted,
            ..record(cluster, 1, spec(&[("http", 80)]))
        };
        let merged = merge(&[&of("b", b), &of("a", a)]).expect("records");
        assert_eq!(merged.winner, id(winner), "{a:?} against {b:?}");
    };
    check((1, 9), (2, 1), "a");
    check((2, 1), (1, 9), "b");
    check((1, 2), (1, 1), "b");
    check((1, 1), (1, 1), "a");
}

#[test]
fn messages_are_bounded_whatever_is_published() {
    let records: Vec<ExportRecord> = (0..250u16)
        .map(|n| {
            let ports: Vec<(String, u16)> = (0..40)
                .map(|p| (format!("port-{p}-{}", "x".repeat(40)), n + p))
                .collect();
            let ports: Vec<(&str, u16)> = ports
                .iter()
                .map(|(name, number)| (name.as_str(), *number))
                .collect();
            let mut spec = spec(&ports);
            spec.labels.insert("ü".repeat(300), n.to_string());
            spec.internal_traffic_policy = format!("{}{n}", "ü".repeat(10_000));
            record(&format!("cluster-{n}"), u64::from(n), spec)
        })
        .collect();
    let merged = merge(&records.iter().collect::<Vec<_>>()).expect("records");
    assert!(merged.conflicts.len() >= 2);
    for (kind, message) in &merged.conflicts {
        assert!(
            message.len() <= MESSAGE_MAX,
            "{kind:?} has {} bytes",
            message.len()
        );
        assert!(message.contains("more"), "{kind:?} counts the rest: {message}");
    }
}

#[test]
fn a_name_of_any_length_fits_the_bound() {
    let name = "ü".repeat(5_000);
    let (a, b) = (
        record("a", 1, spec(&[(&name, 80)])),
        record("b", 2, spec(&[(&name, 81)])),
    );
    let merged = merge(&[&a, &b]).expect("records");
    let [(Conflict::Port, message)] = &merged.conflicts[..] else {
        panic!("one conflict: {:?}", merged.conflicts)
    };
    assert!(
        message.len() <= MESSAGE_MAX && message.ends_with('…'),
        "{} bytes",
        message.len()
    );
}

fn any_records() -> impl Strategy<Value = Vec<ExportRecord>> {
    let any_port = (0..4u8, 0..4u16, any::<bool>()).prop_map(|(name, number, udp)| ServicePort {
        protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
        ..port(["", "a", "b", "c"][usize::from(name)], 80 + number)
    });
    let any_spec = (
        prop::collection::vec(any_port, 0..4),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(ports, headless, v6)| {
            let mut spec = spec(&[]);
            for port in ports {
                let taken = |own: &ServicePort| {
                    own.name == port.name || (own.protocol, own.port) == (port.protocol, port.port)
                };
                if !spec.ports.iter().any(taken) {
                    spec.ports.push(port);
                }
            }
            spec.service_type = if headless {
                ServiceType::Headless
            } else {
                ServiceType::ClusterSetIp
            };
            spec.ip_families.extend(v6.then_some(IpFamily::V6));
            spec
        });
    // Ages collide on purpose; a cluster has one export of a service.
    prop::collection::btree_map("[a-f]", (0..3u64, 0..3u64, any_spec), 1..6).prop_map(|clusters| {
        let of = |(cluster, (created_ms, admitted, spec)): (String, _)| ExportRecord {
            created_ms,
            admitted,
            ..record(&cluster, 0, spec)
        };
        clusters.into_iter().map(of).collect()
    })
}

/// Each cluster exports what was merged, as after a first round.
fn adopt(records: &[ExportRecord], merged: &Merged) -> Vec<ExportRecord> {
    let adopted = |record: &ExportRecord| {
        let mut record = record.clone();
        record.export.spec = merged.spec.clone();
        record
    };
    records.iter().map(adopted).collect()
}

proptest! {
    #[test]
    fn merge_is_blind_to_order_and_repetition(records in any_records().prop_shuffle(), again in any::<prop::sample::Index>()) {
        let mut refs: Vec<&ExportRecord> = records.iter().collect();
        let merged = merge(&refs);
        refs.reverse();
        prop_assert_eq!(&merge(&refs), &merged);
        refs.push(again.get(&records));
        prop_assert_eq!(&merge(&refs), &merged);
    }

    #[test]
    fn merge_is_idempotent(records in any_records()) {
        let merged = merge(&records.iter().collect::<Vec<_>>()).expect("records");
        let adopted = adopt(&records, &merged);
        let twice = merge(&adopted.iter().collect::<Vec<_>>()).expect("records");
        prop_assert_eq!(&twice.spec, &merged.spec);
        prop_assert_eq!(twice.conflicts, Vec::new());
    }

    #[test]
    fn merged_ports_are_unique_and_served_by_those_that_expose_them(records in any_records()) {
        let merged = merge(&records.iter().collect::<Vec<_>>()).expect("records");
        for (at, a) in merged.spec.ports.iter().enumerate() {
            for b in &merged.spec.ports[at + 1..] {
                prop_assert_ne!(&a.name, &b.name);
                prop_assert_ne!((a.protocol, a.port), (b.protocol, b.port));
            }
            prop_assert!(merged.serves.values().any(|ports| ports.iter().any(|(port, _)| port == a)), "{a:?} is served");
        }
        for record in &records {
            let own = &record.export.spec.ports;
            let exposed = merged.spec.ports.iter().filter(|port| {
                own.iter().any(|own| (own.protocol, own.port) == (port.protocol, port.port))
            });
            let served = merged.serves[&record.export.cluster].iter().map(|(port, _)| port);
            prop_assert!(exposed.eq(served));
        }
    }

    #[test]
    fn exports_agree_if_and_only_if_nothing_conflicts(records in any_records()) {
        let merged = merge(&records.iter().collect::<Vec<_>>()).expect("records");
        let sorted = |spec: &ServiceSpec| {
            let mut ports = spec.ports.clone();
            ports.sort();
            (ports, spec.service_type)
        };
        let lists = |record: &ExportRecord| {
            merged.spec.ip_families.iter().all(|family| record.export.spec.ip_families.contains(family))
        };
        let first = sorted(&records[0].export.spec);
        let agree = records.iter().all(|record| sorted(&record.export.spec) == first && lists(record));
        prop_assert_eq!(merged.conflicts.is_empty(), agree, "{:?}", merged.conflicts);
    }
}
