//! What leaves for other shards at the end of a pass: the messages of all groups to one shard in as few frames as their
//! bounds allow.

use std::collections::BTreeMap;

use pyralog_core::limits::{
    MAX_BATCH_BYTES, MAX_PEER_CONFIGURATIONS_PER_FRAME, MAX_PEER_ENTRIES_PER_FRAME,
    MAX_PEER_MESSAGES_PER_FRAME, MAX_PEER_PAYLOAD_BYTES, MAX_REPLICATION_FACTOR, PEER_PART_BYTES,
    PEER_QUEUE_BYTES,
};
use pyralog_replication::metadata::Replica;
use pyralog_replication::raft::{Configuration, EntryHead, EntryKind, Message, MessageKind, frame};
use smallvec::SmallVec;

use crate::memory::ChunkSlice;

use super::Action;
use super::api::PeerId;

/// Entries in one message; more go as several.
pub(super) const ENTRIES_PER_MESSAGE: usize = MAX_PEER_ENTRIES_PER_FRAME / 2;
/// Batch bytes in one message, the largest batch included; more go as several.
const PAYLOAD_PER_MESSAGE: usize = MAX_PEER_PAYLOAD_BYTES / 4;
const _: () = assert!(PAYLOAD_PER_MESSAGE >= MAX_BATCH_BYTES);

/// Configurations in one message; more go as several.
const CONFIGURATIONS_PER_MESSAGE: usize = MAX_PEER_CONFIGURATIONS_PER_FRAME / 2;
/// What a configuration is charged, bytes: three lists of replicas.
const CONFIGURATION_BYTES: usize =
    size_of::<Configuration>() + 3 * MAX_REPLICATION_FACTOR as usize * size_of::<Replica>();

/// A frame being put together.
#[derive(Debug, Default)]
struct Frame {
    messages: Vec<Message>,
    batches: SmallVec<[ChunkSlice; 8]>,
    entries: usize,
    configurations: usize,
    payload_bytes: usize,
}

impl Frame {
    fn sent(self, to: PeerId) -> Action {
        Action::SendPeer { to, control: frame::encode(&self.messages), payload: self.batches }
    }
}

/// The frames of a pass for one shard.
#[derive(Debug, Default)]
struct Queue {
    frames: Vec<Frame>,
    /// Batches for who catches up: they go behind all others, so that nobody who waits for an acknowledgement waits for them.
    later: Vec<Frame>,
    /// What they are charged.
    bytes: usize,
}

/// The frames of a pass, by the shard that they are for.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    queues: BTreeMap<PeerId, Queue>,
}

impl Outbox {
    /// Has a message leave, with the batches of its entries. The core merges appends without a bound: a large one
    /// leaves as several, each behind the last entry of the one before. False: not all of it does, there is too much
    /// already.
    pub(super) fn post(
        &mut self,
        to: PeerId,
        mut message: Message,
        mut batches: SmallVec<[ChunkSlice; 8]>,
    ) -> bool {
        loop {
            let fitting = fitting(&message);
            if fitting == message.entries.len() {
                return self.add(to, message, batches);
            }
            let (later, configurations) = message.split_off(fitting);
            let Some(last) = message.entries.last() else { return true };
            let next = Message {
                index: message.index + fitting as u64,
                log_term: last.term,
                entries: later,
                configurations,
                ..message.clone()
            };
            let with_batch = message.entries.iter().filter(|entry| entry.bytes > 0).count();
            let first = batches.drain(..with_batch).collect();
            if !self.add(to, std::mem::replace(&mut message, next), first) {
                return false;
            }
        }
    }

    /// The same for a message that is within the bounds by itself.
    pub(super) fn add(
        &mut self,
        to: PeerId,
        message: Message,
        mut batches: SmallVec<[ChunkSlice; 8]>,
    ) -> bool {
        let payload_bytes: usize = batches.iter().map(ChunkSlice::len).sum();
        let Queue { frames, later, bytes } = self.queues.entry(to).or_default();
        let frames = if message.kind == MessageKind::Batches { later } else { frames };
        let charge = size_of::<Message>()
            + message.entries.len() * size_of::<EntryHead>()
            + message.configurations.len() * CONFIGURATION_BYTES
            + payload_bytes
            + batches.len() * PEER_PART_BYTES;
        if *bytes + charge > PEER_QUEUE_BYTES {
            return false;
        }
        *bytes += charge;
        let fits = |frame: &Frame| {
            frame.messages.len() < MAX_PEER_MESSAGES_PER_FRAME / 2
                && frame.entries + message.entries.len() <= MAX_PEER_ENTRIES_PER_FRAME
                && frame.configurations + message.configurations.len() <= MAX_PEER_CONFIGURATIONS_PER_FRAME
                && frame.payload_bytes + payload_bytes <= MAX_PEER_PAYLOAD_BYTES
        };
        if !frames.last().is_some_and(fits) {
            frames.push(Frame::default());
        }
        let Some(frame) = frames.last_mut() else { return false };
        frame.entries += message.entries.len();
        frame.configurations += message.configurations.len();
        frame.payload_bytes += payload_bytes;
        frame.batches.append(&mut batches);
        frame.messages.push(message);
        true
    }

    /// Sends everything.
    pub(super) fn send(&mut self, actions: &mut Vec<Action>) {
        let mut later = Vec::new();
        for (to, queue) in std::mem::take(&mut self.queues) {
            actions.extend(queue.frames.into_iter().map(|frame| frame.sent(to)));
            later.extend(queue.later.into_iter().map(|frame| frame.sent(to)));
        }
        actions.append(&mut later);
    }
}

/// How many of its entries one message may carry; at least one.
fn fitting(message: &Message) -> usize {
    let (mut bytes, mut configurations) = (0, 0);
    let fits = |entry: &&EntryHead| {
        bytes += entry.bytes as usize;
        configurations += usize::from(entry.kind == EntryKind::Configuration as u8);
        bytes <= PAYLOAD_PER_MESSAGE && configurations <= CONFIGURATIONS_PER_MESSAGE
    };
    let count = message.entries.iter().take(ENTRIES_PER_MESSAGE).take_while(fits).count();
    count.max(1).min(message.entries.len())
}

#[cfg(test)]
mod tests {
    use pyralog_core::{GroupId, NodeId, ShardId};

    use super::*;
    use crate::memory::ChunkPool;

    fn append(batch: &ChunkSlice, entries: usize) -> (Message, SmallVec<[ChunkSlice; 8]>) {
        let mut message = Message::new(MessageKind::Append, GroupId::new(1, 0), 1, 2, 1);
        let bytes = batch.len() as u32;
        let kind = EntryKind::Batch as u8;
        let entry = |at: i64| EntryHead { term: 1, kind, base_offset: at, next_offset: at + 1, bytes };
        message.entries = (0..entries as i64).map(entry).collect();
        (message, std::iter::repeat_n(batch.clone(), entries).collect())
    }

    #[test]
    fn what_a_catch_up_gets_leaves_behind_everything_else() {
        let pool = ChunkPool::new(MAX_BATCH_BYTES);
        let chunk = pool.chunk(MAX_BATCH_BYTES).unwrap();
        chunk.zero_to(MAX_BATCH_BYTES);
        let batch = ChunkSlice::new(chunk, 0, 100);
        let mut outbox = Outbox::default();
        for (kind, node) in [
            (MessageKind::Batches, 2),
            (MessageKind::Append, 2),
            (MessageKind::Batches, 2),
            (MessageKind::Append, 3),
        ] {
            let (mut message, batches) = append(&batch, 1);
            message.kind = kind;
            assert!(outbox.add(PeerId { node: NodeId(node), shard: ShardId(0) }, message, batches));
        }
        let mut actions = Vec::new();
        outbox.send(&mut actions);
        let sent = actions.iter().map(|action| {
            let Action::SendPeer { to, control, .. } = action else { unreachable!() };
            let kinds = frame::decode(control).unwrap().into_iter().map(|message| message.kind);
            (to.node.0, kinds.collect::<Vec<_>>())
        });
        let wanted = [
            (2, vec![MessageKind::Append]),
            (3, vec![MessageKind::Append]),
            (2, vec![MessageKind::Batches, MessageKind::Batches]),
        ];
        assert_eq!(sent.collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn one_pass_sends_a_peer_no_more_than_its_link_takes() {
        let pool = ChunkPool::new(MAX_BATCH_BYTES);
        let chunk = pool.chunk(MAX_BATCH_BYTES).unwrap();
        chunk.zero_to(MAX_BATCH_BYTES);
        let peer = |node| PeerId { node: NodeId(node), shard: ShardId(0) };
        let mut outbox = Outbox::default();
        for (batch_bytes, entries) in [(MAX_BATCH_BYTES, 5), (61, 10_000)] {
            let batch = ChunkSlice::new(chunk.clone(), 0, batch_bytes);
            let mut posted = 0;
            loop {
                let (message, batches) = append(&batch, entries);
                if !outbox.post(peer(2), message, batches) {
                    break;
                }
                posted += 1;
                assert!(posted < 10_000, "no bound");
            }
            assert!(posted > 0);
            // Another one's link has room.
            let (message, batches) = append(&batch, 1);
            assert!(outbox.post(peer(3), message, batches));
            let mut actions = Vec::new();
            outbox.send(&mut actions);
            let mut sent = 0;
            for action in &actions {
                let Action::SendPeer { to, control, payload } = action else { unreachable!() };
                if *to == peer(2) {
                    sent += control.len() + payload.iter().map(ChunkSlice::len).sum::<usize>();
                }
            }
            assert!(sent > PEER_QUEUE_BYTES / 3 && sent <= PEER_QUEUE_BYTES, "{sent} bytes");
        }
    }
}
