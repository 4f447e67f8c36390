//! Everything that crosses a process border: generated messages, fallible conversions both ways, frames, versions.

/// Generated from `wire/proto`. Nothing outside this crate and the edges of the roles should hold these types.
pub mod v1 {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::allow_attributes_without_reason,
        reason = "generated code; the .proto files carry the documentation"
    )]
    tonic::include_proto!("tombolo.v1");
}

pub mod convert;
pub mod frame;
pub mod local;
pub mod version;
