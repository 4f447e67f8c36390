//! Back-up and restore.

use tombolo_broker::restore;
use tombolo_daemon::Seams;
use tombolo_wire::v1;
use tombolo_wire::v1::watch_event::Event;

use crate::harness::{Node, Operator, config, join, single};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_clusterset_is_a_new_incarnation() {
    let group = single(41).await;
    let api = group.node.config.api;
    let agent = group.operator.join(api, "west").await;
    agent
        .publish(api, 0)
        .await
        .unwrap()
        .upsert(1, agent.export("shop/cart", 1))
        .await
        .unwrap();
    let open_token = group.operator.token(api, "east").await;

    let mut chunks = group
        .operator
        .at(api)
        .backup(v1::BackupRequest {})
        .await
        .unwrap()
        .into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.message().await.unwrap() {
        bytes.extend_from_slice(&chunk.data);
    }
    let file = group.directory.path().join("backup.bin");
    std::fs::write(&file, &bytes).unwrap();
    let founder = group.node.config.clone();
    group.node.stop().await;

    let restored = config(group.directory.path(), 41, 5, false);
    std::fs::create_dir_all(&restored.data_dir).unwrap();
    std::fs::copy(founder.kek_path(), restored.kek_path()).unwrap();

    let damaged = group.directory.path().join("damaged.bin");
    bytes[100] ^= 1;
    std::fs::write(&damaged, &bytes).unwrap();
    let refused = restore(&damaged, &restored, &Seams::host()).await.unwrap_err();
    assert!(
        refused.to_string().contains("checksum does not match"),
        "{refused}"
    );

    let snapshots = restored.data_dir.join("snapshots");
    let left_over = snapshots.join("00000000000000009999.snap");
    std::fs::create_dir_all(&snapshots).unwrap();
    std::fs::write(&left_over, b"of another life").unwrap();
    let refused = restore(&file, &restored, &Seams::host()).await.unwrap_err();
    assert!(
        refused.to_string().contains("9999.snap exists already"),
        "{refused}"
    );
    std::fs::remove_file(left_over).unwrap();

    let summary = restore(&file, &restored, &Seams::host()).await.unwrap();
    assert!(summary.incarnation > 1);
    assert_eq!(summary.tokens_voided, 2);
    assert_eq!(summary.brokers_dropped, [1]);
    assert_eq!(summary.members, std::slice::from_ref(&agent.cluster));
    assert!(
        restore(&file, &restored, &Seams::host())
            .await
            .unwrap_err()
            .to_string()
            .contains("exists already")
    );

    let node = Node::start(restored.clone());
    let operator = Operator::load(&restored).await;
    let void = join(restored.api, &open_token, "east", false)
        .await
        .err()
        .unwrap();
    assert!(void.message().contains("is unknown to this clusterset"), "{void}");
    // The member's own certificate still counts, its watch starts over, and its export kept its precedence.
    let mut watch = agent.watch(restored.api, 1, 5).await.unwrap();
    let Event::Init(init) = watch.next().await.unwrap() else {
        panic!("resumed across incarnations")
    };
    assert_eq!(init.incarnation, summary.incarnation);
    watch
        .until(|event| match event {
            Event::Apply(v1::WatchApply {
                entry:
                    Some(v1::Entry {
                        entry: Some(v1::entry::Entry::Export(e)),
                    }),
                ..
            }) => (e.created_ms == 1).then_some(()),
            _ => None,
        })
        .await;
    // It takes writes.
    operator.join(restored.api, "north").await;
    node.stop().await;
}
