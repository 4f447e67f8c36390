//! What gateway and sidecar share: authenticated tunnels that carry many flows, over QUIC or over TLS and HTTP/2.
//!
//! - Pure: [`header`] (who calls what), [`control`] (hello, pings, go-away), [`capsule`] (UDP payloads), [`limits`].
//! - Shells: [`identity`] (the certificate we speak with), [`endpoint`] (listens and dials), [`tunnel`], [`flow`],
//!   [`udp`], [`forward`], and under `shell` the two transports.
//!
//! # On the wire
//!
//! ```text
//!  QUIC (ALPN tombolo/1)                        HTTP/2 (ALPN h2)
//!  first bidirectional stream                   first CONNECT                  control stream: frames of `Control`
//!  each further one, opened by either side      each further CONNECT           one flow
//!  datagrams: flow id, payload                  capsules on the flow's stream  UDP payloads
//! ```
//! A flow is the same on both: the opener sends one frame, the [`FlowHeader`]; the other side answers one frame, *connected*
//! or *refused* ([`reply`]); then payload. An end of a direction is the stream's end, a reset the stream's reset. A QUIC server
//! opens streams itself; an HTTP/2 server uses those that its client has parked for it (`shell::h2`).
//!
//! # How it is used
//!
//! 1. [`LocalIdentity::start`] gets a certificate, or [`LocalIdentity::fixed`] takes one that somebody else keeps.
//! 2. [`Endpoint::bind`] listens and dials; what peers open comes to an [`Accept`].
//! 3. [`Endpoint::dial`] gives a [`Tunnel`]; [`Tunnel::open`] a [`Flow`]; [`forward()`] joins it with a local connection.
//! 4. [`Tunnel::events`] says how long pings take and when a tunnel ends; [`Tunnel::is_usable`] and
//!    [`Tunnel::is_outdated`] when to dial another one.
//! 5. [`Endpoint::drain`] ends in order.
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
