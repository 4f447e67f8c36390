//! Names as they travel: length-prefixed labels, lower case, without the root's empty label (RFC 1035 §3.1).
//!
//! `\x03svc\x0aclusterset\x05local` is `svc.clusterset.local.`; the empty slice is the root.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest name on the wire without its root label: 255 octets with it (RFC 1035 §2.3.4).
pub const NAME_MAX: usize = 254;

/// Longest label (RFC 1035 §2.3.4).
pub const LABEL_MAX: usize = 63;

/// Most labels a name can have: each takes two octets or more.
pub const LABELS_MAX: usize = NAME_MAX / 2;

/// The zone this crate is authoritative for: `clusterset.local.` (MCS DNS specification §2.1).
pub const APEX: &[u8] = b"\x0aclusterset\x05local";

/// A wire name built label by label; a label or name that is too long makes the whole `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Builder(Vec<u8>);

impl Builder {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Builder {
        Builder(Vec::with_capacity(64))
    }

    /// Appends a label, in lower case. None when it is empty or too long, or makes the name too long.
    #[must_use]
    pub fn label(mut self, text: &str) -> Option<Builder> {
        let length = u8::try_from(text.len())
            .ok()
            .filter(|length| (1..=LABEL_MAX).contains(&usize::from(*length)))?;
        self.0.push(length);
        self.0.extend(text.bytes().map(|byte| byte.to_ascii_lowercase()));
        (self.0.len() <= NAME_MAX).then_some(self)
    }

    /// Appends labels that are wire form already. None when the name gets too long.
    #[must_use]
    pub fn suffix(mut self, wire: &[u8]) -> Option<Builder> {
        self.0.extend_from_slice(wire);
        (self.0.len() <= NAME_MAX).then_some(self)
    }

    /// The name.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

impl Default for Builder {
    fn default() -> Builder {
        Builder::new()
    }
}

/// Where each label of a name begins.
#[derive(Debug, Clone)]
pub struct Labels<'a> {
    name: &'a [u8],
    starts: [u8; LABELS_MAX],
    count: usize,
}

impl<'a> Labels<'a> {
    /// Splits a wire name. None when it is not one: a length beyond the end, a label over [`LABEL_MAX`], a name over
    /// [`NAME_MAX`].
    #[must_use]
    pub fn of(name: &'a [u8]) -> Option<Labels<'a>> {
        if name.len() > NAME_MAX {
            return None;
        }
        let mut labels = Labels {
            name,
            starts: [0; LABELS_MAX],
            count: 0,
        };
        let mut at = 0;
        while at < name.len() {
            let length = usize::from(name[at]);
            if length == 0 || length > LABEL_MAX || at + length >= name.len() {
                return None;
            }
            *labels.starts.get_mut(labels.count)? = u8::try_from(at).ok()?;
            labels.count += 1;
            at += 1 + length;
        }
        Some(labels)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// The name from the `n`-th label from the end on: `tail(0)` is the root, `tail(1)` the last label.
    #[must_use]
    pub fn tail(&self, n: usize) -> &'a [u8] {
        &self.name[self.end(n)..]
    }

    /// The name in front of its last `n` labels.
    #[must_use]
    pub fn head(&self, n: usize) -> &'a [u8] {
        &self.name[..self.end(n)]
    }

    /// The labels from the `from`-th to the one before the `to`-th from the end, in wire form.
    #[must_use]
    pub fn middle(&self, from: usize, to: usize) -> &'a [u8] {
        &self.name[self.end(from)..self.end(to)]
    }

    /// The text of the `n`-th label from the end; 1 is the last.
    #[must_use]
    pub fn text(&self, n: usize) -> &'a [u8] {
        let start = self.end(n);
        self.name.get(start + 1..self.end(n - 1)).unwrap_or_default()
    }

    fn end(&self, n: usize) -> usize {
        match n {
            0 => self.name.len(),
            n if n > self.count => 0,
            n => usize::from(self.starts[self.count - n]),
        }
    }
}

/// The text of a wire name, with its final dot; what is no letter, digit, `-` or `_` is escaped (RFC 1035 §5.1).
#[must_use]
pub fn text(name: &[u8]) -> String {
    let Some(labels) = Labels::of(name) else {
        return "<malformed>".to_owned();
    };
    let mut text = String::with_capacity(name.len() + 1);
    for n in (1..=labels.count()).rev() {
        for byte in labels.text(n) {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') {
                text.push(char::from(*byte));
            } else {
                // Writing to a String cannot fail.
                let _ = write!(text, "\\{byte:03}");
            }
        }
        text.push('.');
    }
    if text.is_empty() { ".".to_owned() } else { text }
}

/// The address that a name under `in-addr.arpa` or `ip6.arpa` speaks of (RFC 1035 §3.5, RFC 3596 §2.5).
#[must_use]
pub fn reverse(labels: &Labels<'_>) -> Option<IpAddr> {
    match (labels.count(), labels.tail(2)) {
        (6, b"\x07in-addr\x04arpa") => {
            let mut octets = [0; 4];
            for (at, octet) in octets.iter_mut().enumerate() {
                let digits = labels.text(3 + at);
                let canonical = digits.len() == 1 || digits.first() != Some(&b'0');
                *octet = std::str::from_utf8(digits)
                    .ok()
                    .filter(|_| canonical)?
                    .parse()
                    .ok()?;
            }
            Some(IpAddr::V4(Ipv4Addr::from(octets)))
        }
        (34, b"\x03ip6\x04arpa") => {
            let mut bits = 0_u128;
            for at in 0..32 {
                let &[digit] = labels.text(3 + at) else {
                    return None;
                };
                bits = bits << 4 | u128::from(char::from(digit).to_digit(16)?);
            }
            Some(IpAddr::V6(Ipv6Addr::from(bits)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(text: &str) -> Vec<u8> {
        text.split('.')
            .try_fold(Builder::new(), Builder::label)
            .unwrap()
            .finish()
    }

    #[test]
    fn labels_are_counted_from_the_end() {
        let name = wire("a.svc.clusterset.local");
        let labels = Labels::of(&name).unwrap();
        assert_eq!(labels.count(), 4);
        assert_eq!(labels.tail(2), APEX);
        assert_eq!(labels.text(3), b"svc");
        assert_eq!(labels.head(3), b"\x01a");
        assert_eq!(labels.middle(4, 2), b"\x01a\x03svc");
        assert_eq!(labels.head(9), b"");
        assert_eq!(Labels::of(b"").unwrap().tail(2), b"");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for malformed in [&b"\x05loc"[..], b"\x00", b"\x40", b"\x01a\x00"] {
            assert!(Labels::of(malformed).is_none(), "{malformed:?}");
        }
        assert!(Builder::new().label(&"a".repeat(64)).is_none());
        assert!(Builder::new().label("").is_none());
        let long = "a".repeat(63);
        let three = [long.as_str(); 3]
            .into_iter()
            .try_fold(Builder::new(), Builder::label)
            .unwrap();
        assert!(three.clone().label(&long).is_none());
        assert!(three.label(&long[..61]).is_some());
    }

    #[test]
    fn reverse_names_are_addresses() {
        let table = [
            ("1.64.11.127.in-addr.arpa", Some("127.11.64.1")),
            ("01.64.11.127.in-addr.arpa", None),
            ("256.64.11.127.in-addr.arpa", None),
            ("64.11.127.in-addr.arpa", None),
            (
                "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
                Some("2001:db8::1"),
            ),
            (
                "x.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
                None,
            ),
        ];
        for (name, expected) in table {
            let name = wire(name);
            let found = reverse(&Labels::of(&name).unwrap());
            assert_eq!(
                found,
                expected.map(|text| text.parse().unwrap()),
                "{}",
                text(&name)
            );
        }
    }
}
