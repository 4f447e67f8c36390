//! How much of the load each tier takes: Envoy's rule.

use super::{Rank, SHARE_ALL};

/// Envoy's default overprovisioning factor, times [`SHARE_ALL`]: a tier at 72 % health still takes all of its load.
const OVERPROVISIONED: u64 = 14_000;

/// The load of each rank, given as (rank, healthy, total) and best first. Adds up to [`SHARE_ALL`] unless nothing is
/// healthy.
pub(crate) fn by_rank(ranks: &[(Rank, usize, usize)]) -> Vec<u32> {
    // Ranks are sorted by class, so all better classes stand in front.
    let best = ranks
        .iter()
        .find(|(_, healthy, _)| *healthy > 0)
        .map(|(rank, _, _)| class(*rank));
    let capacities: Vec<u32> = ranks
        .iter()
        .map(|(rank, healthy, total)| {
            if Some(class(*rank)) == best {
                capacity(*healthy, *total)
            } else {
                0
            }
        })
        .collect();
    shares(&capacities)
}

/// Spill stays inside a class: last resorts and terminating endpoints serve when nothing better is left at all.
fn class(rank: Rank) -> u8 {
    match rank {
        Rank::Zone | Rank::Region | Rank::Cluster | Rank::Remote(_) => 0,
        Rank::LastResort(_) => 1,
        Rank::Terminating => 2,
    }
}

/// The part of the load that a tier can take, at most [`SHARE_ALL`].
fn capacity(healthy: usize, total: usize) -> u32 {
    let wide = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let capacity = wide(healthy).saturating_mul(OVERPROVISIONED) / wide(total.max(1));
    u32::try_from(capacity).unwrap_or(SHARE_ALL).min(SHARE_ALL)
}

/// Each tier takes what it can of what the better ones left; when all together cannot take everything, each takes its part
/// (Envoy's normalised total health).
fn shares(capacities: &[u32]) -> Vec<u32> {
    let sum: u64 = capacities.iter().map(|capacity| u64::from(*capacity)).sum();
    let all = u64::from(SHARE_ALL);
    let scale =
        |capacity: u32| u32::try_from(u64::from(capacity) * all / sum.clamp(1, all)).unwrap_or(SHARE_ALL);
    let mut left = SHARE_ALL;
    let mut shares: Vec<u32> = capacities
        .iter()
        .map(|capacity| {
            let share = scale(*capacity).min(left);
            left -= share;
            share
        })
        .collect();
    // What integer division lost goes to the best tier that takes any.
    if let Some(best) = shares.iter_mut().find(|share| **share > 0) {
        *best += left;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(tiers: &[(Rank, usize, usize)], expected: &[u32]) {
        assert_eq!(by_rank(tiers), expected, "{tiers:?}");
    }

    #[test]
    fn spill_is_envoys() {
        use Rank::{Cluster, Region, Remote, Zone};
        check(&[], &[]);
        check(&[(Zone, 1, 1)], &[10_000]);
        check(&[(Zone, 0, 1)], &[0]);
        check(&[(Zone, 10, 10), (Region, 10, 10)], &[10_000, 0]);
        // 72 % health × 1.4 is just over 1.
        check(&[(Zone, 72, 100), (Remote(0), 10, 10)], &[10_000, 0]);
        check(&[(Zone, 71, 100), (Remote(0), 10, 10)], &[9_940, 60]);
        check(&[(Zone, 50, 100), (Remote(0), 10, 10)], &[7_000, 3_000]);
        check(
            &[(Zone, 25, 100), (Cluster, 25, 100), (Remote(0), 10, 10)],
            &[3_500, 3_500, 3_000],
        );
        check(&[(Zone, 1, 100), (Remote(0), 99, 100)], &[140, 9_860]);
        check(&[(Zone, 0, 100), (Remote(0), 1, 1)], &[0, 10_000]);
        // Not enough in sight: everyone takes its part.
        check(&[(Zone, 25, 100), (Remote(0), 25, 100)], &[5_000, 5_000]);
        check(&[(Zone, 1, 10)], &[10_000]);
        check(
            &[(Zone, 20, 100), (Region, 10, 100), (Cluster, 10, 100)],
            &[5_000, 2_500, 2_500],
        );
        check(
            &[(Zone, 10, 30), (Region, 10, 30), (Cluster, 5, 90)],
            &[4_666, 4_666, 668],
        );
    }

    #[test]
    fn last_resorts_take_no_spill() {
        use Rank::{LastResort, Remote, Terminating, Zone};
        check(&[(Zone, 1, 10), (LastResort(0), 5, 5)], &[10_000, 0]);
        check(
            &[(Remote(0), 0, 10), (LastResort(0), 5, 5), (Terminating, 1, 1)],
            &[0, 10_000, 0],
        );
        check(&[(LastResort(0), 1, 2), (LastResort(1), 5, 5)], &[7_000, 3_000]);
        check(&[(Terminating, 1, 1)], &[10_000]);
    }
}
