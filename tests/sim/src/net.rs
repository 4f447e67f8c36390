//! The network between all processes, on simulated time.
//!
//! Datagrams carry Raft, tunnels and the operator's calls: delayed, lost, reordered. Streams carry what gRPC does: in order
//! and whole, late where packets are lost, silent where a path is cut. Paths are cut in one direction at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use crate::raft::Rpc;
use crate::tunnels::Packet;

/// Where a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Node {
    /// A broker, by its id.
    Broker(u64),
    /// The agent of a cluster, by its number.
    Agent(usize),
    /// The gateway (and DNS server) of a cluster, by its number.
    Gateway(usize),
    /// The operator's machine.
    Operator,
}

/// What a datagram carries.
#[derive(Debug, Clone)]
pub enum Message {
    /// Between brokers: the log.
    Raft(Rpc),
    /// A proposal on its way to the leader, an encoded batch of commands.
    Forward { proposal: u64, commands: bytes::Bytes },
    /// Its outcomes, encoded, with the log index; None: not led here.
    Forwarded {
        proposal: u64,
        decided: Option<(u64, bytes::Bytes)>,
    },
    /// Signs of life that a follower heard.
    Renew {
        clusters: Vec<tombolo_clusterset::ClusterId>,
    },
    /// Between gateways.
    Tunnel(Packet),
    /// From the operator.
    Call { call: u64, commands: bytes::Bytes },
    /// To the operator: outcomes, encoded.
    Answer { call: u64, outcomes: bytes::Bytes },
}

/// What a stream carries: encoded protobuf messages of `broker.proto`.
#[derive(Debug, Clone)]
pub enum Frame {
    /// `PublishRequest`.
    Publish(Vec<u8>),
    /// `PublishReply`.
    Published(Vec<u8>),
    /// `WatchRequest`.
    Watch(Vec<u8>),
    /// `WatchEvent`.
    Watched(Vec<u8>),
    /// HTTP/2 PING; `true` asks.
    Ping(bool),
    /// The stream ends; `true`: the publisher was superseded.
    End { superseded: bool },
}

/// What happens at an instant.
#[derive(Debug)]
pub enum Event {
    /// A datagram arrives.
    Datagram { from: Node, to: Node, message: Message },
    /// A node asked to be woken.
    Wake(Node),
}

/// A packet of a stream that was lost is sent again after this.
const RETRANSMIT: Duration = Duration::from_millis(200);

#[derive(Debug)]
struct Conn {
    ends: [Node; 2],
    queues: [VecDeque<(Duration, Frame)>; 2],
}

/// The network.
#[derive(Debug)]
pub struct Net {
    rng: StdRng,
    sequence: u64,
    events: BTreeMap<(Duration, u64), Event>,
    conns: BTreeMap<u64, Conn>,
    cut: BTreeSet<(Node, Node)>,
    /// Datagrams lost, per thousand.
    pub loss: u32,
    /// Added delay, at most: reorders datagrams.
    pub jitter: Duration,
}

impl Net {
    /// A quiet network.
    #[must_use]
    pub fn new(rng: StdRng) -> Self {
        Self {
            rng,
            sequence: 0,
            events: BTreeMap::new(),
            conns: BTreeMap::new(),
            cut: BTreeSet::new(),
            loss: 0,
            jitter: Duration::from_millis(1),
        }
    }

    /// Cuts or heals the way from `from` to `to`.
    pub fn set_cut(&mut self, from: Node, to: Node, is_cut: bool) {
        if is_cut {
            self.cut.insert((from, to));
        } else {
            self.cut.remove(&(from, to));
        }
    }

    /// Heals every path; nothing is lost any more.
    pub fn heal(&mut self) {
        self.cut.clear();
        self.loss = 0;
        self.jitter = Duration::from_millis(1);
    }

    /// Whether nothing gets from `from` to `to`.
    #[must_use]
    pub fn is_cut(&self, from: Node, to: Node) -> bool {
        self.cut.contains(&(from, to))
    }

    fn push(&mut self, at: Duration, event: Event) {
        self.sequence += 1;
        self.events.insert((at, self.sequence), event);
    }

    fn delay(&mut self, from: Node, to: Node) -> Duration {
        let base = match (from, to) {
            (Node::Broker(_), Node::Broker(_)) => 800,
            (Node::Gateway(a), Node::Gateway(b)) => 4_000 + 3_000 * (a + b) as u64,
            _ => 5_000,
        };
        let jitter = u64::try_from(self.jitter.as_micros()).unwrap_or(u64::MAX).max(1);
        Duration::from_micros(base + self.rng.random_range(0..jitter))
    }

    /// Sends a datagram at `now`.
    pub fn send(&mut self, now: Duration, from: Node, to: Node, message: Message) {
        let lost = self.rng.random_range(0..1000) < self.loss;
        let delay = self.delay(from, to);
        if !lost && !self.is_cut(from, to) {
            self.push(now + delay, Event::Datagram { from, to, message });
        }
    }

    /// Wakes `node` at `at`.
    pub fn wake(&mut self, at: Duration, node: Node) {
        self.push(at, Event::Wake(node));
    }

    /// The next event up to `until`.
    pub fn next_event(&mut self, until: Duration) -> Option<(Duration, Event)> {
        let first = self.events.first_entry()?;
        let at = first.key().0;
        (at <= until).then(|| (at, first.remove()))
    }

    /// Opens a stream between two nodes.
    pub fn connect(&mut self, client: Node, server: Node) -> u64 {
        self.sequence += 1;
        self.conns.insert(
            self.sequence,
            Conn {
                ends: [client, server],
                queues: Default::default(),
            },
        );
        self.sequence
    }

    /// Says `frame` on the stream `conn`, from its end `from`. A stream that is gone takes nothing.
    pub fn say(&mut self, now: Duration, conn: u64, from: Node, frame: Frame) {
        let Some(ends) = self.conns.get(&conn).map(|conn| conn.ends) else {
            return;
        };
        let side = usize::from(ends[1] == from);
        let at = now + self.delay(from, ends[1 - side]);
        if let Some(conn) = self.conns.get_mut(&conn) {
            let after = conn.queues[side].back().map_or(at, |(last, _)| at.max(*last));
            conn.queues[side].push_back((after, frame));
        }
    }

    /// Forgets every stream of `node`, as its crash does; the other ends find out by themselves.
    pub fn crash(&mut self, node: Node) {
        self.conns.retain(|_, conn| !conn.ends.contains(&node));
    }

    /// Forgets one stream; what is on its way is lost.
    pub fn hang_up(&mut self, conn: u64) {
        self.conns.remove(&conn);
    }

    /// Whether the stream exists.
    #[must_use]
    pub fn is_open(&self, conn: u64) -> bool {
        self.conns.contains_key(&conn)
    }

    /// What arrives on streams up to `now`: (stream, sender, receiver, frame).
    pub fn arrivals(&mut self, now: Duration) -> Vec<(u64, Node, Node, Frame)> {
        let mut arrived = Vec::new();
        for (id, conn) in &mut self.conns {
            for side in 0..2 {
                let (from, to) = (conn.ends[side], conn.ends[1 - side]);
                let is_cut = self.cut.contains(&(from, to));
                while let Some((at, _)) = conn.queues[side].front_mut() {
                    if *at > now {
                        break;
                    }
                    // Whatever is lost waits for its retransmission, and all behind it waits with it.
                    if is_cut || self.rng.random_range(0..1000) < self.loss {
                        *at = now + RETRANSMIT;
                        break;
                    }
                    if let Some((_, frame)) = conn.queues[side].pop_front() {
                        arrived.push((*id, from, to, frame));
                    }
                }
            }
        }
        arrived
    }
}
