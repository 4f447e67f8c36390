//! Every bound of the broker, with its reason.

use std::time::Duration;

/// Members of one clusterset (DESIGN §6).
pub const CLUSTERS_MAX: usize = 250;
/// Distinct services that are exported (DESIGN §6).
pub const SERVICES_MAX: usize = 10_000;
/// Endpoints over all exports (DESIGN §6).
pub const ENDPOINTS_MAX: usize = 250_000;
/// Largest export, encoded, bytes: 10,000 endpoints at about 60 bytes each leave room to spare, and one export never
/// fills a log entry alone.
pub const EXPORT_MAX_BYTES: usize = 1024 * 1024;
/// Join tokens that are neither used nor expired: four for each cluster there can be.
pub const TOKENS_MAX: usize = 1_000;
/// Longest life of a join token: a week covers a change window; what lives longer leaks.
pub const TOKEN_TTL_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a used or expired token is remembered, so that its holder is told which of the two it is.
pub const TOKEN_MEMORY: Duration = Duration::from_secs(24 * 3600);
/// Grants on record: two for each service.
pub const GRANTS_MAX: usize = 20_000;
/// Reserved namespaces: no more than there are services.
pub const RESERVATIONS_MAX: usize = 10_000;
/// Largest difference between a member's clock and the replicated one: certificates are backdated by as much.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(5 * 60);
/// Gateways one member may advertise.
pub const GATEWAYS_MAX: usize = 16;
/// Brokers of one group: five voters, and two more while some are replaced.
pub const BROKERS_MAX: usize = 7;
/// Drills that are remembered with their reports: the last ones, for whoever asks again; all of them stay in every snapshot.
pub const DRILLS_KEPT: usize = 4;
/// Largest drill report, encoded, bytes: 20,000 samples of at most 90 bytes each, which is what a gateway sends in one drill.
pub const DRILL_REPORT_MAX_BYTES: usize = 2 * 1024 * 1024;
/// Requests per second of a drill (`Drill::rate_per_second`).
pub const DRILL_RATE_MAX: u32 = 1_000;
/// Keys of one member that are remembered until they expire: a renewal a fortnight needs three; a member that
/// renews more often than this pushes out nothing, it is refused until one expires.
pub const KEYS_MAX: usize = 64;
/// Longest text a member may give about what still uses an old root, bytes.
pub const LAGGING_MAX_BYTES: usize = 1024;
/// Changes the watch log remembers: a watcher that missed more starts over, which costs it one full state.
pub const WATCH_LOG_MAX: usize = 100_000;
/// Watch streams of one broker: agent, gateway and an operator's view for every cluster, with room for reconnects.
pub const WATCHERS_MAX: usize = 1_000;
/// Publish streams of one broker: one per cluster, twice during reconnects.
pub const PUBLISHERS_MAX: usize = 2 * CLUSTERS_MAX;
/// Connections of one broker, authenticated or not.
pub const CONNECTIONS_MAX: usize = 4_096;
/// How long a TLS handshake may take: an honest one takes two round trips.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest gRPC message of members and operators: what is over a bound of its own is still read, so that it is refused
/// with its reason instead of ending the stream.
pub const MESSAGE_MAX_BYTES: usize = 8 * 1024 * 1024;
/// Largest gRPC message among brokers: a Raft append, which has at most [`APPEND_MAX_BYTES`] and one entry of
/// [`BATCH_MAX_BYTES`], twice over. An append above it would never arrive, and the group would stand still.
pub const PEER_MESSAGE_MAX_BYTES: usize = 16 * 1024 * 1024;
/// Commands of one log entry: beyond this a batch is not faster.
pub const BATCH_MAX_COMMANDS: usize = 512;
/// Bytes of one log entry, so that a Raft append stays below [`PEER_MESSAGE_MAX_BYTES`]: the largest command, a drill
/// report, fits in twice.
pub const BATCH_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Bytes of one publish stream that are gathered for one proposal. The command that passes it still fits a log entry:
/// an export, or the end of a full state of twice [`SERVICES_MAX`] keys of at most 140 bytes.
pub const PUBLISH_BATCH_BYTES: usize = 1024 * 1024;
/// Bytes of log entries in one Raft append: it is at most this plus one entry.
pub const APPEND_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Proposals that wait for the write in flight; more are refused at once, which agents retry with jitter.
pub const PROPOSALS_MAX: usize = 4_096;
/// How long a write may take before its caller is told that the group does not answer: several elections.
pub const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Changes of one publish stream that wait for their acknowledgement.
pub const PUBLISH_WINDOW: usize = 256;
/// Chunk of a snapshot or back-up on the wire, bytes.
pub const CHUNK_BYTES: usize = 1024 * 1024;
/// Largest snapshot that is accepted from a peer, bytes: four times what the bounds above add up to.
pub const SNAPSHOT_MAX_BYTES: usize = 512 * 1024 * 1024;
/// Log entries between two snapshots.
pub const SNAPSHOT_EVERY: u64 = 5_000;
/// Log entries kept behind a snapshot, so that a broker that was away for a moment needs no snapshot.
pub const LOG_KEPT: u64 = 1_000;

// One oversized entry in the leader's log would stop replication for all, so these hold by construction.
const _: () = assert!(2 * (APPEND_MAX_BYTES + BATCH_MAX_BYTES) <= PEER_MESSAGE_MAX_BYTES);
const _: () =
    assert!(2 * DRILL_REPORT_MAX_BYTES <= BATCH_MAX_BYTES && 2 * DRILL_REPORT_MAX_BYTES <= MESSAGE_MAX_BYTES);
const _: () = assert!(PUBLISH_BATCH_BYTES + 2 * SERVICES_MAX * 140 <= BATCH_MAX_BYTES);
const _: () = assert!(PUBLISH_BATCH_BYTES + 2 * EXPORT_MAX_BYTES <= BATCH_MAX_BYTES);
