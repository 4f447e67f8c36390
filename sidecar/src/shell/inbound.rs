//! mTLS in front of a local application.
//!
//! Strict takes mTLS of the clusterset and nothing else. Permissive looks at the first bytes: a ClientHello is answered with
//! mTLS, never with less; anything else goes through as it is.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tombolo_daemon::log_limit::LogLimit;
use tombolo_daemon::seam::Seams;
use tombolo_daemon::seam::net::{ACCEPT_PAUSE, Listener, Stream};
use tombolo_daemon::shutdown::Shutdown;
use tombolo_trust::{CertificateDer, Permit, Role, Subject, TrustError, denied_in_chain, peer_identity};
use tombolo_tunnel::LocalIdentity;
use tombolo_tunnel::limits::TRUST_CHECK_EVERY;

use super::connect::CONNECT_TIMEOUT;
use super::relay::{Connection, relay};
use crate::config::{Inbound as Place, Mode};
use crate::metrics::{Inbound as Outcome, Metrics};
use crate::sniff::{self, Guess};

/// What both sides of sidecar-to-sidecar mTLS say they speak: the application's own bytes.
pub(super) const ALPN: &[u8] = b"tombolo-sidecar/1";

/// How long a permissive listener waits for the first bytes. A client whose protocol lets the server speak first says
/// nothing, and waits no longer than this; a ClientHello follows the connection within a round trip.
const SNIFF_TIMEOUT: Duration = Duration::from_millis(500);

/// Time for a handshake: ten round trips of 200 ms and some computing.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections at once per listener: what one application serves; beyond it they are reset at once.
const CONNECTIONS_MAX: usize = 8_192;

/// One inbound listener.
#[derive(Debug)]
pub(super) struct Inbound {
    pub(super) place: Place,
    pub(super) identity: LocalIdentity,
    pub(super) seams: Seams,
    pub(super) shutdown: Shutdown,
    pub(super) metrics: Metrics,
}

impl Inbound {
    /// Takes in connections until the drain begins.
    pub(super) async fn serve(self: Arc<Self>, listener: Listener) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let failures = LogLimit::default();
        loop {
            let accepted = tokio::select! {
                () = self.shutdown.drain() => return,
                accepted = listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    failures.write(self.seams.clock.now(), |suppressed| {
                        tracing::warn!(%error, suppressed, "cannot accept connections; is the limit of open files reached?");
                    });
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
                self.metrics.inbound(Outcome::Overloaded);
                stream.abort();
                continue;
            };
            let (inbound, guard) = (Arc::clone(&self), self.shutdown.guard("inbound connection"));
            tokio::spawn(async move {
                let _held = (permit, guard);
                tokio::select! {
                    result = inbound.connection(stream) => if let Err(error) = result {
                        tracing::debug!(%peer, %error, "inbound connection ended early");
                    },
                    // Dropping the connection resets it.
                    () = inbound.shutdown.deadline_passed() => {
                        inbound.metrics.flows_reset_at_drain.inc();
                    }
                }
            });
        }
    }

    async fn connection(&self, stream: Stream) -> io::Result<()> {
        stream.reset_on_drop()?;
        let sniffed = match self.place.mode {
            Mode::Strict => Sniffed {
                head: BytesMut::new(),
                stream,
            },
            Mode::Permissive => {
                let (sniffed, guess) = sniff(stream, self.seams.clock.now() + SNIFF_TIMEOUT).await?;
                if guess == Guess::Plain {
                    let target = self.target().await?;
                    self.metrics.inbound(Outcome::Plain);
                    return relay(sniffed, target).await;
                }
                sniffed
            }
        };
        let acceptor = TlsAcceptor::from(self.identity.server_tls(caller_permit(), ALPN));
        let handshake = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(sniffed)).await;
        let tls = match handshake.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut))) {
            Ok(tls) => tls,
            Err(error) => {
                self.metrics.inbound(Outcome::Refused);
                return Err(error);
            }
        };
        let chain = tls.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
        match peer_identity(&chain) {
            Ok(peer) => tracing::debug!(%peer, target = %self.place.target, "inbound mTLS"),
            // The verifier has read the same certificate.
            Err(error) => return Err(io::Error::other(error)),
        }
        let target = self.target().await?;
        self.metrics.inbound(Outcome::Mtls);
        tokio::select! {
            ended = relay(tls, target) => ended,
            // Dropping the relay resets both sides.
            denied = self.denied(&chain) => {
                self.metrics.inbound(Outcome::Evicted);
                tracing::warn!(error = %denied, "inbound connection cut");
                Err(io::Error::other(denied))
            }
        }
    }

    /// Resolves when the cluster of this chain has been evicted (DESIGN §4.12).
    async fn denied(&self, chain: &[CertificateDer<'static>]) -> TrustError {
        let mut ticks = interval(TRUST_CHECK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut seen = None;
        loop {
            ticks.tick().await;
            let now = self.identity.trust().load();
            if seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &now)) {
                continue;
            }
            if let Err(denied) = denied_in_chain(chain, &now) {
                return denied;
            }
            seen = Some(now);
        }
    }

    async fn target(&self) -> io::Result<Stream> {
        let dialled = timeout(CONNECT_TIMEOUT, self.seams.network.dial(self.place.target)).await;
        let target = dialled.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)));
        if target.is_err() {
            self.metrics.inbound(Outcome::TargetFailed);
        }
        target
    }
}

/// Who may call: workloads, by their sidecars, and gateways, of any cluster of the clusterset. What they may call is the
/// application's to say; what another *cluster* may call, its gateway has asked already.
fn caller_permit() -> Permit {
    Permit::custom("a workload, a sidecar or a gateway", |id| {
        matches!(
            id.subject(),
            Subject::Workload { .. }
                | Subject::Role {
                    role: Role::Sidecar | Role::Gateway,
                    ..
                }
        )
    })
}

/// Reads until the first bytes tell, the peer has ended or `until` has come: what is silent or cut short is plain.
async fn sniff(mut stream: Stream, until: Instant) -> io::Result<(Sniffed, Guess)> {
    let mut head = BytesMut::with_capacity(sniff::HEAD);
    let guess = loop {
        match sniff::guess(&head) {
            Guess::More => {}
            guess => break guess,
        }
        match timeout_at(until, stream.read_buf(&mut head)).await {
            Ok(Ok(0)) | Err(_) => break Guess::Plain,
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error),
        }
    };
    Ok((Sniffed { head, stream }, guess))
}

/// A connection of which the first bytes were read already; they are read again.
#[derive(Debug)]
struct Sniffed {
    head: BytesMut,
    stream: Stream,
}

impl Connection for Sniffed {
    fn socket(&self) -> &Stream {
        &self.stream
    }
}

impl AsyncRead for Sniffed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.head.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let len = self.head.len().min(buffer.remaining());
        buffer.put_slice(&self.head[..len]);
        self.head.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Sniffed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
