//! UDP payloads on a tunnel.
//!
//! A payload that fits goes as a QUIC datagram: the flow's id as a variable-length integer (RFC 9000 §16), then the payload.
//! Any other goes as a capsule on the flow's own stream: its length in 2 bytes, big endian, then the payload. HTTP/2 has
//! capsules only. Both may arrive out of order with each other, as UDP may.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Longest UDP payload: 65,535 less the UDP header; IPv6 without extension headers allows that much (RFC 8200 §4.5, RFC 768).
pub const PAYLOAD_MAX: usize = 65_527;

/// Bytes of a capsule's length.
pub const CAPSULE_PREFIX: usize = 2;

/// Largest variable-length integer (RFC 9000 §16).
pub const VARINT_MAX: u64 = (1 << 62) - 1;

/// A payload longer than [`PAYLOAD_MAX`], which no UDP socket gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a UDP payload of {len} bytes cannot exist; at most {PAYLOAD_MAX} fit a datagram")]
pub struct PayloadTooLong {
    /// Its length, bytes.
    pub len: usize,
}

/// The capsule that carries `payload`.
///
/// # Errors
/// [`PayloadTooLong`].
pub fn encode_capsule(payload: &[u8]) -> Result<Bytes, PayloadTooLong> {
    let len = payload.len();
    let prefix = u16::try_from(len)
        .ok()
        .filter(|_| len <= PAYLOAD_MAX)
        .ok_or(PayloadTooLong { len })?;
    let mut capsule = BytesMut::with_capacity(CAPSULE_PREFIX + len);
    capsule.put_u16(prefix);
    capsule.extend_from_slice(payload);
    Ok(capsule.freeze())
}

/// The next whole payload at the front of `buffer`, taken off it; None when more bytes are needed.
///
/// # Errors
/// [`PayloadTooLong`]: the peer does not speak this protocol.
pub fn decode_capsule(buffer: &mut BytesMut) -> Result<Option<Bytes>, PayloadTooLong> {
    let Some(prefix) = buffer.first_chunk::<CAPSULE_PREFIX>() else {
        return Ok(None);
    };
    let len = usize::from(u16::from_be_bytes(*prefix));
    if len > PAYLOAD_MAX {
        return Err(PayloadTooLong { len });
    }
    if buffer.len() < CAPSULE_PREFIX + len {
        buffer.reserve(CAPSULE_PREFIX + len - buffer.len());
        return Ok(None);
    }
    buffer.advance(CAPSULE_PREFIX);
    Ok(Some(buffer.split_to(len).freeze()))
}

/// A datagram: the flow's id, then the payload. Ids above [`VARINT_MAX`] are never given out; they are cut to it.
#[must_use]
pub fn encode_datagram(flow: u64, payload: &[u8]) -> Bytes {
    let mut datagram = BytesMut::with_capacity(varint_len(flow) + payload.len());
    put_varint(&mut datagram, flow.min(VARINT_MAX));
    datagram.extend_from_slice(payload);
    datagram.freeze()
}

/// The flow's id and the payload; None when the id is cut short.
#[must_use]
pub fn decode_datagram(mut datagram: Bytes) -> Option<(u64, Bytes)> {
    let flow = take_varint(&mut datagram)?;
    Some((flow, datagram))
}

/// Bytes that `value` takes as a variable-length integer.
#[must_use]
pub const fn varint_len(value: u64) -> usize {
    match value {
        0..0x40 => 1,
        0x40..0x4000 => 2,
        0x4000..0x4000_0000 => 4,
        _ => 8,
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "each arm's range fits the integer it is cut to"
)]
fn put_varint(buffer: &mut BytesMut, value: u64) {
    match varint_len(value) {
        1 => buffer.put_u8(value as u8),
        2 => buffer.put_u16(value as u16 | 0x4000),
        4 => buffer.put_u32(value as u32 | 0x8000_0000),
        _ => buffer.put_u64(value | 0xc000_0000_0000_0000),
    }
}

fn take_varint(buffer: &mut Bytes) -> Option<u64> {
    let len = 1 << (buffer.first()? >> 6);
    if buffer.len() < len {
        return None;
    }
    Some(match len {
        1 => u64::from(buffer.get_u8()),
        2 => u64::from(buffer.get_u16() & 0x3fff),
        4 => u64::from(buffer.get_u32() & 0x3fff_ffff),
        _ => buffer.get_u64() & VARINT_MAX,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prefix_of_a_capsule_asks_for_more() {
        for len in [0, 1, 1400, PAYLOAD_MAX] {
            let payload = vec![7; len];
            let capsule = encode_capsule(&payload).unwrap();
            for cut in [0, 1, 2, len / 2 + 2, len + 1]
                .into_iter()
                .filter(|cut| *cut < capsule.len())
            {
                let mut buffer = BytesMut::from(&capsule[..cut]);
                assert_eq!(decode_capsule(&mut buffer), Ok(None), "{cut} of {len}");
            }
            let mut buffer = BytesMut::from(&capsule[..]);
            buffer.extend_from_slice(b"rest");
            assert_eq!(decode_capsule(&mut buffer), Ok(Some(payload.into())));
            assert_eq!(&buffer[..], b"rest");
        }
    }

    #[test]
    fn impossible_payloads_are_refused_both_ways() {
        let len = PAYLOAD_MAX + 1;
        assert_eq!(encode_capsule(&vec![0; len]), Err(PayloadTooLong { len }));
        assert_eq!(
            decode_capsule(&mut BytesMut::from(&[0xff, 0xff][..])),
            Err(PayloadTooLong { len: 65_535 })
        );
    }

    #[test]
    fn flow_ids_follow_rfc_9000() {
        // RFC 9000 §A.1.
        let table: [(u64, &[u8]); 4] = [
            (37, &[0x25]),
            (15_293, &[0x7b, 0xbd]),
            (494_878_333, &[0x9d, 0x7f, 0x3e, 0x7d]),
            (
                151_288_809_941_952_652,
                &[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c],
            ),
        ];
        for (flow, prefix) in table {
            let datagram = encode_datagram(flow, b"payload");
            assert_eq!(&datagram[..prefix.len()], prefix);
            assert_eq!(
                decode_datagram(datagram),
                Some((flow, Bytes::from_static(b"payload")))
            );
            assert_eq!(
                decode_datagram(Bytes::copy_from_slice(&prefix[..prefix.len() - 1])),
                None
            );
        }
    }
}
