//! Frames of the tunnel's control stream and flow headers: a length of 4 bytes (big endian), then one message.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

/// Longest frame, bytes: a flow header with the longest names, a SPIFFE id (2 KiB) and a trace context stays below half.
pub const MAX_FRAME: usize = 16 * 1024;

/// Bytes of the length prefix.
pub const PREFIX: usize = 4;

/// Why bytes are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length says more than [`MAX_FRAME`].
    #[error(
        "a frame of {len} bytes was announced; at most {MAX_FRAME} are allowed. The peer does not speak this protocol, or not this version"
    )]
    TooLong {
        /// Announced length, bytes.
        len: usize,
    },
    /// The body is no message of the expected type.
    #[error("a frame does not decode: {0}")]
    Malformed(#[from] prost::DecodeError),
}

/// The frame that carries `message`.
///
/// # Errors
/// [`FrameError::TooLong`] when the message does not fit.
pub fn encode(message: &impl Message) -> Result<Bytes, FrameError> {
    let len = message.encoded_len();
    if len > MAX_FRAME {
        return Err(FrameError::TooLong { len });
    }
    let mut frame = BytesMut::with_capacity(PREFIX + len);
    // The length is at most MAX_FRAME, which fits.
    frame.put_u32(u32::try_from(len).map_err(|_| FrameError::TooLong { len })?);
    frame.extend_from_slice(&message.encode_to_vec());
    Ok(frame.freeze())
}

/// The next whole message at the front of `buffer`, taken off it; None when more bytes are needed.
///
/// # Errors
/// [`FrameError`] when the bytes can never become a frame: close the stream.
pub fn decode<M: Message + Default>(buffer: &mut BytesMut) -> Result<Option<M>, FrameError> {
    let Some(prefix) = buffer.first_chunk::<PREFIX>() else {
        return Ok(None);
    };
    let len = u32::from_be_bytes(*prefix) as usize;
    if len > MAX_FRAME {
        return Err(FrameError::TooLong { len });
    }
    if buffer.len() < PREFIX + len {
        return Ok(None);
    }
    buffer.advance(PREFIX);
    Ok(Some(M::decode(buffer.split_to(len))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1;

    fn header(client: String) -> v1::FlowHeader {
        v1::FlowHeader {
            client,
            port: 8080,
            ..v1::FlowHeader::default()
        }
    }

    #[test]
    fn every_prefix_asks_for_more_and_the_whole_is_the_message() {
        let message = header("127.0.0.1:5000".into());
        let frame = encode(&message).expect("short");
        for cut in 0..frame.len() {
            let mut buffer = BytesMut::from(&frame[..cut]);
            assert_eq!(decode::<v1::FlowHeader>(&mut buffer), Ok(None), "cut at {cut}");
            assert_eq!(buffer.len(), cut, "an incomplete frame is left in place");
        }
        let mut buffer = BytesMut::from(&frame[..]);
        buffer.extend_from_slice(b"next");
        assert_eq!(decode(&mut buffer), Ok(Some(message)));
        assert_eq!(&buffer[..], b"next");
    }

    #[test]
    fn an_oversized_frame_is_refused_at_once() {
        let mut buffer = BytesMut::from(&(MAX_FRAME as u32 + 1).to_be_bytes()[..]);
        assert_eq!(
            decode::<v1::FlowHeader>(&mut buffer),
            Err(FrameError::TooLong { len: MAX_FRAME + 1 })
        );
        assert!(matches!(
            encode(&header("x".repeat(MAX_FRAME))),
            Err(FrameError::TooLong { .. })
        ));
    }

    proptest::proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..256)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = decode::<v1::FlowHeader>(&mut buffer) {}
        }
    }
}
