//! What is known of idempotent producers whose last batches retention has taken: a replica that catches up behind them
//! can't learn it from batches, and as a leader it would refuse such a producer's next batch, or take a retry for a new one.

use pyralog_core::limits::{MAX_PEER_PAYLOAD_BYTES, MAX_PRODUCERS_PER_PARTITION};
use pyralog_replication::raft::{EntryHead, EntryKind, Message, MessageKind};
use smallvec::SmallVec;

use super::Engine;
use super::api::PeerId;
use crate::format::checkpoint::ProducerCheckpoint;
use crate::memory::ChunkSlice;

/// What a producer takes at most: its head and its batches.
const PRODUCER_BYTES: usize = 19 + 16 * (pyralog_core::limits::BATCHES_PER_PRODUCER + 1);
const _: () = assert!(MAX_PRODUCERS_PER_PARTITION * PRODUCER_BYTES + 4 <= MAX_PEER_PAYLOAD_BYTES);

impl Engine {
    /// Another replica asks for the producers of batches below an offset. All of these have to be committed here.
    pub(super) fn producers_asked(&mut self, index: u32, from: PeerId, message: &Message) {
        let (node, group, now) = (self.config.node.0, message.group(), self.now);
        let Some(partition) = self.at(index) else { return };
        let term = partition.replica.epoch();
        let known = message.offset <= partition.replica.high_watermark();
        let producers = partition.producers.checkpoint(message.offset, now);
        let bytes = ProducerCheckpoint::encode_all(&producers).ok().filter(|_| known);
        let chunk = bytes.as_ref().and_then(|bytes| self.misc_pool.chunk(bytes.len()));
        let mut answer = Message::new(MessageKind::Producers, group, node, from.node.0, term);
        (answer.offset, answer.reject) = (message.offset, chunk.is_none());
        let mut payload = SmallVec::new();
        if let Some((bytes, chunk)) = bytes.zip(chunk) {
            chunk.append(&bytes);
            let kind = EntryKind::Batch as u8;
            let len = bytes.len();
            answer.entries =
                vec![EntryHead { term: 0, kind, base_offset: 0, next_offset: 0, bytes: len as u32 }];
            payload.push(ChunkSlice::new(chunk, 0, len));
        }
        self.replication.outbox.add(from, answer, payload);
    }

    /// The answer. What it says of a producer goes before what is known here, which is older.
    pub(super) fn producers_came(
        &mut self,
        index: u32,
        from: PeerId,
        message: &Message,
        bytes: &[u8],
    ) -> Result<(), String> {
        let now_us = self.now.monotonic_us;
        let Some(catch_up) = self.raft_mut(index).and_then(|replica| replica.catch_up.as_mut()) else {
            return Ok(());
        };
        let was_asked = catch_up.wants_producers_of(from, message.offset);
        self.recovery_came(bytes.len(), was_asked);
        if !was_asked {
            return Ok(());
        }
        if message.reject {
            // It is asked again when the leader says again where to begin.
            return Ok(());
        }
        let producers =
            ProducerCheckpoint::decode_all(bytes).filter(|all| all.len() <= MAX_PRODUCERS_PER_PARTITION);
        let producers = producers.ok_or("producers that do not decode")?;
        let below = |producer: &ProducerCheckpoint| {
            producer.batches.iter().all(|batch| (0..message.offset).contains(&batch.base_offset))
        };
        if !producers.iter().all(below) {
            return Err("producers of batches that were not asked for".into());
        }
        self.take_producers(index, &producers, now_us);
        Ok(())
    }
}
