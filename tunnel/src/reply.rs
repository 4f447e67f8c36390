//! The answer to a flow's header: connected, or refused with a reason, before any payload flows.

use std::fmt;

use tombolo_wire::v1;

/// Longest detail of a refusal, bytes: one line for a log.
pub const DETAIL_MAX: usize = 512;

/// Why a flow was refused. No byte of it has reached a backend, so it may be tried elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// The service or port is not exported here.
    NotExported,
    /// It is, but not for the caller's cluster.
    NotGranted,
    /// It has no endpoint that can take the flow.
    NoEndpoint,
    /// The endpoint refused or did not answer.
    BackendRefused,
    /// The gateway is shutting down.
    Draining,
    /// A limit is reached.
    Overloaded,
    /// The source is not the peer's to speak for, or the header makes no sense.
    Forged,
}

impl Refusal {
    /// Every reason, for metrics and tests.
    pub const ALL: [Self; 7] = [
        Self::NotExported,
        Self::NotGranted,
        Self::NoEndpoint,
        Self::BackendRefused,
        Self::Draining,
        Self::Overloaded,
        Self::Forged,
    ];

    /// A word for metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotExported => "not_exported",
            Self::NotGranted => "not_granted",
            Self::NoEndpoint => "no_endpoint",
            Self::BackendRefused => "backend_refused",
            Self::Draining => "draining",
            Self::Overloaded => "overloaded",
            Self::Forged => "forged",
        }
    }

    fn to_wire(self) -> v1::Refusal {
        match self {
            Self::NotExported => v1::Refusal::NotExported,
            Self::NotGranted => v1::Refusal::NotGranted,
            Self::NoEndpoint => v1::Refusal::NoEndpoint,
            Self::BackendRefused => v1::Refusal::BackendRefused,
            Self::Draining => v1::Refusal::Draining,
            Self::Overloaded => v1::Refusal::Overloaded,
            Self::Forged => v1::Refusal::Forged,
        }
    }

    /// None for the unspecified one and for those of later versions.
    fn from_wire(wire: v1::Refusal) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| refusal.to_wire() == wire)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The backend is connected; payload may flow.
    Connected {
        /// UDP: prefixes this flow's datagrams, both ways; 0 for TCP.
        datagram_flow: u64,
    },
    /// It is not.
    Refused {
        /// Why.
        refusal: Refusal,
        /// One line more about it; may be empty.
        detail: String,
    },
}

impl Reply {
    /// A refusal, its detail cut to [`DETAIL_MAX`] bytes.
    #[must_use]
    pub fn refused(refusal: Refusal, detail: &str) -> Self {
        let end = (0..=detail.len().min(DETAIL_MAX))
            .rev()
            .find(|end| detail.is_char_boundary(*end));
        Self::Refused {
            refusal,
            detail: detail[..end.unwrap_or(0)].to_owned(),
        }
    }

    /// The answer as it travels.
    #[must_use]
    pub fn to_wire(&self) -> v1::FlowReply {
        let reply = match self {
            Self::Connected { datagram_flow } => v1::flow_reply::Reply::Connected(v1::FlowConnected {
                datagram_flow: *datagram_flow,
            }),
            Self::Refused { refusal, detail } => v1::flow_reply::Reply::Refused(v1::FlowRefused {
                refusal: refusal.to_wire() as i32,
                detail: detail.clone(),
            }),
        };
        v1::FlowReply { reply: Some(reply) }
    }

    /// Checks what arrived. A refusal that this version does not know is [`Refusal::NoEndpoint`]: it says what the
    /// caller can do, which is to try elsewhere. None when there is no answer inside.
    #[must_use]
    pub fn from_wire(wire: v1::FlowReply) -> Option<Self> {
        match wire.reply? {
            v1::flow_reply::Reply::Connected(connected) => Some(Self::Connected {
                datagram_flow: connected.datagram_flow,
            }),
            v1::flow_reply::Reply::Refused(refused) => {
                let refusal = Refusal::from_wire(refused.refusal()).unwrap_or(Refusal::NoEndpoint);
                Some(Self::refused(refusal, &refused.detail))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_round_trip() {
        let refusals = Refusal::ALL.map(|refusal| Reply::refused(refusal, "because"));
        for reply in refusals
            .into_iter()
            .chain([Reply::Connected { datagram_flow: 9 }])
        {
            assert_eq!(Reply::from_wire(reply.to_wire()), Some(reply));
        }
    }

    #[test]
    fn what_is_unknown_or_empty_is_never_connected() {
        assert_eq!(Reply::from_wire(v1::FlowReply { reply: None }), None);
        let later = v1::FlowRefused {
            refusal: 99,
            detail: String::new(),
        };
        let later = v1::FlowReply {
            reply: Some(v1::flow_reply::Reply::Refused(later)),
        };
        assert_eq!(
            Reply::from_wire(later),
            Some(Reply::refused(Refusal::NoEndpoint, ""))
        );
    }

    #[test]
    fn details_are_cut_at_a_character() {
        let Reply::Refused { detail, .. } = Reply::refused(Refusal::Forged, &"ä".repeat(400)) else {
            panic!("it is a refusal");
        };
        assert_eq!(detail, "ä".repeat(DETAIL_MAX / 2));
    }
}
