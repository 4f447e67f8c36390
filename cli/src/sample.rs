//! The sample backends of a local cluster: they listen on every endpoint that its manifests name.
//!
//! TCP: a small HTTP server that says who answered. UDP: an echo with the same words in front.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tombolo_daemon::Shutdown;

/// Connections at once over all listeners: far above what a drill opens, far below the file limit of a small machine.
const MAX_CONNECTIONS: usize = 4_000;
/// Largest UDP payload (IPv4).
const MAX_DATAGRAM: usize = 65_507;
/// A client that sends no request is let go.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after a failed accept, so that a full file table is not met by a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The part of an EndpointSlice that says where to listen.
#[derive(Debug, Deserialize)]
struct Slice {
    kind: Option<String>,
    metadata: Option<Metadata>,
    #[serde(default)]
    ports: Vec<Port>,
    #[serde(default)]
    endpoints: Vec<Backend>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    #[serde(default)]
    labels: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct Port {
    #[serde(default)]
    protocol: Option<String>,
    port: u16,
}

#[derive(Debug, Deserialize)]
struct Backend {
    addresses: Vec<std::net::IpAddr>,
}

/// One listener.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Listen {
    service: String,
    udp: bool,
    address: SocketAddr,
}

/// Serves until the drain begins.
pub(crate) async fn run(cluster: String, manifests: PathBuf, shutdown: Shutdown) -> Result<()> {
    let mut tasks = JoinSet::new();
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    for listen in listens(&manifests)? {
        let words: Arc<str> = format!("{} from {cluster} at {}", listen.service, listen.address).into();
        let taken = || {
            format!(
                "the sample backend {} cannot listen on {}",
                listen.service, listen.address
            )
        };
        if listen.udp {
            let socket = UdpSocket::bind(listen.address).await.with_context(taken)?;
            tasks.spawn(echo(socket, words));
        } else {
            let listener = TcpListener::bind(listen.address).await.with_context(taken)?;
            tasks.spawn(serve(listener, words, connections.clone()));
        }
    }
    tokio::select! {
        () = shutdown.drain() => Ok(()),
        ended = tasks.join_next(), if !tasks.is_empty() => match ended {
            Some(Err(error)) => Err(error).context("a sample backend failed"),
            _ => anyhow::bail!("a sample backend ended"),
        },
    }
}

/// What the manifests ask for. A document that does not parse is the agent's to report; here it is passed over.
fn listens(manifests: &std::path::Path) -> Result<BTreeSet<Listen>> {
    let mut listens = BTreeSet::new();
    let folder =
        std::fs::read_dir(manifests).with_context(|| format!("cannot read {}", manifests.display()))?;
    for entry in folder {
        let path = entry?.path();
        if !path
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml")
        {
            continue;
        }
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        for document in text
            .split("\n---")
            .filter(|document| document.contains("EndpointSlice"))
        {
            match serde_saphyr::from_str::<Slice>(document) {
                Ok(slice) => listens.extend(slice_listens(&slice)),
                Err(error) => tracing::warn!(file = %path.display(), %error, "passing over a document"),
            }
        }
    }
    Ok(listens)
}

fn slice_listens(slice: &Slice) -> Vec<Listen> {
    if slice.kind.as_deref() != Some("EndpointSlice") {
        return Vec::new();
    }
    let label = slice
        .metadata
        .as_ref()
        .and_then(|metadata| metadata.labels.get("kubernetes.io/service-name"));
    let service = label.cloned().unwrap_or_default();
    let addresses = || slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
    let of_port = |port: &Port| {
        let (udp, number, service) = (
            port.protocol.as_deref() == Some("UDP"),
            port.port,
            service.clone(),
        );
        addresses().map(move |ip| Listen {
            service: service.clone(),
            udp,
            address: SocketAddr::new(*ip, number),
        })
    };
    slice.ports.iter().flat_map(of_port).collect()
}

async fn serve(listener: TcpListener, words: Arc<str>, connections: Arc<Semaphore>) {
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a sample backend cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let words = words.clone();
        tokio::spawn(async move {
            let answer = service_fn(move |_: Request<hyper::body::Incoming>| {
                let body = Full::new(Bytes::from(format!("{words}\n")));
                std::future::ready(Ok::<_, Infallible>(Response::new(body)))
            });
            let mut server = hyper::server::conn::http1::Builder::new();
            server
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT);
            if let Err(error) = server.serve_connection(TokioIo::new(stream), answer).await {
                tracing::debug!(%error, "a sample connection failed");
            }
            drop(permit);
        });
    }
}

async fn echo(socket: UdpSocket, words: Arc<str>) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let (len, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "a sample socket cannot receive");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let mut answer = format!("{words}: ").into_bytes();
        answer.extend_from_slice(&buffer[..len]);
        answer.truncate(MAX_DATAGRAM);
        if let Err(error) = socket.send_to(&answer, client).await {
            tracing::debug!(%error, "a sample socket cannot send");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listens_on_every_endpoint_and_port() {
        let folder = tempfile::tempdir().expect("folder");
        let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: a-1\n  labels:\n    kubernetes.io/service-name: a\naddressType: IPv4\nports:\n  - name: x\n    port: 8080\n  - name: y\n    protocol: UDP\n    port: 8125\nendpoints:\n  - addresses: [127.0.0.2]\n  - addresses: [127.0.0.3]\n";
        std::fs::write(
            folder.path().join("a.yaml"),
            format!("kind: Service\n---\n{slice}---\nkind: [\n"),
        )
        .expect("write");
        let found: Vec<String> = listens(folder.path())
            .expect("readable")
            .into_iter()
            .map(|listen| format!("{} {} {}", listen.service, listen.udp, listen.address))
            .collect();
        assert_eq!(
            found,
            [
                "a false 127.0.0.2:8080",
                "a false 127.0.0.3:8080",
                "a true 127.0.0.2:8125",
                "a true 127.0.0.3:8125"
            ]
        );
    }
}
