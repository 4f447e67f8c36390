//! What a drill needs decided before and after: who calls, what is killed, and where the failure lies on the clock.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tombolo_clusterset::drill::{Outcome, Sample};
use tombolo_clusterset::endpoint::Protocol;
use tombolo_clusterset::select::{SHARE_ALL, Signals, plan};
use tombolo_clusterset::{ClusterId, Drill, DrillKind, Lease, LinkState, ServiceKey};
use tombolo_wire::v1;

use crate::operator::local::Observed;
use crate::operator::view::View;
use crate::up::control::Request;

/// Who calls when the operator does not say: a member other than the target that is alive, whose links are up, and most of
/// whose flows the target would serve, since a drill proves little otherwise. None when the target is alone.
pub(super) fn default_from(view: &View, target: &ClusterId, service: &ServiceKey) -> Option<ClusterId> {
    let order = |id: &&ClusterId| {
        let alive = view
            .records
            .members
            .get(*id)
            .is_some_and(|member| member.view.lease == Lease::Alive);
        let observed = view.observed.iter().find(|one| one.cluster == **id);
        let share = observed.map_or(0, |one| share_of(one, target, service));
        let up = |report: &tombolo_wire::convert::LinkReport| report.state == LinkState::Up;
        let linked = observed.is_some_and(|one| one.links.get(target).is_some_and(up));
        let healthy = observed.is_some_and(|one| one.links.values().all(up));
        (!linked, !alive, Reverse(share), !healthy, (*id).clone())
    };
    view.records
        .members
        .keys()
        .filter(|id| *id != target)
        .min_by_key(order)
        .cloned()
}

/// Part of the flows to `service`, of [`SHARE_ALL`], that `target` serves when `from` hides its own endpoints.
fn share_of(from: &Observed, target: &ClusterId, service: &ServiceKey) -> u32 {
    let snapshot = &from.snapshot;
    let Some(import) = snapshot.imports.get(service) else {
        return 0;
    };
    let Some(port) = import
        .spec
        .ports
        .iter()
        .find(|port| port.protocol == Protocol::Tcp)
    else {
        return 0;
    };
    let here = snapshot
        .clusters
        .get(&from.cluster)
        .map(|view| view.locality.clone())
        .unwrap_or_default();
    let signals = Signals {
        hidden: BTreeSet::from([from.cluster.clone()]),
        ..from.signals()
    };
    let plan = plan(snapshot, import, port, None, &here, &signals);
    let of_tier = |tier: &tombolo_clusterset::select::Tier| {
        let all = u32::try_from(tier.candidates.len()).unwrap_or(u32::MAX).max(1);
        let own = tier
            .candidates
            .iter()
            .filter(|candidate| &candidate.cluster == target)
            .count();
        tier.share.saturating_mul(u32::try_from(own).unwrap_or(0)) / all
    };
    plan.tiers.iter().map(of_tier).sum::<u32>().min(SHARE_ALL)
}

/// What `up` is asked to kill, and to hold down for the length of the failure.
pub(super) fn kill(drill: &Drill, leader: Option<u64>) -> Result<Request> {
    let target = drill.target.to_string();
    let (cluster, role) = match drill.kind {
        DrillKind::ClusterDown => (target, None),
        DrillKind::GatewayKill => (target, Some("gateway")),
        DrillKind::DnsKill => (target, Some("dns")),
        DrillKind::BrokerLeaderKill => {
            let leader = leader.context("the brokers have no leader to kill; see `tombolo status`")?;
            (format!("broker-{leader}"), Some("broker"))
        }
        DrillKind::LinkCut => bail!("a link is no process and cannot be killed"),
    };
    let hold_ms = u64::try_from(drill.duration.as_millis()).unwrap_or(u64::MAX);
    Ok(Request::Kill {
        cluster,
        role: role.map(str::to_owned),
        hold_ms,
    })
}

/// The drill with its failure where the kill was: samples count from `received_unix_us` at the gateway that sent, and the
/// kill has its own wall clock, of the same machine.
pub(super) fn at_the_kill(drill: &Drill, received_unix_us: u64, killed_unix_us: u64) -> Drill {
    let baseline = Duration::from_micros(killed_unix_us.saturating_sub(received_unix_us));
    Drill {
        baseline,
        ..drill.clone()
    }
}

/// The samples of a report; one that names no valid cluster is a failure of its own, so that it cannot hide.
pub(super) fn samples(report: &v1::DrillReport) -> Vec<Sample> {
    let outcome = |sample: &v1::DrillSample| {
        if sample.served_by.is_empty() {
            return Outcome::Failed {
                reason: sample.failure.clone(),
            };
        }
        match ClusterId::parse(&sample.served_by) {
            Ok(cluster) => Outcome::Served { cluster },
            Err(error) => Outcome::Failed {
                reason: format!("served by no cluster: {error}"),
            },
        }
    };
    let sample = |sample: &v1::DrillSample| Sample {
        started_us: sample.started_us,
        ended_us: sample.ended_us,
        outcome: outcome(sample),
    };
    report.samples.iter().map(sample).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::commands::get::fixtures;
    use crate::operator::Records;
    use crate::operator::view::{From, Source};

    pub(crate) fn drill(kind: DrillKind) -> Drill {
        Drill {
            id: tombolo_clusterset::DrillId(42),
            kind,
            target: fixtures::id("east"),
            from: fixtures::id("west"),
            service: fixtures::key(),
            port: None,
            http_get: None,
            rate_per_second: 100,
            baseline: Duration::from_secs(1),
            duration: Duration::from_secs(2),
            recovery: Duration::from_secs(1),
            real: false,
        }
    }

    #[test]
    fn each_kind_kills_its_own() {
        let table = [
            (DrillKind::ClusterDown, Some(("east", None))),
            (DrillKind::GatewayKill, Some(("east", Some("gateway")))),
            (DrillKind::DnsKill, Some(("east", Some("dns")))),
            (DrillKind::BrokerLeaderKill, Some(("broker-2", Some("broker")))),
            (DrillKind::LinkCut, None),
        ];
        for (kind, expected) in table {
            let expected = expected.map(|(cluster, role): (&str, Option<&str>)| Request::Kill {
                cluster: cluster.into(),
                role: role.map(Into::into),
                hold_ms: 2_000,
            });
            assert_eq!(kill(&drill(kind), Some(2)).ok(), expected, "{kind:?}");
        }
        assert!(
            kill(&drill(DrillKind::BrokerLeaderKill), None).is_err(),
            "no leader"
        );
    }

    #[test]
    fn a_real_failure_lies_where_the_kill_was() {
        let planned = drill(DrillKind::ClusterDown);
        let shifted = at_the_kill(&planned, 5_000_000, 6_250_000);
        assert_eq!(shifted.baseline, Duration::from_millis(1_250));
        assert_eq!(
            (shifted.duration, shifted.recovery),
            (planned.duration, planned.recovery)
        );
        assert_eq!(
            at_the_kill(&planned, 6, 5).baseline,
            Duration::ZERO,
            "clocks that disagree"
        );
    }

    #[test]
    fn the_caller_is_one_that_the_target_serves() {
        // North is nearer to west than to east; west has no other than east.
        let west = fixtures::west();
        let mut north = west.clone();
        north.cluster = fixtures::id("north");
        let mut link = north.links[&fixtures::id("east")].clone();
        link.cluster = fixtures::id("west");
        north.links.insert(link.cluster.clone(), link);
        if let Some(link) = north.links.get_mut(&fixtures::id("east")) {
            link.rtt = Some(Duration::from_millis(80));
        }
        let mut snapshot = (*west.snapshot).clone();
        snapshot.cluster = north.cluster.clone();
        let mut view = snapshot.clusters[&fixtures::id("west")].clone();
        view.id = north.cluster.clone();
        snapshot.clusters.insert(north.cluster.clone(), view);
        north.snapshot = snapshot.clone().into();
        let records = Records::of_agent(&snapshot, &west.inspect.records);
        let source = Source {
            from: From::Broker,
            by: String::new(),
            age_ms: None,
            fresh: true,
        };
        let mut view = View {
            source,
            records,
            observed: vec![north, west],
            silent: Vec::new(),
            notes: Default::default(),
        };
        let (east, key) = (fixtures::id("east"), fixtures::key());
        assert_eq!(default_from(&view, &east, &key), Some(fixtures::id("west")));
        view.records.members.retain(|id, _| id == &east);
        assert_eq!(default_from(&view, &east, &key), None, "the target is alone");
    }

    #[test]
    fn samples_that_make_no_sense_count_as_failed() {
        let sample = |served_by: &str, failure: &str| v1::DrillSample {
            started_us: 1,
            ended_us: 2,
            served_by: served_by.into(),
            failure: failure.into(),
        };
        let report = v1::DrillReport {
            samples: vec![
                sample("east", ""),
                sample("", "refused"),
                sample("Not A Label", ""),
            ],
            ..v1::DrillReport::default()
        };
        let failed: Vec<bool> = samples(&report)
            .iter()
            .map(|sample| matches!(sample.outcome, Outcome::Failed { .. }))
            .collect();
        assert_eq!(failed, [false, true, true]);
    }
}
