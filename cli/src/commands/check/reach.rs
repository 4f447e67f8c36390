//! Who answers: the roles of a cluster, the gateways of the others, the brokers, and how far their clocks are apart.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tombolo_clusterset::LinkState;

use super::Findings;
use crate::args::Target;
use crate::commands::status::group_status;
use crate::operator::local::observe;
use crate::operator::view::now_unix_ms;
use crate::operator::{CALL_TIMEOUT, Operators};
use crate::output::span;
use crate::site::Site;
use crate::up::ready::is_ready;

/// A listener that does not take a connection within this cannot be reached: round trips around the earth take less.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A join is refused beyond five minutes of skew; this is where an operator should hear of it.
const SKEW_WARN_MS: u64 = 2_000;
/// Where brokers refuse: certificates and tokens are judged by the clock.
const SKEW_MAX_MS: u64 = 5 * 60_000;

/// The part of `membership.json` that says where the brokers are.
#[derive(Debug, Deserialize)]
struct Membership {
    brokers: Vec<SocketAddr>,
}

/// Whether the roles of the cluster are ready.
pub(super) async fn roles(site: &Site, findings: &mut Findings) {
    let cluster = &site.site.cluster;
    let mut admins = vec![
        ("agent", site.agent.admin),
        ("gateway", site.gateway.admin),
        ("dns", site.dns.admin),
    ];
    admins.extend(site.sidecar.as_ref().map(|sidecar| ("sidecar", sidecar.admin)));
    let answers = join_all(admins.iter().map(|(_, admin)| is_ready(*admin))).await;
    for ((role, admin), answer) in admins.into_iter().zip(answers) {
        findings.looked_at(format!("{role} of {cluster} at {admin}"));
        if let Err(reason) = answer {
            let advice = format!(
                "start it (`tombolo {role} --config {}`), or see its log",
                site.file.display()
            );
            findings.problem(
                format!("{role} of {cluster}"),
                format!("is not ready: {reason}"),
                advice,
            );
        }
    }
}

/// Whether the gateways of the other clusters take connections from here, and whether the links are up.
pub(super) async fn peers(site: &Site, findings: &mut Findings) {
    let cluster = &site.site.cluster;
    // An agent that does not answer is told by `roles`.
    let Ok(observed) = observe(cluster.as_str(), &site.site.data_dir).await else {
        return;
    };
    let others = observed
        .snapshot
        .clusters
        .values()
        .filter(|view| &view.id != cluster);
    let gateways: Vec<_> = others
        .flat_map(|view| view.gateways.iter().map(|gateway| (&view.id, *gateway)))
        .collect();
    let answers = join_all(gateways.iter().map(|(_, gateway)| connects(*gateway))).await;
    for ((other, gateway), answer) in gateways.into_iter().zip(answers) {
        findings.looked_at(format!("gateway {gateway} of {other} from {cluster}"));
        if let Err(reason) = answer {
            let advice = "see that gateway, and what stands between (TCP and UDP of that port)";
            findings.problem(
                format!("{cluster} → {other}"),
                format!("the gateway at {gateway} cannot be reached: {reason}"),
                advice,
            );
        }
    }
    for link in observed.links.values().filter(|link| link.state != LinkState::Up) {
        if observed.snapshot.clusters.contains_key(&link.cluster) {
            let message = format!("the link is {}: {}", link.state.as_str(), link.reason);
            findings.problem(
                format!("{cluster} → {}", link.cluster),
                message,
                "see `tombolo get links`",
            );
        }
    }
}

async fn connects(address: SocketAddr) -> Result<(), String> {
    match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())),
    }
}

/// Whether each broker answers, and how far its clock is from this machine's. Without an operator certificate only the
/// connection is tried.
pub(super) async fn brokers(target: &Target, sites: &[Site], findings: &mut Findings) {
    let mut addresses: Vec<SocketAddr> = sites.iter().flat_map(known_brokers).collect();
    let operators = Operators::find(target).ok();
    addresses.extend(operators.iter().flat_map(|operators| operators.brokers.clone()));
    addresses.sort();
    addresses.dedup();
    let answers = join_all(addresses.iter().map(|broker| ask(*broker, operators.as_ref()))).await;
    let mut silent = 0;
    for (broker, answer) in addresses.iter().zip(answers) {
        findings.looked_at(format!("broker {broker}"));
        match answer {
            Ok(skew) => judge_skew(*broker, skew, findings),
            Err(reason) => {
                silent += 1;
                findings.warning(
                    format!("broker {broker}"),
                    format!("does not answer: {reason}"),
                    "start it, or remove it with `tombolo broker remove`",
                );
            }
        }
    }
    if silent * 2 >= addresses.len() && silent > 0 {
        let message = format!(
            "{silent} of {} do not answer: there is no quorum",
            addresses.len()
        );
        findings.problem(
            "the brokers",
            message,
            "start them; names and traffic go on meanwhile, changes wait",
        );
    }
}

fn known_brokers(site: &Site) -> Vec<SocketAddr> {
    let text =
        std::fs::read_to_string(site.site.data_dir.join("identity/membership.json")).unwrap_or_default();
    serde_json::from_str::<Membership>(&text)
        .map(|membership| membership.brokers)
        .unwrap_or_default()
}

/// The broker's clock minus ours, milliseconds; None when it was not asked for it.
async fn ask(broker: SocketAddr, operators: Option<&Operators>) -> Result<Option<i128>, String> {
    let Some(operators) = operators else {
        return connects(broker).await.map(|()| None);
    };
    let one = Operators {
        brokers: vec![broker],
        identity: operators.identity.clone(),
    };
    let before = now_unix_ms();
    let status = timeout(CALL_TIMEOUT, group_status(&one))
        .await
        .map_err(|_| "no answer".to_owned())?;
    let status = status.map_err(|error| {
        let text = format!("{error:#}");
        text.lines().last().unwrap_or_default().trim().to_owned()
    })?;
    let after = now_unix_ms();
    // Its clock was read somewhere between the two; only what lies outside is skew.
    let (before, after, theirs) = (i128::from(before), i128::from(after), i128::from(status.unix_ms));
    Ok(Some(if theirs < before {
        theirs - before
    } else {
        (theirs - after).max(0)
    }))
}

fn judge_skew(broker: SocketAddr, skew: Option<i128>, findings: &mut Findings) {
    let Some(skew) = skew else { return };
    let apart = u64::try_from(skew.unsigned_abs()).unwrap_or(u64::MAX);
    let direction = if skew > 0 { "ahead of" } else { "behind" };
    let message = format!("its clock is {} {direction} this machine's", span(apart));
    let advice = "set both by NTP: certificates and tokens are judged by the clock";
    if apart >= SKEW_MAX_MS {
        findings.problem(format!("broker {broker}"), message, advice);
    } else if apart >= SKEW_WARN_MS {
        findings.warning(format!("broker {broker}"), message, advice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skew_is_told_by_its_size() {
        let broker: SocketAddr = "127.10.0.1:7400".parse().expect("an address");
        let table = [
            (None, None),
            (Some(0), None),
            (Some(1_999), None),
            (
                Some(-2_500),
                Some("warning: broker 127.10.0.1:7400: its clock is 2s behind this machine's"),
            ),
            (
                Some(400_000),
                Some("problem: broker 127.10.0.1:7400: its clock is 6m ahead of this machine's"),
            ),
        ];
        for (skew, expected) in table {
            let mut findings = Findings::default();
            judge_skew(broker, skew, &mut findings);
            let line = findings.found.first().map(|finding| finding.line());
            match (line, expected) {
                (Some(line), Some(expected)) => assert!(line.starts_with(expected), "{line}"),
                (line, expected) => assert_eq!(line.is_some(), expected.is_some(), "{skew:?}"),
            }
        }
    }
}
