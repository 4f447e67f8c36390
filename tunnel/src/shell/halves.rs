//! The two halves of a stream, whatever carries it.
//!
//! An end is [`SendHalf::finish`], a reset [`SendHalf::reset`] with [`RecvHalf::stop`]. Dropping a half that has not come to
//! its end resets it: what was cut off must never look complete.

use std::future::{pending, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use prost::Message;
use quinn::VarInt;
use tokio::io::ReadBuf;
use tombolo_wire::frame::{self, FrameError};

use crate::limits::FLOW_WINDOW;
use crate::metrics::Transport;

/// The code of a reset, on QUIC. The reason of a refusal travels in the reply; a reset says only that the flow is over.
const RESET: VarInt = VarInt::from_u32(1);

/// Bytes asked for at once while a frame is incomplete.
const FRAME_READ: usize = 2048;

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameReadError {
    #[error("the stream failed: {0}")]
    Io(#[from] io::Error),
    #[error("the stream ended within a frame")]
    Ended,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("a frame of {len} bytes was announced; at most {max} are allowed here")]
    TooLong { len: usize, max: usize },
}

/// The half that we write.
#[derive(Debug)]
pub(crate) struct SendHalf {
    sink: Sink,
    finished: bool,
}

#[derive(Debug)]
enum Sink {
    Quic(quinn::SendStream),
    H2(h2::SendStream<Bytes>),
}

impl SendHalf {
    pub(crate) fn quic(stream: quinn::SendStream) -> Self {
        Self {
            sink: Sink::Quic(stream),
            finished: false,
        }
    }

    pub(crate) fn h2(stream: h2::SendStream<Bytes>) -> Self {
        Self {
            sink: Sink::H2(stream),
            finished: false,
        }
    }

    pub(crate) fn transport(&self) -> Transport {
        match self.sink {
            Sink::Quic(_) => Transport::Quic,
            Sink::H2(_) => Transport::H2,
        }
    }

    /// Writes some of `bytes`, as much as flow control lets through.
    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        match &mut self.sink {
            Sink::Quic(stream) => Pin::new(stream).poll_write(cx, bytes).map_err(io::Error::from),
            Sink::H2(stream) => {
                let room = ready!(poll_room(stream, cx, bytes.len()))?;
                let len = room.min(bytes.len());
                stream
                    .send_data(Bytes::copy_from_slice(&bytes[..len]), false)
                    .map_err(h2_error)?;
                Poll::Ready(Ok(len))
            }
        }
    }

    /// Writes all of `bytes` without copying them. Not cancel-safe: a part may have been written.
    pub(crate) async fn write(&mut self, mut bytes: Bytes) -> io::Result<()> {
        match &mut self.sink {
            Sink::Quic(stream) => Ok(stream.write_chunk(bytes).await?),
            Sink::H2(stream) => {
                while !bytes.is_empty() {
                    let room = poll_fn(|cx| poll_room(stream, cx, bytes.len())).await?;
                    let part = bytes.split_to(room.min(bytes.len()));
                    stream.send_data(part, false).map_err(h2_error)?;
                }
                Ok(())
            }
        }
    }

    /// Ends this direction. A second time it does nothing.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.finished, true) {
            return Ok(());
        }
        match &mut self.sink {
            Sink::Quic(stream) => stream
                .finish()
                .map_err(|error| io::Error::new(io::ErrorKind::BrokenPipe, error)),
            Sink::H2(stream) => stream.send_data(Bytes::new(), true).map_err(h2_error),
        }
    }

    /// Aborts this direction, also when it has finished; on HTTP/2, both.
    pub(crate) fn reset(&mut self) {
        self.finished = true;
        match &mut self.sink {
            // An error says that the stream is over already, which is what we want.
            Sink::Quic(stream) => drop(stream.reset(RESET)),
            Sink::H2(stream) => stream.send_reset(h2::Reason::CANCEL),
        }
    }

    /// Resolves when the peer will read no more, before we have finished.
    pub(crate) async fn stopped(&mut self) {
        match &mut self.sink {
            Sink::Quic(stream) => {
                // None: the peer has read it to its end, which is none of the ends that are asked for.
                if let Ok(None) = stream.stopped().await {
                    pending().await
                }
            }
            // Any outcome is an end.
            Sink::H2(stream) => drop(poll_fn(|cx| stream.poll_reset(cx)).await),
        }
    }

    /// Sends this stream's data before that of others.
    pub(crate) fn prefer(&mut self) {
        if let Sink::Quic(stream) = &mut self.sink {
            // An error says that the stream is over.
            drop(stream.set_priority(1));
        }
    }
}

impl Drop for SendHalf {
    fn drop(&mut self) {
        if !self.finished {
            self.reset();
        }
    }
}

/// Room for up to `wanted` bytes.
fn poll_room(
    stream: &mut h2::SendStream<Bytes>,
    cx: &mut Context<'_>,
    wanted: usize,
) -> Poll<io::Result<usize>> {
    stream.reserve_capacity(wanted);
    loop {
        let room = stream.capacity();
        if room > 0 {
            return Poll::Ready(Ok(room));
        }
        match ready!(stream.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Poll::Ready(Err(h2_error(error))),
            None => {
                let closed = io::Error::new(io::ErrorKind::BrokenPipe, "the stream was closed");
                return Poll::Ready(Err(closed));
            }
        }
    }
}

/// The half that we read.
#[derive(Debug)]
pub(crate) struct RecvHalf {
    source: Source,
    /// Bytes that arrived with a frame, or were fetched ahead.
    ahead: BytesMut,
    /// Of those, how many still hold the sender's window.
    held: usize,
    ended: bool,
}

#[derive(Debug)]
enum Source {
    Quic(quinn::RecvStream),
    H2(h2::RecvStream),
}

impl RecvHalf {
    pub(crate) fn quic(stream: quinn::RecvStream) -> Self {
        Self::new(Source::Quic(stream))
    }

    pub(crate) fn h2(stream: h2::RecvStream) -> Self {
        Self::new(Source::H2(stream))
    }

    fn new(source: Source) -> Self {
        Self {
            source,
            ahead: BytesMut::new(),
            held: 0,
            ended: false,
        }
    }

    /// The next bytes, at most about `want`; None at the end. `scratch` saves allocations between calls. Cancel-safe.
    pub(crate) async fn next(&mut self, scratch: &mut BytesMut, want: usize) -> io::Result<Option<Bytes>> {
        poll_fn(|cx| self.poll_next(cx, scratch, want)).await
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut BytesMut,
        want: usize,
    ) -> Poll<io::Result<Option<Bytes>>> {
        if !self.ahead.is_empty() {
            let bytes = self.ahead.split_to(self.ahead.len().min(want)).freeze();
            self.release_held(bytes.len())?;
            return Poll::Ready(Ok(Some(bytes)));
        }
        if self.ended {
            return Poll::Ready(Ok(None));
        }
        match &mut self.source {
            Source::Quic(stream) => {
                scratch.reserve(want);
                let read = ready!(tokio_util::io::poll_read_buf(Pin::new(stream), cx, scratch))?;
                self.ended = read == 0;
                Poll::Ready(Ok((read > 0).then(|| scratch.split().freeze())))
            }
            Source::H2(stream) => {
                let Some(data) = ready!(poll_data(stream, cx))? else {
                    self.ended = true;
                    return Poll::Ready(Ok(None));
                };
                release(stream, data.len())?;
                Poll::Ready(Ok(Some(data)))
            }
        }
    }

    /// Gathers what arrives in one buffer while the reader is busy, up to the flow's window, without letting the sender
    /// send more. Never resolves. HTTP/2 only: there a peer's many small frames would each take memory of their own, and a
    /// connection that holds too many is closed ([`h2::server::Builder::data_frame_budget`]). Cancel-safe.
    pub(crate) async fn fetch_ahead(&mut self) {
        if let Source::H2(stream) = &mut self.source {
            while !self.ended && self.ahead.len() < FLOW_WINDOW as usize {
                match poll_fn(|cx| poll_data(stream, cx)).await {
                    Ok(Some(data)) => {
                        self.held += data.len();
                        self.ahead.extend_from_slice(&data);
                    }
                    Ok(None) => self.ended = true,
                    // The reader meets the same error at its next read.
                    Err(_) => break,
                }
            }
        }
        pending().await
    }

    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if self.ahead.is_empty() && !self.ended {
            match &mut self.source {
                Source::Quic(stream) => {
                    let before = buffer.filled().len();
                    ready!(tokio::io::AsyncRead::poll_read(Pin::new(stream), cx, buffer))?;
                    self.ended = buffer.filled().len() == before;
                    return Poll::Ready(Ok(()));
                }
                Source::H2(stream) => match ready!(poll_data(stream, cx))? {
                    Some(data) => {
                        self.held += data.len();
                        self.ahead.extend_from_slice(&data);
                    }
                    None => self.ended = true,
                },
            }
        }
        let taken = self.ahead.split_to(self.ahead.len().min(buffer.remaining()));
        buffer.put_slice(&taken);
        self.release_held(taken.len())?;
        Poll::Ready(Ok(()))
    }

    /// The next frame, at most `max` bytes long. What follows it stays for the next read. Cancel-safe.
    pub(crate) async fn frame<M: Message + Default>(&mut self, max: usize) -> Result<M, FrameReadError> {
        let mut scratch = BytesMut::new();
        // What this call reads past `ahead` no longer holds the window.
        self.release_held(self.ahead.len())?;
        loop {
            if let Some(prefix) = self.ahead.first_chunk::<{ frame::PREFIX }>() {
                let len = u32::from_be_bytes(*prefix) as usize;
                if len > max {
                    return Err(FrameReadError::TooLong { len, max });
                }
            }
            if let Some(message) = frame::decode(&mut self.ahead)? {
                return Ok(message);
            }
            if self.ended {
                return Err(FrameReadError::Ended);
            }
            match poll_fn(|cx| self.poll_more(cx, &mut scratch)).await? {
                Some(bytes) => self.ahead.extend_from_slice(&bytes),
                None => self.ended = true,
            }
        }
    }

    /// Waits for the first byte, and leaves it there. False when the stream ended without one. Cancel-safe.
    pub(crate) async fn has_begun(&mut self) -> io::Result<bool> {
        if self.ahead.is_empty() && !self.ended {
            let mut scratch = BytesMut::new();
            match poll_fn(|cx| self.poll_more(cx, &mut scratch)).await? {
                Some(bytes) => self.ahead.extend_from_slice(&bytes),
                None => self.ended = true,
            }
        }
        Ok(!self.ahead.is_empty())
    }

    /// More bytes from the source, whatever is ahead.
    fn poll_more(&mut self, cx: &mut Context<'_>, scratch: &mut BytesMut) -> Poll<io::Result<Option<Bytes>>> {
        let ahead = std::mem::take(&mut self.ahead);
        let more = self.poll_next(cx, scratch, FRAME_READ);
        self.ahead = ahead;
        more
    }

    /// Tells the peer that nothing more will be read.
    pub(crate) fn stop(&mut self) {
        if let Source::Quic(stream) = &mut self.source {
            // An error says that the stream is over already.
            drop(stream.stop(RESET));
        }
    }

    fn release_held(&mut self, len: usize) -> io::Result<()> {
        let len = len.min(self.held);
        self.held -= len;
        match &mut self.source {
            Source::H2(stream) if len > 0 => release(stream, len),
            _ => Ok(()),
        }
    }
}

impl Drop for RecvHalf {
    fn drop(&mut self) {
        if !self.ended {
            self.stop();
        }
    }
}

fn poll_data(stream: &mut h2::RecvStream, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
    stream
        .poll_data(cx)
        .map(|data| data.transpose().map_err(h2_error))
}

fn release(stream: &mut h2::RecvStream, len: usize) -> io::Result<()> {
    stream.flow_control().release_capacity(len).map_err(h2_error)
}

/// A reset stays recognisable as one.
pub(crate) fn h2_error(error: h2::Error) -> io::Error {
    if error.is_reset() {
        return io::Error::new(io::ErrorKind::ConnectionReset, error);
    }
    match error.is_io() {
        true => error
            .into_io()
            .unwrap_or_else(|| io::Error::other("the connection failed")),
        false => io::Error::other(error),
    }
}
