//! Peers that do not keep to the protocol, or are not who they should be.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tombolo_wire::{frame, v1};

use super::on_both_transports;
use super::site::{Pair, Site, World, choice, cluster_id, loopback, pattern};
use crate::header::HEADER_MAX;
use crate::limits::Limits;
use crate::reply::Reply;
use crate::shell::halves::{RecvHalf, SendHalf};
use crate::{DialError, Refusal, Transport};

on_both_transports!(
    malformed_headers_are_refused,
    truncated_headers_hurt_nobody,
    a_header_that_does_not_come_is_not_awaited,
    random_bytes_hurt_nobody,
    another_cluster_does_not_answer_for_one,
    another_clusterset_is_refused,
    a_sidecar_speaks_for_itself_only,
    a_workload_does_not_pose_as_its_gateway,
    too_many_tunnels_are_refused,
);

async fn stream(pair: &Pair) -> (SendHalf, RecvHalf) {
    pair.tunnel.inner().carrier.open("hostile.test:1").await.unwrap()
}

async fn malformed_headers_are_refused(transport: Transport) {
    let pair = Pair::new(transport).await;
    let oversized = {
        let mut bytes = BytesMut::new();
        bytes.put_u32(u32::try_from(HEADER_MAX + 1).unwrap());
        bytes.extend_from_slice(&[1; 100]);
        bytes.freeze()
    };
    let garbage = {
        let mut bytes = BytesMut::new();
        bytes.put_u32(64);
        bytes.extend_from_slice(&[0xff; 64]);
        bytes.freeze()
    };
    let no_port = frame::encode(&v1::FlowHeader {
        port: 0,
        ..pair.west.header("echo", 1).to_wire()
    })
    .unwrap();
    for bytes in [
        oversized,
        garbage,
        no_port,
        Bytes::from_static(&[0xff; 16]),
        Bytes::from_static(&[0; 4]),
    ] {
        let (mut send, mut recv) = stream(&pair).await;
        send.write(bytes.clone()).await.unwrap();
        let reply: v1::FlowReply = recv.frame(1024).await.unwrap();
        match Reply::from_wire(reply) {
            Some(Reply::Refused {
                refusal: Refusal::Forged,
                detail,
            }) => assert!(!detail.is_empty()),
            other => panic!("{bytes:?}: {other:?}"),
        }
    }
    pair.assert_carries().await;
}

async fn truncated_headers_hurt_nobody(transport: Transport) {
    let pair = Pair::new(transport).await;
    let whole = frame::encode(&pair.west.header("echo", 1).to_wire()).unwrap();
    for cut in [1, 4, 5, whole.len() - 1] {
        let (mut send, mut recv) = stream(&pair).await;
        send.write(whole.slice(..cut)).await.unwrap();
        send.finish().unwrap();
        let reply: v1::FlowReply = recv.frame(1024).await.unwrap();
        assert!(
            matches!(
                Reply::from_wire(reply),
                Some(Reply::Refused {
                    refusal: Refusal::Forged,
                    ..
                })
            ),
            "{cut}"
        );
        let (mut send, _recv) = stream(&pair).await;
        send.write(whole.slice(..cut)).await.unwrap();
        send.reset();
    }
    pair.inbound.no_flows().await;
    pair.assert_carries().await;
}

async fn a_header_that_does_not_come_is_not_awaited(transport: Transport) {
    let limits = Limits {
        header_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let pair = Pair::adjusted(transport, |config| config.limits = limits).await;
    let (mut send, mut recv) = stream(&pair).await;
    send.write(Bytes::from_static(&[0, 0])).await.unwrap();
    assert!(recv.frame::<v1::FlowReply>(1024).await.is_err(), "it was reset");
    pair.inbound.no_flows().await;
    pair.assert_carries().await;
}

async fn random_bytes_hurt_nobody(transport: Transport) {
    let pair = Pair::new(transport).await;
    let address = pair.east.addr();
    for len in [1, 5, 100, 4_000] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&pattern(len)).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut heard = Vec::new();
        // An alert, an end or a reset: all are an answer.
        drop(stream.read_to_end(&mut heard).await);
    }
    let udp = UdpSocket::bind(loopback()).await.unwrap();
    for len in [0, 1, 20, 1_200, 1_400, 60_000] {
        udp.send_to(&pattern(len), address).await.unwrap();
    }
    pair.assert_carries().await;
    let cluster = cluster_id("east");
    pair.west
        .endpoint
        .dial(address, &cluster, choice(transport))
        .await
        .unwrap();
}

async fn another_cluster_does_not_answer_for_one(transport: Transport) {
    let world = World::new();
    let west = Site::start(&world, "west", |_| ()).await;
    let north = Site::start(&world, "north", |_| ()).await;
    let error = west
        .endpoint
        .dial(north.addr(), &cluster_id("east"), choice(transport))
        .await
        .unwrap_err();
    assert!(matches!(error, DialError::Failed { .. }), "{error}");
    assert!(error.to_string().contains(&north.addr().to_string()), "{error}");
    assert!(north.endpoint.tunnels().is_empty());
}

async fn another_clusterset_is_refused(transport: Transport) {
    let (world, other) = (World::new(), World::new());
    let west = Site::start(&other, "west", |_| ()).await;
    let east = Site::start(&world, "east", |_| ()).await;
    west.endpoint
        .dial(east.addr(), &cluster_id("east"), choice(transport))
        .await
        .unwrap_err();
    // The same, when only the listener can tell: the dialler trusts both.
    west.identity.trust().replace(other.trust(&[])).unwrap();
    assert!(east.endpoint.tunnels().is_empty());
}

async fn a_sidecar_speaks_for_itself_only(transport: Transport) {
    let world = World::new();
    let east = Site::start(&world, "east", |_| ()).await;
    let member = world.member("west");
    let identity = world.identity(&member, "ns/shop/sa/client");
    let config = crate::EndpointConfig::sidecar(member.cluster.clone());
    let sidecar = crate::Endpoint::bind(
        config,
        identity,
        tombolo_daemon::seam::Seams::host(),
        std::sync::Arc::new(crate::NoFlows),
    )
    .await
    .unwrap();
    let tunnel = sidecar
        .dial(east.addr(), &east.member.cluster, choice(transport))
        .await
        .unwrap();
    let mut header = east.header("echo", 1);
    header.source = member.id("ns/shop/sa/client");
    let flow = tunnel.open(&header).await.unwrap();
    header.source = member.id("ns/shop/sa/other");
    let error = tunnel.open(&header).await.unwrap_err();
    assert!(
        matches!(
            error,
            crate::OpenError::Refused {
                refusal: Refusal::Forged,
                ..
            }
        ),
        "{error}"
    );
    drop(flow);
    let inbound = &east.endpoint.tunnels()[0];
    assert!(!inbound.takes_flows() && !inbound.is_usable());
    let error = inbound.open(&east.header("echo", 1)).await.unwrap_err();
    assert!(matches!(error, crate::OpenError::NotReversible { .. }), "{error}");
    if transport == Transport::Quic {
        // A gateway that opens a stream nevertheless; on HTTP/2 it has none to open.
        let (mut send, mut recv) = inbound.inner().carrier.open("hostile.test:1").await.unwrap();
        send.write(frame::encode(&east.header("echo", 1).to_wire()).unwrap())
            .await
            .unwrap();
        let reply: v1::FlowReply = recv.frame(1024).await.unwrap();
        let reply = Reply::from_wire(reply);
        assert!(
            matches!(
                reply,
                Some(Reply::Refused {
                    refusal: Refusal::NotExported,
                    ..
                })
            ),
            "{reply:?}"
        );
    }
}

async fn a_workload_does_not_pose_as_its_gateway(transport: Transport) {
    let world = World::new();
    let mut east = Site::start(&world, "east", |_| ()).await;
    let member = world.member("west");
    let gateway = crate::EndpointConfig::gateway(member.cluster.clone(), None);
    let taker = crate::EndpointConfig {
        reversible: true,
        ..crate::EndpointConfig::sidecar(member.cluster.clone())
    };
    for path in ["ns/shop/sa/client", "role/sidecar"] {
        for config in [&gateway, &taker] {
            let impostor = crate::Endpoint::bind(
                config.clone(),
                world.identity(&member, path),
                tombolo_daemon::seam::Seams::host(),
                std::sync::Arc::new(crate::NoFlows),
            )
            .await
            .unwrap();
            // Our hello may arrive before the refusal: then the tunnel closes at once.
            let refused = async {
                let dialled = impostor.dial(
                    east.endpoint.local_addr().unwrap(),
                    &east.member.cluster,
                    choice(transport),
                );
                if let Ok(tunnel) = dialled.await {
                    tunnel.closed().await;
                }
            };
            tokio::select! {
                () = refused => {}
                Some(told) = east.told.recv() => panic!("{path} was let in: {told:?}"),
            }
            assert!(east.endpoint.tunnels().is_empty(), "{path}");
        }
    }
}

async fn too_many_tunnels_are_refused(transport: Transport) {
    let limits = Limits {
        tunnels_per_identity: 2,
        ..Limits::default()
    };
    let pair = Pair::adjusted(transport, |config| config.limits = limits).await;
    let dial = || {
        pair.west
            .endpoint
            .dial(pair.east.addr(), &pair.east.member.cluster, choice(transport))
    };
    let second = dial().await.unwrap();
    // The hello may arrive before the refusal: then the tunnel closes at once.
    if let Ok(third) = dial().await {
        third.closed().await;
    }
    pair.assert_carries().await;
    second.close("to make room");
    let gone = async {
        while pair.east.endpoint.tunnels().len() > 1 {
            tokio::task::yield_now().await;
        }
    };
    gone.await;
    let again = dial().await.unwrap();
    again.open(&pair.west.header("echo", 1)).await.unwrap();
}
