//! The tables that `up` prints once all is ready.

use anyhow::Result;
use futures_util::future::join_all;
use tombolo_clusterset::reachability::LinkState;

use super::get::{Clusters, Exports, Imports, Links};
use crate::operator::local::{Observed, observe};
use crate::output::{Tone, paint};
use crate::site::Site;
use crate::up::Layout;

/// Clusters, exports, imports and links.
pub(crate) async fn text(_layout: &Layout, sites: &[Site]) -> Result<String> {
    let observed = observe_sites(sites)
        .await
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let sections = [
        ("CLUSTERS", Clusters::of(&observed).table()),
        ("EXPORTS", Exports::of(&observed).table()),
        ("IMPORTS", Imports::of(&observed).table()),
        ("LINKS", Links::of(&observed).table()),
    ];
    let blocks: Vec<String> = sections
        .iter()
        .map(|(title, table)| format!("{}\n{table}", paint(Tone::Bold, title)))
        .collect();
    Ok(blocks.join("\n\n"))
}

/// What keeps the clusters from seeing each other, one line each; empty when nothing does.
pub(crate) async fn missing_links(sites: &[Site]) -> Vec<String> {
    let mut missing = Vec::new();
    for (site, observed) in sites.iter().zip(observe_sites(sites).await) {
        let here = &site.site.cluster;
        let observed = match observed {
            Ok(observed) => observed,
            Err(error) => {
                missing.push(format!("{error:#}"));
                continue;
            }
        };
        for other in sites
            .iter()
            .map(|site| &site.site.cluster)
            .filter(|other| *other != here)
        {
            let link = observed.links.get(other);
            if !observed.snapshot.clusters.contains_key(other) {
                missing.push(format!("{here} does not know {other} yet"));
            } else if link.is_none_or(|link| link.state != LinkState::Up) {
                let reason = link.map_or("not tried yet", |link| link.reason.as_str());
                missing.push(format!("{here} → {other}: {reason}"));
            }
        }
    }
    missing
}

async fn observe_sites(sites: &[Site]) -> Vec<Result<Observed>> {
    join_all(
        sites
            .iter()
            .map(|site| observe(site.site.cluster.as_str(), &site.site.data_dir)),
    )
    .await
}
