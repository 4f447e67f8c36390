//! The union of the ports (KEP-1645, "Constraints and Conflict Resolution"): merged by name first, where the empty name
//! counts as one, then by protocol and number; the older entry stays and the younger is dropped.
//!
//! Per-port truth: a merged port is served only by clusters whose own Service exposes its (protocol, number), under whatever
//! name, and their slices carry it under the merged name.

use super::sentence::{Claim, clusters_text, disagreement, joined};
use crate::endpoint::Protocol;
use crate::export::{ExportRecord, ServicePort};
use crate::name::ClusterId;

/// Merged ports and the sentence when the port sets differ.
pub(super) struct Union {
    pub(super) ports: Vec<ServicePort>,
    pub(super) conflict: Option<String>,
}

/// The union over `records`, which stand by precedence.
pub(super) fn union(records: &[&ExportRecord]) -> Union {
    let mut by_name: Vec<&ServicePort> = Vec::new();
    for port in records.iter().flat_map(|record| &record.export.spec.ports) {
        if !by_name.iter().any(|kept| kept.name == port.name) {
            by_name.push(port);
        }
    }
    let mut kept: Vec<ServicePort> = Vec::new();
    for port in by_name {
        if !kept.iter().any(|older| same_number(older, port)) {
            kept.push(port.clone());
        }
    }
    Union {
        conflict: conflict(records, &kept),
        ports: kept,
    }
}

/// The merged ports that `record`'s cluster serves, each with the name it has in that cluster's own slices.
pub(super) fn served_by(merged: &[ServicePort], record: &ExportRecord) -> Vec<(ServicePort, String)> {
    merged
        .iter()
        .filter_map(|port| {
            let own = record
                .export
                .spec
                .ports
                .iter()
                .find(|own| same_number(own, port))?;
            Some((port.clone(), own.name.clone()))
        })
        .collect()
}

fn same_number(a: &ServicePort, b: &ServicePort) -> bool {
    a.protocol == b.protocol && a.port == b.port
}

fn conflict(records: &[&ExportRecord], merged: &[ServicePort]) -> Option<String> {
    let mut sentences = name_clashes(records);
    sentences.extend(number_clashes(records));
    sentences.extend(app_protocol_clashes(records));
    sentences.extend(absences(records, merged));
    (!sentences.is_empty()).then(|| joined(&sentences))
}

/// One name, different numbers.
fn name_clashes(records: &[&ExportRecord]) -> Vec<String> {
    distinct(records, |port| port.name.clone())
        .into_iter()
        .filter_map(|name| {
            let claims = claims(records, |port| {
                (port.name == name).then(|| number(port.protocol, port.port))
            });
            tell(records, &label(&name), &claims)
        })
        .collect()
}

/// One number, different names. Both clusters serve it, under the older name.
fn number_clashes(records: &[&ExportRecord]) -> Vec<String> {
    distinct(records, |port| (port.protocol, port.port))
        .into_iter()
        .filter_map(|(protocol, port)| {
            let claims = claims(records, |own| {
                (own.protocol == protocol && own.port == port).then(|| format!("'{}'", own.name))
            });
            tell(
                records,
                &format!("name of port {}", number(protocol, port)),
                &claims,
            )
        })
        .collect()
}

/// One name and number, different `appProtocol`.
fn app_protocol_clashes(records: &[&ExportRecord]) -> Vec<String> {
    distinct(records, |port| (port.name.clone(), port.protocol, port.port))
        .into_iter()
        .filter_map(|(name, protocol, port)| {
            let claims = claims(records, |own| {
                (own.name == name && own.protocol == protocol && own.port == port)
                    .then(|| super::or_unset(&own.app_protocol))
            });
            let subject = format!("appProtocol of {} ({})", label(&name), number(protocol, port));
            tell(records, &subject, &claims)
        })
        .collect()
}

/// Merged ports that some clusters lack, by number and by name.
fn absences(records: &[&ExportRecord], merged: &[ServicePort]) -> Vec<String> {
    let having = |matches: &dyn Fn(&ServicePort) -> bool| -> Vec<&ClusterId> {
        let has = |record: &&&ExportRecord| record.export.spec.ports.iter().any(matches);
        records
            .iter()
            .filter(has)
            .map(|record| &record.export.cluster)
            .collect()
    };
    merged
        .iter()
        .filter_map(|port| {
            let holders = having(&|own| same_number(own, port));
            let clashing = having(&|own| own.name == port.name);
            let all = records.iter().map(|record| &record.export.cluster);
            let lacking: Vec<&ClusterId> = all
                .filter(|cluster| !holders.contains(cluster) && !clashing.contains(cluster))
                .collect();
            let what = format!("{} ({})", label(&port.name), number(port.protocol, port.port));
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

/// Values of `key` over all ports, in precedence order, each once.
fn distinct<K: PartialEq>(records: &[&ExportRecord], key: impl Fn(&ServicePort) -> K) -> Vec<K> {
    let mut keys = Vec::new();
    for port in records.iter().flat_map(|record| &record.export.spec.ports) {
        let key = key(port);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

/// What each cluster claims, where it claims something; oldest first.
fn claims<'a>(
    records: &[&'a ExportRecord],
    claim: impl Fn(&ServicePort) -> Option<String>,
) -> Vec<(&'a ClusterId, String)> {
    records
        .iter()
        .filter_map(|record| {
            Some((
                &record.export.cluster,
                record.export.spec.ports.iter().find_map(&claim)?,
            ))
        })
        .collect()
}

fn tell(records: &[&ExportRecord], subject: &str, claims: &[(&ClusterId, String)]) -> Option<String> {
    let oldest = records.first().map(|record| &record.export.cluster);
    let wins = claims.first().map(|(cluster, _)| *cluster);
    let claims: Vec<Claim<'_>> = claims
        .iter()
        .map(|(cluster, value)| Claim::new(cluster, value.clone()))
        .collect();
    disagreement(subject, wins == oldest, &claims)
}

fn label(name: &str) -> String {
    if name.is_empty() {
        "the unnamed port".to_owned()
    } else {
        format!("port '{name}'")
    }
}

fn number(protocol: Protocol, port: u16) -> String {
    format!("{port}/{protocol}")
}
