//! What the leader does unasked: ends leases, lets time pass, brings Raft's membership in line with the state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::ChangeMembers;
use tokio::time::timeout;
use tombolo_clusterset::{ClusterId, Lease};
use tombolo_daemon::Shutdown;
use tombolo_daemon::seam::clock::Clock;

use super::authority::unix_ms;
use super::metrics::Metrics;
use super::raft::group::Group;
use super::raft::types::Addresses;
use super::renewals::Leases;
use crate::command::Command;
use crate::lease::LeaseTable;
use crate::state::State;

/// A learner this many entries behind the log's end is caught up: the rest arrives within one append.
const CAUGHT_UP: u64 = 100;

/// A step towards the membership that the state wants.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Leave the joint membership of a change that was given up half-way.
    Settle,
    /// Begin to replicate to a new broker.
    AddLearner(u64, Addresses),
    /// Let a caught-up learner vote.
    Promote(u64),
    /// Take a vote away; the broker stays a learner for a moment.
    Demote(u64),
    /// Stop replicating.
    Forget(u64),
}

/// The leader's duties of one broker.
#[derive(Debug)]
pub struct Duties {
    /// The group.
    pub group: Arc<Group>,
    /// The lease table.
    pub leases: Arc<Leases>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// For the number of leases and Raft's own figures.
    pub metrics: Metrics,
}

impl Duties {
    /// Runs until the drain.
    pub async fn run(self, shutdown: Shutdown) {
        let mut beat = tokio::time::interval(self.group.timing().heartbeat);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.drain() => return,
                _ = beat.tick() => {}
            }
            self.publish_metrics();
            let Some(term) = self.group.leads_in() else {
                self.leases.end();
                self.metrics.leases.set(0);
                continue;
            };
            self.keep_leases(term);
            // An isolated leader decides nothing: its proposals would only pile up.
            if !self.group.is_fresh(self.clock.now()) {
                continue;
            }
            let mut due = self.expired_leases(term);
            due.extend(
                self.group
                    .replica()
                    .read(|state| self.is_tick_due(state))
                    .then_some(Command::Tick),
            );
            if !due.is_empty() {
                self.record(term, due).await;
            }
            self.align_membership().await;
        }
    }

    /// Proposes as the leader of `term`, and never through another: it may have heard what this broker has not.
    async fn record(&self, term: u64, due: Vec<Command>) {
        if self.group.leads_in() != Some(term) {
            return;
        }
        match timeout(self.patience(), self.group.propose_here(due)).await {
            Ok(Ok(_)) => {}
            Ok(Err(why)) => tracing::warn!(?why, "a leader's duty was not recorded; trying again"),
            Err(_) => tracing::warn!("a leader's duty is not recorded yet; trying again"),
        }
    }

    /// How long one duty may keep the others waiting.
    fn patience(&self) -> Duration {
        self.group.timing().lease_term
    }

    fn keep_leases(&self, term: u64) {
        let now = self.clock.now().into_std();
        let alive: Vec<ClusterId> = self.group.replica().read(|state| {
            let alive = state
                .members
                .values()
                .filter(|member| member.view.lease == Lease::Alive);
            alive.map(|member| member.view.id.clone()).collect()
        });
        let leases = alive.len();
        if self.leases.with(term, |table| table.align(now, &alive)).is_none() {
            tracing::info!(leases, "leading: every lease has one full term");
            let table = LeaseTable::begin(self.group.timing().lease_term, now, alive);
            self.leases.begin(term, table);
        }
        self.metrics.leases.set(i64::try_from(leases).unwrap_or(i64::MAX));
    }

    fn expired_leases(&self, term: u64) -> Vec<Command> {
        let now = self.clock.now().into_std();
        let expired = self.leases.with(term, |table| table.expired(now));
        let lose = |cluster: ClusterId| {
            tracing::info!(%cluster, "lease lost: no sign of life for a full term");
            Command::LoseLease { cluster }
        };
        expired.unwrap_or_default().into_iter().map(lose).collect()
    }

    fn is_tick_due(&self, state: &State) -> bool {
        state
            .next_expiry_ms()
            .is_some_and(|expiry| expiry <= unix_ms(self.clock.wall()))
    }

    /// One step at a time; the next beat takes the next.
    async fn align_membership(&self) {
        let metrics = self.group.metrics();
        let membership = metrics.membership_config.membership();
        let wanted: BTreeMap<u64, Addresses> = self.group.replica().read(|state| {
            state
                .brokers
                .active
                .iter()
                .map(|(id, addresses)| (*id, addresses.into()))
                .collect()
        });
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let nodes: BTreeSet<u64> = membership.nodes().map(|(id, _)| *id).collect();
        let last = metrics.last_log_index.unwrap_or_default();
        let matched = |id: &u64| {
            let replicated = metrics
                .replication
                .as_ref()
                .and_then(|all| all.get(id).copied().flatten());
            replicated.is_some_and(|log_id| log_id.index + CAUGHT_UP >= last)
        };
        let is_joint = membership.get_joint_config().len() > 1;
        let Some(step) = next_step(is_joint, &wanted, &voters, &nodes, matched) else {
            return;
        };
        tracing::info!(?step, "changing the broker group");
        let raft = self.group.raft();
        let change = async {
            match step {
                Step::Settle => {
                    raft.change_membership(ChangeMembers::AddVoterIds(BTreeSet::new()), true)
                        .await
                }
                Step::AddLearner(id, node) => raft.add_learner(id, node, false).await,
                Step::Promote(id) => {
                    raft.change_membership(ChangeMembers::AddVoterIds([id].into()), true)
                        .await
                }
                Step::Demote(id) => {
                    raft.change_membership(ChangeMembers::RemoveVoters([id].into()), true)
                        .await
                }
                Step::Forget(id) => {
                    raft.change_membership(ChangeMembers::RemoveNodes([id].into()), true)
                        .await
                }
            }
        };
        match timeout(self.patience(), change).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the broker group could not be changed yet; trying again");
            }
            Err(_) => tracing::warn!("the broker group is not changed yet; trying again"),
        }
    }

    fn publish_metrics(&self) {
        let raft = self.group.metrics();
        self.metrics.term.set(raft.current_term);
        self.metrics.leader.set(raft.current_leader.unwrap_or_default());
        self.metrics
            .last_log_index
            .set(raft.last_log_index.unwrap_or_default());
        self.metrics
            .applied_index
            .set(raft.last_applied.map_or(0, |log_id| log_id.index));
    }
}

/// What brings Raft's membership closest to `wanted`. Brokers are added before others are taken away, so that replacing
/// one never leaves the group smaller in between.
fn next_step(
    is_joint: bool,
    wanted: &BTreeMap<u64, Addresses>,
    voters: &BTreeSet<u64>,
    nodes: &BTreeSet<u64>,
    caught_up: impl Fn(&u64) -> bool,
) -> Option<Step> {
    if is_joint {
        return Some(Step::Settle);
    }
    if wanted.is_empty() {
        return None;
    }
    let add = wanted
        .iter()
        .find(|(id, _)| !nodes.contains(id))
        .map(|(id, node)| Step::AddLearner(*id, node.clone()));
    let promote = || {
        wanted
            .keys()
            .find(|id| nodes.contains(id) && !voters.contains(id) && caught_up(id))
    };
    let demote = || voters.iter().find(|id| !wanted.contains_key(id));
    let forget = || {
        nodes
            .iter()
            .find(|id| !wanted.contains_key(id) && !voters.contains(id))
    };
    add.or_else(|| promote().map(|id| Step::Promote(*id)))
        .or_else(|| demote().map(|id| Step::Demote(*id)))
        .or_else(|| forget().map(|id| Step::Forget(*id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(wanted: &[u64], voters: &[u64], nodes: &[u64], caught_up: &[u64]) -> Option<Step> {
        let wanted = wanted.iter().map(|id| (*id, Addresses::default())).collect();
        let set = |ids: &[u64]| ids.iter().copied().collect();
        next_step(false, &wanted, &set(voters), &set(nodes), |id| {
            caught_up.contains(id)
        })
    }

    #[test]
    fn the_membership_follows_the_state_one_step_at_a_time() {
        let learner = |id| Some(Step::AddLearner(id, Addresses::default()));
        let table = [
            (step(&[], &[1], &[1], &[]), None),
            (step(&[1], &[1], &[1], &[]), None),
            (step(&[1, 2], &[1], &[1], &[]), learner(2)),
            (step(&[1, 2], &[1], &[1, 2], &[]), None),
            (step(&[1, 2], &[1], &[1, 2], &[2]), Some(Step::Promote(2))),
            (step(&[1, 3], &[1, 2], &[1, 2], &[]), learner(3)),
            (step(&[1, 3], &[1, 2, 3], &[1, 2, 3], &[]), Some(Step::Demote(2))),
            (step(&[1, 3], &[1, 3], &[1, 2, 3], &[]), Some(Step::Forget(2))),
        ];
        for (found, expected) in table {
            assert_eq!(found, expected);
        }
        let none = BTreeSet::new();
        let settle = next_step(true, &BTreeMap::new(), &none, &none, |_| false);
        assert_eq!(
            settle,
            Some(Step::Settle),
            "a change that was given up comes first"
        );
    }
}
