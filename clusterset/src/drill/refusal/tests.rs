use super::*;
use crate::drill::DrillId;
use crate::fixtures::{id, key, record, spec};
use std::collections::BTreeSet;
use std::time::Duration;

fn drill() -> Drill {
    Drill {
        id: DrillId(1),
        kind: DrillKind::ClusterDown,
        target: id("eks"),
        from: id("aks"),
        service: key("shop/checkout"),
        port: None,
        http_get: None,
        rate_per_second: 10,
        baseline: Duration::from_secs(10),
        duration: Duration::from_secs(30),
        recovery: Duration::from_secs(10),
        real: false,
    }
}

/// shop/checkout, exported by eks and gke; aks calls it.
struct Set {
    members: BTreeMap<ClusterId, Lease>,
    records: Vec<ExportRecord>,
    grants: Grants,
}

impl Set {
    fn new() -> Self {
        Self {
            members: ["aks", "eks", "gke"]
                .map(|cluster| (id(cluster), Lease::Alive))
                .into(),
            records: vec![
                record("eks", 1, spec(&[("http", 80)])),
                record("gke", 2, spec(&[("http", 80)])),
            ],
            grants: Grants::default(),
        }
    }

    fn refuse(&self, drill: &Drill, forced: bool) -> Option<Refusal> {
        let records: Vec<&ExportRecord> = self.records.iter().collect();
        refuse(
            drill,
            Standing {
                members: &self.members,
                records: &records,
                grants: &self.grants,
            },
            forced,
        )
    }

    /// The service's importers that would be left without; none when the drill may begin.
    fn check(&self, drill: &Drill, without: &[&str]) {
        let expected = without
            .iter()
            .map(|importer| (key("shop/checkout"), id(importer)))
            .collect::<Vec<_>>();
        let told = match self.refuse(drill, false) {
            Some(Refusal::LeavesWithout { without }) => without,
            None => Vec::new(),
            Some(other) => panic!("{other}"),
        };
        assert_eq!(told, expected);
        assert_eq!(self.refuse(drill, true), None, "forced");
    }
}

#[test]
fn a_drill_begins_while_another_cluster_serves() {
    Set::new().check(&drill(), &[]);
}

#[test]
fn the_last_exporter_is_not_taken_down() {
    let everyone = ["aks", "gke"];
    let mut set = Set::new();
    set.records.pop();
    set.check(&drill(), &everyone);
    set.check(
        &Drill {
            kind: DrillKind::GatewayKill,
            ..drill()
        },
        &everyone,
    );
    set.check(
        &Drill {
            kind: DrillKind::LinkCut,
            ..drill()
        },
        &["aks"],
    );
    set.check(
        &Drill {
            kind: DrillKind::BrokerLeaderKill,
            real: true,
            ..drill()
        },
        &[],
    );
    let refusal = set.refuse(&drill(), false).expect("refused").to_string();
    assert_eq!(
        refusal,
        "it would leave no healthy endpoint for shop/checkout in aks, shop/checkout in gke; repair or add another \
         exporter, or use --force"
    );
}

#[test]
fn an_exporter_counts_only_when_it_lives_serves_the_port_is_ready_and_granted() {
    let mut set = Set::new();
    set.members.insert(id("gke"), Lease::Lost);
    set.check(&drill(), &["aks", "gke"]);

    let mut set = Set::new();
    set.members.insert(id("gke"), Lease::Unknown);
    set.check(&drill(), &[]);

    let mut set = Set::new();
    set.records[1] = record("gke", 2, spec(&[("http", 81)]));
    set.check(&drill(), &["aks", "gke"]);

    let mut set = Set::new();
    set.records[1] = record("gke", 2, spec(&[("web", 80)]));
    set.check(&drill(), &[]);

    let mut set = Set::new();
    set.records[1].export.slices[0].endpoints[0].readiness = Readiness::NotReady;
    set.check(&drill(), &["aks", "gke"]);

    let mut set = Set::new();
    set.grants
        .by_export
        .insert((key("shop/checkout"), id("gke")), BTreeSet::new());
    set.check(&drill(), &["aks"]);
}

#[test]
fn a_service_that_the_target_does_not_serve_to_someone_is_no_loss_to_it() {
    let mut set = Set::new();
    set.records.pop();
    set.grants
        .by_export
        .insert((key("shop/checkout"), id("eks")), BTreeSet::from([id("aks")]));
    set.check(&drill(), &["aks"]);
    set.records[0].export.slices[0].endpoints.clear();
    set.check(&drill(), &[]);
}

#[test]
fn what_makes_no_sense_is_refused_even_when_forced() {
    let check = |change: fn(&mut Drill), expected: Refusal| {
        let mut drill = drill();
        change(&mut drill);
        assert_eq!(Set::new().refuse(&drill, true), Some(expected));
    };
    check(
        |drill| drill.from = id("eks"),
        Refusal::SameCluster { cluster: id("eks") },
    );
    check(
        |drill| drill.target = id("kind"),
        Refusal::NotAMember { cluster: id("kind") },
    );
    check(
        |drill| drill.from = id("kind"),
        Refusal::NotAMember { cluster: id("kind") },
    );
    check(|drill| drill.rate_per_second = 0, Refusal::Rate { rate: 0 });
    check(
        |drill| drill.rate_per_second = 1_001,
        Refusal::Rate { rate: 1_001 },
    );
    check(|drill| drill.baseline = Duration::ZERO, Refusal::TooShort);
    check(
        |drill| drill.duration = Duration::from_secs(900),
        Refusal::TooLong { seconds: 920 },
    );
    check(
        |drill| drill.kind = DrillKind::DnsKill,
        Refusal::NeedsReal {
            kind: DrillKind::DnsKill,
        },
    );
    check(
        |drill| drill.service = key("shop/cart"),
        Refusal::NotServed {
            target: id("eks"),
            service: key("shop/cart"),
            from: id("aks"),
        },
    );
}
