//! What this cluster knows of the others' lives, joined: leases from the snapshot, links from the gateway.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tombolo_clusterset::reachability::{BothLost, Lease, Link, LinkState, Verdict, verdict};
use tombolo_clusterset::{ClusterId, LossPolicy, Snapshot};

const POLICIES: [LossPolicy; 3] = [LossPolicy::Keep, LossPolicy::Degrade, LossPolicy::Withdraw];

/// Remembers since when both signals of a cluster have been lost; one per process.
#[derive(Debug, Default)]
pub struct Tracker {
    both_lost: BTreeMap<ClusterId, BothLost>,
}

/// The verdicts over every member at one instant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdicts {
    own: Option<ClusterId>,
    /// By loss policy, in the order of [`POLICIES`].
    members: BTreeMap<ClusterId, [Verdict; POLICIES.len()]>,
    /// How long until a verdict can change by the passing of time alone.
    pub changes_in: Option<Duration>,
}

impl Tracker {
    /// Joins both signals at `now`. A cluster without an entry in `links` has an unknown link.
    pub fn observe(
        &mut self,
        now: Instant,
        snapshot: &Snapshot,
        links: &BTreeMap<ClusterId, LinkState>,
    ) -> Verdicts {
        self.both_lost
            .retain(|cluster, _| snapshot.clusters.contains_key(cluster));
        let mut verdicts = Verdicts {
            own: Some(snapshot.cluster.clone()),
            ..Verdicts::default()
        };
        for (cluster, view) in &snapshot.clusters {
            // A lease seen on a stream that is not fresh says nothing (DESIGN §1, lease).
            let lease = if snapshot.fresh {
                view.lease
            } else {
                Lease::Unknown
            };
            let state = links.get(cluster).copied().unwrap_or_default();
            let both_lost = self.both_lost.entry(cluster.clone()).or_default();
            let both_lost_for = both_lost.update(lease, state, now);
            let deadline = both_lost.deadline().filter(|_| both_lost_for.is_some());
            let remaining = deadline
                .and_then(|end| end.checked_duration_since(now))
                .filter(|left| !left.is_zero());
            verdicts.changes_in = [verdicts.changes_in, remaining].into_iter().flatten().min();
            let link = Link {
                state,
                rtt: None,
                both_lost_for,
            };
            verdicts.members.insert(
                cluster.clone(),
                POLICIES.map(|policy| verdict(lease, link, policy)),
            );
        }
        verdicts
    }
}

impl Verdicts {
    /// The verdict over `cluster` for a service with `policy`. A cluster that is no member (evicted, left) is withdrawn; the
    /// own cluster is always used.
    #[must_use]
    pub fn of(&self, cluster: &ClusterId, policy: LossPolicy) -> Verdict {
        if self.own.as_ref() == Some(cluster) {
            return Verdict::Use;
        }
        let at = POLICIES.iter().position(|known| *known == policy).unwrap_or(0);
        self.members
            .get(cluster)
            .map_or(Verdict::Withdraw, |verdicts| verdicts[at])
    }

    /// Whether both lead to the same zone.
    #[must_use]
    pub fn agree_with(&self, other: &Verdicts) -> bool {
        self.own == other.own && self.members == other.members
    }
}

#[cfg(test)]
mod tests {
    use tombolo_clusterset::reachability::WITHDRAW_GRACE;
    use tombolo_clusterset::{ClusterView, Label, Locality};

    use super::*;

    fn snapshot(fresh: bool, lease: Lease) -> Snapshot {
        let mut snapshot = crate::fixture::snapshot("here");
        snapshot.fresh = fresh;
        let id = ClusterId::parse("there").unwrap();
        let view = ClusterView {
            id: id.clone(),
            locality: Locality::default(),
            network: Label::parse("there").unwrap(),
            gateways: vec![],
            lease,
        };
        snapshot.clusters.insert(id, view);
        snapshot
    }

    #[test]
    fn both_lost_withdraws_after_the_grace_and_one_returning_starts_over() {
        let there = ClusterId::parse("there").unwrap();
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let down = BTreeMap::from([(there.clone(), LinkState::Down)]);
        let up = BTreeMap::from([(there.clone(), LinkState::Up)]);
        let lost = snapshot(true, Lease::Lost);
        let mut tracker = Tracker::default();
        let steps = [
            (0, &down, Verdict::LastResort, Some(WITHDRAW_GRACE)),
            (9, &down, Verdict::LastResort, Some(second)),
            (10, &down, Verdict::Withdraw, None),
            (11, &up, Verdict::Use, None),
            (12, &down, Verdict::LastResort, Some(WITHDRAW_GRACE)),
        ];
        for (at, links, expected, changes_in) in steps {
            let verdicts = tracker.observe(start + second * at, &lost, links);
            assert_eq!(verdicts.of(&there, LossPolicy::Degrade), expected, "after {at} s");
            assert_eq!(verdicts.changes_in, changes_in, "after {at} s");
        }
    }

    #[test]
    fn a_stale_lease_says_nothing_and_strangers_are_withdrawn() {
        let there = ClusterId::parse("there").unwrap();
        let down = BTreeMap::from([(there.clone(), LinkState::Down)]);
        let verdicts = Tracker::default().observe(Instant::now(), &snapshot(false, Lease::Lost), &down);
        assert_eq!(verdicts.of(&there, LossPolicy::Degrade), Verdict::LastResort);
        assert_eq!(verdicts.changes_in, None);
        assert_eq!(
            verdicts.of(&ClusterId::parse("evicted").unwrap(), LossPolicy::Keep),
            Verdict::Withdraw
        );
        assert_eq!(
            verdicts.of(&ClusterId::parse("here").unwrap(), LossPolicy::Withdraw),
            Verdict::Use
        );
    }
}
