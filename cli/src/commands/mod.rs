//! What each command does, one file a command.

pub(crate) mod broker_add;
mod broker_group;
mod ca;
mod check;
mod drill;
mod explain;
mod get;
mod grant;
pub(crate) mod join;
mod leave;
pub(crate) mod overview;
mod resolve;
mod status;
mod token;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::CommandFactory;

use crate::args::{Args, Broker, BrokerCommand, Command};
use crate::{roles, up};

/// Runs the command.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    let Args { target, command } = args;
    match command {
        Command::Up(args) => return up::up(&target, &args).await,
        Command::Down => return up::down(&target).await,
        Command::Broker(Broker {
            config: Some(config),
            command: None,
        }) => roles::broker(&config).await?,
        Command::Broker(Broker {
            command: Some(command),
            ..
        }) => match command {
            BrokerCommand::Add {
                id,
                api,
                peer,
                admin,
                kek,
                out,
            } => {
                broker_add::run(&target, id, api, peer, admin, kek, out).await?;
            }
            BrokerCommand::Remove { id } => broker_group::remove(&target, id).await?,
            BrokerCommand::Backup { out } => broker_group::backup(&target, &out).await?,
            BrokerCommand::Restore { from, config } => broker_group::restore(&from, &config).await?,
        },
        Command::Broker(Broker {
            config: None,
            command: None,
        }) => {
            bail!("give the broker its configuration: tombolo broker --config broker.toml")
        }
        Command::Agent(role) => roles::agent(&role.config).await?,
        Command::Gateway(role) => roles::gateway(&role.config).await?,
        Command::Dns(role) => roles::dns(&role.config).await?,
        Command::Sidecar(role) => roles::sidecar(&role.config).await?,
        Command::SampleBackends(role) => roles::sample_backends(&role.config).await?,
        Command::Token(command) => token::run(&target, command).await?,
        Command::Join(join) => join::run(&target, join).await?,
        Command::Leave(role) => leave::leave(&target, &role.config).await?,
        Command::Evict { cluster, yes } => leave::evict(&target, &cluster, yes).await?,
        Command::Grant(command) => grant::run(&target, command).await?,
        Command::Status => return status::run(&target).await,
        Command::Get { what, cluster } => get::run(&target, what, cluster).await?,
        Command::Resolve {
            name,
            cluster,
            record_type,
        } => {
            return resolve::run(&target, &name, cluster, &record_type).await;
        }
        Command::Explain { name, from, port } => explain::run(&target, &name, from, port).await?,
        Command::Drill(command) => return drill::run(&target, command).await,
        Command::Ca(command) => ca::run(&target, command).await?,
        Command::Check { config } => return check::run(&target, config).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "tombolo", &mut script);
            crate::output::print_line(String::from_utf8_lossy(&script).trim_end())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
