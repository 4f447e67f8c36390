//! The certificates of a cluster: the intermediate that its agent signs with, and the leaves of its roles.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::SystemTime;

use tombolo_trust::shell::files::{FileError, IdentityDir};
use tombolo_trust::{CertificateDer, Subject, TrustState, Usage, cert, verify_chain};

use super::Findings;
use crate::commands::status::findings::CERTIFICATE_WARN_MS;
use crate::output::span;
use crate::site::Site;

pub(super) fn check(site: &Site, findings: &mut Findings) {
    let cluster = site.site.cluster.as_str();
    findings.looked_at(format!("certificates of {cluster}"));
    let dir = IdentityDir::new(site.site.data_dir.join("identity"));
    let (chain, roots) = match (dir.load_chain_and_key(), dir.load_roots()) {
        (Ok((chain, _)), Ok(roots)) => (chain, roots),
        (Err(FileError::Missing { .. }), _) => {
            let message = format!("is not a member yet: {} holds no identity", dir.path().display());
            return findings.warning(
                cluster,
                message,
                "join it: `tombolo token create`, then `tombolo join`",
            );
        }
        (Err(error), _) | (_, Err(error)) => {
            return findings.problem(
                cluster,
                error.to_string(),
                "restore the folder, or join again with `tombolo join --replace`",
            );
        }
    };
    let Some(intermediate) = chain.first() else { return };
    check_intermediate(site, intermediate, findings);
    for folder in leaves(&site.site.data_dir) {
        check_leaf(cluster, &folder, &roots, findings);
    }
}

fn check_intermediate(site: &Site, intermediate: &CertificateDer<'_>, findings: &mut Findings) {
    let cluster = site.site.cluster.as_str();
    let again = "join it again: `tombolo token create`, then `tombolo join --replace`";
    match cert::spiffe_id(intermediate) {
        Ok(id) if names(id.subject(), cluster) => {}
        Ok(id) => {
            let message = format!("its intermediate names {id}, not this cluster");
            findings.problem(
                cluster,
                message,
                "the data directory belongs to another cluster: correct cluster or data_dir",
            );
        }
        Err(error) => findings.problem(cluster, format!("its intermediate is unusable: {error}"), again),
    }
    if let Some((end, left)) = expiry(cluster, "its intermediate", intermediate, findings) {
        match left {
            0 => findings.problem(cluster, format!("its intermediate has expired ({end})"), again),
            left if left < CERTIFICATE_WARN_MS => {
                let message = format!("its intermediate expires in {}", span(left));
                findings.warning(
                    cluster,
                    message,
                    "its agent renews it once it reaches a broker; see `tombolo status`",
                );
            }
            _ => {}
        }
    }
}

fn names(subject: &Subject, cluster: &str) -> bool {
    match subject {
        Subject::Cluster(id) => id.as_str() == cluster,
        _ => false,
    }
}

/// Milliseconds that are left, with the end in words.
fn expiry(
    cluster: &str,
    what: &str,
    cert: &CertificateDer<'_>,
    findings: &mut Findings,
) -> Option<(String, u64)> {
    match cert::validity(cert) {
        Ok(validity) => {
            let left = u64::try_from(validity.remaining(SystemTime::now()).as_millis()).unwrap_or(u64::MAX);
            let since = SystemTime::now()
                .duration_since(validity.not_after)
                .unwrap_or_default();
            let ago = span(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
            Some((format!("{ago} ago"), left))
        }
        Err(error) => {
            findings.problem(
                cluster,
                format!("{what} is unusable: {error}"),
                "restart the role that owns it",
            );
            None
        }
    }
}

/// Folders of the leaves that roles have cached.
fn leaves(data_dir: &Path) -> BTreeSet<std::path::PathBuf> {
    let entries = std::fs::read_dir(data_dir.join("leaf"))
        .into_iter()
        .flatten()
        .flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.join("cert.pem").is_file())
        .collect()
}

fn check_leaf(cluster: &str, folder: &Path, roots: &[CertificateDer<'static>], findings: &mut Findings) {
    let role = folder
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let about = format!("{role} of {cluster}");
    let renewed = "its role renews it at the agent; see whether both run";
    let chain = match IdentityDir::new(folder).load_chain_and_key() {
        Ok((chain, _)) => chain,
        Err(error) => {
            return findings.problem(about, error.to_string(), "delete the folder and restart the role");
        }
    };
    let Some((leaf, extra)) = chain.split_first() else {
        return;
    };
    let domain = match cert::spiffe_id(leaf) {
        Ok(id) => id.trust_domain().clone(),
        Err(error) => {
            return findings.problem(about, error.to_string(), "delete the folder and restart the role");
        }
    };
    // Roles learn of rotated roots through the snapshot: what the role trusts itself is the truth for its own chain.
    let own = IdentityDir::new(folder)
        .load_roots()
        .unwrap_or_else(|_| roots.to_vec());
    let verified = TrustState::new(domain, own, BTreeSet::new(), 0)
        .and_then(|trust| verify_chain(leaf, extra, SystemTime::now(), &trust, Usage::Client));
    if let Err(error) = verified {
        findings.problem(about, format!("its certificate is not valid: {error}"), renewed);
    }
}
