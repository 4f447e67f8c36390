//! Asking a server one question: for `tombolo resolve`, `check` and drills.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use rand::Rng;
use tokio::time::timeout;
use tombolo_daemon::seam::Seams;

use super::forward::exchange;
use crate::edns::PAYLOAD_MAX;

/// How long a server may take: stub resolvers give up after as long.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What a server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookup {
    /// Response code as `dig` prints it: NOERROR, NXDOMAIN, REFUSED, …
    pub rcode: String,
    /// Whether the server is one of the zone's own.
    pub authoritative: bool,
    /// Answer section.
    pub answers: Vec<LookupRecord>,
}

/// One record, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LookupRecord {
    /// Owner.
    pub name: String,
    /// A, AAAA, SRV, …
    pub rtype: String,
    /// Seconds.
    pub ttl: u32,
    /// Address, target, text.
    pub data: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// Not a name, or not a type.
    #[error("'{text}' is not a {what}: {reason}")]
    Malformed {
        /// What was given.
        text: String,
        /// What it was meant to be.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The server cannot be asked.
    #[error("dns server {server} cannot be asked: {source}; is it running?")]
    Unreachable {
        /// Which.
        server: SocketAddr,
        /// The host's reason.
        source: std::io::Error,
    },
    /// No answer in time.
    #[error("dns server {server} gave no answer within {} s; is it running, or silenced by a drill?", TIMEOUT.as_secs())]
    TimedOut {
        /// Which.
        server: SocketAddr,
    },
    /// The answer cannot be read.
    #[error("dns server {server} gave an answer that is no DNS message: {reason}")]
    Unreadable {
        /// Which.
        server: SocketAddr,
        /// What is wrong.
        reason: String,
    },
}

/// Asks `server` for `rtype` records of `name`, over UDP and, when the answer was cut, over TCP.
///
/// # Errors
/// [`LookupError`] names the server and what to check.
pub async fn lookup(
    server: SocketAddr,
    name: &str,
    rtype: &str,
    seams: &Seams,
) -> Result<Lookup, LookupError> {
    let malformed = |text: &str, what, reason: String| LookupError::Malformed {
        text: text.to_owned(),
        what,
        reason,
    };
    let mut owner = Name::from_ascii(name).map_err(|error| malformed(name, "name", error.to_string()))?;
    owner.set_fqdn(true);
    let kind: RecordType = rtype
        .to_ascii_uppercase()
        .parse()
        .map_err(|_| malformed(rtype, "record type", "use A, AAAA, SRV, TXT or PTR".to_owned()))?;
    let mut message = Message::new(seams.entropy.rng().random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries.push(Query::query(owner, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD_MAX);
    message.edns = Some(edns);
    let query = message
        .to_vec()
        .map_err(|error| malformed(name, "name", error.to_string()))?;
    let answer = match timeout(TIMEOUT, exchange(server, &query, seams)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(source)) => return Err(LookupError::Unreachable { server, source }),
        Err(_) => return Err(LookupError::TimedOut { server }),
    };
    let answer = Message::from_vec(&answer).map_err(|error| LookupError::Unreadable {
        server,
        reason: error.to_string(),
    })?;
    Ok(Lookup {
        rcode: rcode_text(u16::from(answer.metadata.response_code)),
        authoritative: answer.metadata.authoritative,
        answers: answer
            .answers
            .iter()
            .map(|record| LookupRecord {
                name: record.name.to_string(),
                rtype: record.record_type().to_string(),
                ttl: record.ttl,
                data: record.data.to_string(),
            })
            .collect(),
    })
}

fn rcode_text(number: u16) -> String {
    match number {
        0 => "NOERROR".to_owned(),
        1 => "FORMERR".to_owned(),
        2 => "SERVFAIL".to_owned(),
        3 => "NXDOMAIN".to_owned(),
        4 => "NOTIMP".to_owned(),
        5 => "REFUSED".to_owned(),
        16 => "BADVERS".to_owned(),
        other => format!("RCODE{other}"),
    }
}
