use proptest::prelude::*;

use super::*;

const MINUTE_MS: u64 = 60_000;

fn holder(name: &str) -> Holder {
    Holder::import(&ServiceKey::parse(&format!("shop/{name}")).unwrap(), IpFamily::V4)
}

fn book(range: &str) -> VipBook {
    VipBook::new(vec![range.parse().unwrap()])
}

fn restart(book: &VipBook) -> VipBook {
    let text = serde_json::to_string(&book.to_record()).unwrap();
    VipBook::restore(book.ranges.clone(), serde_json::from_str(&text).unwrap())
}

#[test]
fn an_address_outlives_a_restart() {
    let mut book = book("127.11.64.0/20");
    let address = book.hold(&holder("web"), 0).unwrap();
    assert!(book.take_changed() && !book.take_changed());
    let mut book = restart(&book);
    assert_eq!(book.hold(&holder("web"), 1).unwrap(), address);
    assert!(!book.take_changed(), "nothing new to store");
}

#[test]
fn the_first_and_last_address_are_not_given_out() {
    let mut book = book("127.11.64.0/30");
    let given: BTreeSet<IpAddr> = ["a", "b"]
        .iter()
        .map(|name| book.hold(&holder(name), 0).unwrap())
        .collect();
    assert_eq!(
        given,
        BTreeSet::from(["127.11.64.1".parse().unwrap(), "127.11.64.2".parse().unwrap()])
    );
    assert_eq!(
        book.hold(&holder("c"), 0).unwrap_err().to_string(),
        "the range 127.11.64.0/30 has no free address: 2 are held and 0 rest for up to 10 minutes; widen it in cluster.toml"
    );
}

#[test]
fn a_released_address_rests_and_its_old_holder_may_return() {
    let mut book = book("127.11.64.0/30");
    let a = book.hold(&holder("a"), 0).unwrap();
    book.hold(&holder("b"), 0).unwrap();
    book.keep_only(&BTreeSet::from([holder("b")]), MINUTE_MS);
    assert!(matches!(
        book.hold(&holder("c"), 10 * MINUTE_MS),
        Err(VipError::Exhausted { resting: 1, .. })
    ));
    assert_eq!(
        book.hold(&holder("a"), 10 * MINUTE_MS).unwrap(),
        a,
        "its own again"
    );
    book.keep_only(&BTreeSet::from([holder("b")]), 20 * MINUTE_MS);
    assert_eq!(
        book.hold(&holder("c"), 30 * MINUTE_MS).unwrap(),
        a,
        "after the quarantine"
    );
}

#[test]
fn families_have_their_own_range() {
    let mut book = VipBook::new(vec![
        "127.11.64.0/24".parse().unwrap(),
        "fd00::/64".parse().unwrap(),
    ]);
    let service = ServiceKey::parse("shop/web").unwrap();
    assert!(
        book.hold(&Holder::import(&service, IpFamily::V4), 0)
            .unwrap()
            .is_ipv4()
    );
    assert!(
        book.hold(&Holder::import(&service, IpFamily::V6), 0)
            .unwrap()
            .is_ipv6()
    );
    let mut only_v6 = VipBook::new(vec!["fd00::/64".parse().unwrap()]);
    let error = only_v6
        .hold(&Holder::import(&service, IpFamily::V4), 0)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "no IPv4 range is configured; set agent.vip_range in cluster.toml"
    );
}

#[test]
fn ranges_of_any_size_are_safe() {
    for (range, fits) in [
        ("127.0.0.1/32", false),
        ("127.0.0.0/31", false),
        ("127.0.0.0/30", true),
        ("::/0", true),
        ("0.0.0.0/0", true),
        ("fd00::/127", false),
    ] {
        let range: IpNet = range.parse().unwrap();
        let family = IpFamily::of(range.network());
        let mut book = VipBook::new(vec![range]);
        let holder = Holder::import(&ServiceKey::parse("a/b").unwrap(), family);
        assert_eq!(book.hold(&holder, 0).is_ok(), fits, "{range}");
    }
}

#[test]
fn a_changed_range_gives_new_addresses() {
    let mut old = book("127.11.64.0/24");
    old.hold(&holder("web"), 0).unwrap();
    let record = old.to_record();
    let mut new = VipBook::restore(vec!["127.12.64.0/24".parse().unwrap()], record);
    let range: IpNet = "127.12.64.0/24".parse().unwrap();
    assert!(range.contains(&new.hold(&holder("web"), 0).unwrap()));
}

#[derive(Debug, Clone)]
enum Step {
    Hold(u8),
    KeepOnly(Vec<u8>),
    Wait(u64),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0_u8..12).prop_map(Step::Hold),
        2 => prop::collection::vec(0_u8..12, 0..8).prop_map(Step::KeepOnly),
        2 => (0_u64..8).prop_map(Step::Wait),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    /// No address has two holders, none is reused while it rests, and a holder keeps its address over restarts.
    #[test]
    fn addresses_are_never_shared_or_reused_too_early(steps in steps()) {
        let mut book = book("127.11.64.0/29");
        let mut now = 0;
        let mut mine: BTreeMap<u8, IpAddr> = BTreeMap::new();
        let mut released: BTreeMap<IpAddr, (u8, u64)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Hold(name) => {
                    if let Ok(address) = book.hold(&holder(&format!("s{name}")), now) {
                        if let Some(before) = mine.get(&name) {
                            prop_assert_eq!(*before, address, "a live holder keeps its address");
                        }
                        prop_assert!(mine.iter().all(|(other, taken)| *other == name || *taken != address), "shared");
                        if let Some((other, since)) = released.remove(&address) {
                            prop_assert!(other == name || now - since >= 10 * MINUTE_MS, "reused too early");
                        }
                        mine.insert(name, address);
                    }
                }
                Step::KeepOnly(names) => {
                    let live = names.iter().map(|name| holder(&format!("s{name}"))).collect();
                    book.keep_only(&live, now);
                    for (name, address) in std::mem::take(&mut mine) {
                        if names.contains(&name) {
                            mine.insert(name, address);
                        } else {
                            released.insert(address, (name, now));
                        }
                    }
                }
                Step::Wait(minutes) => now += minutes * MINUTE_MS,
                Step::Restart => book = restart(&book),
            }
        }
    }
}
