//! The host's network.

use std::io;
use std::net::SocketAddr;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::net::{TcpSocket, TcpStream};

use super::{Listener, Network, Stream};

/// Connections that may wait for `accept`: a burst of one second at 1,000 new flows per second; the kernel caps it at
/// `net.core.somaxconn`.
const BACKLOG: u32 = 1024;

/// Sockets of the host: `SO_REUSEADDR` on listeners, nodelay on connections.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostNetwork;

impl Network for HostNetwork {
    fn dial(&self, peer: SocketAddr) -> BoxFuture<'static, io::Result<Stream>> {
        async move {
            let stream = TcpStream::connect(peer).await.map_err(|error| {
                io::Error::new(error.kind(), format!("cannot connect to {peer}: {error}"))
            })?;
            stream.set_nodelay(true)?;
            Ok(Stream::Tcp(stream))
        }
        .boxed()
    }

    fn listen(&self, address: SocketAddr) -> BoxFuture<'static, io::Result<Listener>> {
        async move { bind(address).map_err(|error| explain(address, &error)) }.boxed()
    }
}

fn bind(address: SocketAddr) -> io::Result<Listener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // A restart must not wait for connections of the last run in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG).map(Listener::Tcp)
}

fn explain(address: SocketAddr, error: &io::Error) -> io::Error {
    let text = match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "address already in use: another process listens on {address}; stop it or choose another port in the configuration"
        ),
        io::ErrorKind::AddrNotAvailable => format!(
            "cannot listen on {address}: this host has no such address; use one of `ip address`, or 0.0.0.0 or [::] for all"
        ),
        io::ErrorKind::PermissionDenied => format!(
            "cannot listen on {address}: permission denied; ports below 1024 need CAP_NET_BIND_SERVICE, or choose a higher port"
        ),
        _ => format!("cannot listen on {address}: {error}"),
    };
    io::Error::new(error.kind(), text)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const LOOPBACK: &str = "127.0.0.1:0";

    async fn pair() -> (Stream, Stream) {
        let listener = HostNetwork.listen(LOOPBACK.parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (dialed, accepted) = tokio::join!(HostNetwork.dial(address), listener.accept());
        (dialed.unwrap(), accepted.unwrap().0)
    }

    #[tokio::test]
    async fn bytes_and_ends_cross() {
        let (mut here, mut there) = pair().await;
        assert_eq!(here.peer_addr().unwrap(), there.local_addr().unwrap());
        here.write_all(b"ping").await.unwrap();
        here.shutdown().await.unwrap();
        let mut heard = Vec::new();
        there.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"ping");
    }

    #[tokio::test]
    async fn an_abort_is_seen_as_a_reset() {
        let (here, mut there) = pair().await;
        here.abort();
        let error = there.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn nodelay_is_on_at_both_ends() {
        for stream in <[Stream; 2]>::from(pair().await) {
            let Stream::Tcp(tcp) = stream else {
                panic!("the host gives sockets")
            };
            assert!(tcp.nodelay().unwrap());
        }
    }

    #[tokio::test]
    async fn a_taken_address_says_what_to_do() {
        let first = HostNetwork.listen(LOOPBACK.parse().unwrap()).await.unwrap();
        let address = first.local_addr().unwrap();
        let error = HostNetwork.listen(address).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(
            error.to_string(),
            format!(
                "address already in use: another process listens on {address}; stop it or choose another port in the configuration"
            )
        );
    }

    #[tokio::test]
    async fn a_failed_dial_names_the_peer() {
        let listener = HostNetwork.listen(LOOPBACK.parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = HostNetwork.dial(address).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}
