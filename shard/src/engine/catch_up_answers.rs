//! What this shard answers to replicas elsewhere that catch up: committed batches, as a consumer gets them.
//!
//! A replica asks for more before it has what it has asked for, so that its disk, the network and the disk here work at once.
//! It can't know where the next answer begins: that is kept here, for each question that comes behind others. One answer
//! a pass: what is checked and sent at once holds up producers.

use std::collections::{BTreeMap, VecDeque};

use pyralog_core::GroupId;
use pyralog_net::message::{Consistency, FetchRequest};
use pyralog_replication::raft::Message;

use super::api::PeerId;
use super::catch_up::conn_of;
use super::{Action, Engine};

/// Most bytes that are answered at once, unless a batch is larger.
const MOST_BYTES: u64 = 1 << 20;
/// Questions of a replica that wait for those before them, at most; further ones are lost.
const MOST_WAITING: usize = 16;
/// Replicas elsewhere of which something is kept; beyond it those go that have not asked for long.
const MANY: usize = 256;
/// How long that is, microseconds.
const LONG_US: u64 = 10_000_000;

/// A replica elsewhere that catches up.
#[derive(Debug)]
struct Asker {
    /// Where the answer begins that is being made, or the next one.
    next: i64,
    is_read: bool,
    /// What the further questions ask for, bytes.
    waiting: VecDeque<u64>,
    asked_us: u64,
}

/// Replicas elsewhere that catch up.
#[derive(Debug, Default)]
pub(super) struct Answers {
    askers: BTreeMap<(PeerId, GroupId), Asker>,
    /// Those whose next question can be answered.
    ready: VecDeque<(PeerId, GroupId)>,
}

impl Answers {
    /// What was on the way to or from that shard is lost.
    pub(super) fn forget_peer(&mut self, peer: PeerId) {
        self.askers.retain(|(asker, _), _| *asker != peer);
    }

    /// Whether there is something to answer in the next pass.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// A question of a replica, with so many before it. Returns where its answer begins, if it can be made now.
    fn ask(
        &mut self,
        key: (PeerId, GroupId),
        before: u64,
        offset: i64,
        bytes: u64,
        now_us: u64,
    ) -> Option<i64> {
        if before == 0 {
            if self.askers.len() >= MANY {
                self.askers.retain(|_, asker| now_us.saturating_sub(asker.asked_us) < LONG_US);
            }
            let asker = Asker { next: offset, is_read: true, waiting: VecDeque::new(), asked_us: now_us };
            self.askers.insert(key, asker);
            return Some(offset);
        }
        let asker = self.askers.get_mut(&key)?;
        asker.asked_us = now_us;
        if asker.waiting.len() < MOST_WAITING {
            asker.waiting.push_back(bytes);
        }
        if !asker.is_read {
            self.ready.push_back(key);
        }
        None
    }

    /// An answer leaves.
    pub(super) fn answered(&mut self, peer: PeerId, message: &Message) {
        let key = (peer, message.group());
        let Some(asker) = self.askers.get_mut(&key).filter(|asker| asker.is_read) else { return };
        match (message.entries.first(), message.entries.last()) {
            (Some(first), Some(last)) if first.base_offset == asker.next => {
                (asker.next, asker.is_read) = (last.next_offset, false);
                if !asker.waiting.is_empty() {
                    self.ready.push_back(key);
                }
            }
            // To a question of before it began anew.
            (Some(_), _) => {}
            // What comes behind it could not be given either.
            (None, _) => drop(self.askers.remove(&key)),
        }
    }

    /// The next question that can be answered: whose, from where on, and for how many bytes.
    fn next(&mut self) -> Option<((PeerId, GroupId), i64, u64)> {
        while let Some(key) = self.ready.pop_front() {
            if let Some(asker) = self.askers.get_mut(&key).filter(|asker| !asker.is_read)
                && let Some(bytes) = asker.waiting.pop_front()
            {
                asker.is_read = true;
                return Some((key, asker.next, bytes));
            }
        }
        None
    }
}

impl Engine {
    /// Another replica asks for committed batches.
    pub(super) fn peer_fetch(&mut self, from: PeerId, message: &Message, actions: &mut Vec<Action>) {
        let (group, now_us) = (message.group(), self.now.monotonic_us);
        let repairs = message.read != 0;
        if !repairs
            && let Some(index) = self.find(group)
            && let Some(replica) = self.raft_mut(index)
        {
            replica.note_fetch(from, message.offset, now_us);
        }
        let begins = match repairs {
            true => Some(message.offset),
            false => {
                let answers = &mut self.replication.answers;
                answers.ask((from, group), message.commit, message.offset, message.index, now_us)
            }
        };
        if let Some(offset) = begins {
            self.fetch_for((from, group), message.read, offset, message.index, actions);
        }
    }

    /// At the end of a pass: answers one question that had to wait for the one before it.
    pub(super) fn answer_next(&mut self, actions: &mut Vec<Action>) {
        if let Some((asker, offset, bytes)) = self.replication.answers.next() {
            self.fetch_for(asker, 0, offset, bytes, actions);
        }
    }

    fn fetch_for(
        &mut self,
        (peer, group): (PeerId, GroupId),
        question: u64,
        offset: i64,
        bytes: u64,
        actions: &mut Vec<Action>,
    ) {
        let fetch = FetchRequest {
            group,
            offset,
            min_bytes: 0,
            max_bytes: bytes.clamp(1, MOST_BYTES) as u32,
            max_wait_ms: 0,
            consistency: Consistency::Leader,
        };
        let name = u64::from(group.topic.0) << 32 | u64::from(group.partition);
        self.fetch(conn_of(peer, question), name, &fetch, actions);
    }
}

#[cfg(test)]
mod tests {
    use pyralog_core::{NodeId, ShardId};
    use pyralog_replication::raft::{EntryHead, MessageKind};

    use super::*;

    const PEER: PeerId = PeerId { node: NodeId(2), shard: ShardId(0) };

    fn key() -> (PeerId, GroupId) {
        (PEER, GroupId::new(1, 0))
    }

    fn answer(entries: std::ops::Range<i64>) -> Message {
        let mut message = Message::new(MessageKind::Batches, GroupId::new(1, 0), 1, 2, 1);
        let entry = |at| EntryHead { term: 1, kind: 1, base_offset: at, next_offset: at + 1, bytes: 61 };
        message.entries = entries.map(entry).collect();
        message
    }

    #[test]
    fn questions_are_answered_in_their_order_from_where_the_last_answer_ended() {
        let mut answers = Answers::default();
        assert_eq!(answers.ask(key(), 0, 10, 100, 0), Some(10));
        assert_eq!(answers.ask(key(), 1, 10, 200, 0), None);
        assert_eq!(answers.ask(key(), 2, 10, 300, 0), None);
        assert!(answers.next().is_none(), "the first is not answered yet");
        answers.answered(PEER, &answer(10..14));
        assert_eq!(answers.next(), Some((key(), 14, 200)));
        assert!(answers.next().is_none());
        answers.answered(PEER, &answer(14..20));
        assert_eq!(answers.next(), Some((key(), 20, 300)));
        answers.answered(PEER, &answer(20..21));
        assert!(!answers.has_ready());
        // All answered, and some of it is still on the way there.
        assert_eq!(answers.ask(key(), 1, 14, 400, 0), None);
        assert_eq!(answers.next(), Some((key(), 21, 400)));
    }

    #[test]
    fn who_begins_anew_is_not_answered_from_where_it_was() {
        let mut answers = Answers::default();
        assert_eq!(answers.ask(key(), 0, 10, 100, 0), Some(10));
        assert_eq!(answers.ask(key(), 1, 10, 100, 0), None);
        assert_eq!(answers.ask(key(), 0, 5, 100, 0), Some(5));
        answers.answered(PEER, &answer(10..14));
        assert!(answers.next().is_none(), "that was the answer to the old one");
        answers.answered(PEER, &answer(5..7));
        assert!(answers.next().is_none(), "the old questions are forgotten");
        assert_eq!(answers.ask(key(), 1, 5, 100, 0), None);
        assert_eq!(answers.next(), Some((key(), 7, 100)));
        // Nothing can be read there.
        answers.answered(PEER, &answer(0..0));
        assert_eq!(answers.ask(key(), 2, 5, 100, 0), None);
        assert!(answers.next().is_none());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut answers = Answers::default();
        answers.ask(key(), 0, 0, 1, 0);
        (1..100).for_each(|before| assert_eq!(answers.ask(key(), before, 0, 1, 0), None));
        assert_eq!(answers.askers[&key()].waiting.len(), MOST_WAITING);
        for partition in 1..2_000 {
            answers.ask((PEER, GroupId::new(1, partition)), 0, 0, 1, u64::from(partition) * LONG_US / 100);
        }
        assert!(answers.askers.len() <= MANY + 100, "{}", answers.askers.len());
        answers.forget_peer(PEER);
        assert!(answers.askers.is_empty());
    }
}
