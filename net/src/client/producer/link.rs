//! The producer's connection to one shard and what is in flight on it.

use std::collections::HashMap;
use std::time::Duration;

use pyralog_core::GroupId;

use crate::client::connection::Connection;
use crate::client::error::ClientError;
use crate::message::{Acks, ProduceRequest, Request, Response};

/// A connection that may be down.
#[derive(Debug, Default)]
pub(super) struct Link {
    connection: Option<Connection>,
    /// Correlation id to partition. Replies to one partition come in order, those to several may interleave.
    in_flight: HashMap<u64, u32>,
    connected_before: bool,
}

impl Link {
    pub(super) fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// Whether this replaces an earlier connection.
    pub(super) fn connect(&mut self, connection: Connection) -> bool {
        self.in_flight.clear();
        self.connection = Some(connection);
        std::mem::replace(&mut self.connected_before, true)
    }

    pub(super) fn disconnect(&mut self) {
        self.in_flight.clear();
        self.connection = None;
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    pub(super) fn send(
        &mut self,
        partition: u32,
        group: GroupId,
        acks: Acks,
        batch: &[u8],
    ) -> Result<u64, ClientError> {
        let connection = connected(&mut self.connection)?;
        let request = Request::Produce(ProduceRequest { group, acks, timeout_ms: 0, batch });
        let correlation_id = connection.send(&request)?;
        self.in_flight.insert(correlation_id, partition);
        Ok(correlation_id)
    }

    pub(super) fn flush(&mut self) -> Result<(), ClientError> {
        connected(&mut self.connection)?.flush()
    }

    /// The next reply: partition, correlation id, message.
    pub(super) fn receive(&mut self, timeout: Duration) -> Result<(u32, u64, Response), ClientError> {
        let connection = connected(&mut self.connection)?;
        let received = connection.recv_within(timeout)?;
        let (id, response) = (received.correlation_id, received.response);
        match self.in_flight.remove(&id) {
            Some(partition) => Ok((partition, id, response)),
            None => Err(connection.protocol(format!("a reply to request {id}, which was not sent"))),
        }
    }

    /// Takes the replies to everything in flight; `false` when one did not come.
    pub(super) fn drain(&mut self, timeout: Duration) -> bool {
        while !self.in_flight.is_empty() {
            if self.receive(timeout).is_err() {
                return false;
            }
        }
        self.connection.is_some()
    }
}

fn connected(connection: &mut Option<Connection>) -> Result<&mut Connection, ClientError> {
    connection.as_mut().ok_or_else(|| ClientError::Lost {
        address: "the shard".into(),
        source: std::io::ErrorKind::NotConnected.into(),
    })
}
