use tombolo_clusterset::{ClusterId, LossPolicy, ServiceSpec, ServiceType};

use super::*;

fn key(name: &str) -> ServiceKey {
    ServiceKey::parse(&format!("shop/{name}")).unwrap()
}

/// Exports by name and UID.
fn wanted(exports: &[(&str, &str)]) -> BTreeMap<ServiceKey, Arc<Export>> {
    let spec = ServiceSpec {
        service_type: ServiceType::Headless,
        ports: Vec::new(),
        ip_families: Vec::new(),
        session_affinity: tombolo_clusterset::export::SessionAffinity::None,
        session_affinity_timeout_seconds: None,
        internal_traffic_policy: String::new(),
        traffic_distribution: String::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    };
    let export = |(name, uid): &(&str, &str)| Export {
        key: key(name),
        cluster: ClusterId::parse("here").unwrap(),
        uid: (*uid).to_owned(),
        claimed_created_ms: 0,
        spec: spec.clone(),
        loss_policy: LossPolicy::Degrade,
        slices: Vec::new(),
    };
    exports
        .iter()
        .map(|named| (key(named.0), Arc::new(export(named))))
        .collect()
}

/// All that the publisher has to say now, in short.
fn said(publisher: &mut Publisher) -> Vec<String> {
    std::iter::from_fn(|| publisher.next_message())
        .map(|message| match message.request.unwrap() {
            Request::Init(_) => "init".to_owned(),
            Request::Upsert(upsert) => {
                let export = upsert.export.unwrap();
                format!(
                    "{} upsert {} {}",
                    upsert.sequence,
                    export.key.unwrap().name,
                    export.uid
                )
            }
            Request::Delete(delete) => format!("{} delete {}", delete.sequence, delete.key.unwrap().name),
            Request::InitDone(done) => format!("{} init-done", done.sequence),
            other => panic!("{other:?}"),
        })
        .collect()
}

fn grant() -> Grant {
    Grant {
        epoch: 7,
        lease_term_ms: 10_000,
        incarnation: 1,
    }
}

fn opened(exports: &[(&str, &str)]) -> Publisher {
    let mut publisher = Publisher::default();
    publisher.want(&wanted(exports));
    publisher.open();
    assert_eq!(said(&mut publisher), [""; 0], "nothing before the grant");
    publisher.granted(grant());
    publisher
}

#[test]
fn a_full_state_then_deltas() {
    let mut publisher = opened(&[("a", "1"), ("b", "1")]);
    assert_eq!(
        said(&mut publisher),
        ["init", "1 upsert a 1", "2 upsert b 1", "3 init-done"]
    );
    assert!(!publisher.is_settled());
    for sequence in 1..=3 {
        publisher.accepted(sequence, 40 + sequence);
    }
    assert!(publisher.is_settled());
    assert_eq!(
        publisher.progress(&key("b")),
        Some(&Progress::Accepted { log_index: 42 })
    );
    publisher.want(&wanted(&[("b", "1"), ("a", "2"), ("c", "1")]));
    assert_eq!(publisher.progress(&key("a")), Some(&Progress::Pending));
    publisher.want(&wanted(&[("a", "2"), ("c", "1")]));
    assert_eq!(
        said(&mut publisher),
        ["4 upsert a 2", "5 upsert c 1", "6 delete b"]
    );
    publisher.want(&wanted(&[("a", "2"), ("c", "1")]));
    assert_eq!(said(&mut publisher), [""; 0], "nothing changed");
}

#[test]
fn a_lost_stream_begins_anew_with_its_epoch() {
    let mut publisher = opened(&[("a", "1")]);
    assert_eq!(said(&mut publisher).len(), 3);
    publisher.lost();
    publisher.want(&wanted(&[("b", "1")]));
    assert_eq!(said(&mut publisher), [""; 0]);
    assert_eq!(publisher.epoch(), 7);
    publisher.open();
    publisher.granted(grant());
    assert_eq!(
        said(&mut publisher),
        ["init", "1 upsert b 1", "2 init-done"],
        "what is not named is gone"
    );
    publisher.accepted(1, 9);
    assert_eq!(
        publisher.progress(&key("b")),
        Some(&Progress::Accepted { log_index: 9 })
    );
    publisher.forget_epoch();
    assert_eq!(publisher.epoch(), 0);
}

#[test]
fn a_refusal_concerns_one_export_and_is_not_repeated() {
    let mut publisher = opened(&[("a", "1"), ("b", "1")]);
    said(&mut publisher);
    assert_eq!(publisher.rejected(1, "too large"), Some(key("a")));
    publisher.accepted(2, 5);
    assert_eq!(
        publisher.progress(&key("a")),
        Some(&Progress::Rejected {
            reason: "too large".into()
        })
    );
    assert_eq!(said(&mut publisher), [""; 0]);
    publisher.want(&wanted(&[("a", "2"), ("b", "1")]));
    assert_eq!(said(&mut publisher), ["4 upsert a 2"], "once it has changed");
    assert_eq!(publisher.rejected(99, "unheard of"), None);
}

#[test]
fn an_answer_to_an_older_version_settles_nothing() {
    let mut publisher = opened(&[("a", "1")]);
    said(&mut publisher);
    publisher.want(&wanted(&[("a", "2")]));
    publisher.accepted(1, 5);
    assert_eq!(publisher.progress(&key("a")), Some(&Progress::Pending));
    assert_eq!(said(&mut publisher), ["3 upsert a 2"]);
    publisher.accepted(3, 6);
    assert_eq!(
        publisher.progress(&key("a")),
        Some(&Progress::Accepted { log_index: 6 })
    );
}

#[test]
fn what_is_unacknowledged_is_bounded() {
    let names: Vec<String> = (0..MAX_IN_FLIGHT + 10)
        .map(|number| format!("s{number}"))
        .collect();
    let exports: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "1")).collect();
    let mut publisher = opened(&exports);
    assert_eq!(said(&mut publisher).len(), 1 + MAX_IN_FLIGHT);
    assert_eq!(publisher.in_flight(), MAX_IN_FLIGHT);
    publisher.accepted(1, 1);
    assert_eq!(said(&mut publisher).len(), 1);
}
