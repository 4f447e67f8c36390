//! The leader's lease table, on its monotonic clock (DESIGN §7).
//!
//! Only the leader has one. It says when a member has been silent for a full term; the end of a lease is then a log
//! entry, and only that entry counts. A new leader knows nothing of what its predecessor heard, so it gives every lease one
//! full term before it may end one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tombolo_clusterset::ClusterId;

/// Deadlines of the leases that are alive. Call order: [`LeaseTable::begin`] when leadership starts, then
/// [`LeaseTable::renew`] and [`LeaseTable::expired`] in any order.
#[derive(Debug, Clone)]
pub struct LeaseTable {
    term: Duration,
    deadlines: BTreeMap<ClusterId, Instant>,
}

impl LeaseTable {
    /// Begins a leadership at `now` over the members whose leases are alive in the log.
    #[must_use]
    pub fn begin(term: Duration, now: Instant, alive: impl IntoIterator<Item = ClusterId>) -> Self {
        Self {
            term,
            deadlines: alive.into_iter().map(|cluster| (cluster, now + term)).collect(),
        }
    }

    /// A sign of life of `cluster`, whose lease the log calls alive or not.
    pub fn renew(&mut self, cluster: &ClusterId, now: Instant) {
        self.deadlines.insert(cluster.clone(), now + self.term);
    }

    /// Brings the table in line with the log: whoever is alive there has a deadline here, whoever is not has none.
    pub fn align<'a>(&mut self, now: Instant, alive: impl IntoIterator<Item = &'a ClusterId>) {
        let mut known = std::mem::take(&mut self.deadlines);
        for cluster in alive {
            let deadline = known.remove(cluster).unwrap_or(now + self.term);
            self.deadlines.insert(cluster.clone(), deadline);
        }
    }

    /// Members that have been silent for a full term at `now`. They stay until the log says that they are lost.
    #[must_use]
    pub fn expired(&self, now: Instant) -> Vec<ClusterId> {
        self.deadlines
            .iter()
            .filter(|(_, deadline)| **deadline <= now)
            .map(|(cluster, _)| cluster.clone())
            .collect()
    }

    /// Leases that are alive.
    #[must_use]
    pub fn len(&self) -> usize {
        self.deadlines.len()
    }

    /// Whether no lease is alive.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.deadlines.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: Duration = Duration::from_secs(3);

    fn id(text: &str) -> ClusterId {
        ClusterId::parse(text).unwrap()
    }

    #[test]
    fn a_new_leader_gives_one_full_term() {
        let start = Instant::now();
        let table = LeaseTable::begin(TERM, start, [id("a"), id("b")]);
        assert_eq!(table.expired(start + TERM - Duration::from_millis(1)), []);
        assert_eq!(table.expired(start + TERM), [id("a"), id("b")]);
    }

    #[test]
    fn a_renewal_moves_only_its_own_deadline() {
        let start = Instant::now();
        let mut table = LeaseTable::begin(TERM, start, [id("a"), id("b")]);
        table.renew(&id("a"), start + Duration::from_secs(2));
        assert_eq!(table.expired(start + TERM), [id("b")]);
        assert_eq!(table.expired(start + Duration::from_secs(5)), [id("a"), id("b")]);
    }

    #[test]
    fn the_log_decides_who_has_a_lease() {
        let start = Instant::now();
        let mut table = LeaseTable::begin(TERM, start, [id("a"), id("b")]);
        let later = start + Duration::from_secs(1);
        table.align(later, [&id("b"), &id("c")]);
        assert_eq!(
            table.expired(start + TERM),
            [id("b")],
            "a left, c has a full term from its appearance"
        );
        assert_eq!(table.expired(later + TERM), [id("b"), id("c")]);
        assert_eq!(table.len(), 2);
    }
}
