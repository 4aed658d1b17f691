//! What the number of partitions, and of connections, costs: the same total rate over one and over many, in turns.

use std::time::Duration;

use serde_json::{Value, json};

use crate::consume::run::tap_of;
use crate::latency::{Latencies, Summary, median};
use crate::load::LoadShape;
use crate::options::SweepArgs;
use crate::pace::Clock;
use crate::produce::BatchShape;
use crate::report::LoadFacts;
use crate::stamped::{self, MonotonicClock, StampedLoad, Window};
use crate::target::{Target, run_number};

/// Requests under way over all connections, at most.
const OUTSTANDING: usize = 1024;
const AHEAD_NS: u64 = 20_000_000;

/// Over what the rate is spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// One connection, one partition.
    One,
    /// One connection that writes to many partitions in turns.
    Partitions,
    /// Many connections in turns, one partition.
    Connections,
}

/// Every kind, in the order in which the first round takes them.
pub const SPREADS: [Spread; 3] = [Spread::One, Spread::Partitions, Spread::Connections];

impl Spread {
    /// In tables and file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Partitions => "partitions",
            Self::Connections => "connections",
        }
    }

    /// What the ratio of p99 to that of one may be, as promised.
    pub fn promised(self) -> Option<f64> {
        match self {
            Self::One => None,
            Self::Partitions => Some(1.2),
            Self::Connections => Some(1.5),
        }
    }
}

/// One round: each spread once, in the order of [`SPREADS`].
pub struct Round(pub [Latencies; 3]);

/// What came out.
pub struct SweepFound {
    /// In the order in which they ran.
    pub rounds: Vec<Round>,
}

/// The topics that are written to.
pub struct SweepTopics {
    /// With one partition.
    pub few: String,
    /// With many.
    pub many: String,
}

impl SweepTopics {
    /// New ones.
    ///
    /// # Errors
    /// When the node refuses.
    pub fn make(args: &SweepArgs, target: &Target) -> anyhow::Result<Self> {
        let few = target.new_topic("bench-sweep-one", 1)?;
        Ok(Self { few, many: target.new_topic("bench-sweep-many", args.partitions)? })
    }
}

/// The load over one connection and one partition, for the generator that knows no stamps.
pub fn facts(args: &SweepArgs) -> LoadFacts {
    LoadFacts {
        connections: 1,
        threads: 1,
        shape: LoadShape {
            outstanding: OUTSTANDING,
            rate: Some(args.rate),
            warmup: Duration::from_secs(args.warmup),
            measured: Duration::from_secs(args.seconds),
        },
        batch: BatchShape { records: 1, record_bytes: args.record_bytes as usize },
    }
}

/// Runs all rounds.
///
/// # Errors
/// When the node refuses, or has shards enough that one connection does not reach all partitions.
pub fn run(args: &SweepArgs, target: &Target, topics: &SweepTopics) -> anyhow::Result<SweepFound> {
    let SweepTopics { few, many } = topics;
    // Every partition once before anything is measured: its first record makes files that the others don't.
    let touch = SweepTime { warmup: Duration::ZERO, measured: Duration::from_secs(2) };
    let touching = Settings { rate: f64::from(args.partitions).max(args.rate), ..Settings::of(args, touch) };
    one(args, target, many, 1, touching)?;
    let time =
        SweepTime { warmup: Duration::from_secs(args.warmup), measured: Duration::from_secs(args.seconds) };
    let settings = Settings::of(args, time);
    let mut rounds = Vec::new();
    for number in 0..args.rounds as usize {
        let mut measured: [Option<Latencies>; 3] = [None, None, None];
        for turn in 0..SPREADS.len() {
            // Each round begins with another one, so that a drift of the machine favours none.
            let index = (number + turn) % SPREADS.len();
            let (Some(spread), Some(slot)) = (SPREADS.get(index), measured.get_mut(index)) else { continue };
            let (topic, connections) = match spread {
                Spread::One => (few, 1),
                Spread::Partitions => (many, 1),
                Spread::Connections => (few, args.connections as usize),
            };
            *slot = Some(one(args, target, topic, connections, settings)?);
        }
        if let [Some(one), Some(partitions), Some(connections)] = measured {
            rounds.push(Round([one, partitions, connections]));
        }
        eprintln!("round {} of {} done", number + 1, args.rounds);
    }
    Ok(SweepFound { rounds })
}

#[derive(Clone, Copy)]
struct SweepTime {
    warmup: Duration,
    measured: Duration,
}

#[derive(Clone, Copy)]
struct Settings {
    rate: f64,
    time: SweepTime,
}

impl Settings {
    fn of(args: &SweepArgs, time: SweepTime) -> Self {
        Self { rate: args.rate, time }
    }
}

fn one(
    args: &SweepArgs,
    target: &Target,
    topic: &str,
    connections: usize,
    settings: Settings,
) -> anyhow::Result<Latencies> {
    let producers = stamped::connect(target.addr, topic, connections)?;
    let batch = BatchShape { records: 1, record_bytes: args.record_bytes as usize };
    let load = StampedLoad {
        run: run_number(),
        rate: settings.rate,
        outstanding: OUTSTANDING,
        batch,
        cpu: target.client_cpu,
    };
    let monitor = args.out.monitor(settings.time.warmup);
    let board = monitor.board("acks");
    let begin_ns = MonotonicClock.now_ns() + AHEAD_NS;
    let warm_ns = begin_ns + settings.time.warmup.as_nanos() as u64;
    let window = Window { begin_ns, warm_ns, end_ns: warm_ns + settings.time.measured.as_nanos() as u64 };
    let tap = tap_of(board.as_deref(), window)?;
    let driven = std::thread::scope(|scope| {
        let producing = scope.spawn(|| monitor.during(|| stamped::run(producers, &load, window, tap)));
        producing.join().map_err(|_| anyhow::anyhow!("the producers' thread panicked"))?
    })?;
    anyhow::ensure!(driven.acks.count() > 0, "nothing was measured; give more seconds");
    Ok(driven.acks)
}

impl SweepFound {
    /// The median over the rounds of what `pick` of this spread is to that of one.
    pub fn median_ratio(&self, spread: Spread, pick: fn(&Summary) -> f64) -> f64 {
        let ratios: Vec<f64> = self.rounds.iter().filter_map(|round| round.ratio(spread, pick)).collect();
        median(&ratios).unwrap_or_default()
    }

    /// For a terminal.
    pub fn to_table(&self, partitions: u32, connections: u64) -> String {
        let mut text = format!("round  spread       {}\n", Summary::HEADS);
        for (number, round) in (1..).zip(&self.rounds) {
            for (spread, latencies) in SPREADS.iter().zip(&round.0) {
                text += &format!("{number:5}  {:12} {}\n", spread.name(), latencies.summary());
            }
        }
        text.push('\n');
        for (spread, many) in
            [(Spread::Partitions, u64::from(partitions)), (Spread::Connections, connections)]
        {
            let [p50, p99, p999] = PICKS.map(|(_, pick)| self.median_ratio(spread, pick));
            text += &format!(
                "median of {} rounds, {many} {} / 1: p50 {p50:.2}, p99 {p99:.2}, p999 {p999:.2}; promised for p99: below {:.1}\n",
                self.rounds.len(),
                spread.name(),
                spread.promised().unwrap_or_default()
            );
        }
        text
    }

    /// For a program.
    pub fn to_json(&self) -> Value {
        let ratios = |spread: Spread| {
            let ratio = |(name, pick): (&str, fn(&Summary) -> f64)| {
                (name.to_owned(), json!(self.median_ratio(spread, pick)))
            };
            Value::Object(PICKS.into_iter().map(ratio).collect())
        };
        let round = |round: &Round| {
            let side = |(spread, latencies): (&Spread, &Latencies)| {
                (spread.name().to_owned(), latencies.summary().to_json())
            };
            Value::Object(SPREADS.iter().zip(&round.0).map(side).collect())
        };
        json!({
            "rounds": self.rounds.iter().map(round).collect::<Vec<_>>(),
            "median_ratios": {
                "partitions": ratios(Spread::Partitions), "connections": ratios(Spread::Connections),
            },
        })
    }
}

type Pick = fn(&Summary) -> f64;
const PICKS: [(&str, Pick); 3] = [("p50", |s| s.p50_us), ("p99", |s| s.p99_us), ("p999", |s| s.p999_us)];

impl Round {
    fn ratio(&self, spread: Spread, pick: fn(&Summary) -> f64) -> Option<f64> {
        let of = |spread: Spread| {
            let at = SPREADS.iter().position(|known| *known == spread)?;
            Some(pick(&self.0.get(at)?.summary()))
        };
        Some(of(spread)? / of(Spread::One)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(us: u64) -> Latencies {
        let mut latencies = Latencies::new().unwrap();
        latencies.record_ns(us * 1000);
        latencies
    }

    #[test]
    fn the_median_is_of_the_ratios_within_each_round() {
        let round = |one, partitions, connections| Round([all(one), all(partitions), all(connections)]);
        let found =
            SweepFound { rounds: vec![round(100, 110, 200), round(1000, 1300, 1000), round(10, 10, 15)] };
        let ratio = |spread| found.median_ratio(spread, |s| s.p99_us);
        assert!((ratio(Spread::Partitions) - 1.1).abs() < 0.01, "{}", ratio(Spread::Partitions));
        assert!((ratio(Spread::Connections) - 1.5).abs() < 0.01, "{}", ratio(Spread::Connections));
        assert!((ratio(Spread::One) - 1.0).abs() < 1e-9);
        let table = found.to_table(1000, 500);
        assert!(
            table.contains("1000 partitions / 1: p50 1.10") && table.contains("500 connections"),
            "{table}"
        );
        let json = found.to_json();
        assert!((json["median_ratios"]["connections"]["p99"].as_f64().unwrap() - 1.5).abs() < 0.01);
        assert_eq!(json["rounds"].as_array().map(Vec::len), Some(3));
    }
}
