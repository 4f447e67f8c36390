//! What gateways say to each other, and the tunnels that one of them has.

use std::net::IpAddr;
use std::time::Duration;

use tombolo_clusterset::{ClusterId, ServiceKey};

/// A packet between two gateways.
#[derive(Debug, Clone)]
pub enum Packet {
    /// A gateway of `cluster` dials; its certificate says so.
    Dial { tunnel: u64, cluster: ClusterId },
    /// The tunnel stands.
    Dialled { tunnel: u64 },
    /// The other end knows no such tunnel, or ended it.
    Closed { tunnel: u64 },
    /// Asks for an answer.
    Ping { tunnel: u64, sent: Duration },
    /// Answers.
    Pong { tunnel: u64, sent: Duration },
    /// A new flow.
    Open {
        tunnel: u64,
        flow: u64,
        hop: usize,
        service: ServiceKey,
        port: u16,
        endpoint: Option<IpAddr>,
    },
    /// *Connected*, or refused; refused everywhere when `may_move` is false.
    Opened {
        flow: u64,
        hop: usize,
        connected: bool,
        may_move: bool,
    },
}

/// One end of a tunnel.
#[derive(Debug, Clone)]
pub struct Tunnel {
    /// Number of the peer.
    pub peer: usize,
    /// Its cluster, as its certificate says.
    pub cluster: ClusterId,
    /// When the next ping leaves.
    pub ping_at: Duration,
    /// When the peer was heard last.
    pub heard: Duration,
    /// When it ends, once another one took its place: flows that are on their way still arrive.
    pub ends_at: Option<Duration>,
}
