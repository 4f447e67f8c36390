//! Signs of life, and what the leader does unasked.

use tombolo_broker::command::Command;
use tombolo_broker::lease::LeaseTable;
use tombolo_clusterset::{ClusterId, Lease};

use super::{Broker, LEASE_TERM, Origin};
use crate::mutant::Mutant;
use crate::net::{Message, Node};
use crate::scene::Scene;

impl Broker {
    /// A sign of life on a stream of this broker.
    pub(super) fn hear(&mut self, cluster: ClusterId, scene: &mut Scene) {
        match self.raft.leader() {
            Some(leader) if leader != self.id => {
                let message = Message::Renew {
                    clusters: vec![cluster],
                };
                scene
                    .net
                    .send(scene.now, self.node(), Node::Broker(leader), message);
            }
            _ => self.renew(vec![cluster], scene),
        }
    }

    pub(super) fn renew(&mut self, clusters: Vec<ClusterId>, scene: &mut Scene) {
        let Some(table) = &mut self.leases else { return };
        let mut regained = Vec::new();
        for cluster in clusters {
            if let Some(member) = self.state.members.get(&cluster) {
                table.renew(&cluster, scene.instant());
                if member.view.lease != Lease::Alive {
                    regained.push(Command::RegainLease { cluster });
                }
            }
        }
        if !regained.is_empty() {
            self.propose(Origin::Duty, regained, scene);
        }
    }

    pub(super) fn duties(&mut self, scene: &mut Scene) {
        if !self.raft.leads() {
            self.leases = None;
            return;
        }
        let now = scene.instant();
        let alive: Vec<ClusterId> = self
            .state
            .members
            .values()
            .filter(|m| m.view.lease == Lease::Alive)
            .map(|m| m.view.id.clone())
            .collect();
        match &mut self.leases {
            Some(table) => table.align(now, &alive),
            None => self.leases = Some(LeaseTable::begin(LEASE_TERM, now, alive)),
        }
        let waiting = self
            .proposals
            .values()
            .any(|proposal| proposal.origin == Origin::Duty);
        if !self.raft.is_fresh(scene.now) || waiting {
            return;
        }
        let mut due = Vec::new();
        if !scene.has(Mutant::ImmortalLease) {
            let expired = self
                .leases
                .as_ref()
                .map(|table| table.expired(now))
                .unwrap_or_default();
            due.extend(expired.into_iter().map(|cluster| Command::LoseLease { cluster }));
        }
        let wall = scene.wall_ms(self.skew_ms);
        let is_tick_due = self.state.next_expiry_ms().is_some_and(|expiry| expiry <= wall);
        due.extend((is_tick_due && !scene.has(Mutant::EndlessDrill)).then_some(Command::Tick));
        if !due.is_empty() {
            scene.note(format_args!("broker {} does its duty: {due:?}", self.id));
            self.propose(Origin::Duty, due, scene);
        }
    }
}
