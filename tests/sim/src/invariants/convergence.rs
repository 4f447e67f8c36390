//! Liveness: once everything is healed, all clusters hold one merge of the newest state, and every lease is alive.

use std::collections::BTreeMap;

use tombolo_clusterset::merge::merge;
use tombolo_clusterset::{ExportRecord, Lease, LinkState};

use super::View;

/// Whether all of it holds now.
///
/// # Errors
/// What is still missing.
pub fn check(view: View<'_>) -> Result<(), String> {
    let state = view.history.newest();
    for agent in view.agents.iter().filter(|agent| agent.joined != 0) {
        let id = &agent.site.cluster;
        let Some(member) = state.members.get(id) else {
            return Err(format!("{id} is no member"));
        };
        if member.view.lease != Lease::Alive {
            return Err(format!("the lease of {id} is {}", member.view.lease.as_str()));
        }
        if agent.is_superseded() || !agent.is_settled() {
            return Err(format!(
                "{id} has not published everything, superseded: {}",
                agent.is_superseded()
            ));
        }
        let Some(snapshot) = &agent.snapshot else {
            return Err(format!("{id} serves nothing"));
        };
        let gateway = &view.gateways[agent.number];
        if gateway.snapshot.as_ref().map(|taken| taken.version) != Some(snapshot.version) {
            return Err(format!("the gateway of {id} is behind its agent"));
        }
        if let Some((drill, _)) = &agent.drill {
            return Err(format!("{id} is in a drill of {}", drill.target));
        }
        // A snapshot names the last change, and its agent has heard of every entry since.
        let heard = agent
            .watch()
            .map(|watch| (watch.current().revision, watch.resume_from().1));
        if !snapshot.fresh || heard != Some((snapshot.version.revision, state.applied)) {
            return Err(format!(
                "{id} stands at {:?}, the group at {}",
                snapshot.version, state.applied
            ));
        }
        let others = gateway
            .link_states()
            .into_iter()
            .filter(|(other, _)| state.members.contains_key(other));
        if let Some((other, link)) = others.into_iter().find(|(_, link)| *link != LinkState::Up) {
            return Err(format!("the link from {id} to {other} is {}", link.as_str()));
        }
        for (key, records) in &state.exports {
            let records: Vec<&ExportRecord> = records.values().map(AsRef::as_ref).collect();
            let Some(merged) = merge(&records) else { continue };
            let granted = |exporter: &&_| state.grants.may_import(key, exporter, id);
            let serves: BTreeMap<_, Vec<_>> = merged
                .serves
                .iter()
                .filter(|(exporter, _)| granted(exporter))
                .map(|(exporter, ports)| {
                    (
                        exporter.clone(),
                        ports.iter().map(|(port, _)| port.clone()).collect(),
                    )
                })
                .collect();
            let import = snapshot.imports.get(key);
            let seen: BTreeMap<_, Vec<_>> = import
                .iter()
                .flat_map(|import| &import.clusters)
                .map(|(exporter, imported)| (exporter.clone(), imported.ports.clone()))
                .collect();
            let same_spec = import.is_none_or(|import| import.spec == merged.spec);
            if seen != serves || !same_spec {
                return Err(format!(
                    "{id} merged {key} otherwise than the records say: {seen:?} against {serves:?}"
                ));
            }
        }
    }
    Ok(())
}
