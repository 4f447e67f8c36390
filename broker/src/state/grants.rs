//! Who may import what, and who may export from where.

use std::collections::BTreeSet;

use tombolo_clusterset::{ClusterId, Namespace, ServiceKey};

use super::{Entry, EntryKey, Refusal, Verdict};
use crate::bounds::{GRANTS_MAX, RESERVATIONS_MAX};
use crate::command::Reply;

impl Entry<'_> {
    pub(super) fn set_grant(
        &mut self,
        key: ServiceKey,
        exporter: ClusterId,
        importers: Option<BTreeSet<ClusterId>>,
    ) -> Verdict {
        self.member(&exporter)?;
        let grants = &mut self.state.grants.by_export;
        let grant = (key, exporter);
        match importers {
            Some(_) if !grants.contains_key(&grant) && grants.len() >= GRANTS_MAX => {
                return Err(Refusal::TooManyGrants);
            }
            Some(importers) => drop(grants.insert(grant.clone(), importers)),
            None => drop(grants.remove(&grant)),
        }
        self.changed.insert(EntryKey::Grant(grant.0, grant.1));
        Ok(Reply::Done)
    }

    /// Exports that the reservation forbids are removed. Clusters whose exports it newly forbids or allows publish
    /// again, so that each of them learns its refusals.
    pub(super) fn reserve(&mut self, namespace: Namespace, clusters: Option<BTreeSet<ClusterId>>) -> Verdict {
        let reserved = &mut self.state.grants.reserved;
        match clusters {
            Some(clusters) if clusters.is_empty() => return Err(Refusal::EmptyReservation(namespace)),
            Some(_) if !reserved.contains_key(&namespace) && reserved.len() >= RESERVATIONS_MAX => {
                return Err(Refusal::TooManyReservations);
            }
            Some(clusters) => {
                reserved.insert(namespace.clone(), clusters.clone());
                self.remove_exports(|key, exporter| {
                    key.namespace == namespace && !clusters.contains(exporter)
                });
            }
            None => drop(reserved.remove(&namespace)),
        }
        for member in self.state.members.values_mut() {
            member.resync = self.index;
        }
        self.changed.insert(EntryKey::Reservation(namespace));
        Ok(Reply::Done)
    }
}
