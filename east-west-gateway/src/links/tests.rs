use rand::SeedableRng;
use rand::rngs::StdRng;
use tombolo_clusterset::{LinkState, Snapshot};

use super::*;
use crate::fixtures;

const GATEWAY: &str = "127.13.0.2:7443";

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn facts(id: TunnelId, remote: &str) -> TunnelFacts {
    TunnelFacts {
        id,
        transport: "quic",
        remote: address(remote),
    }
}

/// `here` and one other cluster with these gateways.
fn members(here: &str, other: &str, gateways: &[&str]) -> Snapshot {
    let mut snapshot = fixtures::snapshot();
    snapshot.cluster = fixtures::cluster(here);
    snapshot.clusters = [fixtures::view(here, &[]), fixtures::view(other, gateways)]
        .into_iter()
        .map(|view| (view.id.clone(), view))
        .collect();
    snapshot
}

/// One gateway, its clock, and the tunnels whose pings are answered.
struct Bench {
    links: Links,
    other: ClusterId,
    start: Instant,
    now_ms: u64,
    answering: Vec<TunnelId>,
    seen: Vec<(u64, Action)>,
}

impl Bench {
    fn new(here: &str, other: &str, gateways: &[&str], outbound_only: bool) -> Self {
        let start = Instant::now();
        let mut links = Links::new(fixtures::cluster(here), outbound_only, LinkProfile::LAN);
        let actions = links.set_members(&members(here, other, gateways), start);
        assert_eq!(actions, []);
        let other = fixtures::cluster(other);
        let mut bench = Self {
            links,
            other,
            start,
            now_ms: 0,
            answering: Vec::new(),
            seen: Vec::new(),
        };
        bench.poll();
        bench
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.now_ms)
    }

    fn note(&mut self, actions: Vec<Action>) {
        let at = self.now_ms;
        self.seen.extend(actions.into_iter().map(|action| (at, action)));
    }

    fn poll(&mut self) {
        let actions = self.links.poll(self.now());
        self.note(actions);
    }

    /// Lets time pass in steps of 10 ms; answers take 5 ms.
    fn run_to(&mut self, ms: u64) {
        while self.now_ms < ms {
            self.now_ms += 10;
            for tunnel in self.answering.clone() {
                self.links
                    .on_pong(&self.other.clone(), tunnel, Duration::from_millis(5), self.now());
            }
            self.poll();
        }
    }

    fn dialled(&mut self, tunnel: TunnelFacts) {
        self.answering.push(tunnel.id);
        let gateway = tunnel.remote;
        let actions = self
            .links
            .on_dialled(&self.other.clone(), gateway, tunnel, self.now());
        self.note(actions);
        self.poll();
    }

    fn inbound(&mut self, tunnel: TunnelFacts) {
        self.answering.push(tunnel.id);
        let actions = self.links.on_inbound(&self.other.clone(), tunnel, self.now());
        self.note(actions);
        self.poll();
    }

    fn dial(&self) -> Action {
        Action::Dial {
            cluster: self.other.clone(),
            address: address(GATEWAY),
        }
    }

    fn state(&self) -> LinkState {
        self.links.links()[&self.other].state
    }

    fn seen(&mut self) -> Vec<(u64, Action)> {
        std::mem::take(&mut self.seen)
    }
}

#[test]
fn the_lower_id_dials_at_once_and_the_higher_a_moment_later() {
    // (here, other, we only dial out, first dial)
    let table = [
        ("aks", "kind", false, 0),
        ("zoo", "kind", false, 300),
        ("zoo", "kind", true, 0),
    ];
    for (here, other, outbound_only, expected) in table {
        let mut bench = Bench::new(here, other, &[GATEWAY], outbound_only);
        bench.run_to(1_000);
        let dial = bench.dial();
        assert_eq!(
            bench.seen(),
            [(expected, dial)],
            "{here} to {other}, outbound only: {outbound_only}"
        );
    }
}

#[test]
fn when_both_dial_the_lower_ones_tunnel_stays() {
    let retired = |tunnel| Action::Retire {
        tunnel,
        reason: "the other side dialled too; the tunnel of the lower cluster id stays",
    };
    // Ours is the higher id: our tunnel goes, whichever came first.
    let mut bench = Bench::new("zoo", "kind", &[GATEWAY], false);
    bench.run_to(400);
    bench.dialled(facts(1, GATEWAY));
    bench.run_to(600);
    bench.seen();
    bench.inbound(facts(2, "127.13.0.2:50000"));
    assert_eq!(bench.seen(), [(600, retired(1))]);
    assert_eq!(bench.links.tunnels(&bench.other), [2]);
    bench.run_to(2_000);
    assert_eq!(bench.seen(), [], "no dial while the inbound tunnel lives");
    assert!(bench.links.reports()[&bench.other].reversed);
    bench.links.on_closed(
        &bench.other.clone(),
        2,
        "gone",
        bench.now(),
        &mut StdRng::seed_from_u64(1),
    );
    bench.answering.clear();
    bench.poll();
    let dial = bench.dial();
    assert_eq!(
        bench.seen(),
        [(2_000, dial)],
        "the path of the other side is lost: ours is dialled"
    );

    // Ours is the lower id: both stay here, and the peer retires its own.
    let mut bench = Bench::new("aks", "kind", &[GATEWAY], false);
    bench.dialled(facts(1, GATEWAY));
    bench.seen();
    bench.inbound(facts(2, "127.13.0.2:50000"));
    bench.run_to(1_000);
    assert_eq!(bench.seen(), []);
}

#[test]
fn silence_makes_a_link_suspect_then_down_and_answers_bring_it_back() {
    let mut bench = Bench::new("aks", "kind", &[GATEWAY], false);
    assert_eq!(bench.state(), LinkState::Unknown);
    bench.dialled(facts(1, GATEWAY));
    bench.run_to(200);
    assert_eq!(bench.state(), LinkState::Up);
    assert_eq!(bench.links.reports()[&bench.other].reason, "");
    bench.answering.clear();
    bench.seen();
    bench.run_to(600);
    assert_eq!(bench.state(), LinkState::Suspect);
    assert_eq!(bench.seen(), [], "old flows stay while it is only suspect");
    bench.run_to(1_400);
    assert_eq!(bench.state(), LinkState::Down);
    let seen = bench.seen();
    let close = Action::Close {
        tunnel: 1,
        reason: "no answer to pings",
    };
    assert_eq!(
        seen.iter().map(|(_, action)| action.clone()).collect::<Vec<_>>(),
        [close, bench.dial()]
    );
    assert!((1_000..=1_400).contains(&seen[0].0), "{seen:?}");
    bench.dialled(facts(2, GATEWAY));
    bench.run_to(1_500);
    assert_eq!(bench.state(), LinkState::Up);
}

#[test]
fn refused_dials_are_spaced_and_say_why() {
    let mut bench = Bench::new("aks", "kind", &[GATEWAY], false);
    let mut rng = StdRng::seed_from_u64(7);
    let mut dials = Vec::new();
    while bench.now_ms < 20_000 {
        for (at, action) in bench.seen() {
            assert_eq!(action, bench.dial());
            dials.push(at);
            bench.links.on_dial_failed(
                &bench.other.clone(),
                address(GATEWAY),
                "connection refused".to_owned(),
                bench.now(),
                &mut rng,
            );
        }
        let next = bench.now_ms + 10;
        bench.run_to(next);
    }
    assert_eq!(bench.state(), LinkState::Down);
    assert_eq!(bench.links.reports()[&bench.other].reason, "connection refused");
    assert!((10..=60).contains(&dials.len()), "{dials:?}");
    let gaps: Vec<u64> = dials.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.iter().all(|gap| (100..=2_010).contains(gap)), "{gaps:?}");
}

#[test]
fn a_member_that_only_dials_out_is_reached_through_its_own_tunnel() {
    let mut bench = Bench::new("aks", "kind", &[], false);
    bench.run_to(1_000);
    assert_eq!(bench.seen(), []);
    assert_eq!(
        bench.links.reports()[&bench.other].reason,
        "the cluster only dials out, and has not dialled yet"
    );
    bench.inbound(facts(9, "127.13.0.2:50000"));
    bench.run_to(1_200);
    assert_eq!(bench.state(), LinkState::Up);
    assert_eq!(bench.links.tunnels(&bench.other), [9]);

    let bench = Bench::new("aks", "kind", &[], true);
    assert_eq!(bench.links.reports()[&bench.other].reason, BOTH_DIAL_OUT);
}

#[test]
fn the_best_gateway_speaks_for_the_cluster() {
    let second = "127.13.0.3:7443";
    let mut bench = Bench::new("aks", "kind", &[GATEWAY, second], false);
    assert_eq!(bench.seen().len(), 2);
    bench.dialled(facts(1, GATEWAY));
    bench.dialled(facts(2, second));
    bench.run_to(200);
    bench.answering.retain(|tunnel| *tunnel == 2);
    bench.run_to(2_000);
    assert_eq!(bench.state(), LinkState::Up);
    assert_eq!(bench.links.tunnels(&bench.other), [2]);
    assert_eq!(bench.links.reports()[&bench.other].peer, second);
}

#[test]
fn an_evicted_cluster_loses_its_tunnels() {
    let mut bench = Bench::new("aks", "kind", &[GATEWAY], false);
    bench.dialled(facts(1, GATEWAY));
    let alone = members("aks", "aks", &[]);
    let close = Action::Close {
        tunnel: 1,
        reason: "the cluster is no member any more",
    };
    assert_eq!(bench.links.set_members(&alone, bench.now()), [close]);
    assert!(bench.links.reports().is_empty());
}

#[test]
fn a_renewed_certificate_renews_the_tunnel_and_loses_nothing() {
    let mut bench = Bench::new("aks", "kind", &[GATEWAY], false);
    bench.dialled(facts(1, GATEWAY));
    bench.run_to(500);
    bench.seen();
    bench.links.on_outdated(&bench.other.clone(), 1, bench.now());
    bench.poll();
    assert_eq!(bench.seen(), [(500, bench.dial())]);
    bench.dialled(facts(2, GATEWAY));
    let retired = Action::Retire {
        tunnel: 1,
        reason: "a newer tunnel takes its place",
    };
    assert_eq!(bench.seen(), [(500, retired)]);
    bench.run_to(900);
    assert_eq!(
        (bench.state(), bench.links.tunnels(&bench.other)),
        (LinkState::Up, vec![2])
    );
}

#[test]
fn a_tunnel_of_the_other_side_does_not_wipe_the_penalty_of_a_flapping_path() {
    let mut bench = Bench::new("zoo", "kind", &[GATEWAY], false);
    let other = bench.other.clone();
    let mut rng = StdRng::seed_from_u64(1);
    bench.run_to(400);
    for tunnel in 1..=3 {
        bench.dialled(facts(tunnel, GATEWAY));
        bench.run_to(bench.now_ms + 100);
        bench
            .links
            .on_closed(&other, tunnel, "gone", bench.now(), &mut rng);
        bench.answering.clear();
        bench.poll();
    }
    bench.dialled(facts(4, GATEWAY));
    bench.run_to(bench.now_ms + 100);
    assert_eq!(bench.state(), LinkState::Suspect, "three losses: damped");
    bench.inbound(facts(5, "127.13.0.2:50000"));
    bench.links.on_closed(&other, 5, "gone", bench.now(), &mut rng);
    bench.answering.clear();
    bench.poll();
    bench.dialled(facts(6, GATEWAY));
    bench.run_to(bench.now_ms + 100);
    assert_eq!(bench.state(), LinkState::Suspect, "it flaps as before");
    bench.run_to(bench.now_ms + 31_000);
    assert_eq!(bench.state(), LinkState::Up);
}
