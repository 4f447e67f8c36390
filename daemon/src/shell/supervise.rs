//! The tasks of a process, by name: one that dies ends the process or is started again by a rule, never silently.

use std::any::Any;
use std::borrow::Cow;
use std::error::Error;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use rand::rngs::StdRng;
use tokio::task::JoinSet;

use crate::backoff::Backoff;
use crate::seam::Seams;
use crate::seam::clock::Clock;
use crate::seam::entropy::Entropy;
use crate::shutdown::{Drained, Shutdown};

/// What a task may fail with.
pub type TaskError = Box<dyn Error + Send + Sync>;

/// How a task ends.
pub type TaskResult = Result<(), TaskError>;

/// Name of a task, in logs and errors.
pub type Name = Cow<'static, str>;

/// Owns the long-lived tasks of a process. Dropping it ends them all.
///
/// Add tasks with a rule, then hand over to [`Supervisor::run_until_shutdown`]:
///
/// | rule | ends before the drain | during the drain |
/// |---|---|---|
/// | [`essential`](Supervisor::essential) | ends the process | waited for |
/// | [`restart`](Supervisor::restart) | starts again after a delay | waited for, not started again |
/// | [`companion`](Supervisor::companion) | ends the process | runs to the very end, then ended |
#[derive(Debug)]
pub struct Supervisor {
    shutdown: Shutdown,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    tasks: JoinSet<(Name, Ending)>,
    companions: JoinSet<(Name, Ending)>,
}

/// Why the process ends, other than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// A task that the process cannot do without returned an error.
    #[error("essential task `{name}` failed: {source}")]
    Failed {
        /// Which one.
        name: Name,
        /// What it said.
        source: TaskError,
    },
    /// It returned although there was no drain.
    #[error(
        "essential task `{name}` ended although nothing asked it to; this is a bug, please report it with the log"
    )]
    Ended {
        /// Which one.
        name: Name,
    },
    /// It panicked.
    #[error("essential task `{name}` panicked: {message}; this is a bug, please report it with the log")]
    Panicked {
        /// Which one.
        name: Name,
        /// The message of the panic.
        message: String,
    },
}

/// How a task came to an end.
#[derive(Debug)]
enum Ending {
    Returned,
    Failed(TaskError),
    Panicked(String),
}

impl Supervisor {
    /// Tasks end with `shutdown`; delays between restarts are drawn from the seams.
    pub fn new(shutdown: Shutdown, seams: &Seams) -> Supervisor {
        Supervisor {
            shutdown,
            clock: seams.clock.clone(),
            entropy: seams.entropy.clone(),
            tasks: JoinSet::new(),
            companions: JoinSet::new(),
        }
    }

    /// The token that ends these tasks.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// Starts a task that the process cannot do without. It ends by itself once the drain begins.
    pub fn essential(
        &mut self,
        name: impl Into<Name>,
        task: impl Future<Output = TaskResult> + Send + 'static,
    ) {
        let name = name.into();
        let guard = self.shutdown.guard(name.clone());
        self.tasks.spawn(async move {
            let _guard = guard;
            (name, ending(task).await)
        });
    }

    /// Starts a task that is started again whenever it ends, until the drain begins. `backoff` spaces the starts; a run
    /// that lasts longer than its maximum counts as a success and resets it.
    pub fn restart<F>(
        &mut self,
        name: impl Into<Name>,
        backoff: Backoff,
        start: impl FnMut() -> F + Send + 'static,
    ) where
        F: Future<Output = TaskResult> + Send + 'static,
    {
        let name = name.into();
        let guard = self.shutdown.guard(name.clone());
        let restarts = Restarts {
            name,
            backoff,
            rng: self.entropy.rng(),
            clock: self.clock.clone(),
            shutdown: self.shutdown.clone(),
        };
        self.tasks.spawn(async move {
            let _guard = guard;
            restarts.run(start).await
        });
    }

    /// Starts an essential task that serves until the process ends, through the drain: the admin server, signals. It is
    /// not waited for.
    pub fn companion(
        &mut self,
        name: impl Into<Name>,
        task: impl Future<Output = TaskResult> + Send + 'static,
    ) {
        let name = name.into();
        self.companions.spawn(async move { (name, ending(task).await) });
    }

    /// Runs until the drain is over: begun by `shutdown`, or here because an essential task died. Then every task and
    /// every drain guard has until the deadline to end and a moment more to reset; what is left is ended and returned by name.
    ///
    /// After a death the drain is the same, and the error says who died. A task that blocks its thread cannot be ended:
    /// leave `main` through [`std::process::exit`], or drop the runtime with `shutdown_background`.
    pub async fn run_until_shutdown(mut self) -> Result<Drained, SuperviseError> {
        let cause = self.until_drain().await;
        if let Some(error) = &cause {
            tracing::error!(%error, "draining because a task died");
            self.shutdown.begin(self.clock.now());
        }
        let drained = self.finish().await;
        if drained.is_clean() {
            tracing::info!("drained");
        } else {
            tracing::warn!(remaining = %drained, "the drain is over; what remains is cut off");
        }
        match cause {
            Some(error) => Err(error),
            None => Ok(drained),
        }
    }

    /// Returns the death that ends the process, or `None` when the drain began otherwise.
    async fn until_drain(&mut self) -> Option<SuperviseError> {
        let ended = tokio::select! {
            biased;
            () = self.shutdown.drain() => return None,
            Some(ended) = self.tasks.join_next() => ended,
            Some(ended) = self.companions.join_next() => ended,
        };
        // A task that saw the drain first has ended as it should.
        let (name, ending) = named(ended);
        match ending {
            Ending::Returned if self.shutdown.is_draining() => None,
            Ending::Returned => Some(SuperviseError::Ended { name }),
            Ending::Failed(source) => Some(SuperviseError::Failed { name, source }),
            Ending::Panicked(message) => Some(SuperviseError::Panicked { name, message }),
        }
    }

    /// Every task holds a drain guard, so the drain is over when they are.
    async fn finish(&mut self) -> Drained {
        let shutdown = self.shutdown.clone();
        let drained = shutdown.drained();
        tokio::pin!(drained);
        let drained = loop {
            tokio::select! {
                Some(ended) = self.tasks.join_next() => log_end(named(ended)),
                drained = &mut drained => break drained,
            }
        };
        while let Some(ended) = self.tasks.try_join_next() {
            log_end(named(ended));
        }
        drained
    }
}

struct Restarts {
    name: Name,
    backoff: Backoff,
    rng: StdRng,
    clock: Arc<dyn Clock>,
    shutdown: Shutdown,
}

impl Restarts {
    async fn run<F>(mut self, mut start: impl FnMut() -> F) -> (Name, Ending)
    where
        F: Future<Output = TaskResult> + Send + 'static,
    {
        loop {
            let started = self.clock.now();
            // `start` runs inside, so that its panic is caught as well.
            let ended = ending(async { start().await }).await;
            if self.shutdown.is_draining() {
                return (self.name, ended);
            }
            if self.clock.now() - started > self.backoff.max() {
                self.backoff.reset();
            }
            let delay = self.backoff.next(&mut self.rng);
            match ended {
                Ending::Returned => {
                    tracing::warn!(task = %self.name, ?delay, "task ended; starting it again")
                }
                Ending::Failed(error) => {
                    tracing::warn!(task = %self.name, %error, ?delay, "task failed; starting it again");
                }
                Ending::Panicked(message) => {
                    tracing::error!(task = %self.name, message, ?delay, "task panicked; starting it again");
                }
            }
            tokio::select! {
                () = self.shutdown.drain() => return (self.name, Ending::Returned),
                () = tokio::time::sleep(delay) => {}
            }
        }
    }
}

async fn ending(task: impl Future<Output = TaskResult>) -> Ending {
    // The task is gone after a panic, so nobody sees the state that it left halfway.
    match AssertUnwindSafe(task).catch_unwind().await {
        Ok(Ok(())) => Ending::Returned,
        Ok(Err(error)) => Ending::Failed(error),
        Err(panic) => Ending::Panicked(panic_message(panic.as_ref())),
    }
}

/// Panics are caught inside, so a join fails only for a task that was aborted, and nobody aborts a single one.
fn named(ended: Result<(Name, Ending), tokio::task::JoinError>) -> (Name, Ending) {
    ended.unwrap_or_else(|error| (Name::Borrowed("unknown"), Ending::Panicked(error.to_string())))
}

fn log_end((name, ending): (Name, Ending)) {
    match ending {
        Ending::Returned => tracing::debug!(task = %name, "task ended"),
        Ending::Failed(error) => tracing::warn!(task = %name, %error, "task failed during the drain"),
        Ending::Panicked(message) => tracing::error!(task = %name, message, "task panicked during the drain"),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("without a message").to_owned()
}

#[cfg(test)]
mod tests;
