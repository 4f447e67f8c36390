//! Brokers in this process, and clients of every kind.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_stream::StreamExt;
use tombolo_broker::{Config, Profile};
use tombolo_clusterset::{ClusterId, Label};
use tombolo_daemon::{Seams, Shutdown};
use tombolo_trust::issue::LEAF_TTL;
use tombolo_trust::shell::files::IdentityDir;
use tombolo_trust::{
    CertStore, CertificateDer, Identity, Intermediate, JoinToken, Permit, PrivateKeyDer, Role, Serial,
    SpiffeId, TrustState, TrustStore, client_config, new_key_and_csr, pinned_client_config,
};
use tombolo_wire::v1;
use tombolo_wire::v1::membership_client::MembershipClient;
use tombolo_wire::v1::operator_client::OperatorClient;
use tombolo_wire::v1::sync_client::SyncClient;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// Nothing here takes this long unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A broker that runs in this process.
pub(crate) struct Node {
    pub(crate) config: Config,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), tombolo_broker::Error>>,
}

impl Node {
    pub(crate) fn start(config: Config) -> Self {
        let shutdown = Shutdown::new(Duration::from_secs(2));
        let running = tombolo_broker::run(config.clone(), Seams::host(), shutdown.clone());
        let id = config.id;
        let task = tokio::spawn(async move {
            let ended = running.await;
            if let Err(error) = &ended {
                println!("broker {id} ended: {error}");
            }
            ended
        });
        Self {
            config,
            shutdown,
            task,
        }
    }

    /// Ends it in order.
    pub(crate) async fn stop(self) {
        self.shutdown.begin(Instant::now());
        timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
    }

    /// How it ended by itself.
    pub(crate) async fn ended(self) -> Result<(), tombolo_broker::Error> {
        timeout(PATIENCE, self.task).await.unwrap().unwrap()
    }
}

/// Configuration of broker `id` of the test that owns the block 127.10.`block`.0.
pub(crate) fn config(directory: &Path, block: u8, id: u64, bootstrap: bool) -> Config {
    let address = |port| SocketAddr::from(([127, 10, block, u8::try_from(id).unwrap()], port));
    Config {
        id,
        clusterset: Some(Label::parse("test").unwrap()),
        api: address(7400),
        peer: address(7401),
        admin: address(7402),
        data_dir: directory.join(format!("broker-{id}")),
        bootstrap,
        profile: Profile::Lan,
    }
}

/// A group of one, with its operator.
pub(crate) struct Single {
    pub(crate) directory: TempDir,
    pub(crate) node: Node,
    pub(crate) operator: Operator,
}

pub(crate) async fn single(block: u8) -> Single {
    let directory = TempDir::new().unwrap();
    let node = Node::start(config(directory.path(), block, 1, true));
    let operator = Operator::load(&node.config).await;
    Single {
        directory,
        node,
        operator,
    }
}

/// Calls as the first operator, at any broker.
#[derive(Clone)]
pub(crate) struct Operator {
    trust: Arc<TrustStore>,
    certs: Arc<CertStore>,
}

impl Operator {
    pub(crate) async fn load(config: &Config) -> Self {
        let directory = IdentityDir::new(config.operator_path());
        let identity = eventually(|| async { directory.load().ok() }).await;
        let trust_domain = identity.id().trust_domain().clone();
        let state = TrustState::new(
            trust_domain,
            directory.load_roots().unwrap(),
            Default::default(),
            0,
        )
        .unwrap();
        let operator = Self {
            trust: TrustStore::new(state),
            certs: CertStore::new(identity),
        };
        operator.ready(config.api).await;
        operator
    }

    pub(crate) fn at(&self, api: SocketAddr) -> OperatorClient<Channel> {
        OperatorClient::new(self.channel(api))
    }

    pub(crate) fn channel(&self, api: SocketAddr) -> Channel {
        let tls = client_config(
            Arc::clone(&self.trust),
            Arc::clone(&self.certs),
            Permit::AnyBroker,
            &[b"h2"],
        );
        channel(api, tls.into())
    }

    /// Waits until the broker at `api` has a group behind it.
    pub(crate) async fn ready(&self, api: SocketAddr) {
        let mut client = self.at(api);
        eventually(|| {
            let mut client = client.clone();
            async move { client.rotate_root(v1::RotateRootRequest::default()).await.ok() }
        })
        .await;
        client.group_status(v1::GroupStatusRequest {}).await.unwrap();
    }

    pub(crate) async fn status(&self, api: SocketAddr) -> v1::GroupStatusReply {
        self.at(api)
            .group_status(v1::GroupStatusRequest {})
            .await
            .unwrap()
            .into_inner()
    }

    pub(crate) async fn token(&self, api: SocketAddr, cluster: &str) -> String {
        let request = v1::CreateTokenRequest {
            cluster: cluster.to_owned(),
            ttl_ms: 600_000,
        };
        self.at(api)
            .create_token(request)
            .await
            .unwrap()
            .into_inner()
            .token
    }

    /// What `tombolo broker add` does: certificate, key-encryption key, membership.
    pub(crate) async fn add_broker(&self, founder: &Config, added: &Config) {
        let (key, csr) = new_key_and_csr().unwrap();
        let mut client = self.at(founder.api);
        let request = v1::IssueCertificateRequest {
            subject: format!("broker/{}", added.id),
            csr: csr.to_vec().into(),
        };
        let issued = client.issue_certificate(request).await.unwrap().into_inner();
        let roots: Vec<_> = issued
            .trust
            .unwrap()
            .roots
            .iter()
            .map(|root| CertificateDer::from(root.to_vec()))
            .collect();
        let directory = IdentityDir::new(added.identity_path());
        directory.save_roots(&roots).unwrap();
        directory
            .save(
                &[
                    CertificateDer::from(issued.certificate.to_vec()),
                    roots[0].clone(),
                ],
                &key,
            )
            .unwrap();
        std::fs::copy(founder.kek_path(), added.kek_path()).unwrap();
        let request = v1::AddBrokerRequest {
            id: added.id,
            api_address: added.api.to_string(),
            peer_address: added.peer.to_string(),
        };
        client.add_broker(request).await.unwrap();
    }

    /// Joins `cluster` with a fresh token.
    pub(crate) async fn join(&self, api: SocketAddr, cluster: &str) -> Agent {
        let token = self.token(api, cluster).await;
        join(api, &token, cluster, false).await.unwrap()
    }
}

/// Joins with `token`.
pub(crate) async fn join(
    api: SocketAddr,
    token: &str,
    cluster: &str,
    replace: bool,
) -> Result<Agent, Status> {
    let (key, csr) = new_key_and_csr().unwrap();
    join_with(api, token, cluster, replace, &key, &csr, now_ms()).await
}

pub(crate) async fn join_with(
    api: SocketAddr,
    token: &str,
    cluster: &str,
    replace: bool,
    key: &PrivateKeyDer<'static>,
    csr: &[u8],
    unix_ms: u64,
) -> Result<Agent, Status> {
    let token = JoinToken::parse(token).unwrap();
    let tls = pinned_client_config(token.trust_domain().clone(), token.root_pin(), &[b"h2"]);
    let mut client = MembershipClient::new(channel(api, tls.into()));
    let request = v1::JoinRequest {
        protocol_version: 1,
        token_id: token.id().to_string(),
        token_secret: token.secret().to_vec().into(),
        cluster: cluster.to_owned(),
        network: cluster.to_owned(),
        csr: csr.to_vec().into(),
        unix_ms,
        replace,
        ..Default::default()
    };
    let reply = client.join(request).await?.into_inner();
    let roots = reply
        .trust
        .unwrap()
        .roots
        .iter()
        .map(|root| CertificateDer::from(root.to_vec()))
        .collect();
    let trust = TrustState::new(token.trust_domain().clone(), roots, Default::default(), 0).unwrap();
    let intermediate = CertificateDer::from(reply.intermediate.to_vec());
    Ok(Agent::new(cluster, intermediate, key, TrustStore::new(trust)))
}

/// Calls as the agent of one cluster.
#[derive(Clone)]
pub(crate) struct Agent {
    pub(crate) cluster: ClusterId,
    pub(crate) intermediate: CertificateDer<'static>,
    trust: Arc<TrustStore>,
    certs: Arc<CertStore>,
}

impl Agent {
    fn new(
        cluster: &str,
        intermediate: CertificateDer<'static>,
        key: &PrivateKeyDer<'static>,
        trust: Arc<TrustStore>,
    ) -> Self {
        let cluster = ClusterId::parse(cluster).unwrap();
        let issuer = Intermediate::load(intermediate.clone(), key).unwrap();
        let id = SpiffeId::role(issuer.trust_domain().clone(), cluster.clone(), Role::Agent);
        let (key, csr) = new_key_and_csr().unwrap();
        let now = std::time::SystemTime::now();
        let leaf = issuer
            .issue_leaf(&csr, &id, Serial::from_random([7; 16]), now, LEAF_TTL)
            .unwrap();
        let identity = Identity::new(vec![leaf, intermediate.clone()], &key).unwrap();
        Self {
            cluster,
            intermediate,
            trust,
            certs: CertStore::new(identity),
        }
    }

    /// The same agent with the root between its leaf and what signed it; `key` is the one it joined with.
    pub(crate) fn behind_root(&self, key: &PrivateKeyDer<'static>) -> Self {
        let issuer = Intermediate::load(self.intermediate.clone(), key).unwrap();
        let id = SpiffeId::role(issuer.trust_domain().clone(), self.cluster.clone(), Role::Agent);
        let (key, csr) = new_key_and_csr().unwrap();
        let now = std::time::SystemTime::now();
        let leaf = issuer
            .issue_leaf(&csr, &id, Serial::from_random([8; 16]), now, LEAF_TTL)
            .unwrap();
        let root = self.trust.load().roots()[0].clone();
        let chain = vec![leaf, root, self.intermediate.clone()];
        Self {
            certs: CertStore::new(Identity::new(chain, &key).unwrap()),
            ..self.clone()
        }
    }

    pub(crate) fn channel(&self, api: SocketAddr) -> Channel {
        let tls = client_config(
            Arc::clone(&self.trust),
            Arc::clone(&self.certs),
            Permit::AnyBroker,
            &[b"h2"],
        );
        channel(api, tls.into())
    }

    /// Opens a publish stream with the epoch `held`.
    pub(crate) async fn publish(&self, api: SocketAddr, held: u64) -> Result<Publisher, Status> {
        let (asks, requests) = mpsc::channel(64);
        let open = v1::PublishOpen {
            protocol_version: 1,
            network: self.cluster.to_string(),
            epoch: held,
            unix_ms: now_ms(),
            ..Default::default()
        };
        let request = v1::publish_request::Request::Open(open);
        asks.send(v1::PublishRequest {
            request: Some(request),
        })
        .await
        .unwrap();
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        let replies = SyncClient::new(self.channel(api))
            .publish(requests)
            .await?
            .into_inner();
        let mut publisher = Publisher {
            asks,
            replies,
            granted: v1::PublishGranted::default(),
        };
        match publisher.next().await? {
            v1::publish_reply::Reply::Granted(granted) => publisher.granted = granted,
            other => panic!("{other:?}"),
        }
        Ok(publisher)
    }

    pub(crate) async fn watch(
        &self,
        api: SocketAddr,
        incarnation: u64,
        revision: u64,
    ) -> Result<Watch, Status> {
        let request = v1::WatchRequest {
            protocol_version: 1,
            incarnation,
            revision,
        };
        let events = SyncClient::new(self.channel(api))
            .watch(request)
            .await?
            .into_inner();
        Ok(Watch { events })
    }

    /// An export of this cluster with `endpoints` ready endpoints.
    pub(crate) fn export(&self, service: &str, endpoints: u8) -> v1::Export {
        let (namespace, name) = service.split_once('/').unwrap();
        let endpoints = (0..endpoints).map(|at| v1::Endpoint {
            address: vec![127, 1, 1, at].into(),
            readiness: v1::Readiness::Ready.into(),
            ..Default::default()
        });
        v1::Export {
            key: Some(v1::ServiceKey {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }),
            cluster: self.cluster.to_string(),
            uid: format!("{}-{service}", self.cluster),
            claimed_created_ms: 1,
            spec: Some(v1::ServiceSpec {
                service_type: v1::ServiceType::ClusterSetIp.into(),
                ports: vec![v1::ServicePort {
                    name: "http".to_owned(),
                    protocol: v1::Protocol::Tcp.into(),
                    port: 80,
                    app_protocol: String::new(),
                }],
                ip_families: vec![v1::IpFamily::V4.into()],
                session_affinity: v1::SessionAffinity::None.into(),
                ..Default::default()
            }),
            loss_policy: v1::LossPolicy::Degrade.into(),
            slices: vec![v1::EndpointSlice {
                name: "a".to_owned(),
                family: v1::IpFamily::V4.into(),
                ports: vec![v1::SlicePort {
                    name: "http".to_owned(),
                    protocol: v1::Protocol::Tcp.into(),
                    port: 8080,
                }],
                endpoints: endpoints.collect(),
            }],
        }
    }
}

/// An open publish stream.
pub(crate) struct Publisher {
    asks: mpsc::Sender<v1::PublishRequest>,
    replies: tonic::Streaming<v1::PublishReply>,
    pub(crate) granted: v1::PublishGranted,
}

impl Publisher {
    pub(crate) async fn ask(&self, request: v1::publish_request::Request) {
        self.asks
            .send(v1::PublishRequest {
                request: Some(request),
            })
            .await
            .unwrap();
    }

    pub(crate) async fn next(&mut self) -> Result<v1::publish_reply::Reply, Status> {
        match timeout(PATIENCE, self.replies.message())
            .await
            .expect("a reply")?
        {
            Some(reply) => Ok(reply.reply.unwrap()),
            None => Err(Status::ok("the stream ended")),
        }
    }

    pub(crate) async fn upsert(
        &mut self,
        sequence: u64,
        export: v1::Export,
    ) -> Result<v1::publish_reply::Reply, Status> {
        let upsert = v1::PublishUpsert {
            sequence,
            export: Some(export),
        };
        self.ask(v1::publish_request::Request::Upsert(upsert)).await;
        self.next().await
    }
}

/// An open watch stream.
pub(crate) struct Watch {
    events: tonic::Streaming<v1::WatchEvent>,
}

impl Watch {
    pub(crate) async fn next(&mut self) -> Result<v1::watch_event::Event, Status> {
        match timeout(PATIENCE, self.events.next()).await.expect("an event") {
            Some(event) => Ok(event?.event.unwrap()),
            None => Err(Status::ok("the stream ended")),
        }
    }

    /// Reads on until `pick` takes something from an event.
    pub(crate) async fn until<T>(&mut self, mut pick: impl FnMut(&v1::watch_event::Event) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(found) = pick(&self.next().await.unwrap()) {
                return found;
            }
        }
        panic!("nothing was found in time");
    }
}

pub(crate) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// Asks again until there is an answer.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(mut ask: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    let mut beat = tokio::time::interval(Duration::from_millis(50));
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "nothing happened in time");
        beat.tick().await;
    }
}

pub(crate) fn channel(api: SocketAddr, tls: TlsConnector) -> Channel {
    let dial = move |_| {
        let tls = tls.clone();
        async move {
            let stream = TcpStream::connect(api).await?;
            let name = rustls::pki_types::ServerName::from(api.ip());
            Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, stream).await?))
        }
    };
    Endpoint::from_static("http://broker").connect_with_connector_lazy(tower::service_fn(dial))
}
