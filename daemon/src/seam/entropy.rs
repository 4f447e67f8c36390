//! Randomness, as a seam.

use std::fmt::Debug;

use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;

/// Where generators come from. Each component forks one at its start and owns it.
///
/// Keys and tokens that must be secret come from the crypto provider, not from here.
pub trait Entropy: Send + Sync + Debug {
    /// A fresh generator, independent of all earlier ones.
    fn rng(&self) -> StdRng;
}

/// Seeds from the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostEntropy;

#[expect(clippy::disallowed_methods, reason = "this is where entropy comes from")]
impl Entropy for HostEntropy {
    fn rng(&self) -> StdRng {
        StdRng::from_os_rng()
    }
}

/// Seeds from one number: the n-th fork of a given seed is always the same generator.
#[derive(Debug)]
pub struct SeededEntropy {
    root: Mutex<StdRng>,
}

impl SeededEntropy {
    /// The seed of the whole run.
    pub fn new(seed: u64) -> SeededEntropy {
        SeededEntropy {
            root: Mutex::new(StdRng::seed_from_u64(seed)),
        }
    }
}

impl Entropy for SeededEntropy {
    fn rng(&self) -> StdRng {
        StdRng::from_rng(&mut *self.root.lock())
    }
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;

    fn draws(seed: u64) -> [u64; 3] {
        let entropy = SeededEntropy::new(seed);
        std::array::from_fn(|_| entropy.rng().random())
    }

    #[test]
    fn a_seed_names_its_forks() {
        assert_eq!(draws(7), draws(7));
        assert_ne!(draws(7), draws(8));
        let [first, second, third] = draws(7);
        assert!(first != second && second != third && first != third);
    }
}
