//! What leaves for other shards at the end of a pass: the messages of all groups to one shard in as few frames as their
//! bounds allow.

use std::collections::BTreeMap;

use pyralog_core::limits::{
    MAX_BATCH_BYTES, MAX_PEER_ENTRIES_PER_FRAME, MAX_PEER_MESSAGES_PER_FRAME, MAX_PEER_PAYLOAD_BYTES,
};
use pyralog_replication::raft::{EntryHead, Message, frame};
use smallvec::SmallVec;

use crate::memory::ChunkSlice;

use super::Action;
use super::api::PeerId;

/// Entries in one message; more go as several.
pub(super) const ENTRIES_PER_MESSAGE: usize = MAX_PEER_ENTRIES_PER_FRAME / 2;
/// Batch bytes in one message, the largest batch included; more go as several.
const PAYLOAD_PER_MESSAGE: usize = MAX_PEER_PAYLOAD_BYTES / 4;
const _: () = assert!(PAYLOAD_PER_MESSAGE >= MAX_BATCH_BYTES);

/// A frame being put together.
#[derive(Debug, Default)]
struct Frame {
    messages: Vec<Message>,
    batches: SmallVec<[ChunkSlice; 8]>,
    entries: usize,
    payload_bytes: usize,
}

/// The frames of a pass, by the shard that they are for.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    frames: BTreeMap<PeerId, Vec<Frame>>,
}

impl Outbox {
    /// Has a message leave, with the batches of its entries. The core merges appends without a bound: a large one
    /// leaves as several, each behind the last entry of the one before.
    pub(super) fn post(&mut self, to: PeerId, mut message: Message, mut batches: SmallVec<[ChunkSlice; 8]>) {
        loop {
            let fitting = fitting(&message);
            if fitting == message.entries.len() {
                return self.add(to, message, batches);
            }
            let later = message.entries.split_off(fitting);
            let Some(last) = message.entries.last() else { return };
            let next = Message {
                index: message.index + fitting as u64,
                log_term: last.term,
                entries: later,
                ..message.clone()
            };
            let with_batch = message.entries.iter().filter(|entry| entry.bytes > 0).count();
            let first = batches.drain(..with_batch).collect();
            self.add(to, std::mem::replace(&mut message, next), first);
        }
    }

    /// The same for a message that is within the bounds by itself.
    pub(super) fn add(&mut self, to: PeerId, message: Message, mut batches: SmallVec<[ChunkSlice; 8]>) {
        let payload_bytes: usize = batches.iter().map(ChunkSlice::len).sum();
        let frames = self.frames.entry(to).or_default();
        let fits = |frame: &Frame| {
            frame.messages.len() < MAX_PEER_MESSAGES_PER_FRAME / 2
                && frame.entries + message.entries.len() <= MAX_PEER_ENTRIES_PER_FRAME
                && frame.payload_bytes + payload_bytes <= MAX_PEER_PAYLOAD_BYTES
        };
        if !frames.last().is_some_and(fits) {
            frames.push(Frame::default());
        }
        let Some(frame) = frames.last_mut() else { return };
        frame.entries += message.entries.len();
        frame.payload_bytes += payload_bytes;
        frame.batches.append(&mut batches);
        frame.messages.push(message);
    }

    /// Sends everything.
    pub(super) fn send(&mut self, actions: &mut Vec<Action>) {
        for (to, frames) in std::mem::take(&mut self.frames) {
            for Frame { messages, batches, .. } in frames {
                actions.push(Action::SendPeer { to, control: frame::encode(&messages), payload: batches });
            }
        }
    }
}

/// How many of its entries one message may carry; at least one.
fn fitting(message: &Message) -> usize {
    let mut bytes = 0;
    let fits = |entry: &&EntryHead| {
        bytes += entry.bytes as usize;
        bytes <= PAYLOAD_PER_MESSAGE
    };
    let count = message.entries.iter().take(ENTRIES_PER_MESSAGE).take_while(fits).count();
    count.max(1).min(message.entries.len())
}
