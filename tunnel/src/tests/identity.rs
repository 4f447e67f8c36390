//! The certificate of a process: from the agent, from the cache, and with the snapshot's trust.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tombolo_clusterset::{ClusterId, Snapshot};
use tombolo_daemon::seam::Seams;
use tombolo_daemon::shutdown::Shutdown;
use tombolo_wire::v1;
use tonic::{Request, Response, Status};

use super::site::{Member, World, cluster_id};
use crate::{IdentityConfig, LocalIdentity, LocalIdentityError};

/// Signs what a process asks for, and serves nothing else.
struct Agent {
    member: Arc<Member>,
    bundle: v1::TrustBundle,
}

type Events<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl v1::agent_server::Agent for Agent {
    type WatchSnapshotStream = Events<v1::SnapshotEvent>;
    type WatchDrillsStream = Events<v1::DrillsUpdate>;

    async fn watch_snapshot(
        &self,
        _: Request<v1::WatchSnapshotRequest>,
    ) -> Result<Response<Self::WatchSnapshotStream>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn watch_drills(
        &self,
        _: Request<v1::WatchDrillsRequest>,
    ) -> Result<Response<Self::WatchDrillsStream>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn issue_leaf(
        &self,
        request: Request<v1::IssueLeafRequest>,
    ) -> Result<Response<v1::IssueLeafReply>, Status> {
        let request = request.into_inner();
        let chain = self.member.chain(&request.csr, &request.subject);
        Ok(Response::new(v1::IssueLeafReply {
            chain: chain.iter().map(|cert| cert.to_vec().into()).collect(),
            trust: Some(self.bundle.clone()),
            not_after_unix_ms: 0,
        }))
    }

    async fn report_drill(
        &self,
        _: Request<v1::DrillReport>,
    ) -> Result<Response<v1::LocalReportDrillReply>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn inspect(&self, _: Request<v1::InspectRequest>) -> Result<Response<v1::InspectReply>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}

fn serve(world: &World, member: &Arc<Member>, socket: &Path) -> tokio::task::JoinHandle<()> {
    let bundle = v1::TrustBundle {
        trust_domain: world.root.trust_domain().to_string(),
        roots: vec![world.root.cert().to_vec().into()],
        denied: Vec::new(),
        revision: 1,
    };
    let agent = v1::agent_server::AgentServer::new(Agent {
        member: Arc::clone(member),
        bundle,
    });
    let incoming = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
    tokio::spawn(async move {
        tonic::transport::Server::builder()
            .add_service(agent)
            .serve_with_incoming(incoming)
            .await
            .unwrap();
    })
}

struct Machine {
    dir: tempfile::TempDir,
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    shutdown: Shutdown,
}

impl Machine {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            snapshots: watch::Sender::new(None),
            shutdown: Shutdown::new(Duration::from_secs(1)),
        }
    }

    fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("agent.sock")
    }

    async fn start(&self, cluster: ClusterId) -> Result<LocalIdentity, LocalIdentityError> {
        let config = IdentityConfig {
            cluster,
            subject: "role/gateway".to_owned(),
            agent_socket: self.socket(),
            cache_dir: self.dir.path().join("leaf/gateway"),
            snapshots: self.snapshots.subscribe(),
        };
        LocalIdentity::start(config, Seams::host(), self.shutdown.clone()).await
    }
}

#[tokio::test]
async fn a_cache_starts_a_process_without_its_agent() {
    let world = World::new();
    let member = Arc::new(world.member("west"));
    let machine = Machine::new();
    let agent = serve(&world, &member, &machine.socket());
    let first = machine.start(cluster_id("west")).await.unwrap();
    assert_eq!(first.id(), member.id("role/gateway"));
    agent.abort();
    assert!(agent.await.unwrap_err().is_cancelled());
    let second = machine.start(cluster_id("west")).await.unwrap();
    assert_eq!(second.certs().load().chain(), first.certs().load().chain());
    assert_eq!(second.trust().load().roots(), first.trust().load().roots());
}

#[tokio::test]
async fn without_agent_and_cache_it_waits_until_shutdown() {
    let machine = Machine::new();
    let start = machine.start(cluster_id("west"));
    tokio::pin!(start);
    assert!(
        tokio::time::timeout(Duration::from_millis(300), &mut start)
            .await
            .is_err()
    );
    machine.shutdown.begin(tokio::time::Instant::now());
    assert!(matches!(start.await, Err(LocalIdentityError::ShutDown)));
}

#[tokio::test]
async fn a_cache_of_another_cluster_is_not_used() {
    let world = World::new();
    let machine = Machine::new();
    let west = Arc::new(world.member("west"));
    let agent = serve(&world, &west, &machine.socket());
    machine.start(cluster_id("west")).await.unwrap();
    agent.abort();
    assert!(agent.await.unwrap_err().is_cancelled());
    std::fs::remove_file(machine.socket()).unwrap();
    let east = Arc::new(world.member("east"));
    let _agent = serve(&world, &east, &machine.socket());
    let identity = machine.start(cluster_id("east")).await.unwrap();
    assert_eq!(identity.id(), east.id("role/gateway"));
}

#[tokio::test]
async fn evictions_come_with_the_snapshot_and_survive_a_restart() {
    let world = World::new();
    let member = Arc::new(world.member("west"));
    let evicted = world.member("east").key();
    let machine = Machine::new();
    let agent = serve(&world, &member, &machine.socket());
    let identity = machine.start(cluster_id("west")).await.unwrap();
    let mut snapshot = Snapshot::empty(cluster_id("west"));
    snapshot.trust_domain = world.root.trust_domain().to_string();
    snapshot.roots = vec![world.root.cert().to_vec()];
    snapshot.denied = vec![*evicted.as_bytes()];
    machine.snapshots.send_replace(Some(Arc::new(snapshot)));
    let denied = async {
        while !identity.trust().load().denied().contains(&evicted) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), denied)
        .await
        .expect("the eviction arrives");
    agent.abort();
    machine.snapshots.send_replace(None);
    let again = machine.start(cluster_id("west")).await.unwrap();
    assert!(again.trust().load().denied().contains(&evicted));
}
