//! What touches sockets: the two transports and the stream halves that they have in common.

pub(crate) mod carrier;
pub(crate) mod cut;
pub(crate) mod h2;
pub(crate) mod halves;
pub(crate) mod quic;
