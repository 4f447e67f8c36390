//! Outlier windows: an endpoint is judged by its own outcomes, never by its gateway's (DESIGN §4.4).
//!
//! One [`Outliers`] follows one group of endpoints that can stand in for each other: a port of a service. An endpoint is
//! ejected after several failures in a row, or when too few of its flows in the last seconds succeeded; each time again for
//! twice as long. It comes back on probation: the next failure ejects it again, a success clears it. At most a part of the
//! group is out at once, and never its last endpoint: when all fail, the endpoints are not the cause.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Endpoints followed per group: the bound of one Service's slices that is worth judging one by one (250,000 endpoints in
/// 10,000 services is 25 on average). Members beyond it are never ejected.
pub const MEMBERS_MAX: usize = 5_000;

/// Parts of the sliding window: it forgets in steps of a tenth.
const BUCKETS: usize = 10;

/// When an endpoint is an outlier. Each default stands beside its reason in [`OutlierPolicy::default`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutlierPolicy {
    /// Failures in a row that eject.
    pub consecutive_failures: u32,
    /// Length of the sliding window.
    pub window: Duration,
    /// Outcomes in the window before its success rate counts.
    pub window_outcomes_min: u32,
    /// An endpoint below this success rate is ejected, percent.
    pub success_percent_min: u8,
    /// Length of the first ejection; each further one doubles it.
    pub ejection: Duration,
    /// No ejection is longer.
    pub ejection_max: Duration,
    /// At most this part of the group is out at once, percent, rounded down but at least one; never the last endpoint.
    pub ejected_percent_max: u8,
}

impl Default for OutlierPolicy {
    fn default() -> Self {
        Self {
            // Refused three times in a row is no accident, and waiting for Envoy's five costs two more failed dials.
            consecutive_failures: 3,
            // Long enough for slow services to show a rate, short enough to forget a deployment.
            window: Duration::from_secs(10),
            // Below 20 outcomes one failure moves the rate by more than 5 %.
            window_outcomes_min: 20,
            // Half of the flows fail: worse than any retry can hide.
            success_percent_min: 50,
            // A pod restarts in about this time.
            ejection: Duration::from_secs(5),
            // A repaired endpoint is back within a minute or so.
            ejection_max: Duration::from_secs(80),
            // When more than half fail, the cause is elsewhere.
            ejected_percent_max: 50,
        }
    }
}

/// What changed; the caller publishes the ejected set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<K> {
    /// Out of use until the time given.
    Ejected {
        /// The endpoint.
        key: K,
        /// When it comes back.
        until: Instant,
        /// Which rule spoke.
        cause: Cause,
    },
    /// Back, on probation.
    Readmitted {
        /// The endpoint.
        key: K,
    },
}

/// The rule that ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// That many failures in a row.
    Consecutive(u32),
    /// That success rate over the window, percent.
    SuccessRate(u8),
}

/// The outlier windows of one group.
///
/// `set_members` when the endpoints change, `on_success` and `on_failure` for every outcome, `poll` at `deadline`.
#[derive(Debug, Clone)]
pub struct Outliers<K> {
    policy: OutlierPolicy,
    members: BTreeMap<K, Health>,
    /// Size of the group, with the members beyond [`MEMBERS_MAX`].
    size: usize,
}

impl<K: Ord + Clone> Outliers<K> {
    /// A group without members.
    #[must_use]
    pub fn new(policy: OutlierPolicy) -> Self {
        Self {
            policy,
            members: BTreeMap::new(),
            size: 0,
        }
    }

    /// The group is `keys` from now on. Who stays keeps its history; who leaves is forgotten.
    pub fn set_members(&mut self, keys: impl IntoIterator<Item = K>) {
        let keys: BTreeSet<K> = keys.into_iter().collect();
        self.size = keys.len();
        self.members.retain(|key, _| keys.contains(key));
        for key in keys {
            if self.members.len() >= MEMBERS_MAX {
                break;
            }
            self.members.entry(key).or_default();
        }
    }

    /// A flow to `key` did well. Outcomes of strangers and of ejected endpoints (flows begun before) do not count.
    pub fn on_success(&mut self, key: &K, now: Instant) {
        if let Some(health) = self
            .members
            .get_mut(key)
            .filter(|health| health.ejected_until.is_none())
        {
            health.failures_in_a_row = 0;
            health.on_probation = false;
            health.window.count(true, self.policy.window, now);
        }
    }

    /// A flow to `key` failed through the endpoint's fault: refused, reset or timed out before an answer.
    pub fn on_failure(&mut self, key: &K, now: Instant) -> Option<Change<K>> {
        let room = self.has_room();
        let health = self
            .members
            .get_mut(key)
            .filter(|health| health.ejected_until.is_none())?;
        health.failures_in_a_row = health.failures_in_a_row.saturating_add(1);
        health.window.count(false, self.policy.window, now);
        let cause = health.cause(&self.policy).filter(|_| room)?;
        let until = health.eject(&self.policy, now);
        Some(Change::Ejected {
            key: key.clone(),
            until,
            cause,
        })
    }

    /// Readmits those whose time is over.
    pub fn poll(&mut self, now: Instant) -> Vec<Change<K>> {
        let due = self
            .members
            .iter_mut()
            .filter(|(_, health)| health.ejected_until.is_some_and(|until| until <= now));
        due.map(|(key, health)| {
            health.readmit(now);
            Change::Readmitted { key: key.clone() }
        })
        .collect()
    }

    /// When the next ejection ends.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.members
            .values()
            .filter_map(|health| health.ejected_until)
            .min()
    }

    /// Who is out.
    pub fn ejected(&self) -> impl Iterator<Item = &K> {
        self.members
            .iter()
            .filter(|(_, health)| health.ejected_until.is_some())
            .map(|(key, _)| key)
    }

    /// Whether one more may be ejected.
    fn has_room(&self) -> bool {
        let out = self.ejected().count();
        let allowed = (self.size * usize::from(self.policy.ejected_percent_max) / 100).max(1);
        out < allowed && out + 1 < self.size
    }
}

/// What is known of one endpoint: fixed size.
#[derive(Debug, Clone, Default)]
struct Health {
    failures_in_a_row: u32,
    window: Window,
    ejected_until: Option<Instant>,
    readmitted_at: Option<Instant>,
    /// Ejections that follow closely on each other.
    ejections: u32,
    on_probation: bool,
}

impl Health {
    fn cause(&self, policy: &OutlierPolicy) -> Option<Cause> {
        if self.on_probation || self.failures_in_a_row >= policy.consecutive_failures {
            return Some(Cause::Consecutive(self.failures_in_a_row));
        }
        let (good, all) = self.window.sums();
        let percent = good * 100 / all.max(1);
        let outlier =
            all >= u64::from(policy.window_outcomes_min) && percent < u64::from(policy.success_percent_min);
        outlier.then(|| Cause::SuccessRate(u8::try_from(percent).unwrap_or(100)))
    }

    fn eject(&mut self, policy: &OutlierPolicy, now: Instant) -> Instant {
        // Well for as long as the longest ejection: the past is forgiven.
        let forgiven = self
            .readmitted_at
            .is_none_or(|at| now.saturating_duration_since(at) >= policy.ejection_max);
        self.ejections = if forgiven {
            1
        } else {
            self.ejections.saturating_add(1)
        };
        let factor = 1u32.checked_shl(self.ejections - 1).unwrap_or(u32::MAX);
        let length = policy.ejection.saturating_mul(factor).min(policy.ejection_max);
        let until = now + length;
        self.ejected_until = Some(until);
        until
    }

    fn readmit(&mut self, now: Instant) {
        self.failures_in_a_row = 0;
        self.window = Window::default();
        self.ejected_until = None;
        self.readmitted_at = Some(now);
        self.on_probation = true;
    }
}

/// Outcomes of the last seconds, in [`BUCKETS`] parts.
#[derive(Debug, Clone, Default)]
struct Window {
    /// (good, all) per part; the newest at `newest`.
    counts: [(u32, u32); BUCKETS],
    newest: usize,
    /// When the newest part began.
    began: Option<Instant>,
}

impl Window {
    fn count(&mut self, good: bool, length: Duration, now: Instant) {
        self.turn(length, now);
        if let Some((ok, all)) = self.counts.get_mut(self.newest) {
            *ok = ok.saturating_add(u32::from(good));
            *all = all.saturating_add(1);
        }
    }

    /// Drops the parts that `now` has left behind.
    fn turn(&mut self, length: Duration, now: Instant) {
        let part = (length / BUCKETS as u32).max(Duration::from_millis(1));
        let began = *self.began.get_or_insert(now);
        let passed = now.saturating_duration_since(began).as_nanos() / part.as_nanos();
        let passed = u32::try_from(passed).unwrap_or(u32::MAX);
        for _ in 0..passed.min(BUCKETS as u32) {
            self.newest = (self.newest + 1) % BUCKETS;
            self.counts[self.newest] = (0, 0);
        }
        if passed > 0 {
            self.began = Some(began.checked_add(part.saturating_mul(passed)).unwrap_or(now));
        }
    }

    fn sums(&self) -> (u64, u64) {
        self.counts.iter().fold((0, 0), |(good, all), (ok, n)| {
            (good + u64::from(*ok), all + u64::from(*n))
        })
    }
}

#[cfg(test)]
mod tests;
