//! Ending in order: begin to drain, let what runs end, give up at a deadline.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

/// How long after the deadline the process stays, so that what is cut off ends in a reset: a process that just exits
/// would close its sockets, which looks to the peer like a normal end. Closing 10,000 sockets takes a tenth of it.
pub const RESET_TIME: Duration = Duration::from_secs(1);

/// A token that every task holds a clone of.
///
/// 1. Someone calls [`Shutdown::begin`]; [`Shutdown::drain`] resolves everywhere and listeners stop accepting.
/// 2. Work in flight holds a [`DrainGuard`] and runs on to its own end.
/// 3. What has not ended by the deadline ([`Shutdown::deadline_passed`]) resets itself, and its role counts it.
/// 4. [`Shutdown::drained`] resolves when no guard is left, or [`RESET_TIME`] after the deadline with the names of those
///    that are.
///
/// ```
/// # use std::time::Duration;
/// # use tombolo_daemon::shutdown::Shutdown;
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let shutdown = Shutdown::new(Duration::from_secs(30));
/// let guard = shutdown.guard("flow");
/// shutdown.begin(tokio::time::Instant::now());
/// drop(guard);
/// assert!(shutdown.drained().await.is_clean());
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Shutdown {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    grace: Duration,
    /// `None` until the drain begins.
    deadline: watch::Sender<Option<Instant>>,
    held: Mutex<BTreeMap<Cow<'static, str>, usize>>,
    /// Told whenever the last guard goes.
    empty: Notify,
}

impl Shutdown {
    /// `grace` is how long work in flight may take once the drain has begun.
    pub fn new(grace: Duration) -> Shutdown {
        let shared = Shared {
            grace,
            deadline: watch::Sender::new(None),
            held: Mutex::default(),
            empty: Notify::new(),
        };
        Shutdown {
            shared: Arc::new(shared),
        }
    }

    /// Begins the drain. Only the first call counts: a later one does not move the deadline.
    pub fn begin(&self, now: Instant) {
        self.shared.deadline.send_if_modified(|deadline| {
            let first = deadline.is_none();
            deadline.get_or_insert(now + self.shared.grace);
            first
        });
    }

    /// Whether the drain has begun.
    pub fn is_draining(&self) -> bool {
        self.deadline().is_some()
    }

    /// When work in flight is to be reset; `None` until the drain begins.
    pub fn deadline(&self) -> Option<Instant> {
        *self.shared.deadline.borrow()
    }

    /// Resolves when the drain begins, at once if it has.
    pub async fn drain(&self) {
        self.drain_deadline().await;
    }

    /// Resolves at the deadline of the drain: what still runs is to be reset now.
    pub async fn deadline_passed(&self) {
        sleep_until(self.drain_deadline().await).await;
    }

    /// Holds the process until it is dropped, or the drain is over. `name` says in the log what was cut off.
    pub fn guard(&self, name: impl Into<Cow<'static, str>>) -> DrainGuard {
        let name = name.into();
        *self.shared.held.lock().entry(name.clone()).or_default() += 1;
        DrainGuard {
            name,
            shutdown: self.clone(),
        }
    }

    /// Waits for the drain to begin and then for all guards, at most until [`RESET_TIME`] after the deadline.
    pub async fn drained(&self) -> Drained {
        let end = self.drain_deadline().await + RESET_TIME;
        loop {
            // Subscribe before the check, or the last guard could go in between.
            let emptied = self.shared.empty.notified();
            let remaining = self.held();
            if remaining.is_clean() {
                return remaining;
            }
            tokio::select! {
                () = emptied => {}
                () = sleep_until(end) => return self.held(),
            }
        }
    }

    /// What guards are held right now.
    pub fn held(&self) -> Drained {
        let held = self.shared.held.lock();
        Drained {
            remaining: held.iter().map(|(name, count)| (name.clone(), *count)).collect(),
        }
    }

    async fn drain_deadline(&self) -> Instant {
        match self
            .shared
            .deadline
            .subscribe()
            .wait_for(Option::is_some)
            .await
            .map(|deadline| *deadline)
        {
            Ok(Some(deadline)) => deadline,
            // `self` holds the sender and `wait_for` only returns what it waited for.
            Ok(None) | Err(_) => pending().await,
        }
    }
}

/// Keeps the process alive during a drain.
#[derive(Debug)]
pub struct DrainGuard {
    name: Cow<'static, str>,
    shutdown: Shutdown,
}

impl DrainGuard {
    /// The token it came from: `guard.shutdown().deadline_passed()` is when to reset a flow.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }
}

impl Drop for DrainGuard {
    fn drop(&mut self) {
        let shared = &self.shutdown.shared;
        let mut held = shared.held.lock();
        if let Some(count) = held.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.name);
            }
        }
        if held.is_empty() {
            shared.empty.notify_waiters();
        }
    }
}

/// How a drain ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Drained {
    /// Names and counts of what had not even reset itself.
    pub remaining: Vec<(Cow<'static, str>, usize)>,
}

impl Drained {
    /// Everything ended, by itself or by its own reset at the deadline.
    pub fn is_clean(&self) -> bool {
        self.remaining.is_empty()
    }
}

/// `nothing`, or `3 × flow, 1 × stream`.
impl Display for Drained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_clean() {
            return f.write_str("nothing");
        }
        for (index, (name, count)) in self.remaining.iter().enumerate() {
            write!(f, "{}{count} × {name}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn waits_for_the_last_guard_and_no_longer() {
        let shutdown = Shutdown::new(GRACE);
        let start = Instant::now();
        let guards = [
            (shutdown.guard("flow"), 3),
            (shutdown.guard("flow"), 7),
            (shutdown.guard("stream"), 5),
        ];
        for (guard, secs) in guards {
            tokio::spawn(async move {
                guard.shutdown().drain().await;
                tokio::time::sleep(Duration::from_secs(secs)).await;
                drop(guard);
            });
        }
        shutdown.begin(Instant::now());
        assert!(shutdown.drained().await.is_clean());
        assert_eq!(start.elapsed(), Duration::from_secs(7));
    }

    #[tokio::test(start_paused = true)]
    async fn gives_up_after_the_deadline_and_names_what_is_left() {
        let shutdown = Shutdown::new(GRACE);
        let start = Instant::now();
        let _flows = [shutdown.guard("flow"), shutdown.guard("flow")];
        let _stream = shutdown.guard("stream");
        shutdown.begin(start);
        let drained = shutdown.drained().await;
        assert_eq!(start.elapsed(), GRACE + RESET_TIME);
        assert_eq!(drained.to_string(), "2 × flow, 1 × stream");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_cut_off_at_the_deadline_has_time_to_reset() {
        let shutdown = Shutdown::new(GRACE);
        let start = Instant::now();
        let guard = shutdown.guard("flow");
        let flow = tokio::spawn(async move {
            guard.shutdown().deadline_passed().await;
            tokio::time::sleep(RESET_TIME / 2).await;
            drop(guard);
        });
        shutdown.begin(start);
        assert!(shutdown.drained().await.is_clean());
        assert_eq!(start.elapsed(), GRACE + RESET_TIME / 2);
        flow.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_begin_does_not_move_the_deadline() {
        let shutdown = Shutdown::new(GRACE);
        assert_eq!(shutdown.deadline(), None);
        let start = Instant::now();
        shutdown.begin(start);
        shutdown.begin(start + Duration::from_secs(9));
        assert_eq!(shutdown.deadline(), Some(start + GRACE));
        shutdown.deadline_passed().await;
        assert_eq!(start.elapsed(), GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn guards_without_a_drain_hold_nothing_back() {
        let shutdown = Shutdown::new(GRACE);
        drop(shutdown.guard("flow"));
        assert!(
            tokio::time::timeout(GRACE, shutdown.drained()).await.is_err(),
            "no drain has begun"
        );
    }
}
