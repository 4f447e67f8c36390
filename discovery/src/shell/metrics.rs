//! What the agent counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// The agent's metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(crate) propagation_seconds: Histogram,
    pub(crate) manifest_documents: Gauge,
    pub(crate) manifest_errors: Gauge,
    pub(crate) exports: Gauge,
    pub(crate) imports: Gauge,
    pub(crate) publish_accepted: Counter,
    pub(crate) publish_rejected: Counter,
    pub(crate) lease_renewals: Counter,
    pub(crate) lease_renewed_unix_ms: Gauge,
    pub(crate) lease_term_ms: Gauge,
    pub(crate) snapshot_incarnation: Gauge,
    pub(crate) snapshot_revision: Gauge,
    pub(crate) snapshot_local: Gauge,
    pub(crate) snapshot_fresh: Gauge,
    pub(crate) broker_sessions: Counter,
    pub(crate) broker_failures: Counter,
    pub(crate) watch_rejected: Counter,
    pub(crate) leaves_issued: Counter,
    pub(crate) leaves_refused: Counter,
    pub(crate) store_failures: Counter,
}

impl Metrics {
    /// Registers them under `tombolo_agent`.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("tombolo_agent");
        // 1 ms to 16 s: the design's bound is 1 s at p99.
        let propagation_seconds = Histogram::new(exponential_buckets(0.001, 2.0, 15));
        registry.register_with_unit(
            "propagation",
            "Delay from the broker's sending a change to the snapshot that holds it, as far as both clocks agree",
            Unit::Seconds,
            propagation_seconds.clone(),
        );
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let manifest_documents = gauge(
            "manifest_documents",
            "Services, slices and exports in the manifests",
        );
        let manifest_errors = gauge("manifest_errors", "Documents and files that were left out");
        let exports = gauge("exports", "Valid exports of this cluster");
        let imports = gauge("imports", "Imports in the snapshot");
        let lease_renewed_unix_ms = gauge(
            "lease_renewed_unix_milliseconds",
            "When the broker last took a sign of life; its age is now less this",
        );
        let lease_term_ms = gauge("lease_term_milliseconds", "Term of this cluster's lease");
        let snapshot_incarnation = gauge("snapshot_incarnation", "Incarnation of the snapshot");
        let snapshot_revision = gauge("snapshot_revision", "Broker revision of the snapshot");
        let snapshot_local = gauge("snapshot_local", "Local part of the snapshot's version");
        let snapshot_fresh = gauge(
            "snapshot_fresh",
            "1 while a broker that hears a quorum confirms the snapshot",
        );
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        Self {
            propagation_seconds,
            manifest_documents,
            manifest_errors,
            exports,
            imports,
            publish_accepted: counter("publish_accepted", "Changes that the broker acknowledged"),
            publish_rejected: counter("publish_rejected", "Exports that the broker refused"),
            lease_renewals: counter("lease_renewals", "Signs of life that the broker took"),
            lease_renewed_unix_ms,
            lease_term_ms,
            snapshot_incarnation,
            snapshot_revision,
            snapshot_local,
            snapshot_fresh,
            broker_sessions: counter("broker_sessions", "Connections to brokers"),
            broker_failures: counter("broker_failures", "Connections that failed or broke"),
            watch_rejected: counter("watch_rejected", "Entries from the broker that made no sense"),
            leaves_issued: counter("leaves_issued", "Leaf certificates issued"),
            leaves_refused: counter("leaves_refused", "Leaf certificates refused"),
            store_failures: counter("store_failures", "Files that could not be written"),
        }
    }
}

/// A value as a gauge holds it.
pub(crate) fn gauge(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_can_be_scraped() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        metrics.propagation_seconds.observe(0.2);
        metrics.publish_accepted.inc();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "tombolo_agent_propagation_seconds_count 1",
            "tombolo_agent_publish_accepted_total 1",
            "tombolo_agent_snapshot_fresh 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
