//! The header of a flow: who calls what. One frame at the start of each stream, checked field by field.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use tombolo_clusterset::ServiceKey;
use tombolo_clusterset::endpoint::Protocol;
use tombolo_trust::{Role, SpiffeId, Subject};
use tombolo_wire::{convert, v1};

/// Longest encoded header, bytes: two labels, a SPIFFE id (in practice below 500), two addresses and a trace context stay
/// below 1 KiB; the rest is room for what later versions add. A frame that announces more is refused unread.
pub const HEADER_MAX: usize = 4 * 1024;

/// Length of a `traceparent` of version 00, bytes (W3C Trace Context §3.2.2).
const TRACEPARENT_LEN: usize = 55;

/// A W3C trace context, version 00: `00-<32 hex>-<16 hex>-<2 hex>`, lower case, neither id all zeros.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TraceParent(String);

impl TraceParent {
    /// Parses a `traceparent`; None when it is malformed, which W3C Trace Context §3.2.2.2 says to treat as absent.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != TRACEPARENT_LEN || !text.is_ascii() {
            return None;
        }
        let parts: Vec<&str> = text.split('-').collect();
        let [version, trace, parent, flags] = parts[..] else {
            return None;
        };
        let hex = |part: &str, len| {
            part.len() == len && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        let zero = |part: &str| part.bytes().all(|b| b == b'0');
        let valid = version == "00" && hex(trace, 32) && hex(parent, 16) && hex(flags, 2);
        (valid && !zero(trace) && !zero(parent)).then(|| Self(text.to_owned()))
    }

    /// The text of the HTTP header.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a flow is for. The same on both transports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowHeader {
    /// The service that is called.
    pub service: ServiceKey,
    /// Its service port; never 0.
    pub port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Headless: this endpoint of the exporting cluster and no other.
    pub endpoint: Option<IpAddr>,
    /// The client.
    pub source: SpiffeId,
    /// Its address, as its own cluster sees it.
    pub client: SocketAddr,
    /// Trace context, where the client sent one.
    pub traceparent: Option<TraceParent>,
}

/// Why a header makes no sense, or may not be sent by this peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// A field is missing or malformed.
    #[error("flow header: {field}: {reason}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The encoded header is longer than [`HEADER_MAX`].
    #[error("flow header of {len} bytes; at most {HEADER_MAX} are allowed")]
    TooLong {
        /// Its length, bytes.
        len: usize,
    },
    /// The source is not the peer's to speak for.
    #[error(
        "flow header: source {claimed} may not be claimed by {peer}; a gateway speaks for its own cluster, any other peer for itself"
    )]
    Forged {
        /// What the header claims.
        claimed: SpiffeId,
        /// Who sent it.
        peer: SpiffeId,
    },
}

impl FlowHeader {
    /// That `peer` may speak for the header's source: a gateway for everyone under its cluster, any other peer only for
    /// itself (DESIGN §5: the source cluster comes only from the peer's certificate).
    ///
    /// # Errors
    /// [`HeaderError::Forged`].
    pub fn check_source(&self, peer: &SpiffeId) -> Result<(), HeaderError> {
        let allowed = match peer.subject() {
            Subject::Role {
                cluster,
                role: Role::Gateway,
            } => self.source.trust_domain() == peer.trust_domain() && self.source.is_under_cluster(cluster),
            _ => self.source == *peer,
        };
        if allowed {
            Ok(())
        } else {
            Err(HeaderError::Forged {
                claimed: self.source.clone(),
                peer: peer.clone(),
            })
        }
    }

    /// The header as it travels.
    #[must_use]
    pub fn to_wire(&self) -> v1::FlowHeader {
        let protocol = v1::Protocol::from(self.protocol);
        v1::FlowHeader {
            service: Some(v1::ServiceKey::from(&self.service)),
            port: u32::from(self.port),
            protocol: protocol as i32,
            endpoint: self.endpoint.map(convert::address_bytes).unwrap_or_default(),
            source: self.source.to_string(),
            client: self.client.to_string(),
            traceparent: self
                .traceparent
                .as_ref()
                .map(|trace| trace.0.clone())
                .unwrap_or_default(),
        }
    }

    /// Checks what arrived, every field.
    ///
    /// # Errors
    /// [`HeaderError::Field`] names the first field that is wrong.
    pub fn from_wire(wire: &v1::FlowHeader) -> Result<Self, HeaderError> {
        let service = convert::service_key("service", wire.service.as_ref())
            .map_err(|error| field("service", error))?;
        let port = u16::try_from(wire.port).ok().filter(|port| *port != 0);
        let port = port.ok_or_else(|| field("port", format!("{} is not within 1 to 65535", wire.port)))?;
        let protocol = match wire.protocol() {
            v1::Protocol::Tcp => Protocol::Tcp,
            v1::Protocol::Udp => Protocol::Udp,
            other => {
                return Err(field(
                    "protocol",
                    format!("{} is not carried; use TCP or UDP", other.as_str_name()),
                ));
            }
        };
        let endpoint = match wire.endpoint.len() {
            0 => None,
            _ => {
                Some(convert::address("endpoint", &wire.endpoint).map_err(|error| field("endpoint", error))?)
            }
        };
        let source = SpiffeId::parse(&wire.source).map_err(|error| field("source", error))?;
        let client = wire
            .client
            .parse()
            .map_err(|_| field("client", "it is not IP:PORT"))?;
        let traceparent = match wire.traceparent.as_str() {
            "" => None,
            text => Some(
                TraceParent::parse(text).ok_or_else(|| field("traceparent", "it is no W3C trace context"))?,
            ),
        };
        Ok(Self {
            service,
            port,
            protocol,
            endpoint,
            source,
            client,
            traceparent,
        })
    }
}

fn field(field: &'static str, reason: impl fmt::Display) -> HeaderError {
    HeaderError::Field {
        field,
        reason: reason.to_string(),
    }
}

/// The authority that an HTTP/2 CONNECT names, for people who read a capture: `service.namespace:port`.
#[must_use]
pub fn authority(header: &FlowHeader) -> String {
    format!(
        "{}.{}:{}",
        header.service.name, header.service.namespace, header.port
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> FlowHeader {
        FlowHeader {
            service: ServiceKey::parse("shop/checkout").unwrap(),
            port: 8080,
            protocol: Protocol::Tcp,
            endpoint: Some("10.0.0.7".parse().unwrap()),
            source: SpiffeId::parse("spiffe://demo-abc/cluster/west/ns/shop/sa/cart").unwrap(),
            client: "127.0.0.1:40000".parse().unwrap(),
            traceparent: TraceParent::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        }
    }

    #[test]
    fn round_trips_on_the_wire() {
        let full = header();
        let bare = FlowHeader {
            endpoint: None,
            traceparent: None,
            protocol: Protocol::Udp,
            ..header()
        };
        let v6 = FlowHeader {
            endpoint: Some("fd00::7".parse().unwrap()),
            ..header()
        };
        for header in [full, bare, v6] {
            assert_eq!(FlowHeader::from_wire(&header.to_wire()), Ok(header));
        }
    }

    #[test]
    fn each_field_is_checked() {
        type Break = fn(&mut v1::FlowHeader);
        let table: [(&str, Break); 12] = [
            ("service", |h| h.service = None),
            ("service", |h| {
                h.service = Some(v1::ServiceKey {
                    namespace: "Shop".into(),
                    name: "a".into(),
                })
            }),
            ("port", |h| h.port = 0),
            ("port", |h| h.port = 65_536),
            ("protocol", |h| h.protocol = 0),
            ("protocol", |h| h.protocol = 77),
            ("protocol", |h| h.protocol = v1::Protocol::Sctp as i32),
            ("endpoint", |h| h.endpoint = vec![1, 2, 3].into()),
            ("source", |h| {
                h.source = "spiffe://demo-abc/cluster/West/role/gateway".into()
            }),
            ("client", |h| h.client = "localhost:80".into()),
            ("client", |h| h.client = String::new()),
            ("traceparent", |h| h.traceparent = "00-zz".into()),
        ];
        for (at, (expected, spoil)) in table.into_iter().enumerate() {
            let mut wire = header().to_wire();
            spoil(&mut wire);
            match FlowHeader::from_wire(&wire) {
                Err(HeaderError::Field { field, .. }) => assert_eq!(field, expected, "row {at}"),
                other => panic!("row {at}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_peer_speaks_for_its_own() {
        let source = "spiffe://demo-abc/cluster/west/ns/shop/sa/cart";
        let table = [
            ("spiffe://demo-abc/cluster/west/role/gateway", true),
            ("spiffe://demo-abc/cluster/west/ns/shop/sa/cart", true),
            ("spiffe://demo-abc/cluster/west/ns/shop/sa/other", false),
            ("spiffe://demo-abc/cluster/west/role/sidecar", false),
            ("spiffe://demo-abc/cluster/east/role/gateway", false),
            ("spiffe://other-abc/cluster/west/role/gateway", false),
            ("spiffe://demo-abc/broker/1", false),
        ];
        for (peer, allowed) in table {
            let header = FlowHeader {
                source: SpiffeId::parse(source).unwrap(),
                ..header()
            };
            assert_eq!(
                header.check_source(&SpiffeId::parse(peer).unwrap()).is_ok(),
                allowed,
                "{peer}"
            );
        }
    }

    #[test]
    fn trace_contexts_follow_w3c() {
        let table = [
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", true),
            ("00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false),
            ("00-00000000000000000000000000000000-b7ad6b7169203331-01", false),
            ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", false),
            ("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1", false),
            ("", false),
        ];
        for (text, valid) in table {
            assert_eq!(TraceParent::parse(text).is_some(), valid, "{text:?}");
        }
    }
}
