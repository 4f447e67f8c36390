//! The links stream of the gateway.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;
use tombolo_clusterset::ClusterId;
use tombolo_clusterset::reachability::LinkState;
use tombolo_daemon::seam::Seams;
use tracing::warn;

use super::connect_uds;
use super::subscription::{Event, TaskGuard, follow};
use crate::convert::LinkReport;
use crate::v1;
use crate::v1::gateway_client::GatewayClient;

/// Every link of this cluster, by the other end.
pub type LinkTable = BTreeMap<ClusterId, LinkReport>;

/// Follows the gateway's links. While the gateway is away every link is [`LinkState::Unknown`]: its silence says nothing
/// about other clusters.
#[derive(Debug, Clone)]
pub struct LinksFeed {
    newest: watch::Receiver<Arc<LinkTable>>,
    _task: Arc<TaskGuard>,
}

impl LinksFeed {
    /// Subscribes to the gateway at `socket`. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(socket: &Path, seams: Seams) -> Self {
        let (sender, newest) = watch::channel(Arc::new(LinkTable::new()));
        let client = GatewayClient::new(connect_uds(socket));
        let task = tokio::spawn(async move {
            let open = || {
                let mut client = client.clone();
                async move { client.watch_links(v1::WatchLinksRequest {}).await }
            };
            follow("links", seams, open, |event| {
                match event {
                    Event::Opened => {}
                    Event::Message(update) => {
                        let mut table = LinkTable::new();
                        for link in &update.links {
                            match LinkReport::try_from(link) {
                                Ok(report) => {
                                    table.insert(report.cluster.clone(), report);
                                }
                                Err(invalid) => {
                                    warn!(%invalid, "the gateway reports a link that makes no sense")
                                }
                            }
                        }
                        sender.send_replace(Arc::new(table));
                    }
                    Event::Lost => sender.send_modify(|table| *table = Arc::new(forgotten(table))),
                }
                true
            })
            .await;
        });
        Self {
            newest,
            _task: Arc::new(TaskGuard::new(&task)),
        }
    }

    /// A feed that is fed by hand, for a role's tests.
    #[must_use]
    pub fn from_receiver(newest: watch::Receiver<Arc<LinkTable>>) -> Self {
        let idle = tokio::spawn(async {});
        Self {
            newest,
            _task: Arc::new(TaskGuard::new(&idle)),
        }
    }

    /// The newest table.
    #[must_use]
    pub fn current(&self) -> Arc<LinkTable> {
        self.newest.borrow().clone()
    }

    /// A receiver that sees every later table (and may skip some in between).
    #[must_use]
    pub fn receiver(&self) -> watch::Receiver<Arc<LinkTable>> {
        self.newest.clone()
    }
}

/// What is left of a table when its gateway is away.
fn forgotten(table: &LinkTable) -> LinkTable {
    let forget = |report: &LinkReport| LinkReport {
        state: LinkState::Unknown,
        peer: String::new(),
        transport: String::new(),
        reason: "the gateway of this cluster does not answer".to_owned(),
        ..report.clone()
    };
    table
        .iter()
        .map(|(cluster, report)| (cluster.clone(), forget(report)))
        .collect()
}
