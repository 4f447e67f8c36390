//! Which entries changed after which revision, bounded.
//!
//! It remembers keys, not values: a watcher that is behind reads the present value of each key once, so that ten
//! changes of one export cost it one. What is older than the bound is forgotten, and whoever needs it starts over.

use std::collections::{BTreeSet, VecDeque};

use crate::state::EntryKey;

/// Changes in the order of the log.
#[derive(Debug)]
pub struct WatchLog {
    capacity: usize,
    /// Changes at or before this revision are forgotten.
    compacted: u64,
    changes: VecDeque<(u64, EntryKey)>,
}

/// What a watcher at some revision has missed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missed {
    /// These entries changed, or nothing did.
    Changes(BTreeSet<EntryKey>),
    /// The log no longer reaches back that far, or never was there: send everything.
    Compacted,
}

impl WatchLog {
    /// An empty log that knows of nothing at or before `revision`.
    #[must_use]
    pub fn new(capacity: usize, revision: u64) -> Self {
        Self {
            capacity,
            compacted: revision,
            changes: VecDeque::new(),
        }
    }

    /// Adds what the log entry `revision` changed. Revisions never go back.
    pub fn push(&mut self, revision: u64, changed: impl IntoIterator<Item = EntryKey>) {
        self.changes
            .extend(changed.into_iter().map(|key| (revision, key)));
        while self.changes.len() > self.capacity {
            let Some((forgotten, _)) = self.changes.pop_front() else {
                return;
            };
            self.compacted = forgotten;
        }
        // A revision is forgotten as a whole: half of one is no state that ever was.
        while self
            .changes
            .front()
            .is_some_and(|(revision, _)| *revision == self.compacted)
        {
            self.changes.pop_front();
        }
    }

    /// What changed after `revision`. A revision of the future (of another history) counts as compacted.
    #[must_use]
    pub fn since(&self, revision: u64, applied: u64) -> Missed {
        if revision < self.compacted || revision > applied {
            return Missed::Compacted;
        }
        let start = self.changes.partition_point(|(changed, _)| *changed <= revision);
        Missed::Changes(self.changes.range(start..).map(|(_, key)| key.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use tombolo_clusterset::DrillId;

    use super::*;

    fn key(n: u64) -> EntryKey {
        EntryKey::Drill(DrillId(n))
    }

    fn changes(keys: &[u64]) -> Missed {
        Missed::Changes(keys.iter().copied().map(key).collect())
    }

    #[test]
    fn a_watcher_gets_each_changed_key_once() {
        let mut log = WatchLog::new(10, 5);
        log.push(6, [key(1)]);
        log.push(7, []);
        log.push(8, [key(1), key(2)]);
        for (revision, expected) in [
            (4, Missed::Compacted),
            (5, changes(&[1, 2])),
            (6, changes(&[1, 2])),
            (8, changes(&[])),
            (9, Missed::Compacted),
        ] {
            assert_eq!(log.since(revision, 8), expected, "since {revision}");
        }
    }

    #[test]
    fn revisions_are_forgotten_as_a_whole() {
        let mut log = WatchLog::new(3, 0);
        log.push(1, [key(1), key(2)]);
        log.push(2, [key(3), key(4)]);
        assert_eq!(log.since(0, 2), Missed::Compacted);
        assert_eq!(log.since(1, 2), changes(&[3, 4]));
        log.push(3, [key(5), key(6), key(7), key(8)]);
        assert_eq!(
            log.since(2, 3),
            Missed::Compacted,
            "one entry alone is over the bound"
        );
        assert_eq!(log.since(3, 3), changes(&[]));
    }
}
