//! UDP flows of a tunnel.
//!
//! The side that accepts a flow names it; its stream stays open as the flow's life-line, and carries what is too large for a
//! datagram as capsules. Nothing is retransmitted unless it went as a capsule, and nothing too large is dropped.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::capsule;
use crate::flow::{Flow, FlowError, Running};
use crate::limits::{EARLY_DATAGRAMS, UDP_QUEUE};
use crate::metrics::{Direction, Metrics};
use crate::shell::carrier::DatagramSent;
use crate::shell::halves::{RecvHalf, SendHalf};
use crate::tunnel::Tunnel;

/// Bytes asked of the stream at once: a large payload in a few reads.
const READ: usize = 16 * 1024;

/// A connected UDP flow. Dropping it ends it for both sides.
#[derive(Debug)]
pub struct UdpFlow {
    sender: UdpSender,
    receiver: UdpReceiver,
}

impl UdpFlow {
    pub(crate) fn new(tunnel: Tunnel, flow: Flow, lane: Lane) -> Self {
        let id = lane.id();
        let Flow { send, recv, running } = flow;
        let running = Arc::new(running);
        let receiver = UdpReceiver {
            recv,
            capsules: BytesMut::new(),
            scratch: BytesMut::new(),
            lane,
            ended: false,
            _running: Arc::clone(&running),
        };
        Self {
            sender: UdpSender {
                tunnel,
                id,
                send,
                _running: running,
            },
            receiver,
        }
    }

    /// See [`UdpSender::send`].
    ///
    /// # Errors
    /// As there.
    pub async fn send(&mut self, payload: Bytes) -> Result<(), FlowError> {
        self.sender.send(payload).await
    }

    /// See [`UdpReceiver::recv`].
    pub async fn recv(&mut self) -> Option<Bytes> {
        self.receiver.recv().await
    }

    /// Two halves for two tasks. Dropping either ends the flow for the peer.
    #[must_use]
    pub fn split(self) -> (UdpSender, UdpReceiver) {
        (self.sender, self.receiver)
    }
}

/// The half of a UDP flow that sends.
#[derive(Debug)]
pub struct UdpSender {
    tunnel: Tunnel,
    id: u64,
    send: SendHalf,
    _running: Arc<Running>,
}

impl UdpSender {
    /// Sends one payload, up to 65,527 bytes; waits for room.
    ///
    /// # Errors
    /// [`FlowError::Payload`] when it is too long; [`FlowError::Abandoned`] when the flow is over.
    pub async fn send(&mut self, payload: Bytes) -> Result<(), FlowError> {
        let carrier = &self.tunnel.inner().carrier;
        let len = capsule::varint_len(self.id) + payload.len();
        if carrier.max_datagram().is_some_and(|max| len <= max) {
            match carrier
                .send_datagram(capsule::encode_datagram(self.id, &payload))
                .await
            {
                DatagramSent::Sent => return Ok(()),
                DatagramSent::Closed => return Err(io::Error::from(io::ErrorKind::NotConnected).into()),
                // The path shrank meanwhile.
                DatagramSent::TooLarge => {}
            }
        }
        Ok(self.send.write(capsule::encode_capsule(&payload)?).await?)
    }

    /// Resolves when the other side has ended the flow. Cancel-safe.
    pub async fn stopped(&mut self) {
        self.send.stopped().await;
    }
}

impl Drop for UdpSender {
    fn drop(&mut self) {
        if let Err(error) = self.send.finish() {
            tracing::trace!(%error, "UDP flow was over already");
        }
    }
}

/// The half of a UDP flow that receives.
#[derive(Debug)]
pub struct UdpReceiver {
    recv: RecvHalf,
    /// Bytes of the stream that are not a whole capsule yet.
    capsules: BytesMut,
    scratch: BytesMut,
    lane: Lane,
    ended: bool,
    _running: Arc<Running>,
}

impl UdpReceiver {
    /// The next payload; None when the other side has ended the flow, or the tunnel is gone. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Bytes> {
        loop {
            match capsule::decode_capsule(&mut self.capsules) {
                Ok(Some(payload)) => return Some(payload),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%error, "UDP flow ended by its peer's mistake");
                    self.ended = true;
                    self.capsules.clear();
                }
            }
            if self.ended {
                // What arrived before the end still counts.
                return self.lane.queue.try_recv().ok();
            }
            tokio::select! {
                biased;
                Some(payload) = self.lane.queue.recv() => return Some(payload),
                more = self.recv.next(&mut self.scratch, READ) => match more {
                    Ok(Some(bytes)) => self.capsules.extend_from_slice(&bytes),
                    Ok(None) => self.ended = true,
                    Err(error) => {
                        tracing::trace!(%error, "UDP flow was reset");
                        self.ended = true;
                    }
                },
            }
        }
    }
}

/// Where the datagrams of a tunnel's flows go.
#[derive(Debug)]
pub(crate) struct Datagrams {
    lanes: Mutex<Lanes>,
    metrics: Metrics,
}

#[derive(Debug)]
struct Lanes {
    by_id: HashMap<u64, mpsc::Sender<Bytes>>,
    /// Payloads whose flow we do not know yet: they overtook the answer that names it.
    early: VecDeque<(u64, Bytes)>,
    next: u64,
}

impl Datagrams {
    /// The dialler gives out even ids, the listener odd ones, so that both can at once.
    pub(crate) fn new(direction: Direction, metrics: Metrics) -> Self {
        let next = match direction {
            Direction::Outbound => 2,
            Direction::Inbound => 1,
        };
        Self {
            lanes: Mutex::new(Lanes {
                by_id: HashMap::new(),
                early: VecDeque::new(),
                next,
            }),
            metrics,
        }
    }

    /// A lane under an id of ours.
    pub(crate) fn open(self: &Arc<Self>) -> Lane {
        let mut lanes = self.lanes.lock();
        let id = lanes.next;
        lanes.next += 2;
        let (sender, queue) = mpsc::channel(UDP_QUEUE);
        lanes.by_id.insert(id, sender);
        Lane {
            id,
            queue,
            datagrams: Arc::clone(self),
        }
    }

    /// A lane under an id that the peer gave out; None when it is ours to give out, or taken.
    pub(crate) fn join(self: &Arc<Self>, id: u64) -> Option<Lane> {
        let mut lanes = self.lanes.lock();
        let is_ours = id % 2 == lanes.next % 2;
        if id == 0 || id > capsule::VARINT_MAX || is_ours || lanes.by_id.contains_key(&id) {
            return None;
        }
        let (sender, queue) = mpsc::channel(UDP_QUEUE);
        let (own, others) = std::mem::take(&mut lanes.early)
            .into_iter()
            .partition(|(early, _)| *early == id);
        lanes.early = others;
        let own: VecDeque<(u64, Bytes)> = own;
        for (_, payload) in own {
            // There are fewer early ones than a queue holds.
            drop(sender.try_send(payload));
        }
        lanes.by_id.insert(id, sender);
        Some(Lane {
            id,
            queue,
            datagrams: Arc::clone(self),
        })
    }

    /// Takes a datagram from the wire. One that nobody waits for is held for a while; one too many is dropped and counted.
    pub(crate) fn take(&self, datagram: Bytes) {
        let Some((id, payload)) = capsule::decode_datagram(datagram) else {
            return self.metrics.datagram_dropped();
        };
        let mut lanes = self.lanes.lock();
        match lanes.by_id.get(&id) {
            Some(lane) => {
                if lane.try_send(payload).is_err() {
                    self.metrics.datagram_dropped();
                }
            }
            None => {
                if lanes.early.len() == EARLY_DATAGRAMS {
                    lanes.early.pop_front();
                    self.metrics.datagram_dropped();
                }
                lanes.early.push_back((id, payload));
            }
        }
    }
}

/// The datagrams of one flow.
#[derive(Debug)]
pub(crate) struct Lane {
    id: u64,
    queue: mpsc::Receiver<Bytes>,
    datagrams: Arc<Datagrams>,
}

impl Lane {
    pub(crate) fn id(&self) -> u64 {
        self.id
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.datagrams.lanes.lock().by_id.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(id: u64, text: &'static str) -> Bytes {
        capsule::encode_datagram(id, text.as_bytes())
    }

    #[test]
    fn datagrams_that_overtake_their_flow_are_kept_for_it() {
        let datagrams = Arc::new(Datagrams::new(Direction::Outbound, Metrics::default()));
        datagrams.take(datagram(3, "early"));
        datagrams.take(datagram(5, "other"));
        let mut lane = datagrams.join(3).unwrap();
        datagrams.take(datagram(3, "later"));
        let heard: Vec<_> = std::iter::from_fn(|| lane.queue.try_recv().ok()).collect();
        assert_eq!(heard, ["early", "later"]);
    }

    #[test]
    fn a_peer_cannot_name_a_flow_that_is_ours_or_taken() {
        let datagrams = Arc::new(Datagrams::new(Direction::Outbound, Metrics::default()));
        let own = datagrams.open();
        let theirs = datagrams.join(3);
        assert_eq!(own.id(), 2);
        assert!(theirs.is_some());
        for id in [0, 2, 4, 3, u64::MAX] {
            assert!(datagrams.join(id).is_none(), "{id}");
        }
        drop(theirs);
        assert!(datagrams.join(3).is_some(), "a flow that is over frees its id");
    }

    #[test]
    fn queues_are_bounded() {
        let datagrams = Arc::new(Datagrams::new(Direction::Inbound, Metrics::default()));
        let mut lane = datagrams.open();
        for _ in 0..UDP_QUEUE + 10 {
            datagrams.take(datagram(1, "x"));
            datagrams.take(datagram(99, "nobody"));
        }
        assert_eq!(
            std::iter::from_fn(|| lane.queue.try_recv().ok()).count(),
            UDP_QUEUE
        );
        assert_eq!(datagrams.lanes.lock().early.len(), EARLY_DATAGRAMS);
    }
}
