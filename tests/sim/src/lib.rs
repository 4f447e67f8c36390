//! The deterministic simulation: the real state machine, lease table, watch log, reconciler, publisher, links, route,
//! admission and zone on simulated time and network. One seed is one run.
//!
//! - [`world`]: one run, in two phases. [`faults`], [`operator`], [`fixture`]: what happens in it.
//! - [`scene`], [`net`], [`disk`], [`raft`]: time, network, disks and the log, all modelled.
//! - [`broker`] (with [`publishing`], [`watching`]), [`agent`], [`gateway`] (with [`tunnels`]): a thin shell each, around
//!   the product's pure code.
//! - [`history`], [`invariants`]: the truth, and what must hold. [`mutant`]: bugs put in on purpose. [`trace`]: the digest.
//!
//! Why a scheduler of our own and not turmoil: `docs/decisions/0005-the-simulation-schedules-itself.md`.

pub mod agent;
pub mod broker;
pub mod disk;
pub mod faults;
pub mod fixture;
pub mod gateway;
pub mod history;
pub mod invariants;
pub mod mutant;
pub mod net;
pub mod operator;
pub mod publishing;
pub mod raft;
pub mod scene;
pub mod trace;
pub mod tunnels;
pub mod watching;
pub mod world;

pub use mutant::Mutant;
pub use world::{Report, Violation};

/// Runs `seed`, with a bug put in or none.
#[must_use]
pub fn run(seed: u64, mutant: Option<Mutant>) -> Report {
    world::World::new(seed, mutant).run()
}
