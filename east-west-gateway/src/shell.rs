//! What touches the host: sockets, tunnels, tasks, clocks. Each file runs a rule of the pure modules.

mod context;
mod drill;
mod health;
mod inbound;
mod links_server;
mod listeners;
mod metrics;
mod outbound;
mod peers;
mod run;
mod state;
mod udp;

pub use run::{Config, Error, LinkProfileName, Section, Transport, run};
