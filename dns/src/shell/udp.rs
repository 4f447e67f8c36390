//! UDP: one thread for each core with a socket of its own, many datagrams for each system call.
//!
//! Threads rather than tasks: an answer takes about a microsecond, less than handing it to a scheduler. `SO_REUSEPORT` spreads
//! clients over the sockets.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};
use rand::rngs::StdRng;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use tokio::sync::mpsc;
use tombolo_daemon::seam::clock::Clock;

use super::forward::{Forwarder, IN_FLIGHT_MAX, servfail};
use super::metrics::Metrics;
use super::silence::Silence;
use crate::answer::Rcode;
use crate::edns::{PAYLOAD_MAX, Transport};
use crate::limit::{Allowance, Limiter};
use crate::respond::{Reply, Responder, bare, client_limit};
use crate::zone::Zone;

/// Datagrams for each system call: enough to make its cost small, few enough that the first answer of a batch does not wait.
const BATCH: usize = 64;

/// Largest query read. One question with any EDNS options stays far below; what is cut off here is malformed.
const QUERY_MAX: usize = 2_048;

/// How long a thread waits for a query before it looks whether to stop.
const STOP_CHECK: Duration = Duration::from_millis(100);

/// Kernel buffers of each socket: a burst of some thousand queries.
const SOCKET_BUFFER: usize = 1024 * 1024;

/// Binds `threads` sockets to `address`; the first one alone, so that a server that is there already is noticed.
pub(crate) fn bind(address: SocketAddr, threads: usize) -> io::Result<Vec<UdpSocket>> {
    let open = |shared: bool| -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_port(shared)?;
        socket.set_recv_buffer_size(SOCKET_BUFFER)?;
        socket.set_send_buffer_size(SOCKET_BUFFER)?;
        socket.set_read_timeout(Some(STOP_CHECK))?;
        socket.bind(&SockAddr::from(address))?;
        Ok(socket.into())
    };
    drop(open(false)?);
    (0..threads).map(|_| open(true)).collect()
}

/// A query for an upstream.
#[derive(Debug)]
pub(crate) struct ForwardJob {
    query: Vec<u8>,
    client: SocketAddr,
}

/// Carries queries from the threads to upstreams, and the answers back out of `socket`. Ends when all threads have ended.
pub(crate) async fn forward(
    mut jobs: mpsc::Receiver<ForwardJob>,
    forwarder: Arc<Forwarder>,
    socket: UdpSocket,
) {
    let socket = Arc::new(socket);
    let mut running = tokio::task::JoinSet::new();
    while let Some(job) = jobs.recv().await {
        while let Some(ended) = running.try_join_next() {
            report(ended);
        }
        // The forwarder answers SERVFAIL above its own limit at once; this only bounds what has yet to be polled.
        if running.len() >= 2 * IN_FLIGHT_MAX
            && let Some(ended) = running.join_next().await
        {
            report(ended);
        }
        let (forwarder, socket) = (forwarder.clone(), socket.clone());
        running.spawn(async move {
            let mut answer = forwarder.answer(&job.query).await;
            if answer.len() > client_limit(&job.query, Transport::Udp) {
                bare(&job.query, Rcode::NoError, true, true, &mut answer);
            }
            let client = SockAddr::from(job.client);
            // The socket blocks, for the sake of its thread; a full buffer must not block this task.
            let flags = MsgFlags::MSG_DONTWAIT.bits();
            if let Err(error) = SockRef::from(&*socket).send_to_with_flags(&answer, &client, flags) {
                tracing::debug!(%error, client = %job.client, "forwarded answer not sent");
            }
        });
    }
    while let Some(ended) = running.join_next().await {
        report(ended);
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "forwarding a query panicked; this is a bug, please report it with the log");
    }
}

/// How many jobs may wait between the threads and [`forward`].
pub(crate) const JOBS_MAX: usize = IN_FLIGHT_MAX;

/// One thread's work.
pub(crate) struct Worker {
    pub(crate) socket: UdpSocket,
    pub(crate) zone: Arc<ArcSwap<Zone>>,
    pub(crate) silence: Silence,
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) responder: Responder<StdRng>,
    pub(crate) limiter: Limiter,
    pub(crate) jobs: Option<mpsc::Sender<ForwardJob>>,
    pub(crate) metrics: Metrics,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Worker {
    /// Answers until told to stop. An error is one of the socket itself.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut queries = vec![[0_u8; QUERY_MAX]; BATCH];
        let mut answers: Vec<Vec<u8>> = (0..BATCH)
            .map(|_| Vec::with_capacity(usize::from(PAYLOAD_MAX)))
            .collect();
        let mut clients: Vec<Option<SockaddrStorage>> = Vec::with_capacity(BATCH);
        let mut received: Vec<(usize, Option<SockaddrStorage>)> = Vec::with_capacity(BATCH);
        let mut receive_headers = MultiHeaders::preallocate(BATCH, None);
        let mut send_headers = MultiHeaders::preallocate(BATCH, None);
        while !self.stop.load(Ordering::Relaxed) {
            received.clear();
            let mut slices: Vec<_> = queries.iter_mut().map(|query| [IoSliceMut::new(query)]).collect();
            let fd = self.socket.as_raw_fd();
            match recvmmsg(
                fd,
                &mut receive_headers,
                slices.iter_mut(),
                MsgFlags::MSG_WAITFORONE,
                None,
            ) {
                Ok(messages) => received.extend(messages.map(|message| (message.bytes, message.address))),
                // The time to look at `stop`, a signal, or news of an earlier answer that nobody took.
                Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNREFUSED) => continue,
                Err(error) => return Err(error.into()),
            }
            if self.silence.is_on() {
                continue;
            }
            let begun = self.clock.now();
            let zone = self.zone.load();
            clients.clear();
            for ((length, client), query) in received.iter().zip(&queries) {
                let Some((client, address)) = client.and_then(|client| Some((client, socket_addr(&client)?)))
                else {
                    continue;
                };
                let answer = &mut answers[clients.len()];
                if self.answer(&zone, &query[..*length], address, begun.into_std(), answer) {
                    clients.push(Some(client));
                }
            }
            drop(zone);
            send(fd, &mut send_headers, &answers, &clients, &self.metrics);
            let latency = self.clock.now().saturating_duration_since(begun);
            clients.iter().for_each(|_| self.metrics.took(latency));
        }
        Ok(())
    }

    /// True when `answer` is to be sent.
    fn answer(
        &mut self,
        zone: &Zone,
        query: &[u8],
        client: SocketAddr,
        now: std::time::Instant,
        answer: &mut Vec<u8>,
    ) -> bool {
        let reply = self.responder.respond(zone, query, answer);
        if reply == Reply::Silent {
            return false;
        }
        match self.limiter.allow(client.ip(), now) {
            Allowance::Answer => {}
            Allowance::Slip => {
                self.metrics.slipped.inc();
                return bare(query, Rcode::NoError, true, self.responder.recursion, answer);
            }
            Allowance::Drop => {
                self.metrics.dropped.inc();
                return false;
            }
        }
        match reply {
            Reply::Silent => false,
            Reply::Done(summary) => {
                self.metrics.answered(Transport::Udp, summary);
                true
            }
            Reply::Forward(_) => {
                let job = ForwardJob {
                    query: query.to_vec(),
                    client,
                };
                let taken = self.jobs.as_ref().is_some_and(|jobs| jobs.try_send(job).is_ok());
                if !taken {
                    self.metrics.forwarded(super::metrics::ForwardOutcome::Overloaded);
                    *answer = servfail(query);
                }
                !taken && !answer.is_empty()
            }
        }
    }
}

/// Sends `answers[n]` to `clients[n]`; one that the host refuses (no route to the client) does not hold up the rest.
fn send(
    fd: i32,
    headers: &mut MultiHeaders<SockaddrStorage>,
    answers: &[Vec<u8>],
    clients: &[Option<SockaddrStorage>],
    metrics: &Metrics,
) {
    let slices: Vec<_> = answers
        .iter()
        .take(clients.len())
        .map(|answer| [IoSlice::new(answer)])
        .collect();
    let mut sent = 0;
    while sent < clients.len() {
        let batch = sendmmsg(
            fd,
            headers,
            slices[sent..].iter(),
            &clients[sent..],
            [],
            MsgFlags::empty(),
        );
        match batch.map(Iterator::count) {
            Err(Errno::EINTR) => {}
            Ok(0) | Err(_) => {
                metrics.unsent.inc();
                sent += 1;
            }
            Ok(count) => sent += count,
        }
    }
}

fn socket_addr(storage: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = storage.as_sockaddr_in() {
        return Some(SocketAddr::V4(SocketAddrV4::new(v4.ip(), v4.port())));
    }
    let v6 = storage.as_sockaddr_in6()?;
    Some(SocketAddr::V6(SocketAddrV6::new(
        v6.ip(),
        v6.port(),
        v6.flowinfo(),
        v6.scope_id(),
    )))
}
