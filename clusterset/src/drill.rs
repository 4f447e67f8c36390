//! Drills: rehearsed failures (DESIGN §7).

mod refusal;
mod result;

use std::time::Duration;

use crate::name::{ClusterId, ServiceKey};

pub use refusal::{RATE_MAX, Refusal, Standing, refuse};
pub use result::{BUCKET, Bucket, DnsSample, DrillResult, DrillVerdict, Outcome, Sample, judge};

/// Longest drill.
pub const DRILL_MAX: Duration = Duration::from_secs(15 * 60);

/// Names one drill: its log position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DrillId(pub u64);

/// What fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DrillKind {
    /// The whole target cluster, silently: packets stop, nothing closes.
    ClusterDown,
    /// The target's gateway process.
    GatewayKill,
    /// The link between `from` and the target, silently, both ways.
    LinkCut,
    /// The Raft leader (`--real` only).
    BrokerLeaderKill,
    /// The target's DNS server (`--real` only).
    DnsKill,
}

impl DrillKind {
    /// The word of the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClusterDown => "cluster-down",
            Self::GatewayKill => "gateway-kill",
            Self::LinkCut => "link-cut",
            Self::BrokerLeaderKill => "broker-leader-kill",
            Self::DnsKill => "dns-kill",
        }
    }

    /// Whether the failure can be made by gateways, DNS and sidecars alone, without killing a process.
    #[must_use]
    pub fn can_be_rehearsed(self) -> bool {
        matches!(self, Self::ClusterDown | Self::GatewayKill | Self::LinkCut)
    }
}

/// One rehearsal: steady traffic from the gateway of `from` to `service` for `baseline`, then the failure for `duration`,
/// then traffic for `recovery`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drill {
    /// Which.
    pub id: DrillId,
    /// What fails.
    pub kind: DrillKind,
    /// Which cluster fails.
    pub target: ClusterId,
    /// Who sends the traffic.
    pub from: ClusterId,
    /// Which service is called.
    pub service: ServiceKey,
    /// Port of the service; None for its first TCP port.
    pub port: Option<u16>,
    /// With a path: HTTP GET in place of a TCP connect.
    pub http_get: Option<String>,
    /// Requests per second, 1 to 1,000.
    pub rate_per_second: u32,
    /// Traffic before the failure.
    pub baseline: Duration,
    /// Length of the failure.
    pub duration: Duration,
    /// Traffic after the failure ended.
    pub recovery: Duration,
    /// True: an operator's command kills real processes, and gateways only send the traffic.
    pub real: bool,
}

impl Drill {
    /// From the start of the drill to its end, and the dead-man's expiry: it is over then, whoever died.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.baseline + self.duration + self.recovery
    }

    /// Whether the path between `here` and `peer` is cut, `since_start` into the drill.
    #[must_use]
    pub fn cuts(&self, here: &ClusterId, peer: &ClusterId, since_start: Duration) -> bool {
        let failing = since_start >= self.baseline && since_start < self.baseline + self.duration;
        let touches = |a: &ClusterId, b: &ClusterId| (here == a && peer == b) || (here == b && peer == a);
        failing
            && !self.real
            && match self.kind {
                DrillKind::ClusterDown | DrillKind::GatewayKill => {
                    here == &self.target || peer == &self.target
                }
                DrillKind::LinkCut => touches(&self.from, &self.target),
                DrillKind::BrokerLeaderKill | DrillKind::DnsKill => false,
            }
    }

    /// Whether `cluster` is silenced altogether (its lease and its names too), `since_start` into the drill.
    #[must_use]
    pub fn silences(&self, cluster: &ClusterId, since_start: Duration) -> bool {
        let failing = since_start >= self.baseline && since_start < self.baseline + self.duration;
        failing && !self.real && self.kind == DrillKind::ClusterDown && cluster == &self.target
    }
}
