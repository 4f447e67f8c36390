//! Names that cannot be wrong: parsed once at the border, carried as types.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest RFC 1123 label, in bytes (RFC 1123 §2.1, RFC 1035 §2.3.4).
pub const LABEL_MAX: usize = 63;

/// Why a text is not the name it was meant to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("{what} is empty; give it 1 to {LABEL_MAX} characters of a-z, 0-9 and '-'")]
    Empty {
        /// What the text was meant to be.
        what: &'static str,
    },
    /// The text is longer than [`LABEL_MAX`] bytes.
    #[error("{what} '{text}…' is {len} bytes long; at most {LABEL_MAX} are allowed (RFC 1123)")]
    TooLong {
        /// What the text was meant to be.
        what: &'static str,
        /// The first bytes of the text.
        text: String,
        /// Its length, bytes.
        len: usize,
    },
    /// A character that no RFC 1123 label may hold, or hold there.
    #[error(
        "{what} '{text}' has {found:?} at position {at}; use a-z, 0-9 and '-', beginning and ending with a letter or digit"
    )]
    Character {
        /// What the text was meant to be.
        what: &'static str,
        /// The whole text.
        text: String,
        /// The offending character.
        found: char,
        /// Its byte offset.
        at: usize,
    },
    /// A `namespace/name` key without its slash.
    #[error("service '{text}' is not of the form NAMESPACE/NAME, for example shop/checkout")]
    NotAKey {
        /// The whole text.
        text: String,
    },
}

/// Checks that `text` is an RFC 1123 label: 1–63 of `[a-z0-9-]`, alphanumeric at both ends.
fn check_label(what: &'static str, text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty { what });
    }
    if text.len() > LABEL_MAX {
        let head = text.chars().take(20).collect();
        return Err(NameError::TooLong {
            what,
            text: head,
            len: text.len(),
        });
    }
    let last = text.len() - 1;
    for (at, found) in text.char_indices() {
        let alphanumeric = found.is_ascii_lowercase() || found.is_ascii_digit();
        let inner_dash = found == '-' && at != 0 && at != last;
        if !alphanumeric && !inner_dash {
            return Err(NameError::Character {
                what,
                text: text.to_owned(),
                found,
                at,
            });
        }
    }
    Ok(())
}

macro_rules! label_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses an RFC 1123 label.
            ///
            /// # Errors
            /// [`NameError`] says which character is wrong and what is allowed.
            pub fn parse(text: &str) -> Result<Self, NameError> {
                check_label($what, text)?;
                Ok(Self(Arc::from(text)))
            }

            /// The label as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

label_type!(
    /// A member of the clusterset (KEP-2149): an RFC 1123 label, unique in the set, immutable while a member.
    ClusterId,
    "cluster id"
);
label_type!(
    /// A Kubernetes namespace. KEP-1645's *namespace sameness*: the same name is the same place in every cluster.
    Namespace,
    "namespace"
);
label_type!(
    /// The name of a Service.
    ServiceName,
    "service name"
);
label_type!(
    /// Any other RFC 1123 label: an endpoint's host name, a port's name, a network's name.
    Label,
    "name"
);

/// A service across the clusterset: `namespace/name`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceKey {
    /// The namespace, the same in every cluster.
    pub namespace: Namespace,
    /// The Service's name.
    pub name: ServiceName,
}

impl ServiceKey {
    /// A key from its parsed parts.
    #[must_use]
    pub fn new(namespace: Namespace, name: ServiceName) -> Self {
        Self { namespace, name }
    }

    /// Parses `NAMESPACE/NAME`.
    ///
    /// # Errors
    /// [`NameError`] when the slash is missing or a part is no RFC 1123 label.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let (namespace, name) = text.split_once('/').ok_or_else(|| NameError::NotAKey {
            text: text.to_owned(),
        })?;
        Ok(Self {
            namespace: Namespace::parse(namespace)?,
            name: ServiceName::parse(name)?,
        })
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.namespace, self.name))
    }
}

impl fmt::Debug for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for ServiceKey {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for ServiceKey {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(&text)
    }
}

impl From<ServiceKey> for String {
    fn from(key: ServiceKey) -> String {
        key.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_follow_rfc_1123() {
        let long = "a".repeat(64);
        let table: &[(&str, bool)] = &[
            ("aks-westeurope", true),
            ("0", true),
            ("a", true),
            (&long[..63], true),
            ("", false),
            ("-a", false),
            ("a-", false),
            ("A", false),
            ("a.b", false),
            ("ä", false),
            (&long, false),
        ];
        for (text, valid) in table {
            assert_eq!(ClusterId::parse(text).is_ok(), *valid, "{text:?}");
        }
    }

    #[test]
    fn an_error_says_where_and_what_to_use() {
        let error = ClusterId::parse("aks_west").expect_err("underscore");
        assert_eq!(
            error.to_string(),
            "cluster id 'aks_west' has '_' at position 3; use a-z, 0-9 and '-', beginning and ending with a letter or digit"
        );
    }

    #[test]
    fn keys_round_trip() {
        let key = ServiceKey::parse("shop/checkout").expect("valid");
        assert_eq!(ServiceKey::parse(&key.to_string()), Ok(key));
        assert!(ServiceKey::parse("checkout").is_err());
        assert!(ServiceKey::parse("a/b/c").is_err());
    }
}
