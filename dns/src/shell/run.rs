//! The DNS server of one cluster.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::UNIX_EPOCH;

use arc_swap::ArcSwap;
use prometheus_client::registry::Registry;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};
use tombolo_daemon::admin::{self, Admin};
use tombolo_daemon::ready::Readiness;
use tombolo_daemon::seam::Seams;
use tombolo_daemon::shutdown::Shutdown;
use tombolo_daemon::supervise::{SuperviseError, Supervisor, TaskResult};
use tombolo_wire::local::{ClusterSite, DrillFeed, Interest, LinksFeed, SnapshotFeed};

use super::forward::Forwarder;
use super::metrics::Metrics;
use super::silence::Silence;
use super::tcp::TcpServer;
use super::udp::{self, ForwardJob, JOBS_MAX, Worker};
use super::zones::ZoneKeeper;
use crate::edns::Transport;
use crate::limit::Limiter;
use crate::respond::Responder;
use crate::zone::{Zone, Zones};

/// Most threads: beyond it the network card is the limit.
const THREADS_MAX: usize = 16;

/// `[dns]` of `cluster.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// Address of UDP and TCP. On a host with several addresses give one: under `0.0.0.0` the kernel chooses the address that a UDP
    /// answer comes from, and a client takes it only from the one it asked.
    pub listen: SocketAddr,
    /// Address of `/livez`, `/readyz`, `/metrics`, `/state`.
    pub admin: SocketAddr,
    /// Servers to ask about names outside `clusterset.local`. Default: none, such names are REFUSED, so that a resolver asks
    /// elsewhere.
    #[serde(default)]
    pub upstreams: Vec<SocketAddr>,
    /// Threads that answer over UDP. Default: one for each core, 16 at most.
    #[serde(default)]
    pub udp_threads: Option<u16>,
    /// UDP answers each second to one client network (IPv4 /24, IPv6 /56), twice as many in a burst, for each thread; 0: no limit.
    /// Default: 20,000, more than one forwarding resolver asks, and little enough not to flood a spoofed address for long.
    #[serde(default = "default_answers_per_second")]
    pub answers_per_second: u32,
    /// Whether the limit holds for loopback too. Default: no, nobody spoofs it from outside.
    #[serde(default)]
    pub limit_loopback: bool,
}

fn default_answers_per_second() -> u32 {
    20_000
}

/// Everything that [`run`] needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The cluster.
    pub site: ClusterSite,
    /// Its `[dns]`.
    pub section: Section,
}

/// Why the server did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address cannot be listened on.
    #[error("dns cannot serve {transport} on {address}: {source}; see `listen` and `admin` under [dns]")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// UDP, TCP or admin.
        transport: &'static str,
        /// The host's reason.
        source: std::io::Error,
    },
    /// An upstream is this server itself: a query would go round for ever.
    #[error(
        "dns upstream {0} is this server's own address; name the servers that know the rest of the DNS under [dns] upstreams"
    )]
    OwnUpstream(SocketAddr),
    /// A thread cannot be started.
    #[error("dns cannot start a thread: {0}; check the limit of processes")]
    Thread(std::io::Error),
    /// A part of the server died.
    #[error(transparent)]
    Died(#[from] SuperviseError),
}

/// What this server hears from the agent and the gateway.
#[derive(Debug, Clone)]
pub struct Feeds {
    /// The clusterset.
    pub snapshots: SnapshotFeed,
    /// The paths to the other clusters.
    pub links: LinksFeed,
    /// The drill that runs.
    pub drills: DrillFeed,
}

/// Answers until `shutdown` begins, from the agent and the gateway in the site's data directory.
///
/// # Errors
/// [`Error`] says which address or part it was.
pub async fn run(config: Config, seams: Seams, shutdown: Shutdown) -> Result<(), Error> {
    let (site, agent) = (&config.site, config.site.agent_socket());
    let feeds = Feeds {
        snapshots: SnapshotFeed::start(&agent, site.cluster.clone(), Interest::default(), seams.clone()),
        links: LinksFeed::start(&site.gateway_socket(), seams.clone()),
        drills: DrillFeed::start(&agent, seams.clone()),
    };
    serve(config, feeds, seams, shutdown).await
}

/// [`run`] with given feeds. It starts without any snapshot: the zone then answers SERVFAIL, and readiness is blocked by
/// `snapshot`.
///
/// # Errors
/// [`Error`] says which address or part it was.
pub async fn serve(config: Config, feeds: Feeds, seams: Seams, shutdown: Shutdown) -> Result<(), Error> {
    let Feeds {
        snapshots,
        links,
        drills,
    } = feeds;
    let Config { site, section } = config;
    let Section {
        listen,
        admin: admin_address,
        upstreams,
        udp_threads,
        answers_per_second,
        limit_loopback,
    } = section;
    if let Some(own) = upstreams.iter().find(|upstream| **upstream == listen) {
        return Err(Error::OwnUpstream(*own));
    }
    let readiness = Readiness::new();
    let snapshot_blocker = readiness.block("snapshot");
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);

    let refused = |address, transport| {
        move |source| Error::Listen {
            address,
            transport,
            source,
        }
    };
    let admin_listener = seams
        .network
        .listen(admin_address)
        .await
        .map_err(refused(admin_address, "admin"))?;
    let tcp_listener = seams
        .network
        .listen(listen)
        .await
        .map_err(refused(listen, "TCP"))?;
    // Port 0 in tests: both transports have the port that TCP got.
    let listen = tcp_listener.local_addr().map_err(refused(listen, "TCP"))?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = udp_threads.map_or(cores, usize::from).clamp(1, THREADS_MAX);
    let sockets = udp::bind(listen, threads).map_err(refused(listen, "UDP"))?;

    let serial = seams
        .clock
        .wall()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    // The serial is modulo 2^32 (RFC 1982).
    let zones = Zones::new(&[listen.ip()], (serial & u64::from(u32::MAX)) as u32);
    let zone = Arc::new(ArcSwap::from_pointee(zones.unloaded()));
    let silence = Silence::new();
    let forwarder =
        (!upstreams.is_empty()).then(|| Arc::new(Forwarder::new(upstreams, seams.clone(), metrics.clone())));

    let mut supervisor = Supervisor::new(shutdown.clone(), &seams);
    let state = state(zone.clone(), snapshots.clone(), silence.clone(), listen);
    let admin = Admin {
        readiness: readiness.clone(),
        shutdown: shutdown.clone(),
        registry: Arc::new(registry),
        state,
    };
    supervisor.companion(
        "admin",
        admin::serve(admin_listener, admin.router(), seams.clock.clone()),
    );

    let following = silence.clone().follow(
        drills,
        site.cluster.clone(),
        seams.clock.clone(),
        shutdown.clone(),
    );
    supervisor.essential("drills", async {
        following.await;
        Ok(())
    });
    let keeper = ZoneKeeper {
        zone: zone.clone(),
        zones,
        snapshots,
        links,
        blocker: snapshot_blocker,
        metrics: metrics.clone(),
        clock: seams.clock.clone(),
    };
    supervisor.essential("zone", keeper.run(shutdown.clone()));

    let server = Arc::new(TcpServer {
        zone: zone.clone(),
        silence: silence.clone(),
        forwarder: forwarder.clone(),
        metrics: metrics.clone(),
        seams: seams.clone(),
        shutdown: shutdown.clone(),
        open: std::sync::Mutex::default(),
    });
    supervisor.essential("tcp", server.serve(tcp_listener));

    let jobs = match &forwarder {
        Some(forwarder) => {
            let socket = sockets[0].try_clone().map_err(refused(listen, "UDP"))?;
            let (sender, receiver) = mpsc::channel(JOBS_MAX);
            let (forwarder, drain) = (forwarder.clone(), shutdown.clone());
            supervisor.essential("forward", async move {
                tokio::select! {
                    () = udp::forward(receiver, forwarder, socket) => {}
                    () = drain.deadline_passed() => {}
                }
                Ok(())
            });
            Some(sender)
        }
        None => None,
    };
    let stop = Arc::new(AtomicBool::new(false));
    for (number, socket) in sockets.into_iter().enumerate() {
        let worker = Worker {
            socket,
            zone: zone.clone(),
            silence: silence.clone(),
            stop: stop.clone(),
            responder: Responder::new(
                Transport::Udp,
                forwarder.is_some(),
                StdRng::from_rng(&mut seams.entropy.rng()),
            ),
            limiter: Limiter::new(answers_per_second, limit_loopback, seams.clock.now().into_std()),
            jobs: jobs.clone(),
            metrics: metrics.clone(),
            clock: seams.clock.clone(),
        };
        let ended = start_thread(number, worker)?;
        supervisor.essential(
            format!("udp-{number}"),
            watch_thread(ended, stop.clone(), shutdown.clone()),
        );
    }
    drop::<Option<mpsc::Sender<ForwardJob>>>(jobs);
    tracing::info!(%listen, threads, "dns serves");
    let ended = supervisor.run_until_shutdown().await;
    // Whatever ended the rest, no thread may go on.
    stop.store(true, Ordering::Relaxed);
    ended.map(|_logged| ()).map_err(Error::from)
}

fn start_thread(number: usize, worker: Worker) -> Result<oneshot::Receiver<std::io::Result<()>>, Error> {
    let (sender, ended) = oneshot::channel();
    std::thread::Builder::new()
        .name(format!("dns-udp-{number}"))
        .spawn(move || {
            // Fails when nobody waits any more, which is at the end of the process.
            let _ = sender.send(worker.run());
        })
        .map_err(Error::Thread)?;
    Ok(ended)
}

/// Stops the thread when the drain begins, and says so when it died before.
async fn watch_thread(
    ended: oneshot::Receiver<std::io::Result<()>>,
    stop: Arc<AtomicBool>,
    shutdown: Shutdown,
) -> TaskResult {
    let drain = async {
        shutdown.drain().await;
        stop.store(true, Ordering::Relaxed);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = ended => match ended {
            Ok(result) => Ok(result?),
            Err(_) => Err("the thread panicked; this is a bug, please report it with the log".into()),
        },
        () = drain => Ok(()),
    }
}

fn state(
    zone: Arc<ArcSwap<Zone>>,
    snapshots: SnapshotFeed,
    silence: Silence,
    listen: SocketAddr,
) -> Arc<dyn Fn() -> serde_json::Value + Send + Sync> {
    Arc::new(move || {
        let zone = zone.load();
        let version = snapshots.current().map(|snapshot| {
            let version = snapshot.version;
            serde_json::json!({
                "incarnation": version.incarnation,
                "revision": version.revision,
                "local": version.local,
                "fresh": snapshot.fresh,
                "confirmed_unix_ms": snapshot.confirmed_unix_ms,
            })
        });
        serde_json::json!({
            "listen": listen.to_string(),
            "silenced_by_drill": silence.is_on(),
            "snapshot": version,
            "zone": { "loaded": zone.is_loaded(), "records": zone.records(), "serial": zone.serial() },
        })
    })
}
