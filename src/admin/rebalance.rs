//! `rebalance`, `cluster remove-node` and other numbers of replicas: which partitions move, and moving them, a few at a time.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufRead, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use pyralog_core::GroupId;
use pyralog_net::client::{Client, NodeInfo};
use pyralog_net::message::TopicMetadata;
use pyralog_replication::metadata::Replica;
use pyralog_replication::moves::{Holding, Host, Move, PlanError, plan, resize as plan_resize};
use serde::Serialize;

use super::cli::{Format, Rebalance, RemoveNode};
use super::output::nodes;
use super::reassign::bytes_left;
use super::{explain, output};
use crate::failure::Failure;
use crate::units;

/// Between two looks at how far the moves are.
const LOOK: Duration = Duration::from_millis(200);
/// Topics may be made on a node while it is emptied: it is looked at again so often.
const ROUNDS: u32 = 10;

/// A partition that is to move.
#[derive(Serialize)]
struct Row {
    topic: String,
    partition: u32,
    /// Nodes of its replicas, the preferred leader first.
    from: Vec<u32>,
    to: Vec<u32>,
    /// Bytes to be copied.
    bytes: u64,
}

/// What came of it.
#[derive(Serialize)]
struct Report {
    moves: Vec<Row>,
    bytes: u64,
    /// False when nothing was done but planning.
    done: bool,
    seconds: f64,
}

impl Report {
    fn text(&self) -> String {
        let moves = self.moves.len();
        match (moves, self.done) {
            (0, _) => "everything is where it should be".into(),
            (_, false) => format!("{}\n\n{}", table(&self.moves), sum(&self.moves)),
            (_, true) => format!(
                "{moves} partitions moved, {} copied in {:.1} s",
                units::bytes(self.bytes),
                self.seconds
            ),
        }
    }
}

fn table(rows: &[Row]) -> String {
    let row = |row: &Row| {
        let bytes = units::bytes(row.bytes);
        vec![row.topic.clone(), row.partition.to_string(), nodes(&row.from), nodes(&row.to), bytes]
    };
    output::table(&["TOPIC", "PARTITION", "FROM", "TO", "BYTES TO MOVE"], rows.iter().map(row))
}

fn sum(rows: &[Row]) -> String {
    let bytes = rows.iter().map(|row| row.bytes).sum();
    format!("{} partitions, {} to move", rows.len(), units::bytes(bytes))
}

type Planner = fn(&[Host<'_>], &[Holding]) -> Result<Vec<Move>, PlanError>;

/// The cluster as the node knows it that decides.
struct Now {
    info: NodeInfo,
    topics: Vec<TopicMetadata>,
    moves: Vec<Move>,
}

impl Now {
    /// Looks at the cluster and plans, so that `leaves`, if it is one, holds nothing any more.
    fn look(client: &mut Client, leaves: u32) -> Result<Self, Failure> {
        Self::look_with(client, leaves, plan)
    }

    fn look_with(client: &mut Client, leaves: u32, plan: Planner) -> Result<Self, Failure> {
        let (info, topics) = client.metadata_for_sure().map_err(|error| explain(error, None))?;
        let described = client.describe(&topics);
        let mut holdings = Vec::new();
        for (topic, described) in topics.iter().zip(described) {
            for (partition, (place, described)) in (0..).zip(topic.partitions.iter().zip(described)) {
                let replicas = place.replicas.iter();
                let replicas: Vec<Replica> =
                    replicas.map(|held| Replica { node: held.node, shard: held.shard }).collect();
                if let [only] = replicas[..]
                    && only.node == leaves
                    && described.state.is_none()
                {
                    return Err(Failure::failed(format!(
                        "partition {partition} of {:?} has its only replica on node {leaves}, which does not answer: start it, so \
                         that others can copy from it, or delete the topic",
                        topic.name
                    )));
                }
                let bytes = described.state.map_or(0, |state| state.segment_bytes);
                let (group, copies) = (GroupId::new(topic.id, partition), topic.quorums.replication_factor);
                holdings.push(Holding { group, replicas, copies: usize::from(copies), bytes });
            }
        }
        let hosts: Vec<Host<'_>> = info
            .nodes
            .iter()
            .map(|known| Host {
                node: known.id,
                shards: known.shards,
                rack: &known.rack,
                leaves: known.id == leaves,
            })
            .collect();
        let moves = plan(&hosts, &holdings).map_err(|error| Failure::failed(error.to_string()))?;
        Ok(Self { info, topics, moves })
    }

    fn topic(&self, group: GroupId) -> Option<&TopicMetadata> {
        self.topics.iter().find(|topic| topic.id == group.topic.0)
    }

    fn rows(&self) -> Vec<Row> {
        let ids = |replicas: &[Replica]| replicas.iter().map(|replica| replica.node).collect();
        let row = |moved: &Move| {
            let topic = self.topic(moved.group)?.name.clone();
            let (from, to) = (ids(&moved.from), ids(&moved.to));
            Some(Row { topic, partition: moved.group.partition, from, to, bytes: moved.bytes })
        };
        self.moves.iter().filter_map(row).collect()
    }
}

/// `rebalance`.
pub(crate) fn run(client: &mut Client, format: Format, arguments: &Rebalance) -> Result<(), Failure> {
    if arguments.cancel {
        return cancel(client);
    }
    let now = Now::look(client, 0)?;
    let moves = now.rows();
    let bytes = moves.iter().map(|row| row.bytes).sum();
    let mut report = Report { moves, bytes, done: false, seconds: 0.0 };
    let go = !arguments.dry_run && !report.moves.is_empty();
    if go {
        agree(&report.moves, arguments.yes, format)?;
        let started = Instant::now();
        carry_out(client, &now, arguments.at_once, arguments.quiet)?;
        (report.done, report.seconds) = (true, started.elapsed().as_secs_f64());
    }
    output::print(format, &report, Report::text)
}

/// Has every partition of a topic have as many replicas as the topic says: `topic alter --replication-factor`.
pub(super) fn resize(client: &mut Client, name: &str, at_once: u16, quiet: bool) -> Result<(), Failure> {
    let look = |client: &mut Client| {
        let mut now = Now::look_with(client, 0, plan_resize)?;
        let topic = now.topics.iter().find(|topic| topic.name == name).map(|topic| topic.id);
        now.moves.retain(|moved| Some(moved.group.topic.0) == topic);
        Ok::<_, Failure>(now)
    };
    let now = look(client)?;
    carry_out(client, &now, at_once, quiet)?;
    // Somebody else may have taken it back.
    match look(client)?.moves.len() {
        0 => Ok(()),
        others => Err(Failure::failed(format!(
            "{others} partitions of {name:?} have another number of replicas than it is to have; the same command again, or \
             `rebalance`, goes on"
        ))),
    }
}

/// Takes back everything that is on its way.
fn cancel(client: &mut Client) -> Result<(), Failure> {
    let moving = client.reassignments().map_err(|error| explain(error, None))?;
    let (_, topics) = client.metadata_for_sure().map_err(|error| explain(error, None))?;
    let mut taken_back = 0;
    for moved in &moving {
        let Some(topic) = topics.iter().find(|topic| topic.id == moved.group.topic.0) else { continue };
        match client.reassign_partition(&topic.name, moved.group.partition, &[]) {
            Ok(()) => taken_back += 1,
            Err(error) => {
                // One that has arrived since the list was made has nothing left that could be taken back.
                let still = client.reassignments().map_err(|error| explain(error, None))?;
                if still.iter().any(|other| other.group == moved.group) {
                    return Err(explain(error, Some(&topic.name)));
                }
            }
        }
    }
    eprintln!("{taken_back} partitions stay where they are, or go back there");
    Ok(())
}

/// Shows the plan and asks, if nobody has said yes.
fn agree(rows: &[Row], yes: bool, format: Format) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() || format != Format::Table {
        return Err(Failure::usage(format!(
            "{}: look at them with --dry-run, and confirm with --yes",
            sum(rows)
        )));
    }
    eprint!("{}\n\n{}. Go on? [y/N] ", table(rows), sum(rows));
    // The question is on the screen or it is not; the answer decides.
    let _ = io::stderr().flush();
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.map_err(|error| Failure::failed(format!("no answer: {error}")))?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::failed("nothing was moved".to_owned())),
    }
}

/// Moves what is planned, `at_once` partitions at a time. Interrupted, those under way go on, and a later plan goes on from there.
fn carry_out(client: &mut Client, now: &Now, at_once: u16, quiet: bool) -> Result<(), Failure> {
    let total = now.moves.iter().map(|moved| moved.bytes).sum();
    let bar = progress_bar(total, quiet)?;
    let mut waiting: VecDeque<&Move> = now.moves.iter().collect();
    let mut under_way: BTreeMap<GroupId, &Move> = BTreeMap::new();
    let mut done_bytes = 0;
    while !waiting.is_empty() || !under_way.is_empty() {
        while under_way.len() < usize::from(at_once)
            && let Some(next) = waiting.pop_front()
        {
            let Some(topic) = now.topic(next.group) else { continue };
            let to: Vec<u32> = next.to.iter().map(|replica| replica.node).collect();
            let begun = client.reassign_partition(&topic.name, next.group.partition, &to);
            begun.map_err(|error| explain(error, Some(&topic.name)))?;
            under_way.insert(next.group, next);
        }
        let looked = Instant::now();
        let moving = client.reassignments().map_err(|error| explain(error, None))?;
        under_way.retain(|group, moved| {
            let moves = moving.iter().any(|moving| moving.group == *group);
            done_bytes += if moves { 0 } else { moved.bytes };
            moves
        });
        let copied = copied(client, now, &under_way);
        bar.set_position((done_bytes + copied).min(total));
        bar.set_message(format!(
            "{} of {}",
            now.moves.len() - under_way.len() - waiting.len(),
            now.moves.len()
        ));
        if !under_way.is_empty() {
            std::thread::sleep(LOOK.saturating_sub(looked.elapsed()));
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// Bytes that are copied of those moves that are under way.
fn copied(client: &mut Client, now: &Now, under_way: &BTreeMap<GroupId, &Move>) -> u64 {
    let mut sum = 0;
    for (group, moved) in under_way {
        let Some(topic) = now.topic(*group) else { continue };
        let described = client.describe(std::slice::from_ref(topic)).into_iter().flatten();
        let state = described.filter_map(|described| described.state);
        let left = state.filter(|state| state.partition == group.partition).map(|state| bytes_left(&state));
        sum += left.map(|left| moved.bytes.saturating_sub(left)).sum::<u64>();
    }
    sum
}

fn progress_bar(total: u64, quiet: bool) -> Result<ProgressBar, Failure> {
    let bar = match !quiet && io::stderr().is_terminal() {
        true => ProgressBar::new(total),
        false => ProgressBar::hidden(),
    };
    let style = ProgressStyle::with_template(
        "{msg} partitions {bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta} left",
    );
    bar.set_style(style.map_err(|error| Failure::failed(error.to_string()))?);
    Ok(bar)
}

/// `cluster remove-node`.
pub(crate) fn remove_node(
    client: &mut Client,
    format: Format,
    arguments: &RemoveNode,
) -> Result<(), Failure> {
    let node = arguments.node;
    let now = Now::look(client, node)?;
    if !now.info.nodes.iter().any(|known| known.id == node) {
        // One that was to come, if the cluster knows of it at all.
        client.remove_node(node).map_err(|error| explain(error, None))?;
        let report = Report { moves: Vec::new(), bytes: 0, done: true, seconds: 0.0 };
        return output::print(format, &report, |_| format!("node {node} is not to come any more"));
    }
    check_others(client, node)?;
    let moves = now.rows();
    let bytes = moves.iter().map(|row| row.bytes).sum();
    if !arguments.yes {
        agree(&moves, false, format)?;
    }
    let started = Instant::now();
    let mut round = now;
    for _ in 0..ROUNDS {
        carry_out(client, &round, arguments.at_once, arguments.quiet)?;
        round = Now::look(client, node)?;
        let held = |topic: &TopicMetadata| {
            topic.partitions.iter().any(|place| place.replicas.iter().any(|replica| replica.node == node))
        };
        if !round.topics.iter().any(held) {
            break;
        }
    }
    client.remove_node(node).map_err(|error| explain(error, None))?;
    while client.metadata_holders().map_err(|error| explain(error, None))?.contains(&node) {
        std::thread::sleep(LOOK);
    }
    let report = Report { moves, bytes, done: true, seconds: started.elapsed().as_secs_f64() };
    output::print(format, &report, |report| {
        format!(
            "{}\nnode {node} is not part of the cluster any more: stop it, and take it out of node.cluster_nodes of the others",
            report.text()
        )
    })
}

/// A node may go when the others can go on without it: a majority of those that hold the metadata is up.
fn check_others(client: &mut Client, node: u32) -> Result<(), Failure> {
    let holders = client.metadata_holders().map_err(|error| explain(error, None))?;
    let left: Vec<u32> = holders.into_iter().filter(|holder| *holder != node).collect();
    let answers = client.ask_nodes();
    let answer = |holder: u32| answers.iter().find(|answer| answer.node == holder);
    let down = |holder: &u32| match answer(*holder).map(|answer| &answer.server) {
        Some(Ok(_)) => None,
        Some(Err(why)) => Some(format!("node {holder}: {why}")),
        None => Some(format!("node {holder} is not registered")),
    };
    let down: Vec<String> = left.iter().filter_map(down).collect();
    let (up, needed) = (left.len() - down.len(), left.len() / 2 + 1);
    match up >= needed && !left.is_empty() {
        true => Ok(()),
        false => Err(Failure::failed(format!(
            "without node {node} the metadata would be on nodes {}, of which {up} are up and {needed} are needed: start the others \
             first ({})",
            nodes(&left),
            down.join("; ")
        ))),
    }
}
