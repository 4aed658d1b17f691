//! A run on paper: `NAME.json` with everything that somebody needs to doubt or repeat it, `NAME.hgrm` for other tools,
//! `NAME.svg` to look at.

mod overlay;

pub use overlay::{StoredCurve, StoredRun, overlay};

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Map, Value, json};

use crate::device::DiskFacts;
use crate::hgrm;
use crate::host::HostFacts;
use crate::latency::Latencies;
use crate::load::LoadShape;
use crate::plot;
use crate::produce::BatchShape;

/// Version of the JSON's layout; a reader refuses others.
pub const FORMAT: u64 = 1;
/// What a produce of these tools asks for.
pub const DURABILITY: &str =
    "acks quorum, and every reply checked for durability on the quorum's stable storage";

/// Where the files of a run go.
#[derive(Clone, Debug)]
pub struct Output {
    /// The folder; made when it is not there.
    pub dir: PathBuf,
    /// What the files' names begin with.
    pub name: String,
}

/// The shape of a load, all of it.
#[derive(Clone, Copy, Debug)]
pub struct LoadFacts {
    /// Connections.
    pub connections: usize,
    /// Threads of the load generator.
    pub threads: usize,
    /// Pace and times.
    pub shape: LoadShape,
    /// What each request carries.
    pub batch: BatchShape,
}

impl LoadFacts {
    /// For a program.
    pub fn to_json(&self) -> Value {
        let shape = &self.shape;
        json!({
            "loop": if shape.rate.is_some() { "open" } else { "closed" },
            "latency_from": if shape.rate.is_some() { "intended send time" } else { "send time" },
            "rate_per_second": shape.rate, "connections": self.connections, "threads": self.threads,
            "outstanding_per_connection": shape.outstanding, "records_per_request": self.batch.records,
            "record_bytes": self.batch.record_bytes, "warmup_seconds": shape.warmup.as_secs_f64(),
            "measured_seconds": shape.measured.as_secs_f64(),
        })
    }
}

impl std::fmt::Display for LoadFacts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shape = &self.shape;
        let pace =
            shape.rate.map_or("closed loop".to_owned(), |rate| format!("open loop, {rate} requests/s"));
        write!(
            f,
            "{pace}, {} connection(s), at most {} outstanding each, {} record(s) of {} bytes a request, {:?} + {:?} warm-up",
            self.connections,
            shape.outstanding,
            self.batch.records,
            self.batch.record_bytes,
            shape.measured,
            shape.warmup
        )
    }
}

/// One distribution of a run.
pub struct Curve {
    /// What it is of, such as `node` or `floor`; goes into file names.
    pub name: String,
    /// The distribution.
    pub latencies: Latencies,
    /// How many of them a second.
    pub per_second: f64,
}

/// A run, to be written.
pub struct Run {
    /// The subcommand.
    pub command: &'static str,
    /// Machine, date, revision.
    pub host: HostFacts,
    /// The disk, when its folder is known.
    pub disk: Option<DiskFacts>,
    /// What the node says that it is.
    pub node_version: Option<String>,
    /// What was asked for.
    pub durability: &'static str,
    /// One line about the load.
    pub load_line: String,
    /// The load for a program.
    pub load: Value,
    /// The distributions, the one that the run is about first.
    pub curves: Vec<Curve>,
    /// Whatever else the command has found.
    pub more: Map<String, Value>,
}

impl Run {
    /// For a program. With everything that [`StoredRun::read`] needs to have the curves back.
    ///
    /// # Errors
    /// When a histogram can't be encoded.
    pub fn to_json(&self, name: &str) -> anyhow::Result<Value> {
        let curves = self.curves.iter().map(Curve::to_json).collect::<anyhow::Result<Vec<_>>>()?;
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let mut json = json!({
            "format": FORMAT, "name": name, "command": self.command, "arguments": arguments,
            "date_utc": self.host.date_utc, "host": self.host.to_json(),
            "disk": self.disk.as_ref().map(DiskFacts::to_json),
            "versions": {
                "node": self.node_version, "bench": env!("CARGO_PKG_VERSION"), "git": self.host.git_revision,
            },
            "durability": self.durability, "load_line": self.load_line, "load": self.load, "curves": curves,
        });
        if let Some(object) = json.as_object_mut() {
            object.extend(self.more.clone());
        }
        Ok(json)
    }

    /// Writes the three files; the names of the JSON and of the pictures made.
    ///
    /// # Errors
    /// When the folder or a file can't be written; files of the same name are replaced.
    pub fn write(&self, output: &Output) -> anyhow::Result<Vec<PathBuf>> {
        ensure_file_name(&output.name)?;
        fs::create_dir_all(&output.dir)
            .with_context(|| format!("{}: can't be made", output.dir.display()))?;
        let mut written = Vec::new();
        let mut write = |file_name: String, text: String| {
            let path = output.dir.join(file_name);
            fs::write(&path, text).with_context(|| format!("{}: can't be written", path.display()))?;
            written.push(path);
            anyhow::Ok(())
        };
        for (number, curve) in self.curves.iter().enumerate() {
            // The first one has the run's name alone.
            let suffix = if number == 0 { String::new() } else { format!("-{}", curve.name) };
            write(format!("{}{suffix}.hgrm", output.name), hgrm::distribution(&curve.latencies))?;
        }
        write(format!("{}.json", output.name), format!("{:#}\n", self.to_json(&output.name)?))?;
        let curves: Vec<plot::Curve<'_>> = self
            .curves
            .iter()
            .map(|curve| plot::Curve { name: &curve.name, latencies: &curve.latencies })
            .collect();
        let title = match self.command {
            command if command == output.name => output.name.clone(),
            command => format!("{command}: {}", output.name),
        };
        if let Some(svg) = plot::percentiles(&title, &self.load_line, &curves) {
            write(format!("{}.svg", output.name), svg)?;
        }
        Ok(written)
    }

    /// Writes the files if that was asked for, and says so on stderr.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_if_asked(&self, output: Option<&Output>) -> anyhow::Result<()> {
        if let Some(output) = output {
            for path in self.write(output)? {
                eprintln!("written: {}", path.display());
            }
        }
        Ok(())
    }

    /// The lines above every table.
    pub fn heading(&self) -> String {
        let disk = self.disk.as_ref().map_or(String::new(), |disk| format!("\n{disk}"));
        let node = self.node_version.as_ref().map_or(String::new(), |version| format!("\nnode: {version}"));
        format!("{}{disk}{node}\n{}\n", self.host, self.load_line)
    }
}

impl Curve {
    fn to_json(&self) -> anyhow::Result<Value> {
        Ok(json!({
            "name": self.name, "latency": self.latencies.summary().to_json(), "per_second": self.per_second,
            "histogram_ns_v2_deflate_base64": hgrm::to_base64(&self.latencies)?,
        }))
    }
}

/// Refuses a name that files of a run can't begin with.
///
/// # Errors
/// When it is one.
pub fn ensure_file_name(name: &str) -> anyhow::Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    anyhow::ensure!(
        !name.is_empty() && !name.starts_with(['.', '-']) && name.bytes().all(plain),
        "{name:?} can't begin a file's name; use letters, digits, dots, dashes and underscores"
    );
    Ok(())
}

/// The facts of the disk below `dir`; `None` when nobody has said where the data is.
///
/// # Errors
/// When the folder is not there.
pub fn disk_of(dir: Option<&Path>) -> anyhow::Result<Option<DiskFacts>> {
    dir.map(DiskFacts::of).transpose()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;

    pub(crate) fn run_of(latencies_us: &[u64]) -> Run {
        let mut latencies = Latencies::new().unwrap();
        latencies_us.iter().for_each(|us| latencies.record_ns(us * 1000));
        let shape = LoadShape {
            outstanding: 256,
            rate: Some(1000.0),
            warmup: Duration::from_secs(2),
            measured: Duration::from_secs(5),
        };
        let batch = BatchShape { records: 1, record_bytes: 256 };
        let load = LoadFacts { connections: 4, threads: 2, shape, batch };
        Run {
            command: "produce",
            host: HostFacts::collect(),
            disk: Some(DiskFacts { device: "sdx".into(), ..DiskFacts::default() }),
            node_version: Some("pyralog 0".into()),
            durability: DURABILITY,
            load_line: load.to_string(),
            load: load.to_json(),
            curves: vec![
                Curve { name: "node".into(), latencies: latencies.clone(), per_second: 10.0 },
                Curve { name: "floor".into(), latencies, per_second: 11.0 },
            ],
            more: Map::new(),
        }
    }

    #[test]
    fn the_files_are_there_and_the_curves_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let output = Output { dir: dir.path().join("new"), name: "one".into() };
        let run = run_of(&[100, 200, 300, 4000]);
        run.write(&output).unwrap();
        let mut names: Vec<String> = fs::read_dir(&output.dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["one-floor.hgrm", "one.hgrm", "one.json", "one.svg"]);
        let stored = StoredRun::read(&output.dir.join("one.json")).unwrap();
        assert_eq!((stored.name.as_str(), stored.curves.len()), ("one", 2));
        assert_eq!(stored.curves[0].latencies.summary(), run.curves[0].latencies.summary());
        let json: Value = serde_json::from_slice(&fs::read(output.dir.join("one.json")).unwrap()).unwrap();
        for key in ["host", "disk", "versions", "durability", "load", "arguments", "date_utc"] {
            assert!(!json[key].is_null(), "{key}");
        }
        assert_eq!(json["load"]["rate_per_second"], 1000.0);
        assert_eq!(json["load"]["latency_from"], "intended send time");
        assert_eq!(json["disk"]["device"], "sdx");
    }

    #[test]
    fn a_name_that_leaves_the_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["", "../x", "a/b", ".hidden", "-x"] {
            let output = Output { dir: dir.path().to_owned(), name: name.to_owned() };
            let error = run_of(&[1]).write(&output).unwrap_err();
            assert!(error.to_string().contains("letters"), "{error}");
        }
    }
}
