//! Conditions of ServiceExport and ServiceImport, in the words of `multicluster.x-k8s.io/v1beta1`.

use tombolo_wire::v1;

/// What a condition speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionType {
    /// Whether the export can be offered at all.
    Valid,
    /// Whether it is offered, or the import can be used.
    Ready,
    /// Whether exports of the service disagree.
    Conflict,
}

/// What a condition says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// Nobody can tell.
    Unknown,
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// What it speaks of.
    pub kind: ConditionType,
    /// What it says.
    pub status: Status,
    /// One word, or several joined by commas.
    pub reason: String,
    /// A sentence for the operator.
    pub message: String,
}

impl Condition {
    /// A condition.
    #[must_use]
    pub fn new(kind: ConditionType, status: Status, reason: &str, message: impl Into<String>) -> Self {
        Self {
            kind,
            status,
            reason: reason.to_owned(),
            message: message.into(),
        }
    }
}

impl From<&Condition> for v1::Condition {
    fn from(condition: &Condition) -> Self {
        let kind = match condition.kind {
            ConditionType::Valid => "Valid",
            ConditionType::Ready => "Ready",
            ConditionType::Conflict => "Conflict",
        };
        let status = match condition.status {
            Status::True => "True",
            Status::False => "False",
            Status::Unknown => "Unknown",
        };
        Self {
            r#type: kind.to_owned(),
            status: status.to_owned(),
            reason: condition.reason.clone(),
            message: condition.message.clone(),
        }
    }
}
