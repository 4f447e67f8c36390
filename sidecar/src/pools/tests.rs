//! The paths' states, by tables.

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::fixtures::{self, cluster};

const MS: Duration = Duration::from_millis(1);

fn gateway(id: &str, address: &str) -> Gateway {
    Gateway {
        cluster: cluster(id),
        address: address.parse().unwrap(),
    }
}

fn gke() -> [Gateway; 2] {
    [
        gateway("gke", "127.12.0.2:7443"),
        gateway("gke", "127.12.0.4:7443"),
    ]
}

fn pools() -> Pools {
    let mut pools = Pools::new(LinkProfile::LAN);
    assert_eq!(pools.set_gateways(&fixtures::snapshot()), []);
    pools
}

fn open(pools: &mut Pools, gateway: &Gateway, now: Instant) {
    assert!(pools.begin_dial(gateway, now));
    assert!(!pools.begin_dial(gateway, now), "one dial at a time");
    assert!(pools.on_opened(gateway, now));
    pools.on_pong(gateway, 5 * MS, now + 5 * MS);
    assert_eq!(pools.poll(gateway, now + 5 * MS), Some(LinkState::Up));
}

#[test]
fn open_tunnels_come_first_and_doubtful_ones_last() {
    let now = Instant::now();
    let mut pools = pools();
    let [first, second] = gke();
    assert_eq!(pools.choose(&cluster("gke"), now), Choice::Try(gke().to_vec()));
    assert_eq!(pools.choose(&cluster("kind"), now), Choice::None);
    open(&mut pools, &second, now);
    assert_eq!(
        pools.choose(&cluster("gke"), now),
        Choice::Try(vec![second.clone(), first.clone()])
    );
    let later = now + 400 * MS;
    pools.on_pinged(&second, now + 50 * MS);
    assert_eq!(pools.poll(&second, later), Some(LinkState::Suspect));
    assert_eq!(
        pools.choose(&cluster("gke"), later),
        Choice::Try(vec![first, second])
    );
    assert_eq!(pools.links(later)[&cluster("gke")].state, LinkState::Suspect);
    assert_eq!(pools.links(later)[&cluster("eks")].state, LinkState::Unknown);
}

#[test]
fn a_lost_path_is_dialled_again_for_as_long_as_it_is_wanted() {
    let start = Instant::now();
    let mut now = start;
    let mut rng = StdRng::seed_from_u64(1);
    let mut pools = pools();
    let eks = gateway("eks", "127.13.0.2:7443");
    let state = |pools: &Pools, now| pools.links(now)[&cluster("eks")].state;
    assert_eq!(pools.begin_redials(now), [], "nobody has wanted it");
    assert!(pools.begin_dial(&eks, now));
    assert_eq!(state(&pools, now), LinkState::Unknown);
    let mut redials = 0;
    loop {
        pools.on_lost(&eks, "refused".to_owned(), now, &mut rng);
        pools.poll(&eks, now);
        let Choice::Rest { until } = pools.choose(&cluster("eks"), now) else {
            panic!("it rests");
        };
        assert!((REST_BASE..=REST_MAX).contains(&(until - now)));
        assert_eq!(pools.deadline(now), Some(until));
        assert_eq!(pools.begin_redials(now), [], "not while it rests");
        now = until;
        if now - start >= UNUSED_MAX {
            break;
        }
        assert_eq!(pools.begin_redials(now), vec![eks.clone()]);
        assert_eq!(state(&pools, now), LinkState::Down, "down until it answers");
        redials += 1;
    }
    assert!(redials >= 20, "{redials}");
    assert_eq!(pools.begin_redials(now), [], "nobody wants it any more");
    assert_eq!(state(&pools, now), LinkState::Unknown);
    assert_eq!(pools.choose(&cluster("eks"), now), Choice::Try(vec![eks.clone()]));
    assert!(pools.begin_dial(&eks, now));
}

#[test]
fn what_is_unused_is_let_go_and_what_is_gone_is_named() {
    let now = Instant::now();
    let mut pools = pools();
    let [first, second] = gke();
    open(&mut pools, &first, now);
    let later = now + UNUSED_MAX;
    assert!(pools.is_unused(&first, later));
    pools.on_used(&first, later);
    assert!(!pools.is_unused(&first, later));
    let mut snapshot = fixtures::snapshot();
    snapshot.clusters.get_mut("gke").unwrap().gateways.remove(0);
    assert_eq!(pools.set_gateways(&snapshot), vec![first.clone()]);
    assert!(!pools.on_opened(&first, later), "its dial ended too late");
    pools.on_replaced(&second);
    assert_eq!(pools.choose(&cluster("gke"), later), Choice::Try(vec![second]));
}

#[test]
fn a_lost_tunnel_is_down_until_it_answers_again() {
    let now = Instant::now();
    let mut pools = pools();
    let eks = gateway("eks", "127.13.0.2:7443");
    open(&mut pools, &eks, now);
    let lost = now + 10 * MS;
    pools.on_lost(&eks, "reset".to_owned(), lost, &mut StdRng::seed_from_u64(1));
    assert_eq!(pools.poll(&eks, lost), Some(LinkState::Down));
    let now = pools.deadline(lost).unwrap();
    assert_eq!(pools.begin_redials(now), vec![eks.clone()]);
    assert!(pools.on_opened(&eks, now));
    for answer in 2..=4u32 {
        pools.on_pong(&eks, MS, now + answer * 10 * MS);
    }
    assert_eq!(pools.poll(&eks, now + 50 * MS), Some(LinkState::Up));
}
