//! The sidecar of one workload: it chooses the endpoint of each new flow by itself, and moves on when that one fails.
//!
//! - Pure: [`config`], [`plan`] (the ways to a backend, in order), [`pools`] (one tunnel per remote gateway), [`signals`] (its
//!   own view of the links), [`listeners`] (where to listen), [`sniff`] (TLS or plain).
//! - `shell`: sockets, tunnels and tasks around them. [`run`] is the whole role.
//!
//! ```text
//! client ─▶ outbound ─▶ plan ─▶ endpoint of this cluster (plain, or mTLS where the export says so)
//!                          ├──▶ tunnel to a remote gateway (pools)
//!                          └──▶ VIP at the own gateway
//! peer ──▶ inbound (mTLS, or plain where permitted) ──▶ local application
//! ```
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests fail by panicking"))]

pub mod config;
#[cfg(test)]
mod fixtures;
pub mod listeners;
pub mod metrics;
pub mod plan;
pub mod pools;
mod shell;
pub mod signals;
pub mod sniff;

pub use config::{Config, Section};
pub use shell::run::{Error, run};
