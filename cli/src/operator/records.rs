//! What the brokers hold, typed, out of the event stream of `Operator.View`.

use std::collections::BTreeMap;

use tombolo_clusterset::policy::Grants;
use tombolo_clusterset::snapshot::Snapshot;
use tombolo_clusterset::{ClusterId, ClusterView, Drill, ExportRecord, Namespace, ServiceKey};
use tombolo_wire::convert::{Invalid, cluster_id, service_key};
use tombolo_wire::v1;

/// A member of the clusterset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemberRecord {
    pub(crate) view: ClusterView,
    /// Revision of the trust bundle that it has acknowledged; 0 when it is not known.
    pub(crate) trust_acked: u64,
}

/// Everything that is replicated, and what could not be read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Records {
    pub(crate) incarnation: u64,
    pub(crate) revision: u64,
    /// Whether a quorum stands behind it.
    pub(crate) fresh: bool,
    /// When it was true, milliseconds since the Unix epoch; 0 when never confirmed.
    pub(crate) unix_ms: u64,
    pub(crate) members: BTreeMap<ClusterId, MemberRecord>,
    pub(crate) exports: BTreeMap<(ServiceKey, ClusterId), ExportRecord>,
    pub(crate) grants: Grants,
    pub(crate) trust: Option<v1::TrustBundle>,
    pub(crate) drill: Option<Drill>,
    /// Items that this version cannot read, each with the reason; the others stand.
    pub(crate) unreadable: Vec<String>,
}

impl Records {
    /// Takes the next event. True once everything is there.
    pub(crate) fn take(&mut self, event: v1::WatchEvent) -> bool {
        use v1::watch_event::Event;
        match event.event {
            Some(Event::Init(init)) => {
                *self = Self {
                    incarnation: init.incarnation,
                    ..Self::default()
                };
                false
            }
            Some(Event::Apply(apply)) => {
                if let Some(Err(invalid)) = apply
                    .entry
                    .and_then(|entry| entry.entry)
                    .map(|entry| self.apply(entry))
                {
                    self.unreadable.push(invalid.to_string());
                }
                false
            }
            // A view is one full state: nothing is taken back within it.
            Some(Event::Delete(_)) | None => false,
            Some(Event::InitDone(progress) | Event::Progress(progress)) => {
                self.incarnation = progress.incarnation;
                self.revision = progress.revision;
                self.fresh = progress.fresh;
                self.unix_ms = progress.unix_ms;
                true
            }
        }
    }

    fn apply(&mut self, entry: v1::entry::Entry) -> Result<(), Invalid> {
        use v1::entry::Entry;
        match entry {
            Entry::Member(member) => {
                let view = member
                    .view
                    .as_ref()
                    .ok_or_else(|| Invalid::new("member.view", "is missing"))?;
                let view = ClusterView::try_from(view).map_err(|invalid| invalid.within("member.view"))?;
                self.members.insert(
                    view.id.clone(),
                    MemberRecord {
                        view,
                        trust_acked: member.trust_acked,
                    },
                );
            }
            Entry::Export(record) => {
                let record = ExportRecord::try_from(&record).map_err(|invalid| invalid.within("export"))?;
                self.exports
                    .insert((record.export.key.clone(), record.export.cluster.clone()), record);
            }
            Entry::Grant(grant) => {
                let key = service_key("grant.key", grant.key.as_ref())?;
                let importers = clusters("grant.importers", &grant.importers)?;
                self.grants
                    .by_export
                    .insert((key, cluster_id("grant.exporter", &grant.exporter)?), importers);
            }
            Entry::Reservation(reservation) => {
                let namespace = Namespace::parse(&reservation.namespace)
                    .map_err(|error| Invalid::new("reservation.namespace", error.to_string()))?;
                let clusters = clusters("reservation.clusters", &reservation.clusters)?;
                self.grants.reserved.insert(namespace, clusters);
            }
            Entry::Trust(trust) => self.trust = Some(trust),
            Entry::Drill(drill) => {
                self.drill = Some(Drill::try_from(&drill).map_err(|invalid| invalid.within("drill"))?);
            }
            Entry::Brokers(_) => {}
        }
        Ok(())
    }

    /// The same as one agent knew it: `records` are the exports it merged.
    pub(crate) fn of_agent(snapshot: &Snapshot, records: &[v1::ExportRecord]) -> Self {
        let mut known = Self {
            incarnation: snapshot.version.incarnation,
            revision: snapshot.version.revision,
            fresh: snapshot.fresh,
            unix_ms: snapshot.confirmed_unix_ms,
            ..Self::default()
        };
        for (id, view) in &snapshot.clusters {
            let lease = snapshot.lease(id).unwrap_or_default();
            let view = ClusterView {
                lease,
                ..view.clone()
            };
            known
                .members
                .insert(id.clone(), MemberRecord { view, trust_acked: 0 });
        }
        for record in records {
            if let Err(invalid) = known.apply(v1::entry::Entry::Export(record.clone())) {
                known.unreadable.push(invalid.to_string());
            }
        }
        known
    }

    /// The exports of one service.
    pub(crate) fn of_service(&self, key: &ServiceKey) -> Vec<&ExportRecord> {
        self.exports
            .values()
            .filter(|record| &record.export.key == key)
            .collect()
    }
}

fn clusters(field: &str, ids: &[String]) -> Result<std::collections::BTreeSet<ClusterId>, Invalid> {
    ids.iter().map(|id| cluster_id(field, id)).collect()
}

#[cfg(test)]
mod tests {
    use v1::watch_event::Event;

    use super::*;

    fn apply(entry: v1::entry::Entry) -> v1::WatchEvent {
        let entry = Some(v1::Entry { entry: Some(entry) });
        v1::WatchEvent {
            event: Some(Event::Apply(v1::WatchApply { entry, revision: 1 })),
        }
    }

    fn member(id: &str) -> v1::Member {
        let view = v1::ClusterView {
            id: id.into(),
            locality: Some(v1::Locality::default()),
            network: "net".into(),
            gateways: vec!["127.0.0.1:7443".into()],
            lease: v1::Lease::Alive.into(),
        };
        v1::Member {
            view: Some(view),
            trust_acked: 7,
            ..v1::Member::default()
        }
    }

    #[test]
    fn one_bad_entry_never_sinks_the_view() {
        let mut records = Records::default();
        let init = v1::WatchEvent {
            event: Some(Event::Init(v1::WatchInit { incarnation: 3 })),
        };
        assert!(!records.take(init));
        assert!(!records.take(apply(v1::entry::Entry::Member(member("west")))));
        assert!(!records.take(apply(v1::entry::Entry::Member(member("Not A Label")))));
        let grant = v1::Grant {
            key: Some(v1::ServiceKey {
                namespace: "shop".into(),
                name: "checkout".into(),
            }),
            exporter: "west".into(),
            importers: vec!["east".into()],
        };
        assert!(!records.take(apply(v1::entry::Entry::Grant(grant))));
        let done = v1::WatchProgress {
            incarnation: 3,
            revision: 9,
            fresh: true,
            unix_ms: 5,
        };
        assert!(records.take(v1::WatchEvent {
            event: Some(Event::InitDone(done))
        }));
        assert_eq!(
            records
                .members
                .keys()
                .map(ToString::to_string)
                .collect::<Vec<_>>(),
            ["west"]
        );
        assert_eq!(records.grants.by_export.len(), 1);
        assert_eq!(
            (records.incarnation, records.revision, records.fresh),
            (3, 9, true)
        );
        assert_eq!(records.unreadable.len(), 1);
        assert!(
            records.unreadable[0].starts_with("field member.view.id:"),
            "{}",
            records.unreadable[0]
        );
    }
}
