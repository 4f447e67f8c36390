//! DNS answers nothing that the snapshot does not hold, nor an endpoint of a cluster that is withdrawn or no member (DESIGN
//! §4.15). What is withdrawn is judged here by the rule as it is written, not by the code that the server runs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use tombolo_clusterset::reachability::WITHDRAW_GRACE;
use tombolo_clusterset::{
    ClusterId, Import, Lease, LinkState, LossPolicy, Readiness, ServiceKey, ServiceType, Snapshot,
};
use tombolo_dns::answer::{Answer, CLASS_IN, Question, RecordSet, answer, rtype};
use tombolo_dns::name::{APEX, Builder};

use super::{Invariant, View};
use crate::gateway::Gateway;

/// The invariant.
#[derive(Debug, Default)]
pub struct Names {
    /// Since when lease and link of a cluster have both been lost, as each DNS server could see it.
    lost: BTreeMap<(usize, ClusterId), Instant>,
}

impl Invariant for Names {
    fn name(&self) -> &'static str {
        "DNS answers nothing withdrawn, absent or evicted"
    }

    fn tick(&mut self, view: View<'_>) -> Result<(), String> {
        for (number, gateway) in view.gateways.iter().enumerate() {
            let Some(snapshot) = gateway.snapshot.as_ref().filter(|_| gateway.is_up) else {
                self.lost.retain(|(at, _), _| *at != number);
                continue;
            };
            let withdrawn = self.withdrawn(number, gateway, snapshot, view.instant);
            for key in crate::fixture::keys() {
                let allowed = snapshot
                    .imports
                    .get(&key)
                    .map(|import| allowed(import, snapshot, &withdrawn));
                let allowed = allowed.unwrap_or_default();
                if let Some(stranger) = answered(gateway, &key)?.difference(&allowed).next() {
                    return Err(format!(
                        "DNS of c{number} answers {key} with {stranger}; allowed are {allowed:?}"
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Names {
    /// Clusters whose endpoints must not be named, for each loss policy.
    fn withdrawn(
        &mut self,
        number: usize,
        gateway: &Gateway,
        snapshot: &Snapshot,
        now: Instant,
    ) -> BTreeSet<(ClusterId, LossPolicy)> {
        let links = gateway.link_states();
        let mut withdrawn = BTreeSet::new();
        for cluster in snapshot
            .clusters
            .keys()
            .filter(|cluster| **cluster != snapshot.cluster)
        {
            let lease = snapshot.lease(cluster).unwrap_or_default();
            let down = links.get(cluster) == Some(&LinkState::Down);
            let at = (number, cluster.clone());
            match (lease, down) {
                (Lease::Lost, true) => drop(self.lost.entry(at.clone()).or_insert(now)),
                (Lease::Unknown, true) => {}
                _ => drop(self.lost.remove(&at)),
            }
            let long = self
                .lost
                .get(&at)
                .is_some_and(|since| now.duration_since(*since) >= WITHDRAW_GRACE);
            if lease == Lease::Lost && down && long {
                withdrawn.insert((cluster.clone(), LossPolicy::Degrade));
            }
            if lease == Lease::Lost || down {
                withdrawn.insert((cluster.clone(), LossPolicy::Withdraw));
            }
        }
        withdrawn
    }
}

fn allowed(
    import: &Import,
    snapshot: &Snapshot,
    withdrawn: &BTreeSet<(ClusterId, LossPolicy)>,
) -> BTreeSet<IpAddr> {
    if import.spec.service_type == ServiceType::ClusterSetIp {
        return import.ips.iter().copied().collect();
    }
    let usable = import.clusters.iter().filter(|(cluster, imported)| {
        snapshot.clusters.contains_key(*cluster)
            && !withdrawn.contains(&((*cluster).clone(), imported.loss_policy))
    });
    let endpoints = usable.flat_map(|(_, imported)| {
        let ready = imported.slices.iter().flat_map(|slice| &slice.endpoints);
        let ready = ready.filter(|endpoint| endpoint.readiness != Readiness::NotReady);
        ready.map(|endpoint| {
            imported
                .stand_ins
                .get(&endpoint.address)
                .copied()
                .unwrap_or(endpoint.address)
        })
    });
    endpoints.collect()
}

/// The addresses at the name of `key`.
pub fn answered(gateway: &Gateway, key: &ServiceKey) -> Result<BTreeSet<IpAddr>, String> {
    let name = Builder::new()
        .label(key.name.as_str())
        .and_then(|name| name.label(key.namespace.as_str()));
    let name = name
        .and_then(|name| name.label("svc"))
        .and_then(|name| name.suffix(APEX))
        .ok_or("no name")?
        .finish();
    Ok(
        match answer(
            &gateway.zone,
            Question {
                name: &name,
                rtype: rtype::A,
                class: CLASS_IN,
            },
        ) {
            Answer::Found(RecordSet::A(addresses, _)) => addresses.iter().copied().map(IpAddr::V4).collect(),
            _ => BTreeSet::new(),
        },
    )
}
