//! What an operator sets for the agent: the section `[agent]` of `cluster.toml`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use tombolo_clusterset::endpoint::IpFamily;
use tombolo_wire::local::ClusterSite;

/// `[agent]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// Directory of manifests. A relative path is resolved by whoever reads the file.
    pub manifests: PathBuf,
    /// IPv4 addresses for imports: one per import, and one per headless endpoint on another network.
    pub vip_range: IpNet,
    /// The same for IPv6. Without it, services of IPv6 alone cannot be imported.
    #[serde(default)]
    pub vip_range_v6: Option<IpNet>,
    /// Address of the admin server (`/livez`, `/readyz`, `/metrics`, `/state`).
    pub admin: SocketAddr,
    /// Life of the leaf certificates that this agent issues, hours. 12 by default: half of it (when it is renewed) spans a
    /// night without the agent.
    #[serde(default = "default_leaf_ttl_hours")]
    pub leaf_ttl_hours: u32,
}

fn default_leaf_ttl_hours() -> u32 {
    12
}

/// Longest life of a leaf, hours: a week. A leaf can only be taken back by its expiry.
pub const LEAF_TTL_HOURS_MAX: u32 = 7 * 24;

/// Everything the agent runs with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Which cluster, and where it keeps its files.
    pub site: ClusterSite,
    /// `[agent]`.
    pub section: Section,
    /// Addresses at which other clusters reach this cluster's gateways (`gateway.advertise`); empty when it only dials out.
    pub gateways: Vec<SocketAddr>,
}

/// A value that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// A range of the wrong family.
    #[error("agent.{key} is {range}, which is not {family}")]
    Family {
        /// Which key.
        key: &'static str,
        /// Its value.
        range: IpNet,
        /// What it must be.
        family: &'static str,
    },
    /// A life out of bounds.
    #[error("agent.leaf_ttl_hours is {found}; use 1 to {LEAF_TTL_HOURS_MAX}")]
    LeafTtl {
        /// Its value.
        found: u32,
    },
}

impl Section {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`Unusable`] names the key and what to write.
    pub fn check(&self) -> Result<(), Unusable> {
        let ranges = [
            ("vip_range", Some(self.vip_range), IpFamily::V4),
            ("vip_range_v6", self.vip_range_v6, IpFamily::V6),
        ];
        for (key, range, family) in ranges {
            if let Some(range) = range.filter(|range| IpFamily::of(range.network()) != family) {
                return Err(Unusable::Family {
                    key,
                    range,
                    family: family.as_str(),
                });
            }
        }
        if self.leaf_ttl_hours == 0 || self.leaf_ttl_hours > LEAF_TTL_HOURS_MAX {
            return Err(Unusable::LeafTtl {
                found: self.leaf_ttl_hours,
            });
        }
        Ok(())
    }

    /// The ranges, one per family.
    #[must_use]
    pub fn ranges(&self) -> Vec<IpNet> {
        std::iter::once(self.vip_range).chain(self.vip_range_v6).collect()
    }

    /// Life of the leaves.
    #[must_use]
    pub fn leaf_ttl(&self) -> Duration {
        Duration::from_secs(u64::from(self.leaf_ttl_hours) * 3600)
    }
}
