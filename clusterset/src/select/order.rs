//! In which order clusters are tried, and where an endpoint of the own cluster stands.

use std::time::Duration;

use super::{Rank, Signals};
use crate::endpoint::Endpoint;
use crate::locality::Locality;
use crate::name::ClusterId;
use crate::reachability::{Verdict, verdict};
use crate::snapshot::{Import, ImportedCluster, Snapshot};

/// One exporter of an import, in its place.
pub(super) struct Placed<'a> {
    pub(super) id: &'a ClusterId,
    pub(super) imported: &'a ImportedCluster,
    /// Place among the other clusters of the same verdict, 0 the nearest.
    pub(super) position: u16,
    pub(super) verdict: Verdict,
}

/// The exporters: the own cluster first, then by nearness, each with its verdict.
pub(super) fn clusters<'a>(
    snapshot: &'a Snapshot,
    import: &'a Import,
    from: &Locality,
    signals: &Signals,
) -> Vec<Placed<'a>> {
    let (mut used, mut last) = (0u16, 0u16);
    nearest_first(snapshot, import, from, signals)
        .into_iter()
        .map(|(id, imported)| {
            let verdict = verdict_over(snapshot, id, imported, signals);
            let count = if verdict == Verdict::Use {
                &mut used
            } else {
                &mut last
            };
            let position = *count;
            if id != &snapshot.cluster {
                *count = count.saturating_add(1);
            }
            Placed {
                id,
                imported,
                position,
                verdict,
            }
        })
        .collect()
}

/// Clusters nearer to each other than this are equally far: the jitter of a path within one region.
const RTT_STEP: Duration = Duration::from_millis(2);

/// The exporters, the own cluster first, then by nearness.
///
/// RTT counts in steps of [`RTT_STEP`], so that noise between two equally distant clusters does not reorder them. A cluster
/// without a measured RTT comes after those with one.
pub(crate) fn nearest_first<'a>(
    snapshot: &Snapshot,
    import: &'a Import,
    from: &Locality,
    signals: &Signals,
) -> Vec<(&'a ClusterId, &'a ImportedCluster)> {
    let home = home_region(snapshot, from);
    let far = |id: &ClusterId| {
        let rtt = signals
            .link(id)
            .rtt
            .map(|rtt| rtt.as_micros() / RTT_STEP.as_micros());
        let same_region = !home.is_empty()
            && snapshot
                .clusters
                .get(id)
                .is_some_and(|view| view.locality.region == home);
        (id != &snapshot.cluster, rtt.is_none(), rtt, !same_region)
    };
    let mut exporters: Vec<(&ClusterId, &ImportedCluster)> = import.clusters.iter().collect();
    // The sort is stable and the map ordered: equals stay in the order of their ids.
    exporters.sort_by_key(|(id, _)| far(id));
    exporters
}

/// The verdict over one exporter of an import. The own cluster is always used; a cluster that the snapshot does not know is
/// no member any more and is never named (DESIGN §4.15).
pub(crate) fn verdict_over(
    snapshot: &Snapshot,
    id: &ClusterId,
    imported: &ImportedCluster,
    signals: &Signals,
) -> Verdict {
    if id == &snapshot.cluster {
        return Verdict::Use;
    }
    match snapshot.lease(id) {
        Some(lease) => verdict(lease, signals.link(id), imported.loss_policy),
        None => Verdict::Withdraw,
    }
}

/// Where an endpoint of the own cluster stands to a client at `from`. Slices carry a zone for each endpoint but no region:
/// it is the region of the cluster.
pub(super) fn own_rank(snapshot: &Snapshot, endpoint: &Endpoint, from: &Locality) -> Rank {
    let region = snapshot
        .clusters
        .get(&snapshot.cluster)
        .map_or("", |view| view.locality.region.as_str());
    rank_within(region, endpoint, from)
}

/// As [`own_rank`], for an endpoint of a cluster that stands in `region`.
pub(crate) fn rank_within(region: &str, endpoint: &Endpoint, from: &Locality) -> Rank {
    if !from.zone.is_empty() && endpoint.zone == from.zone {
        Rank::Zone
    } else if !from.region.is_empty() && from.region == region {
        Rank::Region
    } else {
        Rank::Cluster
    }
}

fn home_region<'a>(snapshot: &'a Snapshot, from: &'a Locality) -> &'a str {
    if from.region.is_empty() {
        snapshot
            .clusters
            .get(&snapshot.cluster)
            .map_or("", |view| view.locality.region.as_str())
    } else {
        &from.region
    }
}
