//! Sockets, tunnels and tasks.

pub(crate) mod run;
