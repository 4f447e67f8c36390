//! The replicated log of one broker: a small Raft with a disk that loses what was not synced.
//!
//! It stands for openraft and the log store, which need a runtime. What it orders is real: encoded batches in, the real
//! state machine behind. Call order: [`Raft::receive`], [`Raft::propose`], [`Raft::poll`] in any order, and
//! [`Raft::take_ready`] after each of them.

mod leader;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;

use crate::disk::{Disk, Entry};
use crate::net::{Message, Node};
use crate::scene::Scene;

/// Between two heartbeats of the leader.
pub const HEARTBEAT: Duration = Duration::from_millis(100);

/// How old a quorum's word may be for a stream to count as fresh; also the least silence before an election.
pub const FRESH_WITHIN: Duration = Duration::from_millis(500);

/// Most silence before an election, milliseconds.
const ELECTION_MAX_MS: u64 = 920;

/// Entries of one append.
const APPEND_MAX: usize = 32;

/// What brokers say to each other.
#[derive(Debug, Clone)]
pub enum Rpc {
    /// Entries behind `previous` (index, term), maybe none.
    Append {
        term: u64,
        previous: (u64, u64),
        entries: Vec<Entry>,
        commit: u64,
        sent: Duration,
    },
    /// The receiver's log agrees up to `matched`, or not at all.
    Appended {
        term: u64,
        matched: Option<u64>,
        last: u64,
        sent: Duration,
    },
    /// Asks for a vote.
    Vote { term: u64, last: (u64, u64) },
    /// A vote.
    Voted { term: u64, granted: bool },
    /// The whole state at (index, term).
    Install {
        term: u64,
        at: (u64, u64),
        body: Bytes,
        sent: Duration,
    },
}

#[derive(Debug)]
enum Role {
    Follower,
    Candidate {
        votes: BTreeSet<u64>,
    },
    Leader {
        peers: BTreeMap<u64, Peer>,
        beat_at: Duration,
    },
}

#[derive(Debug, Clone, Default)]
struct Peer {
    next: u64,
    matched: u64,
    acked: Option<Duration>,
}

/// What the state machine is to do next.
#[derive(Debug)]
pub enum Ready {
    /// Begin anew from this state at (index, term).
    Restore { index: u64, body: Bytes },
    /// Apply the entry at this index.
    Apply { index: u64, entry: Entry },
}

/// One broker's part of the log.
#[derive(Debug)]
pub struct Raft {
    id: u64,
    voters: Vec<u64>,
    disk: Disk,
    role: Role,
    leader: Option<u64>,
    heard: Option<Duration>,
    election_at: Duration,
    commit: u64,
    handed_out: u64,
    ready: Vec<Ready>,
    /// Leaves once the disk has what it speaks of.
    outbox: Vec<(u64, Rpc)>,
}

impl Raft {
    /// A voter with an empty disk.
    #[must_use]
    pub fn new(id: u64, voters: Vec<u64>) -> Self {
        Self {
            id,
            voters,
            disk: Disk::default(),
            role: Role::Follower,
            leader: None,
            heard: None,
            election_at: Duration::from_millis(100 * id),
            commit: 0,
            handed_out: 0,
            ready: Vec::new(),
            outbox: Vec::new(),
        }
    }

    /// Whether this broker leads, as far as it knows.
    #[must_use]
    pub fn leads(&self) -> bool {
        matches!(self.role, Role::Leader { .. })
    }

    /// The leader, as far as it knows.
    #[must_use]
    pub fn leader(&self) -> Option<u64> {
        self.leader
    }

    /// The term.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.disk.written.term
    }

    /// Whether a quorum has spoken lately: to the leader itself, or to a follower through its leader.
    #[must_use]
    pub fn is_fresh(&self, now: Duration) -> bool {
        let lately = |at: Duration| now.saturating_sub(at) <= FRESH_WITHIN;
        match &self.role {
            Role::Leader { peers, .. } => {
                let heard = peers
                    .values()
                    .filter(|peer| peer.acked.is_some_and(lately))
                    .count()
                    + 1;
                heard * 2 > self.voters.len()
            }
            Role::Follower | Role::Candidate { .. } => self.heard.is_some_and(lately),
        }
    }

    /// Appends `batch` and returns its (index, term); None when this broker does not lead.
    pub fn propose(&mut self, batch: Bytes, scene: &mut Scene) -> Option<(u64, u64)> {
        if !self.leads() {
            return None;
        }
        let term = self.term();
        let index = self.disk.append(Entry {
            term,
            batch: Some(batch),
        });
        self.written(scene);
        self.replicate(scene);
        Some((index, term))
    }

    /// The machine's state at (index) may take the place of the log up to there.
    pub fn compact(&mut self, index: u64, body: Bytes, scene: &mut Scene) {
        self.disk.compact(index, body);
        self.written(scene);
    }

    /// Entries since the last snapshot.
    #[must_use]
    pub fn uncompacted(&self) -> u64 {
        self.disk.written.last().0 - self.disk.written.base.0
    }

    /// What the machine is to do.
    pub fn take_ready(&mut self) -> Vec<Ready> {
        std::mem::take(&mut self.ready)
    }

    /// The process dies; the disk keeps what was synced, and maybe some of what was not.
    pub fn crash(&mut self, scene: &mut Scene) {
        self.disk.crash(&mut scene.rng);
        (self.role, self.leader, self.heard) = (Role::Follower, None, None);
        (self.commit, self.handed_out) = (0, 0);
        self.ready.clear();
        self.outbox.clear();
    }

    /// The process begins again on its old disk.
    pub fn restart(&mut self, scene: &mut Scene) {
        let (index, _) = self.disk.written.base;
        if let Some(body) = self.disk.written.body.clone() {
            self.ready.push(Ready::Restore { index, body });
        }
        (self.commit, self.handed_out) = (index, index);
        self.arm(scene);
    }

    /// Time passes.
    pub fn poll(&mut self, scene: &mut Scene) {
        self.sync(scene);
        let beat_due = matches!(&self.role, Role::Leader { beat_at, .. } if *beat_at <= scene.now);
        if beat_due {
            self.replicate(scene);
        } else if !self.leads() && self.election_at <= scene.now {
            self.stand(scene);
        }
    }

    /// A message of broker `from`.
    pub fn receive(&mut self, from: u64, rpc: Rpc, scene: &mut Scene) {
        let (Rpc::Append { term, .. }
        | Rpc::Appended { term, .. }
        | Rpc::Vote { term, .. }
        | Rpc::Voted { term, .. }
        | Rpc::Install { term, .. }) = &rpc;
        if *term > self.term() {
            self.disk.written.term = *term;
            self.disk.written.voted = None;
            self.role = Role::Follower;
            self.leader = None;
            self.written(scene);
        }
        let current = *term == self.term();
        match rpc {
            Rpc::Append {
                previous,
                entries,
                commit,
                sent,
                ..
            } => {
                let matched = if current {
                    self.follow(from, previous, entries, commit, scene)
                } else {
                    None
                };
                let last = self.disk.written.last().0;
                self.outbox.push((
                    from,
                    Rpc::Appended {
                        term: self.term(),
                        matched,
                        last,
                        sent,
                    },
                ));
                self.written(scene);
            }
            Rpc::Install { at, body, sent, .. } if current => {
                self.heed(from, scene);
                if at.0 > self.commit {
                    self.disk.install(at, body.clone());
                    self.ready.push(Ready::Restore { index: at.0, body });
                    (self.commit, self.handed_out) = (at.0, at.0);
                }
                let matched = Some(at.0.min(self.disk.written.last().0));
                self.outbox.push((
                    from,
                    Rpc::Appended {
                        term: self.term(),
                        matched,
                        last: at.0,
                        sent,
                    },
                ));
                self.written(scene);
            }
            Rpc::Vote { last, .. } => {
                let written = &mut self.disk.written;
                let up_to_date = (last.1, last.0) >= {
                    let (index, term) = written.last();
                    (term, index)
                };
                let granted = current && up_to_date && written.voted.is_none_or(|voted| voted == from);
                if granted {
                    written.voted = Some(from);
                    self.arm(scene);
                }
                self.outbox.push((
                    from,
                    Rpc::Voted {
                        term: self.term(),
                        granted,
                    },
                ));
                self.written(scene);
            }
            Rpc::Voted { granted: true, .. } if current => {
                if let Role::Candidate { votes } = &mut self.role {
                    votes.insert(from);
                    if votes.len() * 2 > self.voters.len() {
                        self.lead(scene);
                    }
                }
            }
            Rpc::Appended {
                matched, last, sent, ..
            } if current => self.hear(from, matched, last, sent, scene),
            Rpc::Install { .. } | Rpc::Voted { .. } | Rpc::Appended { .. } => {}
        }
    }

    fn heed(&mut self, leader: u64, scene: &mut Scene) {
        self.role = Role::Follower;
        self.leader = Some(leader);
        self.heard = Some(scene.now);
        self.arm(scene);
    }

    fn follow(
        &mut self,
        from: u64,
        previous: (u64, u64),
        entries: Vec<Entry>,
        commit: u64,
        scene: &mut Scene,
    ) -> Option<u64> {
        self.heed(from, scene);
        if !self.disk.written.agrees(previous) {
            return None;
        }
        let matched = previous.0 + entries.len() as u64;
        self.disk.adopt(previous.0, entries);
        self.advance(commit.min(matched));
        Some(matched)
    }

    fn advance(&mut self, commit: u64) {
        self.commit = self.commit.max(commit);
        while self.handed_out < self.commit {
            let index = self.handed_out + 1;
            let Some(entry) = self.disk.written.entry(index).cloned() else {
                return;
            };
            self.ready.push(Ready::Apply { index, entry });
            self.handed_out = index;
        }
    }

    fn stand(&mut self, scene: &mut Scene) {
        self.disk.written.term += 1;
        self.disk.written.voted = Some(self.id);
        self.leader = None;
        self.role = Role::Candidate {
            votes: BTreeSet::from([self.id]),
        };
        let (term, last) = (self.term(), self.disk.written.last());
        scene.note(format_args!("broker {} stands in term {term}", self.id));
        for peer in self.peers() {
            self.outbox.push((peer, Rpc::Vote { term, last }));
        }
        self.arm(scene);
        self.written(scene);
    }

    /// Something was written: it is synced a moment later.
    fn written(&mut self, scene: &mut Scene) {
        if self.disk.begin_sync(scene) {
            scene.net.wake(self.disk.sync_at(), Node::Broker(self.id));
        }
    }

    fn sync(&mut self, scene: &mut Scene) {
        if !self.disk.end_sync(scene) {
            return;
        }
        for (to, rpc) in std::mem::take(&mut self.outbox) {
            scene.net.send(
                scene.now,
                Node::Broker(self.id),
                Node::Broker(to),
                Message::Raft(rpc),
            );
        }
        self.count();
    }

    fn arm(&mut self, scene: &mut Scene) {
        let least = u64::try_from(FRESH_WITHIN.as_millis()).unwrap_or(u64::MAX);
        self.election_at = scene.now + Duration::from_millis(scene.rng.random_range(least..=ELECTION_MAX_MS));
    }

    fn peers(&self) -> Vec<u64> {
        self.voters
            .iter()
            .copied()
            .filter(|voter| *voter != self.id)
            .collect()
    }
}
