//! `tombolo check`: configuration, manifests, certificates, clocks, reachability. Each finding says what to do.

mod identity;
mod manifests;
mod reach;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use serde::Serialize;

use super::status::findings::{Finding, clear};
use crate::args::Target;
use crate::output::{Tone, paint, print};
use crate::site::Site;
use crate::up::{Layout, SiteNote};

/// The outcome. JSON kind `check`.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Checked {
    /// False when a finding is a problem.
    healthy: bool,
    /// What was looked at, in order.
    checked: Vec<String>,
    findings: Vec<Finding>,
}

/// What a check looked at and found.
#[derive(Debug, Default)]
struct Findings {
    checked: Vec<String>,
    found: Vec<Finding>,
}

impl Findings {
    fn looked_at(&mut self, what: impl Into<String>) {
        self.checked.push(what.into());
    }

    fn problem(&mut self, about: impl Into<String>, message: impl Into<String>, advice: impl Into<String>) {
        self.found.push(Finding::problem(about, message, advice));
    }

    fn warning(&mut self, about: impl Into<String>, message: impl Into<String>, advice: impl Into<String>) {
        self.found.push(Finding::warning(about, message, advice));
    }
}

pub(crate) async fn run(target: &Target, config: Option<PathBuf>) -> Result<ExitCode> {
    let mut findings = Findings::default();
    let sites = sites(target, config.as_deref(), &mut findings)?;
    for site in &sites {
        addresses(site, &mut findings);
        manifests::check(&site.site.cluster, &site.agent.manifests, &mut findings);
        identity::check(site, &mut findings);
        reach::roles(site, &mut findings).await;
        reach::peers(site, &mut findings).await;
    }
    reach::brokers(target, &sites, &mut findings).await;
    findings.found.extend(clear(
        sites
            .iter()
            .map(|site| (site.site.network.as_str(), site.site.cluster.as_str())),
    ));
    let Findings { checked, found } = findings;
    let outcome = Checked {
        healthy: !found.iter().any(Finding::is_problem),
        checked,
        findings: found,
    };
    print(target.output, "check", &outcome, text)?;
    Ok(if outcome.healthy {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn text(outcome: &Checked) -> String {
    let mut lines: Vec<String> = outcome.findings.iter().map(Finding::line).collect();
    let summary = format!(
        "{} checks, {} findings",
        outcome.checked.len(),
        outcome.findings.len()
    );
    lines.push(paint(
        if outcome.healthy { Tone::Good } else { Tone::Bad },
        &summary,
    ));
    lines.join("\n")
}

/// The configurations to check: the one that was named, or every cluster of the data directory.
fn sites(target: &Target, config: Option<&Path>, findings: &mut Findings) -> Result<Vec<Site>> {
    let mut loaded = Vec::new();
    if let Some(config) = config {
        // Beside a local clusterset the file belongs to one of its clusters, whose data is not beside the file.
        let file = std::path::absolute(config)?;
        let clusters = Layout::new(&target.data_dir).clusters().into_iter();
        let own = clusters.map(|(_, folder)| folder).find(|folder| {
            SiteNote::load(folder).is_some_and(|note| Some(note.config) == file.canonicalize().ok())
        });
        loaded.extend(load(config, own, findings));
        return Ok(loaded);
    }
    let clusters = Layout::new(&target.data_dir).clusters();
    if clusters.is_empty() {
        bail!(
            "there is no clusterset in {}; name its --data-dir, or a cluster.toml with --config",
            target.data_dir.display()
        );
    }
    for (name, folder) in clusters {
        match SiteNote::load(&folder) {
            Some(note) => loaded.extend(load(&note.config, Some(folder), findings)),
            None => findings.warning(
                name,
                format!(
                    "{} does not say which cluster.toml it belongs to",
                    folder.display()
                ),
                "start it once with `tombolo up`, or check its file with --config",
            ),
        }
    }
    Ok(loaded)
}

fn load(file: &Path, data_dir: Option<PathBuf>, findings: &mut Findings) -> Option<Site> {
    findings.looked_at(format!("configuration {}", file.display()));
    let site = match data_dir {
        Some(data_dir) => Site::load_with_data_dir(file, Some(data_dir)),
        None => Site::load(file),
    };
    match site {
        Ok(site) => Some(site),
        Err(error) => {
            findings.problem(
                file.display().to_string(),
                format!("{error:#}"),
                "correct the file",
            );
            None
        }
    }
}

/// Addresses that this machine has, each used once.
fn addresses(site: &Site, findings: &mut Findings) {
    let cluster = site.site.cluster.as_str();
    findings.looked_at(format!("addresses of {cluster}"));
    let mut listeners = vec![
        ("agent.admin", site.agent.admin),
        ("gateway.listen", site.gateway.listen),
        ("gateway.admin", site.gateway.admin),
        ("dns.listen", site.dns.listen),
        ("dns.admin", site.dns.admin),
    ];
    listeners.extend(
        site.sidecar
            .as_ref()
            .map(|sidecar| ("sidecar.admin", sidecar.admin)),
    );
    let about = site.file.display().to_string();
    for (at, (key, address)) in listeners.iter().enumerate() {
        if let Some((twin, _)) = listeners[..at].iter().find(|(_, other)| other == address) {
            findings.problem(
                &about,
                format!("{key} and {twin} are both {address}"),
                "give each its own address or port",
            );
        }
        // Port 0 asks for the address alone, so that a role that runs is not in the way.
        if let Err(error) = std::net::UdpSocket::bind((address.ip(), 0)) {
            let message = format!("{key} is {address}, which this machine cannot listen on ({error})");
            findings.problem(&about, message, "use an address of this machine");
        }
    }
    if site.gateway.advertised().is_empty() {
        let message = "its gateway only dials out: two clusters that both do have no path to each other";
        findings.warning(cluster, message, "set gateway.advertise where others can dial it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_come_before_the_count() {
        let mut findings = Findings::default();
        findings.looked_at("manifests of west");
        findings.warning("west", "its clock is 2 s ahead", "set it");
        let Findings { checked, found } = findings;
        let mut outcome = Checked {
            healthy: true,
            checked,
            findings: found,
        };
        assert_eq!(
            text(&outcome),
            "warning: west: its clock is 2 s ahead; set it\n1 checks, 1 findings"
        );
        outcome.findings.clear();
        assert_eq!(
            serde_json::to_value(&outcome).expect("json"),
            serde_json::json!({"healthy": true, "checked": ["manifests of west"], "findings": []})
        );
    }
}
