//! The paths to one other cluster.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tombolo_clusterset::link::{LinkTracker, SUPPRESSED_MAX};
use tombolo_clusterset::reachability::{BothLost, best};
use tombolo_clusterset::{ClusterId, Lease, Link, LinkState};
use tombolo_daemon::backoff::Backoff;
use tombolo_wire::convert::LinkReport;

use super::{Action, BOTH_DIAL_OUT, DIAL_DEFERENCE, REDIAL_BASE, REDIAL_MAX, Rules, TunnelFacts, TunnelId};

/// How a path begins: an address that we dial, or one that dialled us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum PathKey {
    Dialled(SocketAddr),
    Inbound(SocketAddr),
}

/// One path. Its tracker outlives its tunnels, or damping could not see a flap.
#[derive(Debug)]
struct Path {
    tracker: LinkTracker,
    tunnel: Option<TunnelFacts>,
    /// Tunnels that were replaced and still have flows: they are to be closed when the cluster is no member any more.
    retired: Vec<TunnelId>,
    /// When the tunnel came, or answered last.
    heard: Instant,
    dial: Dial,
    backoff: Backoff,
    /// Why it is not up.
    reason: String,
}

/// What becomes of a dialled path without tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dial {
    /// Not now: it has a tunnel, another one takes its place, or it is not ours to dial.
    Idle,
    At(Instant),
    Running,
}

/// Retired tunnels remembered per path: each lives until its last flow ends, and renewals come hours apart.
const RETIRED_MAX: usize = 16;

#[derive(Debug)]
pub(super) struct Peer {
    id: ClusterId,
    lease: Lease,
    both_lost: BothLost,
    both_lost_for: Option<Duration>,
    paths: BTreeMap<PathKey, Path>,
    dialable: bool,
    /// No dial before that.
    deferred_until: Instant,
}

impl Path {
    fn new(rules: &Rules, now: Instant) -> Self {
        Self {
            tracker: LinkTracker::new(rules.profile),
            tunnel: None,
            retired: Vec::new(),
            heard: now,
            dial: Dial::Idle,
            backoff: Backoff::decorrelated(REDIAL_BASE, REDIAL_MAX),
            reason: "not dialled yet".to_owned(),
        }
    }

    fn has(&self, tunnel: TunnelId) -> bool {
        self.tunnel.as_ref().is_some_and(|facts| facts.id == tunnel)
    }

    fn take_tunnel(&mut self, tunnel: TunnelFacts, now: Instant) -> Option<TunnelFacts> {
        self.heard = now;
        self.dial = Dial::Idle;
        self.reason = "waiting for the first answers".to_owned();
        self.tracker.on_ping_sent(now);
        self.tunnel.replace(tunnel)
    }

    /// Gives up the tunnel for another one: no loss, so that the tracker starts anew, with the penalty of earlier losses.
    fn retire(&mut self, reason: &'static str) -> Option<Action> {
        let facts = self.tunnel.take()?;
        self.tracker = self.tracker.begun_anew();
        self.dial = Dial::Idle;
        self.remember_retired(facts.id);
        Some(Action::Retire {
            tunnel: facts.id,
            reason,
        })
    }

    fn remember_retired(&mut self, tunnel: TunnelId) {
        if self.retired.len() == RETIRED_MAX {
            self.retired.remove(0);
        }
        self.retired.push(tunnel);
    }

    fn is_live(&self) -> bool {
        self.tunnel.is_some() && self.tracker.state() != LinkState::Down
    }

    /// When a tunnel whose path stays Down without an answer is closed.
    fn gives_up_at(&self, rules: &Rules) -> Option<Instant> {
        let lost = self.tunnel.is_some() && self.tracker.state() == LinkState::Down;
        lost.then(|| self.heard + rules.profile.down_after)
    }
}

impl Peer {
    pub(super) fn new(id: ClusterId, rules: &Rules, now: Instant) -> Self {
        let deferred = !rules.outbound_only && id < rules.here;
        Self {
            id,
            lease: Lease::Unknown,
            both_lost: BothLost::default(),
            both_lost_for: None,
            paths: BTreeMap::new(),
            dialable: false,
            deferred_until: if deferred { now + DIAL_DEFERENCE } else { now },
        }
    }

    pub(super) fn set_view(
        &mut self,
        gateways: &[SocketAddr],
        lease: Lease,
        rules: &Rules,
        now: Instant,
    ) -> Vec<Action> {
        self.lease = lease;
        self.dialable = !gateways.is_empty();
        let mut actions = Vec::new();
        self.paths.retain(|key, path| {
            let PathKey::Dialled(address) = key else {
                return true;
            };
            let stays = gateways.contains(address);
            if !stays {
                actions.extend(path.tunnel.take().map(|facts| Action::Retire {
                    tunnel: facts.id,
                    reason: "the gateway's address is withdrawn",
                }));
            }
            stays
        });
        for address in gateways {
            self.paths
                .entry(PathKey::Dialled(*address))
                .or_insert_with(|| Path::new(rules, now));
        }
        actions
    }

    pub(super) fn close_all(&mut self, reason: &'static str) -> Vec<Action> {
        let tunnels = self.paths.values().flat_map(|path| {
            path.retired
                .iter()
                .copied()
                .chain(path.tunnel.as_ref().map(|facts| facts.id))
        });
        tunnels.map(|tunnel| Action::Close { tunnel, reason }).collect()
    }

    pub(super) fn on_dialled(
        &mut self,
        address: SocketAddr,
        tunnel: TunnelFacts,
        rules: &Rules,
        now: Instant,
    ) -> Vec<Action> {
        let yields = self.yields_to_inbound(rules);
        let Some(path) = self.paths.get_mut(&PathKey::Dialled(address)) else {
            return vec![Action::Close {
                tunnel: tunnel.id,
                reason: "the gateway's address is withdrawn",
            }];
        };
        if yields {
            path.dial = Dial::Idle;
            path.remember_retired(tunnel.id);
            return vec![Action::Retire {
                tunnel: tunnel.id,
                reason: DUPLICATE,
            }];
        }
        let replaced = path.take_tunnel(tunnel, now);
        replaced
            .map(|facts| Action::Retire {
                tunnel: facts.id,
                reason: RENEWED,
            })
            .into_iter()
            .collect()
    }

    pub(super) fn on_dial_failed(
        &mut self,
        address: SocketAddr,
        reason: String,
        now: Instant,
        rng: &mut impl rand::Rng,
    ) {
        let Some(path) = self.paths.get_mut(&PathKey::Dialled(address)) else {
            return;
        };
        path.dial = Dial::At(now + path.backoff.next(rng));
        path.reason = reason;
        // A dial that fails beside a living tunnel says nothing about that one.
        if path.tunnel.is_none() {
            path.tracker.on_closed();
        }
    }

    pub(super) fn on_inbound(&mut self, tunnel: TunnelFacts, rules: &Rules, now: Instant) -> Vec<Action> {
        let key = PathKey::Inbound(tunnel.remote);
        let path = self.paths.entry(key).or_insert_with(|| Path::new(rules, now));
        // The peer replaced it and retires the old one itself.
        if let Some(replaced) = path.take_tunnel(tunnel, now) {
            path.remember_retired(replaced.id);
        }
        if !self.yields_to_inbound(rules) {
            return Vec::new();
        }
        let dialled = self
            .paths
            .iter_mut()
            .filter(|(key, _)| matches!(key, PathKey::Dialled(_)));
        dialled.filter_map(|(_, path)| path.retire(DUPLICATE)).collect()
    }

    pub(super) fn on_pong(&mut self, tunnel: TunnelId, rtt: Duration, now: Instant) {
        for path in self.paths.values_mut().filter(|path| path.has(tunnel)) {
            path.tracker.on_pong(rtt, now);
            path.heard = now;
            path.backoff.reset();
        }
    }

    pub(super) fn on_going_away(&mut self, tunnel: TunnelId, now: Instant) {
        for (key, path) in &mut self.paths {
            if path.has(tunnel) {
                path.tunnel = None;
                path.remember_retired(tunnel);
                // The peer drains: until a new tunnel stands, there is no path.
                path.tracker.on_closed();
                path.reason = "the gateway is going away".to_owned();
                if matches!(key, PathKey::Dialled(_)) {
                    path.dial = Dial::At(now);
                }
            }
        }
    }

    pub(super) fn on_outdated(&mut self, tunnel: TunnelId, now: Instant) {
        for (key, path) in &mut self.paths {
            if path.has(tunnel) && matches!(key, PathKey::Dialled(_)) && path.dial == Dial::Idle {
                path.dial = Dial::At(now);
            }
        }
    }

    pub(super) fn on_closed(
        &mut self,
        tunnel: TunnelId,
        reason: &str,
        now: Instant,
        rng: &mut impl rand::Rng,
    ) {
        for (key, path) in &mut self.paths {
            path.retired.retain(|retired| *retired != tunnel);
            if path.has(tunnel) {
                path.tunnel = None;
                path.tracker.on_closed();
                reason.clone_into(&mut path.reason);
                if matches!(key, PathKey::Dialled(_)) {
                    path.dial = Dial::At(now + path.backoff.next(rng));
                }
            }
        }
    }

    pub(super) fn poll(&mut self, rules: &Rules, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        for path in self.paths.values_mut() {
            if path.tunnel.is_some() && path.tracker.ping_due(now) <= now {
                path.tracker.on_ping_sent(now);
            }
            let went_down = path.tracker.poll(now) == Some(LinkState::Down);
            let hopeless = path.gives_up_at(rules).is_some_and(|at| at <= now);
            if (went_down || hopeless)
                && let Some(facts) = path.tunnel.take()
            {
                actions.push(Action::Close {
                    tunnel: facts.id,
                    reason: NO_ANSWER,
                });
                path.tracker.on_closed();
                path.dial = Dial::At(now);
                NO_ANSWER.clone_into(&mut path.reason);
            }
        }
        self.forget_silent(now);
        self.both_lost_for = self.both_lost.update(self.lease, self.best().state, now);
        actions.extend(self.due_dials(rules, now));
        actions
    }

    pub(super) fn deadline(&self, rules: &Rules, now: Instant) -> Option<Instant> {
        let of_path = |(key, path): (&PathKey, &Path)| {
            let ping = path.tunnel.is_some().then(|| path.tracker.ping_due(now));
            let dial = match (key, path.dial) {
                (PathKey::Dialled(_), Dial::At(at)) => Some(at),
                (PathKey::Dialled(_), Dial::Idle)
                    if path.tunnel.is_none() && !self.yields_to_inbound(rules) =>
                {
                    Some(self.deferred_until)
                }
                _ => None,
            };
            let tracked = path.tunnel.is_some().then(|| path.tracker.deadline()).flatten();
            [ping, dial, tracked, path.gives_up_at(rules)]
                .into_iter()
                .flatten()
                .min()
        };
        self.paths
            .iter()
            .filter_map(of_path)
            .chain(self.both_lost.deadline().filter(|at| *at > now))
            .min()
    }

    pub(super) fn link(&self) -> Link {
        Link {
            both_lost_for: self.both_lost_for,
            ..self.best()
        }
    }

    pub(super) fn tunnels(&self) -> Vec<TunnelId> {
        let mut live: Vec<&Path> = self.paths.values().filter(|path| path.tunnel.is_some()).collect();
        live.sort_by_key(|path| rank(&path.tracker.link()));
        live.into_iter()
            .filter_map(|path| path.tunnel.as_ref())
            .map(|facts| facts.id)
            .collect()
    }

    pub(super) fn report(&self, rules: &Rules) -> LinkReport {
        let link = self.best();
        let used = self
            .paths
            .iter()
            .filter(|(_, path)| path.tunnel.is_some())
            .min_by_key(|(_, path)| rank(&path.tracker.link()));
        let facts = used.and_then(|(_, path)| path.tunnel.as_ref());
        LinkReport {
            cluster: self.id.clone(),
            state: link.state,
            rtt: link.rtt,
            transport: facts.map(|facts| facts.transport.to_owned()).unwrap_or_default(),
            peer: facts.map(|facts| facts.remote.to_string()).unwrap_or_default(),
            reversed: matches!(used, Some((PathKey::Inbound(_), _))),
            reason: self.reason(link.state, rules),
        }
    }

    fn reason(&self, state: LinkState, rules: &Rules) -> String {
        if state == LinkState::Up {
            return String::new();
        }
        if !self.dialable && rules.outbound_only {
            return BOTH_DIAL_OUT.to_owned();
        }
        let damped = self
            .paths
            .values()
            .any(|path| path.tunnel.is_some() && path.tracker.is_damped());
        if damped {
            return "answers, but was lost several times; watched for a while before it is used first again"
                .to_owned();
        }
        if state == LinkState::Suspect {
            return "answers are overdue".to_owned();
        }
        let spoken = self.paths.values().min_by_key(|path| rank(&path.tracker.link()));
        spoken.map_or_else(
            || "the cluster only dials out, and has not dialled yet".to_owned(),
            |path| path.reason.clone(),
        )
    }

    fn best(&self) -> Link {
        best(self.paths.values().map(|path| path.tracker.link()))
    }

    /// When both dial, the tunnel dialled by the lower id stays: ours is not needed while the lower one's lives.
    fn yields_to_inbound(&self, rules: &Rules) -> bool {
        let inbound = |(key, path): (&PathKey, &Path)| matches!(key, PathKey::Inbound(_)) && path.is_live();
        self.id < rules.here && self.paths.iter().any(inbound)
    }

    fn due_dials(&mut self, rules: &Rules, now: Instant) -> Vec<Action> {
        if now < self.deferred_until || self.yields_to_inbound(rules) {
            return Vec::new();
        }
        let mut actions = Vec::new();
        for (key, path) in &mut self.paths {
            let PathKey::Dialled(address) = key else { continue };
            let due = match path.dial {
                Dial::Idle => path.tunnel.is_none(),
                Dial::At(at) => at <= now,
                Dial::Running => false,
            };
            if due {
                path.dial = Dial::Running;
                actions.push(Action::Dial {
                    cluster: self.id.clone(),
                    address: *address,
                });
            }
        }
        actions
    }

    /// A path that dialled us and is gone comes back under another address: forgotten once its damping would be over.
    fn forget_silent(&mut self, now: Instant) {
        self.paths.retain(|key, path| {
            let silent = now.saturating_duration_since(path.heard) >= SUPPRESSED_MAX;
            matches!(key, PathKey::Dialled(_)) || path.tunnel.is_some() || !silent
        });
    }
}

const DUPLICATE: &str = "the other side dialled too; the tunnel of the lower cluster id stays";
const RENEWED: &str = "a newer tunnel takes its place";
const NO_ANSWER: &str = "no answer to pings";

/// The same order as [`best`]: the tunnel in use is the one that speaks for the link.
fn rank(link: &Link) -> (u8, bool, Option<Duration>) {
    let state = match link.state {
        LinkState::Up => 0,
        LinkState::Suspect => 1,
        LinkState::Unknown => 2,
        LinkState::Down => 3,
    };
    (state, link.rtt.is_none(), link.rtt)
}
