//! The agent's whole state. Pure: events go in; a [`Publication`] says what to publish, a [`Step`] what to serve.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use rand::Rng;
use tombolo_clusterset::{Export, ServiceKey, Snapshot};
use tombolo_wire::convert::Invalid;
use tombolo_wire::local::ClusterSite;
use tombolo_wire::v1;

use crate::condition::{Condition, ConditionType, Status};
use crate::export_view::ExportView;
use crate::import_view::{ImportView, Inputs, records};
use crate::manifest::Manifests;
use crate::publish::Progress;
use crate::sightings::Sightings;
use crate::vip::{VipBook, VipRecord};
use crate::watched::{Changes, Taken, Trust, WatchError, WatchState};

/// What is to be published, and to be stored before that.
#[derive(Debug)]
pub struct Publication {
    /// To be stored as `exports.json` first.
    pub store_sightings: Option<Sightings>,
    /// All exports of this cluster.
    pub exports: Arc<BTreeMap<ServiceKey, Arc<Export>>>,
}

/// What is to be served, and to be stored before that.
#[derive(Debug)]
pub struct Step {
    /// To be stored as `vips.json` first.
    pub store_vips: Option<VipRecord>,
    /// To be served.
    pub snapshot: Snapshot,
}

/// A broker confirms an unchanged state several times a second; so often the snapshot says so, milliseconds. Whoever asks how
/// old a view is, asks in seconds.
const TELL_CONFIRMED_MS: u64 = 5_000;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Dirty {
    Nothing,
    /// Only what the snapshot says besides imports.
    Frame,
    Services(BTreeSet<ServiceKey>),
    All,
}

/// The state.
#[derive(Debug)]
pub struct Reconciler {
    site: ClusterSite,
    gateways: Vec<SocketAddr>,
    own_trust: Trust,
    manifests: Option<Manifests>,
    sightings: Sightings,
    sightings_changed: bool,
    exports: ExportView,
    published: Option<Arc<BTreeMap<ServiceKey, Arc<Export>>>>,
    watch: WatchState,
    imports: ImportView,
    vips: VipBook,
    local: u64,
    /// What the last snapshot said of its confirmation.
    confirmed_told_ms: u64,
    dirty: Dirty,
}

/// What was found on disk at the start.
#[derive(Debug, Default)]
pub struct Restored {
    /// `exports.json`.
    pub sightings: Sightings,
    /// The cached state of the clusterset.
    pub watch: WatchState,
    /// Local part of the last snapshot's version.
    pub local: u64,
}

impl Reconciler {
    /// Begins with what was stored. `own_trust` is the trust of this cluster's identity, used until a broker or the cache says
    /// more. `now_unix_ms` keeps versions rising over restarts.
    #[must_use]
    pub fn new(
        site: ClusterSite,
        gateways: Vec<SocketAddr>,
        own_trust: Trust,
        vips: VipBook,
        restored: Restored,
        now_unix_ms: u64,
    ) -> Self {
        Self {
            site,
            gateways,
            own_trust,
            manifests: None,
            sightings: restored.sightings,
            sightings_changed: false,
            exports: ExportView::default(),
            published: None,
            watch: restored.watch,
            imports: ImportView::default(),
            vips,
            local: restored.local.max(now_unix_ms),
            confirmed_told_ms: 0,
            dirty: Dirty::All,
        }
    }

    /// The manifests, as they are now.
    pub fn take_manifests(&mut self, manifests: Manifests, now_unix_ms: u64, rng: &mut impl Rng) {
        self.sightings_changed |= self.sightings.see(&manifests, now_unix_ms, rng);
        let exports = ExportView::of(&manifests, &self.site.cluster, &self.sightings, &self.exports);
        let keys = exports.exports.keys().chain(self.exports.exports.keys());
        let differs = |key: &&ServiceKey| match (exports.exports.get(*key), self.exports.exports.get(*key)) {
            (Some(new), Some(old)) => !Arc::ptr_eq(new, old),
            _ => true,
        };
        let changed: BTreeSet<ServiceKey> = keys.filter(differs).cloned().collect();
        self.exports = exports;
        let first = self.manifests.replace(manifests).is_none();
        if first {
            self.dirty = Dirty::All;
        } else if !changed.is_empty() {
            self.soil(changed);
        }
        if self.sightings_changed || self.published.as_deref() != Some(&self.exports.exports) {
            self.published = None;
        }
    }

    /// The next event of the watch stream.
    ///
    /// # Errors
    /// [`WatchError`]: the stream is to be dropped.
    pub fn take_watch_event(
        &mut self,
        event: v1::WatchEvent,
        reject: impl FnMut(Invalid),
    ) -> Result<Taken, WatchError> {
        let was_fresh = self.watch.is_fresh();
        let taken = self.watch.take(event, reject)?;
        if let Taken::Batch { changes, fresh, .. } = &taken {
            let told = self.confirmed_told_ms;
            let confirmed = self.watch.confirmed_unix_ms();
            if changes.any {
                self.soil_by(changes);
            } else if *fresh != was_fresh || confirmed.saturating_sub(told) >= TELL_CONFIRMED_MS {
                self.soil_frame();
            }
        }
        Ok(taken)
    }

    /// The watch stream is gone: leases are not believed any more.
    pub fn watch_lost(&mut self) {
        if self.watch.lost() {
            self.soil_frame();
        }
    }

    fn soil_by(&mut self, changes: &Changes) {
        if changes.all || changes.members {
            self.dirty = Dirty::All;
        } else if changes.services.is_empty() {
            self.soil_frame();
        } else {
            self.soil(changes.services.clone());
        }
    }

    fn soil(&mut self, services: BTreeSet<ServiceKey>) {
        match &mut self.dirty {
            Dirty::All => {}
            Dirty::Services(dirty) => dirty.extend(services),
            Dirty::Nothing | Dirty::Frame => self.dirty = Dirty::Services(services),
        }
    }

    fn soil_frame(&mut self) {
        if self.dirty == Dirty::Nothing {
            self.dirty = Dirty::Frame;
        }
    }

    /// What the broker said, as a whole.
    #[must_use]
    pub fn watch(&self) -> &WatchState {
        &self.watch
    }

    /// What the manifests say; None before they were first read.
    #[must_use]
    pub fn manifests(&self) -> Option<&Manifests> {
        self.manifests.as_ref()
    }

    /// Whether a broker or the cache has told of the clusterset.
    #[must_use]
    pub fn knows_the_clusterset(&self) -> bool {
        self.watch.current().incarnation != 0
    }

    /// The next step, when something changed and the manifests were read: before that, everything this cluster offers would
    /// look withdrawn.
    pub fn step(&mut self, now_unix_ms: u64) -> Option<Step> {
        self.manifests.as_ref()?;
        let dirty = std::mem::replace(&mut self.dirty, Dirty::Nothing);
        if dirty == Dirty::Nothing {
            return None;
        }
        let inputs = Inputs {
            site: &self.site,
            watched: self.watch.current(),
            exports: &self.exports.exports,
            now_unix_ms,
        };
        match &dirty {
            Dirty::All => self.imports.refresh(inputs, &mut self.vips, None),
            Dirty::Services(keys) => self.imports.refresh(inputs, &mut self.vips, Some(keys)),
            Dirty::Nothing | Dirty::Frame => {}
        }
        self.local += 1;
        self.confirmed_told_ms = self.watch.confirmed_unix_ms();
        let mut snapshot = self
            .imports
            .snapshot(&self.watch, &self.site, &self.gateways, self.local);
        if snapshot.roots.is_empty() {
            snapshot.roots.clone_from(&self.own_trust.roots);
            snapshot.trust_domain.clone_from(&self.own_trust.trust_domain);
        }
        Some(Step {
            store_vips: self.vips.take_changed().then(|| self.vips.to_record()),
            snapshot,
        })
    }

    /// What is to be published, when it changed and the manifests were read. It needs no broker's word: a broker is only
    /// asked once there is something to say to it.
    pub fn publication(&mut self) -> Option<Publication> {
        self.manifests.as_ref()?;
        if self.published.is_some() {
            return None;
        }
        let exports = Arc::new(self.exports.exports.clone());
        self.published = Some(Arc::clone(&exports));
        Some(Publication {
            store_sightings: std::mem::take(&mut self.sightings_changed).then(|| self.sightings.clone()),
            exports,
        })
    }

    /// What a publication needs could not be stored: it is to be made again.
    pub fn undo_publication(&mut self, publication: &Publication) {
        self.published = None;
        self.sightings_changed |= publication.store_sightings.is_some();
    }

    /// The book of a step is on disk.
    pub fn step_stored(&mut self) {
        self.vips.stored();
    }

    /// The book of a step could not be stored: the step is to be made again, and then gives out no new address. What is new
    /// is left out, with `reason` in its condition; all else goes on. How many addresses were taken back.
    pub fn hold_back_vips(&mut self, reason: &str, now_unix_ms: u64) -> usize {
        self.dirty = Dirty::All;
        self.vips.close(reason, now_unix_ms)
    }

    /// Storing may work again: the next step tries.
    pub fn store_again(&mut self) {
        if self.vips.reopen() {
            self.dirty = Dirty::All;
        }
    }

    /// The bytes of the cache.
    #[must_use]
    pub fn cache(&self) -> Vec<u8> {
        crate::cache::encode(
            &self.site.cluster,
            self.watch.current(),
            self.watch.confirmed_unix_ms(),
            self.local,
        )
    }

    /// Every export record, as the merge read it.
    #[must_use]
    pub fn records(&self) -> Vec<v1::ExportRecord> {
        let watched = self.watch.current();
        let keys: BTreeSet<&ServiceKey> = watched
            .records
            .keys()
            .chain(self.exports.exports.keys())
            .collect();
        let all = keys
            .into_iter()
            .flat_map(|key| records(watched, &self.site.cluster, &self.exports.exports, key));
        all.map(|record| record.as_ref().into()).collect()
    }

    /// The conditions of every ServiceExport in the manifests. `progress` tells how far its publication has come.
    pub fn export_statuses(
        &self,
        progress: impl Fn(&ServiceKey) -> Option<Progress>,
    ) -> Vec<v1::ExportStatus> {
        let statuses = self.exports.valid.iter().map(|(key, valid)| {
            let mut conditions = vec![valid.clone()];
            if valid.status == Status::True {
                conditions.push(self.ready(key, progress(key)));
                conditions.push(self.conflict(key));
            }
            status(key, &conditions)
        });
        statuses.collect()
    }

    fn ready(&self, key: &ServiceKey, progress: Option<Progress>) -> Condition {
        let admitted = self
            .watch
            .current()
            .records
            .get(key)
            .is_some_and(|records| records.contains_key(&self.site.cluster));
        match progress {
            Some(Progress::Accepted { log_index }) => Condition::new(
                ConditionType::Ready,
                Status::True,
                "Exported",
                format!("the broker has it at log index {log_index}"),
            ),
            Some(Progress::Rejected { reason }) => {
                Condition::new(ConditionType::Ready, Status::False, "Failed", reason)
            }
            Some(Progress::Pending) | None if admitted => {
                let message = "the broker has an earlier version of it; the newest one waits for a broker";
                Condition::new(ConditionType::Ready, Status::Unknown, "Pending", message)
            }
            Some(Progress::Pending) | None => Condition::new(
                ConditionType::Ready,
                Status::False,
                "Pending",
                "no broker has acknowledged it yet",
            ),
        }
    }

    fn conflict(&self, key: &ServiceKey) -> Condition {
        let conflicts = self.imports.conflicts(key);
        if conflicts.is_empty() {
            return Condition::new(ConditionType::Conflict, Status::False, "NoConflicts", "");
        }
        let reasons: Vec<&str> = conflicts.iter().map(|(conflict, _)| conflict.reason()).collect();
        let messages: Vec<&str> = conflicts.iter().map(|(_, message)| message.as_str()).collect();
        Condition::new(
            ConditionType::Conflict,
            Status::True,
            &reasons.join(","),
            messages.join("; "),
        )
    }

    /// The conditions of every import.
    #[must_use]
    pub fn import_statuses(&self) -> Vec<v1::ExportStatus> {
        self.imports
            .import_conditions()
            .map(|(key, ready)| status(key, std::slice::from_ref(ready)))
            .collect()
    }
}

fn status(key: &ServiceKey, conditions: &[Condition]) -> v1::ExportStatus {
    v1::ExportStatus {
        key: Some(key.into()),
        conditions: conditions.iter().map(Into::into).collect(),
    }
}

#[cfg(test)]
mod tests;
