//! What must hold at every tick, one file an invariant. Safety needs no help; liveness ([`convergence`], [`withdrawal`]) is
//! asked for once everything is healed.

pub mod acknowledged;
pub mod convergence;
pub mod drills;
pub mod grants;
pub mod leases;
pub mod names;
pub mod versions;
pub mod vips;
pub mod withdrawal;

use std::time::{Duration, Instant};

use crate::agent::Agent;
use crate::broker::Broker;
use crate::gateway::Gateway;
use crate::history::History;
use crate::scene::Fact;

/// Everything an invariant may look at.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Simulated time.
    pub now: Duration,
    /// The monotonic clock.
    pub instant: Instant,
    /// What was committed.
    pub history: &'a History,
    /// The brokers.
    pub brokers: &'a [Broker],
    /// The agents, by number.
    pub agents: &'a [Agent],
    /// The gateways, by number.
    pub gateways: &'a [Gateway],
}

/// Something that must hold.
pub trait Invariant: std::fmt::Debug {
    /// Its name in a report.
    fn name(&self) -> &'static str;

    /// Judges what happened.
    ///
    /// # Errors
    /// What is wrong.
    fn judge(&mut self, _fact: &Fact, _view: View<'_>) -> Result<(), String> {
        Ok(())
    }

    /// Judges the world as it stands at the end of a tick.
    ///
    /// # Errors
    /// What is wrong.
    fn tick(&mut self, _view: View<'_>) -> Result<(), String> {
        Ok(())
    }
}

/// All of them.
#[must_use]
pub fn all() -> Vec<Box<dyn Invariant>> {
    vec![
        Box::new(acknowledged::Acknowledged::default()),
        Box::new(versions::Versions::default()),
        Box::new(vips::Vips::default()),
        Box::new(names::Names::default()),
        Box::new(grants::Grants),
        Box::new(drills::Drills::default()),
        Box::new(leases::Leases),
    ]
}
