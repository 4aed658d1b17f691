//! `reassign`: partitions go to other nodes.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use pyralog_core::GroupId;
use pyralog_net::client::Client;
use pyralog_net::message::{PartitionState, Reassignment, ReplicaRole, TopicMetadata};
use serde::Serialize;

use super::cli::{Format, Reassign, TopicPartition};
use super::output::nodes;
use super::{explain, output, topic};
use crate::failure::Failure;
use crate::units;

/// Between two looks at how far a partition is.
const LOOK: Duration = Duration::from_millis(200);
/// Between two looks at whether less is left: a turn of the slowest rate takes longer, and a sensible one far less.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// One that has come no nearer for so long falls behind.
const NO_NEARER: Duration = Duration::from_secs(10);
/// A replica that has been reachable for long leads within a second or two of being the first; one that has just come needs longer.
const LEADS_WITHIN: Duration = Duration::from_secs(15);

#[derive(Serialize)]
struct Row {
    topic: String,
    partition: u32,
    /// Nodes of its replicas, the preferred leader first.
    from: Vec<u32>,
    /// Where they are wanted; the same when it is not on its way.
    to: Vec<u32>,
    state: &'static str,
    /// Bytes that the nodes lack which are to get a replica; null when its leader does not tell.
    bytes_left: Option<u64>,
}

impl Row {
    fn cells(&self) -> Vec<String> {
        vec![
            self.topic.clone(),
            self.partition.to_string(),
            nodes(&self.from),
            nodes(&self.to),
            self.state.to_owned(),
            self.bytes_left.map_or_else(|| "?".to_owned(), units::bytes),
        ]
    }
}

fn table(rows: &[Row]) -> String {
    let head = ["TOPIC", "PARTITION", "FROM", "TO", "STATE", "BYTES LEFT"];
    output::table(&head, rows.iter().map(Row::cells))
}

/// `reassign …`.
pub(crate) fn run(client: &mut Client, format: Format, arguments: &Reassign) -> Result<(), Failure> {
    let Some(wanted) = &arguments.partition else { return list(client, format) };
    if arguments.to.is_empty() && !arguments.cancel {
        return Err(Failure::usage("name the nodes with --to, or take a move back with --cancel".to_owned()));
    }
    let (name, partition) = (wanted.topic.as_str(), wanted.partition);
    topic::find(client, name)?;
    let topic = client.topic_for_sure(name).map_err(|error| explain(error, Some(name)))?;
    super::consume::check_partition(&topic, partition)?;
    let before = replicas(&topic, partition);
    client.reassign_partition(name, partition, &arguments.to).map_err(|error| explain(error, Some(name)))?;
    warn_of_one_rack(client, &arguments.to)?;
    let to = if arguments.to.is_empty() { before.clone() } else { arguments.to.clone() };
    let mut row =
        Row { topic: name.to_owned(), partition, from: before, to, state: "moving", bytes_left: None };
    if arguments.no_wait {
        row.bytes_left = progress(client, &topic, partition);
        return output::print(format, &row, |row| table(std::slice::from_ref(row)));
    }
    await_arrival(client, &topic, partition, arguments)?;
    let now = client.topic_for_sure(name).map_err(|error| explain(error, Some(name)))?;
    let now = replicas(&now, partition);
    row.state = if now == row.to { "arrived" } else { "elsewhere" };
    row.bytes_left = Some(0);
    let arrived = row.state == "arrived";
    output::print(format, &row, |row| table(std::slice::from_ref(row)))?;
    match arrived {
        true => Ok(()),
        false => Err(Failure::failed(format!(
            "partition {partition} of {name:?} is on nodes {}: somebody has wanted it elsewhere meanwhile",
            nodes(&now)
        ))),
    }
}

#[derive(Serialize)]
struct Transfer {
    topic: String,
    partition: u32,
    /// The node that leads.
    leader: u32,
    /// The nodes of its replicas, the preferred leader first.
    replicas: Vec<u32>,
}

/// `leaders transfer`: the replicas in another order, and waiting for what follows from it.
pub(crate) fn transfer(
    client: &mut Client,
    format: Format,
    wanted: &TopicPartition,
    to: u32,
) -> Result<(), Failure> {
    let (name, partition) = (wanted.topic.as_str(), wanted.partition);
    topic::find(client, name)?;
    let topic = client.topic_for_sure(name).map_err(|error| explain(error, Some(name)))?;
    super::consume::check_partition(&topic, partition)?;
    let mut order = replicas(&topic, partition);
    let Some(at) = order.iter().position(|node| *node == to) else {
        return Err(Failure::failed(format!(
            "node {to} has no replica of partition {partition} of {name:?}, nodes {} have; `reassign` moves it there",
            nodes(&order)
        )));
    };
    if at > 0 {
        order.swap(0, at);
        client.reassign_partition(name, partition, &order).map_err(|error| explain(error, Some(name)))?;
    }
    let end = Instant::now() + LEADS_WITHIN;
    loop {
        let place =
            client.describe(std::slice::from_ref(&topic)).into_iter().flatten().nth(partition as usize);
        if place.is_some_and(|described| described.is_from_leader() && described.place.leader == to) {
            let row = Transfer { topic: name.to_owned(), partition, leader: to, replicas: order };
            return output::print(format, &row, |row| {
                format!("node {} leads partition {} of {}", row.leader, row.partition, row.topic)
            });
        }
        if Instant::now() >= end {
            return Err(Failure::failed(format!(
                "node {to} does not lead partition {partition} of {name:?} yet: it does as soon as it has been reachable and complete \
                 for a few seconds"
            )));
        }
        std::thread::sleep(LOOK);
    }
}

/// Everything that is on its way.
fn list(client: &mut Client, format: Format) -> Result<(), Failure> {
    let moving = client.reassignments().map_err(|error| explain(error, None))?;
    let (_, topics) = client.metadata().map_err(|error| explain(error, None))?;
    let mut rows = Vec::new();
    for Reassignment { group, from, to } in moving {
        // A topic may have gone since.
        let Some(topic) = topics.iter().find(|topic| topic.id == group.topic.0) else { continue };
        let bytes_left = progress(client, topic, group.partition);
        let (name, partition) = (topic.name.clone(), group.partition);
        rows.push((topic, Row { topic: name, partition, from, to, state: "moving", bytes_left }));
    }
    if rows.iter().any(|(_, row)| row.bytes_left.is_some_and(|left| left > 0)) {
        std::thread::sleep(LOOK_AGAIN);
        for (topic, row) in &mut rows {
            let Some(now) = state_of(client, topic, row.partition) else { continue };
            let left = bytes_left(&now);
            row.state = state(row.bytes_left, left, is_heard(&now));
            row.bytes_left = Some(left);
        }
    }
    let rows: Vec<Row> = rows.into_iter().map(|(_, row)| row).collect();
    output::print(format, &rows, |rows| match rows.is_empty() {
        true => "no partition is on its way to other nodes".into(),
        false => table(rows),
    })
}

/// What to call a move of which so much was left before and now: one that copies slower than producers write never ends. Who
/// has not been heard at all does not copy slowly.
fn state(before: Option<u64>, now: u64, is_heard: bool) -> &'static str {
    match before {
        Some(before) if now > before && is_heard => "falling_behind",
        _ => "moving",
    }
}

/// Whether all that are to get a replica have told the leader how far they are.
fn is_heard(state: &PartitionState) -> bool {
    let mut joining = state.replicas.iter().filter(|replica| replica.role == ReplicaRole::Joining);
    joining.all(|replica| replica.known_end().is_some())
}

/// Says when everything goes where it fails together, and could go elsewhere.
fn warn_of_one_rack(client: &mut Client, to: &[u32]) -> Result<(), Failure> {
    let (info, _) = client.metadata_for_sure().map_err(|error| explain(error, None))?;
    let rack = |node: u32| info.nodes.iter().find(|known| known.id == node).map_or("", |known| &known.rack);
    let first = to.first().map_or("", |node| rack(*node));
    let together = to.len() > 1 && !first.is_empty() && to.iter().all(|node| rack(*node) == first);
    if together && info.nodes.iter().any(|known| known.rack != first) {
        eprintln!(
            "warning: nodes {} are all in rack {first}: when it fails, the partition has no replica left",
            nodes(to)
        );
    }
    Ok(())
}

fn replicas(topic: &TopicMetadata, partition: u32) -> Vec<u32> {
    let place = topic.partitions.get(partition as usize);
    place.into_iter().flat_map(|place| place.replicas.iter()).map(|replica| replica.node).collect()
}

/// Bytes that the nodes lack which are to get a replica, as the partition's leader tells.
fn progress(client: &mut Client, topic: &TopicMetadata, partition: u32) -> Option<u64> {
    state_of(client, topic, partition).as_ref().map(bytes_left)
}

/// What its leader tells of a partition.
fn state_of(client: &mut Client, topic: &TopicMetadata, partition: u32) -> Option<PartitionState> {
    let described =
        client.describe(std::slice::from_ref(topic)).into_iter().flatten().nth(partition as usize)?;
    let from_leader = described.is_from_leader();
    described.state.filter(|_| from_leader)
}

pub(super) fn bytes_left(state: &PartitionState) -> u64 {
    let joining = state.replicas.iter().filter(|replica| replica.role == ReplicaRole::Joining);
    let lacks = joining.map(|replica| match replica.known_end() {
        Some(_) => replica.lag_bytes,
        // It has not said anything yet.
        None => state.segment_bytes.max(state.cached_bytes),
    });
    lacks.sum()
}

/// Waits until the catalogue says that the partition is not on its way any more.
fn await_arrival(
    client: &mut Client,
    topic: &TopicMetadata,
    partition: u32,
    arguments: &Reassign,
) -> Result<(), Failure> {
    let bar = match !arguments.quiet && io::stderr().is_terminal() {
        true => ProgressBar::new(0),
        false => ProgressBar::hidden(),
    };
    let style = ProgressStyle::with_template(
        "{msg} {bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta} left (goes on when interrupted)",
    );
    bar.set_style(style.map_err(|error| Failure::failed(error.to_string()))?);
    let message = format!("{}/{partition}", topic.name);
    bar.set_message(message.clone());
    let group = GroupId::new(topic.id, partition);
    let (mut total, mut nearest) = (0, (u64::MAX, Instant::now()));
    loop {
        let moving = client.reassignments().map_err(|error| explain(error, Some(&topic.name)))?;
        if !moving.iter().any(|moved| moved.group == group) {
            bar.finish_and_clear();
            return Ok(());
        }
        let looked = Instant::now();
        if let Some(left) = progress(client, topic, partition) {
            total = left.max(total);
            bar.set_length(total);
            bar.set_position(total - left);
            if left < nearest.0 {
                nearest = (left, looked);
                bar.set_message(message.clone());
            } else if looked - nearest.1 > NO_NEARER {
                bar.set_message(format!("{message} falls behind what is written;"));
            }
        }
        std::thread::sleep(LOOK.saturating_sub(looked.elapsed()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_left_than_before_is_falling_behind() {
        assert_eq!(state(Some(10), 11, true), "falling_behind");
        assert_eq!(state(Some(10), 11, false), "moving", "a node that is down");
        assert_eq!(state(Some(10), 10, true), "moving");
        assert_eq!(state(Some(10), 0, true), "moving");
        assert_eq!(state(None, 10, true), "moving");
    }
}
