//! The gateway and the DNS server of a cluster: the real links, route, dispatch, admission, verdicts and zone, over modelled
//! tunnels and the real snapshot events.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message as _;
use tombolo_clusterset::dispatch::{Dispatch, Step};
use tombolo_clusterset::endpoint::Protocol;
use tombolo_clusterset::link::LinkProfile;
use tombolo_clusterset::local::{LocalRequest, find_local, pick_local};
use tombolo_clusterset::select::Signals;
use tombolo_clusterset::{ClusterId, Drill, LinkState, Locality, ServiceKey, Snapshot};
use tombolo_dns::signals::{Tracker, Verdicts};
use tombolo_dns::zone::{Zone, Zones};
use tombolo_gateway::admission::{Admission, Request, admit};
use tombolo_gateway::links::{Action, Links, TunnelFacts};
use tombolo_gateway::route::{Hop, NewFlow, hops, may_move};
use tombolo_wire::convert::SnapshotBatch;
use tombolo_wire::local::{Interest, snapshot_changes, snapshot_events};
use tombolo_wire::v1;

use crate::agent::{drill_age, gateways};
use crate::mutant::Mutant;
use crate::net::{Message, Node};
use crate::scene::{Fact, Scene};
use crate::tunnels::{Packet, Tunnel};

/// A dial that got no answer has failed.
const DIAL_TIME: Duration = Duration::from_secs(1);
/// A tunnel that heard nothing for this long is gone.
const IDLE_TIME: Duration = Duration::from_secs(10);
/// The flows of one gateway that are being opened.
const FLOWS_MAX: usize = 64;

/// What became of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nobody has answered yet.
    Pending,
    /// A backend of this cluster or another one has it.
    Connected,
    /// Nobody took it.
    Failed,
}

#[derive(Debug)]
struct Flow {
    service: ServiceKey,
    port: u16,
    hops: Vec<Hop>,
    dispatch: Dispatch,
    outcome: Outcome,
}

/// One gateway with its DNS server.
#[derive(Debug)]
pub struct Gateway {
    number: usize,
    cluster: ClusterId,
    from: Locality,
    /// Whether the processes run.
    pub is_up: bool,
    /// What the agent's stream has brought.
    pub snapshot: Option<Arc<Snapshot>>,
    batch: SnapshotBatch,
    base: Option<Arc<Snapshot>>,
    /// The paths to the others.
    pub links: Links,
    tunnels: BTreeMap<u64, Tunnel>,
    dials: BTreeMap<u64, (ClusterId, SocketAddr, Duration)>,
    flows: BTreeMap<u64, Flow>,
    counter: u64,
    drill: Option<(Drill, Instant)>,
    tracker: Tracker,
    verdicts: Verdicts,
    zones: Zones,
    /// What DNS answers from.
    pub zone: Zone,
}

impl Gateway {
    /// The gateway of cluster `number`, running.
    #[must_use]
    pub fn new(number: usize, cluster: ClusterId, from: Locality) -> Self {
        let zones = Zones::new(&[], 1);
        Self {
            number,
            from,
            is_up: true,
            snapshot: None,
            batch: SnapshotBatch::new(cluster.clone()),
            base: None,
            links: Links::new(cluster.clone(), false, LinkProfile::LAN),
            tunnels: BTreeMap::new(),
            dials: BTreeMap::new(),
            flows: BTreeMap::new(),
            counter: 0,
            drill: None,
            tracker: Tracker::default(),
            verdicts: Verdicts::default(),
            zone: zones.unloaded(),
            zones,
            cluster,
        }
    }

    /// The processes die.
    pub fn crash(&mut self, scene: &mut Scene) {
        scene.note(format_args!("gateway {} crashes", self.number));
        let counter = self.counter;
        *self = Self::new(self.number, self.cluster.clone(), self.from.clone());
        // A process takes new numbers, as a new QUIC connection does.
        (self.counter, self.is_up) = (counter, false);
    }

    /// The processes begin.
    pub fn start(&mut self, scene: &mut Scene) {
        scene.note(format_args!("gateway {} starts", self.number));
        self.is_up = true;
    }

    /// The agent's stream brings its newest snapshot, and the drill that it knows of.
    pub fn follow(
        &mut self,
        newest: Option<&Arc<Snapshot>>,
        drill: Option<&(Drill, Instant)>,
        scene: &mut Scene,
    ) {
        let Some(newest) = newest.filter(|_| self.is_up) else {
            // The agent is away: the last snapshot stays in use, and the next one comes whole.
            self.base = None;
            return;
        };
        self.drill = drill.cloned();
        if self.base.as_ref().is_some_and(|base| Arc::ptr_eq(base, newest)) {
            return;
        }
        let everything = Interest::default();
        let events = match &self.base {
            Some(base) => snapshot_changes(base, newest, &everything),
            None => snapshot_events(newest, &everything),
        };
        self.base = Some(Arc::clone(newest));
        for event in events {
            let bytes = event.encode_to_vec();
            let Ok(event) = v1::SnapshotEvent::decode(bytes.as_slice()) else {
                return;
            };
            if let Ok(Some(snapshot)) = self.batch.take(&event) {
                self.swap(snapshot, scene);
            }
        }
    }

    fn swap(&mut self, snapshot: Snapshot, scene: &mut Scene) {
        let before = self.snapshot.replace(Arc::new(snapshot));
        if scene.has(Mutant::StaleSwap) && self.counter % 5 == 4 && before.is_some() {
            self.report(scene);
            self.snapshot = before;
        }
        self.report(scene);
        let Some(snapshot) = self.snapshot.clone() else {
            return;
        };
        let actions = self.links.set_members(&snapshot, scene.instant());
        self.act(actions, scene);
        self.zone = self.zones.build(&snapshot, &self.verdicts);
    }

    fn report(&self, scene: &mut Scene) {
        if let Some(snapshot) = self.snapshot.clone() {
            scene.facts.push(Fact::Taken {
                cluster: self.number,
                snapshot,
            });
        }
    }

    /// Time passes.
    pub fn poll(&mut self, scene: &mut Scene) {
        if !self.is_up {
            return;
        }
        let actions = self.links.poll(scene.instant());
        self.act(actions, scene);
        self.tend_tunnels(scene);
        self.tend_flows(scene);
        let Some(snapshot) = self.snapshot.clone() else {
            return;
        };
        let verdicts = self
            .tracker
            .observe(scene.instant(), &snapshot, &self.link_states());
        if !verdicts.agree_with(&self.verdicts) {
            scene.note(format_args!("dns {} judges anew", self.number));
            self.verdicts = verdicts;
            if !scene.has(Mutant::DeafZone) {
                self.zone = self.zones.build(&snapshot, &self.verdicts);
            }
        }
        if let Some((drill, since)) = &self.drill {
            let age = drill_age(drill, *since, scene);
            let mut others = snapshot.clusters.keys();
            if drill.silences(&self.cluster, age) || others.any(|other| drill.cuts(&self.cluster, other, age))
            {
                scene.facts.push(Fact::Rehearsed {
                    cluster: self.number,
                    drill: drill.id.0,
                });
            }
        }
    }

    /// The state of every link.
    #[must_use]
    pub fn link_states(&self) -> BTreeMap<ClusterId, LinkState> {
        self.links
            .links()
            .into_iter()
            .map(|(id, link)| (id, link.state))
            .collect()
    }

    fn is_cut(&self, peer: &ClusterId, scene: &Scene) -> bool {
        self.drill
            .as_ref()
            .is_some_and(|(drill, since)| drill.cuts(&self.cluster, peer, drill_age(drill, *since, scene)))
    }

    fn send(&self, peer: usize, cluster: &ClusterId, packet: Packet, scene: &mut Scene) {
        if !self.is_cut(cluster, scene) {
            scene.net.send(
                scene.now,
                Node::Gateway(self.number),
                Node::Gateway(peer),
                Message::Tunnel(packet),
            );
        }
    }

    fn act(&mut self, actions: Vec<Action>, scene: &mut Scene) {
        for action in actions {
            match action {
                Action::Dial { cluster, address } => {
                    self.counter += 1;
                    let tunnel = self.counter * 64 + self.number as u64;
                    self.dials
                        .insert(tunnel, (cluster.clone(), address, scene.now + DIAL_TIME));
                    if let Some(peer) = number_of(address) {
                        self.send(
                            peer,
                            &cluster,
                            Packet::Dial {
                                tunnel,
                                cluster: self.cluster.clone(),
                            },
                            scene,
                        );
                    }
                }
                // No flow of the model outlives its opening, so a retired tunnel ends at once.
                Action::Retire { tunnel, reason } | Action::Close { tunnel, reason } => {
                    if let Some(Tunnel { peer, cluster, .. }) = self.tunnels.remove(&tunnel) {
                        scene.note(format_args!(
                            "gateway {} closes a tunnel to {cluster}: {reason}",
                            self.number
                        ));
                        self.send(peer, &cluster, Packet::Closed { tunnel }, scene);
                        let now = scene.instant();
                        self.links
                            .on_closed(&cluster, tunnel, reason, now, &mut scene.rng);
                    }
                }
            }
        }
    }

    fn tend_tunnels(&mut self, scene: &mut Scene) {
        let now = scene.instant();
        let late: Vec<u64> = self
            .dials
            .iter()
            .filter(|(_, dial)| dial.2 <= scene.now)
            .map(|(id, _)| *id)
            .collect();
        for tunnel in late {
            if let Some((cluster, address, _)) = self.dials.remove(&tunnel) {
                self.links
                    .on_dial_failed(&cluster, address, "no answer".to_owned(), now, &mut scene.rng);
            }
        }
        let ids: Vec<u64> = self.tunnels.keys().copied().collect();
        for id in ids {
            let Some(tunnel) = self.tunnels.get_mut(&id) else {
                continue;
            };
            if scene.now.saturating_sub(tunnel.heard) >= IDLE_TIME {
                let cluster = tunnel.cluster.clone();
                self.tunnels.remove(&id);
                self.links.on_closed(&cluster, id, "idle", now, &mut scene.rng);
            } else if tunnel.ping_at <= scene.now {
                tunnel.ping_at = scene.now + LinkProfile::LAN.ping_interval;
                let (peer, cluster) = (tunnel.peer, tunnel.cluster.clone());
                self.send(
                    peer,
                    &cluster,
                    Packet::Ping {
                        tunnel: id,
                        sent: scene.now,
                    },
                    scene,
                );
            }
        }
    }

    fn tunnel(&mut self, peer: usize, cluster: ClusterId, id: u64, scene: &Scene) -> TunnelFacts {
        let tunnel = Tunnel {
            peer,
            cluster,
            ping_at: scene.now,
            heard: scene.now,
        };
        self.tunnels.insert(id, tunnel);
        TunnelFacts {
            id,
            transport: "quic",
            remote: gateways(peer)[0],
        }
    }

    /// A packet of gateway `from` arrives.
    pub fn receive(&mut self, from: usize, packet: Packet, scene: &mut Scene) {
        let now = scene.instant();
        if !self.is_up {
            return;
        }
        match packet {
            Packet::Dial { tunnel, cluster } => {
                // Trust: an evicted cluster's intermediate is denied, which membership stands for here.
                let is_member = self
                    .snapshot
                    .as_ref()
                    .is_some_and(|snapshot| snapshot.clusters.contains_key(&cluster));
                if self.is_cut(&cluster, scene) {
                    return;
                }
                if !is_member {
                    self.send(from, &cluster, Packet::Closed { tunnel }, scene);
                    return;
                }
                let facts = self.tunnel(from, cluster.clone(), tunnel, scene);
                self.send(from, &cluster, Packet::Dialled { tunnel }, scene);
                let actions = self.links.on_inbound(&cluster, facts, now);
                self.act(actions, scene);
            }
            Packet::Dialled { tunnel } => {
                if let Some((cluster, address, _)) = self.dials.remove(&tunnel) {
                    let facts = self.tunnel(from, cluster.clone(), tunnel, scene);
                    let actions = self.links.on_dialled(&cluster, address, facts, now);
                    self.act(actions, scene);
                }
            }
            Packet::Closed { tunnel } => {
                if let Some((cluster, address, _)) = self.dials.remove(&tunnel) {
                    self.links
                        .on_dial_failed(&cluster, address, "refused".to_owned(), now, &mut scene.rng);
                } else if let Some(Tunnel { cluster, .. }) = self.tunnels.remove(&tunnel) {
                    self.links
                        .on_closed(&cluster, tunnel, "closed by the peer", now, &mut scene.rng);
                }
            }
            Packet::Ping { tunnel, sent } => match self.heard(tunnel, scene) {
                Some(cluster) => self.send(from, &cluster, Packet::Pong { tunnel, sent }, scene),
                None => {
                    let packet = Message::Tunnel(Packet::Closed { tunnel });
                    scene
                        .net
                        .send(scene.now, Node::Gateway(self.number), Node::Gateway(from), packet);
                }
            },
            Packet::Pong { tunnel, sent } => {
                if let Some(cluster) = self.heard(tunnel, scene) {
                    self.links
                        .on_pong(&cluster, tunnel, scene.now.saturating_sub(sent), now);
                }
            }
            Packet::Open {
                tunnel,
                flow,
                hop,
                service,
                port,
                endpoint,
            } => {
                let Some(cluster) = self.heard(tunnel, scene) else {
                    return;
                };
                let (connected, may_move) = self.admit(&cluster, &service, port, endpoint, scene);
                self.send(
                    from,
                    &cluster,
                    Packet::Opened {
                        flow,
                        hop,
                        connected,
                        may_move,
                    },
                    scene,
                );
            }
            Packet::Opened {
                flow,
                hop,
                connected,
                may_move,
            } => {
                if let Some(flow) = self
                    .flows
                    .get_mut(&flow)
                    .filter(|flow| flow.outcome == Outcome::Pending)
                {
                    match connected {
                        true => flow.outcome = Outcome::Connected,
                        false => flow.dispatch.on_failed(hop, may_move),
                    }
                }
            }
        }
    }

    fn heard(&mut self, tunnel: u64, scene: &Scene) -> Option<ClusterId> {
        let cluster = self.tunnels.get(&tunnel)?.cluster.clone();
        if self.is_cut(&cluster, scene) {
            return None;
        }
        self.tunnels.get_mut(&tunnel)?.heard = scene.now;
        Some(cluster)
    }

    /// Decides about a flow from `peer`: connected, or whether it may move.
    fn admit(
        &self,
        peer: &ClusterId,
        service: &ServiceKey,
        port: u16,
        endpoint: Option<IpAddr>,
        scene: &mut Scene,
    ) -> (bool, bool) {
        let Some(snapshot) = self.snapshot.clone() else {
            return (false, true);
        };
        let request = Request {
            peer,
            service,
            port,
            protocol: Protocol::Tcp,
            endpoint,
        };
        let (export, port) = match admit(request, &snapshot) {
            Admission::Admit { export, port, .. } => (export, port),
            Admission::Refuse { refusal, .. } => {
                let open = snapshot
                    .exports
                    .get(service)
                    .filter(|_| scene.has(Mutant::OpenGate));
                match open.and_then(|export| Some((Arc::clone(export), export.spec.ports.first()?.clone()))) {
                    Some(opened) => opened,
                    None => return (false, may_move(refusal)),
                }
            }
        };
        let (at, from, key) = (self.number, peer.clone(), service.clone());
        scene.note(format_args!("gateway {at} admits {from} to {key}"));
        scene.facts.push(Fact::Admitted {
            at,
            from,
            key,
            snapshot: Arc::clone(&snapshot),
        });
        let picked = match endpoint {
            Some(address) => find_local(&export, port.protocol, port.port, address).is_ok(),
            None => {
                let request = LocalRequest {
                    protocol: port.protocol,
                    port: port.port,
                    family: None,
                    from: &self.from,
                    client: None,
                };
                pick_local(&snapshot, &export, request, &BTreeSet::new(), &mut scene.rng).is_ok()
            }
        };
        (picked, true)
    }

    /// Begins a flow to `service`; None when it is no import here, or too many are being opened.
    pub fn open(&mut self, service: &ServiceKey, scene: &mut Scene) -> Option<u64> {
        let snapshot = self
            .snapshot
            .clone()
            .filter(|_| self.is_up && self.flows.len() < FLOWS_MAX)?;
        let import = snapshot.imports.get(service)?;
        let signals = Signals {
            links: self.links.links(),
            ..Signals::default()
        };
        let port = import.spec.ports.first()?;
        let flow = NewFlow {
            snapshot: &snapshot,
            import,
            port,
            endpoint: None,
            client: IpAddr::V4(Ipv4Addr::LOCALHOST),
            from: &self.from,
            signals: &signals,
        };
        let hops = hops(flow, &mut scene.rng);
        let through = hops.iter().filter_map(|hop| match hop {
            Hop::Remote { cluster, .. } => Some(cluster.clone()),
            Hop::Local(_) => None,
        });
        let (from, key, through) = (self.number, service.clone(), through.collect());
        scene.note(format_args!(
            "gateway {from} routes {key} over {through:?}, {} hops",
            hops.len()
        ));
        scene.facts.push(Fact::Routed {
            from,
            key,
            hops: through,
            snapshot: Arc::clone(&snapshot),
        });
        self.counter += 1;
        let dispatch = Dispatch::new(hops.len(), scene.instant());
        let flow = Flow {
            service: service.clone(),
            port: port.port,
            hops,
            dispatch,
            outcome: Outcome::Pending,
        };
        self.flows.insert(self.counter, flow);
        Some(self.counter)
    }

    /// Asks another cluster for a service as a gateway would that never looked at a grant.
    pub fn probe(&mut self, peer: usize, service: &ServiceKey, port: u16, scene: &mut Scene) {
        let to_peer = self.tunnels.iter().find(|(_, tunnel)| tunnel.peer == peer);
        if let Some((tunnel, cluster)) = to_peer.map(|(id, tunnel)| (*id, tunnel.cluster.clone())) {
            let open = Packet::Open {
                tunnel,
                flow: 0,
                hop: 0,
                service: service.clone(),
                port,
                endpoint: None,
            };
            self.send(peer, &cluster, open, scene);
        }
    }

    /// What became of a flow; it is forgotten once it is decided.
    pub fn outcome(&mut self, flow: u64) -> Outcome {
        let outcome = self.flows.get(&flow).map_or(Outcome::Failed, |flow| flow.outcome);
        if outcome != Outcome::Pending {
            self.flows.remove(&flow);
        }
        outcome
    }

    fn tend_flows(&mut self, scene: &mut Scene) {
        let ids: Vec<u64> = self.flows.keys().copied().collect();
        for id in ids {
            while let Some(flow) = self
                .flows
                .get_mut(&id)
                .filter(|flow| flow.outcome == Outcome::Pending)
            {
                match flow.dispatch.poll(scene.instant()) {
                    Step::Wait(_) => break,
                    Step::GiveUp => flow.outcome = Outcome::Failed,
                    Step::Try(hop) => self.try_hop(id, hop, scene),
                }
            }
        }
    }

    fn try_hop(&mut self, id: u64, hop: usize, scene: &mut Scene) {
        let now = scene.instant();
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        let Some(Hop::Remote { cluster, endpoint }) = flow.hops.get(hop).cloned() else {
            flow.outcome = Outcome::Connected;
            return;
        };
        let tunnel = self.links.tunnels(&cluster).first().copied();
        let found = tunnel.and_then(|id| Some((id, self.tunnels.get(&id)?.peer)));
        flow.dispatch.on_begun(
            hop,
            self.links.links().get(&cluster).and_then(|link| link.rtt),
            now,
        );
        match found {
            Some((tunnel, peer)) => {
                let (service, port) = (flow.service.clone(), flow.port);
                self.send(
                    peer,
                    &cluster,
                    Packet::Open {
                        tunnel,
                        flow: id,
                        hop,
                        service,
                        port,
                        endpoint,
                    },
                    scene,
                );
            }
            None => flow.dispatch.on_failed(hop, true),
        }
    }
}

fn number_of(gateway: SocketAddr) -> Option<usize> {
    match gateway.ip() {
        IpAddr::V4(address) => Some(usize::from(address.octets()[2])),
        IpAddr::V6(_) => None,
    }
}
