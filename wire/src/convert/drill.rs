//! Drills.

use std::time::Duration;

use tombolo_clusterset::drill::{DRILL_MAX, Drill, DrillId, DrillKind};

use super::{Invalid, closed, closed_enum, cluster_id, port, service_key, text};
use crate::v1;

/// Most requests per second of a drill: it measures, it does not load.
pub const MAX_DRILL_RATE: u32 = 1_000;

closed_enum!(v1::DrillKind, DrillKind, "kind", {
    ClusterDown <=> ClusterDown,
    GatewayKill <=> GatewayKill,
    LinkCut <=> LinkCut,
    BrokerLeaderKill <=> BrokerLeaderKill,
    DnsKill <=> DnsKill,
});

impl TryFrom<&v1::Drill> for Drill {
    type Error = Invalid;
    fn try_from(drill: &v1::Drill) -> Result<Self, Invalid> {
        if drill.rate_per_second == 0 || drill.rate_per_second > MAX_DRILL_RATE {
            let reason = format!(
                "{} is out of range; use 1 to {MAX_DRILL_RATE}",
                drill.rate_per_second
            );
            return Err(Invalid::new("rate_per_second", reason));
        }
        let drill = Self {
            id: DrillId(drill.id),
            kind: closed::<v1::DrillKind, _>("kind", drill.kind)?,
            target: cluster_id("target", &drill.target)?,
            from: cluster_id("from", &drill.from)?,
            service: service_key("service", drill.service.as_ref())?,
            port: if drill.port == 0 {
                None
            } else {
                Some(port("port", drill.port)?)
            },
            http_get: if drill.http_get.is_empty() {
                None
            } else {
                Some(http_path(&drill.http_get)?)
            },
            rate_per_second: drill.rate_per_second,
            baseline: phase("baseline_ms", drill.baseline_ms)?,
            duration: phase("duration_ms", drill.duration_ms)?,
            recovery: phase("recovery_ms", drill.recovery_ms)?,
            real: drill.real,
        };
        if drill.total() > DRILL_MAX {
            let reason = format!(
                "the drill would last {} s; at most {} s are allowed",
                drill.total().as_secs(),
                DRILL_MAX.as_secs()
            );
            return Err(Invalid::new("duration_ms", reason));
        }
        Ok(drill)
    }
}

/// One phase of a drill; each alone is already bounded, so that their sum cannot overflow.
fn phase(field: &str, ms: u64) -> Result<Duration, Invalid> {
    let phase = Duration::from_millis(ms);
    if phase > DRILL_MAX {
        return Err(Invalid::new(
            field,
            format!("{ms} ms is longer than {} s", DRILL_MAX.as_secs()),
        ));
    }
    Ok(phase)
}

fn http_path(path: &str) -> Result<String, Invalid> {
    let path = text("http_get", path)?;
    if !path.starts_with('/') || path.bytes().any(|byte| !byte.is_ascii_graphic()) {
        return Err(Invalid::new(
            "http_get",
            format!("{path:?} is no path; begin with '/' and use no spaces"),
        ));
    }
    Ok(path)
}

impl From<&Drill> for v1::Drill {
    fn from(drill: &Drill) -> Self {
        let ms = |phase: Duration| u64::try_from(phase.as_millis()).unwrap_or(u64::MAX);
        Self {
            id: drill.id.0,
            kind: v1::DrillKind::from(drill.kind).into(),
            target: drill.target.to_string(),
            from: drill.from.to_string(),
            service: Some((&drill.service).into()),
            port: drill.port.map_or(0, u32::from),
            http_get: drill.http_get.clone().unwrap_or_default(),
            rate_per_second: drill.rate_per_second,
            baseline_ms: ms(drill.baseline),
            duration_ms: ms(drill.duration),
            recovery_ms: ms(drill.recovery),
            real: drill.real,
        }
    }
}
