//! One run: everything together, a phase of faults with invariants at every tick, then health and convergence.

use std::time::Duration;

use rand::Rng;
use tombolo_broker::command::Description;
use tombolo_clusterset::{ClusterId, Readiness, ServiceKey};

use crate::agent::{Agent, gateways, site};
use crate::broker::Broker;
use crate::faults::Faults;
use crate::fixture;
use crate::gateway::{Gateway, Outcome};
use crate::history::History;
use crate::invariants::{self, Invariant, View, convergence, withdrawal};
use crate::mutant::Mutant;
use crate::net::{Event, Frame, Message, Node};
use crate::operator::Operator;
use crate::scene::Scene;

/// Nodes look at their clocks this often, and invariants are judged as often.
const TICK: Duration = Duration::from_millis(20);
/// Length of the phase of faults.
const SAFETY: Duration = Duration::from_secs(30);
/// All clusters have converged by then: damping alone may take 30 s.
const CONVERGE_WITHIN: Duration = Duration::from_secs(60);
/// A new flow is decided by then (`route::OPEN_LIMIT`, and a tick).
const FLOW_WITHIN: Duration = Duration::from_secs(11);
/// Lease term, grace and some.
const WITHDRAWN_WITHIN: Duration = Duration::from_secs(25);

/// Something that must hold and does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which invariant.
    pub invariant: &'static str,
    /// When, in simulated time.
    pub at: Duration,
    /// What is wrong.
    pub text: String,
    /// The decisions before it.
    pub tail: String,
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Digest over all decisions.
    pub digest: u64,
    /// How many there were.
    pub decisions: u64,
    /// Entries that were committed.
    pub committed: u64,
    /// What went wrong.
    pub violation: Option<Violation>,
}

/// Everything there is.
#[derive(Debug)]
pub struct World {
    /// Time, entropy, network.
    pub scene: Scene,
    /// By id - 1.
    pub brokers: Vec<Broker>,
    /// By number.
    pub agents: Vec<Agent>,
    /// By number.
    pub gateways: Vec<Gateway>,
    operator: Operator,
    history: History,
    invariants: Vec<Box<dyn Invariant>>,
    next_change: Duration,
    evicted: Option<usize>,
}

impl World {
    /// The world of `seed`.
    #[must_use]
    pub fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let mut scene = Scene::new(seed, mutant);
        let brokers: u64 = if scene.rng.random_bool(0.8) { 3 } else { 5 };
        let clusters = scene.rng.random_range(3..=5);
        let voters: Vec<u64> = (1..=brokers).collect();
        let agents: Vec<Agent> = (0..clusters)
            .map(|number| Agent::new(number, site(number), brokers))
            .collect();
        let gateway = |agent: &Agent| {
            Gateway::new(
                agent.number,
                agent.site.cluster.clone(),
                agent.site.locality.clone(),
            )
        };
        Self {
            brokers: voters.iter().map(|id| Broker::new(*id, voters.clone())).collect(),
            gateways: agents.iter().map(gateway).collect(),
            agents,
            operator: Operator::new(brokers),
            history: History::default(),
            invariants: invariants::all(),
            next_change: Duration::ZERO,
            evicted: None,
            scene,
        }
    }

    /// The whole run.
    #[must_use]
    pub fn run(mut self) -> Report {
        let violation = self.phases().err().map(|mut violation| {
            violation.tail = self.scene.trace.tail();
            violation
        });
        let committed = self.history.newest().applied;
        Report {
            digest: self.scene.trace.digest(),
            decisions: self.scene.trace.lines(),
            committed,
            violation,
        }
    }

    fn phases(&mut self) -> Result<(), Violation> {
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

    fn begin(&mut self) -> Result<(), Violation> {
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

    fn join(&mut self, number: usize) {
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

    fn change_manifests(&mut self, number: usize) {
        let mut manifests = self.agents[number].manifests.clone();
        let what = fixture::change(&mut manifests, number, &mut self.scene.rng);
        self.scene.note(format_args!("{what}"));
        self.agents[number].apply(manifests, &mut self.scene);
    }

    fn clusters(&self) -> Vec<ClusterId> {
        self.agents
            .iter()
            .map(|agent| agent.site.cluster.clone())
            .collect()
    }

    /// What people and clients do meanwhile.
    fn live(&mut self) {
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

    fn settle(&mut self) -> Result<(), Violation> {
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
    fn call_everything(&mut self) -> Result<(), Violation> {
        let served: Vec<ServiceKey> = {
            let state = self.history.newest();
            let is_ready = |key: &ServiceKey| {
                let records = state
                    .exports
                    .get(key)
                    .into_iter()
                    .flat_map(|records| records.values());
                let web =
                    records.filter(|record| record.export.spec.ports.iter().any(|port| port.port == 80));
                let mut ends = web
                    .flat_map(|record| &record.export.slices)
                    .flat_map(|slice| &slice.endpoints);
                ends.any(|endpoint| endpoint.readiness == Readiness::Ready)
            };
            fixture::keys().into_iter().filter(is_ready).collect()
        };
        for number in 0..self.gateways.len() {
            for key in &served {
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

    /// One cluster goes for good.
    fn lose_one(&mut self) -> Result<(), Violation> {
        let fallen = self.scene.rng.random_range(0..self.agents.len());
        self.agents[fallen].crash(&mut self.scene);
        self.gateways[fallen].crash(&mut self.scene);
        self.until("withdrawal", WITHDRAWN_WITHIN, |world| {
            withdrawal::check(world.view(), fallen)
        })
    }

    fn until(
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

    fn tick(&mut self) -> Result<(), Violation> {
        let end = self.scene.now + TICK;
        while let Some((at, event)) = self.scene.net.next_event(end) {
            self.scene.now = at;
            self.happen(event);
        }
        self.scene.now = end;
        for (conn, from, to, frame) in self.scene.net.arrivals(end) {
            self.deliver(conn, from, to, frame);
        }
        for broker in self.brokers.iter_mut().filter(|broker| broker.is_up) {
            broker.poll(&mut self.scene);
        }
        self.operator.poll(&mut self.scene);
        for number in std::mem::take(&mut self.operator.joined) {
            let id = &self.agents[number].site.cluster;
            let newest = self
                .brokers
                .iter()
                .filter_map(|broker| broker.state.members.get(id))
                .map(|member| member.joined)
                .max();
            let agent = &mut self.agents[number];
            let before = agent.joined;
            agent.joined = newest.unwrap_or(before);
            // `tombolo join` ends by starting the agent with its new identity.
            if before != 0 && agent.is_up() {
                agent.crash(&mut self.scene);
                agent.start(&mut self.scene);
            }
        }
        for (agent, gateway) in self.agents.iter_mut().zip(&mut self.gateways) {
            agent.poll(&mut self.scene);
            gateway.follow(agent.snapshot.as_ref(), agent.drill.as_ref(), &mut self.scene);
            gateway.poll(&mut self.scene);
        }
        self.judge()
    }

    fn happen(&mut self, event: Event) {
        let scene = &mut self.scene;
        match event {
            Event::Wake(Node::Broker(id))
            | Event::Datagram {
                to: Node::Broker(id), ..
            } => {
                let Some(broker) = usize::try_from(id - 1)
                    .ok()
                    .and_then(|at| self.brokers.get_mut(at))
                else {
                    return;
                };
                match event {
                    _ if !broker.is_up => {}
                    Event::Datagram { from, message, .. } => broker.receive(from, message, scene),
                    Event::Wake(_) => broker.poll(scene),
                }
            }
            Event::Datagram {
                from: Node::Gateway(from),
                to: Node::Gateway(to),
                message: Message::Tunnel(packet),
            } => {
                self.gateways[to].receive(from, packet, scene);
            }
            Event::Datagram {
                to: Node::Operator,
                message: Message::Answer { call, outcomes },
                ..
            } => {
                self.operator.receive(call, outcomes);
            }
            Event::Datagram { .. } | Event::Wake(_) => {}
        }
    }

    fn deliver(&mut self, conn: u64, from: Node, to: Node, frame: Frame) {
        match (from, to) {
            (Node::Agent(number), Node::Broker(id)) => {
                let Some(broker) = usize::try_from(id - 1)
                    .ok()
                    .and_then(|at| self.brokers.get_mut(at))
                else {
                    return;
                };
                if broker.is_up {
                    let agent = &self.agents[number];
                    broker.frame(
                        conn,
                        from,
                        (agent.site.cluster.clone(), agent.joined),
                        frame,
                        &mut self.scene,
                    );
                } else {
                    // A process that is gone refuses by its kernel.
                    self.scene.net.hang_up(conn);
                }
            }
            (Node::Broker(_), Node::Agent(number)) => self.agents[number].frame(conn, frame, &mut self.scene),
            _ => {}
        }
    }

    fn view(&self) -> View<'_> {
        View {
            now: self.scene.now,
            instant: self.scene.instant(),
            history: &self.history,
            brokers: &self.brokers,
            agents: &self.agents,
            gateways: &self.gateways,
        }
    }

    fn judge(&mut self) -> Result<(), Violation> {
        let mut invariants = std::mem::take(&mut self.invariants);
        let judged = self.judge_by(&mut invariants);
        self.invariants = invariants;
        judged
    }

    fn judge_by(&mut self, invariants: &mut [Box<dyn Invariant>]) -> Result<(), Violation> {
        for fact in std::mem::take(&mut self.scene.facts) {
            let taken = self.history.take(&fact, self.scene.now);
            taken.map_err(|text| self.violation("committed entries agree", text))?;
            for invariant in invariants.iter_mut() {
                let judged = invariant.judge(&fact, self.view());
                judged.map_err(|text| self.violation(invariant.name(), text))?;
            }
        }
        for invariant in invariants {
            let judged = invariant.tick(self.view());
            judged.map_err(|text| self.violation(invariant.name(), text))?;
        }
        Ok(())
    }

    fn violation(&self, invariant: &'static str, text: String) -> Violation {
        Violation {
            invariant,
            at: self.scene.now,
            text,
            tail: String::new(),
        }
    }
}
