//! Every name of one imported service.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use tombolo_clusterset::reachability::Verdict;
use tombolo_clusterset::{ClusterId, Endpoint, EndpointSlice, Import, Readiness, ServiceType};

use crate::name::{self, Builder};
use crate::signals::Verdicts;

/// TTL of clusterset IPs, seconds: they hold for the life of an import, so only its end is late by this much (DESIGN §7).
pub const TTL_VIRTUAL: u32 = 5;

const _: () = assert!(TTL_VIRTUAL <= 5, "DESIGN §7: DNS TTL is 5 s at most");

/// TTL of endpoints' addresses, seconds: clients of headless names fail over only when they ask again.
pub const TTL_ENDPOINT: u32 = 1;

/// Most endpoints one headless answer names. The specification allows a subset of the ready ones (§2.4.1); 1,000 AAAA records
/// take 28 kB, which leaves room in a TCP message.
pub const HEADLESS_MAX: usize = 1_000;

/// Most octets the SRV records of one name may take: 64 KiB of TCP message less the question and some addresses.
pub const SRV_OCTETS_MAX: usize = 48 * 1024;

/// Octets of an SRV record before its target: owner pointer, type, class, TTL, length, priority, weight, port.
const SRV_FIXED: usize = 18;

/// Addresses of one name. A and AAAA cover the same endpoints (MCS DNS specification §2.4.1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// For A.
    pub v4: Vec<Ipv4Addr>,
    /// For AAAA.
    pub v6: Vec<Ipv6Addr>,
}

impl Addresses {
    fn of(addresses: impl IntoIterator<Item = IpAddr>) -> Arc<Addresses> {
        let mut sorted = Addresses::default();
        for address in addresses.into_iter().collect::<BTreeSet<_>>() {
            match address {
                IpAddr::V4(address) => sorted.v4.push(address),
                IpAddr::V6(address) => sorted.v6.push(address),
            }
        }
        Arc::new(sorted)
    }

    fn all(&self) -> impl Iterator<Item = IpAddr> {
        self.v4
            .iter()
            .map(|v4| IpAddr::V4(*v4))
            .chain(self.v6.iter().map(|v6| IpAddr::V6(*v6)))
    }
}

/// One SRV record (RFC 2782), with what its target resolves to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Srv {
    /// Port.
    pub port: u16,
    /// Wire name.
    pub target: Arc<[u8]>,
    /// For the additional section.
    pub addresses: Arc<Addresses>,
}

/// Everything at one name. Without any record it is an empty non-terminal: it exists, and every answer is NODATA (RFC 4592
/// §2.2.2).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Records {
    /// A and AAAA.
    pub addresses: Arc<Addresses>,
    /// SRV; those of one target are neighbours.
    pub srv: Vec<Srv>,
    /// Of all of them, seconds.
    pub ttl: u32,
}

/// The names of one service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// By what stands before `<service>.<namespace>.svc.clusterset.local`, in wire form; empty for the service itself.
    pub names: HashMap<Box<[u8]>, Records>,
    /// PTR: address to wire name.
    pub reverse: Vec<(IpAddr, Arc<[u8]>)>,
}

impl Service {
    /// The names of `import`, and no name when none of its endpoints may be named.
    #[must_use]
    pub fn of(import: &Import, verdicts: &Verdicts) -> Service {
        let Some(full_name) = full_name(import) else {
            return Service::default();
        };
        match import.spec.service_type {
            ServiceType::ClusterSetIp => Service::with_virtual_address(import, full_name.into()),
            ServiceType::Headless => Service::headless(import, &full_name, verdicts),
        }
    }

    fn with_virtual_address(import: &Import, full_name: Arc<[u8]>) -> Service {
        let addresses = Addresses::of(import.ips.iter().copied());
        let mut ports = Ports::default();
        for port in &import.spec.ports {
            let srv = Srv {
                port: port.port,
                target: full_name.clone(),
                addresses: addresses.clone(),
            };
            ports.add(&port.name, port.protocol.as_str(), srv);
        }
        let mut service = Service::default();
        service
            .reverse
            .extend(addresses.all().map(|address| (address, full_name.clone())));
        service.add(ports, addresses, TTL_VIRTUAL);
        service
    }

    fn headless(import: &Import, full_name: &[u8], verdicts: &Verdicts) -> Service {
        let mut service = Service::default();
        let hosts = hosts(import, full_name, verdicts);
        let Some(best) = hosts.values().flatten().filter_map(Host::best).min() else {
            return service;
        };
        for (cluster, hosts) in &hosts {
            for host in hosts {
                let Some(cluster_label) = Builder::new().label(cluster.as_str()).map(Builder::finish) else {
                    continue;
                };
                let records = Records {
                    addresses: host.addresses(),
                    srv: vec![],
                    ttl: TTL_ENDPOINT,
                };
                service.reverse.extend(
                    records
                        .addresses
                        .all()
                        .map(|address| (address, host.name.clone())),
                );
                let prefix = &host.name[..host.name.len() - full_name.len()];
                service.names.insert(prefix.into(), records);
                // Only a way down to the host: "<cluster>.<service>" itself must have no record (§2.4.4). It has to exist all the
                // same, since NXDOMAIN would deny the hosts below it (RFC 8020 §2).
                service.names.entry(cluster_label.into()).or_default();
            }
        }
        let mut ports = Ports::default();
        let mut named = BTreeSet::new();
        for host in in_turns(hosts.values())
            .filter(|host| host.best() == Some(best))
            .take(HEADLESS_MAX)
        {
            let addresses = host.addresses();
            named.extend(addresses.all());
            for (name, protocol, port) in host.chosen().into_iter().flat_map(|found| &found.ports) {
                let srv = Srv {
                    port: *port,
                    target: host.name.clone(),
                    addresses: addresses.clone(),
                };
                ports.add(name, protocol, srv);
            }
        }
        service.add(ports, Addresses::of(named), TTL_ENDPOINT);
        service
    }

    /// The service's own name and its ports'.
    fn add(&mut self, ports: Ports, addresses: Arc<Addresses>, ttl: u32) {
        for (prefix, srv) in ports.named {
            if let Some(labels) = name::Labels::of(&prefix) {
                self.names.entry(labels.tail(1).into()).or_default();
            }
            self.names.insert(
                prefix.into(),
                Records {
                    addresses: Arc::default(),
                    srv: srv.records,
                    ttl,
                },
            );
        }
        self.names.insert(
            Box::default(),
            Records {
                addresses,
                srv: ports.bare.records,
                ttl,
            },
        );
    }
}

/// `<service>.<namespace>.svc.clusterset.local` on the wire; always fits, since both are labels.
fn full_name(import: &Import) -> Option<Vec<u8>> {
    let service = Builder::new()
        .label(import.key.name.as_str())?
        .label(import.key.namespace.as_str())?;
    Some(service.label("svc")?.suffix(name::APEX)?.finish())
}

/// SRV records by name, bounded and without repetition.
#[derive(Default)]
struct Ports {
    /// By `_port._proto`, wire form.
    named: BTreeMap<Vec<u8>, SrvSet>,
    /// Of the service's own name: one for each (target, port), whatever the protocol (conformance: bare SRV).
    bare: SrvSet,
}

#[derive(Default)]
struct SrvSet {
    records: Vec<Srv>,
    seen: BTreeSet<(Arc<[u8]>, u16)>,
    octets: usize,
}

impl SrvSet {
    fn add(&mut self, srv: Srv) {
        let octets = self.octets + SRV_FIXED + srv.target.len() + 1;
        if octets <= SRV_OCTETS_MAX && self.seen.insert((srv.target.clone(), srv.port)) {
            self.octets = octets;
            self.records.push(srv);
        }
    }
}

impl Ports {
    /// A port without a name, or with one that no label can hold, has no `_port._proto` name.
    fn add(&mut self, name: &str, protocol: &str, srv: Srv) {
        let labels = Builder::new()
            .label(&format!("_{name}"))
            .and_then(|name| name.label(&format!("_{protocol}")));
        if let Some(labels) = labels.filter(|_| !name.is_empty()) {
            self.named.entry(labels.finish()).or_default().add(srv.clone());
        }
        self.bare.add(srv);
    }
}

/// How good an endpoint is, best first; a headless answer holds those of the best grade there is, and nothing worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Grade {
    Ready,
    LastResort,
    Terminating,
    TerminatingLastResort,
}

/// The endpoints under one `<hostname>.<cluster>`.
#[derive(Debug)]
struct Host {
    /// Full wire name.
    name: Arc<[u8]>,
    found: BTreeMap<Grade, Found>,
}

#[derive(Debug, Default)]
struct Found {
    addresses: BTreeSet<IpAddr>,
    /// (port name, protocol, number at the endpoint).
    ports: BTreeSet<(String, &'static str, u16)>,
}

impl Host {
    fn best(&self) -> Option<Grade> {
        self.found.keys().next().copied()
    }

    /// The endpoints of the best grade; the others are as if they were not there.
    fn chosen(&self) -> Option<&Found> {
        self.found.values().next()
    }

    fn addresses(&self) -> Arc<Addresses> {
        Addresses::of(
            self.chosen()
                .into_iter()
                .flat_map(|found| found.addresses.iter().copied()),
        )
    }
}

/// Every endpoint that may be named, by cluster and then by host.
fn hosts<'a>(
    import: &'a Import,
    full_name: &[u8],
    verdicts: &Verdicts,
) -> BTreeMap<&'a ClusterId, Vec<Host>> {
    let mut clusters = BTreeMap::new();
    for (cluster, imported) in &import.clusters {
        let verdict = verdicts.of(cluster, imported.loss_policy);
        if verdict == Verdict::Withdraw {
            continue;
        }
        let exposed = |slice: &EndpointSlice| {
            import.spec.ports.is_empty()
                || imported
                    .ports
                    .iter()
                    .any(|port| slice.port(&port.name, port.protocol).is_some())
        };
        let mut hosts: BTreeMap<String, Host> = BTreeMap::new();
        for slice in imported.slices.iter().filter(|slice| exposed(slice)) {
            let ports: Vec<_> = imported
                .ports
                .iter()
                .filter_map(|port| Some((port, slice.port(&port.name, port.protocol)?)))
                .map(|(port, number)| (port.name.clone(), port.protocol.as_str(), number))
                .collect();
            for endpoint in &slice.endpoints {
                let Some(grade) = grade(endpoint.readiness, verdict) else {
                    continue;
                };
                let label = host_label(endpoint);
                let name = Builder::new()
                    .label(&label)
                    .and_then(|name| name.label(cluster.as_str()));
                // A name of over 255 octets cannot be asked for, so it is not given either.
                let Some(name) = name.and_then(|name| name.suffix(full_name)) else {
                    continue;
                };
                let host = hosts.entry(label).or_insert_with(|| Host {
                    name: name.finish().into(),
                    found: BTreeMap::new(),
                });
                let found = host.found.entry(grade).or_default();
                let address = imported
                    .stand_ins
                    .get(&endpoint.address)
                    .unwrap_or(&endpoint.address);
                found.addresses.insert(*address);
                found.ports.extend(ports.iter().cloned());
            }
        }
        clusters.insert(cluster, hosts.into_values().collect());
    }
    clusters
}

fn grade(readiness: Readiness, verdict: Verdict) -> Option<Grade> {
    match (readiness, verdict) {
        (Readiness::NotReady, _) | (_, Verdict::Withdraw) => None,
        (Readiness::Ready, Verdict::Use) => Some(Grade::Ready),
        (Readiness::Ready, Verdict::LastResort) => Some(Grade::LastResort),
        (Readiness::Terminating, Verdict::Use) => Some(Grade::Terminating),
        (Readiness::Terminating, Verdict::LastResort) => Some(Grade::TerminatingLastResort),
    }
}

/// The endpoint's host name, or its address with dashes: the same in every cluster, whatever address stands in for it there.
fn host_label(endpoint: &Endpoint) -> String {
    match &endpoint.hostname {
        Some(hostname) => hostname.as_str().to_owned(),
        None => endpoint.address.to_string().replace(['.', ':'], "-"),
    }
}

/// One host of each cluster, then the next of each: a bounded answer is fair to all clusters.
fn in_turns<'a>(clusters: impl Iterator<Item = &'a Vec<Host>>) -> impl Iterator<Item = &'a Host> {
    let mut clusters: Vec<_> = clusters.map(|hosts| hosts.iter()).collect();
    let mut next = 0;
    std::iter::from_fn(move || {
        while !clusters.is_empty() {
            next %= clusters.len();
            if let Some(host) = clusters[next].next() {
                next += 1;
                return Some(host);
            }
            drop(clusters.remove(next));
        }
        None
    })
}
