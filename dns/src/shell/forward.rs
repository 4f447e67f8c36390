//! Names outside the zone: asked of upstreams, over UDP and then TCP.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tombolo_daemon::seam::Seams;

use super::metrics::{ForwardOutcome, Metrics};
use crate::answer::Rcode;
use crate::fast::{HEADER_OCTETS, flag};
use crate::respond::{bare, question};

/// Queries waiting for upstreams at once: each holds a socket, and 1,024 is a usual limit of open files per process, of which
/// half is left to clients.
pub(crate) const IN_FLIGHT_MAX: usize = 512;

/// How long one upstream may take for one try.
const TRY_TIMEOUT: Duration = Duration::from_millis(1_500);

/// How long all tries together may take: stub resolvers give up after 5 s.
const TOTAL_TIMEOUT: Duration = Duration::from_millis(4_500);

/// Tries, over all upstreams in turn.
const TRIES: usize = 3;

/// Largest UDP answer taken from an upstream: more than any client is told it may ask for, and a datagram cannot be larger.
const ANSWER_MAX: usize = 65_535;

/// Answers to another question that are thrown away before a try is given up: someone is guessing ids.
const MISMATCHES_MAX: usize = 16;

/// Asks upstreams.
#[derive(Debug)]
pub(crate) struct Forwarder {
    upstreams: Vec<SocketAddr>,
    seams: Seams,
    permits: Arc<Semaphore>,
    metrics: Metrics,
}

impl Forwarder {
    pub(crate) fn new(upstreams: Vec<SocketAddr>, seams: Seams, metrics: Metrics) -> Forwarder {
        Forwarder {
            upstreams,
            seams,
            permits: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
            metrics,
        }
    }

    /// The answer to `query`: an upstream's, or SERVFAIL. `query` is well formed and has one question.
    pub(crate) async fn answer(&self, query: &[u8]) -> Vec<u8> {
        let Ok(_permit) = self.permits.try_acquire() else {
            self.metrics.forwarded(ForwardOutcome::Overloaded);
            return servfail(query);
        };
        match timeout(TOTAL_TIMEOUT, self.try_all(query)).await {
            Ok(Some(answer)) => {
                self.metrics.forwarded(ForwardOutcome::Answered);
                answer
            }
            Ok(None) | Err(_) => {
                self.metrics.forwarded(ForwardOutcome::Failed);
                servfail(query)
            }
        }
    }

    async fn try_all(&self, query: &[u8]) -> Option<Vec<u8>> {
        for upstream in self
            .upstreams
            .iter()
            .cycle()
            .take(TRIES.max(self.upstreams.len()))
        {
            match timeout(TRY_TIMEOUT, exchange(*upstream, query, &self.seams)).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%upstream, %error, "upstream gave no answer"),
                Err(_) => tracing::debug!(%upstream, "upstream gave no answer in time"),
            }
        }
        None
    }
}

/// SERVFAIL for `query`.
pub(crate) fn servfail(query: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    bare(query, Rcode::ServFail, false, true, &mut answer);
    answer
}

/// One question to one server: over UDP, and over TCP when the answer was cut. Without a time limit.
///
/// A forger has to guess the id and the source port (RFC 5452 §9.2): both are new for each query, the port drawn by the kernel at
/// random, and the answer must repeat the question. The answer comes back under the id of `query`.
pub(crate) async fn exchange(server: SocketAddr, query: &[u8], seams: &Seams) -> io::Result<Vec<u8>> {
    let mut asked = query.to_vec();
    let id: [u8; 2] = seams.entropy.rng().random();
    asked
        .get_mut(..2)
        .ok_or(io::ErrorKind::InvalidInput)?
        .copy_from_slice(&id);
    let mut answer = exchange_udp(server, &asked).await?;
    if answer[2] & (flag::TC >> 8) as u8 != 0 {
        answer = exchange_tcp(server, &asked, seams).await?;
    }
    answer[..2].copy_from_slice(&query[..2]);
    Ok(answer)
}

async fn exchange_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any = if server.is_ipv4() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // Connected: the kernel drops datagrams of anyone else, and tells of a closed port.
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; ANSWER_MAX];
    for _ in 0..MISMATCHES_MAX {
        let length = socket.recv(&mut buffer).await?;
        if answers(&buffer[..length], query) {
            buffer.truncate(length);
            return Ok(buffer);
        }
        tracing::debug!(%server, "datagram that answers another question");
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{server} answered {MISMATCHES_MAX} other questions"),
    ))
}

async fn exchange_tcp(server: SocketAddr, query: &[u8], seams: &Seams) -> io::Result<Vec<u8>> {
    let mut stream = seams.network.dial(server).await?;
    let length = u16::try_from(query.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(query);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    if answers(&answer, query) {
        return Ok(answer);
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{server} answered another question over TCP"),
    ))
}

/// Whether `answer` is a response to `query`: same id, same question but for case.
fn answers(answer: &[u8], query: &[u8]) -> bool {
    answer.len() >= HEADER_OCTETS
        && answer[..2] == query[..2]
        && answer[2] & (flag::QR >> 8) as u8 != 0
        && (answer[2] ^ query[2]) & (flag::OPCODE >> 8) as u8 == 0
        && match (question(answer), question(query)) {
            (Some(answered), Some(asked)) => answered.eq_ignore_ascii_case(asked),
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_repeats_id_and_question() {
        let query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01".to_vec();
        let edit = |at: usize, octet: u8| {
            let mut answer = query.clone();
            answer[2] = 0x81;
            answer[at] = octet;
            answer
        };
        assert!(answers(&edit(13, b'A'), &query));
        for (about, answer) in [
            ("a query", query.clone()),
            ("another id", edit(0, 0)),
            ("another opcode", edit(2, 0x89)),
            ("another name", edit(13, b'b')),
            ("another type", edit(16, 28)),
            ("no question", edit(5, 0)),
            ("cut", edit(13, b'a')[..14].to_vec()),
            ("empty", vec![]),
        ] {
            assert!(!answers(&answer, &query), "{about}");
        }
    }

    #[test]
    fn servfail_keeps_the_question() {
        let query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01";
        assert_eq!(
            servfail(query),
            b"\x12\x34\x81\x82\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01"
        );
    }
}
