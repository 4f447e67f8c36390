//! What touches the host: files, sockets, signals, spawned tasks, stderr.

pub mod admin;
pub mod config;
pub mod signals;
pub mod supervise;
pub mod telemetry;
pub mod uds;
