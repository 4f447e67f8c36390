//! The long-running roles: the process around a role's `run`.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use tombolo_daemon::signals::Signals;
use tombolo_daemon::telemetry::{self, Identity, Logs};
use tombolo_daemon::{Seams, Shutdown};

use crate::site::Site;
use crate::up::PARENT_VARIABLE;

/// How long flows may take to end after SIGTERM: below the 30 s that Kubernetes waits before it kills.
const DRAIN_GRACE: Duration = Duration::from_secs(25);
/// The same under `tombolo up`, where someone waits at a terminal.
const LOCAL_DRAIN_GRACE: Duration = Duration::from_secs(3);

pub(crate) async fn broker(config: &Path) -> Result<()> {
    let config = broker_config(config)?;
    let name = format!("broker-{}", config.id);
    run("broker", &name, |seams, shutdown| {
        tombolo_broker::run(config, seams, shutdown)
    })
    .await
}

/// A `broker.toml`; its data directory counts from the file's own folder.
pub(crate) fn broker_config(file: &Path) -> Result<tombolo_broker::Config> {
    let mut config: tombolo_broker::Config = tombolo_daemon::config::load(file)?;
    let file = std::path::absolute(file).with_context(|| format!("cannot find {}", file.display()))?;
    config.data_dir = file.parent().unwrap_or(Path::new("/")).join(&config.data_dir);
    Ok(config)
}

pub(crate) async fn agent(config: &Path) -> Result<()> {
    let config = Site::load(config)?.agent_config();
    let cluster = config.site.cluster.to_string();
    run("agent", &cluster, |seams, shutdown| {
        tombolo_discovery::run(config, seams, shutdown)
    })
    .await
}

pub(crate) async fn gateway(config: &Path) -> Result<()> {
    let Site { site, gateway, .. } = Site::load(config)?;
    let cluster = site.cluster.to_string();
    let config = tombolo_gateway::Config {
        site,
        section: gateway,
    };
    run("gateway", &cluster, |seams, shutdown| {
        tombolo_gateway::run(config, seams, shutdown)
    })
    .await
}

pub(crate) async fn dns(config: &Path) -> Result<()> {
    let Site { site, dns, .. } = Site::load(config)?;
    let cluster = site.cluster.to_string();
    let config = tombolo_dns::Config { site, section: dns };
    run("dns", &cluster, |seams, shutdown| {
        tombolo_dns::run(config, seams, shutdown)
    })
    .await
}

pub(crate) async fn sidecar(config: &Path) -> Result<()> {
    let Site {
        site,
        agent,
        sidecar,
        file,
        ..
    } = Site::load(config)?;
    let cluster = site.cluster.to_string();
    let section = sidecar.with_context(|| format!("{} has no [sidecar] section", file.display()))?;
    let config = tombolo_sidecar::Config {
        site,
        section,
        vip_range: agent.vip_range,
    };
    run("sidecar", &cluster, |seams, shutdown| {
        tombolo_sidecar::run(config, seams, shutdown)
    })
    .await
}

pub(crate) async fn sample_backends(config: &Path) -> Result<()> {
    let Site { site, agent, .. } = Site::load(config)?;
    let cluster = site.cluster.to_string();
    run("backends", &cluster.clone(), |_, shutdown| {
        crate::sample::run(cluster, agent.manifests, shutdown)
    })
    .await
}

/// Logs, signals, and the role until it has drained.
async fn run<E, Running>(
    role: &str,
    cluster: &str,
    start: impl FnOnce(Seams, Shutdown) -> Running,
) -> Result<()>
where
    E: Into<anyhow::Error>,
    Running: Future<Output = Result<(), E>>,
{
    let signals = Signals::install().context("cannot catch signals")?;
    let local = end_with_parent()?;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    telemetry::init(
        &Logs::default(),
        &Identity {
            role: role.to_owned(),
            cluster: cluster.to_owned(),
            version,
        },
    )?;
    let seams = Seams::host();
    let shutdown = Shutdown::new(if local { LOCAL_DRAIN_GRACE } else { DRAIN_GRACE });
    let caught = tokio::spawn(signals.run(shutdown.clone(), seams.clock.clone()));
    let ended = start(seams, shutdown).await.map_err(Into::into);
    caught.abort();
    if let Err(error) = &ended {
        tracing::error!("{error:#}");
    }
    ended
}

/// Under `up`, a role gets SIGTERM when its parent dies, however it dies. True under `up`.
fn end_with_parent() -> Result<bool> {
    let Some(parent) = std::env::var_os(PARENT_VARIABLE) else {
        return Ok(false);
    };
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
        .context("cannot ask to end with the parent")?;
    let parent: Option<i32> = parent.to_str().and_then(|pid| pid.parse().ok());
    let alive = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get()) == parent;
    anyhow::ensure!(alive, "the `tombolo up` that started this process is gone");
    Ok(true)
}
