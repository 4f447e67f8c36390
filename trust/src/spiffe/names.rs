//! The names inside a SPIFFE id that no other part of the clusterset has.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{Role, SpiffeError, SpiffeId};
use crate::fingerprint::Fingerprint;

/// Longest trust domain here, bytes: one DNS label (RFC 1035 §2.3.4); SPIFFE itself allows 255.
pub const TRUST_DOMAIN_MAX: usize = 63;

/// Longest service account name, bytes: an RFC 1123 subdomain, as Kubernetes demands.
pub const SERVICE_ACCOUNT_MAX: usize = 253;

/// Longest operator name, bytes: room for a person's login or a pipeline's name, and it fits every table column.
pub const OPERATOR_NAME_MAX: usize = 64;

/// Bytes of the root key's hash in a trust domain, eight characters of base32: 40 bits, enough that two clustersets of one name never meet by accident.
const HASH_BYTES: usize = 5;

/// The trust domain of a clusterset: `<clusterset>-<hash of the first root's key>`; fixed at the start, untouched by
/// root rotation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The trust domain of a clusterset that begins with the root key `root`.
    ///
    /// # Errors
    /// When `clusterset` is no RFC 1123 label, or too long to take the hash (54 bytes at most).
    pub fn derive(clusterset: &str, root: &Fingerprint) -> Result<Self, SpiffeError> {
        let hash = data_encoding::BASE32_NOPAD
            .encode(&root.as_bytes()[..HASH_BYTES])
            .to_ascii_lowercase();
        Self::parse(&format!("{clusterset}-{hash}"))
    }

    /// Parses a trust domain: an RFC 1123 label.
    ///
    /// # Errors
    /// [`SpiffeError::TrustDomain`] with the reason.
    pub fn parse(text: &str) -> Result<Self, SpiffeError> {
        let refuse = |reason| {
            Err(SpiffeError::TrustDomain {
                text: excerpt(text),
                reason,
            })
        };
        if text.is_empty() {
            return refuse("it is empty");
        }
        if text.len() > TRUST_DOMAIN_MAX {
            return refuse("it is longer than 63 bytes");
        }
        if !text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        {
            return refuse("only a-z, 0-9 and '-' are allowed");
        }
        if text.starts_with('-') || text.ends_with('-') {
            return refuse("it must begin and end with a letter or digit");
        }
        Ok(Self(Arc::from(text)))
    }

    /// The trust domain as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A Kubernetes service account's name: an RFC 1123 subdomain.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceAccount(Arc<str>);

impl ServiceAccount {
    /// Parses an RFC 1123 subdomain: labels of `[a-z0-9-]` joined by dots, at most 253 bytes.
    ///
    /// # Errors
    /// [`SpiffeError::Name`] with the reason.
    pub fn parse(text: &str) -> Result<Self, SpiffeError> {
        let refuse = |reason| {
            Err(SpiffeError::Name {
                what: "service account",
                text: excerpt(text),
                reason,
            })
        };
        if text.len() > SERVICE_ACCOUNT_MAX {
            return refuse("it is longer than 253 bytes");
        }
        let is_label = |label: &str| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if !text.split('.').all(is_label) {
            return refuse(
                "use a-z, 0-9, '-' and '.', each part beginning and ending with a letter or digit",
            );
        }
        Ok(Self(Arc::from(text)))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An operator's name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperatorName(Arc<str>);

impl OperatorName {
    /// Parses 1–64 of `[A-Za-z0-9._-]`, beginning with a letter or digit.
    ///
    /// # Errors
    /// [`SpiffeError::Name`] with the reason.
    pub fn parse(text: &str) -> Result<Self, SpiffeError> {
        let refuse = |reason| {
            Err(SpiffeError::Name {
                what: "operator",
                text: excerpt(text),
                reason,
            })
        };
        if text.len() > OPERATOR_NAME_MAX {
            return refuse("it is longer than 64 bytes");
        }
        if !text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()) {
            return refuse("it must begin with a letter or digit");
        }
        if !text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        {
            return refuse("use letters, digits, '-', '.' and '_' only");
        }
        Ok(Self(Arc::from(text)))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The head of a text that may be hostile and long, for an error message.
pub(super) fn excerpt(text: &str) -> String {
    const SHOWN: usize = 120;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

macro_rules! text_traits {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}
text_traits!(TrustDomain, ServiceAccount, OperatorName);

macro_rules! from_str {
    ($($name:ident),*) => {$(
        impl FromStr for $name {
            type Err = SpiffeError;
            fn from_str(text: &str) -> Result<Self, SpiffeError> {
                Self::parse(text)
            }
        }
    )*};
}
from_str!(TrustDomain, ServiceAccount, OperatorName, Role, SpiffeId);
