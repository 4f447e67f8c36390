//! Dials a gateway.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tombolo_clusterset::ClusterId;
use tombolo_trust::Permit;

use super::{Shared, TransportChoice, listen};
use crate::limits::{DIAL_TIMEOUT, PREFER_H2_FOR, PREFER_H2_MAX, QUIC_HEAD_START};
use crate::metrics::{Direction, Transport};
use crate::shell::carrier::Carrier;
use crate::shell::cut::CutStream;
use crate::shell::h2::{self, H2Carrier};
use crate::shell::quic;
use crate::tunnel::{Tunnel, greet};

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No answer.
    #[error("no answer from {address} over {} within {} ms; is it up, and is {} allowed there?", transport.as_str(), after.as_millis(), protocol(*transport))]
    Timeout {
        /// Who was dialled.
        address: SocketAddr,
        /// How.
        transport: Transport,
        /// How long.
        after: Duration,
    },
    /// The connection failed, or the peer is not who was expected.
    #[error("cannot open a tunnel to {address} over {}: {source}", transport.as_str())]
    Failed {
        /// Who was dialled.
        address: SocketAddr,
        /// How.
        transport: Transport,
        /// Why.
        source: io::Error,
    },
    /// The connection stands, but the peer did not agree to a tunnel.
    #[error("{address} refused the tunnel: {reason}")]
    Refused {
        /// Who was dialled.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
}

fn protocol(transport: Transport) -> &'static str {
    match transport {
        Transport::Quic => "UDP",
        Transport::H2 => "TCP",
    }
}

impl DialError {
    /// Whether another transport may do better: nothing answered on this one.
    fn is_silence(&self) -> bool {
        match self {
            Self::Timeout { .. } => true,
            Self::Failed { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::TimedOut | io::ErrorKind::ConnectionRefused | io::ErrorKind::InvalidInput
            ),
            Self::Refused { .. } => false,
        }
    }
}

pub(super) async fn dial(
    shared: &Arc<Shared>,
    address: SocketAddr,
    expect: &ClusterId,
    transport: TransportChoice,
) -> Result<Tunnel, DialError> {
    match transport {
        TransportChoice::Quic => over(shared, address, expect, Transport::Quic).await,
        TransportChoice::H2 => over(shared, address, expect, Transport::H2).await,
        TransportChoice::Auto if shared.prefers_h2(address) => {
            over(shared, address, expect, Transport::H2).await
        }
        TransportChoice::Auto => auto(shared, address, expect).await,
    }
}

/// QUIC with a head start, then both; the first tunnel wins and the other dial is abandoned. An answer over QUIC that says
/// no is an answer.
async fn auto(shared: &Arc<Shared>, address: SocketAddr, expect: &ClusterId) -> Result<Tunnel, DialError> {
    let quic = over(shared, address, expect, Transport::Quic);
    tokio::pin!(quic);
    tokio::select! {
        result = &mut quic => match result {
            Err(error) if error.is_silence() => {}
            answer => return answer,
        },
        () = tokio::time::sleep(QUIC_HEAD_START) => {
            let h2 = over(shared, address, expect, Transport::H2);
            tokio::pin!(h2);
            tokio::select! {
                result = &mut quic => match result {
                    Err(error) if error.is_silence() => {
                        let tunnel = h2.await?;
                        shared.remember_h2(address);
                        return Ok(tunnel);
                    }
                    answer => return answer,
                },
                result = &mut h2 => match result {
                    Ok(tunnel) => {
                        shared.remember_h2(address);
                        return Ok(tunnel);
                    }
                    Err(_) => return quic.await,
                },
            }
        }
    }
    let tunnel = over(shared, address, expect, Transport::H2).await?;
    shared.remember_h2(address);
    Ok(tunnel)
}

/// Dials over one transport, in time.
async fn over(
    shared: &Arc<Shared>,
    address: SocketAddr,
    expect: &ClusterId,
    transport: Transport,
) -> Result<Tunnel, DialError> {
    match tokio::time::timeout(DIAL_TIMEOUT, open(shared, address, expect, transport)).await {
        Ok(result) => result,
        Err(_) => Err(DialError::Timeout {
            address,
            transport,
            after: DIAL_TIMEOUT,
        }),
    }
}

async fn open(
    shared: &Arc<Shared>,
    address: SocketAddr,
    expect: &ClusterId,
    transport: Transport,
) -> Result<Tunnel, DialError> {
    let failed = |source| DialError::Failed {
        address,
        transport,
        source,
    };
    let refused = |error: &dyn std::fmt::Display| DialError::Refused {
        address,
        reason: error.to_string(),
    };
    let generation = shared.identity.generation();
    // Before the first packet, or a cut would let the handshake through.
    let named = shared.cut.name(address, expect);
    let permit = Permit::Gateway(expect.clone());
    let (chain, carrier) = match transport {
        Transport::Quic => {
            let tls = shared.identity.client_tls(permit, quic::ALPN);
            let connection = quic::dial(&shared.quic, address, tls, &shared.limits)
                .await
                .map_err(failed)?;
            (quic::peer_chain(&connection), Carrier::Quic(connection))
        }
        Transport::H2 => h2_connection(shared, address, expect, permit)
            .await
            .map_err(failed)?,
    };
    let identified = shared
        .identify(chain, address, generation)
        .map_err(|error| refused(&error))?;
    let (cluster, certified) = (&identified.cluster, identified.certified);
    let greeted = greet(&carrier, Direction::Outbound, &shared.own, cluster, certified).await;
    let greeted = greeted.map_err(|error| refused(&error))?;
    drop(named);
    shared
        .admit(carrier, Direction::Outbound, identified, greeted)
        .map_err(|error| refused(&error))
}

async fn h2_connection(
    shared: &Arc<Shared>,
    address: SocketAddr,
    expect: &ClusterId,
    permit: Permit,
) -> io::Result<(Vec<tombolo_trust::CertificateDer<'static>>, Carrier)> {
    let stream = shared.seams.network.dial(address).await?;
    let stream = CutStream::new(
        stream,
        Arc::clone(&shared.cut),
        Arc::new(OnceLock::from(expect.clone())),
    );
    let connector = TlsConnector::from(shared.identity.client_tls(permit, h2::ALPN));
    // The verifier asks for the SPIFFE id and never for this name; it is not sent either.
    let tls = connector.connect(ServerName::from(address.ip()), stream).await?;
    let (_, session) = tls.get_ref();
    listen::require_h2(session.alpn_protocol())?;
    let chain = session.peer_certificates().unwrap_or_default().to_vec();
    let carrier =
        H2Carrier::client(tls, address, &shared.limits, shared.own.reversible, &shared.tasks).await?;
    Ok((chain, Carrier::H2(carrier)))
}

impl Shared {
    fn prefers_h2(&self, address: SocketAddr) -> bool {
        let mut prefers = self.prefers_h2.lock();
        match prefers.get(&address) {
            Some(since) if since.elapsed() < PREFER_H2_FOR => true,
            Some(_) => {
                prefers.remove(&address);
                false
            }
            None => false,
        }
    }

    fn remember_h2(&self, address: SocketAddr) {
        let mut prefers = self.prefers_h2.lock();
        if prefers.len() >= PREFER_H2_MAX {
            prefers.retain(|_, since| since.elapsed() < PREFER_H2_FOR);
        }
        if prefers.len() < PREFER_H2_MAX {
            prefers.insert(address, Instant::now());
        }
    }
}
