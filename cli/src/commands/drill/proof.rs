//! What a drill showed, as it is printed and reported.

use std::collections::BTreeMap;

use serde::Serialize;
use tombolo_clusterset::Drill;
use tombolo_clusterset::drill::{BUCKET, DrillVerdict, Outcome, Sample, judge};

use super::live::{Lived, what_fails};
use super::{plan, watch};
use crate::output::{Tone, paint};

/// The judged drill. JSON kind `drill`; times on the timeline count from the start of the traffic.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Proof {
    pub(super) id: u64,
    #[serde(rename = "drill_kind")]
    pub(super) kind: &'static str,
    pub(super) target: String,
    pub(super) from: String,
    /// `namespace/name`.
    pub(super) service: String,
    /// Whether processes were killed.
    pub(super) real: bool,
    /// `GET PATH` or `TCP connect`.
    pub(super) request: String,
    pub(super) rate_per_second: u32,
    /// `passed`, `failed` or `inconclusive`.
    pub(super) verdict: &'static str,
    /// Why it is not passed; empty when it is.
    pub(super) why: String,
    pub(super) requests_total: u64,
    /// In flight at the instant of failure, and failed.
    pub(super) requests_interrupted: u64,
    /// All others that the client saw fail.
    pub(super) requests_failed: u64,
    /// Failure injected to first success elsewhere; null when there was none, or the drill is inconclusive.
    pub(super) failover_ms: Option<f64>,
    /// Failure ended to first success at the target; null likewise.
    pub(super) failback_ms: Option<f64>,
    /// The longest that a request under way during the failure took.
    pub(super) slowest_ms: Option<f64>,
    /// DNS answers that named the target more than a second into its failure.
    pub(super) stale_dns_answers: u64,
    /// DNS answers that were looked at; null where DNS names no endpoint (a clusterset IP stays the same).
    pub(super) dns_answers: Option<u64>,
    /// Part of the baseline's requests that the target served, 0 to 1.
    pub(super) target_share_baseline: f64,
    /// Instant of the failure.
    pub(super) injected_ms: f64,
    /// Instant of its end.
    pub(super) restored_ms: f64,
    /// Width of a bar of the timeline.
    pub(super) bucket_ms: u64,
    pub(super) timeline: Vec<Bar>,
    /// How often requests failed, by reason.
    pub(super) failures: BTreeMap<String, u64>,
    /// What was done, in order.
    pub(super) steps: Vec<Step>,
}

/// Requests that ended within one bar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Bar {
    pub(super) at_ms: u64,
    /// By cluster.
    pub(super) served: BTreeMap<String, u32>,
    pub(super) failed: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Step {
    pub(super) at_ms: f64,
    pub(super) what: String,
}

impl Proof {
    pub(super) fn of(drill: &Drill, lived: &Lived) -> Self {
        let Lived { report, killed, dns } = lived;
        let drill = match killed {
            Some(killed) => plan::at_the_kill(drill, report.received_unix_us, killed.at_unix_us),
            None => drill.clone(),
        };
        let samples = plan::samples(report);
        let answers = dns
            .as_ref()
            .map(|answers| watch::on_the_clock(answers, report.received_unix_us));
        let result = judge(&drill, &samples, answers.as_deref().unwrap_or_default());
        let (verdict, why) = if report.error.is_empty() {
            words(&result.verdict)
        } else {
            (
                "inconclusive",
                format!("{} could not send: {}", drill.from, report.error),
            )
        };
        let conclusive = verdict != "inconclusive";
        let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1000.0;
        let bucket_ms = u64::try_from(BUCKET.as_millis()).unwrap_or(u64::MAX);
        let bars = result.timeline.iter().zip(0u64..).map(|(bucket, at)| Bar {
            at_ms: at * bucket_ms,
            served: bucket
                .served
                .iter()
                .map(|(cluster, count)| (cluster.to_string(), *count))
                .collect(),
            failed: bucket.failed,
        });
        Self {
            id: drill.id.0,
            kind: drill.kind.as_str(),
            target: drill.target.to_string(),
            from: drill.from.to_string(),
            service: drill.service.to_string(),
            real: drill.real,
            request: drill
                .http_get
                .as_ref()
                .map_or_else(|| "TCP connect".to_owned(), |path| format!("GET {path}")),
            rate_per_second: drill.rate_per_second,
            verdict,
            why,
            requests_total: result.requests_total,
            requests_interrupted: result.requests_interrupted,
            requests_failed: result.requests_failed,
            failover_ms: result.failover_ms.filter(|_| conclusive),
            failback_ms: result.failback_ms.filter(|_| conclusive),
            slowest_ms: result.slowest_ms,
            stale_dns_answers: result.stale_dns_answers.max(report.stale_dns_answers),
            dns_answers: answers.map(|answers| u64::try_from(answers.len()).unwrap_or(u64::MAX)),
            target_share_baseline: result.served_by_target_share_baseline,
            injected_ms: ms(drill.baseline),
            restored_ms: ms(drill.baseline + drill.duration),
            bucket_ms,
            timeline: bars.collect(),
            failures: failures(&samples),
            steps: steps(&drill, lived),
        }
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let tone = match self.verdict {
            "passed" => Tone::Good,
            "failed" => Tone::Bad,
            _ => Tone::Warn,
        };
        let mut lines = vec![match self.why.as_str() {
            "" => paint(tone, self.verdict),
            why => format!("{}: {why}", paint(tone, self.verdict)),
        }];
        lines.extend(
            self.figures()
                .into_iter()
                .map(|(name, value)| format!("  {name:24}{value}")),
        );
        lines.extend(
            self.failures
                .iter()
                .map(|(reason, count)| format!("  {count} failed: {reason}")),
        );
        lines.join("\n")
    }

    /// The figures, each with its name.
    pub(super) fn figures(&self) -> Vec<(&'static str, String)> {
        let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0} ms"));
        vec![
            ("requests", self.requests_total.to_string()),
            ("interrupted", self.requests_interrupted.to_string()),
            ("failed", self.requests_failed.to_string()),
            ("failover", ms(self.failover_ms)),
            ("failback", ms(self.failback_ms)),
            ("slowest during failure", ms(self.slowest_ms)),
            (
                "served by target before",
                format!("{:.0}%", self.target_share_baseline * 100.0),
            ),
            (
                "stale DNS answers",
                match self.dns_answers {
                    Some(all) => format!("{} of {all}", self.stale_dns_answers),
                    None => format!(
                        "{} (its name does not depend on who serves)",
                        self.stale_dns_answers
                    ),
                },
            ),
        ]
    }
}

fn words(verdict: &DrillVerdict) -> (&'static str, String) {
    match verdict {
        DrillVerdict::Passed => ("passed", String::new()),
        DrillVerdict::Failed { why } => ("failed", why.clone()),
        DrillVerdict::Inconclusive { why } => ("inconclusive", why.clone()),
    }
}

fn failures(samples: &[Sample]) -> BTreeMap<String, u64> {
    let mut failures = BTreeMap::new();
    for sample in samples {
        if let Outcome::Failed { reason } = &sample.outcome {
            *failures.entry(reason.clone()).or_default() += 1;
        }
    }
    failures
}

fn steps(drill: &Drill, lived: &Lived) -> Vec<Step> {
    let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1000.0;
    let traffic = format!(
        "{} sends {} requests per second to {}",
        drill.from, drill.rate_per_second, drill.service
    );
    let mut failure = what_fails(drill);
    if let Some(killed) = &lived.killed {
        let victims: Vec<String> = killed
            .processes
            .iter()
            .map(|process| format!("{} (pid {})", process.role, process.pid))
            .collect();
        failure = format!("{failure}: {}", victims.join(", "));
    }
    let back = if drill.real {
        "what was killed starts again"
    } else {
        "the failure is taken back"
    };
    vec![
        Step {
            at_ms: 0.0,
            what: traffic,
        },
        Step {
            at_ms: ms(drill.baseline),
            what: failure,
        },
        Step {
            at_ms: ms(drill.baseline + drill.duration),
            what: back.to_owned(),
        },
        Step {
            at_ms: ms(drill.total()),
            what: "the traffic ends".to_owned(),
        },
    ]
}

#[cfg(test)]
pub(super) mod tests {
    use tombolo_clusterset::DrillKind;
    use tombolo_wire::v1;

    use super::super::live::Killed;
    use super::*;

    /// A request every 10 ms for 4 s: east serves until 1 s and from 3 s on, another cluster between, 80 ms late at first.
    pub(crate) fn lived(killed: Option<u64>) -> Lived {
        let sample = |at: u64| {
            let started_us = at * 10_000;
            let failing = (1_000_000..3_000_000).contains(&started_us);
            let late = if (1_000_000..1_080_000).contains(&started_us) {
                80_000
            } else {
                2_000
            };
            v1::DrillSample {
                started_us,
                ended_us: started_us + late,
                served_by: if failing { "north".into() } else { "east".into() },
                failure: String::new(),
            }
        };
        let report = v1::DrillReport {
            drill: 42,
            received_unix_us: 5_000_000,
            samples: (0..400).map(sample).collect(),
            ..v1::DrillReport::default()
        };
        let killed = killed.map(|at_unix_us| Killed {
            at_unix_us,
            processes: Vec::new(),
        });
        Lived {
            report,
            killed,
            dns: None,
        }
    }

    #[test]
    fn a_passed_drill_reads_so() {
        let proof = Proof::of(&plan::tests::drill(DrillKind::ClusterDown), &lived(None));
        assert_eq!(
            proof.text(),
            "passed\n  requests                400\n  interrupted             0\n  failed                  0\n  \
             failover                80 ms\n  failback                2 ms\n  slowest during failure  80 ms\n  \
             served by target before 100%\n  \
             stale DNS answers       0 (its name does not depend on who serves)"
        );
    }

    #[test]
    fn the_fields_scripts_read() {
        let proof = Proof::of(&plan::tests::drill(DrillKind::ClusterDown), &lived(None));
        let json = serde_json::to_value(&proof).expect("json");
        for (field, expected) in [
            ("verdict", serde_json::json!("passed")),
            ("requests_total", serde_json::json!(400)),
            ("requests_interrupted", serde_json::json!(0)),
            ("requests_failed", serde_json::json!(0)),
            ("stale_dns_answers", serde_json::json!(0)),
            ("bucket_ms", serde_json::json!(100)),
            ("injected_ms", serde_json::json!(1000.0)),
            ("restored_ms", serde_json::json!(3000.0)),
            ("dns_answers", serde_json::Value::Null),
        ] {
            assert_eq!(json[field], expected, "{field}");
        }
        assert_eq!(
            json["timeline"][15],
            serde_json::json!({"at_ms": 1500, "served": {"north": 10}, "failed": 0})
        );
    }

    #[test]
    fn a_real_drill_is_judged_at_its_kill() {
        let baseline = std::time::Duration::from_millis(700);
        let drill = Drill {
            real: true,
            baseline,
            ..plan::tests::drill(DrillKind::ClusterDown)
        };
        let proof = Proof::of(&drill, &lived(Some(6_000_000)));
        assert_eq!((proof.injected_ms, proof.restored_ms), (1000.0, 3000.0));
        assert_eq!(proof.verdict, "passed", "{}", proof.why);
    }

    #[test]
    fn a_gateway_that_could_not_send_proves_nothing() {
        let mut lived = lived(None);
        lived.report.error = "no such port".into();
        let proof = Proof::of(&plan::tests::drill(DrillKind::ClusterDown), &lived);
        assert_eq!((proof.verdict, proof.failover_ms), ("inconclusive", None));
        assert_eq!(proof.why, "west could not send: no such port");
    }
}
