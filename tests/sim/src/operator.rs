//! The operator: founds the clusterset, lets clusters join, grants, reserves, evicts, drills. A call that is not answered is
//! made again at another broker.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use tombolo_broker::command::{
    Batch, BrokerAddresses, Command, Description, Issued, Join, Reply, RootRecord,
};
use tombolo_broker::stored::{Outcome, encode_batch};
use tombolo_clusterset::{ClusterId, Drill, DrillId, DrillKind, Label, ServiceKey};
use tombolo_trust::{Fingerprint, TokenId, TrustDomain};

use crate::net::{Message, Node};
use crate::scene::Scene;

/// A call that is not answered is made again after this.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Call {
    commands: Vec<Command>,
    again_at: Duration,
    joins: Option<usize>,
}

/// The operator.
#[derive(Debug)]
pub struct Operator {
    brokers: u64,
    counter: u64,
    calls: BTreeMap<u64, Call>,
    /// Clusters whose join was answered since somebody looked.
    pub joined: Vec<usize>,
}

impl Operator {
    /// An operator of that many brokers.
    #[must_use]
    pub fn new(brokers: u64) -> Self {
        Self {
            brokers,
            counter: 0,
            calls: BTreeMap::new(),
            joined: Vec::new(),
        }
    }

    /// Whether every call was answered.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.calls.is_empty()
    }

    /// Founds the clusterset.
    pub fn found(&mut self, scene: &Scene) {
        let key = Fingerprint::from_bytes([1; 32]);
        let Ok(trust_domain) = TrustDomain::derive("sim", &key) else {
            return;
        };
        let Ok(clusterset) = Label::parse("sim") else {
            return;
        };
        let root = RootRecord {
            certificate: Bytes::from_static(b"root"),
            key,
            wrapped: Bytes::new(),
        };
        let address = SocketAddr::from(([10, 255, 0, 1], 7400));
        let addresses = BrokerAddresses {
            api: address,
            peer: SocketAddr::from(([10, 255, 0, 1], 7401)),
        };
        self.call(
            vec![Command::Found {
                clusterset,
                trust_domain,
                root,
                broker: 1,
                addresses,
            }],
            None,
            scene,
        );
    }

    /// Lets cluster `number` join with a new key.
    pub fn join(&mut self, number: usize, cluster: ClusterId, description: Description, scene: &Scene) {
        let life = u8::try_from(self.counter % 250).unwrap_or_default() + 2;
        let Some(token) = TokenId::parse(&format!("{:016x}", self.counter + 1)) else {
            return;
        };
        let hash = [life; 32];
        let issued = Issued {
            certificate: Bytes::from_static(b"intermediate"),
            key: Fingerprint::from_bytes([life; 32]),
            root: Fingerprint::from_bytes([1; 32]),
            not_after_ms: scene.wall_ms(0) + 30 * 24 * 3_600_000,
        };
        let create = Command::CreateToken {
            id: token,
            hash,
            cluster: cluster.clone(),
            ttl_ms: 3_600_000,
        };
        let join = Command::Join(Box::new(Join {
            token,
            hash,
            cluster,
            description,
            replace: false,
            issued,
        }));
        self.call(vec![create, join], Some(number), scene);
    }

    /// Changes one thing that only operators may. Some of it is refused.
    pub fn govern(&mut self, clusters: &[ClusterId], keys: &[ServiceKey], scene: &mut Scene) {
        let pick = |scene: &mut Scene| clusters[scene.rng.random_range(0..clusters.len())].clone();
        let some = |scene: &mut Scene| {
            clusters
                .iter()
                .filter(|_| scene.rng.random_bool(0.5))
                .cloned()
                .collect()
        };
        let key = keys[scene.rng.random_range(0..keys.len())].clone();
        let command = match scene.rng.random_range(0..10) {
            0..=3 => Command::SetGrant {
                key,
                exporter: pick(scene),
                importers: Some(some(scene)),
            },
            4..=5 => Command::SetGrant {
                key,
                exporter: pick(scene),
                importers: None,
            },
            6 => Command::Reserve {
                namespace: key.namespace,
                clusters: Some(some(scene)),
            },
            7 => Command::Reserve {
                namespace: key.namespace,
                clusters: None,
            },
            _ => {
                let target = pick(scene);
                let others: Vec<&ClusterId> = clusters.iter().filter(|other| **other != target).collect();
                let from = others[scene.rng.random_range(0..others.len())].clone();
                Command::StartDrill {
                    drill: Box::new(drill(key, target, from, scene)),
                    force: true,
                }
            }
        };
        scene.note(format_args!("operator: {command:?}"));
        self.call(vec![command], None, scene);
    }

    /// Ends the membership of a cluster.
    pub fn evict(&mut self, cluster: ClusterId, scene: &mut Scene) {
        scene.note(format_args!("operator evicts {cluster}"));
        self.call(vec![Command::Evict { cluster }], None, scene);
    }

    /// Lifts every grant and reservation, so that all is reachable again.
    pub fn open_everything(&mut self, clusters: &[ClusterId], keys: &[ServiceKey], scene: &Scene) {
        for key in keys {
            self.call(
                vec![Command::Reserve {
                    namespace: key.namespace.clone(),
                    clusters: None,
                }],
                None,
                scene,
            );
            for exporter in clusters {
                let (key, exporter) = (key.clone(), exporter.clone());
                self.call(
                    vec![Command::SetGrant {
                        key,
                        exporter,
                        importers: None,
                    }],
                    None,
                    scene,
                );
            }
        }
    }

    fn call(&mut self, commands: Vec<Command>, joins: Option<usize>, scene: &Scene) {
        self.counter += 1;
        self.calls.insert(
            self.counter,
            Call {
                commands,
                again_at: scene.now,
                joins,
            },
        );
    }

    /// Time passes.
    pub fn poll(&mut self, scene: &mut Scene) {
        for (id, call) in self
            .calls
            .iter_mut()
            .filter(|(_, call)| call.again_at <= scene.now)
        {
            call.again_at = scene.now + PATIENCE;
            let broker = Node::Broker(scene.rng.random_range(1..=self.brokers));
            let batch = Batch {
                unix_ms: 0,
                commands: call.commands.clone(),
            };
            let message = Message::Call {
                call: *id,
                commands: encode_batch(&batch),
            };
            scene.net.send(scene.now, Node::Operator, broker, message);
        }
    }

    /// An answer arrives.
    pub fn receive(&mut self, call: u64, outcomes: Bytes) {
        let Some(done) = self.calls.remove(&call) else {
            return;
        };
        let outcomes = Outcome::decode_all(outcomes).unwrap_or_default();
        if matches!(outcomes.last(), Some(Outcome::Done(Reply::Issued { .. }))) {
            self.joined.extend(done.joins);
        }
    }
}

fn drill(service: ServiceKey, target: ClusterId, from: ClusterId, scene: &mut Scene) -> Drill {
    let kinds = [DrillKind::ClusterDown, DrillKind::GatewayKill, DrillKind::LinkCut];
    Drill {
        id: DrillId(0),
        kind: kinds[scene.rng.random_range(0..kinds.len())],
        target,
        from,
        service,
        port: None,
        http_get: None,
        rate_per_second: 10,
        baseline: Duration::from_secs(1),
        duration: Duration::from_secs(scene.rng.random_range(1..5)),
        recovery: Duration::from_secs(1),
        real: false,
    }
}
