//! The whole role.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tombolo_clusterset::LinkProfile;
use tombolo_daemon::admin::{self, Admin};
use tombolo_daemon::ready::Blocker;
use tombolo_daemon::seam::net::Listener;
use tombolo_daemon::supervise::{SuperviseError, Supervisor, TaskResult};
use tombolo_daemon::{Readiness, Seams, Shutdown};
use tombolo_tunnel::{
    BindError, Endpoint, EndpointConfig, IdentityConfig, LocalIdentity, LocalIdentityError,
    Metrics as TunnelMetrics, NoFlows,
};
use tombolo_wire::local::{DrillFeed, LinksFeed, SnapshotFeed};

use super::connect::Connector;
use super::drills;
use super::gateways::Gateways;
use super::inbound::Inbound;
use super::outbound::Outbound;
use super::view::View;
use crate::config::{Config, ConfigError, Mirror};
use crate::metrics::Metrics;

/// Where the leaf certificate is cached, below the data directory.
const CACHE: &str = "leaf";

/// Why a sidecar ends, other than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An address of the configuration cannot be bound.
    #[error("{what}: {source}")]
    Listen {
        /// Which setting.
        what: &'static str,
        /// What the host said, with the address.
        source: io::Error,
    },
    /// There is no socket to dial from.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// There is no identity.
    #[error(transparent)]
    Identity(#[from] LocalIdentityError),
    /// A task that it cannot do without died.
    #[error(transparent)]
    Supervise(#[from] SuperviseError),
}

/// What a running sidecar hears.
#[derive(Debug, Clone)]
pub(super) struct Feeds {
    pub(super) snapshots: SnapshotFeed,
    pub(super) links: LinksFeed,
    pub(super) drills: DrillFeed,
}

/// Runs the sidecar until `shutdown` has drained. It is live at once, ready when it has an identity and its first snapshot.
///
/// # Errors
/// [`Error`] when it cannot start, or when a task that it cannot do without died.
pub async fn run(config: Config, seams: Seams, shutdown: Shutdown) -> Result<(), Error> {
    let site = &config.site;
    let agent = site.agent_socket();
    let feeds = Feeds {
        snapshots: SnapshotFeed::start(&agent, site.cluster.clone(), config.interest(), seams.clone()),
        links: LinksFeed::start(&site.gateway_socket(), seams.clone()),
        drills: DrillFeed::start(&agent, seams.clone()),
    };
    let Config { section, .. } = &config;
    let cache = format!(
        "sidecar-{}-{}",
        section.namespace,
        section.service_account.0.as_str()
    );
    let identity = IdentityConfig {
        cluster: site.cluster.clone(),
        subject: config.subject(),
        agent_socket: agent,
        cache_dir: site.data_dir.join(CACHE).join(cache),
        snapshots: feeds.snapshots.receiver(),
    };
    let identity = LocalIdentity::start(identity, seams.clone(), shutdown.clone());
    serve(config, feeds, identity, seams, shutdown).await
}

/// As [`run`], with feeds and identity from outside.
pub(super) async fn serve(
    config: Config,
    feeds: Feeds,
    identity: impl Future<Output = Result<LocalIdentity, LocalIdentityError>>,
    seams: Seams,
    shutdown: Shutdown,
) -> Result<(), Error> {
    config.check()?;
    let clock = seams.clock.clone();
    let mirror = Mirror::new(config.vip_range, config.section.range)?;
    let readiness = Readiness::new();
    let (has_identity, has_snapshot) = (readiness.block("identity"), readiness.block("snapshot"));
    let mut registry = Registry::default();
    let ours = registry.sub_registry_with_prefix("tombolo_sidecar");
    let metrics = Metrics::register(ours);
    let tunnel_metrics = TunnelMetrics::register(ours.sub_registry_with_prefix("tunnel"));

    let mut supervisor = Supervisor::new(shutdown.clone(), &seams);
    let parts: Arc<OnceLock<Parts>> = Arc::default();
    let admin = Admin {
        readiness,
        shutdown: shutdown.clone(),
        registry: Arc::new(registry),
        state: Arc::new({
            let (parts, config, feeds) = (Arc::clone(&parts), config.clone(), feeds.clone());
            move || state(&config, &feeds, parts.get())
        }),
    };
    let listener = listen("sidecar.admin", config.section.admin, &seams).await?;
    supervisor.companion(
        "admin",
        admin::serve(listener, admin.router(), seams.clock.clone()),
    );

    // Live before there is an identity, and ended by a signal or a dead admin server meanwhile.
    let identity = tokio::select! {
        identity = identity => identity,
        () = shutdown.drain() => Err(LocalIdentityError::ShutDown),
    };
    let identity = match identity {
        Ok(identity) => identity,
        Err(LocalIdentityError::ShutDown) => {
            let drained = supervisor.run_until_shutdown().await?;
            tracing::debug!(%drained, "ended before there was an identity");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    tracing::info!(id = %identity.id(), "identity");
    has_identity.mark_ready();

    let endpoint = EndpointConfig {
        metrics: tunnel_metrics,
        ..EndpointConfig::sidecar(config.site.cluster.clone())
    };
    let endpoint = Endpoint::bind(endpoint, identity.clone(), seams.clone(), Arc::new(NoFlows)).await?;
    let view = View::new(
        feeds.snapshots.clone(),
        feeds.links.clone(),
        metrics.clone(),
        seams.clone(),
    );
    let gateways = Gateways::new(endpoint.clone(), LinkProfile::LAN, seams.clone());
    let connector = Arc::new(Connector {
        view: Arc::clone(&view),
        gateways: Arc::clone(&gateways),
        identity: identity.clone(),
        from: config.site.locality.clone(),
        seams: seams.clone(),
        metrics: metrics.clone(),
        rng: Mutex::new(seams.entropy.rng()),
    });
    let outbound = Outbound::new(connector, shutdown.clone());
    for place in config.section.inbound.clone() {
        let listener = listen("sidecar.inbound", place.listen, &seams).await?;
        let (identity, seams, shutdown, metrics) =
            (identity.clone(), seams.clone(), shutdown.clone(), metrics.clone());
        let inbound = Arc::new(Inbound {
            place,
            identity,
            seams,
            shutdown,
            metrics,
        });
        supervisor.essential("inbound", finished(inbound.serve(listener)));
    }
    if let Some(capture) = config.section.capture {
        let listener = listen("sidecar.capture", capture, &seams).await?;
        supervisor.essential("capture", finished(Arc::clone(&outbound).capture(listener)));
    }
    supervisor.companion("signals", finished(Arc::clone(&view).keep(Arc::clone(&gateways))));
    supervisor.companion(
        "drills",
        finished(drills::obey(
            feeds.drills,
            feeds.snapshots,
            endpoint.clone(),
            seams,
        )),
    );
    // Nobody else fills the slot.
    drop(parts.set(Parts { view, gateways }));
    supervisor.essential("outbound", listeners(outbound, mirror, has_snapshot));

    let drained = supervisor.run_until_shutdown().await;
    // Flows have ended or were reset; their last bytes are delivered when the gateways say that they have none left.
    let until = shutdown.deadline().unwrap_or_else(|| clock.now());
    let tunnels = endpoint.drain(until).await;
    tracing::debug!(drained = %drained?, ?tunnels, "ended");
    Ok(())
}

/// What `/state` reads.
#[derive(Debug)]
struct Parts {
    view: Arc<View>,
    gateways: Arc<Gateways>,
}

async fn listen(what: &'static str, address: SocketAddr, seams: &Seams) -> Result<Listener, Error> {
    seams
        .network
        .listen(address)
        .await
        .map_err(|source| Error::Listen { what, source })
}

async fn finished(task: impl Future<Output = ()>) -> TaskResult {
    task.await;
    Ok(())
}

async fn listeners(outbound: Arc<Outbound>, mirror: Mirror, ready: Blocker) -> TaskResult {
    outbound.listen(mirror, ready).await;
    Ok(())
}

fn state(config: &Config, feeds: &Feeds, parts: Option<&Parts>) -> Value {
    let snapshot = feeds.snapshots.current();
    let version = snapshot.as_ref().map(|snapshot| {
        let version = snapshot.version;
        json!({
            "incarnation": version.incarnation,
            "revision": version.revision,
            "local": version.local,
            "fresh": snapshot.fresh,
            "imports": snapshot.imports.len(),
        })
    });
    json!({
        "cluster": config.site.cluster,
        "workload": config.subject(),
        "snapshot": version,
        "drill": feeds.drills.current().map(|running| format!("{:?}", running.drill.kind)),
        "links": parts.map(links),
        "gateways": parts.map(paths),
        "ejected": parts.map(ejected),
    })
}

fn links(parts: &Parts) -> Value {
    let signals = Arc::clone(&parts.view.signals().borrow());
    let links = signals.links.iter().map(|(cluster, link)| {
        let rtt_ms = link.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0);
        (
            cluster.to_string(),
            json!({ "state": link.state.as_str(), "rtt_ms": rtt_ms }),
        )
    });
    Value::Object(links.collect())
}

fn paths(parts: &Parts) -> Value {
    let path = |path: crate::pools::PathReport| {
        json!({
            "cluster": path.gateway.cluster,
            "address": path.gateway.address,
            "phase": path.phase,
            "link": path.link.as_str(),
            "reason": path.reason,
        })
    };
    parts.gateways.report().into_iter().map(path).collect()
}

fn ejected(parts: &Parts) -> Value {
    let signals = Arc::clone(&parts.view.signals().borrow());
    let endpoint = |(cluster, address, port): &(tombolo_clusterset::ClusterId, std::net::IpAddr, u16)| json!({ "cluster": cluster, "endpoint": SocketAddr::new(*address, *port) });
    signals.ejected.iter().map(endpoint).collect()
}
