//! Outcomes of this cluster's own endpoints, and who is ejected by them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tombolo_clusterset::endpoint::Protocol;
use tombolo_clusterset::health::{OutlierPolicy, Outliers};
use tombolo_clusterset::{ClusterId, ServiceKey, ServicePort, Snapshot};
use tombolo_daemon::supervise::TaskResult;
use tracing::info;

use super::context::Context;

/// How often ejections are looked at: the shortest lasts 5 s.
const CHECK_EVERY: Duration = Duration::from_millis(500);

/// An endpoint as the selection knows it.
pub(super) type EndpointKey = (ClusterId, IpAddr, u16);

/// Endpoints that can stand in for each other: a port of a service.
pub(super) type Group = (ServiceKey, Protocol, u16);

/// The outlier windows of every exported port.
#[derive(Debug, Default)]
pub(super) struct Health {
    groups: Mutex<BTreeMap<Group, Outliers<EndpointKey>>>,
    ejected: ArcSwap<BTreeSet<EndpointKey>>,
}

impl Health {
    /// Who is out.
    pub(super) fn ejected(&self) -> Arc<BTreeSet<EndpointKey>> {
        self.ejected.load_full()
    }

    /// The endpoints are those of `snapshot` from now on.
    pub(super) fn set_exports(&self, snapshot: &Snapshot) {
        let mut groups = self.groups.lock();
        let mut known = BTreeSet::new();
        for export in snapshot.exports.values() {
            for port in &export.spec.ports {
                let group = (export.key.clone(), port.protocol, port.port);
                let slices = export.slices.iter();
                let members = slices.flat_map(|slice| members(&snapshot.cluster, slice, port));
                let outliers = groups
                    .entry(group.clone())
                    .or_insert_with(|| Outliers::new(OutlierPolicy::default()));
                outliers.set_members(members);
                known.insert(group);
            }
        }
        groups.retain(|group, _| known.contains(group));
        self.publish(&groups);
    }

    /// How a flow to `endpoint` began.
    pub(super) fn outcome(
        &self,
        group: &Group,
        cluster: &ClusterId,
        endpoint: SocketAddr,
        well: bool,
        now: Instant,
    ) {
        let key = (cluster.clone(), endpoint.ip(), endpoint.port());
        let mut groups = self.groups.lock();
        let Some(outliers) = groups.get_mut(group) else {
            return;
        };
        if well {
            outliers.on_success(&key, now);
        } else if let Some(change) = outliers.on_failure(&key, now) {
            info!(service = %group.0, port = group.2, %endpoint, ?change, "endpoint ejected by its failures");
            self.publish(&groups);
        }
    }

    fn poll(&self, now: Instant) {
        let mut groups = self.groups.lock();
        let due = groups
            .iter_mut()
            .filter(|(_, outliers)| outliers.deadline().is_some_and(|at| at <= now));
        let mut changed = false;
        for (group, outliers) in due {
            for change in outliers.poll(now) {
                info!(service = %group.0, port = group.2, ?change, "endpoint readmitted");
                changed = true;
            }
        }
        if changed {
            self.publish(&groups);
        }
    }

    fn publish(&self, groups: &BTreeMap<Group, Outliers<EndpointKey>>) {
        self.ejected.store(Arc::new(
            groups.values().flat_map(Outliers::ejected).cloned().collect(),
        ));
    }
}

fn members<'a>(
    cluster: &'a ClusterId,
    slice: &'a tombolo_clusterset::EndpointSlice,
    port: &'a ServicePort,
) -> impl Iterator<Item = EndpointKey> + 'a {
    let number = slice.port(&port.name, port.protocol);
    number.into_iter().flat_map(move |number| {
        slice
            .endpoints
            .iter()
            .map(move |endpoint| (cluster.clone(), endpoint.address, number))
    })
}

/// Follows the snapshot and readmits those whose time is over.
pub(super) async fn keep(context: Arc<Context>) -> TaskResult {
    let mut snapshots = context.snapshots.receiver();
    let mut ticks = tokio::time::interval(CHECK_EVERY);
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        if let Some(snapshot) = snapshot {
            context.health.set_exports(&snapshot);
        }
        loop {
            tokio::select! {
                () = context.shutdown.drain() => return Ok(()),
                changed = snapshots.changed() => { changed?; break }
                _ = ticks.tick() => context.health.poll(context.now()),
            }
        }
    }
}
