//! When a drill's requests leave, and how many of them are kept.

use std::time::Duration;

use tombolo_clusterset::endpoint::Protocol;
use tombolo_clusterset::{Drill, Import, ServicePort};

/// Most requests of one drill: each leaves a sample of at most 90 bytes, and the brokers take a report of 2 MiB.
pub const SAMPLES_MAX: u32 = 20_000;

/// A request that has no answer by then has failed: longer than detection takes in either profile, so that a flow which is
/// moved to another cluster has the time to be.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The requests of one drill: evenly spaced from its first instant to its last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    requests: u32,
    total: Duration,
}

impl Schedule {
    /// `rate_per_second` over the whole drill. When that makes more than [`SAMPLES_MAX`], fewer leave per second: a drill
    /// whose every request is counted says more than one that forgets some.
    #[must_use]
    pub fn of(drill: &Drill) -> Self {
        let total = drill.total();
        let requests = u128::from(drill.rate_per_second) * total.as_millis() / 1_000;
        Self {
            requests: u32::try_from(requests).unwrap_or(SAMPLES_MAX).min(SAMPLES_MAX),
            total,
        }
    }

    /// How many leave.
    #[must_use]
    pub fn requests(&self) -> u32 {
        self.requests
    }

    /// When request `number` (from 0) leaves, counted from the drill's start. None: there is no such request.
    #[must_use]
    pub fn due(&self, number: u32) -> Option<Duration> {
        let nanos = self.total.as_nanos() * u128::from(number) / u128::from(self.requests.max(1));
        (number < self.requests).then(|| Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }
}

/// The port that the requests go to: the one asked for, else the service's first TCP port.
///
/// # Errors
/// A sentence for the operator.
pub fn port(drill: &Drill, import: &Import) -> Result<ServicePort, String> {
    let mut tcp = import
        .spec
        .ports
        .iter()
        .filter(|port| port.protocol == Protocol::Tcp);
    let found = match drill.port {
        Some(number) => tcp.find(|port| port.port == number),
        None => tcp.next(),
    };
    found.cloned().ok_or_else(|| match drill.port {
        Some(number) => format!("{} has no TCP port {number}; see `tombolo get`", drill.service),
        None => format!("{} has no TCP port, and a drill sends TCP only", drill.service),
    })
}

/// What an answer to an HTTP GET says so far (RFC 9112).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Read on.
    Incomplete,
    /// It is whole, and the status is 2xx or 3xx.
    Success,
    /// It is whole or cannot become a success; why.
    Failure(String),
}

/// Longest head of an answer, bytes: what common servers allow for a request's.
const HEAD_MAX: usize = 16 * 1024;

/// The request of a drill with `--http-get`.
#[must_use]
pub fn http_request(path: &str, host: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: tombolo-drill\r\nConnection: close\r\n\r\n")
}

/// Judges the bytes received so far; `ended` tells that no more will come. A body without a length ends with the
/// connection, which the request asks to close.
#[must_use]
pub fn judge(received: &[u8], ended: bool) -> Answer {
    let Some(head_end) = received.windows(4).position(|four| four == b"\r\n\r\n") else {
        return match (ended, received.len() > HEAD_MAX) {
            (true, _) if received.is_empty() => {
                Answer::Failure("the server closed without an answer".to_owned())
            }
            (true, _) => Answer::Failure("the server closed in the middle of the head".to_owned()),
            (false, true) => Answer::Failure(format!("the head is longer than {HEAD_MAX} bytes")),
            (false, false) => Answer::Incomplete,
        };
    };
    let head = String::from_utf8_lossy(&received[..head_end]);
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let status = status_line
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.get(2..5))
        .and_then(|code| code.parse().ok());
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok());
    let body = received.len() - head_end - 4;
    match (status, length) {
        (Some(200..=399u16), Some(length)) if body >= length => Answer::Success,
        (Some(200..=399), Some(length)) if ended => {
            Answer::Failure(format!("the server closed after {body} of {length} bytes"))
        }
        (Some(200..=399), None) if ended => Answer::Success,
        (Some(200..=399), _) => Answer::Incomplete,
        (Some(status), _) => Answer::Failure(format!("HTTP status {status}")),
        (None, _) => Answer::Failure("the answer is no HTTP/1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use tombolo_clusterset::{DrillId, DrillKind};

    fn drill(rate_per_second: u32, seconds: [u64; 3], port: Option<u16>) -> Drill {
        let [baseline, duration, recovery] = seconds.map(Duration::from_secs);
        Drill {
            id: DrillId(1),
            kind: DrillKind::ClusterDown,
            target: fixtures::cluster("kind"),
            from: fixtures::cluster("aks"),
            service: fixtures::key("shop/checkout"),
            port,
            http_get: None,
            rate_per_second,
            baseline,
            duration,
            recovery,
            real: false,
        }
    }

    #[test]
    fn requests_leave_evenly_and_are_bounded() {
        let schedule = Schedule::of(&drill(100, [1, 2, 1], None));
        assert_eq!(schedule.requests(), 400);
        assert_eq!(schedule.due(0), Some(Duration::ZERO));
        assert_eq!(schedule.due(150), Some(Duration::from_millis(1_500)));
        assert_eq!(schedule.due(400), None);
        let long = Schedule::of(&drill(1_000, [300, 300, 300], None));
        assert_eq!(long.requests(), SAMPLES_MAX);
        assert!(
            long.due(SAMPLES_MAX - 1)
                .is_some_and(|due| due < Duration::from_secs(900))
        );
    }

    #[test]
    fn the_port_is_the_one_asked_for_or_the_first_over_tcp() {
        let snapshot = fixtures::snapshot();
        let import = &snapshot.imports[&fixtures::key("shop/checkout")];
        let number = |asked| port(&drill(1, [1, 1, 1], asked), import).map(|port| port.port);
        assert_eq!(number(None), Ok(80));
        assert_eq!(number(Some(80)), Ok(80));
        assert!(number(Some(53)).is_err(), "53 is UDP");
    }

    #[test]
    fn answers_are_judged_as_they_come() {
        use Answer::{Incomplete, Success};
        let table: &[(&str, bool, Option<Answer>)] = &[
            ("", false, Some(Incomplete)),
            ("", true, None),
            ("HTTP/1.1 200 OK\r\nContent-", false, Some(Incomplete)),
            ("HTTP/1.1 200 OK\r\nContent-", true, None),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nh",
                false,
                Some(Incomplete),
            ),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nh", true, None),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
                false,
                Some(Success),
            ),
            ("HTTP/1.0 302 Found\r\n\r\nbody", false, Some(Incomplete)),
            ("HTTP/1.0 302 Found\r\n\r\nbody", true, Some(Success)),
            ("HTTP/1.1 503 Busy\r\n\r\n", false, None),
            ("SSH-2.0\r\n\r\n", false, None),
        ];
        for (received, ended, expected) in table {
            let got = judge(received.as_bytes(), *ended);
            match expected {
                Some(expected) => assert_eq!(got, *expected, "{received:?} {ended}"),
                None => assert!(matches!(got, Answer::Failure(_)), "{received:?} {ended}: {got:?}"),
            }
        }
    }
}
