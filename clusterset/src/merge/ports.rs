//! The union of the ports (KEP-1645, "Constraints and Conflict Resolution"): merged by name first, where the empty name
//! counts as one, then by protocol and number; the older entry stays and the younger is dropped.
//!
//! Per-port truth: a merged port is served only by clusters whose own Service exposes its (protocol, number), under whatever
//! name, and their slices carry it under the merged name.

use std::collections::{BTreeMap, BTreeSet};

use super::sentence::{Claim, clusters_text, disagreement, joined};
use crate::endpoint::Protocol;
use crate::export::{ExportRecord, ServicePort};
use crate::name::ClusterId;

/// Merged ports and the sentence when the port sets differ.
pub(super) struct Union {
    pub(super) ports: Vec<ServicePort>,
    pub(super) conflict: Option<String>,
}

/// What no two ports of one Service share.
type Number = (Protocol, u16);

fn number(port: &ServicePort) -> Number {
    (port.protocol, port.port)
}

/// The union over `records`, which stand by precedence.
pub(super) fn union(records: &[&ExportRecord]) -> Union {
    let all = records.iter().flat_map(|record| &record.export.spec.ports);
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    // Two passes, not one: an entry that loses its number has already taken its name from younger ones.
    let by_name: Vec<&ServicePort> = all.filter(|port| names.insert(&port.name)).collect();
    let ports: Vec<ServicePort> = by_name
        .into_iter()
        .filter(|port| numbers.insert(number(port)))
        .cloned()
        .collect();
    Union {
        conflict: conflict(records, &ports),
        ports,
    }
}

/// The merged ports that `record`'s cluster serves, each with the name it has in that cluster's own slices.
pub(super) fn served_by(merged: &[ServicePort], record: &ExportRecord) -> Vec<(ServicePort, String)> {
    let own: BTreeMap<Number, &ServicePort> = record
        .export
        .spec
        .ports
        .iter()
        .rev()
        .map(|port| (number(port), port))
        .collect();
    merged
        .iter()
        .filter_map(|port| Some((port.clone(), own.get(&number(port))?.name.clone())))
        .collect()
}

fn conflict(records: &[&ExportRecord], merged: &[ServicePort]) -> Option<String> {
    let name_clashes = grouped(
        records,
        |port| port.name.clone(),
        |port| number_text(number(port)),
    )
    .into_iter()
    .filter_map(|(name, claims)| tell(records, &label(&name), claims));
    // Both clusters serve the number, under the older name.
    let number_clashes = grouped(records, number, |port| format!("'{}'", port.name))
        .into_iter()
        .filter_map(|(number, claims)| {
            tell(records, &format!("name of port {}", number_text(number)), claims)
        });
    let app_protocols = grouped(
        records,
        |port| (port.name.clone(), number(port)),
        |port| super::or_unset(&port.app_protocol),
    )
    .into_iter()
    .filter_map(|((name, number), claims)| {
        let subject = format!("appProtocol of {} ({})", label(&name), number_text(number));
        tell(records, &subject, claims)
    });
    let sentences: Vec<String> = name_clashes
        .chain(number_clashes)
        .chain(app_protocols)
        .chain(absences(records, merged))
        .collect();
    (!sentences.is_empty()).then(|| joined(&sentences))
}

/// Merged ports that some clusters lack, by number and by name.
fn absences(records: &[&ExportRecord], merged: &[ServicePort]) -> Vec<String> {
    let (mut by_number, mut by_name) = (BTreeSet::new(), BTreeSet::new());
    for record in records {
        for port in &record.export.spec.ports {
            by_number.insert((number(port), &record.export.cluster));
            by_name.insert((port.name.as_str(), &record.export.cluster));
        }
    }
    merged
        .iter()
        .filter_map(|port| {
            let all = records.iter().map(|record| &record.export.cluster);
            let (holders, others): (Vec<&ClusterId>, Vec<&ClusterId>) =
                all.partition(|cluster| by_number.contains(&(number(port), *cluster)));
            let clashes = |cluster: &&ClusterId| by_name.contains(&(port.name.as_str(), *cluster));
            let lacking: Vec<&ClusterId> = others.into_iter().filter(|cluster| !clashes(cluster)).collect();
            let what = format!("{} ({})", label(&port.name), number_text(number(port)));
            (!lacking.is_empty()).then(|| {
                format!(
                    "{what} is exposed by {} but not by {}",
                    clusters_text(&holders),
                    clusters_text(&lacking)
                )
            })
        })
        .collect()
}

/// What each cluster claims about each key, keys by first appearance and claims by precedence; a cluster's first counts.
fn grouped<'a, K: Ord + Clone>(
    records: &[&'a ExportRecord],
    key: impl Fn(&ServicePort) -> K,
    claim: impl Fn(&ServicePort) -> String,
) -> Vec<(K, Vec<Claim<'a>>)> {
    let mut places: BTreeMap<K, usize> = BTreeMap::new();
    let mut groups: Vec<(K, Vec<Claim<'a>>)> = Vec::new();
    for record in records {
        for port in &record.export.spec.ports {
            let key = key(port);
            let place = *places.entry(key.clone()).or_insert(groups.len());
            if place == groups.len() {
                groups.push((key, Vec::new()));
            }
            if let Some((_, claims)) = groups.get_mut(place)
                && claims
                    .last()
                    .is_none_or(|last| last.cluster != &record.export.cluster)
            {
                claims.push(Claim::new(&record.export.cluster, claim(port)));
            }
        }
    }
    groups
}

fn tell(records: &[&ExportRecord], subject: &str, claims: Vec<Claim<'_>>) -> Option<String> {
    let oldest = records.first().map(|record| &record.export.cluster);
    let wins = claims.first().map(|claim| claim.cluster);
    disagreement(subject, wins == oldest, &claims)
}

fn label(name: &str) -> String {
    if name.is_empty() {
        "the unnamed port".to_owned()
    } else {
        format!("port '{name}'")
    }
}

fn number_text((protocol, port): Number) -> String {
    format!("{port}/{protocol}")
}
