//! Drills: while one silences this cluster, this server answers nobody, and closes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tombolo_clusterset::ClusterId;
use tombolo_daemon::seam::clock::Clock;
use tombolo_daemon::shutdown::Shutdown;
use tombolo_wire::local::{DrillFeed, RunningDrill};

/// Whether to be silent, for threads (a flag) and tasks (a channel).
#[derive(Debug, Clone)]
pub(crate) struct Silence {
    flag: Arc<AtomicBool>,
    sender: Arc<watch::Sender<bool>>,
}

impl Silence {
    pub(crate) fn new() -> Silence {
        Silence {
            flag: Arc::default(),
            sender: Arc::new(watch::channel(false).0),
        }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// Resolves when answers may be given.
    pub(crate) async fn over(&self) {
        // Fails only without a sender, and `self` holds one.
        let _ = self.sender.subscribe().wait_for(|on| !on).await;
    }

    pub(crate) fn set(&self, on: bool) {
        self.flag.store(on, Ordering::Relaxed);
        let changed = self
            .sender
            .send_if_modified(|before| std::mem::replace(before, on) != on);
        if changed && on {
            tracing::info!("a drill silences this cluster: no name is answered");
        } else if changed {
            tracing::info!("the drill's silence is over");
        }
    }

    /// Follows the drills until the drain begins.
    pub(crate) async fn follow(
        self,
        feed: DrillFeed,
        here: ClusterId,
        clock: Arc<dyn Clock>,
        shutdown: Shutdown,
    ) {
        let mut drills = feed.receiver();
        loop {
            let drill = drills.borrow_and_update().clone();
            let now = clock.now();
            self.set(
                drill
                    .as_ref()
                    .is_some_and(|running| running.drill.silences(&here, running.age(now))),
            );
            let next = drill.and_then(|running| boundary(&running, now));
            let boundary = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.drain() => return,
                changed = drills.changed() => if changed.is_err() { return shutdown.drain().await },
                () = boundary => {}
            }
        }
    }
}

/// When the drill next begins or ceases to fail.
fn boundary(running: &RunningDrill, now: Instant) -> Option<Instant> {
    let starts = running.began + running.drill.baseline;
    [starts, starts + running.drill.duration]
        .into_iter()
        .find(|at| *at > now)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tombolo_clusterset::drill::{Drill, DrillId, DrillKind};
    use tombolo_daemon::seam::clock::HostClock;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_begins_and_ends_with_the_failure() {
        let here = ClusterId::parse("here").unwrap();
        let second = Duration::from_secs(1);
        let drill = Drill {
            id: DrillId(1),
            kind: DrillKind::ClusterDown,
            target: here.clone(),
            from: ClusterId::parse("there").unwrap(),
            service: "shop/checkout".parse().unwrap(),
            port: None,
            http_get: None,
            rate_per_second: 100,
            baseline: 5 * second,
            duration: 10 * second,
            recovery: 5 * second,
            real: false,
        };
        let running = RunningDrill {
            drill,
            began: Instant::now(),
        };
        let (sender, receiver) = watch::channel(Some(running));
        let silence = Silence::new();
        let shutdown = Shutdown::new(second);
        let feed = DrillFeed::from_receiver(receiver);
        let following = tokio::spawn(silence.clone().follow(
            feed,
            here,
            Arc::new(HostClock),
            shutdown.clone(),
        ));
        for (after, expected) in [(4, false), (2, true), (8, true), (2, false)] {
            tokio::time::sleep(second * after).await;
            assert_eq!(silence.is_on(), expected);
        }
        silence.set(true);
        sender.send_replace(None);
        silence.over().await;
        shutdown.begin(Instant::now());
        following.await.unwrap();
    }
}
