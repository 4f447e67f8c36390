//! The conditions of `ServiceExport` and `ServiceImport`, as `multicluster.x-k8s.io/v1beta1` words them
//! (`mcs-api` `pkg/apis/v1beta1/{serviceexport,serviceimport}.go`).

use crate::endpoint::IpFamily;
use crate::merge::Conflict;

/// Type of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionType {
    /// The export names a service that can be exported.
    Valid,
    /// The export is published, or the import can be used.
    Ready,
    /// The exports of the service disagree.
    Conflict,
}

impl ConditionType {
    /// The word of the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "Valid",
            Self::Ready => "Ready",
            Self::Conflict => "Conflict",
        }
    }
}

/// Status of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Nobody can tell.
    Unknown,
}

impl ConditionStatus {
    /// The word of the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// A condition without its times: the shell keeps `lastTransitionTime` while the status stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Which.
    pub condition_type: ConditionType,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Reason word; several joined by commas.
    pub reason: String,
    /// For the operator.
    pub message: String,
}

/// What stands behind a `ServiceExport`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exported {
    /// A Service that can be exported.
    Service,
    /// No Service of that name.
    NoService,
    /// A Service whose type cannot be exported, `ExternalName` for example.
    InvalidType(String),
}

/// How far an export has come on its way to the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Publication {
    /// The broker has it.
    Published,
    /// On its way; nothing was refused.
    Pending,
    /// The broker cannot be reached, so nobody can tell.
    Unreachable,
    /// Refused, with the reason (a reserved namespace, a bound).
    Refused(String),
}

/// `Valid`, `Ready` and `Conflict` of a `ServiceExport`. `conflicts` is [`crate::merge::Merged::conflicts`], which every
/// exporter shows.
#[must_use]
pub fn of_export(
    exported: &Exported,
    publication: &Publication,
    conflicts: &[(Conflict, String)],
) -> [Condition; 3] {
    use ConditionStatus::{False, True, Unknown};
    let valid = match exported {
        Exported::Service => condition(ConditionType::Valid, True, "Valid", "the Service can be exported"),
        Exported::NoService => condition(
            ConditionType::Valid,
            False,
            "NoService",
            "no Service of this name in this namespace; create it or delete the ServiceExport",
        ),
        Exported::InvalidType(kind) => condition(
            ConditionType::Valid,
            False,
            "InvalidServiceType",
            &format!(
                "a Service of type {kind} cannot be exported; use ClusterIP, NodePort, LoadBalancer or headless"
            ),
        ),
    };
    let ready = match (exported, publication) {
        (Exported::NoService | Exported::InvalidType(_), _) => condition(
            ConditionType::Ready,
            False,
            "Failed",
            "not exported; see the Valid condition",
        ),
        (Exported::Service, Publication::Published) => condition(
            ConditionType::Ready,
            True,
            "Exported",
            "published to the clusterset",
        ),
        (Exported::Service, Publication::Pending) => condition(
            ConditionType::Ready,
            False,
            "Pending",
            "waiting for the broker to accept it",
        ),
        (Exported::Service, Publication::Unreachable) => condition(
            ConditionType::Ready,
            Unknown,
            "Pending",
            "no broker can be reached; published as soon as one can, see `tombolo status`",
        ),
        (Exported::Service, Publication::Refused(why)) => {
            condition(ConditionType::Ready, False, "Failed", why)
        }
    };
    [valid, ready, conflict(conflicts)]
}

/// The `Conflict` condition.
#[must_use]
pub fn conflict(conflicts: &[(Conflict, String)]) -> Condition {
    if conflicts.is_empty() {
        let agree = "all exports of this service agree";
        return condition(
            ConditionType::Conflict,
            ConditionStatus::False,
            "NoConflicts",
            agree,
        );
    }
    let messages: Vec<&str> = conflicts.iter().map(|(_, message)| message.as_str()).collect();
    condition(
        ConditionType::Conflict,
        ConditionStatus::True,
        &reasons(conflicts),
        &messages.join(". "),
    )
}

/// The reason words of `conflicts`, each once, in the order of the API, joined by commas.
#[must_use]
pub fn reasons(conflicts: &[(Conflict, String)]) -> String {
    let kinds: std::collections::BTreeSet<Conflict> = conflicts.iter().map(|(kind, _)| *kind).collect();
    kinds
        .into_iter()
        .map(Conflict::reason)
        .collect::<Vec<_>>()
        .join(",")
}

/// How far an import has come in one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Importing {
    /// Its addresses are routed.
    Usable,
    /// Being made; with what it waits for (an address range that is exhausted, a quota).
    Pending(String),
    /// This cluster has none of the service's families.
    FamilyNotSupported {
        /// Families of the service.
        service: Vec<IpFamily>,
    },
    /// Nobody can tell.
    Unknown(String),
}

/// `Ready` of a `ServiceImport`.
#[must_use]
pub fn of_import(importing: &Importing) -> Condition {
    use ConditionStatus::{False, True, Unknown};
    match importing {
        Importing::Usable => condition(ConditionType::Ready, True, "Ready", "can be used in this cluster"),
        Importing::Pending(why) => condition(ConditionType::Ready, False, "Pending", why),
        Importing::FamilyNotSupported { service } => {
            let families: Vec<&str> = service.iter().map(|family| family.as_str()).collect();
            let message = format!(
                "the service has {} and this cluster none of it; export it with a family that both have",
                families.join(" and ")
            );
            condition(ConditionType::Ready, False, "IPFamilyNotSupported", &message)
        }
        Importing::Unknown(why) => condition(ConditionType::Ready, Unknown, "Pending", why),
    }
}

fn condition(
    condition_type: ConditionType,
    status: ConditionStatus,
    reason: &str,
    message: &str,
) -> Condition {
    Condition {
        condition_type,
        status,
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(exported: Exported, publication: Publication, conflicts: &[Conflict], expected: [&str; 3]) {
        let conflicts: Vec<_> = conflicts.iter().map(|kind| (*kind, "why".to_owned())).collect();
        let told = of_export(&exported, &publication, &conflicts)
            .map(|c| format!("{}={} {}", c.condition_type.as_str(), c.status.as_str(), c.reason));
        assert_eq!(told, expected);
    }

    #[test]
    fn exports_show_the_words_of_v1beta1() {
        use Publication::{Pending, Published, Refused, Unreachable};
        let fine = "Conflict=False NoConflicts";
        check(
            Exported::Service,
            Published,
            &[],
            ["Valid=True Valid", "Ready=True Exported", fine],
        );
        check(
            Exported::Service,
            Pending,
            &[],
            ["Valid=True Valid", "Ready=False Pending", fine],
        );
        check(
            Exported::Service,
            Unreachable,
            &[],
            ["Valid=True Valid", "Ready=Unknown Pending", fine],
        );
        check(
            Exported::Service,
            Refused("reserved".into()),
            &[],
            ["Valid=True Valid", "Ready=False Failed", fine],
        );
        check(
            Exported::NoService,
            Pending,
            &[],
            ["Valid=False NoService", "Ready=False Failed", fine],
        );
        check(
            Exported::InvalidType("ExternalName".into()),
            Published,
            &[],
            ["Valid=False InvalidServiceType", "Ready=False Failed", fine],
        );
        check(
            Exported::Service,
            Published,
            &[Conflict::IpFamily, Conflict::Port, Conflict::Type, Conflict::Port],
            [
                "Valid=True Valid",
                "Ready=True Exported",
                "Conflict=True PortConflict,TypeConflict,IPFamilyConflict",
            ],
        );
    }

    #[test]
    fn imports_show_the_words_of_v1beta1() {
        let check = |importing: Importing, expected: (ConditionStatus, &str)| {
            let told = of_import(&importing);
            assert_eq!((told.status, told.reason.as_str()), expected);
        };
        check(Importing::Usable, (ConditionStatus::True, "Ready"));
        check(
            Importing::Pending("range exhausted".into()),
            (ConditionStatus::False, "Pending"),
        );
        let family = Importing::FamilyNotSupported {
            service: vec![IpFamily::V6],
        };
        check(family, (ConditionStatus::False, "IPFamilyNotSupported"));
        check(
            Importing::Unknown("no broker".into()),
            (ConditionStatus::Unknown, "Pending"),
        );
    }
}
