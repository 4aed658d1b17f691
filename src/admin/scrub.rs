//! `scrub`: nodes read their segments again and repair what has rotted.

use std::io::{self, IsTerminal};
use std::time::{Duration, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressStyle};
use pyralog_net::client::Client;
use pyralog_net::message::ScrubReply;
use serde::Serialize;

use super::cli::{Format, ScrubStart};
use super::{explain, output};
use crate::failure::Failure;
use crate::units;

/// Between two looks at how far the shards are.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Serialize)]
struct Row {
    node: u32,
    shard: u16,
    /// All segments are being read.
    running: bool,
    /// Why the shard could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// Read so far, while it runs.
    done_bytes: u64,
    /// All segments.
    total_bytes: u64,
    /// When all of them had been read last, milliseconds since the Unix epoch; null: not since the node started.
    ended_ms: Option<i64>,
    /// Damaged ranges that were found since the node started.
    found: u64,
    /// Those of them that are whole again.
    repaired: u64,
    repaired_bytes: u64,
    /// Times that no other replica could give what is damaged, or the disk did not keep it.
    failed: u64,
    /// Damaged ranges at present, which are refused.
    damaged: u32,
}

impl Row {
    fn of(node: u32, shard: u16, told: Result<ScrubReply, String>) -> Self {
        let (error, told) = match told {
            Ok(told) => (None, told),
            Err(error) => (Some(error), ScrubReply::default()),
        };
        Self {
            node,
            shard,
            running: told.running,
            error,
            done_bytes: told.done_bytes,
            total_bytes: told.total_bytes,
            ended_ms: (told.ended_ms > 0).then_some(told.ended_ms),
            found: told.found,
            repaired: told.repaired,
            repaired_bytes: told.repaired_bytes,
            failed: told.failed,
            damaged: told.damaged,
        }
    }

    fn cells(&self) -> Vec<String> {
        let mut cells = vec![self.node.to_string(), self.shard.to_string()];
        if let Some(error) = &self.error {
            cells.extend(["unreachable".to_owned(), error.clone()]);
            return cells;
        }
        let (state, read) = match self.running {
            true => (
                "running",
                format!("{} of {}", units::bytes(self.done_bytes), units::bytes(self.total_bytes)),
            ),
            false => ("idle", units::bytes(self.total_bytes)),
        };
        let ended =
            self.ended_ms.and_then(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms.unsigned_abs())));
        let ended =
            ended.map_or_else(|| "-".to_owned(), |at| humantime::format_rfc3339_seconds(at).to_string());
        cells.extend([state.to_owned(), read, ended]);
        cells.extend([self.found, self.repaired, u64::from(self.damaged)].map(|count| count.to_string()));
        cells
    }
}

fn table(rows: &[Row]) -> String {
    let head = ["NODE", "SHARD", "STATE", "SEGMENTS", "LAST SCRUBBED", "FOUND", "REPAIRED", "DAMAGED"];
    output::table(&head, rows.iter().map(Row::cells))
}

/// A shard, and why its node does not answer, if it does not.
struct Shard {
    node: u32,
    shard: u16,
    silent: Option<String>,
}

/// Every shard of the nodes, or of one of them.
fn shards(client: &mut Client, only: Option<u32>) -> Result<Vec<Shard>, Failure> {
    let (info, _) = client.metadata().map_err(|error| explain(error, None))?;
    let answers = client.ask_nodes();
    let mut shards = Vec::new();
    for node in info.nodes.iter().filter(|node| only.is_none_or(|only| node.id == only)) {
        let answer = answers.iter().find(|answer| answer.node == node.id);
        let silent = answer.and_then(|answer| answer.server.clone().err());
        shards.extend((0..node.shards).map(|shard| Shard { node: node.id, shard, silent: silent.clone() }));
    }
    match only {
        Some(only) if shards.is_empty() => {
            Err(Failure::failed(format!("node {only} is not registered; `cluster info` lists the nodes")))
        }
        _ => Ok(shards),
    }
}

fn ask(client: &mut Client, shards: &[Shard], start: bool) -> Vec<Row> {
    let mut row = |Shard { node, shard, silent }: &Shard| {
        let told = match silent {
            Some(why) => Err(why.clone()),
            None => client.scrub(*node, *shard, start).map_err(|error| error.to_string()),
        };
        Row::of(*node, *shard, told)
    };
    shards.iter().map(&mut row).collect()
}

/// `scrub status`.
pub(crate) fn status(client: &mut Client, format: Format) -> Result<(), Failure> {
    let shards = shards(client, None)?;
    let rows = ask(client, &shards, false);
    output::print(format, &rows, |rows| table(rows))
}

/// `scrub start`.
pub(crate) fn start(client: &mut Client, format: Format, arguments: &ScrubStart) -> Result<(), Failure> {
    let shards = shards(client, arguments.node)?;
    let mut rows = ask(client, &shards, true);
    if !arguments.no_wait {
        rows = wait(client, &shards, rows, arguments.quiet)?;
    }
    output::print(format, &rows, |rows| table(rows))?;
    let damaged: u64 = rows.iter().map(|row| u64::from(row.damaged)).sum();
    let unreachable = rows.iter().filter(|row| row.error.is_some()).count();
    match (damaged, unreachable) {
        (0, 0) => Ok(()),
        (0, _) => Err(Failure::failed(format!(
            "{unreachable} shards could not be asked; start their nodes and scrub again"
        ))),
        // While it is under way more may be repaired.
        _ if arguments.no_wait => Ok(()),
        _ => Err(Failure::failed(format!(
            "{damaged} ranges are damaged and refused; their nodes try to repair them from the other replicas for as long as they run \
             (docs/operations/repair.md)"
        ))),
    }
}

/// Waits until all that can be asked have read everything.
fn wait(client: &mut Client, shards: &[Shard], mut rows: Vec<Row>, quiet: bool) -> Result<Vec<Row>, Failure> {
    let bar = match !quiet && io::stderr().is_terminal() {
        true => ProgressBar::new(0),
        false => ProgressBar::hidden(),
    };
    let style = ProgressStyle::with_template(
        "{bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta} left {msg}",
    );
    bar.set_style(style.map_err(|error| Failure::failed(error.to_string()))?);
    while rows.iter().any(|row| row.running) {
        let done = |row: &Row| if row.running { row.done_bytes } else { row.total_bytes };
        bar.set_length(rows.iter().map(|row| row.total_bytes).sum());
        bar.set_position(rows.iter().map(done).sum());
        let damaged: u64 = rows.iter().map(|row| u64::from(row.damaged)).sum();
        let repaired: u64 = rows.iter().map(|row| row.repaired).sum();
        bar.set_message(format!("{repaired} repaired, {damaged} damaged"));
        std::thread::sleep(LOOK);
        rows = ask(client, shards, false);
    }
    bar.finish_and_clear();
    Ok(rows)
}
