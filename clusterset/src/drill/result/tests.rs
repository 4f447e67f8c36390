use super::*;
use crate::drill::DrillId;
use crate::fixtures::{id, key};
use proptest::prelude::*;

/// Ten seconds of baseline, ten of failure, five of recovery.
fn drill(kind: DrillKind) -> Drill {
    Drill {
        id: DrillId(1),
        kind,
        target: id("eks"),
        from: id("aks"),
        service: key("shop/checkout"),
        port: None,
        http_get: None,
        rate_per_second: 10,
        baseline: Duration::from_secs(10),
        duration: Duration::from_secs(10),
        recovery: Duration::from_secs(5),
        real: false,
    }
}

/// (start, end) in milliseconds; "" for a failure.
fn sample(started_ms: u64, ended_ms: u64, by: &str) -> Sample {
    let outcome = match by {
        "" => Outcome::Failed {
            reason: "refused".to_owned(),
        },
        by => Outcome::Served { cluster: id(by) },
    };
    Sample {
        started_us: started_ms * 1000,
        ended_us: ended_ms * 1000,
        outcome,
    }
}

/// Ten requests a second, served by the target before and after, and by gke from 400 ms after the failure on: requests that
/// start sooner wait until then.
fn survived() -> Vec<Sample> {
    (0..250u64)
        .map(|n| match n * 100 {
            start @ 10_000..20_000 => sample(start, (start + 20).max(10_420), "gke"),
            start => sample(start, start + 20, "eks"),
        })
        .collect()
}

fn check(samples: Vec<Sample>, kind: DrillKind, expected: fn(&DrillVerdict) -> bool) -> DrillResult {
    let told = judge(&drill(kind), &samples, &[]);
    assert!(expected(&told.verdict), "{:?}", told.verdict);
    if matches!(told.verdict, DrillVerdict::Inconclusive { .. }) {
        assert_eq!(
            (told.failover_ms, told.failback_ms),
            (None, None),
            "null, never 0"
        );
    }
    told
}

fn passed(verdict: &DrillVerdict) -> bool {
    *verdict == DrillVerdict::Passed
}

fn failed(verdict: &DrillVerdict) -> bool {
    matches!(verdict, DrillVerdict::Failed { .. })
}

fn inconclusive(verdict: &DrillVerdict) -> bool {
    matches!(verdict, DrillVerdict::Inconclusive { .. })
}

#[test]
fn a_service_that_survives_passes_with_its_figures() {
    let told = check(survived(), DrillKind::ClusterDown, passed);
    assert_eq!(
        (
            told.requests_total,
            told.requests_interrupted,
            told.requests_failed
        ),
        (250, 0, 0)
    );
    assert_eq!(told.failover_ms, Some(420.0));
    assert_eq!(told.failback_ms, Some(20.0));
    assert_eq!(told.slowest_ms, Some(420.0));
    assert!((told.served_by_target_share_baseline - 1.0).abs() < f64::EPSILON);
    assert_eq!(told.timeline.len(), 250);
    assert_eq!(told.timeline[0].served, BTreeMap::from([(id("eks"), 1)]));
    assert!(
        told.timeline[100..104]
            .iter()
            .all(|bucket| *bucket == Bucket::default()),
        "the gap shows"
    );
    assert_eq!(told.timeline[104].served, BTreeMap::from([(id("gke"), 5)]));
}

#[test]
fn a_request_in_flight_is_interrupted_and_every_other_failure_fails_the_drill() {
    let mut samples = survived();
    samples.push(sample(9_990, 11_000, ""));
    let told = check(samples.clone(), DrillKind::ClusterDown, passed);
    assert_eq!((told.requests_interrupted, told.requests_failed), (1, 0));

    samples.push(sample(10_000, 11_000, ""));
    let told = check(samples, DrillKind::ClusterDown, failed);
    assert_eq!(
        (told.requests_interrupted, told.requests_failed),
        (1, 1),
        "started at the instant: not in flight"
    );
    assert!(told.failover_ms.is_some(), "a failed drill has its figures");
}

#[test]
fn a_pending_request_that_another_cluster_answers_counts_as_failover() {
    let mut samples = survived();
    samples.push(sample(9_990, 10_300, "gke"));
    assert_eq!(
        check(samples, DrillKind::ClusterDown, passed).failover_ms,
        Some(300.0)
    );
}

#[test]
fn nobody_who_takes_over_fails_the_drill() {
    let silent = survived()
        .into_iter()
        .filter(|s| s.started_us < 9_900_000)
        .chain([sample(9_990, 12_000, "")])
        .collect();
    let told = check(silent, DrillKind::ClusterDown, failed);
    assert_eq!((told.failover_ms, told.requests_interrupted), (None, 1));
}

#[test]
fn a_drill_that_proves_nothing_says_so() {
    let none = Vec::new();
    check(none, DrillKind::ClusterDown, inconclusive);

    let elsewhere = |every: u64| {
        let replaced = move |s: Sample| match s.started_us {
            us if us < 10_000_000 && (us / 100_000) % every != 0 => Sample {
                outcome: sample(0, 0, "gke").outcome,
                ..s
            },
            _ => s,
        };
        survived().into_iter().map(replaced).collect::<Vec<_>>()
    };
    check(elsewhere(3), DrillKind::ClusterDown, inconclusive);
    let half = check(elsewhere(2), DrillKind::ClusterDown, passed);
    assert!((half.served_by_target_share_baseline - 0.5).abs() < f64::EPSILON);

    let stopped = survived()
        .into_iter()
        .filter(|s| s.started_us < 9_900_000)
        .collect();
    check(stopped, DrillKind::ClusterDown, inconclusive);

    let mut uncut = survived();
    uncut.push(sample(15_000, 15_020, "eks"));
    check(uncut.clone(), DrillKind::ClusterDown, inconclusive);
    check(uncut, DrillKind::BrokerLeaderKill, passed);

    let mut sick = survived();
    sick.push(sample(1_000, 1_020, ""));
    let told = check(sick, DrillKind::ClusterDown, inconclusive);
    assert_eq!(told.requests_failed, 1, "told all the same");
}

#[test]
fn a_broker_drill_passes_when_traffic_simply_goes_on() {
    let samples = (0..250u64)
        .map(|n| sample(n * 100, n * 100 + 20, "eks"))
        .collect();
    assert_eq!(
        check(samples, DrillKind::BrokerLeaderKill, passed).failover_ms,
        Some(20.0)
    );
}

#[test]
fn dns_answers_are_stale_a_second_into_the_failure() {
    let answer = |at_ms: u64, names_target| DnsSample {
        at_us: at_ms * 1000,
        names_target,
    };
    let dns = [
        answer(5_000, true),
        answer(10_900, true),
        answer(11_000, true),
        answer(12_000, false),
        answer(21_000, true),
    ];
    assert_eq!(
        judge(&drill(DrillKind::ClusterDown), &survived(), &dns).stale_dns_answers,
        1
    );
}

proptest! {
    #[test]
    fn every_request_is_counted_once_and_order_does_not_matter(
        raw in prop::collection::vec((0..26_000u64, 0..5_000u64, 0..3usize), 0..80),
    ) {
        let mut samples: Vec<Sample> =
            raw.into_iter().map(|(start, took, by)| sample(start, start + took, ["", "eks", "gke"][by])).collect();
        let told = judge(&drill(DrillKind::LinkCut), &samples, &[]);
        let failures = samples.iter().filter(|sample| sample.failed()).count() as u64;
        prop_assert_eq!(told.requests_total, samples.len() as u64);
        prop_assert_eq!(told.requests_interrupted + told.requests_failed, failures);
        let drawn: u64 = told.timeline.iter().map(|b| u64::from(b.failed) + b.served.values().map(|n| u64::from(*n)).sum::<u64>()).sum();
        prop_assert_eq!(drawn, told.requests_total);
        if told.verdict == DrillVerdict::Passed {
            prop_assert!(told.failover_ms.is_some() && told.requests_failed == 0);
        }
        samples.reverse();
        let again = judge(&drill(DrillKind::LinkCut), &samples, &[]);
        prop_assert_eq!(std::mem::discriminant(&again.verdict), std::mem::discriminant(&told.verdict));
        prop_assert_eq!((again.failover_ms, again.failback_ms, again.timeline), (told.failover_ms, told.failback_ms, told.timeline));
    }
}
