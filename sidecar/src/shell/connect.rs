//! Finds a backend for a flow: the attempts of its plan, dispatched one after another and at last side by side.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use tokio::time::Instant;
use tombolo_clusterset::dispatch::{Dispatch, Step};
use tombolo_clusterset::endpoint::Protocol;
use tombolo_clusterset::places::Target;
use tombolo_clusterset::{LinkState, Locality};
use tombolo_daemon::seam::Seams;
use tombolo_tunnel::{FlowHeader, LocalIdentity, OpenError};

use super::gateways::{Failed, Gateways};
use super::view::View;
use crate::metrics::{Metrics, Outcome};
use crate::plan::{self, Attempt, NewFlow};
use crate::signals::turned_doubtful;

/// Time for a connect to an endpoint of the own cluster; hedged long before.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// What every outbound flow needs.
#[derive(Debug)]
pub(super) struct Connector {
    pub(super) view: Arc<View>,
    pub(super) gateways: Arc<Gateways>,
    pub(super) identity: LocalIdentity,
    pub(super) from: Locality,
    pub(super) seams: Seams,
    pub(super) metrics: Metrics,
    pub(super) rng: Mutex<StdRng>,
}

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(super) struct AttemptFailed {
    pub(super) reason: String,
    /// Whether another attempt may do better.
    pub(super) may_move: bool,
}

impl AttemptFailed {
    pub(super) fn new(reason: impl ToString) -> Self {
        Self {
            reason: reason.to_string(),
            may_move: true,
        }
    }
}

impl From<Failed> for AttemptFailed {
    fn from(failed: Failed) -> Self {
        let may_move = match &failed {
            Failed::Open(OpenError::Refused { refusal, .. }) => plan::may_move(*refusal),
            Failed::Open(_) | Failed::Dial(_) | Failed::Resting { .. } | Failed::NoGateway(_) => true,
        };
        Self {
            reason: failed.to_string(),
            may_move,
        }
    }
}

/// Why a flow has no backend.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoBackend {
    #[error("{0} is no import of this workload any more")]
    NotImported(String),
    #[error("nothing serves {0}; see `tombolo explain {0}`")]
    NoEndpoint(String),
    #[error("no backend of {service} was reached: {}", reasons.join("; "))]
    AllFailed { service: String, reasons: Vec<String> },
}

impl Connector {
    /// The first backend that `connect` reaches, and by which attempt. Attempts that lose are dropped.
    pub(super) async fn connect<Backend, F>(
        &self,
        target: &Target,
        protocol: Protocol,
        client: SocketAddr,
        connect: impl Fn(Attempt) -> F,
    ) -> Result<(Attempt, Backend), NoBackend>
    where
        F: Future<Output = Result<Backend, AttemptFailed>>,
    {
        let began = self.seams.clock.now();
        let result = match self.attempts(target, protocol, client) {
            Ok(attempts) => self.dispatch(target, protocol, attempts, connect).await,
            Err(error) => Err(error),
        };
        let outcome = match &result {
            Ok(_) => Outcome::Connected,
            Err(NoBackend::NotImported(_) | NoBackend::NoEndpoint(_)) => Outcome::NoEndpoint,
            Err(NoBackend::AllFailed { .. }) => Outcome::Failed,
        };
        let after = self.seams.clock.now().saturating_duration_since(began);
        self.metrics.flow(&target.service, outcome, after);
        result
    }

    fn attempts(
        &self,
        target: &Target,
        protocol: Protocol,
        client: SocketAddr,
    ) -> Result<Vec<Attempt>, NoBackend> {
        let not_imported = || NoBackend::NotImported(target.service.to_string());
        let snapshot = self.view.snapshot().ok_or_else(not_imported)?;
        let import = snapshot.imports.get(&target.service).ok_or_else(not_imported)?;
        let port = import.port(protocol, target.port).ok_or_else(not_imported)?;
        let signals = Arc::clone(&self.view.signals().borrow());
        let flow = NewFlow {
            snapshot: &snapshot,
            import,
            port,
            endpoint: target.endpoint.as_ref(),
            client: client.ip(),
            from: &self.from,
            signals: &signals,
        };
        let attempts = plan::attempts(flow, &mut *self.rng.lock());
        if attempts.is_empty() {
            return Err(NoBackend::NoEndpoint(target.service.to_string()));
        }
        Ok(attempts)
    }

    async fn dispatch<Backend, F>(
        &self,
        target: &Target,
        protocol: Protocol,
        attempts: Vec<Attempt>,
        connect: impl Fn(Attempt) -> F,
    ) -> Result<(Attempt, Backend), NoBackend>
    where
        F: Future<Output = Result<Backend, AttemptFailed>>,
    {
        let mut signals = self.view.signals();
        let mut dispatch = Dispatch::new(attempts.len(), self.now());
        let mut pending = FuturesUnordered::new();
        // The state of the link of each pending attempt, as it was when it began.
        let mut began_over: BTreeMap<usize, LinkState> = BTreeMap::new();
        let mut reasons = Vec::new();
        loop {
            let until = match dispatch.poll(self.now()) {
                Step::Try(number) => {
                    let attempt = attempts[number].clone();
                    let link = attempt.cluster().map(|cluster| signals.borrow().link(cluster));
                    if let Some(link) = link {
                        began_over.insert(number, link.state);
                    }
                    dispatch.on_begun(number, link.and_then(|link| link.rtt), self.now());
                    let backend = connect(attempt);
                    pending.push(async move { (number, backend.await) });
                    continue;
                }
                Step::Wait(until) => until,
                Step::GiveUp => {
                    if reasons.is_empty() {
                        reasons.push("no answer in time".to_owned());
                    }
                    return Err(NoBackend::AllFailed {
                        service: target.service.to_string(),
                        reasons,
                    });
                }
            };
            tokio::select! {
                Some((number, result)) = pending.next() => {
                    let attempt = &attempts[number];
                    self.metrics.attempt(attempt, result.is_ok());
                    // Over UDP every connect succeeds; its flow reports what it hears.
                    if let (Attempt::Endpoint { address, .. }, Protocol::Tcp) = (attempt, protocol) {
                        self.view.report(target, protocol, *address, result.is_ok());
                    }
                    match result {
                        Ok(backend) => return Ok((attempt.clone(), backend)),
                        Err(failed) => {
                            tracing::debug!(service = %target.service, ?attempt, %failed, "attempt failed");
                            began_over.remove(&number);
                            dispatch.on_failed(number, failed.may_move);
                            reasons.push(failed.reason);
                        }
                    }
                }
                Ok(()) = signals.changed() => {
                    let now = self.now();
                    let signals = signals.borrow_and_update();
                    for (number, before) in &began_over {
                        let after = attempts[*number].cluster().map(|cluster| signals.link(cluster).state);
                        if after.is_some_and(|after| turned_doubtful(*before, after)) {
                            dispatch.on_suspect(*number, now);
                        }
                    }
                }
                () = tokio::time::sleep_until(Instant::from_std(until)) => {}
            }
        }
    }

    /// The header of a flow to a gateway.
    pub(super) fn header(
        &self,
        target: &Target,
        protocol: Protocol,
        endpoint: Option<std::net::IpAddr>,
        client: SocketAddr,
    ) -> FlowHeader {
        FlowHeader {
            service: target.service.clone(),
            port: target.port,
            protocol,
            endpoint,
            source: self.identity.id(),
            client,
            traceparent: None,
        }
    }

    fn now(&self) -> std::time::Instant {
        self.seams.clock.now().into_std()
    }
}
