//! Whole gateways over real loopback: each with a data directory, an agent of the test, and an identity from a real chain.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod agent;
mod backend;
mod drills;
mod flows;
mod lifecycle;
mod world;
