//! The whole role.

use std::sync::Arc;

use prometheus_client::registry::Registry;
use serde_json::json;
use tombolo_daemon::admin::{self, Admin};
use tombolo_daemon::supervise::{SuperviseError, Supervisor};
use tombolo_daemon::{Readiness, Seams, Shutdown};
use tombolo_wire::local::SnapshotFeed;

use crate::config::{Config, ConfigError};

/// Why a sidecar ends, other than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A task that it cannot do without died.
    #[error(transparent)]
    Supervise(#[from] SuperviseError),
    /// The admin address cannot be bound.
    #[error("cannot serve sidecar.admin: {source}; is another sidecar running here?")]
    Admin {
        /// What the host said, with the address.
        source: std::io::Error,
    },
}

/// Runs the sidecar until `shutdown` has drained.
///
/// # Errors
/// [`Error`] when it cannot start, or when a task that it cannot do without died.
pub async fn run(config: Config, seams: Seams, shutdown: Shutdown) -> Result<(), Error> {
    config.check()?;
    let listener = seams.network.listen(config.section.admin).await;
    let listener = listener.map_err(|source| Error::Admin { source })?;
    let readiness = Readiness::new();
    let has_snapshot = readiness.block("snapshot");
    let mut supervisor = Supervisor::new(shutdown.clone(), &seams);
    let socket = config.site.agent_socket();
    let snapshots = SnapshotFeed::start(
        &socket,
        config.site.cluster.clone(),
        config.interest(),
        seams.clone(),
    );
    let admin = Admin {
        readiness,
        shutdown,
        registry: Arc::new(Registry::with_prefix("tombolo_sidecar")),
        state: Arc::new(|| json!({})),
    };
    supervisor.companion(
        "admin",
        admin::serve(listener, admin.router(), seams.clock.clone()),
    );
    supervisor.essential("snapshot", {
        let shutdown = supervisor.shutdown().clone();
        async move {
            tokio::select! {
                () = shutdown.drain() => {}
                _ = snapshots.first() => {
                    has_snapshot.mark_ready();
                    shutdown.drain().await;
                }
            }
            Ok(())
        }
    });
    let drained = supervisor.run_until_shutdown().await?;
    tracing::debug!(%drained, "sidecar ended");
    Ok(())
}
