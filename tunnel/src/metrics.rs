//! What an endpoint counts.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::reply::Refusal;

/// Over what a tunnel runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelValue)]
pub enum Transport {
    /// UDP.
    Quic,
    /// TLS and HTTP/2 over TCP.
    H2,
}

impl Transport {
    /// The word of `local.proto` Link.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::H2 => "h2",
        }
    }
}

/// Who opened it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelValue)]
pub enum Direction {
    /// The peer.
    Inbound,
    /// We.
    Outbound,
}

/// Labels of tunnel metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TunnelLabels {
    transport: Transport,
    direction: Direction,
}

/// Labels of flow metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FlowLabels {
    direction: Direction,
}

/// Labels of refusals.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RefusalLabels {
    refusal: &'static str,
}

/// The metrics of one endpoint. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    tunnels: Family<TunnelLabels, Counter>,
    tunnels_open: Gauge,
    handshakes_failed: Counter,
    tunnels_evicted: Counter,
    flows: Family<FlowLabels, Counter>,
    flows_open: Gauge,
    flows_reset_at_drain: Counter,
    refusals_sent: Family<RefusalLabels, Counter>,
    datagrams_dropped: Counter,
}

impl Metrics {
    /// Metrics that `registry` reports.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let Self {
            tunnels,
            tunnels_open,
            handshakes_failed,
            tunnels_evicted,
            flows,
            flows_open,
            flows_reset_at_drain,
            refusals_sent,
            datagrams_dropped,
        } = metrics.clone();
        registry.register("tunnels", "Tunnels that were opened", tunnels);
        registry.register("tunnels_open", "Tunnels that are open", tunnels_open);
        registry.register(
            "handshakes_failed",
            "Inbound connections that never became a tunnel",
            handshakes_failed,
        );
        registry.register(
            "tunnels_evicted",
            "Tunnels cut because their peer was evicted",
            tunnels_evicted,
        );
        registry.register("flows", "Flows whose header was sent or accepted", flows);
        registry.register("flows_open", "Flows that run", flows_open);
        registry.register(
            "flows_reset_at_drain",
            "Flows reset because a drain's time was over",
            flows_reset_at_drain,
        );
        registry.register(
            "refusals_sent",
            "Flows of peers that were refused here",
            refusals_sent,
        );
        registry.register(
            "datagrams_dropped",
            "UDP payloads dropped because their reader was slow",
            datagrams_dropped,
        );
        metrics
    }

    pub(crate) fn tunnel_opened(&self, transport: Transport, direction: Direction) {
        self.tunnels
            .get_or_create_owned(&TunnelLabels { transport, direction })
            .inc();
        self.tunnels_open.inc();
    }

    pub(crate) fn tunnel_closed(&self) {
        self.tunnels_open.dec();
    }

    pub(crate) fn handshake_failed(&self) {
        self.handshakes_failed.inc();
    }

    pub(crate) fn evicted(&self) {
        self.tunnels_evicted.inc();
    }

    pub(crate) fn flow_began(&self, direction: Direction) {
        self.flows.get_or_create_owned(&FlowLabels { direction }).inc();
        self.flows_open.inc();
    }

    pub(crate) fn flow_ended(&self) {
        self.flows_open.dec();
    }

    pub(crate) fn reset_at_drain(&self, flows: usize) {
        self.flows_reset_at_drain.inc_by(flows as u64);
    }

    pub(crate) fn refused(&self, refusal: Refusal) {
        self.refusals_sent
            .get_or_create_owned(&RefusalLabels {
                refusal: refusal.as_str(),
            })
            .inc();
    }

    pub(crate) fn datagram_dropped(&self) {
        self.datagrams_dropped.inc();
    }
}
