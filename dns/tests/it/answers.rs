//! One table: a snapshot, a question, the whole answer. Both paths and both transports are held to it.

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tombolo_dns::edns::Transport;
use tombolo_dns::respond::{Reply, Responder};
use tombolo_dns::zone::Zone;

use crate::fixture::{shop, zone};

pub(crate) fn query(name: &str, rtype: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message
        .queries
        .push(Query::query(Name::from_ascii(name).unwrap(), rtype));
    message
}

pub(crate) fn ask_packet(zone: &Zone, packet: &[u8], transport: Transport) -> Option<Message> {
    let mut out = Vec::new();
    let mut responder = Responder::new(transport, false, StdRng::seed_from_u64(7));
    match responder.respond(zone, packet, &mut out) {
        Reply::Done(_) => Some(Message::from_vec(&out).unwrap()),
        Reply::Silent => None,
        Reply::Forward(_) => panic!("forwarding is off"),
    }
}

pub(crate) fn ask(zone: &Zone, name: &str, rtype: RecordType) -> Message {
    ask_packet(zone, &query(name, rtype).to_vec().unwrap(), Transport::Tcp).unwrap()
}

/// `owner type ttl data`, without `.clusterset.local.`, sorted.
fn lines(records: &[Record]) -> Vec<String> {
    let short = |text: String| {
        text.replace(".svc.clusterset.local.", "")
            .replace("clusterset.local.", "@")
    };
    let mut lines: Vec<String> = records
        .iter()
        .map(|record| {
            let data = match &record.data {
                RData::SRV(srv) => format!("{} {} {} {}", srv.priority, srv.weight, srv.port, srv.target),
                data => data.to_string(),
            };
            short(format!(
                "{} {} {} {data}",
                record.name,
                record.record_type(),
                record.ttl
            ))
        })
        .collect();
    lines.sort();
    lines
}

/// What an answer should be.
pub(crate) enum Expect<'a> {
    /// Answer section, additional section.
    Records(&'a [&'a str], &'a [&'a str]),
    /// NOERROR, nothing but the SOA.
    NoData,
    /// NXDOMAIN with the SOA.
    NoSuchName,
    /// REFUSED, empty.
    Refused,
}

pub(crate) fn check(zone: &Zone, name: &str, rtype: RecordType, expected: &Expect<'_>) {
    let about = format!("{name} {rtype}");
    let answer = ask(zone, name, rtype);
    assert_eq!(answer.metadata.id, 0x1234, "{about}");
    assert_eq!(answer.metadata.message_type, MessageType::Response, "{about}");
    assert!(
        answer.metadata.recursion_desired && !answer.metadata.recursion_available,
        "{about}"
    );
    assert!(
        answer.queries[0].name().eq_case(&Name::from_ascii(name).unwrap()),
        "{about}: the case of the question"
    );
    let authoritative = !matches!(expected, Expect::Refused);
    assert_eq!(answer.metadata.authoritative, authoritative, "{about}");
    let (rcode, answers, additional, soa) = match expected {
        Expect::Records(answers, additional) => (ResponseCode::NoError, *answers, *additional, false),
        Expect::NoData => (ResponseCode::NoError, &[][..], &[][..], true),
        Expect::NoSuchName => (ResponseCode::NXDomain, &[][..], &[][..], true),
        Expect::Refused => (ResponseCode::Refused, &[][..], &[][..], false),
    };
    assert_eq!(answer.metadata.response_code, rcode, "{about}");
    assert_eq!(lines(&answer.answers), answers, "{about}");
    assert_eq!(lines(&answer.additionals), additional, "{about}");
    let expected_soa = ["@ SOA 1 ns.dns.@ hostmaster.@ 7 7200 1800 86400 1"];
    assert_eq!(
        lines(&answer.authorities),
        if soa { &expected_soa[..] } else { &[] },
        "{about}"
    );
    for record in answer.all_sections() {
        assert!(record.ttl <= 5, "{about}: {record}");
    }
}

#[test]
fn every_rule_of_the_specification() {
    use Expect::{NoData, NoSuchName, Records, Refused};
    use RecordType::{A, AAAA, ANY, MX, NS, PTR, SOA, SRV, TXT};
    let zone = zone(&shop(), &[]);
    let table: &[(&str, RecordType, Expect<'_>)] = &[
        // §2.2: the schema's version.
        (
            "dns-version.clusterset.local.",
            TXT,
            Records(&["dns-version.@ TXT 5 1.0.0"], &[]),
        ),
        ("dns-version.clusterset.local.", A, NoData),
        ("x.dns-version.clusterset.local.", TXT, NoSuchName),
        // §2.3.1: clusterset IPs.
        (
            "checkout.shop.svc.clusterset.local.",
            A,
            Records(&["checkout.shop A 5 127.11.64.1"], &[]),
        ),
        ("checkout.shop.svc.clusterset.local.", AAAA, NoData),
        (
            "dual.shop.svc.clusterset.local.",
            A,
            Records(&["dual.shop A 5 127.11.64.4"], &[]),
        ),
        (
            "dual.shop.svc.clusterset.local.",
            AAAA,
            Records(&["dual.shop AAAA 5 2001:db8::4"], &[]),
        ),
        // §2.3.2: SRV per named port, none for an unnamed one.
        (
            "_http._tcp.checkout.shop.svc.clusterset.local.",
            SRV,
            Records(
                &["_http._tcp.checkout.shop SRV 5 0 100 80 checkout.shop"],
                &["checkout.shop A 5 127.11.64.1"],
            ),
        ),
        ("_http._tcp.checkout.shop.svc.clusterset.local.", A, NoData),
        ("_http._udp.checkout.shop.svc.clusterset.local.", SRV, NoSuchName),
        ("_none._tcp.checkout.shop.svc.clusterset.local.", SRV, NoSuchName),
        ("_._tcp.plain.shop.svc.clusterset.local.", SRV, NoSuchName),
        ("_tcp.checkout.shop.svc.clusterset.local.", SRV, NoData),
        ("_tcp.plain.shop.svc.clusterset.local.", SRV, NoSuchName),
        // Conformance: SRV of the bare name, once for each (target, port).
        (
            "conformance.shop.svc.clusterset.local.",
            SRV,
            Records(
                &["conformance.shop SRV 5 0 100 42 conformance.shop"],
                &["conformance.shop A 5 127.11.64.2"],
            ),
        ),
        (
            "checkout.shop.svc.clusterset.local.",
            SRV,
            Records(
                &[
                    "checkout.shop SRV 5 0 100 80 checkout.shop",
                    "checkout.shop SRV 5 0 100 9090 checkout.shop",
                ],
                &["checkout.shop A 5 127.11.64.1"],
            ),
        ),
        (
            "plain.shop.svc.clusterset.local.",
            SRV,
            Records(
                &["plain.shop SRV 5 0 100 25 plain.shop"],
                &["plain.shop A 5 127.11.64.3"],
            ),
        ),
        // §2.3.3: PTR of what has no other.
        (
            "1.64.11.127.in-addr.arpa.",
            PTR,
            Records(&["1.64.11.127.in-addr.arpa. PTR 5 checkout.shop"], &[]),
        ),
        (
            "1.0.2.10.in-addr.arpa.",
            PTR,
            Records(
                &["1.0.2.10.in-addr.arpa. PTR 5 d-0.eks-us-east-1.draining.shop"],
                &[],
            ),
        ),
        ("1.64.11.127.in-addr.arpa.", A, Refused),
        ("99.64.11.127.in-addr.arpa.", PTR, Refused),
        // §2.3.4: no cluster of a ClusterSetIP service has a name.
        (
            "aks-westeurope.checkout.shop.svc.clusterset.local.",
            A,
            NoSuchName,
        ),
        (
            "eks-us-east-1.checkout.shop.svc.clusterset.local.",
            SRV,
            NoSuchName,
        ),
        // §2.4.1: headless.
        (
            "ledger.shop.svc.clusterset.local.",
            A,
            Records(
                &[
                    "ledger.shop A 1 10.1.0.1",
                    "ledger.shop A 1 10.2.0.1",
                    "ledger.shop A 1 10.2.0.7",
                ],
                &[],
            ),
        ),
        ("ledger.shop.svc.clusterset.local.", AAAA, NoData),
        (
            "ledger-0.aks-westeurope.ledger.shop.svc.clusterset.local.",
            A,
            Records(&["ledger-0.aks-westeurope.ledger.shop A 1 10.1.0.1"], &[]),
        ),
        (
            "ledger-0.eks-us-east-1.ledger.shop.svc.clusterset.local.",
            A,
            Records(&["ledger-0.eks-us-east-1.ledger.shop A 1 10.2.0.1"], &[]),
        ),
        (
            "10-2-0-7.eks-us-east-1.ledger.shop.svc.clusterset.local.",
            A,
            Records(&["10-2-0-7.eks-us-east-1.ledger.shop A 1 10.2.0.7"], &[]),
        ),
        (
            "ledger-1.aks-westeurope.ledger.shop.svc.clusterset.local.",
            A,
            NoSuchName,
        ),
        ("ledger-0.ledger.shop.svc.clusterset.local.", A, NoSuchName),
        (
            "ledger-0.gke-us-central1.ledger.shop.svc.clusterset.local.",
            A,
            NoSuchName,
        ),
        ("six.svc.clusterset.local.", A, NoData),
        (
            "pods.six.svc.clusterset.local.",
            A,
            Records(&["pods.six A 1 10.3.0.1"], &[]),
        ),
        (
            "pods.six.svc.clusterset.local.",
            AAAA,
            Records(
                &["pods.six AAAA 1 2001:db8::1", "pods.six AAAA 1 2001:db8::2"],
                &[],
            ),
        ),
        (
            "p-0.gke-us-central1.pods.six.svc.clusterset.local.",
            AAAA,
            Records(&["p-0.gke-us-central1.pods.six AAAA 1 2001:db8::1"], &[]),
        ),
        (
            "2001-db8--2.gke-us-central1.pods.six.svc.clusterset.local.",
            AAAA,
            Records(&["2001-db8--2.gke-us-central1.pods.six AAAA 1 2001:db8::2"], &[]),
        ),
        // No ready endpoint: no name. Terminating ones only when there is nothing else.
        ("idle.shop.svc.clusterset.local.", A, NoSuchName),
        ("_http._tcp.idle.shop.svc.clusterset.local.", SRV, NoSuchName),
        (
            "draining.shop.svc.clusterset.local.",
            A,
            Records(&["draining.shop A 1 10.2.0.1"], &[]),
        ),
        // §2.4.2: SRV of each endpoint.
        (
            "_http._tcp.ledger.shop.svc.clusterset.local.",
            SRV,
            Records(
                &[
                    "_http._tcp.ledger.shop SRV 1 0 100 80 10-2-0-7.eks-us-east-1.ledger.shop",
                    "_http._tcp.ledger.shop SRV 1 0 100 80 ledger-0.aks-westeurope.ledger.shop",
                    "_http._tcp.ledger.shop SRV 1 0 100 80 ledger-0.eks-us-east-1.ledger.shop",
                ],
                &[
                    "10-2-0-7.eks-us-east-1.ledger.shop A 1 10.2.0.7",
                    "ledger-0.aks-westeurope.ledger.shop A 1 10.1.0.1",
                    "ledger-0.eks-us-east-1.ledger.shop A 1 10.2.0.1",
                ],
            ),
        ),
        (
            "pods.six.svc.clusterset.local.",
            SRV,
            Records(
                &[
                    "pods.six SRV 1 0 100 80 2001-db8--2.gke-us-central1.pods.six",
                    "pods.six SRV 1 0 100 80 p-0.gke-us-central1.pods.six",
                ],
                &[
                    "2001-db8--2.gke-us-central1.pods.six AAAA 1 2001:db8::2",
                    "p-0.gke-us-central1.pods.six A 1 10.3.0.1",
                    "p-0.gke-us-central1.pods.six AAAA 1 2001:db8::1",
                ],
            ),
        ),
        // §2.4.4: no record at a headless service's cluster; the name is only the way to its hosts (RFC 8020).
        ("eks-us-east-1.ledger.shop.svc.clusterset.local.", A, NoData),
        ("eks-us-east-1.ledger.shop.svc.clusterset.local.", SRV, NoData),
        ("gke-us-central1.ledger.shop.svc.clusterset.local.", A, NoSuchName),
        // The zone itself, and what lies between it and the services.
        (
            "clusterset.local.",
            SOA,
            Records(&["@ SOA 5 ns.dns.@ hostmaster.@ 7 7200 1800 86400 1"], &[]),
        ),
        (
            "clusterset.local.",
            NS,
            Records(&["@ NS 5 ns.dns.@"], &["ns.dns.@ A 5 127.11.0.10"]),
        ),
        ("clusterset.local.", A, NoData),
        (
            "ns.dns.clusterset.local.",
            A,
            Records(&["ns.dns.@ A 5 127.11.0.10"], &[]),
        ),
        ("dns.clusterset.local.", A, NoData),
        ("svc.clusterset.local.", A, NoData),
        ("shop.svc.clusterset.local.", A, NoData),
        ("shop.svc.clusterset.local.", SOA, NoData),
        ("empty.svc.clusterset.local.", A, NoSuchName),
        ("internal.shop.svc.clusterset.local.", A, NoSuchName),
        ("checkout.shop.pod.clusterset.local.", A, NoSuchName),
        ("shop.clusterset.local.", A, NoSuchName),
        ("checkout.shop.svc.clusterset.local.", MX, NoData),
        // RFC 8482, and what is never given.
        (
            "checkout.shop.svc.clusterset.local.",
            ANY,
            Records(&["checkout.shop HINFO 5 RFC8482 "], &[]),
        ),
        ("shop.svc.clusterset.local.", ANY, NoData),
        ("none.shop.svc.clusterset.local.", ANY, NoSuchName),
        ("clusterset.local.", RecordType::AXFR, Refused),
        ("clusterset.local.", RecordType::IXFR, Refused),
        // Elsewhere.
        ("checkout.shop.svc.cluster.local.", A, Refused),
        ("example.com.", A, Refused),
        ("local.", A, Refused),
        (".", NS, Refused),
        ("xclusterset.local.", A, Refused),
    ];
    for (name, rtype, expected) in table {
        check(&zone, name, *rtype, expected);
    }
}

#[test]
fn case_does_not_matter_and_is_kept() {
    let zone = zone(&shop(), &[]);
    let name = "cHeCkOuT.ShOp.SVC.cLuStErSeT.lOcAl.";
    let answer = ask(&zone, name, RecordType::A);
    assert!(answer.queries[0].name().eq_case(&Name::from_ascii(name).unwrap()));
    assert_eq!(answer.answers.len(), 1);
    assert!(
        answer.answers[0].name.eq_case(&Name::from_ascii(name).unwrap()),
        "the owner points at the question"
    );
    assert_eq!(
        ask(&zone, "DNS-VERSION.clusterset.LOCAL.", RecordType::TXT)
            .answers
            .len(),
        1
    );
}

#[test]
fn before_the_first_snapshot_nothing_is_denied() {
    let zone = tombolo_dns::zone::Zones::new(&[], 1).unloaded();
    let answer = ask(&zone, "checkout.shop.svc.clusterset.local.", RecordType::A);
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(
        ask(&zone, "example.com.", RecordType::A).metadata.response_code,
        ResponseCode::Refused
    );
}

#[test]
fn other_classes_are_refused() {
    let zone = zone(&shop(), &[]);
    for class in [DNSClass::CH, DNSClass::ANY, DNSClass::Unknown(77)] {
        let mut message = query("checkout.shop.svc.clusterset.local.", RecordType::A);
        message.queries[0].set_query_class(class);
        let answer = ask_packet(&zone, &message.to_vec().unwrap(), Transport::Udp).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::Refused, "{class}");
        assert!(answer.answers.is_empty());
    }
}
