//! The adapters to rustls: TLS 1.3 only, both sides authenticated by SPIFFE id, the TLS server name ignored.
//!
//! No resumption and no 0-RTT, on either side: a resumed session takes the peer's chain from the ticket and never
//! asks the verifier, so that evicted clusters and dropped roots would go on working.
//!
//! The clock is the configuration's `time_provider`; a simulation replaces that field.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::cert;
use crate::fingerprint::Fingerprint;
use crate::permit::Permit;
use crate::spiffe::TrustDomain;
use crate::state::{TrustState, TrustStore};
use crate::store::CertStore;
use crate::verify::{CHAIN_EXTRA_MAX, TrustError, Usage, system_time, verify_chain};

/// A server that demands a certificate, and one that `permit` accepts.
#[must_use]
pub fn server_config(
    trust: Arc<TrustStore>,
    certs: Arc<CertStore>,
    permit: Permit,
    alpn: &[&[u8]],
) -> Arc<ServerConfig> {
    server(
        SpiffeVerifier::new(Anchor::Store(trust), permit, true),
        certs,
        alpn,
    )
}

/// A server that lets peers in without a certificate, for a broker's join endpoint; one that is presented must be
/// genuine and accepted by `permit`. The caller learns from `peer_certificates()` whether there is one, and answers
/// nothing but a join where there is none.
#[must_use]
pub fn server_config_optional_client(
    trust: Arc<TrustStore>,
    certs: Arc<CertStore>,
    permit: Permit,
    alpn: &[&[u8]],
) -> Arc<ServerConfig> {
    server(
        SpiffeVerifier::new(Anchor::Store(trust), permit, false),
        certs,
        alpn,
    )
}

/// A client that presents `certs` and accepts servers that `permit` accepts, whatever name was dialled.
#[must_use]
pub fn client_config(
    trust: Arc<TrustStore>,
    certs: Arc<CertStore>,
    permit: Permit,
    alpn: &[&[u8]],
) -> Arc<ClientConfig> {
    let verifier = Arc::new(SpiffeVerifier::new(Anchor::Store(trust), permit, true));
    client(client_builder(verifier).with_client_cert_resolver(certs), alpn)
}

/// A client without a certificate, that joins: it knows no root yet, only the pin of one. It accepts a broker of
/// `trust_domain` whose chain ends in the root with that key and holds it; ask [`pinned_root`] for that root.
#[must_use]
pub fn pinned_client_config(
    trust_domain: TrustDomain,
    pin: Fingerprint,
    alpn: &[&[u8]],
) -> Arc<ClientConfig> {
    let verifier = Arc::new(SpiffeVerifier::new(
        Anchor::Pin { trust_domain, pin },
        Permit::AnyBroker,
        true,
    ));
    client(client_builder(verifier).with_no_client_auth(), alpn)
}

/// The root with key `pin` in a chain that a broker presented to a [`pinned_client_config`].
#[must_use]
pub fn pinned_root(certs: &[CertificateDer<'_>], pin: &Fingerprint) -> Option<CertificateDer<'static>> {
    find_root(certs.get(1..)?, pin)
}

/// The [`TrustError`] because of which this side ended a handshake, if that was the cause.
#[must_use]
pub fn refusal(error: &io::Error) -> Option<&TrustError> {
    match error.get_ref()?.downcast_ref::<Error>()? {
        Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) => cause.downcast_ref(),
        _ => None,
    }
}

fn server(verifier: SpiffeVerifier, certs: Arc<CertStore>, alpn: &[&[u8]]) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 cipher suites")
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(certs);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

fn client_builder(
    verifier: Arc<dyn ServerCertVerifier>,
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 cipher suites")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
}

fn client(mut config: ClientConfig, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

fn provider() -> CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}

/// What a verifier holds to be true beforehand.
#[derive(Debug)]
enum Anchor {
    /// The trust state of the clusterset, as it is at each handshake.
    Store(Arc<TrustStore>),
    /// One root's key, and the trust domain.
    Pin {
        trust_domain: TrustDomain,
        pin: Fingerprint,
    },
}

/// Verifies peers, as client and as server.
#[derive(Debug)]
struct SpiffeVerifier {
    anchor: Anchor,
    permit: Permit,
    client_required: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl SpiffeVerifier {
    fn new(anchor: Anchor, permit: Permit, client_required: bool) -> Self {
        let algorithms = provider().signature_verification_algorithms;
        Self {
            anchor,
            permit,
            client_required,
            algorithms,
        }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        extra: &[CertificateDer<'_>],
        now: UnixTime,
        usage: Usage,
    ) -> Result<(), TrustError> {
        let trust = match &self.anchor {
            Anchor::Store(store) => store.load(),
            Anchor::Pin { trust_domain, pin } => {
                let root = find_root(extra, pin).ok_or(TrustError::PinMismatch { pin: *pin })?;
                Arc::new(TrustState::new(
                    trust_domain.clone(),
                    vec![root],
                    BTreeSet::new(),
                    0,
                )?)
            }
        };
        let peer = verify_chain(leaf, extra, system_time(now), &trust, usage)?;
        if self.permit.accepts(&peer) {
            Ok(())
        } else {
            Err(TrustError::NotPermitted {
                peer,
                wanted: self.permit.to_string(),
            })
        }
    }
}

impl ServerCertVerifier for SpiffeVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        extra: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, extra, now, Usage::Server).map_err(refuse)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for SpiffeVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.client_required
    }

    /// No hints: the roots change while the server runs, and every member has one certificate only.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        extra: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, extra, now, Usage::Client).map_err(refuse)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn find_root(extra: &[CertificateDer<'_>], pin: &Fingerprint) -> Option<CertificateDer<'static>> {
    let is_pinned = |cert: &&CertificateDer<'_>| cert::fingerprint(cert).is_ok_and(|found| found == *pin);
    extra
        .iter()
        .take(CHAIN_EXTRA_MAX)
        .find(is_pinned)
        .map(|root| root.clone().into_owned())
}

fn refuse(error: TrustError) -> Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

fn only_tls13() -> Error {
    Error::General("TLS 1.2 was negotiated, but only TLS 1.3 is offered here".to_owned())
}

#[cfg(test)]
mod tests;
