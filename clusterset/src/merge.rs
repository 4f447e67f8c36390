//! The merge of KEP-1645: every export of a service, from all clusters, into one import.
//!
//! A pure function of the records (DESIGN §4.7): blind to grants, leases and links, so that all clusters compute the same.
//! The oldest export wins each property as a whole; ports form a union (by name first, then by protocol and number).
//! Every disagreement is told to every exporter in one sentence per kind.

mod ports;
mod sentence;

use std::collections::BTreeMap;

use crate::endpoint::IpFamily;
use crate::export::{ExportRecord, ServicePort, ServiceSpec, SessionAffinity};
use crate::name::ClusterId;
use crate::policy::LossPolicy;
use sentence::{Claim, disagreement};

/// Longest message of one conflict, bytes. All nine kinds together stay far below the 32,768 characters that a Kubernetes
/// condition may hold.
pub const MESSAGE_MAX: usize = 1024;

/// A property that exports of one service disagree on (`ServiceExport` Conflict reasons of `v1beta1`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Conflict {
    /// Port sets differ.
    Port,
    /// Headless against ClusterSetIP.
    Type,
    /// `sessionAffinity`.
    SessionAffinity,
    /// `sessionAffinityConfig`.
    SessionAffinityConfig,
    /// Exported labels.
    Labels,
    /// Exported annotations.
    Annotations,
    /// `internalTrafficPolicy`.
    InternalTrafficPolicy,
    /// `trafficDistribution`.
    TrafficDistribution,
    /// Address families.
    IpFamily,
}

impl Conflict {
    /// The reason word of the `Conflict` condition (`mcs-api` `pkg/apis/v1beta1/serviceexport.go`).
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Port => "PortConflict",
            Self::Type => "TypeConflict",
            Self::SessionAffinity => "SessionAffinityConflict",
            Self::SessionAffinityConfig => "SessionAffinityConfigConflict",
            Self::Labels => "LabelsConflict",
            Self::Annotations => "AnnotationsConflict",
            Self::InternalTrafficPolicy => "InternalTrafficPolicyConflict",
            Self::TrafficDistribution => "TrafficDistributionConflict",
            Self::IpFamily => "IPFamilyConflict",
        }
    }
}

/// The merged service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// The winner's properties, with the union of the ports.
    pub spec: ServiceSpec,
    /// The cluster whose export took precedence.
    pub winner: ClusterId,
    /// The winner's choice of what a lost cluster means to this service.
    pub loss_policy: LossPolicy,
    /// For each exporter, the merged ports that it serves, as (merged port, name of the port in that cluster's own slices).
    pub serves: BTreeMap<ClusterId, Vec<(ServicePort, String)>>,
    /// What the exports disagree on, at most once per kind, with a sentence for the operator; set on every exporter.
    pub conflicts: Vec<(Conflict, String)>,
}

/// Merges all `records` of one service. None when there are none. The order of `records` does not matter.
#[must_use]
pub fn merge(records: &[&ExportRecord]) -> Option<Merged> {
    let records = by_precedence(records);
    let winner = records.first()?;
    let union = ports::union(&records);
    let mut conflicts = Vec::new();
    conflicts.extend(union.conflict.map(|message| (Conflict::Port, message)));
    conflicts.extend(property_conflicts(&records));

    let own = &winner.export.spec;
    let spec = ServiceSpec {
        ports: union.ports,
        ip_families: without_repeats(&own.ip_families),
        ..own.clone()
    };
    Some(Merged {
        serves: records
            .iter()
            .map(|record| {
                (
                    record.export.cluster.clone(),
                    ports::served_by(&spec.ports, record),
                )
            })
            .collect(),
        spec,
        winner: winner.export.cluster.clone(),
        loss_policy: winner.export.loss_policy,
        conflicts,
    })
}

/// `records` from the oldest to the youngest, one per cluster: of several by one cluster the oldest counts.
#[must_use]
pub fn by_precedence<'a>(records: &[&'a ExportRecord]) -> Vec<&'a ExportRecord> {
    let mut sorted = records.to_vec();
    sorted.sort_by_key(|record| record.precedence());
    let mut seen = std::collections::BTreeSet::new();
    sorted.retain(|record| seen.insert(&record.export.cluster));
    sorted
}

/// Conflicts of everything but the ports: the field as a whole, oldest wins. `records` by precedence.
fn property_conflicts(records: &[&ExportRecord]) -> Vec<(Conflict, String)> {
    type Show = fn(&ServiceSpec) -> String;
    let fields: [(Conflict, &str, Show); 7] = [
        (Conflict::Type, "type", |spec| {
            spec.service_type.as_str().to_owned()
        }),
        (Conflict::SessionAffinity, "sessionAffinity", |spec| {
            affinity_word(spec.session_affinity).to_owned()
        }),
        (
            Conflict::SessionAffinityConfig,
            "sessionAffinityConfig.clientIP.timeoutSeconds",
            |spec| {
                spec.session_affinity_timeout_seconds
                    .map_or_else(|| "unset".to_owned(), |seconds| seconds.to_string())
            },
        ),
        (Conflict::Labels, "exportedLabels", |spec| map_text(&spec.labels)),
        (Conflict::Annotations, "exportedAnnotations", |spec| {
            map_text(&spec.annotations)
        }),
        (Conflict::InternalTrafficPolicy, "internalTrafficPolicy", |spec| {
            or_unset(&spec.internal_traffic_policy)
        }),
        (Conflict::TrafficDistribution, "trafficDistribution", |spec| {
            or_unset(&spec.traffic_distribution)
        }),
    ];
    let mut conflicts: Vec<_> = fields
        .into_iter()
        .filter_map(|(kind, subject, show)| {
            let claims: Vec<Claim<'_>> = records
                .iter()
                .map(|record| Claim::new(&record.export.cluster, show(&record.export.spec)))
                .collect();
            disagreement(subject, true, &claims).map(|message| (kind, message))
        })
        .collect();
    conflicts.extend(ip_family_conflict(records).map(|message| (Conflict::IpFamily, message)));
    conflicts
}

/// The import lists the winner's families, so that a conflict never disturbs its traffic (KEP-1645). It is one when an
/// exporter lacks a listed family, since its backends cannot be reached over it; a family more than listed is none.
fn ip_family_conflict(records: &[&ExportRecord]) -> Option<String> {
    let (winner, others) = records.split_first()?;
    let listed = &winner.export.spec.ip_families;
    let lacks = |record: &&&ExportRecord| {
        listed
            .iter()
            .any(|family| !record.export.spec.ip_families.contains(family))
    };
    let claims: Vec<Claim<'_>> = std::iter::once(winner)
        .chain(others.iter().filter(lacks))
        .map(|record| {
            Claim::new(
                &record.export.cluster,
                families_text(&record.export.spec.ip_families),
            )
        })
        .collect();
    disagreement("ipFamilies", true, &claims)
}

fn without_repeats(families: &[IpFamily]) -> Vec<IpFamily> {
    let mut kept = Vec::with_capacity(families.len());
    for family in families {
        if !kept.contains(family) {
            kept.push(*family);
        }
    }
    kept
}

fn families_text(families: &[IpFamily]) -> String {
    or_unset(
        &without_repeats(families)
            .iter()
            .map(|family| family.as_str())
            .collect::<Vec<_>>()
            .join("+"),
    )
}

fn affinity_word(affinity: SessionAffinity) -> &'static str {
    match affinity {
        SessionAffinity::None => "None",
        SessionAffinity::ClientIp => "ClientIP",
    }
}

fn or_unset(text: &str) -> String {
    if text.is_empty() {
        "unset".to_owned()
    } else {
        text.to_owned()
    }
}

fn map_text(map: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = map.iter().map(|(key, value)| format!("{key}={value}")).collect();
    format!("{{{}}}", pairs.join(", "))
}

#[cfg(test)]
mod tests;
