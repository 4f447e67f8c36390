//! One publish stream at a broker: what is said waits its turn, one decision is in flight, replies come in order.
//!
//! Repeats `broker::shell::grpc::publish`, which is bound to tonic; the commands it makes go to the real state machine.

use std::collections::{BTreeSet, VecDeque};

use tombolo_broker::command::{Command, Description, Reply};
use tombolo_broker::state::{Class, State};
use tombolo_broker::stored::Outcome;
use tombolo_clusterset::{ClusterId, Export, Label, Locality, ServiceKey};
use tombolo_wire::convert::service_key;
use tombolo_wire::v1;
use tombolo_wire::v1::publish_reply::Reply as Body;
use tombolo_wire::v1::publish_request::Request as Ask;

/// Something that was said and is to be answered.
#[derive(Debug)]
pub enum Said {
    /// To be decided by the group.
    Proposal {
        sequence: Option<u64>,
        command: Box<Command>,
    },
    /// Answered at once.
    Answer(Body),
    /// A sign of life.
    Alive,
}

/// Why a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// A newer publisher took over.
    pub superseded: bool,
}

const BROKEN: Ended = Ended { superseded: false };

/// The stream of one agent.
#[derive(Debug)]
pub struct Stream {
    /// Whose.
    pub cluster: ClusterId,
    /// The membership that it publishes for.
    pub joined: u64,
    /// Granted epoch, and the log index of the grant; None until then.
    pub granted: Option<(u64, u64)>,
    /// What waits for a decision.
    pub queue: VecDeque<Said>,
    /// What the decision in flight is about.
    pub in_flight: Vec<Said>,
    full_state: Option<BTreeSet<ServiceKey>>,
}

impl Stream {
    /// A stream of an agent of the membership `joined`.
    #[must_use]
    pub fn new(cluster: ClusterId, joined: u64) -> Self {
        Self {
            cluster,
            joined,
            granted: None,
            queue: VecDeque::new(),
            in_flight: Vec::new(),
            full_state: None,
        }
    }

    /// Whether the stream still speaks for its cluster.
    ///
    /// # Errors
    /// [`Ended`] when it does not.
    pub fn check_standing(&self, state: &State) -> Result<(), Ended> {
        let member = state
            .members
            .get(&self.cluster)
            .filter(|member| member.joined == self.joined)
            .ok_or(BROKEN)?;
        match self.granted {
            Some((epoch, _)) if member.publish_epoch > epoch => Err(Ended { superseded: true }),
            Some((_, opened)) if member.resync > opened => Err(BROKEN),
            _ => Ok(()),
        }
    }

    /// Takes one request.
    ///
    /// # Errors
    /// [`Ended`] when it breaks the protocol.
    pub fn take(&mut self, request: v1::PublishRequest) -> Result<(), Ended> {
        let cluster = self.cluster.clone();
        let said = match (request.request.ok_or(BROKEN)?, self.granted) {
            (Ask::Open(open), None) => {
                let description = description(&open).ok_or(BROKEN)?;
                let command = Command::OpenPublish {
                    cluster,
                    held: open.epoch,
                    description,
                };
                Said::Proposal {
                    sequence: None,
                    command: Box::new(command),
                }
            }
            (Ask::Open(_), Some(_)) | (_, None) => return Err(BROKEN),
            (Ask::Init(_), _) => {
                self.full_state = Some(BTreeSet::new());
                return Ok(());
            }
            (Ask::Upsert(upsert), Some((epoch, _))) => {
                let sequence = upsert.sequence;
                match upsert.export.as_ref().map(Export::try_from) {
                    Some(Ok(export)) if export.cluster == self.cluster => {
                        if let Some(named) = &mut self.full_state {
                            named.insert(export.key.clone());
                        }
                        let command = Command::Upsert {
                            epoch,
                            export: Box::new(export),
                        };
                        Said::Proposal {
                            sequence: Some(sequence),
                            command: Box::new(command),
                        }
                    }
                    _ => Said::Answer(rejected(sequence, "it is no export of this cluster".to_owned())),
                }
            }
            (Ask::Delete(delete), Some((epoch, _))) => {
                let key = service_key("key", delete.key.as_ref()).map_err(|_| BROKEN)?;
                if let Some(named) = &mut self.full_state {
                    named.remove(&key);
                }
                let command = Command::Delete { cluster, epoch, key };
                Said::Proposal {
                    sequence: Some(delete.sequence),
                    command: Box::new(command),
                }
            }
            (Ask::InitDone(done), Some((epoch, _))) => {
                let keys = self.full_state.take().ok_or(BROKEN)?;
                let command = Command::Retain { cluster, epoch, keys };
                Said::Proposal {
                    sequence: Some(done.sequence),
                    command: Box::new(command),
                }
            }
            (Ask::RenewLease(_), _) => Said::Alive,
            (Ask::TrustAck(ack), Some((epoch, _))) => {
                let command = Command::TrustAck {
                    cluster,
                    epoch,
                    revision: ack.revision,
                    lagging: ack.lagging,
                };
                Said::Proposal {
                    sequence: None,
                    command: Box::new(command),
                }
            }
        };
        self.queue.push_back(said);
        Ok(())
    }

    /// All that waits, as one proposal; None while one is in flight or nothing waits. The first value says whether the
    /// cluster gave a sign of life.
    pub fn next_proposal(&mut self) -> Option<(bool, Vec<Command>)> {
        if !self.in_flight.is_empty() || self.queue.is_empty() {
            return None;
        }
        self.in_flight = self.queue.drain(..).collect();
        let alive = self.in_flight.iter().any(|said| matches!(said, Said::Alive));
        let commands = self.in_flight.iter().filter_map(|said| match said {
            Said::Proposal { command, .. } => Some(command.as_ref().clone()),
            Said::Answer(_) | Said::Alive => None,
        });
        Some((alive, commands.collect()))
    }

    /// The replies to what was in flight, after its decision at log index `index`.
    ///
    /// # Errors
    /// [`Ended`] when the stream as a whole was refused.
    pub fn replies(&mut self, outcomes: Vec<Outcome>, index: u64, unix_ms: u64) -> Result<Vec<Body>, Ended> {
        let mut outcomes = outcomes.into_iter();
        let mut replies = Vec::new();
        for said in std::mem::take(&mut self.in_flight) {
            match said {
                Said::Answer(body) => replies.push(body),
                Said::Alive => {
                    replies.push(Body::LeaseRenewed(v1::PublishLeaseRenewed {
                        broker_unix_ms: unix_ms,
                    }));
                }
                Said::Proposal { sequence, .. } => match (outcomes.next().ok_or(BROKEN)?, sequence) {
                    (Outcome::Done(Reply::Granted { epoch }), _) => self.granted = Some((epoch, index)),
                    (Outcome::Done(_), Some(sequence)) => {
                        replies.push(Body::Accepted(v1::PublishAccepted {
                            sequence,
                            log_index: index,
                        }));
                    }
                    (Outcome::Done(_), None) => {}
                    (
                        Outcome::Refused {
                            class: Class::Precondition,
                            message,
                        },
                        _,
                    ) => {
                        return Err(Ended {
                            superseded: message.contains("superseded"),
                        });
                    }
                    (Outcome::Refused { message, .. }, Some(sequence)) => {
                        replies.push(rejected(sequence, message))
                    }
                    (Outcome::Refused { .. }, None) => return Err(BROKEN),
                },
            }
        }
        Ok(replies)
    }
}

fn rejected(sequence: u64, reason: String) -> Body {
    Body::Rejected(v1::PublishRejected {
        sequence,
        key: None,
        reason,
    })
}

fn description(open: &v1::PublishOpen) -> Option<Description> {
    let gateways = open.gateways.iter().map(|gateway| gateway.parse().ok());
    Some(Description {
        locality: Locality::try_from(open.locality.as_ref()?).ok()?,
        network: Label::parse(&open.network).ok()?,
        gateways: gateways.collect::<Option<_>>()?,
        unix_ms: open.unix_ms,
    })
}
