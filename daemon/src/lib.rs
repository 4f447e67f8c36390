//! The chassis every role of Tombolo shares. It knows no domain type.
//!
//! - Pure: [`backoff`], [`resume`], [`log_limit`].
//! - Bookkeeping that tasks share: [`ready`] (what still keeps the process from serving), [`shutdown`] (what still
//!   keeps it from ending).
//! - [`seam`]: network, disk, clock and entropy as traits, so that the simulation can stand in for the host.
//! - `shell`: what touches the host: [`admin`], [`config`], [`signals`], [`supervise`], [`telemetry`], [`uds`].

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests fail by panicking"))]
#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, reason = "a test says what time it is")
)]

pub mod backoff;
pub mod log_limit;
pub mod ready;
pub mod resume;
pub mod seam;
pub mod shell;
pub mod shutdown;

pub use ready::Readiness;
pub use seam::Seams;
pub use shutdown::Shutdown;

pub use shell::{admin, config, signals, supervise, telemetry, uds};
