//! The phases of a run: founding, faults, health, one loss for good.

use std::time::Duration;

use rand::Rng;
use tombolo_broker::command::Description;
use tombolo_clusterset::{ClusterId, Readiness, ServiceKey};

use super::{CONVERGE_WITHIN, FLOW_WITHIN, SAFETY, Violation, WITHDRAWN_WITHIN, World};
use crate::agent::gateways;
use crate::faults::Faults;
use crate::fixture;
use crate::gateway::Outcome;
use crate::invariants::{convergence, withdrawal};

impl World {
    pub(super) fn phases(&mut self) -> Result<(), Violation> {
        self.begin()?;
        let mut faults = Faults::default();
        let end = self.scene.now + SAFETY;
        while self.scene.now < end {
            faults.step(self);
            self.live();
            self.tick()?;
        }
        self.scene.note(format_args!("everything is healed"));
        faults.heal(self);
        self.settle()?;
        self.call_everything()?;
        self.lose_one()
    }

    pub(super) fn begin(&mut self) -> Result<(), Violation> {
        let is_idle = |world: &mut Self| {
            if world.operator.is_idle() {
                Ok(())
            } else {
                Err("the operator waits for an answer".to_owned())
            }
        };
        self.operator.found(&self.scene);
        self.until("founding", Duration::from_secs(30), is_idle)?;
        for number in 0..self.agents.len() {
            self.join(number);
            self.agents[number].start(&mut self.scene);
            for _ in 0..3 {
                self.change_manifests(number);
            }
        }
        self.until("joining", Duration::from_secs(30), is_idle)
    }

    pub(super) fn join(&mut self, number: usize) {
        let site = &self.agents[number].site;
        let description = Description {
            locality: site.locality.clone(),
            network: site.network.clone(),
            gateways: gateways(number),
            unix_ms: self.scene.wall_ms(0),
        };
        self.operator
            .join(number, site.cluster.clone(), description, &self.scene);
    }

    pub(super) fn change_manifests(&mut self, number: usize) {
        let mut manifests = self.agents[number].manifests.clone();
        let what = fixture::change(&mut manifests, number, &mut self.scene.rng);
        self.scene.note(format_args!("{what}"));
        self.agents[number].apply(manifests, &mut self.scene);
    }

    pub(super) fn clusters(&self) -> Vec<ClusterId> {
        self.agents
            .iter()
            .map(|agent| agent.site.cluster.clone())
            .collect()
    }

    /// What people and clients do meanwhile.
    pub(super) fn live(&mut self) {
        if self.scene.now < self.next_change {
            return;
        }
        self.next_change = self.scene.now + Duration::from_millis(self.scene.rng.random_range(50..400));
        let number = self.scene.rng.random_range(0..self.agents.len());
        let keys = fixture::keys();
        let key = keys[self.scene.rng.random_range(0..keys.len())].clone();
        match self.scene.rng.random_range(0..100) {
            0..35 => self.change_manifests(number),
            35..65 => drop(self.gateways[number].open(&key, &mut self.scene)),
            65..85 => {
                let peer = self.scene.rng.random_range(0..self.agents.len());
                self.gateways[number].probe(peer, &key, 80, &mut self.scene);
            }
            85..97 => self.operator.govern(&self.clusters(), &keys, &mut self.scene),
            _ => match self.evicted.take() {
                Some(number) => self.join(number),
                None => {
                    self.evicted = Some(number);
                    self.operator
                        .evict(self.agents[number].site.cluster.clone(), &mut self.scene);
                }
            },
        }
    }

    pub(super) fn settle(&mut self) -> Result<(), Violation> {
        self.operator
            .open_everything(&self.clusters(), &fixture::keys(), &self.scene);
        self.until("convergence", CONVERGE_WITHIN, |world| {
            if !world.operator.is_idle() {
                return Err("the operator waits for an answer".to_owned());
            }
            let members = world.history.newest().members.clone();
            let missing = world
                .agents
                .iter()
                .find(|agent| !members.contains_key(&agent.site.cluster))
                .map(|agent| agent.number);
            if let Some(number) = missing {
                world.join(number);
            }
            convergence::check(world.view())
        })
    }

    /// Every service that is granted and has a ready endpoint is reached from everywhere.
    pub(super) fn call_everything(&mut self) -> Result<(), Violation> {
        for number in 0..self.gateways.len() {
            for key in &self.granted(number) {
                let Some(flow) = self.gateways[number].open(key, &mut self.scene) else {
                    return Err(self.violation("reachability", format!("c{number} does not import {key}")));
                };
                self.until("reachability", FLOW_WITHIN, |world| {
                    match world.gateways[number].outcome(flow) {
                        Outcome::Connected => Ok(()),
                        outcome => Err(format!("a flow of c{number} to {key} is {outcome:?}")),
                    }
                })?;
            }
        }
        Ok(())
    }

    /// The services that some exporter grants to cluster `number` and has a ready endpoint for. A grant may outlive
    /// [`Self::settle`]: a call of the operator that was lost is made again.
    fn granted(&self, number: usize) -> Vec<ServiceKey> {
        let state = self.history.newest();
        let importer = &self.agents[number].site.cluster;
        let is_served = |key: &ServiceKey| {
            let records = state.exports.get(key).into_iter().flatten();
            let granted = records.filter(|(exporter, _)| state.grants.may_import(key, exporter, importer));
            let mut ends = granted
                .flat_map(|(_, record)| &record.export.slices)
                .flat_map(|slice| &slice.endpoints);
            ends.any(|endpoint| endpoint.readiness == Readiness::Ready)
        };
        fixture::keys().into_iter().filter(is_served).collect()
    }

    /// One cluster goes for good.
    pub(super) fn lose_one(&mut self) -> Result<(), Violation> {
        let fallen = self.scene.rng.random_range(0..self.agents.len());
        self.agents[fallen].crash(&mut self.scene);
        self.gateways[fallen].crash(&mut self.scene);
        self.until("withdrawal", WITHDRAWN_WITHIN, |world| {
            withdrawal::check(world.view(), fallen)
        })
    }

    pub(super) fn until(
        &mut self,
        what: &'static str,
        within: Duration,
        is_reached: impl Fn(&mut Self) -> Result<(), String>,
    ) -> Result<(), Violation> {
        let end = self.scene.now + within;
        loop {
            match is_reached(self) {
                Ok(()) => return Ok(()),
                Err(missing) if self.scene.now >= end => return Err(self.violation(what, missing)),
                Err(_) => self.tick()?,
            }
        }
    }
}
