//! Values that are checked where they stand, so that the error carries their line.

use std::net::IpAddr;

use serde::Deserialize;
use tombolo_clusterset::endpoint::{IpFamily, Protocol};
use tombolo_clusterset::{Label, Namespace, ServiceKey, ServiceName};

use super::documents::Document;

/// Longest text taken over from a manifest (zone, node, appProtocol), bytes: the API's own limit of an object name.
const TEXT_MAX: usize = 253;

/// `metadata`, as far as it is read.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Meta<N> {
    pub(super) name: N,
    #[serde(default = "default_namespace")]
    pub(super) namespace: Namespace,
    #[serde(default)]
    pub(super) uid: Option<String>,
    #[serde(default)]
    pub(super) creation_timestamp: Option<Timestamp>,
    #[serde(default)]
    pub(super) labels: Option<std::collections::BTreeMap<String, String>>,
    #[serde(default)]
    pub(super) annotations: Option<std::collections::BTreeMap<String, String>>,
}

impl Meta<ServiceName> {
    pub(super) fn key(&self) -> ServiceKey {
        ServiceKey::new(self.namespace.clone(), self.name.clone())
    }
}

fn default_namespace() -> Namespace {
    match Namespace::parse("default") {
        Ok(namespace) => namespace,
        Err(_) => unreachable!("'default' is an RFC 1123 label"),
    }
}

/// An object name that need not be a label (RFC 1123 subdomain).
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct ObjectName(pub(super) String);

impl TryFrom<String> for ObjectName {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let valid = |label: &str| Label::parse(label).is_ok();
        if text.len() <= TEXT_MAX && text.split('.').all(valid) {
            Ok(Self(text))
        } else {
            Err(format!(
                "name '{text}' is no RFC 1123 subdomain: labels of a-z, 0-9 and '-', joined by '.'"
            ))
        }
    }
}

/// RFC 3339, as milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Timestamp(pub(super) u64);

impl TryFrom<String> for Timestamp {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let time: jiff::Timestamp = text.parse().map_err(|error| {
            format!("creationTimestamp '{text}' is no RFC 3339 time ({error}); write 2026-01-31T12:00:00Z")
        })?;
        u64::try_from(time.as_millisecond())
            .map(Self)
            .map_err(|_| format!("creationTimestamp '{text}' lies before 1970"))
    }
}

/// A port number, 1 to 65535.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "i64")]
pub(super) struct PortNumber(pub(super) u16);

impl TryFrom<i64> for PortNumber {
    type Error = String;
    fn try_from(number: i64) -> Result<Self, String> {
        match u16::try_from(number) {
            Ok(port) if port != 0 => Ok(Self(port)),
            _ => Err(format!("port {number} is out of range; use 1 to 65535")),
        }
    }
}

/// A port's name; empty is the unnamed port.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct PortName(pub(super) String);

impl TryFrom<String> for PortName {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if !text.is_empty() {
            Label::parse(&text).map_err(|error| format!("port {error}"))?;
        }
        Ok(Self(text))
    }
}

/// `TCP`, `UDP` or `SCTP`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Transport(pub(super) Protocol);

impl Default for Transport {
    fn default() -> Self {
        Self(Protocol::Tcp)
    }
}

impl TryFrom<String> for Transport {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "TCP" => Ok(Self(Protocol::Tcp)),
            "UDP" => Ok(Self(Protocol::Udp)),
            "SCTP" => Ok(Self(Protocol::Sctp)),
            _ => Err(format!("protocol '{text}' is not known; use TCP, UDP or SCTP")),
        }
    }
}

/// `IPv4` or `IPv6`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Family(pub(super) IpFamily);

impl TryFrom<String> for Family {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "IPv4" => Ok(Self(IpFamily::V4)),
            "IPv6" => Ok(Self(IpFamily::V6)),
            _ => Err(format!("address family '{text}' is not known; use IPv4 or IPv6")),
        }
    }
}

/// An address that a backend can have.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct BackendAddress(pub(super) IpAddr);

impl TryFrom<String> for BackendAddress {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let address: IpAddr = text.parse().map_err(|_| format!("'{text}' is no IP address"))?;
        if address.is_unspecified() || address.is_multicast() || address == std::net::Ipv4Addr::BROADCAST {
            return Err(format!(
                "{address} cannot be the address of a backend (unspecified, multicast or broadcast)"
            ));
        }
        Ok(Self(address))
    }
}

/// A text of bounded length without control characters.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct ShortText(pub(super) String);

impl TryFrom<String> for ShortText {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if text.len() > TEXT_MAX || text.chars().any(char::is_control) {
            return Err(format!(
                "a text here has at most {TEXT_MAX} bytes and no control characters"
            ));
        }
        Ok(Self(text))
    }
}

/// Puts the first line of the document to an error that concerns more than one field.
pub(super) fn at<T>(document: &Document<'_>, result: Result<T, String>) -> Result<T, (u32, String)> {
    result.map_err(|reason| (document.first_line(), reason))
}
