use super::*;

const EXPORT: &str = "apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {name: NAME, namespace: shop}\n";

fn export(name: &str) -> String {
    EXPORT.replace("NAME", name)
}

/// Waits until the directory's exports are `wanted`; every state in between must pass `allowed`.
async fn until(found: &mut mpsc::Receiver<Found>, wanted: &[&str], allowed: impl Fn(&[String]) -> bool) {
    let wait = async {
        loop {
            match found.recv().await.expect("the task runs") {
                Found::Manifests(manifests) => {
                    let names: Vec<String> =
                        manifests.exports.keys().map(|key| key.name.to_string()).collect();
                    assert!(allowed(&names), "saw {names:?}");
                    if names == wanted {
                        return;
                    }
                }
                Found::Unreadable { reason } => panic!("{reason}"),
            }
        }
    };
    timeout(Duration::from_secs(10), wait)
        .await
        .expect("the change is seen long before the next rescan");
}

fn start(directory: &Path) -> mpsc::Receiver<Found> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(follow(directory.to_owned(), sender, Seams::host()));
    receiver
}

#[tokio::test]
async fn changes_of_every_kind_are_seen() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("a.yaml"), export("a")).unwrap();
    fs::write(at("notes.txt"), export("ignored")).unwrap();
    let mut found = start(directory.path());
    until(&mut found, &["a"], |_| true).await;
    fs::write(at("b.yml"), export("b")).unwrap();
    until(&mut found, &["a", "b"], |_| true).await;
    fs::write(at(".b.yml.new"), export("c")).unwrap();
    fs::rename(at(".b.yml.new"), at("b.yml")).unwrap();
    until(&mut found, &["a", "c"], |names| names.contains(&"a".to_owned())).await;
    fs::remove_file(at("a.yaml")).unwrap();
    until(&mut found, &["c"], |_| true).await;
}

#[tokio::test]
async fn an_empty_directory_is_a_result() {
    let directory = tempfile::tempdir().unwrap();
    until(&mut start(directory.path()), &[], |_| true).await;
}

#[tokio::test]
async fn a_file_written_in_parts_ends_up_whole() {
    use std::io::Write;
    let directory = tempfile::tempdir().unwrap();
    let mut found = start(directory.path());
    until(&mut found, &[], |_| true).await;
    let mut file = fs::File::create(directory.path().join("a.yaml")).unwrap();
    for part in [&export("a"), "---\n", &export("b")] {
        for bytes in part.as_bytes().chunks(40) {
            file.write_all(bytes).unwrap();
            tokio::task::yield_now().await;
        }
    }
    drop(file);
    until(&mut found, &["a", "b"], |_| true).await;
}

#[tokio::test]
async fn a_missing_directory_is_told_and_found_when_it_comes() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("manifests");
    let mut found = start(&directory);
    match found.recv().await.unwrap() {
        Found::Unreadable { reason } => {
            assert!(
                reason.contains("create it, or correct agent.manifests"),
                "{reason}"
            );
        }
        Found::Manifests(manifests) => panic!("{manifests:?}"),
    }
    fs::create_dir(&directory).unwrap();
    let wait = async {
        loop {
            if let Found::Manifests(_) = found.recv().await.unwrap() {
                return;
            }
        }
    };
    timeout(Duration::from_secs(10), wait).await.expect("found");
}

#[test]
fn a_file_is_stamped_only_when_it_stood_still() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.yaml");
    fs::write(&path, "a").unwrap();
    let (stamp, content) = read_settled(&path);
    assert!(stamp.is_some());
    assert_eq!(content, Ok(b"a".to_vec()));
    fs::remove_file(&path).unwrap();
    let (stamp, content) = read_settled(&path);
    assert!(stamp.is_none() && content.is_err());
}
