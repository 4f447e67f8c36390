//! Why a command is refused: each refusal says what, where and what to do.

use tombolo_clusterset::{ClusterId, DrillId, Namespace, ServiceKey};

use crate::bounds;

/// What a caller can do about a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// The request itself is wrong.
    Invalid,
    /// The caller has not proved who it is.
    Unauthenticated,
    /// The caller may not do this.
    Denied,
    /// What it names does not exist.
    NotFound,
    /// What it wants to make exists already.
    Exists,
    /// The state of the clusterset does not allow it now.
    Precondition,
    /// A bound is reached.
    Exhausted,
}

/// Why a command changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's message is its documentation")]
pub enum Refusal {
    // Founding.
    #[error("the clusterset exists already; this broker must join it: tombolo broker add")]
    AlreadyFounded,
    #[error("the clusterset is not founded yet; wait until the bootstrapping broker is ready")]
    NotFounded,

    // Tokens and joining.
    #[error("join token {0} is unknown to this clusterset; create one with `tombolo token create`")]
    TokenUnknown(String),
    #[error("join token {0} has been used; a token joins once: create another with `tombolo token create`")]
    TokenUsed(String),
    #[error("join token {0} expired {1} s ago; create another with `tombolo token create`")]
    TokenExpired(String, u64),
    #[error(
        "join token {token} was made for cluster {made_for}, not for {asked}; create one with `tombolo token create {asked}`"
    )]
    TokenWrongCluster {
        token: String,
        made_for: ClusterId,
        asked: ClusterId,
    },
    #[error("join token {0} does not match: its secret is wrong; copy the whole token again")]
    TokenWrongSecret(String),
    #[error("a join token lives 1 s to {most} s, not {0} ms; choose a --ttl in between", most = bounds::TOKEN_TTL_MAX.as_secs())]
    TokenTtl(u64),
    #[error("join token {0} exists already with another secret; create another")]
    TokenExists(String),
    #[error("{most} join tokens are outstanding; revoke some with `tombolo token revoke`", most = bounds::TOKENS_MAX)]
    TooManyTokens,
    #[error(
        "cluster {0} is a member already; give this cluster another id, or take its place with `tombolo join --replace`"
    )]
    DuplicateCluster(ClusterId),
    #[error("the clusterset has {most} clusters, its maximum; evict one that is gone with `tombolo evict`", most = bounds::CLUSTERS_MAX)]
    TooManyClusters,
    #[error("the clock of cluster {cluster} is {seconds} s {direction} the broker's; set it by NTP to within {most} s and try again", most = bounds::CLOCK_SKEW_MAX.as_secs())]
    ClockSkew {
        cluster: ClusterId,
        seconds: u64,
        direction: &'static str,
    },
    #[error("cluster {0} advertises {1} gateways; at most {most} are allowed", most = bounds::GATEWAYS_MAX)]
    TooManyGateways(ClusterId, usize),
    #[error(
        "the key of this request was denied when its cluster was evicted or replaced; make a new key (remove the data_dir's identity/) and join again"
    )]
    KeyDenied,
    #[error("cluster {0} has renewed {most} times within the life of one certificate; find out which process keeps renewing", most = bounds::KEYS_MAX)]
    TooManyKeys(ClusterId),
    #[error(
        "cluster {0} is not a member of this clusterset; it may have left or been evicted: join with a new token"
    )]
    NotAMember(ClusterId),

    // Publishing.
    #[error(
        "publish epoch {held} of cluster {cluster} was superseded by {current}: another agent publishes for this cluster; stop one of them"
    )]
    Superseded {
        cluster: ClusterId,
        held: u64,
        current: u64,
    },
    #[error(
        "service {key} is in namespace {namespace}, which is reserved for {reserved_for}; export it from another namespace, or ask for the reservation"
    )]
    Reserved {
        key: ServiceKey,
        namespace: Namespace,
        reserved_for: String,
    },
    #[error(
        "service {key} names cluster {found}, but {publisher} publishes it; a cluster exports only its own services"
    )]
    ForeignExport {
        key: ServiceKey,
        found: ClusterId,
        publisher: ClusterId,
    },
    #[error("service {0}: the clusterset has {most} exported services, its maximum; remove some exports", most = bounds::SERVICES_MAX)]
    TooManyServices(ServiceKey),
    #[error("service {key} would bring the clusterset to {endpoints} endpoints, over its maximum of {most}; remove some exports", most = bounds::ENDPOINTS_MAX)]
    TooManyEndpoints { key: ServiceKey, endpoints: usize },
    #[error("service {key} is {bytes} bytes long; at most {most} are allowed: it has too many endpoints, labels or annotations", most = bounds::EXPORT_MAX_BYTES)]
    ExportTooLarge { key: ServiceKey, bytes: usize },

    // Grants and reservations.
    #[error("there are {most} grants, the maximum; clear some with `tombolo grant --clear`", most = bounds::GRANTS_MAX)]
    TooManyGrants,
    #[error("{most} namespaces are reserved, the maximum; clear some", most = bounds::RESERVATIONS_MAX)]
    TooManyReservations,
    #[error("the reservation of namespace {0} names no cluster; name one, or clear it")]
    EmptyReservation(Namespace),

    // Trust.
    #[error("the root cannot be {asked}: the rotation is {stage}; {next}")]
    RotationStep {
        asked: &'static str,
        stage: &'static str,
        next: &'static str,
    },
    #[error("the root cannot be {asked} yet: {lagging}; wait, or force it")]
    RotationLags { asked: &'static str, lagging: String },
    #[error(
        "cluster {cluster} acknowledges trust revision {acked}, but the newest is {newest}; its agent speaks to another clusterset"
    )]
    TrustFromTheFuture {
        cluster: ClusterId,
        acked: u64,
        newest: u64,
    },

    // Brokers.
    #[error("broker id {0} was used before and removed; ids are never used again: choose another")]
    BrokerRetired(u64),
    #[error("broker id 0 means no broker; choose another")]
    BrokerZero,
    #[error("broker {0} exists already with other addresses; remove it first, and add it under a new id")]
    BrokerExists(u64),
    #[error("address {address} belongs to broker {owner}; give each broker its own")]
    BrokerAddressTaken { address: String, owner: u64 },
    #[error("the group has {most} brokers, its maximum; remove one first", most = bounds::BROKERS_MAX)]
    TooManyBrokers,
    #[error("there is no broker {0}; see `tombolo status`")]
    BrokerUnknown(u64),
    #[error("broker {0} is the last one; without it the clusterset is gone")]
    LastBroker(u64),

    // Drills.
    #[error("drill {id} is running; one at a time: wait, or stop it with `tombolo drill stop`", id = running.0)]
    DrillRunning { running: DrillId },
    #[error("a drill lasts at most {most} s in all, this one {0} s; shorten its baseline, duration or recovery", most = tombolo_clusterset::drill::DRILL_MAX.as_secs())]
    DrillTooLong(u64),
    #[error("a drill needs a baseline and a duration of at least one second each")]
    DrillTooShort,
    #[error("a drill sends 1 to {most} requests per second, not {0}", most = bounds::DRILL_RATE_MAX)]
    DrillRate(u32),
    #[error(
        "a drill of kind {0} kills a process; only the one machine of `tombolo up` can do it: add --real"
    )]
    DrillOnlyReal(&'static str),
    #[error("cluster {0} cannot fail and send the drill's traffic at once; choose another --from")]
    DrillFromTarget(ClusterId),
    #[error(
        "cluster {target} does not export {service}: a drill against it would prove nothing; choose a service it serves"
    )]
    DrillNotExported { target: ClusterId, service: ServiceKey },
    #[error(
        "without cluster {target}, service {service} has no healthy endpoint; export it from another cluster first, or force the drill"
    )]
    DrillLeavesNothing { target: ClusterId, service: ServiceKey },
    #[error("there is no drill {0}; the last {most} are remembered", most = bounds::DRILLS_KEPT)]
    DrillUnknown(u64),
    #[error("drill {drill} is reported by cluster {from}, not by {asked}")]
    DrillForeignReport {
        drill: u64,
        from: ClusterId,
        asked: ClusterId,
    },
    #[error("the report of drill {drill} is {bytes} bytes long; at most {most} are kept: lower the rate or the duration", most = bounds::DRILL_REPORT_MAX_BYTES)]
    DrillReportTooLarge { drill: u64, bytes: usize },
}

impl Refusal {
    /// What the caller can do about it.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::TokenUnknown(_)
            | Self::TokenUsed(_)
            | Self::TokenExpired(..)
            | Self::TokenWrongCluster { .. }
            | Self::TokenWrongSecret(_) => Class::Unauthenticated,
            Self::TokenTtl(_)
            | Self::TooManyGateways(..)
            | Self::ForeignExport { .. }
            | Self::ExportTooLarge { .. }
            | Self::EmptyReservation(_)
            | Self::TrustFromTheFuture { .. }
            | Self::BrokerZero
            | Self::DrillTooLong(_)
            | Self::DrillTooShort
            | Self::DrillRate(_)
            | Self::DrillOnlyReal(_)
            | Self::DrillFromTarget(_)
            | Self::DrillReportTooLarge { .. } => Class::Invalid,
            Self::Reserved { .. }
            | Self::KeyDenied
            | Self::NotAMember(_)
            | Self::DrillForeignReport { .. } => Class::Denied,
            Self::BrokerUnknown(_) | Self::DrillUnknown(_) => Class::NotFound,
            Self::AlreadyFounded
            | Self::TokenExists(_)
            | Self::DuplicateCluster(_)
            | Self::BrokerExists(_)
            | Self::BrokerAddressTaken { .. } => Class::Exists,
            Self::NotFounded
            | Self::ClockSkew { .. }
            | Self::Superseded { .. }
            | Self::RotationStep { .. }
            | Self::RotationLags { .. }
            | Self::BrokerRetired(_)
            | Self::LastBroker(_)
            | Self::DrillRunning { .. }
            | Self::DrillNotExported { .. }
            | Self::DrillLeavesNothing { .. } => Class::Precondition,
            Self::TooManyTokens
            | Self::TooManyClusters
            | Self::TooManyKeys(_)
            | Self::TooManyServices(_)
            | Self::TooManyEndpoints { .. }
            | Self::TooManyGrants
            | Self::TooManyReservations
            | Self::TooManyBrokers => Class::Exhausted,
        }
    }
}
