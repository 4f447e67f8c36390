use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

/// A simulated connection, as small as can be.
#[derive(Debug)]
struct Pipe(DuplexStream);

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

fn nowhere() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 1))
}

impl Duplex for Pipe {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(nowhere())
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(nowhere())
    }

    fn set_nodelay(&self, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn reset_on_drop(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Accepts what it was given, last first.
#[derive(Debug)]
struct Script(Mutex<Vec<io::Result<Pipe>>>);

impl Accept for Script {
    fn accept(&self) -> BoxFuture<'_, io::Result<(Stream, SocketAddr)>> {
        let next = self.0.lock().pop().unwrap();
        async { next.map(|pipe| (Stream::Other(Box::new(pipe)), nowhere())) }.boxed()
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(nowhere())
    }
}

#[tokio::test]
async fn dead_connections_are_skipped_and_trouble_of_the_host_is_not() {
    let out_of_descriptors = rustix::io::Errno::MFILE.raw_os_error();
    let (mut far, near) = duplex(64);
    let script = vec![
        Err(io::Error::from_raw_os_error(out_of_descriptors)),
        Ok(Pipe(near)),
        Err(io::ErrorKind::ConnectionReset.into()),
        Err(io::ErrorKind::ConnectionAborted.into()),
    ];
    let listener = Listener::Other(Box::new(Script(Mutex::new(script))));
    let (mut stream, peer) = listener.accept().await.unwrap();
    assert_eq!((peer, stream.peer_addr().unwrap()), (nowhere(), nowhere()));

    far.write_all(b"ping").await.unwrap();
    let mut heard = [0; 4];
    stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"ping");
    stream.abort();

    let error = listener.accept().await.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(out_of_descriptors));
}
