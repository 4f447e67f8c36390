use rand::SeedableRng;
use rand::rngs::StdRng;
use tombolo_clusterset::{ClusterId, Label, Locality};
use v1::watch_event::Event;

use super::*;
use crate::manifest::{ManifestFile, read};
use crate::watched::Watched;

const EXPORTED: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {ports: [{port: 80}]}\n---\napiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {name: web, namespace: shop}\n";

fn begun(restored: Restored, now: u64) -> Reconciler {
    let site = ClusterSite {
        cluster: ClusterId::parse("here").unwrap(),
        locality: Locality::default(),
        network: Label::parse("net").unwrap(),
        data_dir: "unused".into(),
    };
    let trust = Trust {
        trust_domain: "own-aaaa2222".to_owned(),
        roots: vec![vec![1]],
        ..Trust::default()
    };
    let vips = VipBook::new(vec!["127.11.64.0/20".parse().unwrap()]);
    Reconciler::new(site, Vec::new(), trust, vips, restored, now)
}

fn manifests(text: &str) -> Manifests {
    read(&[ManifestFile {
        name: "x".into(),
        content: Ok(text.as_bytes().to_vec()),
    }])
}

fn tell(reconciler: &mut Reconciler, text: &str) {
    reconciler.take_manifests(manifests(text), 1, &mut StdRng::seed_from_u64(1));
}

fn progress(revision: u64, unix_ms: u64, fresh: bool) -> v1::WatchEvent {
    let event = Event::Progress(v1::WatchProgress {
        incarnation: 1,
        revision,
        fresh,
        unix_ms,
    });
    v1::WatchEvent { event: Some(event) }
}

fn known() -> Restored {
    let watched = Watched {
        incarnation: 1,
        revision: 10,
        ..Watched::default()
    };
    Restored {
        watch: WatchState::restored(watched, 5),
        ..Restored::default()
    }
}

#[test]
fn nothing_is_said_before_the_manifests_are_read() {
    let mut reconciler = begun(known(), 1);
    assert!(reconciler.step(1).is_none() && reconciler.publication().is_none());
    tell(&mut reconciler, "");
    assert!(
        reconciler.publication().unwrap().exports.is_empty(),
        "now an empty state is the truth"
    );
    assert!(reconciler.step(1).is_some());
    assert!(
        reconciler.step(1).is_none() && reconciler.publication().is_none(),
        "once"
    );
}

#[test]
fn what_is_used_is_stored_first_and_again_after_a_failure() {
    let mut reconciler = begun(known(), 1);
    tell(&mut reconciler, EXPORTED);
    let publication = reconciler.publication().unwrap();
    assert!(publication.store_sightings.is_some());
    reconciler.undo_publication(&publication);
    let again = reconciler.publication().unwrap();
    assert_eq!(again.store_sightings, publication.store_sightings);
    let step = reconciler.step(1).unwrap();
    assert!(step.store_vips.is_some());
    assert_eq!(reconciler.hold_back_vips("disk full", 1), 1);
    let without = reconciler.step(1).unwrap();
    assert!(without.store_vips.is_none(), "nothing to store, and still served");
    let web = |step: &Step| step.snapshot.imports.values().next().unwrap().ips.clone();
    assert!(
        web(&without).is_empty(),
        "no address that a restart would not know"
    );
    let [status] = &reconciler.import_statuses()[..] else {
        panic!("one import");
    };
    let condition = &status.conditions[0];
    assert_eq!(condition.status, "False");
    assert!(condition.message.contains("disk full"), "{condition:?}");
    reconciler.store_again();
    let again = reconciler.step(1).unwrap();
    assert_eq!(again.store_vips, step.store_vips);
    reconciler.step_stored();
    assert_eq!(
        reconciler.hold_back_vips("disk full", 1),
        0,
        "what is stored stays"
    );
    assert_eq!(web(&reconciler.step(1).unwrap()), web(&step));
    assert_eq!(again.snapshot.imports, step.snapshot.imports);
    assert!(again.snapshot.version > step.snapshot.version);
    assert_eq!(
        again.snapshot.trust_domain, "own-aaaa2222",
        "until a broker says more"
    );
}

#[test]
fn versions_rise_over_restarts_even_with_a_clock_set_back() {
    let mut first = begun(known(), 1_000);
    tell(&mut first, EXPORTED);
    let before = first.step(1).unwrap().snapshot.version;
    let cached = crate::cache::decode(&ClusterId::parse("here").unwrap(), &first.cache()).unwrap();
    let restored = Restored {
        watch: WatchState::restored(cached.watched, cached.confirmed_unix_ms),
        local: cached.local,
        ..Restored::default()
    };
    let mut second = begun(restored, 3);
    tell(&mut second, EXPORTED);
    assert!(second.step(1).unwrap().snapshot.version > before);
}

#[test]
fn a_beat_alone_makes_no_snapshot_but_freshness_and_age_do() {
    let mut reconciler = begun(known(), 1);
    tell(&mut reconciler, "");
    reconciler.step(1).unwrap();
    let mut beat = |event| {
        reconciler.take_watch_event(event, |_| {}).unwrap();
        reconciler
            .step(1)
            .map(|step| (step.snapshot.fresh, step.snapshot.confirmed_unix_ms))
    };
    assert_eq!(
        beat(progress(10, 1_000, true)),
        Some((true, 1_000)),
        "fresh again"
    );
    assert_eq!(beat(progress(10, 1_100, true)), None);
    assert_eq!(
        beat(progress(11, 1_200, true)),
        None,
        "a log entry that concerns nobody"
    );
    assert_eq!(
        beat(progress(11, 1_000 + TELL_CONFIRMED_MS, true)),
        Some((true, 6_000))
    );
    assert_eq!(
        beat(progress(11, 6_500, false)),
        Some((false, 6_000)),
        "what is not fresh confirms nothing"
    );
    reconciler.watch_lost();
    assert!(reconciler.step(1).is_none(), "it was not fresh before");
}
