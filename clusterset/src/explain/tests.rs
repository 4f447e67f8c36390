use super::*;
use crate::fixtures::{World, endpoint, id, key, port, record, spec};
use crate::reachability::LinkState;
use crate::select::{LeftOut, Rank};

fn question<'a>(key: &'a ServiceKey, from: &'a Locality, port: Option<(Protocol, u16)>) -> Question<'a> {
    Question {
        key,
        port,
        family: None,
        from,
    }
}

#[test]
fn it_tells_the_winner_the_order_and_what_was_left_out() {
    let world = World::new()
        .member("cut", "eu")
        .member("well", "us")
        .serves("home", vec![endpoint("10.0.0.1", "")])
        .serves("cut", vec![endpoint("10.1.0.1", "")])
        .serves("well", vec![endpoint("10.2.0.1", "")])
        .link("well", LinkState::Up, Some(20))
        .link("cut", LinkState::Down, None)
        .eject("home", "10.0.0.1");
    let exports = [
        record("home", 5, spec(&[("http", 80)])),
        record("well", 3, spec(&[("http", 80)])),
        record("cut", 9, spec(&[("http", 81)])),
        record("hidden", 9, spec(&[("http", 80)])),
    ];
    let (asked, from) = (key("shop/checkout"), Locality::default());
    let told = explain(
        &world.whole(),
        &exports.iter().collect::<Vec<_>>(),
        &question(&asked, &from, None),
        &world.signals,
    )
    .expect("exported");

    let story = told.merge.expect("records");
    assert_eq!(story.merged.winner, id("well"));
    assert_eq!(story.decided_by, Some(DecidedBy::Age));
    let order: Vec<&str> = story
        .precedence
        .iter()
        .map(|claimant| claimant.cluster.as_str())
        .collect();
    assert_eq!(order, ["well", "home", "cut", "hidden"]);

    let verdicts: Vec<(&str, Verdict)> = told
        .clusters
        .iter()
        .map(|c| (c.cluster.as_str(), c.verdict))
        .collect();
    assert_eq!(
        verdicts,
        [
            ("home", Verdict::Use),
            ("well", Verdict::Use),
            ("cut", Verdict::LastResort)
        ]
    );
    assert_eq!(told.not_imported, [id("hidden")]);
    let why: Vec<String> = told.clusters.iter().map(ClusterStory::why).collect();
    assert_eq!(
        why,
        [
            "use: this cluster itself",
            "use: lease alive, link up (20.0 ms), policy degrade",
            "last resort: lease alive, link down, policy degrade",
        ]
    );

    let [(told_port, plan)] = &told.ports[..] else {
        panic!("one port")
    };
    assert_eq!(told_port, &port("http", 80));
    let ranks: Vec<Rank> = plan.tiers.iter().map(|tier| tier.rank).collect();
    assert_eq!(ranks, [Rank::Remote(0), Rank::LastResort(0)]);
    assert_eq!(
        plan.left_out,
        [(id("home"), Some(endpoint("10.0.0.1", "")), LeftOut::Unhealthy)]
    );
}

#[test]
fn it_says_what_the_precedence_was_decided_by() {
    let check = |a: (u64, u64), b: (u64, u64), expected: DecidedBy| {
        let of = |cluster: &str, (created_ms, admitted): (u64, u64)| ExportRecord {
            created_ms,
            admitted,
            ..record(cluster, 1, spec(&[("http", 80)]))
        };
        let story = merge_story(&[&of("a", a), &of("b", b)]).expect("records");
        assert_eq!(story.decided_by, Some(expected), "{a:?} {b:?}");
    };
    check((1, 9), (2, 1), DecidedBy::Age);
    check((1, 1), (1, 2), DecidedBy::Admission);
    check((1, 1), (1, 1), DecidedBy::ClusterId);
    let alone = record("a", 1, spec(&[]));
    assert_eq!(merge_story(&[&alone]).expect("a record").decided_by, None);
}

#[test]
fn what_does_not_exist_is_said_with_what_does() {
    let world = World::new().serves("home", vec![endpoint("10.0.0.1", "")]);
    let from = Locality::default();
    let check = |asked: &str, port, expected: &str| {
        let asked = key(asked);
        let told = explain(
            &world.whole(),
            &[],
            &question(&asked, &from, port),
            &world.signals,
        );
        assert_eq!(told.expect_err("nothing to explain").to_string(), expected);
    };
    check(
        "shop/cart",
        None,
        "no cluster exports shop/cart; see `tombolo get exports`",
    );
    check(
        "shop/checkout",
        Some((Protocol::Udp, 80)),
        "shop/checkout has no port 80/UDP; it has 80/TCP",
    );
}

#[test]
fn a_service_that_is_not_imported_is_still_explained_by_its_records() {
    let exported = record("far", 1, spec(&[("http", 80)]));
    let (asked, from) = (key("shop/checkout"), Locality::default());
    let world = World::new();
    let told = explain(
        &world.snapshot,
        &[&exported],
        &question(&asked, &from, None),
        &world.signals,
    )
    .expect("exported");
    assert_eq!((told.ports, told.not_imported), (Vec::new(), vec![id("far")]));
}
