//! The drill that runs, with its dead-man's timer.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tombolo_clusterset::drill::Drill;
use tombolo_daemon::seam::Seams;
use tracing::warn;

use super::connect_uds;
use super::subscription::{Event, TaskGuard, follow};
use crate::v1;
use crate::v1::agent_client::AgentClient;

/// A drill, timed from its receipt by this process's own monotonic clock (DESIGN §7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningDrill {
    /// What is rehearsed.
    pub drill: Drill,
    /// When it began, as this process counts.
    pub began: Instant,
}

impl RunningDrill {
    /// Time since it began.
    #[must_use]
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    /// Over, whoever died.
    #[must_use]
    pub fn is_over(&self, now: Instant) -> bool {
        self.age(now) >= self.drill.total()
    }
}

/// Follows the running drill. A drill that was received ends at its expiry even when the agent is gone by then.
#[derive(Debug, Clone)]
pub struct DrillFeed {
    newest: watch::Receiver<Option<RunningDrill>>,
    _task: Arc<TaskGuard>,
}

impl DrillFeed {
    /// Subscribes to the agent at `socket`. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(socket: &Path, seams: Seams) -> Self {
        let (sender, newest) = watch::channel(None);
        let client = AgentClient::new(connect_uds(socket));
        let clock = seams.clock.clone();
        let task = tokio::spawn(async move {
            let open = || {
                let mut client = client.clone();
                async move { client.watch_drills(v1::WatchDrillsRequest {}).await }
            };
            let take = |event| {
                // A lost stream changes nothing: the dead-man's timer below ends the drill.
                if let Event::Message(update) = event {
                    sender.send_if_modified(|running| replace(running, running_drill(&update, clock.now())));
                }
                true
            };
            tokio::select! {
                () = follow("drills", seams, open, take) => {}
                () = expire(&sender) => {}
            }
        });
        Self {
            newest,
            _task: Arc::new(TaskGuard::new(&task)),
        }
    }

    /// A feed that is fed by hand, for a role's tests.
    #[must_use]
    pub fn from_receiver(newest: watch::Receiver<Option<RunningDrill>>) -> Self {
        let idle = tokio::spawn(async {});
        Self {
            newest,
            _task: Arc::new(TaskGuard::new(&idle)),
        }
    }

    /// The running drill.
    #[must_use]
    pub fn current(&self) -> Option<RunningDrill> {
        self.newest.borrow().clone()
    }

    /// A receiver that sees every later state.
    #[must_use]
    pub fn receiver(&self) -> watch::Receiver<Option<RunningDrill>> {
        self.newest.clone()
    }
}

/// The drill of an update, unless it makes no sense or is already over.
fn running_drill(update: &v1::DrillsUpdate, now: Instant) -> Option<RunningDrill> {
    let drill = match Drill::try_from(update.drill.as_ref()?) {
        Ok(drill) => drill,
        Err(invalid) => {
            warn!(%invalid, "the agent announces a drill that makes no sense; ignoring it");
            return None;
        }
    };
    let age = Duration::from_millis(update.age_ms);
    let running = RunningDrill {
        drill,
        began: now.checked_sub(age).unwrap_or(now),
    };
    (age < running.drill.total()).then_some(running)
}

/// Takes `next`; the same drill told twice keeps its first clock, so that a reconnect cannot stretch it.
fn replace(running: &mut Option<RunningDrill>, next: Option<RunningDrill>) -> bool {
    let same = match (&*running, &next) {
        (Some(running), Some(next)) => running.drill == next.drill,
        (None, None) => true,
        _ => false,
    };
    if !same {
        *running = next;
    }
    !same
}

/// Ends each drill at its expiry, for as long as the feed lives.
async fn expire(sender: &watch::Sender<Option<RunningDrill>>) {
    let mut changes = sender.subscribe();
    loop {
        let ends = changes
            .borrow_and_update()
            .as_ref()
            .map(|running| running.began + running.drill.total());
        let over = async {
            match ends {
                Some(ends) => tokio::time::sleep_until(ends).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = over => {
                sender.send_if_modified(|running| running.take().is_some());
            }
        }
    }
}
