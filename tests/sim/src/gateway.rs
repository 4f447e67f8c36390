//! The gateway and the DNS server of a cluster: the real links, route, dispatch, admission, verdicts and zone, over modelled
//! tunnels and the real snapshot events.

mod flows;
mod paths;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message as _;
use tombolo_clusterset::dispatch::Dispatch;
use tombolo_clusterset::link::LinkProfile;
use tombolo_clusterset::{ClusterId, Drill, LinkState, Locality, ServiceKey, Snapshot};
use tombolo_dns::signals::{Tracker, Verdicts};
use tombolo_dns::zone::{Zone, Zones};
use tombolo_gateway::links::Links;
use tombolo_gateway::route::Hop;
use tombolo_wire::convert::SnapshotBatch;
use tombolo_wire::local::{Interest, snapshot_changes, snapshot_events};
use tombolo_wire::v1;

use crate::agent::drill_age;
use crate::mutant::Mutant;
use crate::net::{Message, Node};
use crate::scene::{Fact, Scene};
use crate::tunnels::{Packet, Tunnel};

/// A dial that got no answer has failed.
const DIAL_TIME: Duration = Duration::from_secs(1);
/// A tunnel that heard nothing for this long is gone.
const IDLE_TIME: Duration = Duration::from_secs(10);
/// A tunnel that was replaced ends after this; the product waits for its last flow.
const RETIRED_TIME: Duration = Duration::from_secs(1);
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
}

fn number_of(gateway: SocketAddr) -> Option<usize> {
    match gateway.ip() {
        IpAddr::V4(address) => Some(usize::from(address.octets()[2])),
        IpAddr::V6(_) => None,
    }
}
