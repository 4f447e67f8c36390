//! Takes in connections: handshake, hello, tunnel, each step in time and in bounds.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::TlsAcceptor;
use tombolo_daemon::seam::net::{ACCEPT_PAUSE, Listener};

use super::{Shared, dialler_permit};
use crate::limits::HANDSHAKE_TIMEOUT;
use crate::metrics::Direction;
use crate::shell::carrier::Carrier;
use crate::shell::cut::{CutStream, canonical};
use crate::shell::h2::{self, H2Carrier};
use crate::shell::quic;
use crate::tunnel::greet;

/// Takes in QUIC connections until the endpoint closes.
pub(super) async fn quic(shared: Arc<Shared>) {
    while let Some(incoming) = shared.quic.accept().await {
        let remote = incoming.remote_address();
        let Ok(slot) = Arc::clone(&shared.handshakes).try_acquire_owned() else {
            incoming.ignore();
            continue;
        };
        // Half the slots are taken: from now on an address must prove that it is real (RFC 9000 §8.1.2).
        if shared.handshakes.available_permits() < shared.limits.handshakes / 2 && incoming.may_retry() {
            if let Err(error) = incoming.retry() {
                tracing::debug!(%remote, %error, "cannot ask for address validation");
            }
            continue;
        }
        shared.spawn(|shared| async move {
            let generation = shared.identity.generation();
            let handshake = async {
                let connection = incoming.accept()?.await?;
                Ok((quic::peer_chain(&connection), Carrier::Quic(connection)))
            };
            welcome(&shared, handshake, remote, generation, slot, |_| {}).await;
        });
    }
}

/// Takes in TCP connections until the endpoint closes.
pub(super) async fn h2(shared: Arc<Shared>, listener: Listener) {
    let acceptor = TlsAcceptor::from(shared.identity.server_tls(dialler_permit(), h2::ALPN));
    loop {
        // Waiting for a slot before accepting leaves the crowd in the kernel's backlog.
        let Ok(slot) = Arc::clone(&shared.handshakes).acquire_owned().await else {
            return;
        };
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections; is the limit of open files reached?");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let acceptor = acceptor.clone();
        shared.spawn(|shared| async move {
            let generation = shared.identity.generation();
            let cluster = Arc::new(OnceLock::new());
            let stream = CutStream::new(stream, Arc::clone(&shared.cut), Arc::clone(&cluster));
            let handshake = async {
                let tls = acceptor.accept(stream).await?;
                let (_, session) = tls.get_ref();
                require_h2(session.alpn_protocol())?;
                let chain = session.peer_certificates().unwrap_or_default().to_vec();
                let carrier = H2Carrier::server(tls, remote, &shared.limits, &shared.tasks).await?;
                Ok((chain, Carrier::H2(carrier)))
            };
            welcome(&shared, handshake, remote, generation, slot, |id| {
                drop(cluster.set(id.clone()))
            })
            .await;
        });
    }
}

pub(super) fn require_h2(alpn: Option<&[u8]>) -> io::Result<()> {
    match alpn {
        Some(protocol) if protocol == h2::ALPN => Ok(()),
        _ => Err(io::Error::other(
            "the peer does not speak HTTP/2 on this connection (ALPN)",
        )),
    }
}

/// From the first byte to a tunnel, or to nothing.
async fn welcome(
    shared: &Arc<Shared>,
    handshake: impl Future<Output = io::Result<(Vec<tombolo_trust::CertificateDer<'static>>, Carrier)>>,
    remote: SocketAddr,
    generation: u64,
    slot: OwnedSemaphorePermit,
    named: impl FnOnce(&tombolo_clusterset::ClusterId),
) {
    let remote = canonical(remote);
    let failed = |step: &str, error: &dyn std::fmt::Display| {
        shared.metrics.handshake_failed();
        tracing::debug!(%remote, step, %error, "connection refused");
    };
    let (chain, carrier) = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(done)) => done,
        Ok(Err(error)) => return failed("handshake", &error),
        Err(late) => return failed("handshake", &late),
    };
    let identified = match shared.identify(chain, remote, generation) {
        Ok(identified) => identified,
        Err(error) => {
            carrier.close(&error);
            return failed("identity", &error);
        }
    };
    named(&identified.cluster);
    let (cluster, certified) = (&identified.cluster, identified.certified);
    let hello = greet(&carrier, Direction::Inbound, &shared.own, cluster, certified);
    let greeted = match tokio::time::timeout(shared.limits.header_timeout, hello).await {
        Ok(Ok(greeted)) => greeted,
        Ok(Err(error)) => {
            carrier.close(&error.to_string());
            return failed("hello", &error);
        }
        Err(late) => {
            carrier.close("no hello in time");
            return failed("hello", &late);
        }
    };
    drop(slot);
    if let Err(error) = shared.admit(carrier, Direction::Inbound, identified, greeted) {
        failed("admission", &error);
    }
}
