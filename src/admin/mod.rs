//! `pyralog-admin`.

mod cli;
mod cluster;
mod consume;
mod lines;
mod local;
mod offline;
mod output;
mod partition;
mod produce;
mod reassign;
mod rebalance;
mod records;
mod scrub;
mod topic;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use pyralog_core::ErrorCode;
use pyralog_net::client::{Client, ClientConfig, ClientError};

use crate::failure::{self, Exit, Failure};
use cli::{Cli, ClusterCommand, Command, LeadersCommand, PartitionCommand, ScrubCommand};

/// Header of a record made from a last line without a newline (value `none`), so that reading gives back the
/// same bytes.
const EOL_HEADER: &str = "pyralog.eol";

/// The program `pyralog-admin`.
pub(crate) fn main() -> ExitCode {
    failure::exit("pyralog-admin", run(Cli::parse()))
}

fn run(cli: Cli) -> Result<(), Failure> {
    // Administrative requests answer a person: they are tried again for a moment, not for long.
    let mut client = client(&cli.cluster, Duration::from_secs(5));
    match cli.command {
        Command::Cluster(ClusterCommand::Info) => cluster::info(&mut client, cli.output),
        Command::Cluster(ClusterCommand::StartLocal(arguments)) => local::start(&arguments, cli.output),
        Command::Cluster(ClusterCommand::StopLocal(arguments)) => local::stop(&arguments, cli.output),
        Command::Topic(command) => topic::run(&mut client, cli.output, command),
        Command::Produce(arguments) => produce::run(&cli.cluster, client, cli.output, &arguments),
        Command::Consume(arguments) => consume::run(&cli.cluster, client, &arguments),
        Command::Cluster(ClusterCommand::AddNode(arguments)) => {
            cluster::add_node(&mut client, cli.output, &arguments)
        }
        Command::Cluster(ClusterCommand::RemoveNode(arguments)) => {
            rebalance::remove_node(&mut client, cli.output, &arguments)
        }
        Command::Leaders(LeadersCommand::Transfer { partition, to }) => {
            reassign::transfer(&mut client, cli.output, &partition, to)
        }
        Command::Partition(PartitionCommand::Recover(arguments)) => {
            partition::recover(&mut client, cli.output, &arguments)
        }
        Command::Rebalance(arguments) => rebalance::run(&mut client, cli.output, &arguments),
        Command::Reassign(arguments) => reassign::run(&mut client, cli.output, &arguments),
        Command::Scrub(ScrubCommand::Start(arguments)) => scrub::start(&mut client, cli.output, &arguments),
        Command::Scrub(ScrubCommand::Status) => scrub::status(&mut client, cli.output),
        Command::Log(command) => offline::run(cli.output, command),
    }
}

/// A client of the cluster that keeps trying for `retry_for`.
pub(crate) fn client(cluster: &[String], retry_for: Duration) -> Client {
    let name = format!("pyralog-admin {}", env!("CARGO_PKG_VERSION"));
    Client::new(cluster, ClientConfig { name, retry_for, ..ClientConfig::default() })
}

/// What a client's error means to a person. `topic` is the one that the request was about.
fn explain(error: ClientError, topic: Option<&str>) -> Failure {
    match error {
        ClientError::Connect { address, source } => Failure::new(
            Exit::CannotConnect,
            format!(
                "cannot connect to {address}: {source}; start a node with `pyralog`, or name one with \
                 --cluster HOST:PORT or PYRALOG_CLUSTER"
            ),
        ),
        ClientError::Server { code: ErrorCode::None, detail } => Failure::failed(detail),
        ClientError::Server { code, detail } => {
            let about = topic.map(|topic| format!("topic {topic:?}: ")).unwrap_or_default();
            let detail = if detail.is_empty() { String::new() } else { format!("{detail}; ") };
            Failure::failed(format!("{about}{detail}{code}"))
        }
        other => Failure::failed(other.to_string()),
    }
}

/// A retention setting for people.
fn retention(value: i64, show: impl Fn(u64) -> String) -> String {
    match u64::try_from(value) {
        Err(_) => "node's setting".into(),
        Ok(0) => "unlimited".into(),
        Ok(value) => show(value),
    }
}
