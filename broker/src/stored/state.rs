//! The whole state, to bytes and back: snapshots and back-ups.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use tombolo_clusterset::{ClusterId, ClusterView, Drill, ExportRecord, Label};
use tombolo_trust::TokenId;

use super::command::{
    load_broker, load_fingerprint, load_grant, load_reservation, load_trust_domain, store_broker,
    store_grant, store_reservation,
};
use super::messages as stored;
use super::{Corrupt, FORMAT, array, required};
use crate::state::{
    Brokers, DeniedKey, Drills, FinishedDrill, IssuedKey, Member, RunningDrill, Stage, State, TokenRecord,
    Trust,
};

/// The bytes of a state.
#[must_use]
pub fn encode_state(state: &State) -> Vec<u8> {
    let State {
        incarnation,
        clusterset,
        clock_ms,
        applied,
        epoch_floor,
        members,
        exports: _,
        endpoints: _,
        tokens,
        grants,
        trust,
        drills,
        brokers,
    } = state;
    let finished = |drill: &FinishedDrill| stored::FinishedDrill {
        drill: Some((&drill.drill).into()),
        reported: drill.report.is_some(),
        report: drill.report.clone().unwrap_or_default(),
    };
    stored::State {
        format: FORMAT,
        incarnation: *incarnation,
        clusterset: clusterset.as_ref().map(ToString::to_string).unwrap_or_default(),
        clock_ms: *clock_ms,
        applied: *applied,
        epoch_floor: *epoch_floor,
        members: members.values().map(Into::into).collect(),
        exports: state.all_exports().map(|record| record.as_ref().into()).collect(),
        tokens: tokens.iter().map(|(id, token)| store_token(*id, token)).collect(),
        grants: grants
            .by_export
            .iter()
            .map(|((key, by), to)| store_grant(key, by, Some(to)))
            .collect(),
        reservations: grants
            .reserved
            .iter()
            .map(|(name, to)| store_reservation(name, Some(to)))
            .collect(),
        trust: trust.as_ref().map(Into::into),
        running: drills.running.as_ref().map(|running| stored::RunningDrill {
            drill: Some((&running.drill).into()),
            expires_ms: running.expires_ms,
        }),
        finished: drills.finished.iter().map(finished).collect(),
        brokers: brokers
            .active
            .iter()
            .map(|(id, addresses)| store_broker(*id, addresses))
            .collect(),
        retired: brokers.retired.iter().copied().collect(),
    }
    .encode_to_vec()
}

/// A state from its bytes.
///
/// # Errors
/// [`Corrupt`] when it is damaged or newer than this build.
pub fn decode_state(bytes: Bytes) -> Result<State, Corrupt> {
    let found = stored::State::decode(bytes)?;
    if found.format > FORMAT {
        return Err(Corrupt::Format {
            what: "a state",
            found: found.format,
        });
    }
    let mut state = State {
        incarnation: found.incarnation,
        clusterset: if found.clusterset.is_empty() {
            None
        } else {
            Some(Label::parse(&found.clusterset)?)
        },
        clock_ms: found.clock_ms,
        applied: found.applied,
        epoch_floor: found.epoch_floor,
        trust: found.trust.map(Trust::try_from).transpose()?,
        ..State::default()
    };
    for member in found.members {
        let member = Member::try_from(member)?;
        state.members.insert(member.view.id.clone(), member);
    }
    for record in &found.exports {
        let record = ExportRecord::try_from(record)?;
        let (key, cluster) = (record.export.key.clone(), record.export.cluster.clone());
        state
            .exports
            .entry(key)
            .or_default()
            .insert(cluster, Arc::new(record));
    }
    state.endpoints = state.count_endpoints();
    for token in found.tokens {
        let (id, token) = load_token(&token)?;
        state.tokens.insert(id, token);
    }
    for grant in found.grants {
        let (key, exporter, importers) = load_grant(grant)?;
        state
            .grants
            .by_export
            .insert((key, exporter), importers.unwrap_or_default());
    }
    for reservation in found.reservations {
        let (namespace, clusters) = load_reservation(reservation)?;
        state
            .grants
            .reserved
            .insert(namespace, clusters.unwrap_or_default());
    }
    state.drills = load_drills(found.running, found.finished)?;
    let active = found
        .brokers
        .into_iter()
        .map(load_broker)
        .collect::<Result<_, _>>()?;
    state.brokers = Brokers {
        active,
        retired: found.retired.into_iter().collect(),
    };
    Ok(state)
}

fn store_token(id: TokenId, token: &TokenRecord) -> stored::Token {
    stored::Token {
        id: Bytes::copy_from_slice(id.as_bytes()),
        hash: Bytes::copy_from_slice(&token.hash),
        cluster: token.cluster.to_string(),
        expires_ms: token.expires_ms,
        used_by: token
            .used_by
            .map(|key| Bytes::copy_from_slice(key.as_bytes()))
            .unwrap_or_default(),
    }
}

fn load_token(token: &stored::Token) -> Result<(TokenId, TokenRecord), Corrupt> {
    let used_by = if token.used_by.is_empty() {
        None
    } else {
        Some(load_fingerprint("used_by", &token.used_by)?)
    };
    let record = TokenRecord {
        cluster: ClusterId::parse(&token.cluster)?,
        hash: array("hash", &token.hash)?,
        expires_ms: token.expires_ms,
        used_by,
    };
    Ok((TokenId::from_bytes(array("id", &token.id)?), record))
}

fn load_drills(
    running: Option<stored::RunningDrill>,
    finished: Vec<stored::FinishedDrill>,
) -> Result<Drills, Corrupt> {
    let drill = |drill: Option<tombolo_wire::v1::Drill>| -> Result<Drill, Corrupt> {
        Ok(Drill::try_from(&required("drill", drill)?)?)
    };
    let running = running.map(|running| {
        Ok::<_, Corrupt>(RunningDrill {
            drill: drill(running.drill)?,
            expires_ms: running.expires_ms,
        })
    });
    let finished = finished.into_iter().map(|finished| {
        Ok::<_, Corrupt>(FinishedDrill {
            drill: drill(finished.drill)?,
            report: finished.reported.then_some(finished.report),
        })
    });
    Ok(Drills {
        running: running.transpose()?,
        finished: finished.collect::<Result<_, _>>()?,
    })
}

impl From<&Member> for stored::Member {
    fn from(member: &Member) -> Self {
        let keys = member.keys.iter().map(|key| stored::Issued {
            certificate: Bytes::new(),
            key: Bytes::copy_from_slice(key.key.as_bytes()),
            root: Bytes::copy_from_slice(key.root.as_bytes()),
            not_after_ms: key.not_after_ms,
        });
        Self {
            view: Some((&member.view).into()),
            joined: member.joined,
            trust_acked: member.trust_acked,
            lagging: member.lagging.clone(),
            publish_epoch: member.publish_epoch,
            resync: member.resync,
            keys: keys.collect(),
            intermediate: member.intermediate.clone(),
        }
    }
}

impl TryFrom<stored::Member> for Member {
    type Error = Corrupt;
    fn try_from(member: stored::Member) -> Result<Self, Corrupt> {
        let keys = member.keys.iter().map(|key| {
            Ok::<_, Corrupt>(IssuedKey {
                key: load_fingerprint("key", &key.key)?,
                root: load_fingerprint("root", &key.root)?,
                not_after_ms: key.not_after_ms,
            })
        });
        Ok(Self {
            view: ClusterView::try_from(&required("view", member.view)?)?,
            joined: member.joined,
            trust_acked: member.trust_acked,
            lagging: member.lagging,
            publish_epoch: member.publish_epoch,
            resync: member.resync,
            keys: keys.collect::<Result<_, _>>()?,
            intermediate: member.intermediate,
        })
    }
}

impl From<&Trust> for stored::Trust {
    fn from(trust: &Trust) -> Self {
        let (stage, other) = match &trust.stage {
            Stage::Steady => (0, None),
            Stage::Staged(new) => (1, Some(new.into())),
            Stage::Switched(old) => (2, Some(old.into())),
        };
        let denied = trust.denied.iter().map(|denied| stored::Denied {
            key: Bytes::copy_from_slice(denied.key.as_bytes()),
            cluster: denied.cluster.to_string(),
            until_ms: denied.until_ms,
        });
        Self {
            trust_domain: trust.trust_domain.to_string(),
            signing: Some((&trust.signing).into()),
            stage,
            other,
            denied: denied.collect(),
            revision: trust.revision,
            stepped: trust.stepped,
        }
    }
}

impl TryFrom<stored::Trust> for Trust {
    type Error = Corrupt;
    fn try_from(trust: stored::Trust) -> Result<Self, Corrupt> {
        let other = trust.other.map(TryInto::try_into).transpose()?;
        let denied = trust.denied.iter().map(|denied| {
            Ok::<_, Corrupt>(DeniedKey {
                key: load_fingerprint("key", &denied.key)?,
                cluster: ClusterId::parse(&denied.cluster)?,
                until_ms: denied.until_ms,
            })
        });
        Ok(Self {
            trust_domain: load_trust_domain(&trust.trust_domain)?,
            signing: required("signing", trust.signing)?.try_into()?,
            stage: match trust.stage {
                0 => Stage::Steady,
                1 => Stage::Staged(required("other", other)?),
                2 => Stage::Switched(required("other", other)?),
                unknown => {
                    return Err(Corrupt::new(
                        "a state",
                        format!("rotation stage {unknown} is unknown"),
                    ));
                }
            },
            denied: denied.collect::<Result<_, _>>()?,
            revision: trust.revision,
            stepped: trust.stepped,
        })
    }
}
