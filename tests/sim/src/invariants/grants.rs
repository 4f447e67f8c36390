//! A route never leads to a cluster without grant, and no gateway lets a flow in without one (DESIGN §4.13): judged by the
//! committed state at the revision that the gateway acted on.

use tombolo_clusterset::ClusterId;

use super::{Invariant, View};
use crate::scene::Fact;

/// The invariant.
#[derive(Debug)]
pub struct Grants;

impl Invariant for Grants {
    fn name(&self) -> &'static str {
        "no flow without a grant"
    }

    fn judge(&mut self, fact: &Fact, view: View<'_>) -> Result<(), String> {
        let id = |number: usize| view.agents[number].site.cluster.clone();
        let (exporters, importer, key, snapshot): (Vec<ClusterId>, _, _, _) = match fact {
            Fact::Routed {
                from,
                key,
                hops,
                snapshot,
            } => (hops.clone(), id(*from), key, snapshot),
            Fact::Admitted {
                at,
                from,
                key,
                snapshot,
            } => (vec![id(*at)], from.clone(), key, snapshot),
            _ => return Ok(()),
        };
        // Without a word from any broker nobody else is known, so that there is nobody to admit or to route to.
        let state = view.history.at(snapshot.version.revision);
        for exporter in exporters {
            let granted = state.as_ref().is_some_and(|state| {
                state.members.contains_key(&exporter)
                    && state.members.contains_key(&importer)
                    && state.grants.may_import(key, &exporter, &importer)
            });
            // An evicted cluster runs on with what it has: it is shut out by the others.
            let own_word = matches!(fact, Fact::Admitted { .. });
            let evicted = state
                .as_ref()
                .is_some_and(|state| !state.members.contains_key(&snapshot.cluster));
            if !granted && (own_word || !evicted) {
                let revision = snapshot.version.revision;
                return Err(format!(
                    "{importer} reaches {key} of {exporter} at revision {revision}: {fact:?}"
                ));
            }
        }
        Ok(())
    }
}
