//! How the processes of one cluster listen to each other: feeds over the Unix sockets of the agent and the gateway.
//!
//! A feed is a task that subscribes, keeps the newest whole value, and subscribes anew for ever when the other process is
//! away, keeping the last value meanwhile: a role never waits for another one (DESIGN §4.1).

mod drills;
mod links;
mod snapshots;
mod subscription;
mod uds;

use std::path::PathBuf;

use tombolo_clusterset::{ClusterId, Label, Locality};

pub use drills::{DrillFeed, RunningDrill};
pub use links::{LinkTable, LinksFeed};
pub use snapshots::{Interest, SnapshotFeed, snapshot_changes, snapshot_events};
pub use uds::connect_uds;

/// Name of the agent's socket in a cluster's data directory.
pub const AGENT_SOCKET: &str = "agent.sock";
/// Name of the gateway's socket in a cluster's data directory.
pub const GATEWAY_SOCKET: &str = "gateway.sock";

/// Which cluster a process belongs to, and where it keeps its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSite {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its region and zone.
    pub locality: Locality,
    /// Clusters of one network reach each other's endpoints directly.
    pub network: Label,
    /// Identity, caches and sockets.
    pub data_dir: PathBuf,
}

impl ClusterSite {
    /// Where the agent serves `local.proto` Agent.
    #[must_use]
    pub fn agent_socket(&self) -> PathBuf {
        self.data_dir.join(AGENT_SOCKET)
    }

    /// Where the gateway serves `local.proto` Gateway.
    #[must_use]
    pub fn gateway_socket(&self) -> PathBuf {
        self.data_dir.join(GATEWAY_SOCKET)
    }
}
