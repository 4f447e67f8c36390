//! gRPC over a Unix socket.

use std::path::Path;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// A channel to the gRPC server at the socket `path`. Connects at the first call, and anew after a failure.
#[must_use]
pub fn connect_uds(path: &Path) -> Channel {
    let path = path.to_owned();
    // The address is never looked up: the connector below decides where a connection goes.
    Endpoint::from_static("http://local.tombolo").connect_with_connector_lazy(tower::service_fn(
        move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(&path).await.map(TokioIo::new) }
        },
    ))
}
