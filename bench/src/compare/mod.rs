//! Pyralog beside other systems that acknowledge what is on stable storage, of one node or of a majority of three: in turns,
//! by one load generator, each on a machine that does nothing else meanwhile.

mod etcd;
mod flushes;
mod nats;
mod postgres;
mod pyralog;
mod rabbitmq;
mod redis;
mod report;
mod server;
mod system;

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::device::DiskFacts;
use crate::host::HostFacts;
use crate::latency::Latencies;
use crate::live::{Mode, Monitor};
use crate::load::{self, LoadShape};
use crate::pairs::{self, Side};
use crate::produce::BatchShape;
use crate::report::LoadFacts;
use flushes::{Counts, FlushCounter, PerRequest};
use pyralog::Pyralog;
use system::{Plan, System};

pub use report::CompareReport;
pub use system::Peer;

/// How long the idle disk is watched before anything starts.
const IDLE: Duration = Duration::from_secs(1);

/// What to run.
#[derive(Clone, Debug)]
pub struct CompareConfig {
    /// The `pyralog` program.
    pub server: PathBuf,
    /// Folder on the disk to be used; a temporary one is made in it.
    pub dir: PathBuf,
    /// Folders in which peers' programs are looked for before those in `PATH`.
    pub programs: Vec<PathBuf>,
    /// With whom; one that is not installed is left out.
    pub peers: Vec<Peer>,
    /// Nodes of each system, 1 or 3.
    pub nodes: usize,
    /// Rounds; each measures each system once.
    pub rounds: usize,
    /// Shape of every run.
    pub shape: LoadShape,
    /// Connections.
    pub connections: usize,
    /// What each request carries.
    pub batch: BatchShape,
    /// CPUs of Pyralog's nodes, in turns; empty for its own choice. Other systems run where they like.
    pub cpus: Vec<usize>,
    /// Whether and how each turn tells how it goes.
    pub live: Mode,
}

/// One system's turn in a round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    side: Side,
    /// `None` where the disk does not count.
    disk: Option<PerRequest>,
}

/// A system with what was measured of it.
struct Entrant {
    system: Box<dyn System>,
    version: String,
    /// One of each round, until it failed.
    turns: Vec<Turn>,
    /// Of all its turns.
    latencies: Latencies,
    failure: Option<String>,
}

/// Runs it. A peer that fails is left alone from there on and named in the report; Pyralog's own failure ends the run.
pub fn run(config: &CompareConfig) -> anyhow::Result<CompareReport> {
    anyhow::ensure!(config.rounds > 0, "0 rounds; give at least one");
    anyhow::ensure!(matches!(config.nodes, 1 | 3), "{} nodes; there can be 1 or 3", config.nodes);
    let mut entrants = vec![Entrant::new(Box::new(Pyralog::find(&config.server)?))?];
    let mut left_out = Vec::new();
    for peer in &config.peers {
        match peer.find(&config.programs, config.nodes) {
            Ok(system) => entrants.push(Entrant::new(system)?),
            Err(why) => left_out.push((peer.name().to_owned(), format!("{why:#}"))),
        }
    }
    for (name, why) in &left_out {
        eprintln!("{name} is left out: {why}");
    }
    anyhow::ensure!(entrants.len() > 1, "none of the systems to compare with is installed");
    fs::create_dir_all(&config.dir)?;
    let folder = tempfile::Builder::new().prefix("pyralog-compare-").tempdir_in(&config.dir)?;
    // Some systems run as another user, who has to get through to their folders.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    let counter = FlushCounter::of(folder.path());
    let idle_flushes_per_second = counter.as_ref().ok().map(watch_idle_disk).transpose()?;
    for round in 0..config.rounds {
        for at in order(entrants.len(), round) {
            if let Some(entrant) = entrants.get_mut(at) {
                let dir = folder.path().join(format!("{round}-{}", entrant.system.name()));
                entrant.take_turn(config, &dir, counter.as_ref().ok(), at == 0)?;
            }
        }
        eprintln!("round {} of {} done", round + 1, config.rounds);
    }
    Ok(CompareReport {
        host: HostFacts::collect(),
        nodes: config.nodes,
        rounds: config.rounds,
        load: describe(config),
        load_facts: config.load_facts(),
        disk_facts: DiskFacts::of(&config.dir)?,
        records: config.batch.records,
        most_under_way: config.connections * config.shape.outstanding,
        disk: counter.map(|counter| counter.device).map_err(|why| format!("{why:#}")),
        idle_flushes_per_second,
        systems: entrants.into_iter().map(|entrant| entrant.into_report(&config.plan())).collect(),
        left_out,
    })
}

/// Every round begins with another system, so that a drift of the machine favours none.
fn order(systems: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..systems).map(move |place| (place + round) % systems)
}

/// Flushes a second while nothing of ours runs.
fn watch_idle_disk(counter: &FlushCounter) -> anyhow::Result<f64> {
    let (before, begin) = (counter.read()?, Instant::now());
    std::thread::sleep(IDLE);
    let flushes = counter.read()?.flushes.saturating_sub(before.flushes);
    Ok(flushes as f64 / begin.elapsed().as_secs_f64())
}

fn describe(config: &CompareConfig) -> String {
    let shape = &config.shape;
    format!(
        "{} connection(s), {} outstanding, {} record(s) of {} bytes in each request, {}, {:?} + {:?} warm-up",
        config.connections,
        shape.outstanding,
        config.batch.records,
        config.batch.record_bytes,
        shape.rate.map_or("closed loop".to_owned(), |rate| format!("{rate} requests/s")),
        shape.measured,
        shape.warmup
    )
}

impl CompareConfig {
    fn load_facts(&self) -> LoadFacts {
        LoadFacts { connections: self.connections, threads: 1, shape: self.shape, batch: self.batch }
    }

    fn plan(&self) -> Plan {
        Plan {
            nodes: self.nodes,
            connections: self.connections,
            outstanding: self.shape.outstanding,
            batch: self.batch,
            cpus: self.cpus.clone(),
        }
    }
}

impl Entrant {
    fn new(system: Box<dyn System>) -> anyhow::Result<Self> {
        let latencies = Latencies::new()?;
        Ok(Self { version: system.version(), system, turns: Vec::new(), latencies, failure: None })
    }

    /// Starts, loads and ends it in `dir`, which is removed. An error is kept unless it must not be.
    fn take_turn(
        &mut self,
        config: &CompareConfig,
        dir: &Path,
        counter: Option<&FlushCounter>,
        must_succeed: bool,
    ) -> anyhow::Result<()> {
        if self.failure.is_some() {
            return Ok(());
        }
        fs::create_dir(dir)?;
        let outcome = turn(config, self.system.as_ref(), dir, counter);
        fs::remove_dir_all(dir).with_context(|| format!("{}: can't be removed", dir.display()))?;
        match outcome.with_context(|| format!("{} failed", self.system.name())) {
            Ok(measured) => {
                self.turns.push(measured.turn);
                self.latencies.merge(&measured.latencies)?;
                self.version = measured.version.unwrap_or_else(|| self.system.version());
            }
            Err(error) if must_succeed => return Err(error),
            Err(error) => {
                eprintln!("{error:#}");
                self.failure = Some(format!("{error:#}"));
            }
        }
        Ok(())
    }

    fn into_report(self, plan: &Plan) -> report::SystemReport {
        report::SystemReport {
            name: self.system.name(),
            version: self.version,
            settings: self.system.settings(plan),
            turns: self.turns,
            latencies: self.latencies,
            failure: self.failure,
        }
    }
}

/// What a turn gave.
struct Measured {
    turn: Turn,
    latencies: Latencies,
    version: Option<String>,
}

fn turn(
    config: &CompareConfig,
    system: &dyn System,
    dir: &Path,
    counter: Option<&FlushCounter>,
) -> anyhow::Result<Measured> {
    let plan = config.plan();
    let mut running = system.start(dir, &plan)?;
    let (version, connections) = (running.version(), running.connect(&plan)?);
    // What the last turn and this start have left to be written is not part of this one.
    sync_disk(dir)?;
    let count = || counter.map(FlushCounter::read).transpose();
    let before = count()?;
    let monitor = Monitor::new(config.live, config.shape.warmup);
    let board = monitor.board(system.name());
    let loaded = monitor.during(|| load::run_watched(connections, 1, None, config.shape, board.as_deref()));
    let after = count()?;
    // Its log tells more than the load does.
    running.ensure_running()?;
    let result = loaded?;
    let per_request = |(before, after): (Counts, Counts)| PerRequest::of(before, after, result.replies);
    let disk = before.zip(after).and_then(per_request);
    let latencies = result.latencies.clone();
    let side = pairs::measured(result)?;
    running.stop()?;
    eprintln!("{:9} {}{:12.0} acks/s", system.name(), side.latency, side.acks_per_second);
    Ok(Measured { turn: Turn { side, disk }, latencies, version })
}

fn sync_disk(dir: &Path) -> anyhow::Result<()> {
    let folder = fs::File::open(dir)?;
    // SAFETY: syncfs takes a descriptor, which is open, and touches no memory of ours.
    let result = unsafe { libc::syncfs(folder.as_raw_fd()) };
    anyhow::ensure!(result == 0, "{}: syncfs failed: {}", dir.display(), std::io::Error::last_os_error());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_round_begins_with_another_system() {
        assert_eq!(order(3, 0).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(order(3, 1).collect::<Vec<_>>(), [1, 2, 0]);
        assert_eq!(order(3, 5).collect::<Vec<_>>(), [2, 0, 1]);
    }

    /// Runs each system that is installed for a moment, through its own protocol: the real servers judge the codecs. Pyralog is
    /// represented by nobody here, as its program may not be built.
    #[test]
    #[ignore = "starts database servers; run with --ignored on a machine that has them (bench/peers/install.sh)"]
    fn installed_systems_take_and_acknowledge_records() {
        let programs: Vec<PathBuf> = std::env::var_os("PEERS_PROGRAMS")
            .map(|folders| std::env::split_paths(&folders).collect())
            .unwrap_or_default();
        for nodes in [1, 3] {
            for peer in Peer::ALL {
                let system = match peer.find(&programs, nodes) {
                    Ok(system) => system,
                    Err(why) => {
                        eprintln!("skipped: {}: {why:#}", peer.name());
                        continue;
                    }
                };
                for (outstanding, records) in [(1, 1), (4, 10)] {
                    let dir = tempfile::tempdir().unwrap();
                    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
                    let shape = LoadShape {
                        outstanding,
                        rate: None,
                        warmup: Duration::ZERO,
                        measured: Duration::from_millis(300),
                    };
                    let config = CompareConfig {
                        server: PathBuf::new(),
                        dir: dir.path().to_owned(),
                        programs: Vec::new(),
                        peers: Vec::new(),
                        nodes,
                        rounds: 1,
                        shape,
                        connections: 2,
                        batch: BatchShape { records, record_bytes: 256 },
                        cpus: Vec::new(),
                        live: Mode::Off,
                    };
                    let place = dir.path().join(peer.name());
                    fs::create_dir(&place).unwrap();
                    let measured = turn(&config, system.as_ref(), &place, None).unwrap();
                    assert!(measured.turn.side.acks_per_second > 0.0 && measured.latencies.count() > 0);
                }
            }
        }
    }
}
