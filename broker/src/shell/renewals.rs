//! Signs of life: from the stream where a member renews to the leader's lease table.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tombolo_clusterset::{ClusterId, Lease};
use tombolo_daemon::seam::clock::Clock;
use tombolo_wire::v1;

use super::raft::group::Group;
use crate::bounds::PUBLISHERS_MAX;
use crate::command::Command;
use crate::lease::LeaseTable;
use crate::state::State;

/// The lease table of this broker while it leads.
#[derive(Debug, Default)]
pub struct Leases {
    table: Mutex<Option<LeaseTable>>,
}

impl Leases {
    /// Runs `change` on the table; None when this broker does not lead.
    pub fn with<T>(&self, change: impl FnOnce(&mut LeaseTable) -> T) -> Option<T> {
        self.table.lock().as_mut().map(change)
    }

    /// Begins or ends the table.
    pub fn set(&self, table: Option<LeaseTable>) {
        *self.table.lock() = table;
    }
}

type Renewal = (ClusterId, oneshot::Sender<bool>);

/// Passes signs of life on, together with all that wait when the way is free.
#[derive(Debug, Clone)]
pub struct Renewals {
    incoming: mpsc::Sender<Renewal>,
}

impl Renewals {
    /// The entrance, and the task behind it.
    pub fn new(
        group: Arc<Group>,
        leases: Arc<Leases>,
        clock: Arc<dyn Clock>,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (incoming, renewals) = mpsc::channel(PUBLISHERS_MAX);
        (Self { incoming }, pass_on(group, leases, clock, renewals))
    }

    /// Renews the lease of `cluster`; whether the leader has heard it.
    pub async fn renew(&self, cluster: &ClusterId) -> bool {
        let (answer, heard) = oneshot::channel();
        self.incoming.send((cluster.clone(), answer)).await.is_ok() && heard.await.unwrap_or(false)
    }
}

async fn pass_on(
    group: Arc<Group>,
    leases: Arc<Leases>,
    clock: Arc<dyn Clock>,
    mut renewals: mpsc::Receiver<Renewal>,
) {
    let mut waiting = Vec::new();
    while renewals.recv_many(&mut waiting, PUBLISHERS_MAX).await > 0 {
        let clusters: Vec<ClusterId> = waiting.iter().map(|(cluster, _)| cluster.clone()).collect();
        let heard = match group.leader_client() {
            Some(mut leader) => {
                let clusters = clusters.iter().map(ToString::to_string).collect();
                let call = leader.renew_leases(v1::RenewLeasesRequest { clusters });
                // A leader that answers later than this does not lead any more.
                let answered = tokio::time::timeout(group.timing().election_min, call).await;
                matches!(answered, Ok(Ok(_)))
            }
            None => renew_here(&group, &leases, clock.as_ref(), &clusters),
        };
        for (_, answer) in waiting.drain(..) {
            // The stream ended meanwhile.
            let _ = answer.send(heard);
        }
    }
}

/// Renews in this broker's own table; false when it does not lead. A lease that the log calls lost or unknown is
/// regained by a command, which is proposed beside.
pub fn renew_here(group: &Arc<Group>, leases: &Leases, clock: &dyn Clock, clusters: &[ClusterId]) -> bool {
    let now = clock.now().into_std();
    let is_alive = |state: &State, id: &ClusterId| {
        state
            .members
            .get(id)
            .map(|member| member.view.lease == Lease::Alive)
    };
    let known = group.replica().read(|state| {
        clusters
            .iter()
            .map(|id| (id, is_alive(state, id)))
            .collect::<Vec<_>>()
    });
    let renewed = leases.with(|table| {
        for (cluster, _) in known.iter().filter(|(_, alive)| alive.is_some()) {
            table.renew(cluster, now);
        }
    });
    if renewed.is_none() {
        return false;
    }
    for (cluster, _) in known.into_iter().filter(|(_, alive)| *alive == Some(false)) {
        let (group, cluster) = (Arc::clone(group), cluster.clone());
        tokio::spawn(async move {
            if let Err(error) = group.propose(vec![Command::RegainLease { cluster }]).await {
                tracing::warn!(%error, "a regained lease could not be recorded; its next renewal tries again");
            }
        });
    }
    true
}
