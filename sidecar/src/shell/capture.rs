//! Takes in connections that a firewall's REDIRECT rule has sent here; their original destination says which import is meant.
//!
//! Own connections to the cluster must not come back: the rule exempts the sidecar's user, and what comes all the same is
//! reset, or a flow would go round for ever.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tombolo_clusterset::Snapshot;
use tombolo_clusterset::endpoint::Protocol;
use tombolo_clusterset::places::{Place, Target};
use tombolo_daemon::seam::net::{Listener, Stream};

use super::outbound::Outbound;
use crate::listeners;

/// The places of one snapshot, looked up per connection.
#[derive(Debug, Default)]
struct Index {
    of: Option<Arc<Snapshot>>,
    places: BTreeMap<Place, Target>,
}

impl Index {
    fn find(&mut self, snapshot: Arc<Snapshot>, place: Place) -> Option<Target> {
        if !self.of.as_ref().is_some_and(|of| Arc::ptr_eq(of, &snapshot)) {
            self.places = listeners::places(&snapshot);
            self.of = Some(snapshot);
        }
        self.places.get(&place).cloned()
    }
}

impl Outbound {
    /// Takes in captured connections until the drain begins.
    pub(super) async fn capture(self: Arc<Self>, listener: Listener) {
        let mut index = Index::default();
        let own = listener.local_addr().ok();
        loop {
            let accepted = tokio::select! {
                () = self.shutdown.drain() => return,
                accepted = listener.accept() => accepted,
            };
            let (client, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    self.pause(&error).await;
                    continue;
                }
            };
            match self.captured(&client, peer, own, &mut index) {
                Ok(target) => self.begin(client, peer, target),
                Err(reason) => {
                    self.warnings
                        .write(self.connector.seams.clock.now(), |suppressed| {
                            tracing::warn!(%peer, reason, suppressed, "captured connection reset");
                        });
                    client.abort();
                }
            }
        }
    }

    /// What a captured connection was meant for.
    fn captured(
        &self,
        client: &Stream,
        peer: SocketAddr,
        own: Option<SocketAddr>,
        index: &mut Index,
    ) -> Result<Target, String> {
        if self.own.lock().contains(&peer) {
            return Err("it is this sidecar's own; exempt its user from the redirect rule".to_owned());
        }
        let meant = original_destination(client)
            .map_err(|error| format!("its original destination is not known: {error}"))?;
        // Without a redirect the kernel gives the socket's own address.
        if own == Some(meant) || client.local_addr().is_ok_and(|local| local == meant) {
            return Err("it was not redirected but came straight to the capture listener".to_owned());
        }
        let place = Place {
            address: meant,
            protocol: Protocol::Tcp,
        };
        let snapshot = self.connector.view.snapshot().ok_or("there is no snapshot yet")?;
        index
            .find(snapshot, place)
            .ok_or_else(|| format!("{meant} is no import of this workload"))
    }
}

/// Where a redirected connection was meant to go (`SO_ORIGINAL_DST`).
fn original_destination(client: &Stream) -> io::Result<SocketAddr> {
    let Stream::Tcp(tcp) = client else {
        return Err(io::Error::other("it is no socket of this host"));
    };
    let socket = socket2::SockRef::from(tcp);
    let meant = match client.local_addr()? {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    meant?
        .as_socket()
        .ok_or_else(|| io::Error::other("it is no IP address"))
}
