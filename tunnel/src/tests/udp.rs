//! UDP flows.

use bytes::Bytes;
use tombolo_clusterset::endpoint::Protocol;

use super::on_both_transports;
use super::site::{Pair, pattern};
use crate::{FlowHeader, OpenError, Transport};

on_both_transports!(
    payloads_of_all_sizes,
    the_reverse_direction,
    an_end_is_seen,
    the_protocols_are_kept_apart
);

fn header(site: &super::site::Site) -> FlowHeader {
    FlowHeader {
        protocol: Protocol::Udp,
        ..site.header("echo", 53)
    }
}

async fn payloads_of_all_sizes(transport: Transport) {
    let pair = Pair::new(transport).await;
    let mut flow = pair.tunnel.open_udp(&header(&pair.west)).await.unwrap();
    for size in [0, 100, 1_400, 8_000, 60_000, 65_507, 100] {
        let sent = Bytes::from(pattern(size));
        flow.send(sent.clone()).await.unwrap();
        assert_eq!(flow.recv().await, Some(sent), "{size} bytes");
    }
}

async fn the_reverse_direction(transport: Transport) {
    let pair = Pair::new(transport).await;
    let mut here = pair.tunnel.open_udp(&header(&pair.west)).await.unwrap();
    let mut there = pair.inbound.open_udp(&header(&pair.east)).await.unwrap();
    for size in [10, 1_000, 20_000] {
        let (one, other) = (Bytes::from(pattern(size)), Bytes::from(vec![9; size]));
        here.send(one.clone()).await.unwrap();
        there.send(other.clone()).await.unwrap();
        assert_eq!((here.recv().await, there.recv().await), (Some(one), Some(other)));
    }
}

async fn an_end_is_seen(transport: Transport) {
    let pair = Pair::new(transport).await;
    let flow = pair.tunnel.open_udp(&header(&pair.west)).await.unwrap();
    drop(flow);
    pair.inbound.no_flows().await;
    pair.tunnel.no_flows().await;
    let mut flow = pair.tunnel.open_udp(&header(&pair.west)).await.unwrap();
    pair.inbound.close("the test is over");
    assert_eq!(flow.recv().await, None);
}

async fn the_protocols_are_kept_apart(transport: Transport) {
    let pair = Pair::new(transport).await;
    assert!(matches!(
        pair.tunnel.open(&header(&pair.west)).await,
        Err(OpenError::Header(_))
    ));
    assert!(matches!(
        pair.tunnel.open_udp(&pair.west.header("echo", 1)).await,
        Err(OpenError::Header(_))
    ));
}
