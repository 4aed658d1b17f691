//! The floors of this machine, in one run: the loopback, the disk, and both in sequence in one bare program.
//!
//! Nothing that answers over TCP when a write is durable can be faster than the third on this machine, whatever it is
//! written in; what it takes beyond the sum of the first two is the cost of going from one to the other.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use pyralog_core::GroupId;
use serde_json::{Map, Value, json};

use super::{Exchange, Side, WrittenFile, append_latencies, loopback_latencies, round_trips};
use crate::device::DiskFacts;
use crate::host::{self, HostFacts};
use crate::latency::{Latencies, Summary};
use crate::process::{OwnedProcess, start_floor_server};
use crate::produce::{self, BatchShape};
use crate::report::{Curve, Run};
use crate::wire::HEADER;

/// Not measured, before each measurement.
const WARMUP: Duration = Duration::from_millis(200);
const FILE_BYTES: u64 = 64 << 20;

/// What to measure.
#[derive(Clone, Debug)]
pub struct ProbeConfig {
    /// Folder on the disk to be measured; a temporary one is made in it.
    pub dir: PathBuf,
    /// Time of each measurement, over all rounds.
    pub time: Duration,
    /// Rounds: each measures everything once, for its share of the time.
    pub rounds: u32,
    /// CPU of the servers; `None` lets the tool choose.
    pub server_cpu: Option<usize>,
    /// CPU of the clients.
    pub client_cpu: Option<usize>,
    /// What each request carries.
    pub batch: BatchShape,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Loopback,
    Append,
    Both,
}

/// One row of the report.
struct Row {
    what: What,
    spin: bool,
    latencies: Latencies,
}

/// Measures all of it, in turns.
///
/// # Errors
/// When the folder takes no O_DIRECT, or a CPU is refused.
pub fn run(config: &ProbeConfig) -> anyhow::Result<ProbeReport> {
    anyhow::ensure!(config.rounds > 0, "0 rounds; give at least one");
    std::fs::create_dir_all(&config.dir)?;
    let folder = tempfile::Builder::new().prefix("pyralog-floor-").tempdir_in(&config.dir)?;
    let bench = Bench::new(config, folder.path())?;
    let may_spin = bench.may_spin();
    let mut rows = Vec::new();
    for what in [What::Loopback, What::Append, What::Both] {
        for spin in [false, true].into_iter().filter(|spin| !spin || may_spin) {
            rows.push(Row { what, spin, latencies: Latencies::new()? });
        }
    }
    for round in 0..config.rounds {
        for row in &mut rows {
            let part = bench.measure(row.what, row.spin).with_context(|| row.name())?;
            row.latencies.merge(&part)?;
        }
        eprintln!("round {} of {} done", round + 1, config.rounds);
    }
    let disk = DiskFacts::of(&config.dir)?;
    let cpus = bench.cpus;
    Ok(ProbeReport { host: HostFacts::collect(), disk, cpus, config: config.clone(), rows })
}

struct Bench<'a> {
    folder: &'a Path,
    exchange: Exchange,
    cpus: (Option<usize>, Option<usize>),
    share: Duration,
}

impl<'a> Bench<'a> {
    fn new(config: &ProbeConfig, folder: &'a Path) -> anyhow::Result<Self> {
        let frame = produce::produce_frame(GroupId::new(1, 0), &produce::batch(config.batch)?)?;
        let mut request = Vec::new();
        frame.append_to(&mut request, 0);
        let reply_bytes = HEADER + produce::produce_reply_body_bytes();
        let server = config.server_cpu.or(host::server_cpu(&config.dir));
        let cpus = (server, config.client_cpu.or(server.and_then(host::other_cpu)));
        let exchange = Exchange { request, reply_bytes };
        Ok(Self { folder, exchange, cpus, share: config.time / config.rounds })
    }

    /// Two threads that never sleep need a CPU each.
    fn may_spin(&self) -> bool {
        matches!(self.cpus, (Some(server), Some(client)) if server != client)
    }

    fn measure(&self, what: What, spin: bool) -> anyhow::Result<Latencies> {
        let (server, client) = (Side { cpu: self.cpus.0, spin }, Side { cpu: self.cpus.1, spin });
        match what {
            What::Loopback => loopback_latencies(&self.exchange, client, server, WARMUP, self.share),
            What::Append => self.on_server_cpu(|| {
                let mut file = WrittenFile::create(&self.folder.join("append"), FILE_BYTES)?;
                append_latencies(&mut file, spin, WARMUP)?;
                append_latencies(&mut file, spin, self.share)
            }),
            What::Both => {
                let (mut process, addr) = start_floor_server(self.folder, server.cpu, 1, spin, &[])?;
                let measured = std::thread::scope(|scope| {
                    let client = scope.spawn(|| {
                        let socket = std::net::TcpStream::connect(addr)?;
                        round_trips(socket, &self.exchange, client, WARMUP, self.share)
                    });
                    client.join().map_err(|_| anyhow::anyhow!("the client's thread panicked"))?
                });
                let killed = OwnedProcess::kill(&mut process);
                measured.and_then(|latencies| killed.map(|()| latencies))
            }
        }
    }

    /// In a thread of its own, so that the caller's stays where it is.
    fn on_server_cpu<T: Send>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        let pinned = || {
            self.cpus.0.map_or(Ok(()), host::pin_to_cpu)?;
            work()
        };
        std::thread::scope(|scope| {
            scope.spawn(pinned).join().map_err(|_| anyhow::anyhow!("the appending thread panicked"))?
        })
    }
}

impl Row {
    fn name(&self) -> String {
        let what = match self.what {
            What::Loopback => "TCP loopback round trip",
            What::Append => "durable append, 4 KiB",
            What::Both => "both in sequence: floor server",
        };
        format!("{what}{}", if self.spin { ", spinning" } else { "" })
    }

    fn file_name(&self) -> String {
        let what = match self.what {
            What::Loopback => "loopback",
            What::Append => "append",
            What::Both => "floor",
        };
        format!("{what}{}", if self.spin { "-spinning" } else { "" })
    }
}

/// What came out.
pub struct ProbeReport {
    host: HostFacts,
    disk: DiskFacts,
    cpus: (Option<usize>, Option<usize>),
    config: ProbeConfig,
    rows: Vec<Row>,
}

impl ProbeReport {
    /// What the floor server takes at the median beyond loopback and append, microseconds.
    fn beyond_the_parts_us(&self, spin: bool) -> Option<f64> {
        let p50_us = |what: What| {
            let row = self.rows.iter().find(|row| (row.what, row.spin) == (what, spin))?;
            Some(row.latencies.quantile_us(0.5))
        };
        Some(p50_us(What::Both)? - p50_us(What::Loopback)? - p50_us(What::Append)?)
    }

    /// For a terminal.
    pub fn to_table(&self) -> String {
        let mut text = format!("{}\n{}\n{}\n\n", self.host, self.disk, self.load_line());
        text += &format!("{:40}{}\n", "one at a time", Summary::HEADS);
        for row in &self.rows {
            text += &format!("{:40}{}\n", row.name(), row.latencies.summary());
        }
        text.push('\n');
        for (spin, how) in [(false, "sleeping"), (true, "spinning")] {
            if let Some(us) = self.beyond_the_parts_us(spin) {
                text += &format!("{how}: the floor server's p50 is {us:+.1} µs from loopback plus append\n");
            }
        }
        if !self.rows.iter().any(|row| row.spin) {
            text +=
                "spinning was not measured: it takes a CPU for the server and another one for the client\n";
        }
        text
    }

    fn load_line(&self) -> String {
        let cpu = |cpu: Option<usize>| cpu.map_or("any CPU".to_owned(), |cpu| format!("CPU {cpu}"));
        format!(
            "closed loop, one outstanding, {} record(s) of {} bytes, {:?} each in {} round(s); server on {}, client on {}",
            self.config.batch.records,
            self.config.batch.record_bytes,
            self.config.time,
            self.config.rounds,
            cpu(self.cpus.0),
            cpu(self.cpus.1)
        )
    }

    /// For files and programs.
    pub fn into_run(self) -> Run {
        let load_line = self.load_line();
        let mut more = Map::new();
        for (spin, key) in [(false, "beyond_the_parts_p50_us"), (true, "beyond_the_parts_spinning_p50_us")] {
            more.insert(key.to_owned(), json!(self.beyond_the_parts_us(spin)));
        }
        let load: Value = json!({
            "loop": "closed", "outstanding_per_connection": 1, "connections": 1,
            "records_per_request": self.config.batch.records, "record_bytes": self.config.batch.record_bytes,
            "measured_seconds": self.config.time.as_secs_f64(), "rounds": self.config.rounds,
            "server_cpu": self.cpus.0, "client_cpu": self.cpus.1,
        });
        let seconds = self.config.time.as_secs_f64();
        let curve = |row: Row| Curve {
            name: row.file_name(),
            per_second: row.latencies.count() as f64 / seconds,
            latencies: row.latencies,
        };
        // The floor server first: it is what nodes are compared with.
        let (both, parts): (Vec<Row>, Vec<Row>) =
            self.rows.into_iter().partition(|row| row.what == What::Both);
        Run {
            command: "floor",
            host: self.host,
            disk: Some(self.disk),
            node_version: None,
            durability: DURABILITY_OF_FLOOR,
            load_line,
            load,
            curves: both.into_iter().chain(parts).map(curve).collect(),
            more,
        }
    }
}

/// No reply says what it reached here: the floor server answers when its one write is done.
const DURABILITY_OF_FLOOR: &str = "O_DIRECT writes with RWF_DSYNC over blocks that were written before";
