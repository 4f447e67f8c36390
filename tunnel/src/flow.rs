//! One flow of a tunnel: a TCP connection, carried.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tombolo_trust::SpiffeId;

use crate::header::FlowHeader;
use crate::limits::HEADER_TIMEOUT;
use crate::metrics::{Direction, Transport};
use crate::reply::{Refusal, Reply};
use crate::shell::halves::{RecvHalf, SendHalf};
use crate::tunnel::{Inner, Tunnel};
use crate::udp::UdpFlow;

/// Bytes that a refused opener may have sent already are thrown away in pieces of this size.
const REST: usize = 4 * 1024;

/// Why a flow could not go on.
#[derive(Debug, thiserror::Error)]
pub enum FlowError {
    /// The opener has given up, or the tunnel is gone.
    #[error("the flow was abandoned by its opener, or its tunnel closed: {0}")]
    Abandoned(#[from] io::Error),
    /// `accept` for a UDP flow, or `accept_udp` for a TCP flow.
    #[error("the flow is of the other protocol; its header says which")]
    OtherProtocol,
    /// A UDP payload that no socket gives.
    #[error(transparent)]
    Payload(#[from] crate::capsule::PayloadTooLong),
}

/// A connected flow. `shutdown` ends our direction (FIN) and leaves the other open; [`Flow::reset`] ends both (RST).
/// Dropping it before both directions have ended resets what is left.
#[derive(Debug)]
pub struct Flow {
    pub(crate) send: SendHalf,
    pub(crate) recv: RecvHalf,
    pub(crate) running: Running,
}

impl Flow {
    /// Over what it runs.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.send.transport()
    }

    /// Ends both directions at once; the far side sees a reset.
    pub fn reset(mut self) {
        self.abort();
    }

    pub(crate) fn abort(&mut self) {
        self.send.reset();
        self.recv.stop();
    }
}

impl AsyncRead for Flow {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.recv.poll_read(cx, buffer)
    }
}

impl AsyncWrite for Flow {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.send.poll_write(cx, bytes)
    }

    /// Nothing is held back: what was written is with the connection.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.send.finish())
    }
}

/// Counts a flow for as long as it lives.
#[derive(Debug)]
pub(crate) struct Running(Arc<Inner>);

impl Running {
    pub(crate) fn new(tunnel: Arc<Inner>, direction: Direction) -> Self {
        tunnel.flow_began(direction);
        Self(tunnel)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.flow_ended();
    }
}

/// A flow that the peer opens: its header is checked, its source is the peer's to speak for. Answer it with exactly one of
/// [`IncomingFlow::accept`], [`IncomingFlow::accept_udp`] and [`IncomingFlow::refuse`]; dropping it resets the stream.
#[derive(Debug)]
pub struct IncomingFlow {
    tunnel: Tunnel,
    header: FlowHeader,
    flow: Flow,
}

impl IncomingFlow {
    pub(crate) fn new(tunnel: Tunnel, header: FlowHeader, flow: Flow) -> Self {
        Self { tunnel, header, flow }
    }

    /// Who opens it: the identity of the tunnel's peer. The client stands in the header.
    #[must_use]
    pub fn peer(&self) -> &SpiffeId {
        self.tunnel.peer()
    }

    /// What it is for.
    #[must_use]
    pub fn header(&self) -> &FlowHeader {
        &self.header
    }

    /// The tunnel that it came in.
    #[must_use]
    pub fn tunnel(&self) -> &Tunnel {
        &self.tunnel
    }

    /// Resolves when the opener gives up before it was answered. Cancel-safe.
    pub async fn abandoned(&mut self) {
        self.flow.send.stopped().await;
    }

    /// Says *connected*.
    ///
    /// # Errors
    /// [`FlowError::Abandoned`]: close what was connected for it. [`FlowError::OtherProtocol`] for a UDP flow.
    pub async fn accept(mut self) -> Result<Flow, FlowError> {
        if self.header.protocol != tombolo_clusterset::endpoint::Protocol::Tcp {
            return Err(FlowError::OtherProtocol);
        }
        self.answer(&Reply::Connected { datagram_flow: 0 }).await?;
        Ok(self.flow)
    }

    /// Says *connected*, to a UDP flow.
    ///
    /// # Errors
    /// [`FlowError::Abandoned`]; [`FlowError::OtherProtocol`] for a TCP flow.
    pub async fn accept_udp(mut self) -> Result<UdpFlow, FlowError> {
        if self.header.protocol != tombolo_clusterset::endpoint::Protocol::Udp {
            return Err(FlowError::OtherProtocol);
        }
        let lane = self.tunnel.inner().datagrams.open();
        self.answer(&Reply::Connected {
            datagram_flow: lane.id(),
        })
        .await?;
        Ok(UdpFlow::new(self.tunnel, self.flow, lane))
    }

    /// Says *refused*, with the reason and one line of detail for the other side's log. Returns when the opener has taken it,
    /// or has had 5 s to.
    pub async fn refuse(mut self, refusal: Refusal, detail: &str) {
        self.tunnel.inner().metrics.refused(refusal);
        tracing::debug!(peer = %self.peer(), service = %self.header.service, port = self.header.port, %refusal, detail, "flow refused");
        refuse(&mut self.flow, refusal, detail).await;
    }

    async fn answer(&mut self, reply: &Reply) -> io::Result<()> {
        let frame = tombolo_wire::frame::encode(&reply.to_wire()).map_err(io::Error::other)?;
        self.flow.send.write(frame).await
    }
}

/// Sends a refusal; an opener that has gone does not need it.
///
/// Waits for the opener's own end: an HTTP/2 client that lets go of a stream before takes back what it has just sent.
pub(crate) async fn refuse(flow: &mut Flow, refusal: Refusal, detail: &str) {
    let sent = match tombolo_wire::frame::encode(&Reply::refused(refusal, detail).to_wire()) {
        Ok(frame) => flow.send.write(frame).await,
        Err(error) => Err(io::Error::other(error)),
    };
    if let Err(error) = sent.and_then(|()| flow.send.finish()) {
        return tracing::debug!(%error, %refusal, "refusal did not reach its flow");
    }
    let ended = async {
        let mut scratch = BytesMut::new();
        while let Ok(Some(_)) = flow.recv.next(&mut scratch, REST).await {}
    };
    // An opener that does not end is reset.
    drop(tokio::time::timeout(HEADER_TIMEOUT, ended).await);
}
