//! Sidecars on loopback, with real certificates and real tunnels; the test plays agent, gateways and backends.

mod inbound;
mod lifecycle;
mod outbound;
mod site;
