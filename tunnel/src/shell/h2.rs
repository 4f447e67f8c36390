//! TLS over TCP with HTTP/2 CONNECT (HBONE's shape), for paths that block UDP.
//!
//! The dialler is the HTTP/2 client and opens every stream. Each is a CONNECT whose header `tombolo-stream` says what for:
//! - `flow`: the first is the control stream, each other one a flow. The status is 200 at once; the flow's header and its
//!   answer are the first frames of the two directions, exactly as on QUIC.
//! - `reverse`: parked for the other direction. The dialler keeps [`PARKED_STREAMS`] of them open and silent; the listener
//!   takes one for each flow it opens, writes the header on it, and the dialler parks another. Since HTTP/2 lets only the
//!   client open streams, this is what makes a tunnel reversible without a second connection.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use h2::client::SendRequest;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Mutex, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::carrier::Stream;
use super::halves::{RecvHalf, SendHalf, h2_error};
use crate::limits::{FLOW_WINDOW, GOODBYE, Limits, PARKED_STREAMS, SEND_BUFFER, TUNNEL_WINDOW};

/// RFC 9113 §3.2.
pub(crate) const ALPN: &[u8] = b"h2";

/// What a CONNECT is for.
const STREAM_HEADER: &str = "tombolo-stream";
const FLOW: HeaderValue = HeaderValue::from_static("flow");
const REVERSE: HeaderValue = HeaderValue::from_static("reverse");

/// Authority of parked streams, for people who read a capture.
const REVERSE_AUTHORITY: &str = "reverse.tombolo.internal:0";

/// Largest DATA frame: fewer frames than with 16 KiB, and a ping still waits for no more than 64 KiB.
const FRAME_MAX: u32 = 64 * 1024;

/// Our requests have one header of a few bytes.
const HEADER_LIST_MAX: u32 = 4 * 1024;

/// Streams that we reset are remembered this long and in this number, so that what was already on its way is not an error
/// of the peer: two flights of a slow path, and every flow of a full tunnel.
const RESET_MEMORY: Duration = Duration::from_secs(30);
const RESET_MEMORY_MAX: usize = crate::limits::FLOWS_PER_TUNNEL;

/// Stream errors after which a connection is closed. Late frames on streams that we reset count too, so the default of
/// 1,024 would end a busy tunnel within its day.
const STREAM_ERRORS_MAX: usize = 1 << 20;

/// Bytes of overhead that small DATA frames may take while nobody reads them.
const SMALL_FRAMES: usize = TUNNEL_WINDOW as usize;

/// How long a parked stream that failed is not opened again: the peer takes no more of them.
const PARK_PAUSE: Duration = Duration::from_secs(1);

/// An HTTP/2 connection, as either side.
#[derive(Debug)]
pub(crate) struct H2Carrier {
    remote: SocketAddr,
    opener: Opener,
    incoming: Mutex<mpsc::Receiver<Stream>>,
    stop: CancellationToken,
    /// Why it is over.
    ended: watch::Receiver<Option<String>>,
}

#[derive(Debug)]
enum Opener {
    Client(SendRequest<Bytes>),
    /// Streams that the client has parked for us.
    Server(Mutex<mpsc::Receiver<Stream>>),
}

impl H2Carrier {
    /// The dialler's side. With `reversible` it parks streams for the peer.
    pub(crate) async fn client<T>(
        io: T,
        remote: SocketAddr,
        limits: &Limits,
        reversible: bool,
        tasks: &TaskTracker,
    ) -> Result<Self, io::Error>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (requests, connection) = h2::client::Builder::new()
            .initial_window_size(FLOW_WINDOW)
            .initial_connection_window_size(TUNNEL_WINDOW)
            .max_frame_size(FRAME_MAX)
            .max_header_list_size(HEADER_LIST_MAX)
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_reset_streams(RESET_MEMORY_MAX)
            .reset_stream_duration(RESET_MEMORY)
            .max_local_error_reset_streams(Some(STREAM_ERRORS_MAX))
            .data_frame_budget(SMALL_FRAMES)
            .enable_push(false)
            .handshake(io)
            .await
            .map_err(h2_error)?;
        let stop = CancellationToken::new();
        let (over, ended) = watch::channel(None);
        let (parked, incoming) = mpsc::channel(limits.flows_per_tunnel.max(1));
        tasks.spawn({
            let (stop, requests) = (stop.clone(), requests.clone());
            async move {
                let parking = park(
                    requests,
                    parked,
                    if reversible { PARKED_STREAMS } else { 0 },
                    stop.clone(),
                );
                tokio::pin!(parking);
                let reason = tokio::select! {
                    () = stop.cancelled() => "closed here".to_owned(),
                    result = connection => match result {
                        Ok(()) => "the peer closed the connection".to_owned(),
                        Err(error) => error.to_string(),
                    },
                    () = &mut parking => "closed here".to_owned(),
                };
                stop.cancel();
                over.send_replace(Some(reason));
            }
        });
        Ok(Self {
            remote,
            opener: Opener::Client(requests),
            incoming: Mutex::new(incoming),
            stop,
            ended,
        })
    }

    /// The listener's side.
    pub(crate) async fn server<T>(
        io: T,
        remote: SocketAddr,
        limits: &Limits,
        tasks: &TaskTracker,
    ) -> Result<Self, io::Error>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let streams = limits.flows_per_tunnel + PARKED_STREAMS + 1;
        let connection = h2::server::Builder::new()
            .initial_window_size(FLOW_WINDOW)
            .initial_connection_window_size(TUNNEL_WINDOW)
            .max_frame_size(FRAME_MAX)
            .max_header_list_size(HEADER_LIST_MAX)
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_streams(u32::try_from(streams).unwrap_or(u32::MAX))
            .max_concurrent_reset_streams(RESET_MEMORY_MAX)
            .max_pending_accept_reset_streams(RESET_MEMORY_MAX)
            .reset_stream_duration(RESET_MEMORY)
            .max_local_error_reset_streams(Some(STREAM_ERRORS_MAX))
            .data_frame_budget(SMALL_FRAMES)
            .handshake::<T, Bytes>(io)
            .await
            .map_err(h2_error)?;
        let stop = CancellationToken::new();
        let (over, ended) = watch::channel(None);
        let (flows, incoming) = mpsc::channel(streams);
        let (parked, reverse) = mpsc::channel(PARKED_STREAMS);
        tasks.spawn(serve(connection, flows, parked, stop.clone(), over));
        let opener = Opener::Server(Mutex::new(reverse));
        Ok(Self {
            remote,
            opener,
            incoming: Mutex::new(incoming),
            stop,
            ended,
        })
    }

    pub(crate) fn remote_addr(&self) -> SocketAddr {
        self.remote
    }

    pub(crate) async fn open(&self, authority: &str) -> io::Result<Stream> {
        match &self.opener {
            Opener::Client(requests) => connect(requests.clone(), authority, FLOW).await,
            Opener::Server(parked) => {
                let stream = parked.lock().await.recv().await;
                stream.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the tunnel is closed"))
            }
        }
    }

    pub(crate) async fn accept(&self) -> Option<Stream> {
        self.incoming.lock().await.recv().await
    }

    pub(crate) fn close(&self, reason: &str) {
        tracing::debug!(remote = %self.remote, reason, "closing HTTP/2 connection");
        self.stop.cancel();
    }

    pub(crate) async fn closed(&self) -> String {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await.map(|reason| reason.clone()) {
            Ok(reason) => reason.unwrap_or_default(),
            Err(_) => "its task ended".to_owned(),
        }
    }
}

impl Drop for H2Carrier {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Opens a CONNECT stream.
async fn connect(requests: SendRequest<Bytes>, authority: &str, what: HeaderValue) -> io::Result<Stream> {
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = authority.parse().map_err(io::Error::other)?;
    request.headers_mut().insert(STREAM_HEADER, what);
    let mut requests = requests.ready().await.map_err(h2_error)?;
    // Dropping both handles, as a dropped future does, resets the stream.
    let (response, send) = requests.send_request(request, false).map_err(h2_error)?;
    let response = response.await.map_err(h2_error)?;
    if response.status() != StatusCode::OK {
        return Err(io::Error::other(format!(
            "CONNECT was answered with status {}",
            response.status()
        )));
    }
    Ok((SendHalf::h2(send), RecvHalf::h2(response.into_body())))
}

/// Keeps streams parked for the peer and hands over those that it begins to use.
async fn park(
    requests: SendRequest<Bytes>,
    begun: mpsc::Sender<Stream>,
    count: usize,
    stop: CancellationToken,
) {
    let parked = |pause: Duration| {
        let requests = requests.clone();
        async move {
            tokio::time::sleep(pause).await;
            let (send, mut recv) = connect(requests, REVERSE_AUTHORITY, REVERSE).await?;
            match recv.has_begun().await? {
                true => Ok((send, recv)),
                false => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            }
        }
    };
    let mut slots = FuturesUnordered::new();
    for _ in 0..count {
        slots.push(parked(Duration::ZERO));
    }
    while let Some(result) = tokio::select! { result = slots.next() => result, () = stop.cancelled() => None }
    {
        match result {
            Ok(stream) => {
                slots.push(parked(Duration::ZERO));
                if begun.send(stream).await.is_err() {
                    break;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "a parked stream ended");
                slots.push(parked(PARK_PAUSE));
            }
        }
    }
    // Only the end of the connection ends it.
    pending().await
}

/// Drives the listener's connection and sorts its streams.
async fn serve<T>(
    mut connection: h2::server::Connection<T, Bytes>,
    flows: mpsc::Sender<Stream>,
    parked: mpsc::Sender<Stream>,
    stop: CancellationToken,
    over: watch::Sender<Option<String>>,
) where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let reason = loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            () = stop.cancelled() => {
                connection.abrupt_shutdown(h2::Reason::NO_ERROR);
                // A peer that does not take the goodbye sees the connection end.
                drop(tokio::time::timeout(GOODBYE, std::future::poll_fn(|cx| connection.poll_closed(cx))).await);
                break "closed here".to_owned();
            }
        };
        match accepted {
            Some(Ok((request, respond))) => sort(request, respond, &flows, &parked),
            Some(Err(error)) => break error.to_string(),
            None => break "the peer closed the connection".to_owned(),
        }
    };
    stop.cancel();
    over.send_replace(Some(reason));
}

/// Answers one request; anything but a CONNECT of ours is refused, and hurts nobody else.
fn sort(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    flows: &mpsc::Sender<Stream>,
    parked: &mpsc::Sender<Stream>,
) {
    let what = request.headers().get(STREAM_HEADER).cloned();
    let queue = match (request.method(), what) {
        (&Method::CONNECT, Some(what)) if what == FLOW => flows,
        (&Method::CONNECT, Some(what)) if what == REVERSE => parked,
        (&Method::CONNECT, _) => return refuse(respond, StatusCode::BAD_REQUEST),
        _ => return refuse(respond, StatusCode::METHOD_NOT_ALLOWED),
    };
    let Ok(slot) = queue.try_reserve() else {
        return respond.send_reset(h2::Reason::REFUSED_STREAM);
    };
    match respond.send_response(answer(StatusCode::OK), false) {
        Ok(send) => slot.send((SendHalf::h2(send), RecvHalf::h2(request.into_body()))),
        Err(error) => tracing::debug!(%error, "a stream was reset before it was answered"),
    }
}

fn refuse(mut respond: SendResponse<Bytes>, status: StatusCode) {
    if let Err(error) = respond.send_response(answer(status), true) {
        tracing::debug!(%error, "a request was reset before it was refused");
    }
}

fn answer(status: StatusCode) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = HeaderMap::new();
    response
}
