//! Logs to stderr, and what build this is.

use std::env;
use std::io::{self, IsTerminal};
use std::panic;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

/// The environment variable whose filter wins over the configured one, so that one run can say more.
pub const FILTER_VARIABLE: &str = "TOMBOLO_LOG";

/// State changes and what should wake someone; decisions and packets stay out.
pub const DEFAULT_FILTER: &str = "info";

/// How logs look and which are written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Logs {
    /// For people or for machines.
    pub format: Format,
    /// `level` or `target=level,…`, as `tracing_subscriber::EnvFilter` reads it.
    pub filter: String,
}

/// How a line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One line per event, coloured on a terminal.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl Default for Logs {
    fn default() -> Logs {
        Logs {
            format: Format::default(),
            filter: DEFAULT_FILTER.to_owned(),
        }
    }
}

/// Who is speaking, and which build.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Identity {
    /// `broker`, `gateway`, …
    pub role: String,
    /// The cluster it belongs to; empty for a role that belongs to none.
    pub cluster: String,
    /// Version of the build.
    pub version: String,
}

/// Logs cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Fix the filter.
    #[error(
        "log filter `{filter}` from {origin}: {reason}; write a level (`info`) or `target=level,…` (`info,tombolo_broker=debug`)"
    )]
    Filter {
        /// What was given.
        filter: String,
        /// Where it came from.
        origin: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Something else in this process has set up logs already.
    #[error("logs are set up already; `telemetry::init` must be called once")]
    Twice,
}

/// Sends logs to stderr, panics among them, and writes the first one. Call once, early in `main`.
pub fn init(logs: &Logs, identity: &Identity) -> Result<(), TelemetryError> {
    let filter = filter(logs, env::var(FILTER_VARIABLE).ok())?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let installed = match logs.format {
        Format::Text => builder.with_ansi(io::stderr().is_terminal()).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    installed.map_err(|_| TelemetryError::Twice)?;
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, message = panic.payload_as_str(), "panic");
    }));
    let Identity {
        role,
        cluster,
        version,
    } = identity;
    tracing::info!(role, cluster, version, "starting");
    Ok(())
}

/// Registers `tombolo_build_info`, whose labels tell role, cluster and version.
pub fn register_build_info(registry: &mut Registry, identity: &Identity) {
    registry.register(
        "tombolo_build",
        "Role, cluster and version of this process",
        Info::new(identity.clone()),
    );
}

fn filter(logs: &Logs, from_environment: Option<String>) -> Result<EnvFilter, TelemetryError> {
    let (filter, origin) = match from_environment.filter(|filter| !filter.trim().is_empty()) {
        Some(filter) => (filter, FILTER_VARIABLE),
        None => (logs.filter.clone(), "the configuration"),
    };
    EnvFilter::builder()
        .parse(&filter)
        .map_err(|error| TelemetryError::Filter {
            filter,
            origin,
            reason: error.to_string(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(configured: &str, environment: Option<&str>, expected: Result<&str, &str>) {
        let logs = Logs {
            filter: configured.to_owned(),
            ..Logs::default()
        };
        match (filter(&logs, environment.map(str::to_owned)), expected) {
            (Ok(filter), Ok(expected)) => assert_eq!(filter.to_string(), expected),
            (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
            (found, _) => panic!("{configured:?}, {environment:?}: {found:?}"),
        }
    }

    #[test]
    fn the_environment_wins_and_errors_name_their_origin() {
        check("info", None, Ok("info"));
        check("info", Some("debug"), Ok("debug"));
        check("warn", Some(" "), Ok("warn"));
        check("a=loud", None, Err("log filter `a=loud` from the configuration"));
        check(
            "info",
            Some("a=loud"),
            Err("log filter `a=loud` from TOMBOLO_LOG"),
        );
    }

    #[test]
    fn the_build_is_a_metric() {
        let identity = Identity {
            role: "dns".into(),
            cluster: "c1".into(),
            version: "0.1.0".into(),
        };
        let mut registry = Registry::default();
        register_build_info(&mut registry, &identity);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let line = r#"tombolo_build_info{role="dns",cluster="c1",version="0.1.0"} 1"#;
        assert!(text.contains(line), "{text}");
    }
}
