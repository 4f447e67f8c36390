//! Roughly how fast a tunnel is, on loopback, in one process: `cargo run --release --example throughput -p tombolo-tunnel`.
//!
//! Prints, for each transport: new flows per second, 1 KiB round trips per second on one flow and on 64 at once, and bytes
//! per second in one direction.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::{BoxFuture, join_all};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tombolo_clusterset::endpoint::Protocol;
use tombolo_clusterset::{ClusterId, ServiceKey};
use tombolo_daemon::seam::Seams;
use tombolo_trust::{
    CertStore, Identity, Intermediate, Root, Serial, SpiffeId, TrustState, TrustStore, new_key_and_csr,
};
use tombolo_tunnel::{
    Accept, Endpoint, EndpointConfig, FlowHeader, IncomingFlow, LocalIdentity, TransportChoice, Tunnel,
};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const DAY: Duration = Duration::from_secs(24 * 3600);
const TIME: Duration = Duration::from_secs(3);
const AT_ONCE: usize = 64;

struct Echo;

impl Accept for Echo {
    fn tunnel(&self, _tunnel: Tunnel) {}

    fn flow(&self, flow: IncomingFlow) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let Ok(flow) = flow.accept().await else { return };
            let (mut reader, mut writer) = tokio::io::split(flow);
            if tokio::io::copy_buf(
                &mut tokio::io::BufReader::with_capacity(65_536, &mut reader),
                &mut writer,
            )
            .await
            .is_ok()
            {
                drop(writer.shutdown().await);
            }
        })
    }
}

fn identity(root: &Root, name: &str) -> Outcome<(ClusterId, LocalIdentity)> {
    let (cluster, now) = (ClusterId::parse(name)?, SystemTime::now());
    let serial = || Serial::from_random([1; 16]);
    let (key, csr) = new_key_and_csr()?;
    let cert = root.issue_intermediate(&csr, &cluster, serial(), now, 30 * DAY)?;
    let intermediate = Intermediate::load(cert, &key)?;
    let (key, csr) = new_key_and_csr()?;
    let id = SpiffeId::parse(&format!(
        "spiffe://{}/cluster/{name}/role/gateway",
        root.trust_domain()
    ))?;
    let leaf = intermediate.issue_leaf(&csr, &id, serial(), now, DAY)?;
    let identity = Identity::new(vec![leaf, intermediate.cert().clone()], &key)?;
    let trust = TrustState::new(
        root.trust_domain().clone(),
        vec![root.cert().clone()],
        BTreeSet::new(),
        1,
    )?;
    Ok((
        cluster,
        LocalIdentity::fixed(CertStore::new(identity), TrustStore::new(trust)),
    ))
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let root = Root::create("demo", Serial::from_random([1; 16]), SystemTime::now())?;
    let (west, west_identity) = identity(&root, "west")?;
    let (east, east_identity) = identity(&root, "east")?;
    let listen = Some("127.0.0.1:0".parse()?);
    let source = west_identity.id();
    let server = Endpoint::bind(
        EndpointConfig::gateway(east.clone(), listen),
        east_identity,
        Seams::host(),
        Arc::new(Echo),
    );
    let server = server.await?;
    let client = Endpoint::bind(
        EndpointConfig::gateway(west, listen),
        west_identity,
        Seams::host(),
        Arc::new(Echo),
    )
    .await?;
    let address = server.local_addr().ok_or("the server does not listen")?;
    let header = FlowHeader {
        service: ServiceKey::parse("shop/echo")?,
        port: 80,
        protocol: Protocol::Tcp,
        endpoint: None,
        source,
        client: "127.0.0.1:40000".parse()?,
        traceparent: None,
    };
    for choice in [TransportChoice::Quic, TransportChoice::H2] {
        let tunnel = client.dial(address, &east, choice).await?;
        let name = tunnel.transport().as_str();
        println!(
            "{name}: {:.0} new flows/s, one after the other",
            per_second(1, || new_flow(&tunnel, &header)).await?
        );
        println!(
            "{name}: {:.0} new flows/s, {AT_ONCE} at once",
            per_second(AT_ONCE, || new_flow(&tunnel, &header)).await?
        );
        println!(
            "{name}: {:.0} round trips/s of 1 KiB on one flow",
            round_trips(&tunnel, &header, 1).await?
        );
        println!(
            "{name}: {:.0} round trips/s of 1 KiB on {AT_ONCE} flows",
            round_trips(&tunnel, &header, AT_ONCE).await?
        );
        println!(
            "{name}: {:.0} MB/s there and back on one flow",
            bulk(&tunnel, &header).await? / 1e6
        );
    }
    Ok(())
}

async fn new_flow(tunnel: &Tunnel, header: &FlowHeader) -> Outcome<()> {
    let mut flow = tunnel.open(header).await?;
    flow.shutdown().await?;
    flow.read_to_end(&mut Vec::new()).await?;
    Ok(())
}

/// How often `work` is done per second by `at_once` workers.
async fn per_second<F: Future<Output = Outcome<()>>>(at_once: usize, work: impl Fn() -> F) -> Outcome<f64> {
    let start = Instant::now();
    let workers = (0..at_once).map(|_| async {
        let mut done = 0_u32;
        while start.elapsed() < TIME {
            work().await?;
            done += 1;
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(done)
    });
    let done = join_all(workers).await.into_iter().sum::<Result<u32, _>>()?;
    Ok(f64::from(done) / start.elapsed().as_secs_f64())
}

async fn round_trips(tunnel: &Tunnel, header: &FlowHeader, at_once: usize) -> Outcome<f64> {
    let start = Instant::now();
    let workers = (0..at_once).map(|_| async {
        let mut flow = tunnel.open(header).await?;
        let (sent, mut heard, mut done) = ([7; 1024], [0; 1024], 0_u32);
        while start.elapsed() < TIME {
            flow.write_all(&sent).await?;
            flow.read_exact(&mut heard).await?;
            done += 1;
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(done)
    });
    let done = join_all(workers).await.into_iter().sum::<Result<u32, _>>()?;
    Ok(f64::from(done) / start.elapsed().as_secs_f64())
}

async fn bulk(tunnel: &Tunnel, header: &FlowHeader) -> Outcome<f64> {
    let (mut reader, mut writer) = tokio::io::split(tunnel.open(header).await?);
    let start = Instant::now();
    let write = async {
        let piece = vec![7; 65_536];
        while start.elapsed() < TIME {
            writer.write_all(&piece).await?;
        }
        writer.shutdown().await
    };
    let mut sink = tokio::io::sink();
    let (written, read) = tokio::join!(write, tokio::io::copy(&mut reader, &mut sink));
    written?;
    #[expect(clippy::cast_precision_loss, reason = "a rough figure")]
    Ok(read? as f64 / start.elapsed().as_secs_f64())
}
