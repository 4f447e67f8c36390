//! Endpoints and the slices they travel in, as in `discovery.k8s.io/v1` EndpointSlice.

use std::net::IpAddr;

use crate::name::Label;

/// Transport of a port (`core/v1` Protocol).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP: an API value that merges like the others; no path of Tombolo carries it.
    Sctp,
}

impl Protocol {
    /// The word of the Kubernetes API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// Address family of a Service or slice (`core/v1` IPFamily).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The word of the Kubernetes API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// What an endpoint says of itself (EndpointSlice conditions).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Readiness {
    /// Takes new flows.
    Ready,
    /// Serving but terminating: only when nothing else is left.
    Terminating,
    /// Not serving.
    NotReady,
}

/// One backend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Where it listens, in the network of its own cluster.
    pub address: IpAddr,
    /// Whether it takes new flows.
    pub readiness: Readiness,
    /// Pod host name, where it has one (StatefulSet, or `hostname` in the slice).
    pub hostname: Option<Label>,
    /// Zone of the endpoint; empty when unknown.
    pub zone: String,
    /// Node of the endpoint; empty when unknown.
    pub node: String,
}

/// A port that every endpoint of a slice serves: the resolved targetPort.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlicePort {
    /// The Service port's name; empty for the unnamed port.
    pub name: String,
    /// Transport.
    pub protocol: Protocol,
    /// Port number at the endpoint.
    pub port: u16,
}

/// Endpoints of one export that serve the same ports. All addresses are of one family.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointSlice {
    /// Unique within the export; orders the slices.
    pub name: String,
    /// Family of every address.
    pub family: IpFamily,
    /// Ports served by every endpoint.
    pub ports: Vec<SlicePort>,
    /// At most 1,000 (the API's limit).
    pub endpoints: Vec<Endpoint>,
}

impl EndpointSlice {
    /// The endpoint port that carries the Service port named `name` over `protocol`.
    #[must_use]
    pub fn port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        self.ports
            .iter()
            .find(|port| port.name == name && port.protocol == protocol)
            .map(|port| port.port)
    }
}
