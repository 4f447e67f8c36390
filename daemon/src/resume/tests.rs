use proptest::prelude::*;

use super::*;

type Word = Event<u8, u32>;
type Outcome = Result<Changes, OutOfOrder>;
type Changes = Vec<Change<u8, u32>>;

fn init_apply(key: u8, value: u32) -> Word {
    Event::InitApply { key, value }
}

fn init_done(revision: u64) -> Word {
    Event::InitDone {
        revision: Revision(revision),
    }
}

fn apply(key: u8, value: u32, revision: u64) -> Word {
    Event::Apply {
        key,
        value,
        revision: Revision(revision),
    }
}

fn delete(key: u8, revision: u64) -> Word {
    Event::Delete {
        key,
        revision: Revision(revision),
    }
}

/// Runs the stream and returns what the last event led to.
fn last(stream: &[Word]) -> (Index<u8, u32>, Outcome) {
    let mut index = Index::with_limit(2);
    let mut outcome = Ok(Vec::new());
    for event in stream {
        outcome = index.apply(event.clone());
    }
    (index, outcome)
}

fn applied(key: u8, value: u32) -> Change<u8, u32> {
    Change::Apply { key, value }
}

fn deleted(key: u8) -> Change<u8, u32> {
    Change::Delete { key }
}

#[test]
fn each_word_has_its_effect() {
    let known = [Event::Init, init_apply(1, 10), init_apply(2, 20), init_done(5)];
    let table: [(&[Word], Changes); 8] = [
        (&[Event::Init, init_apply(3, 30)], vec![]),
        (&[Event::Init, init_done(5)], vec![deleted(1), deleted(2)]),
        (
            &[Event::Init, init_apply(2, 21), init_apply(3, 30), init_done(9)],
            vec![deleted(1), applied(2, 21), applied(3, 30)],
        ),
        (
            &[
                Event::Init,
                init_apply(9, 9),
                Event::Init,
                init_apply(1, 10),
                init_apply(2, 20),
                init_done(6),
            ],
            vec![],
        ),
        (&[apply(1, 11, 6)], vec![applied(1, 11)]),
        (&[apply(1, 10, 6)], vec![]),
        (&[delete(1, 6)], vec![deleted(1)]),
        (&[delete(1, 6), apply(1, 12, 5)], vec![]),
    ];
    for (stream, expected) in table {
        let (_, outcome) = last(&[&known, stream].concat());
        assert_eq!(outcome, Ok(expected), "{stream:?}");
    }
}

#[test]
fn a_broken_source_is_refused_and_changes_nothing() {
    let known = vec![Event::Init, init_apply(1, 10), init_apply(2, 20), init_done(5)];
    let went_back = OutOfOrder::WentBack {
        known: Revision(5),
        offered: Revision(4),
    };
    let table: [(&[Word], OutOfOrder); 7] = [
        (&[init_apply(1, 11)], OutOfOrder::OutsidePass),
        (&[init_done(6)], OutOfOrder::OutsidePass),
        (&[Event::Init, apply(1, 11, 6)], OutOfOrder::BeforeInitDone),
        (&[Event::Init, delete(1, 6)], OutOfOrder::BeforeInitDone),
        (&[Event::Init, init_done(4)], went_back),
        (&[apply(3, 30, 6)], OutOfOrder::TooManyKeys { limit: 2 }),
        (
            &[
                Event::Init,
                init_apply(1, 1),
                init_apply(2, 2),
                init_apply(2, 3),
                init_apply(3, 3),
            ],
            OutOfOrder::TooManyKeys { limit: 2 },
        ),
    ];
    for (stream, expected) in table {
        let (index, outcome) = last(&[known.clone(), stream.to_vec()].concat());
        assert_eq!(outcome, Err(expected), "{stream:?}");
        assert_eq!(index.iter().collect::<Vec<_>>(), [(&1, &10), (&2, &20)]);
        assert_eq!(index.resume_from(), Some(Revision(5)));
    }
    assert_eq!(last(&[apply(1, 1, 1)]).1, Err(OutOfOrder::BeforeInitDone));
}

#[test]
fn resumption_asks_again_for_a_revision_that_may_be_cut_in_half() {
    let table: [(&[Word], Option<u64>); 5] = [
        (&[], None),
        (&[Event::Init, init_apply(1, 10)], None),
        (&[Event::Init, init_done(5)], Some(5)),
        (&[Event::Init, init_done(5), apply(1, 10, 8)], Some(7)),
        (
            &[
                Event::Init,
                init_done(5),
                apply(1, 10, 8),
                apply(2, 20, 8),
                delete(1, 9),
            ],
            Some(8),
        ),
    ];
    for (stream, expected) in table {
        assert_eq!(last(stream).0.resume_from(), expected.map(Revision), "{stream:?}");
    }
}

#[test]
fn a_restored_index_goes_on_and_a_restored_source_starts_over() {
    let mut index = Index::restored([(1, 10), (2, 20)], Revision(5));
    assert!(index.is_synced());
    assert_eq!(index.apply(apply(1, 11, 6)), Ok(vec![applied(1, 11)]));
    index.start_over();
    assert_eq!((index.resume_from(), index.get(&1)), (None, Some(&11)));
    index.apply(Event::Init).unwrap();
    index.apply(init_apply(2, 20)).unwrap();
    assert_eq!(index.apply(init_done(1)), Ok(vec![deleted(1)]));
}

/// A source with a history, which serves any subscriber; the naive model is its map.
#[derive(Debug, Default)]
struct Source {
    log: Vec<(u64, u8, Option<u32>)>,
    revision: u64,
    compacted: u64,
}

impl Source {
    /// One change of several keys under one revision.
    fn commit(&mut self, writes: &[(u8, Option<u32>)]) {
        self.revision += 1;
        self.log
            .extend(writes.iter().map(|(key, value)| (self.revision, *key, *value)));
    }

    fn map(&self) -> BTreeMap<u8, u32> {
        let mut map = BTreeMap::new();
        for (_, key, value) in &self.log {
            match value {
                Some(value) => map.insert(*key, *value),
                None => map.remove(key),
            };
        }
        map
    }

    fn subscribe(&self, resume_from: Option<Revision>) -> Vec<Word> {
        match resume_from.filter(|from| from.0 >= self.compacted) {
            Some(from) => self.deltas(from.0),
            None => {
                let items = self.map().into_iter().map(|(key, value)| init_apply(key, value));
                [Event::Init]
                    .into_iter()
                    .chain(items)
                    .chain([init_done(self.revision)])
                    .collect()
            }
        }
    }

    fn deltas(&self, from: u64) -> Vec<Word> {
        let after = self.log.iter().filter(|(revision, ..)| *revision > from);
        let word = |(revision, key, value): &(u64, u8, Option<u32>)| match value {
            Some(value) => apply(*key, *value, *revision),
            None => delete(*key, *revision),
        };
        after.map(word).collect()
    }
}

#[derive(Clone, Debug)]
enum Act {
    Commit(Vec<(u8, Option<u32>)>),
    Compact,
    /// The subscriber connects and hears this many words before the line is cut.
    Hear(usize),
}

fn act() -> impl Strategy<Value = Act> {
    let write = (0u8..6, proptest::option::weighted(0.7, 0u32..4));
    prop_oneof![
        4 => proptest::collection::vec(write, 1..4).prop_map(Act::Commit),
        1 => Just(Act::Compact),
        3 => (0usize..8).prop_map(Act::Hear),
    ]
}

proptest! {
    /// However often the line is cut and the history compacted: in the end the subscriber knows what the source knows,
    /// and so does whoever only followed the changes.
    #[test]
    fn any_stream_converges(acts in proptest::collection::vec(act(), 0..40)) {
        let mut source = Source::default();
        let mut index = Index::new();
        let mut follower = BTreeMap::new();
        for act in acts.into_iter().chain([Act::Hear(usize::MAX)]) {
            match act {
                Act::Commit(writes) => source.commit(&writes),
                Act::Compact => source.compacted = source.revision,
                Act::Hear(words) => {
                    for event in source.subscribe(index.resume_from()).into_iter().take(words) {
                        for change in index.apply(event).unwrap() {
                            match change {
                                Change::Apply { key, value } => prop_assert_ne!(follower.insert(key, value), Some(value)),
                                Change::Delete { key } => prop_assert!(follower.remove(&key).is_some()),
                            }
                        }
                    }
                    index.disconnected();
                }
            }
        }
        let known: BTreeMap<u8, u32> = index.iter().map(|(key, value)| (*key, *value)).collect();
        prop_assert_eq!(&known, &source.map());
        prop_assert_eq!(&known, &follower);
    }

    /// Any words in any order: no panic, and a refused word changes nothing.
    #[test]
    fn nonsense_is_refused_whole(
        words in proptest::collection::vec((0u8..5, 0u8..4, 0u32..3, 0u64..6), 0..60),
    ) {
        let mut index = Index::with_limit(3);
        for (word, key, value, revision) in words {
            let before = index.clone();
            let event = match word {
                0 => Event::Init,
                1 => init_apply(key, value),
                2 => init_done(revision),
                3 => apply(key, value, revision),
                _ => delete(key, revision),
            };
            if index.apply(event).is_err() {
                prop_assert_eq!(&before.live, &index.live);
                prop_assert_eq!(&before.pass, &index.pass);
                prop_assert_eq!((before.latest, before.whole), (index.latest, index.whole));
            }
            prop_assert!(index.len() <= 3);
        }
    }
}
