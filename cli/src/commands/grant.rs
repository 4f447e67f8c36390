//! `tombolo grant`: which clusters may import an export.

use anyhow::Result;
use serde::Serialize;
use tombolo_clusterset::ServiceKey;
use tombolo_clusterset::policy::Grants;
use tombolo_wire::v1;

use crate::args::{Grant, Target};
use crate::operator::view::{Source, View};
use crate::operator::{Operators, refusal};
use crate::output::{print, print_line, table};

/// A restriction. JSON kind `grants`.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Item {
    /// `namespace/name`.
    service: String,
    /// Whose export.
    exporter: String,
    /// Who may import it besides the exporter.
    importers: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Listing {
    source: Source,
    items: Vec<Item>,
}

pub(crate) async fn run(target: &Target, command: Grant) -> Result<()> {
    match command {
        Grant::Set {
            service,
            exporter,
            importers,
        } => {
            let importers: Vec<String> = importers.iter().map(ToString::to_string).collect();
            set(target, &service, exporter.as_str(), false, importers.clone()).await?;
            let who = if importers.is_empty() {
                "no other cluster".to_owned()
            } else {
                importers.join(", ")
            };
            print_line(&format!("{service} of {exporter} may be imported by {who}"))
        }
        Grant::Clear { service, exporter } => {
            set(target, &service, exporter.as_str(), true, Vec::new()).await?;
            print_line(&format!(
                "{service} of {exporter} may be imported by every cluster"
            ))
        }
        Grant::List => {
            let view = View::gather(target).await?;
            if view.source.from == crate::operator::view::From::Agent {
                anyhow::bail!("grants are known to brokers only, and none answers; see `tombolo status`");
            }
            let listing = Listing {
                source: view.source,
                items: items(&view.records.grants),
            };
            print(target.output, "grants", &listing, |listing| {
                if listing.items.is_empty() {
                    return "no grants: every cluster may import every export".to_owned();
                }
                let rows = listing.items.iter().map(|item| {
                    [
                        item.service.clone(),
                        item.exporter.clone(),
                        super::get::or_dash(&item.importers.join(",")),
                    ]
                });
                table(["SERVICE", "EXPORTER", "IMPORTERS"], rows)
            })
        }
    }
}

async fn set(
    target: &Target,
    service: &ServiceKey,
    exporter: &str,
    clear: bool,
    importers: Vec<String>,
) -> Result<()> {
    let mut client = Operators::find(target)?.connect().await?;
    let request = v1::SetGrantRequest {
        key: Some(service.into()),
        exporter: exporter.to_owned(),
        clear,
        importers,
    };
    client
        .set_grant(request)
        .await
        .map_err(|status| refusal(&status))?;
    Ok(())
}

fn items(grants: &Grants) -> Vec<Item> {
    let item = |((service, exporter), importers): (&(ServiceKey, _), &std::collections::BTreeSet<_>)| Item {
        service: service.to_string(),
        exporter: tombolo_clusterset::ClusterId::to_string(exporter),
        importers: importers
            .iter()
            .map(tombolo_clusterset::ClusterId::to_string)
            .collect(),
    };
    grants.by_export.iter().map(item).collect()
}
