//! One publish stream: an epoch, then a full state, then changes and signs of life.
//!
//! Order matters: two changes of one export must be decided as they were said. So a stream has one proposal under way at a
//! time, and whatever the agent says meanwhile goes into the next one together.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::FutureExt;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tombolo_clusterset::{ClusterId, Export, ServiceKey};
use tombolo_wire::convert::service_key;
use tombolo_wire::v1;
use tombolo_wire::v1::publish_reply::Reply as Body;
use tombolo_wire::v1::publish_request::Request as Ask;
use tonic::{Status, Streaming};

use super::{Broker, check_version, description, group_status, refused};
use crate::bounds::{EXPORT_MAX_BYTES, PUBLISH_BATCH_BYTES, PUBLISH_WINDOW, SERVICES_MAX};
use crate::command::{Command, Reply};
use crate::shell::metrics::Counted;
use crate::shell::raft::batcher::Decided;
use crate::state::{Class, Refusal, State, bounded_lagging};
use crate::stored::{Outcome, encoded_len};

type Replies = ReceiverStream<Result<v1::PublishReply, Status>>;

/// One thing the agent said.
enum Said {
    /// To be decided by the group.
    Proposal {
        /// None for what has no reply of its own.
        sequence: Option<u64>,
        /// Set for an export, which may be refused alone.
        key: Option<v1::ServiceKey>,
        command: Box<Command>,
    },
    /// Answered already.
    Answer(Body),
    /// A sign of life.
    Alive,
    /// Nothing to say about it.
    Noted,
}

impl Said {
    /// What it brings into the log, bytes: the end of a full state names what many requests before it said.
    fn bytes(&self, request: usize) -> usize {
        match self {
            Self::Proposal { command, .. } if matches!(**command, Command::Retain { .. }) => {
                encoded_len(command)
            }
            _ => request,
        }
    }
}

/// Starts the stream of `cluster`'s agent.
pub(super) fn publish(
    broker: Arc<Broker>,
    cluster: ClusterId,
    requests: Streaming<v1::PublishRequest>,
) -> Result<Replies, Status> {
    let permit = Arc::clone(&broker.publishers).try_acquire_owned().map_err(|_| {
        Status::resource_exhausted(
            "this broker serves as many publish streams as it may; publish to another broker",
        )
    })?;
    let (replies, receiver) = mpsc::channel(PUBLISH_WINDOW);
    tokio::spawn(async move {
        let _permit = permit;
        let _counted = Counted::new(&broker.metrics.publishers);
        let shutdown = broker.shutdown.clone();
        let ended = tokio::select! {
            () = shutdown.drain() => Err(Status::unavailable("this broker is stopping; publish to another")),
            () = replies.closed() => return,
            ended = serve(broker, cluster, requests, &replies) => ended,
        };
        if let Err(status) = ended {
            // An agent that is gone needs no farewell.
            let _ = replies.try_send(Err(status));
        }
    });
    Ok(ReceiverStream::new(receiver))
}

async fn serve(
    broker: Arc<Broker>,
    cluster: ClusterId,
    mut requests: Streaming<v1::PublishRequest>,
    replies: &mpsc::Sender<Result<v1::PublishReply, Status>>,
) -> Result<(), Status> {
    let Some(Ask::Open(open)) = requests.message().await?.and_then(|request| request.request) else {
        return Err(Status::invalid_argument(
            "the first message of a publish stream must be `open`",
        ));
    };
    let mut stream = open_stream(broker, cluster, open, replies).await?;
    let mut applied = stream.broker.group.replica().applied();
    loop {
        let first = tokio::select! {
            request = requests.message() => match request? {
                Some(request) => request,
                None => return Ok(()),
            },
            changed = applied.changed() => {
                // The replica lives as long as this broker.
                if changed.is_err() { return Ok(()) }
                stream.check_standing()?;
                continue;
            }
        };
        let mut bytes = 0;
        let mut said = Vec::new();
        let mut next = first;
        loop {
            let request = next.encoded_len();
            let taken = stream.take(next)?;
            bytes += taken.bytes(request);
            said.push(taken);
            if said.len() >= PUBLISH_WINDOW || bytes >= PUBLISH_BATCH_BYTES {
                break;
            }
            // Only what has arrived: nothing lingers.
            let Some(arrived) = requests.message().now_or_never() else {
                break;
            };
            let Some(arrived) = arrived? else { break };
            next = arrived;
        }
        for reply in stream.decide(said).await? {
            send(replies, reply).await?;
        }
    }
}

async fn open_stream(
    broker: Arc<Broker>,
    cluster: ClusterId,
    open: v1::PublishOpen,
    replies: &mpsc::Sender<Result<v1::PublishReply, Status>>,
) -> Result<Stream, Status> {
    check_version(open.protocol_version)?;
    let description = description(
        open.locality.as_ref(),
        &open.network,
        &open.gateways,
        open.unix_ms,
    )?;
    let command = Command::OpenPublish {
        cluster: cluster.clone(),
        held: open.epoch,
        description,
    };
    let (reply, index) = broker.decide(command).await?;
    let Reply::Granted { epoch } = reply else {
        return Err(Status::internal(format!(
            "the leader answered {reply:?} to an open; upgrade the older broker"
        )));
    };
    // The grant counts as a sign of life: the lease begins with it.
    broker.renewals.renew(&cluster).await;
    let (incarnation, joined) = broker.read(|state| {
        (
            state.incarnation,
            state.members.get(&cluster).map(|member| member.joined),
        )
    });
    let lease_term_ms = u64::try_from(broker.group.timing().lease_term.as_millis()).unwrap_or(u64::MAX);
    send(
        replies,
        Body::Granted(v1::PublishGranted {
            epoch,
            lease_term_ms,
            incarnation,
        }),
    )
    .await?;
    tracing::info!(%cluster, epoch, "publish stream opened");
    Ok(Stream {
        broker,
        cluster,
        epoch,
        opened: index,
        joined,
        full_state: None,
    })
}

async fn send(replies: &mpsc::Sender<Result<v1::PublishReply, Status>>, body: Body) -> Result<(), Status> {
    let reply = v1::PublishReply { reply: Some(body) };
    replies
        .send(Ok(reply))
        .await
        .map_err(|_| Status::cancelled("the agent went away"))
}

struct Stream {
    broker: Arc<Broker>,
    cluster: ClusterId,
    epoch: u64,
    /// Log index of the grant.
    opened: u64,
    joined: Option<u64>,
    /// Between `init` and `init_done`: what the full state has named.
    full_state: Option<BTreeSet<ServiceKey>>,
}

impl Stream {
    /// Whether the stream still speaks for its cluster.
    fn check_standing(&self) -> Result<(), Status> {
        let member = self.broker.read(|state| {
            state
                .members
                .get(&self.cluster)
                .map(|member| (member.joined, member.publish_epoch, member.resync))
        });
        let status = |refusal: Refusal| refused(refusal.class(), refusal.to_string());
        match member {
            Some((joined, current, _)) if Some(joined) == self.joined && current > self.epoch => {
                let (cluster, held) = (self.cluster.clone(), self.epoch);
                Err(status(Refusal::Superseded {
                    cluster,
                    held,
                    current,
                }))
            }
            Some((joined, _, resync)) if Some(joined) == self.joined => {
                if resync > self.opened {
                    return Err(Status::aborted(
                        "the reservations of namespaces changed; publish the full state again",
                    ));
                }
                Ok(())
            }
            _ => Err(status(Refusal::NotAMember(self.cluster.clone()))),
        }
    }

    /// What one request asks for.
    fn take(&mut self, request: v1::PublishRequest) -> Result<Said, Status> {
        let ask = request
            .request
            .ok_or_else(|| Status::invalid_argument("an empty publish request"))?;
        let (cluster, epoch) = (self.cluster.clone(), self.epoch);
        Ok(match ask {
            Ask::Open(_) => return Err(Status::invalid_argument("a publish stream is opened once")),
            Ask::Init(v1::PublishInit {}) => {
                self.full_state = Some(BTreeSet::new());
                Said::Noted
            }
            Ask::Upsert(upsert) => self.upsert(upsert),
            Ask::Delete(delete) => match service_key("key", delete.key.as_ref()) {
                Ok(key) => {
                    if let Some(named) = &mut self.full_state {
                        named.remove(&key);
                    }
                    let command = Box::new(Command::Delete { cluster, epoch, key });
                    Said::Proposal {
                        sequence: Some(delete.sequence),
                        key: None,
                        command,
                    }
                }
                Err(error) => self.reject(delete.sequence, delete.key, error.to_string()),
            },
            Ask::InitDone(done) => {
                let keys = self.full_state.take().ok_or_else(|| {
                    Status::invalid_argument("`init_done` without `init`: begin the full state with `init`")
                })?;
                let command = Box::new(Command::Retain { cluster, epoch, keys });
                Said::Proposal {
                    sequence: Some(done.sequence),
                    key: None,
                    command,
                }
            }
            Ask::RenewLease(v1::PublishRenewLease { .. }) => {
                self.check_standing()?;
                Said::Alive
            }
            Ask::TrustAck(ack) => {
                let command = Box::new(Command::TrustAck {
                    cluster,
                    epoch,
                    revision: ack.revision,
                    lagging: bounded_lagging(&ack.lagging).to_owned(),
                });
                Said::Proposal {
                    sequence: None,
                    key: None,
                    command,
                }
            }
        })
    }

    fn upsert(&mut self, upsert: v1::PublishUpsert) -> Said {
        let Some(offered) = upsert.export else {
            return self.reject(upsert.sequence, None, "field export: is missing".to_owned());
        };
        let key = offered.key.clone();
        // Whatever is wrong with the rest of it, its key alone keeps what stood before.
        let named = match service_key("key", key.as_ref()) {
            Ok(named) => named,
            Err(error) => return self.reject(upsert.sequence, key, error.to_string()),
        };
        if !self.name(&named) {
            let refusal = Refusal::TooManyServices(named);
            return self.reject(upsert.sequence, key, refusal.to_string());
        }
        let bytes = offered.encoded_len();
        if bytes > EXPORT_MAX_BYTES {
            let refusal = Refusal::ExportTooLarge { key: named, bytes };
            return self.reject(upsert.sequence, key, refusal.to_string());
        }
        let export = match Export::try_from(&offered) {
            Ok(export) => export,
            Err(error) => return self.reject(upsert.sequence, key, error.to_string()),
        };
        if export.cluster != self.cluster {
            let (found, publisher) = (export.cluster, self.cluster.clone());
            let refusal = Refusal::ForeignExport {
                key: export.key,
                found,
                publisher,
            };
            return self.reject(upsert.sequence, key, refusal.to_string());
        }
        let command = Box::new(Command::Upsert {
            epoch: self.epoch,
            export: Box::new(export),
        });
        Said::Proposal {
            sequence: Some(upsert.sequence),
            key,
            command,
        }
    }

    /// Keeps `key` through the end of the full state, also when its export is refused: a refused change leaves what
    /// stood before. False when the full state names more than there can be and `key` does not stand.
    fn name(&mut self, key: &ServiceKey) -> bool {
        let Some(named) = &mut self.full_state else {
            return true;
        };
        let has_room = named.len() < SERVICES_MAX || named.contains(key) || {
            let stands = |state: &State| state.export(key, &self.cluster).is_some();
            self.broker.read(stands)
        };
        if has_room {
            named.insert(key.clone());
        }
        has_room
    }

    /// One bad export is rejected; the others stand.
    fn reject(&self, sequence: u64, key: Option<v1::ServiceKey>, reason: String) -> Said {
        Said::Answer(self.rejected(sequence, key, reason))
    }

    fn rejected(&self, sequence: u64, key: Option<v1::ServiceKey>, reason: String) -> Body {
        self.broker.metrics.exports_refused.inc();
        tracing::warn!(cluster = %self.cluster, reason, "export refused");
        Body::Rejected(v1::PublishRejected {
            sequence,
            key,
            reason,
        })
    }

    /// Has the group decide, and answers in the order in which things were said.
    async fn decide(&self, said: Vec<Said>) -> Result<Vec<Body>, Status> {
        let commands: Vec<_> = said
            .iter()
            .filter_map(|said| match said {
                Said::Proposal { command, .. } => Some(command.as_ref().clone()),
                Said::Answer(_) | Said::Alive | Said::Noted => None,
            })
            .collect();
        let is_alive = said.iter().any(|said| matches!(said, Said::Alive));
        let heard = is_alive && self.broker.renewals.renew(&self.cluster).await;
        let decided = match commands.is_empty() {
            true => Decided {
                outcomes: Vec::new(),
                index: 0,
            },
            false => self.broker.group.propose(commands).await.map_err(group_status)?,
        };
        let mut outcomes = decided.outcomes.into_iter();
        let mut replies = Vec::new();
        for said in said {
            let reply = match said {
                Said::Answer(body) => Some(body),
                Said::Noted => None,
                // An unheard sign of life gets no reply: the agent's next one is the retry.
                Said::Alive => heard.then(|| {
                    Body::LeaseRenewed(v1::PublishLeaseRenewed {
                        broker_unix_ms: self.broker.unix_ms(),
                    })
                }),
                Said::Proposal { sequence, key, .. } => match outcomes.next() {
                    Some(outcome) => self.reply(sequence, key, outcome, decided.index)?,
                    None => {
                        return Err(Status::internal(
                            "the leader answered too little; upgrade the older broker",
                        ));
                    }
                },
            };
            replies.extend(reply);
        }
        Ok(replies)
    }

    fn reply(
        &self,
        sequence: Option<u64>,
        key: Option<v1::ServiceKey>,
        outcome: Outcome,
        log_index: u64,
    ) -> Result<Option<Body>, Status> {
        match (outcome, sequence, key) {
            (Outcome::Done(_), sequence, _) => {
                Ok(sequence.map(|sequence| Body::Accepted(v1::PublishAccepted { sequence, log_index })))
            }
            // The export alone is refused, unless the stream as a whole has lost its standing.
            (Outcome::Refused { class, message }, Some(sequence), Some(key))
                if class != Class::Precondition =>
            {
                self.check_standing()?;
                Ok(Some(self.rejected(sequence, Some(key), message)))
            }
            (Outcome::Refused { class, message }, _, _) => Err(refused(class, message)),
        }
    }
}
