//! A view is the committed state at its revision: a lease is lost only by a committed entry, seen on a stream that is fresh;
//! members, exports and grants are those of that revision.

use tombolo_clusterset::Lease;

use super::{Invariant, View};
use crate::scene::Fact;

/// The invariant.
#[derive(Debug)]
pub struct Leases;

impl Invariant for Leases {
    fn name(&self) -> &'static str {
        "lease losses come from committed entries"
    }

    fn judge(&mut self, fact: &Fact, view: View<'_>) -> Result<(), String> {
        let Fact::Served {
            cluster,
            snapshot,
            watched,
        } = fact
        else {
            return Ok(());
        };
        let revision = watched.revision;
        let Some(state) = view.history.at(revision) else {
            return Ok(());
        };
        for (id, seen) in &snapshot.clusters {
            let committed = state.members.get(id).map(|member| member.view.lease);
            if seen.lease == Lease::Lost && (committed != Some(Lease::Lost) || !snapshot.fresh) {
                return Err(format!(
                    "c{cluster} sees the lease of {id} lost at revision {revision}; committed: {committed:?}"
                ));
            }
        }
        if !watched.members.keys().eq(state.members.keys()) {
            return Err(format!(
                "c{cluster} has other members at revision {revision} than were committed"
            ));
        }
        let seen = watched
            .records
            .values()
            .flat_map(|records| records.values())
            .map(|record| &record.export);
        let committed = state.all_exports().map(|record| &record.export);
        if !seen.eq(committed) {
            return Err(format!(
                "c{cluster} has other exports at revision {revision} than were committed"
            ));
        }
        if watched.grants != state.grants {
            return Err(format!(
                "c{cluster} has other grants at revision {revision} than were committed"
            ));
        }
        Ok(())
    }
}
