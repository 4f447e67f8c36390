//! The loop that owns the agent's state: events in, stored files and a served snapshot out.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tombolo_clusterset::Snapshot;
use tombolo_daemon::ready::{Blocker, Readiness};
use tombolo_daemon::seam::Seams;
use tombolo_daemon::shutdown::Shutdown;
use tombolo_daemon::supervise::TaskResult;
use tombolo_wire::local::{ClusterSite, RunningDrill};
use tombolo_wire::v1;

use super::directory::Found;
use super::identity::{ClusterIdentity, Membership, save_membership, unix_ms};
use super::local_server::Question;
use super::metrics::{Metrics, gauge};
use super::run::broker_addresses;
use super::sync::{FromBroker, TrustAck, Wanted};
use crate::manifest::{ManifestError, Manifests};
use crate::publish::Publisher;
use crate::reconcile::Reconciler;
use crate::watched::{Changes, Taken};

/// Cached state of the clusterset, in the cluster's data directory.
pub const CACHE_FILE: &str = "snapshot.bin";
/// Virtual addresses.
pub const VIPS_FILE: &str = "vips.json";
/// UIDs and times of exports.
pub const SIGHTINGS_FILE: &str = "exports.json";

/// The cache is written at most this often, but for what must not be undone by a crash: what it misses, the next broker tells
/// again.
const CACHE_EVERY: Duration = Duration::from_secs(1);

/// With no cache and no broker for so long, what this cluster has itself is served: its own pods must not wait for others. A
/// broker in reach answers in a fraction of it, and then the first snapshot is the whole one.
const ALONE_AFTER: Duration = Duration::from_secs(3);

/// A file that could not be stored is tried again after this; only what needs it waits.
const STORE_AGAIN: Duration = Duration::from_secs(1);

/// Messages of the session taken in one round, so that a burst makes one snapshot and a question never waits long.
const BURST: usize = 4_096;

/// What keeps the agent from being ready.
#[derive(Debug)]
pub struct Blockers {
    manifests: Blocker,
    snapshot: Blocker,
}

impl Blockers {
    /// Takes them out.
    #[must_use]
    pub fn new(readiness: &Readiness) -> Self {
        Self {
            manifests: readiness.block("manifests-read"),
            snapshot: readiness.block("snapshot"),
        }
    }
}

/// The state and everyone it is told to.
#[derive(Debug)]
pub struct Agent {
    pub(super) reconciler: Reconciler,
    pub(super) site: ClusterSite,
    pub(super) identity: Arc<ClusterIdentity>,
    pub(super) membership: Membership,
    pub(super) publisher: Arc<Mutex<Publisher>>,
    pub(super) snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    pub(super) drill: watch::Sender<Option<RunningDrill>>,
    pub(super) wanted: watch::Sender<Wanted>,
    pub(super) brokers: watch::Sender<Vec<SocketAddr>>,
    pub(super) trust_ack: Arc<watch::Sender<TrustAck>>,
    pub(super) incarnation: watch::Sender<u64>,
    pub(super) abandon: Arc<Notify>,
    pub(super) blockers: Blockers,
    pub(super) metrics: Metrics,
    pub(super) seams: Seams,
}

/// What the loop remembers besides the agent's state.
struct Round {
    rng: StdRng,
    broker: Option<SocketAddr>,
    /// The broker's clock at its last batch that changed something not yet served.
    sent_unix_ms: Option<u64>,
    trust_changed: bool,
    directory_error: Option<String>,
    alone_at: Instant,
    store_again_at: Option<Instant>,
    cache_at: Option<Instant>,
    cached_at: Option<Instant>,
    /// Members or trust changed: the cache comes before the snapshot, or a crash would let an evicted cluster in again.
    cache_first: bool,
}

impl Agent {
    /// Runs until the drain begins, and leaves the cache behind.
    ///
    /// # Errors
    /// When a task that it listens to has died.
    pub async fn run(
        mut self,
        mut found: mpsc::Receiver<Found>,
        mut from_broker: mpsc::Receiver<FromBroker>,
        mut questions: mpsc::Receiver<Question>,
        shutdown: Shutdown,
    ) -> TaskResult {
        let mut round = Round {
            rng: self.seams.entropy.rng(),
            broker: None,
            sent_unix_ms: None,
            // A cached bundle may be newer than the identity's roots.
            trust_changed: self.reconciler.knows_the_clusterset(),
            directory_error: None,
            alone_at: self.seams.clock.now() + ALONE_AFTER,
            store_again_at: None,
            cache_at: None,
            cached_at: None,
            cache_first: false,
        };
        loop {
            let drill_end = self
                .drill
                .borrow()
                .as_ref()
                .map(|running| running.began + running.drill.total());
            tokio::select! {
                () = shutdown.drain() => break,
                Some(message) = found.recv() => self.take_found(message, &mut round),
                Some(message) = from_broker.recv() => {
                    self.take_message(message, &mut round).await;
                    for _ in 1..BURST {
                        let Ok(message) = from_broker.try_recv() else { break };
                        self.take_message(message, &mut round).await;
                    }
                }
                Some(question) = questions.recv() => {
                    // Whoever asked may be gone.
                    let _ = question.send(self.inspect(&round));
                }
                () = at(round.cache_at) => self.store_cache(&mut round).await,
                () = at(round.store_again_at) => {
                    round.store_again_at = None;
                    self.reconciler.store_again();
                }
                () = at(drill_end) => { self.drill.send_replace(None); }
                () = sleep_until(round.alone_at), if self.snapshots.borrow().is_none() && self.seams.clock.now() < round.alone_at => {}
                else => return if shutdown.is_draining() { Ok(()) } else { Err("the tasks that feed the agent have died".into()) },
            }
            if std::mem::take(&mut round.cache_first) {
                self.store_cache(&mut round).await;
            }
            self.take_trust(&mut round);
            self.step(&mut round).await;
        }
        if self.reconciler.knows_the_clusterset() {
            self.store_cache(&mut round).await;
        }
        Ok(())
    }

    fn take_found(&mut self, found: Found, round: &mut Round) {
        match found {
            Found::Manifests(manifests) => {
                round.directory_error = None;
                self.note(&manifests);
                let now = unix_ms(self.seams.clock.wall());
                self.reconciler.take_manifests(manifests, now, &mut round.rng);
                self.blockers.manifests.mark_ready();
            }
            Found::Unreadable { reason } => {
                tracing::error!(reason, "the manifests stay as they were last read");
                if self.reconciler.manifests().is_none() {
                    self.blockers.manifests.mark_unready(reason.clone());
                }
                round.directory_error = Some(reason);
            }
        }
    }

    /// Logs what is new among the errors, and counts.
    fn note(&self, manifests: &Manifests) {
        let known: &[ManifestError] = self.reconciler.manifests().map_or(&[], |old| &old.errors);
        for error in manifests.errors.iter().filter(|error| !known.contains(error)) {
            tracing::warn!(
                file = error.file,
                line = error.line,
                reason = error.reason,
                "left out a manifest"
            );
        }
        for (file, line, kind) in &manifests.ignored {
            tracing::debug!(
                file,
                line,
                kind,
                "ignored a manifest of a kind that Tombolo does not read"
            );
        }
        let slices: usize = manifests
            .slices
            .values()
            .map(std::collections::BTreeMap::len)
            .sum();
        self.metrics
            .manifest_documents
            .set(gauge(manifests.services.len() + manifests.exports.len() + slices));
        self.metrics.manifest_errors.set(gauge(manifests.errors.len()));
    }

    async fn take_message(&mut self, message: FromBroker, round: &mut Round) {
        match message {
            FromBroker::Opening { broker, resume } => {
                round.broker = Some(broker);
                // A session that died meanwhile needs no answer.
                let _ = resume.send(self.reconciler.watch().resume_from());
            }
            FromBroker::Lost => {
                round.broker = None;
                self.reconciler.watch_lost();
            }
            // What a session sent before its watch was dropped for an error is of no use.
            FromBroker::Event(_) if round.broker.is_none() => {}
            FromBroker::Event(event) => {
                let metrics = &self.metrics;
                let reject = |invalid: tombolo_wire::convert::Invalid| {
                    metrics.watch_rejected.inc();
                    tracing::warn!(%invalid, "left out an entry from the broker");
                };
                match self.reconciler.take_watch_event(*event, reject) {
                    Ok(Taken::Part) => {}
                    Ok(Taken::Batch { changes, unix_ms, .. }) => {
                        self.take_batch(&changes, unix_ms, round).await
                    }
                    Err(error) => {
                        tracing::warn!(%error, "dropping the watch");
                        round.broker = None;
                        self.reconciler.watch_lost();
                        self.abandon.notify_one();
                    }
                }
            }
        }
    }

    async fn take_batch(&mut self, changes: &Changes, unix_ms: u64, round: &mut Round) {
        if changes.all || changes.members || !changes.services.is_empty() {
            round.sent_unix_ms.get_or_insert(unix_ms);
        }
        self.incarnation.send_if_modified(|known| {
            let incarnation = self.reconciler.watch().current().incarnation;
            std::mem::replace(known, incarnation) != incarnation
        });
        if changes.any {
            self.schedule_cache(round);
        }
        round.trust_changed |= changes.trust;
        round.cache_first |= changes.members || changes.trust;
        if changes.drills {
            self.take_drill();
        }
        if changes.brokers {
            self.take_brokers().await;
        }
    }

    /// The newest drill runs; one that is known already keeps the time of its receipt.
    fn take_drill(&self) {
        let newest = self
            .reconciler
            .watch()
            .current()
            .drills
            .values()
            .next_back()
            .cloned();
        let now = self.seams.clock.now();
        self.drill.send_if_modified(|running| {
            let next = newest.map(|drill| match running.as_ref() {
                Some(old) if old.drill.id == drill.id => RunningDrill { drill, began: old.began },
                _ => RunningDrill { drill, began: now },
            });
            let next = next.filter(|next| !next.is_over(now));
            let changed = *running != next;
            if changed {
                match &next {
                    Some(next) => tracing::warn!(drill = next.drill.id.0, kind = next.drill.kind.as_str(), target = %next.drill.target, "a drill begins"),
                    None => tracing::warn!("the drill is over"),
                }
                *running = next;
            }
            changed
        });
    }

    async fn take_brokers(&mut self) {
        let texts = self.reconciler.watch().current().brokers.clone();
        let addresses = broker_addresses(&texts);
        if addresses.is_empty() || texts == self.membership.brokers {
            return;
        }
        self.brokers.send_replace(addresses);
        self.membership.brokers = texts;
        if let Err(error) = save_membership(&self.site.data_dir, &self.membership, &self.seams).await {
            self.metrics.store_failures.inc();
            tracing::error!(%error, "cannot keep the list of brokers; a restart begins with the old one");
        }
    }

    fn take_trust(&self, round: &mut Round) {
        if !std::mem::take(&mut round.trust_changed) {
            return;
        }
        let trust = &self.reconciler.watch().current().trust;
        if trust.roots.is_empty() {
            return;
        }
        match self.identity.take_trust(trust) {
            Ok(()) => {
                let lagging = self.identity.lagging();
                self.trust_ack.send_replace(TrustAck {
                    revision: trust.revision,
                    lagging,
                });
            }
            Err(error) => {
                tracing::error!(%error, "cannot use the trust bundle of the broker; keeping the old one")
            }
        }
    }

    async fn step(&mut self, round: &mut Round) {
        if round.store_again_at.is_none() {
            self.publish(round).await;
        }
        if self.reconciler.knows_the_clusterset() || self.seams.clock.now() >= round.alone_at {
            self.serve(round).await;
        }
    }

    async fn publish(&mut self, round: &mut Round) {
        let Some(publication) = self.reconciler.publication() else {
            return;
        };
        if let Some(sightings) = &publication.store_sightings
            && let Err(error) = self.store_json(SIGHTINGS_FILE, sightings).await
        {
            self.reconciler.undo_publication(&publication);
            self.try_again(round);
            tracing::error!(%error, "cannot store what is exported, and so do not publish it; trying again");
            return;
        }
        self.metrics.exports.set(gauge(publication.exports.len()));
        self.wanted.send_replace(Some(publication.exports));
    }

    /// Serves what changed. An address that cannot be stored is left out; the others, and all else, do not wait for the disk.
    async fn serve(&mut self, round: &mut Round) {
        let now_unix_ms = unix_ms(self.seams.clock.wall());
        let Some(mut step) = self.reconciler.step(now_unix_ms) else {
            return;
        };
        if let Some(vips) = &step.store_vips {
            match self.store_json(VIPS_FILE, vips).await {
                Ok(()) => self.reconciler.step_stored(),
                Err(error) => {
                    let held_back = self.reconciler.hold_back_vips(&error.to_string(), now_unix_ms);
                    self.try_again(round);
                    tracing::warn!(%error, held_back, "cannot store the virtual addresses; new imports have none until it works");
                    let Some(without) = self.reconciler.step(now_unix_ms) else {
                        return;
                    };
                    step = without;
                }
            }
        }
        let snapshot = step.snapshot;
        self.count(&snapshot, round);
        tracing::debug!(version = ?snapshot.version, fresh = snapshot.fresh, imports = snapshot.imports.len(), "serving a snapshot");
        self.snapshots.send_replace(Some(Arc::new(snapshot)));
        self.blockers.snapshot.mark_ready();
    }

    fn try_again(&self, round: &mut Round) {
        self.metrics.store_failures.inc();
        round
            .store_again_at
            .get_or_insert(self.seams.clock.now() + STORE_AGAIN);
    }

    async fn store_json(&self, file: &str, value: &impl serde::Serialize) -> std::io::Result<()> {
        let path = self.site.data_dir.join(file);
        self.seams
            .disk
            .write_atomic(&path, serde_json::to_vec_pretty(value)?)
            .await
    }

    fn count(&self, snapshot: &Snapshot, round: &mut Round) {
        let metrics = &self.metrics;
        metrics.imports.set(gauge(snapshot.imports.len()));
        metrics
            .snapshot_incarnation
            .set(gauge(snapshot.version.incarnation));
        metrics.snapshot_revision.set(gauge(snapshot.version.revision));
        metrics.snapshot_local.set(gauge(snapshot.version.local));
        metrics.snapshot_fresh.set(i64::from(snapshot.fresh));
        if let Some(sent) = round.sent_unix_ms.take() {
            // Clocks that disagree by more than the delay make it negative: then there is nothing to tell.
            if let Some(delay) = unix_ms(self.seams.clock.wall()).checked_sub(sent) {
                metrics
                    .propagation_seconds
                    .observe(Duration::from_millis(delay).as_secs_f64());
            }
        }
    }

    fn schedule_cache(&self, round: &mut Round) {
        let now = self.seams.clock.now();
        let earliest = round
            .cached_at
            .map_or(now, |cached| (cached + CACHE_EVERY).max(now));
        round.cache_at.get_or_insert(earliest);
    }

    async fn store_cache(&self, round: &mut Round) {
        let now = self.seams.clock.now();
        round.cached_at = Some(now);
        round.cache_at = None;
        let path = self.site.data_dir.join(CACHE_FILE);
        if let Err(error) = self
            .seams
            .disk
            .write_atomic(Path::new(&path), self.reconciler.cache())
            .await
        {
            self.metrics.store_failures.inc();
            tracing::error!(%error, "cannot cache the state of the clusterset; trying again");
            round.cache_at = Some(now + CACHE_EVERY);
        }
    }

    fn inspect(&self, round: &Round) -> v1::InspectReply {
        let watch = self.reconciler.watch();
        let errors = self
            .reconciler
            .manifests()
            .into_iter()
            .flat_map(|manifests| &manifests.errors);
        let directory = round.directory_error.iter().map(|reason| v1::ManifestError {
            reason: reason.clone(),
            ..Default::default()
        });
        let manifest_errors = directory.chain(errors.map(|error| v1::ManifestError {
            file: error.file.clone(),
            line: error.line,
            reason: error.reason.clone(),
        }));
        let publisher = self.publisher.lock();
        v1::InspectReply {
            records: self.reconciler.records(),
            exports: self
                .reconciler
                .export_statuses(|key| publisher.progress(key).cloned()),
            manifest_errors: manifest_errors.collect(),
            broker: round.broker.map(|broker| broker.to_string()).unwrap_or_default(),
            confirmed_unix_ms: watch.confirmed_unix_ms(),
            fresh: watch.is_fresh(),
            intermediate_not_after_unix_ms: self
                .identity
                .validity()
                .map_or(0, |validity| unix_ms(validity.not_after)),
            imports: self.reconciler.import_statuses(),
        }
    }
}

/// Resolves at `instant`; never without one.
async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
