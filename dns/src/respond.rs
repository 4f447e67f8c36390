//! A packet in, a packet out: the fast path where it applies, else the plain one.

use hickory_proto::op::Message;

use crate::answer::{Answer, Rcode, answer};
use crate::edns::{Edns, Transport};
use crate::encode;
use crate::fast::{self, Scratch};
use crate::plain;
use crate::zone::Zone;

/// What to do with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// Nothing: it is no query.
    Silent,
    /// Send what was written.
    Done(Summary),
    /// Not about this zone: ask an upstream. Nothing was written.
    Forward(Summary),
}

/// What metrics count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Type asked for; 0 when it could not be read.
    pub rtype: u16,
    /// Response code given.
    pub rcode: Rcode,
    /// The answer was cut (TC).
    pub truncated: bool,
}

/// Answers one packet after the other; each thread has its own.
#[derive(Debug)]
pub struct Responder<R> {
    /// How the packets travel.
    pub transport: Transport,
    /// Names outside the zone go to an upstream; otherwise they are refused.
    pub recursion: bool,
    /// Shuffles records.
    pub rng: R,
    /// Reused from one packet to the next.
    pub scratch: Scratch,
}

impl<R: rand::Rng> Responder<R> {
    /// One that has seen nothing yet.
    pub fn new(transport: Transport, recursion: bool, rng: R) -> Responder<R> {
        Responder {
            transport,
            recursion,
            rng,
            scratch: Scratch::default(),
        }
    }

    /// Answers `packet` from `zone` into `out`.
    ///
    /// Never panics and never writes more than [`Transport::limit`] octets, whatever `packet` holds.
    pub fn respond(&mut self, zone: &Zone, packet: &[u8], out: &mut Vec<u8>) -> Reply {
        let Some(query) = fast::parse(packet, &mut self.scratch) else {
            return plain::respond(self, zone, packet, out);
        };
        let answer = answer(zone, query.question(&self.scratch));
        let mut summary = Summary {
            rtype: query.rtype,
            rcode: answer.rcode(),
            truncated: false,
        };
        if answer == Answer::Outside && self.recursion {
            return Reply::Forward(summary);
        }
        summary.truncated = encode::write(self, &query, answer, zone, out);
        Reply::Done(summary)
    }
}

/// Writes `packet`'s header and question back with `rcode` and TC as said, no records: for SERVFAIL and for rate limiting. False
/// when `packet` has no readable question.
pub fn bare(packet: &[u8], rcode: Rcode, truncated: bool, recursion: bool, out: &mut Vec<u8>) -> bool {
    out.clear();
    let Some(question) = question(packet) else {
        return false;
    };
    let flags = u16::from_be_bytes([packet[2], packet[3]]) & 0x0110
        | fast::flag::QR
        | if truncated { fast::flag::TC } else { 0 }
        | if recursion { fast::flag::RA } else { 0 }
        | rcode.number() & 0x0f;
    out.extend_from_slice(&packet[..2]);
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    out.extend_from_slice(question);
    true
}

/// The one question of a message, as it stands there: name with root label, type, class. None without one, or with a compressed
/// name, which no first question can have.
#[must_use]
pub fn question(packet: &[u8]) -> Option<&[u8]> {
    let rest = packet.get(fast::HEADER_OCTETS..)?;
    if packet[4..6] != [0, 1] {
        return None;
    }
    let mut at = 0;
    loop {
        let label = usize::from(*rest.get(at)?);
        if label > crate::name::LABEL_MAX || at > crate::name::NAME_MAX {
            return None;
        }
        at += 1 + label;
        if label == 0 {
            return rest.get(..at + 4);
        }
    }
}

/// How large an answer the sender of `packet`, an arbitrary query, can take.
#[must_use]
pub fn client_limit(packet: &[u8], transport: Transport) -> usize {
    let payload = Message::from_vec(packet)
        .ok()
        .and_then(|query| query.edns.map(|edns| edns.max_payload()));
    transport.limit(payload.map(|payload| Edns {
        payload,
        version: 0,
        dnssec_ok: false,
    }))
}
