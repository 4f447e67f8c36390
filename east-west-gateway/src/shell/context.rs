//! What every task of the gateway shares.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tombolo_clusterset::{ClusterId, Link};
use tombolo_daemon::Seams;
use tombolo_daemon::Shutdown;
use tombolo_daemon::log_limit::LogLimit;
use tombolo_trust::SpiffeId;
use tombolo_tunnel::Tunnel;
use tombolo_wire::convert::LinkReport;
use tombolo_wire::local::{ClusterSite, SnapshotFeed};

use super::health::Health;
use super::listeners::{FLOWS_MAX, FLOWS_PER_SOURCE, Limiter};
use super::metrics::Metrics;

/// The links at one moment, and the tunnels that make them: published whole, so that they never disagree.
#[derive(Debug, Default)]
pub(super) struct LinkView {
    /// For DNS, agent and sidecars.
    pub(super) reports: BTreeMap<ClusterId, LinkReport>,
    /// For the selection.
    pub(super) links: BTreeMap<ClusterId, Link>,
    /// Those that take new flows, best first.
    pub(super) tunnels: BTreeMap<ClusterId, Vec<Tunnel>>,
}

/// Shared by every task; one per process.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) site: ClusterSite,
    pub(super) seams: Seams,
    pub(super) shutdown: Shutdown,
    /// What our flow headers name as their source: clients of a VIP do not say who they are.
    pub(super) source: SpiffeId,
    pub(super) snapshots: SnapshotFeed,
    pub(super) links: watch::Receiver<Arc<LinkView>>,
    pub(super) health: Health,
    /// Flows of clients.
    pub(super) limiter: Limiter,
    /// Flows of peers.
    pub(super) inbound_limiter: Limiter,
    pub(super) metrics: Metrics,
    /// Warnings that clients or peers can cause at will.
    pub(super) log: LogLimit,
    rng: Mutex<StdRng>,
}

impl Context {
    pub(super) fn new(
        site: ClusterSite,
        seams: Seams,
        shutdown: Shutdown,
        source: SpiffeId,
        snapshots: SnapshotFeed,
        links: watch::Receiver<Arc<LinkView>>,
        metrics: Metrics,
    ) -> Self {
        let rng = Mutex::new(seams.entropy.rng());
        Self {
            site,
            seams,
            shutdown,
            source,
            snapshots,
            links,
            health: Health::default(),
            limiter: Limiter::new(FLOWS_MAX, FLOWS_PER_SOURCE),
            inbound_limiter: Limiter::new(FLOWS_MAX, FLOWS_PER_SOURCE),
            metrics,
            log: LogLimit::default(),
            rng,
        }
    }

    /// The time that the pure modules count with.
    pub(super) fn now(&self) -> Instant {
        self.seams.clock.now().into_std()
    }

    /// Runs `draw` with the gateway's generator: a few draws under a lock cost less than a generator per flow.
    pub(super) fn with_rng<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.rng.lock())
    }

    pub(super) fn link_view(&self) -> Arc<LinkView> {
        self.links.borrow().clone()
    }
}
