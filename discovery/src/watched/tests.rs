use tombolo_clusterset::Lease;

use super::*;
use v1::entry::Entry;
use v1::watch_event::Event;

fn event(event: Event) -> v1::WatchEvent {
    v1::WatchEvent { event: Some(event) }
}

fn member(id: &str, lease: v1::Lease) -> Entry {
    let view = v1::ClusterView {
        id: id.to_owned(),
        locality: Some(v1::Locality::default()),
        network: "net".to_owned(),
        gateways: Vec::new(),
        lease: lease.into(),
    };
    Entry::Member(v1::Member {
        view: Some(view),
        ..Default::default()
    })
}

fn apply(entry: Entry) -> v1::WatchEvent {
    event(Event::Apply(v1::WatchApply {
        entry: Some(v1::Entry { entry: Some(entry) }),
        revision: 0,
    }))
}

fn delete(id: &str) -> v1::WatchEvent {
    let key = v1::EntryKey {
        key: Some(v1::entry_key::Key::Member(id.to_owned())),
    };
    event(Event::Delete(v1::WatchDelete {
        key: Some(key),
        revision: 0,
    }))
}

fn init(incarnation: u64) -> v1::WatchEvent {
    event(Event::Init(v1::WatchInit { incarnation }))
}

fn at(incarnation: u64, revision: u64, fresh: bool) -> v1::WatchProgress {
    v1::WatchProgress {
        incarnation,
        revision,
        fresh,
        unix_ms: 1_000 + revision,
    }
}

fn done(incarnation: u64, revision: u64) -> v1::WatchEvent {
    event(Event::InitDone(at(incarnation, revision, true)))
}

fn progress(incarnation: u64, revision: u64) -> v1::WatchEvent {
    event(Event::Progress(at(incarnation, revision, true)))
}

/// Feeds `events`; the last outcome.
fn feed(state: &mut WatchState, events: Vec<v1::WatchEvent>) -> Result<Taken, WatchError> {
    let mut last = Ok(Taken::Part);
    for event in events {
        last = state.take(event, |_| {});
        if last.is_err() {
            break;
        }
    }
    last
}

fn members(state: &WatchState) -> Vec<&str> {
    state.current().members.keys().map(ClusterId::as_str).collect()
}

fn started() -> WatchState {
    let mut state = WatchState::default();
    let events = vec![
        init(1),
        apply(member("a", v1::Lease::Alive)),
        apply(member("b", v1::Lease::Alive)),
        done(1, 10),
    ];
    feed(&mut state, events).unwrap();
    state
}

#[test]
fn readers_see_whole_batches_only() {
    let mut state = WatchState::default();
    feed(&mut state, vec![init(1), apply(member("a", v1::Lease::Alive))]).unwrap();
    assert!(members(&state).is_empty(), "before InitDone");
    feed(&mut state, vec![done(1, 10)]).unwrap();
    assert_eq!(members(&state), ["a"]);
    assert_eq!(
        (state.resume_from(), state.is_fresh(), state.confirmed_unix_ms()),
        ((1, 10), true, 1_010)
    );
    feed(
        &mut state,
        vec![apply(member("b", v1::Lease::Alive)), delete("a")],
    )
    .unwrap();
    assert_eq!(members(&state), ["a"], "before Progress");
    feed(&mut state, vec![progress(1, 12)]).unwrap();
    assert_eq!(members(&state), ["b"]);
}

#[test]
fn a_broken_stream_leaves_the_last_whole_state() {
    let mut state = started();
    feed(&mut state, vec![delete("a")]).unwrap();
    assert!(state.lost());
    assert!(!state.lost(), "that is no news any more");
    assert!(!state.is_fresh());
    feed(&mut state, vec![progress(1, 11)]).unwrap();
    assert_eq!(members(&state), ["a", "b"], "the half batch was dropped");
    feed(&mut state, vec![init(1), apply(member("z", v1::Lease::Alive))]).unwrap();
    state.lost();
    assert_eq!(members(&state), ["a", "b"], "and so was the half state");
}

#[test]
fn what_changed_is_told() {
    let mut state = started();
    let lease = feed(
        &mut state,
        vec![apply(member("a", v1::Lease::Lost)), progress(1, 11)],
    )
    .unwrap();
    let changes = Changes {
        any: true,
        ..Changes::default()
    };
    assert_eq!(
        lease,
        Taken::Batch {
            changes,
            fresh: true,
            unix_ms: 1_011
        },
        "a lease moves no endpoint"
    );
    assert_eq!(
        state.current().members[&ClusterId::parse("a").unwrap()].lease,
        Lease::Lost
    );
    let gone = feed(&mut state, vec![delete("a"), progress(1, 12)]).unwrap();
    assert!(
        matches!(
            gone,
            Taken::Batch {
                changes: Changes {
                    members: true,
                    any: true,
                    all: false,
                    ..
                },
                ..
            }
        ),
        "{gone:?}"
    );
    let beat = feed(&mut state, vec![progress(1, 12)]).unwrap();
    assert_eq!(
        beat,
        Taken::Batch {
            changes: Changes::default(),
            fresh: true,
            unix_ms: 1_012
        }
    );
}

#[test]
fn a_revision_that_changed_nothing_is_for_resuming_only() {
    let mut state = started();
    feed(&mut state, vec![progress(1, 15)]).unwrap();
    assert_eq!((state.current().revision, state.resume_from()), (10, (1, 15)));
    assert!(
        matches!(
            feed(&mut state, vec![init(1), done(1, 14)]),
            Err(WatchError::Behind { ours: 15, .. })
        ),
        "a broker that is behind what was heard"
    );
    state.lost();
    feed(&mut state, vec![delete("a"), progress(1, 16)]).unwrap();
    assert_eq!((state.current().revision, state.resume_from()), (16, (1, 16)));
}

#[test]
fn a_stream_that_makes_no_sense_is_dropped() {
    let behind = WatchError::Behind {
        incarnation: 1,
        revision: 9,
        ours_incarnation: 1,
        ours: 10,
    };
    let older = WatchError::Behind {
        incarnation: 0,
        revision: 99,
        ours_incarnation: 1,
        ours: 10,
    };
    let table: Vec<(Vec<v1::WatchEvent>, WatchError)> = vec![
        (vec![init(1), done(1, 9)], behind),
        (vec![init(0), done(0, 99)], older),
        (
            vec![progress(2, 11)],
            WatchError::OtherIncarnation { found: 2, ours: 1 },
        ),
        (vec![done(1, 11)], WatchError::OutOfOrder("InitDone without Init")),
        (
            vec![init(1), progress(1, 11)],
            WatchError::OutOfOrder("Progress before InitDone"),
        ),
        (
            vec![v1::WatchEvent { event: None }],
            WatchError::OutOfOrder("an empty event"),
        ),
        (vec![delete("a"); MAX_BATCH + 1], WatchError::Unbounded),
    ];
    for (events, expected) in table {
        let mut state = started();
        assert_eq!(feed(&mut state, events), Err(expected));
        assert_eq!(members(&state), ["a", "b"]);
    }
}

#[test]
fn a_restored_clusterset_begins_with_a_higher_incarnation() {
    let mut state = started();
    feed(
        &mut state,
        vec![init(2), apply(member("c", v1::Lease::Unknown)), done(2, 3)],
    )
    .unwrap();
    assert_eq!((members(&state), state.resume_from()), (vec!["c"], (2, 3)));
}

#[test]
fn a_bad_entry_is_left_out_alone() {
    let mut state = WatchState::default();
    let mut reasons = Vec::new();
    for event in [
        init(1),
        apply(member("Bad_Name", v1::Lease::Alive)),
        apply(member("a", v1::Lease::Alive)),
        done(1, 1),
    ] {
        state
            .take(event, |invalid| reasons.push(invalid.to_string()))
            .unwrap();
    }
    assert_eq!(members(&state), ["a"]);
    assert_eq!((state.rejected(), reasons.len()), (1, 1));
    assert!(reasons[0].contains("member.id"), "{reasons:?}");
}

#[test]
fn a_state_survives_its_entries_but_for_drills() {
    let mut state = started();
    let drill = v1::Drill {
        id: 9,
        kind: v1::DrillKind::ClusterDown.into(),
        target: "a".into(),
        from: "b".into(),
        service: Some(v1::ServiceKey {
            namespace: "shop".into(),
            name: "web".into(),
        }),
        rate_per_second: 10,
        baseline_ms: 1_000,
        duration_ms: 1_000,
        ..Default::default()
    };
    let grant = v1::Grant {
        key: drill.service.clone(),
        exporter: "a".into(),
        importers: vec!["b".into()],
    };
    let reservation = v1::Reservation {
        namespace: "bank".into(),
        clusters: vec!["a".into()],
    };
    let trust = v1::TrustBundle {
        trust_domain: "d-aaaa2222".into(),
        roots: vec![vec![1].into()],
        denied: vec![vec![2; 32].into()],
        revision: 4,
    };
    let entries = [
        Entry::Drill(drill),
        Entry::Grant(grant),
        Entry::Reservation(reservation),
        Entry::Trust(trust),
    ];
    let mut events: Vec<_> = entries.into_iter().map(apply).collect();
    events.push(progress(1, 20));
    feed(&mut state, events).unwrap();
    assert_eq!(state.current().drills.len(), 1);

    let mut copy = Watched {
        incarnation: 1,
        revision: 20,
        ..Watched::default()
    };
    for entry in state.current().to_entries() {
        copy.apply(&entry, &mut Changes::default()).unwrap();
    }
    let mut expected = state.current().clone();
    expected.drills.clear();
    assert_eq!(copy, expected);
}
