use super::*;
use crate::fixtures::{World, endpoint, id, key, slice, spec};
use rand::SeedableRng;
use rand::rngs::StdRng;

fn export(endpoints: Vec<Endpoint>) -> LocalExport {
    let slices = vec![slice(&[("http", 8080), ("admin", 9090)], endpoints)];
    LocalExport {
        key: key("shop/checkout"),
        spec: spec(&[("http", 80), ("admin", 90)]),
        slices,
        granted: None,
    }
}

fn gateway(zone: &str) -> Locality {
    Locality {
        region: "eu".to_owned(),
        zone: zone.to_owned(),
        node: String::new(),
    }
}

fn request(from: &Locality, port: u16) -> LocalRequest<'_> {
    LocalRequest {
        protocol: Protocol::Tcp,
        port,
        family: None,
        from,
        client: None,
    }
}

/// What is tried, in order, as "address:port".
fn picked(
    export: &LocalExport,
    request: LocalRequest<'_>,
    ejected: &[&str],
    seed: u64,
) -> Result<Vec<String>, NoLocal> {
    let world = World::new();
    let ejected = ejected
        .iter()
        .map(|a| (id("home"), a.parse().expect("an address"), 8080))
        .collect();
    let mut rng = StdRng::seed_from_u64(seed);
    let picks = pick_local(&world.snapshot, export, request, &ejected, &mut rng)?;
    Ok(picks
        .iter()
        .map(|pick| format!("{}:{}", pick.endpoint.address, pick.port))
        .collect())
}

#[test]
fn the_gateways_zone_comes_first_then_the_rest_then_what_terminates() {
    let terminating = Endpoint {
        readiness: Readiness::Terminating,
        ..endpoint("10.0.0.3", "eu-1")
    };
    let unready = Endpoint {
        readiness: Readiness::NotReady,
        ..endpoint("10.0.0.4", "eu-1")
    };
    let export = export(vec![
        terminating,
        unready,
        endpoint("10.0.0.1", "eu-2"),
        endpoint("10.0.0.2", "eu-1"),
    ]);
    for seed in 0..20 {
        let order = picked(&export, request(&gateway("eu-1"), 80), &[], seed);
        assert_eq!(
            order,
            Ok(vec![
                "10.0.0.2:8080".into(),
                "10.0.0.1:8080".into(),
                "10.0.0.3:8080".into()
            ])
        );
    }
    let order = picked(&export, request(&gateway("eu-1"), 90), &[], 1).expect("exported");
    assert_eq!(order[0], "10.0.0.2:9090", "the slice's port of that Service port");
}

#[test]
fn an_ejected_endpoint_is_tried_last_but_tried() {
    let export = export(vec![endpoint("10.0.0.1", "eu-2"), endpoint("10.0.0.2", "eu-1")]);
    let order = picked(&export, request(&gateway("eu-1"), 80), &["10.0.0.2"], 1);
    assert_eq!(order, Ok(vec!["10.0.0.1:8080".into(), "10.0.0.2:8080".into()]));
    let order = picked(
        &export,
        request(&gateway("eu-1"), 80),
        &["10.0.0.1", "10.0.0.2"],
        1,
    );
    assert_eq!(order, Ok(vec!["10.0.0.2:8080".into(), "10.0.0.1:8080".into()]));
}

#[test]
fn a_half_ejected_zone_spills_into_the_next() {
    let export = export(vec![
        endpoint("10.0.0.1", "eu-1"),
        endpoint("10.0.0.2", "eu-1"),
        endpoint("10.0.0.3", "eu-2"),
    ]);
    let spilled = (0..1_000)
        .filter(|seed| {
            let order =
                picked(&export, request(&gateway("eu-1"), 80), &["10.0.0.1"], *seed).expect("exported");
            order[0] == "10.0.0.3:8080"
        })
        .count();
    assert!((250..350).contains(&spilled), "{spilled} of 1,000");
}

#[test]
fn only_exported_ports_are_served() {
    let with = export(vec![endpoint("10.0.0.1", "")]);
    let without = export(Vec::new());
    let from = gateway("");
    assert_eq!(
        picked(&with, request(&from, 8080), &[], 1),
        Err(NoLocal::PortNotExported)
    );
    let udp = LocalRequest {
        protocol: Protocol::Udp,
        ..request(&from, 80)
    };
    assert_eq!(picked(&with, udp, &[], 1), Err(NoLocal::PortNotExported));
    assert_eq!(
        picked(&without, request(&from, 80), &[], 1),
        Err(NoLocal::NoEndpoint)
    );
    let v6 = LocalRequest {
        family: Some(IpFamily::V6),
        ..request(&from, 80)
    };
    assert_eq!(picked(&with, v6, &[], 1), Err(NoLocal::NoEndpoint));
}

#[test]
fn a_client_is_sent_to_the_same_endpoint_whatever_the_seed() {
    let export = export((1..9).map(|n| endpoint(&format!("10.0.0.{n}"), "")).collect());
    let from = gateway("");
    let of = |client: u8, seed| {
        let client = Some(IpAddr::from([192, 0, 2, client]));
        picked(
            &export,
            LocalRequest {
                client,
                ..request(&from, 80)
            },
            &[],
            seed,
        )
        .expect("exported")
    };
    assert_eq!(of(1, 1), of(1, 2));
    let firsts: BTreeSet<String> = (0..100).map(|client| of(client, 1)[0].clone()).collect();
    assert_eq!(firsts.len(), 8);
}

#[test]
fn a_headless_flow_reaches_the_endpoint_it_names_and_no_other_address() {
    let unready = Endpoint {
        readiness: Readiness::NotReady,
        ..endpoint("10.0.0.2", "")
    };
    let export = export(vec![endpoint("10.0.0.1", ""), unready]);
    let check = |address: &str, port: u16, expected: Result<u16, NoLocal>| {
        let found = find_local(&export, Protocol::Tcp, port, address.parse().expect("an address"));
        assert_eq!(found.map(|pick| pick.port), expected, "{address}:{port}");
    };
    check("10.0.0.1", 80, Ok(8080));
    check("10.0.0.1", 8080, Ok(8080));
    check("10.0.0.1", 9090, Ok(9090));
    check("10.0.0.1", 22, Err(NoLocal::PortNotExported));
    check("10.0.0.2", 80, Err(NoLocal::NoEndpoint));
    check("10.0.0.9", 80, Err(NoLocal::NoEndpoint));
}
