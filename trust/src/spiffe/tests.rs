use proptest::prelude::*;

use super::*;
use crate::fingerprint::Fingerprint;

const TD: &str = "demo-aaaa2222";

fn parse(rest: &str) -> Result<SpiffeId, SpiffeError> {
    SpiffeId::parse(&format!("spiffe://{TD}{rest}"))
}

#[test]
fn every_shape_parses_and_says_its_cluster() {
    let table = [
        ("/cluster/west", Some("west")),
        ("/cluster/west/role/agent", Some("west")),
        ("/cluster/west/role/gateway", Some("west")),
        ("/cluster/west/role/dns", Some("west")),
        ("/cluster/west/role/sidecar", Some("west")),
        ("/cluster/west/ns/shop/sa/cart.v2", Some("west")),
        ("/broker/0", None),
        ("/broker/18446744073709551615", None),
        ("/operator/Ana_B.c-1", None),
    ];
    for (path, cluster) in table {
        let id = parse(path).unwrap();
        assert_eq!(id.to_string(), format!("spiffe://{TD}{path}"));
        assert_eq!(id.cluster().map(ClusterId::as_str), cluster, "{path}");
        assert_eq!(
            id.is_under_cluster(&ClusterId::parse("west").unwrap()),
            cluster.is_some(),
            "{path}"
        );
        assert!(!id.is_under_cluster(&ClusterId::parse("wes").unwrap()), "{path}");
    }
}

#[test]
fn each_malformed_id_is_refused_for_its_reason() {
    let long = format!("spiffe://{TD}/operator/{}", "a".repeat(SPIFFE_ID_MAX));
    let long_domain = format!("spiffe://{}/broker/1", "a".repeat(64));
    let full = |rest: &str| format!("spiffe://{TD}{rest}");
    let table: Vec<(String, &str)> = vec![
        (String::new(), "must begin with"),
        ("https://demo-x/broker/1".into(), "must begin with"),
        ("SPIFFE://demo-x/broker/1".into(), "must begin with"),
        ("spiffe:/demo-x/broker/1".into(), "must begin with"),
        (long, "bytes long"),
        (long_domain, "longer than 63"),
        ("spiffe://".into(), "it is empty"),
        ("spiffe:///broker/1".into(), "it is empty"),
        ("spiffe://Demo-x/broker/1".into(), "only a-z"),
        ("spiffe://-demo/broker/1".into(), "begin and end"),
        ("spiffe://demo-/broker/1".into(), "begin and end"),
        ("spiffe://demo.x/broker/1".into(), "only a-z"),
        ("spiffe://demo-x:80/broker/1".into(), "has ':' at position 15"),
        ("spiffe://me@demo-x/broker/1".into(), "has '@' at position 11"),
        (full(""), "names nothing known"),
        (full("/"), "empty path segment"),
        (full("/broker/1/"), "empty path segment"),
        (full("//broker/1"), "empty path segment"),
        (full("/broker"), "names nothing known"),
        (full("/broker/1/2"), "names nothing known"),
        (full("/broker/01"), "not a broker id"),
        (full("/broker/+1"), "has '+'"),
        (full("/broker/-1"), "not a broker id"),
        (full("/broker/18446744073709551616"), "not a broker id"),
        (full("/operator/a%20b"), "has '%'"),
        (full("/operator/a?b"), "has '?'"),
        (full("/operator/a#b"), "has '#'"),
        (full("/operator/a b"), "has ' '"),
        (full("/operator/ä"), "has 'ä'"),
        (full("/operator/."), "begin with a letter or digit"),
        (full("/operator/.."), "begin with a letter or digit"),
        (full(&format!("/operator/{}", "a".repeat(65))), "longer than 64"),
        (full("/cluster/../role/agent"), "cluster id"),
        (full("/cluster/West"), "cluster id"),
        (full("/cluster/west/role/root"), "is not a role"),
        (full("/cluster/west/role/Agent"), "is not a role"),
        (full("/cluster/west/role"), "names nothing known"),
        (full("/cluster/west/ns/shop"), "names nothing known"),
        (full("/cluster/west/sa/cart/ns/shop"), "names nothing known"),
        (full("/cluster/west/ns/Shop/sa/cart"), "namespace"),
        (full("/cluster/west/ns/shop/sa/a..b"), "service account"),
        (full("/cluster/west/ns/shop/sa/-a"), "service account"),
        (
            full(&format!("/cluster/west/ns/shop/sa/{}", "a".repeat(254))),
            "longer than 253",
        ),
        (full("/Broker/1"), "names nothing known"),
    ];
    for (text, expected) in table {
        let error = SpiffeId::parse(&text).expect_err(&text).to_string();
        assert!(error.contains(expected), "{text:?}: {error:?} lacks {expected:?}");
        assert!(error.len() < 600, "{} bytes of message for {text:?}", error.len());
    }
}

#[test]
fn a_trust_domain_carries_the_hash_of_its_first_root() {
    let root = Fingerprint::from_bytes([0; 32]);
    assert_eq!(
        TrustDomain::derive("demo", &root).unwrap().as_str(),
        "demo-aaaaaaaa"
    );
    assert!(TrustDomain::derive(&"d".repeat(54), &root).is_ok());
    assert!(TrustDomain::derive(&"d".repeat(55), &root).is_err());
    assert!(TrustDomain::derive("Demo", &root).is_err());
    assert!(TrustDomain::derive("", &root).is_err());
}

fn subjects() -> impl Strategy<Value = Subject> {
    let label = || "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?";
    let cluster = move || label().prop_map(|text| ClusterId::parse(&text).unwrap());
    prop_oneof![
        cluster().prop_map(Subject::Cluster),
        (cluster(), prop::sample::select(Role::ALL.to_vec()))
            .prop_map(|(cluster, role)| Subject::Role { cluster, role }),
        (
            cluster(),
            label(),
            "[a-z0-9]{1,9}(\\.[a-z0-9-]{0,9}[a-z0-9]){0,3}"
        )
            .prop_filter("parts begin with a letter or digit", |(_, _, account)| !account
                .contains(".-"))
            .prop_map(|(cluster, namespace, account)| Subject::Workload {
                cluster,
                namespace: Namespace::parse(&namespace).unwrap(),
                service_account: ServiceAccount::parse(&account).unwrap(),
            }),
        any::<u64>().prop_map(Subject::Broker),
        "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
            .prop_map(|name| Subject::Operator(OperatorName::parse(&name).unwrap())),
    ]
}

proptest! {
    #[test]
    fn parse_after_display_is_identity(subject in subjects()) {
        let id = SpiffeId::new(TrustDomain::parse(TD).unwrap(), subject);
        let text = id.to_string();
        prop_assert!(text.len() <= SPIFFE_ID_MAX);
        prop_assert_eq!(SpiffeId::parse(&text), Ok(id));
    }

    #[test]
    fn what_parses_displays_as_it_was(text in "spiffe://[a-z0-9A-Z./%-]{0,40}") {
        if let Ok(id) = SpiffeId::parse(&text) {
            prop_assert_eq!(id.to_string(), text);
        }
    }

    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = SpiffeId::parse(&text);
        let _ = SpiffeId::parse(&format!("spiffe://{text}"));
    }
}
