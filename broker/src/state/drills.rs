//! Drills: one at a time, bounded, ending by themselves, reported.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tombolo_clusterset::drill::DRILL_MAX;
use tombolo_clusterset::{ClusterId, Drill, DrillId, DrillKind, Lease, Readiness, ServiceKey};

use super::tokens::millis;
use super::{Entry, EntryKey, Refusal, State, Verdict};
use crate::bounds::{DRILL_RATE_MAX, DRILL_REPORT_MAX_BYTES, DRILLS_KEPT};
use crate::command::Reply;

/// A drill in progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningDrill {
    /// What is rehearsed.
    pub drill: Drill,
    /// When it ends by itself on the replicated clock, milliseconds since the Unix epoch.
    pub expires_ms: u64,
}

/// A drill that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedDrill {
    /// What was rehearsed.
    pub drill: Drill,
    /// `v1::DrillReport`, encoded; None until it arrives.
    pub report: Option<Bytes>,
}

/// The running drill and the last finished ones, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drills {
    /// At most one.
    pub running: Option<RunningDrill>,
    /// At most [`DRILLS_KEPT`].
    pub finished: VecDeque<FinishedDrill>,
}

impl Drills {
    /// The drill `id` with its report, running or finished.
    #[must_use]
    pub fn find(&self, id: DrillId) -> Option<(&Drill, Option<&Bytes>)> {
        let running = self.running.iter().map(|running| (&running.drill, None));
        let finished = self
            .finished
            .iter()
            .map(|finished| (&finished.drill, finished.report.as_ref()));
        running.chain(finished).find(|(drill, _)| drill.id == id)
    }
}

impl Entry<'_> {
    pub(super) fn start_drill(&mut self, mut drill: Drill, force: bool) -> Verdict {
        if let Some(running) = &self.state.drills.running {
            return Err(Refusal::DrillRunning {
                running: running.drill.id,
            });
        }
        check_shape(&drill)?;
        for cluster in [&drill.target, &drill.from] {
            if !self.state.members.contains_key(cluster) {
                return Err(Refusal::NotAMember(cluster.clone()));
            }
        }
        if drill.kind != DrillKind::BrokerLeaderKill {
            self.state.check_drill_proves(&drill)?;
            if !force {
                self.state.check_drill_leaves_endpoints(&drill)?;
            }
        }
        let id = DrillId(self.index);
        drill.id = id;
        let expires_ms = self.state.clock_ms.saturating_add(millis(drill.total()));
        self.state.drills.running = Some(RunningDrill { drill, expires_ms });
        self.changed.insert(EntryKey::Drill(id));
        Ok(Reply::DrillStarted { id })
    }

    pub(super) fn stop_drill(&mut self, id: DrillId) -> Verdict {
        if self
            .state
            .drills
            .running
            .as_ref()
            .is_some_and(|running| running.drill.id == id)
        {
            self.finish_drill();
        }
        // A drill that ended by itself meanwhile is stopped as well.
        self.state
            .drills
            .find(id)
            .map(|_| Reply::Done)
            .ok_or(Refusal::DrillUnknown(id.0))
    }

    pub(super) fn report_drill(&mut self, cluster: &ClusterId, id: DrillId, report: Bytes) -> Verdict {
        if report.len() > DRILL_REPORT_MAX_BYTES {
            return Err(Refusal::DrillReportTooLarge {
                drill: id.0,
                bytes: report.len(),
            });
        }
        let (drill, _) = self.state.drills.find(id).ok_or(Refusal::DrillUnknown(id.0))?;
        if drill.from != *cluster {
            return Err(Refusal::DrillForeignReport {
                drill: id.0,
                from: drill.from.clone(),
                asked: cluster.clone(),
            });
        }
        // Whoever sent the traffic says that it is over: its clock may be a little ahead.
        if self
            .state
            .drills
            .running
            .as_ref()
            .is_some_and(|running| running.drill.id == id)
        {
            self.finish_drill();
        }
        for finished in self
            .state
            .drills
            .finished
            .iter_mut()
            .filter(|finished| finished.drill.id == id)
        {
            finished.report.get_or_insert_with(|| report.clone());
        }
        Ok(Reply::Done)
    }

    pub(super) fn expire_drill(&mut self) {
        let now = self.state.clock_ms;
        if self
            .state
            .drills
            .running
            .as_ref()
            .is_some_and(|running| running.expires_ms <= now)
        {
            self.finish_drill();
        }
    }

    fn finish_drill(&mut self) {
        let drills = &mut self.state.drills;
        let Some(running) = drills.running.take() else {
            return;
        };
        self.changed.insert(EntryKey::Drill(running.drill.id));
        drills.finished.push_back(FinishedDrill {
            drill: running.drill,
            report: None,
        });
        while drills.finished.len() > DRILLS_KEPT {
            drills.finished.pop_front();
        }
    }
}

/// What can be said of a drill without knowing the clusterset.
fn check_shape(drill: &Drill) -> Result<(), Refusal> {
    let second = Duration::from_secs(1);
    // Each part is bounded before they are added up, so that the sum cannot overflow.
    let parts = [drill.baseline, drill.duration, drill.recovery];
    if parts.iter().any(|part| *part > DRILL_MAX) || drill.total() > DRILL_MAX {
        let longest = parts.into_iter().fold(Duration::ZERO, Duration::saturating_add);
        return Err(Refusal::DrillTooLong(longest.as_secs()));
    }
    if drill.baseline < second || drill.duration < second {
        return Err(Refusal::DrillTooShort);
    }
    if !(1..=DRILL_RATE_MAX).contains(&drill.rate_per_second) {
        return Err(Refusal::DrillRate(drill.rate_per_second));
    }
    if !drill.real && !drill.kind.can_be_rehearsed() {
        return Err(Refusal::DrillOnlyReal(drill.kind.as_str()));
    }
    if drill.kind != DrillKind::BrokerLeaderKill && drill.target == drill.from {
        return Err(Refusal::DrillFromTarget(drill.target.clone()));
    }
    Ok(())
}

impl State {
    fn check_drill_proves(&self, drill: &Drill) -> Result<(), Refusal> {
        if self.export(&drill.service, &drill.target).is_none() {
            let (target, service) = (drill.target.clone(), drill.service.clone());
            return Err(Refusal::DrillNotExported { target, service });
        }
        Ok(())
    }

    /// The drill's own flows do not use the endpoints of `from`; everyone else's may.
    fn check_drill_leaves_endpoints(&self, drill: &Drill) -> Result<(), Refusal> {
        let without = |service: &ServiceKey, hidden: &[&ClusterId]| {
            if self.is_healthy_without(service, hidden) {
                return Ok(());
            }
            Err(Refusal::DrillLeavesNothing {
                target: drill.target.clone(),
                service: service.clone(),
            })
        };
        without(&drill.service, &[&drill.target, &drill.from])?;
        if drill.kind == DrillKind::LinkCut || drill.kind == DrillKind::DnsKill {
            return Ok(());
        }
        self.exports
            .iter()
            .filter(|(_, by_cluster)| by_cluster.contains_key(&drill.target))
            .try_for_each(|(service, _)| without(service, &[&drill.target]))
    }

    /// Whether a cluster besides `hidden`, not known to be lost, has a ready endpoint of `service`.
    fn is_healthy_without(&self, service: &ServiceKey, hidden: &[&ClusterId]) -> bool {
        let alive = |cluster: &ClusterId| {
            self.members
                .get(cluster)
                .is_some_and(|m| m.view.lease != Lease::Lost)
        };
        self.exports
            .get(service)
            .into_iter()
            .flatten()
            .any(|(cluster, record)| {
                let mut endpoints = record.export.slices.iter().flat_map(|slice| &slice.endpoints);
                !hidden.contains(&cluster)
                    && alive(cluster)
                    && endpoints.any(|end| end.readiness == Readiness::Ready)
            })
    }
}
