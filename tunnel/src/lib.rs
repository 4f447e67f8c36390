//! What gateway and sidecar share: authenticated tunnels that carry many flows, over QUIC or over TLS and HTTP/2.
//!
//! - Pure: [`header`] (who calls what), [`control`] (hello, pings, go-away), [`capsule`] (UDP payloads), [`limits`].
//! - Shells: [`identity`] (the certificate we speak with), [`endpoint`] (listens and dials), [`tunnel`], [`flow`],
//!   [`udp`], [`forward`], and under `shell` the two transports.
//!
//! ```text
//! EndpointConfig::gateway(cluster, listen) | ::sidecar(cluster)       fields are public, defaults documented
//! Endpoint::bind(config, identity: LocalIdentity, seams: Seams, handler: Arc<dyn Accept>) -> Result<Endpoint, BindError>   (async)
//! Endpoint  (cheap clone)
//!   .dial(address: SocketAddr, expect: &ClusterId, transport: TransportChoice) -> Result<Tunnel, DialError>                (async)
//!   .set_cut(clusters: BTreeSet<ClusterId>, everything: bool)   .tunnels() -> Vec<Tunnel>   .local_addr() -> Option<SocketAddr>
//!   .drain(deadline: Instant) -> Drained { ended, reset }  (async)      .close(reason: &str)
//! trait Accept: Send + Sync + 'static { fn tunnel(&self, tunnel: Tunnel); fn flow(&self, flow: IncomingFlow) -> BoxFuture<'static, ()>; }
//! Tunnel  (cheap clone)
//!   .open(&FlowHeader) -> Result<Flow, OpenError>   .open_udp(&FlowHeader) -> Result<UdpFlow, OpenError>                  (async)
//!   .peer() -> &SpiffeId  .cluster() -> &ClusterId  .transport() -> Transport  .direction() -> Direction  .remote_addr()
//!   .rtt() -> Option<Duration>  .events() -> broadcast::Receiver<TunnelEvent { Pong{rtt} | GoingAway{reason} | Closed{reason} }>
//!   .is_usable() (live, no go-away)  .is_outdated() (made with an older certificate than ours now)  .peer_takes_flows()
//!   .closed() -> Arc<str> (async)  .go_away(reason, deadline: Duration)  .close(reason)  .open_flows() -> usize  .id() -> u64  .age()
//! IncomingFlow { .peer(), .header(), .tunnel(), .accept() -> Result<Flow, FlowError>, .accept_udp() -> Result<UdpFlow, FlowError>,
//!                .refuse(Refusal, detail), .abandoned() }                                                     (all four async)
//! Flow: AsyncRead + AsyncWrite; shutdown() = FIN; reset(); into parts by forward().   UdpFlow: send(Bytes), recv() -> Option<Bytes>, split()
//! forward(local: net::Stream, flow: Flow) -> Forwarded { bytes_out, bytes_in, ended: Ended }                                (async)
//! LocalIdentity::start(IdentityConfig, seams, shutdown) -> Result<LocalIdentity, IdentityError>   LocalIdentity::fixed(id, certs, trust)
//! ```
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests fail by panicking"))]

pub mod capsule;
pub mod control;
pub mod endpoint;
pub mod flow;
pub mod forward;
pub mod header;
pub mod identity;
pub mod limits;
pub mod metrics;
pub mod reply;
mod shell;
pub mod tunnel;
pub mod udp;

pub use control::Kind;
pub use endpoint::{
    Accept, BindError, DialError, Drained, Endpoint, EndpointConfig, NoFlows, TransportChoice,
};
pub use flow::{Flow, FlowError, IncomingFlow};
pub use forward::{Ended, Forwarded, forward, forward_with};
pub use header::{FlowHeader, HeaderError, TraceParent};
pub use identity::{IdentityConfig, LocalIdentity, LocalIdentityError};
pub use limits::Limits;
pub use metrics::{Direction, Metrics, Transport};
pub use reply::Refusal;
pub use tunnel::{OpenError, Tunnel, TunnelEvent};
pub use udp::{UdpFlow, UdpReceiver, UdpSender};

#[cfg(test)]
mod tests;
