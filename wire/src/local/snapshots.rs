//! The snapshot stream: events out of snapshots (agent's side), snapshots out of events (everyone else's).

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;
use tombolo_clusterset::name::{Namespace, ServiceKey};
use tombolo_clusterset::{ClusterId, Snapshot};
use tombolo_daemon::seam::Seams;
use tracing::warn;

use super::connect_uds;
use super::subscription::{Event, TaskGuard, follow};
use crate::convert::{SnapshotBatch, meta_of, trust_of};
use crate::v1;
use crate::v1::agent_client::AgentClient;
use crate::version::PROTOCOL_VERSION;

/// Which imports a subscriber wants. Empty: all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interest {
    /// All services of these namespaces.
    pub namespaces: Vec<Namespace>,
    /// And these.
    pub services: Vec<ServiceKey>,
}

impl Interest {
    /// Whether `key` is wanted.
    #[must_use]
    pub fn wants(&self, key: &ServiceKey) -> bool {
        (self.namespaces.is_empty() && self.services.is_empty())
            || self.namespaces.contains(&key.namespace)
            || self.services.contains(key)
    }
}

/// Follows the agent's snapshot; always holds the newest whole one.
#[derive(Debug, Clone)]
pub struct SnapshotFeed {
    newest: watch::Receiver<Option<Arc<Snapshot>>>,
    _task: Arc<TaskGuard>,
}

impl SnapshotFeed {
    /// Subscribes to the agent of `cluster` at `socket`. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(socket: &Path, cluster: ClusterId, interest: Interest, seams: Seams) -> Self {
        let (sender, newest) = watch::channel(None);
        let client = AgentClient::new(connect_uds(socket));
        let task = tokio::spawn(async move {
            let request = v1::WatchSnapshotRequest {
                protocol_version: PROTOCOL_VERSION,
                namespaces: interest.namespaces.iter().map(ToString::to_string).collect(),
                services: interest.services.iter().map(Into::into).collect(),
            };
            let open = || {
                let mut client = client.clone();
                let request = request.clone();
                async move { client.watch_snapshot(request).await }
            };
            let mut batch = SnapshotBatch::new(cluster.clone());
            follow("snapshot", seams, open, |event| match event {
                Event::Opened => {
                    batch = SnapshotBatch::new(cluster.clone());
                    true
                }
                Event::Message(event) => match batch.take(&event) {
                    Ok(None) => true,
                    Ok(Some(snapshot)) => {
                        publish(&sender, snapshot);
                        true
                    }
                    Err(invalid) => {
                        warn!(%invalid, "the agent sent a snapshot event that makes no sense; subscribing again");
                        false
                    }
                },
                // The last snapshot stays in use: only its freshness is gone with the agent.
                Event::Lost => true,
            })
            .await;
        });
        Self {
            newest,
            _task: Arc::new(TaskGuard::new(&task)),
        }
    }

    /// A feed that is fed by hand, for a role's tests.
    #[must_use]
    pub fn from_receiver(newest: watch::Receiver<Option<Arc<Snapshot>>>) -> Self {
        let idle = tokio::spawn(async {});
        Self {
            newest,
            _task: Arc::new(TaskGuard::new(&idle)),
        }
    }

    /// The newest snapshot; None before the first.
    #[must_use]
    pub fn current(&self) -> Option<Arc<Snapshot>> {
        self.newest.borrow().clone()
    }

    /// A receiver that sees every later snapshot (and may skip some in between).
    #[must_use]
    pub fn receiver(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.newest.clone()
    }

    /// Waits for the first snapshot. None when the feed ended.
    pub async fn first(&self) -> Option<Arc<Snapshot>> {
        let mut newest = self.newest.clone();
        newest
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|snapshot| snapshot.clone())
    }
}

/// Swaps in `snapshot` unless it is older than what is there: versions never go back, also across an agent's restart.
fn publish(sender: &watch::Sender<Option<Arc<Snapshot>>>, snapshot: Snapshot) {
    sender.send_if_modified(|newest| {
        let older = newest.as_ref().is_some_and(|newest| {
            (snapshot.version.incarnation, snapshot.version.revision)
                < (newest.version.incarnation, newest.version.revision)
        });
        if older {
            warn!(version = ?snapshot.version, "the agent offers an older snapshot; keeping the newer one");
            return false;
        }
        *newest = Some(Arc::new(snapshot));
        true
    });
}

/// The events of a whole snapshot: Init, Apply*, InitDone. `interest` narrows the imports.
#[must_use]
pub fn snapshot_events(snapshot: &Snapshot, interest: &Interest) -> Vec<v1::SnapshotEvent> {
    use v1::snapshot_event::Event::{Apply, Init, InitDone};
    let mut events = vec![event(Init(v1::SnapshotInit {}))];
    let mut apply = |entry| events.push(event(Apply(v1::SnapshotEntry { entry: Some(entry) })));
    apply(v1::snapshot_entry::Entry::Trust(trust_of(snapshot)));
    for view in snapshot.clusters.values() {
        apply(v1::snapshot_entry::Entry::Cluster(view.into()));
    }
    for import in snapshot
        .imports
        .values()
        .filter(|import| interest.wants(&import.key))
    {
        apply(v1::snapshot_entry::Entry::Import(import.as_ref().into()));
    }
    for export in snapshot.exports.values() {
        apply(v1::snapshot_entry::Entry::Export(export.as_ref().into()));
    }
    events.push(event(InitDone(meta_of(snapshot))));
    events
}

/// The events that turn `old` into `new`: (Apply | Delete)*, Commit.
#[must_use]
pub fn snapshot_changes(old: &Snapshot, new: &Snapshot, interest: &Interest) -> Vec<v1::SnapshotEvent> {
    use v1::snapshot_entry::Entry;
    use v1::snapshot_event::Event::{Apply, Commit, Delete};
    use v1::snapshot_key::Key;
    let mut events = Vec::new();
    let apply = |entry| event(Apply(v1::SnapshotEntry { entry: Some(entry) }));
    let delete = |key| event(Delete(v1::SnapshotKey { key: Some(key) }));
    if (&old.roots, &old.denied, &old.trust_domain) != (&new.roots, &new.denied, &new.trust_domain) {
        events.push(apply(Entry::Trust(trust_of(new))));
    }
    for (id, view) in &new.clusters {
        if old.clusters.get(id) != Some(view) {
            events.push(apply(Entry::Cluster(view.into())));
        }
    }
    for (key, import) in new.imports.iter().filter(|(key, _)| interest.wants(key)) {
        if !old
            .imports
            .get(key)
            .is_some_and(|old| Arc::ptr_eq(old, import) || old == import)
        {
            events.push(apply(Entry::Import(import.as_ref().into())));
        }
    }
    for (key, export) in &new.exports {
        if !old
            .exports
            .get(key)
            .is_some_and(|old| Arc::ptr_eq(old, export) || old == export)
        {
            events.push(apply(Entry::Export(export.as_ref().into())));
        }
    }
    for id in old.clusters.keys().filter(|id| !new.clusters.contains_key(*id)) {
        events.push(delete(Key::Cluster(id.to_string())));
    }
    for key in old
        .imports
        .keys()
        .filter(|key| interest.wants(key) && !new.imports.contains_key(*key))
    {
        events.push(delete(Key::Import(key.into())));
    }
    for key in old.exports.keys().filter(|key| !new.exports.contains_key(*key)) {
        events.push(delete(Key::Export(key.into())));
    }
    events.push(event(Commit(meta_of(new))));
    events
}

fn event(event: v1::snapshot_event::Event) -> v1::SnapshotEvent {
    v1::SnapshotEvent { event: Some(event) }
}
