//! The gateway of one cluster.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus_client::registry::Registry;
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tombolo_clusterset::link::LinkProfile;
use tombolo_daemon::admin::{self, Admin};
use tombolo_daemon::supervise::{SuperviseError, Supervisor};
use tombolo_daemon::uds::{self, UdsError};
use tombolo_daemon::{Readiness, Seams, Shutdown};
use tombolo_tunnel::{
    BindError, Endpoint, EndpointConfig, IdentityConfig, LocalIdentity, LocalIdentityError, TransportChoice,
};
use tombolo_wire::local::{ClusterSite, DrillFeed, Interest, SnapshotFeed};
use tracing::info;

use super::context::{Context, LinkView};
use super::inbound::Inbound;
use super::listeners::{self, Board};
use super::metrics::Metrics;
use super::peers::{INBOUND, Peers};
use super::{drill, health, links_server, state};
use crate::links::Links;

/// Whom the gateway's certificate names within its cluster.
const SUBJECT: &str = "role/gateway";

/// What is left of a drain's time when the last flows are reset, so that their peers are told before the process is gone.
const DRAIN_MARGIN: Duration = Duration::from_millis(250);

/// `[gateway]` of `cluster.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// Where tunnels come in: UDP (QUIC) and TCP (TLS and HTTP/2) on the same port. Unused with `outbound_only`.
    pub listen: SocketAddr,
    /// The addresses that other clusters dial; the agent publishes them. Default: `listen`.
    #[serde(default)]
    pub advertise: Option<Vec<SocketAddr>>,
    /// This cluster cannot be dialled (NAT, firewall): it dials out, and its peers reuse those tunnels. Default: no.
    #[serde(default)]
    pub outbound_only: bool,
    /// How peers are dialled. Default: QUIC, and HTTP/2 where UDP is blocked.
    #[serde(default)]
    pub transport: Transport,
    /// Times of pings and failover. Default: `lan`, for round trips up to 100 ms.
    #[serde(default)]
    pub profile: LinkProfileName,
    /// Address of `/livez`, `/readyz`, `/metrics`, `/state`.
    pub admin: SocketAddr,
    /// Seconds that running flows have after SIGTERM before they are reset, within the process's own limit. Default: 30, the
    /// grace that Kubernetes gives a pod.
    #[serde(default = "default_drain_seconds")]
    pub drain_seconds: u32,
}

fn default_drain_seconds() -> u32 {
    30
}

impl Section {
    /// The addresses that other clusters dial; none when nobody can.
    #[must_use]
    pub fn advertised(&self) -> Vec<SocketAddr> {
        if self.outbound_only {
            Vec::new()
        } else {
            self.advertise.clone().unwrap_or_else(|| vec![self.listen])
        }
    }
}

/// How peers are dialled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// QUIC, and HTTP/2 where QUIC does not answer.
    #[default]
    Auto,
    /// QUIC only.
    Quic,
    /// HTTP/2 over TLS only.
    H2,
}

/// A timing profile by its name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkProfileName {
    /// [`LinkProfile::LAN`].
    #[default]
    Lan,
    /// [`LinkProfile::WAN`].
    Wan,
}

impl From<LinkProfileName> for LinkProfile {
    fn from(name: LinkProfileName) -> Self {
        match name {
            LinkProfileName::Lan => Self::LAN,
            LinkProfileName::Wan => Self::WAN,
        }
    }
}

/// Everything that [`run`] needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The cluster.
    pub site: ClusterSite,
    /// Its `[gateway]`.
    pub section: Section,
}

/// Why the gateway did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The admin address cannot be listened on.
    #[error("gateway cannot serve its admin address {address}: {source}; see `admin` under [gateway]")]
    Admin {
        /// Where.
        address: SocketAddr,
        /// The host's reason.
        source: std::io::Error,
    },
    /// The socket for the processes of this cluster.
    #[error("gateway cannot serve its links: {0}")]
    Links(#[from] UdsError),
    /// The tunnels' address cannot be listened on.
    #[error("gateway cannot take tunnels: {0}; see `listen` under [gateway]")]
    Tunnels(#[from] BindError),
    /// There is no certificate.
    #[error("gateway has no identity: {0}")]
    Identity(LocalIdentityError),
    /// A part of the gateway died.
    #[error(transparent)]
    Died(#[from] SuperviseError),
}

/// Serves until `shutdown` begins, then until the flows that run have ended or the drain's time is over.
///
/// It becomes ready with an identity and a snapshot (from the agent, or the identity from its cache) and bound listeners,
/// whatever its peers do.
///
/// # Errors
/// [`Error`] says which address or part it was.
pub async fn run(config: Config, seams: Seams, shutdown: Shutdown) -> Result<(), Error> {
    let Config { site, section } = config;
    let Section {
        listen,
        advertise: _,
        outbound_only,
        transport,
        profile,
        admin: admin_address,
        drain_seconds,
    } = section;
    let readiness = Readiness::new();
    let [has_identity, has_snapshot, is_listening] =
        ["identity", "snapshot", "listening"].map(|name| readiness.block(name));
    let mut registry = Registry::with_prefix("tombolo_gateway");
    let metrics = Metrics::register(&mut registry);
    let tunnel_metrics = tombolo_tunnel::Metrics::register(registry.sub_registry_with_prefix("tunnel"));

    let admin_listener = seams
        .network
        .listen(admin_address)
        .await
        .map_err(|source| Error::Admin {
            address: admin_address,
            source,
        })?;
    let links_socket = uds::listen(&site.gateway_socket()).await?;
    let state: Arc<OnceLock<state::Reader>> = Arc::default();
    let mut supervisor = Supervisor::new(shutdown.clone(), &seams);
    let admin = Admin {
        readiness,
        shutdown: shutdown.clone(),
        registry: Arc::new(registry),
        state: state::late(Arc::clone(&state)),
    };
    supervisor.companion(
        "admin",
        admin::serve(admin_listener, admin.router(), seams.clock.clone()),
    );

    let agent = site.agent_socket();
    let snapshots = SnapshotFeed::start(&agent, site.cluster.clone(), Interest::default(), seams.clone());
    let drills = DrillFeed::start(&agent, seams.clone());
    let identity = IdentityConfig {
        cluster: site.cluster.clone(),
        subject: SUBJECT.to_owned(),
        agent_socket: agent.clone(),
        cache_dir: site.data_dir.join("leaf").join("gateway"),
        snapshots: snapshots.receiver(),
    };
    let identity = match LocalIdentity::start(identity, seams.clone(), shutdown.clone()).await {
        Ok(identity) => identity,
        Err(LocalIdentityError::ShutDown) => return Ok(()),
        Err(error) => return Err(Error::Identity(error)),
    };
    has_identity.mark_ready();

    let (view, links) = watch::channel(Arc::new(LinkView::default()));
    let view = Arc::new(view);
    let profile = LinkProfile::from(profile);
    let context = Arc::new(Context::new(
        site.clone(),
        seams.clone(),
        shutdown.clone(),
        identity.id(),
        snapshots,
        links,
        metrics,
    ));
    let board = Board::default();
    // It is set once: a second value could only be the same.
    drop(state.set(state::reader(Arc::clone(&context), Arc::clone(&board))));

    let (inbound, inbound_tunnels) = mpsc::channel(INBOUND);
    let handler = Arc::new(Inbound {
        context: Arc::clone(&context),
        tunnels: inbound,
    });
    let endpoint = EndpointConfig {
        ping_every: profile.ping_interval,
        metrics: tunnel_metrics,
        ..EndpointConfig::gateway(site.cluster.clone(), (!outbound_only).then_some(listen))
    };
    let endpoint = Endpoint::bind(endpoint, identity, seams.clone(), handler).await?;
    info!(address = ?endpoint.local_addr(), outbound_only, "taking tunnels");

    let peers = Peers {
        context: Arc::clone(&context),
        endpoint: endpoint.clone(),
        transport: match transport {
            Transport::Auto => TransportChoice::Auto,
            Transport::Quic => TransportChoice::Quic,
            Transport::H2 => TransportChoice::H2,
        },
        // Twice the time after which silence means that nobody is there.
        dial_limit: profile.down_after * 2,
        links: Links::new(site.cluster.clone(), outbound_only, profile),
        inbound: inbound_tunnels,
        view: Arc::clone(&view),
    };
    supervisor.essential("links", peers.run());
    supervisor.companion(
        "links server",
        links_server::serve(links_socket, view, shutdown.clone()),
    );
    supervisor.essential("health", health::keep(Arc::clone(&context)));
    let snapshot_seen = Arc::clone(&context);
    supervisor.essential("first snapshot", async move {
        if listeners::first_snapshot(&snapshot_seen).await {
            has_snapshot.mark_ready();
        }
        snapshot_seen.shutdown.drain().await;
        Ok(())
    });
    supervisor.essential(
        "listeners",
        listeners::keep(Arc::clone(&context), board, move || is_listening.mark_ready()),
    );
    supervisor.essential(
        "drill cut",
        drill::obey(Arc::clone(&context), drills.clone(), endpoint.clone()),
    );
    supervisor.essential("drill traffic", drill::send(Arc::clone(&context), drills, agent));
    supervisor.essential(
        "tunnels",
        drain(
            Arc::clone(&context),
            endpoint,
            Duration::from_secs(drain_seconds.into()),
        ),
    );
    supervisor.run_until_shutdown().await.map(drop)?;
    Ok(())
}

/// Waits for the drain and then lets the tunnels' flows end, or resets them.
async fn drain(
    context: Arc<Context>,
    endpoint: Endpoint,
    most: Duration,
) -> tombolo_daemon::supervise::TaskResult {
    context.shutdown.drain().await;
    let now = context.seams.clock.now();
    let process_ends = context.shutdown.deadline().unwrap_or(now);
    let deadline = (now + most)
        .min(process_ends.checked_sub(DRAIN_MARGIN).unwrap_or(now))
        .max(now);
    let drained = endpoint.drain(deadline).await;
    info!(ended = drained.ended, reset = drained.reset, "tunnels drained");
    Ok(())
}
