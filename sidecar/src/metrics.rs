//! What a sidecar counts: rate, errors and duration per import, and what its parts do.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tombolo_clusterset::ServiceKey;

use crate::plan::Attempt;

/// Services with labels of their own: what one workload calls, a scraper can hold; all further ones are counted as `other`.
pub const SERVICES_LABELLED_MAX: usize = 256;

/// How a flow began, or did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelValue)]
pub enum Outcome {
    /// A backend was connected.
    Connected,
    /// Nothing serves the import.
    NoEndpoint,
    /// Every attempt failed, or the time was over.
    Failed,
    /// A bound of this sidecar was reached.
    Overloaded,
}

/// Which way a flow went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Way {
    /// Plain, to an endpoint of this cluster.
    Endpoint,
    /// Over mTLS, to an endpoint of this cluster.
    EndpointMtls,
    /// Through a tunnel.
    Cluster,
    /// Through the own gateway.
    OwnGateway,
}

impl From<&Attempt> for Way {
    fn from(attempt: &Attempt) -> Self {
        match attempt {
            Attempt::Endpoint { mtls: false, .. } => Self::Endpoint,
            Attempt::Endpoint { mtls: true, .. } => Self::EndpointMtls,
            Attempt::Cluster { .. } => Self::Cluster,
            Attempt::OwnGateway(_) => Self::OwnGateway,
        }
    }
}

/// What became of an inbound connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Inbound {
    /// Authenticated.
    Mtls,
    /// Plain, where that is permitted.
    Plain,
    /// Its handshake failed: plain where only mTLS is taken, or a peer that is not trusted.
    Refused,
    /// The application did not answer.
    TargetFailed,
    /// Too many at once.
    Overloaded,
    /// Authenticated, and cut since: the caller's cluster was evicted.
    Evicted,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FlowLabels {
    service: Arc<str>,
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceLabels {
    service: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AttemptLabels {
    way: Way,
    connected: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InboundLabels {
    outcome: Inbound,
}

/// The metrics of a sidecar. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    flows: Family<FlowLabels, Counter>,
    connect: Family<ServiceLabels, Histogram, fn() -> Histogram>,
    attempts: Family<AttemptLabels, Counter>,
    /// Flows that run, outbound.
    pub flows_open: Gauge,
    /// Flows reset because a drain's time was over.
    pub flows_reset_at_drain: Counter,
    /// Endpoints that outlier detection has put aside.
    pub endpoints_ejected: Gauge,
    /// Sockets that listen.
    pub listeners: Gauge,
    /// Datagrams dropped because their flow, or the number of flows, was at its bound.
    pub datagrams_dropped: Counter,
    inbound: Family<InboundLabels, Counter>,
    labelled: Arc<Mutex<BTreeSet<Arc<str>>>>,
}

impl Metrics {
    /// Metrics that `registry` reports.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            flows: Family::default(),
            // From a millisecond to what a flow may take at most.
            connect: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 14))),
            attempts: Family::default(),
            flows_open: Gauge::default(),
            flows_reset_at_drain: Counter::default(),
            endpoints_ejected: Gauge::default(),
            listeners: Gauge::default(),
            datagrams_dropped: Counter::default(),
            inbound: Family::default(),
            labelled: Arc::default(),
        };
        let Self {
            flows,
            connect,
            attempts,
            flows_open,
            flows_reset_at_drain,
            endpoints_ejected,
            listeners,
            datagrams_dropped,
            inbound,
            labelled: _,
        } = metrics.clone();
        registry.register("flows", "Outbound flows by import and by how they began", flows);
        let help = "Time until a flow had its backend";
        registry.register_with_unit("flow_connect", help, Unit::Seconds, connect);
        registry.register("attempts", "Attempts of outbound flows, by their way", attempts);
        registry.register("flows_open", "Outbound flows that run", flows_open);
        let help = "Flows reset because a drain's time was over";
        registry.register("flows_reset_at_drain", help, flows_reset_at_drain);
        registry.register(
            "endpoints_ejected",
            "Endpoints put aside for their failures",
            endpoints_ejected,
        );
        registry.register("listeners", "Outbound listeners that are bound", listeners);
        registry.register(
            "datagrams_dropped",
            "UDP payloads dropped at a bound",
            datagrams_dropped,
        );
        registry.register(
            "inbound_connections",
            "Inbound connections by what became of them",
            inbound,
        );
        metrics
    }

    /// A flow to `service` began, `after` its arrival.
    pub fn flow(&self, service: &ServiceKey, outcome: Outcome, after: Duration) {
        let service = self.label(service);
        if outcome == Outcome::Connected {
            let labels = ServiceLabels {
                service: Arc::clone(&service),
            };
            self.connect
                .get_or_create_owned(&labels)
                .observe(after.as_secs_f64());
        }
        self.flows
            .get_or_create_owned(&FlowLabels { service, outcome })
            .inc();
    }

    /// An attempt ended.
    pub fn attempt(&self, attempt: &Attempt, connected: bool) {
        let labels = AttemptLabels {
            way: attempt.into(),
            connected,
        };
        self.attempts.get_or_create_owned(&labels).inc();
    }

    /// An inbound connection began.
    pub fn inbound(&self, outcome: Inbound) {
        self.inbound.get_or_create_owned(&InboundLabels { outcome }).inc();
    }

    /// The label of a service: its own for the first [`SERVICES_LABELLED_MAX`] that are called.
    fn label(&self, service: &ServiceKey) -> Arc<str> {
        let text = service.to_string();
        let mut labelled = self.labelled.lock();
        if let Some(known) = labelled.get(text.as_str()) {
            return Arc::clone(known);
        }
        if labelled.len() >= SERVICES_LABELLED_MAX {
            return Arc::from("other");
        }
        let label: Arc<str> = Arc::from(text);
        labelled.insert(Arc::clone(&label));
        label
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_bounded() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        for number in 0..SERVICES_LABELLED_MAX + 50 {
            let service = ServiceKey::parse(&format!("shop/s{number}")).unwrap();
            metrics.flow(&service, Outcome::Connected, Duration::from_millis(2));
        }
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let flows = text
            .lines()
            .filter(|line| line.starts_with("flows_total{"))
            .count();
        assert_eq!(flows, SERVICES_LABELLED_MAX + 1);
        assert!(
            text.contains(r#"flows_total{service="other",outcome="Connected"} 50"#),
            "{text}"
        );
    }
}
