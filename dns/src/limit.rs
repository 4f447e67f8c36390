//! Response rate limiting: a spoofed address must not be flooded by way of this server.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Most networks remembered at once: about 0.5 MB for each thread. When all of them are busy, further ones share one bucket.
pub const NETWORKS_MAX: usize = 8_192;

/// How often a full table is searched for networks that have been quiet, at most: the search takes as long as some hundred
/// answers.
const SWEEP_EVERY: Duration = Duration::from_millis(250);

/// Of the answers over the limit, one in so many is sent empty with TC set, so that a real client comes back over TCP, which
/// cannot be spoofed; the rest is dropped.
pub const SLIP: u32 = 2;

/// What may be answered now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowance {
    /// The whole answer.
    Answer,
    /// An empty answer with TC set: no larger than the query.
    Slip,
    /// Nothing.
    Drop,
}

/// Token buckets by client network (IPv4 /24, IPv6 /56): a spoofer can use a victim's whole network.
#[derive(Debug)]
pub struct Limiter {
    per_second: f64,
    burst: f64,
    limit_loopback: bool,
    buckets: HashMap<IpAddr, Bucket>,
    /// For networks that found no place.
    shared: Bucket,
    swept: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    filled: Instant,
    refused: u32,
}

impl Limiter {
    /// `per_second` answers to each network, twice as many in a burst; 0 turns the limit off.
    #[must_use]
    pub fn new(per_second: u32, limit_loopback: bool, now: Instant) -> Limiter {
        let burst = f64::from(per_second) * 2.0;
        let shared = Bucket {
            tokens: burst,
            filled: now,
            refused: 0,
        };
        Limiter {
            per_second: f64::from(per_second),
            burst,
            limit_loopback,
            buckets: HashMap::new(),
            shared,
            swept: now,
        }
    }

    /// Takes a token for an answer to `client` at `now`.
    pub fn allow(&mut self, client: IpAddr, now: Instant) -> Allowance {
        if self.burst == 0.0 || (client.is_loopback() && !self.limit_loopback) {
            return Allowance::Answer;
        }
        let network = network(client);
        if self.buckets.len() >= NETWORKS_MAX && !self.buckets.contains_key(&network) {
            self.sweep(now);
        }
        let (per_second, burst) = (self.per_second, self.burst);
        let bucket = if self.buckets.len() < NETWORKS_MAX || self.buckets.contains_key(&network) {
            self.buckets.entry(network).or_insert(Bucket {
                tokens: burst,
                filled: now,
                refused: 0,
            })
        } else {
            &mut self.shared
        };
        bucket.take(per_second, burst, now)
    }

    /// Networks remembered.
    #[must_use]
    pub fn networks(&self) -> usize {
        self.buckets.len()
    }

    /// Forgets networks whose bucket is full again: forgetting them changes nothing.
    fn sweep(&mut self, now: Instant) {
        if now.saturating_duration_since(self.swept) < SWEEP_EVERY {
            return;
        }
        self.swept = now;
        let (per_second, burst) = (self.per_second, self.burst);
        self.buckets
            .retain(|_, bucket| bucket.level(per_second, burst, now) < burst);
    }
}

impl Bucket {
    fn level(&self, per_second: f64, burst: f64, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.filled).as_secs_f64();
        (self.tokens + elapsed * per_second).min(burst)
    }

    fn take(&mut self, per_second: f64, burst: f64, now: Instant) -> Allowance {
        self.tokens = self.level(per_second, burst, now);
        self.filled = now.max(self.filled);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Allowance::Answer;
        }
        self.refused = self.refused.wrapping_add(1);
        if self.refused.is_multiple_of(SLIP) {
            Allowance::Slip
        } else {
            Allowance::Drop
        }
    }
}

fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & !0xff)),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 72 << 72)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_has_its_burst_then_its_rate() {
        let start = Instant::now();
        let mut limiter = Limiter::new(10, false, start);
        let mut allowed = |client: &str, now: Instant| {
            (0..100)
                .filter(|_| limiter.allow(address(client), now) == Allowance::Answer)
                .count()
        };
        assert_eq!(allowed("192.0.2.1", start), 20);
        assert_eq!(allowed("192.0.2.200", start), 0, "the same /24");
        assert_eq!(allowed("192.0.3.1", start), 20, "another /24");
        assert_eq!(allowed("192.0.2.1", start + Duration::from_secs(1)), 10);
        assert_eq!(allowed("127.0.0.1", start), 100, "loopback is exempt");
        assert_eq!(allowed("2001:db8::1", start), 20);
        assert_eq!(allowed("2001:db8:0:ff::1", start), 0, "the same /56");
    }

    #[test]
    fn half_of_the_refused_slip() {
        let start = Instant::now();
        let mut limiter = Limiter::new(1, true, start);
        let allowances: Vec<_> = (0..6)
            .map(|_| limiter.allow(address("127.0.0.1"), start))
            .collect();
        use Allowance::{Answer, Drop, Slip};
        assert_eq!(allowances, [Answer, Answer, Drop, Slip, Drop, Slip]);
    }

    #[test]
    fn the_table_is_bounded_and_quiet_networks_give_way() {
        let start = Instant::now();
        let mut limiter = Limiter::new(1, false, start);
        let client = |n: u32| IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + (n << 8)));
        for n in 0..20_000 {
            limiter.allow(client(n), start);
        }
        assert_eq!(limiter.networks(), NETWORKS_MAX);
        assert_ne!(
            limiter.allow(client(30_000), start),
            Allowance::Answer,
            "the shared bucket is empty"
        );
        let later = start + Duration::from_secs(2);
        assert_eq!(limiter.allow(client(30_000), later), Allowance::Answer);
        assert_eq!(limiter.networks(), 1);
    }

    #[test]
    fn zero_is_no_limit() {
        let start = Instant::now();
        let mut limiter = Limiter::new(0, true, start);
        assert!((0..1_000).all(|_| limiter.allow(address("192.0.2.1"), start) == Allowance::Answer));
    }
}
