//! The fast path: one ordinary query in, its answer out, with nothing allocated and nothing copied twice.
//!
//! [`parse`] takes what nearly every packet is (one question without compression, at most a plain OPT record) and leaves the
//! rest to [`crate::plain`]. Both paths get their answer from [`crate::answer`]; a test holds that they say the same.

use crate::answer::{
    Answer, MAILBOX, Question, RecordSet, SCHEMA_VERSION, SERVER, SOA_TIMERS, TTL_NEGATIVE, order, rtype,
};
use crate::edns::{Edns, OPT_OCTETS, parse_plain};
use crate::name::{APEX, LABEL_MAX, NAME_MAX};
use crate::respond::Responder;
use crate::service::{Srv, TTL_VIRTUAL};
use crate::zone::Zone;

/// Octets of a message header.
pub const HEADER_OCTETS: usize = 12;

/// A pointer (RFC 1035 §4.1.4) to the question's name, which follows the header.
const OWNER: [u8; 2] = [0xc0, 0x0c];

/// The highest offset a pointer can hold, plus one.
const POINTER_END: usize = 0x4000;

/// Header flags of a query that are copied to its answer: RD and CD (RFC 1035 §4.1.1, RFC 4035 §3.2.2).
const COPIED_FLAGS: u16 = 0x0110;

/// The header's bits, upper octet first.
pub mod flag {
    /// Response.
    pub const QR: u16 = 0x8000;
    /// Operation.
    pub const OPCODE: u16 = 0x7800;
    /// Authoritative.
    pub const AA: u16 = 0x0400;
    /// Truncated.
    pub const TC: u16 = 0x0200;
    /// Recursion available.
    pub const RA: u16 = 0x0080;
}

/// Memory that lives from one query to the next.
#[derive(Debug)]
pub struct Scratch {
    name: [u8; NAME_MAX],
    order: Vec<usize>,
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch {
            name: [0; NAME_MAX],
            order: Vec::new(),
        }
    }
}

/// An ordinary query.
#[derive(Debug, Clone, Copy)]
pub struct Query<'p> {
    id: [u8; 2],
    flags: u16,
    /// The question as it came, its case included: name with root label, type, class.
    question: &'p [u8],
    name_length: usize,
    /// Type asked for.
    pub rtype: u16,
    /// Class asked for.
    pub class: u16,
    /// OPT record.
    pub edns: Option<Edns>,
}

/// Reads an ordinary query and leaves its name, in lower case, in `scratch`. None: not ordinary, maybe not even a query.
#[must_use]
pub fn parse<'p>(packet: &'p [u8], scratch: &mut Scratch) -> Option<Query<'p>> {
    let (
        &[
            id_high,
            id_low,
            flags_high,
            flags_low,
            0,
            1,
            0,
            0,
            0,
            0,
            0,
            extra @ (0 | 1),
        ],
        rest,
    ) = packet.split_first_chunk::<HEADER_OCTETS>()?
    else {
        return None;
    };
    let flags = u16::from_be_bytes([flags_high, flags_low]);
    if flags & (flag::QR | flag::OPCODE | flag::TC) != 0 {
        return None;
    }
    let mut length = 0;
    loop {
        let label = usize::from(*rest.get(length)?);
        if label == 0 {
            break;
        }
        let next = length + 1 + label;
        if label > LABEL_MAX || next > NAME_MAX {
            return None;
        }
        length = next;
    }
    for (to, from) in scratch.name.iter_mut().zip(rest.get(..length)?) {
        // Lengths are at most 63, below 'A', so they stay as they are.
        *to = from.to_ascii_lowercase();
    }
    let (question, rest) = rest.split_at_checked(length + 5)?;
    let &[.., type_high, type_low, class_high, class_low] = question else {
        return None;
    };
    let edns = match extra {
        0 if rest.is_empty() => None,
        1 => Some(parse_plain(rest).filter(|edns| edns.version == 0)?),
        _ => return None,
    };
    Some(Query {
        id: [id_high, id_low],
        flags,
        question,
        name_length: length,
        rtype: u16::from_be_bytes([type_high, type_low]),
        class: u16::from_be_bytes([class_high, class_low]),
        edns,
    })
}

impl Query<'_> {
    /// The question, as [`crate::answer::answer`] takes it; `scratch` is the one that [`parse`] filled.
    #[must_use]
    pub fn question<'s>(&self, scratch: &'s Scratch) -> Question<'s> {
        Question {
            name: &scratch.name[..self.name_length],
            rtype: self.rtype,
            class: self.class,
        }
    }
}

/// Writes the answer to `query` over whatever `out` held. True when it had to be cut (TC).
pub fn write<R: rand::Rng>(
    responder: &mut Responder<R>,
    query: &Query<'_>,
    answer: Answer<'_>,
    zone: &Zone,
    out: &mut Vec<u8>,
) -> bool {
    let Responder {
        transport,
        recursion,
        rng,
        scratch,
    } = responder;
    let opt = if query.edns.is_some() { OPT_OCTETS } else { 0 };
    let limit = transport.limit(query.edns) - opt;
    out.clear();
    out.extend_from_slice(&[0; HEADER_OCTETS]);
    out.extend_from_slice(query.question);
    let mut writer = Writer {
        out,
        limit,
        apex: apex_offset(query, answer),
    };
    let mut counts = [1_u16, 0, 0, u16::from(query.edns.is_some())];
    let mut truncated = false;
    match answer {
        Answer::Found(set) => {
            let (fitted, cut) = writer.answers(set, zone, rng, &mut scratch.order);
            counts[1] = fitted;
            truncated = cut;
            if !cut {
                counts[3] += writer.additional(set, zone, &scratch.order, query.question.len());
            }
        }
        Answer::NoData | Answer::NoSuchName => counts[2] = writer.soa(zone, TTL_NEGATIVE),
        Answer::Outside | Answer::NotLoaded | Answer::Refused | Answer::Malformed => {}
    }
    if let Some(edns) = query.edns {
        writer.out.extend_from_slice(&edns.reply(0));
    }
    let bit = |set: bool, bit: u16| if set { bit } else { 0 };
    let flags = flag::QR
        | query.flags & COPIED_FLAGS
        | bit(answer.is_authoritative(), flag::AA)
        | bit(truncated, flag::TC)
        | bit(*recursion, flag::RA)
        | answer.rcode().number();
    out[..2].copy_from_slice(&query.id);
    out[2..4].copy_from_slice(&flags.to_be_bytes());
    for (at, count) in counts.into_iter().enumerate() {
        out[4 + 2 * at..6 + 2 * at].copy_from_slice(&count.to_be_bytes());
    }
    truncated
}

/// Where the apex begins inside the question, for pointers to it. A reverse name does not end in it.
fn apex_offset(query: &Query<'_>, answer: Answer<'_>) -> Option<usize> {
    let reverse = matches!(answer, Answer::Found(RecordSet::Ptr(_)));
    (!reverse && query.name_length >= APEX.len()).then(|| HEADER_OCTETS + query.name_length - APEX.len())
}

struct Writer<'o> {
    out: &'o mut Vec<u8>,
    limit: usize,
    apex: Option<usize>,
}

impl Writer<'_> {
    /// How many records were written, and whether others did not fit.
    fn answers(
        &mut self,
        set: RecordSet<'_>,
        zone: &Zone,
        rng: &mut impl rand::Rng,
        scratch: &mut Vec<usize>,
    ) -> (u16, bool) {
        let ttl = set.ttl();
        match set {
            RecordSet::A(addresses, _) => {
                let room = self.limit.saturating_sub(self.out.len()) / 16;
                let chosen = order(addresses.len(), room, rng, scratch);
                for at in chosen {
                    self.record(&OWNER, rtype::A, ttl, &addresses[*at].octets());
                }
                (count(chosen.len()), chosen.len() < addresses.len())
            }
            RecordSet::Aaaa(addresses, _) => {
                let room = self.limit.saturating_sub(self.out.len()) / 28;
                let chosen = order(addresses.len(), room, rng, scratch);
                for at in chosen {
                    self.record(&OWNER, rtype::AAAA, ttl, &addresses[*at].octets());
                }
                (count(chosen.len()), chosen.len() < addresses.len())
            }
            RecordSet::Srv(records, _) => {
                let chosen = order(records.len(), records.len(), rng, scratch);
                let fitted = chosen
                    .iter()
                    .take_while(|at| self.srv(&records[**at], ttl))
                    .count();
                (count(fitted), fitted < records.len())
            }
            RecordSet::Version => {
                let mut text = vec![u8::try_from(SCHEMA_VERSION.len()).unwrap_or(0)];
                text.extend_from_slice(SCHEMA_VERSION.as_bytes());
                let wrote = self.record(&OWNER, rtype::TXT, ttl, &text);
                only(wrote)
            }
            RecordSet::AnyRefusal => {
                let wrote = self.record(&OWNER, rtype::HINFO, ttl, b"\x07RFC8482\x00");
                only(wrote)
            }
            RecordSet::Ptr(target) => {
                let mut name = target.to_vec();
                name.push(0);
                let wrote = self.record(&OWNER, rtype::PTR, ttl, &name);
                only(wrote)
            }
            RecordSet::Ns => {
                let mut name = SERVER.to_vec();
                name.extend_from_slice(&self.apex());
                let wrote = self.record(&OWNER, rtype::NS, ttl, &name);
                only(wrote)
            }
            RecordSet::Soa => (self.soa(zone, ttl), false),
        }
    }

    /// The addresses of SRV targets, and of the name server; as many as fit (RFC 2181 §9: leaving some out is no truncation).
    fn additional(
        &mut self,
        set: RecordSet<'_>,
        zone: &Zone,
        order: &[usize],
        question_octets: usize,
    ) -> u16 {
        let mut written = 0;
        match set {
            RecordSet::Ns => {
                let mut owner = SERVER.to_vec();
                owner.extend_from_slice(&self.apex());
                written += self.addresses(&owner, &zone.server().v4, &zone.server().v6, set.ttl());
            }
            RecordSet::Srv(records, ttl) => {
                // The records stand one after the other in the order they were drawn, so their targets' places are known.
                let mut at = HEADER_OCTETS + question_octets;
                let mut last: Option<&Srv> = None;
                for srv in order.iter().map(|index| &records[*index]) {
                    let target = at + SRV_TARGET;
                    at = target + srv.target.len() + 1;
                    if last.is_some_and(|last| last.target == srv.target) {
                        continue;
                    }
                    last = Some(srv);
                    let repeated = order
                        .iter()
                        .map(|index| &records[*index])
                        .take_while(|other| !std::ptr::eq(*other, srv));
                    if records.len() <= REPEATS_CHECKED
                        && repeated.into_iter().any(|other| other.target == srv.target)
                    {
                        continue;
                    }
                    let Some(owner) = pointer(target) else { break };
                    written += self.addresses(&owner, &srv.addresses.v4, &srv.addresses.v6, ttl);
                }
            }
            _ => {}
        }
        written
    }

    fn addresses(
        &mut self,
        owner: &[u8],
        v4: &[std::net::Ipv4Addr],
        v6: &[std::net::Ipv6Addr],
        ttl: u32,
    ) -> u16 {
        let v4 = v4
            .iter()
            .take_while(|address| self.record(owner, rtype::A, ttl, &address.octets()))
            .count();
        let v6 = v6
            .iter()
            .take_while(|address| self.record(owner, rtype::AAAA, ttl, &address.octets()))
            .count();
        count(v4 + v6)
    }

    fn srv(&mut self, srv: &Srv, ttl: u32) -> bool {
        let octets = SRV_TARGET + srv.target.len() + 1;
        if self.out.len() + octets > self.limit {
            return false;
        }
        let length = count(6 + srv.target.len() + 1);
        self.head(&OWNER, rtype::SRV, ttl, length);
        self.out.extend_from_slice(&SRV_PRIORITY.to_be_bytes());
        self.out.extend_from_slice(&SRV_WEIGHT.to_be_bytes());
        self.out.extend_from_slice(&srv.port.to_be_bytes());
        // Not compressed: RFC 2782 does not allow it.
        self.out.extend_from_slice(&srv.target);
        self.out.push(0);
        true
    }

    fn soa(&mut self, zone: &Zone, ttl: u32) -> u16 {
        let apex = self.apex();
        let mut data = Vec::with_capacity(64);
        data.extend_from_slice(SERVER);
        data.extend_from_slice(&apex);
        data.extend_from_slice(MAILBOX);
        data.extend_from_slice(&apex);
        data.extend_from_slice(&zone.serial().to_be_bytes());
        for timer in SOA_TIMERS {
            data.extend_from_slice(&timer.to_be_bytes());
        }
        data.extend_from_slice(&TTL_NEGATIVE.to_be_bytes());
        u16::from(self.record(&apex, rtype::SOA, ttl, &data))
    }

    /// The apex as a name: a pointer into the question, or spelled out.
    fn apex(&self) -> Vec<u8> {
        match self.apex.and_then(pointer) {
            Some(pointer) => pointer.to_vec(),
            None => [APEX, &[0]].concat(),
        }
    }

    /// Writes a whole record, or nothing when it does not fit.
    fn record(&mut self, owner: &[u8], rtype: u16, ttl: u32, data: &[u8]) -> bool {
        if self.out.len() + owner.len() + 10 + data.len() > self.limit {
            return false;
        }
        self.head(owner, rtype, ttl, count(data.len()));
        self.out.extend_from_slice(data);
        true
    }

    fn head(&mut self, owner: &[u8], rtype: u16, ttl: u32, length: u16) {
        self.out.extend_from_slice(owner);
        self.out.extend_from_slice(&rtype.to_be_bytes());
        self.out.extend_from_slice(&crate::answer::CLASS_IN.to_be_bytes());
        self.out.extend_from_slice(&ttl.to_be_bytes());
        self.out.extend_from_slice(&length.to_be_bytes());
    }
}

/// Offset of the target in an SRV record whose owner is a pointer.
const SRV_TARGET: usize = 18;

/// Every SRV record's priority: the specification prescribes none, and locality is not for DNS to express.
pub const SRV_PRIORITY: u16 = 0;

/// Every SRV record's weight.
pub const SRV_WEIGHT: u16 = 100;

/// In answers of up to so many SRV records a target's addresses are given once; in longer ones nearly all targets differ, and
/// comparing each with each would cost more than a repetition.
pub const REPEATS_CHECKED: usize = 32;

/// What [`Writer::answers`] says of a single record.
fn only(wrote: bool) -> (u16, bool) {
    (u16::from(wrote), !wrote)
}

fn pointer(offset: usize) -> Option<[u8; 2]> {
    let offset = u16::try_from(offset)
        .ok()
        .filter(|offset| usize::from(*offset) < POINTER_END)?;
    Some((0xc000 | offset).to_be_bytes())
}

/// A message is at most 65,535 octets long, so counts and lengths inside it fit.
fn count(n: usize) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

/// TTL of NS and TXT records in this module's documentation: the same as that of clusterset IPs.
const _: () = assert!(TTL_VIRTUAL <= 5, "DESIGN §7: DNS TTL is 5 s at most");
