//! Backends that say who they are.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::AbortHandle;

/// Reads to the client's end, then answers `name:` and what it read: a round needs both half-closes.
pub(crate) async fn tcp(address: SocketAddr, name: &'static str) -> AbortHandle {
    let listener = TcpListener::bind(address).await.unwrap();
    let serve = async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut heard = Vec::new();
                if stream.read_to_end(&mut heard).await.is_ok() {
                    let answer = [name.as_bytes(), b":", &heard].concat();
                    // The client may be gone: it is its test that says whether it should.
                    drop(stream.write_all(&answer).await);
                }
            });
        }
    };
    tokio::spawn(serve).abort_handle()
}

/// Answers each datagram with `name:` and the payload.
pub(crate) async fn udp(address: SocketAddr, name: &'static str) -> AbortHandle {
    let socket = UdpSocket::bind(address).await.unwrap();
    let serve = async move {
        let mut buffer = vec![0; 65_536];
        loop {
            let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
            let answer = [name.as_bytes(), b":", &buffer[..length]].concat();
            socket.send_to(&answer, client).await.unwrap();
        }
    };
    tokio::spawn(serve).abort_handle()
}

/// One exchange: what the backend answered, or why there was no whole answer.
pub(crate) async fn ask(address: SocketAddr, question: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(question.as_bytes()).await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
