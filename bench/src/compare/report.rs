//! What a comparison found, for people and for programs.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::Turn;
use crate::device::DiskFacts;
use crate::host::HostFacts;
use crate::latency::{Latencies, Summary, median};
use crate::report::{Curve, LoadFacts, Run};

/// What is asked of every system; each one's settings say how.
const DURABILITY: &str = "acknowledged when durable, on two of three nodes where there are three";

/// What came out.
pub struct CompareReport {
    pub(super) host: HostFacts,
    pub(super) nodes: usize,
    pub(super) rounds: usize,
    pub(super) load: String,
    pub(super) load_facts: LoadFacts,
    pub(super) disk_facts: DiskFacts,
    /// Of each request.
    pub(super) records: usize,
    /// Requests under way at once, at most.
    pub(super) most_under_way: usize,
    /// The device whose flushes were counted, or why none were.
    pub(super) disk: Result<String, String>,
    pub(super) idle_flushes_per_second: Option<f64>,
    /// Pyralog first.
    pub(super) systems: Vec<SystemReport>,
    /// Systems that are not installed, and how to install them.
    pub(super) left_out: Vec<(String, String)>,
}

/// One system's part.
pub(super) struct SystemReport {
    pub(super) name: &'static str,
    pub(super) version: String,
    pub(super) settings: String,
    /// One of each round, until it failed.
    pub(super) turns: Vec<Turn>,
    /// Of all its turns.
    pub(super) latencies: Latencies,
    pub(super) failure: Option<String>,
}

impl SystemReport {
    fn median(&self, of: impl Fn(&Turn) -> f64) -> f64 {
        median(&self.turns.iter().map(of).collect::<Vec<_>>()).unwrap_or(f64::NAN)
    }

    /// `None` where the disk does not count.
    fn flushes_per_request(&self) -> Option<f64> {
        let counts: Option<Vec<f64>> =
            self.turns.iter().map(|turn| turn.disk.map(|disk| disk.flushes)).collect();
        median(&counts?)
    }

    fn flushes_too_little(&self, most_under_way: usize) -> bool {
        self.turns.iter().any(|turn| turn.disk.is_some_and(|disk| disk.is_too_few(most_under_way)))
    }

    /// The median over the rounds of ours divided by this one's.
    fn ratio(&self, ours: &Self, of: impl Fn(&Turn) -> f64) -> f64 {
        let rounds = ours.turns.iter().zip(&self.turns);
        median(&rounds.map(|(ours, theirs)| of(ours) / of(theirs)).collect::<Vec<_>>()).unwrap_or(f64::NAN)
    }
}

/// A figure of one turn.
type Figure = fn(&Turn) -> f64;

/// What medians and ratios are made of, with the names that programs see.
const FIGURES: [(&str, Figure); 5] = [
    ("p50_us", |turn| turn.side.latency.p50_us),
    ("p90_us", |turn| turn.side.latency.p90_us),
    ("p99_us", |turn| turn.side.latency.p99_us),
    ("p999_us", |turn| turn.side.latency.p999_us),
    ("acks_per_second", |turn| turn.side.acks_per_second),
];

impl CompareReport {
    /// Peers that could not be measured to the end, each with the reason.
    pub fn failures(&self) -> Vec<String> {
        self.systems.iter().filter_map(|system| system.failure.clone()).collect()
    }

    /// For people.
    pub fn to_table(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = self.write_table(&mut text);
        text
    }

    fn write_table(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "{}", self.host)?;
        let nodes = match self.nodes {
            1 => "one node each, acknowledged when durable".to_owned(),
            nodes => format!("{nodes} nodes each, acknowledged when durable on two"),
        };
        writeln!(out, "{nodes}; {}", self.load)?;
        match (&self.disk, self.idle_flushes_per_second) {
            (Ok(device), Some(idle)) => {
                writeln!(
                    out,
                    "flushes of {device}, all nodes together; {idle:.1} a second before the first round"
                )?;
            }
            (Ok(_), None) => {}
            (Err(why), _) => writeln!(out, "flushes are not counted: {why}")?,
        }
        writeln!(out)?;
        for system in &self.systems {
            writeln!(out, "{:9} {}: {}", system.name, system.version, system.settings)?;
        }
        for (name, why) in &self.left_out {
            writeln!(out, "{name:9} left out: {why}")?;
        }
        self.write_rounds(out)?;
        self.write_medians(out)?;
        self.write_warnings(out)
    }

    fn write_rounds(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "\nround  system    {}      acks/s  flushes/op", Summary::HEADS)?;
        for round in 0..self.rounds {
            for system in &self.systems {
                let Some(turn) = system.turns.get(round) else { continue };
                let flushes = flushes_text(turn.disk.map(|disk| disk.flushes));
                let (latency, acks) = (turn.side.latency, turn.side.acks_per_second);
                writeln!(out, "{:5}  {:9} {latency}{acks:12.0}{flushes:>12}", round + 1, system.name)?;
            }
        }
        Ok(())
    }

    fn write_medians(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "\nmedians of {} round(s), and of the rounds' ratios pyralog / peer", self.rounds)?;
        writeln!(
            out,
            "system       p50 µs   p90 µs   p99 µs  p999 µs      acks/s   records/s  flushes/op │   p50   p90   p99  p999   acks/s"
        )?;
        for system in self.systems.iter().filter(|system| !system.turns.is_empty()) {
            write!(out, "{:9} ", system.name)?;
            for (name, of) in FIGURES {
                match name {
                    "acks_per_second" => write!(out, "{:12.0}", system.median(of))?,
                    _ => write!(out, "{:9.1}", system.median(of))?,
                }
            }
            let records = system.median(|turn| turn.side.acks_per_second) * self.records as f64;
            write!(out, "{records:12.0}{:>12} │", flushes_text(system.flushes_per_request()))?;
            match self.systems.first() {
                Some(ours) if !std::ptr::eq(ours, system) => {
                    for (name, of) in FIGURES {
                        let width = if name == "acks_per_second" { 9 } else { 6 };
                        write!(out, "{:width$.2}", system.ratio(ours, of))?;
                    }
                }
                _ => {}
            }
            writeln!(out)?;
        }
        Ok(())
    }

    fn write_warnings(&self, out: &mut String) -> std::fmt::Result {
        for system in &self.systems {
            if system.flushes_too_little(self.most_under_way) {
                writeln!(
                    out,
                    "\nWARNING: {} cannot have flushed once for all that was under way: with {} request(s) under way at most, \
                     each flush acknowledges no more than that; check its settings",
                    system.name, self.most_under_way
                )?;
            }
            if let Some(failure) = &system.failure {
                writeln!(out, "\nFAILED: {failure}")?;
            }
        }
        Ok(())
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let ours = self.systems.first();
        let left_out = self.left_out.iter().map(|(name, why)| json!({ "name": name, "why": why }));
        json!({
            "kernel": self.host.kernel, "cpu_model": self.host.cpu_model, "cpus": self.host.cpus,
            "date_utc": self.host.date_utc, "git_revision": self.host.git_revision,
            "nodes": self.nodes, "rounds": self.rounds, "load": self.load, "records_per_request": self.records,
            "requests_under_way_at_most": self.most_under_way,
            "flushes_counted_on": self.disk.as_ref().ok(), "flushes_not_counted": self.disk.as_ref().err(),
            "idle_flushes_per_second": self.idle_flushes_per_second,
            "systems": self.systems.iter().map(|system| self.system_to_json(system, ours)).collect::<Vec<_>>(),
            "left_out": left_out.collect::<Vec<_>>(),
        })
    }

    /// For files: all turns of each system as one curve, Pyralog's first.
    pub fn into_run(self) -> Run {
        let mut more = Map::new();
        more.insert("compare_report".into(), self.to_json());
        let node_version = self.systems.first().map(|ours| ours.version.clone());
        let nodes = match self.nodes {
            1 => "one node each".to_owned(),
            nodes => format!("{nodes} nodes each"),
        };
        let seconds = self.load_facts.shape.measured.as_secs_f64();
        let curves = self.systems.into_iter().filter(|system| !system.turns.is_empty()).map(|system| {
            let per_second = system.latencies.count() as f64 / (seconds * system.turns.len() as f64);
            Curve { name: system.name.to_owned(), latencies: system.latencies, per_second }
        });
        Run {
            command: "compare",
            curves: curves.collect(),
            host: self.host,
            disk: Some(self.disk_facts),
            node_version,
            durability: DURABILITY,
            load_line: format!("{nodes}, {}", self.load),
            load: self.load_facts.to_json(),
            more,
        }
    }

    fn system_to_json(&self, system: &SystemReport, ours: Option<&SystemReport>) -> Value {
        let figures = |of: &dyn Fn(Figure) -> f64| {
            FIGURES.iter().map(|(name, figure)| ((*name).to_owned(), json!(of(*figure)))).collect::<Value>()
        };
        let turns = system.turns.iter().map(|turn| {
            let mut json = turn.side.to_json();
            json["flushes_per_request"] = json!(turn.disk.map(|disk| disk.flushes));
            json["writes_per_request"] = json!(turn.disk.map(|disk| disk.writes));
            json
        });
        let ratios = ours.filter(|ours| !std::ptr::eq(*ours, system));
        json!({
            "name": system.name, "version": system.version, "settings": system.settings,
            "rounds": turns.collect::<Vec<_>>(), "failure": system.failure,
            "medians": figures(&|figure| system.median(figure)),
            "median_flushes_per_request": system.flushes_per_request(),
            "flushes_too_little": system.flushes_too_little(self.most_under_way),
            "median_ratios_pyralog_to_this": ratios.map(|ours| figures(&|figure| system.ratio(ours, figure))),
        })
    }
}

fn flushes_text(flushes: Option<f64>) -> String {
    flushes.map_or("-".to_owned(), |flushes| format!("{flushes:.3}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::flushes::PerRequest;
    use super::*;
    use crate::load::LoadShape;
    use crate::pairs::Side;
    use crate::produce::BatchShape;

    fn turn(latency_us: u64, acks_per_second: f64, flushes: f64) -> Turn {
        let mut latencies = Latencies::new().unwrap();
        latencies.record_ns(latency_us * 1000);
        let side = Side { latency: latencies.summary(), acks_per_second };
        Turn { side, disk: Some(PerRequest { writes: 1.0, flushes }) }
    }

    fn system(name: &'static str, turns: Vec<Turn>) -> SystemReport {
        let mut latencies = Latencies::new().unwrap();
        turns.iter().for_each(|turn| latencies.record_ns((turn.side.latency.p50_us * 1000.0) as u64));
        SystemReport { name, version: "1".into(), settings: "s".into(), turns, latencies, failure: None }
    }

    fn report() -> CompareReport {
        let ours = [turn(100, 10_000.0, 1.0), turn(200, 9_000.0, 1.0), turn(100, 10_000.0, 1.0)];
        let theirs = [turn(200, 5_000.0, 1.0), turn(300, 3_000.0, 1.1), turn(1000, 2_000.0, 1.2)];
        let mut broken = system("nats", vec![turn(50, 20_000.0, 0.2)]);
        broken.failure = Some("nats failed: it fell over".into());
        CompareReport {
            host: HostFacts::collect(),
            nodes: 1,
            rounds: 3,
            load: "little".into(),
            load_facts: LoadFacts {
                connections: 1,
                threads: 1,
                shape: LoadShape {
                    outstanding: 1,
                    rate: None,
                    warmup: Duration::ZERO,
                    measured: Duration::from_secs(2),
                },
                batch: BatchShape { records: 100, record_bytes: 256 },
            },
            disk_facts: DiskFacts::default(),
            records: 100,
            most_under_way: 1,
            disk: Ok("vda".into()),
            idle_flushes_per_second: Some(0.5),
            systems: vec![system("pyralog", ours.to_vec()), system("etcd", theirs.to_vec()), broken],
            left_out: vec![(
                "redis".into(),
                "not installed; to install: apt-get install redis-server".into(),
            )],
        }
    }

    #[test]
    fn ratios_are_medians_of_the_rounds_ratios() {
        let json = report().to_json();
        let etcd = &json["systems"][1];
        // 100/200, 200/300, 100/1000 and 10/5, 9/3, 10/2.
        let near = |value: &Value, wanted: f64| (value.as_f64().unwrap() - wanted).abs() < 0.1;
        assert!(near(&etcd["median_ratios_pyralog_to_this"]["p50_us"], 0.5), "{etcd}");
        assert!(near(&etcd["median_ratios_pyralog_to_this"]["acks_per_second"], 3.0), "{etcd}");
        assert!(near(&etcd["medians"]["p50_us"], 300.0), "{etcd}");
        assert!(near(&etcd["median_flushes_per_request"], 1.1), "{etcd}");
        assert_eq!(json["systems"][0]["median_ratios_pyralog_to_this"], Value::Null);
        assert_eq!(json["left_out"][0]["name"], "redis");
    }

    #[test]
    fn the_table_names_who_is_left_out_who_failed_and_who_did_not_flush() {
        let report = report();
        let table = report.to_table();
        assert!(table.contains("redis     left out: not installed; to install: apt-get"), "{table}");
        assert!(table.contains("FAILED: nats failed: it fell over"), "{table}");
        assert!(table.contains("WARNING: nats cannot have flushed"), "{table}");
        assert!(!table.contains("WARNING: etcd") && !table.contains("WARNING: pyralog"), "{table}");
        assert_eq!(report.failures().len(), 1);
        let medians = table.lines().find(|line| line.starts_with("etcd") && line.contains('│')).unwrap();
        assert!(medians.contains("300000") && medians.contains("1.100"), "{medians}");
    }

    #[test]
    fn a_run_has_a_curve_of_all_turns_of_each_system_that_was_measured() {
        let mut report = report();
        let mut never = system("rabbitmq", Vec::new());
        never.failure = Some("rabbitmq failed: it did not start".into());
        report.systems.push(never);
        let run = report.into_run();
        let curves: Vec<_> =
            run.curves.iter().map(|curve| (curve.name.as_str(), curve.latencies.count())).collect();
        assert_eq!(curves, [("pyralog", 3), ("etcd", 3), ("nats", 1)]);
        // Three in three turns of two seconds; one in one.
        let per_second: Vec<f64> = run.curves.iter().map(|curve| curve.per_second).collect();
        assert_eq!(per_second, [0.5, 0.5, 0.5]);
        let json = run.to_json("x").unwrap();
        assert_eq!(json["compare_report"]["systems"][1]["name"], "etcd");
        assert_eq!(json["versions"]["node"], "1");
        assert!(json["load_line"].as_str().unwrap().starts_with("one node each"), "{json}");
    }
}
