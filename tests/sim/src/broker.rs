//! A broker: the real state machine, lease table and watch log behind the modelled log, with its streams and duties.

mod duties;
mod sessions;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tombolo_broker::command::{Batch, Command};
use tombolo_broker::lease::LeaseTable;
use tombolo_broker::state::{self, State};
use tombolo_broker::stored::{Outcome, decode_batch, decode_state, encode_batch, encode_state};
use tombolo_broker::watch_log::WatchLog;
use tombolo_clusterset::ClusterId;
use tombolo_wire::v1;

use crate::net::{Frame, Message, Node};
use crate::publishing::{Ended, Stream};
use crate::raft::{HEARTBEAT, Raft, Ready};
use crate::scene::{Fact, Scene};
use crate::watching::Watcher;

/// How long a member may be silent (`lan`).
pub const LEASE_TERM: Duration = Duration::from_secs(3);
/// Small, so that watchers are compacted away in every run.
const WATCH_LOG_MAX: usize = 40;
/// Small, so that brokers catch up from snapshots in every run.
const SNAPSHOT_EVERY: u64 = 30;
/// How long a write may take (`broker::bounds::PROPOSE_TIMEOUT`).
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// An attempt that got no answer is made again after this; what can be repeated is.
const ATTEMPT: Duration = Duration::from_millis(400);
/// A silent peer of a stream is pinged after this, and given up after twice as much (`broker::shell::run`).
const PING_AFTER: Duration = Duration::from_secs(5);
/// A quiet watch says how fresh it is this often.
const BEAT: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Stream(u64),
    Call { call: u64 },
    Forwarded { from: u64, proposal: u64 },
    Duty,
}

#[derive(Debug)]
struct Proposal {
    origin: Origin,
    commands: Vec<Command>,
    until: Duration,
    again_at: Duration,
    /// Where it stands in this broker's log: index and term.
    placed: Option<(u64, u64)>,
}

#[derive(Debug)]
struct Session {
    agent: Node,
    cluster: ClusterId,
    joined: u64,
    stream: Stream,
    proposal: Option<u64>,
    watcher: Option<Watcher>,
    told: (bool, Duration),
    heard: Duration,
    pinged: bool,
}

/// One broker.
#[derive(Debug)]
pub struct Broker {
    /// From 1.
    pub id: u64,
    /// Whether the process runs.
    pub is_up: bool,
    /// The log.
    pub raft: Raft,
    /// What it applied.
    pub state: State,
    changes: WatchLog,
    leases: Option<LeaseTable>,
    sessions: BTreeMap<u64, Session>,
    proposals: BTreeMap<u64, Proposal>,
    counter: u64,
    duty_at: Duration,
    /// How far its wall clock is off, milliseconds.
    pub skew_ms: i64,
}

impl Broker {
    /// A broker of the group `voters`.
    #[must_use]
    pub fn new(id: u64, voters: Vec<u64>) -> Self {
        Self {
            id,
            is_up: true,
            raft: Raft::new(id, voters),
            state: State::default(),
            changes: WatchLog::new(WATCH_LOG_MAX, 0),
            leases: None,
            sessions: BTreeMap::new(),
            proposals: BTreeMap::new(),
            counter: 0,
            duty_at: Duration::ZERO,
            skew_ms: 0,
        }
    }

    fn node(&self) -> Node {
        Node::Broker(self.id)
    }

    /// The process dies.
    pub fn crash(&mut self, scene: &mut Scene) {
        scene.note(format_args!("broker {} crashes", self.id));
        self.is_up = false;
        self.raft.crash(scene);
        scene.net.crash(self.node());
        self.state = State::default();
        self.changes = WatchLog::new(WATCH_LOG_MAX, 0);
        self.leases = None;
        self.sessions.clear();
        self.proposals.clear();
    }

    /// The process begins again.
    pub fn restart(&mut self, scene: &mut Scene) {
        scene.note(format_args!("broker {} restarts", self.id));
        self.is_up = true;
        self.raft.restart(scene);
        self.work(scene);
    }

    /// A datagram arrives.
    pub fn receive(&mut self, from: Node, message: Message, scene: &mut Scene) {
        match (message, from) {
            (Message::Raft(rpc), Node::Broker(from)) => self.raft.receive(from, rpc, scene),
            (Message::Forward { proposal, commands }, Node::Broker(from)) => {
                let origin = Origin::Forwarded { from, proposal };
                let is_known = self.proposals.values().any(|known| known.origin == origin);
                if let (true, Ok(batch), false) = (self.raft.leads(), decode_batch(commands), is_known) {
                    self.propose(origin, batch.commands, scene);
                }
            }
            (
                Message::Forwarded {
                    proposal,
                    decided: Some((index, outcomes)),
                },
                _,
            ) => {
                if let (Ok(outcomes), Some(known)) =
                    (Outcome::decode_all(outcomes), self.proposals.remove(&proposal))
                {
                    self.decided(known, outcomes, index, scene);
                }
            }
            (Message::Renew { clusters }, _) => self.renew(clusters, scene),
            (Message::Call { call, commands }, _) => {
                if let Ok(batch) = decode_batch(commands) {
                    self.propose(Origin::Call { call }, batch.commands, scene);
                }
            }
            _ => {}
        }
        self.work(scene);
    }

    /// Time passes.
    pub fn poll(&mut self, scene: &mut Scene) {
        self.raft.poll(scene);
        self.work(scene);
        if self.duty_at <= scene.now {
            self.duty_at = scene.now + HEARTBEAT;
            self.duties(scene);
        }
        self.attempt_again(scene);
        self.tend_sessions(scene);
    }

    fn propose(&mut self, origin: Origin, commands: Vec<Command>, scene: &mut Scene) {
        self.counter += 1;
        let until = scene.now + PROPOSE_TIMEOUT;
        let proposal = Proposal {
            origin,
            commands,
            until,
            again_at: scene.now,
            placed: None,
        };
        let id = self.counter * 16 + self.id;
        if let Origin::Stream(conn) = origin
            && let Some(session) = self.sessions.get_mut(&conn)
        {
            session.proposal = Some(id);
        }
        self.proposals.insert(id, proposal);
        self.attempt(id, scene);
    }

    fn attempt(&mut self, id: u64, scene: &mut Scene) {
        let Some(proposal) = self.proposals.get_mut(&id) else {
            return;
        };
        let batch = Batch {
            unix_ms: scene.wall_ms(self.skew_ms),
            commands: proposal.commands.clone(),
        };
        proposal.again_at = scene.now + ATTEMPT;
        if let Some(placed) = self.raft.propose(encode_batch(&batch), scene) {
            proposal.placed = Some(placed);
        } else if let Some(leader) = self.raft.leader().filter(|leader| *leader != self.id) {
            let message = Message::Forward {
                proposal: id,
                commands: encode_batch(&batch),
            };
            scene
                .net
                .send(scene.now, Node::Broker(self.id), Node::Broker(leader), message);
        }
    }

    /// A proposal whose answer got lost is made again while it may be, as `broker::shell::raft::group` does.
    fn attempt_again(&mut self, scene: &mut Scene) {
        let due: Vec<u64> = self
            .proposals
            .iter()
            .filter(|(_, p)| p.again_at <= scene.now)
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            let Some(proposal) = self.proposals.get_mut(&id) else {
                continue;
            };
            let may = proposal.commands.iter().all(Command::may_be_repeated);
            let waits =
                self.raft.leads() && proposal.placed.is_some_and(|(_, term)| term == self.raft.term());
            let forwarded = matches!(proposal.origin, Origin::Forwarded { .. });
            if scene.now >= proposal.until || (!waits && (forwarded || !may)) {
                let given_up = self.proposals.remove(&id);
                if let Some(Proposal {
                    origin: Origin::Stream(conn),
                    ..
                }) = given_up
                {
                    self.end(conn, Ended { superseded: false }, scene);
                }
            } else if waits {
                proposal.again_at = scene.now + ATTEMPT;
            } else {
                self.attempt(id, scene);
            }
        }
    }

    /// Lets the machine do what the log says, then tells who waits.
    fn work(&mut self, scene: &mut Scene) {
        for ready in self.raft.take_ready() {
            match ready {
                Ready::Restore { index, body } => self.restore(index, body, scene),
                Ready::Apply { index, entry } => {
                    let (broker, term, batch) = (self.id, entry.term, entry.batch);
                    scene.facts.push(Fact::Applied {
                        broker,
                        index,
                        term,
                        entry: batch.clone(),
                    });
                    self.apply(index, term, batch, scene);
                }
            }
        }
        if self.raft.uncompacted() >= SNAPSHOT_EVERY && self.state.applied > 0 {
            self.raft
                .compact(self.state.applied, Bytes::from(encode_state(&self.state)), scene);
        }
    }

    fn restore(&mut self, index: u64, body: Bytes, scene: &mut Scene) {
        // A snapshot that does not decode leaves the machine where it was, which the next entry's invariant sees.
        let Ok(state) = decode_state(body) else { return };
        self.state = state;
        self.state.applied = index;
        self.changes = WatchLog::new(WATCH_LOG_MAX, index);
        scene.note(format_args!("broker {} restores its state at {index}", self.id));
        scene.facts.push(Fact::Restored {
            broker: self.id,
            index,
        });
    }

    fn apply(&mut self, index: u64, term: u64, batch: Option<Bytes>, scene: &mut Scene) {
        let Some(Ok(batch)) = batch.map(decode_batch) else {
            self.state.applied = index;
            return;
        };
        let applied = state::apply(&mut self.state, index, batch);
        self.changes.push(index, applied.changed);
        let ids: Vec<u64> = self
            .proposals
            .iter()
            .filter(|(_, p)| p.placed == Some((index, term)))
            .map(|(id, _)| *id)
            .collect();
        let outcomes: Vec<Outcome> = applied.verdicts.into_iter().map(Outcome::from).collect();
        for id in ids {
            if let Some(proposal) = self.proposals.remove(&id) {
                self.decided(proposal, outcomes.clone(), index, scene);
            }
        }
    }

    fn decided(&mut self, proposal: Proposal, outcomes: Vec<Outcome>, index: u64, scene: &mut Scene) {
        let here = self.node();
        match proposal.origin {
            Origin::Stream(conn) => {
                let unix_ms = scene.wall_ms(self.skew_ms);
                let Some(session) = self.sessions.get_mut(&conn) else {
                    return;
                };
                session.proposal = None;
                let first = session.stream.granted.is_none();
                match session.stream.replies(outcomes, index, unix_ms) {
                    Ok(replies) => {
                        let granted = session.stream.granted.filter(|_| first).map(|(epoch, _)| {
                            let lease_term_ms = u64::try_from(LEASE_TERM.as_millis()).unwrap_or(u64::MAX);
                            let incarnation = self.state.incarnation;
                            v1::publish_reply::Reply::Granted(v1::PublishGranted {
                                epoch,
                                lease_term_ms,
                                incarnation,
                            })
                        });
                        let cluster = session.cluster.clone();
                        let is_first = granted.is_some();
                        for reply in granted.into_iter().chain(replies) {
                            let bytes = v1::PublishReply { reply: Some(reply) }.encode_to_vec();
                            scene.net.say(scene.now, conn, here, Frame::Published(bytes));
                        }
                        if is_first {
                            self.hear(cluster, scene);
                        }
                    }
                    Err(ended) => self.end(conn, ended, scene),
                }
            }
            Origin::Call { call } => {
                let outcomes = Outcome::encode_all(&outcomes);
                scene.net.send(
                    scene.now,
                    here,
                    Node::Operator,
                    Message::Answer { call, outcomes },
                );
            }
            Origin::Forwarded { from, proposal } => {
                let decided = Some((index, Outcome::encode_all(&outcomes)));
                scene.net.send(
                    scene.now,
                    here,
                    Node::Broker(from),
                    Message::Forwarded { proposal, decided },
                );
            }
            Origin::Duty => {}
        }
    }

    /// Whether any stream of `cluster`'s agent stands here.
    #[must_use]
    pub fn serves(&self, cluster: &ClusterId) -> bool {
        self.sessions.values().any(|session| session.cluster == *cluster)
    }
}
