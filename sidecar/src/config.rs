//! What a sidecar is told: the `[sidecar]` section of `cluster.toml`, and what it takes from the rest of the file.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use serde::Deserialize;
use tombolo_clusterset::{Namespace, ServiceKey};
use tombolo_trust::ServiceAccount;
use tombolo_wire::local::{ClusterSite, Interest};

/// The `[sidecar]` section.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// Namespace of the workload this sidecar speaks for.
    pub namespace: Namespace,
    /// Its service account: with the namespace, its identity.
    pub service_account: Account,
    /// Where outbound listeners stand: an import whose VIP is the n-th address of the agent's `vip_range` is served at the
    /// n-th address of this one. It must be as large as `vip_range` and lie elsewhere, since the gateway binds the VIPs.
    pub range: IpNet,
    /// Where `/livez`, `/readyz`, `/metrics` and `/state` are served.
    pub admin: SocketAddr,
    /// mTLS in front of local applications. Default: none.
    #[serde(default)]
    pub inbound: Vec<Inbound>,
    /// What the workload may call. Default: everything that this cluster imports.
    #[serde(default)]
    pub interest: Wanted,
    /// Where a firewall's REDIRECT rule sends the workload's connections; their original destination says which import is
    /// meant. Default: no capture; applications then connect to `range`.
    pub capture: Option<SocketAddr>,
}

/// One inbound listener.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inbound {
    /// Where other workloads connect.
    pub listen: SocketAddr,
    /// Where the application listens.
    pub target: SocketAddr,
    /// Whether plain connections are taken. Default: permissive, so that a sidecar can be added before its callers have one.
    #[serde(default)]
    pub mode: Mode,
}

/// What an inbound listener takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// mTLS of the clusterset, and plain connections.
    #[default]
    Permissive,
    /// Only mTLS of the clusterset.
    Strict,
}

/// The services a workload may call; both lists empty: all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Wanted {
    /// Whole namespaces.
    pub namespaces: Vec<Namespace>,
    /// Single services, `NAMESPACE/NAME`.
    pub services: Vec<ServiceKey>,
}

/// A service account as a file names it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Account(pub ServiceAccount);

impl TryFrom<String> for Account {
    type Error = tombolo_trust::SpiffeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        ServiceAccount::parse(&text).map(Self)
    }
}

/// Everything a sidecar is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Which cluster it belongs to.
    pub site: ClusterSite,
    /// Its own section.
    pub section: Section,
    /// The agent's VIP range, which `section.range` mirrors.
    pub vip_range: IpNet,
}

/// A configuration that cannot work, although each line of it can.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The ranges differ in size or family.
    #[error(
        "sidecar.range {range} does not mirror agent.vip_range {vip_range}; give it the same address family and prefix length"
    )]
    Range {
        /// The section's.
        range: IpNet,
        /// The agent's.
        vip_range: IpNet,
    },
    /// The ranges overlap.
    #[error(
        "sidecar.range {range} overlaps agent.vip_range {vip_range}, where the gateway listens; choose another range"
    )]
    Overlap {
        /// The section's.
        range: IpNet,
        /// The agent's.
        vip_range: IpNet,
    },
    /// Plain traffic would go round in a circle.
    #[error(
        "sidecar.inbound listens on {address} and sends to the same address; give `target` the application's own"
    )]
    InboundLoop {
        /// Both.
        address: SocketAddr,
    },
    /// Two inbound listeners, or an inbound listener and the capture listener, share an address.
    #[error("sidecar: {address} is given to two listeners; give each its own")]
    SameAddress {
        /// The address.
        address: SocketAddr,
    },
}

impl Config {
    /// Checks what no single field shows.
    ///
    /// # Errors
    /// [`ConfigError`] names the two values that do not fit.
    pub fn check(&self) -> Result<(), ConfigError> {
        Mirror::new(self.vip_range, self.section.range)?;
        let mut taken = vec![self.section.admin];
        taken.extend(self.section.capture);
        for inbound in &self.section.inbound {
            if inbound.listen == inbound.target {
                return Err(ConfigError::InboundLoop {
                    address: inbound.listen,
                });
            }
            taken.push(inbound.listen);
        }
        taken.sort();
        match taken
            .windows(2)
            .find(|pair| pair[0] == pair[1] && pair[0].port() != 0)
        {
            Some(pair) => Err(ConfigError::SameAddress { address: pair[0] }),
            None => Ok(()),
        }
    }

    /// The workload, as its SPIFFE id names it below the cluster: `ns/<namespace>/sa/<service account>`.
    #[must_use]
    pub fn subject(&self) -> String {
        let Section {
            namespace,
            service_account,
            ..
        } = &self.section;
        format!("ns/{namespace}/sa/{}", service_account.0.as_str())
    }

    /// What to ask the agent for.
    #[must_use]
    pub fn interest(&self) -> Interest {
        let Wanted { namespaces, services } = self.section.interest.clone();
        Interest { namespaces, services }
    }
}

/// Maps VIPs to listener addresses: the same offset in another range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mirror {
    vip_range: IpNet,
    range: IpNet,
}

impl Mirror {
    /// A mapping of `vip_range` onto `range`.
    ///
    /// # Errors
    /// [`ConfigError::Range`] when they differ in family or size, [`ConfigError::Overlap`] when they meet.
    pub fn new(vip_range: IpNet, range: IpNet) -> Result<Self, ConfigError> {
        let same_family = vip_range.addr().is_ipv4() == range.addr().is_ipv4();
        if !same_family || vip_range.prefix_len() != range.prefix_len() {
            return Err(ConfigError::Range { range, vip_range });
        }
        if vip_range.contains(&range.network()) {
            return Err(ConfigError::Overlap { range, vip_range });
        }
        Ok(Self { vip_range, range })
    }

    /// Where `vip` is served; None when it is outside the agent's range.
    #[must_use]
    pub fn listener(&self, vip: IpAddr) -> Option<IpAddr> {
        if !self.vip_range.contains(&vip) {
            return None;
        }
        match (vip, self.vip_range.network(), self.range.network()) {
            (IpAddr::V4(vip), IpAddr::V4(from), IpAddr::V4(to)) => {
                let offset = u32::from(vip) - u32::from(from);
                Some(Ipv4Addr::from(u32::from(to) + offset).into())
            }
            (IpAddr::V6(vip), IpAddr::V6(from), IpAddr::V6(to)) => {
                let offset = u128::from(vip) - u128::from(from);
                Some(Ipv6Addr::from(u128::from(to) + offset).into())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_listener_has_the_offset_of_its_vip() {
        let mirror = Mirror::new(net("127.11.64.0/20"), net("127.11.80.0/20")).unwrap();
        let table = [
            ("127.11.64.0", Some("127.11.80.0")),
            ("127.11.65.7", Some("127.11.81.7")),
            ("127.11.79.255", Some("127.11.95.255")),
            ("127.11.80.0", None),
            ("127.11.63.255", None),
            ("fd00::1", None),
        ];
        for (vip, expected) in table {
            let expected = expected.map(|text| text.parse::<IpAddr>().unwrap());
            assert_eq!(mirror.listener(vip.parse().unwrap()), expected, "{vip}");
        }
        let mirror = Mirror::new(net("fd00:1::/108"), net("fd00:2::/108")).unwrap();
        assert_eq!(
            mirror.listener("fd00:1::5".parse().unwrap()),
            Some("fd00:2::5".parse().unwrap())
        );
    }

    #[test]
    fn ranges_must_fit() {
        for range in ["127.11.80.0/21", "fd00::/20"] {
            let error = Mirror::new(net("127.11.64.0/20"), net(range)).unwrap_err();
            assert!(error.to_string().contains("prefix length"), "{error}");
        }
        let error = Mirror::new(net("127.11.64.0/20"), net("127.11.64.0/20")).unwrap_err();
        assert!(matches!(error, ConfigError::Overlap { .. }), "{error}");
    }

    const LINES: &str = r#"
        namespace = "shop"
        service_account = "client"
        range = "127.11.80.0/20"
        admin = "127.11.0.3:7442"
        [[inbound]]
        listen = "127.11.1.1:7445"
        target = "127.11.1.1:8080"
        [interest]
        services = ["shop/checkout"]
    "#;

    fn section(text: &str) -> Result<Section, tombolo_daemon::config::ConfigError> {
        tombolo_daemon::config::parse(text, "cluster.toml")
    }

    #[test]
    fn a_section_is_strict_and_has_defaults() {
        let parsed = section(LINES).unwrap();
        assert_eq!(parsed.inbound[0].mode, Mode::Permissive);
        assert_eq!(parsed.capture, None);
        assert_eq!(parsed.interest.services.len(), 1);
        for (from, to) in [
            ("admin", "admn"),
            ("client", "Client"),
            ("shop/checkout", "checkout"),
            ("/20", "/40"),
        ] {
            assert!(section(&LINES.replace(from, to)).is_err(), "{to}");
        }
    }

    #[test]
    fn addresses_that_meet_are_refused() {
        let config = |section: Section| Config {
            site: ClusterSite {
                cluster: "home".parse().unwrap(),
                locality: tombolo_clusterset::Locality::default(),
                network: "home".parse().unwrap(),
                data_dir: "data".into(),
            },
            section,
            vip_range: net("127.11.64.0/20"),
        };
        let good = section(LINES).unwrap();
        assert_eq!(config(good.clone()).check(), Ok(()));
        assert_eq!(config(good.clone()).subject(), "ns/shop/sa/client");
        let mut looped = good.clone();
        looped.inbound[0].target = looped.inbound[0].listen;
        assert!(matches!(
            config(looped).check(),
            Err(ConfigError::InboundLoop { .. })
        ));
        let mut same = good;
        same.capture = Some(same.admin);
        assert!(matches!(
            config(same).check(),
            Err(ConfigError::SameAddress { .. })
        ));
    }
}
