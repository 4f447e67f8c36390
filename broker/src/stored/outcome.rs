//! Outcomes: what a proposal led to, as it travels from the leader to the broker where the proposal entered.

use bytes::Bytes;
use prost::Message as _;
use tombolo_clusterset::DrillId;

use super::messages::{self as stored, OutcomeBody};
use super::{Corrupt, required};
use crate::command::Reply;
use crate::state::{Class, Verdict};

/// What a command led to: its reply, or its refusal as the caller will read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done(Reply),
    /// It changed nothing.
    Refused {
        /// What the caller can do.
        class: Class,
        /// What, where, and what to do.
        message: String,
    },
}

/// Numbers of the classes on the wire.
const CLASSES: [(u32, Class); 7] = [
    (1, Class::Invalid),
    (2, Class::Unauthenticated),
    (3, Class::Denied),
    (4, Class::NotFound),
    (5, Class::Exists),
    (6, Class::Precondition),
    (7, Class::Exhausted),
];

impl From<Verdict> for Outcome {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Ok(reply) => Self::Done(reply),
            Err(refusal) => Self::Refused {
                class: refusal.class(),
                message: refusal.to_string(),
            },
        }
    }
}

impl Outcome {
    /// The bytes of the outcomes of one proposal.
    #[must_use]
    pub fn encode_all(outcomes: &[Self]) -> Bytes {
        let outcomes = outcomes.iter().map(Self::store).collect();
        stored::Outcomes { outcomes }.encode_to_vec().into()
    }

    /// The outcomes of one proposal from their bytes.
    ///
    /// # Errors
    /// [`Corrupt`] when they are damaged or of a newer build.
    pub fn decode_all(bytes: Bytes) -> Result<Vec<Self>, Corrupt> {
        stored::Outcomes::decode(bytes)?
            .outcomes
            .into_iter()
            .map(Self::load)
            .collect()
    }

    fn store(&self) -> stored::Outcome {
        let body = match self {
            Self::Done(Reply::Done) => OutcomeBody::Done(stored::Tick {}),
            Self::Done(Reply::Granted { epoch }) => OutcomeBody::Granted(*epoch),
            Self::Done(Reply::Issued { certificate }) => OutcomeBody::Issued(certificate.clone()),
            Self::Done(Reply::Removed { exports }) => OutcomeBody::Removed(*exports),
            Self::Done(Reply::DrillStarted { id }) => OutcomeBody::DrillStarted(id.0),
            Self::Refused { class, message } => {
                let number = CLASSES
                    .iter()
                    .find(|(_, known)| known == class)
                    .map_or(0, |(number, _)| *number);
                OutcomeBody::Refused(stored::Refused {
                    class: number,
                    message: message.clone(),
                })
            }
        };
        stored::Outcome { body: Some(body) }
    }

    fn load(outcome: stored::Outcome) -> Result<Self, Corrupt> {
        Ok(match required("outcome", outcome.body)? {
            OutcomeBody::Done(stored::Tick {}) => Self::Done(Reply::Done),
            OutcomeBody::Granted(epoch) => Self::Done(Reply::Granted { epoch }),
            OutcomeBody::Issued(certificate) => Self::Done(Reply::Issued { certificate }),
            OutcomeBody::Removed(exports) => Self::Done(Reply::Removed { exports }),
            OutcomeBody::DrillStarted(id) => Self::Done(Reply::DrillStarted { id: DrillId(id) }),
            OutcomeBody::Refused(refused) => {
                let class = CLASSES.iter().find(|(number, _)| *number == refused.class);
                // A class that a newer leader made up: it is refused all the same.
                let class = class.map_or(Class::Precondition, |(_, class)| *class);
                Self::Refused {
                    class,
                    message: refused.message,
                }
            }
        })
    }
}
