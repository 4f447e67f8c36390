//! One run: everything together, a phase of faults with invariants at every tick, then health and convergence.

mod phases;

use std::time::Duration;

use rand::Rng;

use crate::agent::{Agent, site};
use crate::broker::Broker;
use crate::gateway::Gateway;
use crate::history::History;
use crate::invariants::{self, Invariant, View};
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
