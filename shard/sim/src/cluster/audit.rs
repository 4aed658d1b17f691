//! An auditor reads the committed batches of any replica, as another replica would that catches up.

use pyralog_core::{GroupId, NodeId, ShardId};
use pyralog_replication::raft::{Message, MessageKind, frame};
use pyralog_shard::engine::PeerId;

use super::world::{Input, Seat, World};
use crate::batch;

/// The node as which the auditor asks. It is in no cluster.
const AUDITOR: PeerId = PeerId { node: NodeId(99), shard: ShardId(0) };
/// An answer takes no longer, microseconds.
const ANSWER_US: u64 = 1_000_000;
/// A replica may have no memory for a read at once.
const ATTEMPTS: u32 = 10;

/// The last answer.
#[derive(Debug, Default)]
pub(crate) struct Auditor {
    answer: Option<(Seat, Message, Vec<u8>)>,
}

impl Auditor {
    /// Whether a frame is for it.
    pub(crate) fn is(&self, peer: PeerId) -> bool {
        peer == AUDITOR
    }
}

/// What a replica holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// The offset of the first record.
    pub log_start: i64,
    /// Offset behind the last committed one.
    pub end: i64,
    /// The committed batches.
    pub bytes: Vec<u8>,
}

impl Held {
    /// Whether two replicas end at the same place with the same bytes. Retention takes whole segments, and those differ.
    pub(crate) fn agrees_with(&self, other: &Self) -> bool {
        let (short, long) = if self.bytes.len() < other.bytes.len() { (self, other) } else { (other, self) };
        let same_start = self.log_start != other.log_start || self.bytes.len() == other.bytes.len();
        self.end == other.end && same_start && long.bytes.ends_with(&short.bytes)
    }
}

impl Held {
    /// The same without the epochs of the batches, which no checksum covers: a disk that lies may change one unnoticed.
    pub(crate) fn without_epochs(&self) -> Self {
        let mut held = self.clone();
        let mut at = 0;
        while let Some(head) = held.bytes.get(at..).and_then(batch::head) {
            if let Some(epoch) = held.bytes.get_mut(at + 12..at + 16) {
                epoch.fill(0);
            }
            at += head.len;
        }
        held
    }
}

impl World {
    /// A frame for the auditor.
    pub(crate) fn audited(&mut self, from: Seat, control: &[u8], payload: &[u8]) {
        let messages = frame::decode(control).unwrap_or_default();
        // A frame may hold more than one: of a question that was asked again because the node stood still.
        if let Some(message) = messages.into_iter().next() {
            let len: usize = message.entries.iter().map(|entry| entry.bytes as usize).sum();
            let batches = payload.get(..len).unwrap_or_default().to_vec();
            self.auditor.answer = Some((from, message, batches));
        }
    }

    /// Reads all that a replica holds for committed. `None`: some of it can't be read.
    pub(crate) fn read_replica(&mut self, seat: Seat, group: GroupId) -> Option<Held> {
        let state = self.shard(seat).state_of(group)?;
        let (log_start, end) = (state.log_start, state.high_watermark);
        let (mut offset, mut bytes, mut attempts) = (log_start, Vec::new(), 0);
        while offset < end && !self.over() {
            let Some((message, batches)) = self.ask(seat, group, offset).filter(|(answer, _)| !answer.reject)
            else {
                let starts_at = self.shard(seat).state_of(group).map(|state| state.log_start);
                if starts_at.is_some_and(|starts_at| starts_at > offset) {
                    // Retention was faster.
                    return self.read_replica(seat, group);
                }
                attempts += 1;
                if attempts > ATTEMPTS {
                    return None;
                }
                self.pause(20_000);
                continue;
            };
            let Some(last) = message.entries.last() else {
                self.fail(format!("{seat} {group}: an audit at {offset} below {end} came to nothing"));
                return None;
            };
            offset = last.next_offset;
            bytes.extend_from_slice(&batches);
        }
        Some(Held { log_start, end: offset, bytes })
    }

    fn ask(&mut self, seat: Seat, group: GroupId, offset: i64) -> Option<(Message, Vec<u8>)> {
        let mut message =
            Message::new(MessageKind::FetchBatches, group, AUDITOR.node.0, seat.peer().node.0, 0);
        message.offset = offset;
        self.auditor.answer = None;
        self.input(seat, Input::Frame(AUDITOR, frame::encode(&[message]), Vec::new()));
        let until = self.now_us + ANSWER_US;
        while self.now_us < until && !self.over() && self.step() {
            if let Some((from, message, batches)) = self.auditor.answer.take()
                && from == seat
                && message.group() == group
            {
                return Some((message, batches));
            }
        }
        None
    }
}
