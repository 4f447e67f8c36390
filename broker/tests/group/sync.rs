//! Publishing and watching.

use tombolo_broker::bounds::{DRILL_REPORT_MAX_BYTES, EXPORT_MAX_BYTES};
use tombolo_wire::v1;
use tombolo_wire::v1::publish_reply::Reply;
use tombolo_wire::v1::publish_request::Request;
use tombolo_wire::v1::sync_client::SyncClient;
use tombolo_wire::v1::watch_event::Event;
use tonic::Code;

use crate::harness::{Agent, Watch, single};

fn export_of(event: &Event) -> Option<(v1::ExportRecord, u64)> {
    let Event::Apply(v1::WatchApply {
        entry: Some(entry),
        revision,
    }) = event
    else {
        return None;
    };
    match &entry.entry {
        Some(v1::entry::Entry::Export(record)) => Some((record.clone(), *revision)),
        _ => None,
    }
}

async fn init_done(watch: &mut Watch) -> v1::WatchProgress {
    let done = |event: &Event| match event {
        Event::InitDone(progress) => Some(*progress),
        _ => None,
    };
    watch.until(done).await
}

async fn full_state(
    agent: &Agent,
    api: std::net::SocketAddr,
    services: &[&str],
) -> crate::harness::Publisher {
    let mut publisher = agent.publish(api, 0).await.unwrap();
    publisher.ask(Request::Init(v1::PublishInit {})).await;
    for (sequence, service) in (1..).zip(services) {
        let reply = publisher
            .upsert(sequence, agent.export(service, 2))
            .await
            .unwrap();
        assert!(
            matches!(reply, Reply::Accepted(accepted) if accepted.sequence == sequence),
            "{reply:?}"
        );
    }
    let sequence = services.len() as u64 + 1;
    publisher
        .ask(Request::InitDone(v1::PublishInitDone { sequence }))
        .await;
    assert!(matches!(publisher.next().await.unwrap(), Reply::Accepted(_)));
    publisher
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_publishes_the_other_sees_and_resumes() {
    let group = single(21).await;
    let api = group.node.config.api;
    let west = group.operator.join(api, "west").await;
    let east = group.operator.join(api, "east").await;
    let mut publisher = full_state(&west, api, &["shop/cart", "shop/checkout"]).await;
    assert_eq!(publisher.granted.epoch, 1);

    let mut watch = east.watch(api, 0, 0).await.unwrap();
    assert!(matches!(watch.next().await.unwrap(), Event::Init(_)));
    let mut seen = Vec::new();
    let done = loop {
        match watch.next().await.unwrap() {
            Event::InitDone(progress) => break progress,
            event => seen.extend(export_of(&event).map(|(record, _)| record)),
        }
    };
    assert_eq!(seen.len(), 2);
    assert!(done.fresh);
    assert!(
        seen.iter()
            .all(|record| record.admitted > 0 && record.created_ms == 1)
    );
    drop(watch);

    // While nobody watches: one change, one deletion.
    publisher.upsert(10, west.export("shop/cart", 3)).await.unwrap();
    let key = west.export("shop/checkout", 1).key;
    publisher
        .ask(Request::Delete(v1::PublishDelete { sequence: 11, key }))
        .await;
    let Reply::Accepted(accepted) = publisher.next().await.unwrap() else {
        panic!("not accepted")
    };
    assert_eq!(accepted.sequence, 11);

    let mut watch = east.watch(api, done.incarnation, done.revision).await.unwrap();
    let first = watch.next().await.unwrap();
    let (record, _) = export_of(&first).expect("resumed with the change, not with everything");
    assert_eq!(record.export.unwrap().slices[0].endpoints.len(), 3);
    let deleted = watch.until(|event| match event {
        Event::Delete(delete) => delete.key.clone(),
        _ => None,
    });
    assert!(matches!(deleted.await.key, Some(v1::entry_key::Key::Export(_))));

    // Another history: everything from the start.
    let mut watch = east
        .watch(api, done.incarnation + 1, done.revision)
        .await
        .unwrap();
    assert!(matches!(watch.next().await.unwrap(), Event::Init(_)));
    init_done(&mut watch).await;
    let mut watch = east
        .watch(api, done.incarnation, done.revision + 1_000_000)
        .await
        .unwrap();
    assert!(matches!(watch.next().await.unwrap(), Event::Init(_)));
    group.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resync_keeps_precedence_and_drops_what_it_does_not_name() {
    let group = single(22).await;
    let api = group.node.config.api;
    let west = group.operator.join(api, "west").await;
    drop(full_state(&west, api, &["shop/cart", "shop/gone"]).await);
    let mut watch = west.watch(api, 0, 0).await.unwrap();
    let cart = |event: &Event| {
        export_of(event)
            .map(|(r, _)| r)
            .filter(|r| r.export.as_ref().unwrap().key == west.export("shop/cart", 0).key)
    };
    let first = watch.until(cart).await;
    init_done(&mut watch).await;
    let publisher = full_state(&west, api, &["shop/cart"]).await;
    assert_eq!(publisher.granted.epoch, 2);
    let mut watch = west.watch(api, 0, 0).await.unwrap();
    let mut exports = Vec::new();
    loop {
        match watch.next().await.unwrap() {
            Event::InitDone(_) => break,
            event => exports.extend(export_of(&event).map(|(record, _)| record)),
        }
    }
    assert_eq!(exports, [first]);
    group.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_superseded_publisher_is_told_so() {
    let group = single(23).await;
    let api = group.node.config.api;
    let west = group.operator.join(api, "west").await;
    let mut first = west.publish(api, 0).await.unwrap();
    let second = west.publish(api, 0).await.unwrap();
    assert_eq!((first.granted.epoch, second.granted.epoch), (1, 2));
    let told = first.next().await.unwrap_err();
    assert_eq!(told.code(), Code::FailedPrecondition);
    assert_eq!(
        told.message(),
        "publish epoch 1 of cluster west was superseded by 2: another agent publishes for this cluster; stop one of them"
    );
    // A reconnect with the held epoch keeps it; with the old one it is refused.
    assert_eq!(west.publish(api, 2).await.unwrap().granted.epoch, 2);
    assert_eq!(
        west.publish(api, 1).await.err().unwrap().code(),
        Code::FailedPrecondition
    );
    group.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bad_export_is_rejected_and_the_rest_stands() {
    let group = single(24).await;
    let api = group.node.config.api;
    let west = group.operator.join(api, "west").await;
    let reserve = v1::SetReservationRequest {
        namespace: "kept".into(),
        clear: false,
        clusters: vec!["east".into()],
    };
    group.operator.at(api).set_reservation(reserve).await.unwrap();
    let mut publisher = west.publish(api, 0).await.unwrap();
    let mut foreign = west.export("shop/a", 1);
    foreign.cluster = "east".to_owned();
    let mut unnamed = west.export("shop/b", 1);
    unnamed.key.as_mut().unwrap().name = "Not_A_Name".to_owned();
    let table = [
        (foreign, "names cluster east, but west publishes it"),
        (unnamed, "'Not_A_Name' has 'N' at position 0"),
        (
            west.export("kept/c", 1),
            "is in namespace kept, which is reserved for east",
        ),
    ];
    for (sequence, (export, reason)) in (1..).zip(table) {
        match publisher.upsert(sequence, export).await.unwrap() {
            Reply::Rejected(rejected) => {
                assert_eq!(rejected.sequence, sequence);
                assert!(rejected.reason.contains(reason), "{}", rejected.reason);
            }
            other => panic!("{other:?}"),
        }
    }
    let reply = publisher.upsert(9, west.export("shop/good", 1)).await.unwrap();
    assert!(matches!(reply, Reply::Accepted(accepted) if accepted.sequence == 9));
    group.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_member_loses_its_lease_and_regains_it() {
    let group = single(25).await;
    let api = group.node.config.api;
    let west = group.operator.join(api, "west").await;
    let east = group.operator.join(api, "east").await;
    let mut publisher = west.publish(api, 0).await.unwrap();
    let mut watch = east.watch(api, 0, 0).await.unwrap();
    let lease = |wanted: v1::Lease| {
        move |event: &Event| match event {
            Event::Apply(v1::WatchApply {
                entry:
                    Some(v1::Entry {
                        entry: Some(v1::entry::Entry::Member(m)),
                    }),
                ..
            }) => {
                let view = m.view.as_ref()?;
                (view.id == "west" && view.lease == i32::from(wanted)).then_some(())
            }
            _ => None,
        }
    };
    watch.until(lease(v1::Lease::Alive)).await;
    watch.until(lease(v1::Lease::Lost)).await;
    publisher
        .ask(Request::RenewLease(v1::PublishRenewLease { unix_ms: 0 }))
        .await;
    assert!(matches!(publisher.next().await.unwrap(), Reply::LeaseRenewed(_)));
    watch.until(lease(v1::Lease::Alive)).await;
    group.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_is_refused_before_it_reaches_the_log() {
    let group = single(26).await;
    let api = group.node.config.api;
    let west = group.operator.join(api, "west").await;
    let mut publisher = full_state(&west, api, &["shop/cart"]).await;
    let applied = group.operator.status(api).await.applied;

    let mut huge = west.export("shop/cart", 1);
    let annotation = ("a".to_owned(), "x".repeat(6 * EXPORT_MAX_BYTES));
    huge.spec.as_mut().unwrap().annotations.extend([annotation]);
    let Reply::Rejected(rejected) = publisher.upsert(2, huge).await.unwrap() else {
        panic!("not rejected")
    };
    assert!(
        rejected.reason.contains("at most 1048576 are allowed"),
        "{rejected:?}"
    );
    let report = |bytes| v1::DrillReport {
        error: "x".repeat(bytes),
        ..Default::default()
    };
    let mut client = SyncClient::new(west.channel(api));
    let refused = client
        .report_drill(report(DRILL_REPORT_MAX_BYTES + 1))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert_eq!(group.operator.status(api).await.applied, applied);

    // The largest report reaches the log, where its drill is unknown; the stream goes on.
    let largest = client.report_drill(report(DRILL_REPORT_MAX_BYTES - 16)).await;
    assert_eq!(largest.unwrap_err().code(), Code::NotFound);
    let reply = publisher.upsert(3, west.export("shop/cart", 1)).await.unwrap();
    assert!(matches!(reply, Reply::Accepted(_)), "{reply:?}");
    group.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_state_keeps_what_stood_where_it_names_nonsense() {
    let group = single(27).await;
    let api = group.node.config.api;
    let west = group.operator.join(api, "west").await;
    let mut publisher = full_state(&west, api, &["shop/cart", "shop/gone"]).await;

    publisher.ask(Request::Init(v1::PublishInit {})).await;
    let mut nonsense = west.export("shop/cart", 1);
    nonsense.spec = None;
    let reply = publisher.upsert(10, nonsense).await.unwrap();
    assert!(matches!(reply, Reply::Rejected(_)), "{reply:?}");
    let done = v1::PublishInitDone { sequence: 11 };
    publisher.ask(Request::InitDone(done)).await;
    assert!(matches!(publisher.next().await.unwrap(), Reply::Accepted(_)));

    let mut watch = west.watch(api, 0, 0).await.unwrap();
    let mut stands = Vec::new();
    loop {
        match watch.next().await.unwrap() {
            Event::InitDone(_) => break,
            event => stands.extend(export_of(&event).and_then(|(record, _)| record.export)),
        }
    }
    let uids: Vec<_> = stands.iter().map(|export| export.uid.as_str()).collect();
    assert_eq!(uids, ["west-shop/cart"]);
    group.node.stop().await;
}
