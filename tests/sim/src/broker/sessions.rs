//! The streams of agents at a broker.

use std::time::Duration;

use prost::Message as _;
use tombolo_broker::command::Command;
use tombolo_clusterset::ClusterId;
use tombolo_wire::v1;

use super::{BEAT, Broker, Origin, PING_AFTER, Proposal, Session};
use crate::mutant::Mutant;
use crate::net::{Frame, Node};
use crate::publishing::{Ended, Stream};
use crate::scene::Scene;
use crate::watching::{Watcher, missed};

impl Broker {
    /// A frame of a stream arrives. `joined`: the membership that the agent's certificate is of.
    pub fn frame(
        &mut self,
        conn: u64,
        agent: Node,
        (cluster, joined): (ClusterId, u64),
        frame: Frame,
        scene: &mut Scene,
    ) {
        let is_member = self
            .state
            .members
            .get(&cluster)
            .is_some_and(|member| member.joined == joined);
        if !self.sessions.contains_key(&conn) {
            if !is_member {
                scene
                    .net
                    .say(scene.now, conn, self.node(), Frame::End { superseded: false });
                return;
            }
            let stream = Stream::new(cluster.clone(), joined);
            let session = Session {
                agent,
                cluster: cluster.clone(),
                joined,
                stream,
                proposal: None,
                watcher: None,
                told: (false, Duration::ZERO),
                heard: scene.now,
                pinged: false,
            };
            self.sessions.insert(conn, session);
        }
        let Some(session) = self.sessions.get_mut(&conn) else {
            return;
        };
        (session.heard, session.pinged) = (scene.now, false);
        let taken = match frame {
            Frame::Publish(bytes) => v1::PublishRequest::decode(bytes.as_slice())
                .map_err(|_| Ended { superseded: false })
                .and_then(|request| session.stream.take(request)),
            Frame::Watch(bytes) => {
                if let Ok(request) = v1::WatchRequest::decode(bytes.as_slice()) {
                    session.watcher = Some(Watcher {
                        at: (request.incarnation, request.revision),
                        joined,
                    });
                    session.told.1 = Duration::ZERO;
                }
                Ok(())
            }
            Frame::Ping(true) => {
                scene
                    .net
                    .say(scene.now, conn, Node::Broker(self.id), Frame::Ping(false));
                Ok(())
            }
            Frame::End { .. } => {
                self.forget(conn);
                return;
            }
            Frame::Ping(false) | Frame::Published(_) | Frame::Watched(_) => Ok(()),
        };
        if let Err(ended) = taken {
            self.end(conn, ended, scene);
        }
    }

    pub(super) fn tend_sessions(&mut self, scene: &mut Scene) {
        let conns: Vec<u64> = self.sessions.keys().copied().collect();
        for conn in conns {
            if let Err(ended) = self.tend(conn, scene) {
                self.end(conn, ended, scene);
            }
        }
    }

    pub(super) fn tend(&mut self, conn: u64, scene: &mut Scene) -> Result<(), Ended> {
        let broken = Ended { superseded: false };
        let here = self.node();
        let is_leader_hasty = scene.has(Mutant::HastyLease) && self.raft.leads();
        let Some(session) = self.sessions.get_mut(&conn) else {
            return Ok(());
        };
        let silent = scene.now.saturating_sub(session.heard);
        if silent >= PING_AFTER * 2 || !scene.net.is_open(conn) {
            return Err(broken);
        }
        if silent >= PING_AFTER && !session.pinged {
            session.pinged = true;
            scene.net.say(scene.now, conn, here, Frame::Ping(true));
        }
        let is_member = self
            .state
            .members
            .get(&session.cluster)
            .is_some_and(|member| member.joined == session.joined);
        if !is_member {
            return Err(broken);
        }
        session.stream.check_standing(&self.state)?;
        if let Some(mut watcher) = session.watcher {
            let fresh = self.raft.is_fresh(scene.now);
            let news = watcher.at.1 != self.state.applied || session.told.0 != fresh;
            if news || session.told.1 <= scene.now {
                let unix_ms = scene.wall_ms(self.skew_ms);
                let expired = self
                    .leases
                    .as_ref()
                    .map(|table| table.expired(scene.instant()))
                    .unwrap_or_default();
                let hasty = expired.first().filter(|_| is_leader_hasty);
                let (frames, at) = missed(&self.state, &self.changes, watcher, (fresh, unix_ms), hasty);
                for frame in frames {
                    scene.net.say(scene.now, conn, here, frame);
                }
                watcher.at = at;
                session.watcher = Some(watcher);
                session.told = (fresh, scene.now + BEAT);
            }
        }
        if let Some((alive, commands)) = session.stream.next_proposal() {
            let cluster = session.cluster.clone();
            if alive {
                self.hear(cluster, scene);
            }
            self.propose_or_answer(conn, commands, scene);
        }
        Ok(())
    }

    pub(super) fn propose_or_answer(&mut self, conn: u64, commands: Vec<Command>, scene: &mut Scene) {
        let origin = Origin::Stream(conn);
        if commands.is_empty() {
            let now = scene.now;
            let proposal = Proposal {
                origin,
                commands,
                until: now,
                again_at: now,
                placed: None,
            };
            self.decided(proposal, Vec::new(), self.state.applied, scene);
        } else {
            self.propose(origin, commands, scene);
        }
    }

    pub(super) fn end(&mut self, conn: u64, Ended { superseded }: Ended, scene: &mut Scene) {
        if let Some(session) = self.sessions.get(&conn) {
            scene.note(format_args!(
                "broker {} ends the stream of {:?}, superseded: {superseded}",
                self.id, session.agent
            ));
        }
        scene
            .net
            .say(scene.now, conn, self.node(), Frame::End { superseded });
        self.forget(conn);
    }

    /// The stream is gone, and with it the attempts for it.
    pub(super) fn forget(&mut self, conn: u64) {
        self.sessions.remove(&conn);
        self.proposals
            .retain(|_, proposal| proposal.origin != Origin::Stream(conn));
    }
}
