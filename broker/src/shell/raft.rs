//! Raft: types, storage, network, and the [`group::Group`] through which the rest proposes and reads.

pub mod batcher;
pub mod group;
pub mod log_store;
pub mod machine;
pub mod network;
pub mod reads;
pub mod types;
