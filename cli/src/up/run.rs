//! `up` and `down`, step by step.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::IsTerminal;
use std::net::{TcpListener, UdpSocket};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tombolo_clusterset::ClusterId;
use tombolo_wire::v1;

use super::control::{self, Answer, Call, Request};
use super::fleet::{Fleet, POLL};
use super::layout::{Layout, SiteNote};
use super::plan;
use crate::args::{Format, Target, Up};
use crate::commands::{broker_add, overview};
use crate::operator::{Operators, members, refusal};
use crate::output::{Tone, paint, print_line};
use crate::site::Site;

/// A role that is not ready after this long will not be.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// A token is used at once.
const TOKEN_TTL_MS: u64 = 5 * 60 * 1000;
/// How long all links and imports may take once every process is ready.
const CONVERGE_DEADLINE: Duration = Duration::from_secs(20);

/// The last line of a foreground start.
const STAYS: &str = "Ctrl-C stops everything.";

/// What a data directory was made with.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Settings {
    brokers: u64,
    /// Cluster ids, sorted.
    clusters: Vec<String>,
}

/// Says what is being done, one line a step.
#[derive(Debug)]
struct Progress {
    began: Instant,
}

impl Progress {
    fn step(&self, text: &str) {
        let elapsed = format!("{:5.1}s", self.began.elapsed().as_secs_f64());
        // A closed terminal must not end the clusterset: what cannot be said is left unsaid.
        let _ = print_line(&format!("{} {text}", paint(Tone::Dim, &elapsed)));
    }
}

/// Starts the clusterset and stays until Ctrl-C, SIGTERM or `down`.
pub(crate) async fn up(target: &Target, args: &Up) -> Result<ExitCode> {
    if args.brokers.is_multiple_of(2) {
        bail!(
            "--brokers {} makes no better quorum than {}; use 1, 3 or 5",
            args.brokers,
            args.brokers - 1
        );
    }
    let layout = Layout::new(&target.data_dir);
    if args.detach {
        return super::run::detach(target, args, &layout).await;
    }
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let sites = Site::load_all(&args.clusters, &layout.cluster_root())?;
    let _lock = lock(&layout)?;
    settle(&layout, &sites, u64::from(args.brokers))?;
    check_addresses(&sites, u64::from(args.brokers))?;
    let mut calls = control::serve(&layout.root)?;
    let mut fleet = Fleet::new(layout.logs());
    let progress = Progress {
        began: Instant::now(),
    };

    let started = {
        let start = start(
            &layout,
            &sites,
            u64::from(args.brokers),
            &mut fleet,
            &progress,
            target,
        );
        tokio::select! {
            started = start => started,
            _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted while starting")),
            _ = terminate.recv() => Err(anyhow::anyhow!("terminated while starting")),
            () = refuse_until_ready(&mut calls) => Err(anyhow::anyhow!("stopped by `tombolo down` while starting")),
        }
    };
    if let Err(error) = started {
        fleet.stop().await;
        return Err(error);
    }
    tend(&mut fleet, &mut calls, &mut interrupt, &mut terminate).await;
    progress.step("stopping");
    fleet.stop().await;
    progress.step("stopped; the data directory keeps everyone's identity");
    Ok(ExitCode::SUCCESS)
}

/// Watches over the processes until someone wants them stopped.
async fn tend(
    fleet: &mut Fleet,
    calls: &mut mpsc::Receiver<Call>,
    interrupt: &mut tokio::signal::unix::Signal,
    terminate: &mut tokio::signal::unix::Signal,
) {
    let mut poll = tokio::time::interval(POLL);
    loop {
        tokio::select! {
            _ = interrupt.recv() => return,
            _ = terminate.recv() => return,
            _ = poll.tick() => fleet.tend(Instant::now()),
            call = calls.recv() => {
                let Some((request, answer)) = call else { return };
                let reply = match request {
                    Request::Down => {
                        let _ = answer.send(Answer::Stopping);
                        return;
                    }
                    Request::Status => Answer::Status { ready: true, processes: fleet.processes() },
                    Request::Kill { cluster, role, hold_ms } => {
                        let at_unix_us = unix_us();
                        let hold = Duration::from_millis(hold_ms);
                        match fleet.kill(&cluster, role.as_deref(), hold).await {
                            Some(processes) => Answer::Killed { at_unix_us, processes },
                            None => Answer::Refused { reason: format!("{cluster} has no such process here") },
                        }
                    }
                };
                // A caller that left does not want its answer.
                let _ = answer.send(reply);
            }
        }
    }
}

/// While `up` starts, only `down` and `status` have an answer. Returns when asked to stop.
async fn refuse_until_ready(calls: &mut mpsc::Receiver<Call>) {
    while let Some((request, answer)) = calls.recv().await {
        let reply = match request {
            Request::Down => {
                let _ = answer.send(Answer::Stopping);
                return;
            }
            Request::Status => Answer::Status {
                ready: false,
                processes: Vec::new(),
            },
            Request::Kill { .. } => Answer::Refused {
                reason: "the clusterset is still starting".into(),
            },
        };
        let _ = answer.send(reply);
    }
}

/// Brokers first, then every cluster joins and starts, then all wait for all.
async fn start(
    layout: &Layout,
    sites: &[Site],
    brokers: u64,
    fleet: &mut Fleet,
    progress: &Progress,
    target: &Target,
) -> Result<()> {
    write_bootstrap_config(layout)?;
    let present: Vec<u64> = (1..=brokers).filter(|id| !layout.removed(*id).exists()).collect();
    if present.contains(&1) {
        progress.step(&format!("starting broker 1 at {}", Layout::api(1)));
        fleet.start(plan::broker(layout, 1))?;
    }
    if brokers > 1 && !layout.broker(2).exists() {
        fleet.wait_ready(READY_DEADLINE).await?;
    }
    let operators = Operators {
        brokers: vec![Layout::api(1)],
        identity: layout.operator(),
    };
    for id in present.iter().copied().filter(|id| *id > 1) {
        if !layout.broker(id).join("broker.toml").is_file() {
            progress.step(&format!("adding broker {id} at {}", Layout::api(id)));
            let request = broker_add::Request {
                id,
                api: Layout::api(id),
                peer: Layout::peer(id),
                admin: Layout::admin(id),
                kek: layout.kek(),
                out: layout.broker(id),
            };
            broker_add::add(&operators, &request).await?;
        }
        fleet.start(plan::broker(layout, id))?;
    }
    fleet.wait_ready(READY_DEADLINE).await?;
    progress.step(&format!("{} brokers ready", present.len()));

    let operators = Operators {
        brokers: layout.broker_apis(),
        identity: layout.operator(),
    };
    let members = members(target).await?;
    let mut joined = Vec::new();
    for site in sites {
        if !join(&operators, site, &members, progress).await? {
            continue;
        }
        SiteNote::of(site).save(&site.site.data_dir)?;
        for spec in plan::cluster(site) {
            fleet.start(spec)?;
        }
        joined.push(site.clone());
    }
    let sites = &joined[..];
    if sites.is_empty() {
        bail!(
            "every cluster of {} was evicted or has left",
            layout.root.display()
        );
    }
    progress.step("waiting for agents, gateways, DNS servers and sidecars");
    fleet.wait_ready(READY_DEADLINE).await?;
    converge(sites, fleet).await?;
    let seconds = progress.began.elapsed().as_secs_f64();
    progress.step(&paint(Tone::Good, &format!("ready after {seconds:.1} s")));
    print_line("")?;
    print_line(&overview::text(layout, sites).await?)?;
    print_line(&try_this(target, sites))?;
    print_line(STAYS)
}

/// A member already, or made one now with a token of its own. False for one that was evicted or has left: an operator's
/// word is not undone by a restart.
async fn join(
    operators: &Operators,
    site: &Site,
    members: &BTreeSet<ClusterId>,
    progress: &Progress,
) -> Result<bool> {
    let cluster = &site.site.cluster;
    if site.site.data_dir.join("identity/membership.json").is_file() {
        if members.contains(cluster) {
            progress.step(&format!("{cluster} is a member already"));
            return Ok(true);
        }
        progress.step(&paint(
            Tone::Warn,
            &format!(
                "{cluster} was evicted or has left, and stays out; to take it back delete {} and start again",
                site.site.data_dir.display()
            ),
        ));
        return Ok(false);
    }
    progress.step(&format!("{cluster} joins with a token of its own"));
    let mut client = operators.connect().await?;
    let request = v1::CreateTokenRequest {
        cluster: cluster.to_string(),
        ttl_ms: TOKEN_TTL_MS,
    };
    let token = client
        .create_token(request)
        .await
        .map_err(|status| refusal(&status))?
        .into_inner()
        .token;
    crate::commands::join::join(site, &token, operators.brokers.clone(), false).await?;
    Ok(true)
}

/// Waits until every cluster sees every other over a link that is up.
async fn converge(sites: &[Site], fleet: &mut Fleet) -> Result<()> {
    let until = Instant::now() + CONVERGE_DEADLINE;
    loop {
        fleet.bail_on_death()?;
        let missing = overview::missing_links(sites).await;
        if missing.is_empty() {
            return Ok(());
        }
        if Instant::now() >= until {
            bail!(
                "these links did not come up within {} s:\n  {}",
                CONVERGE_DEADLINE.as_secs(),
                missing.join("\n  ")
            );
        }
        tokio::time::sleep(POLL).await;
    }
}

fn try_this(target: &Target, sites: &[Site]) -> String {
    let default = target.data_dir == std::path::Path::new(".tombolo");
    let data_dir = if default {
        String::new()
    } else {
        format!(" --data-dir {}", target.data_dir.display())
    };
    let first = &sites[0];
    let dns = first.dns.listen;
    let other = sites.get(1).unwrap_or(first).site.cluster.clone();
    let lines = [
        format!(
            "dig @{} -p {} checkout.shop.svc.clusterset.local",
            dns.ip(),
            dns.port()
        ),
        format!(
            "tombolo explain shop/checkout --from {}{data_dir}",
            first.site.cluster
        ),
        format!(
            "tombolo drill run --kind cluster-down --target {} --from {other} --service shop/checkout{data_dir}",
            first.site.cluster
        ),
    ];
    format!("\nTry:\n  {}\n", lines.join("\n  "))
}

/// One `up` per data directory.
fn lock(layout: &Layout) -> Result<File> {
    std::fs::create_dir_all(layout.logs()).with_context(|| {
        format!(
            "cannot create the data directory {}; name another with --data-dir",
            layout.root.display()
        )
    })?;
    let path = layout.lock();
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!(
            "another `tombolo up` runs with data directory {}; stop it with `tombolo down --data-dir {}`, or name another --data-dir",
            layout.root.display(),
            layout.root.display()
        );
    }
    Ok(file)
}

/// A data directory stays with the clusters and brokers it was made for.
fn settle(layout: &Layout, sites: &[Site], brokers: u64) -> Result<()> {
    let clusters = sites.iter().map(|site| site.site.cluster.to_string()).collect();
    let wanted = Settings { brokers, clusters };
    let path = layout.settings();
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let made: Settings = serde_json::from_str(&text).with_context(|| {
                format!(
                    "{} was not written by this version of `tombolo up`; name another --data-dir",
                    path.display()
                )
            })?;
            if made.brokers != wanted.brokers || !made.clusters.iter().all(|id| wanted.clusters.contains(id))
            {
                bail!(
                    "the data directory {} was made for {} brokers and the clusters {}; now it would be {} and {}. Name another --data-dir, or delete this one",
                    layout.root.display(),
                    made.brokers,
                    made.clusters.join(", "),
                    wanted.brokers,
                    wanted.clusters.join(", ")
                );
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
    std::fs::write(&path, serde_json::to_string_pretty(&wanted)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Names every address that is taken, before anything is started.
fn check_addresses(sites: &[Site], brokers: u64) -> Result<()> {
    let mut taken = BTreeMap::new();
    for (address, udp, owner) in plan::addresses(sites, brokers) {
        let tcp = TcpListener::bind(address).err();
        let error = tcp.or_else(|| udp.then(|| UdpSocket::bind(address).err()).flatten());
        if let Some(error) = error {
            taken.insert(address, format!("{address} ({owner}): {error}"));
        }
    }
    if taken.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = taken.into_values().collect();
    bail!(
        "these addresses cannot be used:\n  {}\nanother clusterset may be running (`tombolo down` with its --data-dir), or change them in the cluster.toml files",
        lines.join("\n  ")
    );
}

fn write_bootstrap_config(layout: &Layout) -> Result<()> {
    let folder = layout.broker(1);
    let file = folder.join("broker.toml");
    if file.is_file() {
        return Ok(());
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let text = broker_add::config_text(1, Layout::api(1), Layout::peer(1), Layout::admin(1), true);
    std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn unix_us() -> u64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Runs `up` in the background and returns once it is ready.
pub(super) async fn detach(target: &Target, args: &Up, layout: &Layout) -> Result<ExitCode> {
    drop(lock(layout)?);
    let log = layout.logs().join("up.log");
    let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command
        .args(["up", "--data-dir"])
        .arg(&target.data_dir)
        .arg("--clusters")
        .arg(&args.clusters);
    command.arg("--brokers").arg(args.brokers.to_string());
    command
        .stdin(std::process::Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file);
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command
        .spawn()
        .context("cannot start `tombolo up` in the background")?;
    let mut shown = 0;
    loop {
        shown += show_new_lines(&log, shown)?;
        if let Some(status) = child.try_wait()? {
            show_new_lines(&log, shown)?;
            bail!(
                "`tombolo up` ended ({status}); its output is above and in {}",
                log.display()
            );
        }
        if let Ok(Answer::Status { ready: true, .. }) = control::ask(&layout.root, &Request::Status).await {
            show_new_lines(&log, shown)?;
            print_line("It runs in the background; `tombolo down` stops it.")?;
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Prints what was appended to `log` after `from`; returns how many bytes that was.
fn show_new_lines(log: &std::path::Path, from: usize) -> Result<usize> {
    let text = std::fs::read_to_string(log).with_context(|| format!("cannot read {}", log.display()))?;
    let new = &text[from.min(text.len())..];
    let whole = new.rfind('\n').map_or(0, |end| end + 1);
    if whole > 0 {
        let foreground_only = |line: &&str| *line != STAYS;
        let lines: Vec<&str> = new[..whole].lines().filter(foreground_only).collect();
        print_line(&lines.join("\n"))?;
    }
    Ok(whole)
}

/// Stops what runs on the data directory and waits until it has ended.
pub(crate) async fn down(target: &Target) -> Result<ExitCode> {
    let layout = Layout::new(&target.data_dir);
    control::ask(&layout.root, &Request::Down).await?;
    let path = layout.lock();
    let ended = async {
        loop {
            let file = File::options().write(true).open(&path)?;
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                return anyhow::Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    };
    timeout(READY_DEADLINE, ended)
        .await
        .with_context(|| format!("`up` still holds {}", path.display()))??;
    if target.output == Format::Table && std::io::stdout().is_terminal() {
        print_line("stopped")?;
    }
    Ok(ExitCode::SUCCESS)
}
