//! What a broker tells a watcher: the present value of entries, as `broker.proto` events.
//!
//! Repeats `broker::shell::grpc::watch`, which is bound to tonic; everything it reads (state, watch log) is the real thing.

use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message as _;
use tombolo_broker::state::{EntryKey, State};
use tombolo_broker::watch_log::{Missed, WatchLog};
use tombolo_clusterset::{ClusterId, Lease, ServiceKey};
use tombolo_wire::v1;
use tombolo_wire::v1::entry::Entry;
use tombolo_wire::v1::entry_key::Key;
use tombolo_wire::v1::watch_event::Event;

use crate::net::Frame;

/// Where a watcher is.
#[derive(Debug, Clone, Copy)]
pub struct Watcher {
    /// Incarnation and revision that it has.
    pub at: (u64, u64),
    /// The membership that it watches for.
    pub joined: u64,
}

/// Says what `watcher` missed, and where it is then. `hasty`: a member whose lease is told as lost already.
pub fn missed(
    state: &State,
    changes: &WatchLog,
    watcher: Watcher,
    (fresh, unix_ms): (bool, u64),
    hasty: Option<&ClusterId>,
) -> (Vec<Frame>, (u64, u64)) {
    let (incarnation, revision) = watcher.at;
    let at = (state.incarnation, state.applied);
    let progress = v1::WatchProgress {
        incarnation: at.0,
        revision: at.1,
        fresh,
        unix_ms,
    };
    let known = if incarnation == state.incarnation {
        changes.since(revision, state.applied)
    } else {
        Missed::Compacted
    };
    let events = match known {
        Missed::Changes(mut keys) => {
            keys.extend(hasty.cloned().map(EntryKey::Member));
            let changed = keys.iter().map(|key| render(state, key, hasty));
            changed.chain([Event::Progress(progress)]).collect::<Vec<_>>()
        }
        Missed::Compacted => {
            let init = Event::Init(v1::WatchInit { incarnation: at.0 });
            let all = all_keys(state);
            let entries = all.iter().map(|key| render(state, key, hasty));
            std::iter::once(init)
                .chain(entries)
                .chain([Event::InitDone(progress)])
                .collect()
        }
    };
    let frame = |event| Frame::Watched(v1::WatchEvent { event: Some(event) }.encode_to_vec());
    (events.into_iter().map(frame).collect(), at)
}

fn render(state: &State, key: &EntryKey, hasty: Option<&ClusterId>) -> Event {
    let apply = |entry| {
        let entry = Some(v1::Entry { entry: Some(entry) });
        Event::Apply(v1::WatchApply {
            entry,
            revision: state.applied,
        })
    };
    let delete = |key| {
        let key = Some(v1::EntryKey { key: Some(key) });
        Event::Delete(v1::WatchDelete {
            key,
            revision: state.applied,
        })
    };
    match key {
        EntryKey::Member(cluster) => match state.members.get(cluster) {
            Some(member) => {
                let mut view = member.view.clone();
                if hasty == Some(cluster) {
                    view.lease = Lease::Lost;
                }
                apply(Entry::Member(v1::Member {
                    view: Some((&view).into()),
                    joined_revision: member.joined,
                    trust_acked: member.trust_acked,
                    publish_epoch: member.publish_epoch,
                }))
            }
            None => delete(Key::Member(cluster.to_string())),
        },
        EntryKey::Export(service, cluster) => match state.export(service, cluster) {
            Some(record) => apply(Entry::Export(record.as_ref().into())),
            None => delete(Key::Export(export_key(service, cluster))),
        },
        EntryKey::Grant(service, exporter) => {
            match state.grants.by_export.get(&(service.clone(), exporter.clone())) {
                Some(importers) => apply(Entry::Grant(v1::Grant {
                    key: Some(service.into()),
                    exporter: exporter.to_string(),
                    importers: importers.iter().map(ToString::to_string).collect(),
                })),
                None => delete(Key::Grant(export_key(service, exporter))),
            }
        }
        EntryKey::Reservation(namespace) => match state.grants.reserved.get(namespace) {
            Some(clusters) => apply(Entry::Reservation(v1::Reservation {
                namespace: namespace.to_string(),
                clusters: clusters.iter().map(ToString::to_string).collect(),
            })),
            None => delete(Key::Reservation(namespace.to_string())),
        },
        EntryKey::Trust => apply(Entry::Trust(trust(state))),
        EntryKey::Drill(id) => match state
            .drills
            .running
            .as_ref()
            .filter(|running| running.drill.id == *id)
        {
            Some(running) => apply(Entry::Drill((&running.drill).into())),
            None => delete(Key::Drill(id.0)),
        },
        EntryKey::Brokers => {
            let addresses = state
                .brokers
                .active
                .values()
                .map(|addresses| addresses.api.to_string())
                .collect();
            apply(Entry::Brokers(v1::Brokers { addresses }))
        }
    }
}

fn trust(state: &State) -> v1::TrustBundle {
    let Some(trust) = &state.trust else {
        return v1::TrustBundle::default();
    };
    v1::TrustBundle {
        trust_domain: trust.trust_domain.to_string(),
        roots: trust
            .roots()
            .iter()
            .map(|root| root.certificate.clone())
            .collect(),
        denied: trust
            .denied
            .iter()
            .map(|denied| Bytes::copy_from_slice(denied.key.as_bytes()))
            .collect(),
        revision: trust.revision,
    }
}

fn export_key(service: &ServiceKey, cluster: &ClusterId) -> v1::ExportKey {
    v1::ExportKey {
        service: Some(service.into()),
        cluster: cluster.to_string(),
    }
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
