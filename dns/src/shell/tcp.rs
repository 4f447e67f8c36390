//! TCP: length-prefixed messages, many on one connection, answered as they are ready (RFC 7766).

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, BufWriter, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tombolo_daemon::log_limit::LogLimit;
use tombolo_daemon::seam::Seams;
use tombolo_daemon::seam::net::{ACCEPT_PAUSE, Listener, Stream};
use tombolo_daemon::shutdown::Shutdown;
use tombolo_daemon::supervise::TaskResult;

use super::forward::Forwarder;
use super::metrics::Metrics;
use super::silence::Silence;
use crate::edns::Transport;
use crate::fast::HEADER_OCTETS;
use crate::respond::{Reply, Responder};
use crate::zone::Zone;

/// Connections at once. Each takes about 20 kB.
pub(crate) const CONNECTIONS_MAX: usize = 512;

/// Connections of one client address: a resolver needs a few, and one client must not take all. Loopback, where every process of
/// the host is one client, has the whole number.
const CONNECTIONS_PER_CLIENT: usize = 64;

/// How long a connection may be quiet (RFC 7766 §6.2.3 asks for "a few seconds").
const IDLE: Duration = Duration::from_secs(10);

/// The same while more than half of [`CONNECTIONS_MAX`] are open.
const IDLE_WHEN_BUSY: Duration = Duration::from_secs(2);

/// From a message's first octet to its last: a client that sends them one by one holds nothing for long.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// For writing one answer: a client that does not read holds nothing for long either.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Answers waiting for the client to read, and queries of one connection at upstreams; beyond, nothing more is read.
const PIPELINE_MAX: usize = 32;

/// Serves TCP clients.
#[derive(Debug)]
pub(crate) struct TcpServer {
    pub(crate) zone: Arc<ArcSwap<Zone>>,
    pub(crate) silence: Silence,
    pub(crate) forwarder: Option<Arc<Forwarder>>,
    pub(crate) metrics: Metrics,
    pub(crate) seams: Seams,
    pub(crate) shutdown: Shutdown,
    pub(crate) open: Mutex<HashMap<IpAddr, usize>>,
}

impl TcpServer {
    /// Accepts until the drain begins; connections then end after the message they are at.
    pub(crate) async fn serve(self: Arc<Self>, listener: Listener) -> TaskResult {
        let failures = LogLimit::default();
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = self.shutdown.drain() => break,
                accepted = listener.accept() => accepted,
            };
            while let Some(ended) = connections.try_join_next() {
                report(ended);
            }
            match accepted {
                Ok((stream, client)) => match self.clone().admit(client.ip(), connections.len()) {
                    Some(place) => {
                        connections.spawn(async move { place.server.connection(stream).await });
                    }
                    None => {
                        self.metrics.connections_refused.inc();
                        stream.abort();
                    }
                },
                Err(error) => {
                    failures.write(self.seams.clock.now(), |suppressed| {
                        tracing::warn!(%error, suppressed, "cannot accept over TCP; check the limit of open files");
                    });
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
        Ok(())
    }

    fn admit(self: Arc<Self>, client: IpAddr, open: usize) -> Option<Place> {
        let most = if client.is_loopback() {
            CONNECTIONS_MAX
        } else {
            CONNECTIONS_PER_CLIENT
        };
        if open >= CONNECTIONS_MAX {
            return None;
        }
        let mut clients = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let held = clients.entry(client).or_default();
        if *held >= most {
            return None;
        }
        *held += 1;
        drop(clients);
        self.metrics.connections.inc();
        Some(Place { server: self, client })
    }

    async fn connection(&self, stream: Stream) {
        let (read, write) = tokio::io::split(stream);
        let (answers, queue) = mpsc::channel(PIPELINE_MAX);
        let reading = async {
            if let Err(error) = self.read(BufReader::new(read), answers).await {
                tracing::debug!(%error, "DNS connection ended early");
            }
        };
        let writing = write_all(write, queue);
        tokio::pin!(reading, writing);
        // When the reader ends, what it was asked is still answered; when the writer ends, nobody reads any more.
        tokio::select! {
            ended = &mut writing => log_write(ended),
            () = &mut reading => log_write(writing.await),
        }
    }

    async fn read(
        &self,
        mut stream: BufReader<ReadHalf<Stream>>,
        answers: mpsc::Sender<Vec<u8>>,
    ) -> io::Result<()> {
        let mut responder =
            Responder::new(Transport::Tcp, self.forwarder.is_some(), self.seams.entropy.rng());
        let mut forwards = JoinSet::new();
        loop {
            self.silence.over().await;
            let first = tokio::select! {
                () = self.shutdown.drain() => break,
                first = timeout(self.idle(), stream.read_u8()) => first,
            };
            let first = match first {
                Ok(Ok(first)) => first,
                Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Ok(Err(error)) => return Err(error),
                // A drill's silence closes nothing.
                Err(_) if self.silence.is_on() => continue,
                Err(_) if !forwards.is_empty() => {
                    // The client waits for an upstream: it is not idle.
                    if let Some(ended) = forwards.join_next().await {
                        report(ended);
                    }
                    continue;
                }
                Err(_) => break,
            };
            let query = timeout(MESSAGE_TIMEOUT, message(first, &mut stream)).await??;
            let begun = self.seams.clock.now();
            if self.silence.is_on() {
                continue;
            }
            while let Some(ended) = forwards.try_join_next() {
                report(ended);
            }
            let mut answer = Vec::new();
            let reply = responder.respond(&self.zone.load(), &query, &mut answer);
            match (reply, &self.forwarder) {
                (Reply::Done(summary), _) => {
                    self.metrics.answered(Transport::Tcp, summary);
                    let sent = answers.send(answer).await;
                    self.metrics
                        .took(self.seams.clock.now().saturating_duration_since(begun));
                    if sent.is_err() {
                        break;
                    }
                }
                (Reply::Forward(_), Some(forwarder)) => {
                    if forwards.len() >= PIPELINE_MAX
                        && let Some(ended) = forwards.join_next().await
                    {
                        report(ended);
                    }
                    let (forwarder, answers) = (forwarder.clone(), answers.clone());
                    forwards.spawn(async move {
                        // Fails when the client is gone.
                        let _ = answers.send(forwarder.answer(&query).await).await;
                    });
                }
                // What sends no queries is no DNS client.
                (Reply::Silent | Reply::Forward(_), _) => break,
            }
        }
        while let Some(ended) = forwards.join_next().await {
            report(ended);
        }
        Ok(())
    }

    fn idle(&self) -> Duration {
        let open = usize::try_from(self.metrics.connections.get()).unwrap_or(0);
        if open > CONNECTIONS_MAX / 2 {
            IDLE_WHEN_BUSY
        } else {
            IDLE
        }
    }
}

/// The place of one connection among all.
struct Place {
    server: Arc<TcpServer>,
    client: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.server.metrics.connections.dec();
        let mut clients = self.server.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = clients.get_mut(&self.client) {
            *held -= 1;
            if *held == 0 {
                clients.remove(&self.client);
            }
        }
    }
}

/// The rest of a message whose length prefix begins with `first`.
async fn message(first: u8, stream: &mut BufReader<ReadHalf<Stream>>) -> io::Result<Vec<u8>> {
    let length = usize::from(u16::from_be_bytes([first, stream.read_u8().await?]));
    if length < HEADER_OCTETS {
        let text = format!("a message of {length} octets is no DNS message");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    // Grows with what arrives: the prefix alone reserves nothing.
    let mut query = Vec::new();
    let read = stream.take(length as u64).read_to_end(&mut query).await?;
    if read < length {
        Err(io::ErrorKind::UnexpectedEof.into())
    } else {
        Ok(query)
    }
}

/// Writes each answer behind its length, several at once where they wait.
async fn write_all(stream: WriteHalf<Stream>, mut queue: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    let mut stream = BufWriter::new(stream);
    while let Some(answer) = queue.recv().await {
        let length = u16::try_from(answer.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        let write = async {
            stream.write_u16(length).await?;
            stream.write_all(&answer).await?;
            if queue.is_empty() {
                stream.flush().await
            } else {
                Ok(())
            }
        };
        timeout(WRITE_TIMEOUT, write).await??;
    }
    timeout(WRITE_TIMEOUT, stream.shutdown()).await?
}

fn log_write(ended: io::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "DNS answers not written");
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a DNS connection panicked; this is a bug, please report it with the log");
    }
}
