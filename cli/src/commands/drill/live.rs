//! The drill while it runs: progress, the kill, the DNS watch, the wait for the report.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tombolo_clusterset::{Drill, DrillKind};
use tombolo_wire::v1;

use super::plan;
use super::watch::{Answered, Watch};
use crate::args::Target;
use crate::commands::status::group_status;
use crate::operator::view::View;
use crate::operator::{Operators, refusal};
use crate::up::Layout;
use crate::up::control::{self, Answer, ProcessInfo, Request};

/// How long the report may take once the drill is over: the agent tries again until a broker takes it, and a broker that
/// was killed has to be replaced as leader first.
const REPORT_GRACE: Duration = Duration::from_secs(30);
/// Longest wait at one broker, so that one that dies meanwhile is left for the next.
const REPORT_WAIT: Duration = Duration::from_secs(5);
/// Connection and answer of a broker, beyond what it was asked to wait.
const REPORT_SLACK: Duration = Duration::from_secs(3);
/// Pause when no broker answers.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Everything that was seen.
#[derive(Debug, Clone)]
pub(super) struct Lived {
    pub(super) report: v1::DrillReport,
    /// The kill of a real drill.
    pub(super) killed: Option<Killed>,
    /// None where DNS shows nothing of the failure.
    pub(super) dns: Option<Vec<Answered>>,
}

/// A kill that took place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Killed {
    pub(super) at_unix_us: u64,
    pub(super) processes: Vec<ProcessInfo>,
}

/// From the start to the report.
pub(super) async fn through(
    target: &Target,
    operators: &Operators,
    view: &View,
    drill: &Drill,
) -> Result<Lived> {
    let began = Instant::now();
    eprintln!(
        "drill {}: {}{} of {}, {} called from {} at {} requests/s; it ends by itself after {:.0} s",
        drill.id.0,
        if drill.real { "real " } else { "" },
        drill.kind.as_str(),
        drill.target,
        drill.service,
        drill.from,
        drill.rate_per_second,
        drill.total().as_secs_f64()
    );
    let watch = async {
        match Watch::of(view, drill) {
            Some(watch) => Some(watch.keep(drill.total()).await),
            None => None,
        }
    };
    let (killed, report, dns, ()) = tokio::try_join!(
        kill(target, operators, drill, began),
        report(operators, drill, began),
        async { anyhow::Ok(watch.await) },
        async {
            progress(drill, began).await;
            anyhow::Ok(())
        },
    )?;
    Ok(Lived { report, killed, dns })
}

async fn progress(drill: &Drill, began: Instant) {
    let injected = drill.baseline;
    let restored = injected + drill.duration;
    let steps = [
        (Duration::ZERO, "baseline".to_owned()),
        (injected, format!("failure: {}", what_fails(drill))),
        (restored, "the failure ends; recovery".to_owned()),
        (
            drill.total(),
            format!("over; waiting for the report of {}", drill.from),
        ),
    ];
    for (after, what) in steps {
        sleep_until(began + after).await;
        eprintln!("{:6.1}s  {what}", after.as_secs_f64());
    }
}

/// The failure in one line.
pub(super) fn what_fails(drill: &Drill) -> String {
    let Drill { target, from, .. } = drill;
    match (drill.kind, drill.real) {
        (DrillKind::ClusterDown, false) => format!("{target} falls silent; packets stop, nothing closes"),
        (DrillKind::ClusterDown, true) => format!("every process of {target} is killed"),
        (DrillKind::GatewayKill, false) => format!("the gateway of {target} falls silent"),
        (DrillKind::GatewayKill, true) => format!("the gateway of {target} is killed"),
        (DrillKind::LinkCut, _) => format!("the link between {from} and {target} is cut, both ways"),
        (DrillKind::BrokerLeaderKill, _) => "the broker that leads is killed".to_owned(),
        (DrillKind::DnsKill, _) => format!("the DNS server of {target} is killed"),
    }
}

/// Kills at the instant of injection, where the drill is real.
async fn kill(
    target: &Target,
    operators: &Operators,
    drill: &Drill,
    began: Instant,
) -> Result<Option<Killed>> {
    if !drill.real {
        return Ok(None);
    }
    // The leader is asked for shortly before, so that the kill itself is on time.
    let ahead = Duration::from_millis(500).min(drill.baseline);
    sleep_until(began + drill.baseline - ahead).await;
    let leader = match drill.kind {
        DrillKind::BrokerLeaderKill => leader(operators).await,
        _ => None,
    };
    let request: Request = plan::kill(drill, leader)?;
    sleep_until(began + drill.baseline).await;
    match control::ask(&Layout::new(&target.data_dir).root, &request)
        .await
        .context("`tombolo up` did not kill")?
    {
        Answer::Killed {
            at_unix_us,
            processes,
        } => Ok(Some(Killed {
            at_unix_us,
            processes,
        })),
        _ => bail!("`tombolo up` did not kill: it is stopping or still starting"),
    }
}

async fn leader(operators: &Operators) -> Option<u64> {
    for broker in &operators.brokers {
        let one = Operators {
            brokers: vec![*broker],
            identity: operators.identity.clone(),
        };
        if let Ok(Ok(status)) = timeout(REPORT_SLACK, group_status(&one)).await
            && status.leader != 0
        {
            return Some(status.leader);
        }
    }
    None
}

/// Waits for the report, at one broker after the other.
async fn report(operators: &Operators, drill: &Drill, began: Instant) -> Result<v1::DrillReport> {
    // Nothing is there before the end; asking earlier only holds a call open at a broker that may be the one to die.
    sleep_until(began + drill.total()).await;
    let deadline = began + drill.total() + REPORT_GRACE;
    let mut last = None;
    while Instant::now() < deadline {
        for broker in &operators.brokers {
            let one = Operators {
                brokers: vec![*broker],
                identity: operators.identity.clone(),
            };
            match timeout(REPORT_WAIT + REPORT_SLACK, report_at(&one, drill)).await {
                Ok(Ok(Some(report))) => return Ok(report),
                Ok(Ok(None)) => last = None,
                Ok(Err(error)) => last = Some(error),
                Err(_) => last = Some(anyhow::anyhow!("the broker at {broker} does not answer")),
            }
        }
        sleep(RETRY_PAUSE).await;
    }
    let what = format!(
        "{} sent no report within {} s after the drill; see the logs of its gateway and its agent",
        drill.from,
        REPORT_GRACE.as_secs()
    );
    Err(last
        .unwrap_or_else(|| anyhow::anyhow!("no broker has one"))
        .context(what))
}

async fn report_at(operators: &Operators, drill: &Drill) -> Result<Option<v1::DrillReport>> {
    let wait_ms = u64::try_from(REPORT_WAIT.as_millis()).unwrap_or(u64::MAX);
    let mut client = operators.connect().await?;
    let request = v1::DrillReportRequest {
        drill: drill.id.0,
        wait_ms,
    };
    let reply = client
        .drill_report(request)
        .await
        .map_err(|status| refusal(&status))?;
    Ok(reply.into_inner().report)
}
