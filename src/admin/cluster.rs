//! `cluster info` and `topic …`.

use std::io::{self, BufRead, IsTerminal, Write};

use pyralog_core::{ErrorCode, Quorums};
use pyralog_net::client::{Client, ClientError};
use pyralog_net::message::{CreateTopicRequest, NodeMetadata, PartitionState, TopicMetadata};
use serde::Serialize;

use super::cli::{Format, TopicCommand};
use super::output;
use super::{explain, retention};
use crate::control::view::health_name;
use crate::failure::Failure;
use crate::units;

#[derive(Serialize)]
struct ClusterInfo {
    server: String,
    /// The node that takes administrative requests.
    controller: u32,
    catalog_version: u64,
    topics: usize,
    partitions: usize,
    nodes: Vec<NodeRow>,
}

#[derive(Serialize)]
struct NodeRow {
    node: u32,
    address: String,
    shards: u16,
    /// Copies of partitions that it holds.
    replicas: usize,
    /// Those of them in sync.
    replicas_in_sync: usize,
    partitions_led: usize,
    /// Partitions whose preferred leader it is.
    partitions_preferred: usize,
}

impl NodeRow {
    fn of(node: &NodeMetadata, topics: &[TopicMetadata]) -> Self {
        let partitions = || topics.iter().flat_map(|topic| &topic.partitions);
        let replicas = || partitions().flat_map(|p| p.replicas.iter()).filter(|r| r.node == node.id);
        let preferred =
            partitions().filter(|p| p.replicas.first().is_some_and(|first| first.node == node.id));
        Self {
            node: node.id,
            address: node.address.clone(),
            shards: node.shards,
            replicas: replicas().count(),
            replicas_in_sync: replicas().filter(|replica| replica.in_sync).count(),
            partitions_led: partitions().filter(|p| p.leader == node.id).count(),
            partitions_preferred: preferred.count(),
        }
    }
}

/// `cluster info`.
pub(crate) fn info(client: &mut Client, format: Format) -> Result<(), Failure> {
    let (node, topics) = client.metadata().map_err(|error| explain(error, None))?;
    let partitions = topics.iter().map(|topic| topic.partitions.len()).sum();
    let info = ClusterInfo {
        server: node.server,
        controller: node.controller,
        catalog_version: node.catalog_version,
        topics: topics.len(),
        partitions,
        nodes: node.nodes.iter().map(|node| NodeRow::of(node, &topics)).collect(),
    };
    output::print(format, &info, |info| {
        let facts = output::pairs(&[
            ("server", info.server.clone()),
            ("controller", info.controller.to_string()),
            ("topics", info.topics.to_string()),
            ("partitions", info.partitions.to_string()),
            ("catalogue version", info.catalog_version.to_string()),
        ]);
        let rows = info.nodes.iter().map(|node| {
            vec![
                node.node.to_string(),
                node.address.clone(),
                node.shards.to_string(),
                node.replicas.to_string(),
                node.replicas_in_sync.to_string(),
                node.partitions_led.to_string(),
                node.partitions_preferred.to_string(),
            ]
        });
        let head = ["NODE", "ADDRESS", "SHARDS", "REPLICAS", "IN SYNC", "LEADS", "SHOULD LEAD"];
        format!("{facts}\n\n{}", output::table(&head, rows))
    })
}

#[derive(Serialize)]
struct TopicRow {
    name: String,
    id: u32,
    partitions: usize,
    replication_factor: u8,
    write_quorum: u8,
    read_quorum: u8,
    min_insync_replicas: u8,
    /// -1 = the node's setting, 0 = no bound.
    retention_bytes: i64,
    retention_ms: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    records: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition_states: Option<Vec<PartitionRow>>,
}

#[derive(Serialize)]
struct PartitionRow {
    partition: u32,
    leader: u32,
    shard: u16,
    epoch: u32,
    /// Nodes of its replicas, the preferred leader first.
    replicas: Vec<u32>,
    /// Those in sync.
    isr: Vec<u32>,
    health: &'static str,
    log_start: i64,
    high_watermark: i64,
    log_end: i64,
    flushed: i64,
    segments: u32,
    segment_bytes: u64,
    cached_bytes: u64,
    producers: u32,
}

impl TopicRow {
    fn of(topic: &TopicMetadata) -> Self {
        Self {
            name: topic.name.clone(),
            id: topic.id,
            partitions: topic.partitions.len(),
            replication_factor: topic.quorums.replication_factor,
            write_quorum: topic.quorums.write_quorum,
            read_quorum: topic.quorums.read_quorum,
            min_insync_replicas: topic.quorums.min_insync_replicas,
            retention_bytes: topic.retention_bytes,
            retention_ms: topic.retention_ms,
            records: None,
            partition_states: None,
        }
    }

    fn pairs(&self) -> String {
        let mut pairs = vec![
            ("name", self.name.clone()),
            ("id", self.id.to_string()),
            ("partitions", self.partitions.to_string()),
            ("replication factor", self.replication_factor.to_string()),
            ("write quorum", self.write_quorum.to_string()),
            ("read quorum", self.read_quorum.to_string()),
            ("min in-sync replicas", self.min_insync_replicas.to_string()),
            ("retention by size", retention(self.retention_bytes, units::bytes)),
            ("retention by age", retention(self.retention_ms, |ms| format!("{ms} ms"))),
        ];
        if let Some(records) = self.records {
            pairs.push(("records", units::count(records.unsigned_abs())));
        }
        output::pairs(&pairs)
    }
}

/// `topic …`.
pub(crate) fn topic(client: &mut Client, format: Format, command: TopicCommand) -> Result<(), Failure> {
    match command {
        TopicCommand::Create {
            name,
            partitions,
            replication_factor,
            write_quorum,
            read_quorum,
            min_insync_replicas,
            retention_bytes,
            retention_ms,
        } => {
            let quorums = Quorums {
                replication_factor: replication_factor.unwrap_or(0),
                write_quorum: write_quorum.unwrap_or(0),
                read_quorum: read_quorum.unwrap_or(0),
                min_insync_replicas: min_insync_replicas.unwrap_or(0),
            };
            let retention_bytes = retention_argument(retention_bytes)?;
            let retention_ms = retention_argument(retention_ms)?;
            let name = name.as_str();
            let request = CreateTopicRequest { name, partitions, quorums, retention_bytes, retention_ms };
            client.create_topic_with(request).map_err(|error| explain(error, None))?;
            let topic = client.topic(name).map_err(|error| explain(error, None))?;
            output::print(format, &TopicRow::of(&topic), TopicRow::pairs)
        }
        TopicCommand::List => list(client, format),
        TopicCommand::Get { name, detailed } => get(client, format, &name, detailed),
        TopicCommand::Delete { name, yes } => delete(client, &name, yes),
    }
}

fn retention_argument(value: Option<u64>) -> Result<i64, Failure> {
    value.map_or(Ok(-1), |value| {
        i64::try_from(value)
            .map_err(|_| Failure::usage(format!("a retention of {value} is beyond what can be counted")))
    })
}

fn list(client: &mut Client, format: Format) -> Result<(), Failure> {
    let (_, topics) = client.metadata().map_err(|error| explain(error, None))?;
    let rows: Vec<TopicRow> = topics.iter().map(TopicRow::of).collect();
    output::print(format, &rows, |rows| {
        let rows = rows.iter().map(|topic| {
            vec![
                topic.name.clone(),
                topic.id.to_string(),
                topic.partitions.to_string(),
                topic.replication_factor.to_string(),
                retention(topic.retention_bytes, units::bytes),
                retention(topic.retention_ms, |ms| format!("{ms} ms")),
            ]
        });
        output::table(
            &["TOPIC", "ID", "PARTITIONS", "REPLICAS", "RETENTION BY SIZE", "RETENTION BY AGE"],
            rows,
        )
    })
}

fn get(client: &mut Client, format: Format, name: &str, detailed: bool) -> Result<(), Failure> {
    let topic = find(client, name)?;
    let mut row = TopicRow::of(&topic);
    let states = client.describe_topic(name).map_err(|error| explain(error, Some(name)))?;
    row.records = Some(states.iter().map(|state| state.high_watermark.saturating_sub(state.log_start)).sum());
    if detailed {
        row.partition_states = Some(states.iter().map(|state| partition_row(&topic, state)).collect());
    }
    output::print(format, &row, |row| match &row.partition_states {
        None => row.pairs(),
        Some(states) => format!("{}\n\n{}", row.pairs(), partition_table(states)),
    })
}

fn partition_row(topic: &TopicMetadata, state: &PartitionState) -> PartitionRow {
    let place = topic.partitions.get(state.partition as usize);
    PartitionRow {
        partition: state.partition,
        leader: state.leader,
        shard: place.map_or(0, |place| place.shard),
        epoch: state.epoch,
        replicas: state.replicas.iter().map(|replica| replica.node).collect(),
        isr: state.replicas.iter().filter(|replica| replica.in_sync).map(|replica| replica.node).collect(),
        health: health_name(state.health),
        log_start: state.log_start,
        high_watermark: state.high_watermark,
        log_end: state.log_end,
        flushed: state.flushed,
        segments: state.segments,
        segment_bytes: state.segment_bytes,
        cached_bytes: state.cached_bytes,
        producers: state.producers,
    }
}

fn partition_table(states: &[PartitionRow]) -> String {
    let head = [
        "PARTITION",
        "LEADER",
        "SHARD",
        "EPOCH",
        "REPLICAS",
        "ISR",
        "HEALTH",
        "LOG START",
        "HIGH WATERMARK",
        "LOG END",
        "FLUSHED",
        "SEGMENTS",
        "IN SEGMENTS",
        "CACHED",
    ];
    let rows = states.iter().map(|state| {
        vec![
            state.partition.to_string(),
            state.leader.to_string(),
            state.shard.to_string(),
            state.epoch.to_string(),
            ids(&state.replicas),
            ids(&state.isr),
            state.health.to_owned(),
            state.log_start.to_string(),
            state.high_watermark.to_string(),
            state.log_end.to_string(),
            state.flushed.to_string(),
            state.segments.to_string(),
            units::bytes(state.segment_bytes),
            units::bytes(state.cached_bytes),
        ]
    });
    output::table(&head, rows)
}

fn ids(nodes: &[u32]) -> String {
    nodes.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

fn delete(client: &mut Client, name: &str, yes: bool) -> Result<(), Failure> {
    find(client, name)?;
    if !yes && !confirmed(name)? {
        return Err(Failure::failed(format!("topic {name:?} was kept")));
    }
    client.delete_topic(name).map_err(|error| explain(error, Some(name)))
}

fn confirmed(name: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(format!("deleting {name:?} loses its records; confirm with --yes")));
    }
    eprint!("Delete topic {name:?} and all its records? Type its name: ");
    // The question is on the screen or it is not; the answer decides.
    let _ = io::stderr().flush();
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|error| Failure::failed(format!("no answer: {error}")))?;
    Ok(answer.trim() == name)
}

/// The topic, or an error that names the nearest one.
pub(crate) fn find(client: &mut Client, name: &str) -> Result<TopicMetadata, Failure> {
    let error = match client.topic(name) {
        Ok(topic) => return Ok(topic),
        Err(error) => error,
    };
    if !matches!(&error, ClientError::Server { code: ErrorCode::UnknownTopicOrPartition, .. }) {
        return Err(explain(error, Some(name)));
    }
    let names = client.metadata().map(|(_, topics)| topics).unwrap_or_default();
    let nearest = names
        .iter()
        .map(|topic| (strsim::damerau_levenshtein(&topic.name, name), &topic.name))
        .filter(|(distance, _)| *distance <= 1 + name.len() / 3)
        .min();
    let hint = match nearest {
        Some((_, nearest)) => format!("did you mean {nearest:?}?"),
        None => format!("create it with: pyralog-admin topic create {name}"),
    };
    Err(Failure::failed(format!("there is no topic {name:?}; {hint}")))
}
