//! A connection and a listener, real or simulated.

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

/// What a simulated connection must offer.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + Debug {
    /// The other end.
    fn peer_addr(&self) -> io::Result<SocketAddr>;

    /// This end.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// Turns Nagle's algorithm off or on.
    fn set_nodelay(&self, nodelay: bool) -> io::Result<()>;

    /// From now on, dropping the connection resets it: the peer sees an error, never a normal end.
    fn reset_on_drop(&self) -> io::Result<()>;
}

/// One byte stream between two addresses.
#[derive(Debug)]
pub enum Stream {
    /// A socket of the host.
    Tcp(TcpStream),
    /// Anything else: the simulation's.
    Other(Box<dyn Duplex>),
}

impl Stream {
    /// The other end.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Stream::Tcp(tcp) => tcp.peer_addr(),
            Stream::Other(other) => other.peer_addr(),
        }
    }

    /// This end.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Stream::Tcp(tcp) => tcp.local_addr(),
            Stream::Other(other) => other.local_addr(),
        }
    }

    /// Turns Nagle's algorithm off or on.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        match self {
            Stream::Tcp(tcp) => tcp.set_nodelay(nodelay),
            Stream::Other(other) => other.set_nodelay(nodelay),
        }
    }

    /// From now on, dropping the stream resets it (`SO_LINGER` 0): the peer sees an error, never a normal end.
    pub fn reset_on_drop(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(tcp) => tcp.set_zero_linger(),
            Stream::Other(other) => other.reset_on_drop(),
        }
    }

    /// Ends the stream with a reset. A socket that refuses the option is gone already.
    pub fn abort(self) {
        if let Err(error) = self.reset_on_drop() {
            tracing::debug!(%error, "connection was gone before its reset");
        }
    }
}

impl From<TcpStream> for Stream {
    fn from(tcp: TcpStream) -> Stream {
        Stream::Tcp(tcp)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Stream::Other(other) => Pin::new(other).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Stream::Other(other) => Pin::new(other).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Stream::Other(other) => Pin::new(other).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Tcp(tcp) => tcp.is_write_vectored(),
            Stream::Other(other) => other.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Stream::Other(other) => Pin::new(other).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Stream::Other(other) => Pin::new(other).poll_shutdown(cx),
        }
    }
}

/// What a simulated listener must offer.
pub trait Accept: Send + Sync + Debug {
    /// The next connection. Cancel-safe: a dropped future loses none.
    fn accept(&self) -> BoxFuture<'_, io::Result<(Stream, SocketAddr)>>;

    /// Where it listens.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// Takes in connections.
#[derive(Debug)]
pub enum Listener {
    /// A socket of the host.
    Tcp(TcpListener),
    /// Anything else: the simulation's.
    Other(Box<dyn Accept>),
}

impl Listener {
    /// The next connection, nodelay on. Cancel-safe.
    ///
    /// A connection that died while it waited in the backlog is skipped. What remains is trouble of the host (no file
    /// descriptors, no memory): the caller pauses a little ([`ACCEPT_PAUSE`](super::ACCEPT_PAUSE)) and tries again.
    pub async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        loop {
            let accepted = match self {
                Listener::Tcp(tcp) => tcp
                    .accept()
                    .await
                    .map(|(stream, peer)| (Stream::Tcp(stream), peer)),
                Listener::Other(other) => other.accept().await,
            };
            match accepted {
                Ok((stream, peer)) => match stream.set_nodelay(true) {
                    Ok(()) => return Ok((stream, peer)),
                    Err(error) => tracing::debug!(%peer, %error, "connection died before it was served"),
                },
                Err(error) if concerns_one_connection(&error) => {
                    tracing::debug!(%error, "connection died in the backlog");
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Listener::Tcp(tcp) => tcp.local_addr(),
            Listener::Other(other) => other.local_addr(),
        }
    }
}

impl From<TcpListener> for Listener {
    fn from(tcp: TcpListener) -> Listener {
        Listener::Tcp(tcp)
    }
}

/// accept(2) passes pending network errors of the new socket on as its own and asks to treat them like `EAGAIN`.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::TimedOut
    )
}

#[cfg(test)]
mod tests;
