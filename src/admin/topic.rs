//! `topic …`.

use std::io::{self, BufRead, IsTerminal, Write};
use std::time::{Duration, Instant};

use pyralog_core::{ErrorCode, Quorums};
use pyralog_net::client::{Client, ClientConfig, ClientError, Described};
use pyralog_net::message::{
    AlterTopicRequest, CreateTopicRequest, PartitionState, ReplicaRole, ReplicaState, ReplicationState,
    TopicMetadata,
};
use serde::Serialize;

use super::cli::{Format, TopicCommand, TopicSettings};
use super::output::{self, nodes};
use super::{explain, rebalance, retention};
use crate::control::view::{health_name, replica_role_name, replication_state_name};
use crate::failure::Failure;
use crate::units;

/// How long a new topic may take to be known by every node that can be reached; a few milliseconds is usual.
const KNOWN_WITHIN: Duration = Duration::from_secs(3);
/// How long one of them may take to answer.
const POLL_TIMEOUT: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(5);

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

/// Who told the state of a partition.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum ToldBy {
    Leader,
    /// Another replica: it has no leader, or that one can't be reached.
    Replica,
    Nobody,
}

/// What is not known is null.
#[derive(Serialize)]
struct PartitionRow {
    partition: u32,
    /// 0 while there is none.
    leader: u32,
    shard: u16,
    epoch: u32,
    told_by: ToldBy,
    /// Nodes of its replicas, the preferred leader first.
    replicas: Vec<u32>,
    /// Those in sync, as the leader tells.
    isr: Option<Vec<u32>>,
    health: &'static str,
    log_start: Option<i64>,
    high_watermark: Option<i64>,
    log_end: Option<i64>,
    flushed: Option<i64>,
    segments: Option<u32>,
    segment_bytes: Option<u64>,
    cached_bytes: Option<u64>,
    producers: Option<u32>,
    followers: Vec<FollowerRow>,
}

#[derive(Serialize)]
struct FollowerRow {
    node: u32,
    shard: u16,
    /// What it counts for.
    role: &'static str,
    state: &'static str,
    in_sync: bool,
    log_end: Option<i64>,
    lag_records: Option<u64>,
    lag_bytes: Option<u64>,
    lag_ms: u64,
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

impl TopicSettings {
    /// 0 for what is not named.
    fn quorums(&self) -> Quorums {
        Quorums {
            replication_factor: self.replication_factor.unwrap_or(0),
            write_quorum: self.write_quorum.unwrap_or(0),
            read_quorum: self.read_quorum.unwrap_or(0),
            min_insync_replicas: self.min_insync_replicas.unwrap_or(0),
        }
    }
}

/// `topic …`.
pub(crate) fn run(client: &mut Client, format: Format, command: TopicCommand) -> Result<(), Failure> {
    match command {
        TopicCommand::Create { name, partitions, settings } => {
            let quorums = settings.quorums();
            let retention_bytes = retention_argument(settings.retention_bytes)?;
            let retention_ms = retention_argument(settings.retention_ms)?;
            let name = name.as_str();
            let request = CreateTopicRequest { name, partitions, quorums, retention_bytes, retention_ms };
            client.create_topic_with(request).map_err(|error| explain(error, None))?;
            let topic = client.topic(name).map_err(|error| explain(error, None))?;
            await_known_everywhere(client, name)?;
            output::print(format, &TopicRow::of(&topic), TopicRow::pairs)
        }
        TopicCommand::Alter { name, partitions, settings, at_once, quiet } => {
            let quorums = settings.quorums();
            let retention = |wanted: Option<u64>| match wanted {
                None => Ok(AlterTopicRequest::AS_IT_IS),
                wanted => retention_argument(wanted),
            };
            let retention_bytes = retention(settings.retention_bytes)?;
            let retention_ms = retention(settings.retention_ms)?;
            let (name, partitions) = (name.as_str(), partitions.unwrap_or(0));
            find(client, name)?;
            let request = AlterTopicRequest { name, partitions, quorums, retention_bytes, retention_ms };
            client.alter_topic(request).map_err(|error| explain(error, Some(name)))?;
            if settings.replication_factor.is_some() {
                rebalance::resize(client, name, at_once, quiet)?;
            }
            let topic = client.topic_for_sure(name).map_err(|error| explain(error, Some(name)))?;
            output::print(format, &TopicRow::of(&topic), TopicRow::pairs)
        }
        TopicCommand::List => list(client, format),
        TopicCommand::Get { name, detailed } => get(client, format, &name, detailed),
        TopicCommand::Delete { name, yes } => delete(client, &name, yes),
    }
}

/// Waits until the nodes that answer know the topic: whoever is asked next must not say that there is none.
fn await_known_everywhere(client: &mut Client, name: &str) -> Result<(), Failure> {
    let (info, _) = client.metadata().map_err(|error| explain(error, None))?;
    let end = Instant::now() + KNOWN_WITHIN;
    for node in info.nodes {
        let config = ClientConfig {
            request_timeout: POLL_TIMEOUT,
            retry_for: Duration::ZERO,
            ..client.config().clone()
        };
        let mut client = Client::new(&[node.address], config);
        let unknown = |error: &ClientError| {
            matches!(error, ClientError::Server { code: ErrorCode::UnknownTopicOrPartition, .. })
        };
        // One that does not answer learns of it when it is back.
        while client.topic_afresh(name).is_err_and(|error| unknown(&error)) && Instant::now() < end {
            std::thread::sleep(POLL);
        }
    }
    Ok(())
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
    client.forget_topic(name);
    let topic = find(client, name)?;
    let mut row = TopicRow::of(&topic);
    let described: Vec<Described> = client.describe(&[topic]).into_iter().flatten().collect();
    let known: Option<Vec<&PartitionState>> =
        described.iter().map(|described| described.state.as_ref()).collect();
    row.records = known
        .map(|states| states.iter().map(|state| state.high_watermark.saturating_sub(state.log_start)).sum());
    if detailed {
        row.partition_states = Some((0..).zip(&described).map(|(at, it)| partition_row(at, it)).collect());
    }
    output::print(format, &row, |row| match &row.partition_states {
        None => row.pairs(),
        Some(states) => {
            let tables = [Some(partition_table(states)), follower_table(states)];
            let tables = tables.into_iter().flatten().map(|table| format!("\n\n{table}"));
            row.pairs() + &tables.collect::<String>()
        }
    })
}

fn partition_row(partition: u32, described: &Described) -> PartitionRow {
    let (place, state) = (&described.place, described.state.as_ref());
    PartitionRow {
        partition,
        leader: place.leader,
        shard: place.shard,
        epoch: state.map_or(place.epoch, |state| state.epoch),
        told_by: match state {
            Some(_) if described.is_from_leader() => ToldBy::Leader,
            Some(_) => ToldBy::Replica,
            None => ToldBy::Nobody,
        },
        replicas: place.replicas.iter().map(|replica| replica.node).collect(),
        isr: state.filter(|_| described.is_from_leader()).map(in_sync),
        health: match (state, place.leader) {
            (Some(state), _) if described.is_from_leader() => health_name(state.health),
            (_, 0) => "no_leader",
            _ => "leader_unreachable",
        },
        log_start: state.map(|state| state.log_start),
        high_watermark: state.map(|state| state.high_watermark),
        log_end: state.map(|state| state.log_end),
        flushed: state.map(|state| state.flushed),
        segments: state.map(|state| state.segments),
        segment_bytes: state.map(|state| state.segment_bytes),
        cached_bytes: state.map(|state| state.cached_bytes),
        producers: state.map(|state| state.producers),
        followers: state.map(followers).unwrap_or_default(),
    }
}

fn in_sync(state: &PartitionState) -> Vec<u32> {
    let in_sync = |replica: &&ReplicaState| replica.in_sync && replica.role != ReplicaRole::Joining;
    state.replicas.iter().filter(in_sync).map(|replica| replica.node).collect()
}

fn followers(state: &PartitionState) -> Vec<FollowerRow> {
    let followers = state.replicas.iter().filter(|replica| replica.state != ReplicationState::Leader);
    let row = |replica: &ReplicaState| FollowerRow {
        node: replica.node,
        shard: replica.shard,
        role: replica_role_name(replica.role),
        state: replication_state_name(replica.state),
        in_sync: replica.in_sync,
        log_end: replica.known_end(),
        lag_records: replica.lag_records(state.log_end),
        lag_bytes: replica.known_lag_bytes(),
        lag_ms: replica.lag_ms,
    };
    followers.map(row).collect()
}

/// What is not known, for people.
fn or_unknown<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "?".to_owned(), show)
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
    let offset = |value: Option<i64>| or_unknown(value, |value| value.to_string());
    let rows = states.iter().map(|state| {
        vec![
            state.partition.to_string(),
            Some(state.leader)
                .filter(|leader| *leader != 0)
                .map_or("none".into(), |leader| leader.to_string()),
            state.shard.to_string(),
            state.epoch.to_string(),
            nodes(&state.replicas),
            or_unknown(state.isr.as_deref(), nodes),
            state.health.to_owned(),
            offset(state.log_start),
            offset(state.high_watermark),
            offset(state.log_end),
            offset(state.flushed),
            or_unknown(state.segments, |segments| segments.to_string()),
            or_unknown(state.segment_bytes, units::bytes),
            or_unknown(state.cached_bytes, units::bytes),
        ]
    });
    output::table(&head, rows)
}

/// How far the followers are; nothing when there are none.
fn follower_table(states: &[PartitionRow]) -> Option<String> {
    let head =
        ["PARTITION", "FOLLOWER", "ROLE", "STATE", "IN SYNC", "LOG END", "LAG RECORDS", "LAG BYTES", "LAG"];
    let followers = || states.iter().flat_map(|state| state.followers.iter().map(move |row| (state, row)));
    let rows = followers().map(|(state, follower)| {
        vec![
            state.partition.to_string(),
            follower.node.to_string(),
            follower.role.to_owned(),
            follower.state.to_owned(),
            if follower.in_sync { "yes" } else { "no" }.to_owned(),
            or_unknown(follower.log_end, |end| end.to_string()),
            or_unknown(follower.lag_records, units::count),
            or_unknown(follower.lag_bytes, units::bytes),
            units::duration(Duration::from_millis(follower.lag_ms)),
        ]
    });
    followers().next().is_some().then(|| output::table(&head, rows))
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
