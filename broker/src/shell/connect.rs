//! Connections to the other brokers: one lazy channel each, over TLS with both sides authenticated.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;
use tombolo_daemon::seam::Seams;
use tombolo_trust::{CertStore, Permit, TrustStore, client_config};
use tombolo_wire::v1::peer_client::PeerClient;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::bounds::{BROKERS_MAX, PEER_MESSAGE_MAX_BYTES};

/// How long a dial with its handshake may take: several round trips across regions.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Silence after which a connection is asked whether it is still there: a peer that vanished closes nothing.
const PING_AFTER: Duration = Duration::from_secs(1);

/// Dials the other brokers.
#[derive(Debug)]
pub struct Peers {
    seams: Seams,
    trust: Arc<TrustStore>,
    certs: Arc<CertStore>,
    channels: Mutex<BTreeMap<(u64, SocketAddr), Channel>>,
}

impl Peers {
    /// Presents `certs`, accepts brokers that `trust` knows.
    #[must_use]
    pub fn new(seams: Seams, trust: Arc<TrustStore>, certs: Arc<CertStore>) -> Self {
        Self {
            seams,
            trust,
            certs,
            channels: Mutex::new(BTreeMap::new()),
        }
    }

    /// A client of broker `id` at `address`. It connects at its first call, and again whenever the connection is lost.
    #[must_use]
    pub fn client(&self, id: u64, address: SocketAddr) -> PeerClient<Channel> {
        let mut channels = self.channels.lock();
        // Removed brokers leave channels behind; ids are never used again, so a few bounded rounds of them.
        if channels.len() > 2 * BROKERS_MAX {
            channels.clear();
        }
        let channel = channels
            .entry((id, address))
            .or_insert_with(|| self.channel(id, address))
            .clone();
        PeerClient::new(channel)
            .max_decoding_message_size(PEER_MESSAGE_MAX_BYTES)
            .max_encoding_message_size(PEER_MESSAGE_MAX_BYTES)
    }

    fn channel(&self, id: u64, address: SocketAddr) -> Channel {
        let tls = client_config(
            Arc::clone(&self.trust),
            Arc::clone(&self.certs),
            Permit::Broker(id),
            &[b"h2"],
        );
        let tls = TlsConnector::from(tls);
        let network = Arc::clone(&self.seams.network);
        let dial = move |_| {
            let (tls, network) = (tls.clone(), Arc::clone(&network));
            async move {
                let dialled = async {
                    let stream = network.dial(address).await?;
                    stream.set_nodelay(true)?;
                    // Not sent and not verified: the SPIFFE id decides.
                    tls.connect(ServerName::from(address.ip()), stream).await
                };
                let late = || {
                    std::io::Error::new(
                        std::io::ErrorKind::TimedOut,
                        format!("broker {id} at {address} does not answer"),
                    )
                };
                let stream = tokio::time::timeout(DIAL_TIMEOUT, dialled)
                    .await
                    .map_err(|_| late())??;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        };
        Endpoint::from_static("http://broker")
            .http2_keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_AFTER)
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(service_fn(dial))
    }
}
