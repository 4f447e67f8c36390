//! The certificate of a process: from the agent, from the cache, and with the snapshot's trust.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tombolo_clusterset::{ClusterId, Snapshot};
use tombolo_daemon::seam::disk::HostDisk;
use tombolo_daemon::seam::{self, Seams};
use tombolo_daemon::shutdown::Shutdown;
use tombolo_trust::{Fingerprint, Usage, verify_chain};
use tombolo_wire::v1;
use tonic::{Request, Response, Status};

use super::site::{Member, PATIENCE, World, cluster_id, serial};
use crate::{IdentityConfig, LocalIdentity, LocalIdentityError};

/// Signs what a process asks for, and serves nothing else.
struct Agent {
    member: watch::Receiver<Arc<Member>>,
    bundle: v1::TrustBundle,
    issued: Arc<AtomicU32>,
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
        self.issued.fetch_add(1, Ordering::Relaxed);
        let member = Arc::clone(&self.member.borrow());
        let chain = member.chain(&request.csr, &request.subject);
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

fn serve(world: &World, member: &Arc<Member>, socket: &Path) -> JoinHandle<()> {
    let (_, members) = watch::channel(Arc::clone(member));
    serve_members(world, members, &Arc::default(), socket)
}

/// An agent whose intermediate may change, and that counts what it issues.
fn serve_members(
    world: &World,
    member: watch::Receiver<Arc<Member>>,
    issued: &Arc<AtomicU32>,
    socket: &Path,
) -> JoinHandle<()> {
    let bundle = v1::TrustBundle {
        trust_domain: world.root.trust_domain().to_string(),
        roots: vec![world.root.cert().to_vec().into()],
        denied: Vec::new(),
        revision: 1,
    };
    let agent = v1::agent_server::AgentServer::new(Agent {
        member,
        bundle,
        issued: Arc::clone(issued),
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
        self.start_on(cluster, Seams::host()).await
    }

    async fn start_on(&self, cluster: ClusterId, seams: Seams) -> Result<LocalIdentity, LocalIdentityError> {
        let config = IdentityConfig {
            cluster,
            subject: "role/gateway".to_owned(),
            agent_socket: self.socket(),
            cache_dir: self.dir.path().join("leaf/gateway"),
            snapshots: self.snapshots.subscribe(),
        };
        LocalIdentity::start(config, seams, self.shutdown.clone()).await
    }

    /// A snapshot that evicts the clusters of these intermediates.
    fn evict(&self, world: &World, evicted: &[Fingerprint]) {
        let mut snapshot = Snapshot::empty(cluster_id("west"));
        snapshot.trust_domain = world.root.trust_domain().to_string();
        snapshot.roots = vec![world.root.cert().to_vec()];
        snapshot.denied = evicted.iter().map(|key| *key.as_bytes()).collect();
        self.snapshots.send_replace(Some(Arc::new(snapshot)));
    }
}

async fn in_force(identity: &LocalIdentity, evicted: Fingerprint) {
    let denied = async {
        while !identity.trust().load().denied().contains(&evicted) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, denied)
        .await
        .expect("the eviction arrives");
}

/// The host's disk until it is told to fail.
#[derive(Debug, Default)]
struct Disk {
    host: HostDisk,
    stuck: AtomicBool,
    /// How often writing panics.
    panics: AtomicU32,
}

impl seam::disk::Disk for Disk {
    fn read<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Vec<u8>>> {
        self.host.read(path)
    }

    fn write_atomic<'a>(&'a self, path: &'a Path, bytes: Vec<u8>) -> BoxFuture<'a, io::Result<()>> {
        let left = |panics: u32| panics.checked_sub(1);
        let panics = self
            .panics
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, left);
        assert!(panics.is_err(), "as the test asked");
        if self.stuck.load(Ordering::Relaxed) {
            return Box::pin(std::future::pending());
        }
        self.host.write_atomic(path, bytes)
    }

    fn append<'a>(&'a self, path: &'a Path, bytes: Vec<u8>) -> BoxFuture<'a, io::Result<()>> {
        self.host.append(path, bytes)
    }

    fn remove<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        self.host.remove(path)
    }

    fn list<'a>(&'a self, directory: &'a Path) -> BoxFuture<'a, io::Result<Vec<String>>> {
        self.host.list(directory)
    }

    fn create_dir_all<'a>(&'a self, directory: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        self.host.create_dir_all(directory)
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
    machine.evict(&world, &[evicted]);
    in_force(&identity, evicted).await;
    let saved = async {
        let path = machine.dir.path().join("leaf/gateway/denied");
        while !std::fs::read_to_string(&path).is_ok_and(|keys| keys.len() > 64) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, saved)
        .await
        .expect("the eviction is saved");
    agent.abort();
    machine.snapshots.send_replace(None);
    let again = machine.start(cluster_id("west")).await.unwrap();
    assert!(again.trust().load().denied().contains(&evicted));
}

#[tokio::test]
async fn an_eviction_does_not_wait_for_the_disk() {
    let world = World::new();
    let member = Arc::new(world.member("west"));
    let machine = Machine::new();
    let _agent = serve(&world, &member, &machine.socket());
    let disk = Arc::new(Disk::default());
    let seams = Seams {
        disk: Arc::clone(&disk) as _,
        ..Seams::host()
    };
    let identity = machine.start_on(cluster_id("west"), seams).await.unwrap();
    disk.stuck.store(true, Ordering::Relaxed);
    let evicted = [world.member("east").key(), world.member("north").key()];
    for count in 1..=evicted.len() {
        machine.evict(&world, &evicted[..count]);
        in_force(&identity, evicted[count - 1]).await;
    }
}

#[tokio::test]
async fn evictions_arrive_after_the_keeper_died() {
    let world = World::new();
    let member = Arc::new(world.member("west"));
    let machine = Machine::new();
    let _agent = serve(&world, &member, &machine.socket());
    let disk = Arc::new(Disk::default());
    let seams = Seams {
        disk: Arc::clone(&disk) as _,
        ..Seams::host()
    };
    let identity = machine.start_on(cluster_id("west"), seams).await.unwrap();
    let evicted = ["east", "north", "south"].map(|name| world.member(name).key());
    for count in 1..=evicted.len() {
        disk.panics.store(1, Ordering::Relaxed);
        machine.evict(&world, &evicted[..count]);
        in_force(&identity, evicted[count - 1]).await;
        let died = async {
            while disk.panics.load(Ordering::Relaxed) > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, died).await.expect("it dies");
    }
}

#[tokio::test]
async fn a_rotation_renews_before_half_life() {
    let old = World::new();
    let root = old.root.successor(serial(), Seams::host().clock.wall()).unwrap();
    let new = World { root };
    let (members, member) = watch::channel(Arc::new(old.member("west")));
    let issued = Arc::default();
    let machine = Machine::new();
    let _agent = serve_members(&old, member, &issued, &machine.socket());
    let identity = machine.start(cluster_id("west")).await.unwrap();
    let mut snapshot = Snapshot::empty(cluster_id("west"));
    snapshot.trust_domain = old.root.trust_domain().to_string();
    snapshot.roots = [&old, &new].map(|world| world.root.cert().to_vec()).to_vec();
    machine.snapshots.send_replace(Some(Arc::new(snapshot)));
    let asked_again = async {
        while issued.load(Ordering::Relaxed) < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, asked_again)
        .await
        .expect("the agent is asked again");
    members.send_replace(Arc::new(new.member("west")));
    let mut generations = identity.generations();
    let renewed = generations.wait_for(|generation| *generation > 0);
    drop(
        tokio::time::timeout(PATIENCE, renewed)
            .await
            .expect("it is renewed"),
    );
    let (present, now) = (identity.certs().load(), Seams::host().clock.wall());
    let (leaf, extra) = present.chain().split_first().unwrap();
    // One that is again of the old root was not taken.
    verify_chain(leaf, extra, now, &new.trust(&[]), Usage::Server).unwrap();
}
