//! When a drill may not begin: what it asks for makes no sense, or it would leave a service without a healthy endpoint.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{DRILL_MAX, Drill, DrillKind};
use crate::endpoint::Readiness;
use crate::export::{ExportRecord, ServicePort};
use crate::merge::merge;
use crate::name::{ClusterId, ServiceKey};
use crate::policy::Grants;
use crate::reachability::Lease;

/// Requests per second at most: a rehearsal is no load test.
pub const RATE_MAX: u32 = 1_000;

/// Services named in a refusal's text; the rest is counted.
const NAMED_MAX: usize = 5;

/// Services carried in a refusal: 10,000 services and 250 clusters would make millions, and the first say enough.
const WITHOUT_MAX: usize = 100;

/// Why a drill may not begin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A cluster cannot watch its own failure.
    #[error("{cluster} is both target and sender; choose another cluster with --from")]
    SameCluster {
        /// Target and sender.
        cluster: ClusterId,
    },
    /// No such member.
    #[error("{cluster} is no member of the clusterset; see `tombolo status`")]
    NotAMember {
        /// Who was named.
        cluster: ClusterId,
    },
    /// The target does not serve what the drill calls.
    #[error("{target} does not export {service} to {from}; see `tombolo get exports`")]
    NotServed {
        /// The target.
        target: ClusterId,
        /// The service.
        service: ServiceKey,
        /// The sender.
        from: ClusterId,
    },
    /// Longer than [`DRILL_MAX`].
    #[error("the drill would last {seconds} s; at most {} s are allowed", DRILL_MAX.as_secs())]
    TooLong {
        /// Its length.
        seconds: u64,
    },
    /// A rate of 0 or beyond [`RATE_MAX`].
    #[error("{rate} requests per second are not possible; use 1 to {RATE_MAX}")]
    Rate {
        /// The rate asked for.
        rate: u32,
    },
    /// No baseline or no failure.
    #[error("a drill needs a baseline and a failure of at least one second each")]
    TooShort,
    /// Gateways alone cannot rehearse it.
    #[error("{} kills a process and cannot be rehearsed; use --real", .kind.as_str())]
    NeedsReal {
        /// What was asked for.
        kind: DrillKind,
    },
    /// Services would have no healthy endpoint left; `--force` overrides.
    #[error("it would leave no healthy endpoint for {}; repair or add another exporter, or use --force", named(.without))]
    LeavesWithout {
        /// Which, for whom; the first hundred.
        without: Vec<(ServiceKey, ClusterId)>,
    },
}

/// What the broker knows when a drill is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Standing<'a> {
    /// Lease of each member.
    pub members: &'a BTreeMap<ClusterId, Lease>,
    /// Every export of the clusterset.
    pub records: &'a [&'a ExportRecord],
    /// Who may import what.
    pub grants: &'a Grants,
}

/// Why `drill` may not begin; None: it may. `forced` lifts [`Refusal::LeavesWithout`] and nothing else.
#[must_use]
pub fn refuse(drill: &Drill, standing: Standing<'_>, forced: bool) -> Option<Refusal> {
    if let Some(refusal) = senseless(drill, standing) {
        return Some(refusal);
    }
    let without = if forced {
        Vec::new()
    } else {
        left_without(drill, standing)
    };
    (!without.is_empty()).then_some(Refusal::LeavesWithout { without })
}

fn senseless(
    drill: &Drill,
    Standing {
        members,
        records,
        grants,
    }: Standing<'_>,
) -> Option<Refusal> {
    let Drill {
        target,
        from,
        service,
        ..
    } = drill;
    if target == from {
        return Some(Refusal::SameCluster {
            cluster: target.clone(),
        });
    }
    if let Some(cluster) = [target, from]
        .into_iter()
        .find(|cluster| !members.contains_key(*cluster))
    {
        return Some(Refusal::NotAMember {
            cluster: cluster.clone(),
        });
    }
    if !(1..=RATE_MAX).contains(&drill.rate_per_second) {
        return Some(Refusal::Rate {
            rate: drill.rate_per_second,
        });
    }
    if drill.baseline.as_secs() == 0 || drill.duration.as_secs() == 0 {
        return Some(Refusal::TooShort);
    }
    if drill.total() > DRILL_MAX {
        return Some(Refusal::TooLong {
            seconds: drill.total().as_secs(),
        });
    }
    if !drill.real && !drill.kind.can_be_rehearsed() {
        return Some(Refusal::NeedsReal { kind: drill.kind });
    }
    let served = records
        .iter()
        .any(|record| &record.export.key == service && &record.export.cluster == target);
    if !served || !grants.may_import(service, target, from) {
        return Some(Refusal::NotServed {
            target: target.clone(),
            service: service.clone(),
            from: from.clone(),
        });
    }
    None
}

/// Services that the target serves to a cluster to which nobody else could serve them, per merged port.
fn left_without(drill: &Drill, standing: Standing<'_>) -> Vec<(ServiceKey, ClusterId)> {
    let mut services: BTreeMap<&ServiceKey, Vec<&ExportRecord>> = BTreeMap::new();
    for record in standing.records {
        services.entry(&record.export.key).or_default().push(record);
    }
    let importers: Vec<&ClusterId> = match drill.kind {
        DrillKind::ClusterDown | DrillKind::GatewayKill => standing
            .members
            .keys()
            .filter(|member| *member != &drill.target)
            .collect(),
        DrillKind::LinkCut => vec![&drill.from],
        DrillKind::BrokerLeaderKill | DrillKind::DnsKill => Vec::new(),
    };
    let mut without = Vec::new();
    for (key, records) in services {
        let servers = Servers::of(&records, standing);
        for importer in &importers {
            if without.len() >= WITHOUT_MAX {
                return without;
            }
            if servers.only(&drill.target, importer, key, standing.grants) {
                without.push((key.clone(), (*importer).clone()));
            }
        }
    }
    without
}

/// Which clusters serve each merged port of one service with a ready endpoint.
struct Servers {
    by_port: Vec<Vec<ClusterId>>,
}

impl Servers {
    fn of(records: &[&ExportRecord], standing: Standing<'_>) -> Self {
        let Some(merged) = merge(records) else {
            return Self { by_port: Vec::new() };
        };
        let serving = |port: &ServicePort| {
            records
                .iter()
                .filter(|record| {
                    standing
                        .members
                        .get(&record.export.cluster)
                        .is_some_and(|l| *l != Lease::Lost)
                })
                .filter(|record| {
                    let served = merged.serves.get(&record.export.cluster);
                    served
                        .and_then(|ports| ports.iter().find(|(merged, _)| merged == port))
                        .is_some_and(|(_, own_name)| has_ready(record, own_name, port))
                })
                .map(|record| record.export.cluster.clone())
                .collect()
        };
        Self {
            by_port: merged.spec.ports.iter().map(serving).collect(),
        }
    }

    /// Whether `target` alone serves some port to `importer`.
    fn only(&self, target: &ClusterId, importer: &ClusterId, key: &ServiceKey, grants: &Grants) -> bool {
        self.by_port.iter().any(|servers| {
            let mut granted = servers
                .iter()
                .filter(|server| grants.may_import(key, server, importer));
            granted.clone().any(|server| server == target) && granted.all(|server| server == target)
        })
    }
}

fn has_ready(record: &ExportRecord, own_name: &str, port: &ServicePort) -> bool {
    record
        .export
        .slices
        .iter()
        .filter(|slice| slice.port(own_name, port.protocol).is_some())
        .flat_map(|slice| &slice.endpoints)
        .any(|endpoint| endpoint.readiness == Readiness::Ready)
}

fn named(without: &[(ServiceKey, ClusterId)]) -> String {
    let mut text = String::new();
    for (at, (service, importer)) in without.iter().take(NAMED_MAX).enumerate() {
        let comma = if at == 0 { "" } else { ", " };
        let _ = write!(text, "{comma}{service} in {importer}");
    }
    if without.len() > NAMED_MAX {
        let _ = write!(text, " and {} more", without.len() - NAMED_MAX);
    }
    text
}

#[cfg(test)]
mod tests;
