//! `tombolo join`: a cluster becomes a member.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use tombolo_daemon::Seams;
use tombolo_discovery::{JoinArgs, Joined};

use crate::args::{Join, Target};
use crate::output::print_line;
use crate::site::Site;

pub(crate) async fn run(target: &Target, args: Join) -> Result<()> {
    let site = Site::load_within(&args.config, &target.data_dir)?;
    let mut brokers: Vec<SocketAddr> = target.broker.into_iter().collect();
    brokers.extend(args.more_brokers);
    if brokers.is_empty() {
        bail!("give --broker the API address of a broker, for example 10.0.0.1:7400");
    }
    let token = match args.token.strip_prefix('@') {
        Some(file) => {
            std::fs::read_to_string(file).with_context(|| format!("cannot read the token file {file}"))?
        }
        None => args.token,
    };
    let joined = join(&site, token.trim(), brokers, args.replace).await?;
    print_line(&format!(
        "{} is a member of {}; its identity lies in {}\nnext: tombolo agent --config {} (then gateway, dns, sidecar)",
        joined.cluster,
        joined.trust_domain,
        joined.identity.display(),
        args.config.display()
    ))
}

/// Makes `site` a member.
pub(crate) async fn join(
    site: &Site,
    token: &str,
    brokers: Vec<SocketAddr>,
    replace: bool,
) -> Result<Joined> {
    let args = JoinArgs {
        token: token.to_owned(),
        brokers,
        config: site.agent_config(),
        replace,
    };
    Ok(tombolo_discovery::join(args, &Seams::host()).await?)
}
