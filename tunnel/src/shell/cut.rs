//! Drills cut links here: packets stop, nothing closes (DESIGN §7).
//!
//! QUIC packets from and to a peer that is cut vanish in [`CutSocket`]; a TCP connection stalls in [`CutStream`]. Both ask
//! one [`CutSet`], and go on by themselves when it heals.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};

use parking_lot::RwLock;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tombolo_clusterset::ClusterId;
use tombolo_daemon::seam::net::Stream;

/// What is cut, and which peer addresses belong to which cluster.
#[derive(Debug, Default)]
pub(crate) struct CutSet {
    /// Whether anything is cut at all: the only question a packet asks in ordinary times.
    active: AtomicBool,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    everything: bool,
    clusters: BTreeSet<ClusterId>,
    /// Cluster of each peer address, with the number of tunnels and dials that say so.
    addresses: BTreeMap<SocketAddr, (ClusterId, usize)>,
    /// Stalled streams.
    wakers: Vec<Waker>,
}

impl CutSet {
    /// Cuts these and heals all others.
    pub(crate) fn set(&self, clusters: BTreeSet<ClusterId>, everything: bool) {
        let mut state = self.state.write();
        self.active
            .store(everything || !clusters.is_empty(), Ordering::Release);
        state.everything = everything;
        state.clusters = clusters;
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Remembers that `address` belongs to `cluster` for as long as the answer lives.
    pub(crate) fn name(self: &Arc<Self>, address: SocketAddr, cluster: &ClusterId) -> NamedAddress {
        let address = canonical(address);
        self.state.write().named(address, cluster);
        NamedAddress {
            set: Arc::clone(self),
            address,
            cluster: cluster.clone(),
        }
    }

    fn cuts_address(&self, address: SocketAddr) -> bool {
        if !self.active.load(Ordering::Acquire) {
            return false;
        }
        let state = self.state.read();
        let cluster = state
            .addresses
            .get(&canonical(address))
            .map(|(cluster, _)| cluster);
        state.cuts(cluster)
    }

    /// Whether a stream of `cluster` is to stall; if so, `cx` is woken at the next change.
    fn stalls(&self, cluster: Option<&ClusterId>, cx: &Context<'_>) -> bool {
        if !self.active.load(Ordering::Acquire) {
            return false;
        }
        let mut state = self.state.write();
        let stalls = state.cuts(cluster);
        if stalls && !state.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            state.wakers.push(cx.waker().clone());
        }
        stalls
    }
}

impl State {
    fn named(&mut self, address: SocketAddr, cluster: &ClusterId) {
        self.addresses
            .entry(address)
            .or_insert_with(|| (cluster.clone(), 0))
            .1 += 1;
    }

    fn forgotten(&mut self, address: SocketAddr) {
        if let Some((_, uses)) = self.addresses.get_mut(&address) {
            *uses -= 1;
            if *uses == 0 {
                self.addresses.remove(&address);
            }
        }
    }

    fn cuts(&self, cluster: Option<&ClusterId>) -> bool {
        self.everything || cluster.is_some_and(|cluster| self.clusters.contains(cluster))
    }
}

/// Keeps an address known as a cluster's.
pub(crate) struct NamedAddress {
    set: Arc<CutSet>,
    address: SocketAddr,
    cluster: ClusterId,
}

impl NamedAddress {
    /// The peer may have moved.
    pub(crate) fn follow(&mut self, address: SocketAddr) {
        let address = canonical(address);
        if address != self.address {
            let mut state = self.set.state.write();
            state.forgotten(self.address);
            state.named(address, &self.cluster);
            self.address = address;
        }
    }
}

impl Drop for NamedAddress {
    fn drop(&mut self) {
        self.set.state.write().forgotten(self.address);
    }
}

impl fmt::Debug for NamedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NamedAddress({})", self.address)
    }
}

/// A dual-stack socket shows IPv4 peers as mapped addresses.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A UDP socket that swallows packets of peers that are cut.
#[derive(Debug)]
pub(crate) struct CutSocket {
    pub(crate) inner: Arc<dyn AsyncUdpSocket>,
    pub(crate) cut: Arc<CutSet>,
}

impl AsyncUdpSocket for CutSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.cut.cuts_address(transmit.destination) {
            return Ok(());
        }
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = self.inner.poll_recv(cx, buffers, meta);
        if let Poll::Ready(Ok(count)) = received {
            for meta in meta
                .iter_mut()
                .take(count)
                .filter(|meta| self.cut.cuts_address(meta.addr))
            {
                meta.len = 0;
            }
        }
        received
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

/// A TCP connection that stalls while its peer is cut. Whose it is may become known only after the handshake.
#[derive(Debug)]
pub(crate) struct CutStream {
    inner: Stream,
    cut: Arc<CutSet>,
    cluster: Arc<OnceLock<ClusterId>>,
}

impl CutStream {
    pub(crate) fn new(inner: Stream, cut: Arc<CutSet>, cluster: Arc<OnceLock<ClusterId>>) -> Self {
        Self { inner, cut, cluster }
    }

    fn stalls(&self, cx: &Context<'_>) -> bool {
        self.cut.stalls(self.cluster.get(), cx)
    }
}

impl AsyncRead for CutStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.stalls(cx) {
            Poll::Pending
        } else {
            Pin::new(&mut self.inner).poll_read(cx, buffer)
        }
    }
}

impl AsyncWrite for CutStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.stalls(cx) {
            Poll::Pending
        } else {
            Pin::new(&mut self.inner).poll_write(cx, bytes)
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.stalls(cx) {
            Poll::Pending
        } else {
            Pin::new(&mut self.inner).poll_write_vectored(cx, bytes)
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.stalls(cx) {
            Poll::Pending
        } else {
            Pin::new(&mut self.inner).poll_flush(cx)
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.stalls(cx) {
            Poll::Pending
        } else {
            Pin::new(&mut self.inner).poll_shutdown(cx)
        }
    }
}
