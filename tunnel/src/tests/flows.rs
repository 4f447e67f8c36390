//! TCP flows: bytes, ends, resets, refusals, backpressure.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::on_both_transports;
use super::site::{Pair, Told, pattern};
use crate::limits::{FLOW_WINDOW, SEND_BUFFER};
use crate::{OpenError, Refusal, Transport};

on_both_transports!(
    echo,
    ten_megabytes_both_ways,
    a_client_closes_first,
    a_backend_closes_first,
    a_reset_of_the_client_reaches_the_backend,
    a_reset_of_the_backend_reaches_the_client,
    a_dropped_flow_is_a_reset,
    refusals_say_why,
    a_refused_backend_is_told,
    forged_sources_are_refused,
    an_abandoned_open_reaches_the_far_side,
    a_slow_reader_stops_its_sender_only,
    a_slow_reader_of_small_writes_is_harmless,
    flows_of_the_other_direction,
    many_flows_at_once,
);

async fn echo(transport: Transport) {
    let pair = Pair::new(transport).await;
    let mut flow = pair.tunnel.open(&pair.west.header("echo", 1)).await.unwrap();
    flow.write_all(b"hello").await.unwrap();
    flow.shutdown().await.unwrap();
    let mut heard = Vec::new();
    flow.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"hello");
    drop(flow);
    pair.tunnel.no_flows().await;
    pair.inbound.no_flows().await;
}

async fn ten_megabytes_both_ways(transport: Transport) {
    let pair = Pair::new(transport).await;
    let (client, backend) = pair.through().await;
    let (up, down) = (pattern(10 << 20), pattern((10 << 20) - 7));
    let exchange = |stream: TcpStream, out: Vec<u8>, expected: Vec<u8>| async move {
        let (mut reader, mut writer) = stream.into_split();
        let mut heard = Vec::new();
        let write = async {
            writer.write_all(&out).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let (read, ()) = tokio::join!(reader.read_to_end(&mut heard), write);
        read.unwrap();
        assert!(
            heard == expected,
            "{} bytes came, {} were sent",
            heard.len(),
            expected.len()
        );
    };
    tokio::join!(
        exchange(client, up.clone(), down.clone()),
        exchange(backend, down, up)
    );
}

async fn a_client_closes_first(transport: Transport) {
    let pair = Pair::new(transport).await;
    let (client, backend) = pair.through().await;
    one_closes_first(client, backend).await;
}

async fn a_backend_closes_first(transport: Transport) {
    let pair = Pair::new(transport).await;
    let (client, backend) = pair.through().await;
    one_closes_first(backend, client).await;
}

/// The other side sees the end, and can still send.
async fn one_closes_first(mut first: TcpStream, mut second: TcpStream) {
    first.write_all(b"question").await.unwrap();
    first.shutdown().await.unwrap();
    let mut heard = Vec::new();
    second.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"question");
    second.write_all(b"answer").await.unwrap();
    second.shutdown().await.unwrap();
    heard.clear();
    first.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"answer");
}

async fn a_reset_of_the_client_reaches_the_backend(transport: Transport) {
    let pair = Pair::new(transport).await;
    let (client, backend) = pair.through().await;
    a_reset_arrives(client, backend).await;
    pair.assert_carries().await;
}

async fn a_reset_of_the_backend_reaches_the_client(transport: Transport) {
    let pair = Pair::new(transport).await;
    let (client, backend) = pair.through().await;
    a_reset_arrives(backend, client).await;
    pair.assert_carries().await;
}

async fn a_reset_arrives(mut one: TcpStream, mut other: TcpStream) {
    one.write_all(b"x").await.unwrap();
    other.read_exact(&mut [0]).await.unwrap();
    one.set_zero_linger().unwrap();
    drop(one);
    assert_eq!(
        other.read(&mut [0]).await.unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
}

async fn a_dropped_flow_is_a_reset(transport: Transport) {
    let pair = Pair::new(transport).await;
    let backend = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let header = pair.west.header("tcp", backend.local_addr().unwrap().port());
    let (flow, accepted) = tokio::join!(pair.tunnel.open(&header), backend.accept());
    let mut accepted = accepted.unwrap().0;
    let mut flow = flow.unwrap();
    flow.write_all(b"part").await.unwrap();
    accepted.read_exact(&mut [0; 4]).await.unwrap();
    drop(flow);
    assert_eq!(
        accepted.read(&mut [0]).await.unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
}

async fn refusals_say_why(transport: Transport) {
    let pair = Pair::new(transport).await;
    for expected in Refusal::ALL {
        let service = expected.as_str().replace('_', "-");
        match pair.tunnel.open(&pair.west.header(&service, 1)).await {
            Err(OpenError::Refused {
                refusal,
                detail,
                cluster,
            }) => {
                assert_eq!((refusal, detail.as_str()), (expected, "as the test asked"));
                assert_eq!(cluster, pair.east.member.cluster);
            }
            other => panic!("{expected}: {other:?}"),
        }
    }
    pair.tunnel.no_flows().await;
    pair.inbound.no_flows().await;
}

async fn a_refused_backend_is_told(transport: Transport) {
    let pair = Pair::new(transport).await;
    let free = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let error = pair
        .tunnel
        .open(&pair.west.header("tcp", free))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::Refused {
                refusal: Refusal::BackendRefused,
                ..
            }
        ),
        "{error}"
    );
}

async fn forged_sources_are_refused(transport: Transport) {
    let pair = Pair::new(transport).await;
    let mut header = pair.west.header("echo", 1);
    header.source = pair.east.member.id("ns/shop/sa/client");
    let error = pair.tunnel.open(&header).await.unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::Refused {
                refusal: Refusal::Forged,
                ..
            }
        ),
        "{error}"
    );
    let text = error.to_string();
    for word in ["forged", "/ns/shop/sa/client", "west"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    pair.assert_carries().await;
}

async fn an_abandoned_open_reaches_the_far_side(transport: Transport) {
    let mut pair = Pair::new(transport).await;
    let header = pair.west.header("hang", 1);
    tokio::select! {
        opened = pair.tunnel.open(&header) => panic!("{opened:?}"),
        told = pair.east.told.recv() => assert!(matches!(told, Some(Told::Hanging)), "{told:?}"),
    }
    let told = pair.east.told.recv().await;
    assert!(matches!(told, Some(Told::Abandoned)), "{told:?}");
    pair.inbound.no_flows().await;
}

/// Writes until nothing is taken for a while; how much was taken.
async fn fill(flow: &mut crate::Flow, piece: usize, most: usize) -> usize {
    let bytes = vec![7; piece];
    let mut taken = 0;
    while taken < most {
        match tokio::time::timeout(Duration::from_millis(500), flow.write(&bytes)).await {
            Ok(written) => taken += written.unwrap(),
            Err(_) => return taken,
        }
    }
    panic!("the sender was not stopped within {most} bytes");
}

async fn a_slow_reader_stops_its_sender_only(transport: Transport) {
    let pair = Pair::new(transport).await;
    let mut flow = pair.tunnel.open(&pair.west.header("sink", 1)).await.unwrap();
    let bound = FLOW_WINDOW as usize + 2 * SEND_BUFFER;
    let taken = fill(&mut flow, 64 * 1024, 16 << 20).await;
    assert!(
        taken >= FLOW_WINDOW as usize / 2 && taken <= bound,
        "{taken} bytes were taken"
    );
    pair.assert_carries().await;
}

async fn a_slow_reader_of_small_writes_is_harmless(transport: Transport) {
    let pair = Pair::new(transport).await;
    // The backend never reads; the client writes small pieces until it is stopped.
    let (client, backend) = pair.through().await;
    let (piece, mut taken) = ([7; 32], 0);
    client.set_nodelay(true).unwrap();
    while taken < 2 << 20 {
        client.writable().await.unwrap();
        match client.try_write(&piece) {
            Ok(written) => taken += written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    pair.assert_carries().await;
    drop((client, backend));
}

async fn flows_of_the_other_direction(transport: Transport) {
    let pair = Pair::new(transport).await;
    assert!(pair.inbound.takes_flows());
    // More than are parked at once on HTTP/2.
    let flows = (0..3 * crate::limits::PARKED_STREAMS).map(|n| {
        let (tunnel, header) = (pair.inbound.clone(), pair.east.header("echo", 1));
        async move {
            let mut flow = tunnel.open(&header).await.unwrap();
            let sent = pattern(1000 + n);
            flow.write_all(&sent).await.unwrap();
            flow.shutdown().await.unwrap();
            let mut heard = Vec::new();
            flow.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, sent);
        }
    });
    futures_util::future::join_all(flows).await;
    let mut forged = pair.east.header("echo", 1);
    forged.source = pair.west.member.id("ns/shop/sa/client");
    let error = pair.inbound.open(&forged).await.unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::Refused {
                refusal: Refusal::Forged,
                ..
            }
        ),
        "{error}"
    );
}

async fn many_flows_at_once(transport: Transport) {
    let pair = Pair::new(transport).await;
    let flows = (0..300).map(|_| pair.assert_carries());
    futures_util::future::join_all(flows).await;
    pair.tunnel.no_flows().await;
    pair.inbound.no_flows().await;
}
