//! What the broker said: members, exports, grants, trust, drills, as the watch stream brings them.
//!
//! [`WatchState::take`] eats the stream's events in their order. Readers see only whole batches: a full state is swapped in
//! at InitDone, deltas at Progress; what a broken stream left half said is dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tombolo_clusterset::drill::{Drill, DrillId};
use tombolo_clusterset::policy::Grants;
use tombolo_clusterset::{ClusterId, ClusterView, ExportRecord, Namespace, ServiceKey};
use tombolo_wire::convert::{self, Invalid};
use tombolo_wire::v1;

/// Most changes between two Progress events: every export of the largest clusterset (250 clusters, 10,000 services) once. A
/// broker that sends more without an end is not to be followed.
pub const MAX_BATCH: usize = 100_000;

/// Most members (the design's bound is 250; the rest is room for those that left in one batch).
const MAX_CLUSTERS_NAMED: usize = 1_000;

/// The trust bundle as the broker keeps it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {
    /// Trust domain.
    pub trust_domain: String,
    /// Roots, DER, in the order of their staging.
    pub roots: Vec<Vec<u8>>,
    /// SHA-256 of the key of each denied intermediate.
    pub denied: Vec<[u8; 32]>,
    /// Log index of its last change.
    pub revision: u64,
}

/// A whole state of the clusterset at one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watched {
    /// Incarnation of the clusterset; 0 when none was heard yet.
    pub incarnation: u64,
    /// Log index of the batch that last changed anything here: what the cache holds, and so what may be served.
    pub revision: u64,
    /// Members, this cluster included.
    pub members: BTreeMap<ClusterId, ClusterView>,
    /// Exports by service and cluster.
    pub records: BTreeMap<ServiceKey, BTreeMap<ClusterId, Arc<ExportRecord>>>,
    /// Grants and reservations.
    pub grants: Grants,
    /// Trust.
    pub trust: Trust,
    /// Drills; at most one runs.
    pub drills: BTreeMap<DrillId, Drill>,
    /// API addresses of the brokers, "ip:port".
    pub brokers: Vec<String>,
}

/// Which parts a batch changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Everything may have.
    pub all: bool,
    /// Exports or grants of these services.
    pub services: BTreeSet<ServiceKey>,
    /// Anything at all, a lease for example.
    pub any: bool,
    /// Members came, went or moved between networks.
    pub members: bool,
    /// A drill began or ended.
    pub drills: bool,
    /// The broker list.
    pub brokers: bool,
    /// Trust.
    pub trust: bool,
}

/// What to do after an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// Nothing yet: the batch goes on.
    Part,
    /// A batch ended: these parts changed.
    Batch {
        /// What it changed.
        changes: Changes,
        /// Whether the broker has heard from a quorum lately.
        fresh: bool,
        /// The broker's clock.
        unix_ms: u64,
    },
}

/// Why the stream cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The broker is behind what this agent has seen.
    #[error(
        "the broker stands at incarnation {incarnation} revision {revision}, which is older than ours ({ours_incarnation}, {ours}); trying another"
    )]
    Behind {
        /// Its incarnation.
        incarnation: u64,
        /// Its revision.
        revision: u64,
        /// Our incarnation.
        ours_incarnation: u64,
        /// Our revision.
        ours: u64,
    },
    /// Deltas of an incarnation that we do not have.
    #[error("the broker sends changes of incarnation {found}, and ours is {ours}; starting over")]
    OtherIncarnation {
        /// Its incarnation.
        found: u64,
        /// Ours.
        ours: u64,
    },
    /// Changes without end.
    #[error("the broker sent more than {MAX_BATCH} changes in one batch; trying another")]
    Unbounded,
    /// InitDone without Init, or nothing in an event.
    #[error("the broker's watch stream makes no sense ({0}); trying another")]
    OutOfOrder(&'static str),
}

/// The state, and the batch that is being read.
#[derive(Debug, Clone, Default)]
pub struct WatchState {
    current: Watched,
    /// Log index that the broker has come to, changes or not: only for resuming, since no cache keeps it.
    heard: u64,
    fresh: bool,
    confirmed_unix_ms: u64,
    staging: Option<Watched>,
    pending: Vec<Change>,
    rejected: u64,
}

#[derive(Debug, Clone)]
enum Change {
    Apply(Box<v1::Entry>),
    Delete(Box<v1::EntryKey>),
}

impl WatchState {
    /// A state that was cached. It is not fresh before a broker confirms it.
    #[must_use]
    pub fn restored(current: Watched, confirmed_unix_ms: u64) -> Self {
        Self {
            heard: current.revision,
            current,
            confirmed_unix_ms,
            ..Self::default()
        }
    }

    /// The newest whole state.
    #[must_use]
    pub fn current(&self) -> &Watched {
        &self.current
    }

    /// Whether leases may be believed: a stream is up, and its broker hears a quorum.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// When a broker last confirmed the state, by its clock; 0 when never.
    #[must_use]
    pub fn confirmed_unix_ms(&self) -> u64 {
        self.confirmed_unix_ms
    }

    /// Entries that made no sense and were left out.
    #[must_use]
    pub fn rejected(&self) -> u64 {
        self.rejected
    }

    /// Where to resume: (incarnation, revision).
    #[must_use]
    pub fn resume_from(&self) -> (u64, u64) {
        (self.current.incarnation, self.heard)
    }

    /// The stream broke: what it left half said is dropped, and leases are not believed any more. True when that is news.
    pub fn lost(&mut self) -> bool {
        self.staging = None;
        self.pending.clear();
        std::mem::take(&mut self.fresh)
    }

    /// Takes the next event of the stream.
    ///
    /// # Errors
    /// [`WatchError`]: close the stream, and try another broker. An entry that makes no sense is no error: it is left out and
    /// reported through `reject`.
    pub fn take(
        &mut self,
        event: v1::WatchEvent,
        mut reject: impl FnMut(Invalid),
    ) -> Result<Taken, WatchError> {
        use v1::watch_event::Event;
        match event.event.ok_or(WatchError::OutOfOrder("an empty event"))? {
            Event::Init(init) => {
                self.pending.clear();
                self.staging = Some(Watched {
                    incarnation: init.incarnation,
                    ..Watched::default()
                });
                Ok(Taken::Part)
            }
            Event::Apply(apply) => {
                let entry = apply
                    .entry
                    .ok_or(WatchError::OutOfOrder("an Apply without an entry"))?;
                self.push(Change::Apply(Box::new(entry)), &mut reject)
            }
            Event::Delete(delete) => {
                let key = delete
                    .key
                    .ok_or(WatchError::OutOfOrder("a Delete without a key"))?;
                self.push(Change::Delete(Box::new(key)), &mut reject)
            }
            Event::InitDone(done) => {
                let mut staged = self
                    .staging
                    .take()
                    .ok_or(WatchError::OutOfOrder("InitDone without Init"))?;
                let (incarnation, revision) = (done.incarnation, done.revision);
                let ours = self.resume_from();
                if (incarnation, revision) < ours {
                    return Err(WatchError::Behind {
                        incarnation,
                        revision,
                        ours_incarnation: ours.0,
                        ours: ours.1,
                    });
                }
                (staged.incarnation, staged.revision) = (incarnation, revision);
                self.current = staged;
                self.heard = revision;
                let changes = Changes {
                    all: true,
                    any: true,
                    members: true,
                    drills: true,
                    brokers: true,
                    trust: true,
                    ..Changes::default()
                };
                Ok(self.confirm(changes, &done))
            }
            Event::Progress(progress) => {
                if self.staging.is_some() {
                    return Err(WatchError::OutOfOrder("Progress before InitDone"));
                }
                if progress.incarnation != self.current.incarnation {
                    let (found, ours) = (progress.incarnation, self.current.incarnation);
                    return Err(WatchError::OtherIncarnation { found, ours });
                }
                let mut changes = Changes::default();
                for change in std::mem::take(&mut self.pending) {
                    self.rejected += change.carry_out(&mut self.current, &mut changes, &mut reject);
                }
                self.heard = self.heard.max(progress.revision);
                if changes.any {
                    self.current.revision = self.heard;
                }
                Ok(self.confirm(changes, &progress))
            }
        }
    }

    fn push(&mut self, change: Change, reject: &mut impl FnMut(Invalid)) -> Result<Taken, WatchError> {
        match &mut self.staging {
            Some(staged) => self.rejected += change.carry_out(staged, &mut Changes::default(), reject),
            None if self.pending.len() >= MAX_BATCH => return Err(WatchError::Unbounded),
            None => self.pending.push(change),
        }
        Ok(Taken::Part)
    }

    fn confirm(&mut self, changes: Changes, progress: &v1::WatchProgress) -> Taken {
        self.fresh = progress.fresh;
        if progress.fresh {
            self.confirmed_unix_ms = self.confirmed_unix_ms.max(progress.unix_ms);
        }
        Taken::Batch {
            changes,
            fresh: progress.fresh,
            unix_ms: progress.unix_ms,
        }
    }
}

impl Change {
    /// Changes `state`; the number of entries left out (0 or 1).
    fn carry_out(self, state: &mut Watched, changes: &mut Changes, reject: &mut impl FnMut(Invalid)) -> u64 {
        changes.any = true;
        let outcome = match self {
            Self::Apply(entry) => state.apply(&entry, changes),
            Self::Delete(key) => state.delete(&key, changes),
        };
        outcome.map_or_else(
            |invalid| {
                reject(invalid);
                1
            },
            |()| 0,
        )
    }
}

impl Watched {
    /// Adds or replaces one entry.
    ///
    /// # Errors
    /// [`Invalid`] when it makes no sense; the state is then as before.
    pub fn apply(&mut self, entry: &v1::Entry, changes: &mut Changes) -> Result<(), Invalid> {
        use v1::entry::Entry;
        match entry
            .entry
            .as_ref()
            .ok_or_else(|| Invalid::new("entry", "is missing"))?
        {
            Entry::Member(member) => {
                let view = member
                    .view
                    .as_ref()
                    .ok_or_else(|| Invalid::new("member.view", "is missing"))?;
                let view = ClusterView::try_from(view).map_err(|invalid| invalid.within("member"))?;
                let moved = self
                    .members
                    .get(&view.id)
                    .is_none_or(|old| old.network != view.network);
                changes.members |= moved;
                self.members.insert(view.id.clone(), view);
            }
            Entry::Export(record) => {
                let record = ExportRecord::try_from(record).map_err(|invalid| invalid.within("export"))?;
                let (key, cluster) = (record.export.key.clone(), record.export.cluster.clone());
                changes.services.insert(key.clone());
                self.records
                    .entry(key)
                    .or_default()
                    .insert(cluster, Arc::new(record));
            }
            Entry::Grant(grant) => {
                let key = convert::service_key("grant.key", grant.key.as_ref())?;
                let exporter = convert::cluster_id("grant.exporter", &grant.exporter)?;
                let importers = clusters("grant.importers", &grant.importers)?;
                changes.services.insert(key.clone());
                self.grants.by_export.insert((key, exporter), importers);
            }
            Entry::Reservation(reservation) => {
                let namespace = namespace(&reservation.namespace)?;
                let holders = clusters("reservation.clusters", &reservation.clusters)?;
                self.grants.reserved.insert(namespace, holders);
                changes.all = true;
            }
            Entry::Trust(bundle) => {
                self.trust = trust(bundle)?;
                changes.trust = true;
            }
            Entry::Drill(drill) => {
                let drill = Drill::try_from(drill).map_err(|invalid| invalid.within("drill"))?;
                self.drills.insert(drill.id, drill);
                changes.drills = true;
            }
            Entry::Brokers(brokers) => {
                self.brokers = brokers.addresses.clone();
                changes.brokers = true;
            }
        }
        Ok(())
    }

    fn delete(&mut self, key: &v1::EntryKey, changes: &mut Changes) -> Result<(), Invalid> {
        use v1::entry_key::Key;
        match key
            .key
            .as_ref()
            .ok_or_else(|| Invalid::new("key", "is missing"))?
        {
            Key::Member(cluster) => {
                self.members.remove(&convert::cluster_id("member", cluster)?);
                changes.members = true;
            }
            Key::Export(export) => {
                let (key, cluster) = export_key(export)?;
                if let Some(records) = self.records.get_mut(&key) {
                    records.remove(&cluster);
                    if records.is_empty() {
                        self.records.remove(&key);
                    }
                }
                changes.services.insert(key);
            }
            Key::Grant(grant) => {
                let (key, cluster) = export_key(grant)?;
                changes.services.insert(key.clone());
                self.grants.by_export.remove(&(key, cluster));
            }
            Key::Reservation(reserved) => {
                self.grants.reserved.remove(&namespace(reserved)?);
                changes.all = true;
            }
            Key::Drill(id) => {
                self.drills.remove(&DrillId(*id));
                changes.drills = true;
            }
        }
        Ok(())
    }

    /// Everything but the drills, which must never outlive their broker, as the entries of a full state.
    #[must_use]
    pub fn to_entries(&self) -> Vec<v1::Entry> {
        use v1::entry::Entry;
        let members = self.members.values().map(|view| {
            Entry::Member(v1::Member {
                view: Some(view.into()),
                ..v1::Member::default()
            })
        });
        let records = self
            .records
            .values()
            .flat_map(BTreeMap::values)
            .map(|record| Entry::Export(record.as_ref().into()));
        let grants = self.grants.by_export.iter().map(|((key, exporter), importers)| {
            let importers = importers.iter().map(ToString::to_string).collect();
            Entry::Grant(v1::Grant {
                key: Some(key.into()),
                exporter: exporter.to_string(),
                importers,
            })
        });
        let reservations = self.grants.reserved.iter().map(|(namespace, clusters)| {
            let clusters = clusters.iter().map(ToString::to_string).collect();
            Entry::Reservation(v1::Reservation {
                namespace: namespace.to_string(),
                clusters,
            })
        });
        let trust = Entry::Trust(self.trust.to_bundle());
        let brokers = Entry::Brokers(v1::Brokers {
            addresses: self.brokers.clone(),
        });
        let all = members
            .chain(records)
            .chain(grants)
            .chain(reservations)
            .chain([trust, brokers]);
        all.map(|entry| v1::Entry { entry: Some(entry) }).collect()
    }
}

impl Trust {
    /// The bundle as it travels.
    #[must_use]
    pub fn to_bundle(&self) -> v1::TrustBundle {
        v1::TrustBundle {
            trust_domain: self.trust_domain.clone(),
            roots: self
                .roots
                .iter()
                .map(|root| bytes::Bytes::copy_from_slice(root))
                .collect(),
            denied: self
                .denied
                .iter()
                .map(|key| bytes::Bytes::copy_from_slice(key))
                .collect(),
            revision: self.revision,
        }
    }
}

/// A trust bundle, checked.
///
/// # Errors
/// [`Invalid`] when a denied key is not 32 bytes long or there are no roots.
pub fn trust(bundle: &v1::TrustBundle) -> Result<Trust, Invalid> {
    if bundle.roots.is_empty() {
        return Err(Invalid::new("trust.roots", "is empty"));
    }
    let denied = bundle.denied.iter().map(|key| {
        <[u8; 32]>::try_from(key.as_ref())
            .map_err(|_| Invalid::new("trust.denied", format!("{} bytes are no SHA-256", key.len())))
    });
    Ok(Trust {
        trust_domain: bundle.trust_domain.clone(),
        denied: denied.collect::<Result<_, _>>()?,
        roots: bundle.roots.iter().map(|root| root.to_vec()).collect(),
        revision: bundle.revision,
    })
}

fn clusters(field: &str, names: &[String]) -> Result<BTreeSet<ClusterId>, Invalid> {
    if names.len() > MAX_CLUSTERS_NAMED {
        return Err(Invalid::new(
            field,
            format!(
                "names {} clusters; at most {MAX_CLUSTERS_NAMED} are allowed",
                names.len()
            ),
        ));
    }
    names
        .iter()
        .map(|name| convert::cluster_id(field, name))
        .collect()
}

fn namespace(text: &str) -> Result<Namespace, Invalid> {
    Namespace::parse(text).map_err(|error| Invalid::new("namespace", error.to_string()))
}

fn export_key(key: &v1::ExportKey) -> Result<(ServiceKey, ClusterId), Invalid> {
    Ok((
        convert::service_key("service", key.service.as_ref())?,
        convert::cluster_id("cluster", &key.cluster)?,
    ))
}

#[cfg(test)]
mod tests;
