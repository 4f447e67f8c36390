//! Silent failures: no client sees one.

use std::time::Duration;

use tombolo_clusterset::LinkState;
use tombolo_clusterset::drill::DrillKind;
use tombolo_gateway::Transport;
use tombolo_wire::v1;

use crate::agent::{UNANSWERED_DRILL, tally};
use crate::backend::{self, ask};
use crate::world::{PATIENCE, Service, Site, World};

const THREE: [(&str, bool); 3] = [("aks", false), ("gke", false), ("kind", false)];

pub(crate) fn drill(kind: DrillKind, target: &str, milliseconds: [u64; 3]) -> v1::DrillsUpdate {
    let [baseline_ms, duration_ms, recovery_ms] = milliseconds;
    let drill = v1::Drill {
        id: 7,
        kind: v1::DrillKind::from(kind).into(),
        target: target.to_owned(),
        from: "aks".to_owned(),
        service: Some(v1::ServiceKey {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
        }),
        port: 0,
        http_get: String::new(),
        rate_per_second: 100,
        baseline_ms,
        duration_ms,
        recovery_ms,
        real: false,
    };
    v1::DrillsUpdate {
        drill: Some(drill),
        age_ms: 0,
    }
}

async fn world_of_two_servers() -> (World, Vec<Site>) {
    let world = World::new(&THREE);
    let (gke, kind) = (world.backend("gke", 0), world.backend("kind", 0));
    let world = world.with(Service::tcp("web", 0).at("gke", [gke]).at("kind", [kind]));
    backend::tcp(gke, "gke").await;
    backend::tcp(kind, "kind").await;
    let sites = world.start_all(Transport::Auto).await;
    (world, sites)
}

/// The cluster that serves now.
async fn nearest(world: &World) -> String {
    ask(world.vip("aks", 0), "")
        .await
        .unwrap()
        .trim_end_matches(':')
        .to_owned()
}

async fn rehearse(kind: DrillKind) {
    let (world, mut sites) = world_of_two_servers().await;
    let target = nearest(&world).await;
    for site in &sites {
        site.desk
            .drills
            .send_replace(drill(kind, &target, [1_000, 2_500, 1_500]));
    }
    // Clients of the VIP are served through it all, beside the drill's own traffic.
    let mut answers = Vec::new();
    for _ in 0..400 {
        let (vip, pause) = (world.vip("aks", 0), tokio::time::sleep(Duration::from_millis(10)));
        answers.push(tokio::spawn(async move {
            tokio::time::timeout(PATIENCE, ask(vip, "")).await
        }));
        pause.await;
    }
    let mut names = Vec::new();
    for answer in answers {
        match answer.await.unwrap().unwrap() {
            Ok(name) => names.push(name),
            // In flight when it failed: such a flow is reset, and it is counted apart from new ones.
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }
    assert!(
        names.len() >= 395,
        "{:?}",
        tally(names.iter().map(String::as_str))
    );

    let report = tokio::time::timeout(PATIENCE, sites[0].desk.reports.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!((report.drill, report.error.as_str()), (7, ""));
    assert_eq!(report.samples.len(), 500);
    let failures: Vec<_> = report
        .samples
        .iter()
        .filter(|sample| !sample.failure.is_empty())
        .collect();
    assert_eq!(failures, Vec::<&v1::DrillSample>::new(), "no request fails");
    let by_phase = |from_ms: u64, to_ms: u64| {
        let within = report
            .samples
            .iter()
            .filter(|sample| (from_ms * 1_000..to_ms * 1_000).contains(&sample.started_us));
        tally(within.map(|sample| sample.served_by.as_str()))
    };
    assert!(by_phase(0, 1_000)[&target] >= 50, "{:?}", by_phase(0, 1_000));
    assert_eq!(
        by_phase(1_100, 3_400).get(&target),
        None,
        "{:?}",
        by_phase(1_100, 3_400)
    );
    let target: &'static str = if target == "gke" { "gke" } else { "kind" };
    sites[0].wait_state(target, LinkState::Up).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_loss_of_a_cluster_fails_no_request() {
    rehearse(DrillKind::ClusterDown).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silently_cut_link_fails_no_request() {
    rehearse(DrillKind::LinkCut).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_hangs_stops_no_later_drill() {
    let (_world, mut sites) = world_of_two_servers().await;
    for (id, tries) in [(UNANSWERED_DRILL, 2), (67, 1)] {
        let mut update = drill(DrillKind::LinkCut, "kind", [100, 100, 100]);
        update.drill.as_mut().unwrap().id = id;
        sites[0].desk.drills.send_replace(update);
        for _ in 0..tries {
            let report = tokio::time::timeout(PATIENCE, sites[0].desk.reports.recv()).await;
            assert_eq!(report.unwrap().unwrap().drill, id);
        }
    }
}
