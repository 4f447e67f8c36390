//! Which processes a local clusterset has, as data.

use std::net::SocketAddr;
use std::path::Path;

use super::layout::Layout;
use super::process::Spec;
use crate::site::Site;

/// The broker `id`.
pub(super) fn broker(layout: &Layout, id: u64) -> Spec {
    let config = layout.broker(id).join("broker.toml");
    Spec {
        role: "broker".into(),
        cluster: format!("broker-{id}"),
        args: role_args("broker", &config),
        data_dir: None,
        admin: Some(Layout::admin(id)),
    }
}

/// Every process of a cluster.
pub(super) fn cluster(site: &Site) -> Vec<Spec> {
    let spec = |role: &str, command: &str, admin: Option<SocketAddr>| Spec {
        role: role.into(),
        cluster: site.site.cluster.to_string(),
        args: role_args(command, &site.file),
        data_dir: Some(site.site.data_dir.clone()),
        admin,
    };
    let mut specs = vec![
        spec("agent", "agent", Some(site.agent.admin)),
        spec("gateway", "gateway", Some(site.gateway.admin)),
        spec("dns", "dns", Some(site.dns.admin)),
        spec("backends", "sample-backends", None),
    ];
    specs.extend(
        site.sidecar
            .as_ref()
            .map(|sidecar| spec("sidecar", "sidecar", Some(sidecar.admin))),
    );
    specs
}

fn role_args(command: &str, config: &Path) -> Vec<String> {
    vec![
        command.to_owned(),
        "--config".to_owned(),
        config.to_string_lossy().into_owned(),
    ]
}

/// Addresses that must be free before anything starts: (address, whether UDP too, whose).
pub(super) fn addresses(sites: &[Site], brokers: u64) -> Vec<(SocketAddr, bool, String)> {
    let mut addresses = Vec::new();
    for id in 1..=brokers {
        for address in [Layout::api(id), Layout::peer(id), Layout::admin(id)] {
            addresses.push((address, false, format!("broker {id}")));
        }
    }
    for site in sites {
        let cluster = &site.site.cluster;
        addresses.push((site.agent.admin, false, format!("agent of {cluster}")));
        addresses.push((site.gateway.admin, false, format!("gateway of {cluster}")));
        addresses.push((site.gateway.listen, true, format!("gateway of {cluster}")));
        addresses.push((site.dns.admin, false, format!("dns of {cluster}")));
        addresses.push((site.dns.listen, true, format!("dns of {cluster}")));
        if let Some(sidecar) = &site.sidecar {
            addresses.push((sidecar.admin, false, format!("sidecar of {cluster}")));
        }
    }
    addresses
}
