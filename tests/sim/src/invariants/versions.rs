//! Snapshot versions never go back: not what an agent serves, nor what its gateway uses.
//!
//! An agent that starts begins at its cache, which may be a moment older than what the process before it served: there, and
//! only there, a version may be lower.

use std::collections::BTreeMap;

use tombolo_clusterset::Version;

use super::{Invariant, View};
use crate::scene::Fact;

/// The invariant.
#[derive(Debug, Default)]
pub struct Versions {
    served: BTreeMap<usize, Version>,
    taken: BTreeMap<usize, Version>,
}

impl Invariant for Versions {
    fn name(&self) -> &'static str {
        "snapshot versions never go back"
    }

    fn judge(&mut self, fact: &Fact, _view: View<'_>) -> Result<(), String> {
        match fact {
            Fact::Started { cluster } => {
                self.served.remove(cluster);
                self.taken.remove(cluster);
                Ok(())
            }
            Fact::Served {
                cluster, snapshot, ..
            } => rises(&mut self.served, *cluster, snapshot.version, "agent"),
            Fact::Taken { cluster, snapshot } => {
                rises(&mut self.taken, *cluster, snapshot.version, "gateway")
            }
            _ => Ok(()),
        }
    }
}

fn rises(
    last: &mut BTreeMap<usize, Version>,
    cluster: usize,
    version: Version,
    who: &str,
) -> Result<(), String> {
    match last.insert(cluster, version) {
        Some(before) if version < before => Err(format!(
            "the {who} of c{cluster} went from {before:?} to {version:?}"
        )),
        _ => Ok(()),
    }
}
