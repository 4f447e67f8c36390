//! Carries bytes between two connections, both ways, until both directions have ended.
//!
//! An end in one direction (FIN, or TLS close_notify) ends that direction on the other side and leaves the other one open. An
//! error or a reset on either side ends both with a reset: what was cut off must never look complete.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tombolo_daemon::seam::net::Stream;
use tombolo_tunnel::forward::{BUFFER_MAX, BUFFER_MIN};

/// A connection whose end can be chosen.
pub(super) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {
    /// The socket below.
    fn socket(&self) -> &Stream;
}

impl Connection for Stream {
    fn socket(&self) -> &Stream {
        self
    }
}

impl<C: Connection> Connection for tokio_rustls::client::TlsStream<C> {
    fn socket(&self) -> &Stream {
        self.get_ref().0.socket()
    }
}

impl<C: Connection> Connection for tokio_rustls::server::TlsStream<C> {
    fn socket(&self) -> &Stream {
        self.get_ref().0.socket()
    }
}

/// Relays until both directions have ended. Dropping the future resets both sides.
///
/// # Errors
/// What ended it early; both sides were reset.
pub(super) async fn relay(a: impl Connection, b: impl Connection) -> io::Result<()> {
    // Until both ends were seen, letting go of a socket must read as a reset.
    linger(a.socket(), Some(Duration::ZERO));
    linger(b.socket(), Some(Duration::ZERO));
    let (mut a_reader, mut a_writer) = tokio::io::split(a);
    let (mut b_reader, mut b_writer) = tokio::io::split(b);
    tokio::try_join!(
        pump(&mut a_reader, &mut b_writer),
        pump(&mut b_reader, &mut a_writer)
    )?;
    // What is still in the sockets' buffers must be delivered.
    linger(a_reader.unsplit(a_writer).socket(), None);
    linger(b_reader.unsplit(b_writer).socket(), None);
    Ok(())
}

async fn pump<A: Connection, B: Connection>(from: &mut ReadHalf<A>, to: &mut WriteHalf<B>) -> io::Result<()> {
    let mut size = BUFFER_MIN;
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(size);
        let read = from.read_buf(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer).await?;
        to.flush().await?;
        buffer.clear();
        if read >= size {
            size = (size * 2).min(BUFFER_MAX);
        }
    }
}

/// What dropping the socket means: a reset (zero), or an ordinary end.
fn linger(socket: &Stream, duration: Option<Duration>) {
    if let Stream::Tcp(tcp) = socket
        && let Err(error) = socket2::SockRef::from(tcp).set_linger(duration)
    {
        tracing::trace!(%error, "connection was gone already");
    }
}
