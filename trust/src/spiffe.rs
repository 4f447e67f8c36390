//! SPIFFE ids: the only names that certificates carry and that decisions look at.
//!
//! ```text
//! spiffe://<trust domain>/cluster/<id>                          a cluster's intermediate
//! spiffe://<trust domain>/cluster/<id>/role/<agent|gateway|dns|sidecar>
//! spiffe://<trust domain>/cluster/<id>/ns/<namespace>/sa/<service account>
//! spiffe://<trust domain>/broker/<n>
//! spiffe://<trust domain>/operator/<name>
//! ```
//! Parsing is strict: one text per id, so that comparing ids is comparing texts.

use std::fmt;
use std::sync::Arc;

use tombolo_clusterset::{ClusterId, NameError, Namespace};

mod names;

use names::excerpt;
pub use names::{
    OPERATOR_NAME_MAX, OperatorName, SERVICE_ACCOUNT_MAX, ServiceAccount, TRUST_DOMAIN_MAX, TrustDomain,
};

/// Longest SPIFFE id, bytes (SPIFFE-ID §2.3: implementations must support 2048, and must not generate longer).
pub const SPIFFE_ID_MAX: usize = 2048;

const SCHEME: &str = "spiffe://";

/// Why a text is not a SPIFFE id of a clusterset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// The text is longer than [`SPIFFE_ID_MAX`].
    #[error("SPIFFE id is {len} bytes long; at most {SPIFFE_ID_MAX} are allowed")]
    TooLong {
        /// Its length, bytes.
        len: usize,
    },
    /// The text does not begin with `spiffe://`.
    #[error("{text:?} is not a SPIFFE id; it must begin with '{SCHEME}' in lower case")]
    Scheme {
        /// The whole text.
        text: String,
    },
    /// A character that no SPIFFE id may hold: percent-encoding, a query, a fragment, a space, …
    #[error(
        "SPIFFE id {text:?} has {found:?} at position {at}; use letters, digits, '-', '.', '_' and '/' only"
    )]
    Character {
        /// The whole text.
        text: String,
        /// The offending character.
        found: char,
        /// Its byte offset.
        at: usize,
    },
    /// The path has an empty segment or ends with a slash.
    #[error("SPIFFE id {text:?} has an empty path segment; remove the doubled or trailing '/'")]
    EmptySegment {
        /// The whole text.
        text: String,
    },
    /// The trust domain is no RFC 1123 label.
    #[error(
        "trust domain {text:?} is not valid: {reason}; copy it from `tombolo status`, it reads <clusterset>-<hash>"
    )]
    TrustDomain {
        /// The trust domain as found.
        text: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The path is none of the known shapes.
    #[error(
        "SPIFFE id {text:?} names nothing known; expected /cluster/ID, /cluster/ID/role/ROLE, /cluster/ID/ns/NS/sa/SA, /broker/N or /operator/NAME"
    )]
    Shape {
        /// The whole text.
        text: String,
    },
    /// The role is unknown.
    #[error("{text:?} is not a role; use agent, gateway, dns or sidecar")]
    Role {
        /// The role as found.
        text: String,
    },
    /// The broker id is no canonical decimal number.
    #[error("{text:?} is not a broker id; use a decimal number without sign or leading zeros")]
    Broker {
        /// The id as found.
        text: String,
    },
    /// A service account or operator name is malformed.
    #[error("{what} {text:?} is not valid: {reason}")]
    Name {
        /// What the text was meant to be.
        what: &'static str,
        /// The name as found.
        text: String,
        /// What is wrong and what is allowed.
        reason: &'static str,
    },
    /// The cluster id or the namespace is no RFC 1123 label.
    #[error("in a SPIFFE id: {0}")]
    Label(#[from] NameError),
}

/// A long-running role that a cluster's intermediate signs a leaf for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The discovery process.
    Agent,
    /// The east-west gateway.
    Gateway,
    /// The DNS server.
    Dns,
    /// The sidecar, when its pod has no service account to be named by.
    Sidecar,
}

impl Role {
    /// Every role, in the order of their names.
    pub const ALL: [Self; 4] = [Self::Agent, Self::Gateway, Self::Dns, Self::Sidecar];

    /// The role as it stands in a SPIFFE id.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Gateway => "gateway",
            Self::Dns => "dns",
            Self::Sidecar => "sidecar",
        }
    }

    /// Parses a role's name.
    ///
    /// # Errors
    /// [`SpiffeError::Role`] when it is none of [`Role::ALL`].
    pub fn parse(text: &str) -> Result<Self, SpiffeError> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| SpiffeError::Role { text: excerpt(text) })
    }
}

/// Who a SPIFFE id names, within its trust domain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// A cluster as such: only its intermediate carries this, no leaf does.
    Cluster(ClusterId),
    /// One of a cluster's own processes.
    Role {
        /// The cluster.
        cluster: ClusterId,
        /// The process's role.
        role: Role,
    },
    /// A workload of a cluster.
    Workload {
        /// The cluster.
        cluster: ClusterId,
        /// The workload's namespace.
        namespace: Namespace,
        /// The workload's service account.
        service_account: ServiceAccount,
    },
    /// A broker, by its id.
    Broker(u64),
    /// An operator, by name.
    Operator(OperatorName),
}

/// A SPIFFE id of a clusterset; a clone is one pointer.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId(Arc<Named>);

#[derive(PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Named {
    trust_domain: TrustDomain,
    subject: Subject,
}

impl SpiffeId {
    /// The id of `subject` in `trust_domain`.
    #[must_use]
    pub fn new(trust_domain: TrustDomain, subject: Subject) -> Self {
        Self(Arc::new(Named {
            trust_domain,
            subject,
        }))
    }

    /// The id that a cluster's intermediate carries.
    #[must_use]
    pub fn cluster_intermediate(trust_domain: TrustDomain, cluster: ClusterId) -> Self {
        Self::new(trust_domain, Subject::Cluster(cluster))
    }

    /// The id of one of a cluster's own processes.
    #[must_use]
    pub fn role(trust_domain: TrustDomain, cluster: ClusterId, role: Role) -> Self {
        Self::new(trust_domain, Subject::Role { cluster, role })
    }

    /// The id of a workload.
    #[must_use]
    pub fn workload(
        trust_domain: TrustDomain,
        cluster: ClusterId,
        namespace: Namespace,
        service_account: ServiceAccount,
    ) -> Self {
        Self::new(
            trust_domain,
            Subject::Workload {
                cluster,
                namespace,
                service_account,
            },
        )
    }

    /// The id of a broker.
    #[must_use]
    pub fn broker(trust_domain: TrustDomain, id: u64) -> Self {
        Self::new(trust_domain, Subject::Broker(id))
    }

    /// The id of an operator.
    #[must_use]
    pub fn operator(trust_domain: TrustDomain, name: OperatorName) -> Self {
        Self::new(trust_domain, Subject::Operator(name))
    }

    /// Parses an id, strictly: `parse(id.to_string()) == id`, and no other text gives the same id.
    ///
    /// # Errors
    /// [`SpiffeError`] names what is wrong and where.
    pub fn parse(text: &str) -> Result<Self, SpiffeError> {
        if text.len() > SPIFFE_ID_MAX {
            return Err(SpiffeError::TooLong { len: text.len() });
        }
        let Some(rest) = text.strip_prefix(SCHEME) else {
            return Err(SpiffeError::Scheme { text: excerpt(text) });
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-._/".contains(c);
        if let Some((at, found)) = rest.char_indices().find(|(_, c)| !allowed(*c)) {
            return Err(SpiffeError::Character {
                text: excerpt(text),
                found,
                at: SCHEME.len() + at,
            });
        }
        let mut parts = rest.split('/');
        let trust_domain = TrustDomain::parse(parts.next().unwrap_or_default())?;
        let path: Vec<&str> = parts.collect();
        if path.iter().any(|segment| segment.is_empty()) {
            return Err(SpiffeError::EmptySegment { text: excerpt(text) });
        }
        let subject = match path[..] {
            ["cluster", id] => Subject::Cluster(ClusterId::parse(id)?),
            ["cluster", id, "role", role] => Subject::Role {
                cluster: ClusterId::parse(id)?,
                role: Role::parse(role)?,
            },
            ["cluster", id, "ns", namespace, "sa", account] => Subject::Workload {
                cluster: ClusterId::parse(id)?,
                namespace: Namespace::parse(namespace)?,
                service_account: ServiceAccount::parse(account)?,
            },
            ["broker", id] => Subject::Broker(parse_broker(id)?),
            ["operator", name] => Subject::Operator(OperatorName::parse(name)?),
            _ => return Err(SpiffeError::Shape { text: excerpt(text) }),
        };
        Ok(Self::new(trust_domain, subject))
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.0.trust_domain
    }

    /// Who the id names.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        &self.0.subject
    }

    /// The cluster that the id lies under; none for brokers and operators.
    #[must_use]
    pub fn cluster(&self) -> Option<&ClusterId> {
        match &self.0.subject {
            Subject::Cluster(cluster) | Subject::Role { cluster, .. } | Subject::Workload { cluster, .. } => {
                Some(cluster)
            }
            Subject::Broker(_) | Subject::Operator(_) => None,
        }
    }

    /// Whether the id lies under `cluster`.
    #[must_use]
    pub fn is_under_cluster(&self, cluster: &ClusterId) -> bool {
        self.cluster() == Some(cluster)
    }

    /// Whether the id is this role of this cluster.
    #[must_use]
    pub fn is_role(&self, wanted_cluster: &ClusterId, wanted: Role) -> bool {
        matches!(&self.0.subject, Subject::Role { cluster, role } if cluster == wanted_cluster && *role == wanted)
    }
}

/// A broker id: decimal, without sign or leading zeros.
fn parse_broker(text: &str) -> Result<u64, SpiffeError> {
    let refuse = || SpiffeError::Broker { text: excerpt(text) };
    let id: u64 = text.parse().map_err(|_| refuse())?;
    if id.to_string() == text {
        Ok(id)
    } else {
        Err(refuse())
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster(cluster) => write!(f, "/cluster/{cluster}"),
            Self::Role { cluster, role } => write!(f, "/cluster/{cluster}/role/{role}"),
            Self::Workload {
                cluster,
                namespace,
                service_account,
            } => {
                write!(f, "/cluster/{cluster}/ns/{namespace}/sa/{service_account}")
            }
            Self::Broker(id) => write!(f, "/broker/{id}"),
            Self::Operator(name) => write!(f, "/operator/{name}"),
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}{}", self.0.trust_domain, self.0.subject)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests;
