//! Virtual addresses: one per import and family, one per headless endpoint that no route leads to.
//!
//! An address is held as long as its holder lives, over restarts too; a holder that comes back soon gets its old one; any
//! other holder gets it only after a quarantine, since clients keep addresses longer than the service lives (DESIGN §7).
//! Pure: the caller persists [`VipBook::to_record`] before it uses what was held since.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tombolo_clusterset::endpoint::IpFamily;
use tombolo_clusterset::{ClusterId, ServiceKey};

/// How long an address rests before it may serve someone else: longer than any DNS cache keeps a 5 s answer, and longer than
/// a client with a connection pool of its own usually keeps an address without asking again.
pub const QUARANTINE: Duration = Duration::from_secs(10 * 60);

/// Most stand-ins of one service: enough for the headless services people run (brokers, databases), and a bound on the
/// listeners that one service can cost the gateway.
pub const MAX_STAND_INS: usize = 64;

/// Most addresses of a range that are used: a hundred for each of the 10,000 services of the largest clusterset. An IPv6
/// range may be far larger.
const MAX_RANGE: u128 = 1 << 20;

/// The format of `vips.json` that this build writes and reads.
pub const VIPS_VERSION: u32 = 1;

/// Who holds an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Holder {
    /// An import, in one family.
    Import {
        /// Which import.
        service: ServiceKey,
        /// True for IPv6.
        v6: bool,
    },
    /// One endpoint of a headless import, in a cluster on another network.
    StandIn {
        /// Which import.
        service: ServiceKey,
        /// Whose endpoint.
        cluster: ClusterId,
        /// Its address there.
        endpoint: IpAddr,
    },
}

impl Holder {
    /// The clusterset IP of `service` in `family`.
    #[must_use]
    pub fn import(service: &ServiceKey, family: IpFamily) -> Self {
        Self::Import {
            service: service.clone(),
            v6: family == IpFamily::V6,
        }
    }

    fn family(&self) -> IpFamily {
        match self {
            Self::Import { v6: false, .. } => IpFamily::V4,
            Self::Import { v6: true, .. } => IpFamily::V6,
            Self::StandIn { endpoint, .. } => IpFamily::of(*endpoint),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Import { service, .. } => write!(f, "import {service}"),
            Self::StandIn {
                service,
                cluster,
                endpoint,
            } => write!(f, "endpoint {endpoint} of {service} in {cluster}"),
        }
    }
}

/// Why no address can be held.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VipError {
    /// No range of this family is configured.
    #[error("no {} range is configured; set agent.{} in cluster.toml", .family.as_str(), if *.family == IpFamily::V4 { "vip_range" } else { "vip_range_v6" })]
    NoRange {
        /// The family.
        family: IpFamily,
    },
    /// Every address is held or rests.
    #[error("the range {range} has no free address: {held} are held and {resting} rest for up to {} minutes; widen it in cluster.toml", QUARANTINE.as_secs() / 60)]
    Exhausted {
        /// The range.
        range: IpNet,
        /// Addresses in use.
        held: usize,
        /// Addresses in quarantine.
        resting: usize,
    },
    /// The book cannot be stored, so that nothing new is given out.
    #[error(
        "it has no address yet, since the book of addresses cannot be stored ({reason}); see to the disk of the agent's data_dir"
    )]
    NotStored {
        /// Why.
        reason: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Resting {
    holder: Holder,
    since_unix_ms: u64,
}

/// Who holds which address, and which addresses rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VipBook {
    ranges: Vec<IpNet>,
    held: BTreeMap<Holder, IpAddr>,
    /// The addresses of `held`.
    in_use: BTreeSet<IpAddr>,
    resting: BTreeMap<IpAddr, Resting>,
    changed: bool,
    /// Holders since the book was last stored.
    unstored: Vec<Holder>,
    /// Why nothing new is given out; None while the book can be stored.
    closed: Option<String>,
}

/// The book as it stands in `vips.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VipRecord {
    /// Version of this format.
    pub version: u32,
    held: Vec<(Holder, IpAddr)>,
    resting: Vec<(IpAddr, Resting)>,
}

impl VipBook {
    /// An empty book over `ranges`, at most one per family (of several the first counts).
    #[must_use]
    pub fn new(ranges: Vec<IpNet>) -> Self {
        Self {
            ranges,
            held: BTreeMap::new(),
            in_use: BTreeSet::new(),
            resting: BTreeMap::new(),
            changed: false,
            unstored: Vec::new(),
            closed: None,
        }
    }

    /// A book that was stored. What lies outside `ranges` is forgotten: the range was changed by the operator.
    #[must_use]
    pub fn restore(ranges: Vec<IpNet>, record: VipRecord) -> Self {
        let mut book = Self::new(ranges);
        for (holder, address) in record.held {
            let ours = book
                .range(holder.family())
                .is_some_and(|range| usable(range, address));
            if ours && book.in_use.insert(address) {
                book.held.insert(holder, address);
            }
        }
        for (address, resting) in record.resting {
            if book.ranges.iter().any(|range| usable(*range, address)) && !book.in_use.contains(&address) {
                book.resting.insert(address, resting);
            }
        }
        book
    }

    /// The book to store.
    #[must_use]
    pub fn to_record(&self) -> VipRecord {
        VipRecord {
            version: VIPS_VERSION,
            held: self
                .held
                .iter()
                .map(|(holder, address)| (holder.clone(), *address))
                .collect(),
            resting: self
                .resting
                .iter()
                .map(|(address, resting)| (*address, resting.clone()))
                .collect(),
        }
    }

    /// Whether something changed since the last call; then the book must be stored before its addresses are used. A closed book
    /// keeps what changed for later.
    pub fn take_changed(&mut self) -> bool {
        self.closed.is_none() && std::mem::take(&mut self.changed)
    }

    /// The book was stored as [`VipBook::to_record`] last told.
    pub fn stored(&mut self) {
        self.unstored.clear();
    }

    /// The book could not be stored: what it gave out since rests again, for the same holders, and nothing new is given out
    /// until [`VipBook::reopen`]. How many were taken back.
    pub fn close(&mut self, reason: &str, now_unix_ms: u64) -> usize {
        let taken_back = std::mem::take(&mut self.unstored);
        for holder in &taken_back {
            self.release(holder, now_unix_ms);
        }
        self.changed = true;
        self.closed = Some(reason.to_owned());
        taken_back.len()
    }

    /// The book may be storable again. True when it was closed.
    pub fn reopen(&mut self) -> bool {
        self.closed.take().is_some()
    }

    /// The address that `holder` holds already.
    #[must_use]
    pub fn held(&self, holder: &Holder) -> Option<IpAddr> {
        self.held.get(holder).copied()
    }

    /// The address of `holder`: the one it holds, the one it held until lately, or a free one.
    ///
    /// # Errors
    /// [`VipError`] when there is no range of its family, no free address in it, or the book is closed.
    pub fn hold(&mut self, holder: &Holder, now_unix_ms: u64) -> Result<IpAddr, VipError> {
        if let Some(address) = self.held.get(holder) {
            return Ok(*address);
        }
        let family = holder.family();
        let range = self.range(family).ok_or(VipError::NoRange { family })?;
        if let Some(reason) = self.closed.clone() {
            return Err(VipError::NotStored { reason });
        }
        self.end_quarantines(now_unix_ms);
        let address = match self.resting.iter().find(|(_, resting)| &resting.holder == holder) {
            Some((address, _)) => *address,
            None => self.free(range, holder)?,
        };
        self.resting.remove(&address);
        self.held.insert(holder.clone(), address);
        self.in_use.insert(address);
        self.unstored.push(holder.clone());
        self.changed = true;
        Ok(address)
    }

    /// Releases every holder that is not in `live`; its address rests from now on.
    pub fn keep_only(&mut self, live: &BTreeSet<Holder>, now_unix_ms: u64) {
        let gone: Vec<Holder> = self
            .held
            .keys()
            .filter(|holder| !live.contains(*holder))
            .cloned()
            .collect();
        for holder in gone {
            self.release(&holder, now_unix_ms);
        }
    }

    fn release(&mut self, holder: &Holder, now_unix_ms: u64) {
        if let Some((holder, address)) = self.held.remove_entry(holder) {
            self.in_use.remove(&address);
            let resting = Resting {
                holder,
                since_unix_ms: now_unix_ms,
            };
            self.resting.insert(address, resting);
            self.changed = true;
        }
    }

    fn range(&self, family: IpFamily) -> Option<IpNet> {
        self.ranges
            .iter()
            .copied()
            .find(|range| IpFamily::of(range.network()) == family)
    }

    fn end_quarantines(&mut self, now_unix_ms: u64) {
        let quarantine = u64::try_from(QUARANTINE.as_millis()).unwrap_or(u64::MAX);
        let before = self.resting.len();
        self.resting
            .retain(|_, resting| now_unix_ms.saturating_sub(resting.since_unix_ms) < quarantine);
        self.changed |= self.resting.len() != before;
    }

    /// Begins where the holder's hash points, so that a book that was lost is mostly written anew as it was.
    fn free(&self, range: IpNet, holder: &Holder) -> Result<IpAddr, VipError> {
        let is_free =
            |address: &IpAddr| !self.in_use.contains(address) && !self.resting.contains_key(address);
        let size = offsets(range);
        let start = u128::from(hash(&holder.to_string()))
            .checked_rem(size)
            .unwrap_or_default();
        let address = (0..size)
            .map(|step| nth(range, 1 + (start + step) % size))
            .find(is_free);
        address.ok_or_else(|| VipError::Exhausted {
            range,
            held: self
                .held
                .values()
                .filter(|address| range.contains(*address))
                .count(),
            resting: self
                .resting
                .keys()
                .filter(|address| range.contains(*address))
                .count(),
        })
    }
}

/// How many addresses of `range` are given out: without its first and last, which IPv4 keeps for the network and broadcast.
fn offsets(range: IpNet) -> u128 {
    let bits = u32::from(range.max_prefix_len() - range.prefix_len());
    let all = 1_u128.checked_shl(bits).unwrap_or(u128::MAX);
    all.saturating_sub(2).min(MAX_RANGE)
}

fn nth(range: IpNet, offset: u128) -> IpAddr {
    match range.network() {
        IpAddr::V4(base) => {
            let offset = u32::try_from(offset).unwrap_or_default();
            IpAddr::V4(Ipv4Addr::from_bits(base.to_bits().wrapping_add(offset)))
        }
        IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from_bits(base.to_bits().wrapping_add(offset))),
    }
}

fn usable(range: IpNet, address: IpAddr) -> bool {
    let offset = match (range.network(), address) {
        (IpAddr::V4(base), IpAddr::V4(address)) => u128::from(address.to_bits().wrapping_sub(base.to_bits())),
        (IpAddr::V6(base), IpAddr::V6(address)) => address.to_bits().wrapping_sub(base.to_bits()),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
    };
    (1..=offsets(range)).contains(&offset)
}

/// FNV-1a, 64 bits: the same in every build, which `std`'s hasher does not promise.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;
