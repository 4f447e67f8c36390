//! `tombolo up`: a whole clusterset on one machine, every process real.

pub(crate) mod control;
mod fleet;
mod layout;
mod plan;
mod process;
pub(crate) mod ready;
mod run;

pub(crate) use layout::{Layout, SiteNote};
pub(crate) use process::PARENT_VARIABLE;
pub(crate) use run::{down, up};
