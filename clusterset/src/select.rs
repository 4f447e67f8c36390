//! Which endpoint takes a new flow: locality failover with gradual spill (DESIGN §4.4).
//!
//! Order: the client's zone, its region, the rest of its cluster; then other clusters by measured RTT; then clusters under
//! [`Verdict::LastResort`]; then endpoints that serve while they terminate. A remote cluster is one tier, since its own
//! gateway chooses inside it ([`crate::local`]).
//!
//! Spill is Envoy's (priority levels with overprovisioning factor 1.4): a tier keeps all of its load while
//! healthy / total × 1.4 ≥ 1, and passes on the part it lacks below that. Ejected endpoints count in the total. Last resorts
//! take no spill: they serve when nothing better is left at all.

mod order;
mod spill;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use rand::seq::SliceRandom;

use crate::affinity;
use crate::endpoint::{Endpoint, IpFamily, Readiness};
use crate::export::ServicePort;
use crate::locality::Locality;
use crate::name::ClusterId;
use crate::reachability::{Link, Verdict};
use crate::snapshot::{Import, ImportedCluster, Snapshot};

pub(crate) use order::{nearest_first, rank_within, verdict_over};
pub(crate) use spill::by_rank;

/// Shares of a plan add up to this.
pub const SHARE_ALL: u32 = 10_000;

/// Why an endpoint or cluster was left out; what `explain` prints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeftOut {
    /// The endpoint is not ready.
    NotReady,
    /// The cluster does not expose this port.
    PortNotExposed,
    /// Both signals lost beyond the grace period, or one under `withdraw`; or no member of the clusterset any more.
    Withdrawn,
    /// Ejected by its own failures.
    Unhealthy,
    /// Hidden by a drill from its own flows.
    HiddenByDrill,
}

impl LeftOut {
    /// The word that `explain` prints.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::NotReady => "not ready",
            Self::PortNotExposed => "port not exposed",
            Self::Withdrawn => "withdrawn",
            Self::Unhealthy => "unhealthy",
            Self::HiddenByDrill => "hidden by drill",
        }
    }
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
    /// Another cluster, by measured RTT: 0 is the nearest. A number is missing when that cluster has no healthy endpoint.
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

impl Plan {
    /// True when no backend may take the flow.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tiers.is_empty()
    }

    /// Every candidate, best tier first.
    pub fn candidates(&self) -> impl Iterator<Item = &Candidate> {
        self.tiers.iter().flat_map(|tier| &tier.candidates)
    }
}

/// What the selector knows besides the snapshot.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    /// Link of each remote cluster; absent: unknown.
    pub links: BTreeMap<ClusterId, Link>,
    /// Endpoints ejected by outlier detection, by (cluster, address, port).
    pub ejected: BTreeSet<(ClusterId, IpAddr, u16)>,
    /// Clusters whose endpoints a drill hides from this flow.
    pub hidden: BTreeSet<ClusterId>,
}

impl Signals {
    /// The link to `cluster`; unknown when no gateway reports it.
    #[must_use]
    pub fn link(&self, cluster: &ClusterId) -> Link {
        self.links.get(cluster).copied().unwrap_or_default()
    }
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
    let mut left_out = Vec::new();
    let mut pools: BTreeMap<Rank, Pool> = BTreeMap::new();
    for order::Placed {
        id,
        imported,
        position,
        verdict,
    } in order::clusters(snapshot, import, from, signals)
    {
        if let Some(reason) = whole_cluster(id, imported, port, verdict, signals) {
            left_out.push((id.clone(), None, reason));
            continue;
        }
        let own = id == &snapshot.cluster;
        for ((address, number), endpoint) in each_once(imported, port, family) {
            let rank = match (endpoint.readiness, own, verdict) {
                (Readiness::NotReady, _, _) => {
                    left_out.push((id.clone(), Some(endpoint.clone()), LeftOut::NotReady));
                    continue;
                }
                (Readiness::Terminating, _, _) => Rank::Terminating,
                (Readiness::Ready, true, _) => order::own_rank(snapshot, endpoint, from),
                (Readiness::Ready, false, Verdict::Use) => Rank::Remote(position),
                (Readiness::Ready, false, _) => Rank::LastResort(position),
            };
            let pool = pools.entry(rank).or_default();
            pool.total += 1;
            if signals.ejected.contains(&(id.clone(), address, number)) {
                left_out.push((id.clone(), Some(endpoint.clone()), LeftOut::Unhealthy));
            } else {
                pool.healthy.push(Candidate {
                    cluster: id.clone(),
                    endpoint: endpoint.clone(),
                    port: number,
                });
            }
        }
    }
    Plan {
        tiers: tiers(pools),
        left_out,
    }
}

/// Endpoints of one rank before shares are given.
#[derive(Debug, Default)]
struct Pool {
    /// Candidates.
    healthy: Vec<Candidate>,
    /// Candidates and ejected ones.
    total: usize,
}

/// The tiers that have a candidate, best first, with their shares.
fn tiers(pools: BTreeMap<Rank, Pool>) -> Vec<Tier> {
    let health: Vec<_> = pools
        .iter()
        .map(|(rank, pool)| (*rank, pool.healthy.len(), pool.total))
        .collect();
    pools
        .into_iter()
        .zip(by_rank(&health))
        .filter(|((_, pool), _)| !pool.healthy.is_empty())
        .map(|((rank, pool), share)| Tier {
            rank,
            candidates: pool.healthy,
            share,
        })
        .collect()
}

fn whole_cluster(
    id: &ClusterId,
    imported: &ImportedCluster,
    port: &ServicePort,
    verdict: Verdict,
    signals: &Signals,
) -> Option<LeftOut> {
    if signals.hidden.contains(id) {
        Some(LeftOut::HiddenByDrill)
    } else if verdict == Verdict::Withdraw {
        Some(LeftOut::Withdrawn)
    } else if !imported.exposes(port) {
        Some(LeftOut::PortNotExposed)
    } else {
        None
    }
}

/// Endpoints by address and port. One that stands in two slices, as Kubernetes allows while slices are rewritten, counts
/// once, with the better readiness.
fn each_once<'a>(
    imported: &'a ImportedCluster,
    port: &'a ServicePort,
    family: Option<IpFamily>,
) -> BTreeMap<(IpAddr, u16), &'a Endpoint> {
    let mut once: BTreeMap<(IpAddr, u16), &Endpoint> = BTreeMap::new();
    for (endpoint, number) in imported.endpoints(port, family) {
        let kept = once.entry((endpoint.address, number)).or_insert(endpoint);
        if endpoint.readiness < kept.readiness {
            *kept = endpoint;
        }
    }
    once
}

/// Draws the order in which to try the candidates of `plan`: the tier by its share, inside a tier at random, then the
/// remaining tiers best first. Each candidate appears once.
#[must_use]
pub fn draw<'a>(plan: &'a Plan, rng: &mut impl rand::Rng) -> Vec<&'a Candidate> {
    let first = tier_at(plan, rng.random_range(0..SHARE_ALL));
    in_order(plan, first, |candidates| candidates.shuffle(rng))
}

/// As [`draw`], and with a `client` (session affinity `ClientIP`) the same order each time, for as long as the plan stays.
#[must_use]
pub fn draw_for<'a>(plan: &'a Plan, client: Option<IpAddr>, rng: &mut impl rand::Rng) -> Vec<&'a Candidate> {
    let Some(client) = client else {
        return draw(plan, rng);
    };
    let first = tier_at(plan, affinity::position(client, SHARE_ALL));
    in_order(plan, first, |candidates| {
        candidates.sort_by_cached_key(|candidate| {
            let Candidate {
                cluster,
                endpoint,
                port,
            } = candidate;
            std::cmp::Reverse(affinity::score(client, cluster.as_str(), endpoint.address, *port))
        });
    })
}

fn tier_at(plan: &Plan, point: u32) -> usize {
    let shares: Vec<u32> = plan.tiers.iter().map(|tier| tier.share).collect();
    covering(&shares, point)
}

/// Which of `shares` covers `point` in 0..[`SHARE_ALL`]; 0 when none does.
pub(crate) fn covering(shares: &[u32], point: u32) -> usize {
    let mut covered = 0;
    let covers = |share: &u32| {
        covered += share;
        point < covered
    };
    shares.iter().position(covers).unwrap_or(0)
}

fn in_order<'a>(
    plan: &'a Plan,
    first: usize,
    mut arrange: impl FnMut(&mut Vec<&'a Candidate>),
) -> Vec<&'a Candidate> {
    let others = plan
        .tiers
        .iter()
        .enumerate()
        .filter(|(at, _)| *at != first)
        .map(|(_, tier)| tier);
    let mut drawn = Vec::new();
    for tier in plan.tiers.get(first).into_iter().chain(others) {
        let mut candidates: Vec<&Candidate> = tier.candidates.iter().collect();
        arrange(&mut candidates);
        drawn.append(&mut candidates);
    }
    drawn
}
