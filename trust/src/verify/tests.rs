use std::collections::BTreeSet;

use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa};

use super::*;
use crate::fixtures::{Cluster, Leaf, cluster_id, forge, id, new_root, now, root_leaf, serial, trust};
use crate::issue::{BACKDATE, INTERMEDIATE_TTL, LEAF_TTL, Root};
use crate::state::TrustStore;

const GATEWAY: &str = "/cluster/west/role/gateway";

fn verify_at(leaf: &Leaf, trust: &TrustState, now: SystemTime) -> Result<SpiffeId, TrustError> {
    let client = verify_chain(&leaf.chain[0], &leaf.chain[1..], now, trust, Usage::Client);
    let server = verify_chain(&leaf.chain[0], &leaf.chain[1..], now, trust, Usage::Server);
    assert_eq!(
        client, server,
        "a leaf is as good for dialling as for being dialled"
    );
    client
}

fn verify(leaf: &Leaf, trust: &TrustState) -> Result<SpiffeId, TrustError> {
    verify_at(leaf, trust, now())
}

fn with_chain(leaf: &Leaf, chain: Vec<CertificateDer<'static>>) -> Leaf {
    Leaf {
        chain,
        key: leaf.key.clone_key(),
    }
}

#[test]
fn genuine_chains_prove_their_names() {
    let root = new_root();
    let west = Cluster::new(&root, "west");
    let trust = trust(&[&root]);
    for path in [
        GATEWAY,
        "/cluster/west/role/agent",
        "/cluster/west/ns/shop/sa/cart",
    ] {
        assert_eq!(
            verify(&west.leaf(path), &trust),
            Ok(id(root.trust_domain(), path))
        );
    }
    for path in ["/broker/1", "/operator/ana"] {
        let leaf = root_leaf(&root, path);
        assert_eq!(
            verify(&leaf, &trust),
            Ok(id(root.trust_domain(), path)),
            "with its root"
        );
        let alone = with_chain(&leaf, leaf.chain[..1].to_vec());
        assert_eq!(verify(&alone, &trust), Ok(id(root.trust_domain(), path)), "alone");
    }
}

#[test]
fn a_cluster_cannot_speak_for_another() {
    let root = new_root();
    let (west, east) = (Cluster::new(&root, "west"), Cluster::new(&root, "east"));
    let trust = trust(&[&root]);
    let td = root.trust_domain();
    let signer = id(td, "/cluster/east");
    for path in [
        GATEWAY,
        "/cluster/west/ns/shop/sa/cart",
        "/broker/1",
        "/operator/ana",
    ] {
        let leaf = id(td, path);
        let error = verify(&east.forge(&[&leaf]), &trust).unwrap_err();
        assert_eq!(
            error,
            TrustError::ForeignIntermediate {
                leaf,
                intermediate: signer.clone()
            }
        );
        let message = error.to_string();
        assert!(
            message.contains("/cluster/east, which may sign for its own cluster only"),
            "{message}"
        );
    }
    // Presenting the other cluster's genuine intermediate does not make its signature.
    let mut stolen = east.forge(&[&id(td, GATEWAY)]);
    stolen.chain[1] = west.intermediate.cert().clone();
    let error = verify(&stolen, &trust).unwrap_err();
    assert_eq!(
        error,
        TrustError::UnknownRoot {
            leaf: id(td, GATEWAY),
            revision: 3
        }
    );
    stolen.chain.push(east.intermediate.cert().clone());
    let error = verify(&stolen, &trust).unwrap_err();
    assert_eq!(
        error,
        TrustError::ChainTooLong {
            leaf: id(td, GATEWAY),
            found: 2,
            allowed: 1
        }
    );
}

#[test]
fn an_intermediate_makes_neither_leaves_of_itself_nor_further_intermediates() {
    let root = new_root();
    let west = Cluster::new(&root, "west");
    let trust = trust(&[&root]);
    let td = root.trust_domain();

    let itself = Leaf {
        chain: vec![west.intermediate.cert().clone()],
        key: west.key.clone_key(),
    };
    assert_eq!(
        verify(&itself, &trust),
        Err(TrustError::NotALeaf {
            id: id(td, "/cluster/west")
        })
    );

    let below = forge(
        west.intermediate.cert(),
        &west.key,
        &[&id(td, "/cluster/west")],
        |params| {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        },
    );
    let mut leaf = forge(&below.chain[0], &below.key, &[&id(td, GATEWAY)], |_| ());
    leaf.chain.push(below.chain[0].clone());
    assert!(matches!(
        verify(&leaf, &trust),
        Err(TrustError::UnknownRoot { .. })
    ));
    leaf.chain.push(west.intermediate.cert().clone());
    assert!(matches!(
        verify(&leaf, &trust),
        Err(TrustError::ChainTooLong { found: 2, .. })
    ));

    // A leaf is no issuer, not even for its own cluster.
    let agent = west.leaf("/cluster/west/role/agent");
    let mut leaf = forge(&agent.chain[0], &agent.key, &[&id(td, GATEWAY)], |_| ());
    leaf.chain.push(agent.chain[0].clone());
    assert!(verify(&leaf, &trust).is_err());

    // The path over a broker's leaf may not be longer either: broker, below, west, root.
    let mut leaf = forge(&below.chain[0], &below.key, &[&id(td, "/broker/1")], |_| ());
    leaf.chain
        .extend([below.chain[0].clone(), west.intermediate.cert().clone()]);
    assert!(matches!(
        verify(&leaf, &trust),
        Err(TrustError::Unacceptable { .. })
    ));
}

#[test]
fn a_leaf_names_exactly_one_id() {
    let root = new_root();
    let west = Cluster::new(&root, "west");
    let trust = trust(&[&root]);
    let (gateway, agent) = (
        id(root.trust_domain(), GATEWAY),
        id(root.trust_domain(), "/cluster/west/role/agent"),
    );
    for (uris, count) in [
        (vec![], 0),
        (vec![&gateway, &agent], 2),
        (vec![&gateway, &gateway], 2),
    ] {
        let error = verify(&west.forge(&uris), &trust).unwrap_err();
        assert_eq!(error, TrustError::Cert(CertError::NotOneUri { count }));
    }
    assert!(verify(&west.forge(&[&gateway]), &trust).is_ok());
}

#[test]
fn chains_of_the_wrong_length_are_refused() {
    let root = new_root();
    let west = Cluster::new(&root, "west");
    let trust = trust(&[&root]);
    let leaf_id = id(root.trust_domain(), GATEWAY);
    let leaf = west.leaf(GATEWAY);
    let (cert, intermediate) = (leaf.chain[0].clone(), leaf.chain[1].clone());
    let missing = TrustError::MissingIntermediate {
        leaf: leaf_id.clone(),
    };
    let long = |found, allowed| TrustError::ChainTooLong {
        leaf: leaf_id.clone(),
        found,
        allowed,
    };
    let table = [
        (vec![cert.clone()], Err(missing.clone())),
        (vec![cert.clone(), root.cert().clone()], Err(missing.clone())),
        (
            vec![cert.clone(), intermediate.clone(), root.cert().clone()],
            Ok(leaf_id.clone()),
        ),
        (
            vec![cert.clone(), intermediate.clone(), intermediate.clone()],
            Err(long(2, 1)),
        ),
        (
            vec![
                cert.clone(),
                intermediate.clone(),
                cert.clone(),
                cert.clone(),
                cert,
            ],
            Err(long(4, 3)),
        ),
    ];
    for (at, (chain, expected)) in table.into_iter().enumerate() {
        assert_eq!(verify(&with_chain(&leaf, chain), &trust), expected, "row {at}");
    }

    // Signed by the root itself, with an intermediate beside it that signed nothing.
    let mut direct = forge(root.cert(), &root.key_der(), &[&leaf_id], |_| ());
    direct.chain.push(intermediate);
    assert_eq!(verify(&direct, &trust), Err(missing));
}

#[test]
fn every_certificate_of_a_chain_must_be_timely() {
    let root = new_root();
    let west = Cluster::new(&root, "west");
    let trust = trust(&[&root]);
    let leaf = west.leaf(GATEWAY);
    let leaf_id = id(root.trust_domain(), GATEWAY);
    let second = Duration::from_secs(1);
    assert_eq!(verify_at(&leaf, &trust, now() + LEAF_TTL), Ok(leaf_id.clone()));
    assert_eq!(verify_at(&leaf, &trust, now() - BACKDATE), Ok(leaf_id.clone()));
    assert_eq!(
        verify_at(&leaf, &trust, now() + LEAF_TTL + second),
        Err(TrustError::Expired {
            leaf: leaf_id.clone(),
            ago_secs: 1
        })
    );
    assert_eq!(
        verify_at(&leaf, &trust, now() - BACKDATE - 2 * second),
        Err(TrustError::NotYetValid {
            leaf: leaf_id.clone(),
            in_secs: 2
        })
    );
    // A leaf that claims to live for ever dies with its intermediate.
    assert!(verify_at(&west.forge(&[&leaf_id]), &trust, now() + INTERMEDIATE_TTL).is_ok());
    assert_eq!(
        verify_at(
            &west.forge(&[&leaf_id]),
            &trust,
            now() + INTERMEDIATE_TTL + second
        ),
        Err(TrustError::Expired {
            leaf: leaf_id,
            ago_secs: 1
        })
    );
}

#[test]
fn other_clustersets_and_unknown_roots_are_refused() {
    let (root, other) = (new_root(), new_root());
    let trust = trust(&[&root]);
    let foreign = Cluster::new(&other, "west").leaf(GATEWAY);
    let expected = TrustError::ForeignTrustDomain {
        peer: id(other.trust_domain(), GATEWAY),
        ours: root.trust_domain().clone(),
    };
    assert_eq!(verify(&foreign, &trust), Err(expected));

    // Of our trust domain, and yet of a root that nobody here trusts, with the same name or without.
    let impostor = Root::load(
        root.trust_domain().clone(),
        other.cert().clone(),
        &other.key_der(),
    )
    .unwrap();
    let unknown = |path| TrustError::UnknownRoot {
        leaf: id(root.trust_domain(), path),
        revision: 3,
    };
    let forged = Cluster::new(&impostor, "west").leaf(GATEWAY);
    assert_eq!(verify(&forged, &trust), Err(unknown(GATEWAY)));
    let forged = root_leaf(&impostor, "/broker/1");
    assert_eq!(verify(&forged, &trust), Err(unknown("/broker/1")));
    let same_name = forge(
        root.cert(),
        &other.key_der(),
        &[&id(root.trust_domain(), "/broker/1")],
        |_| (),
    );
    assert_eq!(verify(&same_name, &trust), Err(unknown("/broker/1")));
}

#[test]
fn a_certificate_for_another_use_is_refused() {
    let root = new_root();
    let trust = trust(&[&root]);
    let broker = id(root.trust_domain(), "/broker/1");
    let signing = forge(root.cert(), &root.key_der(), &[&broker], |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    });
    assert!(matches!(
        verify_chain(&signing.chain[0], &[], now(), &trust, Usage::Server),
        Err(TrustError::Unacceptable { .. })
    ));
    let ca = forge(root.cert(), &root.key_der(), &[&broker], |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    });
    assert!(matches!(
        verify(&ca, &trust),
        Err(TrustError::Unacceptable { .. })
    ));
}

#[test]
fn garbage_is_refused_without_panic() {
    let root = new_root();
    let trust = trust(&[&root]);
    let leaf = Cluster::new(&root, "west").leaf(GATEWAY);
    for end in (0..leaf.chain[0].len()).step_by(7) {
        let cut = CertificateDer::from(leaf.chain[0][..end].to_vec());
        let intermediate = CertificateDer::from(leaf.chain[1][..end.min(leaf.chain[1].len() - 1)].to_vec());
        let as_leaf = with_chain(&leaf, vec![cut, leaf.chain[1].clone()]);
        assert!(
            matches!(verify(&as_leaf, &trust), Err(TrustError::Cert(_))),
            "leaf cut at {end}"
        );
        let as_intermediate = with_chain(&leaf, vec![leaf.chain[0].clone(), intermediate]);
        assert!(
            verify(&as_intermediate, &trust).is_err(),
            "intermediate cut at {end}"
        );
    }
}

#[test]
fn an_evicted_cluster_is_denied_by_its_key_and_can_come_back_with_another() {
    let root = new_root();
    let (west, east) = (Cluster::new(&root, "west"), Cluster::new(&root, "east"));
    let key = cert::fingerprint(west.intermediate.cert()).unwrap();
    let denied = BTreeSet::from([key]);
    let roots = vec![root.cert().clone()];
    let trust = TrustState::new(root.trust_domain().clone(), roots, denied, 4).unwrap();
    let refused = TrustError::Denied {
        leaf: id(root.trust_domain(), GATEWAY),
        cluster: cluster_id("west"),
    };

    let leaf = west.leaf(GATEWAY);
    assert_eq!(verify(&leaf, &trust), Err(refused.clone()));
    assert_eq!(denied_in_chain(&leaf.chain, &trust), Err(refused));
    let east = east.leaf("/cluster/east/role/gateway");
    assert!(verify(&east, &trust).is_ok());
    assert_eq!(denied_in_chain(&east.chain, &trust), Ok(()));
    assert_eq!(
        denied_in_chain(&root_leaf(&root, "/broker/1").chain, &trust),
        Ok(())
    );
    assert_eq!(denied_in_chain(&[], &trust), Err(CertError::Missing.into()));

    let again = Cluster::new(&root, "west").leaf(GATEWAY);
    assert!(verify(&again, &trust).is_ok());
    assert_eq!(denied_in_chain(&again.chain, &trust), Ok(()));
}

#[test]
fn rotation_trusts_both_roots_and_then_the_new_one() {
    let old = new_root();
    let new = old.successor(serial(), now()).unwrap();
    let (before, after) = (
        Cluster::new(&old, "west").leaf(GATEWAY),
        Cluster::new(&new, "west").leaf(GATEWAY),
    );
    let (broker_before, broker_after) = (root_leaf(&old, "/broker/1"), root_leaf(&new, "/broker/1"));
    let store = TrustStore::new(trust(&[&old]));
    let accepted = |leaf| verify(leaf, &store.load()).is_ok();
    // (roots, whether what the old one signed is accepted, and what the new one signed)
    for (roots, by_old, by_new) in [
        (vec![&old], true, false),
        (vec![&old, &new], true, true),
        (vec![&new], false, true),
    ] {
        store.replace(trust(&roots)).unwrap();
        let found = [&before, &broker_before, &after, &broker_after].map(accepted);
        assert_eq!(found, [by_old, by_old, by_new, by_new], "{} roots", roots.len());
    }
}

#[test]
fn a_trust_state_has_one_or_two_roots_that_can_sign() {
    let root = new_root();
    let td = root.trust_domain().clone();
    let state = |roots| TrustState::new(td.clone(), roots, BTreeSet::new(), 1);
    let cert = root.cert().clone();
    assert_eq!(state(vec![]).unwrap_err(), TrustError::RootCount { found: 0 });
    assert_eq!(
        state(vec![cert.clone(); 3]).unwrap_err(),
        TrustError::RootCount { found: 3 }
    );
    let leaf = root_leaf(&root, "/broker/1").chain.remove(0);
    assert!(matches!(
        state(vec![cert, leaf]).unwrap_err(),
        TrustError::BadRoot { at: 1, .. }
    ));
    let garbage = CertificateDer::from(vec![1, 2, 3]);
    assert!(matches!(
        state(vec![garbage]).unwrap_err(),
        TrustError::BadRoot { at: 0, .. }
    ));
}

#[test]
fn a_store_keeps_its_trust_domain() {
    let (root, other) = (new_root(), new_root());
    let store = TrustStore::new(trust(&[&root]));
    let error = store.replace(trust(&[&other])).unwrap_err();
    assert!(matches!(error, TrustError::TrustDomainChanged { .. }));
    assert_eq!(store.load().trust_domain(), root.trust_domain());
}
