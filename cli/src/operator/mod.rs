//! How a command reaches the clusterset: a broker with an operator certificate, or the agents of this machine.

mod broker;
pub(crate) mod dns;
pub(crate) mod local;
mod records;
pub(crate) mod view;

pub(crate) use broker::{CALL_TIMEOUT, Operators, refusal};
pub(crate) use records::Records;
pub(crate) use view::members;
