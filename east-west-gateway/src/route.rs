//! Where a new flow goes, and when it is sent elsewhere.
//!
//! [`hops`] orders the ways to a backend: an endpoint of this cluster, or another cluster through its gateway, which chooses
//! an endpoint of its own. [`Dispatch`] tries them in that order until one says *connected*. Until then no byte of the client
//! has left, so that the flow may move (DESIGN §7); after that it never does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tombolo_clusterset::export::SessionAffinity;
use tombolo_clusterset::select::{self, Signals};
use tombolo_clusterset::{ClusterId, Import, Locality, ServicePort, Snapshot};
use tombolo_tunnel::Refusal;

/// Most endpoints of the own cluster that one flow tries: when five in a row refuse, the sixth is not the remedy, and another
/// cluster is.
pub const LOCAL_HOPS_MAX: usize = 5;

/// A hop that has not answered for this long gets company: a connect across a region takes less, and a client waits this
/// long without noticing.
pub const HEDGE_DELAY: Duration = Duration::from_millis(150);

/// A hop with a known RTT gets this many of them, should that be longer: tunnel, backend, and some to spare.
const HEDGE_ROUND_TRIPS: u32 = 3;

/// Hops that may be pending at once: the backends' gateways see at most this many connects for one flow.
pub const PENDING_MAX: usize = 3;

/// A flow that nobody has connected by then has failed: longer than any detection, shorter than a client's patience.
pub const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// One way to a backend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hop {
    /// Straight to an endpoint of this cluster.
    Local(SocketAddr),
    /// Through a tunnel to a gateway of that cluster.
    Remote {
        /// Which cluster.
        cluster: ClusterId,
        /// Headless: this endpoint and no other.
        endpoint: Option<IpAddr>,
    },
}

/// A new flow, and what is known when it comes.
#[derive(Debug, Clone, Copy)]
pub struct NewFlow<'a> {
    /// The view of this cluster.
    pub snapshot: &'a Snapshot,
    /// The service it is for.
    pub import: &'a Import,
    /// The port of it.
    pub port: &'a ServicePort,
    /// Headless: this endpoint of this cluster and no other.
    pub endpoint: Option<&'a (ClusterId, IpAddr)>,
    /// The client.
    pub client: IpAddr,
    /// Where this gateway stands.
    pub from: &'a Locality,
    /// Links, ejected endpoints, and what a drill hides.
    pub signals: &'a Signals,
}

/// The hops of a flow, first the one drawn. Empty: nothing serves it.
///
/// A remote cluster is one hop however many endpoints it has. With `sessionAffinity: ClientIP` a client gets the same order
/// each time.
#[must_use]
pub fn hops(flow: NewFlow<'_>, rng: &mut impl rand::Rng) -> Vec<Hop> {
    let NewFlow {
        snapshot,
        import,
        port,
        endpoint,
        client,
        from,
        signals,
    } = flow;
    if let Some((cluster, address)) = endpoint {
        return vec![Hop::Remote {
            cluster: cluster.clone(),
            endpoint: Some(*address),
        }];
    }
    let plan = select::plan(snapshot, import, port, None, from, signals);
    let sticky = (import.spec.session_affinity == SessionAffinity::ClientIp).then_some(client);
    let mut seen = BTreeSet::new();
    let mut local = 0;
    let mut hops = Vec::new();
    for candidate in select::draw_for(&plan, sticky, rng) {
        if candidate.cluster == snapshot.cluster {
            local += 1;
            if local <= LOCAL_HOPS_MAX {
                hops.push(Hop::Local(SocketAddr::new(
                    candidate.endpoint.address,
                    candidate.port,
                )));
            }
        } else if seen.insert(&candidate.cluster) {
            hops.push(Hop::Remote {
                cluster: candidate.cluster.clone(),
                endpoint: None,
            });
        }
    }
    hops
}

/// Whether a flow refused for this reason may be tried at another cluster. Each cluster judges its own export, so another
/// may well say yes; only a forged header is wrong everywhere.
#[must_use]
pub fn may_move(refusal: Refusal) -> bool {
    match refusal {
        Refusal::NoEndpoint | Refusal::BackendRefused | Refusal::Draining | Refusal::Overloaded => true,
        // A snapshot that is a moment old on either side says so too.
        Refusal::NotExported | Refusal::NotGranted => true,
        Refusal::Forged => false,
    }
}

/// How long a hop may be silent before the next is tried beside it.
#[must_use]
pub fn hedge_after(rtt: Option<Duration>) -> Duration {
    rtt.map_or(HEDGE_DELAY, |rtt| HEDGE_DELAY.max(rtt * HEDGE_ROUND_TRIPS))
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Try this hop, beside those that are pending.
    Try(usize),
    /// Nothing until then, or until a hop answers.
    Wait(Instant),
    /// No hop is left, or the time is over.
    GiveUp,
}

/// The tries of one flow.
///
/// Call order: [`Self::poll`] until it says `Wait`; `on_*` when something happened, then [`Self::poll`] again. The first hop
/// that connects ends it: the caller drops the others.
#[derive(Debug, Clone)]
pub struct Dispatch {
    hops: usize,
    next: usize,
    /// When each pending hop gets company.
    pending: BTreeMap<usize, Instant>,
    deadline: Instant,
    final_refusal: bool,
}

impl Dispatch {
    /// A flow with that many hops, begun at `now`.
    #[must_use]
    pub fn new(hops: usize, now: Instant) -> Self {
        Self {
            hops,
            next: 0,
            pending: BTreeMap::new(),
            deadline: now + OPEN_LIMIT,
            final_refusal: false,
        }
    }

    /// The next step.
    pub fn poll(&mut self, now: Instant) -> Step {
        let left = self.next < self.hops && !self.final_refusal;
        if now >= self.deadline || (self.pending.is_empty() && !left) {
            return Step::GiveUp;
        }
        let may_add = left && self.pending.len() < PENDING_MAX;
        // The youngest speaks: an older one that is late had its successor already.
        let due = self.pending.values().max().copied();
        match due {
            None => self.start(),
            Some(due) if may_add && due <= now => self.start(),
            Some(due) if may_add => Step::Wait(due.min(self.deadline)),
            Some(_) => Step::Wait(self.deadline),
        }
    }

    /// `hop` was begun at `now`; its path has this RTT.
    pub fn on_begun(&mut self, hop: usize, rtt: Option<Duration>, now: Instant) {
        self.pending.insert(hop, now + hedge_after(rtt));
    }

    /// The link that `hop` takes is no longer up: it gets company at once.
    pub fn on_suspect(&mut self, hop: usize, now: Instant) {
        if let Some(due) = self.pending.get_mut(&hop) {
            *due = now.min(*due);
        }
    }

    /// `hop` failed. With `may_move` false no other is tried.
    pub fn on_failed(&mut self, hop: usize, may_move: bool) {
        self.pending.remove(&hop);
        self.final_refusal |= !may_move;
    }

    fn start(&mut self) -> Step {
        let hop = self.next;
        self.next += 1;
        Step::Try(hop)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use tombolo_clusterset::endpoint::Protocol;
    use tombolo_clusterset::{Link, LinkState};

    use super::*;
    use crate::fixtures;

    fn remote(cluster: &str) -> Hop {
        Hop::Remote {
            cluster: fixtures::cluster(cluster),
            endpoint: None,
        }
    }

    fn local(address: &str) -> Hop {
        Hop::Local(address.parse().unwrap())
    }

    fn check(service: &str, (protocol, number): (Protocol, u16), signals: &Signals, expected: &[Hop]) {
        let snapshot = fixtures::snapshot();
        let import = &snapshot.imports[&fixtures::key(service)];
        let flow = NewFlow {
            snapshot: &snapshot,
            import,
            port: import.port(protocol, number).unwrap(),
            endpoint: None,
            client: fixtures::address("127.11.1.1"),
            from: &Locality::default(),
            signals,
        };
        for seed in 0..20 {
            assert_eq!(
                hops(flow, &mut StdRng::seed_from_u64(seed)),
                expected,
                "{service} {number}"
            );
        }
    }

    fn links(states: &[(&str, LinkState, u64)]) -> Signals {
        let link = |state, rtt| Link {
            state,
            rtt: Some(Duration::from_millis(rtt)),
            both_lost_for: None,
        };
        let links = states
            .iter()
            .map(|(id, state, rtt)| (fixtures::cluster(id), link(*state, *rtt)));
        Signals {
            links: links.collect(),
            ..Signals::default()
        }
    }

    #[test]
    fn own_endpoints_first_then_clusters_by_rtt_and_each_once() {
        use LinkState::{Suspect, Up};
        let http = (Protocol::Tcp, 80);
        let here = local("127.0.0.2:8080");
        let near_gke = links(&[("gke", Up, 5), ("kind", Up, 20)]);
        let near_kind = links(&[("gke", Up, 20), ("kind", Up, 5)]);
        let gke_suspect = links(&[("gke", Suspect, 5), ("kind", Up, 20)]);
        check(
            "shop/checkout",
            http,
            &near_gke,
            &[here.clone(), remote("gke"), remote("kind")],
        );
        check(
            "shop/checkout",
            http,
            &near_kind,
            &[here.clone(), remote("kind"), remote("gke")],
        );
        check(
            "shop/checkout",
            http,
            &gke_suspect,
            &[here, remote("kind"), remote("gke")],
        );
        // kind does not expose the UDP port.
        check(
            "shop/checkout",
            (Protocol::Udp, 53),
            &near_kind,
            &[local("127.0.0.2:5353"), remote("gke")],
        );
        check("shop/elsewhere", http, &near_gke, &[remote("kind")]);
        // A drill hides the local endpoints from its own flows.
        let hidden = Signals {
            hidden: BTreeSet::from([fixtures::cluster("aks")]),
            ..near_gke
        };
        check("shop/checkout", http, &hidden, &[remote("gke"), remote("kind")]);
    }

    #[test]
    fn a_stand_in_has_one_hop() {
        let snapshot = fixtures::snapshot();
        let import = &snapshot.imports[&fixtures::key("shop/db")];
        let pinned = (fixtures::cluster("kind"), fixtures::address("10.9.0.2"));
        let flow = NewFlow {
            snapshot: &snapshot,
            import,
            port: &import.spec.ports[0],
            endpoint: Some(&pinned),
            client: fixtures::address("127.11.1.1"),
            from: &Locality::default(),
            signals: &Signals::default(),
        };
        let expected = Hop::Remote {
            cluster: pinned.0.clone(),
            endpoint: Some(pinned.1),
        };
        assert_eq!(hops(flow, &mut StdRng::seed_from_u64(1)), [expected]);
    }

    #[derive(Debug, Clone, Copy)]
    enum Event {
        Suspect(usize),
        Failed(usize),
        Forged(usize),
        Nothing,
    }

    /// Plays `events` (milliseconds, event) and returns every hop that is begun with its time, and when it gives up.
    fn play(hops: usize, events: &[(u64, Event)]) -> (Vec<(u64, usize)>, Option<u64>) {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut dispatch = Dispatch::new(hops, start);
        let mut begun = Vec::new();
        let mut events = events.iter().peekable();
        let mut now = 0;
        loop {
            match dispatch.poll(at(now)) {
                Step::Try(hop) => {
                    dispatch.on_begun(hop, None, at(now));
                    begun.push((now, hop));
                }
                Step::GiveUp => return (begun, Some(now)),
                Step::Wait(until) => {
                    let until = u64::try_from((until - start).as_millis()).unwrap();
                    match events.peek() {
                        Some((when, _)) if *when <= until => {
                            let (when, event) = events.next().unwrap();
                            now = *when;
                            match event {
                                Event::Suspect(hop) => dispatch.on_suspect(*hop, at(now)),
                                Event::Failed(hop) => dispatch.on_failed(*hop, true),
                                Event::Forged(hop) => dispatch.on_failed(*hop, false),
                                Event::Nothing => return (begun, None),
                            }
                        }
                        _ => now = until,
                    }
                }
            }
        }
    }

    #[test]
    fn pending_flows_move_and_never_for_ever() {
        use Event::{Failed, Forged, Nothing, Suspect};
        type Row = (
            usize,
            &'static [(u64, Event)],
            &'static [(u64, usize)],
            Option<u64>,
        );
        let table: &[Row] = &[
            (0, &[], &[], Some(0)),
            // Connected within the delay: one try.
            (3, &[(100, Nothing)], &[(0, 0)], None),
            // Refused: the next at once.
            (2, &[(5, Failed(0)), (9, Failed(1))], &[(0, 0), (5, 1)], Some(9)),
            // Suspect: the next at once, the first stays pending.
            (2, &[(40, Suspect(0)), (60, Nothing)], &[(0, 0), (40, 1)], None),
            // Silence: hedged, at most three at once, and over at the limit.
            (5, &[], &[(0, 0), (150, 1), (300, 2)], Some(10_000)),
            (
                5,
                &[(400, Failed(1)), (500, Nothing)],
                &[(0, 0), (150, 1), (300, 2), (450, 3)],
                None,
            ),
            // Wrong everywhere: no other is tried.
            (3, &[(5, Forged(0))], &[(0, 0)], Some(5)),
        ];
        for (hops, events, begun, gave_up) in table {
            assert_eq!(
                play(*hops, events),
                (begun.to_vec(), *gave_up),
                "{hops} hops, {events:?}"
            );
        }
    }

    #[test]
    fn a_long_path_is_not_hedged_in_vain() {
        assert_eq!(hedge_after(None), HEDGE_DELAY);
        assert_eq!(hedge_after(Some(Duration::from_millis(10))), HEDGE_DELAY);
        assert_eq!(
            hedge_after(Some(Duration::from_millis(100))),
            Duration::from_millis(300)
        );
    }
}
