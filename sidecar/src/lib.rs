//! The sidecar of one workload: it chooses the endpoint of each new flow by itself, and moves on when that one fails.
//!
//! - Pure: [`config`].
//! - `shell`: sockets, tunnels and tasks around them. [`run`] is the whole role.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests fail by panicking"))]

pub mod config;
mod shell;

pub use config::{Config, Section};
pub use shell::run::{Error, run};
