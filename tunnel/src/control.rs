//! The control stream of a tunnel, as a state machine: hello first, then pings, pongs and go-away.
//!
//! ```text
//! dialler                                   listener
//!   ── Hello{versions, cluster, role} ──▶
//!   ◀── Hello{versions, cluster, role} ──            now both know the common version: the tunnel is open
//!   ◀── Ping{n} / Pong{n} ──▶                        both ping
//!   ◀── GoAway{reason, deadline} ──▶                 no new flows; those that run may end until the deadline
//!   ◀── GoAway{reason, 0} ──▶                        the answer: no flow of yours is left here, close when you like
//! ```
//! Two sides must agree that nothing is under way before one closes, since a side whose flows have ended may still have
//! their last bytes on the way: hence the second go-away, with deadline 0.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;
use tombolo_clusterset::{ClusterId, NameError};
use tombolo_trust::{Role, SpiffeId, Subject};
use tombolo_wire::v1;
use tombolo_wire::version::{self, NoCommonVersion};

/// Pings whose answer is remembered. At ten per second it covers an outage of six seconds, longer than any link takes to
/// be called Down; older ones are forgotten, and their late pongs ignored.
pub const PINGS_OUTSTANDING_MAX: usize = 64;

/// Longest reason of a go-away that is kept, bytes: one line for a log.
pub const REASON_MAX: usize = 256;

/// Longest grace that a peer may ask for: a tunnel lives a day at most (DESIGN §4.11).
pub const GRACE_MAX: Duration = Duration::from_secs(24 * 3600);

/// What a peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A cluster's gateway.
    Gateway,
    /// A sidecar.
    Sidecar,
}

impl Kind {
    /// The word of the protocol.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Sidecar => "sidecar",
        }
    }

    /// The kind that the word names.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Gateway, Self::Sidecar]
            .into_iter()
            .find(|kind| kind.as_str() == text)
    }

    /// The most that the holder of this certificate may say it is: only a gateway's certificate makes a gateway.
    #[must_use]
    pub fn certified(peer: &SpiffeId) -> Self {
        match peer.subject() {
            Subject::Role {
                role: Role::Gateway, ..
            } => Self::Gateway,
            _ => Self::Sidecar,
        }
    }
}

/// What a side tells of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Gateway or sidecar.
    pub kind: Kind,
    /// Whether it takes flows that the other side opens. The dialler of a tunnel may refuse them; a listener takes them.
    pub reversible: bool,
}

/// What the shell is to do. In order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send this on the control stream.
    Send(v1::Control),
    /// The tunnel is open.
    Established {
        /// The version both speak.
        version: u32,
        /// What the peer says of itself.
        peer: Hello,
    },
    /// An answer to a ping.
    Pong {
        /// Round trip time of this ping.
        rtt: Duration,
    },
    /// The peer wants no new flows.
    GoAway {
        /// Why.
        reason: String,
        /// How long flows that run may take.
        grace: Duration,
    },
    /// The peer has no flow left, after our go-away.
    PeerIdle,
}

/// Why a control stream cannot go on: close the tunnel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Something else came before the hello.
    #[error("the peer spoke before its hello; it does not speak this protocol")]
    HelloMissing,
    /// A second hello.
    #[error("the peer said hello twice")]
    HelloTwice,
    /// A message that holds nothing known.
    #[error("a control message is empty, or of a later version than was agreed")]
    Unknown,
    /// No common version.
    #[error(transparent)]
    Version(#[from] NoCommonVersion),
    /// The hello names no cluster.
    #[error("hello: {0}")]
    Cluster(#[from] NameError),
    /// The hello names another cluster than the certificate.
    #[error("hello names cluster {claimed}, the certificate says {certified}")]
    OtherCluster {
        /// Cluster in the hello.
        claimed: ClusterId,
        /// Cluster of the certificate.
        certified: ClusterId,
    },
    /// The hello names no known role.
    #[error("hello: role '{0}' is neither gateway nor sidecar")]
    Role(String),
    /// The hello claims what only a gateway's certificate gives: to be the gateway, or to take flows.
    #[error("hello claims role '{role}'{taking}, the certificate is not that of a gateway", role = .kind.as_str(), taking = if *.reversible { " and takes flows" } else { "" })]
    NotCertified {
        /// Role in the hello.
        kind: Kind,
        /// Whether it offers to take flows.
        reversible: bool,
    },
}

/// One side of a control stream.
///
/// Order of calls: [`Control::new`], whose message is sent first; then [`Control::handle`] for each message that arrives,
/// and at any time after [`Action::Established`] the commands [`Control::ping`] and [`Control::go_away`].
#[derive(Debug)]
pub struct Control {
    /// Cluster of the peer's certificate.
    peer_cluster: ClusterId,
    /// What the peer's certificate lets it be.
    certified: Kind,
    greeted: bool,
    went_away: bool,
    next_sequence: u64,
    /// Pings without an answer, oldest first.
    outstanding: VecDeque<(u64, Instant)>,
}

impl Control {
    /// A control stream with a peer that its certificate places in `peer_cluster` and lets be `certified`, and the hello to
    /// send.
    #[must_use]
    pub fn new(own: &Hello, peer_cluster: ClusterId, certified: Kind) -> (Self, v1::Control) {
        let hello = v1::Hello {
            version_min: version::PROTOCOL_VERSION_MIN,
            version_max: version::PROTOCOL_VERSION,
            cluster: own.cluster.to_string(),
            role: own.kind.as_str().to_owned(),
            reversible: own.reversible,
        };
        let control = Self {
            peer_cluster,
            certified,
            greeted: false,
            went_away: false,
            next_sequence: 1,
            outstanding: VecDeque::new(),
        };
        (control, message(v1::control::Message::Hello(hello)))
    }

    /// Takes a message of the peer.
    ///
    /// # Errors
    /// [`ControlError`]: close the tunnel with it as the reason.
    pub fn handle(&mut self, now: Instant, received: v1::Control) -> Result<Option<Action>, ControlError> {
        let received = received.message.ok_or(ControlError::Unknown)?;
        match received {
            v1::control::Message::Hello(hello) => self.hello(&hello).map(Some),
            _ if !self.greeted => Err(ControlError::HelloMissing),
            v1::control::Message::Ping(ping) => {
                let pong = v1::Pong {
                    sequence: ping.sequence,
                };
                Ok(Some(Action::Send(message(v1::control::Message::Pong(pong)))))
            }
            v1::control::Message::Pong(pong) => Ok(self.pong(now, pong.sequence)),
            v1::control::Message::GoAway(go_away) => Ok(Some(self.peer_goes_away(go_away))),
        }
    }

    /// A ping to send, remembered until its answer.
    pub fn ping(&mut self, now: Instant) -> v1::Control {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        if self.outstanding.len() == PINGS_OUTSTANDING_MAX {
            self.outstanding.pop_front();
        }
        self.outstanding.push_back((sequence, now));
        message(v1::control::Message::Ping(v1::Ping { sequence }))
    }

    /// A go-away to send: no new flows; those that run may take `grace`. Zero answers the peer's: none of its flows is left.
    pub fn go_away(&mut self, reason: &str, grace: Duration) -> v1::Control {
        self.went_away |= !grace.is_zero();
        let deadline_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        message(v1::control::Message::GoAway(v1::GoAway {
            reason: cut(reason),
            deadline_ms,
        }))
    }

    fn hello(&mut self, hello: &v1::Hello) -> Result<Action, ControlError> {
        if self.greeted {
            return Err(ControlError::HelloTwice);
        }
        let version = version::negotiate(hello.version_min, hello.version_max)?;
        let cluster = ClusterId::parse(&hello.cluster)?;
        if cluster != self.peer_cluster {
            let certified = self.peer_cluster.clone();
            return Err(ControlError::OtherCluster {
                claimed: cluster,
                certified,
            });
        }
        let kind = Kind::parse(&hello.role).ok_or_else(|| ControlError::Role(cut(&hello.role)))?;
        if self.certified != Kind::Gateway && (kind == Kind::Gateway || hello.reversible) {
            let reversible = hello.reversible;
            return Err(ControlError::NotCertified { kind, reversible });
        }
        self.greeted = true;
        Ok(Action::Established {
            version,
            peer: Hello {
                cluster,
                kind,
                reversible: hello.reversible,
            },
        })
    }

    /// Pongs of pings that were forgotten, or never sent, say nothing.
    fn pong(&mut self, now: Instant, sequence: u64) -> Option<Action> {
        let at = self.outstanding.iter().position(|(sent, _)| *sent == sequence)?;
        let (_, sent_at) = self.outstanding.remove(at)?;
        Some(Action::Pong {
            rtt: now.saturating_duration_since(sent_at),
        })
    }

    fn peer_goes_away(&self, go_away: v1::GoAway) -> Action {
        if go_away.deadline_ms == 0 && self.went_away {
            return Action::PeerIdle;
        }
        let grace = Duration::from_millis(go_away.deadline_ms).min(GRACE_MAX);
        Action::GoAway {
            reason: cut(&go_away.reason),
            grace,
        }
    }
}

fn message(message: v1::control::Message) -> v1::Control {
    v1::Control {
        message: Some(message),
    }
}

/// The head of a text, at most [`REASON_MAX`] bytes.
fn cut(text: &str) -> String {
    let end = (0..=text.len().min(REASON_MAX))
        .rev()
        .find(|end| text.is_char_boundary(*end));
    text[..end.unwrap_or(0)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(cluster: &str) -> Hello {
        Hello {
            cluster: ClusterId::parse(cluster).unwrap(),
            kind: Kind::Gateway,
            reversible: true,
        }
    }

    /// Both sides, greeted.
    fn greeted() -> (Control, Control) {
        let (mut west, from_west) = Control::new(&own("west"), own("east").cluster, Kind::Gateway);
        let (mut east, from_east) = Control::new(&own("east"), own("west").cluster, Kind::Gateway);
        let now = Instant::now();
        let expected = |peer| {
            Ok(Some(Action::Established {
                version: version::PROTOCOL_VERSION,
                peer,
            }))
        };
        assert_eq!(east.handle(now, from_west), expected(own("west")));
        assert_eq!(west.handle(now, from_east), expected(own("east")));
        (west, east)
    }

    #[test]
    fn a_hello_is_checked() {
        let good = v1::Hello {
            version_min: 1,
            version_max: 1,
            cluster: "east".into(),
            role: "gateway".into(),
            reversible: true,
        };
        type Break = fn(&mut v1::Hello);
        let table: [(Break, &str); 5] = [
            (|h| h.version_min = 7, "versions"),
            (|h| h.version_max = 0, "versions"),
            (|h| h.cluster = "north".into(), "certificate says east"),
            (|h| h.cluster = "East".into(), "cluster id"),
            (|h| h.role = "broker".into(), "neither gateway nor sidecar"),
        ];
        for (spoil, expected) in table {
            let mut hello = good.clone();
            spoil(&mut hello);
            let (mut control, _) = Control::new(&own("west"), own("east").cluster, Kind::Gateway);
            let error = control
                .handle(Instant::now(), message(v1::control::Message::Hello(hello)))
                .unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn only_a_certificate_makes_a_gateway() {
        use Kind::{Gateway, Sidecar};
        let table = [
            (Gateway, Gateway, true, true),
            (Gateway, Sidecar, false, true),
            (Sidecar, Sidecar, false, true),
            (Sidecar, Sidecar, true, false),
            (Sidecar, Gateway, false, false),
            (Sidecar, Gateway, true, false),
        ];
        for (certified, kind, reversible, expected) in table {
            let cluster = own("east").cluster;
            let claimed = Hello {
                cluster: cluster.clone(),
                kind,
                reversible,
            };
            let (_, hello) = Control::new(&claimed, own("west").cluster, Gateway);
            let (mut control, _) = Control::new(&own("west"), cluster, certified);
            match control.handle(Instant::now(), hello) {
                Ok(Some(Action::Established { peer, .. })) if expected => assert_eq!(peer, claimed),
                Err(error @ ControlError::NotCertified { .. }) if !expected => {
                    assert!(error.to_string().contains("not that of a gateway"), "{error}");
                }
                other => panic!("{certified:?} {claimed:?}: {other:?}"),
            }
        }
        for (path, kind) in [
            ("role/gateway", Gateway),
            ("role/sidecar", Sidecar),
            ("role/agent", Sidecar),
            ("ns/shop/sa/gateway", Sidecar),
        ] {
            let id = SpiffeId::parse(&format!("spiffe://demo-1/cluster/east/{path}")).unwrap();
            assert_eq!(Kind::certified(&id), kind, "{id}");
        }
    }

    #[test]
    fn nothing_comes_before_the_hello_and_only_one_comes() {
        let now = Instant::now();
        let (mut west, mut east) = greeted();
        let (mut fresh, hello) = Control::new(&own("west"), own("east").cluster, Kind::Gateway);
        assert_eq!(fresh.handle(now, east.ping(now)), Err(ControlError::HelloMissing));
        assert_eq!(
            fresh.handle(now, east.go_away("", Duration::ZERO)),
            Err(ControlError::HelloMissing)
        );
        assert_eq!(west.handle(now, hello), Err(ControlError::HelloTwice));
        assert_eq!(
            west.handle(now, v1::Control { message: None }),
            Err(ControlError::Unknown)
        );
    }

    #[test]
    fn a_pong_measures_its_own_ping_once() {
        let (mut west, mut east) = greeted();
        let start = Instant::now();
        let pings: Vec<_> = (0..3)
            .map(|n| west.ping(start + Duration::from_millis(n * 100)))
            .collect();
        let later = start + Duration::from_millis(250);
        let mut pongs = Vec::new();
        for ping in pings {
            match east.handle(start, ping) {
                Ok(Some(Action::Send(pong))) => pongs.push(pong),
                other => panic!("{other:?}"),
            }
        }
        for (pong, rtt) in pongs.iter().zip([250, 150, 50]).rev() {
            let expected = Action::Pong {
                rtt: Duration::from_millis(rtt),
            };
            assert_eq!(west.handle(later, pong.clone()), Ok(Some(expected)));
            assert_eq!(
                west.handle(later, pong.clone()),
                Ok(None),
                "a second one says nothing"
            );
        }
    }

    #[test]
    fn unanswered_pings_are_bounded() {
        let (mut west, _) = greeted();
        for _ in 0..1000 {
            west.ping(Instant::now());
        }
        assert_eq!(west.outstanding.len(), PINGS_OUTSTANDING_MAX);
    }

    #[test]
    fn go_away_is_answered_with_zero() {
        let now = Instant::now();
        let (mut west, mut east) = greeted();
        let grace = Duration::from_secs(30);
        let asked = Action::GoAway {
            reason: "restart".into(),
            grace,
        };
        assert_eq!(east.handle(now, west.go_away("restart", grace)), Ok(Some(asked)));
        assert_eq!(
            west.handle(now, east.go_away("idle", Duration::ZERO)),
            Ok(Some(Action::PeerIdle))
        );
        let unasked = Action::GoAway {
            reason: "now".into(),
            grace: Duration::ZERO,
        };
        let (mut west, mut east) = greeted();
        assert_eq!(
            west.handle(now, east.go_away("now", Duration::ZERO)),
            Ok(Some(unasked))
        );
    }
}
