//! One watch stream: everything or what was missed, then changes as they are applied here.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tombolo_clusterset::ClusterId;
use tombolo_wire::v1;
use tombolo_wire::v1::watch_event::Event;
use tonic::Status;

use super::{Broker, broker_addresses, bundle};
use crate::shell::metrics::Counted;
use crate::state::{EntryKey, State};
use crate::watch_log::Missed;

/// Events that wait for a slow watcher's connection. Behind that it waits here, and changes coalesce.
const EVENTS_AHEAD: usize = 256;

/// Who watches.
#[derive(Debug, Clone)]
pub(super) enum Watcher {
    /// A role of this cluster; the stream ends with its membership.
    Member(ClusterId),
    /// An operator.
    Operator,
}

type Events = ReceiverStream<Result<v1::WatchEvent, Status>>;

/// Starts a watch from (incarnation, revision), both 0 for everything.
pub(super) fn watch(
    broker: &Arc<Broker>,
    watcher: Watcher,
    incarnation: u64,
    revision: u64,
) -> Result<Events, Status> {
    let permit = Arc::clone(&broker.watchers).try_acquire_owned().map_err(|_| {
        Status::resource_exhausted("this broker serves as many watch streams as it may; watch another broker")
    })?;
    let joined = match &watcher {
        Watcher::Member(cluster) => Some(joined(broker, cluster)?),
        Watcher::Operator => None,
    };
    let (events, receiver) = mpsc::channel(EVENTS_AHEAD);
    let broker = Arc::clone(broker);
    tokio::spawn(async move {
        let _permit = permit;
        let _counted = Counted::new(&broker.metrics.watchers);
        let shutdown = broker.shutdown.clone();
        let feed = Feed {
            broker,
            watcher,
            joined,
            events: events.clone(),
        };
        let ended = tokio::select! {
            () = shutdown.drain() => Err(Status::unavailable("this broker is stopping; watch another")),
            () = events.closed() => return,
            ended = feed.run(incarnation, revision) => ended,
        };
        if let Err(status) = ended {
            // A watcher that is gone needs no farewell; one that is slow learns it from the end of the stream.
            let _ = events.try_send(Err(status));
        }
    });
    Ok(ReceiverStream::new(receiver))
}

/// Everything, once: what `Operator.View` answers.
pub(super) fn everything(broker: &Arc<Broker>) -> Events {
    let (events, receiver) = mpsc::channel(EVENTS_AHEAD);
    let feed = Feed {
        broker: Arc::clone(broker),
        watcher: Watcher::Operator,
        joined: None,
        events,
    };
    tokio::spawn(async move {
        // The caller went away: nobody to tell.
        let _ = feed.send_everything().await;
    });
    ReceiverStream::new(receiver)
}

fn joined(broker: &Broker, cluster: &ClusterId) -> Result<u64, Status> {
    let joined = broker.read(|state| state.members.get(cluster).map(|member| member.joined));
    joined.ok_or_else(|| not_a_member(cluster))
}

fn not_a_member(cluster: &ClusterId) -> Status {
    Status::permission_denied(format!(
        "cluster {cluster} is not a member of this clusterset any more; it left, was evicted or was replaced: join with a new token"
    ))
}

struct Feed {
    broker: Arc<Broker>,
    watcher: Watcher,
    joined: Option<u64>,
    events: mpsc::Sender<Result<v1::WatchEvent, Status>>,
}

/// The watcher is gone.
struct Gone;

impl Feed {
    async fn run(self, incarnation: u64, revision: u64) -> Result<(), Status> {
        let mut applied = self.broker.group.replica().applied();
        let mut beat = tokio::time::interval(self.broker.group.timing().election_min);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut at = (incarnation, revision);
        // What the watcher was told last, so that a quiet stream says something only when it changes or on a beat.
        loop {
            // Subscribed before it looks, so that nothing falls in between.
            applied.borrow_and_update();
            self.check_membership()?;
            let Ok(next) = self.send_missed(at).await else {
                return Ok(());
            };
            at = next;
            tokio::select! {
                changed = applied.changed() => if changed.is_err() { return Ok(()) },
                // Freshness is news of its own.
                _ = beat.tick() => {}
            }
        }
    }

    fn check_membership(&self) -> Result<(), Status> {
        let Watcher::Member(cluster) = &self.watcher else {
            return Ok(());
        };
        // A membership that was ended and begun anew belongs to another certificate.
        if Some(joined(&self.broker, cluster)?) == self.joined {
            Ok(())
        } else {
            Err(not_a_member(cluster))
        }
    }

    /// Sends what changed since `at`; returns where the watcher is now.
    async fn send_missed(&self, (incarnation, revision): (u64, u64)) -> Result<(u64, u64), Gone> {
        let missed = self.broker.group.replica().read_changes(|state, changes| {
            if state.incarnation != incarnation {
                return None;
            }
            match changes.since(revision, state.applied) {
                Missed::Compacted => None,
                Missed::Changes(keys) => Some((render(state, &keys), state.applied)),
            }
        });
        let Some((events, applied)) = missed else {
            return self.send_everything().await;
        };
        for event in events {
            self.send(event(applied)).await?;
        }
        self.send(Event::Progress(self.progress(incarnation, applied)))
            .await?;
        Ok((incarnation, applied))
    }

    async fn send_everything(&self) -> Result<(u64, u64), Gone> {
        let (incarnation, applied, events) = self.broker.read(|state| {
            let keys = all_keys(state);
            (state.incarnation, state.applied, render(state, &keys))
        });
        self.send(Event::Init(v1::WatchInit { incarnation })).await?;
        for event in events {
            self.send(event(applied)).await?;
        }
        self.send(Event::InitDone(self.progress(incarnation, applied)))
            .await?;
        Ok((incarnation, applied))
    }

    fn progress(&self, incarnation: u64, revision: u64) -> v1::WatchProgress {
        let fresh = self.broker.group.is_fresh(self.broker.seams.clock.now());
        v1::WatchProgress {
            incarnation,
            revision,
            fresh,
            unix_ms: self.broker.unix_ms(),
        }
    }

    async fn send(&self, event: Event) -> Result<(), Gone> {
        self.events
            .send(Ok(v1::WatchEvent { event: Some(event) }))
            .await
            .map_err(|_| Gone)
    }
}

type Rendered = Box<dyn FnOnce(u64) -> Event + Send>;

/// The present value of each key, or its absence. Large values are shared until they are sent.
fn render(state: &State, keys: &BTreeSet<EntryKey>) -> Vec<Rendered> {
    keys.iter().map(|key| render_one(state, key)).collect()
}

fn render_one(state: &State, key: &EntryKey) -> Rendered {
    use v1::entry::Entry;
    use v1::entry_key::Key;
    let export_key = |key: &tombolo_clusterset::ServiceKey, cluster: &ClusterId| v1::ExportKey {
        service: Some(key.into()),
        cluster: cluster.to_string(),
    };
    match key {
        EntryKey::Export(service, cluster) => match state.export(service, cluster).cloned() {
            Some(record) => Box::new(move |at| apply(Entry::Export(record.as_ref().into()), at)),
            None => delete(Key::Export(export_key(service, cluster))),
        },
        EntryKey::Member(cluster) => match state.members.get(cluster) {
            Some(member) => now(Entry::Member(v1::Member {
                view: Some((&member.view).into()),
                joined_revision: member.joined,
                trust_acked: member.trust_acked,
                publish_epoch: member.publish_epoch,
            })),
            None => delete(Key::Member(cluster.to_string())),
        },
        EntryKey::Grant(service, exporter) => {
            match state.grants.by_export.get(&(service.clone(), exporter.clone())) {
                Some(importers) => now(Entry::Grant(v1::Grant {
                    key: Some(service.into()),
                    exporter: exporter.to_string(),
                    importers: importers.iter().map(ToString::to_string).collect(),
                })),
                None => delete(Key::Grant(export_key(service, exporter))),
            }
        }
        EntryKey::Reservation(namespace) => match state.grants.reserved.get(namespace) {
            Some(clusters) => now(Entry::Reservation(v1::Reservation {
                namespace: namespace.to_string(),
                clusters: clusters.iter().map(ToString::to_string).collect(),
            })),
            None => delete(Key::Reservation(namespace.to_string())),
        },
        EntryKey::Trust => now(Entry::Trust(state.trust.as_ref().map(bundle).unwrap_or_default())),
        EntryKey::Drill(id) => match state
            .drills
            .running
            .as_ref()
            .filter(|running| running.drill.id == *id)
        {
            Some(running) => now(Entry::Drill((&running.drill).into())),
            None => delete(Key::Drill(id.0)),
        },
        EntryKey::Brokers => now(Entry::Brokers(v1::Brokers {
            addresses: broker_addresses(state),
        })),
    }
}

fn now(entry: v1::entry::Entry) -> Rendered {
    Box::new(move |at| apply(entry, at))
}

fn apply(entry: v1::entry::Entry, revision: u64) -> Event {
    Event::Apply(v1::WatchApply {
        entry: Some(v1::Entry { entry: Some(entry) }),
        revision,
    })
}

fn delete(key: v1::entry_key::Key) -> Rendered {
    Box::new(move |revision| {
        Event::Delete(v1::WatchDelete {
            key: Some(v1::EntryKey { key: Some(key) }),
            revision,
        })
    })
}

fn all_keys(state: &State) -> BTreeSet<EntryKey> {
    let members = state.members.keys().cloned().map(EntryKey::Member);
    let exports = state
        .all_exports()
        .map(|r| EntryKey::Export(r.export.key.clone(), r.export.cluster.clone()));
    let grants = state
        .grants
        .by_export
        .keys()
        .cloned()
        .map(|(key, by)| EntryKey::Grant(key, by));
    let reservations = state.grants.reserved.keys().cloned().map(EntryKey::Reservation);
    let drill = state
        .drills
        .running
        .iter()
        .map(|running| EntryKey::Drill(running.drill.id));
    let singles = [EntryKey::Trust, EntryKey::Brokers]
        .into_iter()
        .filter(|_| state.incarnation != 0);
    members
        .chain(exports)
        .chain(grants)
        .chain(reservations)
        .chain(drill)
        .chain(singles)
        .collect()
}
