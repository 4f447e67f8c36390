//! The agent: publishes what its cluster exports, imports what all clusters export, serves the snapshot.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests fail by panicking"))]

pub mod condition;
pub mod export_view;
pub mod manifest;
pub mod sightings;
pub mod vip;
