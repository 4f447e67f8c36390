//! What a leader of the log does.

use std::time::Duration;

use super::{APPEND_MAX, HEARTBEAT, Peer, Raft, Role, Rpc};
use crate::disk::Entry;
use crate::net::{Message, Node};
use crate::scene::Scene;

impl Raft {
    pub(super) fn hear(
        &mut self,
        from: u64,
        matched: Option<u64>,
        last: u64,
        sent: Duration,
        scene: &mut Scene,
    ) {
        let Role::Leader { peers, .. } = &mut self.role else {
            return;
        };
        let Some(peer) = peers.get_mut(&from) else { return };
        peer.acked = peer.acked.max(Some(sent));
        match matched {
            Some(matched) => {
                peer.matched = peer.matched.max(matched);
                peer.next = peer.next.max(matched + 1);
            }
            None => peer.next = peer.next.saturating_sub(1).min(last + 1).max(peer.matched + 1),
        }
        let behind = peer.next <= self.disk.written.last().0;
        self.count();
        if behind || matched.is_none() {
            self.send_to(from, scene);
        }
    }

    /// Commits what a majority has on disk, if it is of this term.
    pub(super) fn count(&mut self) {
        let Role::Leader { peers, .. } = &self.role else {
            return;
        };
        let mut have: Vec<u64> = peers.values().map(|peer| peer.matched).collect();
        have.push(self.disk.durable_last());
        have.sort_unstable_by(|a, b| b.cmp(a));
        let agreed = have[self.voters.len() / 2];
        if agreed > self.commit && self.disk.written.term_at(agreed) == Some(self.term()) {
            self.advance(agreed);
        }
    }

    pub(super) fn lead(&mut self, scene: &mut Scene) {
        let next = self.disk.written.last().0 + 1;
        let peers = self
            .peers()
            .into_iter()
            .map(|id| {
                (
                    id,
                    Peer {
                        next,
                        ..Peer::default()
                    },
                )
            })
            .collect();
        self.role = Role::Leader {
            peers,
            beat_at: scene.now,
        };
        self.leader = Some(self.id);
        let term = self.term();
        scene.note(format_args!("broker {} leads term {term}", self.id));
        self.disk.append(Entry { term, batch: None });
        self.written(scene);
        self.replicate(scene);
    }

    pub(super) fn replicate(&mut self, scene: &mut Scene) {
        if let Role::Leader { beat_at, .. } = &mut self.role {
            *beat_at = scene.now + HEARTBEAT;
        }
        for peer in self.peers() {
            self.send_to(peer, scene);
        }
    }

    pub(super) fn send_to(&mut self, to: u64, scene: &mut Scene) {
        let Role::Leader { peers, .. } = &self.role else {
            return;
        };
        let Some(peer) = peers.get(&to) else { return };
        let (term, sent, written) = (self.term(), scene.now, &self.disk.written);
        let rpc = match (written.term_at(peer.next - 1), &written.body) {
            (Some(previous_term), _) => Rpc::Append {
                term,
                previous: (peer.next - 1, previous_term),
                entries: written.from(peer.next, APPEND_MAX),
                commit: self.commit,
                sent,
            },
            (None, Some(body)) => Rpc::Install {
                term,
                at: written.base,
                body: body.clone(),
                sent,
            },
            (None, None) => return,
        };
        scene.net.send(
            scene.now,
            Node::Broker(self.id),
            Node::Broker(to),
            Message::Raft(rpc),
        );
    }
}
