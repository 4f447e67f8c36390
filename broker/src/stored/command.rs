//! Commands, to bytes and back.

use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message as _;
use tombolo_clusterset::{ClusterId, Drill, DrillId, Export, Label, Locality, Namespace, ServiceKey};
use tombolo_trust::{Fingerprint, TokenId, TrustDomain};

use super::messages::{self as stored, Body};
use super::{Corrupt, FORMAT, array, required};
use crate::command::{Batch, BrokerAddresses, Command, Description, Issued, Join, RootRecord, RotationStep};

/// The bytes of a log entry.
#[must_use]
pub fn encode_batch(batch: &Batch) -> Bytes {
    let commands = batch.commands.iter().map(store).collect();
    stored::Batch {
        format: FORMAT,
        unix_ms: batch.unix_ms,
        commands,
    }
    .encode_to_vec()
    .into()
}

/// A log entry from its bytes.
///
/// # Errors
/// [`Corrupt`] when it is damaged or newer than this build.
pub fn decode_batch(bytes: Bytes) -> Result<Batch, Corrupt> {
    let batch = stored::Batch::decode(bytes)?;
    if batch.format > FORMAT {
        return Err(Corrupt::Format {
            what: "a log entry",
            found: batch.format,
        });
    }
    let commands = batch.commands.into_iter().map(load).collect::<Result<_, _>>()?;
    Ok(Batch {
        unix_ms: batch.unix_ms,
        commands,
    })
}

/// The bytes of forwarded commands. The leader stamps the time.
#[must_use]
pub fn encode_commands(commands: &[Command]) -> Bytes {
    let commands = commands.iter().map(store).collect();
    stored::Batch {
        format: FORMAT,
        unix_ms: 0,
        commands,
    }
    .encode_to_vec()
    .into()
}

/// The encoded length of a command.
#[must_use]
pub fn encoded_len(command: &Command) -> usize {
    store(command).encoded_len()
}

fn store(command: &Command) -> stored::Command {
    let body = match command {
        Command::Found {
            clusterset,
            trust_domain,
            root,
            broker,
            addresses,
        } => Body::Found(stored::Found {
            clusterset: clusterset.to_string(),
            trust_domain: trust_domain.to_string(),
            root: Some(root.into()),
            broker: Some(store_broker(*broker, addresses)),
        }),
        Command::CreateToken {
            id,
            hash,
            cluster,
            ttl_ms,
        } => Body::CreateToken(stored::CreateToken {
            id: Bytes::copy_from_slice(id.as_bytes()),
            hash: Bytes::copy_from_slice(hash),
            cluster: cluster.to_string(),
            ttl_ms: *ttl_ms,
        }),
        Command::RevokeToken { id } => Body::RevokeToken(Bytes::copy_from_slice(id.as_bytes())),
        Command::Join(join) => Body::Join(stored::Join {
            token: Bytes::copy_from_slice(join.token.as_bytes()),
            hash: Bytes::copy_from_slice(&join.hash),
            cluster: join.cluster.to_string(),
            description: Some((&join.description).into()),
            replace: join.replace,
            issued: Some((&join.issued).into()),
        }),
        Command::Renew { cluster, issued } => Body::Renew(stored::Renew {
            cluster: cluster.to_string(),
            issued: Some(issued.into()),
        }),
        Command::Leave { cluster } => Body::Leave(cluster.to_string()),
        Command::Evict { cluster } => Body::Evict(cluster.to_string()),
        Command::OpenPublish {
            cluster,
            held,
            description,
        } => Body::OpenPublish(stored::OpenPublish {
            cluster: cluster.to_string(),
            held: *held,
            description: Some(description.into()),
        }),
        Command::Upsert { epoch, export } => Body::Upsert(stored::Upsert {
            epoch: *epoch,
            export: Some(export.as_ref().into()),
        }),
        Command::Delete { cluster, epoch, key } => Body::Delete(stored::Delete {
            cluster: cluster.to_string(),
            epoch: *epoch,
            key: Some(key.into()),
        }),
        Command::Retain { cluster, epoch, keys } => Body::Retain(stored::Retain {
            cluster: cluster.to_string(),
            epoch: *epoch,
            keys: keys.iter().map(Into::into).collect(),
        }),
        Command::TrustAck {
            cluster,
            epoch,
            revision,
            lagging,
        } => Body::TrustAck(stored::TrustAck {
            cluster: cluster.to_string(),
            epoch: *epoch,
            revision: *revision,
            lagging: lagging.clone(),
        }),
        Command::LoseLease { cluster } => Body::LoseLease(cluster.to_string()),
        Command::RegainLease { cluster } => Body::RegainLease(cluster.to_string()),
        Command::SetGrant {
            key,
            exporter,
            importers,
        } => Body::SetGrant(store_grant(key, exporter, importers.as_ref())),
        Command::Reserve { namespace, clusters } => {
            Body::Reserve(store_reservation(namespace, clusters.as_ref()))
        }
        Command::AddBroker { id, addresses } => Body::AddBroker(store_broker(*id, addresses)),
        Command::RemoveBroker { id } => Body::RemoveBroker(*id),
        Command::Rotate { step, force } => {
            let (step, root) = match step {
                RotationStep::Stage(root) => (1, Some(root.into())),
                RotationStep::Switch => (2, None),
                RotationStep::Drop => (3, None),
            };
            Body::Rotate(stored::Rotate {
                step,
                root,
                force: *force,
            })
        }
        Command::StartDrill { drill, force } => Body::StartDrill(stored::StartDrill {
            drill: Some(drill.as_ref().into()),
            force: *force,
        }),
        Command::StopDrill { id } => Body::StopDrill(id.0),
        Command::ReportDrill {
            cluster,
            drill,
            report,
        } => Body::ReportDrill(stored::ReportDrill {
            cluster: cluster.to_string(),
            drill: drill.0,
            report: report.clone(),
        }),
        Command::Tick => Body::Tick(stored::Tick {}),
    };
    stored::Command { body: Some(body) }
}

fn load(command: stored::Command) -> Result<Command, Corrupt> {
    let cluster_id = |text: &str| ClusterId::parse(text);
    Ok(
        match required("command, or it is of a newer build", command.body)? {
            Body::Found(found) => {
                let (broker, addresses) = load_broker(required("broker", found.broker)?)?;
                Command::Found {
                    clusterset: Label::parse(&found.clusterset)?,
                    trust_domain: load_trust_domain(&found.trust_domain)?,
                    root: required("root", found.root)?.try_into()?,
                    broker,
                    addresses,
                }
            }
            Body::CreateToken(create) => Command::CreateToken {
                id: TokenId::from_bytes(array("id", &create.id)?),
                hash: array("hash", &create.hash)?,
                cluster: cluster_id(&create.cluster)?,
                ttl_ms: create.ttl_ms,
            },
            Body::RevokeToken(id) => Command::RevokeToken {
                id: TokenId::from_bytes(array("id", &id)?),
            },
            Body::Join(join) => Command::Join(Box::new(Join {
                token: TokenId::from_bytes(array("token", &join.token)?),
                hash: array("hash", &join.hash)?,
                cluster: cluster_id(&join.cluster)?,
                description: required("description", join.description)?.try_into()?,
                replace: join.replace,
                issued: required("issued", join.issued)?.try_into()?,
            })),
            Body::Renew(renew) => Command::Renew {
                cluster: cluster_id(&renew.cluster)?,
                issued: required("issued", renew.issued)?.try_into()?,
            },
            Body::Leave(cluster) => Command::Leave {
                cluster: cluster_id(&cluster)?,
            },
            Body::Evict(cluster) => Command::Evict {
                cluster: cluster_id(&cluster)?,
            },
            Body::OpenPublish(open) => Command::OpenPublish {
                cluster: cluster_id(&open.cluster)?,
                held: open.held,
                description: required("description", open.description)?.try_into()?,
            },
            Body::Upsert(upsert) => {
                let export = Export::try_from(&required("export", upsert.export)?)?;
                Command::Upsert {
                    epoch: upsert.epoch,
                    export: Box::new(export),
                }
            }
            Body::Delete(delete) => Command::Delete {
                cluster: cluster_id(&delete.cluster)?,
                epoch: delete.epoch,
                key: ServiceKey::try_from(&required("key", delete.key)?)?,
            },
            Body::Retain(retain) => Command::Retain {
                cluster: cluster_id(&retain.cluster)?,
                epoch: retain.epoch,
                keys: retain
                    .keys
                    .iter()
                    .map(ServiceKey::try_from)
                    .collect::<Result<_, _>>()?,
            },
            Body::TrustAck(ack) => Command::TrustAck {
                cluster: cluster_id(&ack.cluster)?,
                epoch: ack.epoch,
                revision: ack.revision,
                lagging: ack.lagging,
            },
            Body::LoseLease(cluster) => Command::LoseLease {
                cluster: cluster_id(&cluster)?,
            },
            Body::RegainLease(cluster) => Command::RegainLease {
                cluster: cluster_id(&cluster)?,
            },
            Body::SetGrant(grant) => {
                let (key, exporter, importers) = load_grant(grant)?;
                Command::SetGrant {
                    key,
                    exporter,
                    importers,
                }
            }
            Body::Reserve(reserve) => {
                let (namespace, clusters) = load_reservation(reserve)?;
                Command::Reserve { namespace, clusters }
            }
            Body::AddBroker(broker) => {
                let (id, addresses) = load_broker(broker)?;
                Command::AddBroker { id, addresses }
            }
            Body::RemoveBroker(id) => Command::RemoveBroker { id },
            Body::Rotate(rotate) => {
                let step = match rotate.step {
                    1 => RotationStep::Stage(required("root", rotate.root)?.try_into()?),
                    2 => RotationStep::Switch,
                    3 => RotationStep::Drop,
                    other => {
                        return Err(Corrupt::new(
                            "a command",
                            format!("rotation step {other} is unknown"),
                        ));
                    }
                };
                Command::Rotate {
                    step,
                    force: rotate.force,
                }
            }
            Body::StartDrill(start) => {
                let drill = Drill::try_from(&required("drill", start.drill)?)?;
                Command::StartDrill {
                    drill: Box::new(drill),
                    force: start.force,
                }
            }
            Body::StopDrill(id) => Command::StopDrill { id: DrillId(id) },
            Body::ReportDrill(report) => Command::ReportDrill {
                cluster: cluster_id(&report.cluster)?,
                drill: DrillId(report.drill),
                report: report.report,
            },
            Body::Tick(stored::Tick {}) => Command::Tick,
        },
    )
}

pub(super) fn store_broker(id: u64, addresses: &BrokerAddresses) -> stored::Broker {
    stored::Broker {
        id,
        api: addresses.api.to_string(),
        peer: addresses.peer.to_string(),
    }
}

pub(super) fn load_broker(broker: stored::Broker) -> Result<(u64, BrokerAddresses), Corrupt> {
    let parse = |text: &str| {
        text.parse()
            .map_err(|_| Corrupt::new("a broker", format!("'{text}' is no IP:PORT")))
    };
    Ok((
        broker.id,
        BrokerAddresses {
            api: parse(&broker.api)?,
            peer: parse(&broker.peer)?,
        },
    ))
}

pub(super) fn store_grant(
    key: &ServiceKey,
    exporter: &ClusterId,
    importers: Option<&BTreeSet<ClusterId>>,
) -> stored::SetGrant {
    stored::SetGrant {
        key: Some(key.into()),
        exporter: exporter.to_string(),
        clear: importers.is_none(),
        importers: importers.into_iter().flatten().map(ToString::to_string).collect(),
    }
}

type Grant = (ServiceKey, ClusterId, Option<BTreeSet<ClusterId>>);

pub(super) fn load_grant(grant: stored::SetGrant) -> Result<Grant, Corrupt> {
    let importers = grant
        .importers
        .iter()
        .map(|id| ClusterId::parse(id))
        .collect::<Result<_, _>>()?;
    let key = ServiceKey::try_from(&required("key", grant.key)?)?;
    Ok((
        key,
        ClusterId::parse(&grant.exporter)?,
        (!grant.clear).then_some(importers),
    ))
}

pub(super) fn store_reservation(
    namespace: &Namespace,
    clusters: Option<&BTreeSet<ClusterId>>,
) -> stored::Reserve {
    stored::Reserve {
        namespace: namespace.to_string(),
        clear: clusters.is_none(),
        clusters: clusters.into_iter().flatten().map(ToString::to_string).collect(),
    }
}

pub(super) fn load_reservation(
    reserve: stored::Reserve,
) -> Result<(Namespace, Option<BTreeSet<ClusterId>>), Corrupt> {
    let clusters = reserve
        .clusters
        .iter()
        .map(|id| ClusterId::parse(id))
        .collect::<Result<_, _>>()?;
    Ok((
        Namespace::parse(&reserve.namespace)?,
        (!reserve.clear).then_some(clusters),
    ))
}

pub(super) fn load_trust_domain(text: &str) -> Result<TrustDomain, Corrupt> {
    TrustDomain::parse(text).map_err(|error| Corrupt::new("a trust domain", error))
}

pub(super) fn load_fingerprint(field: &'static str, bytes: &[u8]) -> Result<Fingerprint, Corrupt> {
    Ok(Fingerprint::from_bytes(array(field, bytes)?))
}

impl From<&RootRecord> for stored::Root {
    fn from(root: &RootRecord) -> Self {
        let key = Bytes::copy_from_slice(root.key.as_bytes());
        Self {
            certificate: root.certificate.clone(),
            key,
            wrapped: root.wrapped.clone(),
        }
    }
}

impl TryFrom<stored::Root> for RootRecord {
    type Error = Corrupt;
    fn try_from(root: stored::Root) -> Result<Self, Corrupt> {
        let key = load_fingerprint("key", &root.key)?;
        Ok(Self {
            certificate: root.certificate,
            key,
            wrapped: root.wrapped,
        })
    }
}

impl From<&Issued> for stored::Issued {
    fn from(issued: &Issued) -> Self {
        Self {
            certificate: issued.certificate.clone(),
            key: Bytes::copy_from_slice(issued.key.as_bytes()),
            root: Bytes::copy_from_slice(issued.root.as_bytes()),
            not_after_ms: issued.not_after_ms,
        }
    }
}

impl TryFrom<stored::Issued> for Issued {
    type Error = Corrupt;
    fn try_from(issued: stored::Issued) -> Result<Self, Corrupt> {
        Ok(Self {
            certificate: issued.certificate,
            key: load_fingerprint("key", &issued.key)?,
            root: load_fingerprint("root", &issued.root)?,
            not_after_ms: issued.not_after_ms,
        })
    }
}

impl From<&Description> for stored::Description {
    fn from(description: &Description) -> Self {
        Self {
            locality: Some((&description.locality).into()),
            network: description.network.to_string(),
            gateways: description.gateways.iter().map(ToString::to_string).collect(),
            unix_ms: description.unix_ms,
        }
    }
}

impl TryFrom<stored::Description> for Description {
    type Error = Corrupt;
    fn try_from(description: stored::Description) -> Result<Self, Corrupt> {
        let parse = |text: &String| {
            text.parse()
                .map_err(|_| Corrupt::new("a gateway", format!("'{text}' is no IP:PORT")))
        };
        Ok(Self {
            locality: Locality::try_from(&description.locality.unwrap_or_default())?,
            network: Label::parse(&description.network)?,
            gateways: description.gateways.iter().map(parse).collect::<Result<_, _>>()?,
            unix_ms: description.unix_ms,
        })
    }
}
