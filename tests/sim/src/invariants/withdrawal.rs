//! Liveness: a cluster that is gone for good loses its lease, and no service but those that keep it names it or leads to it.

use tombolo_clusterset::select::{Signals, plan};
use tombolo_clusterset::{Lease, Locality, LossPolicy};

use super::View;

/// Whether cluster `fallen` is out of use everywhere.
///
/// # Errors
/// Where it is still in use.
pub fn check(view: View<'_>, fallen: usize) -> Result<(), String> {
    let gone = &view.agents[fallen].site.cluster;
    for (number, gateway) in view
        .gateways
        .iter()
        .enumerate()
        .filter(|(number, _)| *number != fallen)
    {
        if view.agents[number].joined == 0 {
            continue;
        }
        let Some(snapshot) = &gateway.snapshot else {
            return Err(format!("c{number} has no snapshot"));
        };
        if snapshot.lease(gone) != Some(Lease::Lost) {
            return Err(format!(
                "c{number} sees the lease of {gone} as {:?}",
                snapshot.lease(gone)
            ));
        }
        let signals = Signals {
            links: gateway.links.links(),
            ..Signals::default()
        };
        for (key, import) in &snapshot.imports {
            let keeps = import
                .clusters
                .get(gone)
                .is_some_and(|imported| imported.loss_policy == LossPolicy::Keep);
            for port in import.spec.ports.iter().filter(|_| !keeps) {
                let plan = plan(snapshot, import, port, None, &Locality::default(), &signals);
                if plan.candidates().any(|candidate| candidate.cluster == *gone) {
                    return Err(format!("c{number} still leads {key} to {gone}"));
                }
            }
        }
    }
    Ok(())
}
