//! Dependencies point one way (ARCHITECTURE.md, *Map*): held here, not by eye.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use tombolo_test_support::repository;

/// What each crate of the workspace may depend on, besides crates from the registry.
const MAY_USE: &[(&str, &[&str])] = &[
    ("clusterset", &[]),
    ("daemon", &[]),
    ("trust", &["clusterset"]),
    ("wire", &["clusterset", "daemon"]),
    ("tunnel", &["clusterset", "wire", "trust", "daemon"]),
    ("broker", &["clusterset", "wire", "trust", "daemon"]),
    ("discovery", &["clusterset", "wire", "trust", "daemon"]),
    ("dns", &["clusterset", "wire", "daemon"]),
    (
        "east-west-gateway",
        &["clusterset", "wire", "trust", "daemon", "tunnel"],
    ),
    ("sidecar", &["clusterset", "wire", "trust", "daemon", "tunnel"]),
];

/// Registry crates that stand in one place only.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("openraft", &["broker"]),
    ("redb", &["broker"]),
    ("quinn", &["tunnel"]),
    ("h2", &["tunnel"]),
    // The command line asks DNS servers (`resolve`), so it speaks their language too.
    ("hickory-proto", &["dns", "cli"]),
    ("kube", &["discovery/kubernetes"]),
    ("clap", &["cli"]),
    ("anyhow", &["cli", "tests/support"]),
];

/// Crates that must stay pure: no I/O, no runtime.
const PURE: &[(&str, &[&str])] = &[(
    "clusterset",
    &["tokio", "tonic", "notify", "socket2", "nix", "rustix", "tracing"],
)];

#[test]
fn dependencies_point_one_way() {
    let crates = crates();
    for (folder, allowed) in MAY_USE {
        let own: BTreeSet<&str> = crates[*folder]
            .iter()
            .filter_map(|name| name.strip_prefix("tombolo-"))
            .collect();
        let allowed: BTreeSet<&str> = allowed.iter().copied().collect();
        let excess: Vec<_> = own.difference(&allowed).collect();
        assert!(excess.is_empty(), "{folder} may not depend on {excess:?}");
    }
}

#[test]
fn what_belongs_to_one_crate_stands_in_no_other() {
    for (name, homes) in ONLY_IN {
        for (folder, dependencies) in crates() {
            assert!(
                !dependencies.contains(*name) || homes.contains(&folder.as_str()),
                "{folder} may not depend on {name}"
            );
        }
    }
}

#[test]
fn pure_crates_have_no_shell() {
    for (folder, banned) in PURE {
        for name in *banned {
            assert!(
                !crates()[*folder].contains(*name),
                "{folder} is pure; it may not depend on {name}"
            );
        }
    }
}

/// `[dependencies]` of every member, by folder.
fn crates() -> BTreeMap<String, BTreeSet<String>> {
    let root = repository();
    let workspace = manifest(&root.join("Cargo.toml"));
    let members = workspace["workspace"]["members"].as_array().expect("members");
    let folders = members
        .iter()
        .map(|member| member.as_str().expect("a path").to_owned());
    folders
        .map(|folder| {
            let manifest = manifest(&root.join(&folder).join("Cargo.toml"));
            let dependencies = manifest.get("dependencies").and_then(toml::Value::as_table);
            (
                folder,
                dependencies
                    .into_iter()
                    .flat_map(|table| table.keys().cloned())
                    .collect(),
            )
        })
        .collect()
}

fn manifest(path: &Path) -> toml::Table {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.parse()
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
