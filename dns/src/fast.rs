//! The fast path in: [`parse`] takes what nearly every packet is (one question without compression, at most a plain OPT record)
//! and leaves the rest to [`crate::plain`]; [`crate::encode`] is the way out. Nothing is allocated on either.
//!
//! Both paths get their answer from [`crate::answer`]; a test holds that they say the same.

use crate::answer::Question;
use crate::edns::{Edns, parse_plain};
use crate::name::{LABEL_MAX, NAME_MAX};

/// Octets of a message header.
pub const HEADER_OCTETS: usize = 12;

/// The header's bits, upper octet first.
pub mod flag {
    /// Response.
    pub const QR: u16 = 0x8000;
    /// Operation.
    pub const OPCODE: u16 = 0x7800;
    /// Authoritative.
    pub const AA: u16 = 0x0400;
    /// Truncated.
    pub const TC: u16 = 0x0200;
    /// Recursion available.
    pub const RA: u16 = 0x0080;
}

/// Memory that lives from one query to the next.
#[derive(Debug)]
pub struct Scratch {
    name: [u8; NAME_MAX],
    pub(crate) order: Vec<usize>,
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch {
            name: [0; NAME_MAX],
            order: Vec::new(),
        }
    }
}

/// An ordinary query.
#[derive(Debug, Clone, Copy)]
pub struct Query<'p> {
    pub(crate) id: [u8; 2],
    pub(crate) flags: u16,
    /// The question as it came, its case included: name with root label, type, class.
    pub(crate) question: &'p [u8],
    pub(crate) name_length: usize,
    /// Type asked for.
    pub rtype: u16,
    /// Class asked for.
    pub class: u16,
    /// OPT record.
    pub edns: Option<Edns>,
}

/// Reads an ordinary query and leaves its name, in lower case, in `scratch`. None: not ordinary, maybe not even a query.
#[must_use]
pub fn parse<'p>(packet: &'p [u8], scratch: &mut Scratch) -> Option<Query<'p>> {
    let (
        &[
            id_high,
            id_low,
            flags_high,
            flags_low,
            0,
            1,
            0,
            0,
            0,
            0,
            0,
            extra @ (0 | 1),
        ],
        rest,
    ) = packet.split_first_chunk::<HEADER_OCTETS>()?
    else {
        return None;
    };
    let flags = u16::from_be_bytes([flags_high, flags_low]);
    if flags & (flag::QR | flag::OPCODE | flag::TC) != 0 {
        return None;
    }
    let mut length = 0;
    loop {
        let label = usize::from(*rest.get(length)?);
        if label == 0 {
            break;
        }
        let next = length + 1 + label;
        if label > LABEL_MAX || next > NAME_MAX {
            return None;
        }
        length = next;
    }
    for (to, from) in scratch.name.iter_mut().zip(rest.get(..length)?) {
        // Lengths are at most 63, below 'A', so they stay as they are.
        *to = from.to_ascii_lowercase();
    }
    let (question, rest) = rest.split_at_checked(length + 5)?;
    let &[.., type_high, type_low, class_high, class_low] = question else {
        return None;
    };
    let edns = match extra {
        0 if rest.is_empty() => None,
        1 => Some(parse_plain(rest).filter(|edns| edns.version == 0)?),
        _ => return None,
    };
    Some(Query {
        id: [id_high, id_low],
        flags,
        question,
        name_length: length,
        rtype: u16::from_be_bytes([type_high, type_low]),
        class: u16::from_be_bytes([class_high, class_low]),
        edns,
    })
}

impl Query<'_> {
    /// The question, as [`crate::answer::answer`] takes it; `scratch` is the one that [`parse`] filled.
    #[must_use]
    pub fn question<'s>(&self, scratch: &'s Scratch) -> Question<'s> {
        Question {
            name: &scratch.name[..self.name_length],
            rtype: self.rtype,
            class: self.class,
        }
    }
}
