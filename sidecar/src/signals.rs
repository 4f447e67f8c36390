//! What this sidecar knows of the paths to the other clusters: the gateway's links and its own tunnels, joined.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tombolo_clusterset::reachability::{BothLost, best};
use tombolo_clusterset::{ClusterId, Link, LinkState, Snapshot};
use tombolo_wire::local::LinkTable;

/// Joins both views; remembers since when lease and link of a cluster have both been lost.
#[derive(Debug, Default)]
pub struct Joined {
    both_lost: BTreeMap<ClusterId, BothLost>,
}

/// The links at one instant.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Links {
    /// Of every other member.
    pub links: BTreeMap<ClusterId, Link>,
    /// How long until a verdict can change by the passing of time alone.
    pub changes_in: Option<Duration>,
}

impl Joined {
    /// The links at `now`. A path of our own and one of the gateway both lead there, so the better one speaks
    /// ([`best`]); one that nobody has tried says nothing while the other speaks.
    pub fn observe(
        &mut self,
        now: Instant,
        snapshot: &Snapshot,
        gateway: &LinkTable,
        own: &BTreeMap<ClusterId, Link>,
    ) -> Links {
        self.both_lost
            .retain(|cluster, _| snapshot.clusters.contains_key(cluster));
        let mut joined = Links::default();
        for cluster in snapshot
            .clusters
            .keys()
            .filter(|cluster| **cluster != snapshot.cluster)
        {
            let reported = gateway.get(cluster).map(|report| Link {
                state: report.state,
                rtt: report.rtt,
                both_lost_for: None,
            });
            let mut link = best(reported.into_iter().chain(own.get(cluster).copied()));
            let both_lost = self.both_lost.entry(cluster.clone()).or_default();
            let lease = snapshot.lease(cluster).unwrap_or_default();
            link.both_lost_for = both_lost.update(lease, link.state, now);
            let deadline = both_lost.deadline().filter(|_| link.both_lost_for.is_some());
            let left = deadline
                .and_then(|end| end.checked_duration_since(now))
                .filter(|left| !left.is_zero());
            joined.changes_in = [joined.changes_in, left].into_iter().flatten().min();
            joined.links.insert(cluster.clone(), link);
        }
        joined
    }
}

/// Whether a flow that began over a link in state `before` is to be tried elsewhere, now that it is in state `after`.
#[must_use]
pub fn turned_doubtful(before: LinkState, after: LinkState) -> bool {
    let trusted = |state| matches!(state, LinkState::Up | LinkState::Unknown);
    trusted(before) && !trusted(after)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test starts at any instant")]
mod tests {
    use LinkState::{Down, Suspect, Unknown, Up};
    use tombolo_clusterset::Lease;
    use tombolo_clusterset::reachability::WITHDRAW_GRACE;
    use tombolo_wire::convert::LinkReport;

    use super::*;
    use crate::fixtures::{self, cluster};

    fn link(state: LinkState, rtt_ms: u64) -> Link {
        Link {
            state,
            rtt: Some(Duration::from_millis(rtt_ms)),
            both_lost_for: None,
        }
    }

    fn table(state: LinkState, rtt_ms: u64) -> LinkTable {
        let report = LinkReport {
            cluster: cluster("gke"),
            state,
            rtt: Some(Duration::from_millis(rtt_ms)),
            transport: String::new(),
            peer: String::new(),
            reversed: false,
            reason: String::new(),
        };
        LinkTable::from([(cluster("gke"), report)])
    }

    #[test]
    fn the_better_path_speaks() {
        let table_of = [
            (Some((Up, 9)), None, Up),
            (None, Some((Up, 9)), Up),
            (None, None, Unknown),
            (Some((Down, 9)), Some((Up, 5)), Up),
            (Some((Up, 9)), Some((Down, 5)), Up),
            (Some((Unknown, 9)), Some((Down, 5)), Down),
            (Some((Suspect, 9)), Some((Suspect, 5)), Suspect),
            (Some((Suspect, 9)), Some((Down, 5)), Suspect),
        ];
        for (gateway, own, expected) in table_of {
            let gateway = gateway.map(|(state, rtt)| table(state, rtt)).unwrap_or_default();
            let own: BTreeMap<_, _> = own
                .map(|(state, rtt)| (cluster("gke"), link(state, rtt)))
                .into_iter()
                .collect();
            let joined = Joined::default().observe(Instant::now(), &fixtures::snapshot(), &gateway, &own);
            assert_eq!(
                joined.links[&cluster("gke")].state,
                expected,
                "{gateway:?} {own:?}"
            );
            assert!(!joined.links.contains_key(&cluster("home")));
        }
    }

    #[test]
    fn the_grace_of_a_lost_cluster_is_counted() {
        let mut snapshot = fixtures::snapshot();
        snapshot.clusters.get_mut("gke").unwrap().lease = Lease::Lost;
        let start = Instant::now();
        let own = BTreeMap::from([(cluster("gke"), link(Down, 5))]);
        let mut joined = Joined::default();
        for (seconds, left) in [(0, Some(10)), (4, Some(6)), (10, None)] {
            let now = start + Duration::from_secs(seconds);
            let links = joined.observe(now, &snapshot, &LinkTable::new(), &own);
            assert_eq!(
                links.links[&cluster("gke")].both_lost_for,
                Some(Duration::from_secs(seconds))
            );
            assert_eq!(
                links.changes_in,
                left.map(Duration::from_secs),
                "after {seconds} s"
            );
        }
        assert_eq!(WITHDRAW_GRACE, Duration::from_secs(10));
    }

    #[test]
    fn only_a_loss_moves_a_flow() {
        for (before, after, moves) in [
            (Up, Suspect, true),
            (Unknown, Down, true),
            (Suspect, Down, false),
            (Up, Up, false),
            (Down, Up, false),
        ] {
            assert_eq!(turned_doubtful(before, after), moves, "{before:?} {after:?}");
        }
    }
}
