//! gRPC to the broker group with an operator certificate.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tombolo_daemon::seam::Seams;
use tombolo_trust::shell::files::IdentityDir;
use tombolo_trust::{
    CertStore, CertificateDer, Permit, Subject, TrustState, TrustStore, client_config, new_key_and_csr,
};
use tombolo_wire::v1;
use tombolo_wire::v1::operator_client::OperatorClient;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::args::Target;
use crate::up;

/// A broker that does not answer within this is passed over for the next.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait for any single answer; streams are not bound by it.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Largest message: a watch entry with the largest export.
const MAX_MESSAGE: usize = 16 << 20;

/// Where the brokers are and who asks.
#[derive(Debug, Clone)]
pub(crate) struct Operators {
    /// Tried in this order.
    pub(crate) brokers: Vec<SocketAddr>,
    pub(crate) identity: PathBuf,
}

impl Operators {
    /// From `--broker` and `--identity`, else from the data directory of a local clusterset.
    pub(crate) fn find(target: &Target) -> Result<Self> {
        match (&target.broker, &target.identity) {
            (Some(broker), Some(identity)) => Ok(Self {
                brokers: vec![*broker],
                identity: identity.clone(),
            }),
            (None, None) => {
                let layout = up::Layout::new(&target.data_dir);
                let identity = layout.operator();
                if !identity.is_dir() {
                    bail!(
                        "there is no clusterset in {}; start one with `tombolo up`, name its --data-dir, or give --broker and --identity",
                        target.data_dir.display()
                    );
                }
                Ok(Self {
                    brokers: layout.broker_apis(),
                    identity,
                })
            }
            (Some(_), None) => {
                let identity = up::Layout::new(&target.data_dir).operator();
                if !identity.is_dir() {
                    bail!(
                        "--broker needs --identity: the folder with the operator's key.pem, cert.pem and roots.pem"
                    );
                }
                Ok(Self {
                    brokers: target.broker.into_iter().collect(),
                    identity,
                })
            }
            (None, Some(_)) => {
                bail!("--identity needs --broker: the API address of a broker, for example 10.0.0.1:7400")
            }
        }
    }

    /// A client on the first broker that takes a connection.
    pub(crate) async fn connect(&self) -> Result<OperatorClient<Channel>> {
        let mut failures = Vec::new();
        for broker in &self.brokers {
            match timeout(CONNECT_TIMEOUT, connect(*broker, &self.identity)).await {
                Ok(Ok(channel)) => {
                    return Ok(OperatorClient::new(channel).max_decoding_message_size(MAX_MESSAGE));
                }
                Ok(Err(error)) => failures.push(format!("  {broker}: {error:#}")),
                Err(_) => failures.push(format!(
                    "  {broker}: no answer within {} s",
                    CONNECT_TIMEOUT.as_secs()
                )),
            }
        }
        Err(anyhow!("no broker can be reached:\n{}", failures.join("\n")))
    }

    /// Gets this operator a new certificate and the present roots, and writes both into the identity folder: whoever turns
    /// the root must not be left behind by it.
    pub(crate) async fn renew(&self) -> Result<()> {
        let folder = IdentityDir::new(&self.identity);
        let identity = folder.load()?;
        let Subject::Operator(name) = identity.id().subject() else {
            bail!(
                "{} is the identity of {}, not of an operator",
                self.identity.display(),
                identity.id()
            );
        };
        let (key, csr) = new_key_and_csr()?;
        let request = v1::IssueCertificateRequest {
            subject: format!("operator/{name}"),
            csr: csr.to_vec().into(),
        };
        let mut client = self.connect().await?;
        let reply = client
            .issue_certificate(request)
            .await
            .map_err(|status| refusal(&status))?
            .into_inner();
        let roots = reply.trust.map(|trust| trust.roots).unwrap_or_default();
        let roots: Vec<CertificateDer<'static>> =
            roots.into_iter().map(|root| root.to_vec().into()).collect();
        if roots.is_empty() {
            bail!("the broker sent a certificate without roots; upgrade it");
        }
        // The roots first: with both, either certificate works if this ends in between.
        folder.save_roots(&roots)?;
        folder.save(&[reply.certificate.to_vec().into()], &key)?;
        Ok(())
    }
}

/// Trust in the roots of `identity`'s folder.
fn trust_store(identity: &Path) -> Result<(Arc<TrustStore>, Arc<CertStore>)> {
    let folder = IdentityDir::new(identity);
    let identity = folder.load()?;
    let domain = identity.id().trust_domain().clone();
    let trust = TrustState::new(domain, folder.load_roots()?, BTreeSet::new(), 0)?;
    Ok((TrustStore::new(trust), CertStore::new(identity)))
}

async fn connect(broker: SocketAddr, identity: &Path) -> Result<Channel> {
    let (trust, certs) = trust_store(identity)?;
    let connector = TlsConnector::from(client_config(trust, certs, Permit::AnyBroker, &[b"h2"]));
    let network = Seams::host().network;
    let dial = tower::service_fn(move |_: Uri| {
        let (connector, network) = (connector.clone(), network.clone());
        async move {
            let stream = network.dial(broker).await?;
            // The identity decides (SPIFFE), never a host name; TLS wants one all the same.
            let name = ServerName::IpAddress(broker.ip().into());
            connector.connect(name, stream).await.map(TokioIo::new)
        }
    });
    let endpoint = Endpoint::from_static("http://broker.tombolo").connect_timeout(CONNECT_TIMEOUT);
    endpoint
        .connect_with_connector(dial)
        .await
        .map_err(|error| {
            // tonic wraps the cause in "transport error": the innermost one is what the operator needs.
            let mut cause: &dyn std::error::Error = &error;
            while let Some(inner) = cause.source() {
                cause = inner;
            }
            anyhow!("{cause}")
        })
        .context("cannot connect")
}

/// The message of a refusal, in the words of the broker.
pub(crate) fn refusal(status: &tonic::Status) -> anyhow::Error {
    anyhow!("{}", status.message())
}
