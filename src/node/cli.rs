//! The command line of `pyralog`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use pyralog_core::config::{ConfigErrors, Effective, Flag, Layers, load};

use crate::failure::Failure;

const EXIT_CODES: &str = "\
Exit codes:
  0    stopped cleanly; `demo`: everything was found
  1    a shard failed while running; `demo`: something is missing or differs
  2    the command line or the configuration is wrong
  3    the node cannot start: port or data folder in use, io_uring refused, disk unusable
  130  a second Ctrl-C (143: a second SIGTERM) ended it at once; nothing acknowledged is lost";

/// Runs a node of a Pyralog cluster. Every setting is explained in docs/configuration.md; each can be given as
/// an environment variable too (PYRALOG__SECTION__KEY). Logs go to standard error; PYRALOG_LOG=debug shows more.
#[derive(Debug, Parser)]
#[command(name = "pyralog", version, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) settings: Settings,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Starts a node, writes to it, kills it, checks that nothing acknowledged is lost, measures latencies.
    Demo(crate::demo::Arguments),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Every setting, its value and where the value came from.
    Show {
        /// How it is printed.
        #[arg(short, long, value_enum, default_value_t = ShowFormat::Text)]
        output: ShowFormat,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ShowFormat {
    /// Columns: key, value, origin.
    Text,
    Json,
    Yaml,
}

/// Settings on the command line; they beat the environment, which beats the file, which beats the preset.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Settings {
    /// Configuration file, JSON or YAML.
    #[arg(long, global = true, env = "PYRALOG_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Settings with a purpose: low-latency, throughput or durability.
    #[arg(long, global = true, env = "PYRALOG_PRESET", value_name = "NAME")]
    pub(crate) preset: Option<String>,
    /// Number of this node (node.node_id).
    #[arg(long, global = true, value_name = "N")]
    pub(crate) node_id: Option<String>,
    /// Folder of all data (node.data_dir).
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) data_dir: Option<String>,
    /// Folder of the journals, when on another disk (node.journal_dir).
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) journal_dir: Option<String>,
    /// Where clients connect; port 0 takes a free one (network.listen_address).
    #[arg(long, global = true, value_name = "IP:PORT")]
    pub(crate) listen: Option<String>,
    /// What clients are told to connect to (network.advertised_address).
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub(crate) advertise: Option<String>,
    /// How many cores to use (runtime.shards).
    #[arg(long, global = true, value_name = "N")]
    pub(crate) shards: Option<String>,
    /// Which CPUs to use, like 0-3,6 (runtime.cpus).
    #[arg(long, global = true, value_name = "LIST")]
    pub(crate) cpus: Option<String>,
    /// every_write, interval(10ms) or never (storage.fsync_policy).
    #[arg(long, global = true, value_name = "POLICY")]
    pub(crate) fsync_policy: Option<String>,
}

impl Settings {
    /// The effective configuration from file, environment and these.
    pub(crate) fn load(&self) -> Result<Effective, Failure> {
        let file = match &self.config {
            None => None,
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| {
                    Failure::usage(format!("cannot read the configuration file {}: {error}", path.display()))
                })?;
                Some((path.display().to_string(), text))
            }
        };
        // A variable that is not UTF-8 is told by its lossy text, which no key accepts.
        let env = std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .collect();
        load(&Layers { preset: self.preset.clone(), file, env, flags: self.flags() })
            .map_err(|errors| wrong(&errors))
    }

    fn flags(&self) -> Vec<Flag> {
        let given = [
            (&self.node_id, "node.node_id", "--node-id"),
            (&self.data_dir, "node.data_dir", "--data-dir"),
            (&self.journal_dir, "node.journal_dir", "--journal-dir"),
            (&self.listen, "network.listen_address", "--listen"),
            (&self.advertise, "network.advertised_address", "--advertise"),
            (&self.shards, "runtime.shards", "--shards"),
            (&self.cpus, "runtime.cpus", "--cpus"),
            (&self.fsync_policy, "storage.fsync_policy", "--fsync-policy"),
        ];
        let flag =
            |(value, key, option): (&Option<String>, _, _)| Some(Flag { key, value: value.clone()?, option });
        given.into_iter().filter_map(flag).collect()
    }
}

/// The configuration is wrong.
pub(crate) fn wrong(errors: &ConfigErrors) -> Failure {
    Failure::usage(errors.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_option_sets_a_key_that_exists() {
        let some = || Some("x".to_owned());
        let settings = Settings {
            config: None,
            preset: None,
            node_id: some(),
            data_dir: some(),
            journal_dir: some(),
            listen: some(),
            advertise: some(),
            shards: some(),
            cpus: some(),
            fsync_policy: some(),
        };
        for flag in settings.flags() {
            assert!(pyralog_core::config::keys::Key::find(flag.key).is_some(), "{}", flag.key);
        }
    }
}
