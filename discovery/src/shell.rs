//! What touches the host: files, sockets, timers, tasks.

pub mod agent;
pub mod broker_channel;
pub mod directory;
pub mod errands;
pub mod identity;
pub mod join;
pub mod local_server;
pub mod metrics;
pub mod run;
pub mod sync;
