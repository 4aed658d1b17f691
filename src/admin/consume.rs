//! `consume`: fetching and printing overlap, in threads of their own.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use pyralog_core::batch::{BatchError, BatchView};
use pyralog_core::limits::{MAX_FETCH_BYTES, MAX_IN_FLIGHT_REQUESTS_PER_CONNECTION};
use pyralog_core::{ErrorCode, GroupId};
use pyralog_net::client::{Client, ClientError, Place};
use pyralog_net::message::{Consistency, FetchRequest, OffsetSpec, Request, Response, TopicMetadata};

use super::cli::{Consume, From, PartitionArg, ReadFrom};
use super::records::Printer;
use super::{explain, topic};
use crate::failure::{Exit, Failure};

/// How long a follower's fetch waits for records at the server.
const FOLLOW_WAIT_MS: u32 = 5_000;
/// Bytes per fetch while following: many partitions have one under way at once.
const FOLLOW_FETCH_BYTES: u32 = 1 << 20;
/// How long a follower tries to get a lost connection back.
const RETRY_FOR: Duration = Duration::from_secs(60);

/// After so long it says for what it waits.
const SILENT_FOR: Duration = Duration::from_secs(2);

/// Pause before a follower looks again for who leads.
const LEADER_POLL: Duration = Duration::from_millis(50);

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
    let consistency = match arguments.consistency {
        ReadFrom::Leader => Consistency::Leader,
        ReadFrom::Linearizable => Consistency::Linearizable,
        ReadFrom::AnyReplica => Consistency::AnyReplica,
    };
    client.set_consistency(consistency);
    let topic = topic::find(&mut client, &arguments.topic)?;
    let follow = arguments.follow || (arguments.from == From::End && !arguments.exit_at_end);
    if follow && consistency == Consistency::AnyReplica {
        let text = "following reads from the leaders; leave --consistency any-replica out, or read up to the end with \
                    --exit-at-end";
        return Err(Failure::new(Exit::Usage, text.to_owned()));
    }
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
        true => follow_all(cluster, consistency, &topic, ranges, &sender)?,
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
    FetchRequest { group, offset, min_bytes: 1, max_bytes, max_wait_ms, consistency: Consistency::Leader }
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

/// One thread and connection per shard that leads; each partition has one fetch waiting there at all times.
fn follow_all(
    cluster: &[String],
    consistency: Consistency,
    topic: &TopicMetadata,
    ranges: Vec<Range>,
    sender: &Sender,
) -> Result<(), Failure> {
    let (mut client, name) = (super::client(cluster, RETRY_FOR), topic.name.clone());
    client.set_consistency(consistency);
    let places =
        leaders(&mut client, &name, topic.id, ranges).map_err(|error| explain(error, Some(&name)))?;
    if let Some(most) =
        places.values().map(Vec::len).find(|count| *count > MAX_IN_FLIGHT_REQUESTS_PER_CONNECTION)
    {
        return Err(Failure::usage(format!(
            "one shard leads {most} partitions of this topic and {MAX_IN_FLIGHT_REQUESTS_PER_CONNECTION} can be \
             followed at once; name one with --partition"
        )));
    }
    let follow = Follow { cluster: cluster.to_vec(), name, topic: topic.id, sender: sender.clone() };
    for (place, ranges) in places {
        follow.start(place, ranges);
    }
    Ok(())
}

/// Where each of the partitions is led, waiting a while for those that nobody leads now.
fn leaders(
    client: &mut Client,
    topic: &str,
    id: u32,
    ranges: Vec<Range>,
) -> Result<BTreeMap<Place, Vec<Range>>, ClientError> {
    let begun = Instant::now();
    let mut told = false;
    loop {
        let metadata = client.topic_afresh(topic)?;
        if metadata.id != id {
            return Err(ClientError::Usage(format!("topic {topic} was deleted and created anew")));
        }
        let mut places = BTreeMap::<Place, Vec<Range>>::new();
        let mut unled = None;
        for range in &ranges {
            match metadata.partitions.get(range.partition as usize).and_then(Place::leader_of) {
                Some(place) => places.entry(place).or_default().push(*range),
                None => unled = Some(range.partition),
            }
        }
        match unled {
            None => return Ok(places),
            Some(partition) if begun.elapsed() >= RETRY_FOR => {
                let detail = format!("partition {partition} has no leader");
                return Err(ClientError::Server { code: ErrorCode::NotLeader, detail });
            }
            Some(partition) => {
                if begun.elapsed() >= SILENT_FOR && !std::mem::replace(&mut told, true) {
                    let within = RETRY_FOR.as_secs();
                    eprintln!(
                        "pyralog-admin: partition {partition} of topic {topic:?} has no leader that can be reached; waiting for \
                         one for up to {within} s"
                    );
                }
                thread::sleep(LEADER_POLL);
            }
        }
    }
}

/// What the threads that follow partitions have in common.
#[derive(Clone)]
struct Follow {
    cluster: Vec<String>,
    name: String,
    topic: u32,
    sender: Sender,
}

struct Follower {
    client: Client,
    place: Place,
    ranges: Vec<Range>,
    follow: Follow,
}

impl Follow {
    fn start(&self, place: Place, ranges: Vec<Range>) {
        let client = super::client(&self.cluster, RETRY_FOR);
        let mut follower = Follower { client, place, ranges, follow: self.clone() };
        thread::spawn(move || {
            if let Some(failure) = follower.run() {
                let _ = follower.follow.sender.send(Err(failure));
            }
        });
    }
}

impl Follower {
    /// Goes on until something cannot be mended (`Some`), or until nobody leads its partitions where it looks any more:
    /// then others have taken over.
    fn run(&mut self) -> Option<Failure> {
        loop {
            let error = match self.poll_all() {
                Err(Stop::Error(error)) if error.retriable() => error,
                Err(Stop::Error(error)) => return Some(explain(error, Some(&self.follow.name))),
                Err(Stop::Batch(error)) => return Some(Failure::failed(error.to_string())),
                Err(Stop::Done) => return Some(Failure::failed("nobody reads the records any more")),
                Ok(never) => match never {},
            };
            // Metadata first: the connection of a node that is gone can't be had again.
            let places = leaders(
                &mut self.client,
                &self.follow.name,
                self.follow.topic,
                std::mem::take(&mut self.ranges),
            );
            let places = match places {
                Ok(places) => places,
                Err(last @ ClientError::Usage(_)) => return Some(explain(last, None)),
                Err(_) => return Some(explain(error, Some(&self.follow.name))),
            };
            let mut own = None;
            for (place, ranges) in places {
                match own {
                    None => own = Some((place, ranges)),
                    Some(_) => self.follow.start(place, ranges),
                }
            }
            (self.place, self.ranges) = own?;
            // One that is up for its metadata may not take fetches yet.
            thread::sleep(LEADER_POLL);
        }
    }

    fn poll_all(&mut self) -> Result<std::convert::Infallible, Stop> {
        let mut connection = self.client.open(self.place)?;
        connection.set_timeout(Duration::from_millis(u64::from(FOLLOW_WAIT_MS)) + Duration::from_secs(30));
        let mut waiting = std::collections::HashMap::new();
        for (index, range) in self.ranges.iter().enumerate() {
            let group = GroupId::new(self.follow.topic, range.partition);
            let request = fetch_request(group, range.from, FOLLOW_FETCH_BYTES, FOLLOW_WAIT_MS);
            let consistency = self.client.config().consistency;
            let request = FetchRequest { consistency, ..request };
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
                self.follow.sender.send(Ok(fetched)).map_err(|_| Stop::Done)?;
                range.from = next;
            }
            let group = GroupId::new(self.follow.topic, range.partition);
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
