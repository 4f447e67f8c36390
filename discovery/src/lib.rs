//! The agent: publishes what its cluster exports, imports what all clusters export, serves the snapshot.
//!
//! - Pure: [`manifest`] (YAML → objects), [`sightings`] (UIDs and times of exports), [`export_view`] (objects → exports),
//!   [`publish`] (exports → messages), [`watched`] (messages → state of the clusterset), [`import_view`] (state → imports),
//!   [`vip`] (who holds which address), [`reconcile`] (all of it → the next snapshot), [`cache`] (state ↔ bytes), [`config`].
//! - [`shell`]: the manifest directory, the broker session, `agent.sock`, the identity, `run` and `join`.
//!
//! ```text
//! directory ─▶ manifest ─▶ export_view ─▶ publish ─▶ session ═▶ broker
//!                              │                        │
//!                              ▼                        ▼
//!              agent.sock ◀─ snapshot ◀─ import_view ◀─ watched ─▶ cache
//! ```
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests fail by panicking"))]

pub mod cache;
pub mod condition;
pub mod config;
pub mod export_view;
pub mod import_view;
pub mod manifest;
pub mod publish;
pub mod reconcile;
pub mod shell;
pub mod sightings;
pub mod vip;
pub mod watched;

pub use config::{Config, Section};
pub use shell::join::{JoinArgs, JoinError, Joined, join, leave};
pub use shell::run::{Error, run};
