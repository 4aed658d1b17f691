//! The producer's connection to one shard and what is in flight on it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use pyralog_core::GroupId;

use crate::client::backoff::{Backoff, SILENCE};
use crate::client::connection::Connection;
use crate::client::error::ClientError;
use crate::message::{Acks, ProduceReply, ProduceRequest, Request, Response};

/// How often others are asked while it goes on.
const LOOK: Duration = Duration::from_secs(1);
/// No more is queued while the node doesn't read what was sent.
const MAX_UNWRITTEN_BYTES: usize = 4 << 20;
/// Produces that may await their replies: their replies fit into the buffers of both sides.
const MAX_IN_FLIGHT: usize = 1024;

/// A request under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flight {
    pub(super) partition: u32,
    pub(super) ticket: u64,
}

/// A reply to one of them.
#[derive(Debug)]
pub(super) enum Answer {
    Acknowledged(ProduceReply),
    Refused(ClientError),
}

/// A connection that may be down.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) connection: Option<Box<Connection>>,
    in_flight: HashMap<u64, Flight>,
    /// A connection is being looked for.
    pub(super) opening: bool,
    connected_before: bool,
    retry_at: Option<Instant>,
    backoff: Backoff,
    heard_at: Instant,
    look_at: Instant,
    /// How long the next attempt to connect may take.
    pub(super) connect_timeout: Duration,
}

impl Link {
    pub(super) fn new() -> Self {
        Self {
            connection: None,
            in_flight: HashMap::new(),
            opening: false,
            connected_before: false,
            retry_at: None,
            backoff: Backoff::new(),
            heard_at: Instant::now(),
            look_at: Instant::now(),
            connect_timeout: SILENCE,
        }
    }

    /// Takes a connection; whether it replaces an earlier one.
    pub(super) fn connect(&mut self, connection: Box<Connection>) -> bool {
        self.opening = false;
        self.connect_timeout = SILENCE;
        self.connection = Some(connection);
        std::mem::replace(&mut self.connected_before, true)
    }

    /// Gives the connection up and waits a while before the next attempt. What was in flight is handed out.
    pub(super) fn disconnect(&mut self, now: Instant) -> impl Iterator<Item = Flight> + '_ {
        self.opening = false;
        self.connection = None;
        self.retry_at = Some(now + self.backoff.step());
        self.in_flight.drain().map(|(_, flight)| flight)
    }

    /// Whether a connection should be looked for; when not yet, from when on.
    pub(super) fn may_open(&self, now: Instant) -> Result<bool, Instant> {
        if self.connection.is_some() || self.opening {
            return Ok(false);
        }
        self.retry_at.filter(|at| *at > now).map_or(Ok(true), Err)
    }

    /// Whether one more request may be queued.
    pub(super) fn has_room(&self) -> bool {
        let room = |connection: &Connection| connection.unwritten_bytes() < MAX_UNWRITTEN_BYTES;
        self.in_flight.len() < MAX_IN_FLIGHT && self.connection.as_deref().is_some_and(room)
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Queues a produce; [`Self::flush`] sends it.
    pub(super) fn send(
        &mut self,
        flight: Flight,
        (group, acks): (GroupId, Acks),
        batch: &[u8],
    ) -> Result<(), ClientError> {
        let Some(connection) = &mut self.connection else { return Err(not_connected()) };
        let request = Request::Produce(ProduceRequest { group, acks, timeout_ms: 0, batch });
        let correlation_id = connection.queue(&request)?;
        if self.in_flight.is_empty() {
            self.heard_at = Instant::now();
            self.look_at = self.heard_at + SILENCE;
        }
        self.in_flight.insert(correlation_id, flight);
        Ok(())
    }

    /// Writes what is queued as far as there is room.
    pub(super) fn flush(&mut self) -> Result<(), ClientError> {
        self.connection.as_deref_mut().map_or(Ok(()), |connection| connection.flush_now().map(drop))
    }

    /// The next reply in the buffer.
    pub(super) fn answer(&mut self) -> Result<Option<(Flight, Answer)>, ClientError> {
        let Some(connection) = &mut self.connection else { return Ok(None) };
        let Some(received) = connection.buffered()? else { return Ok(None) };
        let (id, response) = (received.correlation_id, received.response);
        let Some(flight) = self.in_flight.remove(&id) else {
            return Err(connection.protocol(format!("a reply to request {id}, which was not sent")));
        };
        self.heard_at = Instant::now();
        self.look_at = self.heard_at + SILENCE;
        self.backoff.reset();
        let answer = match response {
            Response::Produce(reply) => Answer::Acknowledged(reply),
            Response::Error(error) => {
                Answer::Refused(ClientError::Server { code: error.code, detail: error.detail })
            }
            other => Answer::Refused(connection.protocol(format!("a produce was answered with {other:?}"))),
        };
        Ok(Some((flight, answer)))
    }

    /// When its silence is worth asking others about, or has lasted for `longest`.
    pub(super) fn silent_at(&self, longest: Duration) -> Option<Instant> {
        (!self.in_flight.is_empty()).then(|| self.look_at.min(self.heard_at + longest))
    }

    /// For how long it has been silent, when that is worth asking others about.
    pub(super) fn silence(&mut self, now: Instant, longest: Duration) -> Option<Duration> {
        self.silent_at(longest).filter(|at| *at <= now)?;
        self.look_at = now + LOOK;
        Some(now.saturating_duration_since(self.heard_at))
    }

    /// The next attempt to connect may take longer, up to `longest`.
    pub(super) fn connect_longer(&mut self, longest: Duration) {
        self.connect_timeout = (self.connect_timeout * 2).min(longest);
    }
}

fn not_connected() -> ClientError {
    ClientError::Lost {
        address: "the shard".into(),
        source: std::io::Error::from(std::io::ErrorKind::NotConnected).into(),
    }
}
