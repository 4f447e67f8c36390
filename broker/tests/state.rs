//! The state machine: what is decided, every refusal, and replays.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tombolo_broker::bounds;
use tombolo_broker::command::{
    Batch, BrokerAddresses, Command, Description, Issued, Join, Reply, RootRecord, RotationStep,
};
use tombolo_broker::state::{Refusal, State, Verdict, apply};
use tombolo_broker::stored::{decode_batch, decode_state, encode_batch, encode_state};
use tombolo_clusterset::endpoint::{IpFamily, Protocol};
use tombolo_clusterset::export::SessionAffinity;
use tombolo_clusterset::{
    ClusterId, Drill, DrillId, DrillKind, Endpoint, EndpointSlice, Export, Label, Lease, Locality,
    LossPolicy, Namespace, Readiness, ServiceKey, ServicePort, ServiceSpec, ServiceType, SlicePort,
};
use tombolo_trust::{Fingerprint, SecretHash, TokenId, TrustDomain};

const NOW: u64 = 1_800_000_000_000;
const MONTH: u64 = 30 * 24 * 3600 * 1000;

fn cluster(text: &str) -> ClusterId {
    ClusterId::parse(text).unwrap()
}

fn service(text: &str) -> ServiceKey {
    ServiceKey::parse(text).unwrap()
}

fn addresses(broker: u64) -> BrokerAddresses {
    let address = |port| ([127, 10, 0, u8::try_from(broker).unwrap()], port).into();
    BrokerAddresses {
        api: address(7400),
        peer: address(7401),
    }
}

fn root(byte: u8) -> RootRecord {
    let bytes = Bytes::from(vec![byte; 4]);
    RootRecord {
        certificate: bytes.clone(),
        key: Fingerprint::from_bytes([byte; 32]),
        wrapped: bytes,
    }
}

fn issued(byte: u8, root: u8) -> Issued {
    Issued {
        certificate: Bytes::from(vec![byte; 3]),
        key: Fingerprint::from_bytes([byte; 32]),
        root: Fingerprint::from_bytes([root; 32]),
        not_after_ms: NOW + MONTH,
    }
}

fn token(byte: u8) -> TokenId {
    TokenId::from_bytes([byte; 8])
}

fn hash(byte: u8) -> [u8; 32] {
    *SecretHash::of(&token(byte), &[byte]).as_bytes()
}

fn describe(network: &str) -> Description {
    Description {
        locality: Locality::default(),
        network: Label::parse(network).unwrap(),
        gateways: Vec::new(),
        unix_ms: NOW,
    }
}

fn create(byte: u8, name: &str) -> Command {
    Command::CreateToken {
        id: token(byte),
        hash: hash(byte),
        cluster: cluster(name),
        ttl_ms: 60_000,
    }
}

fn join(byte: u8, name: &str) -> Command {
    Command::Join(Box::new(Join {
        token: token(byte),
        hash: hash(byte),
        cluster: cluster(name),
        description: describe(name),
        replace: false,
        issued: issued(byte, 1),
    }))
}

fn replace(mut command: Command) -> Command {
    if let Command::Join(join) = &mut command {
        join.replace = true;
    }
    command
}

fn open(name: &str, held: u64) -> Command {
    Command::OpenPublish {
        cluster: cluster(name),
        held,
        description: describe(name),
    }
}

fn export(name: &str, key: &str, endpoints: usize) -> Export {
    let endpoint = Endpoint {
        address: [127, 0, 0, 1].into(),
        readiness: Readiness::Ready,
        hostname: None,
        zone: String::new(),
        node: String::new(),
    };
    let port = |number| SlicePort {
        name: String::new(),
        protocol: Protocol::Tcp,
        port: number,
    };
    Export {
        key: service(key),
        cluster: cluster(name),
        uid: format!("{name}/{key}"),
        claimed_created_ms: 7,
        spec: ServiceSpec {
            service_type: ServiceType::ClusterSetIp,
            ports: vec![ServicePort {
                name: String::new(),
                protocol: Protocol::Tcp,
                port: 80,
                app_protocol: String::new(),
            }],
            ip_families: vec![IpFamily::V4],
            session_affinity: SessionAffinity::None,
            session_affinity_timeout_seconds: None,
            internal_traffic_policy: String::new(),
            traffic_distribution: String::new(),
            labels: Default::default(),
            annotations: Default::default(),
        },
        loss_policy: LossPolicy::Degrade,
        slices: vec![EndpointSlice {
            name: "a".to_owned(),
            family: IpFamily::V4,
            ports: vec![port(8080)],
            endpoints: vec![endpoint; endpoints],
        }],
    }
}

fn upsert(name: &str, key: &str, epoch: u64) -> Command {
    Command::Upsert {
        epoch,
        export: Box::new(export(name, key, 1)),
    }
}

fn drill(target: &str, from: &str, key: &str) -> Drill {
    Drill {
        id: DrillId(0),
        kind: DrillKind::ClusterDown,
        target: cluster(target),
        from: cluster(from),
        service: service(key),
        port: None,
        http_get: None,
        rate_per_second: 10,
        baseline: Duration::from_secs(2),
        duration: Duration::from_secs(3),
        recovery: Duration::from_secs(1),
        real: false,
    }
}

fn start(drill: Drill) -> Command {
    Command::StartDrill {
        drill: Box::new(drill),
        force: false,
    }
}

/// A state with its log position.
struct Log {
    state: State,
    index: u64,
    now: u64,
}

impl Log {
    fn empty() -> Self {
        Self {
            state: State::default(),
            index: 0,
            now: NOW,
        }
    }

    fn founded() -> Self {
        let mut log = Self::empty();
        log.done(Command::Found {
            clusterset: Label::parse("demo").unwrap(),
            trust_domain: TrustDomain::parse("demo-aaaa2222").unwrap(),
            root: root(1),
            broker: 1,
            addresses: addresses(1),
        });
        log
    }

    /// West, east and north, each publishing shop/cart under epoch 1.
    fn busy() -> Self {
        let mut log = Self::founded();
        for (byte, name) in (1..).zip(["west", "east", "north"]) {
            log.done(create(byte, name));
            log.done(join(byte, name));
            log.done(open(name, 0));
            log.done(upsert(name, "shop/cart", 1));
        }
        log
    }

    fn decide(&mut self, command: Command) -> Verdict {
        self.index += 1;
        let batch = Batch {
            unix_ms: self.now,
            commands: vec![command],
        };
        apply(&mut self.state, self.index, batch).verdicts.pop().unwrap()
    }

    fn done(&mut self, command: Command) -> Reply {
        self.decide(command).unwrap()
    }

    /// A refusal changes nothing.
    fn refused(&mut self, command: Command) -> Refusal {
        self.done(Command::Tick);
        let before = self.state.clone();
        let refusal = self.decide(command.clone()).expect_err(&format!("{command:?}"));
        self.state.applied = before.applied;
        assert_eq!(self.state, before, "{command:?}");
        refusal
    }
}

#[test]
fn joining_is_refused_with_a_reason() {
    let mut log = Log::busy();
    log.done(create(9, "south"));
    log.done(create(10, "west"));
    log.done(create(11, "old"));
    let with = |change: fn(&mut Description)| {
        let mut command = join(9, "south");
        if let Command::Join(join) = &mut command {
            change(&mut join.description);
        }
        command
    };
    let mut wrong_secret = join(9, "south");
    if let Command::Join(join) = &mut wrong_secret {
        join.hash[0] ^= 1;
    }
    let mut other_key = join(1, "west");
    if let Command::Join(join) = &mut other_key {
        join.issued = issued(77, 1);
    }
    let create_with = |ttl_ms| Command::CreateToken {
        id: token(50),
        hash: hash(50),
        cluster: cluster("x"),
        ttl_ms,
    };
    let table = [
        (join(99, "south"), "is unknown to this clusterset"),
        (wrong_secret, "does not match: its secret is wrong"),
        (join(9, "other"), "was made for cluster south, not for other"),
        (other_key, "has been used; a token joins once"),
        (join(10, "west"), "cluster west is a member already"),
        (
            with(|d| d.unix_ms -= 301_000),
            "301 s behind the broker's; set it by NTP",
        ),
        (with(|d| d.unix_ms += 301_000), "301 s ahead of the broker's"),
        (
            with(|d| d.gateways = vec![([127, 0, 0, 1], 1).into(); 17]),
            "advertises 17 gateways",
        ),
        (create_with(0), "a join token lives 1 s to 604800 s, not 0 ms"),
        (create_with(u64::MAX), "a join token lives 1 s to 604800 s"),
        (
            Command::CreateToken {
                id: token(9),
                hash: hash(8),
                cluster: cluster("x"),
                ttl_ms: 5_000,
            },
            "exists already with another secret",
        ),
        (
            Command::RevokeToken { id: token(98) },
            "is unknown to this clusterset",
        ),
        (
            Command::Evict {
                cluster: cluster("nobody"),
            },
            "cluster nobody is not a member",
        ),
        (
            Command::Renew {
                cluster: cluster("nobody"),
                issued: issued(5, 1),
            },
            "cluster nobody is not a member",
        ),
        (open("nobody", 0), "cluster nobody is not a member"),
    ];
    for (command, reason) in table {
        let refusal = log.refused(command).to_string();
        assert!(
            refusal.contains(reason),
            "{refusal:?} does not contain {reason:?}"
        );
    }
    log.now += 60_500;
    let expired = log.refused(join(11, "old")).to_string();
    assert!(expired.contains("expired 0 s ago"), "{expired}");
    assert!(
        Log::empty()
            .decide(Command::Tick)
            .unwrap_err()
            .to_string()
            .contains("not founded yet")
    );
    let again = Command::Found {
        clusterset: Label::parse("demo").unwrap(),
        trust_domain: TrustDomain::parse("demo-aaaa2222").unwrap(),
        root: root(1),
        broker: 1,
        addresses: addresses(1),
    };
    assert_eq!(log.refused(again), Refusal::AlreadyFounded);
}

#[test]
fn bounds_are_refused_at_the_bound() {
    let mut log = Log::founded();
    for at in 0..bounds::TOKENS_MAX {
        let id = TokenId::from_bytes((at as u64).to_be_bytes());
        log.done(Command::CreateToken {
            id,
            hash: [0; 32],
            cluster: cluster("x"),
            ttl_ms: 60_000,
        });
    }
    assert_eq!(log.refused(create(250, "y")), Refusal::TooManyTokens);
    log.now += 60_000;
    log.done(create(250, "y"));

    let mut log = Log::busy();
    let reserve = |clusters: &[&str]| Command::Reserve {
        namespace: Namespace::parse("x").unwrap(),
        clusters: Some(clusters.iter().map(|id| cluster(id)).collect()),
    };
    assert!(matches!(log.refused(reserve(&[])), Refusal::EmptyReservation(_)));
    let many = Command::Upsert {
        epoch: 1,
        export: Box::new(export("west", "shop/big", 1_000)),
    };
    log.done(many);
    assert_eq!(log.state.endpoints, 1_003);
    let mut huge = export("west", "shop/huge", 1);
    huge.spec
        .annotations
        .insert("a".to_owned(), "x".repeat(bounds::EXPORT_MAX_BYTES));
    let refusal = log.refused(Command::Upsert {
        epoch: 1,
        export: Box::new(huge),
    });
    assert!(matches!(refusal, Refusal::ExportTooLarge { .. }));
    log.state.endpoints = bounds::ENDPOINTS_MAX;
    let refusal = log.refused(upsert("west", "shop/more", 1));
    assert!(refusal.to_string().contains("to 250001 endpoints"), "{refusal}");
    for byte in 10..=bounds::KEYS_MAX as u8 + 8 {
        log.done(Command::Renew {
            cluster: cluster("west"),
            issued: issued(byte, 1),
        });
    }
    let refusal = log
        .decide(Command::Renew {
            cluster: cluster("west"),
            issued: issued(200, 1),
        })
        .unwrap_err();
    assert!(matches!(refusal, Refusal::TooManyKeys(_)), "{refusal}");
}

#[test]
fn publishing_is_fenced_and_admission_is_remembered() {
    let mut log = Log::busy();
    let admitted = |log: &Log| {
        let record = log.state.export(&service("shop/cart"), &cluster("west")).unwrap();
        (record.admitted, record.created_ms)
    };
    let first = admitted(&log);
    assert_eq!(first.1, 7, "min(claimed, admission)");
    assert_eq!(log.done(open("west", 0)), Reply::Granted { epoch: 2 });
    assert_eq!(log.done(open("west", 2)), Reply::Granted { epoch: 2 });
    let refusal = log.refused(upsert("west", "shop/cart", 1)).to_string();
    assert!(
        refusal.starts_with("publish epoch 1 of cluster west was superseded by 2: another agent"),
        "{refusal}"
    );
    for command in [
        open("west", 1),
        Command::Delete {
            cluster: cluster("west"),
            epoch: 1,
            key: service("shop/cart"),
        },
        Command::Retain {
            cluster: cluster("west"),
            epoch: 1,
            keys: Default::default(),
        },
        Command::TrustAck {
            cluster: cluster("west"),
            epoch: 1,
            revision: 1,
            lagging: String::new(),
        },
    ] {
        assert!(matches!(log.refused(command), Refusal::Superseded { .. }));
    }
    let mut changed = export("west", "shop/cart", 2);
    log.done(Command::Upsert {
        epoch: 2,
        export: Box::new(changed.clone()),
    });
    assert_eq!(admitted(&log), first, "a change keeps its place");
    changed.uid = "another".to_owned();
    log.done(Command::Upsert {
        epoch: 2,
        export: Box::new(changed),
    });
    assert!(admitted(&log).0 > first.0, "a re-created export is a new one");
    log.done(upsert("west", "shop/other", 2));
    let keys = [service("shop/other")].into();
    log.done(Command::Retain {
        cluster: cluster("west"),
        epoch: 2,
        keys,
    });
    assert!(
        log.state
            .export(&service("shop/cart"), &cluster("west"))
            .is_none()
    );
    assert!(
        log.state
            .export(&service("shop/cart"), &cluster("east"))
            .is_some()
    );
    // An epoch is not granted again to a member that comes back under the same name.
    log.done(Command::Leave {
        cluster: cluster("west"),
    });
    log.done(create(40, "west"));
    log.done(join(40, "west"));
    let refusal = log.refused(upsert("west", "shop/cart", 2));
    assert!(matches!(refusal, Refusal::Superseded { .. }), "{refusal}");
    assert_eq!(log.done(open("west", 0)), Reply::Granted { epoch: 4 });
}

#[test]
fn a_restore_grants_no_epoch_again() {
    let mut log = Log::busy();
    let backup = log.state.clone();
    let Reply::Granted { epoch: held } = log.done(open("west", 0)) else {
        panic!("not granted")
    };
    log.state = backup;
    log.state.begin_incarnation(NOW / 1000, 1, addresses(1));
    for epoch in [1, held] {
        let refusal = log.refused(upsert("west", "shop/cart", epoch));
        assert!(matches!(refusal, Refusal::Superseded { .. }), "{refusal}");
    }
    let above = |reply| matches!(reply, Reply::Granted { epoch } if epoch > NOW / 1000);
    assert!(above(log.done(open("west", 0))));
    // Whoever joined and left after the back-up is unknown to it.
    log.done(create(50, "south"));
    log.done(join(50, "south"));
    assert!(above(log.done(open("south", 0))));
}

#[test]
fn leaving_ends_everything_and_denies_the_keys() {
    let mut log = Log::busy();
    log.done(Command::SetGrant {
        key: service("shop/cart"),
        exporter: cluster("west"),
        importers: Some([cluster("east")].into()),
    });
    log.done(Command::Renew {
        cluster: cluster("west"),
        issued: issued(30, 1),
    });
    assert_eq!(
        log.done(Command::Evict {
            cluster: cluster("west")
        }),
        Reply::Removed { exports: 1 }
    );
    let denied: Vec<_> = log
        .state
        .trust
        .as_ref()
        .unwrap()
        .denied
        .iter()
        .map(|d| d.key.as_bytes()[0])
        .collect();
    assert_eq!(denied, [1, 30]);
    assert!(log.state.grants.by_export.is_empty());
    assert_eq!(log.state.trust.as_ref().unwrap().revision, log.index);
    log.done(create(60, "west"));
    let mut same_key = join(60, "west");
    if let Command::Join(join) = &mut same_key {
        join.issued = issued(30, 1);
    }
    assert_eq!(log.refused(same_key), Refusal::KeyDenied);
    log.done(replace(join(60, "west")));
    log.now += MONTH + bounds::CLOCK_SKEW_MAX.as_millis() as u64 - 1;
    log.done(Command::Tick);
    assert_eq!(
        log.state.trust.as_ref().unwrap().denied.len(),
        2,
        "a slow verifier still takes them for valid"
    );
    log.now += 1;
    log.done(Command::Tick);
    assert!(
        log.state.trust.as_ref().unwrap().denied.is_empty(),
        "expired intermediates need no denial"
    );
}

#[test]
fn replacing_a_member_supersedes_and_denies_the_old_one() {
    let mut log = Log::busy();
    log.done(create(61, "west"));
    log.done(replace(join(61, "west")));
    assert!(matches!(
        log.refused(upsert("west", "shop/cart", 1)),
        Refusal::Superseded { .. }
    ));
    assert_eq!(log.state.trust.as_ref().unwrap().denied.len(), 1);
    assert!(
        log.state
            .export(&service("shop/cart"), &cluster("west"))
            .is_some(),
        "until it publishes its own state"
    );
    assert_eq!(log.done(open("west", 0)), Reply::Granted { epoch: 3 });
}

#[test]
fn a_reservation_removes_what_it_forbids() {
    let mut log = Log::busy();
    let reserve = |clusters: Option<&str>| Command::Reserve {
        namespace: Namespace::parse("shop").unwrap(),
        clusters: clusters.map(|id| [cluster(id)].into()),
    };
    log.done(reserve(Some("east")));
    assert_eq!(log.state.all_exports().count(), 1);
    assert_eq!(log.state.endpoints, 1);
    let refusal = log.refused(upsert("west", "shop/cart", 1)).to_string();
    assert!(
        refusal.contains("in namespace shop, which is reserved for east"),
        "{refusal}"
    );
    log.done(reserve(None));
    log.done(upsert("west", "shop/cart", 1));
}

#[test]
fn leases_follow_the_log() {
    let mut log = Log::busy();
    let lease = |log: &Log| log.state.members[&cluster("west")].view.lease;
    assert_eq!(lease(&log), Lease::Alive);
    log.done(Command::LoseLease {
        cluster: cluster("west"),
    });
    assert_eq!(lease(&log), Lease::Lost);
    log.done(Command::RegainLease {
        cluster: cluster("west"),
    });
    assert_eq!(lease(&log), Lease::Alive);
}

#[test]
fn the_root_rotates_in_stages_and_says_who_lags() {
    let mut log = Log::busy();
    let rotate = |step, force| Command::Rotate { step, force };
    let ack = |name: &str, revision, lagging: &str| Command::TrustAck {
        cluster: cluster(name),
        epoch: 1,
        revision,
        lagging: lagging.to_owned(),
    };
    for step in [RotationStep::Switch, RotationStep::Drop] {
        assert!(matches!(
            log.refused(rotate(step, true)),
            Refusal::RotationStep { .. }
        ));
    }
    log.done(rotate(RotationStep::Stage(root(2)), false));
    let staged = log.index;
    assert!(
        log.refused(rotate(RotationStep::Stage(root(3)), true))
            .to_string()
            .contains("finish that rotation first")
    );
    let refusal = log.refused(rotate(RotationStep::Switch, false)).to_string();
    assert!(
        refusal.contains("east has acknowledged trust revision 0 of"),
        "{refusal}"
    );
    assert!(matches!(
        log.refused(ack("west", staged + 1_000, "")),
        Refusal::TrustFromTheFuture { .. }
    ));
    for name in ["west", "east", "north"] {
        log.done(ack(name, staged, ""));
    }
    log.done(rotate(RotationStep::Switch, false));
    let switched = log.index;
    assert_eq!(log.state.trust.as_ref().unwrap().signing, root(2));
    for (byte, name) in (70..).zip(["west", "east", "north"]) {
        log.done(ack(name, switched, ""));
        let refusal = log.refused(rotate(RotationStep::Drop, false)).to_string();
        assert!(
            refusal.contains(&format!("{name} has an intermediate of the old root")),
            "{refusal}"
        );
        log.done(Command::Renew {
            cluster: cluster(name),
            issued: issued(byte, 2),
        });
    }
    log.done(ack("east", switched, "two tunnels of the old root"));
    let refusal = log.refused(rotate(RotationStep::Drop, false)).to_string();
    assert_eq!(
        refusal,
        "the root cannot be dropped yet: east two tunnels of the old root; wait, or force it"
    );
    log.done(ack("east", switched, ""));
    log.done(rotate(RotationStep::Drop, false));
    assert_eq!(log.state.trust.as_ref().unwrap().roots(), [&root(2)]);
}

#[test]
fn brokers_are_added_once_and_ids_are_spent() {
    let mut log = Log::founded();
    let add = |id, at| Command::AddBroker {
        id,
        addresses: addresses(at),
    };
    assert_eq!(
        log.refused(Command::RemoveBroker { id: 1 }),
        Refusal::LastBroker(1)
    );
    log.done(add(2, 2));
    log.done(add(2, 2));
    assert_eq!(log.refused(add(0, 4)), Refusal::BrokerZero);
    assert_eq!(log.refused(add(2, 3)), Refusal::BrokerExists(2));
    assert!(log.refused(add(3, 2)).to_string().contains("belongs to broker 2"));
    assert_eq!(
        log.refused(Command::RemoveBroker { id: 9 }),
        Refusal::BrokerUnknown(9)
    );
    log.done(Command::RemoveBroker { id: 2 });
    log.done(Command::RemoveBroker { id: 2 });
    assert_eq!(log.refused(add(2, 2)), Refusal::BrokerRetired(2));
    for id in 3..=8 {
        log.done(add(id, id));
    }
    assert_eq!(log.refused(add(9, 9)), Refusal::TooManyBrokers);
}

#[test]
fn drills_are_refused_with_a_reason() {
    let mut log = Log::busy();
    log.done(upsert("west", "shop/alone", 1));
    log.done(upsert("north", "shop/pair", 1));
    log.done(upsert("east", "shop/pair", 1));
    let with = |change: fn(&mut Drill)| {
        let mut drill = drill("north", "east", "shop/cart");
        change(&mut drill);
        start(drill)
    };
    let table = [
        (
            with(|d| d.duration = Duration::from_secs(899)),
            "lasts at most 900 s in all, this one 902 s",
        ),
        (with(|d| d.baseline = Duration::MAX), "lasts at most 900 s in all"),
        (with(|d| d.baseline = Duration::ZERO), "at least one second each"),
        (
            with(|d| d.rate_per_second = 0),
            "1 to 1000 requests per second, not 0",
        ),
        (with(|d| d.rate_per_second = 1_001), "not 1001"),
        (
            with(|d| d.kind = DrillKind::DnsKill),
            "kind dns-kill kills a process",
        ),
        (
            with(|d| d.from = d.target.clone()),
            "cluster north cannot fail and send",
        ),
        (
            with(|d| d.target = cluster("nobody")),
            "cluster nobody is not a member",
        ),
        (
            with(|d| d.service = service("shop/alone")),
            "cluster north does not export shop/alone",
        ),
        // North and east alone offer it, and the drill hides east's own endpoints.
        (
            with(|d| d.service = service("shop/pair")),
            "without cluster north, service shop/pair has no healthy endpoint",
        ),
        // West offers another service that nobody else does.
        (
            start(drill("west", "east", "shop/cart")),
            "service shop/alone has no healthy endpoint",
        ),
        (Command::StopDrill { id: DrillId(5) }, "there is no drill 5"),
    ];
    for (command, reason) in table {
        let refusal = log.refused(command).to_string();
        assert!(
            refusal.contains(reason),
            "{refusal:?} does not contain {reason:?}"
        );
    }
    let forced = Command::StartDrill {
        drill: Box::new(drill("west", "east", "shop/cart")),
        force: true,
    };
    let Reply::DrillStarted { id } = log.done(forced.clone()) else {
        panic!("not started")
    };
    assert_eq!(id.0, log.index);
    let refusal = log.refused(forced).to_string();
    assert!(
        refusal.contains(&format!("drill {} is running; one at a time", id.0)),
        "{refusal}"
    );
}

#[test]
fn a_drill_ends_by_itself_and_takes_one_report() {
    let mut log = Log::busy();
    let Reply::DrillStarted { id } = log.done(start(drill("north", "east", "shop/cart"))) else {
        panic!("not started")
    };
    assert_eq!(log.state.next_expiry_ms(), Some(NOW + 6_000));
    let report = |name: &str, bytes: usize| Command::ReportDrill {
        cluster: cluster(name),
        drill: id,
        report: Bytes::from(vec![1; bytes]),
    };
    log.now += 6_000;
    log.done(Command::Tick);
    assert!(log.state.drills.running.is_none());
    assert!(
        log.refused(report("west", 1))
            .to_string()
            .contains("is reported by cluster east, not by west")
    );
    let too_large = log.refused(report("east", bounds::DRILL_REPORT_MAX_BYTES + 1));
    assert!(matches!(too_large, Refusal::DrillReportTooLarge { .. }));
    log.done(report("east", 3));
    log.done(report("east", 5));
    assert_eq!(
        log.state.drills.find(id).unwrap().1.map(Bytes::len),
        Some(3),
        "the first report stands"
    );
    log.done(Command::StopDrill { id });
    for _ in 0..bounds::DRILLS_KEPT {
        let Reply::DrillStarted { id } = log.done(start(drill("north", "east", "shop/cart"))) else {
            panic!()
        };
        log.done(Command::StopDrill { id });
    }
    assert_eq!(log.state.drills.finished.len(), bounds::DRILLS_KEPT);
    assert!(matches!(log.refused(report("east", 3)), Refusal::DrillUnknown(_)));
}

#[test]
fn the_replicated_clock_never_goes_back() {
    let mut log = Log::founded();
    log.now -= 50_000;
    log.done(Command::Tick);
    assert_eq!(log.state.clock_ms, NOW);
}

fn any_command() -> impl Strategy<Value = Command> {
    let name = prop::sample::select(vec!["west", "east", "north"]);
    let key = prop::sample::select(vec!["shop/cart", "shop/checkout", "pay/card"]);
    let epoch = 0..4_u64;
    prop_oneof![
        (1..6_u8, name.clone()).prop_map(|(byte, name)| create(byte, name)),
        (1..6_u8, name.clone(), any::<bool>()).prop_map(|(byte, name, over)| if over {
            replace(join(byte, name))
        } else {
            join(byte, name)
        }),
        (name.clone(), 10..20_u8).prop_map(|(name, byte)| Command::Renew {
            cluster: cluster(name),
            issued: issued(byte, 1)
        }),
        (name.clone(), epoch.clone()).prop_map(|(name, held)| open(name, held)),
        (name.clone(), key.clone(), epoch.clone(), 0..4_usize).prop_map(|(name, key, epoch, endpoints)| {
            Command::Upsert {
                epoch,
                export: Box::new(export(name, key, endpoints)),
            }
        }),
        (name.clone(), key.clone(), epoch.clone()).prop_map(|(name, key, epoch)| Command::Delete {
            cluster: cluster(name),
            epoch,
            key: service(key)
        }),
        (name.clone(), key.clone(), epoch).prop_map(|(name, key, epoch)| Command::Retain {
            cluster: cluster(name),
            epoch,
            keys: [service(key)].into()
        }),
        name.clone().prop_map(|name| Command::LoseLease {
            cluster: cluster(name)
        }),
        name.clone().prop_map(|name| Command::Evict {
            cluster: cluster(name)
        }),
        (name.clone(), key.clone(), any::<bool>()).prop_map(|(name, key, clear)| Command::SetGrant {
            key: service(key),
            exporter: cluster(name),
            importers: (!clear).then(|| [cluster("east")].into()),
        }),
        (name.clone(), any::<bool>()).prop_map(|(name, clear)| Command::Reserve {
            namespace: Namespace::parse("pay").unwrap(),
            clusters: (!clear).then(|| [cluster(name)].into()),
        }),
        (2..5_u64).prop_map(|id| Command::AddBroker {
            id,
            addresses: addresses(id)
        }),
        (1..5_u64).prop_map(|id| Command::RemoveBroker { id }),
        (2..4_u8).prop_map(|byte| Command::Rotate {
            step: RotationStep::Stage(root(byte)),
            force: true
        }),
        Just(Command::Rotate {
            step: RotationStep::Switch,
            force: true
        }),
        Just(Command::Rotate {
            step: RotationStep::Drop,
            force: true
        }),
        (name.clone(), name, key).prop_map(|(target, from, key)| Command::StartDrill {
            drill: Box::new(drill(target, from, key)),
            force: true,
        }),
        (1..40_u64).prop_map(|id| Command::StopDrill { id: DrillId(id) }),
        Just(Command::Tick),
    ]
}

fn any_log() -> impl Strategy<Value = Vec<Batch>> {
    let batch =
        (0..120_000_u64, prop::collection::vec(any_command(), 1..5)).prop_map(|(after, commands)| Batch {
            unix_ms: NOW + after,
            commands,
        });
    prop::collection::vec(batch, 0..40)
}

fn replay(state: &mut State, from: u64, batches: &[Batch]) {
    for (index, batch) in (from..).zip(batches) {
        // Through its bytes, as a restart or a follower would.
        let batch = decode_batch(encode_batch(batch)).unwrap();
        apply(state, index, batch);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_replay_gives_the_same_state_and_a_snapshot_with_its_tail_too(log in any_log(), cut in 0..40_usize) {
        let found = Log::founded().state;
        let mut once = found.clone();
        for (index, batch) in (2..).zip(&log) {
            apply(&mut once, index, batch.clone());
        }
        let mut again = found.clone();
        replay(&mut again, 2, &log);
        prop_assert_eq!(&again, &once);

        let cut = cut.min(log.len());
        let mut first = found;
        replay(&mut first, 2, &log[..cut]);
        let mut restored = decode_state(encode_state(&first).into()).unwrap();
        prop_assert_eq!(&restored, &first);
        replay(&mut restored, 2 + cut as u64, &log[cut..]);
        prop_assert_eq!(&restored, &once);
        // What is counted on the side is what there is.
        let endpoints: usize = once.all_exports().flat_map(|r| &r.export.slices).map(|s| s.endpoints.len()).sum();
        prop_assert_eq!(once.endpoints, endpoints);
    }

    #[test]
    fn random_bytes_are_refused_and_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_batch(bytes.clone().into());
        let _ = decode_state(bytes.into());
    }
}
