//! What a broker counts.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// One broker's metrics; clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Current Raft term.
    pub term: Gauge<u64, AtomicU64>,
    /// Id of the leader, 0 for none.
    pub leader: Gauge<u64, AtomicU64>,
    /// Index of the last entry in the log.
    pub last_log_index: Gauge<u64, AtomicU64>,
    /// Index of the last applied entry.
    pub applied_index: Gauge<u64, AtomicU64>,
    /// From the writing of a batch to its decision.
    pub proposal_seconds: Histogram,
    /// Watch streams.
    pub watchers: Gauge,
    /// Publish streams.
    pub publishers: Gauge,
    /// Leases that are alive on this leader; 0 on a follower.
    pub leases: Gauge,
    /// TLS handshakes that failed.
    pub handshakes_failed: Counter,
    /// Exports that were refused.
    pub exports_refused: Counter,
}

impl Metrics {
    /// Registers them under `tombolo_broker`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            term: Gauge::default(),
            leader: Gauge::default(),
            last_log_index: Gauge::default(),
            applied_index: Gauge::default(),
            // 1 ms to 8 s: a write in memory to several elections.
            proposal_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            watchers: Gauge::default(),
            publishers: Gauge::default(),
            leases: Gauge::default(),
            handshakes_failed: Counter::default(),
            exports_refused: Counter::default(),
        };
        let registry = registry.sub_registry_with_prefix("tombolo_broker");
        registry.register("raft_term", "Current Raft term", metrics.term.clone());
        registry.register(
            "raft_leader",
            "Id of the leader, 0 for none",
            metrics.leader.clone(),
        );
        registry.register(
            "raft_last_log_index",
            "Last entry in the log",
            metrics.last_log_index.clone(),
        );
        registry.register(
            "raft_applied_index",
            "Last applied entry",
            metrics.applied_index.clone(),
        );
        let help = "From the writing of a batch to its decision";
        registry.register_with_unit("proposal", help, Unit::Seconds, metrics.proposal_seconds.clone());
        registry.register("watchers", "Watch streams", metrics.watchers.clone());
        registry.register("publishers", "Publish streams", metrics.publishers.clone());
        registry.register("leases", "Leases alive on this leader", metrics.leases.clone());
        registry.register(
            "handshakes_failed",
            "TLS handshakes that failed",
            metrics.handshakes_failed.clone(),
        );
        registry.register(
            "exports_refused",
            "Exports that were refused",
            metrics.exports_refused.clone(),
        );
        metrics
    }
}

/// Counts one while it lives.
#[derive(Debug)]
pub struct Counted(Gauge);

impl Counted {
    /// One more of `gauge`.
    #[must_use]
    pub fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
