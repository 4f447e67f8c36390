//! The zone: an immutable index from names to records, swapped whole.
//!
//! ```text
//! clusterset.local                                       SOA NS
//! ├── dns-version                                        TXT "1.0.0"
//! ├── dns
//! │   └── ns                                             A AAAA of this server
//! └── svc
//!     └── <namespace>
//!         └── <service>                                  A AAAA SRV
//!             ├── _<proto>
//!             │   └── _<port>                            SRV
//!             └── <cluster>            (headless)        nothing: only a way to its hosts
//!                 └── <hostname>                         A AAAA
//! ```

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use tombolo_clusterset::reachability::Verdict;
use tombolo_clusterset::{Import, ServiceKey, ServiceType, Snapshot};

use crate::name::{self, Builder, Labels};
use crate::service::{Addresses, Records, Service, TTL_VIRTUAL};
use crate::signals::Verdicts;

/// All names at one instant.
#[derive(Debug, Clone, Default)]
pub struct Zone {
    /// By `<service>.<namespace>`, wire form.
    services: HashMap<Arc<[u8]>, Arc<Service>>,
    /// By `<namespace>`, wire form: those with a name below them.
    namespaces: HashSet<Arc<[u8]>>,
    reverse: Arc<HashMap<IpAddr, Arc<[u8]>>>,
    /// Addresses of `ns.dns.clusterset.local`.
    server: Records,
    serial: u32,
    loaded: bool,
    records: usize,
}

/// What stands at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<'z> {
    /// Not in this zone.
    Outside,
    /// In this zone, but no snapshot has arrived yet: whether it exists is not known.
    Unknown,
    /// No such name.
    Absent,
    /// `clusterset.local` itself.
    Apex,
    /// `dns-version.clusterset.local`.
    Version,
    /// Records, or none at an empty non-terminal.
    Records(&'z Records),
    /// A reverse name of one of our addresses, with what it points to.
    Pointer(&'z Arc<[u8]>),
}

static EMPTY: std::sync::LazyLock<Records> = std::sync::LazyLock::new(Records::default);

impl Zone {
    /// What stands at `name`, which is in wire form and lower case.
    #[must_use]
    pub fn find(&self, name: &[u8]) -> Found<'_> {
        let Some(labels) = Labels::of(name) else {
            return Found::Outside;
        };
        if labels.tail(2) != name::APEX {
            let pointer = name::reverse(&labels).and_then(|address| self.reverse.get(&address));
            return pointer.map_or(Found::Outside, Found::Pointer);
        }
        if !self.loaded {
            return Found::Unknown;
        }
        match (labels.count(), labels.text(3)) {
            (2, _) => Found::Apex,
            (3, b"dns-version") => Found::Version,
            (3, b"dns" | b"svc") => Found::Records(&EMPTY),
            (4, b"dns") if labels.text(4) == b"ns" => Found::Records(&self.server),
            (4, b"svc") if self.namespaces.contains(labels.middle(4, 3)) => Found::Records(&EMPTY),
            (5.., b"svc") => {
                let service = self.services.get(labels.middle(5, 3));
                let records = service.and_then(|service| service.names.get(labels.head(5)));
                records.map_or(Found::Absent, Found::Records)
            }
            _ => Found::Absent,
        }
    }

    /// Serial of the SOA record: differs between two zones in a row.
    #[must_use]
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// The addresses of this server, for the NS record's additional section.
    #[must_use]
    pub fn server(&self) -> &Addresses {
        &self.server.addresses
    }

    /// Whether a snapshot has been seen.
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        self.loaded
    }

    /// A, AAAA and SRV records of all services.
    #[must_use]
    pub fn records(&self) -> usize {
        self.records
    }
}

/// Builds one zone after the other, reusing the names of every service that did not change.
#[derive(Debug)]
pub struct Zones {
    server: Records,
    serial: u32,
    built: BTreeMap<ServiceKey, Built>,
    reverse: Arc<HashMap<IpAddr, Arc<[u8]>>>,
}

#[derive(Debug)]
struct Built {
    import: Arc<Import>,
    /// What the names were built under; empty where they do not depend on it.
    verdicts: Vec<Verdict>,
    key: Arc<[u8]>,
    namespace: Arc<[u8]>,
    service: Arc<Service>,
    records: usize,
}

impl Zones {
    /// `server`: the addresses of `ns.dns.clusterset.local`. `serial`: where the SOA's serial starts; wall-clock seconds keep it
    /// rising over restarts.
    #[must_use]
    pub fn new(server: &[IpAddr], serial: u32) -> Zones {
        let mut addresses = Addresses::default();
        for address in server.iter().filter(|address| !address.is_unspecified()) {
            match address {
                IpAddr::V4(address) => addresses.v4.push(*address),
                IpAddr::V6(address) => addresses.v6.push(*address),
            }
        }
        let server = Records {
            addresses: Arc::new(addresses),
            srv: vec![],
            ttl: TTL_VIRTUAL,
        };
        Zones {
            server,
            serial,
            built: BTreeMap::new(),
            reverse: Arc::default(),
        }
    }

    /// The zone before any snapshot.
    #[must_use]
    pub fn unloaded(&self) -> Zone {
        Zone {
            server: self.server.clone(),
            serial: self.serial,
            ..Zone::default()
        }
    }

    /// The zone of `snapshot` under `verdicts`.
    pub fn build(&mut self, snapshot: &Snapshot, verdicts: &Verdicts) -> Zone {
        let mut previous = std::mem::take(&mut self.built);
        let mut reverse_changed = false;
        for (key, import) in &snapshot.imports {
            let under = depends_on(import, verdicts);
            let before = previous.remove(key);
            let unchanged = |built: &Built| Arc::ptr_eq(&built.import, import) && built.verdicts == under;
            let built = match before {
                Some(built) if unchanged(&built) => built,
                before => {
                    let Some(built) = Built::of(import, under, verdicts) else {
                        continue;
                    };
                    reverse_changed |=
                        before.is_none_or(|before| before.service.reverse != built.service.reverse);
                    built
                }
            };
            self.built.insert(key.clone(), built);
        }
        if reverse_changed || !previous.is_empty() {
            self.reverse = Arc::new(self.reversed());
        }
        self.serial = self.serial.wrapping_add(1);
        self.zone()
    }

    fn zone(&self) -> Zone {
        let named = self
            .built
            .values()
            .filter(|built| !built.service.names.is_empty());
        Zone {
            services: named
                .clone()
                .map(|built| (built.key.clone(), built.service.clone()))
                .collect(),
            namespaces: named.map(|built| built.namespace.clone()).collect(),
            reverse: self.reverse.clone(),
            server: self.server.clone(),
            serial: self.serial,
            loaded: true,
            records: self.built.values().map(|built| built.records).sum(),
        }
    }

    /// One name for each address: the first service's, in the order of keys (only one PTR may exist, specification §2.3.3).
    fn reversed(&self) -> HashMap<IpAddr, Arc<[u8]>> {
        let mut reverse = HashMap::new();
        for (address, name) in self.built.values().flat_map(|built| &built.service.reverse) {
            reverse.entry(*address).or_insert_with(|| name.clone());
        }
        reverse
    }
}

impl Built {
    fn of(import: &Arc<Import>, under: Vec<Verdict>, verdicts: &Verdicts) -> Option<Built> {
        let service = Service::of(import, verdicts);
        let namespace = Builder::new().label(import.key.namespace.as_str())?.finish();
        let key = Builder::new()
            .label(import.key.name.as_str())?
            .suffix(&namespace)?
            .finish();
        let count =
            |records: &Records| records.addresses.v4.len() + records.addresses.v6.len() + records.srv.len();
        Some(Built {
            import: import.clone(),
            verdicts: under,
            key: key.into(),
            namespace: namespace.into(),
            records: service.names.values().map(count).sum(),
            service: Arc::new(service),
        })
    }
}

/// Clusterset IPs stay while the import does; only endpoints come and go with the verdict over their cluster.
fn depends_on(import: &Import, verdicts: &Verdicts) -> Vec<Verdict> {
    match import.spec.service_type {
        ServiceType::ClusterSetIp => vec![],
        ServiceType::Headless => import
            .clusters
            .iter()
            .map(|(cluster, imported)| verdicts.of(cluster, imported.loss_policy))
            .collect(),
    }
}
