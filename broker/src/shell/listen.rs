//! Accepting connections: TLS with the peer's identity attached, each handshake in a task of its own.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tombolo_daemon::Shutdown;
use tombolo_daemon::seam::net::{ACCEPT_PAUSE, Listener, Stream};
use tombolo_trust::{Fingerprint, SpiffeId, cert, peer_identity};
use tonic::transport::server::Connected;

use super::metrics::Metrics;
use crate::bounds::{CONNECTIONS_MAX, HANDSHAKE_TIMEOUT};

/// Handshaken connections that wait for the server to take them.
const ACCEPTED_AHEAD: usize = 64;

/// Who is at the other end: what the services decide by.
#[derive(Debug, Clone)]
pub struct Caller {
    /// None for a peer that presented no certificate.
    pub id: Option<SpiffeId>,
    /// The keys of everything it sent behind its leaf, in any order: the one that signed the leaf is among them. Denied
    /// keys are refused on connections that are up already, too.
    pub signers: Arc<[Fingerprint]>,
}

/// An authenticated connection.
#[derive(Debug)]
pub struct Connection {
    stream: TlsStream<Stream>,
    caller: Caller,
    _permit: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = Caller;
    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

/// Connections of `listener`, until the drain.
pub fn incoming(
    listener: Listener,
    tls: Arc<ServerConfig>,
    metrics: Metrics,
    shutdown: Shutdown,
) -> (
    ReceiverStream<io::Result<Connection>>,
    impl Future<Output = ()> + Send,
) {
    let (ready, accepted) = mpsc::channel(ACCEPTED_AHEAD);
    (
        ReceiverStream::new(accepted),
        accept(listener, tls.into(), metrics, shutdown, ready),
    )
}

async fn accept(
    listener: Listener,
    tls: TlsAcceptor,
    metrics: Metrics,
    shutdown: Shutdown,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut handshakes = JoinSet::new();
    loop {
        while handshakes.try_join_next().is_some() {}
        let accepting = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = shutdown.drain() => return,
            accepted = accepting => accepted,
        };
        // The semaphore is never closed.
        let Ok(permit) = permit else { return };
        match accepted {
            Ok((stream, address)) => {
                let (tls, ready, metrics) = (tls.clone(), ready.clone(), metrics.clone());
                handshakes.spawn(async move {
                    match handshake(tls, stream, permit).await {
                        // The server is gone: so is the connection.
                        Ok(connection) => drop(ready.send(Ok(connection)).await),
                        Err(error) => {
                            metrics.handshakes_failed.inc();
                            let refusal = tombolo_trust::refusal(&error).map(ToString::to_string);
                            tracing::debug!(%address, %error, refusal, "handshake failed");
                        }
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept; check the limit of open files");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn handshake(tls: TlsAcceptor, stream: Stream, permit: OwnedSemaphorePermit) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let late = || io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake took too long");
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream))
        .await
        .map_err(|_| late())??;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let id = match chain.is_empty() {
        true => None,
        false => Some(peer_identity(chain).map_err(io::Error::other)?),
    };
    let signers = chain
        .iter()
        .skip(1)
        .map(cert::fingerprint)
        .collect::<Result<_, _>>()
        .map_err(io::Error::other)?;
    Ok(Connection {
        stream,
        caller: Caller { id, signers },
        _permit: permit,
    })
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
