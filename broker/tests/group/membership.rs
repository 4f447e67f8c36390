//! Joining, renewing, leaving, evicting, and who may call what.

use tombolo_trust::new_key_and_csr;
use tombolo_wire::v1;
use tombolo_wire::v1::membership_client::MembershipClient;
use tombolo_wire::v1::operator_client::OperatorClient;
use tombolo_wire::v1::sync_client::SyncClient;
use tonic::Code;

use crate::harness::{join, join_with, now_ms, single};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_joins_once_and_every_refusal_says_why() {
    let group = single(11).await;
    let api = group.node.config.api;
    let token = group.operator.token(api, "west").await;

    let wrong = join(api, &token, "east", false).await.err().unwrap();
    assert_eq!(wrong.code(), Code::Unauthenticated);
    assert!(
        wrong
            .message()
            .contains("was made for cluster west, not for east"),
        "{wrong}"
    );

    let (key, csr) = new_key_and_csr().unwrap();
    // Nothing is signed, not even looked at, for whoever holds no token of this cluster.
    let unsigned = join_with(api, &token, "east", false, &key, b"no request", now_ms())
        .await
        .err()
        .unwrap();
    assert_eq!(unsigned.code(), Code::Unauthenticated, "{unsigned}");
    let late = join_with(api, &token, "west", false, &key, &csr, now_ms() - 400_000)
        .await
        .err()
        .unwrap();
    assert!(
        late.message().contains("s behind the broker's; set it by NTP"),
        "{late}"
    );

    let agent = join_with(api, &token, "west", false, &key, &csr, now_ms())
        .await
        .unwrap();
    // The answer got lost, the agent asks again: the same certificate.
    let again = join_with(api, &token, "west", false, &key, &csr, now_ms())
        .await
        .unwrap();
    assert_eq!(agent.intermediate, again.intermediate);

    let used = join(api, &token, "west", false).await.err().unwrap();
    assert_eq!(used.code(), Code::Unauthenticated);
    assert!(used.message().contains("has been used"), "{used}");

    let second = group.operator.token(api, "west").await;
    let duplicate = join(api, &second, "west", false).await.err().unwrap();
    assert_eq!(duplicate.code(), Code::AlreadyExists);
    assert!(duplicate.message().contains("--replace"), "{duplicate}");

    let replaced = join(api, &second, "west", true).await.unwrap();
    assert_ne!(replaced.intermediate, agent.intermediate);
    // The one that was replaced is refused in its handshake, once its intermediate is denied.
    agent.watch(api, 0, 0).await.err().unwrap();
    replaced.watch(api, 0, 0).await.unwrap();
    group.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_calls_decides_what_may_be_called() {
    let group = single(12).await;
    let api = group.node.config.api;
    let agent = group.operator.join(api, "west").await;

    let status = v1::GroupStatusRequest {};
    let refused = OperatorClient::new(agent.channel(api))
        .group_status(status)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let leave = MembershipClient::new(group.operator.channel(api))
        .leave(v1::LeaveRequest {})
        .await
        .unwrap_err();
    assert_eq!(leave.code(), Code::PermissionDenied);

    let token = tombolo_trust::JoinToken::parse(&group.operator.token(api, "east").await).unwrap();
    let tls = tombolo_trust::pinned_client_config(token.trust_domain().clone(), token.root_pin(), &[b"h2"]);
    let stranger = crate::harness::channel(api, tls.into());
    let refused = OperatorClient::new(stranger.clone())
        .group_status(status)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let refused = MembershipClient::new(stranger)
        .leave(v1::LeaveRequest {})
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    group.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_renews_and_an_evicted_one_is_cut_off() {
    let group = single(13).await;
    let api = group.node.config.api;
    let agent = group.operator.join(api, "west").await;
    let (_, csr) = new_key_and_csr().unwrap();
    let request = v1::RenewRequest {
        protocol_version: 1,
        csr: csr.to_vec().into(),
    };
    let renewed = MembershipClient::new(agent.channel(api))
        .renew(request)
        .await
        .unwrap()
        .into_inner();
    assert_ne!(renewed.intermediate.as_ref(), agent.intermediate.as_ref());

    let mut publisher = agent.publish(api, 0).await.unwrap();
    publisher.upsert(1, agent.export("shop/cart", 1)).await.unwrap();
    let mut watch = agent.watch(api, 0, 0).await.unwrap();
    let evict = v1::EvictRequest {
        cluster: "west".to_owned(),
    };
    let reply = group
        .operator
        .at(api)
        .evict(evict.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(reply.exports_removed, 1);
    assert_eq!(publisher.next().await.unwrap_err().code(), Code::PermissionDenied);
    let ended = loop {
        if let Err(ended) = watch.next().await {
            break ended;
        }
    };
    assert_eq!(ended.code(), Code::PermissionDenied);
    // A new connection does not get past its handshake.
    assert!(agent.publish(api, 0).await.is_err());
    let again = group.operator.at(api).evict(evict).await.unwrap_err();
    assert!(again.message().contains("is not a member"), "{again}");
    group.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denied_intermediate_counts_wherever_it_stands_in_the_chain() {
    let group = single(14).await;
    let api = group.node.config.api;
    let (key, csr) = new_key_and_csr().unwrap();
    let token = group.operator.token(api, "west").await;
    let west = join_with(api, &token, "west", false, &key, &csr, now_ms())
        .await
        .unwrap();
    let mut client = SyncClient::new(west.behind_root(&key).channel(api));
    let request = v1::WatchRequest {
        protocol_version: 1,
        ..Default::default()
    };
    client.watch(request).await.unwrap();

    // The connection that is up stays up; what it asks is refused.
    let token = group.operator.token(api, "west").await;
    join(api, &token, "west", true).await.unwrap();
    let refused = client.watch(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(
        refused
            .message()
            .contains("the intermediate of this certificate is denied"),
        "{refused}"
    );
    group.node.stop().await;
}
