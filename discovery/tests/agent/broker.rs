//! A broker of one process and no memory but this: it speaks the protocol, and does what a test tells it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::Stream;
use futures_util::stream::unfold;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tombolo_clusterset::ClusterId;
use tombolo_trust::state::TrustState;
use tombolo_trust::{
    CertStore, Identity, JoinToken, Permit, Root, Serial, SpiffeId, TrustStore, new_key_and_csr,
};
use tombolo_wire::v1;
use tombolo_wire::v1::entry::Entry;
use tombolo_wire::v1::membership_server::{Membership, MembershipServer};
use tombolo_wire::v1::publish_reply::Reply as PublishReply;
use tombolo_wire::v1::publish_request::Request as Publish;
use tombolo_wire::v1::sync_server::{Sync, SyncServer};
use tombolo_wire::v1::watch_event::Event;
use tonic::{Request, Response, Status, Streaming};

const INCARNATION: u64 = 1;

fn serial() -> Serial {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    Serial::from_random(u128::from(NEXT.fetch_add(1, Ordering::Relaxed)).to_be_bytes())
}

#[derive(Default)]
struct State {
    revision: u64,
    entries: BTreeMap<String, v1::Entry>,
    /// Everything after the first state, as watchers see it.
    log: Vec<(u64, Event)>,
    used_tokens: BTreeSet<String>,
    epoch: u64,
    reports: Vec<v1::DrillReport>,
    acks: Vec<(u64, String)>,
    /// Certificate requests, answered or not.
    renew_requests: Vec<Vec<u8>>,
    /// So many of them are still refused.
    renewals_refused: usize,
}

/// What the gRPC services share.
pub(crate) struct Core {
    root: Root,
    /// Set once the root was rotated: it signs from then on.
    next_root: Mutex<Option<Root>>,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    renewals: AtomicU64,
    fresh: AtomicBool,
    /// Whether renewals are confirmed, as a leader's word is needed for it.
    confirms: AtomicBool,
    grants: AtomicU64,
    address: Mutex<Option<SocketAddr>>,
}

/// The broker; its sockets die with [`FakeBroker::stop`], its state does not.
pub(crate) struct FakeBroker {
    pub(crate) core: Arc<Core>,
    runtime: Option<Runtime>,
}

impl FakeBroker {
    pub(crate) fn start() -> Self {
        let root = Root::create("demo", serial(), SystemTime::now()).unwrap();
        let core = Core {
            root,
            next_root: Mutex::new(None),
            state: Mutex::default(),
            changed: watch::Sender::new(0),
            renewals: AtomicU64::new(0),
            fresh: AtomicBool::new(true),
            confirms: AtomicBool::new(true),
            grants: AtomicU64::new(0),
            address: Mutex::new(None),
        };
        let mut broker = Self {
            core: Arc::new(core),
            runtime: None,
        };
        let trust = broker.core.trust();
        broker.core.apply("trust", Entry::Trust(trust));
        broker.restart();
        broker
    }

    pub(crate) fn restart(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let core = Arc::clone(&self.core);
        let (sender, bound) = std::sync::mpsc::channel();
        runtime.spawn(serve(core, sender));
        let address = bound.recv_timeout(Duration::from_secs(10)).unwrap();
        *self.core.address.lock() = Some(address);
        self.runtime = Some(runtime);
    }

    pub(crate) fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.core.address.lock().unwrap()
    }

    pub(crate) fn token(&self, cluster: &str, number: u8) -> String {
        let random = [number; tombolo_trust::token::MINT_RANDOM_LEN];
        let cluster = ClusterId::parse(cluster).unwrap();
        let domain = self.core.root.trust_domain().clone();
        JoinToken::mint(random, domain, self.core.root.pin(), cluster).to_text()
    }
}

impl Drop for FakeBroker {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn serve(core: Arc<Core>, bound: std::sync::mpsc::Sender<SocketAddr>) {
    let (key, csr) = new_key_and_csr().unwrap();
    let id = SpiffeId::broker(core.root.trust_domain().clone(), 1);
    let day = Duration::from_secs(24 * 3600);
    let leaf = core
        .root
        .issue_leaf(&csr, &id, serial(), SystemTime::now(), day)
        .unwrap();
    let certs = CertStore::new(Identity::new(vec![leaf, core.root.cert().clone()], &key).unwrap());
    let domain = core.root.trust_domain().clone();
    let trust =
        TrustStore::new(TrustState::new(domain, vec![core.root.cert().clone()], BTreeSet::new(), 0).unwrap());
    let config = tombolo_trust::server_config_optional_client(trust, certs, Permit::AnyMember, &[b"h2"]);
    let acceptor = TlsAcceptor::from(config);
    let address = core
        .address
        .lock()
        .unwrap_or_else(|| "127.0.0.1:0".parse().unwrap());
    let listener = TcpListener::bind(address).await.unwrap();
    bound.send(listener.local_addr().unwrap()).unwrap();
    let connections = unfold((listener, acceptor), |(listener, acceptor)| async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            if let Ok(tls) = acceptor.accept(tcp).await {
                return Some((Ok::<_, std::io::Error>(tls), (listener, acceptor)));
            }
        }
    });
    let services = Services(core);
    tonic::transport::Server::builder()
        .add_service(MembershipServer::new(services.clone()))
        .add_service(SyncServer::new(services))
        .serve_with_incoming(connections)
        .await
        .unwrap();
}

impl Core {
    fn trust(&self) -> v1::TrustBundle {
        v1::TrustBundle {
            trust_domain: self.root.trust_domain().to_string(),
            roots: vec![self.root.cert().to_vec().into()],
            denied: Vec::new(),
            revision: 1,
        }
    }

    /// A new root beside the old one, and signing from now on.
    pub(crate) fn rotate(&self) {
        let next = self.root.successor(serial(), SystemTime::now()).unwrap();
        let mut trust = self.trust();
        trust.roots.push(next.cert().to_vec().into());
        trust.revision = 2;
        *self.next_root.lock() = Some(next);
        self.apply("trust", Entry::Trust(trust));
    }

    pub(crate) fn last_ack(&self) -> (u64, String) {
        self.state.lock().acks.last().cloned().unwrap_or_default()
    }

    /// Commits an entry: every watcher hears of it.
    pub(crate) fn apply(&self, name: &str, entry: Entry) -> u64 {
        let mut state = self.state.lock();
        state.revision += 1;
        let revision = state.revision;
        let entry = v1::Entry { entry: Some(entry) };
        state.entries.insert(name.to_owned(), entry.clone());
        state.log.push((
            revision,
            Event::Apply(v1::WatchApply {
                entry: Some(entry),
                revision,
            }),
        ));
        drop(state);
        self.changed.send_replace(revision);
        revision
    }

    /// Commits what no watcher is told of, as a token or an election.
    pub(crate) fn commit_unseen(&self) {
        let mut state = self.state.lock();
        state.revision += 1;
        let revision = state.revision;
        drop(state);
        self.changed.send_replace(revision);
    }

    pub(crate) fn delete(&self, name: &str, key: v1::entry_key::Key) {
        let mut state = self.state.lock();
        state.revision += 1;
        let revision = state.revision;
        state.entries.remove(name);
        let key = Some(v1::EntryKey { key: Some(key) });
        state
            .log
            .push((revision, Event::Delete(v1::WatchDelete { key, revision })));
        drop(state);
        self.changed.send_replace(revision);
    }

    pub(crate) fn member(&self, id: &str, lease: v1::Lease) {
        let view = v1::ClusterView {
            id: id.to_owned(),
            locality: Some(v1::Locality {
                region: "far".into(),
                ..Default::default()
            }),
            network: id.to_owned(),
            gateways: vec!["127.0.0.1:9".to_owned()],
            lease: lease.into(),
        };
        self.apply(
            &format!("member {id}"),
            Entry::Member(v1::Member {
                view: Some(view),
                ..Default::default()
            }),
        );
    }

    /// Admits an export, as of a cluster.
    pub(crate) fn admit(&self, export: v1::Export) -> u64 {
        let key = export.key.clone().unwrap();
        let name = format!("export {}/{} {}", key.namespace, key.name, export.cluster);
        let next = self.state.lock().revision + 1;
        let same = self
            .state
            .lock()
            .entries
            .get(&name)
            .and_then(|entry| match &entry.entry {
                Some(Entry::Export(old)) if old.export.as_ref().is_some_and(|old| old.uid == export.uid) => {
                    Some(old.admitted)
                }
                _ => None,
            });
        let created_ms = export.claimed_created_ms;
        let record = v1::ExportRecord {
            export: Some(export),
            admitted: same.unwrap_or(next),
            created_ms,
        };
        self.apply(&name, Entry::Export(record))
    }

    fn withdraw(&self, cluster: &str, keep: impl Fn(&v1::ServiceKey) -> bool) {
        let found: Vec<(String, v1::ServiceKey)> = {
            let state = self.state.lock();
            let exports = state
                .entries
                .iter()
                .filter_map(|(name, entry)| match &entry.entry {
                    Some(Entry::Export(record)) => Some((name.clone(), record.export.clone()?)),
                    _ => None,
                });
            exports
                .filter(|(_, export)| export.cluster == cluster)
                .map(|(name, export)| (name, export.key.unwrap()))
                .collect()
        };
        for (name, key) in found.into_iter().filter(|(_, key)| !keep(key)) {
            let key = v1::ExportKey {
                service: Some(key),
                cluster: cluster.to_owned(),
            };
            self.delete(&name, v1::entry_key::Key::Export(key));
        }
    }

    pub(crate) fn exports(&self) -> Vec<String> {
        self.state
            .lock()
            .entries
            .keys()
            .filter(|name| name.starts_with("export"))
            .cloned()
            .collect()
    }

    pub(crate) fn renewals(&self) -> u64 {
        self.renewals.load(Ordering::Relaxed)
    }

    pub(crate) fn renew_requests(&self) -> Vec<Vec<u8>> {
        self.state.lock().renew_requests.clone()
    }

    pub(crate) fn refuse_renewals(&self, times: usize) {
        self.state.lock().renewals_refused = times;
    }

    /// Publish streams that were granted.
    pub(crate) fn grants(&self) -> u64 {
        self.grants.load(Ordering::Relaxed)
    }

    /// As a broker that is cut off from its leader: it takes renewals, and confirms none.
    pub(crate) fn set_confirms(&self, confirms: bool) {
        self.confirms.store(confirms, Ordering::Relaxed);
    }

    /// As a broker that hears no quorum.
    pub(crate) fn set_fresh(&self, fresh: bool) {
        self.fresh.store(fresh, Ordering::Relaxed);
        self.commit_unseen();
    }

    pub(crate) fn reports(&self) -> usize {
        self.state.lock().reports.len()
    }

    /// As if another agent of the same cluster had opened its stream.
    pub(crate) fn supersede(&self) {
        self.state.lock().epoch += 1;
    }
}

#[derive(Clone)]
struct Services(Arc<Core>);

#[tonic::async_trait]
impl Membership for Services {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinReply>, Status> {
        let request = request.into_inner();
        if !self.0.state.lock().used_tokens.insert(request.token_id.clone()) {
            return Err(Status::unauthenticated(
                "join token has been used; create another",
            ));
        }
        if request.unix_ms.abs_diff(now_ms()) > 60_000 {
            return Err(Status::failed_precondition(
                "the clock of the cluster is off; set it by NTP",
            ));
        }
        if request.cluster == "taken" && !request.replace {
            return Err(Status::already_exists(
                "cluster taken is a member already; choose another id",
            ));
        }
        let cluster = ClusterId::parse(&request.cluster).unwrap();
        let ttl = tombolo_trust::issue::INTERMEDIATE_TTL;
        let signed = self
            .0
            .root
            .issue_intermediate(&request.csr, &cluster, serial(), SystemTime::now(), ttl);
        self.0.member(&request.cluster, v1::Lease::Alive);
        let address = self.0.address.lock().unwrap().to_string();
        self.0.apply(
            "brokers",
            Entry::Brokers(v1::Brokers {
                addresses: vec![address.clone()],
            }),
        );
        Ok(Response::new(v1::JoinReply {
            intermediate: signed.unwrap().to_vec().into(),
            trust: Some(self.0.trust()),
            brokers: vec![address],
            incarnation: INCARNATION,
        }))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewReply>, Status> {
        {
            let mut state = self.0.state.lock();
            state.renew_requests.push(request.get_ref().csr.to_vec());
            if state.renewals_refused > 0 {
                state.renewals_refused -= 1;
                return Err(Status::unavailable("the answer was lost"));
            }
        }
        let cluster = ClusterId::parse("west").unwrap();
        let next = self.0.next_root.lock();
        let root = next.as_ref().unwrap_or(&self.0.root);
        let ttl = tombolo_trust::issue::INTERMEDIATE_TTL;
        let signed =
            root.issue_intermediate(&request.get_ref().csr, &cluster, serial(), SystemTime::now(), ttl);
        Ok(Response::new(v1::RenewReply {
            intermediate: signed.unwrap().to_vec().into(),
            trust: Some(self.0.trust()),
            brokers: Vec::new(),
        }))
    }

    async fn leave(&self, _request: Request<v1::LeaveRequest>) -> Result<Response<v1::LeaveReply>, Status> {
        Ok(Response::new(v1::LeaveReply { log_index: 1 }))
    }
}

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Sync for Services {
    type PublishStream = Events<v1::PublishReply>;
    type WatchStream = Events<v1::WatchEvent>;

    async fn publish(
        &self,
        request: Request<Streaming<v1::PublishRequest>>,
    ) -> Result<Response<Self::PublishStream>, Status> {
        let (sender, replies) = mpsc::channel(64);
        let core = Arc::clone(&self.0);
        let mut requests = request.into_inner();
        tokio::spawn(async move {
            let mut held = 0;
            let mut named = BTreeSet::new();
            let mut cluster = String::new();
            while let Ok(Some(message)) = requests.message().await {
                if held != 0 && held != core.state.lock().epoch {
                    let _ = sender
                        .send(Err(Status::failed_precondition("publish epoch was superseded")))
                        .await;
                    return;
                }
                let accepted = |sequence, log_index| {
                    Some(PublishReply::Accepted(v1::PublishAccepted {
                        sequence,
                        log_index,
                    }))
                };
                let reply = match message.request.unwrap() {
                    Publish::Open(open) => {
                        let mut state = core.state.lock();
                        if open.epoch == 0 || open.epoch != state.epoch {
                            state.epoch += 1;
                        }
                        held = state.epoch;
                        core.grants.fetch_add(1, Ordering::Relaxed);
                        Some(PublishReply::Granted(v1::PublishGranted {
                            epoch: held,
                            lease_term_ms: 1_000,
                            incarnation: INCARNATION,
                        }))
                    }
                    Publish::Init(_) => {
                        named.clear();
                        None
                    }
                    Publish::Upsert(upsert) => {
                        let export = upsert.export.unwrap();
                        let key = export.key.clone().unwrap();
                        cluster.clone_from(&export.cluster);
                        if key.name == "refused" {
                            let reason = "the broker's test refuses this name".to_owned();
                            Some(PublishReply::Rejected(v1::PublishRejected {
                                sequence: upsert.sequence,
                                key: Some(key),
                                reason,
                            }))
                        } else {
                            named.insert((key.namespace, key.name));
                            accepted(upsert.sequence, core.admit(export))
                        }
                    }
                    Publish::Delete(delete) => {
                        let gone = delete.key.unwrap();
                        core.withdraw(&cluster, |key| *key != gone);
                        accepted(delete.sequence, 1)
                    }
                    Publish::InitDone(done) => {
                        core.withdraw(&cluster, |key| {
                            named.contains(&(key.namespace.clone(), key.name.clone()))
                        });
                        accepted(done.sequence, 1)
                    }
                    Publish::RenewLease(_) => {
                        core.renewals.fetch_add(1, Ordering::Relaxed);
                        core.confirms.load(Ordering::Relaxed).then(|| {
                            PublishReply::LeaseRenewed(v1::PublishLeaseRenewed {
                                broker_unix_ms: now_ms(),
                            })
                        })
                    }
                    Publish::TrustAck(ack) => {
                        core.state.lock().acks.push((ack.revision, ack.lagging));
                        None
                    }
                };
                if let Some(reply) = reply
                    && sender
                        .send(Ok(v1::PublishReply { reply: Some(reply) }))
                        .await
                        .is_err()
                {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(replies))))
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        let (sender, events) = mpsc::channel(64);
        let core = Arc::clone(&self.0);
        tokio::spawn(async move {
            let mut changed = core.changed.subscribe();
            let mut at = request.revision;
            let mut batch = Vec::new();
            if request.incarnation != INCARNATION {
                let state = core.state.lock();
                at = state.revision;
                batch.push(Event::Init(v1::WatchInit {
                    incarnation: INCARNATION,
                }));
                let entries = state.entries.values().cloned();
                batch.extend(entries.map(|entry| {
                    Event::Apply(v1::WatchApply {
                        entry: Some(entry),
                        revision: at,
                    })
                }));
                batch.push(Event::InitDone(core.progress(at)));
            }
            loop {
                if batch.is_empty() {
                    let state = core.state.lock();
                    batch.extend(
                        state
                            .log
                            .iter()
                            .filter(|(revision, _)| *revision > at)
                            .map(|(_, event)| event.clone()),
                    );
                    at = state.revision;
                    batch.push(Event::Progress(core.progress(at)));
                }
                for event in batch.drain(..) {
                    if sender
                        .send(Ok(v1::WatchEvent { event: Some(event) }))
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
                tokio::select! {
                    _ = changed.changed() => {}
                    () = sender.closed() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(events))))
    }

    async fn report_drill(
        &self,
        request: Request<v1::DrillReport>,
    ) -> Result<Response<v1::ReportDrillReply>, Status> {
        self.0.state.lock().reports.push(request.into_inner());
        Ok(Response::new(v1::ReportDrillReply {}))
    }
}

impl Core {
    fn progress(&self, revision: u64) -> v1::WatchProgress {
        v1::WatchProgress {
            incarnation: INCARNATION,
            revision,
            fresh: self.fresh.load(Ordering::Relaxed),
            unix_ms: now_ms(),
        }
    }
}

fn now_ms() -> u64 {
    u64::try_from(
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_millis(),
    )
    .unwrap()
}
