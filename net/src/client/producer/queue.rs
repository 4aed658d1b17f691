//! What one partition has not had acknowledged, in the order of its sequence numbers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pyralog_core::batch::{BatchBuilder, BatchError, Compression, sequence_after};

use crate::client::backoff::Backoff;
use crate::client::error::ClientError;
use crate::client::place::Place;
use crate::message::InitProducerIdReply;

/// The unacknowledged batches of one partition: `pending[..sent]` have been sent since the last rewind, the others wait.
/// `T` is what the producer's face keeps with a batch.
#[derive(Debug)]
pub(super) struct Queue<T> {
    /// Where the partition is led, as far as that is known.
    pub(super) place: Option<Place>,
    /// The epoch of that leader.
    pub(super) epoch: u32,
    session: Option<InitProducerIdReply>,
    next_sequence: i32,
    pending: VecDeque<Pending<T>>,
    sent: usize,
    /// Of those sent, how many may still be answered.
    awaited: usize,
    flow: Flow,
    retry_at: Option<Instant>,
    backoff: Backoff,
    /// Why the last attempt failed.
    pub(super) last_error: Option<Arc<ClientError>>,
}

/// Whether the partition sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// It does.
    Open,
    /// One was refused: what is under way is awaited, and then sent again in its order.
    Draining,
    /// One has failed for good, so that the sequence has a gap: what is under way is awaited, and what is left goes on in
    /// a new session.
    Ending,
    /// The new session is not there yet.
    AwaitsSession,
}

/// One batch. The builder keeps its bytes.
#[derive(Debug)]
pub(super) struct Pending<T> {
    pub(super) builder: BatchBuilder,
    pub(super) tag: T,
    pub(super) begun: Instant,
    /// An attempt has ended so that the node may have taken it.
    pub(super) unknown: bool,
    sequence: i32,
    ticket: u64,
    awaited: bool,
}

impl<T> Pending<T> {
    /// Records of the batch.
    pub(super) fn records(&self) -> u32 {
        self.builder.record_count()
    }

    /// Its bytes before compression.
    pub(super) fn bytes(&self) -> usize {
        self.builder.len_bytes()
    }
}

/// What a queue needs after its last reply has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing.
    Nothing,
    /// A new producer session.
    Session,
}

impl<T> Queue<T> {
    pub(super) fn new(place: Option<Place>, epoch: u32, session: Option<InitProducerIdReply>) -> Self {
        Self {
            place,
            epoch,
            session,
            next_sequence: 0,
            pending: VecDeque::new(),
            sent: 0,
            awaited: 0,
            flow: Flow::Open,
            retry_at: None,
            backoff: Backoff::new(),
            last_error: None,
        }
    }

    /// Takes a batch behind all others, whose first record was there at `begun`.
    pub(super) fn push(&mut self, builder: BatchBuilder, tag: T, begun: Instant) {
        let sequence = self.next_sequence;
        self.next_sequence = sequence_after(sequence, builder.record_count());
        self.pending.push_back(Pending {
            builder,
            tag,
            begun,
            unknown: false,
            sequence,
            ticket: 0,
            awaited: false,
        });
    }

    /// Whether one more may be sent now; when not because of a failure, from when on.
    pub(super) fn may_send(&self, window: usize, now: Instant) -> Result<bool, Instant> {
        if self.flow != Flow::Open || self.sent >= self.pending.len().min(window) {
            return Ok(false);
        }
        self.retry_at.filter(|at| *at > now).map_or(Ok(true), Err)
    }

    /// The next batch to send, with its producer and checksum in place.
    pub(super) fn next_batch(&mut self, compression: Compression) -> Option<Result<&[u8], BatchError>> {
        let pending = self.pending.get_mut(self.sent)?;
        if let Some(session) = self.session {
            pending.builder.set_producer(session.producer_id, session.producer_epoch, pending.sequence);
        }
        Some(pending.builder.build(compression))
    }

    /// The batch that [`Self::next_batch`] gave is under way.
    pub(super) fn sent(&mut self, ticket: u64) {
        if let Some(pending) = self.pending.get_mut(self.sent) {
            (pending.ticket, pending.awaited) = (ticket, true);
            self.sent += 1;
            self.awaited += 1;
        }
    }

    /// Batches under way.
    pub(super) fn under_way(&self) -> usize {
        self.awaited
    }

    fn position(&self, ticket: u64) -> Option<usize> {
        let sent = self.pending.iter().take(self.sent);
        sent.enumerate().find(|(_, pending)| pending.awaited && pending.ticket == ticket).map(|(at, _)| at)
    }

    /// Takes the batch out that was acknowledged; `None` when it isn't waited for any more. In a session, one behind a
    /// batch that has failed stays and is sent again with that: acknowledgements come in order, and the node remembers no
    /// more batches than may be under way.
    pub(super) fn acknowledge(&mut self, ticket: u64) -> Option<Pending<T>> {
        let at = self.position(ticket)?;
        if at > 0 && self.session.is_some() {
            let behind = self.pending.get_mut(at)?;
            (behind.awaited, behind.unknown) = (false, true);
            self.awaited -= 1;
            if self.flow == Flow::Open {
                self.flow = Flow::Draining;
            }
            return None;
        }
        let pending = self.pending.remove(at)?;
        self.sent -= 1;
        self.awaited -= 1;
        self.backoff.reset();
        self.retry_at = None;
        Some(pending)
    }

    /// An attempt has failed and another may succeed: this batch and those behind it are sent again when what is under
    /// way has been answered. `false` when it isn't waited for any more.
    pub(super) fn failed(&mut self, ticket: u64, unknown: bool, error: &Arc<ClientError>) -> bool {
        let Some(pending) = self.position(ticket).and_then(|at| self.pending.get_mut(at)) else {
            return false;
        };
        pending.awaited = false;
        pending.unknown |= unknown;
        self.awaited -= 1;
        self.last_error = Some(Arc::clone(error));
        if self.flow == Flow::Open {
            self.flow = Flow::Draining;
        }
        true
    }

    /// The node does not know the session any more: everything goes on in a new one, but for what it may have taken.
    pub(super) fn forgotten(&mut self, ticket: u64, error: &Arc<ClientError>) {
        if self.failed(ticket, false, error) && self.session.is_some() && self.flow != Flow::AwaitsSession {
            self.flow = Flow::Ending;
        }
    }

    /// Nothing that is under way will be answered.
    pub(super) fn forget_replies(&mut self, error: &Arc<ClientError>) {
        for pending in self.pending.iter_mut().take(self.sent).filter(|pending| pending.awaited) {
            pending.awaited = false;
            pending.unknown = true;
        }
        self.awaited = 0;
        if self.sent > 0 && self.flow == Flow::Open {
            self.flow = Flow::Draining;
        }
        self.last_error = Some(Arc::clone(error));
    }

    /// A batch can't succeed: takes it out. The others go on in a new session when the sequence has a gap now.
    pub(super) fn give_up(&mut self, ticket: u64, unknown: bool) -> Option<Pending<T>> {
        let at = self.position(ticket)?;
        let pending = self.pending.get_mut(at)?;
        pending.awaited = false;
        pending.unknown |= unknown;
        self.awaited -= 1;
        self.take_out(at)
    }

    /// Another leader is known: there is no reason to wait any longer.
    pub(super) fn retry_now(&mut self) {
        self.retry_at = None;
    }

    /// Takes the oldest batch out when it is older than `longest`.
    pub(super) fn expire(&mut self, longest: Duration) -> Option<Pending<T>> {
        self.pending.front().filter(|oldest| oldest.begun.elapsed() >= longest)?;
        self.take_out(0)
    }

    fn take_out(&mut self, at: usize) -> Option<Pending<T>> {
        let mut pending = self.pending.remove(at)?;
        if at < self.sent {
            self.sent -= 1;
        }
        if std::mem::take(&mut pending.awaited) {
            self.awaited -= 1;
            pending.unknown = true;
        }
        if self.session.is_some() && self.flow != Flow::AwaitsSession {
            self.flow = Flow::Ending;
        }
        Some(pending)
    }

    /// Goes on when everything under way has been answered: after a failure from the first batch that is left, not
    /// before a short while has passed.
    pub(super) fn settle(&mut self, now: Instant) -> Next {
        if self.awaited > 0 {
            return Next::Nothing;
        }
        match self.flow {
            Flow::Open | Flow::AwaitsSession => Next::Nothing,
            Flow::Draining => {
                self.sent = 0;
                self.flow = Flow::Open;
                self.retry_at = Some(now + self.backoff.step());
                Next::Nothing
            }
            Flow::Ending => {
                self.sent = 0;
                self.flow = Flow::AwaitsSession;
                Next::Session
            }
        }
    }

    /// Of a session that has ended, the batches that the node may have taken: to number them anew could write them
    /// twice. Call it until there is none.
    pub(super) fn lost_with_session(&mut self) -> Option<Pending<T>> {
        let at = self.pending.iter().position(|pending| pending.unknown)?;
        self.pending.remove(at)
    }

    /// What is left goes on in a new session, numbered from 0.
    pub(super) fn begin_session(&mut self, session: InitProducerIdReply) {
        self.session = Some(session);
        self.next_sequence = 0;
        for pending in &mut self.pending {
            pending.sequence = self.next_sequence;
            self.next_sequence = sequence_after(pending.sequence, pending.builder.record_count());
        }
        self.flow = Flow::Open;
        self.retry_at = None;
    }

    /// Whether it waits for a new session.
    pub(super) fn awaits_session(&self) -> bool {
        self.flow == Flow::AwaitsSession
    }

    /// Whether replies that say that a batch is missing are the consequence of an earlier failure.
    pub(super) fn has_failed_before(&self) -> bool {
        self.flow != Flow::Open
    }

    /// When the oldest batch was taken.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.pending.front().map(|pending| pending.begun)
    }

    /// Takes everything out, after the producer has failed.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Pending<T>> + '_ {
        (self.sent, self.awaited) = (0, 0);
        self.pending.drain(..).map(|mut pending| {
            pending.unknown |= pending.awaited;
            pending
        })
    }

    /// Batches that are not acknowledged.
    pub(super) fn batches(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Records that are not acknowledged.
    pub(super) fn records(&self) -> u64 {
        self.pending.iter().map(|pending| u64::from(pending.records())).sum()
    }
}
