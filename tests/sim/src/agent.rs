//! The agent of a cluster: the real reconciler (export view, import view, virtual addresses, cache) and publisher, with a
//! modelled session and disk.

mod session;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tombolo_clusterset::{ClusterId, Drill, Export, Label, Locality, ServiceKey, Snapshot};
use tombolo_discovery::cache;
use tombolo_discovery::manifest::Manifests;
use tombolo_discovery::publish::Publisher;
use tombolo_discovery::reconcile::{Reconciler, Restored};
use tombolo_discovery::sightings::Sightings;
use tombolo_discovery::vip::{VipBook, VipRecord};
use tombolo_discovery::watched::{Trust, WatchState};
use tombolo_wire::local::ClusterSite;
use tombolo_wire::v1;

use crate::mutant::Mutant;
use crate::net::Node;
use crate::scene::{Fact, Scene};

/// Time for a broker to grant the publish stream (`discovery::shell::sync`).
const OPEN_TIME: Duration = Duration::from_secs(5);
/// A broker is pinged this often and given up after as long again (`discovery::shell::broker_channel`).
const PING_EVERY: Duration = Duration::from_secs(2);
/// Longest pause between two sessions.
const RETRY_MS: u64 = 400;
/// The cache is at most this much behind (`discovery::shell::agent`).
const CACHE_EVERY: Duration = Duration::from_secs(1);
/// Without cache and broker, what this cluster offers itself is served after this (`discovery::shell::agent`).
const ALONE_AFTER: Duration = Duration::from_secs(3);
/// A lease is renewed this many times within its term.
const RENEWALS_PER_TERM: u32 = 4;

#[derive(Debug)]
struct Session {
    conn: u64,
    opened: Duration,
    heard: Duration,
    ping_at: Duration,
    /// Set by the grant.
    renew_at: Option<Duration>,
    every: Duration,
}

/// What outlives the process.
#[derive(Debug, Default)]
struct Disk {
    sightings: Option<String>,
    vips: Option<String>,
    cache: Option<Vec<u8>>,
    cache_at: Duration,
}

/// The process.
#[derive(Debug)]
struct Process {
    reconciler: Reconciler,
    publisher: Publisher,
    session: Option<Session>,
    retry_at: Duration,
    alone_at: Duration,
    superseded: bool,
    arrivals: u64,
    has_offered: bool,
    offered: BTreeMap<ServiceKey, Arc<Export>>,
    acknowledged: BTreeMap<ServiceKey, u64>,
}

/// One agent.
#[derive(Debug)]
pub struct Agent {
    /// The cluster's number.
    pub number: usize,
    /// Where it is.
    pub site: ClusterSite,
    /// How far its wall clock is off, milliseconds.
    pub skew_ms: i64,
    /// Log index of the join that its certificate is of; 0: no member.
    pub joined: u64,
    /// What its operator applied.
    pub manifests: Manifests,
    /// The drill that it knows of, and since when.
    pub drill: Option<(Drill, Instant)>,
    brokers: u64,
    disk: Disk,
    process: Option<Process>,
    /// What it served last; gone with the process.
    pub snapshot: Option<Arc<Snapshot>>,
}

impl Agent {
    /// The agent of cluster `number`, before its first start.
    #[must_use]
    pub fn new(number: usize, site: ClusterSite, brokers: u64) -> Self {
        Self {
            number,
            site,
            skew_ms: 0,
            joined: 0,
            manifests: Manifests::default(),
            drill: None,
            brokers,
            disk: Disk::default(),
            process: None,
            snapshot: None,
        }
    }

    fn node(&self) -> Node {
        Node::Agent(self.number)
    }

    /// Whether the process runs.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.process.is_some()
    }

    /// What the broker said, as this agent holds it.
    #[must_use]
    pub fn watch(&self) -> Option<&WatchState> {
        self.process.as_ref().map(|process| process.reconciler.watch())
    }

    /// Whether it is connected and has nothing left to publish.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.process
            .as_ref()
            .is_some_and(|process| process.publisher.is_settled())
    }

    /// Whether another publisher took over.
    #[must_use]
    pub fn is_superseded(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.superseded)
    }

    /// The process dies.
    pub fn crash(&mut self, scene: &mut Scene) {
        scene.note(format_args!("agent {} crashes", self.number));
        scene.net.crash(self.node());
        self.process = None;
        self.snapshot = None;
        self.drill = None;
    }

    /// The process begins, with what its disk holds.
    pub fn start(&mut self, scene: &mut Scene) {
        let now_ms = scene.wall_ms(self.skew_ms);
        let ranges = vec![vip_range(self.number)];
        let vips = match self.disk.vips.as_deref().map(serde_json::from_str::<VipRecord>) {
            Some(Ok(record)) => VipBook::restore(ranges, record),
            _ => VipBook::new(ranges),
        };
        let sightings = self
            .disk
            .sightings
            .as_deref()
            .and_then(|text| serde_json::from_str::<Sightings>(text).ok());
        let cached = self
            .disk
            .cache
            .as_deref()
            .map(|bytes| cache::decode(&self.site.cluster, bytes));
        let restored = match cached {
            Some(Ok(cached)) => Restored {
                sightings: sightings.unwrap_or_default(),
                watch: WatchState::restored(cached.watched, cached.confirmed_unix_ms),
                local: cached.local,
            },
            _ => Restored {
                sightings: sightings.unwrap_or_default(),
                ..Restored::default()
            },
        };
        let (incarnation, revision) = restored.watch.resume_from();
        scene.note(format_args!(
            "agent {} starts from revision {incarnation}/{revision}",
            self.number
        ));
        scene.facts.push(Fact::Started { cluster: self.number });
        let trust = Trust {
            trust_domain: "sim-aaaa2222".to_owned(),
            roots: vec![vec![1]],
            ..Trust::default()
        };
        let mut reconciler = Reconciler::new(
            self.site.clone(),
            gateways(self.number),
            trust,
            vips,
            restored,
            now_ms,
        );
        reconciler.take_manifests(self.manifests.clone(), now_ms, &mut scene.rng);
        self.process = Some(Process {
            reconciler,
            publisher: Publisher::default(),
            session: None,
            retry_at: scene.now,
            alone_at: scene.now + ALONE_AFTER,
            superseded: false,
            arrivals: 0,
            has_offered: false,
            offered: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
        });
    }

    /// The operator applied other manifests.
    pub fn apply(&mut self, manifests: Manifests, scene: &mut Scene) {
        let now_ms = scene.wall_ms(self.skew_ms);
        self.manifests = manifests;
        if let Some(process) = &mut self.process {
            process
                .reconciler
                .take_manifests(self.manifests.clone(), now_ms, &mut scene.rng);
        }
    }

    /// Time passes.
    pub fn poll(&mut self, scene: &mut Scene) {
        if self.process.is_none() {
            return;
        }
        self.reconcile(scene);
        self.keep_session(scene);
        self.publish(scene);
    }

    fn reconcile(&mut self, scene: &mut Scene) {
        let now_ms = scene.wall_ms(self.skew_ms);
        let Some(process) = &mut self.process else { return };
        if let Some(publication) = process.reconciler.publication() {
            if let Some(sightings) = &publication.store_sightings {
                self.disk.sightings = serde_json::to_string(sightings).ok();
            }
            let wanted = publication.exports;
            process.publisher.want(&wanted);
            // What the process before it offered, nobody here remembers.
            let is_first = !std::mem::replace(&mut process.has_offered, true);
            for key in &crate::fixture::keys() {
                if is_first || process.offered.get(key) != wanted.get(key) {
                    process.acknowledged.remove(key);
                    scene.facts.push(Fact::Offered {
                        cluster: self.number,
                        key: key.clone(),
                    });
                }
            }
            process.offered = wanted.as_ref().clone();
        }
        let is_known = process.reconciler.knows_the_clusterset() || scene.now >= process.alone_at;
        if let Some(step) = is_known.then(|| process.reconciler.step(now_ms)).flatten() {
            if let Some(vips) = step
                .store_vips
                .as_ref()
                .filter(|_| !scene.has(Mutant::ForgottenVips))
            {
                self.disk.vips = serde_json::to_string(vips).ok();
            }
            let snapshot = Arc::new(step.snapshot);
            let version = snapshot.version;
            scene.note(format_args!(
                "agent {} serves {}/{} with {} imports, fresh: {}",
                self.number,
                version.incarnation,
                version.revision,
                snapshot.imports.len(),
                snapshot.fresh
            ));
            let watched = Box::new(process.reconciler.watch().current().clone());
            scene.facts.push(Fact::Served {
                cluster: self.number,
                snapshot: Arc::clone(&snapshot),
                watched,
            });
            self.snapshot = Some(snapshot);
        }
        // The shell writes the cache beside the rest, not at every step.
        if process.reconciler.knows_the_clusterset() && scene.now >= self.disk.cache_at {
            self.disk.cache = Some(process.reconciler.cache());
            self.disk.cache_at = scene.now + CACHE_EVERY;
        }
        let watched = process.reconciler.watch().current();
        let running = watched.drills.values().next();
        let endless = scene.has(Mutant::EndlessDrill) && running.is_none();
        if !endless && self.drill.as_ref().map(|(drill, _)| drill.id) != running.map(|drill| drill.id) {
            // One that is over stays until the broker ends it, so that it does not begin anew.
            self.drill = running.cloned().map(|drill| (drill, scene.instant()));
        }
    }

    /// Whether a drill silences this cluster now.
    #[must_use]
    pub fn is_silenced(&self, scene: &Scene) -> bool {
        let cluster = &self.site.cluster;
        self.drill
            .as_ref()
            .is_some_and(|(drill, since)| drill.silences(cluster, drill_age(drill, *since, scene)))
    }
}

/// How far a drill that was received at `since` has come.
#[must_use]
pub fn drill_age(drill: &Drill, since: Instant, scene: &Scene) -> Duration {
    let age = scene.instant().duration_since(since);
    if scene.has(Mutant::EndlessDrill) {
        age.min(drill.baseline)
    } else {
        age
    }
}

/// The mutant: precedence by the order in which this agent heard of the exports.
fn rank_by_arrival(event: &mut v1::WatchEvent, arrivals: &mut u64) {
    use v1::entry::Entry;
    use v1::watch_event::Event;
    if let Some(Event::Apply(apply)) = &mut event.event
        && let Some(Entry::Export(record)) = apply.entry.as_mut().and_then(|entry| entry.entry.as_mut())
    {
        *arrivals += 1;
        (record.admitted, record.created_ms) = (*arrivals, *arrivals);
    }
}

/// Where the gateway of cluster `number` is reached.
#[must_use]
pub fn gateways(number: usize) -> Vec<SocketAddr> {
    vec![SocketAddr::from((
        [10, 0, u8::try_from(number).unwrap_or(u8::MAX), 2],
        7443,
    ))]
}

/// Narrow, so that hashes collide: 62 addresses for some twenty holders.
fn vip_range(number: usize) -> IpNet {
    let third = u8::try_from(number).unwrap_or(u8::MAX);
    IpNet::new_assert([172, 16, third, 0].into(), 26)
}

/// The site of cluster `number`: three on networks of their own, then pairs that share one.
#[must_use]
pub fn site(number: usize) -> ClusterSite {
    let name = format!("c{number}");
    let network = format!("net-{}", number.min(3));
    let cluster = ClusterId::parse(&name).unwrap_or_else(|_| unreachable!("c{number} is a label"));
    let network = Label::parse(&network).unwrap_or_else(|_| unreachable!("{network} is a label"));
    let locality = Locality {
        region: format!("r{}", number % 2),
        zone: format!("r{}-a", number % 2),
        node: String::new(),
    };
    ClusterSite {
        cluster,
        locality,
        network,
        data_dir: PathBuf::new(),
    }
}
