//! Keeps the zone up with the snapshot and the links.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::sleep;
use tombolo_clusterset::Snapshot;
use tombolo_daemon::ready::Blocker;
use tombolo_daemon::seam::clock::Clock;
use tombolo_daemon::shutdown::Shutdown;
use tombolo_daemon::supervise::TaskResult;
use tombolo_wire::local::{LinkTable, LinksFeed, SnapshotFeed};

use super::metrics::Metrics;
use crate::signals::{Tracker, Verdicts};
use crate::zone::{Zone, Zones};

/// Changes within this time become one zone: far below the second in which an export must be visible (DESIGN §6), far above the
/// time between two changes of a storm.
const COALESCE: Duration = Duration::from_millis(10);

/// How often the age of the zone is measured.
const AGE_EVERY: Duration = Duration::from_secs(1);

/// Swaps the zone at each change.
pub(crate) struct ZoneKeeper {
    pub(crate) zone: Arc<ArcSwap<Zone>>,
    pub(crate) zones: Zones,
    pub(crate) snapshots: SnapshotFeed,
    pub(crate) links: LinksFeed,
    pub(crate) blocker: Blocker,
    pub(crate) metrics: Metrics,
    pub(crate) clock: Arc<dyn Clock>,
}

impl ZoneKeeper {
    /// Runs until the drain begins. The zone is built on a blocking thread: a large one takes milliseconds.
    pub(crate) async fn run(self, shutdown: Shutdown) -> TaskResult {
        let ZoneKeeper {
            zone,
            mut zones,
            snapshots,
            links,
            blocker,
            metrics,
            clock,
        } = self;
        let (mut snapshots, mut links) = (snapshots.receiver(), links.receiver());
        let mut tracker = Tracker::default();
        let mut built: Option<(Arc<Snapshot>, Verdicts)> = None;
        // The zone before this one, so that it is freed here and not by the thread that happens to use it last.
        let mut _retired: Option<Arc<Zone>> = None;
        loop {
            let snapshot = snapshots.borrow_and_update().clone();
            let states = states(&mut links);
            let mut changes_in = None;
            if let Some(snapshot) = snapshot {
                let verdicts = tracker.observe(clock.now().into_std(), &snapshot, &states);
                changes_in = verdicts.changes_in;
                let same = built
                    .as_ref()
                    .is_some_and(|(from, under)| Arc::ptr_eq(from, &snapshot) && under.agree_with(&verdicts));
                if !same {
                    let (from, under) = (snapshot.clone(), verdicts.clone());
                    let (returned, fresh) = tokio::task::spawn_blocking(move || {
                        let fresh = zones.build(&from, &under);
                        (zones, fresh)
                    })
                    .await?;
                    zones = returned;
                    tracing::debug!(version = ?snapshot.version, records = fresh.records(), "zone swapped");
                    metrics.zone_builds.inc();
                    metrics
                        .zone_records
                        .set(i64::try_from(fresh.records()).unwrap_or(i64::MAX));
                    _retired = Some(zone.swap(Arc::new(fresh)));
                    blocker.mark_ready();
                    built = Some((snapshot, verdicts));
                }
            }
            if !wait(&shutdown, &mut snapshots, &mut links, changes_in, || {
                let confirmed = built.as_ref().map(|(snapshot, _)| snapshot.confirmed_unix_ms);
                if let Some(confirmed) = confirmed.filter(|confirmed| *confirmed > 0) {
                    let now = clock.wall().duration_since(UNIX_EPOCH).unwrap_or_default();
                    let age = now.saturating_sub(Duration::from_millis(confirmed)).as_secs();
                    metrics.zone_age.set(i64::try_from(age).unwrap_or(i64::MAX));
                }
            })
            .await
            {
                return Ok(());
            }
            sleep(COALESCE).await;
        }
    }
}

fn states(
    links: &mut watch::Receiver<Arc<LinkTable>>,
) -> BTreeMap<tombolo_clusterset::ClusterId, tombolo_clusterset::LinkState> {
    links
        .borrow_and_update()
        .iter()
        .map(|(cluster, report)| (cluster.clone(), report.state))
        .collect()
}

/// Waits for a reason to build anew. False when the drain begins.
async fn wait(
    shutdown: &Shutdown,
    snapshots: &mut watch::Receiver<Option<Arc<Snapshot>>>,
    links: &mut watch::Receiver<Arc<LinkTable>>,
    changes_in: Option<Duration>,
    mut measure_age: impl FnMut(),
) -> bool {
    // A feed that ended (its task was aborted) has said its last word; the other may still speak.
    let changed = async {
        tokio::select! {
            Ok(()) = snapshots.changed() => {}
            Ok(()) = links.changed() => {}
            else => std::future::pending().await,
        }
    };
    let due = async {
        match changes_in {
            Some(after) => sleep(after).await,
            None => std::future::pending().await,
        }
    };
    let ages = async {
        loop {
            measure_age();
            sleep(AGE_EVERY).await;
        }
    };
    tokio::select! {
        () = shutdown.drain() => false,
        () = changed => true,
        () = due => true,
        () = ages => true,
    }
}
