//! Signals of the host.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::seam::clock::Clock;
use crate::shutdown::Shutdown;
use crate::supervise::TaskResult;

/// Exit code after a second signal: what a shell reports for a process that SIGINT ended (128 + 2).
pub const IMPATIENT_EXIT_CODE: i32 = 130;

/// SIGTERM and SIGINT, caught from [`Signals::install`] on.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes over both signals. Call it before anything that takes long, so that a signal during the start drains too.
    pub fn install() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Begins the drain at the first signal and ends the process at the second. Never returns; run it as a companion.
    pub async fn run(mut self, shutdown: Shutdown, clock: Arc<dyn Clock>) -> TaskResult {
        let name = self.next().await;
        tracing::info!(signal = name, "draining; a second signal exits at once");
        shutdown.begin(clock.now());
        let name = self.next().await;
        tracing::warn!(signal = name, remaining = %shutdown.held(), "second signal; exiting without waiting");
        std::process::exit(IMPATIENT_EXIT_CODE);
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
