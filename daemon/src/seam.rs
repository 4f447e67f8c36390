//! The seams of the simulation: everything in which one run can differ from the next.
//!
//! A role takes a [`Seams`] and touches network, clock, entropy and disk only through it. The host gives the real ones;
//! the simulation gives its own and so replays a run from its seed.

pub mod clock;
pub mod disk;
pub mod entropy;
pub mod net;

use std::sync::Arc;

use clock::{Clock, HostClock};
use disk::{Disk, HostDisk};
use entropy::{Entropy, HostEntropy};
use net::{HostNetwork, Network};

/// All seams together, cheap to clone.
#[derive(Clone, Debug)]
pub struct Seams {
    /// Dial and listen.
    pub network: Arc<dyn Network>,
    /// Monotonic and wall time.
    pub clock: Arc<dyn Clock>,
    /// Seeds for random number generators.
    pub entropy: Arc<dyn Entropy>,
    /// Durable files.
    pub disk: Arc<dyn Disk>,
}

impl Seams {
    /// The real ones.
    pub fn host() -> Seams {
        Seams {
            network: Arc::new(HostNetwork),
            clock: Arc::new(HostClock),
            entropy: Arc::new(HostEntropy),
            disk: Arc::new(HostDisk),
        }
    }
}
