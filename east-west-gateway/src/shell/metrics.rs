//! What the gateway counts. Labels are closed enums, and the names of clusters where a metric speaks of a link.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tombolo_clusterset::{ClusterId, LinkState};
use tombolo_tunnel::Refusal;

/// From a local connect to a flow that moved twice, seconds.
const OPEN_BUCKETS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
];

/// Which way a flow goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Direction {
    /// From a client of this cluster to a backend of this cluster.
    Local,
    /// From a client of this cluster into a tunnel.
    Outbound,
    /// Out of a tunnel to a backend of this cluster.
    Inbound,
}

/// How a flow ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Outcome {
    /// Both directions ended.
    Ended,
    /// The client's or the backend's side of it failed.
    ResetByLocal,
    /// The tunnel's side of it failed.
    ResetByTunnel,
    /// The drain's time was over.
    ResetAtDrain,
    /// Nobody connected it.
    NotConnected,
    /// A limit of this gateway.
    OverLimit,
    /// Refused to a peer.
    Refused,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Towards {
    Peer,
    Client,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FlowLabels {
    direction: Direction,
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BytesLabels {
    direction: Direction,
    towards: Towards,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabels {
    direction: Direction,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    refusal: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClusterLabels {
    cluster: String,
}

/// Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    flows: Family<FlowLabels, Counter>,
    flows_open: Family<DirectionLabels, Gauge>,
    udp_flows: Family<FlowLabels, Counter>,
    udp_flows_open: Gauge,
    bytes: Family<BytesLabels, Counter>,
    open_seconds: Family<DirectionLabels, Histogram, fn() -> Histogram>,
    redispatched: Counter,
    refused: Family<RefusalLabels, Counter>,
    dial_failures: Family<ClusterLabels, Counter>,
    link_state: Family<ClusterLabels, Gauge>,
    link_rtt_seconds: Family<ClusterLabels, Gauge<f64, std::sync::atomic::AtomicU64>>,
    listeners: Gauge,
    listeners_failed: Gauge,
    datagrams_dropped: Counter,
}

fn open_histogram() -> Histogram {
    Histogram::new(OPEN_BUCKETS)
}

/// Held by a flow that runs.
#[derive(Debug)]
pub(super) struct Running {
    metrics: Metrics,
    direction: Direction,
    udp: bool,
    outcome: Outcome,
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            flows: Family::default(),
            flows_open: Family::default(),
            udp_flows: Family::default(),
            udp_flows_open: Gauge::default(),
            bytes: Family::default(),
            open_seconds: Family::new_with_constructor(open_histogram),
            redispatched: Counter::default(),
            refused: Family::default(),
            dial_failures: Family::default(),
            link_state: Family::default(),
            link_rtt_seconds: Family::default(),
            listeners: Gauge::default(),
            listeners_failed: Gauge::default(),
            datagrams_dropped: Counter::default(),
        };
        let Self {
            flows,
            flows_open,
            udp_flows,
            udp_flows_open,
            bytes,
            open_seconds,
            redispatched,
            refused,
            dial_failures,
            link_state,
            link_rtt_seconds,
            listeners,
            listeners_failed,
            datagrams_dropped,
        } = metrics.clone();
        registry.register("flows", "TCP flows that are over, by how they ended", flows);
        registry.register("flows_open", "TCP flows that run", flows_open);
        registry.register(
            "udp_flows",
            "UDP flows that are over, by how they ended",
            udp_flows,
        );
        registry.register("udp_flows_open", "UDP flows that run", udp_flows_open);
        registry.register("bytes", "Payload bytes carried", bytes);
        registry.register(
            "flow_open_seconds",
            "Time from a client's connection to a connected backend",
            open_seconds,
        );
        registry.register(
            "flows_redispatched",
            "Flows that another hop than the first connected",
            redispatched,
        );
        registry.register("refused", "Flows of peers that were refused, by reason", refused);
        registry.register(
            "dial_failures",
            "Dials of peer gateways that failed",
            dial_failures,
        );
        registry.register("link_state", "0 unknown, 1 up, 2 suspect, 3 down", link_state);
        registry.register(
            "link_rtt_seconds",
            "Smoothed round trip time to the best gateway",
            link_rtt_seconds,
        );
        registry.register("listeners", "Places that are bound for clients", listeners);
        registry.register(
            "listeners_failed",
            "Places that could not be bound and are tried again",
            listeners_failed,
        );
        registry.register(
            "datagrams_dropped",
            "Client datagrams dropped: a flow's queue or the table was full",
            datagrams_dropped,
        );
        metrics
    }

    /// A TCP flow begins.
    pub(super) fn flow(&self, direction: Direction) -> Running {
        self.flows_open
            .get_or_create_owned(&DirectionLabels { direction })
            .inc();
        Running {
            metrics: self.clone(),
            direction,
            udp: false,
            outcome: Outcome::NotConnected,
        }
    }

    /// A UDP flow begins.
    pub(super) fn udp_flow(&self, direction: Direction) -> Running {
        self.udp_flows_open.inc();
        Running {
            metrics: self.clone(),
            direction,
            udp: true,
            outcome: Outcome::NotConnected,
        }
    }

    pub(super) fn opened(&self, direction: Direction, after: Duration, tries: usize) {
        self.open_seconds
            .get_or_create_owned(&DirectionLabels { direction })
            .observe(after.as_secs_f64());
        if tries > 1 {
            self.redispatched.inc();
        }
    }

    pub(super) fn carried(&self, direction: Direction, to_peer: u64, to_client: u64) {
        for (towards, bytes) in [(Towards::Peer, to_peer), (Towards::Client, to_client)] {
            self.bytes
                .get_or_create_owned(&BytesLabels { direction, towards })
                .inc_by(bytes);
        }
    }

    pub(super) fn refused(&self, refusal: Refusal) {
        self.refused
            .get_or_create_owned(&RefusalLabels {
                refusal: refusal.as_str(),
            })
            .inc();
    }

    pub(super) fn dial_failed(&self, cluster: &ClusterId) {
        self.dial_failures
            .get_or_create_owned(&ClusterLabels {
                cluster: cluster.to_string(),
            })
            .inc();
    }

    pub(super) fn link(&self, cluster: &ClusterId, state: LinkState, rtt: Option<Duration>) {
        let labels = ClusterLabels {
            cluster: cluster.to_string(),
        };
        let number = match state {
            LinkState::Unknown => 0,
            LinkState::Up => 1,
            LinkState::Suspect => 2,
            LinkState::Down => 3,
        };
        self.link_state.get_or_create_owned(&labels).set(number);
        if let Some(rtt) = rtt {
            self.link_rtt_seconds
                .get_or_create_owned(&labels)
                .set(rtt.as_secs_f64());
        }
    }

    /// A cluster is no member any more.
    pub(super) fn forget_link(&self, cluster: &ClusterId) {
        let labels = ClusterLabels {
            cluster: cluster.to_string(),
        };
        self.link_state.remove(&labels);
        self.link_rtt_seconds.remove(&labels);
        self.dial_failures.remove(&labels);
    }

    pub(super) fn listeners(&self, bound: usize, failed: usize) {
        self.listeners.set(i64::try_from(bound).unwrap_or(i64::MAX));
        self.listeners_failed
            .set(i64::try_from(failed).unwrap_or(i64::MAX));
    }

    pub(super) fn datagram_dropped(&self) {
        self.datagrams_dropped.inc();
    }

    /// TCP flows that run, and UDP flows.
    pub(super) fn open_flows(&self) -> (i64, i64) {
        let directions = [Direction::Local, Direction::Outbound, Direction::Inbound];
        let tcp = directions.map(|direction| {
            self.flows_open
                .get_or_create_owned(&DirectionLabels { direction })
                .get()
        });
        (tcp.into_iter().sum(), self.udp_flows_open.get())
    }
}

impl Running {
    /// How it ends, unless something else happens before.
    pub(super) fn set_outcome(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }

    /// Where it goes is known by now.
    pub(super) fn set_direction(&mut self, direction: Direction) {
        if !self.udp {
            self.metrics
                .flows_open
                .get_or_create_owned(&DirectionLabels {
                    direction: self.direction,
                })
                .dec();
            self.metrics
                .flows_open
                .get_or_create_owned(&DirectionLabels { direction })
                .inc();
        }
        self.direction = direction;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let labels = FlowLabels {
            direction: self.direction,
            outcome: self.outcome,
        };
        if self.udp {
            self.metrics.udp_flows.get_or_create_owned(&labels).inc();
            self.metrics.udp_flows_open.dec();
        } else {
            self.metrics.flows.get_or_create_owned(&labels).inc();
            self.metrics
                .flows_open
                .get_or_create_owned(&DirectionLabels {
                    direction: self.direction,
                })
                .dec();
        }
    }
}
