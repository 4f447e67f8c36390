//! One question, one answer: every rule of the MCS DNS specification 1.0.0, and of the DNS where that one is silent.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::service::{Srv, TTL_VIRTUAL};
use crate::zone::{Found, Zone};

/// Record types this server knows, by number.
pub mod rtype {
    /// RFC 1035.
    pub const A: u16 = 1;
    /// RFC 1035.
    pub const NS: u16 = 2;
    /// RFC 1035.
    pub const SOA: u16 = 6;
    /// RFC 1035.
    pub const PTR: u16 = 12;
    /// RFC 1035.
    pub const HINFO: u16 = 13;
    /// RFC 1035.
    pub const TXT: u16 = 16;
    /// RFC 3596.
    pub const AAAA: u16 = 28;
    /// RFC 2782.
    pub const SRV: u16 = 33;
    /// RFC 6891; no type to ask for.
    pub const OPT: u16 = 41;
    /// RFC 2930, RFC 8945, RFC 1995, RFC 5936: all refused.
    pub const TKEY: u16 = 249;
    /// Whole-zone transfer.
    pub const AXFR: u16 = 252;
    /// RFC 1035.
    pub const ANY: u16 = 255;
}

/// Class IN (RFC 1035 §3.2.4).
pub const CLASS_IN: u16 = 1;

/// What `dns-version.clusterset.local` says (MCS DNS specification §2.2).
pub const SCHEMA_VERSION: &str = "1.0.0";

/// For how long "no such name" and "no such record" may be remembered, seconds (RFC 2308 §5): a new export must show up in
/// every cluster within a second (DESIGN §6).
pub const TTL_NEGATIVE: u32 = 1;

/// `ns.dns`, below the apex: the name server of NS and SOA.
pub const SERVER: &[u8] = b"\x02ns\x03dns";

/// `hostmaster`, below the apex: the mailbox of the SOA.
pub const MAILBOX: &[u8] = b"\x0ahostmaster";

/// SOA refresh, retry and expire, seconds; nobody transfers this zone, so the customary values do.
pub const SOA_TIMERS: [u32; 3] = [7_200, 1_800, 86_400];

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question<'q> {
    /// Wire form, lower case, without the root label.
    pub name: &'q [u8],
    /// Type.
    pub rtype: u16,
    /// Class.
    pub class: u16,
}

/// The answer. Everything but `Outside` is authoritative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer<'z> {
    /// Not about this zone: refuse it, or ask an upstream.
    Outside,
    /// No snapshot yet: SERVFAIL, so that a resolver asks someone else or again.
    NotLoaded,
    /// A class or type nobody may ask for here.
    Refused,
    /// A type that cannot be asked for.
    Malformed,
    /// The records.
    Found(RecordSet<'z>),
    /// The name exists, without such records (RFC 2308 §2.2): SOA in the authority section.
    NoData,
    /// The name does not exist (RFC 2308 §2.1): SOA in the authority section.
    NoSuchName,
}

/// Records of one type; all are owned by the name of the question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordSet<'z> {
    /// Addresses, and their TTL in seconds.
    A(&'z [Ipv4Addr], u32),
    /// Addresses, and their TTL in seconds.
    Aaaa(&'z [Ipv6Addr], u32),
    /// Service locations, and their TTL in seconds; the targets' addresses go to the additional section.
    Srv(&'z [Srv], u32),
    /// The schema version.
    Version,
    /// Name server of the zone.
    Ns,
    /// Start of authority.
    Soa,
    /// A reverse name's target.
    Ptr(&'z Arc<[u8]>),
    /// In place of everything there is: ANY is answered with as little as possible (RFC 8482 §4.2).
    AnyRefusal,
}

impl RecordSet<'_> {
    /// TTL, seconds.
    #[must_use]
    pub fn ttl(&self) -> u32 {
        match self {
            RecordSet::A(_, ttl) | RecordSet::Aaaa(_, ttl) | RecordSet::Srv(_, ttl) => *ttl,
            RecordSet::Version
            | RecordSet::Ns
            | RecordSet::Soa
            | RecordSet::Ptr(_)
            | RecordSet::AnyRefusal => TTL_VIRTUAL,
        }
    }
}

/// Answers `question` from `zone`.
#[must_use]
pub fn answer<'z>(zone: &'z Zone, question: Question<'_>) -> Answer<'z> {
    if question.rtype == rtype::OPT {
        return Answer::Malformed;
    }
    if question.class != CLASS_IN || (rtype::TKEY..=rtype::AXFR).contains(&question.rtype) {
        return Answer::Refused;
    }
    match zone.find(question.name) {
        Found::Outside => Answer::Outside,
        Found::Unknown => Answer::NotLoaded,
        Found::Absent => Answer::NoSuchName,
        Found::Apex => match question.rtype {
            rtype::SOA => Answer::Found(RecordSet::Soa),
            rtype::NS => Answer::Found(RecordSet::Ns),
            rtype::ANY => Answer::Found(RecordSet::AnyRefusal),
            _ => Answer::NoData,
        },
        Found::Version => match question.rtype {
            rtype::TXT => Answer::Found(RecordSet::Version),
            rtype::ANY => Answer::Found(RecordSet::AnyRefusal),
            _ => Answer::NoData,
        },
        // The rest of the reverse tree is not ours, so neither are other types there.
        Found::Pointer(target) => match question.rtype {
            rtype::PTR => Answer::Found(RecordSet::Ptr(target)),
            _ => Answer::Outside,
        },
        Found::Records(records) => {
            let (v4, v6) = (&records.addresses.v4, &records.addresses.v6);
            match question.rtype {
                rtype::A if !v4.is_empty() => Answer::Found(RecordSet::A(v4, records.ttl)),
                rtype::AAAA if !v6.is_empty() => Answer::Found(RecordSet::Aaaa(v6, records.ttl)),
                rtype::SRV if !records.srv.is_empty() => {
                    Answer::Found(RecordSet::Srv(&records.srv, records.ttl))
                }
                rtype::ANY if !v4.is_empty() || !v6.is_empty() || !records.srv.is_empty() => {
                    Answer::Found(RecordSet::AnyRefusal)
                }
                _ => Answer::NoData,
            }
        }
    }
}

/// Response codes this server gives (RFC 1035 §4.1.1, RFC 6891 §9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rcode {
    /// Answered, maybe with nothing.
    NoError,
    /// The query cannot be read.
    FormErr,
    /// Cannot answer now.
    ServFail,
    /// No such name.
    NxDomain,
    /// Operation not known.
    NotImp,
    /// Will not answer.
    Refused,
    /// EDNS version not known.
    BadVers,
}

impl Rcode {
    /// Its number.
    #[must_use]
    pub fn number(self) -> u16 {
        match self {
            Rcode::NoError => 0,
            Rcode::FormErr => 1,
            Rcode::ServFail => 2,
            Rcode::NxDomain => 3,
            Rcode::NotImp => 4,
            Rcode::Refused => 5,
            Rcode::BadVers => 16,
        }
    }
}

impl Answer<'_> {
    /// The response code; [`Answer::Outside`] as it is when nobody is asked.
    #[must_use]
    pub fn rcode(&self) -> Rcode {
        match self {
            Answer::Found(_) | Answer::NoData => Rcode::NoError,
            Answer::NoSuchName => Rcode::NxDomain,
            Answer::NotLoaded => Rcode::ServFail,
            Answer::Malformed => Rcode::FormErr,
            Answer::Outside | Answer::Refused => Rcode::Refused,
        }
    }

    /// Whether the AA bit is set: only over names of the zone.
    #[must_use]
    pub fn is_authoritative(&self) -> bool {
        matches!(self, Answer::Found(_) | Answer::NoData | Answer::NoSuchName)
    }
}

/// The order in which to give `count` records of which at most `most` fit: a random start, so that each is as likely to be
/// among them, then shuffled. `scratch` is overwritten; it is reused so that the hot path does not allocate.
pub fn order<'s>(
    count: usize,
    most: usize,
    rng: &mut impl rand::Rng,
    scratch: &'s mut Vec<usize>,
) -> &'s [usize] {
    scratch.clear();
    let start = if count > 1 { rng.random_range(0..count) } else { 0 };
    scratch.extend((0..count.min(most)).map(|at| (start + at) % count));
    rand::seq::SliceRandom::shuffle(scratch.as_mut_slice(), rng);
    scratch
}
