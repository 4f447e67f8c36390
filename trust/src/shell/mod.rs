//! The part of this crate that touches the disk.

pub mod files;
