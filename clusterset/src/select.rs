//! Which endpoint takes a new flow: locality failover with gradual spill (DESIGN §4.4).

use std::collections::BTreeMap;

use crate::endpoint::{Endpoint, IpFamily};
use crate::export::ServicePort;
use crate::locality::Locality;
use crate::name::ClusterId;
use crate::reachability::Link;
use crate::snapshot::{Import, Snapshot};

/// Why an endpoint or cluster was left out; what `explain` prints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeftOut {
    /// The endpoint is not ready.
    NotReady,
    /// The cluster does not expose this port.
    PortNotExposed,
    /// Both signals lost beyond the grace period, or one under `withdraw`.
    Withdrawn,
    /// Ejected by its own failures.
    Unhealthy,
    /// Hidden by a drill from its own flows.
    HiddenByDrill,
}

/// Rank of a tier, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rank {
    /// Own cluster, same zone.
    Zone,
    /// Own cluster, same region.
    Region,
    /// Own cluster, anywhere.
    Cluster,
    /// Another cluster, by measured RTT: 0 is the nearest.
    Remote(u16),
    /// Another cluster under [`crate::Verdict::LastResort`].
    LastResort(u16),
    /// Serving but terminating endpoints.
    Terminating,
}

/// One backend that may take the flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Whose it is.
    pub cluster: ClusterId,
    /// The backend.
    pub endpoint: Endpoint,
    /// Its port.
    pub port: u16,
}

/// Backends of one rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tier {
    /// Their rank.
    pub rank: Rank,
    /// Healthy candidates; each appears once in the whole plan.
    pub candidates: Vec<Candidate>,
    /// Share of new flows, parts per 10,000, after spill; the shares of a plan add up to 10,000 unless it is empty.
    pub share: u32,
}

/// Every eligible backend in order, and what was left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Best first. Empty: no endpoint.
    pub tiers: Vec<Tier>,
    /// What was left out, and by which signal: (cluster, endpoint or the whole cluster, reason).
    pub left_out: Vec<(ClusterId, Option<Endpoint>, LeftOut)>,
}

/// What the selector knows besides the snapshot.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    /// Link of each remote cluster; absent: unknown.
    pub links: BTreeMap<ClusterId, Link>,
    /// Endpoints ejected by outlier detection, by (cluster, address, port).
    pub ejected: std::collections::BTreeSet<(ClusterId, std::net::IpAddr, u16)>,
    /// Clusters whose endpoints a drill hides from this flow.
    pub hidden: std::collections::BTreeSet<ClusterId>,
}

/// The plan for a new flow to `port` of `import`, from a client at `from` in the snapshot's cluster.
#[must_use]
pub fn plan(
    snapshot: &Snapshot,
    import: &Import,
    port: &ServicePort,
    family: Option<IpFamily>,
    from: &Locality,
    signals: &Signals,
) -> Plan {
    let _ = (snapshot, import, port, family, from, signals);
    todo!()
}

/// Draws the order in which to try the candidates of `plan`: the tier by its share, inside a tier at random, then the
/// remaining tiers best first. Each candidate appears once.
#[must_use]
pub fn draw<'a>(plan: &'a Plan, rng: &mut impl rand::Rng) -> Vec<&'a Candidate> {
    let _ = (plan, rng);
    todo!()
}
