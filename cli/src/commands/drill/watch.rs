//! The DNS watch: asks the server of `--from` for the drilled service beside the traffic.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hickory_proto::rr::{Name, RData, RecordType};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tombolo_clusterset::drill::DnsSample;
use tombolo_clusterset::{Drill, ServiceType};

use crate::operator::dns;
use crate::operator::view::View;

/// Often enough to see an answer that is stale for a tenth of a second.
const EVERY: Duration = Duration::from_millis(50);
/// A server that is silent this long is asked anew.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// What to ask and what to look for.
#[derive(Debug, Clone)]
pub(super) struct Watch {
    server: SocketAddr,
    name: Name,
    /// Addresses that stand for the target's endpoints.
    target: BTreeSet<IpAddr>,
}

/// One answer by the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answered {
    pub(super) at_unix_us: u64,
    pub(super) names_target: bool,
}

impl Watch {
    /// None where DNS names no endpoint (a clusterset IP stays the same whoever serves), or its server is not known here.
    pub(super) fn of(view: &View, drill: &Drill) -> Option<Self> {
        let server = view.notes.get(&drill.from)?.dns;
        let observed = view.observed.iter().find(|one| one.cluster == drill.from)?;
        let import = observed.snapshot.imports.get(&drill.service)?;
        if import.spec.service_type != ServiceType::Headless {
            return None;
        }
        let imported = import.clusters.get(&drill.target)?;
        let endpoints = imported
            .slices
            .iter()
            .flat_map(|slice| &slice.endpoints)
            .map(|endpoint| endpoint.address);
        let target = endpoints.chain(imported.stand_ins.values().copied()).collect();
        let name = format!(
            "{}.{}.svc.clusterset.local.",
            drill.service.name, drill.service.namespace
        );
        Some(Self {
            server,
            name: Name::from_ascii(name).ok()?,
            target,
        })
    }

    /// Asks for as long as `total` and keeps what came.
    pub(super) async fn keep(&self, total: Duration) -> Vec<Answered> {
        let mut answers = Vec::new();
        let watch = async {
            let mut ticks = interval(EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            loop {
                ticks.tick().await;
                let asked = timeout(ANSWER_TIMEOUT, dns::ask(self.server, &self.name, RecordType::A)).await;
                // No answer names nobody: only answers can be stale.
                let Ok(Ok(reply)) = asked else { continue };
                let names = reply.message.answers.iter().any(|record| match &record.data {
                    RData::A(a) => self.target.contains(&IpAddr::V4(a.0)),
                    RData::AAAA(aaaa) => self.target.contains(&IpAddr::V6(aaaa.0)),
                    _ => false,
                });
                answers.push(Answered {
                    at_unix_us: now_unix_us(),
                    names_target: names,
                });
            }
        };
        // The watch has no end of its own.
        let _: Result<std::convert::Infallible, _> = timeout(total, watch).await;
        answers
    }
}

/// On the clock of the report; answers from before it began are left out.
pub(super) fn on_the_clock(answers: &[Answered], received_unix_us: u64) -> Vec<DnsSample> {
    let sample = |answer: &Answered| {
        let at_us = answer.at_unix_us.checked_sub(received_unix_us)?;
        Some(DnsSample {
            at_us,
            names_target: answer.names_target,
        })
    };
    answers.iter().filter_map(sample).collect()
}

fn now_unix_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_move_to_the_report_s_clock() {
        let answers =
            [(900, true), (1_000, false), (1_500, true)].map(|(at_unix_us, names_target)| Answered {
                at_unix_us,
                names_target,
            });
        assert_eq!(
            on_the_clock(&answers, 1_000),
            [
                DnsSample {
                    at_us: 0,
                    names_target: false
                },
                DnsSample {
                    at_us: 500,
                    names_target: true
                }
            ]
        );
    }
}
