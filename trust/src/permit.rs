//! Which peers a connection accepts: the second question, after "is this identity genuine".

use std::fmt;
use std::sync::Arc;

use tombolo_clusterset::ClusterId;

use crate::spiffe::{Role, SpiffeId, Subject};

/// A rule about a custom set of ids, see [`Permit::custom`].
type Rule = Arc<dyn Fn(&SpiffeId) -> bool + Send + Sync>;

/// Which SPIFFE ids are acceptable at the other end of a connection. The trust domain is checked before.
#[derive(Clone)]
pub enum Permit {
    /// Any broker.
    AnyBroker,
    /// This broker.
    Broker(u64),
    /// Any operator.
    AnyOperator,
    /// The gateway of any cluster.
    AnyGateway,
    /// The gateway of this cluster.
    Gateway(ClusterId),
    /// This role of any cluster.
    AnyRole(Role),
    /// This role of this cluster.
    Role(ClusterId, Role),
    /// Any leaf under this cluster: its roles and its workloads.
    InCluster(ClusterId),
    /// Any leaf under any cluster.
    AnyMember,
    /// Whatever one of these accepts.
    AnyOf(Vec<Permit>),
    /// Whatever a rule accepts; make it with [`Permit::custom`].
    Custom {
        /// What it accepts, for messages: "a member of …".
        what: Arc<str>,
        /// The rule.
        rule: Rule,
    },
}

impl Permit {
    /// Any member, or an operator: who may ask a broker for more than a join.
    #[must_use]
    pub fn member_or_operator() -> Self {
        Self::AnyOf(vec![Self::AnyMember, Self::AnyOperator])
    }

    /// Anyone with a genuine identity: members, operators and the other brokers.
    #[must_use]
    pub fn anyone_known() -> Self {
        Self::AnyOf(vec![Self::AnyMember, Self::AnyOperator, Self::AnyBroker])
    }

    /// A rule of the caller's own; `what` names it in messages.
    #[must_use]
    pub fn custom(what: &str, rule: impl Fn(&SpiffeId) -> bool + Send + Sync + 'static) -> Self {
        Self::Custom {
            what: Arc::from(what),
            rule: Arc::new(rule),
        }
    }

    /// Whether `id` is acceptable.
    #[must_use]
    pub fn accepts(&self, id: &SpiffeId) -> bool {
        let subject = id.subject();
        match self {
            Self::AnyBroker => matches!(subject, Subject::Broker(_)),
            Self::Broker(wanted) => matches!(subject, Subject::Broker(found) if found == wanted),
            Self::AnyOperator => matches!(subject, Subject::Operator(_)),
            Self::AnyGateway => matches!(
                subject,
                Subject::Role {
                    role: Role::Gateway,
                    ..
                }
            ),
            Self::Gateway(cluster) => id.is_role(cluster, Role::Gateway),
            Self::AnyRole(wanted) => matches!(subject, Subject::Role { role, .. } if role == wanted),
            Self::Role(cluster, role) => id.is_role(cluster, *role),
            Self::InCluster(cluster) => id.is_under_cluster(cluster),
            Self::AnyMember => id.cluster().is_some(),
            Self::AnyOf(permits) => permits.iter().any(|permit| permit.accepts(id)),
            Self::Custom { rule, .. } => rule(id),
        }
    }
}

impl fmt::Display for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AnyBroker => f.write_str("a broker"),
            Self::Broker(id) => write!(f, "broker {id}"),
            Self::AnyOperator => f.write_str("an operator"),
            Self::AnyGateway => f.write_str("a cluster's gateway"),
            Self::Gateway(cluster) => write!(f, "the gateway of cluster {cluster}"),
            Self::AnyRole(role) => write!(f, "a cluster's {role}"),
            Self::Role(cluster, role) => write!(f, "the {role} of cluster {cluster}"),
            Self::InCluster(cluster) => write!(f, "a member of cluster {cluster}"),
            Self::AnyMember => f.write_str("a member of a cluster"),
            Self::AnyOf(permits) => {
                for (at, permit) in permits.iter().enumerate() {
                    write!(f, "{}{permit}", if at == 0 { "" } else { " or " })?;
                }
                Ok(())
            }
            Self::Custom { what, .. } => f.write_str(what),
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Permit({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_permit_accepts_its_own_and_nothing_else() {
        let td = "demo-aaaa2222";
        let ids = [
            "/cluster/west/role/gateway",
            "/cluster/east/role/gateway",
            "/cluster/west/role/agent",
            "/cluster/west/ns/shop/sa/cart",
            "/broker/1",
            "/broker/2",
            "/operator/ana",
        ];
        let west = || ClusterId::parse("west").unwrap();
        // One character per id above: x where it is accepted.
        let table: [(Permit, &str); 13] = [
            (Permit::AnyBroker, "....xx."),
            (Permit::Broker(2), ".....x."),
            (Permit::AnyOperator, "......x"),
            (Permit::AnyGateway, "xx....."),
            (Permit::Gateway(west()), "x......"),
            (Permit::AnyRole(Role::Agent), "..x...."),
            (Permit::Role(west(), Role::Agent), "..x...."),
            (Permit::InCluster(west()), "x.xx..."),
            (Permit::AnyMember, "xxxx..."),
            (Permit::member_or_operator(), "xxxx..x"),
            (Permit::anyone_known(), "xxxxxxx"),
            (Permit::AnyOf(Vec::new()), "......."),
            (
                Permit::custom("all but brokers", |id| id.cluster().is_some()),
                "xxxx...",
            ),
        ];
        for (permit, expected) in table {
            let found: String = ids
                .iter()
                .map(|path| SpiffeId::parse(&format!("spiffe://{td}{path}")).unwrap())
                .map(|id| if permit.accepts(&id) { 'x' } else { '.' })
                .collect();
            assert_eq!(found, expected, "{permit}");
        }
    }
}
