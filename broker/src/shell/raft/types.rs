//! openraft's type parameters.

use std::fmt;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

use crate::command::BrokerAddresses;
use crate::stored::Outcome;

openraft::declare_raft_types!(
    /// Types of the broker group.
    pub BrokerRaft:
        D = EncodedBatch,
        R = Outcomes,
        NodeId = u64,
        Node = Addresses,
        Entry = openraft::Entry<BrokerRaft>,
        SnapshotData = Bytes,
        AsyncRuntime = openraft::TokioRuntime,
);

/// The group's Raft.
pub type Raft = openraft::Raft<BrokerRaft>;
/// Position in the log.
pub type LogId = openraft::LogId<u64>;
/// Entry of the log.
pub type Entry = openraft::Entry<BrokerRaft>;
/// Membership as of some log position.
pub type StoredMembership = openraft::StoredMembership<u64, Addresses>;
/// What a snapshot says of itself.
pub type SnapshotMeta = openraft::SnapshotMeta<u64, Addresses>;
/// A snapshot with its bytes.
pub type Snapshot = openraft::Snapshot<BrokerRaft>;
/// What Raft tells of itself.
pub type Metrics = openraft::RaftMetrics<u64, Addresses>;
/// Storage failed: this broker stops.
pub type StorageError = openraft::StorageError<u64>;

/// Version of the encoding of openraft's own types, on the wire and in the log.
pub const RAFT_FORMAT: u32 = 1;

/// Where a broker is, as Raft's membership carries it.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Addresses {
    /// "ip:port" for agents and operators.
    pub api: String,
    /// "ip:port" for the other brokers.
    pub peer: String,
}

impl From<&BrokerAddresses> for Addresses {
    fn from(addresses: &BrokerAddresses) -> Self {
        Self {
            api: addresses.api.to_string(),
            peer: addresses.peer.to_string(),
        }
    }
}

/// A batch as it stands in the log: `stored::encode_batch`. Raft never looks inside.
#[derive(Clone, PartialEq, Eq)]
pub struct EncodedBatch(pub Bytes);

impl fmt::Debug for EncodedBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EncodedBatch({} bytes)", self.0.len())
    }
}

impl Serialize for EncodedBatch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for EncodedBatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Raw;
        impl Visitor<'_> for Raw {
            type Value = EncodedBatch;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the bytes of a batch")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<EncodedBatch, E> {
                Ok(EncodedBatch(Bytes::copy_from_slice(bytes)))
            }
            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<EncodedBatch, E> {
                Ok(EncodedBatch(bytes.into()))
            }
        }
        deserializer.deserialize_byte_buf(Raw)
    }
}

/// What the commands of one entry led to, in their order; empty for Raft's own entries.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(into = "Vec<u8>", try_from = "Vec<u8>")]
pub struct Outcomes(pub Vec<Outcome>);

impl From<Outcomes> for Vec<u8> {
    fn from(outcomes: Outcomes) -> Self {
        Outcome::encode_all(&outcomes.0).to_vec()
    }
}

impl TryFrom<Vec<u8>> for Outcomes {
    type Error = crate::stored::Corrupt;
    fn try_from(encoded: Vec<u8>) -> Result<Self, Self::Error> {
        Outcome::decode_all(encoded.into()).map(Self)
    }
}
