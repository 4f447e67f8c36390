//! `broker.toml`, and what its profile means in milliseconds.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use tombolo_clusterset::Label;

use crate::command::BrokerAddresses;

/// One broker.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Unique in the group, from 1, never used again.
    pub id: u64,
    /// Name of the clusterset. Only read when this broker founds it; required then.
    #[serde(default)]
    pub clusterset: Option<Label>,
    /// Where agents and operators call.
    pub api: SocketAddr,
    /// Where the other brokers call.
    pub peer: SocketAddr,
    /// Probes and metrics.
    pub admin: SocketAddr,
    /// Identity, key-encryption key, log and snapshots; relative to the configuration file.
    pub data_dir: PathBuf,
    /// Founds the clusterset when `data_dir` is empty. Default: false, since two founders make two clustersets.
    #[serde(default)]
    pub bootstrap: bool,
    /// Timing. Default: `lan`, the brokers within 20 ms of each other.
    #[serde(default)]
    pub profile: Profile,
}

/// How far the brokers are from each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Within one region: round trips up to 20 ms.
    #[default]
    Lan,
    /// Across regions: round trips up to 120 ms.
    Wan,
}

/// The timing of one broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats of the leader; also the limit of one append.
    pub heartbeat: Duration,
    /// Least silence after which this broker stands for election.
    pub election_min: Duration,
    /// Most silence after which it does. Raft waits this long again before it doubts a leader that it has followed.
    pub election_max: Duration,
    /// How long a member may be silent.
    pub lease_term: Duration,
}

impl Profile {
    /// The timing of broker `id`. Each id has a window of its own, because openraft draws the time once per process:
    /// two brokers with the same draw would split every vote.
    #[must_use]
    pub fn timing(self, id: u64) -> Timing {
        // Windows repeat after seven ids, the most there are at once.
        let window = u32::try_from(id % 7).unwrap_or_default();
        let (heartbeat, first, width, lease_term) = match self {
            // The seventh window ends at 920 ms, so that a killed leader is replaced in under 2 s.
            Self::Lan => (100, 500, 60, 3),
            // Four round trips per heartbeat, ten per election.
            Self::Wan => (500, 2_500, 300, 10),
        };
        let election_min = Duration::from_millis(first) + Duration::from_millis(width) * window;
        Timing {
            heartbeat: Duration::from_millis(heartbeat),
            election_min,
            election_max: election_min + Duration::from_millis(width),
            lease_term: Duration::from_secs(lease_term),
        }
    }
}

impl Timing {
    /// How old a quorum's word may be for a stream to count as fresh: within this nobody else can have been elected
    /// by brokers that still follow.
    #[must_use]
    pub fn fresh_within(&self) -> Duration {
        self.election_min
    }
}

impl Config {
    /// Its addresses as the group knows them.
    #[must_use]
    pub fn addresses(&self) -> BrokerAddresses {
        BrokerAddresses {
            api: self.api,
            peer: self.peer,
        }
    }

    /// The log.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.data_dir.join("raft.redb")
    }

    /// The snapshots.
    #[must_use]
    pub fn snapshots_path(&self) -> PathBuf {
        self.data_dir.join("snapshots")
    }

    /// Leaf, key and roots.
    #[must_use]
    pub fn identity_path(&self) -> PathBuf {
        self.data_dir.join("identity")
    }

    /// The key-encryption key: 64 hexadecimal digits.
    #[must_use]
    pub fn kek_path(&self) -> PathBuf {
        self.data_dir.join("kek")
    }

    /// The first operator's identity, on the founding broker.
    #[must_use]
    pub fn operator_path(&self) -> PathBuf {
        self.data_dir.join("operator")
    }

    /// A root that is founded but not yet in the log; gone afterwards.
    #[must_use]
    pub fn founding_path(&self) -> PathBuf {
        self.data_dir.join("founding")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_of_a_group_do_not_overlap_and_stay_in_range() {
        for (profile, most_ms) in [(Profile::Lan, 1_000), (Profile::Wan, 5_000)] {
            let mut windows: Vec<_> = (1..=7).map(|id| profile.timing(id)).collect();
            windows.sort_by_key(|timing| timing.election_min);
            for pair in windows.windows(2) {
                assert!(pair[0].election_max <= pair[1].election_min);
            }
            assert!(
                windows
                    .iter()
                    .all(|timing| timing.election_max <= Duration::from_millis(most_ms))
            );
            assert!(
                windows
                    .iter()
                    .all(|timing| timing.election_min >= timing.heartbeat * 4)
            );
        }
    }
}
