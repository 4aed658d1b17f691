//! `consume`: fetching and printing overlap, in threads of their own.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use pyralog_core::GroupId;
use pyralog_core::batch::{BatchError, BatchView};
use pyralog_core::limits::{MAX_FETCH_BYTES, MAX_IN_FLIGHT_REQUESTS_PER_CONNECTION};
use pyralog_net::client::{Client, ClientError};
use pyralog_net::message::{FetchRequest, OffsetSpec, Request, Response, TopicMetadata};

use super::cli::{Consume, From, PartitionArg};
use super::records::Printer;
use super::{cluster, explain};
use crate::failure::Failure;

/// How long a follower's fetch waits for records at the server.
const FOLLOW_WAIT_MS: u32 = 5_000;
/// Bytes per fetch while following: many partitions have one under way at once.
const FOLLOW_FETCH_BYTES: u32 = 1 << 20;
/// How long a follower tries to get a lost connection back.
const RETRY_FOR: Duration = Duration::from_secs(60);

/// Where one partition is read.
#[derive(Clone, Copy, Debug)]
struct Range {
    partition: u32,
    from: i64,
    /// Exclusive; `i64::MAX` when following.
    until: i64,
}

/// Whole batches of one partition, `range.from` being the first offset wanted.
struct Fetched {
    range: Range,
    batches: Vec<u8>,
}

type Sender = flume::Sender<Result<Fetched, Failure>>;

/// Runs the command.
pub(crate) fn run(cluster: &[String], mut client: Client, arguments: &Consume) -> Result<(), Failure> {
    let topic = cluster::find(&mut client, &arguments.topic)?;
    let follow = arguments.follow || (arguments.from == From::End && !arguments.exit_at_end);
    let mut ranges = Vec::new();
    for partition in partitions(&topic, arguments.partition)? {
        let mut range = range(&mut client, &topic.name, partition, arguments.from)?;
        if follow {
            range.until = i64::MAX;
        }
        ranges.push(range);
    }
    // Two replies wait while one is printed.
    let (sender, receiver) = flume::bounded(2);
    match follow {
        true => follow_all(cluster, &topic, ranges, &sender)?,
        false => {
            let name = topic.name;
            thread::spawn(move || read_all(client, &name, ranges, &sender));
        }
    }
    drop_into(receiver, arguments)
}

fn partitions(topic: &TopicMetadata, wanted: PartitionArg) -> Result<Vec<u32>, Failure> {
    let count = topic.partitions.len() as u32;
    match wanted {
        PartitionArg::All => Ok((0..count).collect()),
        PartitionArg::One(partition) => check_partition(topic, partition).map(|()| vec![partition]),
    }
}

/// Refuses a partition that the topic does not have.
pub(super) fn check_partition(topic: &TopicMetadata, partition: u32) -> Result<(), Failure> {
    let count = topic.partitions.len();
    if (partition as usize) < count {
        return Ok(());
    }
    let s = if count == 1 { "" } else { "s" };
    Err(Failure::failed(format!(
        "topic {:?} has {count} partition{s}, numbered from 0; there is no {partition}",
        topic.name
    )))
}

/// From where to the end that the log has now.
fn range(client: &mut Client, topic: &str, partition: u32, from: From) -> Result<Range, Failure> {
    let mut ask = |spec| match client.list_offsets(topic, partition, spec) {
        Ok(reply) => Ok(reply.offset),
        Err(error) => Err(explain(error, Some(topic))),
    };
    let until = ask(OffsetSpec::Latest)?;
    let from = match from {
        From::Beginning => ask(OffsetSpec::Earliest)?,
        From::End => until,
        From::Time(ms) => ask(OffsetSpec::Timestamp(ms))?,
        From::Offset(offset) => {
            let start = ask(OffsetSpec::Earliest)?;
            if !(start..=until).contains(&offset) {
                return Err(Failure::failed(format!(
                    "partition {partition} of topic {topic:?} holds the offsets {start} to {until}; {offset} is outside"
                )));
            }
            offset
        }
    };
    Ok(Range { partition, from, until })
}

/// Reads the ranges one after the other.
fn read_all(mut client: Client, topic: &str, ranges: Vec<Range>, sender: &Sender) {
    for mut range in ranges {
        while range.from < range.until {
            let fetched = fetch(&mut client, topic, range);
            let ended = fetched.is_err();
            let next = fetched.as_ref().ok().and_then(|fetched| next_offset(&fetched.batches).ok().flatten());
            // The printer is gone when it has printed enough.
            if sender.send(fetched).is_err() || ended {
                return;
            }
            match next {
                Some(next) => range.from = next,
                None => {
                    let text = format!("partition {} gave nothing at offset {}", range.partition, range.from);
                    let _ = sender.send(Err(Failure::failed(text)));
                    return;
                }
            }
        }
    }
}

fn fetch(client: &mut Client, topic: &str, range: Range) -> Result<Fetched, Failure> {
    let mut batches = Vec::new();
    let request = fetch_request(GroupId::new(0, 0), range.from, MAX_FETCH_BYTES as u32, 0);
    client
        .fetch(topic, range.partition, request, &mut batches)
        .map_err(|error| explain(error, Some(topic)))?;
    Ok(Fetched { range, batches })
}

fn fetch_request(group: GroupId, offset: i64, max_bytes: u32, max_wait_ms: u32) -> FetchRequest {
    FetchRequest { group, offset, min_bytes: 1, max_bytes, max_wait_ms }
}

/// The offset after the last of these batches; `None` when there is none.
fn next_offset(mut batches: &[u8]) -> Result<Option<i64>, BatchError> {
    let mut next = None;
    while !batches.is_empty() {
        let (batch, rest) = BatchView::parse(batches)?;
        next = Some(batch.last_offset().saturating_add(1));
        batches = rest;
    }
    Ok(next)
}

/// One thread and connection per shard; each partition has one fetch waiting there at all times.
fn follow_all(
    cluster: &[String],
    topic: &TopicMetadata,
    ranges: Vec<Range>,
    sender: &Sender,
) -> Result<(), Failure> {
    let mut shards = std::collections::BTreeMap::<u16, Vec<Range>>::new();
    for range in ranges {
        let shard = topic.partitions.get(range.partition as usize).map_or(0, |place| place.shard);
        shards.entry(shard).or_default().push(range);
    }
    if let Some(most) =
        shards.values().map(Vec::len).find(|count| *count > MAX_IN_FLIGHT_REQUESTS_PER_CONNECTION)
    {
        return Err(Failure::usage(format!(
            "one shard holds {most} partitions of this topic and {MAX_IN_FLIGHT_REQUESTS_PER_CONNECTION} can be \
             followed at once; name one with --partition"
        )));
    }
    for (shard, ranges) in shards {
        let (client, sender) = (super::client(cluster, RETRY_FOR), sender.clone());
        let (id, name) = (topic.id, topic.name.clone());
        thread::spawn(move || {
            let mut follower = Follower { client, shard, topic: id, ranges, sender };
            let failure = follower.run(&name);
            let _ = follower.sender.send(Err(failure));
        });
    }
    Ok(())
}

struct Follower {
    client: Client,
    shard: u16,
    topic: u32,
    ranges: Vec<Range>,
    sender: Sender,
}

impl Follower {
    /// Goes on until something cannot be mended.
    fn run(&mut self, topic: &str) -> Failure {
        loop {
            match self.poll_all() {
                Err(Stop::Error(error)) if error.retriable() => {
                    // A ping on a fresh connection, tried again for a minute: the shard is back or it is not.
                    if let Err(error) = self.client.ping(self.shard) {
                        return explain(error, Some(topic));
                    }
                }
                Err(Stop::Error(error)) => return explain(error, Some(topic)),
                Err(Stop::Batch(error)) => return Failure::failed(error.to_string()),
                Err(Stop::Done) => return Failure::failed("nobody reads the records any more"),
                Ok(never) => match never {},
            }
        }
    }

    fn poll_all(&mut self) -> Result<std::convert::Infallible, Stop> {
        let mut connection = self.client.open(self.shard)?;
        connection.set_timeout(Duration::from_millis(u64::from(FOLLOW_WAIT_MS)) + Duration::from_secs(30));
        let mut waiting = std::collections::HashMap::new();
        for (index, range) in self.ranges.iter().enumerate() {
            let group = GroupId::new(self.topic, range.partition);
            let request = fetch_request(group, range.from, FOLLOW_FETCH_BYTES, FOLLOW_WAIT_MS);
            waiting.insert(connection.send(&Request::Fetch(request))?, index);
        }
        loop {
            let received = connection.recv()?;
            let index = waiting.remove(&received.correlation_id);
            let Some(range) = index.and_then(|index| self.ranges.get_mut(index)) else { continue };
            if let Response::Error(error) = received.response {
                return Err(Stop::Error(ClientError::Server { code: error.code, detail: error.detail }));
            }
            if let Some(next) = next_offset(received.batches).map_err(Stop::Batch)? {
                let fetched = Fetched { range: *range, batches: received.batches.to_vec() };
                self.sender.send(Ok(fetched)).map_err(|_| Stop::Done)?;
                range.from = next;
            }
            let group = GroupId::new(self.topic, range.partition);
            let request = fetch_request(group, range.from, FOLLOW_FETCH_BYTES, FOLLOW_WAIT_MS);
            waiting.insert(connection.send(&Request::Fetch(request))?, index.unwrap_or_default());
        }
    }
}

/// Why a follower's connection is given up.
enum Stop {
    Error(ClientError),
    Batch(BatchError),
    Done,
}

impl std::convert::From<ClientError> for Stop {
    fn from(error: ClientError) -> Self {
        Self::Error(error)
    }
}

/// Prints what is fetched until there is no more, or enough, or nobody reads it.
fn drop_into(
    receiver: flume::Receiver<Result<Fetched, Failure>>,
    arguments: &Consume,
) -> Result<(), Failure> {
    // Not `Stdout`: it looks for newlines in everything that passes.
    let stdout = io::stdout().as_fd().try_clone_to_owned().map(File::from);
    let mut stdout = stdout.map_err(|error| unwritable(&error))?;
    let mut printer = Printer::new(arguments.format, arguments.key_separator.clone(), arguments.max);
    while !printer.full() {
        // The sender is dropped when everything has been read.
        let Ok(fetched) = receiver.recv() else { break };
        let Fetched { range, batches } = fetched?;
        printer.text.clear();
        let printed = printer.batches(range.partition, &batches, range.from, range.until);
        match stdout.write_all(&printer.text) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other.map_err(|error| unwritable(&error))?,
        }
        printed.map_err(|error| {
            Failure::failed(format!("partition {} at offset {}: {error}", range.partition, range.from))
        })?;
    }
    Ok(())
}

fn unwritable(error: &io::Error) -> Failure {
    Failure::failed(format!("cannot write to standard output: {error}"))
}
