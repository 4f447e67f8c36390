//! The messages themselves.

use bytes::Bytes;
use prost::{Message, Oneof};
use tombolo_wire::v1;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Batch {
    #[prost(uint32, tag = "1")]
    pub format: u32,
    #[prost(uint64, tag = "2")]
    pub unix_ms: u64,
    #[prost(message, repeated, tag = "3")]
    pub commands: Vec<Command>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Command {
    #[prost(
        oneof = "Body",
        tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23"
    )]
    pub body: Option<Body>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Body {
    #[prost(message, tag = "1")]
    Found(Found),
    #[prost(message, tag = "2")]
    CreateToken(CreateToken),
    #[prost(bytes = "bytes", tag = "3")]
    RevokeToken(Bytes),
    #[prost(message, tag = "4")]
    Join(Join),
    #[prost(message, tag = "5")]
    Renew(Renew),
    #[prost(string, tag = "6")]
    Leave(String),
    #[prost(string, tag = "7")]
    Evict(String),
    #[prost(message, tag = "8")]
    OpenPublish(OpenPublish),
    #[prost(message, tag = "9")]
    Upsert(Upsert),
    #[prost(message, tag = "10")]
    Delete(Delete),
    #[prost(message, tag = "11")]
    Retain(Retain),
    #[prost(message, tag = "12")]
    TrustAck(TrustAck),
    #[prost(string, tag = "13")]
    LoseLease(String),
    #[prost(string, tag = "14")]
    RegainLease(String),
    #[prost(message, tag = "15")]
    SetGrant(SetGrant),
    #[prost(message, tag = "16")]
    Reserve(Reserve),
    #[prost(message, tag = "17")]
    AddBroker(Broker),
    #[prost(uint64, tag = "18")]
    RemoveBroker(u64),
    #[prost(message, tag = "19")]
    Rotate(Rotate),
    #[prost(message, tag = "20")]
    StartDrill(StartDrill),
    #[prost(uint64, tag = "21")]
    StopDrill(u64),
    #[prost(message, tag = "22")]
    ReportDrill(ReportDrill),
    #[prost(message, tag = "23")]
    Tick(Tick),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Tick {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Root {
    #[prost(bytes = "bytes", tag = "1")]
    pub certificate: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub wrapped: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Found {
    #[prost(string, tag = "1")]
    pub clusterset: String,
    #[prost(string, tag = "2")]
    pub trust_domain: String,
    #[prost(message, optional, tag = "3")]
    pub root: Option<Root>,
    #[prost(message, optional, tag = "4")]
    pub broker: Option<Broker>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Broker {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(string, tag = "2")]
    pub api: String,
    #[prost(string, tag = "3")]
    pub peer: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct CreateToken {
    #[prost(bytes = "bytes", tag = "1")]
    pub id: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub hash: Bytes,
    #[prost(string, tag = "3")]
    pub cluster: String,
    #[prost(uint64, tag = "4")]
    pub ttl_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Issued {
    #[prost(bytes = "bytes", tag = "1")]
    pub certificate: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub root: Bytes,
    #[prost(uint64, tag = "4")]
    pub not_after_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Description {
    #[prost(message, optional, tag = "1")]
    pub locality: Option<v1::Locality>,
    #[prost(string, tag = "2")]
    pub network: String,
    #[prost(string, repeated, tag = "3")]
    pub gateways: Vec<String>,
    #[prost(uint64, tag = "4")]
    pub unix_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Join {
    #[prost(bytes = "bytes", tag = "1")]
    pub token: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub hash: Bytes,
    #[prost(string, tag = "3")]
    pub cluster: String,
    #[prost(message, optional, tag = "4")]
    pub description: Option<Description>,
    #[prost(bool, tag = "5")]
    pub replace: bool,
    #[prost(message, optional, tag = "6")]
    pub issued: Option<Issued>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Renew {
    #[prost(string, tag = "1")]
    pub cluster: String,
    #[prost(message, optional, tag = "2")]
    pub issued: Option<Issued>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct OpenPublish {
    #[prost(string, tag = "1")]
    pub cluster: String,
    #[prost(uint64, tag = "2")]
    pub held: u64,
    #[prost(message, optional, tag = "3")]
    pub description: Option<Description>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Upsert {
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    #[prost(message, optional, tag = "2")]
    pub export: Option<v1::Export>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Delete {
    #[prost(string, tag = "1")]
    pub cluster: String,
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    #[prost(message, optional, tag = "3")]
    pub key: Option<v1::ServiceKey>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Retain {
    #[prost(string, tag = "1")]
    pub cluster: String,
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    #[prost(message, repeated, tag = "3")]
    pub keys: Vec<v1::ServiceKey>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TrustAck {
    #[prost(string, tag = "1")]
    pub cluster: String,
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    #[prost(uint64, tag = "3")]
    pub revision: u64,
    #[prost(string, tag = "4")]
    pub lagging: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SetGrant {
    #[prost(message, optional, tag = "1")]
    pub key: Option<v1::ServiceKey>,
    #[prost(string, tag = "2")]
    pub exporter: String,
    #[prost(bool, tag = "3")]
    pub clear: bool,
    #[prost(string, repeated, tag = "4")]
    pub importers: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Reserve {
    #[prost(string, tag = "1")]
    pub namespace: String,
    #[prost(bool, tag = "2")]
    pub clear: bool,
    #[prost(string, repeated, tag = "3")]
    pub clusters: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Rotate {
    /// 1 stage, 2 switch, 3 drop.
    #[prost(uint32, tag = "1")]
    pub step: u32,
    #[prost(message, optional, tag = "2")]
    pub root: Option<Root>,
    #[prost(bool, tag = "3")]
    pub force: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct StartDrill {
    #[prost(message, optional, tag = "1")]
    pub drill: Option<v1::Drill>,
    #[prost(bool, tag = "2")]
    pub force: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ReportDrill {
    #[prost(string, tag = "1")]
    pub cluster: String,
    #[prost(uint64, tag = "2")]
    pub drill: u64,
    #[prost(bytes = "bytes", tag = "3")]
    pub report: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct State {
    #[prost(uint32, tag = "1")]
    pub format: u32,
    #[prost(uint64, tag = "2")]
    pub incarnation: u64,
    #[prost(string, tag = "3")]
    pub clusterset: String,
    #[prost(uint64, tag = "4")]
    pub clock_ms: u64,
    #[prost(uint64, tag = "5")]
    pub applied: u64,
    #[prost(uint64, tag = "6")]
    pub epoch_floor: u64,
    #[prost(message, repeated, tag = "7")]
    pub members: Vec<Member>,
    #[prost(message, repeated, tag = "8")]
    pub exports: Vec<v1::ExportRecord>,
    #[prost(message, repeated, tag = "9")]
    pub tokens: Vec<Token>,
    #[prost(message, repeated, tag = "10")]
    pub grants: Vec<SetGrant>,
    #[prost(message, repeated, tag = "11")]
    pub reservations: Vec<Reserve>,
    #[prost(message, optional, tag = "12")]
    pub trust: Option<Trust>,
    #[prost(message, optional, tag = "13")]
    pub running: Option<RunningDrill>,
    #[prost(message, repeated, tag = "14")]
    pub finished: Vec<FinishedDrill>,
    #[prost(message, repeated, tag = "15")]
    pub brokers: Vec<Broker>,
    #[prost(uint64, repeated, tag = "16")]
    pub retired: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Member {
    #[prost(message, optional, tag = "1")]
    pub view: Option<v1::ClusterView>,
    #[prost(uint64, tag = "2")]
    pub joined: u64,
    #[prost(uint64, tag = "3")]
    pub trust_acked: u64,
    #[prost(string, tag = "4")]
    pub lagging: String,
    #[prost(uint64, tag = "5")]
    pub publish_epoch: u64,
    #[prost(uint64, tag = "6")]
    pub resync: u64,
    /// Without certificates.
    #[prost(message, repeated, tag = "7")]
    pub keys: Vec<Issued>,
    #[prost(bytes = "bytes", tag = "8")]
    pub intermediate: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Token {
    #[prost(bytes = "bytes", tag = "1")]
    pub id: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub hash: Bytes,
    #[prost(string, tag = "3")]
    pub cluster: String,
    #[prost(uint64, tag = "4")]
    pub expires_ms: u64,
    /// Empty while it is unused.
    #[prost(bytes = "bytes", tag = "5")]
    pub used_by: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Trust {
    #[prost(string, tag = "1")]
    pub trust_domain: String,
    #[prost(message, optional, tag = "2")]
    pub signing: Option<Root>,
    /// 0 steady, 1 staged, 2 switched.
    #[prost(uint32, tag = "3")]
    pub stage: u32,
    #[prost(message, optional, tag = "4")]
    pub other: Option<Root>,
    #[prost(message, repeated, tag = "5")]
    pub denied: Vec<Denied>,
    #[prost(uint64, tag = "6")]
    pub revision: u64,
    #[prost(uint64, tag = "7")]
    pub stepped: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Denied {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(string, tag = "2")]
    pub cluster: String,
    #[prost(uint64, tag = "3")]
    pub until_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RunningDrill {
    #[prost(message, optional, tag = "1")]
    pub drill: Option<v1::Drill>,
    #[prost(uint64, tag = "2")]
    pub expires_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct FinishedDrill {
    #[prost(message, optional, tag = "1")]
    pub drill: Option<v1::Drill>,
    #[prost(bool, tag = "2")]
    pub reported: bool,
    #[prost(bytes = "bytes", tag = "3")]
    pub report: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Outcomes {
    #[prost(message, repeated, tag = "1")]
    pub outcomes: Vec<Outcome>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Outcome {
    #[prost(oneof = "OutcomeBody", tags = "1, 2, 3, 4, 5, 6")]
    pub body: Option<OutcomeBody>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum OutcomeBody {
    #[prost(message, tag = "1")]
    Done(Tick),
    #[prost(uint64, tag = "2")]
    Granted(u64),
    #[prost(bytes = "bytes", tag = "3")]
    Issued(Bytes),
    #[prost(uint32, tag = "4")]
    Removed(u32),
    #[prost(uint64, tag = "5")]
    DrillStarted(u64),
    #[prost(message, tag = "6")]
    Refused(Refused),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Refused {
    #[prost(uint32, tag = "1")]
    pub class: u32,
    #[prost(string, tag = "2")]
    pub message: String,
}
