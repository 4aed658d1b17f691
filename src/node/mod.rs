//! `pyralog`: a node, from its configuration to its clean end.

mod banner;
mod cli;
mod options;
mod port;
mod progress;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use pyralog_core::ShardId;
use pyralog_core::config::Effective;
use pyralog_shard::engine::LogLevel;
use pyralog_shard::runtime::{ControlEvent, Node};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

pub(crate) use cli::Settings;
pub(crate) use options::cpus_for_nodes;

use crate::control::source::Source;
use crate::control::view::NodeFacts;
use crate::control::{HttpServer, router};
use crate::failure::{self, Exit, Failure};
use crate::kernel_checks::{self, Finding, Severity};
use crate::{demo, units};
use banner::Banner;
use cli::{Cli, Command, ConfigCommand, ShowFormat};
use progress::Progress;

/// Start of the line on standard output that says that every shard serves, followed by the address. Scripts and
/// tests wait for it.
pub(crate) const READY: &str = "ready on ";

/// A second signal this soon is the first one again, passed on by a program around this one.
const SAME_REQUEST: Duration = Duration::from_millis(250);

/// The program `pyralog`.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        None => run(&cli.settings),
        Some(Command::Config(ConfigCommand::Show { output })) => show(&cli.settings, output),
        Some(Command::Demo(arguments)) => demo::run(&arguments, &cli.settings),
    };
    failure::exit("pyralog", result)
}

fn show(settings: &Settings, format: ShowFormat) -> Result<(), Failure> {
    let effective = settings.load()?;
    let unprintable =
        |error: &dyn std::error::Error| Failure::failed(format!("cannot print it: {error}; use -o text"));
    let text = match format {
        ShowFormat::Text => effective.to_text(),
        ShowFormat::Json => {
            serde_json::to_string_pretty(&effective.to_json()).map_err(|error| unprintable(&error))?
        }
        ShowFormat::Yaml => {
            serde_saphyr::to_string(&effective.to_json()).map_err(|error| unprintable(&error))?
        }
    };
    say(&format!("{}\n", text.trim_end()));
    Ok(())
}

/// Prints; a reader of standard output that has gone away is no reason to end a node.
fn say(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

fn run(settings: &Settings) -> Result<(), Failure> {
    let started = Instant::now();
    let effective = settings.load()?;
    let config = &effective.config;
    let cpus = options::shard_cpus(config)?;
    let bound = effective.check_shards(cpus.len() as u16).map_err(|errors| cli::wrong(&errors))?;
    log_to_stderr();
    kernel_checks::raise_nofile();
    let readings = kernel_checks::read(&config.node.data_dir);
    let findings =
        kernel_checks::findings(&readings, &options::needs(config, cpus.len(), bound.total_bytes()));
    refuse_fatal(&findings)?;

    port::wait_until_free(config.network.listen_address);
    let (sender, events) = flume::unbounded();
    let node = Node::start(options::node(config, cpus.clone())?, sender)
        .map_err(|error| Failure::new(Exit::CannotStart, error.to_string()))?;
    let address = node.addr();
    let facts = NodeFacts {
        node_id: config.node.node_id,
        cluster_name: config.node.cluster_name.clone(),
        cluster_id: config.cluster_id(),
        address: config.advertised_address(address.port()),
        data_dir: config.node.data_dir.display().to_string(),
        fsync_policy: setting(&effective, "storage.fsync_policy"),
        memory_bound_bytes: bound.total_bytes(),
        started,
    };
    let banner = Banner {
        node_id: config.node.node_id,
        cpus: cpus.clone(),
        listen: address.to_string(),
        advertised: facts.address.clone(),
        data_dir: config.node.data_dir.clone(),
        journal_dir: config.journal_dir(),
        fsync_policy: facts.fsync_policy.clone(),
        memory_bound_bytes: facts.memory_bound_bytes,
        max_connections: node.max_connections(),
        findings,
    };
    say(&banner.to_string());
    let control =
        Control { source: Arc::new(Source::new(facts, node, &cpus)), address: address.to_string(), started };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| {
        Failure::new(Exit::CannotStart, format!("cannot start the control thread: {error}"))
    })?;
    let result = runtime.block_on(control.serve(&events));
    // Whatever is still connected by HTTP is not waited for.
    runtime.shutdown_background();
    result
}

/// A setting as it would be written in a file.
fn setting(effective: &Effective, path: &str) -> String {
    effective.entries().find(|(key, ..)| key.path == path).map(|(_, value, _)| value).unwrap_or_default()
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("PYRALOG_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    // Only a second call in one process fails, and there is none.
    let _ = subscriber.with_ansi(colours).try_init();
}

fn refuse_fatal(findings: &[Finding]) -> Result<(), Failure> {
    match findings.iter().find(|finding| finding.severity == Severity::Fatal) {
        Some(fatal) => Err(Failure::new(Exit::CannotStart, fatal.to_string())),
        None => Ok(()),
    }
}

/// Both ways to ask for the end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Name and number of the next one.
    async fn next(&mut self) -> (&'static str, i32) {
        tokio::select! {
            _ = self.interrupt.recv() => ("SIGINT", libc::SIGINT),
            _ = self.terminate.recv() => ("SIGTERM", libc::SIGTERM),
        }
    }
}

/// The control thread's main task.
struct Control {
    source: Arc<Source>,
    address: String,
    started: Instant,
}

impl Control {
    async fn serve(self, events: &flume::Receiver<ControlEvent>) -> Result<(), Failure> {
        let mut signals = Signals::listen().map_err(|error| {
            Failure::new(Exit::CannotStart, format!("cannot listen for signals: {error}"))
        })?;
        let http = HttpServer::new(router(Arc::clone(&self.source)));
        let mut progress = Progress::default();
        let cause = loop {
            tokio::select! {
                (name, _) = signals.next() => break Ok(name),
                event = events.recv_async() => match event {
                    Ok(event) => if let Err(failure) = self.event(event, &http, &mut progress) { break Err(failure) },
                    Err(_) => break Err(Failure::failed("every shard has ended; see the log")),
                },
            }
        };
        self.stop(cause, events, &mut signals, &http).await
    }

    fn event(&self, event: ControlEvent, http: &HttpServer, progress: &mut Progress) -> Result<(), Failure> {
        match event {
            ControlEvent::HttpSocket { stream, prefix } => http.serve(stream, prefix),
            ControlEvent::Catalog(catalog) => self.source.set_catalog(catalog),
            ControlEvent::Log { shard, level, text } => log(shard, level, &text),
            ControlEvent::RecoveryProgress { shard, done, total } => {
                self.source.shard_replays(shard, done, total);
                if let Some(line) = progress.update(shard, done, total, Instant::now()) {
                    say(&line);
                }
            }
            ControlEvent::ShardReady { shard } => {
                if self.source.shard_ready(shard) && progress.first_time_ready() {
                    self.source.all_ready().map_err(Failure::failed)?;
                    let after = units::duration(self.started.elapsed());
                    say(&format!("{READY}{}, {after} after the start\n", self.address));
                }
            }
            ControlEvent::ShardFailed { shard, error } => {
                self.source.shard_failed(shard, error.clone());
                return Err(Failure::failed(format!("shard {shard} has failed: {error}")));
            }
        }
        Ok(())
    }

    /// Shuts the shards down, while a further signal still ends the process at once.
    async fn stop(
        &self,
        cause: Result<&'static str, Failure>,
        events: &flume::Receiver<ControlEvent>,
        signals: &mut Signals,
        http: &HttpServer,
    ) -> Result<(), Failure> {
        let begun = Instant::now();
        let shards = self.source.shards().await;
        let records: u64 =
            shards.iter().filter_map(|shard| Some(shard.status.as_ref()?.counters.records)).sum();
        let Some(node) = self.source.take_node() else { return cause.map(drop) };
        let mut down = tokio::task::spawn_blocking(move || node.shutdown());
        let ended = loop {
            tokio::select! {
                (name, number) = signals.next() => {
                    if begun.elapsed() < SAME_REQUEST {
                        continue;
                    }
                    eprintln!("pyralog: ended at once by a second signal ({name}); the next start replays the journals");
                    std::process::exit(128 + number);
                }
                ended = &mut down => break ended,
                Ok(event) = events.recv_async() => match event {
                    ControlEvent::Log { shard, level, text } => log(shard, level, &text),
                    ControlEvent::HttpSocket { stream, prefix } => http.serve(stream, prefix),
                    _ => {}
                },
            }
        };
        let cause = cause?;
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(text)) => return Err(Failure::failed(text)),
            Err(panic) => return Err(Failure::failed(format!("the shutdown failed: {panic}"))),
        }
        say(&format!(
            "stopped after {cause} in {}: {} shards wrote out what they held; {} records appended in this run, the \
             metadata's included\n",
            units::duration(begun.elapsed()),
            shards.len(),
            units::count(records),
        ));
        Ok(())
    }
}

fn log(shard: ShardId, level: LogLevel, text: &str) {
    match level {
        LogLevel::Error => tracing::error!(%shard, "{text}"),
        LogLevel::Warn => tracing::warn!(%shard, "{text}"),
        LogLevel::Info => tracing::info!(%shard, "{text}"),
    }
}
