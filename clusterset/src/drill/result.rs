//! What a drill proved, from the samples of its traffic (DESIGN §7). Pure: whoever holds the samples can check the verdict.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Drill, DrillKind};
use crate::name::ClusterId;

/// One bar of the timeline.
pub const BUCKET: Duration = Duration::from_millis(100);

/// Bars of the timeline: the longest drill, and a minute for answers that come late.
const BUCKETS_MAX: u64 = (super::DRILL_MAX.as_secs() + 60) * 10;

/// A DNS answer that names the failed cluster is stale later than this after the failure: new flows have failed over by then
/// (DESIGN §6).
const STALE_AFTER: Duration = Duration::from_secs(1);

/// A cut takes hold at every gateway within this, since each times the drill from its own receipt.
const CUT_SLACK: Duration = Duration::from_millis(250);

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Answered, by an endpoint of this cluster.
    Served {
        /// Whose endpoint.
        cluster: ClusterId,
    },
    /// The client saw it fail.
    Failed {
        /// In the client's words.
        reason: String,
    },
}

/// One request: one new connection with one exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Start, microseconds from the start of the drill.
    pub started_us: u64,
    /// End, microseconds from the start of the drill.
    pub ended_us: u64,
    /// How it ended.
    pub outcome: Outcome,
}

impl Sample {
    /// Under way at the instant `us`.
    #[must_use]
    pub fn in_flight_at(&self, us: u64) -> bool {
        self.started_us < us && self.ended_us >= us
    }

    fn failed(&self) -> bool {
        matches!(self.outcome, Outcome::Failed { .. })
    }

    fn served_by(&self) -> Option<&ClusterId> {
        match &self.outcome {
            Outcome::Served { cluster } => Some(cluster),
            Outcome::Failed { .. } => None,
        }
    }
}

/// One DNS answer for the drilled service, asked beside the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DnsSample {
    /// When it came, microseconds from the start of the drill.
    pub at_us: u64,
    /// Whether it named an endpoint of the target.
    pub names_target: bool,
}

/// Whether the drill was passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DrillVerdict {
    /// The service survived the failure.
    Passed,
    /// The client saw failures besides the requests in flight, or nobody took over.
    Failed {
        /// What went wrong.
        why: String,
    },
    /// The drill proves nothing.
    Inconclusive {
        /// What it lacks, and what to do.
        why: String,
    },
}

/// One bar of the timeline: requests that ended within it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Served, by cluster.
    pub served: BTreeMap<ClusterId, u32>,
    /// Failed, whatever the reason.
    pub failed: u32,
}

/// What a drill showed.
#[derive(Debug, Clone, PartialEq)]
pub struct DrillResult {
    /// All requests.
    pub requests_total: u64,
    /// In flight at the instant of failure, and failed.
    pub requests_interrupted: u64,
    /// All others that the client saw fail; must be 0.
    pub requests_failed: u64,
    /// Failure injected to first success elsewhere, milliseconds: the failover itself when the target served the whole
    /// baseline, and its lower bound when it shared it; `slowest_ms` is the upper one. None when there was none, or the drill is inconclusive.
    pub failover_ms: Option<f64>,
    /// Failure ended to first success at the target, milliseconds. None likewise.
    pub failback_ms: Option<f64>,
    /// The longest that a request under way during the failure took, milliseconds: what the unluckiest client waited.
    pub slowest_ms: Option<f64>,
    /// DNS answers that named the target more than a second into its failure.
    pub stale_dns_answers: u64,
    /// Part of the baseline's requests that the target served, 0 to 1.
    pub served_by_target_share_baseline: f64,
    /// The verdict.
    pub verdict: DrillVerdict,
    /// Bars of [`BUCKET`] from the start of the drill.
    pub timeline: Vec<Bucket>,
}

/// Judges `drill` by its samples, in any order.
#[must_use]
pub fn judge(drill: &Drill, samples: &[Sample], dns: &[DnsSample]) -> DrillResult {
    let phases = Phases::of(drill);
    let failures = samples.iter().filter(|sample| sample.failed());
    let (interrupted, failed): (Vec<&Sample>, Vec<&Sample>) =
        failures.partition(|sample| sample.in_flight_at(phases.injected));
    let baseline = Baseline::of(drill, &phases, samples);
    let failover = first_elsewhere(drill, &phases, samples);
    let verdict = verdict(drill, &phases, samples, &baseline, &failed, failover);
    let conclusive = !matches!(verdict, DrillVerdict::Inconclusive { .. });
    let figure = |us: Option<u64>| us.filter(|_| conclusive).map(milliseconds);
    DrillResult {
        requests_total: count(samples.len()),
        requests_interrupted: count(interrupted.len()),
        requests_failed: count(failed.len()),
        failover_ms: figure(failover),
        failback_ms: figure(first_back(drill, &phases, samples)),
        slowest_ms: slowest(&phases, samples).map(milliseconds),
        stale_dns_answers: count(dns.iter().filter(|answer| phases.is_stale(answer)).count()),
        served_by_target_share_baseline: baseline.share(),
        verdict,
        timeline: timeline(samples),
    }
}

/// Instants of a drill, microseconds from its start.
struct Phases {
    injected: u64,
    restored: u64,
}

impl Phases {
    fn of(drill: &Drill) -> Self {
        Self {
            injected: micros(drill.baseline),
            restored: micros(drill.baseline + drill.duration),
        }
    }

    fn is_stale(&self, answer: &DnsSample) -> bool {
        answer.names_target && (self.injected + micros(STALE_AFTER)..self.restored).contains(&answer.at_us)
    }
}

/// The traffic before the failure.
struct Baseline {
    all: usize,
    by_target: usize,
    failed: usize,
}

impl Baseline {
    fn of(drill: &Drill, phases: &Phases, samples: &[Sample]) -> Self {
        let mut baseline = Self {
            all: 0,
            by_target: 0,
            failed: 0,
        };
        for sample in samples.iter().filter(|sample| sample.ended_us < phases.injected) {
            baseline.all += 1;
            baseline.failed += usize::from(sample.failed());
            baseline.by_target += usize::from(sample.served_by() == Some(&drill.target));
        }
        baseline
    }

    fn share(&self) -> f64 {
        if self.all == 0 {
            0.0
        } else {
            self.by_target as f64 / self.all as f64
        }
    }
}

fn verdict(
    drill: &Drill,
    phases: &Phases,
    samples: &[Sample],
    baseline: &Baseline,
    failed: &[&Sample],
    failover: Option<u64>,
) -> DrillVerdict {
    let inconclusive = |why: String| DrillVerdict::Inconclusive { why };
    let Drill {
        target, from, kind, ..
    } = drill;
    if baseline.all == 0 {
        return inconclusive(
            "no request ended before the failure; use a longer baseline or a higher rate".to_owned(),
        );
    }
    if 2 * baseline.by_target < baseline.all {
        return inconclusive(format!(
            "{target} served {} of the baseline's {} requests, fewer than half, so its failure shows little; drill the \
             cluster that serves {from}, see `tombolo explain`",
            baseline.by_target, baseline.all
        ));
    }
    let during: Vec<&Sample> = samples
        .iter()
        .filter(|sample| sample.ended_us >= phases.injected && sample.started_us < phases.restored)
        .collect();
    if during.is_empty() {
        return inconclusive("no request was under way during the failure; the traffic stopped".to_owned());
    }
    let settled = phases.injected + micros(CUT_SLACK);
    let leaked = during
        .iter()
        .filter(|sample| sample.started_us >= settled && sample.ended_us < phases.restored)
        .filter(|sample| sample.served_by() == Some(target))
        .count();
    if takes_the_cluster(drill) && leaked > 0 {
        return inconclusive(format!(
            "{target} served {leaked} requests while it was to be down, so {} did not take hold; see `tombolo status`",
            kind.as_str()
        ));
    }
    let after: Vec<&&Sample> = failed
        .iter()
        .filter(|sample| sample.ended_us >= phases.injected)
        .collect();
    if let Some(Outcome::Failed { reason }) = after.first().map(|sample| &sample.outcome) {
        return DrillVerdict::Failed {
            why: format!(
                "{} requests failed that were not in flight at the failure, the first with: {reason}",
                after.len()
            ),
        };
    }
    if baseline.failed > 0 {
        return inconclusive(format!(
            "{} requests failed before the failure, so later ones prove nothing; repair the service first",
            baseline.failed
        ));
    }
    match failover {
        Some(_) => DrillVerdict::Passed,
        None => DrillVerdict::Failed {
            why: format!("no other cluster served a request after {target} failed"),
        },
    }
}

/// Whether the whole cluster is gone for `from`, so that only another one can serve.
fn takes_the_cluster(drill: &Drill) -> bool {
    match drill.kind {
        DrillKind::ClusterDown | DrillKind::LinkCut => true,
        // A real kill takes one process: another gateway of the cluster, or the same one restarted, may serve.
        DrillKind::GatewayKill => !drill.real,
        DrillKind::BrokerLeaderKill | DrillKind::DnsKill => false,
    }
}

/// Microseconds from the failure to the first success that it did not prevent, of a request that was pending then or
/// started later.
fn first_elsewhere(drill: &Drill, phases: &Phases, samples: &[Sample]) -> Option<u64> {
    let cluster_gone = takes_the_cluster(drill);
    samples
        .iter()
        .filter(|sample| sample.ended_us >= phases.injected && sample.started_us < phases.restored)
        .filter(|sample| match sample.served_by() {
            Some(cluster) if cluster == &drill.target => {
                !cluster_gone && sample.started_us >= phases.injected
            }
            Some(_) => true,
            None => false,
        })
        .map(|sample| sample.ended_us - phases.injected)
        .min()
}

/// Microseconds from the end of the failure to the first success at the target of a request started later.
fn first_back(drill: &Drill, phases: &Phases, samples: &[Sample]) -> Option<u64> {
    samples
        .iter()
        .filter(|sample| sample.started_us >= phases.restored && sample.served_by() == Some(&drill.target))
        .map(|sample| sample.ended_us.saturating_sub(phases.restored))
        .min()
}

fn slowest(phases: &Phases, samples: &[Sample]) -> Option<u64> {
    samples
        .iter()
        .filter(|sample| sample.ended_us >= phases.injected && sample.started_us < phases.restored)
        .map(|sample| sample.ended_us.saturating_sub(sample.started_us))
        .max()
}

fn timeline(samples: &[Sample]) -> Vec<Bucket> {
    let bucket_us = micros(BUCKET);
    let mut timeline: Vec<Bucket> = Vec::new();
    for sample in samples {
        let at = (sample.ended_us / bucket_us).min(BUCKETS_MAX - 1);
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        if timeline.len() <= at {
            timeline.resize_with(at + 1, Bucket::default);
        }
        if let Some(bucket) = timeline.get_mut(at) {
            match sample.served_by() {
                Some(cluster) => *bucket.served.entry(cluster.clone()).or_default() += 1,
                None => bucket.failed += 1,
            }
        }
    }
    timeline
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn count(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn milliseconds(us: u64) -> f64 {
    us as f64 / 1000.0
}

#[cfg(test)]
mod tests;
