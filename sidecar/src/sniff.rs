//! Whether a connection begins with TLS, from its first bytes.

/// Bytes that decide: a record header and the type of the handshake message (RFC 8446 §5.1, §4).
pub const HEAD: usize = 6;

/// A guess after some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guess {
    /// A ClientHello.
    Tls,
    /// Anything else.
    Plain,
    /// More bytes are needed.
    More,
}

/// Guesses from the first bytes of a connection: a handshake record, legacy version 3.x, of a length that a record may have,
/// that begins with a ClientHello.
#[must_use]
pub fn guess(head: &[u8]) -> Guess {
    let fits = |(at, byte): (usize, &u8)| match at {
        0 => *byte == 22,
        1 => *byte == 3,
        2 => *byte <= 4,
        // At most 2^14 bytes of plain text.
        3 => *byte <= 0x40,
        5 => *byte == 1,
        _ => true,
    };
    let head = head.get(..HEAD).unwrap_or(head);
    if !head.iter().enumerate().all(fits) {
        Guess::Plain
    } else if head.len() == HEAD {
        Guess::Tls
    } else {
        Guess::More
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_client_hello_is_known_by_its_first_six_bytes() {
        let hello = [0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00];
        for len in 0..HEAD {
            assert_eq!(guess(&hello[..len]), Guess::More, "{len}");
        }
        assert_eq!(guess(&hello[..HEAD]), Guess::Tls);
        assert_eq!(guess(&hello), Guess::Tls);
    }

    #[test]
    fn everything_else_is_plain() {
        let table: [&[u8]; 7] = [
            b"GET / HTTP/1.1",
            b"PRI * HTTP/2.0",
            b"\x00",
            b"\x16\x02",
            b"\x16\x03\x05",
            b"\x16\x03\x03\x41",
            b"\x16\x03\x01\x02\x00\x02",
        ];
        for bytes in table {
            assert_eq!(guess(bytes), Guess::Plain, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn more_bytes_never_revoke_a_guess(bytes in prop::collection::vec(any::<u8>(), 0..12)) {
            for len in 0..bytes.len() {
                let (before, after) = (guess(&bytes[..len]), guess(&bytes));
                prop_assert!(before == Guess::More || before == after);
            }
        }
    }
}
