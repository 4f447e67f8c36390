//! Every refusal that an operator can meet, with its message.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tombolo_test_support::{Clusterset, Finished, dig, eventually};

use crate::AKS;

/// A cluster.toml for a fourth cluster.
fn fourth(clusterset: &Clusterset, id: &str) -> String {
    let folder = clusterset.path(id);
    fs::create_dir_all(folder.join("manifests")).expect("a folder");
    let text = fs::read_to_string(clusterset.clusters().join(AKS).join("cluster.toml")).expect("readable");
    let file = folder.join("cluster.toml");
    fs::write(&file, text.replace(AKS, id).replace("127.11.", "127.14.")).expect("written");
    file.to_string_lossy().into_owned()
}

fn token(clusterset: &Clusterset, cluster: &str, ttl: &str) -> String {
    let finished = clusterset.tombolo(&["token", "create", "--cluster", cluster, "--ttl", ttl]);
    assert_eq!(finished.code, 0, "{finished:?}");
    finished.stdout.trim().to_owned()
}

fn join(clusterset: &Clusterset, token: &str, config: &str) -> Finished {
    clusterset.tombolo(&[
        "join",
        "--token",
        token,
        "--broker",
        "127.10.0.1:7400",
        "--config",
        config,
    ])
}

fn refused(what: &str, finished: &Finished, words: &[&str]) {
    assert_ne!(finished.code, 0, "{what} is refused: {finished:?}");
    for word in words {
        assert!(
            finished.stderr.contains(word),
            "{what}: '{word}' in {}",
            finished.stderr
        );
    }
}

#[test]
fn every_refusal_says_what_to_do() {
    let clusterset = Clusterset::start();
    let config = fourth(&clusterset, "kind-four");

    let short = token(&clusterset, "kind-four", "1s");
    eventually(Duration::from_secs(5), "the token's end", || {
        let tokens = clusterset.json(&["token", "list"]);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("after 1970")
            .as_millis();
        let lives = |token: &Value| {
            token["expires_unix_ms"]
                .as_u64()
                .is_some_and(|end| u128::from(end) >= now)
        };
        let items = tokens["items"].as_array().expect("a list");
        !items
            .iter()
            .any(|token| token["cluster"] == "kind-four" && lives(token))
    });
    refused(
        "an expired token",
        &join(&clusterset, &short, &config),
        &["expired"],
    );
    let good = token(&clusterset, "kind-four", "1h");
    let cut = &good[..good.len() - 4];
    refused("a truncated token", &join(&clusterset, cut, &config), &["token"]);
    let mut forged = good.clone().into_bytes();
    let middle = forged.len() / 2;
    forged[middle] = if forged[middle] == b'a' { b'b' } else { b'a' };
    refused(
        "a forged token",
        &join(&clusterset, &String::from_utf8(forged).expect("text"), &config),
        &["token"],
    );
    let other = token(&clusterset, "kind-five", "1h");
    refused(
        "another cluster's token",
        &join(&clusterset, &other, &config),
        &["kind-five", "kind-four"],
    );

    assert_eq!(join(&clusterset, &good, &config).code, 0, "the good token joins");
    let elsewhere = fourth(&clusterset, "kind-six");
    let text = fs::read_to_string(&elsewhere)
        .expect("readable")
        .replace("kind-six", "kind-four");
    fs::write(&elsewhere, text).expect("written");
    refused("a used token", &join(&clusterset, &good, &elsewhere), &["used"]);
    let duplicate = clusterset.tombolo(&["token", "create", "--cluster", "kind-four"]);
    let second = if duplicate.code == 0 {
        join(&clusterset, duplicate.stdout.trim(), &elsewhere)
    } else {
        duplicate
    };
    refused("a duplicate id", &second, &["kind-four", "--replace"]);

    refused(
        "no broker there",
        &clusterset.tombolo(&[
            "join",
            "--token",
            &other,
            "--broker",
            "127.10.0.9:7400",
            "--config",
            &fourth(&clusterset, "kind-five"),
        ]),
        &["127.10.0.9:7400"],
    );
    refused(
        "an unknown cluster",
        &clusterset.tombolo(&["explain", "shop/checkout", "--from", "nowhere"]),
        &["nowhere", AKS],
    );

    unknown_keys_are_named_with_the_nearest_known_one(&clusterset);
    bad_yaml_beside_good(&clusterset);
}

/// A misspelt key never passes for a default: file, line, the key and what was probably meant.
fn unknown_keys_are_named_with_the_nearest_known_one(clusterset: &Clusterset) {
    let good = fs::read_to_string(clusterset.clusters().join(AKS).join("cluster.toml")).expect("readable");
    let folder = clusterset.path("misspelt");
    fs::create_dir_all(folder.join("manifests")).expect("a folder");
    let file = folder.join("cluster.toml");
    let config = file.to_string_lossy();
    // (section, what is written there, the key, the nearest known one)
    let table = [
        ("[agent]", "vip_rnage = 1", "vip_rnage", "vip_range"),
        ("[gateway]", "advertized = []", "advertized", "advertise"),
        ("[dns]", "upstream = []", "upstream", "upstreams"),
        (
            "[sidecar]",
            "service_acount = 'x'",
            "service_acount",
            "service_account",
        ),
    ];
    for (section, written, key, nearest) in table {
        let text = good.replacen(&format!("\n{section}\n"), &format!("\n{section}\n{written}\n"), 1);
        let line = text.lines().position(|line| line == written).expect(section) + 1;
        fs::write(&file, text).expect("written");
        let check = clusterset.tombolo(&["check", "--config", &config]);
        refused(
            section,
            &Finished {
                stderr: format!("{}{}", check.stdout, check.stderr),
                ..check
            },
            &[
                &format!("{config}:{line}:1"),
                &format!("unknown key `{key}`"),
                &format!("did you mean `{nearest}`?"),
            ],
        );
    }
    let broker = folder.join("broker.toml");
    let text = "id = 9\napi = '127.10.0.9:7400'\npeer = '127.10.0.9:7401'\nadmin = '127.10.0.9:7402'\ndata_dir = 'data'\nbootstrapp = true\n";
    fs::write(&broker, text).expect("written");
    let config = broker.to_string_lossy();
    refused(
        "broker.toml",
        &clusterset.tombolo(&["broker", "--config", &config]),
        &[
            &format!("{config}:6:1"),
            "unknown key `bootstrapp`",
            "did you mean `bootstrap`?",
        ],
    );
}

/// One bad document never sinks its file, one bad file never sinks the rest; `check` names file and line.
fn bad_yaml_beside_good(clusterset: &Clusterset) {
    let folder = clusterset.clusters().join(AKS).join("manifests");
    fs::write(folder.join("broken.yaml"), "apiVersion: v1\nkind: Service\nmetadata: {name: Bad_Name, namespace: shop}\nspec: {ports: [{port: 99999}]}\n").expect("written");
    fs::write(folder.join("torn.yaml"), "kind: Service\n  metadata: [\n").expect("written");
    let check = clusterset.tombolo(&["check"]);
    refused(
        "malformed YAML",
        &Finished {
            stderr: format!("{}{}", check.stdout, check.stderr),
            ..check
        },
        &["broken.yaml:3: ", "'Bad_Name'", "torn.yaml:2: ", "not allowed"],
    );
    let answer = dig(
        clusterset.dns(AKS),
        "checkout.shop.svc.clusterset.local",
        "A",
        &[],
    );
    assert_eq!(answer.rcode, "NOERROR", "the good manifests still count");
}
