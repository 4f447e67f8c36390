//! `get links`.

use serde::Serialize;

use super::or_dash;
use crate::operator::local::Observed;
use crate::output::{Tone, paint, table};

/// The path from one cluster to another, as the first one's gateway reports it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct LinkItem {
    pub(crate) from: String,
    pub(crate) to: String,
    /// `up`, `suspect`, `down` or `unknown`.
    pub(crate) state: &'static str,
    /// Smoothed round trip time, milliseconds; null until measured.
    pub(crate) rtt_ms: Option<f64>,
    /// `quic` or `h2`; empty when there is no tunnel.
    pub(crate) transport: String,
    /// `dialled` by `from`, or `accepted` from `to` and used the other way; empty when there is no tunnel.
    pub(crate) direction: &'static str,
    /// Peer address of the tunnel in use; empty when there is none.
    pub(crate) peer: String,
    /// Why it is not up; empty when it is.
    pub(crate) reason: String,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Links {
    pub(crate) items: Vec<LinkItem>,
}

impl Links {
    /// One item for each pair: a member that the gateway does not report is `unknown`.
    pub(crate) fn of<'a>(observed: impl IntoIterator<Item = &'a Observed>) -> Self {
        let mut items = Vec::new();
        for one in observed {
            for other in one
                .snapshot
                .clusters
                .keys()
                .filter(|other| **other != one.cluster)
            {
                let report = one.links.get(other);
                let direction = match report {
                    Some(report) if report.transport.is_empty() => "",
                    Some(report) if report.reversed => "accepted",
                    Some(_) => "dialled",
                    None => "",
                };
                items.push(LinkItem {
                    from: one.cluster.to_string(),
                    to: other.to_string(),
                    state: report.map_or("unknown", |report| report.state.as_str()),
                    rtt_ms: report
                        .and_then(|report| report.rtt)
                        .map(|rtt| rtt.as_secs_f64() * 1000.0),
                    transport: report.map(|report| report.transport.clone()).unwrap_or_default(),
                    direction,
                    peer: report.map(|report| report.peer.clone()).unwrap_or_default(),
                    reason: match report {
                        Some(report) => report.reason.clone(),
                        None if one.links.is_empty() => {
                            format!("the gateway of {} does not answer", one.cluster)
                        }
                        None => "not tried yet".to_owned(),
                    },
                });
            }
        }
        Self { items }
    }

    pub(crate) fn table(&self) -> String {
        let rows = self.items.iter().map(|item| {
            [
                item.from.clone(),
                item.to.clone(),
                state_cell(item.state),
                item.rtt_ms
                    .map_or_else(|| "-".to_owned(), |rtt| format!("{rtt:.1}ms")),
                or_dash(&item.transport),
                or_dash(item.direction),
                or_dash(&item.reason),
            ]
        });
        table(
            ["FROM", "TO", "STATE", "RTT", "TRANSPORT", "DIRECTION", "REASON"],
            rows,
        )
    }
}

pub(crate) fn state_cell(state: &str) -> String {
    let tone = match state {
        "up" => Tone::Good,
        "down" => Tone::Bad,
        _ => Tone::Warn,
    };
    paint(tone, state)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;

    #[test]
    fn one_line_a_pair() {
        let table = Links::of([&fixtures::west(), &fixtures::silent_gateway()]).table();
        assert_eq!(
            table,
            "FROM  TO    STATE    RTT    TRANSPORT  DIRECTION  REASON\n\
             west  east  up       1.5ms  quic       dialled    -\n\
             east  west  unknown  -      -          -          the gateway of east does not answer"
        );
    }
}
