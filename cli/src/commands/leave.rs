//! `tombolo leave` and `tombolo evict`: the two ends of a membership.

use std::io::{BufRead, IsTerminal};
use std::path::Path;

use anyhow::{Context, Result, bail};
use tombolo_clusterset::ClusterId;
use tombolo_daemon::Seams;
use tombolo_wire::v1;

use crate::args::Target;
use crate::operator::{Operators, refusal};
use crate::output::print_line;
use crate::site::Site;

/// Ends the membership with the cluster's own identity.
pub(crate) async fn leave(target: &Target, config: &Path) -> Result<()> {
    let site = Site::load_within(config, &target.data_dir)?;
    let (cluster, data_dir) = (&site.site.cluster, &site.site.data_dir);
    tombolo_discovery::leave(&site.agent_config(), &Seams::host())
        .await
        .with_context(|| format!("{cluster} cannot leave"))?;
    print_line(&format!(
        "{cluster} has left: its exports, lease and trust are gone. Stop its processes; {} can be deleted",
        data_dir.display()
    ))
}

/// Ends a membership from outside, and denies its certificates.
pub(crate) async fn evict(target: &Target, cluster: &ClusterId, yes: bool) -> Result<()> {
    let operators = Operators::find(target)?;
    if !yes {
        confirm(cluster)?;
    }
    let mut client = operators.connect().await?;
    let request = v1::EvictRequest {
        cluster: cluster.to_string(),
    };
    let reply = client
        .evict(request)
        .await
        .map_err(|status| refusal(&status))?
        .into_inner();
    print_line(&format!(
        "{cluster} is evicted: {} exports removed, its certificates are denied and its tunnels cut within 5 s wherever a broker is heard. To take it back: tombolo token create --cluster {cluster}, then tombolo join",
        reply.exports_removed
    ))
}

/// Asks at the terminal; without one, `--yes` must have been given.
fn confirm(cluster: &ClusterId) -> Result<()> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        bail!(
            "evicting {cluster} cuts its tunnels and removes its exports; without a terminal to ask at, say --yes"
        );
    }
    eprint!("Evict {cluster}? Its tunnels are cut and its exports removed. Type its id to confirm: ");
    let mut line = String::new();
    stdin
        .lock()
        .read_line(&mut line)
        .context("cannot read the answer")?;
    if !confirmed(&line, cluster) {
        bail!("not confirmed; nothing was changed");
    }
    Ok(())
}

fn confirmed(line: &str, cluster: &ClusterId) -> bool {
    line.trim() == cluster.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_id_confirms() {
        let cluster = ClusterId::parse("west").expect("an id");
        for (line, expected) in [
            ("west\n", true),
            (" west ", true),
            ("y\n", false),
            ("", false),
            ("west2", false),
        ] {
            assert_eq!(confirmed(line, &cluster), expected, "{line:?}");
        }
    }
}
