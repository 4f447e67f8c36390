//! A subscription that can resume: what arrives on it, and the index that it keeps.
//!
//! The stream is a sequence of passes and deltas:
//!
//! ```text
//! Init  InitApply*  InitDone(r)      the whole, as of revision r; what it does not name is gone
//! (Apply | Delete)*                  each change after r, in order
//! ```
//!
//! After a disconnect the subscriber asks for what follows [`Index::resume_from`]. A source that still has it sends
//! deltas at once; one that has compacted it away sends a new pass.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where a source is in its history. Grows with every change; a change can touch several keys under one revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// Keys that one index holds at most: four times the bound of the design (250,000 endpoints), so that reaching it means
/// a broken source and not growth.
pub const MAX_KEYS: usize = 1_000_000;

/// One word of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<K, V> {
    /// A pass over everything begins. What is known stays valid until [`Event::InitDone`]; an unfinished earlier pass is
    /// void.
    Init,
    /// An item of the pass. Changes nothing yet.
    InitApply {
        /// What it is about.
        key: K,
        /// Its value.
        value: V,
    },
    /// The pass is complete: it replaces everything at once, and keys that it did not name are deleted.
    InitDone {
        /// What the pass reflects.
        revision: Revision,
    },
    /// `key` has a new value. Only outside of a pass. May repeat.
    Apply {
        /// What it is about.
        key: K,
        /// Its value.
        value: V,
        /// When it changed.
        revision: Revision,
    },
    /// `key` is gone. Only outside of a pass. May repeat, and may name a key that is not known.
    Delete {
        /// What it is about.
        key: K,
        /// When it went.
        revision: Revision,
    },
}

/// What an event changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<K, V> {
    /// `key` is new or has another value.
    Apply {
        /// What it is about.
        key: K,
        /// Its value.
        value: V,
    },
    /// `key` is gone.
    Delete {
        /// What it was about.
        key: K,
    },
}

/// The source broke the contract. The index is as it was; drop the stream and subscribe anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfOrder {
    /// An item or the end of a pass that never began.
    #[error("the source sent part of a pass without its Init; subscribe anew")]
    OutsidePass,
    /// A delta in the midst of a pass, or before the first.
    #[error("the source sent a delta before its pass was done; subscribe anew")]
    BeforeInitDone,
    /// A pass that reflects less than is known.
    #[error("the source went back from revision {} to {}; it was restored or is another one", .known.0, .offered.0)]
    WentBack {
        /// The latest revision seen.
        known: Revision,
        /// What the source offered.
        offered: Revision,
    },
    /// More keys than fit.
    #[error("the source sent more than {limit} keys; it is broken, or this build's bound is too low")]
    TooManyKeys {
        /// How many fit.
        limit: usize,
    },
}

/// The state at the receiving end of a subscription.
///
/// - feed it: [`Index::apply`] each event, in order; [`Index::disconnected`] when the stream ends
/// - ask it: [`Index::resume_from`] for the next subscription, [`Index::get`], [`Index::iter`], [`Index::is_synced`]
#[derive(Clone, Debug)]
pub struct Index<K, V> {
    live: BTreeMap<K, V>,
    /// `Some` in the midst of a pass.
    pass: Option<BTreeMap<K, V>>,
    /// The latest revision seen; `None` before the first pass.
    latest: Option<Revision>,
    /// Everything up to here has been seen whole: an event at `latest` may not have been the last of it.
    whole: Option<Revision>,
    limit: usize,
}

impl<K: Ord + Clone, V: PartialEq + Clone> Index<K, V> {
    /// Empty: the first subscription asks for everything. Holds at most [`MAX_KEYS`].
    pub fn new() -> Index<K, V> {
        Index::with_limit(MAX_KEYS)
    }

    /// Holds at most `limit` keys.
    pub fn with_limit(limit: usize) -> Index<K, V> {
        Index {
            live: BTreeMap::new(),
            pass: None,
            latest: None,
            whole: None,
            limit,
        }
    }

    /// Goes on from what an earlier process saved: `items` as of `revision`.
    pub fn restored(items: impl IntoIterator<Item = (K, V)>, revision: Revision) -> Index<K, V> {
        let live = items.into_iter().collect();
        Index {
            live,
            latest: Some(revision),
            whole: Some(revision),
            ..Index::new()
        }
    }

    /// Takes in one event and says what it changed, in key order. Values that stay the same are no change.
    pub fn apply(&mut self, event: Event<K, V>) -> Result<Vec<Change<K, V>>, OutOfOrder> {
        match event {
            Event::Init => {
                self.pass = Some(BTreeMap::new());
                Ok(Vec::new())
            }
            Event::InitApply { key, value } => self.init_apply(key, value),
            Event::InitDone { revision } => self.init_done(revision),
            Event::Apply { key, value, revision } => self.delta(key, Some(value), revision),
            Event::Delete { key, revision } => self.delta(key, None, revision),
        }
    }

    /// The stream ended: an unfinished pass is void, what was known stays.
    pub fn disconnected(&mut self) {
        self.pass = None;
    }

    /// What the next subscription asks for: all changes after this revision; `None` asks for a pass.
    pub fn resume_from(&self) -> Option<Revision> {
        self.whole
    }

    /// Forgets where it was, but not what it knows: the next subscription asks for a pass. For
    /// [`OutOfOrder::WentBack`], when the source is known to have been restored.
    pub fn start_over(&mut self) {
        self.pass = None;
        self.latest = None;
        self.whole = None;
    }

    /// Whether a first pass is done, so that the index can be relied on.
    pub fn is_synced(&self) -> bool {
        self.latest.is_some()
    }

    /// The value of `key`.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.live.get(key)
    }

    /// All of it, in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.live.iter()
    }

    /// How many keys it holds.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    fn init_apply(&mut self, key: K, value: V) -> Result<Vec<Change<K, V>>, OutOfOrder> {
        let pass = self.pass.as_mut().ok_or(OutOfOrder::OutsidePass)?;
        if pass.len() >= self.limit && !pass.contains_key(&key) {
            return Err(OutOfOrder::TooManyKeys { limit: self.limit });
        }
        pass.insert(key, value);
        Ok(Vec::new())
    }

    fn init_done(&mut self, revision: Revision) -> Result<Vec<Change<K, V>>, OutOfOrder> {
        if self.pass.is_none() {
            return Err(OutOfOrder::OutsidePass);
        }
        if let Some(known) = self.latest.filter(|known| revision < *known) {
            return Err(OutOfOrder::WentBack {
                known,
                offered: revision,
            });
        }
        let next = self.pass.take().unwrap_or_default();
        let changes = difference(&self.live, &next);
        self.live = next;
        self.latest = Some(revision);
        self.whole = Some(revision);
        Ok(changes)
    }

    fn delta(
        &mut self,
        key: K,
        value: Option<V>,
        revision: Revision,
    ) -> Result<Vec<Change<K, V>>, OutOfOrder> {
        let Some(latest) = self.latest.filter(|_| self.pass.is_none()) else {
            return Err(OutOfOrder::BeforeInitDone);
        };
        if revision < latest {
            // A repetition of what is already known, perhaps since overwritten.
            return Ok(Vec::new());
        }
        if value.is_some() && self.live.len() >= self.limit && !self.live.contains_key(&key) {
            return Err(OutOfOrder::TooManyKeys { limit: self.limit });
        }
        if revision > latest {
            self.latest = Some(revision);
            // The stream is in order, so nothing before `revision` is still to come.
            self.whole = Some(Revision(revision.0 - 1));
        }
        let changed = match value {
            Some(value) if self.live.get(&key) == Some(&value) => None,
            Some(value) => {
                self.live.insert(key.clone(), value.clone());
                Some(Change::Apply { key, value })
            }
            None => self.live.remove(&key).map(|_| Change::Delete { key }),
        };
        Ok(changed.into_iter().collect())
    }
}

impl<K: Ord + Clone, V: PartialEq + Clone> Default for Index<K, V> {
    fn default() -> Index<K, V> {
        Index::new()
    }
}

/// What turns `old` into `new`: deletions first, so that what they free can be used again, then the rest; each in key
/// order.
fn difference<K: Ord + Clone, V: PartialEq + Clone>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
) -> Vec<Change<K, V>> {
    let gone = old.keys().filter(|key| !new.contains_key(key));
    let applied = new.iter().filter(|(key, value)| old.get(key) != Some(value));
    gone.map(|key| Change::Delete { key: key.clone() })
        .chain(applied.map(|(key, value)| Change::Apply {
            key: key.clone(),
            value: value.clone(),
        }))
        .collect()
}

#[cfg(test)]
mod tests;
