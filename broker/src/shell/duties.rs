//! What the leader does unasked: ends leases, lets time pass, brings Raft's membership in line with the state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use openraft::ChangeMembers;
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
            if !self.group.leads() {
                self.leases.set(None);
                self.metrics.leases.set(0);
                continue;
            }
            self.keep_leases();
            // An isolated leader decides nothing: its proposals would only pile up.
            if !self.group.is_fresh(self.clock.now()) {
                continue;
            }
            let mut due = self.expired_leases();
            due.extend(
                self.group
                    .replica()
                    .read(|state| self.is_tick_due(state))
                    .then_some(Command::Tick),
            );
            if !due.is_empty()
                && let Err(error) = self.group.propose(due).await
            {
                tracing::warn!(%error, "a leader's duty was not recorded; trying again");
            }
            self.align_membership().await;
        }
    }

    fn keep_leases(&self) {
        let now = self.clock.now().into_std();
        let alive: Vec<ClusterId> = self.group.replica().read(|state| {
            let alive = state
                .members
                .values()
                .filter(|member| member.view.lease == Lease::Alive);
            alive.map(|member| member.view.id.clone()).collect()
        });
        let leases = alive.len();
        if self.leases.with(|table| table.align(now, &alive)).is_none() {
            tracing::info!(leases, "leading: every lease has one full term");
            self.leases.set(Some(LeaseTable::begin(
                self.group.timing().lease_term,
                now,
                alive,
            )));
        }
        self.metrics.leases.set(i64::try_from(leases).unwrap_or(i64::MAX));
    }

    fn expired_leases(&self) -> Vec<Command> {
        let now = self.clock.now().into_std();
        let expired = self.leases.with(|table| table.expired(now)).unwrap_or_default();
        let lose = |cluster: ClusterId| {
            tracing::info!(%cluster, "lease lost: no sign of life for a full term");
            Command::LoseLease { cluster }
        };
        expired.into_iter().map(lose).collect()
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
        let Some(step) = next_step(&wanted, &voters, &nodes, matched) else {
            return;
        };
        tracing::info!(?step, "changing the broker group");
        let raft = self.group.raft();
        let changed = match step {
            Step::AddLearner(id, node) => raft.add_learner(id, node, false).await.map(|_| ()),
            Step::Promote(id) => raft
                .change_membership(ChangeMembers::AddVoterIds([id].into()), true)
                .await
                .map(|_| ()),
            Step::Demote(id) => raft
                .change_membership(ChangeMembers::RemoveVoters([id].into()), true)
                .await
                .map(|_| ()),
            Step::Forget(id) => raft
                .change_membership(ChangeMembers::RemoveNodes([id].into()), true)
                .await
                .map(|_| ()),
        };
        if let Err(error) = changed {
            tracing::warn!(%error, "the broker group could not be changed yet; trying again");
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
    wanted: &BTreeMap<u64, Addresses>,
    voters: &BTreeSet<u64>,
    nodes: &BTreeSet<u64>,
    caught_up: impl Fn(&u64) -> bool,
) -> Option<Step> {
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
        next_step(&wanted, &set(voters), &set(nodes), |id| caught_up.contains(id))
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
    }
}
