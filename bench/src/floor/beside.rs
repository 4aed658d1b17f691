//! The floor beside one measured run: the same load on the floor server right before and right after it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::MAX_CONNECTIONS;
use crate::host;
use crate::latency::{Latencies, Summary};
use crate::load;
use crate::process::{OwnedProcess, start_floor_server};
use crate::produce;
use crate::report::{Curve, LoadFacts};

/// What to start.
#[derive(Clone, Debug)]
pub struct BesideConfig {
    /// Folder on the disk that the node uses; a temporary one is made in it.
    pub dir: PathBuf,
    /// Copies of each append: floor servers that take part, all on this disk.
    pub copies: usize,
    /// Appends that each keeps under way.
    pub writes_in_flight: usize,
    /// CPU of the load.
    pub client_cpu: Option<usize>,
}

/// Running floor servers.
pub struct FloorBeside {
    // Before the folder, so that they are gone when it is removed. The first one takes the load.
    servers: Vec<OwnedProcess>,
    addr: SocketAddr,
    client_cpu: Option<usize>,
    _folder: TempDir,
}

impl FloorBeside {
    /// Starts them, each on the CPU on which `pairs` would have it.
    ///
    /// # Errors
    /// When the folder is not on a disk that takes O_DIRECT.
    pub fn start(config: &BesideConfig) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&config.dir)?;
        let folder = tempfile::Builder::new().prefix("pyralog-floor-").tempdir_in(&config.dir)?;
        let cpu = host::server_cpu(&config.dir).filter(|_| config.copies == 1);
        let (mut servers, mut followers) = (Vec::new(), Vec::new());
        for number in 1..config.copies {
            let (server, addr) = start_one(config, folder.path(), number, None, &[])?;
            servers.push(server);
            followers.push(addr);
        }
        let (first, addr) = start_one(config, folder.path(), 0, cpu, &followers)?;
        servers.insert(0, first);
        Ok(Self { servers, addr, client_cpu: config.client_cpu, _folder: folder })
    }

    /// The same load on it.
    ///
    /// # Errors
    /// When it is not there any more, or nothing was measured.
    pub fn run(&mut self, load: &LoadFacts) -> anyhow::Result<Latencies> {
        ensure_served(load)?;
        self.servers.iter_mut().try_for_each(OwnedProcess::ensure_running)?;
        let connections = produce::connect_floor(self.addr, load.connections, load.batch)?;
        let result = load::run(connections, load.threads, self.client_cpu, load.shape)
            .context("load on the floor server")?;
        anyhow::ensure!(result.latencies.count() > 0, "nothing was measured; give more seconds");
        Ok(result.latencies)
    }

    /// Ends them.
    ///
    /// # Errors
    /// When one can't be killed.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.servers.iter_mut().try_for_each(OwnedProcess::kill)
    }
}

/// Does `work` between two runs of the same load on the floor, if there is to be one.
///
/// # Errors
/// Those of the work; those of the floor, before which nothing else has been run for nothing.
pub fn around<T>(
    config: Option<&BesideConfig>,
    load: &LoadFacts,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<(T, Option<Floors>)> {
    let Some(config) = config else { return Ok((work()?, None)) };
    ensure_served(load)?;
    let mut floor =
        FloorBeside::start(config).with_context(|| format!("the floor in {}", config.dir.display()))?;
    eprintln!("floor before");
    let before = floor.run(load)?;
    eprintln!("node");
    let done = work()?;
    eprintln!("floor after");
    let after = floor.run(load)?;
    floor.stop()?;
    Ok((done, Some(Floors { before, after })))
}

/// What the floor took before and after a run.
pub struct Floors {
    /// Before.
    pub before: Latencies,
    /// After.
    pub after: Latencies,
}

impl Floors {
    /// How many times as long `node` took.
    pub fn ratios(&self, node: &Latencies) -> FloorRatios {
        FloorRatios::new(self.before.summary(), node.summary(), self.after.summary())
    }

    /// Both as one curve; `measured` is the time of each.
    ///
    /// # Errors
    /// None for what [`around`] returns.
    pub fn into_curve(self, measured: Duration) -> anyhow::Result<Curve> {
        let mut latencies = self.before;
        latencies.merge(&self.after)?;
        let per_second = latencies.count() as f64 / (2.0 * measured.as_secs_f64());
        Ok(Curve { name: "floor".to_owned(), latencies, per_second })
    }
}

/// The last lines of a report: what divides a run from the floor, or that nobody knows.
pub fn last_lines(ratios: Option<&FloorRatios>) -> String {
    ratios.map_or_else(
        || format!("\n{NO_FLOOR}\n"),
        |ratios| {
            let (before, after) = (ratios.before, ratios.after);
            format!("\nfloor before {before}\nfloor after  {after}\n{}{ratios}\n", ratios.drift_line())
        },
    )
}

/// Refuses a load that the floor server would not take, before anything has been measured.
fn ensure_served(load: &LoadFacts) -> anyhow::Result<()> {
    anyhow::ensure!(
        load.connections <= MAX_CONNECTIONS,
        "the floor server serves at most {MAX_CONNECTIONS} connections, not {}; leave out --floor-dir",
        load.connections
    );
    Ok(())
}

fn start_one(
    config: &BesideConfig,
    dir: &Path,
    number: usize,
    cpu: Option<usize>,
    followers: &[SocketAddr],
) -> anyhow::Result<(OwnedProcess, SocketAddr)> {
    let dir = dir.join(format!("floor-{number}"));
    std::fs::create_dir(&dir)?;
    start_floor_server(&dir, cpu, config.writes_in_flight, false, followers)
}

/// Two floors further apart than this are told of.
const QUIET: f64 = 1.5;

/// Floor, node, floor, and what divides them.
#[derive(Clone, Copy, Debug)]
pub struct FloorRatios {
    /// The floor before the run.
    pub before: Summary,
    /// The floor after it.
    pub after: Summary,
    /// Node divided by the mean of both floors, of p50, p99 and p999.
    pub ratios: [f64; 3],
}

impl FloorRatios {
    /// The ratios of `node`.
    pub fn new(before: Summary, node: Summary, after: Summary) -> Self {
        let of = |pick: fn(&Summary) -> f64| pick(&node) / ((pick(&before) + pick(&after)) / 2.0);
        Self { before, after, ratios: [of(|s| s.p50_us), of(|s| s.p99_us), of(|s| s.p999_us)] }
    }

    /// How far apart the two floors are, of p50 or p99, whichever is more; at least 1.
    pub fn drift(&self) -> f64 {
        let of = |pick: fn(&Summary) -> f64| {
            let ratio = pick(&self.after) / pick(&self.before);
            ratio.max(1.0 / ratio)
        };
        of(|s| s.p50_us).max(of(|s| s.p99_us))
    }

    fn drift_line(&self) -> String {
        let drift = self.drift();
        if drift <= QUIET {
            return String::new();
        }
        format!(
            "the floor itself changed {drift:.1}-fold between before and after: the machine was not quiet, and the ratio \
             below is as uncertain; measure again, longer, or use pairs\n"
        )
    }

    /// For a program.
    pub fn to_json(self) -> Value {
        let [p50, p99, p999] = self.ratios;
        json!({
            "before": self.before.to_json(), "after": self.after.to_json(),
            "ratios": { "p50": p50, "p99": p99, "p999": p999 }, "drift": self.drift(),
        })
    }
}

impl std::fmt::Display for FloorRatios {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [p50, p99, p999] = self.ratios;
        write!(f, "node / floor (mean of before and after): p50 {p50:.2}, p99 {p99:.2}, p999 {p999:.2}")
    }
}

/// The last line of a report without a floor.
const NO_FLOOR: &str = "no floor was measured, so these figures say as much about the machine as about the node; --floor-dir DIR \
     (on the node's disk) runs the same load on the bare floor server before and after";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::run_of;

    #[test]
    fn the_ratio_is_to_the_mean_of_both_floors() {
        let of = |us: u64| run_of(&[us]).curves[0].latencies.summary();
        let ratios = FloorRatios::new(of(100), of(300), of(300));
        assert!(ratios.ratios.iter().all(|ratio| (ratio - 1.5).abs() < 0.01), "{ratios}");
        assert!((ratios.to_json()["ratios"]["p99"].as_f64().unwrap() - 1.5).abs() < 0.01);
        assert!(ratios.to_string().contains("p50 1.50"), "{ratios}");
    }

    #[test]
    fn a_machine_that_is_not_quiet_is_told_of() {
        let of = |us: u64| run_of(&[us]).curves[0].latencies.summary();
        for (before, after) in [(100, 300), (300, 100)] {
            let ratios = FloorRatios::new(of(before), of(300), of(after));
            assert!((ratios.drift() - 3.0).abs() < 0.02, "{}", ratios.drift());
            assert!(last_lines(Some(&ratios)).contains("3.0-fold"));
        }
        let quiet = last_lines(Some(&FloorRatios::new(of(100), of(300), of(140))));
        assert!(!quiet.contains("fold") && quiet.contains("p99 2.50"), "{quiet}");
        assert!(last_lines(None).contains("--floor-dir"));
    }
}
