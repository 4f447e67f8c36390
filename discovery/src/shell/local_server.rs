//! `agent.sock`: the snapshot, the drill, leaves, and what people ask.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tombolo_clusterset::Snapshot;
use tombolo_daemon::seam::Seams;
use tombolo_daemon::shutdown::Shutdown;
use tombolo_daemon::uds::Socket;
use tombolo_trust::{Role, SpiffeId, Subject};
use tombolo_wire::convert::{self, Invalid};
use tombolo_wire::local::{Interest, RunningDrill, snapshot_changes, snapshot_events};
use tombolo_wire::v1;
use tombolo_wire::v1::agent_server::{Agent, AgentServer};
use tombolo_wire::version::negotiate;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};

use super::errands::tell_lagging;
use super::identity::{ClusterIdentity, unix_ms};
use super::metrics::Metrics;
use super::sync::TrustAck;
use crate::watched::Trust;

/// Most namespaces and services that one subscriber names: a pod calls some dozens.
pub const MAX_INTEREST: usize = 1_000;

/// Drill reports that wait for a broker. Drills run one at a time and last a second at least; a report that finds no room is
/// refused to its gateway, which tries again.
pub const MAX_REPORTS: usize = 4;

/// Largest drill report, bytes: 1,000 requests a second for 15 minutes, 40 bytes each.
const MAX_REPORT: usize = 40 << 20;

/// Questions that wait for the agent's loop.
pub const MAX_QUESTIONS: usize = 16;

/// Time for the agent's loop to answer a question: it is busy for a moment when everything changes at once.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// A question of a person, answered by the loop that owns the state.
pub type Question = oneshot::Sender<v1::InspectReply>;

/// What the server serves from.
#[derive(Debug, Clone)]
pub struct LocalServer {
    /// The newest snapshot.
    pub snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    /// The drill that runs.
    pub drill: watch::Receiver<Option<RunningDrill>>,
    /// Signs leaves.
    pub identity: Arc<ClusterIdentity>,
    /// Life of leaves.
    pub leaf_ttl: Duration,
    /// Told when a leaf moves to a new root.
    pub trust_ack: Arc<watch::Sender<TrustAck>>,
    /// Takes drill reports.
    pub reports: mpsc::Sender<v1::DrillReport>,
    /// Takes questions.
    pub questions: mpsc::Sender<Question>,
    /// Clocks.
    pub seams: Seams,
    /// Counters.
    pub metrics: Metrics,
}

impl LocalServer {
    /// Serves `socket` until the drain begins.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn serve(self, socket: Socket, shutdown: Shutdown) -> Result<(), tonic::transport::Error> {
        let service = AgentServer::new(self).max_decoding_message_size(MAX_REPORT);
        let connections = unfold(socket, |socket| async move {
            let accepted: io::Result<UnixStream> = socket.accept().await;
            Some((accepted, socket))
        });
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(connections, async move { shutdown.drain().await })
            .await
    }
}

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Agent for LocalServer {
    type WatchSnapshotStream = Events<v1::SnapshotEvent>;
    type WatchDrillsStream = Events<v1::DrillsUpdate>;

    async fn watch_snapshot(
        &self,
        request: Request<v1::WatchSnapshotRequest>,
    ) -> Result<Response<Self::WatchSnapshotStream>, Status> {
        let request = request.into_inner();
        negotiate(request.protocol_version, request.protocol_version)
            .map_err(|error| Status::failed_precondition(error.to_string()))?;
        let interest = interest(&request).map_err(|invalid| Status::invalid_argument(invalid.to_string()))?;
        let follower = Follower {
            snapshots: self.snapshots.clone(),
            interest,
            last: None,
            queue: VecDeque::new(),
        };
        Ok(Response::new(Box::pin(unfold(
            follower,
            |mut follower| async move {
                let event = follower.next().await?;
                Some((Ok(event), follower))
            },
        ))))
    }

    async fn watch_drills(
        &self,
        _request: Request<v1::WatchDrillsRequest>,
    ) -> Result<Response<Self::WatchDrillsStream>, Status> {
        let mut drill = self.drill.clone();
        drill.mark_changed();
        let state = (drill, self.seams.clock.clone());
        Ok(Response::new(Box::pin(unfold(
            state,
            |(mut drill, clock)| async move {
                drill.changed().await.ok()?;
                let running = drill.borrow_and_update().clone();
                let age = running
                    .as_ref()
                    .map(|running| running.age(clock.now()))
                    .unwrap_or_default();
                let update = v1::DrillsUpdate {
                    drill: running.as_ref().map(|running| (&running.drill).into()),
                    age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
                };
                Some((Ok(update), (drill, clock)))
            },
        ))))
    }

    async fn issue_leaf(
        &self,
        request: Request<v1::IssueLeafRequest>,
    ) -> Result<Response<v1::IssueLeafReply>, Status> {
        let uid = request
            .extensions()
            .get::<UdsConnectInfo>()
            .and_then(|info| info.peer_cred)
            .map(|peer| peer.uid());
        let issued = permit_peer(uid).and_then(|()| self.issue(request.get_ref()));
        match &issued {
            Ok(_) => {
                tell_lagging(&self.identity, &self.trust_ack);
                self.metrics.leaves_issued.inc()
            }
            Err(status) => {
                self.metrics.leaves_refused.inc();
                tracing::warn!(
                    subject = request.get_ref().subject,
                    reason = status.message(),
                    "refused a leaf"
                );
                0
            }
        };
        issued.map(Response::new)
    }

    async fn report_drill(
        &self,
        request: Request<v1::DrillReport>,
    ) -> Result<Response<v1::LocalReportDrillReply>, Status> {
        self.reports.try_send(request.into_inner()).map_err(|_| {
            Status::resource_exhausted(format!(
                "{MAX_REPORTS} drill reports wait for a broker already; try again later"
            ))
        })?;
        Ok(Response::new(v1::LocalReportDrillReply {}))
    }

    async fn inspect(
        &self,
        _request: Request<v1::InspectRequest>,
    ) -> Result<Response<v1::InspectReply>, Status> {
        let (question, answer) = oneshot::channel();
        let busy = || Status::unavailable("the agent is starting, ending or busy; try again");
        self.questions.try_send(question).map_err(|_| busy())?;
        let reply = timeout(ANSWER_TIME, answer)
            .await
            .map_err(|_| busy())?
            .map_err(|_| busy())?;
        Ok(Response::new(reply))
    }
}

impl LocalServer {
    fn issue(&self, request: &v1::IssueLeafRequest) -> Result<v1::IssueLeafReply, Status> {
        let id = subject(&self.identity, &request.subject)?;
        let chain = self
            .identity
            .issue(&request.csr, &id, self.leaf_ttl)
            .map_err(|error| Status::failed_precondition(format!("no leaf for {id}: {error}")))?;
        let validity = chain.first().map(tombolo_trust::cert::validity);
        let validity = validity
            .transpose()
            .map_err(|error| Status::internal(error.to_string()))?;
        let denied = self
            .snapshots
            .borrow()
            .as_ref()
            .map(|snapshot| snapshot.denied.clone());
        let trust = Trust {
            denied: denied.unwrap_or_default(),
            ..self.identity.trust_in_use()
        };
        Ok(v1::IssueLeafReply {
            chain: chain.iter().map(|cert| cert.to_vec().into()).collect(),
            trust: Some(trust.to_bundle()),
            not_after_unix_ms: validity.map_or(0, |validity| unix_ms(validity.not_after)),
        })
    }
}

/// Only the agent's own user, and root, get leaves: whoever can become them can read the intermediate's key anyway.
fn permit_peer(uid: Option<u32>) -> Result<(), Status> {
    let own = rustix::process::geteuid().as_raw();
    match uid {
        Some(uid) if uid == own || uid == 0 => Ok(()),
        Some(uid) => Err(Status::permission_denied(format!(
            "user {uid} gets no certificate; the agent runs as user {own}"
        ))),
        None => Err(Status::permission_denied("the caller's user is not known")),
    }
}

/// The id that a leaf may name: a role or a workload of this cluster, and never the agent itself.
fn subject(identity: &ClusterIdentity, subject: &str) -> Result<SpiffeId, Status> {
    let id = SpiffeId::parse(&format!(
        "spiffe://{}/cluster/{}/{subject}",
        identity.trust_domain(),
        identity.cluster()
    ))
    .map_err(|error| Status::invalid_argument(format!("subject '{subject}': {error}")))?;
    match id.subject() {
        Subject::Role {
            role: Role::Agent, ..
        } => Err(Status::permission_denied(
            "role/agent is this process; it signs its own certificate and no other",
        )),
        Subject::Role { .. } | Subject::Workload { .. } => Ok(id),
        _ => Err(Status::invalid_argument(format!(
            "subject '{subject}' is neither role/NAME nor ns/NAMESPACE/sa/ACCOUNT"
        ))),
    }
}

fn interest(request: &v1::WatchSnapshotRequest) -> Result<Interest, Invalid> {
    let count = request.namespaces.len() + request.services.len();
    if count > MAX_INTEREST {
        return Err(Invalid::new(
            "services",
            format!(
                "{count} namespaces and services are named; at most {MAX_INTEREST} are allowed: name namespaces, or nothing for all"
            ),
        ));
    }
    let namespaces = request.namespaces.iter().map(|text| {
        tombolo_clusterset::Namespace::parse(text)
            .map_err(|error| Invalid::new("namespaces", error.to_string()))
    });
    let services = request
        .services
        .iter()
        .map(|key| convert::service_key("services", Some(key)));
    Ok(Interest {
        namespaces: namespaces.collect::<Result<_, _>>()?,
        services: services.collect::<Result<_, _>>()?,
    })
}

/// One subscriber: whole at first, then differences. A slow one skips snapshots in between, and never sees half of one.
struct Follower {
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    interest: Interest,
    last: Option<Arc<Snapshot>>,
    queue: VecDeque<v1::SnapshotEvent>,
}

impl Follower {
    /// The next event; None when the agent ends.
    async fn next(&mut self) -> Option<v1::SnapshotEvent> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            let newest = match &self.last {
                None => self.snapshots.wait_for(Option::is_some).await.ok()?.clone(),
                Some(_) => {
                    self.snapshots.changed().await.ok()?;
                    self.snapshots.borrow_and_update().clone()
                }
            };
            let Some(newest) = newest else { continue };
            self.queue = match &self.last {
                None => snapshot_events(&newest, &self.interest).into(),
                Some(last) => snapshot_changes(last, &newest, &self.interest).into(),
            };
            self.last = Some(newest);
        }
    }
}
