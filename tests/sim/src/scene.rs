//! What every simulated process is handed: time, entropy, network, trace, and where to report facts.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tombolo_clusterset::{ClusterId, Export, ServiceKey, Snapshot};
use tombolo_discovery::watched::Watched;

use crate::mutant::Mutant;
use crate::net::Net;
use crate::trace::Trace;

/// True time at the start of a run, milliseconds since the Unix epoch.
const EPOCH_MS: u64 = 1_800_000_000_000;

/// Something that happened and that an invariant may want to judge.
#[derive(Debug, Clone)]
pub enum Fact {
    /// A broker applied a log entry.
    Applied {
        broker: u64,
        index: u64,
        term: u64,
        entry: Option<Bytes>,
    },
    /// A broker began anew from a snapshot at this index.
    Restored { broker: u64, index: u64 },
    /// An agent offers something else under this key from now on, or nothing.
    Offered { cluster: usize, key: ServiceKey },
    /// A broker acknowledged the export to its agent.
    Acknowledged {
        cluster: usize,
        key: ServiceKey,
        export: Arc<Export>,
        index: u64,
    },
    /// An agent's process began.
    Started { cluster: usize },
    /// An agent serves a snapshot made of this state.
    Served {
        cluster: usize,
        snapshot: Arc<Snapshot>,
        watched: Box<Watched>,
    },
    /// A gateway (and DNS server) took a snapshot.
    Taken { cluster: usize, snapshot: Arc<Snapshot> },
    /// A gateway chose ways for a flow.
    Routed {
        from: usize,
        key: ServiceKey,
        hops: Vec<ClusterId>,
        snapshot: Arc<Snapshot>,
    },
    /// A gateway admitted a flow from another cluster.
    Admitted {
        at: usize,
        from: ClusterId,
        key: ServiceKey,
        snapshot: Arc<Snapshot>,
    },
    /// A cluster's gateway cuts paths, or its agent is silent, because of a drill that began then by the log.
    Rehearsed { cluster: usize, drill: u64 },
}

/// Time, entropy, network, trace.
#[derive(Debug)]
pub struct Scene {
    base: Instant,
    /// Simulated time since the start.
    pub now: Duration,
    /// Entropy of all processes.
    pub rng: StdRng,
    /// The network.
    pub net: Net,
    /// Decisions.
    pub trace: Trace,
    /// What happened since the invariants looked last.
    pub facts: Vec<Fact>,
    /// The bug that was put in.
    pub mutant: Option<Mutant>,
}

impl Scene {
    /// The beginning of the run of `seed`.
    #[must_use]
    pub fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let net = Net::new(StdRng::from_rng(&mut rng));
        // Only differences of instants are ever used.
        let base = Instant::now();
        Self {
            base,
            now: Duration::ZERO,
            rng,
            net,
            trace: Trace::new(),
            facts: Vec::new(),
            mutant,
        }
    }

    /// The monotonic clock.
    #[must_use]
    pub fn instant(&self) -> Instant {
        self.base + self.now
    }

    /// A wall clock that is `skew_ms` off, milliseconds since the Unix epoch.
    #[must_use]
    pub fn wall_ms(&self, skew_ms: i64) -> u64 {
        let since = u64::try_from(self.now.as_millis()).unwrap_or(u64::MAX);
        (EPOCH_MS + since).saturating_add_signed(skew_ms)
    }

    /// Notes a decision.
    pub fn note(&mut self, decision: fmt::Arguments<'_>) {
        self.trace.note(self.now, decision);
    }

    /// Whether this bug was put in.
    #[must_use]
    pub fn has(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }
}
