//! The exporting gateway's choice in its own cluster: from its own export and never from the merged import, or two gateways
//! could send a flow in circles (KUBERNETES.md 18; DESIGN §4.13).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use rand::seq::SliceRandom;

use crate::affinity;
use crate::endpoint::{Endpoint, IpFamily, Protocol, Readiness};
use crate::export::ServicePort;
use crate::locality::Locality;
use crate::name::ClusterId;
use crate::select::{Rank, SHARE_ALL, by_rank, covering, rank_within};
use crate::snapshot::{LocalExport, Snapshot};

/// Why no endpoint was picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoLocal {
    /// The export has no such port.
    #[error("not exported: the service does not export this port; see its ServiceExport and Service ports")]
    PortNotExported,
    /// The port is exported and nothing serves it.
    #[error("no endpoint: no ready endpoint serves this port; see the Service's EndpointSlices")]
    NoEndpoint,
}

/// What a flow asks of the exporting gateway.
#[derive(Debug, Clone, Copy)]
pub struct LocalRequest<'a> {
    /// Transport of the Service port.
    pub protocol: Protocol,
    /// Number of the Service port.
    pub port: u16,
    /// Only endpoints of this family; None: any.
    pub family: Option<IpFamily>,
    /// Where the gateway stands.
    pub from: &'a Locality,
    /// With `sessionAffinity: ClientIP`, the client's address: the same endpoint each time.
    pub client: Option<IpAddr>,
}

/// An endpoint of the own cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalPick<'a> {
    /// The backend.
    pub endpoint: &'a Endpoint,
    /// Its port.
    pub port: u16,
}

/// The endpoints to try for a flow that arrived from another cluster, first the one drawn: own zone, region, the rest with
/// the spill of [`crate::select`], then what terminates, then what outlier detection has ejected (this is the last choice of
/// the flow's path, and a doubtful endpoint beats none). Each appears once. `ejected` is
/// [`crate::select::Signals::ejected`].
///
/// # Errors
/// [`NoLocal`] tells a port that is not exported from one that nothing serves.
pub fn pick_local<'a>(
    snapshot: &Snapshot,
    export: &'a LocalExport,
    request: LocalRequest<'_>,
    ejected: &BTreeSet<(ClusterId, IpAddr, u16)>,
    rng: &mut impl rand::Rng,
) -> Result<Vec<LocalPick<'a>>, NoLocal> {
    let service_port = exported(export, request.protocol, request.port)?;
    let region = snapshot
        .clusters
        .get(&snapshot.cluster)
        .map_or("", |view| view.locality.region.as_str());
    let mut tiers: BTreeMap<Rank, Tier<'a>> = BTreeMap::new();
    for ((address, port), endpoint) in serving(export, service_port, request.family) {
        let rank = match endpoint.readiness {
            Readiness::Ready => rank_within(region, endpoint, request.from),
            Readiness::Terminating => Rank::Terminating,
            Readiness::NotReady => continue,
        };
        let tier = tiers.entry(rank).or_default();
        let out = ejected.contains(&(snapshot.cluster.clone(), address, port));
        let picks = if out { &mut tier.ejected } else { &mut tier.healthy };
        picks.push(LocalPick { endpoint, port });
    }

    let health: Vec<_> = tiers
        .iter()
        .map(|(rank, tier)| (*rank, tier.healthy.len(), tier.healthy.len() + tier.ejected.len()))
        .collect();
    let point = match request.client {
        Some(client) => affinity::position(client, SHARE_ALL),
        None => rng.random_range(0..SHARE_ALL),
    };
    let first = covering(&by_rank(&health), point);
    let mut tiers: Vec<Tier<'a>> = tiers.into_values().collect();
    if let Some(chosen) = tiers.get_mut(..=first) {
        chosen.rotate_right(1);
    }
    let (healthy, ejected): (Vec<_>, Vec<_>) =
        tiers.into_iter().map(|tier| (tier.healthy, tier.ejected)).unzip();
    let mut picks = Vec::new();
    for mut tier in healthy.into_iter().chain(ejected) {
        match request.client {
            None => tier.shuffle(rng),
            Some(client) => tier.sort_by_cached_key(|pick| {
                let cluster = snapshot.cluster.as_str();
                std::cmp::Reverse(affinity::score(client, cluster, pick.endpoint.address, pick.port))
            }),
        }
        picks.append(&mut tier);
    }
    if picks.is_empty() {
        Err(NoLocal::NoEndpoint)
    } else {
        Ok(picks)
    }
}

/// Endpoints of one rank.
#[derive(Debug, Default)]
struct Tier<'a> {
    healthy: Vec<LocalPick<'a>>,
    ejected: Vec<LocalPick<'a>>,
}

/// The one endpoint that a headless flow names, when it belongs to the export and serves; with its port. `port` is the
/// Service port's number or, as headless SRV records give it, the endpoint's own (KUBERNETES.md 13).
///
/// # Errors
/// [`NoLocal`] as in [`pick_local`].
pub fn find_local(
    export: &LocalExport,
    protocol: Protocol,
    port: u16,
    address: IpAddr,
) -> Result<LocalPick<'_>, NoLocal> {
    let of_port = |service_port: &ServicePort| {
        serving(export, service_port, None)
            .into_iter()
            .find(|((own, _), endpoint)| *own == address && endpoint.readiness != Readiness::NotReady)
    };
    let by_service_port = exported(export, protocol, port).map(of_port);
    if let Ok(Some(((_, port), endpoint))) = by_service_port {
        return Ok(LocalPick { endpoint, port });
    }
    let ports = export.spec.ports.iter().filter(|own| own.protocol == protocol);
    match ports.filter_map(of_port).find(|((_, own), _)| *own == port) {
        Some(((_, port), endpoint)) => Ok(LocalPick { endpoint, port }),
        None => Err(by_service_port.err().unwrap_or(NoLocal::NoEndpoint)),
    }
}

fn exported(export: &LocalExport, protocol: Protocol, port: u16) -> Result<&ServicePort, NoLocal> {
    let own = export
        .spec
        .ports
        .iter()
        .find(|own| own.protocol == protocol && own.port == port);
    own.ok_or(NoLocal::PortNotExported)
}

/// Endpoints that serve a Service port, by address and port; one that stands in two slices counts once, with the better
/// readiness.
fn serving<'a>(
    export: &'a LocalExport,
    port: &ServicePort,
    family: Option<IpFamily>,
) -> BTreeMap<(IpAddr, u16), &'a Endpoint> {
    let mut once: BTreeMap<(IpAddr, u16), &Endpoint> = BTreeMap::new();
    for slice in export
        .slices
        .iter()
        .filter(|slice| family.is_none_or(|family| family == slice.family))
    {
        let Some(number) = slice.port(&port.name, port.protocol) else {
            continue;
        };
        for endpoint in &slice.endpoints {
            let kept = once.entry((endpoint.address, number)).or_insert(endpoint);
            if endpoint.readiness < kept.readiness {
                *kept = endpoint;
            }
        }
    }
    once
}

#[cfg(test)]
mod tests;
