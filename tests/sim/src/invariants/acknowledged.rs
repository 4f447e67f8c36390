//! An acknowledged export is never lost: it stands in the committed state until its own agent offers something else, the
//! cluster is no member any more, or its namespace is reserved for others (DESIGN §4.6).

use std::collections::BTreeMap;
use std::sync::Arc;

use tombolo_clusterset::{Export, ServiceKey};

use super::{Invariant, View};
use crate::scene::Fact;

/// The invariant.
#[derive(Debug, Default)]
pub struct Acknowledged {
    held: BTreeMap<(usize, ServiceKey), (Arc<Export>, u64)>,
    looked: u64,
}

impl Invariant for Acknowledged {
    fn name(&self) -> &'static str {
        "an acknowledged export is never lost"
    }

    fn judge(&mut self, fact: &Fact, _view: View<'_>) -> Result<(), String> {
        match fact {
            Fact::Offered { cluster, key } => drop(self.held.remove(&(*cluster, key.clone()))),
            Fact::Acknowledged {
                cluster,
                key,
                export,
                index,
            } => {
                self.looked = 0;
                self.held
                    .insert((*cluster, key.clone()), (Arc::clone(export), *index));
            }
            _ => {}
        }
        Ok(())
    }

    fn tick(&mut self, view: View<'_>) -> Result<(), String> {
        let state = view.history.newest();
        if self.looked == state.applied {
            return Ok(());
        }
        self.looked = state.applied;
        let ends = |cluster: usize, key: &ServiceKey, index: u64| {
            let id = &view.agents[cluster].site.cluster;
            let member = state.members.get(id).is_some_and(|member| member.joined <= index);
            !member || !state.grants.may_export(&key.namespace, id)
        };
        self.held
            .retain(|(cluster, key), (_, index)| !ends(*cluster, key, *index));
        for ((cluster, key), (export, index)) in
            self.held.iter().filter(|(_, (_, index))| *index <= state.applied)
        {
            let found = state.export(key, &view.agents[*cluster].site.cluster);
            if found.is_none_or(|record| record.export != **export) {
                let what = if found.is_some() {
                    "an older one stands in its place"
                } else {
                    "it is gone"
                };
                return Err(format!(
                    "c{cluster} was told at {index} that {key} is exported; at {} {what}",
                    state.applied
                ));
            }
        }
        Ok(())
    }
}
