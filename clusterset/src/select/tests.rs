use super::*;
use crate::fixtures::{World, endpoint, id, port};
use crate::reachability::{Lease, LinkState};
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

fn planned(world: &World, from: &Locality) -> Plan {
    plan(
        &world.snapshot,
        &world.import,
        &port("http", 80),
        None,
        from,
        &world.signals,
    )
}

fn zone(zone: &str) -> Locality {
    Locality {
        region: "eu".to_owned(),
        zone: zone.to_owned(),
        node: String::new(),
    }
}

/// The tiers as (rank, last part of each address, share).
fn check(world: &World, from: &Locality, expected: &[(Rank, &[&str], u32)]) {
    let plan = planned(world, from);
    let told: Vec<(Rank, Vec<String>, u32)> = plan
        .tiers
        .iter()
        .map(|tier| {
            (
                tier.rank,
                tier.candidates
                    .iter()
                    .map(|c| c.endpoint.address.to_string())
                    .collect(),
                tier.share,
            )
        })
        .collect();
    let expected: Vec<(Rank, Vec<String>, u32)> = expected
        .iter()
        .map(|(rank, addresses, share)| (*rank, addresses.iter().map(|a| (*a).to_owned()).collect(), *share))
        .collect();
    assert_eq!(told, expected);
}

fn ready(addresses: &[&str]) -> Vec<Endpoint> {
    addresses.iter().map(|address| endpoint(address, "")).collect()
}

fn with(readiness: Readiness, address: &str) -> Endpoint {
    Endpoint {
        readiness,
        ..endpoint(address, "")
    }
}

#[test]
fn own_zone_then_region_then_the_rest_of_the_cluster() {
    let world = World::new().serves(
        "home",
        vec![endpoint("10.0.0.1", "eu-1"), endpoint("10.0.0.2", "eu-2")],
    );
    check(
        &world,
        &zone("eu-1"),
        &[
            (Rank::Zone, &["10.0.0.1"], 10_000),
            (Rank::Region, &["10.0.0.2"], 0),
        ],
    );
    check(
        &world,
        &zone(""),
        &[(Rank::Region, &["10.0.0.1", "10.0.0.2"], 10_000)],
    );
    check(
        &world,
        &Locality::default(),
        &[(Rank::Cluster, &["10.0.0.1", "10.0.0.2"], 10_000)],
    );
}

#[test]
fn other_clusters_stand_by_measured_rtt_then_region_then_id() {
    let world = World::new()
        .member("far", "us")
        .member("near", "us")
        .member("kin", "eu")
        .member("odd", "us")
        .serves("far", ready(&["10.1.0.1"]))
        .serves("near", ready(&["10.2.0.1"]))
        .serves("kin", ready(&["10.3.0.1"]))
        .serves("odd", ready(&["10.4.0.1"]))
        .serves("home", ready(&["10.0.0.1"]));
    let measured = world
        .clone()
        .link("far", LinkState::Up, Some(90))
        .link("near", LinkState::Up, Some(9));
    check(
        &measured,
        &zone(""),
        &[
            (Rank::Region, &["10.0.0.1"], 10_000),
            (Rank::Remote(0), &["10.2.0.1"], 0),
            (Rank::Remote(1), &["10.1.0.1"], 0),
            // Not measured: the own region first, then by id.
            (Rank::Remote(2), &["10.3.0.1"], 0),
            (Rank::Remote(3), &["10.4.0.1"], 0),
        ],
    );
    let level = ["far", "near", "kin", "odd"]
        .iter()
        .fold(world, |world, c| world.link(c, LinkState::Up, Some(20)));
    let order: Vec<String> = planned(&level, &zone(""))
        .candidates()
        .skip(1)
        .map(|candidate| candidate.cluster.to_string())
        .collect();
    assert_eq!(order, ["kin", "far", "near", "odd"]);
}

#[test]
fn a_lost_cluster_is_last_resort_and_a_withdrawn_one_is_left_out() {
    let world = World::new()
        .member("cut", "eu")
        .member("well", "us")
        .serves("cut", ready(&["10.1.0.1"]))
        .serves("well", ready(&["10.2.0.1"]));
    let cut = world.clone().link("cut", LinkState::Down, Some(1));
    check(
        &cut,
        &zone(""),
        &[
            (Rank::Remote(0), &["10.2.0.1"], 10_000),
            (Rank::LastResort(0), &["10.1.0.1"], 0),
        ],
    );

    let mut gone = cut.clone().lease("cut", Lease::Lost);
    gone.signals
        .links
        .get_mut(&id("cut"))
        .expect("link")
        .both_lost_for = Some(crate::reachability::WITHDRAW_GRACE);
    check(&gone, &zone(""), &[(Rank::Remote(0), &["10.2.0.1"], 10_000)]);
    assert_eq!(
        planned(&gone, &zone("")).left_out,
        [(id("cut"), None, LeftOut::Withdrawn)]
    );

    // A snapshot that is not fresh knows no lease: the lost one counts as unknown.
    gone.snapshot.fresh = false;
    check(
        &gone,
        &zone(""),
        &[
            (Rank::Remote(0), &["10.2.0.1"], 10_000),
            (Rank::LastResort(0), &["10.1.0.1"], 0),
        ],
    );

    let mut evicted = world;
    evicted.snapshot.clusters.remove(&id("cut"));
    check(&evicted, &zone(""), &[(Rank::Remote(0), &["10.2.0.1"], 10_000)]);
}

#[test]
fn ejected_endpoints_count_in_the_total_and_spill() {
    let world = World::new()
        .member("far", "us")
        .serves("home", ready(&["10.0.0.1", "10.0.0.2"]))
        .serves("far", ready(&["10.1.0.1"]));
    let one = world.eject("home", "10.0.0.1");
    check(
        &one,
        &zone(""),
        &[
            (Rank::Region, &["10.0.0.2"], 7_000),
            (Rank::Remote(0), &["10.1.0.1"], 3_000),
        ],
    );
    let both = one.eject("home", "10.0.0.2");
    check(&both, &zone(""), &[(Rank::Remote(0), &["10.1.0.1"], 10_000)]);
    assert_eq!(planned(&both, &zone("")).left_out.len(), 2);
}

#[test]
fn terminating_ones_come_last_and_unready_ones_never() {
    let world = World::new().member("far", "us").serves(
        "home",
        vec![
            with(Readiness::Terminating, "10.0.0.1"),
            with(Readiness::NotReady, "10.0.0.2"),
        ],
    );
    check(&world, &zone(""), &[(Rank::Terminating, &["10.0.0.1"], 10_000)]);
    let world = world
        .serves("far", ready(&["10.1.0.1"]))
        .link("far", LinkState::Suspect, None);
    check(
        &world,
        &zone(""),
        &[
            (Rank::LastResort(0), &["10.1.0.1"], 10_000),
            (Rank::Terminating, &["10.0.0.1"], 0),
        ],
    );
}

#[test]
fn a_cluster_that_does_not_expose_the_port_is_left_out() {
    let mut world = World::new()
        .member("far", "us")
        .serves("home", ready(&["10.0.0.1"]))
        .serves("far", ready(&["10.1.0.1"]));
    world.import.clusters.get_mut(&id("home")).expect("home").ports = vec![port("http", 81)];
    check(&world, &zone(""), &[(Rank::Remote(0), &["10.1.0.1"], 10_000)]);
    assert_eq!(
        planned(&world, &zone("")).left_out,
        [(id("home"), None, LeftOut::PortNotExposed)]
    );
}

#[test]
fn a_drill_hides_clusters_from_its_own_flows() {
    let mut world = World::new()
        .member("far", "us")
        .serves("home", ready(&["10.0.0.1"]))
        .serves("far", ready(&["10.1.0.1"]));
    world.signals.hidden.insert(id("home"));
    check(&world, &zone(""), &[(Rank::Remote(0), &["10.1.0.1"], 10_000)]);
    assert_eq!(
        planned(&world, &zone("")).left_out,
        [(id("home"), None, LeftOut::HiddenByDrill)]
    );
}

#[test]
fn an_endpoint_in_two_slices_counts_once_with_its_better_readiness() {
    let mut world = World::new().serves("home", vec![with(Readiness::NotReady, "10.0.0.1")]);
    let home = world.import.clusters.get_mut(&id("home")).expect("home");
    home.slices
        .push(crate::fixtures::slice(&[("http", 8080)], ready(&["10.0.0.1"])));
    check(&world, &zone(""), &[(Rank::Region, &["10.0.0.1"], 10_000)]);
}

#[test]
fn families_are_kept_apart_when_asked() {
    let mut world = World::new().serves("home", ready(&["10.0.0.1"]));
    let home = world.import.clusters.get_mut(&id("home")).expect("home");
    home.slices
        .push(crate::fixtures::slice(&[("http", 8080)], ready(&["fd00::1"])));
    let of = |family| {
        let plan = plan(
            &world.snapshot,
            &world.import,
            &port("http", 80),
            family,
            &zone(""),
            &world.signals,
        );
        plan.candidates()
            .map(|c| c.endpoint.address.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(of(Some(IpFamily::V6)), ["fd00::1"]);
    assert_eq!(of(Some(IpFamily::V4)), ["10.0.0.1"]);
    assert_eq!(of(None), ["10.0.0.1", "fd00::1"]);
}

#[test]
fn a_client_draws_the_same_order_each_time() {
    let world = World::new().serves("home", ready(&["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]));
    let plan = planned(&world, &zone(""));
    let drawn = |client: &str, seed: u64| -> Vec<IpAddr> {
        let client = client.parse().expect("an address");
        let mut rng = StdRng::seed_from_u64(seed);
        draw_for(&plan, Some(client), &mut rng)
            .into_iter()
            .map(|c| c.endpoint.address)
            .collect()
    };
    assert_eq!(drawn("192.0.2.1", 1), drawn("192.0.2.1", 2));
    let firsts: BTreeSet<IpAddr> = (1..50).map(|n| drawn(&format!("192.0.2.{n}"), 1)[0]).collect();
    assert_eq!(firsts.len(), 4, "clients spread over the endpoints");
}

#[test]
fn draws_follow_the_shares() {
    let world = World::new()
        .member("far", "us")
        .serves("home", ready(&["10.0.0.1", "10.0.0.2"]))
        .serves("far", ready(&["10.1.0.1"]))
        .eject("home", "10.0.0.1");
    let plan = planned(&world, &zone(""));
    let mut rng = StdRng::seed_from_u64(7);
    let far = (0..10_000)
        .filter(|_| draw(&plan, &mut rng)[0].cluster == id("far"))
        .count();
    assert!(
        (2_800..3_200).contains(&far),
        "{far} of 10,000 went to the tier with a share of 3,000"
    );
    assert_eq!(draw(&Plan::default(), &mut rng), Vec::<&Candidate>::new());
}

/// Any service over up to five clusters in any state.
fn any_world() -> impl Strategy<Value = World> {
    let endpoint = (0..4u8, 0..3usize, 0..3usize).prop_map(|(last, zone, readiness)| Endpoint {
        readiness: [Readiness::Ready, Readiness::Terminating, Readiness::NotReady][readiness],
        ..crate::fixtures::endpoint(&format!("10.0.0.{last}"), ["", "eu-1", "eu-2"][zone])
    });
    let cluster = (
        prop::collection::vec(endpoint, 0..8),
        prop::option::of(0..50u64),
        prop::sample::select(vec![
            LinkState::Up,
            LinkState::Suspect,
            LinkState::Down,
            LinkState::Unknown,
        ]),
        prop::sample::select(vec![Lease::Alive, Lease::Lost, Lease::Unknown]),
        prop::collection::vec(0..4u8, 0..4),
        prop::sample::select(vec!["", "eu", "us"]),
    );
    let names = prop::sample::select(vec!["home", "a", "b", "c", "d"]);
    prop::collection::btree_map(names, cluster, 0..5).prop_map(|clusters| {
        let mut world = World::new();
        for (name, (endpoints, rtt, state, lease, ejected, region)) in clusters {
            world = world
                .member(name, region)
                .serves(name, endpoints)
                .link(name, state, rtt)
                .lease(name, lease);
            for last in ejected {
                world = world.eject(name, &format!("10.0.0.{last}"));
            }
        }
        world
    })
}

proptest! {
    #[test]
    fn each_eligible_endpoint_is_offered_once(world in any_world(), seed in any::<u64>(), client in prop::option::of(any::<u32>())) {
        let plan = planned(&world, &zone("eu-1"));
        let mut expected = BTreeSet::new();
        for (cluster, imported) in &world.import.clusters {
            let own = cluster == &world.snapshot.cluster;
            let lease = world.snapshot.lease(cluster).expect("a member");
            let verdict = crate::reachability::verdict(lease, world.signals.link(cluster), imported.loss_policy);
            let serving = |e: &&Endpoint| e.readiness != Readiness::NotReady;
            for endpoint in imported.slices.iter().flat_map(|slice| &slice.endpoints).filter(serving) {
                let backend = (cluster.clone(), endpoint.address, 8080);
                if (own || verdict != Verdict::Withdraw) && !world.signals.ejected.contains(&backend) {
                    expected.insert(backend);
                }
            }
        }
        let mut rng = StdRng::seed_from_u64(seed);
        let drawn = draw_for(&plan, client.map(|bits| IpAddr::from(bits.to_be_bytes())), &mut rng);
        let offered: BTreeSet<_> = drawn.iter().map(|c| (c.cluster.clone(), c.endpoint.address, c.port)).collect();
        prop_assert_eq!(drawn.len(), offered.len(), "none twice");
        prop_assert_eq!(&offered, &expected);
        prop_assert_eq!(plan.candidates().count(), expected.len());
    }

    #[test]
    fn shares_add_up_and_ranks_descend(world in any_world()) {
        let plan = planned(&world, &zone("eu-1"));
        let sum: u32 = plan.tiers.iter().map(|tier| tier.share).sum();
        prop_assert_eq!(sum, if plan.is_empty() { 0 } else { SHARE_ALL });
        prop_assert!(plan.tiers.iter().all(|tier| !tier.candidates.is_empty()));
        prop_assert!(plan.tiers.is_sorted_by(|a, b| a.rank < b.rank));
    }

    #[test]
    fn a_lower_rank_is_first_only_below_the_threshold(world in any_world(), seed in any::<u64>()) {
        let plan = planned(&world, &zone("eu-1"));
        let Some(best) = plan.tiers.first() else { return Ok(()) };
        let first = draw(&plan, &mut StdRng::seed_from_u64(seed))[0];
        let nothing_ejected = plan.left_out.iter().all(|(_, _, reason)| *reason != LeftOut::Unhealthy);
        if nothing_ejected || best.share == SHARE_ALL {
            prop_assert!(best.candidates.contains(first), "{first:?} before {best:?}");
        }
    }
}
