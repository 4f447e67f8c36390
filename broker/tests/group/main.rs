//! Broker groups over real loopback sockets.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod backup;
mod harness;
mod membership;
mod several;
mod sync;
