//! An agent of the test: serves snapshots and drills by hand, signs leaves with a real intermediate.

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::stream::{self, Stream};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::WatchStream;
use tombolo_clusterset::Snapshot;
use tombolo_daemon::uds;
use tombolo_trust::issue::LEAF_TTL;
use tombolo_trust::{Intermediate, Serial, SpiffeId};
use tombolo_wire::local::{Interest, snapshot_changes, snapshot_events};
use tombolo_wire::v1;
use tombolo_wire::v1::agent_server::{Agent, AgentServer};
use tonic::{Request, Response, Status};

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The agent takes in the report of this drill and never answers.
pub(crate) const UNANSWERED_DRILL: u64 = 66;

/// What the test turns.
pub(crate) struct Desk {
    pub(crate) snapshots: watch::Sender<Arc<Snapshot>>,
    pub(crate) drills: watch::Sender<v1::DrillsUpdate>,
    pub(crate) reports: mpsc::Receiver<v1::DrillReport>,
}

struct Served {
    intermediate: Intermediate,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    drills: watch::Receiver<v1::DrillsUpdate>,
    reports: mpsc::Sender<v1::DrillReport>,
}

/// Serves at `socket` until the test ends.
pub(crate) async fn start(socket: &Path, intermediate: Intermediate, snapshot: Snapshot) -> Desk {
    let (snapshots, seen) = watch::channel(Arc::new(snapshot));
    let (drills, running) = watch::channel(v1::DrillsUpdate::default());
    let (sender, reports) = mpsc::channel(4);
    let served = Served {
        intermediate,
        snapshots: seen,
        drills: running,
        reports: sender,
    };
    let socket = uds::listen(socket).await.unwrap();
    let connections = stream::unfold(
        socket,
        |socket| async move { Some((socket.accept().await, socket)) },
    );
    let server = tonic::transport::Server::builder().add_service(AgentServer::new(served));
    tokio::spawn(async move { server.serve_with_incoming(connections).await });
    Desk {
        snapshots,
        drills,
        reports,
    }
}

#[tonic::async_trait]
impl Agent for Served {
    type WatchSnapshotStream = Events<v1::SnapshotEvent>;
    type WatchDrillsStream = Events<v1::DrillsUpdate>;

    async fn watch_snapshot(
        &self,
        _: Request<v1::WatchSnapshotRequest>,
    ) -> Result<Response<Self::WatchSnapshotStream>, Status> {
        let all = Interest::default();
        let mut last: Option<Arc<Snapshot>> = None;
        let batches = WatchStream::new(self.snapshots.clone()).map(move |next| {
            let events = match &last {
                None => snapshot_events(&next, &all),
                Some(last) => snapshot_changes(last, &next, &all),
            };
            last = Some(next);
            stream::iter(events.into_iter().map(Ok))
        });
        Ok(Response::new(Box::pin(futures_util::StreamExt::flatten(batches))))
    }

    async fn watch_drills(
        &self,
        _: Request<v1::WatchDrillsRequest>,
    ) -> Result<Response<Self::WatchDrillsStream>, Status> {
        Ok(Response::new(Box::pin(
            WatchStream::new(self.drills.clone()).map(Ok),
        )))
    }

    async fn issue_leaf(
        &self,
        request: Request<v1::IssueLeafRequest>,
    ) -> Result<Response<v1::IssueLeafReply>, Status> {
        let v1::IssueLeafRequest { subject, csr } = request.into_inner();
        let (domain, cluster) = (self.intermediate.trust_domain(), self.intermediate.cluster());
        let id = SpiffeId::parse(&format!("spiffe://{domain}/cluster/{cluster}/{subject}")).unwrap();
        let serial = Serial::from_random([3; 16]);
        let leaf = self
            .intermediate
            .issue_leaf(&csr, &id, serial, SystemTime::now(), LEAF_TTL)
            .unwrap();
        let snapshot = self.snapshots.borrow().clone();
        let trust = v1::TrustBundle {
            trust_domain: domain.to_string(),
            roots: snapshot.roots.iter().map(|root| root.clone().into()).collect(),
            denied: Vec::new(),
            revision: 1,
        };
        let chain = [&leaf, self.intermediate.cert()].map(|cert| cert.as_ref().to_vec().into());
        Ok(Response::new(v1::IssueLeafReply {
            chain: chain.into(),
            trust: Some(trust),
            not_after_unix_ms: 0,
        }))
    }

    async fn report_drill(
        &self,
        request: Request<v1::DrillReport>,
    ) -> Result<Response<v1::LocalReportDrillReply>, Status> {
        let report = request.into_inner();
        let is_hung = report.drill == UNANSWERED_DRILL;
        self.reports
            .send(report)
            .await
            .map_err(|_| Status::unavailable("the test is over"))?;
        if is_hung {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(v1::LocalReportDrillReply {}))
    }

    async fn inspect(&self, _: Request<v1::InspectRequest>) -> Result<Response<v1::InspectReply>, Status> {
        Err(Status::unimplemented("no test asks"))
    }
}

/// Counts answers by who gave them.
pub(crate) fn tally<'a>(names: impl IntoIterator<Item = &'a str>) -> BTreeMap<String, usize> {
    let mut tally = BTreeMap::new();
    for name in names {
        *tally.entry(name.to_owned()).or_default() += 1;
    }
    tally
}
