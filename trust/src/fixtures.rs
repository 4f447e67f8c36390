//! A small clusterset for tests: roots, clusters, leaves, and certificates that the issuing code would never make.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tombolo_clusterset::ClusterId;

use crate::issue::{INTERMEDIATE_TTL, Intermediate, LEAF_TTL, Root, Serial, new_key_and_csr};
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::state::TrustState;
use crate::store::Identity;

/// The time of every test: some day in 2027, whatever the machine's clock says.
pub(crate) fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

pub(crate) fn serial() -> Serial {
    Serial::from_random([7; 16])
}

pub(crate) fn id(trust_domain: &TrustDomain, path: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://{trust_domain}{path}")).unwrap()
}

pub(crate) fn cluster_id(name: &str) -> ClusterId {
    ClusterId::parse(name).unwrap()
}

pub(crate) fn new_root() -> Root {
    Root::create("demo", serial(), now()).unwrap()
}

pub(crate) fn trust(roots: &[&Root]) -> TrustState {
    let certs = roots.iter().map(|root| root.cert().clone()).collect();
    TrustState::new(roots[0].trust_domain().clone(), certs, BTreeSet::new(), 3).unwrap()
}

/// A chain and its leaf's key.
pub(crate) struct Leaf {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl Leaf {
    pub(crate) fn identity(&self) -> Identity {
        Identity::new(self.chain.clone(), &self.key).unwrap()
    }
}

/// A member with its intermediate.
pub(crate) struct Cluster {
    pub(crate) intermediate: Intermediate,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl Cluster {
    pub(crate) fn new(root: &Root, name: &str) -> Self {
        let (key, csr) = new_key_and_csr().unwrap();
        let cert = root
            .issue_intermediate(&csr, &cluster_id(name), serial(), now(), INTERMEDIATE_TTL)
            .unwrap();
        Self {
            intermediate: Intermediate::load(cert, &key).unwrap(),
            key,
        }
    }

    /// A leaf as the agent issues it: `path` lies under the cluster.
    pub(crate) fn leaf(&self, path: &str) -> Leaf {
        let (key, csr) = new_key_and_csr().unwrap();
        let id = id(self.intermediate.trust_domain(), path);
        let leaf = self
            .intermediate
            .issue_leaf(&csr, &id, serial(), now(), LEAF_TTL)
            .unwrap();
        Leaf {
            chain: vec![leaf, self.intermediate.cert().clone()],
            key,
        }
    }

    /// A leaf that a stolen intermediate signs for any names.
    pub(crate) fn forge(&self, uris: &[&SpiffeId]) -> Leaf {
        let mut leaf = forge(self.intermediate.cert(), &self.key, uris, |_| ());
        leaf.chain.push(self.intermediate.cert().clone());
        leaf
    }
}

/// A broker's or operator's leaf; brokers send the root with it.
pub(crate) fn root_leaf(root: &Root, path: &str) -> Leaf {
    let (key, csr) = new_key_and_csr().unwrap();
    let leaf = root
        .issue_leaf(&csr, &id(root.trust_domain(), path), serial(), now(), LEAF_TTL)
        .unwrap();
    Leaf {
        chain: vec![leaf, root.cert().clone()],
        key,
    }
}

/// Any certificate, signed by any issuer; without the issuer in its chain.
pub(crate) fn forge(
    issuer: &CertificateDer<'_>,
    issuer_key: &PrivateKeyDer<'_>,
    uris: &[&SpiffeId],
    change: impl FnOnce(&mut CertificateParams),
) -> Leaf {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "forged");
    params.subject_alt_names = uris
        .iter()
        .map(|uri| SanType::URI(uri.to_string().try_into().unwrap()))
        .collect();
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let issuer_key = KeyPair::try_from(issuer_key).unwrap();
    let issuer = Issuer::from_ca_cert_der(issuer, issuer_key).unwrap();
    let cert = params.signed_by(&key, &issuer).unwrap();
    Leaf {
        chain: vec![cert.into()],
        key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
    }
}
