//! What is wrong, or will be: pure, over what `status` gathered.

use std::collections::BTreeMap;

use serde::Serialize;
use tombolo_clusterset::{Lease, LinkState};
use tombolo_wire::v1;

use super::{Broker, Group, ProcessInfo};
use crate::operator::view::{From, View, now_unix_ms};
use crate::output::{Tone, paint, span};

/// An intermediate lives 30 days and is renewed at half its life: with less than this left, two weeks of renewals failed.
pub(crate) const CERTIFICATE_WARN_MS: u64 = 7 * 24 * 3_600_000;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// Something does not work.
    Problem,
    /// Everything works, with less in reserve or otherwise than by default.
    Warning,
}

/// One thing an operator should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) severity: Severity,
    /// A cluster, a broker, a file: what it is about.
    pub(crate) about: String,
    pub(crate) message: String,
    /// What to do.
    pub(crate) advice: String,
}

impl Finding {
    pub(crate) fn problem(
        about: impl Into<String>,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Problem,
            about: about.into(),
            message: message.into(),
            advice: advice.into(),
        }
    }

    pub(crate) fn warning(
        about: impl Into<String>,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Warning,
            about: about.into(),
            message: message.into(),
            advice: advice.into(),
        }
    }

    pub(crate) fn is_problem(&self) -> bool {
        self.severity == Severity::Problem
    }

    pub(crate) fn line(&self) -> String {
        let word = match self.severity {
            Severity::Problem => paint(Tone::Bad, "problem"),
            Severity::Warning => paint(Tone::Warn, "warning"),
        };
        format!("{word}: {}: {}; {}", self.about, self.message, self.advice)
    }
}

pub(super) fn of(
    view: &View,
    group: Option<&Group>,
    brokers: &[Broker],
    rotation: Option<&v1::RotateRootReply>,
    processes: Option<&[ProcessInfo]>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(of_brokers(view, group, brokers));
    findings.extend(of_members(view));
    findings.extend(of_links(view));
    findings.extend(of_agents(view));
    findings.extend(clear_networks(view));
    if let Some(rotation) = rotation.filter(|rotation| rotation.stage != "steady") {
        let message = match rotation.lagging.as_slice() {
            [] => format!("its rotation is at stage '{}', and nobody lags", rotation.stage),
            lagging => format!(
                "its rotation is at stage '{}', waiting for {}",
                rotation.stage,
                lagging.join(", ")
            ),
        };
        findings.push(Finding::warning(
            "the root",
            message,
            "finish it with `tombolo ca rotate`",
        ));
    }
    for process in processes
        .unwrap_or_default()
        .iter()
        .filter(|process| process.pid == 0)
    {
        let about = match process.role.as_str() {
            // Its name says it already.
            "broker" => process.cluster.clone(),
            role => format!("{role} of {}", process.cluster),
        };
        findings.push(Finding::warning(
            about,
            "is down",
            "`up` starts it again; see its log in the data directory",
        ));
    }
    for unreadable in &view.records.unreadable {
        let advice = "use a tombolo as new as the brokers";
        findings.push(Finding::warning(
            "the view",
            format!("holds an item that this version cannot read ({unreadable})"),
            advice,
        ));
    }
    // Problems first, otherwise in the order in which they were found.
    findings.sort_by_key(|finding| finding.severity);
    findings
}

fn of_brokers(view: &View, group: Option<&Group>, brokers: &[Broker]) -> Vec<Finding> {
    let mut findings = Vec::new();
    if view.source.from == From::Agent {
        let age = view
            .source
            .age_ms
            .map_or_else(|| "of unknown age".to_owned(), |age| format!("{} old", span(age)));
        let advice = "names and traffic go on; start the brokers, until then nothing new is shared";
        findings.push(Finding::problem(
            "the brokers",
            format!("none answers, this view is {age}"),
            advice,
        ));
        return findings;
    }
    if !view.source.fresh {
        let advice = "start the brokers that are down; writes wait for a quorum";
        findings.push(Finding::problem(
            "the brokers",
            "no quorum answers, this view may be old",
            advice,
        ));
    } else if group.is_some_and(|group| group.leader.is_none()) {
        findings.push(Finding::problem(
            "the brokers",
            "there is no leader",
            "ask again in a second; see the brokers' logs",
        ));
    }
    for broker in brokers.iter().filter(|broker| !broker.reachable) {
        let advice = "start it, or take it out with `tombolo broker remove`";
        findings.push(Finding::warning(
            format!("broker {}", broker.id),
            format!("does not answer at {}", broker.api),
            advice,
        ));
    }
    findings
}

fn of_members(view: &View) -> Vec<Finding> {
    let lost = view
        .records
        .members
        .values()
        .filter(|member| member.view.lease == Lease::Lost);
    let advice = "see whether its agent runs and reaches a broker";
    let mut findings: Vec<Finding> = lost
        .map(|member| Finding::problem(member.view.id.as_str(), "its lease is lost", advice))
        .collect();
    for (name, reason) in &view.silent {
        findings.push(Finding::problem(
            name.as_str(),
            reason.as_str(),
            "start its agent, or see its log",
        ));
    }
    findings
}

fn of_links(view: &View) -> Vec<Finding> {
    let mut findings = Vec::new();
    for observed in &view.observed {
        if observed.links.is_empty() && observed.snapshot.clusters.len() > 1 {
            let advice = "start it, or see its log; other clusters are not reached meanwhile";
            findings.push(Finding::problem(
                observed.cluster.as_str(),
                "its gateway does not answer",
                advice,
            ));
        }
        for report in observed
            .links
            .values()
            .filter(|report| report.state != LinkState::Up)
        {
            if !observed.snapshot.clusters.contains_key(&report.cluster) {
                continue;
            }
            let about = format!("{} → {}", observed.cluster, report.cluster);
            let reason = if report.reason.is_empty() {
                "no reason given"
            } else {
                report.reason.as_str()
            };
            let message = format!("the link is {}: {reason}", report.state.as_str());
            let advice = "see that cluster's gateway and the path between the two (UDP and TCP)";
            findings.push(Finding::problem(about, message, advice));
        }
    }
    findings
}

fn of_agents(view: &View) -> Vec<Finding> {
    let mut findings = Vec::new();
    let now = now_unix_ms();
    for observed in &view.observed {
        let about = observed.cluster.as_str();
        let inspect = &observed.inspect;
        // With no broker at all that is said once, above.
        if !observed.snapshot.fresh && view.source.from == From::Broker {
            let message = "its agent hears from no broker, and acts on its last snapshot";
            findings.push(Finding::problem(
                about,
                message,
                "see the path from it to the brokers",
            ));
        }
        if !inspect.manifest_errors.is_empty() {
            let count = inspect.manifest_errors.len();
            let message = format!("{count} of its manifests are left out");
            findings.push(Finding::warning(about, message, "see `tombolo check`"));
        }
        match inspect.intermediate_not_after_unix_ms {
            0 => {}
            end if end <= now => findings.push(Finding::problem(
                about,
                "its certificate has expired",
                "join it again: `tombolo token create`, then `tombolo join --replace`",
            )),
            end if end - now < CERTIFICATE_WARN_MS => findings.push(Finding::warning(
                about,
                format!("its certificate expires in {}", span(end - now)),
                "its agent renews it once it reaches a broker",
            )),
            _ => {}
        }
    }
    findings
}

/// Clusters of one network talk to each other in the clear unless both ends have a sidecar: a choice, told as one.
fn clear_networks(view: &View) -> Vec<Finding> {
    let members = view
        .records
        .members
        .values()
        .map(|member| (member.view.network.as_str(), member.view.id.as_str()));
    clear(members)
}

/// One warning for each network that several clusters share.
pub(crate) fn clear<'a>(members: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<Finding> {
    let mut networks: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (network, cluster) in members {
        networks.entry(network).or_default().push(cluster);
    }
    let shared = networks.into_iter().filter(|(_, clusters)| clusters.len() > 1);
    let finding = |(network, clusters): (&str, Vec<&str>)| {
        let message = format!(
            "{} share it: without sidecars their flows travel in the clear",
            clusters.join(", ")
        );
        let advice = "give each a network of its own in cluster.toml, or run sidecars";
        Finding::warning(format!("network {network}"), message, advice)
    };
    shared.map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shared_networks_are_in_the_clear() {
        let members = [("flat", "a"), ("flat", "b"), ("own", "c")];
        let lines: Vec<String> = clear(members.into_iter()).iter().map(Finding::line).collect();
        assert_eq!(
            lines,
            [
                "warning: network flat: a, b share it: without sidecars their flows travel in the clear; give each a network of its own in cluster.toml, or run sidecars"
            ]
        );
    }
}
