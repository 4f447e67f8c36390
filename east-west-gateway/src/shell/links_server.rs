//! Serves the link table on `gateway.sock` to the agent, DNS and the sidecars of this cluster.

use std::pin::Pin;
use std::sync::{Arc, Weak};

use futures_util::stream::Stream;
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::WatchStream;
use tombolo_daemon::Shutdown;
use tombolo_daemon::supervise::TaskResult;
use tombolo_daemon::uds::Socket;
use tombolo_wire::v1;
use tombolo_wire::v1::gateway_server::{Gateway, GatewayServer};
use tonic::{Request, Response, Status};

use super::context::LinkView;

/// Calls at once over one connection: each process of the cluster makes one.
const STREAMS_PER_CONNECTION: u32 = 16;

/// The `Gateway` service of `local.proto`.
pub(super) struct LinksServer {
    /// Weak: a reader's connection may outlive the gateway by a moment, and must not keep its tunnels alive.
    links: Weak<watch::Sender<Arc<LinkView>>>,
}

#[tonic::async_trait]
impl Gateway for LinksServer {
    type WatchLinksStream = Pin<Box<dyn Stream<Item = Result<v1::LinksUpdate, Status>> + Send>>;

    async fn watch_links(
        &self,
        _: Request<v1::WatchLinksRequest>,
    ) -> Result<Response<Self::WatchLinksStream>, Status> {
        let links = self
            .links
            .upgrade()
            .ok_or_else(|| Status::unavailable("the gateway has ended"))?;
        // A reader that is slow skips tables and always gets the newest one: nothing is queued for it.
        let updates = WatchStream::new(links.subscribe());
        let update = |view: Arc<LinkView>| {
            Ok(v1::LinksUpdate {
                links: view.reports.values().map(v1::Link::from).collect(),
            })
        };
        Ok(Response::new(Box::pin(updates.map(update))))
    }
}

/// Serves until the process ends: also through a drain, for which the readers want to know the links.
pub(super) async fn serve(
    socket: Socket,
    links: Arc<watch::Sender<Arc<LinkView>>>,
    shutdown: Shutdown,
) -> TaskResult {
    let socket = Arc::new(socket);
    let connections = futures_util::stream::unfold(Arc::clone(&socket), |socket| async move {
        let accepted = socket.accept().await;
        Some((accepted, socket))
    });
    tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .add_service(GatewayServer::new(LinksServer {
            links: Arc::downgrade(&links),
        }))
        .serve_with_incoming_shutdown(connections, async move { shutdown.deadline_passed().await })
        .await?;
    // Held until here: while the server runs, its readers see the last table.
    drop(links);
    Ok(())
}
