//! EDNS(0), RFC 6891: what a query may say of itself, and what the answer says back.

/// UDP payload without EDNS (RFC 1035 §4.2.1), and the least that EDNS can ask for (RFC 6891 §6.2.3).
pub const PAYLOAD_MIN: u16 = 512;

/// Largest UDP answer, whatever the client allows, and what we say we can take: fits the smallest IPv6 MTU, so nothing is ever
/// fragmented (DNS flag day 2020).
pub const PAYLOAD_MAX: u16 = 1232;

/// Octets of an OPT record without options.
pub const OPT_OCTETS: usize = 11;

/// The OPT record of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    /// UDP payload size the client can take.
    pub payload: u16,
    /// Version; only 0 exists.
    pub version: u8,
    /// DNSSEC OK: copied into the answer (RFC 3225 §3), which is not signed.
    pub dnssec_ok: bool,
}

impl Edns {
    /// The OPT record of an answer; `extended_rcode` holds the upper eight bits of the response code.
    #[must_use]
    pub fn reply(self, extended_rcode: u8) -> [u8; OPT_OCTETS] {
        let [payload_high, payload_low] = PAYLOAD_MAX.to_be_bytes();
        let flags = if self.dnssec_ok { 0x80 } else { 0 };
        [
            0,
            0,
            41,
            payload_high,
            payload_low,
            extended_rcode,
            0,
            flags,
            0,
            0,
            0,
        ]
    }
}

/// How a message travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// One datagram.
    Udp,
    /// Length-prefixed on a stream.
    Tcp,
}

impl Transport {
    /// Most octets of an answer to a query with `edns`.
    #[must_use]
    pub fn limit(self, edns: Option<Edns>) -> usize {
        match (self, edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, None) => usize::from(PAYLOAD_MIN),
            (Transport::Udp, Some(edns)) => usize::from(edns.payload.clamp(PAYLOAD_MIN, PAYLOAD_MAX)),
        }
    }
}

/// Options without a meaning to this server whose contents need no check: cookie, padding (RFC 7873, RFC 7830).
const IGNORED_OPTIONS: [u16; 2] = [10, 12];

/// Reads an OPT record that ends a packet. None for anything out of the ordinary: a name that is not the root, unknown options,
/// octets left over.
#[must_use]
pub fn parse_plain(record: &[u8]) -> Option<Edns> {
    let (
        &[
            0,
            0,
            41,
            payload_high,
            payload_low,
            extended_rcode,
            version,
            flags,
            _,
            length_high,
            length_low,
        ],
        mut options,
    ) = record.split_first_chunk::<OPT_OCTETS>()?
    else {
        return None;
    };
    if options.len() != usize::from(u16::from_be_bytes([length_high, length_low])) || extended_rcode != 0 {
        return None;
    }
    while let Some((&[code_high, code_low, length_high, length_low], rest)) = options.split_first_chunk::<4>()
    {
        if !IGNORED_OPTIONS.contains(&u16::from_be_bytes([code_high, code_low])) {
            return None;
        }
        options = rest.get(usize::from(u16::from_be_bytes([length_high, length_low]))..)?;
    }
    let payload = u16::from_be_bytes([payload_high, payload_low]);
    options.is_empty().then_some(Edns {
        payload,
        version,
        dnssec_ok: flags & 0x80 != 0,
    })
}
