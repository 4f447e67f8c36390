//! DNS for `clusterset.local`: the MCS DNS specification 1.0.0, answered from the snapshot.
//!
//! - Pure: [`signals`] (lease and link → verdict), [`service`] (import → names), [`zone`] (snapshot → index), [`answer`]
//!   (question → answer), [`fast`], [`encode`] and [`plain`] (octets → octets), [`limit`] (who has had enough).
//! - [`shell`]: sockets, threads, upstreams, feeds.
//!
//! ```text
//! snapshot, links ─▶ signals ─▶ zone ──swap──▶ udp threads, tcp tasks ─▶ respond ─▶ fast | plain ─▶ answer
//!                                                        └─ outside clusterset.local ─▶ forward ─▶ upstreams
//! ```
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::disallowed_methods,
        reason = "tests fail by panicking, and start at any instant"
    )
)]

pub mod answer;
pub mod edns;
pub mod encode;
pub mod fast;
#[cfg(test)]
mod fixture;
pub mod limit;
pub mod name;
pub mod plain;
pub mod respond;
pub mod service;
pub mod shell;
pub mod signals;
pub mod zone;

pub use shell::run::{Config, Error, Feeds, Section, run, serve};
