//! One connection that carries a tunnel, whatever the transport: streams both ways, and datagrams where it has them.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use quinn::{SendDatagramError, VarInt};

use super::cut::canonical;
use super::h2::H2Carrier;
use super::halves::{RecvHalf, SendHalf};
use crate::metrics::Transport;

/// The QUIC close code of an ordinary end; the reason says more.
const CLOSED: VarInt = VarInt::from_u32(0);

/// A stream, both ways.
pub(crate) type Stream = (SendHalf, RecvHalf);

#[derive(Debug)]
pub(crate) enum Carrier {
    Quic(quinn::Connection),
    H2(H2Carrier),
}

/// What became of a datagram.
#[derive(Debug)]
pub(crate) enum DatagramSent {
    Sent,
    /// It does not fit a packet of this path: it goes on the stream.
    TooLarge,
    Closed,
}

impl Carrier {
    pub(crate) fn transport(&self) -> Transport {
        match self {
            Self::Quic(_) => Transport::Quic,
            Self::H2(_) => Transport::H2,
        }
    }

    /// Where the peer is now; QUIC peers may move.
    pub(crate) fn remote_addr(&self) -> SocketAddr {
        match self {
            Self::Quic(connection) => canonical(connection.remote_address()),
            Self::H2(connection) => connection.remote_addr(),
        }
    }

    /// Lets the peer open `flows` streams at once, now that it is known. HTTP/2 says so in its settings.
    pub(crate) fn allow_flows(&self, flows: usize) {
        if let Self::Quic(connection) = self {
            // One more for the control stream.
            let streams = u32::try_from(flows).unwrap_or(u32::MAX).saturating_add(1);
            connection.set_max_concurrent_bi_streams(VarInt::from_u32(streams));
        }
    }

    /// Opens a stream; waits while the peer's limit of streams is reached. The peer sees it with its first byte. Cancel-safe.
    pub(crate) async fn open(&self, authority: &str) -> io::Result<Stream> {
        match self {
            Self::Quic(connection) => {
                let (send, recv) = connection.open_bi().await?;
                Ok((SendHalf::quic(send), RecvHalf::quic(recv)))
            }
            Self::H2(connection) => connection.open(authority).await,
        }
    }

    /// The next stream that the peer opened; None when the connection is over. Cancel-safe.
    pub(crate) async fn accept(&self) -> Option<Stream> {
        match self {
            Self::Quic(connection) => {
                let (send, recv) = connection.accept_bi().await.ok()?;
                Some((SendHalf::quic(send), RecvHalf::quic(recv)))
            }
            Self::H2(connection) => connection.accept().await,
        }
    }

    /// Longest datagram now; None where there are none.
    pub(crate) fn max_datagram(&self) -> Option<usize> {
        match self {
            Self::Quic(connection) => connection.max_datagram_size(),
            Self::H2(_) => None,
        }
    }

    /// Sends a datagram, waiting for room in the send buffer.
    pub(crate) async fn send_datagram(&self, datagram: Bytes) -> DatagramSent {
        match self {
            Self::Quic(connection) => match connection.send_datagram_wait(datagram).await {
                Ok(()) => DatagramSent::Sent,
                Err(SendDatagramError::ConnectionLost(_)) => DatagramSent::Closed,
                Err(_) => DatagramSent::TooLarge,
            },
            Self::H2(_) => DatagramSent::TooLarge,
        }
    }

    /// The next datagram; None when the connection is over, or has none. Cancel-safe.
    pub(crate) async fn datagram(&self) -> Option<Bytes> {
        match self {
            Self::Quic(connection) => connection.read_datagram().await.ok(),
            Self::H2(_) => None,
        }
    }

    /// Ends the connection at once, with all its streams.
    pub(crate) fn close(&self, reason: &str) {
        match self {
            Self::Quic(connection) => connection.close(CLOSED, reason.as_bytes()),
            Self::H2(connection) => connection.close(reason),
        }
    }

    /// Resolves when the connection is over, with the reason. Cancel-safe.
    pub(crate) async fn closed(&self) -> String {
        match self {
            Self::Quic(connection) => connection.closed().await.to_string(),
            Self::H2(connection) => connection.closed().await,
        }
    }
}
