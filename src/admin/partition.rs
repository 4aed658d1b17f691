//! `partition recover`.

use std::time::{Duration, Instant};

use pyralog_net::client::{Client, NodeAnswer};
use pyralog_net::message::{PartitionState, TopicMetadata};
use serde::Serialize;

use super::cli::{Format, Recover};
use super::{explain, output};
use crate::failure::Failure;

const LOOK: Duration = Duration::from_millis(200);
/// Its node hears of it from the metadata, and is elected by itself.
const LEADS_WITHIN: Duration = Duration::from_secs(30);

/// What a node says of its replica.
#[derive(Serialize)]
struct Held {
    node: u32,
    /// Why it says nothing.
    silent: Option<String>,
    epoch: u32,
    log_start: i64,
    /// Committed for sure, as far as this replica knows.
    high_watermark: i64,
    log_end: i64,
}

#[derive(Serialize)]
struct Recovered {
    topic: String,
    partition: u32,
    /// All of its nodes, as they were before.
    replicas: Vec<Held>,
    /// Whose replica goes on.
    survivor: u32,
    /// Records that it has, from here on, that nobody knew to be committed: they are now.
    committed_from: i64,
    log_end: i64,
    /// Nothing was done yet.
    dry_run: bool,
    /// The epoch in which it goes on.
    epoch: Option<u32>,
}

impl Held {
    fn of(node: u32, answer: Result<PartitionState, String>) -> Self {
        match answer {
            Ok(state) => Self {
                node,
                silent: None,
                epoch: state.epoch,
                log_start: state.log_start,
                high_watermark: state.high_watermark,
                log_end: state.log_end,
            },
            Err(why) => {
                Self { node, silent: Some(why), epoch: 0, log_start: 0, high_watermark: 0, log_end: 0 }
            }
        }
    }

    fn cells(&self) -> Vec<String> {
        match &self.silent {
            Some(why) => {
                vec![self.node.to_string(), format!("silent: {why}"), "-".into(), "-".into(), "-".into()]
            }
            None => {
                let numbers = [i64::from(self.epoch), self.high_watermark, self.log_end];
                let numbers = numbers.map(|number| number.to_string());
                [self.node.to_string(), "answers".into()].into_iter().chain(numbers).collect()
            }
        }
    }
}

impl Recovered {
    fn text(&self) -> String {
        let head = ["NODE", "STATE", "EPOCH", "COMMITTED", "LOG END"];
        let table = output::table(&head, self.replicas.iter().map(Held::cells));
        let (node, end, from) = (self.survivor, self.log_end, self.committed_from);
        let lost = format!(
            "Lost for good: every record from offset {end} on that was acknowledged by the nodes which are silent, and whatever else of \
             lower offsets only they had. How many that is nobody can tell any more."
        );
        let kept = match end - from {
            0 => format!("Kept: all that node {node} has, up to offset {end}."),
            more => format!(
                "Kept: all that node {node} has, up to offset {end}. {more} records from {from} on were not known to be committed, and are \
                 from then on; producers may have been told that their outcome is unknown, and send them again."
            ),
        };
        match self.epoch {
            None => format!(
                "{table}\n\n{lost}\n{kept}\nThe silent nodes must be off for good: if they run somewhere without a link to here, they may go on to \
                 acknowledge records that are thrown away when they hear of it. Their copies are deleted when they come back.\nNothing \
                 was done. To do it, say so with --accept-data-loss."
            ),
            Some(epoch) => format!(
                "{table}\n\n{lost}\n{kept}\nPartition {} of {} goes on with node {node} alone, in epoch {epoch}. Give it more copies with \
                 `pyralog-admin rebalance`.",
                self.partition, self.topic
            ),
        }
    }
}

/// `partition recover`.
pub(crate) fn recover(client: &mut Client, format: Format, arguments: &Recover) -> Result<(), Failure> {
    let (name, partition) = (arguments.partition.topic.as_str(), arguments.partition.partition);
    let topic = client.topic_for_sure(name).map_err(|error| explain(error, Some(name)))?;
    super::consume::check_partition(&topic, partition)?;
    client.metadata_for_sure().map_err(|error| explain(error, None))?;
    let held = look(client, &topic, partition);
    let answering: Vec<&Held> = held.iter().filter(|held| held.silent.is_none()).collect();
    if held.len() < 2 {
        return Err(Failure::failed(format!(
            "partition {partition} of {name:?} has one replica, on node {}: nothing can go on without it",
            held.first().map_or(0, |held| held.node)
        )));
    }
    if answering.len() > held.len() / 2 {
        return Err(Failure::failed(format!(
            "{} of the {} nodes that have partition {partition} of {name:?} answer: they are enough to go on without losing anything. \
             Wait for a leader, or see `pyralog-admin topic get {name} --detailed`",
            answering.len(),
            held.len()
        )));
    }
    // What the last leaders wrote counts before how much it is.
    let best = answering.iter().max_by_key(|held| (held.log_end, held.high_watermark, held.epoch));
    let Some(best) = best else {
        return Err(Failure::failed(format!(
            "none of the nodes that have partition {partition} of {name:?} answers: start one of them"
        )));
    };
    let wanted = arguments.from.unwrap_or(best.node);
    let Some(survivor) = answering.iter().find(|held| held.node == wanted) else {
        return Err(Failure::failed(format!(
            "node {wanted} does not answer, or has no replica of partition {partition} of {name:?}"
        )));
    };
    if arguments.from.is_none() && answering.iter().any(|held| held.node != best.node) {
        return Err(Failure::failed(format!(
            "nodes {} answer, and one of them goes on: name it with --from, the longest log is on node {}",
            output::nodes(&answering.iter().map(|held| held.node).collect::<Vec<_>>()),
            best.node
        )));
    }
    let epoch = answering.iter().map(|held| held.epoch).max().unwrap_or(0);
    let (survivor, committed_from, log_end) = (survivor.node, survivor.high_watermark, survivor.log_end);
    let mut report = Recovered {
        topic: name.to_owned(),
        partition,
        survivor,
        committed_from,
        log_end,
        dry_run: !arguments.accept_data_loss,
        epoch: None,
        replicas: held,
    };
    if report.dry_run {
        output::print(format, &report, Recovered::text)?;
        return Err(Failure::failed("nothing was done".to_owned()));
    }
    client.recover_partition(name, partition, survivor, epoch).map_err(|error| explain(error, Some(name)))?;
    report.epoch = Some(await_leader(client, &topic, partition, survivor)?);
    output::print(format, &report, Recovered::text)
}

/// What each node says that has a replica, asked for itself.
fn look(client: &mut Client, topic: &TopicMetadata, partition: u32) -> Vec<Held> {
    let answers = client.ask_nodes();
    let replicas = topic.partitions.get(partition as usize);
    let replicas = replicas.into_iter().flat_map(|place| place.replicas.iter());
    replicas
        .map(|replica| {
            let silent = answers.iter().find(|answer| answer.node == replica.node);
            let answer = match silent {
                Some(NodeAnswer { server: Err(why), .. }) => Err(why.clone()),
                _ => client
                    .state_at(replica.node, replica.shard, topic.id, partition)
                    .map_err(|error| error.to_string())
                    .and_then(|state| state.ok_or_else(|| "it has no replica".to_owned())),
            };
            Held::of(replica.node, answer)
        })
        .collect()
}

/// Waits until the survivor leads. Returns its epoch.
fn await_leader(
    client: &mut Client,
    topic: &TopicMetadata,
    partition: u32,
    survivor: u32,
) -> Result<u32, Failure> {
    let end = Instant::now() + LEADS_WITHIN;
    loop {
        let described =
            client.describe(std::slice::from_ref(topic)).into_iter().flatten().nth(partition as usize);
        let state = described.and_then(|described| described.state);
        if let Some(state) = state.filter(|state| state.leader == survivor) {
            return Ok(state.epoch);
        }
        if Instant::now() >= end {
            return Err(Failure::failed(format!(
                "it is decided, and node {survivor} does not lead partition {partition} of {:?} yet: it does when it has heard of \
                 it; look at its log",
                topic.name
            )));
        }
        std::thread::sleep(LOOK);
    }
}
