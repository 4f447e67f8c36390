//! One tunnel to each remote gateway that is in use: when to dial it, when to rest, when to let go.
//!
//! ```text
//!          first flow              opened
//!   Idle ─────────────▶ Dialling ───────────▶ Open ───▶ Idle    replaced, unused for UNUSED_MAX
//!    ▲                  ▲      │ failed         │ lost
//!    │ not wanted       │      ▼                │
//!    └────────────────  Resting ◀───────────────┘
//! ```
//! A sidecar dials only where its workload calls, and holds no tunnel that it does not use: a thousand pods with tunnels to
//! 250 clusters each would be a burden to everyone. A path that was lost is dialled again by itself for as long as it is
//! wanted, and says *down* until it answers, so that no flow has to find out.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tombolo_clusterset::link::{LinkProfile, LinkTracker};
use tombolo_clusterset::reachability::best;
use tombolo_clusterset::{ClusterId, Link, LinkState, Snapshot};
use tombolo_daemon::backoff::Backoff;

/// Rest after the first failed dial: about a round trip between regions.
pub const REST_BASE: Duration = Duration::from_millis(200);

/// Longest rest: a gateway that comes back is used again within it, and flows go elsewhere meanwhile.
pub const REST_MAX: Duration = Duration::from_secs(5);

/// A tunnel without flows is let go after this, and a lost one is no longer dialled: a handshake costs two round trips, and
/// callers come in bursts.
pub const UNUSED_MAX: Duration = Duration::from_secs(120);

/// A gateway of another cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gateway {
    /// Whose.
    pub cluster: ClusterId,
    /// Where it takes tunnels.
    pub address: SocketAddr,
}

/// What a flow to a cluster can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// These gateways, in this order.
    Try(Vec<Gateway>),
    /// All of them failed a moment ago.
    Rest {
        /// Until the first may be dialled again.
        until: Instant,
    },
    /// The cluster has no gateway that can be dialled.
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Dialling,
    Open,
    Resting { until: Instant },
}

/// The path to one gateway. Its tracker outlives its tunnels, or damping could not see a flap.
#[derive(Debug)]
struct Path {
    phase: Phase,
    /// When a flow last went there, or ran there; None before the first.
    used: Option<Instant>,
    tracker: LinkTracker,
    backoff: Backoff,
    reason: String,
}

/// The paths to all gateways that a snapshot names.
///
/// `set_gateways` for each snapshot; `choose` for a flow; `begin_dial` (or `begin_redials` at `deadline`), then `on_opened` or
/// `on_lost`; `on_pinged`, `on_pong` and `on_lost` while a tunnel is open; `poll` after each of these and with every ping.
#[derive(Debug)]
pub struct Pools {
    profile: LinkProfile,
    paths: BTreeMap<Gateway, Path>,
}

/// One path, for `/state`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathReport {
    /// To whom.
    pub gateway: Gateway,
    /// `idle`, `dialling`, `open` or `resting`.
    pub phase: &'static str,
    /// Its state.
    pub link: LinkState,
    /// Why its last tunnel ended or did not come about; empty when none did.
    pub reason: String,
}

impl Pools {
    /// No path.
    #[must_use]
    pub fn new(profile: LinkProfile) -> Self {
        Self {
            profile,
            paths: BTreeMap::new(),
        }
    }

    /// How often an open tunnel is expected to answer.
    #[must_use]
    pub fn ping_interval(&self) -> Duration {
        self.profile.ping_interval
    }

    /// The gateways are those of `snapshot` from now on; those that are gone are returned, to be let go.
    pub fn set_gateways(&mut self, snapshot: &Snapshot) -> Vec<Gateway> {
        let others = snapshot
            .clusters
            .values()
            .filter(|view| view.id != snapshot.cluster);
        let named = others.flat_map(|view| {
            let gateway = |address: &SocketAddr| Gateway {
                cluster: view.id.clone(),
                address: *address,
            };
            view.gateways.iter().map(gateway)
        });
        let mut old = std::mem::take(&mut self.paths);
        for gateway in named {
            let path = old.remove(&gateway).unwrap_or_else(|| Path::new(self.profile));
            self.paths.insert(gateway, path);
        }
        old.into_keys().collect()
    }

    /// Where a flow to `cluster` may go: open tunnels that answer, the fastest first; then what can be dialled; then open
    /// tunnels in doubt.
    #[must_use]
    pub fn choose(&self, cluster: &ClusterId, now: Instant) -> Choice {
        let mut usable = Vec::new();
        let mut rests = Vec::new();
        for (gateway, path) in self.of(cluster) {
            let link = path.tracker.link();
            let doubtful = matches!(link.state, LinkState::Suspect | LinkState::Down);
            let place = match path.phase {
                Phase::Resting { until } if now < until => {
                    rests.push(until);
                    continue;
                }
                Phase::Open if !doubtful => 0,
                _ if !doubtful => 1,
                Phase::Open => 2,
                Phase::Idle | Phase::Dialling | Phase::Resting { .. } => 3,
            };
            usable.push((place, link.rtt.is_none(), link.rtt, gateway));
        }
        usable.sort();
        match (usable.is_empty(), rests.into_iter().min()) {
            (false, _) => Choice::Try(usable.into_iter().map(|(.., gateway)| gateway.clone()).collect()),
            (true, Some(until)) => Choice::Rest { until },
            (true, None) => Choice::None,
        }
    }

    /// Marks `gateway` as being dialled for a flow; false when it may not be now: not known, open, already dialled, or resting.
    pub fn begin_dial(&mut self, gateway: &Gateway, now: Instant) -> bool {
        let Some(path) = self.paths.get_mut(gateway) else {
            return false;
        };
        path.used = Some(now);
        path.begin_dial(now)
    }

    /// Lost paths whose rest is over and that are still wanted; they are marked as being dialled.
    pub fn begin_redials(&mut self, now: Instant) -> Vec<Gateway> {
        let rested = |path: &Path| matches!(path.phase, Phase::Resting { .. }) && path.is_wanted(now);
        let due = self.paths.iter_mut().filter(|(_, path)| rested(path));
        due.filter_map(|(gateway, path)| path.begin_dial(now).then(|| gateway.clone()))
            .collect()
    }

    /// The dial gave a tunnel. False: the gateway is gone meanwhile, and the tunnel is to be let go.
    pub fn on_opened(&mut self, gateway: &Gateway, now: Instant) -> bool {
        let Some(path) = self.paths.get_mut(gateway) else {
            return false;
        };
        path.phase = Phase::Open;
        path.reason.clear();
        path.tracker.on_ping_sent(now);
        true
    }

    /// The dial failed, or the open tunnel was lost: a rest, each longer than the last until it answers.
    pub fn on_lost(&mut self, gateway: &Gateway, reason: String, now: Instant, rng: &mut impl rand::Rng) {
        if let Some(path) = self.paths.get_mut(gateway) {
            path.phase = Phase::Resting {
                until: now + path.backoff.next(rng),
            };
            path.tracker.on_closed();
            path.reason = reason;
        }
    }

    /// A ping left.
    pub fn on_pinged(&mut self, gateway: &Gateway, now: Instant) {
        if let Some(path) = self.paths.get_mut(gateway) {
            path.tracker.on_ping_sent(now);
        }
    }

    /// A ping was answered.
    pub fn on_pong(&mut self, gateway: &Gateway, rtt: Duration, now: Instant) {
        if let Some(path) = self.paths.get_mut(gateway) {
            path.tracker.on_pong(rtt, now);
            path.backoff.reset();
        }
    }

    /// We let the open tunnel go, or the peer asked us to, before anything was lost: the next flow dials anew.
    pub fn on_replaced(&mut self, gateway: &Gateway) {
        if let Some(path) = self.paths.get_mut(gateway) {
            path.phase = Phase::Idle;
            path.tracker = LinkTracker::new(self.profile);
        }
    }

    /// A flow was opened in the tunnel, or one runs in it.
    pub fn on_used(&mut self, gateway: &Gateway, now: Instant) {
        if let Some(path) = self.paths.get_mut(gateway) {
            path.used = Some(now);
        }
    }

    /// Whether the open tunnel has been without flows for too long.
    #[must_use]
    pub fn is_unused(&self, gateway: &Gateway, now: Instant) -> bool {
        let path = self.paths.get(gateway);
        path.is_some_and(|path| path.phase == Phase::Open && !path.is_wanted(now))
    }

    /// The new state of the path to `gateway`, when it is another than told last.
    pub fn poll(&mut self, gateway: &Gateway, now: Instant) -> Option<LinkState> {
        self.paths
            .get_mut(gateway)
            .and_then(|path| path.tracker.poll(now))
    }

    /// The links that open and lost tunnels show. A gateway that is not wanted says nothing.
    #[must_use]
    pub fn links(&self, now: Instant) -> BTreeMap<ClusterId, Link> {
        let mut links: BTreeMap<ClusterId, Vec<Link>> = BTreeMap::new();
        for (gateway, path) in &self.paths {
            let speaks = match path.phase {
                Phase::Open => true,
                Phase::Dialling | Phase::Resting { .. } => path.is_wanted(now),
                Phase::Idle => false,
            };
            let link = if speaks {
                path.tracker.link()
            } else {
                Link::default()
            };
            links.entry(gateway.cluster.clone()).or_default().push(link);
        }
        links
            .into_iter()
            .map(|(cluster, paths)| (cluster, best(paths)))
            .collect()
    }

    /// When the first rest ends, and [`Self::begin_redials`] has something to say.
    #[must_use]
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let rests = self.paths.values().filter_map(|path| match path.phase {
            Phase::Resting { until } if now < until => Some(until),
            _ => None,
        });
        rests.min()
    }

    /// Every path, for `/state`.
    #[must_use]
    pub fn report(&self) -> Vec<PathReport> {
        let report = |(gateway, path): (&Gateway, &Path)| PathReport {
            gateway: gateway.clone(),
            phase: match path.phase {
                Phase::Idle => "idle",
                Phase::Dialling => "dialling",
                Phase::Open => "open",
                Phase::Resting { .. } => "resting",
            },
            link: path.tracker.state(),
            reason: path.reason.clone(),
        };
        self.paths.iter().map(report).collect()
    }

    fn of(&self, cluster: &ClusterId) -> impl Iterator<Item = (&Gateway, &Path)> {
        self.paths
            .iter()
            .filter(move |(gateway, _)| gateway.cluster == *cluster)
    }
}

impl Path {
    fn new(profile: LinkProfile) -> Self {
        Self {
            phase: Phase::Idle,
            used: None,
            tracker: LinkTracker::new(profile),
            backoff: Backoff::decorrelated(REST_BASE, REST_MAX),
            reason: String::new(),
        }
    }

    fn begin_dial(&mut self, now: Instant) -> bool {
        let may = match self.phase {
            Phase::Idle => true,
            Phase::Resting { until } => until <= now,
            Phase::Dialling | Phase::Open => false,
        };
        if may {
            self.phase = Phase::Dialling;
        }
        may
    }

    fn is_wanted(&self, now: Instant) -> bool {
        self.used
            .is_some_and(|used| now.saturating_duration_since(used) < UNUSED_MAX)
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test starts at any instant")]
mod tests;
