//! Where `up` keeps what: the data directory.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::site::Site;

/// Brokers of a local clusterset: 127.10.0.<n>.
const BROKER_API_PORT: u16 = 7400;
const BROKER_PEER_PORT: u16 = 7401;
const BROKER_ADMIN_PORT: u16 = 7402;

/// Paths and addresses of a local clusterset.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) root: PathBuf,
}

impl Layout {
    pub(crate) fn new(root: &Path) -> Self {
        // Children run with other working directories in mind: an absolute path means the same to all.
        Self {
            root: std::path::absolute(root).unwrap_or_else(|_| root.to_owned()),
        }
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The settings this data directory was made with: a later `up` must match them.
    pub(crate) fn settings(&self) -> PathBuf {
        self.root.join("up.json")
    }

    pub(crate) fn broker(&self, id: u64) -> PathBuf {
        self.root.join("brokers").join(id.to_string())
    }

    /// The first operator certificate, written by the broker that created the clusterset.
    pub(crate) fn operator(&self) -> PathBuf {
        self.broker(1).join("data/operator")
    }

    /// The key-encryption key that every broker of the group shares.
    pub(crate) fn kek(&self) -> PathBuf {
        self.broker(1).join("data/kek")
    }

    pub(crate) fn api(id: u64) -> SocketAddr {
        broker_address(id, BROKER_API_PORT)
    }

    pub(crate) fn peer(id: u64) -> SocketAddr {
        broker_address(id, BROKER_PEER_PORT)
    }

    pub(crate) fn admin(id: u64) -> SocketAddr {
        broker_address(id, BROKER_ADMIN_PORT)
    }

    /// Marks a broker that was taken out of the group: it is started no more, and its id is never used again.
    pub(crate) fn removed(&self, id: u64) -> PathBuf {
        self.broker(id).join("removed")
    }

    /// API addresses of the brokers that have a folder and were not removed.
    pub(crate) fn broker_apis(&self) -> Vec<SocketAddr> {
        (1..=5)
            .filter(|id| self.broker(*id).is_dir() && !self.removed(*id).exists())
            .map(Self::api)
            .collect()
    }

    /// Data directories of the clusters, by name.
    pub(crate) fn clusters(&self) -> Vec<(String, PathBuf)> {
        let entries = std::fs::read_dir(self.root.join("clusters"))
            .into_iter()
            .flatten()
            .flatten();
        let mut clusters: Vec<_> = entries
            .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
            .collect();
        clusters.sort();
        clusters
    }

    /// Parent of the clusters' data directories.
    pub(crate) fn cluster_root(&self) -> PathBuf {
        self.root.join("clusters")
    }
}

fn broker_address(id: u64, port: u16) -> SocketAddr {
    // Ids are 1 to 5 here.
    SocketAddr::new(
        IpAddr::V4(Ipv4Addr::new(127, 10, 0, u8::try_from(id).unwrap_or(u8::MAX))),
        port,
    )
}

/// Name of the file in a cluster's data directory that says where its processes listen.
const SITE_NOTE: &str = "site.json";

/// What `up` writes when it starts a cluster, for the operator commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SiteNote {
    /// The DNS server, UDP and TCP.
    pub(crate) dns: SocketAddr,
    /// The gateway, UDP and TCP.
    pub(crate) gateway: SocketAddr,
    /// Admin address of each role that has one.
    pub(crate) admin: BTreeMap<String, SocketAddr>,
    /// The cluster.toml it was started with.
    pub(crate) config: PathBuf,
}

impl SiteNote {
    /// The note of `site`.
    pub(crate) fn of(site: &Site) -> Self {
        let mut admin = BTreeMap::from([
            ("agent".to_owned(), site.agent.admin),
            ("gateway".to_owned(), site.gateway.admin),
            ("dns".to_owned(), site.dns.admin),
        ]);
        admin.extend(
            site.sidecar
                .as_ref()
                .map(|sidecar| ("sidecar".to_owned(), sidecar.admin)),
        );
        Self {
            dns: site.dns.listen,
            gateway: site.gateway.listen,
            admin,
            config: site.file.clone(),
        }
    }

    /// Writes it into the cluster's data directory.
    pub(crate) fn save(&self, data_dir: &Path) -> Result<()> {
        let path = data_dir.join(SITE_NOTE);
        std::fs::create_dir_all(data_dir).with_context(|| format!("cannot create {}", data_dir.display()))?;
        std::fs::write(&path, serde_json::to_string_pretty(self)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The note in a cluster's data directory; None when `up` did not write one that this version reads.
    pub(crate) fn load(data_dir: &Path) -> Option<Self> {
        serde_json::from_str(&std::fs::read_to_string(data_dir.join(SITE_NOTE)).ok()?).ok()
    }
}
