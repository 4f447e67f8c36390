//! TCP, as a seam: dial and listen.
//!
//! [`Stream`] and [`Listener`] are enums rather than boxes: on the host a flow costs no virtual call, and code that
//! wants the socket itself (`splice`, `SO_ORIGINAL_DST`) matches on `Tcp`.

mod host;
mod stream;

use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::BoxFuture;

pub use host::HostNetwork;
pub use stream::{Accept, Duplex, Listener, Stream};

/// How long to pause after a failed [`Listener::accept`]: long enough for a few connections to end and give their
/// descriptors back, short enough that nobody notices.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Dial and listen. Errors name the address.
pub trait Network: Send + Sync + Debug {
    /// Connects to `peer`. There is no time limit here: the caller knows how long a dial may take.
    fn dial(&self, peer: SocketAddr) -> BoxFuture<'static, io::Result<Stream>>;

    /// Listens on `address`; port 0 lets the host choose ([`Listener::local_addr`] tells).
    fn listen(&self, address: SocketAddr) -> BoxFuture<'static, io::Result<Listener>>;
}
