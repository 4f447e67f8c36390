//! A broker: the real state machine, lease table and watch log behind the modelled log, with its streams and duties.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tombolo_broker::command::{Batch, Command};
use tombolo_broker::lease::LeaseTable;
use tombolo_broker::state::{self, State};
use tombolo_broker::stored::{Outcome, decode_batch, decode_state, encode_batch, encode_state};
use tombolo_broker::watch_log::WatchLog;
use tombolo_clusterset::{ClusterId, Lease};
use tombolo_wire::v1;

use crate::mutant::Mutant;
use crate::net::{Frame, Message, Node};
use crate::publishing::{Ended, Stream};
use crate::raft::{HEARTBEAT, Raft, Ready};
use crate::scene::{Fact, Scene};
use crate::watching::{Watcher, missed};

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

    /// A sign of life on a stream of this broker.
    fn hear(&mut self, cluster: ClusterId, scene: &mut Scene) {
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

    fn renew(&mut self, clusters: Vec<ClusterId>, scene: &mut Scene) {
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

    fn duties(&mut self, scene: &mut Scene) {
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

    /// A frame of a stream arrives. `joined`: the membership that the agent's certificate is of.
    pub fn frame(
        &mut self,
        conn: u64,
        agent: Node,
        (cluster, joined): (ClusterId, u64),
        frame: Frame,
        scene: &mut Scene,
    ) {
        let is_member = self
            .state
            .members
            .get(&cluster)
            .is_some_and(|member| member.joined == joined);
        if !self.sessions.contains_key(&conn) {
            if !is_member {
                scene
                    .net
                    .say(scene.now, conn, self.node(), Frame::End { superseded: false });
                return;
            }
            let stream = Stream::new(cluster.clone(), joined);
            let session = Session {
                agent,
                cluster: cluster.clone(),
                joined,
                stream,
                proposal: None,
                watcher: None,
                told: (false, Duration::ZERO),
                heard: scene.now,
                pinged: false,
            };
            self.sessions.insert(conn, session);
        }
        let Some(session) = self.sessions.get_mut(&conn) else {
            return;
        };
        (session.heard, session.pinged) = (scene.now, false);
        let taken = match frame {
            Frame::Publish(bytes) => v1::PublishRequest::decode(bytes.as_slice())
                .map_err(|_| Ended { superseded: false })
                .and_then(|request| session.stream.take(request)),
            Frame::Watch(bytes) => {
                if let Ok(request) = v1::WatchRequest::decode(bytes.as_slice()) {
                    session.watcher = Some(Watcher {
                        at: (request.incarnation, request.revision),
                        joined,
                    });
                    session.told.1 = Duration::ZERO;
                }
                Ok(())
            }
            Frame::Ping(true) => {
                scene
                    .net
                    .say(scene.now, conn, Node::Broker(self.id), Frame::Ping(false));
                Ok(())
            }
            Frame::End { .. } => {
                self.forget(conn);
                return;
            }
            Frame::Ping(false) | Frame::Published(_) | Frame::Watched(_) => Ok(()),
        };
        if let Err(ended) = taken {
            self.end(conn, ended, scene);
        }
    }

    fn tend_sessions(&mut self, scene: &mut Scene) {
        let conns: Vec<u64> = self.sessions.keys().copied().collect();
        for conn in conns {
            if let Err(ended) = self.tend(conn, scene) {
                self.end(conn, ended, scene);
            }
        }
    }

    fn tend(&mut self, conn: u64, scene: &mut Scene) -> Result<(), Ended> {
        let broken = Ended { superseded: false };
        let here = self.node();
        let is_leader_hasty = scene.has(Mutant::HastyLease) && self.raft.leads();
        let Some(session) = self.sessions.get_mut(&conn) else {
            return Ok(());
        };
        let silent = scene.now.saturating_sub(session.heard);
        if silent >= PING_AFTER * 2 || !scene.net.is_open(conn) {
            return Err(broken);
        }
        if silent >= PING_AFTER && !session.pinged {
            session.pinged = true;
            scene.net.say(scene.now, conn, here, Frame::Ping(true));
        }
        let is_member = self
            .state
            .members
            .get(&session.cluster)
            .is_some_and(|member| member.joined == session.joined);
        if !is_member {
            return Err(broken);
        }
        session.stream.check_standing(&self.state)?;
        if let Some(mut watcher) = session.watcher {
            let fresh = self.raft.is_fresh(scene.now);
            let news = watcher.at.1 != self.state.applied || session.told.0 != fresh;
            if news || session.told.1 <= scene.now {
                let unix_ms = scene.wall_ms(self.skew_ms);
                let expired = self
                    .leases
                    .as_ref()
                    .map(|table| table.expired(scene.instant()))
                    .unwrap_or_default();
                let hasty = expired.first().filter(|_| is_leader_hasty);
                let (frames, at) = missed(&self.state, &self.changes, watcher, (fresh, unix_ms), hasty);
                for frame in frames {
                    scene.net.say(scene.now, conn, here, frame);
                }
                watcher.at = at;
                session.watcher = Some(watcher);
                session.told = (fresh, scene.now + BEAT);
            }
        }
        if let Some((alive, commands)) = session.stream.next_proposal() {
            let cluster = session.cluster.clone();
            if alive {
                self.hear(cluster, scene);
            }
            self.propose_or_answer(conn, commands, scene);
        }
        Ok(())
    }

    fn propose_or_answer(&mut self, conn: u64, commands: Vec<Command>, scene: &mut Scene) {
        let origin = Origin::Stream(conn);
        if commands.is_empty() {
            let now = scene.now;
            let proposal = Proposal {
                origin,
                commands,
                until: now,
                again_at: now,
                placed: None,
            };
            self.decided(proposal, Vec::new(), self.state.applied, scene);
        } else {
            self.propose(origin, commands, scene);
        }
    }

    fn end(&mut self, conn: u64, Ended { superseded }: Ended, scene: &mut Scene) {
        if let Some(session) = self.sessions.get(&conn) {
            scene.note(format_args!(
                "broker {} ends the stream of {:?}, superseded: {superseded}",
                self.id, session.agent
            ));
        }
        scene
            .net
            .say(scene.now, conn, self.node(), Frame::End { superseded });
        self.forget(conn);
    }

    /// The stream is gone, and with it the attempts for it.
    fn forget(&mut self, conn: u64) {
        self.sessions.remove(&conn);
        self.proposals
            .retain(|_, proposal| proposal.origin != Origin::Stream(conn));
    }

    /// Whether any stream of `cluster`'s agent stands here.
    #[must_use]
    pub fn serves(&self, cluster: &ClusterId) -> bool {
        self.sessions.values().any(|session| session.cluster == *cluster)
    }
}
