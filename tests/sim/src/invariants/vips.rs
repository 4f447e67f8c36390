//! All virtual addresses of a cluster are unique, and stable while what holds them lives, over restarts too (DESIGN §7).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use tombolo_clusterset::{ClusterId, ServiceKey, Snapshot};

use super::{Invariant, View};
use crate::scene::Fact;

type Holder = (ServiceKey, Option<(ClusterId, IpAddr)>, bool);

/// The invariant.
#[derive(Debug, Default)]
pub struct Vips {
    last: BTreeMap<usize, BTreeMap<Holder, IpAddr>>,
}

impl Invariant for Vips {
    fn name(&self) -> &'static str {
        "virtual addresses are unique and stable"
    }

    fn judge(&mut self, fact: &Fact, _view: View<'_>) -> Result<(), String> {
        let Fact::Served {
            cluster, snapshot, ..
        } = fact
        else {
            return Ok(());
        };
        let held = held(snapshot);
        let mut owners: BTreeMap<IpAddr, &Holder> = BTreeMap::new();
        for (holder, address) in &held {
            if let Some(other) = owners.insert(*address, holder) {
                return Err(format!(
                    "c{cluster} gave {address} to {other:?} and to {holder:?}"
                ));
            }
        }
        let before = self.last.entry(*cluster).or_default();
        for (holder, address) in &held {
            if let Some(old) = before.get(holder).filter(|old| *old != address) {
                return Err(format!("c{cluster} moved {holder:?} from {old} to {address}"));
            }
        }
        *before = held;
        Ok(())
    }
}

fn held(snapshot: &Arc<Snapshot>) -> BTreeMap<Holder, IpAddr> {
    let mut held = BTreeMap::new();
    for (key, import) in &snapshot.imports {
        for address in &import.ips {
            held.insert((key.clone(), None, address.is_ipv6()), *address);
        }
        for (cluster, imported) in &import.clusters {
            for (endpoint, address) in &imported.stand_ins {
                held.insert(
                    (key.clone(), Some((cluster.clone(), *endpoint)), address.is_ipv6()),
                    *address,
                );
            }
        }
    }
    held
}
