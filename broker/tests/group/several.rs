//! Groups of three: adding, losing and removing brokers.

use std::net::SocketAddr;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;
use tombolo_wire::v1;
use tombolo_wire::v1::watch_event::Event;
use tonic::Code;

use crate::harness::{Node, Operator, config, eventually, single};

struct Three {
    _directory: TempDir,
    nodes: Vec<Node>,
    operator: Operator,
}

async fn three(block: u8) -> Three {
    let first = single(block).await;
    let api = first.node.config.api;
    let mut nodes = vec![first.node];
    for id in [2, 3] {
        let added = config(first.directory.path(), block, id, false);
        first.operator.add_broker(&nodes[0].config, &added).await;
        nodes.push(Node::start(added));
        voters(&first.operator, api, usize::try_from(id).unwrap()).await;
    }
    Three {
        _directory: first.directory,
        nodes,
        operator: first.operator,
    }
}

async fn voters(operator: &Operator, api: SocketAddr, wanted: usize) {
    eventually(|| async {
        let status = operator.status(api).await;
        let voters = status.brokers.iter().filter(|broker| broker.voter).count();
        (voters == wanted && status.brokers.len() == wanted).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_enters_anywhere_and_outlives_the_leader() {
    let mut group = three(31).await;
    let apis: Vec<SocketAddr> = group.nodes.iter().map(|node| node.config.api).collect();
    // Each write enters at another broker and is read at the next.
    for (at, cluster) in ["west", "east", "north"].into_iter().enumerate() {
        let agent = group.operator.join(apis[at], cluster).await;
        let mut publisher = agent.publish(apis[(at + 1) % 3], 0).await.unwrap();
        publisher.upsert(1, agent.export("shop/cart", 1)).await.unwrap();
    }
    let leader = group.operator.status(apis[0]).await.leader;
    let at = group
        .nodes
        .iter()
        .position(|node| node.config.id == leader)
        .unwrap();
    let gone = group.nodes.remove(at);
    let survivors: Vec<SocketAddr> = group.nodes.iter().map(|node| node.config.api).collect();
    gone.stop().await;

    let stopped = Instant::now();
    let agent = group.operator.join(survivors[0], "south").await;
    let resumed = stopped.elapsed();
    assert!(
        resumed < Duration::from_secs(5),
        "writes resumed only after {resumed:?}"
    );

    let mut watch = agent.watch(survivors[1], 0, 0).await.unwrap();
    let mut exports = 0;
    loop {
        match watch.next().await.unwrap() {
            Event::InitDone(_) => break,
            Event::Apply(v1::WatchApply {
                entry: Some(entry), ..
            }) => {
                exports += usize::from(matches!(entry.entry, Some(v1::entry::Entry::Export(_))));
            }
            _ => {}
        }
    }
    assert_eq!(exports, 3, "what was acknowledged is there");
    let fresh = watch.until(|event| match event {
        Event::Progress(progress) if progress.fresh => Some(()),
        _ => None,
    });
    fresh.await;
    for node in group.nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_broker_is_out_and_its_id_is_spent() {
    let mut group = three(32).await;
    let api = group.nodes[0].config.api;
    let mut client = group.operator.at(api);
    client
        .remove_broker(v1::RemoveBrokerRequest { id: 3 })
        .await
        .unwrap();
    voters(&group.operator, api, 2).await;
    group.nodes.pop().unwrap().stop().await;

    let address = |port: u16| format!("127.10.32.9:{port}");
    let request = v1::AddBrokerRequest {
        id: 3,
        api_address: address(7400),
        peer_address: address(7401),
    };
    let refused = client.add_broker(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(
        refused.message().contains("ids are never used again"),
        "{refused}"
    );
    let request = v1::IssueCertificateRequest {
        subject: "broker/3".into(),
        csr: Default::default(),
    };
    assert_eq!(
        client.issue_certificate(request).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    for node in group.nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_broker_has_what_it_acknowledged() {
    let group = single(33).await;
    let config = group.node.config.clone();
    let agent = group.operator.join(config.api, "west").await;
    agent
        .publish(config.api, 0)
        .await
        .unwrap()
        .upsert(1, agent.export("shop/cart", 1))
        .await
        .unwrap();
    group.node.stop().await;

    let again = Node::start(config.clone());
    group.operator.ready(config.api).await;
    let mut watch = agent.watch(config.api, 0, 0).await.unwrap();
    let export = watch.until(|event| match event {
        Event::Apply(v1::WatchApply {
            entry: Some(v1::Entry {
                entry: Some(v1::entry::Entry::Export(e)),
            }),
            ..
        }) => e.export.clone(),
        _ => None,
    });
    assert_eq!(export.await.uid, "west-shop/cart");
    again.stop().await;

    // A lost disk is not taken for a new broker.
    std::fs::remove_file(config.log_path()).unwrap();
    let refused = Node::start(config).ended().await.unwrap_err();
    assert!(
        refused.to_string().contains("its disk was lost or rolled back"),
        "{refused}"
    );
}
