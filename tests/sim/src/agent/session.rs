//! The session of an agent with one broker after the other.

use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use rand::Rng;
use rand::seq::SliceRandom;
use tombolo_discovery::publish::{Grant, Progress, request};
use tombolo_discovery::watched::Taken;
use tombolo_wire::v1;
use tombolo_wire::v1::publish_reply::Reply;
use tombolo_wire::v1::publish_request::Request;

use super::{Agent, OPEN_TIME, PING_EVERY, RENEWALS_PER_TERM, RETRY_MS, Session, gateways, rank_by_arrival};
use crate::mutant::Mutant;
use crate::net::{Frame, Node};
use crate::scene::{Fact, Scene};

impl Agent {
    pub(super) fn keep_session(&mut self, scene: &mut Scene) {
        let (here, joined) = (self.node(), self.joined);
        let Some(process) = &mut self.process else { return };
        let Some(session) = &mut process.session else {
            if process.retry_at <= scene.now && joined != 0 {
                self.connect(scene);
            }
            return;
        };
        let silent = scene.now.saturating_sub(session.heard);
        let slow = session.renew_at.is_none()
            && !process.superseded
            && scene.now.saturating_sub(session.opened) >= OPEN_TIME;
        if silent >= PING_EVERY * 2 || slow || !scene.net.is_open(session.conn) {
            self.lose("silent or slow", scene);
        } else if session.ping_at <= scene.now {
            session.ping_at = scene.now + PING_EVERY;
            scene.net.say(scene.now, session.conn, here, Frame::Ping(true));
        }
    }

    pub(super) fn connect(&mut self, scene: &mut Scene) {
        let here = self.node();
        let mut order: Vec<u64> = (1..=self.brokers).collect();
        order.shuffle(&mut scene.rng);
        let unix_ms = scene.wall_ms(self.skew_ms);
        let Some(process) = &mut self.process else { return };
        let conn = scene.net.connect(here, Node::Broker(order[0]));
        let (incarnation, revision) = process.reconciler.watch().resume_from();
        let watch = v1::WatchRequest {
            protocol_version: 1,
            incarnation,
            revision,
        };
        scene
            .net
            .say(scene.now, conn, here, Frame::Watch(watch.encode_to_vec()));
        if !process.superseded {
            process.publisher.open();
            let open = v1::PublishOpen {
                protocol_version: 1,
                locality: Some((&self.site.locality).into()),
                network: self.site.network.to_string(),
                gateways: gateways(self.number).iter().map(ToString::to_string).collect(),
                epoch: process.publisher.epoch(),
                unix_ms,
            };
            scene.net.say(
                scene.now,
                conn,
                here,
                Frame::Publish(request(Request::Open(open)).encode_to_vec()),
            );
        }
        let now = scene.now;
        process.session = Some(Session {
            conn,
            opened: now,
            heard: now,
            ping_at: now + PING_EVERY,
            renew_at: None,
            every: now,
        });
    }

    pub(super) fn lose(&mut self, why: &str, scene: &mut Scene) {
        let here = self.node();
        let Some(process) = &mut self.process else { return };
        let Some(session) = process.session.take() else {
            return;
        };
        scene.note(format_args!("agent {} loses its broker: {why}", self.number));
        scene
            .net
            .say(scene.now, session.conn, here, Frame::End { superseded: false });
        process.publisher.lost();
        process.reconciler.watch_lost();
        process.retry_at = scene.now + Duration::from_millis(scene.rng.random_range(20..RETRY_MS));
    }

    pub(super) fn publish(&mut self, scene: &mut Scene) {
        let here = self.node();
        let silenced = self.is_silenced(scene);
        let unix_ms = scene.wall_ms(self.skew_ms);
        let Some(process) = &mut self.process else { return };
        let Some(session) = process
            .session
            .as_mut()
            .filter(|session| session.renew_at.is_some())
        else {
            return;
        };
        while let Some(message) = process.publisher.next_message() {
            scene.net.say(
                scene.now,
                session.conn,
                here,
                Frame::Publish(message.encode_to_vec()),
            );
        }
        if session.renew_at.is_some_and(|at| at <= scene.now) {
            session.renew_at = Some(scene.now + session.every);
            if !silenced {
                let renew = request(Request::RenewLease(v1::PublishRenewLease { unix_ms }));
                scene.net.say(
                    scene.now,
                    session.conn,
                    here,
                    Frame::Publish(renew.encode_to_vec()),
                );
            }
        }
    }

    /// A frame of the session arrives.
    pub fn frame(&mut self, conn: u64, frame: Frame, scene: &mut Scene) {
        let here = self.node();
        let Some(process) = &mut self.process else { return };
        let Some(session) = process.session.as_mut().filter(|session| session.conn == conn) else {
            return;
        };
        session.heard = scene.now;
        match frame {
            Frame::Published(bytes) => {
                let Ok(v1::PublishReply { reply: Some(reply) }) = v1::PublishReply::decode(bytes.as_slice())
                else {
                    return;
                };
                self.take_reply(reply, scene);
            }
            Frame::Watched(bytes) => {
                let Ok(mut event) = v1::WatchEvent::decode(bytes.as_slice()) else {
                    return;
                };
                if scene.has(Mutant::MergeByArrival) {
                    rank_by_arrival(&mut event, &mut process.arrivals);
                }
                let number = self.number;
                match process.reconciler.take_watch_event(event, |_| {}) {
                    Ok(Taken::Batch { .. } | Taken::Part) => {}
                    Err(error) => {
                        scene.note(format_args!("agent {number}: {error}"));
                        self.lose("its watch cannot be followed", scene);
                    }
                }
            }
            Frame::Ping(true) => scene.net.say(scene.now, conn, here, Frame::Ping(false)),
            Frame::End { superseded } => {
                if superseded {
                    scene.note(format_args!("agent {} is superseded", self.number));
                    process.superseded = true;
                    process.publisher.forget_epoch();
                }
                self.lose("the broker ended the stream", scene);
            }
            Frame::Ping(false) | Frame::Publish(_) | Frame::Watch(_) => {}
        }
    }

    pub(super) fn take_reply(&mut self, reply: Reply, scene: &mut Scene) {
        let Some(process) = &mut self.process else { return };
        let Some(session) = &mut process.session else {
            return;
        };
        match reply {
            Reply::Granted(granted) => {
                session.renew_at = Some(scene.now);
                session.every = Duration::from_millis(granted.lease_term_ms) / RENEWALS_PER_TERM;
                let v1::PublishGranted {
                    epoch,
                    lease_term_ms,
                    incarnation,
                } = granted;
                process.publisher.granted(Grant {
                    epoch,
                    lease_term_ms,
                    incarnation,
                });
                scene.note(format_args!(
                    "agent {} publishes under epoch {epoch}",
                    self.number
                ));
            }
            Reply::Accepted(accepted) => process.publisher.accepted(accepted.sequence, accepted.log_index),
            Reply::Rejected(rejected) => {
                process.publisher.rejected(rejected.sequence, &rejected.reason);
            }
            Reply::LeaseRenewed(_) => {}
        }
        for (key, export) in &process.offered {
            if let Some(Progress::Accepted { log_index }) = process.publisher.progress(key)
                && process.acknowledged.insert(key.clone(), *log_index) != Some(*log_index)
            {
                let (cluster, key, export) = (self.number, key.clone(), Arc::clone(export));
                scene.facts.push(Fact::Acknowledged {
                    cluster,
                    key,
                    export,
                    index: *log_index,
                });
            }
        }
    }
}
