//! `tombolo resolve`: what one cluster's DNS server answers. Needs no broker.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use serde::Serialize;
use tombolo_clusterset::ClusterId;

use crate::args::Target;
use crate::operator::dns;
use crate::output::print;
use crate::up::{Layout, SiteNote};

/// The answer. JSON kind `answer`.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Answer {
    name: String,
    #[serde(rename = "type")]
    record_type: String,
    /// Whose DNS server.
    cluster: String,
    server: SocketAddr,
    /// `udp`, or `tcp` after a truncated answer.
    transport: &'static str,
    took_ms: u64,
    /// `NOERROR`, `NXDOMAIN`, `REFUSED`, `SERVFAIL`, …
    rcode: String,
    authoritative: bool,
    records: Vec<Item>,
    /// For a negative answer: the SOA that says how long it holds.
    authority: Vec<Item>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Item {
    name: String,
    ttl: u32,
    #[serde(rename = "type")]
    record_type: String,
    data: String,
}

pub(crate) async fn run(
    target: &Target,
    name: &str,
    cluster: Option<ClusterId>,
    record_type: &str,
) -> Result<ExitCode> {
    let asked = parse_name(name)?;
    let record_type = parse_type(record_type)?;
    let (cluster, server) = server(target, cluster)?;
    let reply = dns::ask(server, &asked, record_type)
        .await
        .with_context(|| format!("cannot ask {cluster}"))?;
    let answer = answer(
        &asked,
        record_type,
        cluster,
        server,
        &reply.message,
        reply.transport,
        reply.took,
    );
    print(target.output, "answer", &answer, text)?;
    let found = reply.message.metadata.response_code == ResponseCode::NoError && !answer.records.is_empty();
    Ok(if found {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// `--cluster`, or the only one that there is.
fn server(target: &Target, cluster: Option<ClusterId>) -> Result<(ClusterId, SocketAddr)> {
    let layout = Layout::new(&target.data_dir);
    let known: Vec<(String, SiteNote)> = layout
        .clusters()
        .into_iter()
        .filter_map(|(name, folder)| Some((name, SiteNote::load(&folder)?)))
        .collect();
    let names = || {
        known
            .iter()
            .map(|(name, _)| name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    if known.is_empty() {
        bail!(
            "there is no clusterset in {}; start one with `tombolo up`, or name its --data-dir",
            target.data_dir.display()
        );
    }
    let found = match (&cluster, known.as_slice()) {
        (Some(cluster), _) => known.iter().find(|(name, _)| name == cluster.as_str()),
        (None, [only]) => Some(only),
        (None, _) => bail!("which cluster asks? Give --cluster, one of {}", names()),
    };
    let Some((name, note)) = found else {
        bail!(
            "no cluster '{}' in {}; there is {}",
            cluster.map(|c| c.to_string()).unwrap_or_default(),
            target.data_dir.display(),
            names()
        );
    };
    Ok((ClusterId::parse(name)?, note.dns))
}

/// A full name, or the short `namespace/name`.
fn parse_name(text: &str) -> Result<Name> {
    let text = match text.split_once('/') {
        Some((namespace, name)) => format!("{name}.{namespace}.svc.clusterset.local"),
        None => text.to_owned(),
    };
    let mut name = Name::from_ascii(&text).with_context(|| {
        format!("'{text}' is no domain name; use for example checkout.shop.svc.clusterset.local")
    })?;
    name.set_fqdn(true);
    Ok(name)
}

fn parse_type(text: &str) -> Result<RecordType> {
    match text.to_ascii_uppercase().as_str() {
        "A" => Ok(RecordType::A),
        "AAAA" => Ok(RecordType::AAAA),
        "SRV" => Ok(RecordType::SRV),
        "TXT" => Ok(RecordType::TXT),
        "SOA" => Ok(RecordType::SOA),
        "NS" => Ok(RecordType::NS),
        _ => bail!("'{text}' is no record type of clusterset.local; use A, AAAA, SRV or TXT"),
    }
}

fn answer(
    name: &Name,
    record_type: RecordType,
    cluster: ClusterId,
    server: SocketAddr,
    message: &Message,
    transport: &'static str,
    took: Duration,
) -> Answer {
    Answer {
        name: name.to_string(),
        record_type: record_type.to_string(),
        cluster: cluster.to_string(),
        server,
        transport,
        took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        rcode: rcode(message.metadata.response_code),
        authoritative: message.metadata.authoritative,
        records: message
            .answers
            .iter()
            .chain(&message.additionals)
            .map(item)
            .collect(),
        authority: message.authorities.iter().map(item).collect(),
    }
}

fn item(record: &Record) -> Item {
    let data = match &record.data {
        RData::TXT(txt) => txt
            .txt_data
            .iter()
            .map(|text| format!("{:?}", String::from_utf8_lossy(text)))
            .collect::<Vec<_>>()
            .join(" "),
        data => data.to_string(),
    };
    Item {
        name: record.name.to_string(),
        ttl: record.ttl,
        record_type: record.record_type().to_string(),
        data,
    }
}

/// The word of dig.
fn rcode(code: ResponseCode) -> String {
    match code {
        ResponseCode::NoError => "NOERROR".to_owned(),
        ResponseCode::FormErr => "FORMERR".to_owned(),
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::NXDomain => "NXDOMAIN".to_owned(),
        ResponseCode::NotImp => "NOTIMP".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        other => format!("RCODE{}", u16::from(other)),
    }
}

fn text(answer: &Answer) -> String {
    let mut lines = Vec::new();
    let shown = if answer.records.is_empty() {
        &answer.authority
    } else {
        &answer.records
    };
    let width = shown.iter().map(|item| item.name.len()).max().unwrap_or(0);
    lines.extend(shown.iter().map(|item| {
        format!(
            "{:width$}  {:>4}  IN  {:4}  {}",
            item.name, item.ttl, item.record_type, item.data
        )
    }));
    let meaning = match answer.rcode.as_str() {
        "NXDOMAIN" => ": there is no such name",
        "NOERROR" if answer.records.is_empty() => ": the name exists, but not with this type",
        "REFUSED" => ": outside clusterset.local, and no upstream is configured",
        _ => "",
    };
    lines.push(format!(
        ";; {}{meaning}; {} of {} answered over {} in {} ms",
        answer.rcode, answer.server, answer.cluster, answer.transport, answer.took_ms
    ));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::{A, TXT};

    use super::*;

    fn message(code: ResponseCode, records: Vec<Record>) -> Message {
        let mut message = Message::query().into_response();
        message.metadata.response_code = code;
        message.metadata.authoritative = true;
        message.add_answers(records);
        message
    }

    fn shown(code: ResponseCode, records: Vec<Record>) -> Answer {
        let name = parse_name("shop/checkout").expect("a name");
        let server = "127.11.0.10:5353".parse().expect("an address");
        let cluster = ClusterId::parse("west").expect("an id");
        answer(
            &name,
            RecordType::A,
            cluster,
            server,
            &message(code, records),
            "udp",
            Duration::from_millis(1),
        )
    }

    #[test]
    fn prints_what_dig_would() {
        let name = parse_name("checkout.shop.svc.clusterset.local").expect("a name");
        let records = vec![
            Record::from_rdata(name.clone(), 5, RData::A(A::new(127, 11, 64, 1))),
            Record::from_rdata(name, 5, RData::TXT(TXT::new(vec!["1.0.0".into()]))),
        ];
        assert_eq!(
            text(&shown(ResponseCode::NoError, records)),
            "checkout.shop.svc.clusterset.local.     5  IN  A     127.11.64.1\n\
             checkout.shop.svc.clusterset.local.     5  IN  TXT   \"1.0.0\"\n\
             ;; NOERROR; 127.11.0.10:5353 of west answered over udp in 1 ms"
        );
        assert_eq!(
            text(&shown(ResponseCode::NXDomain, Vec::new())),
            ";; NXDOMAIN: there is no such name; 127.11.0.10:5353 of west answered over udp in 1 ms"
        );
    }

    #[test]
    fn the_fields_scripts_read() {
        assert_eq!(
            serde_json::to_value(shown(ResponseCode::NXDomain, Vec::new())).expect("json"),
            serde_json::json!({
                "name": "checkout.shop.svc.clusterset.local.", "type": "A", "cluster": "west",
                "server": "127.11.0.10:5353", "transport": "udp", "took_ms": 1, "rcode": "NXDOMAIN",
                "authoritative": true, "records": [], "authority": []
            })
        );
    }

    #[test]
    fn types_are_the_zone_s() {
        for (text, known) in [
            ("a", true),
            ("SRV", true),
            ("txt", true),
            ("MX", false),
            ("", false),
        ] {
            assert_eq!(parse_type(text).is_ok(), known, "{text}");
        }
    }
}
