//! One broker, from its configuration to its drain.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use openraft::error::{InitializeError, RaftError};
use openraft::{Raft, SnapshotPolicy};
use prometheus_client::registry::Registry;
use tombolo_daemon::admin::{self, Admin};
use tombolo_daemon::ready::Blocker;
use tombolo_daemon::supervise::{SuperviseError, Supervisor, TaskResult};
use tombolo_daemon::{Readiness, Seams, Shutdown};
use tombolo_trust::shell::files::IdentityDir;
use tombolo_trust::{CertStore, Permit, TrustStore, server_config, server_config_optional_client};
use tombolo_wire::v1::membership_server::MembershipServer;
use tombolo_wire::v1::operator_server::OperatorServer;
use tombolo_wire::v1::peer_server::PeerServer;
use tombolo_wire::v1::sync_server::SyncServer;
use tonic::transport::Server;

use super::authority::{Authority, trust_state};
use super::boot::{self, BootError, Booted};
use super::config::{Config, Timing};
use super::connect::Peers;
use super::duties::Duties;
use super::grpc::{Broker, MembershipService, OperatorService, PeerService, SyncService};
use super::listen::incoming;
use super::metrics::Metrics;
use super::raft::batcher::Batcher;
use super::raft::group::Group;
use super::raft::machine::Machine;
use super::raft::network::Network;
use super::raft::reads::Reads;
use super::raft::types::{Addresses, StorageError};
use super::renewals::{Leases, Renewals};
use crate::bounds::{LOG_KEPT, MESSAGE_MAX_BYTES, PEER_MESSAGE_MAX_BYTES, SNAPSHOT_EVERY};
use crate::command::Command;
use crate::stored::Outcome;

/// How long sending a snapshot may take: [`crate::bounds::SNAPSHOT_MAX_BYTES`] at 10 MB/s.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(60);
/// Silence after which a client's connection is asked whether it is still there.
const PING_AFTER: Duration = Duration::from_secs(5);
/// Streams of one connection: an agent has a handful, a forwarding broker one per write.
const STREAMS_MAX: u32 = 4_096;
/// How long Raft's tasks may take to let go of the log: they end as soon as they are polled.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Entries of one append.
const APPEND_MAX_ENTRIES: u64 = 300;

/// Why a broker ends other than by request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It never started.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// An address cannot be had.
    #[error("cannot listen: {0}; is another broker running there?")]
    Listen(#[source] io::Error),
    /// Storage is unusable.
    #[error("the broker's storage failed: {0}")]
    Storage(#[from] Box<StorageError>),
    /// Raft does not start.
    #[error("Raft cannot start: {0}")]
    Raft(String),
    /// A task died.
    #[error(transparent)]
    Task(#[from] SuperviseError),
}

/// Sets the same message bound both ways.
macro_rules! sized {
    ($service:expr) => {
        sized!($service, MESSAGE_MAX_BYTES)
    };
    ($service:expr, $most:expr) => {
        $service
            .max_decoding_message_size($most)
            .max_encoding_message_size($most)
    };
}

/// Runs one broker until the drain.
///
/// # Errors
/// [`Error`] says why it ended.
pub async fn run(config: Config, seams: Seams, shutdown: Shutdown) -> Result<(), Error> {
    let timing = config.profile.timing(config.id);
    tracing::info!(?config, ?timing, "starting broker");
    let readiness = Readiness::new();
    let (raft_ready, api_ready) = (readiness.block("raft"), readiness.block("api"));
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);

    let Booted {
        log,
        log_closed,
        kek,
        certs,
        trust,
        identity,
        founding,
    } = boot::boot(&config, &seams).await?;
    let listen = |address| seams.network.listen(address);
    let api = listen(config.api).await.map_err(Error::Listen)?;
    let peer = listen(config.peer).await.map_err(Error::Listen)?;
    let admin = listen(config.admin).await.map_err(Error::Listen)?;

    let opened = Machine::open(&config.snapshots_path(), Arc::clone(&seams.disk)).await;
    let (machine, replica) = opened.map_err(Box::new)?;
    let peers = Arc::new(Peers::new(seams.clone(), Arc::clone(&trust), Arc::clone(&certs)));
    let raft_config = Arc::new(raft_config(timing)?);
    let network = Network::new(Arc::clone(&peers));
    let raft = Raft::new(config.id, raft_config, network, log, machine).await;
    let raft = raft.map_err(|error| Error::Raft(error.to_string()))?;
    let (batcher, write_batches) = Batcher::new(raft.clone(), Arc::clone(&seams.clock), metrics.clone());
    let (reads, answer_reads) = Reads::new(raft.clone());
    let group = Arc::new(Group::new(
        config.id,
        raft.clone(),
        replica,
        peers,
        batcher,
        reads,
        timing,
    ));

    let authority = Arc::new(Authority::new(kek, Arc::clone(&seams.clock)));
    let leases = Arc::new(Leases::default());
    let clock = Arc::clone(&seams.clock);
    let (renewals, pass_on) = Renewals::new(Arc::clone(&group), Arc::clone(&leases), Arc::clone(&clock));
    let duties = Duties {
        group: Arc::clone(&group),
        leases: Arc::clone(&leases),
        clock,
        metrics: metrics.clone(),
    };
    let broker = Arc::new(Broker::new(
        Arc::clone(&group),
        Arc::clone(&authority),
        leases,
        renewals,
        seams.clone(),
        shutdown.clone(),
        metrics.clone(),
    ));

    let mut tasks = Supervisor::new(shutdown.clone(), &seams);
    let h2: &[&[u8]] = &[b"h2"];
    let tls = server_config_optional_client(
        Arc::clone(&trust),
        Arc::clone(&certs),
        Permit::member_or_operator(),
        h2,
    );
    let (connections, accept) = incoming(api, tls, metrics.clone(), shutdown.clone());
    tasks.essential("api-accept", ended(accept));
    let services = server()
        .add_service(sized!(MembershipServer::new(MembershipService::new(Arc::clone(
            &broker
        )))))
        .add_service(sized!(SyncServer::new(SyncService::new(Arc::clone(&broker)))))
        .add_service(sized!(OperatorServer::new(OperatorService::new(Arc::clone(
            &broker
        )))));
    let drain = shutdown.clone();
    tasks.essential("api", async move {
        Ok(services
            .serve_with_incoming_shutdown(connections, async move { drain.drain().await })
            .await?)
    });
    let tls = server_config(Arc::clone(&trust), Arc::clone(&certs), Permit::AnyBroker, h2);
    let (connections, accept) = incoming(peer, tls, metrics, shutdown.clone());
    tasks.essential("peer-accept", ended(accept));
    let services = server().add_service(sized!(
        PeerServer::new(PeerService::new(broker)),
        PEER_MESSAGE_MAX_BYTES
    ));
    let drain = shutdown.clone();
    tasks.essential("peer", async move {
        Ok(services
            .serve_with_incoming_shutdown(connections, async move { drain.drain().await })
            .await?)
    });
    api_ready.mark_ready();

    tasks.companion("batches", ended(write_batches));
    tasks.companion("reads", ended(answer_reads));
    tasks.companion("renewals", ended(pass_on));
    tasks.essential("duties", ended(duties.run(shutdown.clone())));
    tasks.essential(
        "raft",
        watch_raft(Arc::clone(&group), raft_ready, seams.clone(), shutdown.clone()),
    );
    let keeper = Keeper {
        config: config.clone(),
        seams: seams.clone(),
        group: Arc::clone(&group),
        authority,
        certs,
        trust,
        identity,
    };
    tasks.essential("identity", keeper.run(founding, shutdown.clone()));
    let state = state_page(Arc::clone(&group));
    let page = Admin {
        readiness,
        shutdown,
        registry: Arc::new(registry),
        state,
    };
    tasks.companion(
        "admin",
        admin::serve(admin, page.router(), Arc::clone(&seams.clock)),
    );

    let drained = tasks.run_until_shutdown().await;
    if let Err(error) = raft.shutdown().await {
        tracing::warn!(%error, "Raft did not end cleanly; its log is durable all the same");
    }
    // Whoever starts this broker again finds the log closed.
    if tokio::time::timeout(CLOSE_TIMEOUT, log_closed).await.is_err() {
        tracing::warn!("the log is still open; a broker that starts here at once may find it locked");
    }
    let _drained = drained?;
    Ok(())
}

fn raft_config(timing: Timing) -> Result<openraft::Config, Error> {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let config = openraft::Config {
        cluster_name: "tombolo".to_owned(),
        heartbeat_interval: ms(timing.heartbeat),
        election_timeout_min: ms(timing.election_min),
        election_timeout_max: ms(timing.election_max),
        install_snapshot_timeout: ms(SNAPSHOT_TIMEOUT),
        max_payload_entries: APPEND_MAX_ENTRIES,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
        max_in_snapshot_log_to_keep: LOG_KEPT,
        ..openraft::Config::default()
    };
    config.validate().map_err(|error| Error::Raft(error.to_string()))
}

fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(PING_AFTER))
        .http2_keepalive_timeout(Some(PING_AFTER))
        .max_concurrent_streams(STREAMS_MAX)
}

/// A task without an error of its own.
async fn ended(task: impl Future<Output = ()>) -> TaskResult {
    task.await;
    Ok(())
}

/// Ends the process when Raft has stopped, and says whether there is a group.
async fn watch_raft(group: Arc<Group>, ready: Blocker, seams: Seams, shutdown: Shutdown) -> TaskResult {
    let mut beat = tokio::time::interval(group.timing().heartbeat);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.drain() => return Ok(()),
            _ = beat.tick() => {}
        }
        let metrics = group.metrics();
        metrics.running_state.clone()?;
        match (metrics.current_leader, group.is_fresh(seams.clock.now())) {
            (None, _) => {
                ready.mark_unready("no leader: fewer than half of the brokers are reachable from here")
            }
            (Some(leader), false) => {
                ready.mark_unready(format!(
                    "broker {leader} leads, but no quorum has been heard lately"
                ));
            }
            (Some(_), true) => ready.mark_ready(),
        }
    }
}

fn state_page(group: Arc<Group>) -> Arc<dyn Fn() -> serde_json::Value + Send + Sync> {
    Arc::new(move || {
        let metrics = group.metrics();
        group.replica().read(|state| {
            serde_json::json!({
                "id": group.id(),
                "leader": metrics.current_leader,
                "term": metrics.current_term,
                "applied": state.applied,
                "incarnation": state.incarnation,
                "members": state.members.len(),
                "services": state.exports.len(),
                "endpoints": state.endpoints,
            })
        })
    })
}

/// Founds, and keeps this broker's identity and trust in line with the group's.
struct Keeper {
    config: Config,
    seams: Seams,
    group: Arc<Group>,
    authority: Arc<Authority>,
    certs: Arc<CertStore>,
    trust: Arc<TrustStore>,
    identity: IdentityDir,
}

impl Keeper {
    async fn run(self, founding: Option<Command>, shutdown: Shutdown) -> TaskResult {
        let mut applied = self.group.replica().applied();
        // Hourly besides: half of a leaf's life comes without any change.
        let mut beat = tokio::time::interval(Duration::from_secs(3600));
        let mut started = false;
        if let Some(command) = founding {
            tokio::select! {
                () = shutdown.drain() => return Ok(()),
                founded = self.found(command) => founded?,
            }
        }
        loop {
            applied.borrow_and_update();
            if !started && self.group.replica().read(|state| state.incarnation != 0) {
                boot::note_started(&self.config, &self.seams).await?;
                started = true;
            }
            self.follow()?;
            tokio::select! {
                () = shutdown.drain() => return Ok(()),
                changed = applied.changed() => changed?,
                _ = beat.tick() => {}
            }
        }
    }

    async fn found(&self, command: Command) -> TaskResult {
        let nodes = BTreeMap::from([(self.config.id, Addresses::from(&self.config.addresses()))]);
        match self.group.raft().initialize(nodes).await {
            // A restart in the middle of the founding.
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(error) => return Err(error.into()),
        }
        let decided = self.group.propose(vec![command]).await?;
        if let Some(Outcome::Refused { message, .. }) = decided.outcomes.first() {
            tracing::info!(message, "the founding stood in the log already");
        }
        Ok(())
    }

    /// Takes the group's trust, and a new leaf when the root or the time asks for one.
    fn follow(&self) -> TaskResult {
        let Some(trust) = self.group.replica().read(|state| {
            let known = self.trust.load().revision();
            state
                .trust
                .clone()
                .filter(|trust| trust.revision != known || self.needs_leaf(trust))
        }) else {
            return Ok(());
        };
        let taken = trust_state(&trust)?;
        self.identity.save_roots(taken.roots())?;
        self.trust.replace(taken)?;
        if self.needs_leaf(&trust) {
            let root = self.authority.root(&trust)?;
            let identity = boot::issue_broker(&self.config, &self.seams, &root, &self.identity)?;
            self.identity.save_roots(self.trust.load().roots())?;
            tracing::info!(id = %identity.id(), "took a new leaf");
            self.certs.replace(identity);
        }
        Ok(())
    }

    fn needs_leaf(&self, trust: &crate::state::Trust) -> bool {
        let identity = self.certs.load();
        let is_current = identity
            .chain()
            .get(1)
            .is_some_and(|root| root.as_ref() == trust.signing.certificate.as_ref());
        // Brokers need no spreading: a leaf of their own making costs the group nothing.
        !is_current || identity.validity().renew_at(0) <= self.seams.clock.wall()
    }
}
