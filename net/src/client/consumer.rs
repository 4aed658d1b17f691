//! Reads the records of one partition, in order.

use std::time::Duration;

use pyralog_core::batch::{BatchView, Record};
use pyralog_core::limits::{MAX_FETCH_BYTES, MAX_FETCH_WAIT_MS};
use pyralog_core::{ErrorCode, GroupId};

use super::api::{Client, nobody_leads};
use super::backoff::Retries;
use super::connection::Connection;
use super::error::ClientError;
use super::place::Place;
use crate::message::{FetchReplyHead, FetchRequest, OffsetSpec, Request, Response};

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
    /// Most bytes of batches per fetch; one batch is always returned whole.
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
    /// Records below this offset are committed.
    pub high_watermark: i64,
    /// First offset that is still in the log.
    pub log_start: i64,
}

/// A consumer of one partition. Blocking; it remembers its position and survives lost connections.
#[derive(Debug)]
pub struct Consumer {
    client: Client,
    topic: String,
    partition: u32,
    config: ConsumerConfig,
    connection: Option<(GroupId, Connection)>,
    /// Counted on when another replica is to be asked.
    turn: usize,
    position: i64,
    scratch: Vec<u8>,
}

impl Consumer {
    /// A consumer of a partition that exists.
    pub fn new(
        mut client: Client,
        topic: &str,
        partition: u32,
        start: StartAt,
        config: ConsumerConfig,
    ) -> Result<Self, ClientError> {
        let spec = match start {
            StartAt::Earliest => Some(OffsetSpec::Earliest),
            StartAt::Latest => Some(OffsetSpec::Latest),
            StartAt::Timestamp(timestamp) => Some(OffsetSpec::Timestamp(timestamp)),
            StartAt::Offset(_) => None,
        };
        let position = match (spec, start) {
            (Some(spec), _) => client.list_offsets(topic, partition, spec)?.offset,
            (None, StartAt::Offset(offset)) => offset,
            (None, _) => 0,
        };
        let topic = topic.to_owned();
        Ok(Self {
            client,
            topic,
            partition,
            config,
            connection: None,
            turn: 0,
            position,
            scratch: Vec::new(),
        })
    }

    /// Offset of the next record.
    pub fn position(&self) -> i64 {
        self.position
    }

    /// Goes on at another offset.
    pub fn seek(&mut self, offset: i64) {
        self.position = offset;
    }

    /// Fetches once and visits the records in their order. Waits up to `max_wait` for the first byte; no record
    /// after that is no error. The position moves past a record when `visit` returns `Ok`; its error ends the call.
    ///
    /// # Errors
    /// [`ErrorCode::OffsetOutOfRange`] when the position is not in the log, [`ErrorCode::CorruptRange`] when it is
    /// damaged ([`Self::seek`] past it), [`ClientError::Batch`] when a batch is not what its checksum says.
    pub fn poll<E: From<ClientError>>(
        &mut self,
        max_wait: Duration,
        mut visit: impl FnMut(Record<'_>) -> Result<(), E>,
    ) -> Result<Polled, E> {
        let mut retries = Retries::within(self.config.retry_for);
        let head = loop {
            match self.request(max_wait) {
                Ok(correlation_id) => match self.receive(correlation_id, max_wait) {
                    Ok(head) => break head,
                    Err(error) => self.after(error, &mut retries)?,
                },
                Err(error) => self.after(error, &mut retries)?,
            }
        };
        let records = self.visit(&mut visit)?;
        Ok(Polled { records, high_watermark: head.high_watermark, log_start: head.log_start })
    }

    /// Waits after an error that may pass, or gives it back.
    fn after(&mut self, error: ClientError, retries: &mut Retries) -> Result<(), ClientError> {
        if error.breaks_connection() || error.asks_for_metadata() {
            self.connection = None;
        }
        let Some(wait) = retries.after(&error) else { return Err(error) };
        if error.asks_elsewhere() {
            self.turn += 1;
            // Whatever is wrong with that is met again by the next fetch.
            let _ = self.client.topic_afresh(&self.topic);
        }
        std::thread::sleep(wait);
        Ok(())
    }

    fn request(&mut self, max_wait: Duration) -> Result<u64, ClientError> {
        if self.connection.is_none() {
            let metadata = self.client.topic(&self.topic)?;
            let Some(place) = metadata.partitions.get(self.partition as usize) else {
                let detail = format!("topic {} has {} partitions", self.topic, metadata.partitions.len());
                return Err(ClientError::Server { code: ErrorCode::UnknownTopicOrPartition, detail });
            };
            let group = GroupId::new(metadata.id, self.partition);
            let consistency = self.client.config().consistency;
            let place = Place::reader_of(place, consistency, self.turn).ok_or_else(|| nobody_leads(group))?;
            self.connection = Some((group, self.client.open(place)?));
        }
        let Some((group, connection)) = &mut self.connection else { return Err(not_connected()) };
        let max_wait_ms = max_wait.as_millis().min(u128::from(MAX_FETCH_WAIT_MS)) as u32;
        connection.send(&Request::Fetch(FetchRequest {
            group: *group,
            offset: self.position,
            min_bytes: u32::from(max_wait_ms > 0),
            max_bytes: self.config.max_bytes.min(MAX_FETCH_BYTES as u32),
            max_wait_ms,
            consistency: self.client.config().consistency,
        }))
    }

    fn receive(&mut self, correlation_id: u64, max_wait: Duration) -> Result<FetchReplyHead, ClientError> {
        let Self { client, topic, connection, scratch, .. } = self;
        let Some((_, connection)) = connection else { return Err(not_connected()) };
        let (node, shard) = (connection.hello().node, connection.hello().shard);
        let waits = (max_wait, max_wait + client.config().request_timeout);
        client.await_reply(topic, Place { node, shard }, waits, |wait| {
            let received = connection.recv_within(wait)?;
            match received.response {
                Response::Fetch(head) if received.correlation_id == correlation_id => {
                    scratch.clear();
                    scratch.extend_from_slice(received.batches);
                    Ok(head)
                }
                Response::Error(error) => Err(ClientError::Server { code: error.code, detail: error.detail }),
                other => Err(connection.protocol(format!("a fetch was answered with {other:?}"))),
            }
        })
    }

    /// Visits the records of the batches in `scratch` from the position on.
    fn visit<E: From<ClientError>>(
        &mut self,
        visit: &mut impl FnMut(Record<'_>) -> Result<(), E>,
    ) -> Result<u64, E> {
        let mut rest = self.scratch.as_slice();
        let mut decompressed = Vec::new();
        let mut visited = 0;
        while !rest.is_empty() {
            let (batch, behind) = BatchView::parse(rest).map_err(ClientError::from)?;
            batch.check_crc().map_err(ClientError::from)?;
            rest = behind;
            if batch.last_offset() < self.position {
                continue;
            }
            if !batch.is_control() {
                for record in batch.records(&mut decompressed).map_err(ClientError::from)? {
                    let record = record.map_err(ClientError::from)?;
                    if record.offset < self.position {
                        continue;
                    }
                    let next = record.offset.saturating_add(1);
                    visit(record)?;
                    self.position = next;
                    visited += 1;
                }
            }
            self.position = self.position.max(batch.last_offset().saturating_add(1));
        }
        Ok(visited)
    }
}

fn not_connected() -> ClientError {
    ClientError::Lost {
        address: "the shard".into(),
        source: std::io::Error::from(std::io::ErrorKind::NotConnected).into(),
    }
}
