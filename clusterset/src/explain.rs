//! Why a service is as it is and where its flows go: everything `tombolo explain` prints, gathered by the code that decides.

use crate::endpoint::{IpFamily, Protocol};
use crate::export::{ExportRecord, ServicePort};
use crate::locality::Locality;
use crate::merge::{Merged, by_precedence, merge};
use crate::name::{ClusterId, ServiceKey};
use crate::policy::LossPolicy;
use crate::reachability::{Lease, Link, Verdict, WITHDRAW_GRACE};
use crate::select::{Plan, Signals, plan, verdict_over};
use crate::snapshot::{Import, Snapshot};

/// What is asked.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// Which service.
    pub key: &'a ServiceKey,
    /// Which port; None: every merged port.
    pub port: Option<(Protocol, u16)>,
    /// Which family; None: all.
    pub family: Option<IpFamily>,
    /// Where the client stands.
    pub from: &'a Locality,
}

/// Why there is nothing to explain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoExplanation {
    /// Neither imported nor exported by anyone.
    #[error("no cluster exports {key}; see `tombolo get exports`")]
    NoService {
        /// The service.
        key: ServiceKey,
    },
    /// The service has no such port.
    #[error("{key} has no port {port}/{protocol}; it has {}", ports_text(.ports))]
    NoPort {
        /// The service.
        key: ServiceKey,
        /// Transport asked for.
        protocol: Protocol,
        /// Number asked for.
        port: u16,
        /// What it has.
        ports: Vec<ServicePort>,
    },
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// Which service.
    pub key: ServiceKey,
    /// The merge; None when the records are not known here (no broker can be asked), with the import as it was cached.
    pub merge: Option<MergeStory>,
    /// Each exporter that this cluster knows, nearest first, with what is known of it.
    pub clusters: Vec<ClusterStory>,
    /// Where flows to each port go, and what was left out and why. Empty when this cluster does not import the service.
    pub ports: Vec<(ServicePort, Plan)>,
    /// Exporters whose endpoints this cluster does not see: not granted, or not synchronised yet.
    pub not_imported: Vec<ClusterId>,
}

/// How the merge came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergeStory {
    /// The result.
    pub merged: Merged,
    /// Exporters by precedence, the winner first, with what their place follows from.
    pub precedence: Vec<Claimant>,
    /// What put the winner before the second; None when it is alone.
    pub decided_by: Option<DecidedBy>,
}

/// One exporter in the order of precedence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimant {
    /// Who.
    pub cluster: ClusterId,
    /// Its creation time, milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// Log position of its first acceptance.
    pub admitted: u64,
}

/// The first part of the precedence in which winner and second differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecidedBy {
    /// The winner is older.
    Age,
    /// Equally old; the broker admitted the winner first.
    Admission,
    /// Equal in both; the cluster id decides.
    ClusterId,
}

impl DecidedBy {
    /// Words for an operator.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Age => "its export is the oldest",
            Self::Admission => "equally old, and the broker admitted it first",
            Self::ClusterId => "equally old and admitted together; the lower cluster id decides",
        }
    }
}

/// One exporter of an import as this cluster sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterStory {
    /// Who.
    pub cluster: ClusterId,
    /// True for this cluster itself, over which no verdict is passed.
    pub own: bool,
    /// Its lease; None when it is no member any more.
    pub lease: Option<Lease>,
    /// The link to it.
    pub link: Link,
    /// What its loss means for this service.
    pub loss_policy: LossPolicy,
    /// What follows from the three.
    pub verdict: Verdict,
    /// True when a drill hides it.
    pub hidden_by_drill: bool,
}

impl ClusterStory {
    /// The verdict with the signals it follows from, for example `last resort: lease alive, link down, policy degrade`.
    #[must_use]
    pub fn why(&self) -> String {
        if self.own {
            return "use: this cluster itself".to_owned();
        }
        let Some(lease) = self.lease else {
            return format!("{}: no member of the clusterset any more", self.verdict.as_str());
        };
        let rtt = self.link.rtt.map_or_else(String::new, |rtt| {
            format!(" ({:.1} ms)", rtt.as_secs_f64() * 1000.0)
        });
        let lost = self.link.both_lost_for.map_or_else(String::new, |lost| {
            format!(
                ", both lost for {} s (grace {} s)",
                lost.as_secs(),
                WITHDRAW_GRACE.as_secs()
            )
        });
        format!(
            "{}: lease {}, link {}{rtt}, policy {}{lost}",
            self.verdict.as_str(),
            lease.as_str(),
            self.link.state.as_str(),
            self.loss_policy.as_str()
        )
    }
}

/// Explains a service from the view of `snapshot`'s cluster. `records` are all exports of the service, as far as known.
///
/// # Errors
/// [`NoExplanation`] when nobody exports the service, or it has no such port.
pub fn explain(
    snapshot: &Snapshot,
    records: &[&ExportRecord],
    question: &Question<'_>,
    signals: &Signals,
) -> Result<Explanation, NoExplanation> {
    let Question {
        key,
        port,
        family,
        from,
    } = *question;
    let records: Vec<&ExportRecord> = records
        .iter()
        .copied()
        .filter(|record| &record.export.key == key)
        .collect();
    let import = snapshot.imports.get(key).map(|import| &**import);
    let story = merge_story(&records);
    let ports = match (import, &story) {
        (Some(import), _) => &import.spec.ports,
        (None, Some(story)) => &story.merged.spec.ports,
        (None, None) => return Err(NoExplanation::NoService { key: key.clone() }),
    };
    let asked: Vec<&ServicePort> = ports
        .iter()
        .filter(|own| port.is_none_or(|(protocol, n)| own.protocol == protocol && own.port == n))
        .collect();
    if let (true, Some((protocol, port))) = (asked.is_empty(), port) {
        return Err(NoExplanation::NoPort {
            key: key.clone(),
            protocol,
            port,
            ports: ports.clone(),
        });
    }
    let plan_of = |port: &&ServicePort| {
        import.map(|import| {
            (
                (*port).clone(),
                plan(snapshot, import, port, family, from, signals),
            )
        })
    };
    Ok(Explanation {
        key: key.clone(),
        clusters: import
            .map(|import| cluster_stories(snapshot, import, from, signals))
            .unwrap_or_default(),
        ports: asked.iter().filter_map(plan_of).collect(),
        not_imported: records
            .iter()
            .map(|record| &record.export.cluster)
            .filter(|id| !import.is_some_and(|import| import.clusters.contains_key(*id)))
            .cloned()
            .collect(),
        merge: story,
    })
}

fn merge_story(records: &[&ExportRecord]) -> Option<MergeStory> {
    let merged = merge(records)?;
    let ordered = by_precedence(records);
    let decided_by = match ordered.as_slice() {
        [winner, second, ..] if winner.created_ms != second.created_ms => Some(DecidedBy::Age),
        [winner, second, ..] if winner.admitted != second.admitted => Some(DecidedBy::Admission),
        [_, _, ..] => Some(DecidedBy::ClusterId),
        _ => None,
    };
    let claimant = |record: &&ExportRecord| Claimant {
        cluster: record.export.cluster.clone(),
        created_ms: record.created_ms,
        admitted: record.admitted,
    };
    Some(MergeStory {
        merged,
        precedence: ordered.iter().map(claimant).collect(),
        decided_by,
    })
}

fn cluster_stories(
    snapshot: &Snapshot,
    import: &Import,
    from: &Locality,
    signals: &Signals,
) -> Vec<ClusterStory> {
    crate::select::nearest_first(snapshot, import, from, signals)
        .into_iter()
        .map(|(id, imported)| ClusterStory {
            cluster: id.clone(),
            own: id == &snapshot.cluster,
            lease: snapshot.lease(id),
            link: signals.link(id),
            loss_policy: imported.loss_policy,
            verdict: verdict_over(snapshot, id, imported, signals),
            hidden_by_drill: signals.hidden.contains(id),
        })
        .collect()
}

fn ports_text(ports: &[ServicePort]) -> String {
    let texts: Vec<String> = ports
        .iter()
        .map(|port| format!("{}/{}", port.port, port.protocol))
        .collect();
    if texts.is_empty() {
        "none".to_owned()
    } else {
        texts.join(", ")
    }
}

#[cfg(test)]
mod tests;
