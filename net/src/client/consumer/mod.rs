//! Reads the records of partitions, each in its order.

mod fetch;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pyralog_core::batch::Record;
use pyralog_core::limits::{MAX_FETCH_BYTES, MAX_FETCH_WAIT_MS};
use pyralog_core::{ErrorCode, GroupId};

use super::api::{Client, nobody_leads};
use super::backoff::{FOR_EVER, Retries};
use super::connection::Connection;
use super::error::ClientError;
use super::place::Place;
use crate::message::{FetchRequest, OffsetSpec, Request, Response};
use crate::socket::{interest, wait_ready};
use fetch::{Asked, Fetch, Fetched, Route};

/// Empty buffers that are kept for the next replies.
const SPARE_BUFFERS: usize = 4;
/// Head of a reply to a fetch, at most, bytes.
const REPLY_HEAD_BYTES: usize = 1 << 10;

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// At the log start.
    Earliest,
    /// At the high watermark: only what comes from now on.
    Latest,
    /// At this offset.
    Offset(i64),
    /// At the first batch with a record of this time or later, milliseconds since the Unix epoch.
    Timestamp(i64),
}

/// How a consumer behaves.
#[derive(Clone, Debug)]
pub struct ConsumerConfig {
    /// Most bytes of batches per fetch of a partition; one batch is always returned whole. Up to twice as much is in
    /// memory for each partition: what is being visited, and what is fetched meanwhile.
    pub max_bytes: u32,
    /// How long it keeps trying after retriable errors and lost connections.
    pub retry_for: Duration,
}

impl Default for ConsumerConfig {
    fn default() -> Self {
        Self { max_bytes: 1 << 20, retry_for: Duration::from_secs(60) }
    }
}

/// The result of one [`Consumer::poll`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Polled {
    /// Records visited.
    pub records: u64,
    /// Records below this offset are committed, as the first assigned partition's last reply said.
    pub high_watermark: i64,
    /// First offset that is still in the log, likewise.
    pub log_start: i64,
}

/// A consumer of one or more partitions of a topic. Blocking; it remembers its positions and survives lost connections.
/// While records are visited, the next ones are fetched. For one thread at a time.
#[derive(Debug)]
pub struct Consumer {
    client: Client,
    topic: String,
    config: ConsumerConfig,
    assigned: Vec<Fetch>,
    connections: BTreeMap<Place, Connection>,
    spare: Vec<Vec<u8>>,
    decompressed: Vec<u8>,
    /// From the first failure until a reply.
    retries: Option<Retries>,
    watched: Vec<libc::pollfd>,
    /// When the last wait for replies ended.
    left_at: Option<Instant>,
}

impl Consumer {
    /// A consumer of one partition that exists.
    ///
    /// # Errors
    /// [`ErrorCode::UnknownTopicOrPartition`]; what [`Client::list_offsets`] gives.
    pub fn new(
        client: Client,
        topic: &str,
        partition: u32,
        start: StartAt,
        config: ConsumerConfig,
    ) -> Result<Self, ClientError> {
        Self::assigned(client, topic, &[(partition, start)], config)
    }

    /// A consumer of several partitions, each from its own start on.
    ///
    /// # Errors
    /// As [`Self::new`]; [`ClientError::Usage`] without any partition.
    pub fn assigned(
        client: Client,
        topic: &str,
        partitions: &[(u32, StartAt)],
        config: ConsumerConfig,
    ) -> Result<Self, ClientError> {
        let mut consumer = Self {
            client,
            topic: topic.to_owned(),
            config,
            assigned: Vec::with_capacity(partitions.len()),
            connections: BTreeMap::new(),
            spare: Vec::new(),
            decompressed: Vec::new(),
            retries: None,
            watched: Vec::new(),
            left_at: None,
        };
        for &(partition, start) in partitions {
            consumer.assign(partition, start)?;
        }
        match consumer.assigned.is_empty() {
            true => Err(ClientError::Usage("a consumer needs a partition to read".into())),
            false => Ok(consumer),
        }
    }

    /// Reads a partition, too, or goes on elsewhere in one that it reads.
    ///
    /// # Errors
    /// What [`Client::list_offsets`] gives.
    pub fn assign(&mut self, partition: u32, start: StartAt) -> Result<(), ClientError> {
        let position = match start {
            StartAt::Offset(offset) => offset,
            StartAt::Earliest => self.offset(partition, OffsetSpec::Earliest)?,
            StartAt::Latest => self.offset(partition, OffsetSpec::Latest)?,
            StartAt::Timestamp(timestamp) => self.offset(partition, OffsetSpec::Timestamp(timestamp))?,
        };
        match self.assigned.iter_mut().find(|fetch| fetch.partition == partition) {
            Some(fetch) => fetch.seek(position),
            None => self.assigned.push(Fetch::new(partition, position)),
        }
        Ok(())
    }

    /// Reads a partition no more.
    pub fn unassign(&mut self, partition: u32) {
        self.assigned.retain(|fetch| fetch.partition != partition);
    }

    fn offset(&mut self, partition: u32, spec: OffsetSpec) -> Result<i64, ClientError> {
        Ok(self.client.list_offsets(&self.topic, partition, spec)?.offset)
    }

    /// Offset of the next record of the first assigned partition.
    pub fn position(&self) -> i64 {
        self.assigned.first().map_or(0, |fetch| fetch.position)
    }

    /// Offset of the next record of a partition; `None` when it isn't assigned.
    pub fn position_of(&self, partition: u32) -> Option<i64> {
        self.assigned.iter().find(|fetch| fetch.partition == partition).map(|fetch| fetch.position)
    }

    /// Goes on at another offset of the first assigned partition; [`Self::assign`] does that for others.
    pub fn seek(&mut self, offset: i64) {
        if let Some(fetch) = self.assigned.first_mut() {
            fetch.seek(offset);
        }
    }

    /// Likewise, at any [`StartAt`].
    ///
    /// # Errors
    /// What [`Client::list_offsets`] gives.
    pub fn seek_to(&mut self, start: StartAt) -> Result<(), ClientError> {
        match self.assigned.first().map(|fetch| fetch.partition) {
            Some(partition) => self.assign(partition, start),
            None => Ok(()),
        }
    }

    /// Visits the records that are there in their order. Without any, waits up to `max_wait` for the first; none after
    /// that is no error. The position moves past a record when `visit` returns `Ok`; its error ends the call. Records
    /// borrow from the buffer that they were received into, or were decompressed into.
    ///
    /// # Errors
    /// [`ErrorCode::OffsetOutOfRange`] when the position is not in the log, [`ErrorCode::CorruptRange`] when it is
    /// damaged ([`Self::seek`] past it), [`ClientError::Batch`] when a batch is not what its checksum says.
    pub fn poll<E: From<ClientError>>(
        &mut self,
        max_wait: Duration,
        mut visit: impl FnMut(Record<'_>) -> Result<(), E>,
    ) -> Result<Polled, E> {
        self.poll_partitions(max_wait, |_, record| visit(record))
    }

    /// Likewise, with the partition of each record.
    ///
    /// # Errors
    /// As [`Self::poll`].
    pub fn poll_partitions<E: From<ClientError>>(
        &mut self,
        max_wait: Duration,
        mut visit: impl FnMut(u32, Record<'_>) -> Result<(), E>,
    ) -> Result<Polled, E> {
        let awaited = self.await_records(max_wait);
        self.left_at = Some(Instant::now());
        awaited?;
        // What comes behind those that are there is fetched while they are visited. What goes wrong with that is met again
        // by the next poll.
        let _ = self.request(Duration::ZERO, false);
        let mut records = 0;
        for fetch in &mut self.assigned {
            records += fetch.visit(&mut self.decompressed, &mut visit)?;
            if let Some(fetched) = fetch.fetched.take().filter(|_| self.spare.len() < SPARE_BUFFERS) {
                self.spare.push(fetched.buffer);
            }
        }
        let head = self.assigned.first().and_then(|fetch| fetch.head);
        let (high_watermark, log_start) = head.map_or((0, 0), |head| (head.high_watermark, head.log_start));
        Ok(Polled { records, high_watermark, log_start })
    }

    /// Returns as soon as something was fetched, or there was nothing for `max_wait`.
    fn await_records(&mut self, max_wait: Duration) -> Result<(), ClientError> {
        let now = Instant::now();
        let deadline = now + max_wait.min(FOR_EVER);
        // The time in which nobody listened is not the node's silence.
        let away = self.left_at.map_or(Duration::ZERO, |left_at| now.saturating_duration_since(left_at));
        for fetch in &mut self.assigned {
            fetch.answered = false;
            fetch.asked.iter_mut().for_each(|asked| asked.was_not_listened_to(away));
        }
        let mut looked = false;
        loop {
            let now = Instant::now();
            let left = deadline.saturating_duration_since(now);
            if self.assigned.iter().any(|fetch| fetch.fetched.is_some()) {
                return Ok(());
            }
            let answered = |fetch: &Fetch| {
                // The node holds its reply back on purpose.
                let held = fetch.asked.is_some_and(|asked| !asked.wait.is_zero());
                fetch.answered || held
            };
            if looked && left.is_zero() && self.assigned.iter().all(answered) {
                return Ok(());
            }
            self.request(left, true)?;
            self.await_replies(deadline)?;
            looked = true;
        }
    }

    /// Asks for what is wanted; the nodes may wait for `wait` until there is some. Without `connects`, only those that are
    /// known and connected are asked.
    fn request(&mut self, wait: Duration, connects: bool) -> Result<(), ClientError> {
        for at in 0..self.assigned.len() {
            let route = self.assigned.get(at).and_then(|fetch| fetch.route);
            if !connects && route.is_none_or(|route| !self.connections.contains_key(&route.place)) {
                continue;
            }
            let wanted = self.assigned.get(at).and_then(|fetch| {
                // Once a poll is enough without waiting.
                let again = !fetch.answered || !wait.is_zero() || fetch.fetched.is_some();
                fetch.wanted(Instant::now()).filter(|_| again)
            });
            let Some(offset) = wanted else { continue };
            if let Err(error) = self.request_from(at, offset, wait) {
                self.look_elsewhere(&error);
                self.after(at, error)?;
            }
        }
        Ok(())
    }

    fn request_from(&mut self, at: usize, offset: i64, wait: Duration) -> Result<(), ClientError> {
        let Route { group, place, .. } = self.route(at)?;
        let consistency = self.client.config().consistency;
        let max_bytes = self.config.max_bytes.min(MAX_FETCH_BYTES as u32);
        if !self.connections.contains_key(&place) {
            let mut connection = self.client.open(place)?;
            connection.keep_bytes(max_bytes as usize + REPLY_HEAD_BYTES);
            self.connections.insert(place, connection);
        }
        let Some(connection) = self.connections.get_mut(&place) else { return Ok(()) };
        let max_wait_ms = wait.as_millis().min(u128::from(MAX_FETCH_WAIT_MS)) as u32;
        let sent = connection.send(&Request::Fetch(FetchRequest {
            group,
            offset,
            min_bytes: u32::from(max_wait_ms > 0),
            max_bytes,
            max_wait_ms,
            consistency,
        }));
        let sent = sent.and_then(|correlation_id| connection.flush().map(|()| correlation_id));
        match sent {
            Ok(correlation_id) => {
                let wait = Duration::from_millis(u64::from(max_wait_ms));
                if let Some(fetch) = self.assigned.get_mut(at) {
                    fetch.asked = Some(Asked::new(place, correlation_id, wait));
                }
                Ok(())
            }
            Err(error) => {
                self.drop_connection(place);
                Err(error)
            }
        }
    }

    /// Who is to be asked for a partition.
    fn route(&mut self, at: usize) -> Result<Route, ClientError> {
        let Some(fetch) = self.assigned.get_mut(at) else {
            return Err(ClientError::Usage("a partition that is not assigned".into()));
        };
        if let Some(route) = fetch.route {
            return Ok(route);
        }
        let metadata = self.client.topic(&self.topic)?;
        let Some(partition) = metadata.partitions.get(fetch.partition as usize) else {
            let detail = format!("topic {} has {} partitions", self.topic, metadata.partitions.len());
            return Err(ClientError::Server { code: ErrorCode::UnknownTopicOrPartition, detail });
        };
        let group = GroupId::new(metadata.id, fetch.partition);
        let reader = Place::reader_of(partition, self.client.config().consistency, fetch.turn);
        let place = reader.ok_or_else(|| nobody_leads(group))?;
        let route = Route { group, place, epoch: partition.epoch };
        fetch.route = Some(route);
        Ok(route)
    }

    /// Waits until a node has something to say, and takes it.
    fn await_replies(&mut self, deadline: Instant) -> Result<(), ClientError> {
        let longest = self.client.config().request_timeout;
        let now = Instant::now();
        let times = self.assigned.iter().flat_map(|fetch| {
            let asked = fetch.asked.map(|asked| asked.silent_at(longest));
            [asked, fetch.retry_at.filter(|at| *at > now)]
        });
        // Whoever has not answered is waited for beyond the time of the poll, but for nodes that hold their reply back.
        let held = |fetch: &Fetch| fetch.answered || fetch.asked.is_some_and(|asked| !asked.wait.is_zero());
        let deadline = (deadline > now || self.assigned.iter().all(held)).then_some(deadline);
        let until = times.chain([deadline]).flatten().min();
        let wait = until.map_or(longest, |until| until.saturating_duration_since(now));
        self.watched.clear();
        self.watched.extend(self.connections.values().map(|connection| interest(connection.stream(), false)));
        let waited = wait_ready(&mut self.watched, wait);
        waited.map_err(|error| ClientError::Usage(format!("can't wait for replies: {error}")))?;
        let places: Vec<Place> = self.connections.keys().copied().collect();
        let ready: Vec<bool> = self.watched.iter().map(|watched| watched.revents != 0).collect();
        for (place, _) in places.into_iter().zip(ready).filter(|(_, ready)| *ready) {
            self.take_replies(place)?;
        }
        self.look_for_silence(longest)
    }

    fn take_replies(&mut self, place: Place) -> Result<(), ClientError> {
        let Some(connection) = self.connections.get_mut(&place) else { return Ok(()) };
        let received = connection.receive_now();
        // What has come is taken to its end, whatever one of the replies says: nothing tells of it once more.
        let mut first = Ok(());
        loop {
            let Some(connection) = self.connections.get_mut(&place) else { return first };
            let taken = connection.take_buffer(|| self.spare.pop().unwrap_or_default());
            let reply = match taken {
                Ok(Some(reply)) => reply,
                Ok(None) => break,
                Err(error) => return first.and(self.lose(place, error)),
            };
            let awaited = |fetch: &Fetch| {
                fetch
                    .asked
                    .is_some_and(|asked| (asked.place, asked.correlation_id) == (place, reply.correlation_id))
            };
            // Without anybody who waits for it, it was asked for before a seek.
            let Some(at) = self.assigned.iter().position(awaited) else { continue };
            let Some(fetch) = self.assigned.get_mut(at) else { continue };
            fetch.asked = None;
            match reply.response {
                Response::Fetch(head) => {
                    self.retries = None;
                    fetch.backoff.reset();
                    (fetch.head, fetch.answered, fetch.retry_at) = (Some(head), true, None);
                    if reply.batches.is_empty() {
                        self.spare.push(reply.buffer);
                    } else {
                        fetch.fetched = Some(Fetched { buffer: reply.buffer, batches: reply.batches });
                    }
                }
                Response::Error(error) => {
                    let error = ClientError::Server { code: error.code, detail: error.detail };
                    first = first.and(self.refused(at, place, error));
                }
                other => {
                    let detail = format!("a fetch was answered with {other:?}");
                    let error = ClientError::Protocol { address: place.to_string(), detail };
                    first = first.and(self.refused(at, place, error));
                }
            }
        }
        match received {
            Ok(_) => first,
            Err(error) => first.and(self.lose(place, error)),
        }
    }

    fn refused(&mut self, at: usize, place: Place, error: ClientError) -> Result<(), ClientError> {
        if error.breaks_connection() {
            self.drop_connection(place);
        }
        self.look_elsewhere(&error);
        self.after(at, error)
    }

    /// Learns who leads what by now, after an error that says that it may be somebody else.
    fn look_elsewhere(&mut self, error: &ClientError) {
        if error.retriable() && error.asks_elsewhere() {
            // Whatever is wrong with that is met again by the next fetch.
            let _ = self.client.topic_afresh(&self.topic);
        }
    }

    /// A connection is of no use any more.
    fn lose(&mut self, place: Place, error: ClientError) -> Result<(), ClientError> {
        let at_place = |fetch: &Fetch| fetch.asked.is_some_and(|asked| asked.place == place);
        let lost: Vec<usize> =
            (0..self.assigned.len()).filter(|at| self.assigned.get(*at).is_some_and(at_place)).collect();
        self.drop_connection(place);
        self.look_elsewhere(&error);
        lost.into_iter().try_for_each(|at| self.after(at, error.clone()))
    }

    fn drop_connection(&mut self, place: Place) {
        self.connections.remove(&place);
        for fetch in &mut self.assigned {
            fetch.asked = fetch.asked.filter(|asked| asked.place != place);
        }
    }

    /// Turns away from nodes that keep silent when others know that a partition is led elsewhere by now, or it has taken
    /// too long: the connection to a node that has stopped may stay open for long.
    fn look_for_silence(&mut self, longest: Duration) -> Result<(), ClientError> {
        let now = Instant::now();
        for at in 0..self.assigned.len() {
            let Some(fetch) = self.assigned.get_mut(at) else { break };
            let Some(asked) = fetch.asked.as_mut().filter(|asked| asked.silent_at(longest) <= now) else {
                continue;
            };
            let (place, over) = (asked.place, asked.silent_for(now, longest));
            let (partition, epoch) = (fetch.partition, fetch.route.map_or(0, |route| route.epoch));
            if over || self.client.led_elsewhere(&self.topic, partition, place, epoch) {
                let timeout_ms = longest.as_millis() as u64;
                let address = self.connections.get(&place).map(|connection| connection.address().to_owned());
                let address = address.unwrap_or_else(|| place.to_string());
                self.lose(place, ClientError::TimedOut { address, timeout_ms })?;
            }
        }
        Ok(())
    }

    /// Tries again a little later after an error that may pass, or gives it back.
    fn after(&mut self, at: usize, error: ClientError) -> Result<(), ClientError> {
        let retries = self.retries.get_or_insert_with(|| Retries::within(self.config.retry_for));
        if !retries.go_on(&error) {
            self.retries = None;
            return Err(error);
        }
        if let Some(fetch) = self.assigned.get_mut(at) {
            fetch.turn += usize::from(error.asks_elsewhere());
            fetch.route = None;
            fetch.retry_at = Some(Instant::now() + fetch.backoff.step());
        }
        Ok(())
    }
}
