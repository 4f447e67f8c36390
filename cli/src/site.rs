//! `cluster.toml`: one file for all roles of a cluster.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use tombolo_clusterset::{ClusterId, Label, Locality};
use tombolo_wire::local::ClusterSite;

use crate::up::Layout;

/// Environment variable that moves every cluster's data directory; `up` sets it for its processes.
pub(crate) const DATA_DIR_VARIABLE: &str = "TOMBOLO_CLUSTER_DATA_DIR";

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterToml {
    /// Unique in the clusterset; an RFC 1123 label.
    cluster: ClusterId,
    #[serde(default)]
    region: String,
    #[serde(default)]
    zone: String,
    /// Clusters of one network reach each other's endpoints directly. Default: a network of its own, so that nothing is
    /// ever sent in the clear by mistake.
    network: Option<Label>,
    /// Default: `data` beside the file.
    data_dir: Option<PathBuf>,
    agent: tombolo_discovery::Section,
    gateway: tombolo_gateway::Section,
    dns: tombolo_dns::Section,
    sidecar: Option<tombolo_sidecar::Section>,
}

/// A cluster's configuration, its paths made absolute.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    /// Where it was read from.
    pub(crate) file: PathBuf,
    /// What every role shares.
    pub(crate) site: ClusterSite,
    pub(crate) agent: tombolo_discovery::Section,
    pub(crate) gateway: tombolo_gateway::Section,
    pub(crate) dns: tombolo_dns::Section,
    pub(crate) sidecar: Option<tombolo_sidecar::Section>,
}

impl Site {
    /// Reads and checks `file`. Relative paths count from the file's own folder.
    pub(crate) fn load(file: &Path) -> Result<Self> {
        let data_dir = std::env::var_os(DATA_DIR_VARIABLE).map(PathBuf::from);
        Self::load_with_data_dir(file, data_dir)
    }

    /// The same, in the data directory of the clusterset that `up` keeps under `root`, if this cluster is one of it.
    pub(crate) fn load_within(file: &Path, root: &Path) -> Result<Self> {
        let mut site = Self::load(file)?;
        let within = Layout::new(root).cluster_root().join(site.site.cluster.as_str());
        if std::env::var_os(DATA_DIR_VARIABLE).is_none() && within.is_dir() {
            site.site.data_dir = within;
        }
        Ok(site)
    }

    /// The same, with the data directory of the caller's choice.
    pub(crate) fn load_with_data_dir(file: &Path, data_dir: Option<PathBuf>) -> Result<Self> {
        let ClusterToml {
            cluster,
            region,
            zone,
            network,
            data_dir: own_dir,
            mut agent,
            gateway,
            dns,
            sidecar,
        } = tombolo_daemon::config::load(file)?;
        let folder = file
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let folder = folder
            .canonicalize()
            .with_context(|| format!("cannot find the folder of {}", file.display()))?;
        agent.manifests = folder.join(&agent.manifests);
        let network = match network {
            Some(network) => network,
            None => Label::parse(cluster.as_str())?,
        };
        let data_dir = data_dir.unwrap_or_else(|| folder.join(own_dir.unwrap_or_else(|| "data".into())));
        let locality = Locality {
            region,
            zone,
            node: String::new(),
        };
        Ok(Self {
            file: folder.join(file.file_name().unwrap_or_default()),
            site: ClusterSite {
                cluster,
                locality,
                network,
                data_dir,
            },
            agent,
            gateway,
            dns,
            sidecar,
        })
    }

    /// What the agent, and a join, run with.
    pub(crate) fn agent_config(&self) -> tombolo_discovery::Config {
        tombolo_discovery::Config {
            site: self.site.clone(),
            section: self.agent.clone(),
            gateways: self.gateway.advertised(),
        }
    }

    /// Every `*/cluster.toml` of `folder`, in the order of their names.
    pub(crate) fn load_all(folder: &Path, data_root: &Path) -> Result<Vec<Self>> {
        let entries = std::fs::read_dir(folder).with_context(|| {
            format!("cannot read {}; give --clusters a folder with one sub-folder per cluster, each with a cluster.toml", folder.display())
        })?;
        let mut files = Vec::new();
        for entry in entries {
            let file = entry
                .with_context(|| format!("cannot list {}", folder.display()))?
                .path()
                .join("cluster.toml");
            if file.is_file() {
                files.push(file);
            }
        }
        files.sort();
        anyhow::ensure!(
            !files.is_empty(),
            "no */cluster.toml in {}; each cluster is a sub-folder with one",
            folder.display()
        );
        let mut sites: Vec<Self> = Vec::new();
        for file in files {
            let mut site = Self::load_with_data_dir(&file, Some(PathBuf::new()))?;
            site.site.data_dir = data_root.join(site.site.cluster.as_str());
            if let Some(twin) = sites.iter().find(|other| other.site.cluster == site.site.cluster) {
                anyhow::bail!(
                    "cluster '{}' is named by both {} and {}; ids are unique",
                    site.site.cluster,
                    twin.file.display(),
                    site.file.display()
                );
            }
            sites.push(site);
        }
        Ok(sites)
    }
}
