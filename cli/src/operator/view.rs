//! The clusterset as one command sees it: from a broker when one answers, else from the agents of this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use tokio::time::timeout;
use tombolo_clusterset::ClusterId;
use tombolo_wire::v1;

use super::local::{Observed, observe_all};
use super::{CALL_TIMEOUT, Operators, Records, refusal};
use crate::args::Target;
use crate::output::span;
use crate::up::{Layout, SiteNote};

/// A broker with a quorum begins to answer within this; one without waits for it, and others are asked meanwhile.
const FIRST_TIMEOUT: Duration = Duration::from_secs(3);

/// Who told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum From {
    Broker,
    Agent,
}

/// Where a view comes from; every JSON document that rests on one carries it as `source`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Source {
    pub(crate) from: From,
    /// Address of the broker, or the cluster of the agent.
    pub(crate) by: String,
    /// How long ago a quorum stood behind it; null when it never did.
    pub(crate) age_ms: Option<u64>,
    /// Whether a quorum stands behind it now.
    pub(crate) fresh: bool,
}

/// Everything a command may ask about.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) source: Source,
    pub(crate) records: Records,
    /// The clusters of this machine, by their own processes; empty when the operator works from afar.
    pub(crate) observed: Vec<Observed>,
    /// Clusters of this machine whose agent does not answer, with the reason.
    pub(crate) silent: Vec<(String, String)>,
    /// What `up` wrote about the clusters it runs.
    pub(crate) notes: BTreeMap<ClusterId, SiteNote>,
}

impl View {
    /// Gathers it. With no broker, one line on standard error says how old the view is.
    pub(crate) async fn gather(target: &Target) -> Result<Self> {
        let (records, local) = tokio::join!(from_brokers(target), local(target));
        let (observed, silent) = local;
        let notes = notes(target);
        let (source, records) = match records {
            Ok((broker, records)) => {
                let source = Source {
                    from: From::Broker,
                    by: broker.to_string(),
                    age_ms: if records.fresh {
                        Some(0)
                    } else {
                        age_ms(records.unix_ms)
                    },
                    fresh: records.fresh,
                };
                if !records.fresh {
                    eprintln!("no quorum answers; this is what the broker at {broker} knew last");
                }
                (source, records)
            }
            Err(error) => {
                let Some(best) = observed.iter().max_by_key(|one| freshness(one)) else {
                    return Err(no_one(error, &silent));
                };
                let records = Records::of_agent(&best.snapshot, &best.inspect.records);
                let source = Source {
                    from: From::Agent,
                    by: best.cluster.to_string(),
                    age_ms: age_ms(records.unix_ms),
                    fresh: records.fresh,
                };
                eprintln!("{}", stale_line(&source));
                (source, records)
            }
        };
        Ok(Self {
            source,
            records,
            observed,
            silent,
            notes,
        })
    }

    /// The cluster's own processes' view of the clusterset.
    pub(crate) fn of_cluster(&self, cluster: &ClusterId) -> Result<&Observed> {
        if let Some(observed) = self.observed.iter().find(|one| &one.cluster == cluster) {
            return Ok(observed);
        }
        if let Some((_, reason)) = self.silent.iter().find(|(name, _)| name == cluster.as_str()) {
            bail!("{reason}");
        }
        if self.records.members.contains_key(cluster) {
            bail!("{cluster} does not run on this machine; ask where its agent runs, with its --data-dir");
        }
        let known: Vec<&str> = self.records.members.keys().map(ClusterId::as_str).collect();
        bail!(
            "{cluster} is no member of the clusterset; members are {}",
            known.join(", ")
        )
    }
}

fn freshness(observed: &Observed) -> (u64, u64, u64) {
    let version = observed.snapshot.version;
    (
        version.incarnation,
        observed.snapshot.confirmed_unix_ms,
        version.revision,
    )
}

/// What standard error says when no broker answers.
fn stale_line(source: &Source) -> String {
    let Source { by, age_ms, .. } = source;
    match age_ms {
        Some(age) => format!(
            "no broker answers; this is what the agent of {by} knew {} ago",
            span(*age)
        ),
        None => format!("no broker answers; this is what the agent of {by} knows by itself"),
    }
}

fn no_one(error: anyhow::Error, silent: &[(String, String)]) -> anyhow::Error {
    match silent.first() {
        Some((_, reason)) => error.context(format!("neither a broker nor an agent answers ({reason})")),
        None => error,
    }
}

/// Milliseconds since the Unix epoch.
pub(crate) fn now_unix_ms() -> u64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn age_ms(unix_ms: u64) -> Option<u64> {
    (unix_ms != 0).then(|| now_unix_ms().saturating_sub(unix_ms))
}

async fn local(target: &Target) -> (Vec<Observed>, Vec<(String, String)>) {
    // No data directory here: the operator works from afar, and the brokers' answer stands alone.
    observe_all(target).await.unwrap_or_default()
}

fn notes(target: &Target) -> BTreeMap<ClusterId, SiteNote> {
    let clusters = Layout::new(&target.data_dir).clusters().into_iter();
    clusters
        .filter_map(|(name, folder)| Some((ClusterId::parse(&name).ok()?, SiteNote::load(&folder)?)))
        .collect()
}

/// The linearizable view of the first broker that gives one; else what any broker has applied.
/// Who is a member now, as the brokers have it.
pub(crate) async fn members(target: &Target) -> Result<BTreeSet<ClusterId>> {
    let (_, records) = from_brokers(target).await?;
    Ok(records.members.into_keys().collect())
}

async fn from_brokers(target: &Target) -> Result<(SocketAddr, Records)> {
    let operators = Operators::find(target)?;
    let mut failures = Vec::new();
    for stale in [false, true] {
        for broker in &operators.brokers {
            let one = Operators {
                brokers: vec![*broker],
                identity: operators.identity.clone(),
            };
            match timeout(CALL_TIMEOUT, view_of(&one, stale)).await {
                Ok(Ok(records)) => return Ok((*broker, records)),
                Ok(Err(error)) if !stale => failures.push(format!("  {broker}: {}", last_line(&error))),
                Err(_) if !stale => failures.push(format!("  {broker}: no answer")),
                Ok(Err(_)) | Err(_) => {}
            }
        }
    }
    Err(anyhow!("no broker answers:\n{}", failures.join("\n")))
}

fn last_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    text.lines().last().unwrap_or_default().trim().to_owned()
}

async fn view_of(operators: &Operators, stale: bool) -> Result<Records> {
    let begun = async {
        let mut client = operators.connect().await?;
        let stream = client.view(v1::ViewRequest { stale }).await;
        let mut stream = stream.map_err(|status| refusal(&status))?.into_inner();
        let first = stream.message().await.map_err(|status| refusal(&status))?;
        anyhow::Ok((stream, first))
    };
    let waited = || format!("no answer within {} s", FIRST_TIMEOUT.as_secs());
    let (mut stream, mut next) = timeout(FIRST_TIMEOUT, begun).await.with_context(waited)??;
    let mut records = Records::default();
    while let Some(event) = next {
        if records.take(event) {
            records.fresh &= !stale;
            return Ok(records);
        }
        next = stream.message().await.map_err(|status| refusal(&status))?;
    }
    Err(anyhow!("the broker ended its view early"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(age_ms: Option<u64>) -> Source {
        Source {
            from: From::Agent,
            by: "west".into(),
            age_ms,
            fresh: false,
        }
    }

    #[test]
    fn says_how_old_the_view_is() {
        assert_eq!(
            stale_line(&source(Some(12_345))),
            "no broker answers; this is what the agent of west knew 12s ago"
        );
        assert_eq!(
            stale_line(&source(None)),
            "no broker answers; this is what the agent of west knows by itself"
        );
    }

    #[test]
    fn the_source_in_json() {
        let json = serde_json::to_string(&source(Some(7))).expect("json");
        assert_eq!(json, r#"{"from":"agent","by":"west","age_ms":7,"fresh":false}"#);
    }
}
