//! Carries bytes between a local connection and a flow, both ways, until both directions have ended.
//!
//! An end in one direction (FIN) ends that direction on the other side and leaves the other one open. An error or a reset on
//! either side ends both with a reset: what was cut off must never look complete.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tombolo_daemon::seam::net::Stream;

use crate::flow::Flow;
use crate::shell::halves::{RecvHalf, SendHalf};

/// First read size, bytes: most flows are small, and thousands of them are open.
pub const BUFFER_MIN: usize = 4 * 1024;

/// Largest read size, bytes: a flow that fills its buffer gets twice the size, up to here, where the cost of a system call
/// no longer counts.
pub const BUFFER_MAX: usize = 64 * 1024;

/// How a forwarding ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Both directions ended.
    Normally,
    /// The local side failed or was reset.
    ByLocal(String),
    /// The flow was reset, or its tunnel closed.
    ByFlow(String),
}

/// What was carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarded {
    /// Bytes from the local side into the tunnel.
    pub bytes_out: u64,
    /// Bytes from the tunnel to the local side.
    pub bytes_in: u64,
    /// How it ended.
    pub ended: Ended,
}

/// Forwards until both directions have ended or one has failed. Dropping the future resets both sides. A reader that is
/// slow stops the sender: nothing is held here but one buffer per direction, and what the flow's window lets through.
pub async fn forward(local: Stream, flow: Flow) -> Forwarded {
    forward_with(local, flow, Bytes::new()).await
}

/// As [`forward`], with bytes that were already read from the local side, and go first.
pub async fn forward_with(local: Stream, mut flow: Flow, first: Bytes) -> Forwarded {
    // Until both ends were seen, letting go of the socket must read as a reset.
    linger(&local, Some(Duration::ZERO));
    let (mut reader, mut writer) = tokio::io::split(local);
    let (mut bytes_out, mut bytes_in) = (0, 0);
    let both = async {
        tokio::try_join!(
            outward(&mut reader, &mut flow.send, first, &mut bytes_out),
            inward(&mut flow.recv, &mut writer, &mut bytes_in),
        )
    };
    let ended = match both.await {
        Ok(_) => Ended::Normally,
        Err(ended) => ended,
    };
    let local = reader.unsplit(writer);
    match &ended {
        // What is still in the socket's buffer must be delivered.
        Ended::Normally => linger(&local, None),
        Ended::ByLocal(_) | Ended::ByFlow(_) => {
            flow.reset();
            local.abort();
        }
    }
    Forwarded {
        bytes_out,
        bytes_in,
        ended,
    }
}

/// What dropping the socket means: a reset (zero), or an ordinary end.
fn linger(local: &Stream, duration: Option<Duration>) {
    if let Stream::Tcp(tcp) = local
        && let Err(error) = socket2::SockRef::from(tcp).set_linger(duration)
    {
        tracing::trace!(%error, "connection was gone already");
    }
}

/// From the local side into the tunnel.
async fn outward(
    from: &mut ReadHalf<Stream>,
    to: &mut SendHalf,
    first: Bytes,
    carried: &mut u64,
) -> Result<(), Ended> {
    if !first.is_empty() {
        *carried += first.len() as u64;
        to.write(first).await.map_err(by_flow)?;
    }
    let mut size = BUFFER_MIN;
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(size);
        let read = tokio::select! {
            biased;
            read = from.read_buf(&mut buffer) => read.map_err(by_local)?,
            // A peer that reads no more is noticed although nothing is to be sent.
            () = to.stopped() => return Err(Ended::ByFlow("the other side reads no more".to_owned())),
        };
        if read == 0 {
            return to.finish().map_err(by_flow);
        }
        *carried += read as u64;
        to.write(buffer.split().freeze()).await.map_err(by_flow)?;
        size = grown(size, read);
    }
}

/// From the tunnel to the local side.
async fn inward(from: &mut RecvHalf, to: &mut WriteHalf<Stream>, carried: &mut u64) -> Result<(), Ended> {
    let mut size = BUFFER_MIN;
    let mut scratch = BytesMut::new();
    while let Some(bytes) = from.next(&mut scratch, size).await.map_err(by_flow)? {
        *carried += bytes.len() as u64;
        size = grown(size, bytes.len());
        tokio::select! {
            biased;
            written = to.write_all(&bytes) => written.map_err(by_local)?,
            () = from.fetch_ahead() => {}
        }
    }
    to.shutdown().await.map_err(by_local)
}

/// Twice the size for a flow that has filled its buffer.
fn grown(size: usize, read: usize) -> usize {
    if read >= size {
        (size * 2).min(BUFFER_MAX)
    } else {
        size
    }
}

fn by_flow(error: io::Error) -> Ended {
    Ended::ByFlow(error.to_string())
}

fn by_local(error: io::Error) -> Ended {
    Ended::ByLocal(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_grow_with_use_and_no_further() {
        let mut size = BUFFER_MIN;
        assert_eq!(grown(size, size - 1), size);
        for _ in 0..10 {
            size = grown(size, size);
        }
        assert_eq!(size, BUFFER_MAX);
    }
}
