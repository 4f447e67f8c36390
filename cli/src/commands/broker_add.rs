//! `tombolo broker add`: a certificate, a configuration and the group's consent for a new broker.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use tombolo_trust::shell::files::IdentityDir;
use tombolo_trust::{CertificateDer, new_key_and_csr};
use tombolo_wire::v1;

use crate::args::Target;
use crate::operator::{Operators, refusal};
use crate::output::print_line;
use crate::up::Layout;

/// A broker to be.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) id: u64,
    pub(crate) api: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) admin: SocketAddr,
    /// Key-encryption key shared by the group.
    pub(crate) kek: PathBuf,
    /// Folder to write.
    pub(crate) out: PathBuf,
}

/// `broker.toml` of a broker whose data lies in `data` beside it.
pub(crate) fn config_text(
    id: u64,
    api: SocketAddr,
    peer: SocketAddr,
    admin: SocketAddr,
    bootstrap: bool,
) -> String {
    let first = if bootstrap {
        "bootstrap = true        # creates the clusterset when data_dir is empty\nclusterset = \"demo\"\n"
    } else {
        ""
    };
    format!(
        "id = {id}\n{first}api = \"{api}\"\npeer = \"{peer}\"\nadmin = \"{admin}\"\ndata_dir = \"data\"\nprofile = \"lan\"\n"
    )
}

/// The command.
pub(crate) async fn run(
    target: &Target,
    id: u64,
    api: SocketAddr,
    peer: SocketAddr,
    admin: SocketAddr,
    kek: Option<PathBuf>,
    out: PathBuf,
) -> Result<()> {
    let operators = Operators::find(target)?;
    let kek = kek.unwrap_or_else(|| Layout::new(&target.data_dir).kek());
    add(
        &operators,
        &Request {
            id,
            api,
            peer,
            admin,
            kek,
            out: out.clone(),
        },
    )
    .await?;
    print_line(&format!(
        "broker {id} is admitted; start it: tombolo broker --config {}",
        out.join("broker.toml").display()
    ))
}

/// Writes the folder and asks the group to take the broker in. Repeating it for the same folder is harmless.
pub(crate) async fn add(operators: &Operators, request: &Request) -> Result<()> {
    let Request {
        id,
        api,
        peer,
        admin,
        kek,
        out,
    } = request;
    let config = out.join("broker.toml");
    if config.exists() {
        bail!(
            "{} exists already; a broker id is never used twice",
            config.display()
        );
    }
    let kek_bytes = std::fs::read(kek).with_context(|| {
        format!(
            "cannot read the key-encryption key {}; give --kek the kek file of a running broker",
            kek.display()
        )
    })?;
    let mut client = operators.connect().await?;
    let (key, csr) = new_key_and_csr()?;
    let certificate = client
        .issue_certificate(v1::IssueCertificateRequest {
            subject: format!("broker/{id}"),
            csr: csr.to_vec().into(),
        })
        .await
        .map_err(|status| refusal(&status))?
        .into_inner();
    let data = out.join("data");
    let identity = IdentityDir::new(data.join("identity"));
    let roots = certificate.trust.map(|trust| trust.roots).unwrap_or_default();
    let roots: Vec<CertificateDer<'static>> = roots.into_iter().map(|root| root.to_vec().into()).collect();
    // Leaf and root: a cluster that joins knows the broker by the root that its token pins.
    let leaf: CertificateDer<'static> = certificate.certificate.to_vec().into();
    let chain: Vec<CertificateDer<'static>> = std::iter::once(leaf).chain(roots.last().cloned()).collect();
    identity.save(&chain, &key)?;
    identity.save_roots(&roots)?;
    write_secret(&data.join("kek"), &kek_bytes)?;
    let admitted = v1::AddBrokerRequest {
        id: *id,
        api_address: api.to_string(),
        peer_address: peer.to_string(),
    };
    client
        .add_broker(admitted)
        .await
        .map_err(|status| refusal(&status))?;
    std::fs::write(&config, config_text(*id, *api, *peer, *admin, false))
        .with_context(|| format!("cannot write {}", config.display()))
}

/// Writes a file that only its owner may read.
fn write_secret(path: &std::path::Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let file = std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    file.and_then(|mut file| file.write_all(bytes))
        .with_context(|| format!("cannot write {}", path.display()))
}
