//! One connection to one broker: dial, TLS, HTTP/2. It does not reconnect: the caller goes to the next broker at once.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls_config::ClientConfig;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls as rustls_config;
use tombolo_daemon::seam::Seams;
use tombolo_trust::CertificateDer;
use tonic::transport::{Channel, Endpoint, Uri};

/// ALPN of gRPC.
pub const ALPN: &[&[u8]] = &[b"h2"];

/// Time for dial and TLS together: a broker across an ocean needs 0.5 s; one that takes longer is as good as gone, and the
/// next one is tried.
pub const CONNECT_TIME: Duration = Duration::from_secs(3);

/// How often a silent connection is pinged, and how long the answer may take: a broker that died without closing is noticed
/// within the sum, well inside a lease term.
const PING_EVERY: Duration = Duration::from_secs(2);
const PING_TIME: Duration = Duration::from_secs(2);

/// Largest message from a broker, bytes: an export record with 128 slices of 1,000 endpoints, of some 60 bytes each, would
/// take 8 MB.
pub const MAX_MESSAGE: usize = 16 << 20;

/// Why a broker was not reached.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's message is its documentation")]
pub enum ConnectError {
    #[error("{0}")]
    Dial(io::Error),
    #[error("no answer within {} s", CONNECT_TIME.as_secs())]
    TimedOut,
    #[error("it is not trusted: {0}")]
    Untrusted(tombolo_trust::TrustError),
    #[error("TLS failed: {0}")]
    Tls(io::Error),
    #[error("HTTP/2 failed: {0}")]
    Http(#[from] tonic::transport::Error),
}

/// A connection, and what the broker presented.
#[derive(Debug)]
pub struct BrokerChannel {
    /// For gRPC clients.
    pub channel: Channel,
    /// The broker's chain, leaf first.
    pub certs: Vec<CertificateDer<'static>>,
}

/// Connects to the broker at `address`.
///
/// # Errors
/// [`ConnectError`], which does not repeat the address.
pub async fn connect(
    seams: &Seams,
    config: Arc<ClientConfig>,
    address: SocketAddr,
) -> Result<BrokerChannel, ConnectError> {
    tokio::time::timeout(CONNECT_TIME, connect_without_limit(seams, config, address))
        .await
        .map_err(|_| ConnectError::TimedOut)?
}

async fn connect_without_limit(
    seams: &Seams,
    config: Arc<ClientConfig>,
    address: SocketAddr,
) -> Result<BrokerChannel, ConnectError> {
    let stream = seams.network.dial(address).await.map_err(ConnectError::Dial)?;
    let tls = TlsConnector::from(config)
        .connect(address.ip().into(), stream)
        .await
        .map_err(|error| match tombolo_trust::refusal(&error) {
            Some(refusal) => ConnectError::Untrusted(refusal.clone()),
            None => ConnectError::Tls(error),
        })?;
    let certs = tls
        .get_ref()
        .1
        .peer_certificates()
        .unwrap_or_default()
        .iter()
        .map(|cert| cert.clone().into_owned())
        .collect();
    let once = Arc::new(Mutex::new(Some(tls)));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = once.lock().take();
        async move {
            stream
                .map(TokioIo::new)
                .ok_or_else(|| io::Error::other("the connection to the broker is gone"))
        }
    });
    let channel = Endpoint::from_static("http://broker.tombolo")
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIME)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await?;
    Ok(BrokerChannel { channel, certs })
}
