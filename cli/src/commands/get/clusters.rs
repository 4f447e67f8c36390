//! `get clusters`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Serialize;
use tombolo_clusterset::{ClusterId, ClusterView, Lease};

use super::or_dash;
use crate::operator::local::Observed;
use crate::operator::view::View;
use crate::output::{Tone, paint, table};
use crate::up::SiteNote;

/// A member of the clusterset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ClusterItem {
    pub(crate) id: String,
    /// Empty when unknown.
    pub(crate) region: String,
    /// Empty when unknown.
    pub(crate) zone: String,
    pub(crate) network: String,
    /// Its DNS server, `ip:port`; null when it runs elsewhere.
    pub(crate) dns: Option<SocketAddr>,
    /// Its first gateway, `ip:port`; null when it only dials out.
    pub(crate) gateway: Option<SocketAddr>,
    /// Every gateway.
    pub(crate) gateways: Vec<SocketAddr>,
    /// `alive`, `lost` or `unknown`.
    pub(crate) lease: &'static str,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Clusters {
    pub(crate) items: Vec<ClusterItem>,
}

impl Clusters {
    /// As the freshest of these clusters knows them.
    pub(crate) fn of<'a>(observed: impl IntoIterator<Item = &'a Observed>) -> Self {
        let observed: Vec<&Observed> = observed.into_iter().collect();
        let notes = observed
            .iter()
            .filter_map(|one| Some((one.cluster.clone(), one.note.clone()?)))
            .collect();
        let Some(best) = observed
            .iter()
            .max_by_key(|one| (one.snapshot.fresh, one.snapshot.version))
        else {
            return Self::default();
        };
        let lease = |view: &ClusterView| best.snapshot.lease(&view.id).unwrap_or_default();
        Self {
            items: best
                .snapshot
                .clusters
                .values()
                .map(|view| item(view, lease(view), &notes))
                .collect(),
        }
    }

    /// As the view knows them.
    pub(crate) fn of_view(view: &View) -> Self {
        let members = view.records.members.values().map(|member| &member.view);
        Self {
            items: members
                .map(|member| item(member, member.lease, &view.notes))
                .collect(),
        }
    }

    pub(crate) fn table(&self) -> String {
        let rows = self.items.iter().map(|item| {
            let address =
                |address: Option<SocketAddr>| address.map_or_else(|| "-".to_owned(), |a| a.to_string());
            [
                item.id.clone(),
                or_dash(&item.region),
                or_dash(&item.zone),
                item.network.clone(),
                address(item.dns),
                address(item.gateway),
                lease_cell(item.lease),
            ]
        });
        table(
            ["ID", "REGION", "ZONE", "NETWORK", "DNS", "GATEWAY", "LEASE"],
            rows,
        )
    }
}

fn item(view: &ClusterView, lease: Lease, notes: &BTreeMap<ClusterId, SiteNote>) -> ClusterItem {
    ClusterItem {
        id: view.id.to_string(),
        region: view.locality.region.clone(),
        zone: view.locality.zone.clone(),
        network: view.network.to_string(),
        dns: notes.get(&view.id).map(|note| note.dns),
        gateway: view.gateways.first().copied(),
        gateways: view.gateways.clone(),
        lease: lease.as_str(),
    }
}

pub(crate) fn lease_cell(lease: &str) -> String {
    let tone = match lease {
        "alive" => Tone::Good,
        "lost" => Tone::Bad,
        _ => Tone::Warn,
    };
    paint(tone, lease)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;

    #[test]
    fn one_line_a_member() {
        let observed = fixtures::west();
        assert_eq!(
            Clusters::of([&observed]).table(),
            "ID    REGION  ZONE  NETWORK  DNS               GATEWAY          LEASE\n\
             east  us      us-1  east     -                 127.12.0.2:7443  lost\n\
             west  eu      eu-1  west     127.11.0.10:5353  127.11.0.2:7443  alive"
        );
    }

    #[test]
    fn the_fields_scripts_read() {
        let items = Clusters::of([&fixtures::west()]).items;
        assert_eq!(
            serde_json::to_value(&items[1]).expect("json"),
            serde_json::json!({
                "id": "west", "region": "eu", "zone": "eu-1", "network": "west", "dns": "127.11.0.10:5353",
                "gateway": "127.11.0.2:7443", "gateways": ["127.11.0.2:7443"], "lease": "alive"
            })
        );
    }
}
