//! A drill ends at its expiry: in the committed state as long as there is a leader, and in every cluster whoever died.

use std::time::Duration;

use super::{Invariant, View};
use crate::scene::Fact;

/// Time for the leader's tick, its commit, and the way to the agents.
const SLACK: Duration = Duration::from_secs(4);

/// The invariant.
#[derive(Debug, Default)]
pub struct Drills {
    led_since: Option<Duration>,
}

impl Invariant for Drills {
    fn name(&self) -> &'static str {
        "a drill ends at its expiry"
    }

    fn judge(&mut self, fact: &Fact, view: View<'_>) -> Result<(), String> {
        let Fact::Rehearsed { cluster, drill } = fact else {
            return Ok(());
        };
        let Some((began, total)) = view.history.drills.get(drill) else {
            return Err(format!(
                "c{cluster} rehearses drill {drill}, which was never started"
            ));
        };
        // A cluster counts from its receipt, and receives nothing after the expiry.
        if view.now > *began + *total * 2 + SLACK {
            return Err(format!(
                "c{cluster} still rehearses drill {drill}, which began at {began:?} for {total:?}"
            ));
        }
        Ok(())
    }

    fn tick(&mut self, view: View<'_>) -> Result<(), String> {
        let led = view
            .brokers
            .iter()
            .any(|broker| broker.is_up && broker.raft.leads() && broker.raft.is_fresh(view.now));
        self.led_since = if led {
            self.led_since.or(Some(view.now))
        } else {
            None
        };
        let steady = self
            .led_since
            .is_some_and(|since| view.now.saturating_sub(since) >= SLACK);
        let state = view.history.newest();
        let Some(running) = state.drills.running.as_ref().filter(|_| steady) else {
            return Ok(());
        };
        let id = running.drill.id.0;
        match view.history.drills.get(&id) {
            Some((began, total)) if view.now > *began + *total + SLACK => Err(format!(
                "drill {id} began at {began:?} for {total:?}, and runs at {:?}",
                view.now
            )),
            _ => Ok(()),
        }
    }
}
