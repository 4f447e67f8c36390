//! What touches network, disk and clock. Everything it decides, the pure modules decide for it.

pub mod authority;
pub mod boot;
pub mod config;
pub mod connect;
pub mod duties;
pub mod grpc;
pub mod listen;
pub mod metrics;
pub mod raft;
pub mod renewals;
pub mod restore;
pub mod run;
pub mod sealed;
