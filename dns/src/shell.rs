//! What touches the host: sockets, threads, upstreams, the feeds of the other processes.

pub mod client;
mod forward;
mod metrics;
pub mod run;
mod silence;
mod tcp;
mod udp;
mod zones;
