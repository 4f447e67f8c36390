//! Who may speak, and how they prove it: SPIFFE ids, join tokens, issuing, the chain verifier and its TLS adapters.
//!
//! Everything is pure (no clock, no file, no task) except `shell`, which loads and saves identities. Two things draw
//! entropy, both inside the cryptographic library: [`issue::new_key_and_csr`] and the signatures themselves.
//!
//! The rules that hold here (DESIGN.md, *Trust*):
//! - a certificate names exactly one SPIFFE id, and that id, never a TLS server name, decides what its holder may do;
//! - a cluster's leaf is valid only under exactly one intermediate that names the same cluster;
//! - brokers and operators are signed by a root directly;
//! - TLS 1.3 only, no resumption and no 0-RTT, since both would skip the verifier.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests fail by panicking"))]

pub mod bundle;
pub mod cert;
pub mod fingerprint;
pub mod issue;
pub mod permit;
pub mod renew;
pub mod shell;
pub mod spiffe;
pub mod state;
pub mod store;
pub mod tls;
pub mod token;
pub mod verify;
pub mod wrap;

#[cfg(test)]
mod fixtures;

pub use cert::{CertError, peer_identity};
pub use fingerprint::Fingerprint;
pub use issue::{Intermediate, IssueError, Root, Serial, new_key_and_csr};
pub use permit::Permit;
pub use renew::Validity;
pub use spiffe::{OperatorName, Role, ServiceAccount, SpiffeError, SpiffeId, Subject, TrustDomain};
pub use state::{TrustState, TrustStore};
pub use store::{CertStore, Identity, IdentityError};
pub use tls::{
    client_config, pinned_client_config, pinned_root, refusal, server_config, server_config_optional_client,
};
pub use token::{JoinToken, SecretHash, TokenError, TokenId};
pub use verify::{TrustError, Usage, denied_in_chain, verify_chain};

/// The TLS library's certificate and key types, so that users of this crate name one version of them.
pub use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
