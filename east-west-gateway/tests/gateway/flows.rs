//! Flows between clusters.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::UdpSocket;
use tombolo_clusterset::drill::DrillKind;
use tombolo_clusterset::endpoint::Protocol;
use tombolo_gateway::Transport;

use crate::agent::tally;
use crate::backend::{self, ask};
use crate::drills::drill;
use crate::world::{PATIENCE, Service, World, eventually};

const BOTH: [(&str, bool); 2] = [("aks", false), ("kind", false)];

async fn carries_both_ways(transport: Transport) {
    let world = World::new(&BOTH);
    let (in_aks, in_kind) = (world.backend("aks", 0), world.backend("kind", 0));
    let world = world
        .with(Service::tcp("a", 0).at("aks", [in_aks]))
        .with(Service::tcp("k", 1).at("kind", [in_kind]));
    backend::tcp(in_aks, "aks").await;
    backend::tcp(in_kind, "kind").await;
    let sites = world.start_all(transport).await;
    assert_eq!(ask(world.vip("aks", 1), "hello").await.unwrap(), "kind:hello");
    assert_eq!(ask(world.vip("kind", 0), "hello").await.unwrap(), "aks:hello");
    // Its own export, without a tunnel.
    assert_eq!(ask(world.vip("aks", 0), "hello").await.unwrap(), "aks:hello");
    let long = "x".repeat(3_000_000);
    assert_eq!(
        ask(world.vip("aks", 1), &long).await.unwrap(),
        format!("kind:{long}")
    );
    let state = sites[0].http("/state").await.unwrap();
    assert!(
        state.contains(r#""cluster":"kind""#) && state.contains(r#""service":"shop/k""#),
        "{state}"
    );
    let ended = r#"tombolo_gateway_flows_total{direction="Outbound",outcome="Ended"} 2"#;
    eventually("flows are counted", async || {
        sites[0].metrics().await.contains(ended).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_flows_both_ways_over_quic() {
    carries_both_ways(Transport::Quic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_flows_both_ways_over_http2() {
    carries_both_ways(Transport::H2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_exported_or_not_granted_is_refused_at_the_exporter() {
    let world = World::new(&BOTH);
    let at = world.backend("kind", 0);
    let phantom = Service {
        phantoms: BTreeSet::from(["kind"]),
        ..Service::tcp("phantom", 0)
    };
    let private = Service {
        granted: Some(BTreeSet::from(["gke"])),
        ..Service::tcp("private", 1)
    };
    let world = world
        .with(phantom.at("kind", [at]))
        .with(private.at("kind", [at]));
    backend::tcp(at, "kind").await;
    let sites = world.start_all(Transport::Auto).await;
    for vip in [0, 1] {
        let error = ask(world.vip("aks", vip), "hello").await.unwrap_err();
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ConnectionReset,
            "the client sees a reset"
        );
    }
    let metrics = sites[1].metrics().await;
    for refusal in ["not_exported", "not_granted"] {
        let line = format!("tombolo_gateway_refused_total{{refusal=\"{refusal}\"}} 1");
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_exported_no_more_is_refused_and_the_caller_is_told_why() {
    let world = World::new(&BOTH);
    let at = world.backend("kind", 0);
    let world = world.with(Service::tcp("web", 0).at("kind", [at]));
    backend::tcp(at, "kind").await;
    let mut sites = world.start_all(Transport::Auto).await;
    let vip = world.vip("aks", 0);
    assert_eq!(ask(vip, "q").await.unwrap(), "kind:q");
    sites[1].change(|snapshot| {
        for export in snapshot.exports.values_mut() {
            Arc::make_mut(export).spec.ports[0].port += 1;
        }
    });
    let error = eventually("the port is gone", async || ask(vip, "q").await.err()).await;
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let metrics = sites[1].metrics().await;
    assert!(
        metrics.contains(r#"tombolo_gateway_refused_total{refusal="not_exported"}"#),
        "{metrics}"
    );
    // A drill's requests say what any client's log line says.
    let update = drill(DrillKind::LinkCut, "kind", [500, 100, 100]);
    sites[0].desk.drills.send_replace(update);
    let report = tokio::time::timeout(PATIENCE, sites[0].desk.reports.recv()).await;
    let report = report.unwrap().unwrap();
    let sentence = format!("shop/web of kind has no port {}/TCP", vip.port());
    assert!(
        report.samples[0].failure.contains(&sentence),
        "{sentence} in {:?}",
        report.samples[0]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stand_in_reaches_its_endpoint_and_no_other() {
    let world = World::new(&BOTH);
    let backends = [world.backend("kind", 0), world.backend("kind", 1)];
    let headless = Service {
        headless: true,
        ..Service::tcp("db", 0)
    };
    let world = world.with(headless.at("kind", backends));
    backend::tcp(backends[0], "db-0").await;
    backend::tcp(backends[1], "db-1").await;
    let _sites = world.start_all(Transport::Auto).await;
    for (number, name) in [(0, "db-0"), (1, "db-1")] {
        let stand_in = SocketAddr::new(world.stand_in("aks", number), backends[0].port());
        for _ in 0..5 {
            assert_eq!(ask(stand_in, "q").await.unwrap(), format!("{name}:q"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn own_endpoints_come_first_and_others_when_they_refuse() {
    let world = World::new(&BOTH);
    let (here, there) = (world.backend("aks", 0), world.backend("kind", 0));
    let world = world.with(Service::tcp("both", 0).at("aks", [here]).at("kind", [there]));
    let own = backend::tcp(here, "aks").await;
    backend::tcp(there, "kind").await;
    let _sites = world.start_all(Transport::Auto).await;
    let vip = world.vip("aks", 0);
    for _ in 0..20 {
        assert_eq!(ask(vip, "q").await.unwrap(), "aks:q");
    }
    own.abort();
    eventually("the own backend is gone", async || {
        tokio::net::TcpStream::connect(here).await.is_err().then_some(())
    })
    .await;
    for _ in 0..20 {
        assert_eq!(ask(vip, "q").await.unwrap(), "kind:q");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exporter_tries_its_next_endpoint_when_one_refuses() {
    let world = World::new(&BOTH);
    let backends = [world.backend("kind", 0), world.backend("kind", 1)];
    let world = world.with(Service::tcp("k", 0).at("kind", backends));
    backend::tcp(backends[1], "second").await;
    let _sites = world.start_all(Transport::Auto).await;
    let mut answers = Vec::new();
    for _ in 0..30 {
        answers.push(ask(world.vip("aks", 0), "").await.unwrap());
    }
    assert_eq!(
        tally(answers.iter().map(String::as_str)),
        [("second:".to_owned(), 30)].into()
    );
}

async fn udp_sticks(transport: Transport) {
    let world = World::new(&BOTH);
    let backends = [world.backend("kind", 0), world.backend("kind", 1)];
    let world = world.with(
        Service {
            protocol: Protocol::Udp,
            ..Service::tcp("dns", 0)
        }
        .at("kind", backends),
    );
    backend::udp(backends[0], "one").await;
    backend::udp(backends[1], "two").await;
    let _sites = world.start_all(transport).await;
    for _ in 0..3 {
        let client = UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        // Connected: a reply from another address than the one asked would not be heard.
        client.connect(world.vip("aks", 0)).await.unwrap();
        let mut names = BTreeSet::new();
        for length in [1, 100, 1_500, 9_000, 60_000] {
            let question = "q".repeat(length);
            client.send(question.as_bytes()).await.unwrap();
            let mut buffer = vec![0; 65_536];
            let length = tokio::time::timeout(PATIENCE, client.recv(&mut buffer))
                .await
                .unwrap()
                .unwrap();
            let answer = String::from_utf8(buffer[..length].to_vec()).unwrap();
            let (name, echoed) = answer.split_once(':').unwrap();
            assert_eq!(echoed, question);
            names.insert(name.to_owned());
        }
        assert_eq!(names.len(), 1, "a flow sticks to its endpoint");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn udp_flows_stick_over_quic_and_large_payloads_pass() {
    udp_sticks(Transport::Quic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn udp_flows_stick_over_http2_and_large_payloads_pass() {
    udp_sticks(Transport::H2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_only_dials_out_is_reached() {
    let world = World::new(&[("aks", false), ("kind", true)]);
    let (in_aks, in_kind) = (world.backend("aks", 0), world.backend("kind", 0));
    let world = world
        .with(Service::tcp("a", 0).at("aks", [in_aks]))
        .with(Service::tcp("k", 1).at("kind", [in_kind]));
    backend::tcp(in_aks, "aks").await;
    backend::tcp(in_kind, "kind").await;
    for transport in [Transport::Quic, Transport::H2] {
        let sites = world.start_all(transport).await;
        assert_eq!(ask(world.vip("aks", 1), "q").await.unwrap(), "kind:q");
        assert_eq!(ask(world.vip("kind", 0), "q").await.unwrap(), "aks:q");
        let links = sites[0].links.current();
        assert!(links["kind"].reversed, "{links:?}");
        for site in sites {
            site.end().await;
        }
    }
}
