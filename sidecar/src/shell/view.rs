//! What flows decide by: the newest snapshot and the signals, and the outcomes that flows report back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tombolo_clusterset::endpoint::Protocol;
use tombolo_clusterset::health::{Change, OutlierPolicy, Outliers};
use tombolo_clusterset::places::Target;
use tombolo_clusterset::select::Signals;
use tombolo_clusterset::{ClusterId, ServiceKey, Snapshot};
use tombolo_daemon::Seams;
use tombolo_wire::local::{LinksFeed, SnapshotFeed};

use crate::metrics::Metrics;
use crate::shell::gateways::Gateways;
use crate::signals::Joined;

/// Longest time between two looks at the signals, should nothing happen: nothing is known that needs it, and a missed wake-up
/// must not last.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A port of a service: its endpoints can stand in for each other.
type Group = (ServiceKey, Protocol, u16);

type Member = (ClusterId, IpAddr, u16);

/// One per process.
#[derive(Debug)]
pub(super) struct View {
    snapshots: SnapshotFeed,
    links: LinksFeed,
    signals: watch::Sender<Arc<Signals>>,
    /// Groups with a failure; those without need no memory.
    outliers: Mutex<BTreeMap<Group, Outliers<Member>>>,
    ejections: Notify,
    metrics: Metrics,
    seams: Seams,
}

impl View {
    pub(super) fn new(
        snapshots: SnapshotFeed,
        links: LinksFeed,
        metrics: Metrics,
        seams: Seams,
    ) -> Arc<Self> {
        Arc::new(Self {
            snapshots,
            links,
            signals: watch::Sender::new(Arc::default()),
            outliers: Mutex::default(),
            ejections: Notify::new(),
            metrics,
            seams,
        })
    }

    /// The newest snapshot; None before the first.
    pub(super) fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.snapshots.current()
    }

    pub(super) fn snapshots(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.snapshots.receiver()
    }

    pub(super) fn signals(&self) -> watch::Receiver<Arc<Signals>> {
        self.signals.subscribe()
    }

    pub(super) fn now(&self) -> Instant {
        self.seams.clock.now().into_std()
    }

    /// A flow to an endpoint of this cluster connected, or failed by the endpoint's fault.
    pub(super) fn report(&self, target: &Target, protocol: Protocol, endpoint: SocketAddr, good: bool) {
        let Some(snapshot) = self.snapshot() else { return };
        let group = (target.service.clone(), protocol, target.port);
        let member = (snapshot.cluster.clone(), endpoint.ip(), endpoint.port());
        let now = self.now();
        let mut outliers = self.outliers.lock();
        if good {
            if let Some(known) = outliers.get_mut(&group) {
                known.on_success(&member, now);
            }
            return;
        }
        let known = outliers.entry(group.clone()).or_insert_with(|| {
            let mut fresh = Outliers::new(OutlierPolicy::default());
            fresh.set_members(members(&snapshot, &group));
            fresh
        });
        if let Some(Change::Ejected { cause, .. }) = known.on_failure(&member, now) {
            tracing::info!(service = %target.service, %endpoint, ?cause, "endpoint put aside");
            self.ejections.notify_one();
        }
    }

    /// Keeps the signals true, for as long as the process runs.
    pub(super) async fn keep(self: Arc<Self>, gateways: Arc<Gateways>) {
        let mut snapshots = self.snapshots.receiver();
        let mut links = self.links.receiver();
        let mut own = gateways.changes();
        let mut joined = Joined::default();
        loop {
            if let Some(snapshot) = snapshots.borrow_and_update().clone() {
                gateways.set_snapshot(&snapshot);
            }
            gateways.redial();
            links.mark_unchanged();
            own.mark_unchanged();
            let now = self.now();
            let again = self.look(&mut joined, &gateways, now);
            tokio::select! {
                Ok(()) = snapshots.changed() => {}
                Ok(()) = links.changed() => {}
                Ok(()) = own.changed() => {}
                () = self.ejections.notified() => {}
                () = tokio::time::sleep(again) => {}
            }
        }
    }

    /// Publishes the signals as they stand; returns how long they hold by the passing of time alone.
    fn look(&self, joined: &mut Joined, gateways: &Gateways, now: Instant) -> Duration {
        let Some(snapshot) = self.snapshot() else {
            return LOOK_EVERY;
        };
        let links = joined.observe(now, &snapshot, &self.links.current(), &gateways.links());
        let (ejected, readmission) = self.ejected(&snapshot, now);
        self.metrics
            .endpoints_ejected
            .set(i64::try_from(ejected.len()).unwrap_or(i64::MAX));
        let until = |at: Option<Instant>| at.map(|at| at.saturating_duration_since(now));
        let waits = [links.changes_in, until(readmission), until(gateways.deadline())];
        self.signals.send_replace(Arc::new(Signals {
            links: links.links,
            ejected,
            hidden: BTreeSet::new(),
        }));
        // A moment on top, so that the deadline has passed then.
        let wait = waits.into_iter().flatten().min().unwrap_or(LOOK_EVERY);
        wait.min(LOOK_EVERY) + Duration::from_millis(1)
    }

    /// Who is put aside, and until when the first.
    fn ejected(&self, snapshot: &Snapshot, now: Instant) -> (BTreeSet<Member>, Option<Instant>) {
        let mut outliers = self.outliers.lock();
        outliers.retain(|group, known| {
            let members: Vec<Member> = members(snapshot, group).collect();
            let stays = !members.is_empty();
            known.set_members(members);
            stays
        });
        for ((service, ..), known) in outliers.iter_mut() {
            for change in known.poll(now) {
                if let Change::Readmitted {
                    key: (_, address, port),
                } = change
                {
                    tracing::info!(%service, %address, port, "endpoint back on probation");
                }
            }
        }
        let ejected = outliers
            .values()
            .flat_map(|known| known.ejected().cloned())
            .collect();
        (ejected, outliers.values().filter_map(Outliers::deadline).min())
    }
}

/// The endpoints of this cluster in a group.
fn members<'a>(
    snapshot: &'a Snapshot,
    (service, protocol, port): &Group,
) -> impl Iterator<Item = Member> + 'a {
    let import = snapshot.imports.get(service);
    let port = import.and_then(|import| import.port(*protocol, *port));
    let own = import.and_then(|import| import.clusters.get(&snapshot.cluster));
    let endpoints = own
        .zip(port)
        .into_iter()
        .flat_map(|(own, port)| own.endpoints(port, None));
    endpoints.map(|(endpoint, number)| (snapshot.cluster.clone(), endpoint.address, number))
}
