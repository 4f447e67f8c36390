//! Fallible conversions from the generated messages to the words of the clusterset, and plain ones back.
//!
//! Whatever came over a wire is checked here, once: names, addresses, ports, counts. An [`Invalid`] says which field is
//! wrong and why; the caller rejects that item and keeps the batch.

mod drill;
mod service;
mod snapshot;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Bytes;
use tombolo_clusterset::name::NameError;
use tombolo_clusterset::{ClusterId, Namespace, ServiceKey, ServiceName};

use crate::v1;

pub use drill::MAX_DRILL_RATE;
pub use snapshot::{LinkReport, SnapshotBatch};
pub(crate) use snapshot::{meta_of, trust_of};

/// Most ports of one Service: the API server accepts no more than fit its object; 100 is what load balancers allow.
pub const MAX_PORTS: usize = 100;
/// Most slices of one export: 1,000 endpoints each make 128,000, half of a whole clusterset's bound.
pub const MAX_SLICES: usize = 128;
/// Most endpoints of one slice (`discovery.k8s.io/v1`: at most 1,000).
pub const MAX_ENDPOINTS: usize = 1_000;
/// Most exported labels or annotations of one export: they are copied to every cluster.
pub const MAX_LABELS: usize = 64;
/// Longest free text (label value, annotation, zone, node), bytes.
pub const MAX_TEXT: usize = 4_096;
/// Most gateway addresses of one cluster.
pub const MAX_GATEWAYS: usize = 32;

/// A field that does not hold what it must.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field {field}: {reason}")]
pub struct Invalid {
    /// Path of the field in the message, outermost first.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Invalid {
    /// A complaint about `field`.
    #[must_use]
    pub fn new(field: &str, reason: impl Into<String>) -> Self {
        Self {
            field: field.to_owned(),
            reason: reason.into(),
        }
    }

    /// The same complaint, seen from the message that holds the field.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Self {
        self.field = format!("{outer}.{}", self.field);
        self
    }

    fn missing(field: &str) -> Self {
        Self::new(field, "is missing")
    }

    fn name(field: &str) -> impl FnOnce(NameError) -> Self {
        let field = field.to_owned();
        move |error| Self {
            field,
            reason: error.to_string(),
        }
    }
}

/// The message in an optional field, or a complaint that it is missing.
pub(crate) fn required<T>(field: &str, value: Option<T>) -> Result<T, Invalid> {
    value.ok_or_else(|| Invalid::missing(field))
}

pub(crate) fn bounded(field: &str, count: usize, most: usize) -> Result<(), Invalid> {
    if count > most {
        return Err(Invalid::new(
            field,
            format!("holds {count} items; at most {most} are allowed"),
        ));
    }
    Ok(())
}

pub(crate) fn text(field: &str, value: &str) -> Result<String, Invalid> {
    if value.len() > MAX_TEXT {
        return Err(Invalid::new(
            field,
            format!("is {} bytes long; at most {MAX_TEXT} are allowed", value.len()),
        ));
    }
    Ok(value.to_owned())
}

pub(crate) fn port(field: &str, value: u32) -> Result<u16, Invalid> {
    match u16::try_from(value) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(Invalid::new(field, format!("{value} is no port; use 1 to 65535"))),
    }
}

/// Parses a cluster id found in `field`.
///
/// # Errors
/// [`Invalid`] when it is no RFC 1123 label.
pub fn cluster_id(field: &str, value: &str) -> Result<ClusterId, Invalid> {
    ClusterId::parse(value).map_err(Invalid::name(field))
}

/// An address of 4 or 16 bytes, network order.
///
/// # Errors
/// [`Invalid`] for any other length.
pub fn address(field: &str, bytes: &[u8]) -> Result<IpAddr, Invalid> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::V4(Ipv4Addr::from(v4)));
    }
    if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
        return Ok(IpAddr::V6(Ipv6Addr::from(v6)));
    }
    Err(Invalid::new(
        field,
        format!("{} bytes are no address; give 4 (IPv4) or 16 (IPv6)", bytes.len()),
    ))
}

/// The bytes of an address, network order.
#[must_use]
pub fn address_bytes(address: IpAddr) -> Bytes {
    match address {
        IpAddr::V4(v4) => Bytes::copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => Bytes::copy_from_slice(&v6.octets()),
    }
}

impl TryFrom<&v1::ServiceKey> for ServiceKey {
    type Error = Invalid;
    fn try_from(key: &v1::ServiceKey) -> Result<Self, Invalid> {
        Ok(Self {
            namespace: Namespace::parse(&key.namespace).map_err(Invalid::name("namespace"))?,
            name: ServiceName::parse(&key.name).map_err(Invalid::name("name"))?,
        })
    }
}

impl From<&ServiceKey> for v1::ServiceKey {
    fn from(key: &ServiceKey) -> Self {
        Self {
            namespace: key.namespace.to_string(),
            name: key.name.to_string(),
        }
    }
}

/// A service key that must be there.
///
/// # Errors
/// [`Invalid`] when it is missing or wrong.
pub fn service_key(field: &str, key: Option<&v1::ServiceKey>) -> Result<ServiceKey, Invalid> {
    ServiceKey::try_from(required(field, key)?).map_err(|invalid| invalid.within(field))
}

/// Maps a closed enum both ways; the generated side's zero is "unspecified" and refused.
macro_rules! closed_enum {
    ($wire:ty, $word:ty, $field:literal, { $($from:ident <=> $to:ident),+ $(,)? }) => {
        impl TryFrom<$wire> for $word {
            type Error = Invalid;
            fn try_from(value: $wire) -> Result<Self, Invalid> {
                match value {
                    $(<$wire>::$from => Ok(<$word>::$to),)+
                    <$wire>::Unspecified => Err(Invalid::new($field, "is not set")),
                }
            }
        }

        impl From<$word> for $wire {
            fn from(value: $word) -> Self {
                match value {
                    $(<$word>::$to => <$wire>::$from,)+
                }
            }
        }
    };
}
pub(crate) use closed_enum;

/// The value of an enum field, known to this version or refused.
pub(crate) fn closed<W, T>(field: &str, raw: i32) -> Result<T, Invalid>
where
    W: TryFrom<i32>,
    T: TryFrom<W, Error = Invalid>,
{
    let wire =
        W::try_from(raw).map_err(|_| Invalid::new(field, format!("{raw} is not known to this version")))?;
    T::try_from(wire).map_err(|invalid| Invalid {
        field: field.to_owned(),
        reason: invalid.reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_4_or_16_bytes() {
        for len in 0..=20 {
            let bytes = vec![1; len];
            assert_eq!(
                address("address", &bytes).is_ok(),
                len == 4 || len == 16,
                "{len} bytes"
            );
        }
    }

    #[test]
    fn an_error_names_the_path() {
        let error = service_key(
            "export.key",
            Some(&v1::ServiceKey {
                namespace: "shop".into(),
                name: "A".into(),
            }),
        )
        .expect_err("upper case");
        assert!(
            error
                .to_string()
                .starts_with("field export.key.name: service name 'A' has 'A' at position 0"),
            "{error}"
        );
        assert_eq!(
            service_key("key", None).expect_err("absent").to_string(),
            "field key: is missing"
        );
    }
}
