//! The admin server: what a probe, a scraper or a person asks a process.
//!
//! | path | answer |
//! |---|---|
//! | `/livez` | 200 as long as the process turns its event loop |
//! | `/readyz` | 200 when ready; 503 and the names of what blocks |
//! | `/metrics` | OpenMetrics text |
//! | `/state` | JSON of the role's own making |
//!
//! Only GET and HEAD, and no bodies.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::fmt::{self, Debug};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Method, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::log_limit::LogLimit;
use crate::ready::{BlockerState, Readiness};
use crate::seam::clock::Clock;
use crate::seam::net::{ACCEPT_PAUSE, Listener, Stream};
use crate::shutdown::Shutdown;
use crate::supervise::TaskResult;

/// Connections at once: a scraper or two, probes, and people; more wait in the backlog.
const MAX_CONNECTIONS: usize = 64;

/// A whole request head must arrive within this, so that a silent client cannot hold a connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Any connection ends after this, so that a slow reader cannot hold one either. Scrapers connect again.
const CONNECTION_LIFE: Duration = Duration::from_secs(60);

/// Buffer per connection; a request head must fit. The smallest that hyper takes is 8 KiB.
const BUFFER_BYTES: usize = 16 * 1024;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the admin server tells.
#[derive(Clone)]
pub struct Admin {
    /// For `/readyz`.
    pub readiness: Readiness,
    /// `/readyz` says no while the process drains, so that nobody sends it new work.
    pub shutdown: Shutdown,
    /// For `/metrics`.
    pub registry: Arc<Registry>,
    /// For `/state`. Called per request on the event loop: read a snapshot, do not compute.
    pub state: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
}

impl Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin")
            .field("readiness", &self.readiness)
            .finish_non_exhaustive()
    }
}

impl Admin {
    /// The four routes; a role may merge its own.
    pub fn router(self) -> Router {
        Router::new()
            .route("/livez", get(|| std::future::ready("alive\n")))
            .route(
                "/readyz",
                get(|State(admin): State<Admin>| std::future::ready(admin.readyz())),
            )
            .route(
                "/metrics",
                get(|State(admin): State<Admin>| std::future::ready(admin.metrics())),
            )
            .route(
                "/state",
                get(|State(admin): State<Admin>| std::future::ready(axum::Json((admin.state)()))),
            )
            .with_state(self)
    }

    fn readyz(&self) -> Response {
        let mut blockers = String::new();
        if self.shutdown.is_draining() {
            blockers.push_str("draining\n");
        }
        for (name, state) in self.readiness.report() {
            // Writing to a string cannot fail.
            let _ = match state {
                BlockerState::Ready => continue,
                BlockerState::Waiting => writeln!(blockers, "{name}: waiting"),
                BlockerState::NotReady { reason } => writeln!(blockers, "{name}: {reason}"),
                BlockerState::Failed => writeln!(blockers, "{name}: failed; see its errors in the log"),
            };
        }
        if blockers.is_empty() {
            "ready\n".into_response()
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, blockers).into_response()
        }
    }

    fn metrics(&self) -> Response {
        let mut body = String::new();
        match text::encode(&mut body, &self.registry) {
            Ok(()) => ([(header::CONTENT_TYPE, OPENMETRICS)], body).into_response(),
            Err(error) => {
                tracing::warn!(%error, "metrics cannot be encoded");
                (StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be encoded\n").into_response()
            }
        }
    }
}

/// Serves `router` on `listener` until it is dropped: run it as a supervisor's companion, so that it answers through the
/// drain.
pub async fn serve(listener: Listener, router: Router, clock: Arc<dyn Clock>) -> TaskResult {
    let failures = LogLimit::default();
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let permit = permits.clone().acquire_owned().await?;
        while let Some(ended) = connections.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "admin request panicked; this is a bug, please report it with the log");
            }
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                let connection = connection(stream, router.clone());
                connections.spawn(async move {
                    let _permit = permit;
                    connection.await;
                });
            }
            Err(error) => {
                failures.write(clock.now(), |suppressed| {
                    tracing::warn!(%error, suppressed, "admin server cannot accept; check the limit of open files");
                });
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: Stream, router: Router) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request: Request<Incoming>| answer(router.clone(), request));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_LIFE, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "admin connection ended early"),
        Err(_) => tracing::debug!(limit = ?CONNECTION_LIFE, "admin connection lived too long"),
    }
}

async fn answer(
    router: TowerToHyperService<Router>,
    request: Request<Incoming>,
) -> Result<Response, Infallible> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let allow = [(header::ALLOW, "GET, HEAD"), (header::CONNECTION, "close")];
        return Ok((StatusCode::METHOD_NOT_ALLOWED, allow, "only GET and HEAD\n").into_response());
    }
    if !request.body().is_end_stream() {
        let close = [(header::CONNECTION, "close")];
        return Ok((StatusCode::PAYLOAD_TOO_LARGE, close, "no request takes a body\n").into_response());
    }
    hyper::service::Service::call(&router, request.map(Body::new)).await
}

#[cfg(test)]
mod tests;
