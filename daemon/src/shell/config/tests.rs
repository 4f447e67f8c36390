use std::collections::BTreeMap;

use serde::Deserialize;

use super::*;

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sample {
    cluster: String,
    #[serde(default)]
    drain_secs: u64,
    #[serde(default)]
    logs: Logs,
    #[serde(default)]
    labels: BTreeMap<String, Empty>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Logs {
    format: Option<Format>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    Text,
    Json,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}

fn check(text: &str, expected: &str) {
    let error = parse::<Sample>(text, "tombolo.toml").unwrap_err();
    assert_eq!(error.to_string(), expected, "for {text:?}");
}

#[test]
fn what_is_wrong_is_said_with_place_and_remedy() {
    check(
        "cluster = 'a'\ndrain_sec = 3",
        "tombolo.toml:2:1: unknown key `drain_sec`; did you mean `drain_secs`?",
    );
    check(
        "cluster = 'a'\n\nDrain-Secs = 3",
        "tombolo.toml:3:1: unknown key `Drain-Secs`; did you mean `drain_secs`?",
    );
    check(
        "cluster = 'a'\ncolour = 1",
        "tombolo.toml:2:1: unknown key `colour`; known here: cluster, drain_secs, logs, labels",
    );
    check(
        "cluster = 'a'\n[logs]\n  fromat = 'json'",
        "tombolo.toml:3:3: unknown key `fromat`; did you mean `format`?",
    );
    check(
        "cluster = 'a'\n[logs]\nformat = 'jsn'",
        "tombolo.toml:3:10: unknown value `jsn`; did you mean `json`?",
    );
    check(
        "cluster = 'a'\n[labels.x]\ny = 1",
        "tombolo.toml:3:1: unknown key `y`; nothing can be set here, remove it",
    );
    check("drain_secs = 3", "tombolo.toml:1:1: missing field `cluster`");
    check(
        "cluster = 'ü'\ndrain_secs = 'x'",
        "tombolo.toml:2:14: invalid type: string \"x\", expected u64",
    );
}

#[test]
fn syntax_errors_have_a_place() {
    let error = parse::<Sample>("cluster = 'a'\ndrain_secs = = 3", "tombolo.toml").unwrap_err();
    assert!(error.to_string().starts_with("tombolo.toml:2:14: "), "{error}");
}

#[test]
fn a_file_is_loaded_and_a_missing_one_is_named() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("tombolo.toml");
    let error = load::<Sample>(&path).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with(&format!("cannot read configuration {}", path.display())),
        "{error}"
    );

    fs::write(&path, "cluster = 'a'\nlogs.format = 'json'\n").unwrap();
    let sample = load::<Sample>(&path).unwrap();
    assert_eq!(
        (sample.cluster.as_str(), sample.logs.format),
        ("a", Some(Format::Json))
    );

    fs::write(&path, "#".repeat(usize::try_from(MAX_BYTES).unwrap() + 1)).unwrap();
    assert!(matches!(
        load::<Sample>(&path).unwrap_err(),
        ConfigError::TooLarge { .. }
    ));
}

#[test]
fn distances() {
    for (from, to, expected) in [
        ("", "", 0),
        ("", "abc", 3),
        ("abc", "", 3),
        ("kitten", "sitting", 3),
        ("listen-addr", "LISTEN_ADDR", 0),
        ("flaw", "lawn", 2),
    ] {
        assert_eq!(edit_distance(from, to), expected, "{from} {to}");
    }
}
