//! The explanation as people read it.

use super::{Explained, Exporter, Merge, Port};
use crate::output::{Tone, paint, span};

pub(super) fn of(explained: &Explained) -> String {
    let Explained {
        service,
        from,
        service_type,
        ips,
        merge,
        clusters,
        not_imported,
        ports,
        ..
    } = explained;
    let mut lines = vec![head(service, from, *service_type, ips)];
    if !explained.fresh {
        lines.push(format!(
            "{from} hears from no broker: leases are unknown, links decide"
        ));
    }
    lines.push(String::new());
    match merge {
        Some(merge) => lines.extend(merge_lines(merge)),
        None => lines
            .push("Merge: the export records are not known here; the import is as it was cached".to_owned()),
    }
    if !clusters.is_empty() {
        lines.extend([String::new(), paint(Tone::Bold, "Clusters, nearest first")]);
        let width = clusters
            .iter()
            .map(|exporter| exporter.cluster.len())
            .max()
            .unwrap_or(0);
        lines.extend(clusters.iter().map(|exporter| cluster_line(exporter, width)));
    }
    for missing in not_imported {
        lines.push(format!("  {}  not imported: {}", missing.cluster, missing.reason));
    }
    for port in ports {
        lines.push(String::new());
        lines.extend(port_lines(port));
    }
    lines.join("\n")
}

fn head(service: &str, from: &str, service_type: Option<&str>, ips: &[std::net::IpAddr]) -> String {
    let ips: Vec<String> = ips.iter().map(ToString::to_string).collect();
    let at = if ips.is_empty() {
        String::new()
    } else {
        format!(" at {}", ips.join(", "))
    };
    let what = match service_type {
        Some(service_type) => format!("{service_type}{at}"),
        None => "not imported".to_owned(),
    };
    format!(
        "{} from {}: {what}",
        paint(Tone::Bold, service),
        paint(Tone::Bold, from)
    )
}

fn merge_lines(merge: &Merge) -> Vec<String> {
    let why = match merge.decided_by {
        Some(why) => format!("because {why}"),
        None => "the only exporter".to_owned(),
    };
    let mut lines = vec![format!(
        "{}: {} wins, {why}",
        paint(Tone::Bold, "Merge"),
        merge.winner
    )];
    let order: Vec<&str> = merge
        .precedence
        .iter()
        .map(|claim| claim.cluster.as_str())
        .collect();
    if let [first, second, ..] = merge.precedence.as_slice() {
        let older = second.created_unix_ms.saturating_sub(first.created_unix_ms);
        let by = if older == 0 {
            String::new()
        } else {
            format!(" ({} before {})", span(older), second.cluster)
        };
        lines.push(format!("  precedence: {}{by}", order.join(", ")));
    }
    lines.push(format!("  when a cluster is lost: {}", merge.loss_policy));
    if merge.conflicts.is_empty() {
        lines.push("  no conflicts".to_owned());
    }
    for conflict in &merge.conflicts {
        lines.push(format!(
            "  {}: {}",
            paint(Tone::Warn, conflict.reason),
            conflict.message
        ));
    }
    lines
}

fn cluster_line(exporter: &Exporter, width: usize) -> String {
    let tone = match exporter.verdict {
        "use" => Tone::Good,
        "withdrawn" => Tone::Bad,
        _ => Tone::Warn,
    };
    format!("  {:width$}  {}", exporter.cluster, paint(tone, &exporter.why))
}

fn port_lines(port: &Port) -> Vec<String> {
    let name = if port.port.name.is_empty() {
        String::new()
    } else {
        format!(" {}", port.port.name)
    };
    let head = format!("Port {}/{}{name}", port.port.port, port.port.protocol);
    let mut lines = vec![paint(Tone::Bold, &head)];
    if port.order.is_empty() {
        lines.push(paint(Tone::Bad, "  no endpoint: new flows fail"));
    }
    let mut place = 0;
    for tier in &port.order {
        let share = tier.share * 100.0;
        let rank = match tier.rank {
            "zone" => "same zone",
            "region" => "same region",
            "cluster" => "this cluster",
            "remote" => "another cluster",
            rank => rank,
        };
        lines.push(format!("  {rank}: {share:.0}% of new flows"));
        for endpoint in &tier.endpoints {
            place += 1;
            let host = endpoint
                .hostname
                .as_ref()
                .map_or_else(String::new, |host| format!("  {host}"));
            let zone = if endpoint.zone.is_empty() {
                String::new()
            } else {
                format!("  {}", endpoint.zone)
            };
            lines.push(format!(
                "    {place}. {}:{}  {}{zone}{host}",
                endpoint.address, endpoint.port, endpoint.cluster
            ));
        }
    }
    if !port.left_out.is_empty() {
        lines.push("  left out:".to_owned());
    }
    for left in &port.left_out {
        let what = left
            .address
            .map_or_else(|| "all endpoints".to_owned(), |address| address.to_string());
        lines.push(format!(
            "    {what}  {}  {}",
            left.cluster,
            paint(Tone::Warn, left.reason)
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    #[test]
    fn reads_from_the_merge_to_the_last_endpoint() {
        let text = super::of(&super::super::tests::explained());
        assert_eq!(
            text,
            "shop/checkout from west: ClusterSetIP at 127.11.64.1\n\
             \n\
             Merge: west wins, because its export is the oldest\n  \
               precedence: west, east (100ms before east)\n  \
               when a cluster is lost: degrade\n  \
               TypeConflict: type is ClusterSetIP in west (oldest, wins) but Headless in east\n\
             \n\
             Clusters, nearest first\n  \
               west  use: this cluster itself\n  \
               east  use: lease lost, link up (1.5 ms), policy degrade\n\
             \n\
             Port 8080/TCP http\n  \
               same zone: 100% of new flows\n    \
                 1. 127.11.1.1:8080  west  eu-1\n  \
               another cluster: 0% of new flows\n    \
                 2. 127.12.1.1:8080  east\n  \
               left out:\n    \
                 127.11.1.2  west  not ready"
        );
    }
}
