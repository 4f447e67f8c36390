use super::*;
use crate::fixtures::{World, endpoint, id, key, slice, spec};
use crate::reachability::Lease;
use crate::snapshot::Interest;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// Snapshots of one cluster that have entries in common, differ in entries, and lack entries.
fn any_snapshot() -> impl Strategy<Value = Snapshot> {
    let entries = || prop::collection::btree_map(0..6u8, 0..3u8, 0..6);
    (entries(), entries(), entries(), 0..3u8, any::<(u64, bool, u64)>()).prop_map(
        |(clusters, imports, exports, root, (revision, fresh, confirmed_unix_ms))| {
            let mut snapshot = Snapshot::empty(id("home"));
            snapshot.version.revision = revision;
            snapshot.fresh = fresh;
            snapshot.confirmed_unix_ms = confirmed_unix_ms;
            snapshot.roots = vec![vec![root]];
            snapshot.denied = vec![[root; 32]];
            snapshot.trust_domain = "set-1a2b".to_owned();
            for (n, variant) in clusters {
                let mut world = World::new().member(&format!("c{n}"), "eu");
                world = world.lease(
                    &format!("c{n}"),
                    [Lease::Alive, Lease::Lost, Lease::Unknown][usize::from(variant)],
                );
                snapshot.clusters.append(&mut world.snapshot.clusters);
            }
            for (n, variant) in imports {
                let key = key(&format!("ns{}/s{n}", n % 2));
                let mut import = World::new()
                    .serves("home", vec![endpoint(&format!("10.0.0.{variant}"), "")])
                    .import;
                import.key = key.clone();
                snapshot.imports.insert(key, Arc::new(import));
            }
            for (n, variant) in exports {
                let key = key(&format!("ns{}/s{n}", n % 2));
                let slices = vec![slice(&[("http", u16::from(variant) + 1)], Vec::new())];
                let export = LocalExport {
                    key: key.clone(),
                    spec: spec(&[("http", 80)]),
                    slices,
                    granted: None,
                };
                snapshot.exports.insert(key, Arc::new(export));
            }
            snapshot
        },
    )
}

proptest! {
    #[test]
    fn diff_then_apply_is_identity(old in any_snapshot(), new in any_snapshot()) {
        prop_assert_eq!(apply(&old, diff(&old, &new)), Ok(new));
    }

    #[test]
    fn a_delta_holds_only_what_changed(old in any_snapshot(), new in any_snapshot()) {
        prop_assert!(diff(&old, &old).is_empty());
        let delta = diff(&old, &new);
        for change in &delta.imports {
            match change {
                Change::Upsert(key, import) => prop_assert_ne!(old.imports.get(key), Some(import)),
                Change::Remove(key) => prop_assert!(old.imports.contains_key(key) && !new.imports.contains_key(key)),
            }
        }
        prop_assert_eq!(delta.trust.is_some(), old.roots != new.roots);
    }

    #[test]
    fn interest_commutes_with_deltas(old in any_snapshot(), new in any_snapshot()) {
        let interest = Interest::of(
            BTreeSet::from(["ns0".parse().expect("a namespace")]),
            BTreeSet::from([key("ns1/s3")]),
        );
        let (old, new) = (interest.filter(&old), interest.filter(&new));
        prop_assert!(new.imports.keys().all(|key| interest.covers(key)));
        prop_assert_eq!(apply(&old, diff(&old, &new)), Ok(new));
    }
}

#[test]
fn unchanged_entries_stay_shared() {
    let old = World::new().serves("home", Vec::new()).whole();
    let mut new = old.clone();
    new.version.local = 1;
    new.fresh = false;
    let applied = apply(&old, diff(&old, &new)).expect("fits");
    assert!(Arc::ptr_eq(
        &old.imports[&key("shop/checkout")],
        &applied.imports[&key("shop/checkout")]
    ));
}

#[test]
fn a_delta_fits_one_version_of_one_cluster() {
    let old = World::new().whole();
    let mut new = old.clone();
    new.version.revision = 7;
    let delta = diff(&old, &new);
    assert!(apply(&new, delta.clone()).is_err());
    let mut other = old.clone();
    other.cluster = id("other");
    let error = apply(&other, delta).expect_err("another cluster's view");
    assert!(error.to_string().ends_with("ask for the full state"), "{error}");
}

#[test]
fn interest_covers_namespaces_and_single_services() {
    let check = |namespaces: &[&str], services: &[&str], asked: &str, covered: bool| {
        let interest = Interest::of(
            namespaces
                .iter()
                .map(|text| text.parse().expect("a namespace"))
                .collect(),
            services.iter().map(|text| key(text)).collect(),
        );
        assert_eq!(interest.covers(&key(asked)), covered, "{interest:?} {asked}");
    };
    check(&[], &[], "shop/checkout", true);
    check(&["shop"], &[], "shop/checkout", true);
    check(&["shop"], &[], "pay/card", false);
    check(&["shop"], &["pay/card"], "pay/card", true);
    check(&[], &["pay/card"], "pay/cash", false);
}
