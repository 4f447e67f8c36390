//! A running clusterset for tests: the real binary, real processes, loopback addresses.

mod clusterset;
mod net;
mod wait;

pub use clusterset::{Clusterset, Finished, binary, repository};
pub use net::{Answer, dig, http_get, http_get_within, tcp_bytes, udp_exchange};
pub use wait::{eventually, within};
