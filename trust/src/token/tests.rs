use proptest::prelude::*;

use super::*;

fn token_of(random: [u8; MINT_RANDOM_LEN], cluster: &str) -> JoinToken {
    JoinToken::mint(
        random,
        TrustDomain::parse("demo-aaaa2222").unwrap(),
        Fingerprint::from_bytes([0xee; 32]),
        ClusterId::parse(cluster).unwrap(),
    )
}

fn token() -> JoinToken {
    token_of(std::array::from_fn(|at| u8::try_from(at).unwrap()), "west")
}

#[test]
fn a_token_comes_back_from_its_text() {
    let text = token().to_text();
    for written in [text.clone(), format!("  {text}\n")] {
        let back = JoinToken::parse(&written).unwrap();
        assert_eq!(back.id(), token().id());
        assert_eq!(back.secret(), token().secret());
        assert_eq!(back.root_pin(), token().root_pin());
        assert_eq!(back.trust_domain(), token().trust_domain());
        assert_eq!(back.cluster(), token().cluster());
        assert!(back.secret_hash().matches(&token().secret_hash()));
    }
}

#[test]
fn every_truncation_is_called_one() {
    let text = token().to_text();
    for end in TOKEN_PREFIX.len()..text.len() {
        let error = JoinToken::parse(&text[..end]).unwrap_err();
        assert!(
            matches!(error, TokenError::Truncated { .. }),
            "cut at {end}: {error:?}"
        );
    }
    for end in 0..TOKEN_PREFIX.len() {
        let error = JoinToken::parse(&text[..end]).unwrap_err();
        assert!(
            matches!(error, TokenError::Prefix | TokenError::Empty),
            "cut at {end}: {error:?}"
        );
    }
}

#[test]
fn every_changed_character_is_noticed() {
    let text = token().to_text();
    for at in 0..text.len() {
        let mut changed = text.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        assert!(JoinToken::parse(&changed).is_err(), "character {at} changed");
    }
}

#[test]
fn each_malformed_token_is_refused_for_its_reason() {
    let text = token().to_text();
    let payload = BASE64URL_NOPAD
        .decode(&text.as_bytes()[TOKEN_PREFIX.len()..])
        .unwrap();
    // Seals a changed body again, as someone who knows the format would.
    let resealed = |change: fn(&mut Vec<u8>)| {
        let mut body = payload[..payload.len() - CHECKSUM_LEN].to_vec();
        change(&mut body);
        let len = u16::try_from(body.len() + CHECKSUM_LEN).unwrap();
        body[..2].copy_from_slice(&len.to_be_bytes());
        let sum = sha256(&[&body]);
        body.extend_from_slice(&sum[..CHECKSUM_LEN]);
        format!("{TOKEN_PREFIX}{}", BASE64URL_NOPAD.encode(&body))
    };
    assert!(JoinToken::parse(&resealed(|_| ())).is_ok());
    let table = [
        (String::new(), "is empty"),
        ("   ".to_owned(), "is empty"),
        ("hello".to_owned(), "must begin with"),
        ("tmb".to_owned(), "must begin with"),
        ("tmbx.AAAA".to_owned(), "must begin with"),
        (text.replace("tmb1", "tmb2"), "format version \"2\""),
        (text.replace("tmb1", "TMB1"), "must begin with"),
        (text.replacen('A', " ", 1), "invalid character at position"),
        (text.replacen('A', "=", 1), "invalid character at position"),
        (format!("{text}AAAA"), "3 bytes after its end"),
        ("tmb1.".to_owned() + &"A".repeat(TOKEN_MAX), "at most 300"),
        (resealed(|body| body.truncate(20)), "malformed inside"),
        (resealed(|body| body.push(0)), "malformed inside"),
        (
            resealed(|body| *body.last_mut().unwrap() = b'T'),
            "invalid cluster",
        ),
        (resealed(|body| body[2 + 72 + 1] = b'_'), "invalid trust domain"),
        (resealed(|body| body[2 + 72] = 200), "malformed inside"),
    ];
    for (text, expected) in table {
        let error = JoinToken::parse(&text).expect_err(&text).to_string();
        assert!(error.contains(expected), "{text:?}: {error:?} lacks {expected:?}");
        assert!(
            !error.contains(&BASE64URL_NOPAD.encode(&token().secret()[..9])),
            "the secret is in {error:?}"
        );
    }
}

#[test]
fn debug_shows_no_secret() {
    let shown = format!("{:?} {:?}", token(), token().secret_hash());
    assert_eq!(
        shown,
        "JoinToken { id: 0001020304050607, trust_domain: demo-aaaa2222, cluster: west, .. } SecretHash(…)"
    );
}

#[test]
fn a_hash_belongs_to_one_token_and_one_secret() {
    let hash = token().secret_hash();
    assert!(hash.matches(&SecretHash::of(&token().id(), token().secret())));
    assert!(!hash.matches(&SecretHash::of(&TokenId::from_bytes([0; 8]), token().secret())));
    assert!(!hash.matches(&SecretHash::of(&token().id(), &[0; 32])));
    assert!(hash.matches(&SecretHash::from_bytes(*hash.as_bytes())));
}

#[test]
fn a_token_id_comes_back_from_its_text() {
    let id = token().id();
    assert_eq!(TokenId::parse(&id.to_string()), Some(id));
    for text in [
        "",
        "00",
        "000102030405060",
        "000102030405060708",
        "zz01020304050607",
    ] {
        assert_eq!(TokenId::parse(text), None, "{text:?}");
    }
}

#[test]
fn the_longest_token_is_within_the_bound() {
    let token = JoinToken::mint(
        [0; MINT_RANDOM_LEN],
        TrustDomain::parse(&"d".repeat(63)).unwrap(),
        Fingerprint::from_bytes([0; 32]),
        ClusterId::parse(&"c".repeat(63)).unwrap(),
    );
    let text = token.to_text();
    assert!(text.len() <= TOKEN_MAX, "{}", text.len());
    assert!(JoinToken::parse(&text).is_ok());
}

proptest! {
    #[test]
    fn parse_after_display_is_identity(
        random in any::<[u8; MINT_RANDOM_LEN]>(),
        cluster in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
    ) {
        let text = token_of(random, &cluster).to_text();
        prop_assert_eq!(JoinToken::parse(&text).unwrap().to_text(), text);
    }

    #[test]
    fn no_text_panics(text in any::<String>(), encoded in "[A-Za-z0-9_-]{0,290}") {
        prop_assert!(JoinToken::parse(&text).is_err());
        let forged = TOKEN_PREFIX.to_owned() + &encoded;
        prop_assert!(JoinToken::parse(&forged).is_err());
    }
}
