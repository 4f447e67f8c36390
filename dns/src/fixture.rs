//! Snapshots for this crate's tests.

use std::collections::BTreeMap;

use tombolo_clusterset::{ClusterId, Snapshot, Version};

pub(crate) fn snapshot(cluster: &str) -> Snapshot {
    Snapshot {
        version: Version {
            incarnation: 1,
            revision: 1,
            local: 0,
        },
        cluster: ClusterId::parse(cluster).unwrap(),
        fresh: true,
        confirmed_unix_ms: 0,
        clusters: BTreeMap::new(),
        imports: BTreeMap::new(),
        exports: BTreeMap::new(),
        roots: vec![],
        denied: vec![],
        trust_domain: "demo-0000".to_owned(),
    }
}
