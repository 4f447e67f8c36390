//! What a peer may take from us. Every bound has its reason; [`Limits::default`] holds them.

use std::time::Duration;

/// Time for a TLS or QUIC handshake: ten round trips of 200 ms and some computing; a slow loris holds a slot no longer.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Time from a stream's start to its whole header, and from the handshake to the hello: the header is one packet, so only a
/// broken or hostile peer needs more.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for a dial as a whole, handshake and hello: after it the caller has better candidates.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// `auto`: how long QUIC may stay silent before HTTP/2 is tried beside it. Two round trips of 100 ms and a lost packet.
pub const QUIC_HEAD_START: Duration = Duration::from_millis(300);

/// `auto`: how long an address that did not answer over QUIC is dialled over HTTP/2 at once. A firewall seldom changes; a
/// tunnel over TCP is worse, so it is not for ever.
pub const PREFER_H2_FOR: Duration = Duration::from_secs(600);

/// Addresses for which that is remembered: 250 clusters with a few gateways each.
pub const PREFER_H2_MAX: usize = 1024;

/// Silence after which a tunnel is given up: longer than any failover takes (links are Down long before), short enough that
/// dead peers do not pile up.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Handshakes under way at once. Each costs up to 100 KiB and a signature; 512 is a reconnect storm of 250 clusters twice.
pub const HANDSHAKES_MAX: usize = 512;

/// Tunnels of one identity. Gateways need a few; the pods of one service account share an identity, a thousand at most.
pub const TUNNELS_PER_IDENTITY: usize = 1024;

/// Tunnels in all: 250 gateways and the sidecars that dial directly; 16,384 idle ones take about 1 GiB.
pub const TUNNELS_MAX: usize = 16_384;

/// Flows that run in one tunnel. QUIC keeps about 50 bytes for each stream that may come.
pub const FLOWS_PER_TUNNEL: usize = 8192;

/// The same for a sidecar: one pod's connections to one cluster; its tunnels are many, so each is allowed less.
pub const FLOWS_PER_SIDECAR: usize = 1024;

/// Bytes of one flow under way to us that nobody has read. 1 MiB carries 80 Mbit/s at 100 ms round trip time.
pub const FLOW_WINDOW: u32 = 1024 * 1024;

/// Bytes of one tunnel under way to us that nobody has read: 64 flows whose readers have stopped, before they hold up the
/// others. It is what one tunnel can take from memory.
pub const TUNNEL_WINDOW: u32 = 64 * 1024 * 1024;

/// Bytes of one tunnel that wait to be acknowledged by the peer: 1 Gbit/s at 100 ms.
pub const SEND_WINDOW: u64 = 16 * 1024 * 1024;

/// Bytes of one flow that wait to be written to the peer, over HTTP/2.
pub const SEND_BUFFER: usize = 256 * 1024;

/// Payloads of one UDP flow that wait for their reader; more are dropped and counted, as a socket's buffer would.
pub const UDP_QUEUE: usize = 256;

/// Bytes of datagrams that a tunnel holds, each way, before the oldest is dropped.
pub const DATAGRAM_BUFFER: usize = 1024 * 1024;

/// Datagrams that arrived before the answer which names their flow; they are held back until then.
pub const EARLY_DATAGRAMS: usize = 64;

/// Streams that a dialler over HTTP/2 keeps open for flows in the other direction: a burst of as many within one round trip
/// starts at once.
pub const PARKED_STREAMS: usize = 32;

/// How long the end of a connection may take to be told to its peer: one round trip of a slow path.
pub const GOODBYE: Duration = Duration::from_millis(200);

/// Age at which a tunnel is asked to go away (DESIGN §4.11), so that no identity is used for longer.
pub const TUNNEL_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// What flows of a tunnel that became too old may still take.
pub const AGE_GRACE: Duration = Duration::from_secs(300);

/// How often live tunnels are held against the trust state: evictions cut them within 5 s (DESIGN §4.12), of which the way
/// from the broker takes most.
pub const TRUST_CHECK_EVERY: Duration = Duration::from_millis(500);

/// How often we ping, unless the configuration says otherwise.
pub const PING_EVERY: Duration = Duration::from_millis(100);

/// Control messages that wait to be written. A ping that finds it full is not sent, and so not answered, which is the truth.
pub const CONTROL_QUEUE: usize = 64;

/// Events of a tunnel that a slow listener may be behind; older ones are dropped for it.
pub const EVENTS_BEHIND: usize = 64;

/// The limits that a deployment may want to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// See [`TUNNELS_MAX`].
    pub tunnels: usize,
    /// See [`TUNNELS_PER_IDENTITY`].
    pub tunnels_per_identity: usize,
    /// See [`FLOWS_PER_TUNNEL`].
    pub flows_per_tunnel: usize,
    /// See [`HANDSHAKES_MAX`].
    pub handshakes: usize,
    /// See [`HEADER_TIMEOUT`].
    pub header_timeout: Duration,
    /// See [`IDLE_TIMEOUT`].
    pub idle_timeout: Duration,
    /// See [`TUNNEL_AGE_MAX`].
    pub tunnel_age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tunnels: TUNNELS_MAX,
            tunnels_per_identity: TUNNELS_PER_IDENTITY,
            flows_per_tunnel: FLOWS_PER_TUNNEL,
            handshakes: HANDSHAKES_MAX,
            header_timeout: HEADER_TIMEOUT,
            idle_timeout: IDLE_TIMEOUT,
            tunnel_age: TUNNEL_AGE_MAX,
        }
    }
}
