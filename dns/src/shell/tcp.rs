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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use prometheus_client::registry::Registry;
    use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
    use tokio::time::Instant;
    use tombolo_daemon::seam::net::Duplex;

    use super::*;
    use crate::zone::Zones;

    /// One end of a connection in memory, so that time can be paused.
    #[derive(Debug)]
    struct Memory(DuplexStream);

    impl AsyncRead for Memory {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Memory {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, buf)
        }
        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }
        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    impl Duplex for Memory {
        fn peer_addr(&self) -> io::Result<SocketAddr> {
            Ok(SocketAddr::from(([192, 0, 2, 1], 40_000)))
        }
        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok(SocketAddr::from(([192, 0, 2, 2], 53)))
        }
        fn set_nodelay(&self, _nodelay: bool) -> io::Result<()> {
            Ok(())
        }
        fn reset_on_drop(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn server() -> Arc<TcpServer> {
        Arc::new(TcpServer {
            zone: Arc::new(ArcSwap::from_pointee(Zones::new(&[], 1).unloaded())),
            silence: Silence::new(),
            forwarder: None,
            metrics: Metrics::new(&mut Registry::default()),
            seams: Seams::host(),
            shutdown: Shutdown::new(Duration::from_secs(1)),
            open: Mutex::default(),
        })
    }

    /// Asks for `example.com A`: refused.
    const QUERY: &[u8] =
        b"\x00\x1d\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01";

    /// How long the server keeps a connection whose client writes `steps` (after so much time, these octets) and reads nothing.
    async fn kept(room: usize, steps: &[(Duration, &[u8])]) -> Duration {
        let (client, stream) = duplex(room);
        let (reading, mut writing) = tokio::io::split(client);
        let began = Instant::now();
        let stream = Stream::Other(Box::new(Memory(stream)));
        let server = server();
        let serving = tokio::spawn(async move { server.connection(stream).await });
        let steps: Vec<(Duration, Vec<u8>)> = steps
            .iter()
            .map(|(after, octets)| (*after, octets.to_vec()))
            .collect();
        let client = tokio::spawn(async move {
            for (after, octets) in steps {
                sleep(after).await;
                // Fails when the server has closed.
                let _ = writing.write_all(&octets).await;
            }
            std::future::pending::<()>().await;
        });
        serving.await.unwrap();
        client.abort();
        drop(reading);
        began.elapsed()
    }

    /// Timers have the resolution of a millisecond.
    fn assert_about(found: Duration, expected: Duration) {
        assert!(
            found.abs_diff(expected) < Duration::from_millis(10),
            "{found:?} is not {expected:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn quiet_and_slow_clients_are_let_go() {
        let (now, three) = (Duration::ZERO, Duration::from_secs(3));
        assert_about(kept(4096, &[]).await, IDLE);
        assert_about(kept(4096, &[(now, QUERY), (three, QUERY)]).await, three + IDLE);
        assert_about(kept(4096, &[(now, &QUERY[..1])]).await, MESSAGE_TIMEOUT);
        let drop_by_drop: Vec<_> = QUERY
            .iter()
            .map(|octet| (Duration::from_secs(1), std::slice::from_ref(octet)))
            .collect();
        assert_about(
            kept(4096, &drop_by_drop).await,
            Duration::from_secs(1) + MESSAGE_TIMEOUT,
        );
        assert_about(kept(4096, &[(three, b"\x00\x03abc")]).await, three);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_let_go() {
        let many = QUERY.repeat(1_000);
        assert_about(kept(64, &[(Duration::ZERO, &many)]).await, WRITE_TIMEOUT);
    }

    #[tokio::test]
    async fn connections_are_bounded_in_all_and_per_client() {
        let server = server();
        let one = IpAddr::from([192, 0, 2, 1]);
        let places: Vec<_> = (0..CONNECTIONS_PER_CLIENT + 1)
            .map(|open| server.clone().admit(one, open))
            .collect();
        assert_eq!(places.iter().flatten().count(), CONNECTIONS_PER_CLIENT);
        assert!(server.clone().admit(IpAddr::from([192, 0, 2, 2]), 100).is_some());
        assert!(
            server
                .clone()
                .admit(IpAddr::from([127, 0, 0, 1]), CONNECTIONS_MAX)
                .is_none()
        );
        drop(places);
        assert_eq!(server.metrics.connections.get(), 0);
        assert!(server.open.lock().unwrap().is_empty());
        assert!(server.admit(one, 0).is_some());
    }
}
