//! Asks a role's admin address whether it is ready.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A ready role answers in milliseconds; one that does not is asked again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest answer that is read, bytes.
const MAX_BODY: usize = 1 << 20;

/// Ok when `/readyz` says so, else the reason in one line.
pub(crate) async fn is_ready(admin: SocketAddr) -> Result<(), String> {
    match get(admin, "/readyz").await {
        Ok((200, _)) => Ok(()),
        Ok((_, body)) => Err(body.split_whitespace().collect::<Vec<_>>().join(" ")),
        Err(error) => Err(error),
    }
}

/// GET of an admin page: status and body.
pub(crate) async fn get(admin: SocketAddr, path: &str) -> Result<(u16, String), String> {
    timeout(ANSWER_TIMEOUT, fetch(admin, path))
        .await
        .map_err(|_| format!("{admin} does not answer"))?
}

async fn fetch(admin: SocketAddr, path: &str) -> Result<(u16, String), String> {
    let tell = |error: &dyn std::fmt::Display| format!("{admin}: {error}");
    let stream = TcpStream::connect(admin).await.map_err(|error| tell(&error))?;
    let handshake = hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| tell(&error))?;
    let request = hyper::Request::get(path)
        .header("host", admin.to_string())
        .body(Empty::new());
    let request = request.map_err(|error| tell(&error))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| tell(&error))?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_BODY)
            .collect()
            .await
            .map_err(|error| tell(&error))?;
        Ok((status, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
    };
    tokio::select! {
        answer = exchange => answer,
        // The connection ends first only when it fails.
        ended = connection => Err(ended.err().map_or_else(|| tell(&"closed"), |error| tell(&error))),
    }
}
