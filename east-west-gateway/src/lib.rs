//! The east-west gateway: carries flows between the clusters of a clusterset, and lets in only what is exported.
//!
//! - Pure: [`admission`] (what a peer may reach), [`route`] (where a new flow goes, and when it moves), [`links`] (the state of
//!   the path to every other cluster, and who dials whom), [`listeners`] (where to listen), [`drill_plan`] (a drill's
//!   requests).
//! - `shell`: sockets, tunnels and tasks around them. [`run`] is the whole role.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests fail by panicking"))]

pub mod admission;
pub mod drill_plan;
#[cfg(test)]
mod fixtures;
pub mod links;
pub mod listeners;
pub mod route;
mod shell;

pub use shell::{Config, Error, LinkProfileName, Section, Transport, run};
