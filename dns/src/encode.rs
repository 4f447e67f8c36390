//! The fast path out: an answer into octets, with nothing allocated and nothing copied twice.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::answer::{
    Answer, CLASS_IN, MAILBOX, RecordSet, SCHEMA_VERSION, SERVER, SOA_TIMERS, TTL_NEGATIVE, order, rtype,
};
use crate::edns::OPT_OCTETS;
use crate::fast::{HEADER_OCTETS, Query, flag};
use crate::name::APEX;
use crate::respond::Responder;
use crate::service::Srv;
use crate::zone::Zone;

/// A pointer (RFC 1035 §4.1.4) to the question's name, which follows the header.
const OWNER: [u8; 2] = [0xc0, 0x0c];

/// The highest offset a pointer can hold, plus one.
const POINTER_END: usize = 0x4000;

/// Header flags of a query that are copied to its answer: RD and CD (RFC 1035 §4.1.1, RFC 4035 §3.2.2).
const COPIED_FLAGS: u16 = 0x0110;

/// Octets of a record between its owner and its data: type, class, TTL, length.
const FIXED: usize = 10;

/// Offset of the name in an NS record whose owner is a pointer.
const NS_TARGET: usize = OWNER.len() + FIXED;

/// Offset of the target in an SRV record whose owner is a pointer.
const SRV_TARGET: usize = OWNER.len() + FIXED + 6;

/// Every SRV record's priority: the specification prescribes none, and locality is not for DNS to express.
pub const SRV_PRIORITY: u16 = 0;

/// Every SRV record's weight.
pub const SRV_WEIGHT: u16 = 100;

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
    // Whatever is answered with an apex has a question that ends in it.
    let apex = pointer((HEADER_OCTETS + query.name_length).saturating_sub(APEX.len())).unwrap_or(OWNER);
    let mut writer = Writer { out, limit, apex };
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
        Answer::NoData | Answer::NoSuchName => counts[2] = u16::from(writer.soa(zone, TTL_NEGATIVE)),
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

struct Writer<'o> {
    out: &'o mut Vec<u8>,
    limit: usize,
    /// Pointer to the apex at the end of the question.
    apex: [u8; 2],
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
        let only = |wrote: bool| (u16::from(wrote), !wrote);
        match set {
            RecordSet::A(addresses, _) => {
                let chosen = order(addresses.len(), self.room_for(4), rng, scratch);
                let wrote = chosen
                    .iter()
                    .filter(|at| self.a(&OWNER, addresses[**at], ttl))
                    .count();
                (count(wrote), wrote < addresses.len())
            }
            RecordSet::Aaaa(addresses, _) => {
                let chosen = order(addresses.len(), self.room_for(16), rng, scratch);
                let wrote = chosen
                    .iter()
                    .filter(|at| self.aaaa(&OWNER, addresses[**at], ttl))
                    .count();
                (count(wrote), wrote < addresses.len())
            }
            RecordSet::Srv(records, _) => {
                let chosen = order(records.len(), records.len(), rng, scratch);
                let wrote = chosen
                    .iter()
                    .take_while(|at| self.srv(&records[**at], ttl))
                    .count();
                (count(wrote), wrote < records.len())
            }
            RecordSet::Version => only(self.record(&OWNER, rtype::TXT, ttl, |out| {
                out.push(SCHEMA_VERSION.len() as u8);
                out.extend_from_slice(SCHEMA_VERSION.as_bytes());
            })),
            RecordSet::AnyRefusal => only(self.record(&OWNER, rtype::HINFO, ttl, |out| {
                out.extend_from_slice(b"\x07RFC8482\x00")
            })),
            RecordSet::Ptr(target) => only(self.record(&OWNER, rtype::PTR, ttl, |out| {
                out.extend_from_slice(target);
                out.push(0);
            })),
            RecordSet::Ns => {
                let apex = self.apex;
                only(self.record(&OWNER, rtype::NS, ttl, |out| {
                    out.extend_from_slice(SERVER);
                    out.extend_from_slice(&apex);
                }))
            }
            RecordSet::Soa => only(self.soa(zone, ttl)),
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
                // The server's name stands in the NS record, behind its head.
                let name = HEADER_OCTETS + question_octets + NS_TARGET;
                if let Some(owner) = pointer(name) {
                    written += self.addresses(&owner, &zone.server().v4, &zone.server().v6, set.ttl());
                }
            }
            RecordSet::Srv(records, ttl) => {
                // The records stand one after the other in the order they were drawn, so their targets' places are known.
                let mut at = HEADER_OCTETS + question_octets;
                for index in order {
                    let srv = &records[*index];
                    let target = at + SRV_TARGET;
                    at = target + srv.target.len() + 1;
                    // Records of one target are neighbours in the zone: the first of them brings the addresses.
                    let neighbour = index.checked_sub(1).map(|before| &records[before]);
                    if neighbour.is_some_and(|neighbour| neighbour.target == srv.target) {
                        continue;
                    }
                    // A name beyond a pointer's reach is left to the client to ask for.
                    let Some(owner) = pointer(target) else { continue };
                    written += self.addresses(&owner, &srv.addresses.v4, &srv.addresses.v6, ttl);
                }
            }
            _ => {}
        }
        written
    }

    fn addresses(&mut self, owner: &[u8; 2], v4: &[Ipv4Addr], v6: &[Ipv6Addr], ttl: u32) -> u16 {
        let v4 = v4
            .iter()
            .take_while(|address| self.a(owner, **address, ttl))
            .count();
        let v6 = v6
            .iter()
            .take_while(|address| self.aaaa(owner, **address, ttl))
            .count();
        count(v4 + v6)
    }

    fn a(&mut self, owner: &[u8; 2], address: Ipv4Addr, ttl: u32) -> bool {
        self.record(owner, rtype::A, ttl, |out| {
            out.extend_from_slice(&address.octets())
        })
    }

    fn aaaa(&mut self, owner: &[u8; 2], address: Ipv6Addr, ttl: u32) -> bool {
        self.record(owner, rtype::AAAA, ttl, |out| {
            out.extend_from_slice(&address.octets())
        })
    }

    fn srv(&mut self, srv: &Srv, ttl: u32) -> bool {
        self.record(&OWNER, rtype::SRV, ttl, |out| {
            for number in [SRV_PRIORITY, SRV_WEIGHT, srv.port] {
                out.extend_from_slice(&number.to_be_bytes());
            }
            // Not compressed: RFC 2782 does not allow it.
            out.extend_from_slice(&srv.target);
            out.push(0);
        })
    }

    fn soa(&mut self, zone: &Zone, ttl: u32) -> bool {
        let apex = self.apex;
        self.record(&apex, rtype::SOA, ttl, |out| {
            for name in [SERVER, MAILBOX] {
                out.extend_from_slice(name);
                out.extend_from_slice(&apex);
            }
            let [refresh, retry, expire] = SOA_TIMERS;
            for number in [zone.serial(), refresh, retry, expire, TTL_NEGATIVE] {
                out.extend_from_slice(&number.to_be_bytes());
            }
        })
    }

    /// How many records with `data` octets each still fit.
    fn room_for(&self, data: usize) -> usize {
        self.limit.saturating_sub(self.out.len()) / (OWNER.len() + FIXED + data)
    }

    /// Writes a whole record, or nothing when it does not fit.
    fn record(&mut self, owner: &[u8; 2], rtype: u16, ttl: u32, data: impl FnOnce(&mut Vec<u8>)) -> bool {
        let start = self.out.len();
        self.out.extend_from_slice(owner);
        self.out.extend_from_slice(&rtype.to_be_bytes());
        self.out.extend_from_slice(&CLASS_IN.to_be_bytes());
        self.out.extend_from_slice(&ttl.to_be_bytes());
        self.out.extend_from_slice(&[0; 2]);
        let from = self.out.len();
        data(self.out);
        let length = count(self.out.len() - from);
        self.out[from - 2..from].copy_from_slice(&length.to_be_bytes());
        let fits = self.out.len() <= self.limit;
        if !fits {
            self.out.truncate(start);
        }
        fits
    }
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
