//! The agent's process: what it restores, which tasks it runs, and in which order it ends.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::sync::{Notify, mpsc, watch};
use tombolo_clusterset::{ClusterId, Snapshot};
use tombolo_daemon::admin::{self, Admin};
use tombolo_daemon::ready::Readiness;
use tombolo_daemon::seam::Seams;
use tombolo_daemon::shutdown::Shutdown;
use tombolo_daemon::supervise::{SuperviseError, Supervisor, TaskResult};
use tombolo_daemon::uds::{self, UdsError};

use super::agent::{Agent, Blockers, CACHE_FILE, SIGHTINGS_FILE, VIPS_FILE};
use super::directory;
use super::errands::{renew_intermediate, renew_own_leaf, report_drills, watch_lagging};
use super::identity::{self, ClusterIdentity, MAX_BROKERS, unix_ms};
use super::local_server::{LocalServer, MAX_QUESTIONS, MAX_REPORTS};
use super::metrics::Metrics;
use super::sync::{Session, TrustAck};
use crate::cache;
use crate::config::{Config, Unusable};
use crate::publish::Publisher;
use crate::reconcile::{Reconciler, Restored};
use crate::sightings::{SIGHTINGS_VERSION, Sightings};
use crate::vip::{VIPS_VERSION, VipBook, VipRecord};
use crate::watched::WatchState;

/// Messages of the session that wait for the agent's loop: a full state of the largest clusterset passes through in batches
/// of this, and the broker feels the rest as back-pressure.
const INBOX: usize = 1_024;

/// Why the agent cannot run, or ended.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's message is its documentation")]
pub enum Error {
    #[error(transparent)]
    Config(#[from] Unusable),
    #[error(transparent)]
    Identity(#[from] identity::Error),
    #[error("cannot use {path}: {source}; check its owner, its mode and free space", path = path.display())]
    Disk { path: PathBuf, source: std::io::Error },
    #[error("{path} cannot be read ({reason}); it says which addresses were given out: restore it, or move it away to give out new ones", path = path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("admin server: {0}")]
    Admin(std::io::Error),
    #[error(transparent)]
    Socket(#[from] UdsError),
    #[error(transparent)]
    Died(#[from] SuperviseError),
}

/// Runs the agent of one cluster until `shutdown` has drained.
///
/// # Errors
/// [`Error`] says what, where and what to do.
pub async fn run(config: Config, seams: Seams, shutdown: Shutdown) -> Result<(), Error> {
    config.section.check()?;
    let Config {
        site,
        section,
        gateways,
    } = config;
    let data_dir = site.data_dir.clone();
    let identity = Arc::new(ClusterIdentity::load(&data_dir, &site.cluster, seams.clone())?);
    let membership = identity::load_membership(&data_dir, &seams).await?;
    let brokers: Vec<SocketAddr> = broker_addresses(&membership.brokers);
    tracing::info!(
        cluster = %site.cluster, network = %site.network, ?brokers, manifests = %section.manifests.display(),
        vip_range = %section.vip_range, ?gateways, "agent starts"
    );

    let restored = restore(&data_dir, &site.cluster, identity.trust_domain().as_str(), &seams).await?;
    let vips = match read_json::<VipRecord>(&data_dir.join(VIPS_FILE), &seams).await? {
        Some(record) if record.version > VIPS_VERSION => {
            return Err(newer(&data_dir.join(VIPS_FILE), record.version, VIPS_VERSION));
        }
        Some(record) => VipBook::restore(section.ranges(), record),
        None => VipBook::new(section.ranges()),
    };
    let now = unix_ms(seams.clock.wall());
    let own_trust = identity.trust_in_use();
    let reconciler = Reconciler::new(site.clone(), gateways.clone(), own_trust, vips, restored, now);

    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let readiness = Readiness::new();
    let blockers = Blockers::new(&readiness);
    let socket_ready = readiness.block("local-socket");

    let (snapshot_sender, snapshots) = watch::channel(None);
    let (drill_sender, drill) = watch::channel(None);
    let (wanted_sender, wanted) = watch::channel(None);
    let (brokers_sender, broker_list) = watch::channel(brokers);
    let (trust_sender, trust_ack) = watch::channel(TrustAck::default());
    let trust_sender = Arc::new(trust_sender);
    let (incarnation_sender, incarnation) = watch::channel(reconciler.watch().current().incarnation);
    let abandon = Arc::new(Notify::new());
    let (channel_sender, channel) = watch::channel(None);
    let (superseded_sender, superseded) = watch::channel(false);
    let (to_agent, from_broker) = mpsc::channel(INBOX);
    let (found_sender, found) = mpsc::channel(1);
    let (reports, reports_queue) = mpsc::channel(MAX_REPORTS);
    let (questions, questions_queue) = mpsc::channel(MAX_QUESTIONS);
    let publisher = Arc::new(Mutex::new(Publisher::default()));

    let admin_listener = seams.network.listen(section.admin).await.map_err(Error::Admin)?;
    let socket = uds::listen(&site.agent_socket()).await?;
    let mut tasks = Supervisor::new(shutdown.clone(), &seams);

    let admin = Admin {
        readiness: readiness.clone(),
        shutdown: shutdown.clone(),
        registry: Arc::new(registry),
        state: state_of(snapshots.clone(), Arc::clone(&publisher), superseded),
    };
    tasks.companion(
        "admin",
        admin::serve(admin_listener, admin.router(), seams.clock.clone()),
    );

    let local = LocalServer {
        snapshots: snapshots.clone(),
        drill: drill.clone(),
        identity: Arc::clone(&identity),
        leaf_ttl: section.leaf_ttl(),
        trust_ack: Arc::clone(&trust_sender),
        reports,
        questions,
        seams: seams.clone(),
        metrics: metrics.clone(),
    };
    let draining = shutdown.clone();
    tasks.essential(
        "local-server",
        async move { Ok(local.serve(socket, draining).await?) },
    );
    socket_ready.mark_ready();

    let directory = section.manifests.clone();
    tasks.essential(
        "manifests",
        until_drain(
            shutdown.clone(),
            directory::follow(directory, found_sender, seams.clone()),
        ),
    );

    let session = Session {
        seams: seams.clone(),
        identity: Arc::clone(&identity),
        site: site.clone(),
        gateways,
        publisher: Arc::clone(&publisher),
        to_agent,
        wanted,
        brokers: broker_list,
        drill,
        trust_ack,
        incarnation,
        abandon: Arc::clone(&abandon),
        channel: channel_sender,
        metrics: metrics.clone(),
        superseded: superseded_sender,
    };
    tasks.essential("broker-session", until_drain(shutdown.clone(), session.run()));
    tasks.essential(
        "drill-reports",
        until_drain(
            shutdown.clone(),
            report_drills(reports_queue, channel.clone(), seams.clone()),
        ),
    );
    tasks.essential(
        "own-leaf",
        until_drain(
            shutdown.clone(),
            renew_own_leaf(Arc::clone(&identity), seams.clone()),
        ),
    );
    let lagging = watch_lagging(Arc::clone(&identity), Arc::clone(&trust_sender));
    tasks.essential("lagging", until_drain(shutdown.clone(), lagging));
    let renewal = renew_intermediate(
        Arc::clone(&identity),
        channel,
        Arc::clone(&trust_sender),
        seams.clone(),
    );
    tasks.essential("intermediate", until_drain(shutdown.clone(), renewal));

    let agent = Agent {
        reconciler,
        site,
        identity,
        membership,
        publisher,
        snapshots: snapshot_sender,
        drill: drill_sender,
        wanted: wanted_sender,
        brokers: brokers_sender,
        trust_ack: trust_sender,
        incarnation: incarnation_sender,
        abandon,
        blockers,
        metrics,
        seams,
    };
    tasks.essential("agent", agent.run(found, from_broker, questions_queue, shutdown));
    // What the drain cut off was logged by name.
    let _ = tasks.run_until_shutdown().await?;
    Ok(())
}

/// Runs `task` until the drain begins; a task that ends before has died.
async fn until_drain(shutdown: Shutdown, task: impl Future<Output = ()>) -> TaskResult {
    tokio::select! {
        () = shutdown.drain() => {}
        () = task => {}
    }
    Ok(())
}

/// The addresses that make sense; the others are left out with a warning.
pub(super) fn broker_addresses(texts: &[String]) -> Vec<SocketAddr> {
    let parsed = texts.iter().filter_map(|text| match text.parse() {
        Ok(address) => Some(address),
        Err(_) => {
            tracing::warn!(address = text, "a broker's address is no IP:PORT; leaving it out");
            None
        }
    });
    parsed.take(MAX_BROKERS).collect()
}

async fn restore(
    data_dir: &Path,
    cluster: &ClusterId,
    trust_domain: &str,
    seams: &Seams,
) -> Result<Restored, Error> {
    let path = data_dir.join(SIGHTINGS_FILE);
    let sightings = read_json::<Sightings>(&path, seams).await?.unwrap_or_default();
    if sightings.version > SIGHTINGS_VERSION {
        return Err(newer(&path, sightings.version, SIGHTINGS_VERSION));
    }
    let path = data_dir.join(CACHE_FILE);
    let Some(bytes) = read_file(&path, seams).await? else {
        return Ok(Restored {
            sightings,
            ..Restored::default()
        });
    };
    match cache::decode(cluster, &bytes) {
        Ok(cached) if cached.watched.trust.trust_domain != trust_domain => {
            tracing::error!(path = %path.display(), of = cached.watched.trust.trust_domain, ours = trust_domain, "the cached state is of another clusterset; a broker is needed now");
            Ok(Restored {
                sightings,
                ..Restored::default()
            })
        }
        Ok(cached) => {
            let watched = &cached.watched;
            tracing::info!(
                incarnation = watched.incarnation,
                revision = watched.revision,
                members = watched.members.len(),
                services = watched.records.len(),
                left_out = cached.left_out,
                "starting from the cached state of the clusterset"
            );
            let watch = WatchState::restored(cached.watched, cached.confirmed_unix_ms);
            Ok(Restored {
                sightings,
                watch,
                local: cached.local,
            })
        }
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "cannot use the cached state of the clusterset; a broker is needed now");
            Ok(Restored {
                sightings,
                ..Restored::default()
            })
        }
    }
}

fn newer(path: &Path, found: u32, known: u32) -> Error {
    let reason = format!("it has format {found}, and this build knows {known}; run the newer build");
    Error::Damaged {
        path: path.to_owned(),
        reason,
    }
}

async fn read_file(path: &Path, seams: &Seams) -> Result<Option<Vec<u8>>, Error> {
    match seams.disk.read(path).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Disk {
            path: path.to_owned(),
            source,
        }),
    }
}

async fn read_json<T: serde::de::DeserializeOwned>(path: &Path, seams: &Seams) -> Result<Option<T>, Error> {
    let Some(bytes) = read_file(path, seams).await? else {
        return Ok(None);
    };
    let parsed = serde_json::from_slice(&bytes);
    parsed.map(Some).map_err(|error| Error::Damaged {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

type State = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

/// `/state`.
fn state_of(
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    publisher: Arc<Mutex<Publisher>>,
    superseded: watch::Receiver<bool>,
) -> State {
    Arc::new(move || {
        let (epoch, in_flight, settled) = {
            let publisher = publisher.lock();
            (publisher.epoch(), publisher.in_flight(), publisher.is_settled())
        };
        let publish = serde_json::json!({
            "epoch": epoch, "unacknowledged": in_flight, "settled": settled, "superseded": *superseded.borrow(),
        });
        let snapshot = snapshots.borrow().clone().map(|snapshot| {
            serde_json::json!({
                "incarnation": snapshot.version.incarnation,
                "revision": snapshot.version.revision,
                "local": snapshot.version.local,
                "fresh": snapshot.fresh,
                "confirmed_unix_ms": snapshot.confirmed_unix_ms,
                "clusters": snapshot.clusters.len(),
                "imports": snapshot.imports.len(),
                "exports": snapshot.exports.len(),
            })
        });
        serde_json::json!({ "snapshot": snapshot, "publish": publish })
    })
}
