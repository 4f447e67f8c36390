//! The state of one path to another cluster's gateway, from pings and closes.
//!
//! ```text
//!              first answer
//!   Unknown ─────────────────▶ Up ◀──────────────────────────────┐
//!      │                        │ answer overdue (suspect_after)  │ REJOIN_ANSWERS answers in a row,
//!      │ overdue                ▼                                 │ and the penalty is below reuse
//!      ├───────────────────▶ Suspect ────────────────────────────┤
//!      │                        │ overdue (down_after)    ▲       │
//!      │ closed, refused        ▼ or closed, refused      │ REJOIN_ANSWERS in a row, damped
//!      └───────────────────▶  Down ──────────────────────┴───────┘
//! ```
//!
//! Suspect diverts new flows, Down resets old ones (DESIGN §4.3). Flaps are damped as in RFC 2439: each loss of Up adds a
//! penalty that halves with time; above a threshold the path stays out of Up until the penalty has decayed below another, at
//! most [`SUPPRESSED_MAX`] after the last flap. A damped path that answers is Suspect, not Down: it can still serve as last
//! resort.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::reachability::{Link, LinkState};

/// Answers in a row before a lost path is Up again: one may be a straggler, three are a path.
pub const REJOIN_ANSWERS: u32 = 3;

/// Longest time that damping keeps a path from Up after its last flap: a repaired path is not punished longer than an
/// operator waits.
pub const SUPPRESSED_MAX: Duration = Duration::from_secs(30);

/// How long a round trip time counts, at least: long enough that every window holds a quiet moment.
const RTT_WINDOW: Duration = Duration::from_secs(10);

/// Pings without answer that are remembered. Both profiles reach Down after ten; more say nothing new.
const OUTSTANDING_MAX: usize = 64;

/// Penalty of one flap (RFC 2439 §4.8.1, its unit).
const FLAP_PENALTY: f64 = 1000.0;

/// At or above this, the path is suppressed: the third flap in quick succession, since one restart of a gateway is one flap
/// and its retry at most a second.
const SUPPRESS_AT: f64 = 2500.0;

/// Below this it is free again.
const REUSE_BELOW: f64 = 1000.0;

/// The penalty halves in this time. One flap every 12 s or slower is never suppressed.
const HALF_LIFE: Duration = Duration::from_secs(8);

/// Times that fit a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkProfile {
    /// A ping is sent this often.
    pub ping_interval: Duration,
    /// An answer that takes longer is overdue: Suspect.
    pub suspect_after: Duration,
    /// An answer that takes longer is not coming: Down.
    pub down_after: Duration,
}

impl LinkProfile {
    /// For paths with an RTT up to 100 ms: three times that is overdue, so a new flow fails over 300 to 400 ms after the
    /// failure, and old ones are reset within 1.1 s.
    pub const LAN: Self = Self {
        ping_interval: Duration::from_millis(100),
        suspect_after: Duration::from_millis(300),
        down_after: Duration::from_secs(1),
    };

    /// For paths with an RTT up to 500 ms or with loss: new flows fail over within 2 s.
    pub const WAN: Self = Self {
        ping_interval: Duration::from_millis(500),
        suspect_after: Duration::from_millis(1500),
        down_after: Duration::from_secs(5),
    };
}

/// Follows one path.
///
/// Call order: `on_*` for what happened, `poll` when [`Self::deadline`] has come and after each `on_*`. Answers that already
/// lie in a socket are to be fed before `poll`, or a process that slept takes its own sleep for the peer's.
#[derive(Debug, Clone)]
pub struct LinkTracker {
    profile: LinkProfile,
    state: LinkState,
    /// When the unanswered pings were sent, oldest first.
    outstanding: VecDeque<Instant>,
    last_sent: Option<Instant>,
    /// A close that `poll` has not taken in yet.
    closed: bool,
    /// Answers in a row, none overdue in between.
    streak: u32,
    rtt: Rtt,
    damping: Damping,
}

impl LinkTracker {
    /// A path that nobody has tried.
    #[must_use]
    pub fn new(profile: LinkProfile) -> Self {
        Self {
            profile,
            state: LinkState::Unknown,
            outstanding: VecDeque::new(),
            last_sent: None,
            closed: false,
            streak: 0,
            rtt: Rtt::default(),
            damping: Damping::default(),
        }
    }

    /// The same path with another tunnel: nothing is known of it yet, but the penalty for its flaps stays.
    #[must_use]
    pub fn begun_anew(&self) -> Self {
        Self {
            damping: self.damping,
            ..Self::new(self.profile)
        }
    }

    /// The state as of the last [`Self::poll`].
    #[must_use]
    pub fn state(&self) -> LinkState {
        self.state
    }

    /// State and round trip time of the path, as of the last [`Self::poll`].
    #[must_use]
    pub fn link(&self) -> Link {
        Link {
            state: self.state,
            rtt: self.rtt.of_path(),
            both_lost_for: None,
        }
    }

    /// True while flaps keep an answering path from Up.
    #[must_use]
    pub fn is_damped(&self) -> bool {
        self.damping.suppressed
    }

    /// A ping left at `now`.
    pub fn on_ping_sent(&mut self, now: Instant) {
        self.last_sent = Some(now);
        if self.outstanding.len() < OUTSTANDING_MAX {
            self.outstanding.push_back(now);
        }
    }

    /// An answer came at `now`, `rtt` after its ping. It answers every older ping too: the path works.
    pub fn on_pong(&mut self, rtt: Duration, now: Instant) {
        // Half an interval of slack, since the caller's clock reads for ping and answer need not be ours.
        let sent = now
            .checked_sub(rtt.saturating_sub(self.profile.ping_interval / 2))
            .unwrap_or(now);
        while self.outstanding.front().is_some_and(|oldest| *oldest <= sent) {
            self.outstanding.pop_front();
        }
        self.rtt.measure(rtt, now);
        self.streak = self.streak.saturating_add(1);
    }

    /// The path's tunnel was closed by the peer or lost, or a dial was refused. A tunnel that was replaced by
    /// another is no loss and not to be told here.
    pub fn on_closed(&mut self) {
        self.closed = true;
        self.streak = 0;
        self.outstanding.clear();
    }

    /// The new state, when it is another than told last.
    pub fn poll(&mut self, now: Instant) -> Option<LinkState> {
        let next = self.next(now);
        if self.state == LinkState::Up && next != LinkState::Up {
            self.damping.flap(now);
        }
        if next == LinkState::Down && self.state != LinkState::Down {
            self.rtt = Rtt::default();
        }
        let changed = self.state != next;
        self.state = next;
        changed.then_some(next)
    }

    /// When a ping is due; at once when none was sent yet. Pings go on while the path is lost, else it could not come back.
    #[must_use]
    pub fn ping_due(&self, now: Instant) -> Instant {
        self.last_sent
            .map_or(now, |sent| sent + self.profile.ping_interval)
    }

    /// When [`Self::poll`] may say something new, should nothing happen before. None: not before the next `on_*`.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let overdue = self.outstanding.front().and_then(|oldest| match self.state {
            LinkState::Unknown | LinkState::Up => Some(*oldest + self.profile.suspect_after),
            LinkState::Suspect => Some(*oldest + self.profile.down_after),
            LinkState::Down => None,
        });
        let answering = self.streak >= REJOIN_ANSWERS && self.state != LinkState::Up;
        let released = answering.then(|| self.damping.released_at()).flatten();
        overdue.into_iter().chain(released).min()
    }

    fn next(&mut self, now: Instant) -> LinkState {
        let silent = self
            .outstanding
            .front()
            .map_or(Duration::ZERO, |sent| now.saturating_duration_since(*sent));
        let closed = std::mem::take(&mut self.closed);
        if closed || silent >= self.profile.down_after {
            self.streak = 0;
            return LinkState::Down;
        }
        if silent >= self.profile.suspect_after {
            self.streak = 0;
            // Silence does not lift a path from Down.
            return if self.state == LinkState::Down {
                LinkState::Down
            } else {
                LinkState::Suspect
            };
        }
        match self.state {
            LinkState::Up => LinkState::Up,
            LinkState::Unknown if self.streak == 0 => LinkState::Unknown,
            LinkState::Unknown if self.damping.suppresses(now) => LinkState::Suspect,
            LinkState::Unknown => LinkState::Up,
            LinkState::Suspect | LinkState::Down if self.streak < REJOIN_ANSWERS => self.state,
            LinkState::Suspect | LinkState::Down if self.damping.suppresses(now) => LinkState::Suspect,
            LinkState::Suspect | LinkState::Down => LinkState::Up,
        }
    }
}

/// The round trip time of the path itself: the least of the last one to two [`RTT_WINDOW`]s.
///
/// The least, not a mean: queues and busy hosts only ever add to it, and the order of clusters must not follow their noise.
/// A window, not all time: a path that was rerouted is known by its new length within two windows.
#[derive(Debug, Clone, Copy, Default)]
struct Rtt {
    window_began: Option<Instant>,
    least: Option<Duration>,
    least_before: Option<Duration>,
}

impl Rtt {
    fn measure(&mut self, rtt: Duration, now: Instant) {
        if self
            .window_began
            .is_none_or(|began| now.saturating_duration_since(began) >= RTT_WINDOW)
        {
            self.window_began = Some(now);
            self.least_before = self.least.take();
        }
        self.least = Some(self.least.map_or(rtt, |least| least.min(rtt)));
    }

    fn of_path(&self) -> Option<Duration> {
        self.least.into_iter().chain(self.least_before).min()
    }
}

/// The penalty for flaps.
#[derive(Debug, Clone, Copy, Default)]
struct Damping {
    penalty: f64,
    as_of: Option<Instant>,
    suppressed: bool,
}

impl Damping {
    fn flap(&mut self, now: Instant) {
        self.decay(now);
        self.penalty = (self.penalty + FLAP_PENALTY).min(ceiling());
        self.suppressed |= self.penalty >= SUPPRESS_AT;
    }

    fn suppresses(&mut self, now: Instant) -> bool {
        self.decay(now);
        if self.penalty < REUSE_BELOW {
            self.suppressed = false;
        }
        self.suppressed
    }

    fn decay(&mut self, now: Instant) {
        if let Some(as_of) = self.as_of {
            let halvings = now.saturating_duration_since(as_of).as_secs_f64() / HALF_LIFE.as_secs_f64();
            self.penalty *= (-halvings).exp2();
        }
        self.as_of = Some(now);
    }

    /// When suppression ends; None when nothing is suppressed.
    fn released_at(&self) -> Option<Instant> {
        let as_of = self.as_of.filter(|_| self.suppressed)?;
        let halvings = (self.penalty / REUSE_BELOW).log2().max(0.0);
        // A millisecond on top, so that the penalty is below the threshold then and not on it.
        Some(as_of + HALF_LIFE.mul_f64(halvings) + Duration::from_millis(1))
    }
}

/// No penalty is higher: it takes [`SUPPRESSED_MAX`] to decay to reuse.
fn ceiling() -> f64 {
    REUSE_BELOW * (SUPPRESSED_MAX.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2()
}

#[cfg(test)]
mod tests;
