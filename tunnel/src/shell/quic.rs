//! QUIC: one socket for listening and dialling; the first bidirectional stream is the control stream.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    AsyncUdpSocket, ConnectError, Connection, Endpoint, IdleTimeout, Runtime, TokioRuntime, TransportConfig,
    VarInt,
};
use rustls_pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, Type};

use super::cut::{CutSet, CutSocket};
use crate::limits::{DATAGRAM_BUFFER, FLOW_WINDOW, Limits, SEND_WINDOW, TUNNEL_WINDOW};

/// What both sides must speak (RFC 7301). A new number only for what the hello's version cannot negotiate.
pub(crate) const ALPN: &[u8] = b"tombolo/1";

/// The verifier asks for the SPIFFE id and never for this name; it is not sent either.
const SERVER_NAME: &str = "tombolo.internal";

/// Kernel buffers of the socket, bytes: 4 MiB take 30 ms of 1 Gbit/s while the process is not running.
const SOCKET_BUFFER: usize = 4 * 1024 * 1024;

/// Packets keep NAT bindings, which may last only 30 s, and the idle timer of a tunnel without flows.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Streams that a peer may open before it has said who it is: the control stream and a first burst of flows, which waits
/// for the hello. [`Carrier::allow_flows`](super::carrier::Carrier::allow_flows) raises it.
const FIRST_STREAMS: u32 = 64;

/// Control stream and flows; nothing opens unidirectional streams.
const UNI_STREAMS: u32 = 0;

/// The endpoint. Without `listen` it only dials, from any port, over both families where the host has both.
pub(crate) fn bind(
    listen: Option<SocketAddr>,
    server: Option<quinn::ServerConfig>,
    cut: Arc<CutSet>,
) -> io::Result<Endpoint> {
    let socket = match listen {
        Some(address) => udp_socket(address)?,
        None => udp_socket((Ipv6Addr::UNSPECIFIED, 0).into())
            .or_else(|_| udp_socket((Ipv4Addr::UNSPECIFIED, 0).into()))?,
    };
    let runtime = Arc::new(TokioRuntime);
    let inner: Arc<dyn AsyncUdpSocket> = runtime.wrap_udp_socket(socket)?;
    let socket = Arc::new(CutSocket { inner, cut });
    Endpoint::new_with_abstract_socket(quinn::EndpointConfig::default(), server, socket, runtime)
}

fn udp_socket(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let explain = |error: io::Error| {
        io::Error::new(
            error.kind(),
            format!("cannot bind UDP {address}: {error}; is another process using it?"),
        )
    };
    let socket =
        Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP)).map_err(explain)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false).map_err(explain)?;
    }
    socket.bind(&address.into()).map_err(explain)?;
    // The kernel gives what it allows; less only costs throughput.
    for size in [
        socket.set_recv_buffer_size(SOCKET_BUFFER),
        socket.set_send_buffer_size(SOCKET_BUFFER),
    ] {
        if let Err(error) = size {
            tracing::debug!(%address, %error, "UDP socket keeps its default buffers");
        }
    }
    Ok(socket.into())
}

pub(crate) fn server_config(
    tls: Arc<rustls::ServerConfig>,
    limits: &Limits,
) -> io::Result<quinn::ServerConfig> {
    let crypto = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport(limits));
    config.max_incoming(limits.handshakes);
    Ok(config)
}

fn client_config(tls: Arc<rustls::ClientConfig>, limits: &Limits) -> io::Result<quinn::ClientConfig> {
    let crypto = QuicClientConfig::try_from(tls).map_err(io::Error::other)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport(limits));
    Ok(config)
}

fn transport(limits: &Limits) -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport.max_concurrent_bidi_streams(VarInt::from_u32(FIRST_STREAMS));
    transport.max_concurrent_uni_streams(VarInt::from_u32(UNI_STREAMS));
    transport.stream_receive_window(VarInt::from_u32(FLOW_WINDOW));
    transport.receive_window(VarInt::from_u32(TUNNEL_WINDOW));
    transport.send_window(SEND_WINDOW);
    transport.datagram_receive_buffer_size(Some(DATAGRAM_BUFFER));
    transport.datagram_send_buffer_size(DATAGRAM_BUFFER);
    transport.keep_alive_interval(Some(KEEP_ALIVE));
    // An idle time that QUIC cannot express is no limit, which ours on the control stream then sets.
    transport.max_idle_timeout(IdleTimeout::try_from(limits.idle_timeout).ok());
    Arc::new(transport)
}

/// Dials and authenticates; dropping the future abandons the dial.
pub(crate) async fn dial(
    endpoint: &Endpoint,
    address: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
    limits: &Limits,
) -> io::Result<Connection> {
    let connecting = endpoint
        .connect_with(client_config(tls, limits)?, address, SERVER_NAME)
        .map_err(explain_dial)?;
    Ok(connecting.await?)
}

/// An address of a family that the socket cannot reach is told apart: another transport may.
fn explain_dial(error: ConnectError) -> io::Error {
    match error {
        ConnectError::InvalidRemoteAddress(_) => io::Error::new(io::ErrorKind::InvalidInput, error),
        _ => io::Error::other(error),
    }
}

/// The chain that the peer presented.
pub(crate) fn peer_chain(connection: &Connection) -> Vec<CertificateDer<'static>> {
    let identity = connection.peer_identity();
    let chain = identity.and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    chain.map(|chain| *chain).unwrap_or_default()
}
