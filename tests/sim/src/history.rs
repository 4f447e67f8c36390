//! What the group has committed, as the harness itself replays it: the truth that every view is compared with.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tombolo_broker::state::{self, State};
use tombolo_broker::stored::decode_batch;

use crate::scene::Fact;
use crate::trace::digest_of;

/// The committed log and the state behind each of its entries.
#[derive(Debug, Default)]
pub struct History {
    states: BTreeMap<u64, Arc<State>>,
    entries: BTreeMap<u64, (u64, u64)>,
    /// When each drill began, by id.
    pub drills: BTreeMap<u64, (Duration, Duration)>,
}

impl History {
    /// The newest state.
    #[must_use]
    pub fn newest(&self) -> Arc<State> {
        self.states
            .last_key_value()
            .map(|(_, state)| Arc::clone(state))
            .unwrap_or_default()
    }

    /// The state at `revision`.
    #[must_use]
    pub fn at(&self, revision: u64) -> Option<Arc<State>> {
        self.states
            .range(..=revision)
            .next_back()
            .map(|(_, state)| Arc::clone(state))
    }

    /// Takes in what a broker applied at `now`.
    ///
    /// # Errors
    /// When two brokers applied different entries at one position, or one was left out.
    pub fn take(&mut self, fact: &Fact, now: Duration) -> Result<(), String> {
        let Fact::Applied {
            broker,
            index,
            term,
            entry,
        } = fact
        else {
            return Ok(());
        };
        let digest = entry.as_ref().map_or(0, |entry| digest_of(entry));
        if let Some(known) = self.entries.get(index) {
            if *known == (*term, digest) {
                return Ok(());
            }
            return Err(format!(
                "broker {broker} applied another entry at {index}: term {term}, before it was term {}",
                known.0
            ));
        }
        let before = self.newest();
        if *index != before.applied + 1 {
            return Err(format!(
                "broker {broker} applied {index} although {} is not committed",
                index - 1
            ));
        }
        self.entries.insert(*index, (*term, digest));
        let mut after = before.as_ref().clone();
        after.applied = *index;
        if let Some(batch) = entry {
            let batch = decode_batch(batch.clone()).map_err(|error| error.to_string())?;
            state::apply(&mut after, *index, batch);
        }
        if let Some(running) = &after.drills.running {
            self.drills
                .entry(running.drill.id.0)
                .or_insert((now, running.drill.total()));
        }
        self.states.insert(*index, Arc::new(after));
        Ok(())
    }
}
