//! A broker's disk: what was written, and what of it a crash leaves.

use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;

use crate::mutant::Mutant;
use crate::scene::Scene;

/// Log entries kept behind a snapshot, so that a broker that was away for a moment needs none.
const LOG_KEPT: u64 = 8;

/// One entry of the log; no batch: a new leader's first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Term of the leader that appended it.
    pub term: u64,
    /// Encoded.
    pub batch: Option<Bytes>,
}

/// The content of the disk.
#[derive(Debug, Clone, Default)]
pub struct Content {
    /// Raft's term.
    pub term: u64,
    /// The vote in it.
    pub voted: Option<u64>,
    /// (index, term) of the snapshot.
    pub base: (u64, u64),
    /// The snapshot.
    pub body: Option<Bytes>,
    /// (index, term) right before the first entry.
    behind: (u64, u64),
    entries: Vec<Entry>,
}

/// The disk: what the process wrote, and what is safe.
#[derive(Debug, Default)]
pub struct Disk {
    /// As the process sees it.
    pub written: Content,
    durable: Content,
    /// Index of the last entry that it says is safe.
    claimed: u64,
    sync_at: Option<Duration>,
}

impl Content {
    /// (index, term) of the last entry.
    #[must_use]
    pub fn last(&self) -> (u64, u64) {
        self.entries.last().map_or(self.behind, |entry| {
            (self.behind.0 + self.entries.len() as u64, entry.term)
        })
    }

    /// The term of the entry at `index`, as far as the log or the snapshot reaches back.
    #[must_use]
    pub fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.behind.0 {
            return Some(self.behind.1);
        }
        if index == self.base.0 {
            return Some(self.base.1);
        }
        self.entry(index).map(|entry| entry.term)
    }

    /// The entry at `index`.
    #[must_use]
    pub fn entry(&self, index: u64) -> Option<&Entry> {
        let at = index.checked_sub(self.behind.0 + 1)?;
        self.entries.get(usize::try_from(at).ok()?)
    }

    /// At most `most` entries from `index` on.
    #[must_use]
    pub fn from(&self, index: u64, most: usize) -> Vec<Entry> {
        (index..)
            .map_while(|at| self.entry(at).cloned())
            .take(most)
            .collect()
    }

    /// Whether the log holds `previous`, or the snapshot covers it.
    #[must_use]
    pub fn agrees(&self, previous: (u64, u64)) -> bool {
        previous.0 <= self.base.0 || self.term_at(previous.0) == Some(previous.1)
    }
}

impl Disk {
    /// Appends an entry; its index.
    pub fn append(&mut self, entry: Entry) -> u64 {
        self.written.entries.push(entry);
        self.written.last().0
    }

    /// Takes a leader's entries behind `previous`; what contradicts them goes.
    pub fn adopt(&mut self, previous: u64, entries: Vec<Entry>) {
        for (index, entry) in (previous + 1..).zip(entries) {
            if index <= self.written.behind.0.max(self.written.base.0) {
                continue;
            }
            match self.written.entry(index) {
                Some(known) if known.term == entry.term => {}
                _ => {
                    let keep = usize::try_from(index - self.written.behind.0 - 1).unwrap_or(usize::MAX);
                    self.written.entries.truncate(keep);
                    self.written.entries.push(entry);
                }
            }
        }
    }

    /// A snapshot at `index`, which was applied.
    pub fn compact(&mut self, index: u64, body: Bytes) {
        let Some(term) = self.written.term_at(index) else {
            return;
        };
        self.written.base = (index, term);
        self.written.body = Some(body);
        let behind = index.saturating_sub(LOG_KEPT);
        if behind > self.written.behind.0
            && let Some(term) = self.written.term_at(behind)
        {
            let drop = usize::try_from(behind - self.written.behind.0).unwrap_or(usize::MAX);
            self.written.entries.drain(..drop);
            self.written.behind = (behind, term);
        }
    }

    /// A snapshot of another broker, in place of everything up to it. Entries behind it stay when the log agrees with it
    /// (Raft §7): this broker may have told the leader that it has them.
    pub fn install(&mut self, at: (u64, u64), body: Bytes) {
        let kept = match self.written.term_at(at.0) {
            Some(term) if term == at.1 => self.written.from(at.0 + 1, usize::MAX),
            _ => Vec::new(),
        };
        self.written.base = at;
        self.written.behind = at;
        self.written.body = Some(body);
        self.written.entries = kept;
    }

    /// Begins a sync; false when one is under way.
    pub fn begin_sync(&mut self, scene: &mut Scene) -> bool {
        if self.sync_at.is_some() {
            return false;
        }
        self.sync_at = Some(scene.now + Duration::from_micros(scene.rng.random_range(500..8_000)));
        true
    }

    /// When the sync ends.
    #[must_use]
    pub fn sync_at(&self) -> Duration {
        self.sync_at.unwrap_or_default()
    }

    /// Ends the sync that is due; false when none is.
    pub fn end_sync(&mut self, scene: &mut Scene) -> bool {
        if self.sync_at.is_none_or(|at| at > scene.now) {
            return false;
        }
        self.sync_at = None;
        self.claimed = self.written.last().0;
        if !scene.has(Mutant::SkippedSync) {
            self.durable = self.written.clone();
        }
        true
    }

    /// Index of the last entry that this broker may count as its own.
    #[must_use]
    pub fn durable_last(&self) -> u64 {
        self.claimed
    }

    /// A crash: what was synced stays, and of the entries appended since, any first part may have reached the disk.
    pub fn crash(&mut self, rng: &mut StdRng) {
        let written = std::mem::replace(&mut self.written, self.durable.clone());
        self.sync_at = None;
        let last = self.written.last();
        let same_history = written.term == self.written.term && written.term_at(last.0) == Some(last.1);
        if same_history && written.last().0 > last.0 {
            let most = usize::try_from(written.last().0 - last.0).unwrap_or(usize::MAX);
            let torn = rng.random_range(0..=most);
            self.written.entries.extend(written.from(last.0 + 1, torn));
        }
        self.durable = self.written.clone();
        self.claimed = self.written.last().0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(terms: &[u64]) -> Disk {
        let mut disk = Disk::default();
        for &term in terms {
            disk.append(Entry { term, batch: None });
        }
        disk
    }

    #[test]
    fn a_late_snapshot_leaves_what_was_acknowledged_behind_it() {
        let mut disk = disk(&[1, 1, 2, 2]);
        disk.install((3, 2), Bytes::new());
        assert_eq!(disk.written.last(), (4, 2));
        assert!(disk.written.agrees((4, 2)));
    }

    #[test]
    fn a_snapshot_takes_the_place_of_a_log_that_contradicts_it() {
        let mut disk = disk(&[1, 1, 1, 1]);
        disk.install((3, 2), Bytes::new());
        assert_eq!(disk.written.last(), (3, 2));
    }
}
