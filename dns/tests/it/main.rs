//! `clusterset.local` as a client sees it.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests fail by panicking, and start at any instant"
)]

mod answers;
mod fixture;
mod packets;
mod server;
mod zones;
