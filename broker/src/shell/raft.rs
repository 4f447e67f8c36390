//! Raft: types, storage, network, and the [`group::Group`] through which the rest proposes and reads.

#![expect(
    clippy::result_large_err,
    reason = "openraft's errors are that large, and whoever gets one stops or retries"
)]

pub mod batcher;
pub mod group;
pub mod log_store;
pub mod machine;
pub mod network;
pub mod reads;
pub mod types;
