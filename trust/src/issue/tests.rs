use super::*;
use crate::fixtures::{Cluster, cluster_id, id, new_root, now, serial};
use crate::verify::{Usage, verify_chain};

#[test]
fn the_trust_domain_hashes_the_first_root_and_survives_rotation() {
    let root = new_root();
    let expected = TrustDomain::derive("demo", &cert::fingerprint(root.cert()).unwrap()).unwrap();
    assert_eq!(root.trust_domain(), &expected);
    assert_eq!(root.pin(), cert::fingerprint(root.cert()).unwrap());
    let next = root.successor(serial(), now()).unwrap();
    assert_eq!(next.trust_domain(), root.trust_domain());
    assert_ne!(next.pin(), root.pin());
}

#[test]
fn validity_is_backdated_and_never_outlives_the_issuer() {
    let root = new_root();
    let (_, csr) = new_key_and_csr().unwrap();
    let day = Duration::from_secs(24 * 3600);
    let later = now() + day;
    let issue = |ttl| {
        let cert = root
            .issue_intermediate(&csr, &cluster_id("west"), serial(), later, ttl)
            .unwrap();
        cert::validity(&cert).unwrap()
    };
    assert_eq!(
        issue(day),
        Validity {
            not_before: later - BACKDATE,
            not_after: later + day
        }
    );
    let root_end = cert::validity(root.cert()).unwrap().not_after;
    assert_eq!(issue(Duration::MAX).not_after, root_end);

    let outlived = root.issue_intermediate(&csr, &cluster_id("west"), serial(), root_end + day, day);
    assert_eq!(outlived, Err(IssueError::IssuerNotValid));
    let early = root.issue_intermediate(&csr, &cluster_id("west"), serial(), now() - day, day);
    assert_eq!(early, Err(IssueError::IssuerNotValid));
}

#[test]
fn each_issuer_names_only_its_own() {
    let root = new_root();
    let west = Cluster::new(&root, "west").intermediate;
    let other = TrustDomain::parse("other-aaaa2222").unwrap();
    let (_, csr) = new_key_and_csr().unwrap();
    // (path, whether west's intermediate issues it, whether the root does)
    let table = [
        ("/cluster/west/role/gateway", true, false),
        ("/cluster/west/ns/shop/sa/cart", true, false),
        ("/cluster/west", false, false),
        ("/cluster/east/role/gateway", false, false),
        ("/broker/1", false, true),
        ("/operator/ana", false, true),
    ];
    for (path, by_west, by_root) in table {
        let wanted = id(root.trust_domain(), path);
        let found = west.issue_leaf(&csr, &wanted, serial(), now(), LEAF_TTL);
        assert_eq!(found.is_ok(), by_west, "west, {path}: {found:?}");
        let found = root.issue_leaf(&csr, &wanted, serial(), now(), LEAF_TTL);
        assert_eq!(found.is_ok(), by_root, "root, {path}: {found:?}");

        let foreign = id(&other, path);
        assert!(
            west.issue_leaf(&csr, &foreign, serial(), now(), LEAF_TTL)
                .is_err(),
            "{foreign}"
        );
        assert!(
            root.issue_leaf(&csr, &foreign, serial(), now(), LEAF_TTL)
                .is_err(),
            "{foreign}"
        );
    }
}

#[test]
fn nothing_but_the_key_is_taken_from_a_request() {
    let root = new_root();
    let west = Cluster::new(&root, "west");
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["east.example".to_owned()]).unwrap();
    let east = id(root.trust_domain(), "/cluster/east/role/gateway");
    params.subject_alt_names.push(uri(&east).unwrap());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    let csr = params.serialize_request(&key).unwrap();

    let wanted = id(root.trust_domain(), "/cluster/west/role/agent");
    let leaf = west
        .intermediate
        .issue_leaf(csr.der(), &wanted, serial(), now(), LEAF_TTL)
        .unwrap();
    assert_eq!(cert::spiffe_id(&leaf).unwrap(), wanted);
    assert_eq!(cert::fingerprint(&leaf).unwrap(), spki_fingerprint(&key));
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    assert!(!parsed.is_ca());
    let names = parsed.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names.len(), 1);
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && usage.server_auth && !usage.code_signing);
    let usage = parsed.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    assert_eq!(parsed.raw_serial()[0] & 0x80, 0, "a serial number is positive");
}

#[test]
fn each_unusable_request_is_refused_for_its_reason() {
    let root = new_root();
    let (_, csr) = new_key_and_csr().unwrap();
    let mut forged = csr.to_vec();
    *forged.last_mut().unwrap() ^= 1;
    let other_key = |algorithm| {
        let key = KeyPair::generate_for(algorithm).unwrap();
        CertificateParams::default()
            .serialize_request(&key)
            .unwrap()
            .der()
            .to_vec()
    };
    let table: Vec<(Vec<u8>, &str)> = vec![
        (Vec::new(), "not acceptable"),
        (b"-----BEGIN".to_vec(), "not acceptable"),
        (csr[..csr.len() - 1].to_vec(), "not acceptable"),
        (forged, "not acceptable"),
        (vec![0; CSR_MAX + 1], "at most 4096"),
        (other_key(&rcgen::PKCS_ED25519), "not ECDSA P-256"),
        (other_key(&rcgen::PKCS_ECDSA_P384_SHA384), "not ECDSA P-256"),
    ];
    for (csr, expected) in table {
        let error = root
            .issue_intermediate(&csr, &cluster_id("west"), serial(), now(), INTERMEDIATE_TTL)
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    }
}

#[test]
fn issuers_are_loaded_only_with_their_own_key() {
    let root = new_root();
    let west = Cluster::new(&root, "west");
    let td = root.trust_domain().clone();
    let back = Root::load(td.clone(), root.cert().clone(), &root.key_der()).unwrap();
    let leaf_of_back = {
        let (_, csr) = new_key_and_csr().unwrap();
        back.issue_leaf(&csr, &id(&td, "/broker/1"), serial(), now(), LEAF_TTL)
            .unwrap()
    };
    let trust = crate::fixtures::trust(&[&root]);
    assert!(verify_chain(&leaf_of_back, &[], now(), &trust, Usage::Server).is_ok());

    let error = Root::load(td.clone(), root.cert().clone(), &west.key).unwrap_err();
    assert!(error.to_string().contains("belongs to another"), "{error}");
    let error = Intermediate::load(root.cert().clone(), &root.key_der()).unwrap_err();
    assert_eq!(error, IssueError::Cert(CertError::NotOneUri { count: 0 }));
    let leaf = west.leaf("/cluster/west/role/agent");
    let error = Intermediate::load(leaf.chain[0].clone(), &leaf.key).unwrap_err();
    assert!(error.to_string().contains("not a cluster"), "{error}");
}

#[test]
fn debug_shows_no_key() {
    let root = new_root();
    let shown = format!("{root:?} {:?}", Cluster::new(&root, "west").intermediate);
    let td = root.trust_domain();
    assert_eq!(
        shown,
        format!("Root {{ trust_domain: {td}, .. }} Intermediate {{ cluster: west, .. }}")
    );
}

#[test]
fn a_root_comes_back_from_its_wrapped_key() {
    use crate::wrap::{Kek, unwrap, wrap};
    let root = new_root();
    let kek = Kek::new(&[5; 32]).unwrap();
    let stored = wrap(root.key_der().secret_der(), &kek, [1; 12]).unwrap();
    let key = PrivateKeyDer::try_from(unwrap(&stored, &kek).unwrap()).unwrap();
    let back = Root::load(root.trust_domain().clone(), root.cert().clone(), &key).unwrap();
    assert_eq!(back.pin(), root.pin());
}
