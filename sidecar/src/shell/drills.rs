//! Obeys a running drill: cuts the tunnels that it names, silently, and heals them. It hides nothing: the sidecar's own flows
//! are real ones, and a drill measures what they see.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tombolo_clusterset::{ClusterId, Snapshot};
use tombolo_daemon::seam::Seams;
use tombolo_tunnel::Endpoint;
use tombolo_wire::local::{DrillFeed, RunningDrill, SnapshotFeed};

/// Keeps the cuts true until the process ends.
pub(super) async fn obey(drills: DrillFeed, snapshots: SnapshotFeed, endpoint: Endpoint, seams: Seams) {
    let mut running = drills.receiver();
    let mut members = snapshots.receiver();
    let mut cut = BTreeSet::new();
    loop {
        let now = seams.clock.now();
        let drill = running
            .borrow_and_update()
            .clone()
            .filter(|drill| !drill.is_over(now));
        let snapshot = members.borrow_and_update().clone();
        let wanted = match (&drill, &snapshot) {
            (Some(drill), Some(snapshot)) => cuts(drill, snapshot, now),
            _ => BTreeSet::new(),
        };
        if wanted != cut {
            tracing::info!(clusters = ?wanted, "drill: paths cut");
            endpoint.set_cut(wanted.clone(), false);
            cut = wanted;
        }
        let next = drill.as_ref().and_then(|drill| next_change(drill, now));
        let change = async {
            match next {
                Some(next) => sleep_until(next).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Ok(()) = running.changed() => {}
            Ok(()) = members.changed() => {}
            () = change => {}
        }
    }
}

/// The other clusters whose paths from here are cut now.
fn cuts(running: &RunningDrill, snapshot: &Snapshot, now: Instant) -> BTreeSet<ClusterId> {
    let (here, age) = (&snapshot.cluster, running.age(now));
    let others = snapshot.clusters.keys().filter(|peer| *peer != here);
    others
        .filter(|peer| running.drill.cuts(here, peer, age))
        .cloned()
        .collect()
}

/// When the failure begins or ends, whichever comes next.
fn next_change(running: &RunningDrill, now: Instant) -> Option<Instant> {
    let drill = &running.drill;
    let moments = [drill.baseline, drill.baseline + drill.duration, drill.total()];
    // A moment late, so that the change has happened then.
    let late = Duration::from_millis(1);
    moments
        .into_iter()
        .map(|moment| running.began + moment)
        .find(|at| *at > now)
        .map(|at| at + late)
}

#[cfg(test)]
mod tests {
    use tombolo_clusterset::drill::{Drill, DrillId, DrillKind};

    use super::*;
    use crate::fixtures::{self, cluster, key};

    #[tokio::test]
    async fn a_drill_cuts_between_its_moments() {
        let second = Duration::from_secs(1);
        let began = Seams::host().clock.now();
        let drill = |kind, from: &str, target: &str| RunningDrill {
            drill: Drill {
                id: DrillId(1),
                kind,
                target: cluster(target),
                from: cluster(from),
                service: key("shop/checkout"),
                port: None,
                http_get: None,
                rate_per_second: 10,
                baseline: 2 * second,
                duration: 3 * second,
                recovery: second,
                real: false,
            },
            began,
        };
        let snapshot = fixtures::snapshot();
        let down = drill(DrillKind::ClusterDown, "home", "gke");
        let table = [
            (0, "", Some(2)),
            (2, "gke", Some(5)),
            (4, "gke", Some(5)),
            (5, "", Some(6)),
            (6, "", None),
        ];
        for (at, expected, next) in table {
            let now = began + second * at;
            let expected: BTreeSet<_> = expected.split_terminator(' ').map(cluster).collect();
            assert_eq!(cuts(&down, &snapshot, now), expected, "after {at} s");
            let next = next.map(|next| began + second * next + Duration::from_millis(1));
            assert_eq!(next_change(&down, now), next, "after {at} s");
        }
        let all = cuts(
            &drill(DrillKind::ClusterDown, "gke", "home"),
            &snapshot,
            began + 3 * second,
        );
        assert_eq!(all, ["eks", "gke", "kind"].into_iter().map(cluster).collect());
        let link = cuts(
            &drill(DrillKind::LinkCut, "eks", "gke"),
            &snapshot,
            began + 3 * second,
        );
        assert_eq!(link, BTreeSet::new());
    }
}
