//! The broker: one of the 1, 3 or 5 Raft-replicated servers that hold membership, trust, exports, policy and drills.
//!
//! - Pure: [`command`] (what the log carries), [`state`] (what it leads to), [`stored`] (their bytes), [`lease`] (the
//!   leader's table), [`watch_log`] (what a watcher has missed), [`bounds`].
//! - `shell`: Raft and its storage, the gRPC services, the broker's own identity, and [`run`] that ties them together.
//!
//! A write enters at any broker, is forwarded to the leader, and is acknowledged once it is committed and applied
//! (DESIGN §4.6). Watchers are served by every broker from its own applied state, and told whether it is fresh.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests fail by panicking"))]

pub mod bounds;
pub mod command;
pub mod lease;
pub mod shell;
pub mod state;
pub mod stored;
pub mod watch_log;

pub use shell::config::{Config, Profile};
pub use shell::restore::{RestoreError, RestoreSummary, restore};
pub use shell::run::{Error, run};
