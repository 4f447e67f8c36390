//! The plain path: everything the fast path leaves over, with `hickory-proto` as the codec.

use std::sync::LazyLock;

use hickory_proto::op::{Edns as EdnsRecord, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, HINFO, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use crate::answer::answer;
use crate::answer::{
    Answer, MAILBOX, Question, Rcode, RecordSet, SCHEMA_VERSION, SERVER, SOA_TIMERS, TTL_NEGATIVE, order,
};
use crate::edns::{Edns, PAYLOAD_MAX, Transport};
use crate::encode::{SRV_PRIORITY, SRV_WEIGHT};
use crate::fast::{HEADER_OCTETS, flag};
use crate::name::{APEX, Labels};
use crate::respond::{Reply, Responder, Summary};
use crate::service::Addresses;
use crate::zone::Zone;

/// Answers any packet: silence for what is no query, an error for what cannot be read.
pub fn respond<R: rand::Rng>(
    responder: &mut Responder<R>,
    zone: &Zone,
    packet: &[u8],
    out: &mut Vec<u8>,
) -> Reply {
    let (transport, recursion) = (responder.transport, responder.recursion);
    let Some((header, _)) = packet.split_first_chunk::<HEADER_OCTETS>() else {
        return Reply::Silent;
    };
    let flags = u16::from_be_bytes([header[2], header[3]]);
    if flags & flag::QR != 0 {
        // An answer is never answered: two servers would talk for ever.
        return Reply::Silent;
    }
    if flags & flag::OPCODE != 0 {
        return header_only(header, flags, Rcode::NotImp, out);
    }
    if header[4..6] != [0, 1] {
        return header_only(header, flags, Rcode::FormErr, out);
    }
    let mut decoder = BinDecoder::new(packet);
    let query = match Message::read(&mut decoder) {
        Ok(query) if decoder.is_empty() => query,
        Ok(_) | Err(_) => return header_only(header, flags, Rcode::FormErr, out),
    };
    let Some(question) = query.queries.first() else {
        return header_only(header, flags, Rcode::FormErr, out);
    };
    let edns = query.edns.as_ref().map(|edns| Edns {
        payload: edns.max_payload(),
        version: edns.version(),
        dnssec_ok: edns.flags().dnssec_ok,
    });
    let asked = u16::from(question.query_type());
    if edns.is_some_and(|edns| edns.version != 0) {
        let mut reply = reply_to(&query, question, edns);
        reply.metadata.response_code = ResponseCode::BADVERS;
        return finish(
            reply,
            transport,
            edns,
            Summary {
                rtype: asked,
                rcode: Rcode::BadVers,
                truncated: false,
            },
            out,
        );
    }
    let name: Vec<u8> = wire(question.name());
    let answer = answer(
        zone,
        Question {
            name: &name,
            rtype: asked,
            class: u16::from(question.query_class()),
        },
    );
    let summary = Summary {
        rtype: asked,
        rcode: answer.rcode(),
        truncated: false,
    };
    if answer == Answer::Outside && recursion {
        return Reply::Forward(summary);
    }
    let mut reply = reply_to(&query, question, edns);
    reply.metadata.recursion_available = recursion;
    reply.metadata.authoritative = answer.is_authoritative();
    reply.metadata.response_code = ResponseCode::from(0, u8::try_from(answer.rcode().number()).unwrap_or(2));
    match answer {
        Answer::Found(set) => fill(&mut reply, question.name(), set, zone, &mut responder.rng),
        Answer::NoData | Answer::NoSuchName => {
            reply
                .authorities
                .push(soa(zone, apex_of(question.name()), TTL_NEGATIVE))
        }
        Answer::Outside | Answer::NotLoaded | Answer::Refused | Answer::Malformed => {}
    }
    finish(reply, transport, edns, summary, out)
}

/// An error without question or records: nothing of the packet can be trusted.
fn header_only(header: &[u8; HEADER_OCTETS], flags: u16, rcode: Rcode, out: &mut Vec<u8>) -> Reply {
    out.clear();
    out.extend_from_slice(&header[..2]);
    let recursion_desired = flags & 0x0100;
    out.extend_from_slice(
        &(flag::QR | flags & flag::OPCODE | recursion_desired | rcode.number()).to_be_bytes(),
    );
    out.extend_from_slice(&[0; 8]);
    Reply::Done(Summary {
        rtype: 0,
        rcode,
        truncated: false,
    })
}

fn reply_to(query: &Message, question: &Query, edns: Option<Edns>) -> Message {
    let mut reply = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.checking_disabled = query.metadata.checking_disabled;
    reply.queries.push(question.clone());
    reply.edns = edns.map(|edns| {
        let mut record = EdnsRecord::new();
        record
            .set_max_payload(PAYLOAD_MAX)
            .set_version(0)
            .set_dnssec_ok(edns.dnssec_ok);
        record
    });
    reply
}

fn fill(reply: &mut Message, owner: &Name, set: RecordSet<'_>, zone: &Zone, rng: &mut impl rand::Rng) {
    let ttl = set.ttl();
    let mut scratch = Vec::new();
    let mut push = |data: RData| reply.answers.push(Record::from_rdata(owner.clone(), ttl, data));
    match set {
        RecordSet::A(addresses, _) => {
            let order = order(addresses.len(), addresses.len(), rng, &mut scratch);
            order.iter().for_each(|at| push(RData::A(A(addresses[*at]))));
        }
        RecordSet::Aaaa(addresses, _) => {
            let order = order(addresses.len(), addresses.len(), rng, &mut scratch);
            order
                .iter()
                .for_each(|at| push(RData::AAAA(AAAA(addresses[*at]))));
        }
        RecordSet::Srv(records, _) => {
            let mut given: Vec<&[u8]> = Vec::new();
            for srv in order(records.len(), records.len(), rng, &mut scratch)
                .iter()
                .map(|at| &records[*at])
            {
                let Some(target) = name(&srv.target) else { continue };
                let data = SRV::new(SRV_PRIORITY, SRV_WEIGHT, srv.port, target.clone());
                reply
                    .answers
                    .push(Record::from_rdata(owner.clone(), ttl, RData::SRV(data)));
                if !given.contains(&&*srv.target) {
                    given.push(&srv.target);
                    reply
                        .additionals
                        .extend(address_records(&target, &srv.addresses, ttl));
                }
            }
        }
        RecordSet::Version => push(RData::TXT(TXT::new(vec![SCHEMA_VERSION.to_owned()]))),
        RecordSet::AnyRefusal => push(RData::HINFO(HINFO::from_bytes(
            Box::from(*b"RFC8482"),
            Box::default(),
        ))),
        RecordSet::Ptr(target) => {
            if let Some(target) = name(target) {
                push(RData::PTR(PTR(target)));
            }
        }
        RecordSet::Ns => {
            push(RData::NS(NS(SERVER_NAME.clone())));
            reply
                .additionals
                .extend(address_records(&SERVER_NAME, zone.server(), ttl));
        }
        RecordSet::Soa => reply.answers.push(soa(zone, owner.clone(), ttl)),
    }
}

fn address_records(owner: &Name, addresses: &Addresses, ttl: u32) -> Vec<Record> {
    let v4 = addresses.v4.iter().map(|address| RData::A(A(*address)));
    let v6 = addresses.v6.iter().map(|address| RData::AAAA(AAAA(*address)));
    v4.chain(v6)
        .map(|data| Record::from_rdata(owner.clone(), ttl, data))
        .collect()
}

fn soa(zone: &Zone, owner: Name, ttl: u32) -> Record {
    let [refresh, retry, expire] = SOA_TIMERS.map(|timer| i32::try_from(timer).unwrap_or(i32::MAX));
    let data = SOA::new(
        SERVER_NAME.clone(),
        MAILBOX_NAME.clone(),
        zone.serial(),
        refresh,
        retry,
        expire,
        TTL_NEGATIVE,
    );
    Record::from_rdata(owner, ttl, RData::SOA(data))
}

/// The last two labels of a name in the zone, in the case of the question.
fn apex_of(name: &Name) -> Name {
    name.trim_to(2)
}

/// Encodes `reply` within the limit: first without the additional section (RFC 2181 §9), then with as many answers as fit, TC
/// set; question and OPT always stay.
fn finish(
    mut reply: Message,
    transport: Transport,
    edns: Option<Edns>,
    mut summary: Summary,
    out: &mut Vec<u8>,
) -> Reply {
    let limit = transport.limit(edns);
    let encode = |reply: &Message, out: &mut Vec<u8>| {
        out.clear();
        match reply.to_vec() {
            Ok(encoded) if encoded.len() <= limit => {
                out.extend_from_slice(&encoded);
                true
            }
            Ok(_) => false,
            Err(error) => {
                // Larger than 64 KiB, or a name that cannot be written: the cut below ends it.
                tracing::debug!(%error, "answer could not be encoded whole");
                false
            }
        }
    };
    if encode(&reply, out) {
        return Reply::Done(summary);
    }
    let mut additionals = std::mem::take(&mut reply.additionals);
    if encode(&reply, out) {
        // Halves until it fits: RFC 2181 §9 asks for no more than the answers.
        while !additionals.is_empty() {
            reply.additionals = additionals.clone();
            if encode(&reply, out) {
                return Reply::Done(summary);
            }
            additionals.truncate(additionals.len() / 2);
        }
        reply.additionals.clear();
        encode(&reply, out);
        return Reply::Done(summary);
    }
    summary.truncated = true;
    reply.metadata.truncation = true;
    let answers = std::mem::take(&mut reply.answers);
    let fits = |count: usize, out: &mut Vec<u8>, reply: &mut Message| {
        reply.answers = answers[..count].to_vec();
        encode(reply, out)
    };
    let (mut fitting, mut too_many) = (0, answers.len());
    while too_many - fitting > 1 {
        let middle = fitting + (too_many - fitting) / 2;
        if fits(middle, out, &mut reply) {
            fitting = middle
        } else {
            too_many = middle
        }
    }
    if fits(fitting, out, &mut reply) {
        Reply::Done(summary)
    } else {
        Reply::Silent
    }
}

/// A name of ours for the codec. Ours are always well formed.
fn name(wire: &[u8]) -> Option<Name> {
    let labels = Labels::of(wire)?;
    let mut name = Name::from_labels((1..=labels.count()).rev().map(|n| labels.text(n))).ok()?;
    name.set_fqdn(true);
    Some(name)
}

fn wire(name: &Name) -> Vec<u8> {
    let mut wire = Vec::with_capacity(name.len());
    for label in name.iter() {
        wire.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
        wire.extend(label.iter().map(u8::to_ascii_lowercase));
    }
    wire
}

static SERVER_NAME: LazyLock<Name> = LazyLock::new(|| name(&[SERVER, APEX].concat()).unwrap_or_default());
static MAILBOX_NAME: LazyLock<Name> = LazyLock::new(|| name(&[MAILBOX, APEX].concat()).unwrap_or_default());
