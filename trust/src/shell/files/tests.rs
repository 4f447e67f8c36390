use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::fixtures::{Cluster, new_root};

const GATEWAY: &str = "/cluster/west/role/gateway";

fn in_temp() -> (tempfile::TempDir, IdentityDir) {
    let temp = tempfile::tempdir().unwrap();
    let dir = IdentityDir::new(temp.path().join("deep/identity"));
    (temp, dir)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn an_identity_comes_back_and_its_key_is_private() {
    let (_temp, dir) = in_temp();
    let root = new_root();
    let leaf = Cluster::new(&root, "west").leaf(GATEWAY);
    dir.save(&leaf.chain, &leaf.key).unwrap();
    dir.save_roots(&[root.cert().clone()]).unwrap();
    let (chain, key) = dir.load_chain_and_key().unwrap();
    assert_eq!(
        (chain, key.secret_der()),
        (leaf.chain.clone(), leaf.key.secret_der())
    );
    assert_eq!(dir.load().unwrap().id(), leaf.identity().id());
    assert_eq!(dir.load_roots().unwrap(), [root.cert().clone()]);
    assert_eq!(mode(&dir.path().join(KEY_FILE)), 0o600);
    assert_eq!(mode(dir.path()), 0o700);
    let names: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 3, "nothing temporary is left: {names:?}");
}

#[test]
fn a_crash_between_key_and_certificate_keeps_the_old_pair() {
    let (_temp, dir) = in_temp();
    let west = Cluster::new(&new_root(), "west");
    let (old, new, newer) = (west.leaf(GATEWAY), west.leaf(GATEWAY), west.leaf(GATEWAY));
    dir.save(&old.chain, &old.key).unwrap();
    let old_cert = fs::read(dir.path().join(CERT_FILE)).unwrap();
    // As if the process had died after the key was in place: the new key, the old certificate; twice in a row.
    for leaf in [&new, &newer] {
        dir.save(&leaf.chain, &leaf.key).unwrap();
        fs::write(dir.path().join(CERT_FILE), &old_cert).unwrap();
        let (chain, key) = dir.load_chain_and_key().unwrap();
        assert_eq!(
            (chain, key.secret_der()),
            (old.chain.clone(), old.key.secret_der())
        );
    }
    dir.save(&newer.chain, &newer.key).unwrap();
    let (chain, key) = dir.load_chain_and_key().unwrap();
    assert_eq!(
        (chain, key.secret_der()),
        (newer.chain.clone(), newer.key.secret_der())
    );
}

#[test]
fn saving_many_times_keeps_two_keys_at_most() {
    let (_temp, dir) = in_temp();
    let west = Cluster::new(&new_root(), "west");
    for _ in 0..5 {
        let leaf = west.leaf(GATEWAY);
        dir.save(&leaf.chain, &leaf.key).unwrap();
        dir.save(&leaf.chain, &leaf.key).unwrap();
    }
    let keys = keys_from_pem(&fs::read(dir.path().join(KEY_FILE)).unwrap()).unwrap();
    assert!(keys.len() <= 2, "{} keys", keys.len());
}

#[test]
fn each_error_names_its_file() {
    let (_temp, dir) = in_temp();
    let west = Cluster::new(&new_root(), "west");
    let (leaf, other) = (west.leaf(GATEWAY), west.leaf(GATEWAY));
    let error = dir.load().unwrap_err();
    assert!(matches!(error, FileError::Missing { .. }));
    assert!(
        error.to_string().contains("identity/cert.pem does not exist"),
        "{error}"
    );

    dir.save(&leaf.chain, &leaf.key).unwrap();
    let pem = fs::read_to_string(dir.path().join(CERT_FILE)).unwrap();
    let table: [(&str, Vec<u8>, &str); 8] = [
        (CERT_FILE, Vec::new(), "cert.pem: it holds no certificate"),
        (
            CERT_FILE,
            key_to_pem(&leaf.key).into_bytes(),
            "cert.pem: it holds no certificate",
        ),
        (
            CERT_FILE,
            pem.as_bytes()[..pem.len() - 40].to_vec(),
            "cert.pem: certificate number 2 is damaged",
        ),
        (
            CERT_FILE,
            pem.repeat(9).into_bytes(),
            "cert.pem: it holds more than 16 certificates",
        ),
        (
            CERT_FILE,
            vec![b'x'; 70_000],
            "cert.pem is larger than 65536 bytes",
        ),
        (
            KEY_FILE,
            pem.clone().into_bytes(),
            "key.pem: it holds no private key",
        ),
        (
            KEY_FILE,
            key_to_pem(&other.key).into_bytes(),
            "identity: private key does not belong",
        ),
        (
            KEY_FILE,
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n".to_vec(),
            "cannot be used",
        ),
    ];
    for (name, contents, expected) in table {
        let path = dir.path().join(name);
        let before = fs::read(&path).unwrap();
        fs::write(&path, contents).unwrap();
        let error = dir.load().unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
        fs::write(&path, before).unwrap();
    }
    assert!(dir.load().is_ok());
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("file"), b"").unwrap();
    let dir = IdentityDir::new(temp.path().join("file/identity"));
    let leaf = Cluster::new(&new_root(), "west").leaf(GATEWAY);
    let error = dir.save(&leaf.chain, &leaf.key).unwrap_err();
    assert!(error.to_string().contains("file/identity"), "{error}");
}

#[test]
fn a_key_file_is_loaded_or_named() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("kek");
    assert!(matches!(load_kek(&path), Err(FileError::Missing { .. })));
    fs::write(&path, b"short").unwrap();
    assert!(
        load_kek(&path)
            .unwrap_err()
            .to_string()
            .contains("kek: key file must hold 32")
    );
    fs::write(&path, [1; 32]).unwrap();
    assert!(load_kek(&path).is_ok());
}
