//! What the log carries: commands in batches, with the leader's wall clock.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use bytes::Bytes;
use tombolo_clusterset::{ClusterId, Drill, DrillId, Export, Label, Locality, Namespace, ServiceKey};
use tombolo_trust::{Fingerprint, TokenId, TrustDomain};

/// Commands that stand in one log entry, decided in their order.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Wall clock of the leader when it proposed, milliseconds since the Unix epoch. The replicated clock is the
    /// maximum over all of them.
    pub unix_ms: u64,
    /// What is to be decided.
    pub commands: Vec<Command>,
}

/// An intermediate as the leader signed it, with what the state machine needs to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// DER.
    pub certificate: Bytes,
    /// Of the subject's public key.
    pub key: Fingerprint,
    /// Of the signing root's public key.
    pub root: Fingerprint,
    /// End of its life, milliseconds since the Unix epoch.
    pub not_after_ms: u64,
}

/// How a member describes itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Region and zone.
    pub locality: Locality,
    /// Clusters of one network reach each other's endpoints directly.
    pub network: Label,
    /// Tunnel addresses; empty when it only dials out.
    pub gateways: Vec<SocketAddr>,
    /// The member's own clock, milliseconds since the Unix epoch.
    pub unix_ms: u64,
}

/// A root of trust: certificate and wrapped private key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootRecord {
    /// DER.
    pub certificate: Bytes,
    /// Of its public key.
    pub key: Fingerprint,
    /// The private key under the key-encryption key that every broker holds in a file.
    pub wrapped: Bytes,
}

/// A broker's addresses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BrokerAddresses {
    /// Where agents and operators call.
    pub api: SocketAddr,
    /// Where the other brokers call.
    pub peer: SocketAddr,
}

/// A step of the root's rotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RotationStep {
    /// Publish a new root beside the old one.
    Stage(RootRecord),
    /// Sign with the new one.
    Switch,
    /// Drop the old one.
    Drop,
}

/// A cluster that asks to become a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// The token it presents.
    pub token: TokenId,
    /// Of the secret it presents.
    pub hash: [u8; 32],
    /// Who it wants to be.
    pub cluster: ClusterId,
    /// How it describes itself.
    pub description: Description,
    /// Take the place of a member of the same id.
    pub replace: bool,
    /// What it gets.
    pub issued: Issued,
}

/// One decision to make. Everything it depends on besides the state stands in it.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the fields repeat the words of DESIGN.md")]
pub enum Command {
    /// Founds the clusterset: the first entry of every log.
    Found {
        clusterset: Label,
        trust_domain: TrustDomain,
        root: RootRecord,
        broker: u64,
        addresses: BrokerAddresses,
    },
    CreateToken {
        id: TokenId,
        hash: [u8; 32],
        cluster: ClusterId,
        ttl_ms: u64,
    },
    RevokeToken {
        id: TokenId,
    },
    Join(Box<Join>),
    Renew {
        cluster: ClusterId,
        issued: Issued,
    },
    Leave {
        cluster: ClusterId,
    },
    Evict {
        cluster: ClusterId,
    },
    /// Grants a publish epoch, or confirms the held one.
    OpenPublish {
        cluster: ClusterId,
        held: u64,
        description: Description,
    },
    Upsert {
        epoch: u64,
        export: Box<Export>,
    },
    Delete {
        cluster: ClusterId,
        epoch: u64,
        key: ServiceKey,
    },
    /// End of a full state: exports that it did not name are gone.
    Retain {
        cluster: ClusterId,
        epoch: u64,
        keys: BTreeSet<ServiceKey>,
    },
    TrustAck {
        cluster: ClusterId,
        epoch: u64,
        revision: u64,
        lagging: String,
    },
    /// A lease ended on the leader's clock.
    LoseLease {
        cluster: ClusterId,
    },
    /// A member whose lease was lost is heard again.
    RegainLease {
        cluster: ClusterId,
    },
    /// `importers` None clears the grant.
    SetGrant {
        key: ServiceKey,
        exporter: ClusterId,
        importers: Option<BTreeSet<ClusterId>>,
    },
    /// `clusters` None clears the reservation.
    Reserve {
        namespace: Namespace,
        clusters: Option<BTreeSet<ClusterId>>,
    },
    AddBroker {
        id: u64,
        addresses: BrokerAddresses,
    },
    RemoveBroker {
        id: u64,
    },
    Rotate {
        step: RotationStep,
        force: bool,
    },
    /// `drill.id` is ignored: the log position becomes the id.
    StartDrill {
        drill: Box<Drill>,
        force: bool,
    },
    StopDrill {
        id: DrillId,
    },
    /// The report as `v1::DrillReport`, encoded.
    ReportDrill {
        cluster: ClusterId,
        drill: DrillId,
        report: Bytes,
    },
    /// Nothing but the passing of time: ends what has expired.
    Tick,
}

impl Command {
    /// Whether proposing it a second time, after an answer that got lost, leaves the same state and gives an answer
    /// that is as good.
    #[must_use]
    pub fn may_be_repeated(&self) -> bool {
        !matches!(
            self,
            Self::Found { .. }
                | Self::Evict { .. }
                | Self::Leave { .. }
                | Self::Rotate { .. }
                | Self::StartDrill { .. }
        )
    }
}

/// What a command led to when it was not refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// It stands.
    Done,
    /// The publish epoch that now holds.
    Granted {
        /// The epoch.
        epoch: u64,
    },
    /// The intermediate, DER.
    Issued {
        /// DER.
        certificate: Bytes,
    },
    /// The member is gone.
    Removed {
        /// How many exports went with it.
        exports: u32,
    },
    /// The drill runs.
    DrillStarted {
        /// Its id.
        id: DrillId,
    },
}
