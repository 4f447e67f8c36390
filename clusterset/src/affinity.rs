//! Session affinity without memory: every process that knows the same backends sends a client to the same one.
//!
//! Rendezvous hashing (Thaler and Ravishankar, 1998): a backend's score depends on the client and on itself alone, so that a
//! backend that comes or goes moves only the clients it wins or held.

use std::net::IpAddr;

/// The score of a backend for a client; the highest wins. The same in every process and release: a change moves every client
/// once, which is a change of behaviour to announce.
#[must_use]
pub fn score(client: IpAddr, cluster: &str, address: IpAddr, port: u16) -> u64 {
    let mut hash = Fnv::new();
    hash.address(client);
    hash.bytes(cluster.as_bytes());
    hash.address(address);
    hash.bytes(&port.to_be_bytes());
    hash.finish()
}

/// Where a client stands in 0..`parts`, the same everywhere: its tier when load spills. 0 when `parts` is 0.
#[must_use]
pub fn position(client: IpAddr, parts: u32) -> u32 {
    let mut hash = Fnv::new();
    hash.address(client);
    // The high half times the range: unbiased enough for 10,000 parts, and free of modulo's low bits.
    let scaled = ((hash.finish() >> 32) * u64::from(parts)) >> 32;
    u32::try_from(scaled).unwrap_or(0)
}

/// FNV-1a with 64 bits, finished by SplitMix64's mixer, since FNV alone leaves its high bits too regular.
struct Fnv(u64);

impl Fnv {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Bytes behind their length, so that no two sequences run into each other.
    fn bytes(&mut self, bytes: &[u8]) {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes();
        for byte in length.iter().chain(bytes) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// An address; an IPv4 one mapped into IPv6 is the IPv4 one.
    fn address(&mut self, address: IpAddr) {
        match address.to_canonical() {
            IpAddr::V4(v4) => self.bytes(&v4.octets()),
            IpAddr::V6(v6) => self.bytes(&v6.octets()),
        }
    }

    fn finish(self) -> u64 {
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_keeps_its_backend_when_another_goes() {
        let address = |n: u8| IpAddr::from([10, 0, 0, n]);
        let best = |client: u8, backends: &[u8]| {
            backends
                .iter()
                .copied()
                .max_by_key(|n| score(address(client), "kind", address(*n), 80))
        };
        let mut held = std::collections::BTreeMap::<u8, u32>::new();
        for client in 0..=255 {
            let before = best(client, &[1, 2, 3, 4]).expect("one wins");
            *held.entry(before).or_default() += 1;
            let after = best(client, &[1, 2, 3]).expect("one wins");
            assert!(
                before == after || before == 4,
                "client {client} moved from {before} to {after}"
            );
        }
        assert!(
            held.values().all(|clients| (32..=96).contains(clients)),
            "uneven: {held:?}"
        );
    }

    #[test]
    fn positions_spread_over_the_range() {
        let below = (0..=255u8)
            .filter(|n| position(IpAddr::from([10, 1, 0, *n]), 10_000) < 5_000)
            .count();
        assert!((96..=160).contains(&below), "{below} of 256 in the lower half");
        assert_eq!(position(IpAddr::from([10, 0, 0, 1]), 0), 0);
    }
}
