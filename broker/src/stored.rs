//! Stored formats: what the log, snapshots, back-ups and forwarded proposals are made of.
//!
//! Prost messages, written out by hand so that each field's number stands beside its Rust name. Numbers are never used
//! again. A batch and a state carry a format version; a reader that does not know the version refuses the whole, since
//! half-understood commands would let brokers drift apart.

mod command;
mod messages;
mod outcome;
mod state;

use tombolo_wire::convert::Invalid;

pub use command::{decode_batch, encode_batch, encode_commands, encoded_len};
pub use outcome::Outcome;
pub use state::{decode_state, encode_state};

/// Version of batches and states that this build writes, and the newest that it reads.
pub const FORMAT: u32 = 1;

/// Why stored bytes cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    /// A newer build wrote it.
    #[error("{what} has format {found}, this build reads up to {FORMAT}; upgrade this broker")]
    Format {
        /// What was read.
        what: &'static str,
        /// Its format version.
        found: u32,
    },
    /// The bytes are no message.
    #[error("{what} does not decode: {reason}; the file or the peer is damaged")]
    Malformed {
        /// What was read.
        what: &'static str,
        /// What the decoder said.
        reason: String,
    },
}

impl Corrupt {
    pub(crate) fn new(what: &'static str, reason: impl ToString) -> Self {
        Self::Malformed {
            what,
            reason: reason.to_string(),
        }
    }
}

impl From<prost::DecodeError> for Corrupt {
    fn from(error: prost::DecodeError) -> Self {
        Self::new("stored message", error)
    }
}

impl From<Invalid> for Corrupt {
    fn from(error: Invalid) -> Self {
        Self::new("stored message", error)
    }
}

impl From<tombolo_clusterset::NameError> for Corrupt {
    fn from(error: tombolo_clusterset::NameError) -> Self {
        Self::new("stored name", error)
    }
}

/// A field that every writer fills.
fn required<T>(field: &'static str, value: Option<T>) -> Result<T, Corrupt> {
    value.ok_or_else(|| Corrupt::new("stored message", format!("field {field} is missing")))
}

/// A digest or an id of fixed length.
fn array<const N: usize>(field: &'static str, bytes: &[u8]) -> Result<[u8; N], Corrupt> {
    bytes.try_into().map_err(|_| {
        Corrupt::new(
            "stored message",
            format!("field {field} has {} bytes, not {N}", bytes.len()),
        )
    })
}
