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

/// The lease table of this broker while it leads, with the Raft term it belongs to: what was heard in one leadership
/// says nothing in the next, even when no beat fell in between.
#[derive(Debug, Default)]
pub struct Leases {
    table: Mutex<Option<(u64, LeaseTable)>>,
}

impl Leases {
    /// Runs `change` on the table of `term`; None when there is none.
    pub fn with<T>(&self, term: u64, change: impl FnOnce(&mut LeaseTable) -> T) -> Option<T> {
        let mut table = self.table.lock();
        let (_, table) = table.as_mut().filter(|(of, _)| *of == term)?;
        Some(change(table))
    }

    /// Begins the table of `term`.
    pub fn begin(&self, term: u64, table: LeaseTable) {
        *self.table.lock() = Some((term, table));
    }

    /// Ends the table: this broker does not lead.
    pub fn end(&self) {
        *self.table.lock() = None;
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
    let Some(term) = group.leads_in() else {
        return false;
    };
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
    let renewed = leases.with(term, |table| {
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_table_is_of_one_term() {
        let (leases, now) = (Leases::default(), Instant::now());
        let table = || LeaseTable::begin(Duration::from_secs(3), now, []);
        assert_eq!(leases.with(1, |_| ()), None);
        leases.begin(1, table());
        assert_eq!(leases.with(1, |_| ()), Some(()));
        // Deposed and elected again between two beats.
        assert_eq!(leases.with(3, |_| ()), None);
        leases.begin(3, table());
        assert_eq!((leases.with(1, |_| ()), leases.with(3, |_| ())), (None, Some(())));
        leases.end();
        assert_eq!(leases.with(3, |_| ()), None);
    }
}
