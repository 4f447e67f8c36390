//! Octets: both paths agree, sizes hold, and nothing that arrives can do harm.

use std::sync::LazyLock;

use hickory_proto::op::{Edns, Message, OpCode, ResponseCode};
use hickory_proto::rr::RecordType;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tombolo_clusterset::endpoint::Protocol;
use tombolo_dns::edns::Transport;
use tombolo_dns::fast;
use tombolo_dns::plain;
use tombolo_dns::respond::{Reply, Responder};
use tombolo_dns::zone::Zone;

use crate::answers::{ask_packet, query};
use crate::fixture::{EKS, HERE, import, port, shop, snapshot, zone};

static SHOP: LazyLock<Zone> = LazyLock::new(|| zone(&shop(), &[]));

/// 200 endpoints: 3.2 kB of A records, and more of SRV.
static LARGE: LazyLock<Zone> = LazyLock::new(|| {
    let addresses = |net: u8| (0..100_u8).map(|n| format!("10.{net}.0.{n}")).collect::<Vec<_>>();
    let (here, there) = (addresses(1), addresses(2));
    let texts = |list: &'static [String]| list.iter().map(String::as_str).collect::<Vec<_>>();
    let (here, there) = (texts(here.leak()), texts(there.leak()));
    zone(
        &snapshot([import(
            "shop/ledger",
            &[],
            &[port("http", Protocol::Tcp, 80)],
            &[(HERE, &here), (EKS, &there)],
        )]),
        &[],
    )
});

const LEDGER: &str = "ledger.shop.svc.clusterset.local.";

fn with_edns(name: &str, rtype: RecordType, payload: u16) -> Message {
    let mut message = query(name, rtype);
    let mut edns = Edns::new();
    edns.set_max_payload(payload).set_dnssec_ok(true);
    message.edns = Some(edns);
    message
}

fn responder(transport: Transport) -> Responder<StdRng> {
    Responder::new(transport, false, StdRng::seed_from_u64(1))
}

/// The same packet down both paths.
fn both(zone: &Zone, packet: &[u8], transport: Transport) -> Option<(Message, Message)> {
    let mut responder = responder(transport);
    fast::parse(packet, &mut responder.scratch)?;
    let (mut quick, mut slow) = (Vec::new(), Vec::new());
    let one = responder.respond(zone, packet, &mut quick);
    let other = plain::respond(&mut responder, zone, packet, &mut slow);
    assert_eq!(one, other);
    let read = |octets: &[u8]| Message::from_vec(octets).unwrap();
    Some((read(&quick), read(&slow)))
}

fn sorted(records: &[hickory_proto::rr::Record]) -> Vec<String> {
    let mut lines: Vec<_> = records
        .iter()
        .map(|record| record.to_string().to_lowercase())
        .collect();
    lines.sort();
    lines
}

fn assert_same(quick: &Message, slow: &Message) {
    assert_eq!(quick.metadata, slow.metadata);
    assert_eq!(quick.queries, slow.queries);
    assert!(quick.queries[0].name().eq_case(slow.queries[0].name()));
    assert_eq!(
        quick.edns.as_ref().map(ToString::to_string),
        slow.edns.as_ref().map(ToString::to_string)
    );
    assert_eq!(sorted(&quick.authorities), sorted(&slow.authorities));
    if quick.metadata.truncation {
        assert_eq!(quick.answers.len(), slow.answers.len());
    } else {
        assert_eq!(sorted(&quick.answers), sorted(&slow.answers));
    }
}

/// Names near and on those that exist.
fn names() -> impl Strategy<Value = String> {
    let label = prop::sample::select(vec![
        "clusterset",
        "local",
        "svc",
        "shop",
        "six",
        "checkout",
        "Ledger",
        "pods",
        "many",
        "ledger-0",
        "p-0",
        "eks-us-east-1",
        "aks-westeurope",
        "gke-us-central1",
        "_http",
        "_tcp",
        "_UDP",
        "dns-version",
        "dns",
        "ns",
        "10-2-0-7",
        "conformance",
        "draining",
        "idle",
        "in-addr",
        "arpa",
        "127",
        "11",
        "64",
        "1",
    ]);
    let tail = prop::sample::select(vec![
        "svc.clusterset.local.",
        "ClusterSet.Local.",
        "shop.svc.clusterset.local.",
        "",
    ]);
    (prop::collection::vec(label, 0..6), tail).prop_map(|(labels, tail)| {
        let name = labels.iter().map(|label| format!("{label}.")).collect::<String>() + tail;
        if name.is_empty() { ".".to_owned() } else { name }
    })
}

fn rtypes() -> impl Strategy<Value = RecordType> {
    prop_oneof![
        prop::sample::select(vec![1_u16, 28, 33, 16, 2, 6, 12, 255, 252, 251, 15, 41])
            .prop_map(RecordType::from),
        any::<u16>().prop_map(RecordType::from),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fast_and_plain_say_the_same(
        name in names(), rtype in rtypes(), payload in prop::option::of(any::<u16>()), large: bool, tcp: bool, flags: [bool; 4],
    ) {
        let mut message = match payload {
            Some(payload) => with_edns(&name, rtype, payload),
            None => query(&name, rtype),
        };
        message.metadata.recursion_desired = flags[0];
        message.metadata.checking_disabled = flags[1];
        message.metadata.authentic_data = flags[2];
        if let (Some(edns), false) = (&mut message.edns, flags[3]) {
            edns.set_dnssec_ok(false);
        }
        let zone = if large { &*LARGE } else { &*SHOP };
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        let (quick, slow) = both(zone, &message.to_vec().unwrap(), transport).expect("an ordinary query");
        assert_same(&quick, &slow);
        if tcp {
            assert_eq!(sorted(&quick.additionals), sorted(&slow.additionals));
        }
    }

    #[test]
    fn random_octets_do_no_harm(packet in prop::collection::vec(any::<u8>(), 0..700), tcp: bool) {
        harmless(&packet, tcp);
    }

    #[test]
    fn damaged_queries_do_no_harm(
        name in names(), rtype in rtypes(), edns: bool, cut in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(),
        octet: u8, tcp: bool,
    ) {
        let message = if edns { with_edns(&name, rtype, 1232) } else { query(&name, rtype) };
        let whole = message.to_vec().unwrap();
        harmless(&whole[..cut.index(whole.len() + 1)], tcp);
        let mut changed = whole.clone();
        changed[at.index(whole.len())] = octet;
        harmless(&changed, tcp);
        let mut longer = whole;
        longer.push(octet);
        harmless(&longer, tcp);
    }
}

/// No panic, no answer over the limit, and both paths agree where both apply.
fn harmless(packet: &[u8], tcp: bool) {
    let transport = if tcp { Transport::Tcp } else { Transport::Udp };
    let mut out = Vec::new();
    let reply = responder(transport).respond(&SHOP, packet, &mut out);
    if let Reply::Done(_) = reply {
        assert!(out.len() <= if tcp { 65_535 } else { 1_232 });
        assert_eq!(out[..2], packet[..2]);
        Message::from_vec(&out).unwrap();
    }
    if let Some((quick, slow)) = both(&SHOP, packet, transport) {
        assert_same(&quick, &slow);
    }
}

#[test]
fn what_is_no_query_gets_silence_or_an_error() {
    let valid = query(LEDGER, RecordType::A).to_vec().unwrap();
    let edit = |at: usize, octet: u8| {
        let mut packet = valid.clone();
        packet[at] = octet;
        packet
    };
    let table: &[(&str, Vec<u8>, Option<ResponseCode>)] = &[
        ("empty", vec![], None),
        ("eleven octets", valid[..11].to_vec(), None),
        ("a response", edit(2, 0x81), None),
        ("STATUS", edit(2, 0x10), Some(ResponseCode::NotImp)),
        ("NOTIFY", edit(2, 0x20), Some(ResponseCode::NotImp)),
        ("UPDATE", edit(2, 0x28), Some(ResponseCode::NotImp)),
        ("no question", edit(5, 0), Some(ResponseCode::FormErr)),
        ("two questions", edit(5, 2), Some(ResponseCode::FormErr)),
        ("cut", valid[..20].to_vec(), Some(ResponseCode::FormErr)),
        (
            "octets left over",
            [&valid[..], &[0]].concat(),
            Some(ResponseCode::FormErr),
        ),
        ("a pointer to itself", edit(12, 0xc0), Some(ResponseCode::FormErr)),
    ];
    for (about, packet, expected) in table {
        for transport in [Transport::Udp, Transport::Tcp] {
            let answer = ask_packet(&SHOP, packet, transport);
            assert_eq!(
                answer.map(|answer| answer.metadata.response_code),
                *expected,
                "{about}"
            );
        }
    }
}

#[test]
fn every_prefix_of_a_query_is_survived() {
    let packet = with_edns(LEDGER, RecordType::SRV, 4096).to_vec().unwrap();
    for end in 0..packet.len() {
        let answer = ask_packet(&SHOP, &packet[..end], Transport::Udp);
        let expected = (end >= 12).then_some(ResponseCode::FormErr);
        assert_eq!(
            answer.map(|answer| answer.metadata.response_code),
            expected,
            "{end} octets"
        );
    }
}

#[test]
fn sizes_follow_edns_and_a_cut_answer_keeps_its_opt() {
    let table: &[(Option<u16>, usize)] = &[
        (None, 512),
        (Some(0), 512),
        (Some(512), 512),
        (Some(1000), 1000),
        (Some(1232), 1232),
        (Some(65535), 1232),
    ];
    for (payload, limit) in table {
        for rtype in [RecordType::A, RecordType::SRV] {
            let message = match payload {
                Some(payload) => with_edns(LEDGER, rtype, *payload),
                None => query(LEDGER, rtype),
            };
            let mut out = Vec::new();
            let packet = message.to_vec().unwrap();
            responder(Transport::Udp).respond(&LARGE, &packet, &mut out);
            assert!(
                out.len() <= *limit && out.len() > limit / 2,
                "{payload:?}: {} octets",
                out.len()
            );
            let answer = Message::from_vec(&out).unwrap();
            assert!(
                answer.metadata.truncation && !answer.answers.is_empty() && answer.additionals.is_empty()
            );
            assert_eq!(answer.edns.is_some(), payload.is_some());
            if let Some(edns) = answer.edns {
                assert_eq!(
                    (edns.max_payload(), edns.version(), edns.flags().dnssec_ok),
                    (1232, 0, true)
                );
            }
            let whole = ask_packet(&LARGE, &packet, Transport::Tcp).unwrap();
            assert!(!whole.metadata.truncation);
            assert_eq!(whole.answers.len(), 200);
        }
    }
}

#[test]
fn another_edns_version_is_bad() {
    let mut message = with_edns(LEDGER, RecordType::A, 1232);
    message.edns.as_mut().unwrap().set_version(1);
    let answer = ask_packet(&SHOP, &message.to_vec().unwrap(), Transport::Udp).unwrap();
    // 16 is BADVERS and BADSIG; which of them depends on the record that carries it.
    assert_eq!(u16::from(answer.metadata.response_code), 16);
    assert_eq!(answer.edns.unwrap().version(), 0);
    assert!(answer.answers.is_empty());
}

#[test]
fn two_opt_records_are_malformed() {
    let mut packet = with_edns(LEDGER, RecordType::A, 1232).to_vec().unwrap();
    let opt = packet[packet.len() - 11..].to_vec();
    packet.extend_from_slice(&opt);
    packet[11] = 2;
    let answer = ask_packet(&SHOP, &packet, Transport::Udp).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::FormErr);
}

#[test]
fn answers_are_shuffled_and_a_cut_one_leaves_nobody_out_for_ever() {
    let packet = query(LEDGER, RecordType::A).to_vec().unwrap();
    let mut responder = responder(Transport::Udp);
    let mut seen = std::collections::BTreeSet::new();
    let mut firsts = std::collections::BTreeSet::new();
    for _ in 0..200 {
        let mut out = Vec::new();
        responder.respond(&LARGE, &packet, &mut out);
        let answer = Message::from_vec(&out).unwrap();
        assert_eq!(answer.metadata.op_code, OpCode::Query);
        firsts.insert(answer.answers[0].data.to_string());
        seen.extend(answer.answers.iter().map(|record| record.data.to_string()));
    }
    assert_eq!(seen.len(), 200);
    assert!(firsts.len() > 50);
}
