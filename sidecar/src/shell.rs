//! Sockets, tunnels and tasks.

mod capture;
mod connect;
mod drills;
mod gateways;
mod inbound;
mod outbound;
mod relay;
pub(crate) mod run;
mod udp;
mod view;

#[cfg(test)]
mod tests;
