//! `tombolo drill`: a rehearsed failure, measured and judged.

mod live;
mod page;
mod plan;
mod proof;
mod watch;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use tombolo_clusterset::{Drill, DrillId, DrillKind};
use tombolo_wire::v1;

use super::status::DrillItem;
use crate::args::{Drill as Command, DrillRun, Kind, Target};
use crate::operator::view::{From, Source, View};
use crate::operator::{Operators, refusal};
use crate::output::{print, print_line};
use crate::up::Layout;
use crate::up::control::{self, Answer, Request};
use proof::Proof;

/// Exit code of a drill that proves nothing.
const INCONCLUSIVE: u8 = 2;

/// The running drill. JSON kind `running-drill`.
#[derive(Debug, Serialize)]
struct Running {
    source: Source,
    /// Null when none runs.
    drill: Option<DrillItem>,
}

pub(crate) async fn run(target: &Target, command: Command) -> Result<ExitCode> {
    match command {
        Command::Run(args) => return rehearse(target, &args).await,
        Command::Show => {
            let view = View::gather(target).await?;
            needs_broker(&view)?;
            let running = Running {
                drill: view.records.drill.as_ref().map(DrillItem::of),
                source: view.source,
            };
            print(target.output, "running-drill", &running, show)?;
        }
        Command::Stop => {
            let view = View::gather(target).await?;
            needs_broker(&view)?;
            match view.records.drill {
                Some(drill) => {
                    stop(&Operators::find(target)?, drill.id).await?;
                    print_line(&format!(
                        "drill {} is stopped; everything it cut is whole again",
                        drill.id.0
                    ))?;
                }
                None => print_line("no drill is running")?,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn needs_broker(view: &View) -> Result<()> {
    ensure!(
        view.source.from == From::Broker,
        "drills are known to brokers only, and none answers; see `tombolo status`"
    );
    Ok(())
}

fn show(running: &Running) -> String {
    let Some(drill) = &running.drill else {
        return "no drill is running".to_owned();
    };
    let seconds = |ms: u64| ms as f64 / 1000.0;
    format!(
        "drill {}: {}{} of {}, {} called from {}: {} s before, {} s of failure, {} s after; stop it with `tombolo drill stop`",
        drill.id,
        if drill.real { "real " } else { "" },
        drill.kind,
        drill.target,
        drill.service,
        drill.from,
        seconds(drill.baseline_ms),
        seconds(drill.duration_ms),
        seconds(drill.recovery_ms)
    )
}

async fn stop(operators: &Operators, id: DrillId) -> Result<()> {
    let mut client = operators.connect().await?;
    client
        .stop_drill(v1::StopDrillRequest { drill: id.0 })
        .await
        .map_err(|status| refusal(&status))?;
    Ok(())
}

/// Starts the drill, lives through it, judges it.
async fn rehearse(target: &Target, args: &DrillRun) -> Result<ExitCode> {
    let kind = kind(args.kind);
    check_args(kind, args)?;
    let operators = Operators::find(target)?;
    let view = View::gather(target).await?;
    needs_broker(&view)?;
    let from = match &args.from {
        Some(from) => from.clone(),
        None => plan::default_from(&view, &args.target, &args.service)
            .with_context(|| format!("there is no other member than {} to call from", args.target))?,
    };
    if args.real {
        check_processes(target, kind, args).await?;
    }
    let asked = Drill {
        id: DrillId(0),
        kind,
        target: args.target.clone(),
        from,
        service: args.service.clone(),
        port: args.port,
        http_get: args.http_get.clone(),
        rate_per_second: args.rate,
        baseline: args.baseline,
        duration: args.duration,
        recovery: args.recovery,
        real: args.real,
    };
    let drill = start(&operators, &asked, args.force).await?;
    let lived = tokio::select! {
        lived = live::through(target, &operators, &view, &drill) => lived,
        () = interrupted() => Err(anyhow::anyhow!("interrupted")),
    };
    let lived = match lived {
        Ok(lived) => lived,
        Err(error) => {
            // It would end by itself, but there is no reason to keep the failure up.
            return Err(match stop(&operators, drill.id).await {
                Ok(()) => error.context(format!("drill {} is stopped", drill.id.0)),
                Err(other) => error.context(format!(
                    "drill {} ends by itself; it could not be stopped: {other:#}",
                    drill.id.0
                )),
            });
        }
    };
    let proof = Proof::of(&drill, &lived);
    if let Some(report) = &args.report {
        std::fs::write(report, page::html(&proof))
            .with_context(|| format!("cannot write {}", report.display()))?;
        eprintln!("report: {}", report.display());
    }
    print(target.output, "drill", &proof, Proof::text)?;
    Ok(match proof.verdict {
        "passed" => ExitCode::SUCCESS,
        "failed" => ExitCode::FAILURE,
        _ => ExitCode::from(INCONCLUSIVE),
    })
}

async fn start(operators: &Operators, asked: &Drill, force: bool) -> Result<Drill> {
    let mut client = operators.connect().await?;
    let request = v1::StartDrillRequest {
        drill: Some(asked.into()),
        force,
    };
    let reply = client
        .start_drill(request)
        .await
        .map_err(|status| refusal(&status))?
        .into_inner();
    let drill = reply
        .drill
        .context("the broker's answer names no drill; see `tombolo drill show`")?;
    Drill::try_from(&drill).context("the broker's answer makes no sense; use a tombolo as new as the brokers")
}

fn kind(kind: Kind) -> DrillKind {
    match kind {
        Kind::ClusterDown => DrillKind::ClusterDown,
        Kind::GatewayKill => DrillKind::GatewayKill,
        Kind::LinkCut => DrillKind::LinkCut,
        Kind::BrokerLeaderKill => DrillKind::BrokerLeaderKill,
        Kind::DnsKill => DrillKind::DnsKill,
    }
}

/// What can be refused before anything is asked.
fn check_args(kind: DrillKind, args: &DrillRun) -> Result<()> {
    if args.real && kind == DrillKind::LinkCut {
        bail!(
            "link-cut kills no process, so it cannot be --real; leave --real away, the gateways cut the link silently"
        );
    }
    if !args.real && !kind.can_be_rehearsed() {
        bail!(
            "{} kills a process and cannot be rehearsed; use --real where `tombolo up` runs",
            kind.as_str()
        );
    }
    if let Some(report) = &args.report {
        let folder = report
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        ensure!(
            folder.is_dir(),
            "the folder of --report {} does not exist; create it first",
            report.display()
        );
    }
    Ok(())
}

/// A real drill needs `up`'s processes: better to say so before the traffic starts.
async fn check_processes(target: &Target, kind: DrillKind, args: &DrillRun) -> Result<()> {
    let layout = Layout::new(&target.data_dir);
    let Answer::Status { processes, .. } = control::ask(&layout.root, &Request::Status).await? else {
        bail!("`tombolo up` does not say what it runs; is it stopping?");
    };
    let met = match kind {
        DrillKind::BrokerLeaderKill => processes.iter().any(|process| process.role == "broker"),
        _ => processes
            .iter()
            .any(|process| process.cluster == args.target.as_str()),
    };
    ensure!(
        met,
        "--real kills processes of `tombolo up`, and none of {} runs here",
        args.target
    );
    Ok(())
}

/// Ctrl-C or SIGTERM.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        // Without handlers the signals end the process as usual, and the drill ends by itself.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
