//! `tombolo ca`: the clusterset's root of trust and its staged rotation.

use anyhow::{Result, bail};
use serde::Serialize;
use tombolo_wire::v1;
use tombolo_wire::v1::rotate_root_request::Step;

use crate::args::{Ca, Target};
use crate::operator::{Operators, refusal};
use crate::output::{Tone, paint, print};

/// Where the rotation stands. JSON kind `ca`.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Rotation {
    /// `steady`, `staged` or `switched`.
    stage: String,
    trust_revision: u64,
    /// Members that have not acknowledged it, each with the reason.
    lagging: Vec<String>,
    /// What the next `ca rotate` does.
    next: &'static str,
}

impl From<v1::RotateRootReply> for Rotation {
    fn from(reply: v1::RotateRootReply) -> Self {
        let next = next(&reply.stage).map_or("unknown to this version", |(_, words)| words);
        Self {
            stage: reply.stage,
            trust_revision: reply.trust_revision,
            lagging: reply.lagging,
            next,
        }
    }
}

pub(crate) async fn run(target: &Target, command: Ca) -> Result<()> {
    let operators = Operators::find(target)?;
    let status = rotate(&operators, Step::Status, false).await?;
    let rotation = match command {
        Ca::Status => status,
        Ca::Rotate { force } => {
            let Some((step, _)) = next(&status.stage) else {
                bail!(
                    "the rotation is at stage '{}', which this version does not know; use a newer tombolo",
                    status.stage
                );
            };
            let rotation = rotate(&operators, step, force).await?;
            operators.renew().await?;
            rotation
        }
    };
    print(target.output, "ca", &rotation, text)
}

async fn rotate(operators: &Operators, step: Step, force: bool) -> Result<Rotation> {
    let mut client = operators.connect().await?;
    let request = v1::RotateRootRequest {
        step: step.into(),
        force,
    };
    let reply = client
        .rotate_root(request)
        .await
        .map_err(|status| refusal(&status))?;
    Ok(reply.into_inner().into())
}

/// The step after `stage`, and what it does.
fn next(stage: &str) -> Option<(Step, &'static str)> {
    match stage {
        "steady" => Some((
            Step::Stage,
            "publishes a new root beside the old one; everyone learns to trust both",
        )),
        "staged" => Some((
            Step::Switch,
            "signs with the new root; members renew their certificates",
        )),
        "switched" => Some((Step::Drop, "drops the old root; what still uses it is refused")),
        _ => None,
    }
}

fn text(rotation: &Rotation) -> String {
    let Rotation {
        stage,
        trust_revision,
        lagging,
        next,
    } = rotation;
    let meaning = match stage.as_str() {
        "steady" => "one root is trusted",
        "staged" => "two roots are trusted, the old one signs",
        "switched" => "two roots are trusted, the new one signs",
        _ => "unknown to this version",
    };
    let mut lines = vec![format!(
        "{}: {meaning} (trust revision {trust_revision})",
        paint(Tone::Bold, stage)
    )];
    if !lagging.is_empty() {
        lines.push("not there yet:".to_owned());
        lines.extend(lagging.iter().map(|who| format!("  {}", paint(Tone::Warn, who))));
    } else if stage != "steady" {
        lines.push("every member has acknowledged it".to_owned());
    }
    lines.push(format!("next: `tombolo ca rotate` {next}"));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotation(stage: &str, lagging: &[&str]) -> Rotation {
        let lagging = lagging.iter().map(ToString::to_string).collect();
        v1::RotateRootReply {
            stage: stage.into(),
            trust_revision: 7,
            lagging,
        }
        .into()
    }

    #[test]
    fn says_where_it_stands_and_what_comes_next() {
        assert_eq!(
            text(&rotation("steady", &[])),
            "steady: one root is trusted (trust revision 7)\n\
             next: `tombolo ca rotate` publishes a new root beside the old one; everyone learns to trust both"
        );
        assert_eq!(
            text(&rotation(
                "switched",
                &["west has an intermediate of the old root"]
            )),
            "switched: two roots are trusted, the new one signs (trust revision 7)\n\
             not there yet:\n  west has an intermediate of the old root\n\
             next: `tombolo ca rotate` drops the old root; what still uses it is refused"
        );
        assert!(text(&rotation("staged", &[])).contains("every member has acknowledged it"));
    }
}
