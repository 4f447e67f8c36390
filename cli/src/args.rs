//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use tombolo_clusterset::{ClusterId, ServiceKey};

/// Joins Kubernetes clusters into one clusterset: export a Service in one, reach it by name from all.
#[derive(Debug, Parser)]
#[command(name = "tombolo", version, max_term_width = 100)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which clusterset a command speaks to.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Target {
    /// Data directory of a clusterset that `tombolo up` runs on this machine
    #[arg(
        long,
        global = true,
        env = "TOMBOLO_DATA_DIR",
        default_value = ".tombolo",
        value_name = "DIR"
    )]
    pub(crate) data_dir: PathBuf,
    /// A broker's API address (together with --identity); default: found through --data-dir
    #[arg(long, global = true, env = "TOMBOLO_BROKER", value_name = "IP:PORT")]
    pub(crate) broker: Option<SocketAddr>,
    /// Folder of an operator certificate: key.pem, cert.pem, roots.pem
    #[arg(long, global = true, env = "TOMBOLO_IDENTITY", value_name = "DIR")]
    pub(crate) identity: Option<PathBuf>,
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a whole clusterset on this machine: three brokers and the clusters of a directory
    Up(Up),
    /// Stop the clusterset that `tombolo up` started
    Down,
    /// Run a broker, or change the broker group
    Broker(Broker),
    /// Run the agent of a cluster
    Agent(Role),
    /// Run the east-west gateway of a cluster
    Gateway(Role),
    /// Run the DNS server of a cluster
    Dns(Role),
    /// Run a sidecar
    Sidecar(Role),
    /// Create, list and revoke join tokens
    #[command(subcommand)]
    Token(Token),
    /// Make a cluster a member: its keys are made here and never leave it
    Join(Join),
    /// End the membership of a cluster, in good order
    Leave(Role),
    /// End a cluster's membership and its trust at once
    Evict {
        /// The cluster
        cluster: ClusterId,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Say which clusters may import an export
    #[command(subcommand)]
    Grant(Grant),
    /// Health of the clusterset at a glance
    Status,
    /// List what the clusterset holds
    Get {
        /// What to list
        #[arg(value_enum)]
        what: What,
        /// As this cluster sees it
        #[arg(long)]
        cluster: Option<ClusterId>,
    },
    /// Ask a cluster's DNS server
    Resolve {
        /// For example checkout.shop.svc.clusterset.local
        name: String,
        /// The cluster that asks
        #[arg(long)]
        cluster: Option<ClusterId>,
        /// A, AAAA, SRV or TXT
        #[arg(long = "type", default_value = "A", value_name = "TYPE")]
        record_type: String,
    },
    /// Why a name leads where it does: the merge, the order of endpoints, what was left out and by which signal
    Explain {
        /// NAMESPACE/NAME, or its name under clusterset.local
        name: String,
        /// The cluster that calls
        #[arg(long)]
        from: ClusterId,
        /// Port number; default: the first
        #[arg(long)]
        port: Option<u16>,
    },
    /// Rehearse a failure, measured
    #[command(subcommand)]
    Drill(Drill),
    /// The clusterset's root of trust
    #[command(subcommand)]
    Ca(Ca),
    /// Check configuration, manifests, certificates, clocks and reachability
    Check {
        /// A cluster.toml; default: every cluster of --data-dir
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Print a completion script
    Completions {
        /// Your shell
        shell: clap_complete::Shell,
    },
    /// Serve the sample backends of a manifest directory
    #[command(hide = true)]
    SampleBackends(Role),
}

#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Up {
    /// One folder per cluster, each with a cluster.toml and manifests
    #[arg(long, default_value = "clusters/local", value_name = "DIR")]
    pub(crate) clusters: PathBuf,
    /// How many brokers
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=5), value_name = "1|3|5")]
    pub(crate) brokers: u8,
    /// Return once all is ready; `tombolo down` stops it
    #[arg(long)]
    pub(crate) detach: bool,
}

#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Role {
    /// The cluster's cluster.toml
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
}

#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Broker {
    /// Run the broker of this broker.toml
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Option<BrokerCommand>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BrokerCommand {
    /// Admit a new broker and write its broker.toml and identity into a folder
    Add {
        /// A number that was never used before
        #[arg(long)]
        id: u64,
        /// Where agents and operators will reach it
        #[arg(long, value_name = "IP:PORT")]
        api: SocketAddr,
        /// Where the other brokers will reach it
        #[arg(long, value_name = "IP:PORT")]
        peer: SocketAddr,
        /// Its admin address
        #[arg(long, value_name = "IP:PORT")]
        admin: SocketAddr,
        /// The key-encryption key of an existing broker (its `kek` file); default: found through --data-dir
        #[arg(long, value_name = "FILE")]
        kek: Option<PathBuf>,
        /// Folder to write; start it with `tombolo broker --config DIR/broker.toml`
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Take a broker out of the group
    Remove {
        /// Its number
        #[arg(long)]
        id: u64,
    },
    /// Write a consistent back-up
    Backup {
        /// File to write; must not exist
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Begin a new incarnation from a back-up, in the empty data directory of a stopped broker
    Restore {
        /// The back-up
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
        /// The broker.toml of the broker that begins
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Create a single-use token for one cluster
    Create {
        /// The cluster that will join with it
        #[arg(long)]
        cluster: ClusterId,
        /// How long it is good for, for example 30m or 1h
        #[arg(long, default_value = "1h", value_parser = parse_duration)]
        ttl: std::time::Duration,
    },
    /// List tokens (never their secrets)
    List,
    /// Make a token useless
    Revoke {
        /// Its id, as `token list` prints it
        id: String,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Join {
    /// The token from `tombolo token create`, or @FILE
    #[arg(long, env = "TOMBOLO_TOKEN", hide_env_values = true)]
    pub(crate) token: String,
    /// Brokers to join at: --broker, given once more for each further one
    #[arg(long = "also-broker", value_name = "IP:PORT")]
    pub(crate) more_brokers: Vec<SocketAddr>,
    /// The cluster's cluster.toml
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Take the place of a member of the same id that was away too long
    #[arg(long)]
    pub(crate) replace: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Grant {
    /// Restrict who may import one cluster's export of a service
    Set {
        /// NAMESPACE/NAME
        service: ServiceKey,
        /// Whose export
        #[arg(long)]
        exporter: ClusterId,
        /// Who may import it, separated by commas; the exporter itself always may
        #[arg(long, value_delimiter = ',')]
        importers: Vec<ClusterId>,
    },
    /// Let everyone import it again
    Clear {
        /// NAMESPACE/NAME
        service: ServiceKey,
        /// Whose export
        #[arg(long)]
        exporter: ClusterId,
    },
    /// List grants
    List,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    Clusters,
    Exports,
    Imports,
    Endpoints,
    Links,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    ClusterDown,
    GatewayKill,
    LinkCut,
    BrokerLeaderKill,
    DnsKill,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Drill {
    /// Run one: steady traffic, the failure, the recovery, a verdict
    Run(DrillRun),
    /// Show the running drill
    Show,
    /// Stop it now
    Stop,
}

#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct DrillRun {
    /// What fails
    #[arg(long, value_enum)]
    pub(crate) kind: Kind,
    /// Which cluster fails
    #[arg(long)]
    pub(crate) target: ClusterId,
    /// Which service is called
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub(crate) service: ServiceKey,
    /// Who calls; default: a member other than the target
    #[arg(long)]
    pub(crate) from: Option<ClusterId>,
    /// Service port; default: the first TCP port
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// How long the failure lasts
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub(crate) duration: std::time::Duration,
    /// Traffic before the failure
    #[arg(long, default_value = "3s", value_parser = parse_duration)]
    pub(crate) baseline: std::time::Duration,
    /// Traffic after it
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    pub(crate) recovery: std::time::Duration,
    /// Requests per second
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rate: u32,
    /// GET this path on each connection; default: connect only
    #[arg(long, value_name = "PATH")]
    pub(crate) http_get: Option<String>,
    /// Kill `up`'s own processes in place of rehearsing
    #[arg(long)]
    pub(crate) real: bool,
    /// Run even if a service would be left without a healthy endpoint
    #[arg(long)]
    pub(crate) force: bool,
    /// Write one self-contained page with the timeline
    #[arg(long, value_name = "FILE.html")]
    pub(crate) report: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Ca {
    /// Stage of the rotation, and who lags
    Status,
    /// Advance the rotation of the root by one stage: stage, switch, drop
    Rotate {
        /// Advance although members lag
        #[arg(long)]
        force: bool,
    },
}

/// Parses `90s`, `30m`, `1h`, `500ms`.
fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| format!("'{text}' is no duration; use for example 500ms, 10s, 5m, 1h"))?;
    let ms = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        "d" => number.checked_mul(86_400_000),
        _ => {
            return Err(format!(
                "'{text}' has no unit that is known; use ms, s, m, h or d, for example 10s"
            ));
        }
    };
    ms.map(std::time::Duration::from_millis)
        .ok_or_else(|| format!("'{text}' is too long"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn durations_have_units() {
        let table = [
            ("500ms", Some(Duration::from_millis(500))),
            ("10s", Some(Duration::from_secs(10))),
            ("1h", Some(Duration::from_secs(3600))),
            ("10", None),
            ("s", None),
            ("1.5s", None),
            ("-1s", None),
            ("99999999999999999999s", None),
            ("18446744073709551615h", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse_duration(text).ok(), expected, "{text}");
        }
    }
}
