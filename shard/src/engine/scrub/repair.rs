//! Damage in a segment: noted, fetched from another replica, written again.

use std::rc::Rc;

use pyralog_core::GroupId;
use pyralog_replication::raft::{Message, MessageKind};

use super::check::behind;
use super::walk::{Damage, Stage, Walk};
use super::{REPAIR_AGAIN_US, Suspect, WRITE_AGAIN_US};
use crate::engine::api::{FileId, IoError, IoErrorKind, IoOp, IoResult, LogLevel, PeerId};
use crate::engine::partition::Partition;
use crate::engine::recovery_rate::Turn;
use crate::engine::{Action, Engine};
use crate::memory::{Chunk, ChunkSlice};

/// An answer that has not come for so long was lost, microseconds.
const ANSWER_WITHIN_US: u64 = 3_000_000;
/// The pause between two attempts grows to so many times the first one, and one more.
const MOST_TIMES: u32 = 5;
/// Questions have these numbers.
const QUESTIONS: std::ops::RangeInclusive<u16> = 1..=0x7fff;

/// What is known of the segment from damage on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Behind<'a> {
    /// Its file ends there.
    Nothing,
    /// It could not be read.
    Unread,
    /// It was read: the damage begins there in it.
    Local(&'a Rc<Chunk>, usize),
}

impl Engine {
    /// `from..to` was read and is whole: nothing of it is damaged any more.
    pub(super) fn is_whole(&mut self, group: GroupId, from: i64, to: i64) {
        let Some(partition) = self.find(group).and_then(|index| self.at_mut(index)) else { return };
        if partition.damaged.is_empty() {
            return;
        }
        let healed = partition.forget_damage(from, to);
        if healed > 0 {
            self.counters.scrub.repaired += healed as u64;
            self.flush.want_checkpoint();
        }
    }

    /// What comes next is not what belongs there.
    pub(super) fn damage_found(&mut self, what: &str, rest: Behind<'_>, actions: &mut Vec<Action>) {
        let Some(walk) = &mut self.scrub.walk else { return };
        if walk.trusts_index() {
            // Where the index led to may not be where a batch begins.
            walk.begin_anew();
            return self.go_on_walking(actions);
        }
        let to = match rest {
            Behind::Nothing => walk.end,
            Behind::Unread => behind(walk.at, walk.end, &[], &walk.index),
            Behind::Local(chunk, at) => {
                let bytes = chunk.bytes(at, chunk.filled() - at);
                behind(walk.at, walk.end, bytes, &walk.index)
            }
        };
        let damage = Damage { from: walk.at, to };
        let not_kept = walk.written == Some(damage.from.offset);
        walk.damage = Some(damage);
        walk.include(damage.to.offset);
        let (group, segment) = (walk.group, walk.segment);
        match rest {
            // It may be read the next time. Until then a reader is told what the disk says.
            Behind::Unread => {
                let text = format!("segment {segment} of partition {group} can't be read: {what}");
                actions.push(Action::Log { level: LogLevel::Warn, text });
            }
            Behind::Nothing | Behind::Local(..) => {
                self.note_damage(group, segment, damage, what, actions);
            }
        }
        if not_kept {
            let why = "the disk does not keep what is written there; exchange it";
            return self.leave_damage(why, WRITE_AGAIN_US, actions);
        }
        self.ask_for_repair(None);
    }

    fn note_damage(
        &mut self,
        group: GroupId,
        segment: i64,
        damage: Damage,
        what: &str,
        actions: &mut Vec<Action>,
    ) {
        let (from, to) = (damage.from.offset, damage.to.offset);
        let Some(partition) = self.find(group).and_then(|index| self.at_mut(index)) else { return };
        if partition.is_known_damaged(from, to) {
            return;
        }
        partition.note_damage(from, to);
        let partition_is_replicated = partition.is_replicated();
        self.counters.scrub.damaged += 1;
        self.flush.want_checkpoint();
        let remedy = match partition_is_replicated {
            true => "they are refused until they are repaired from another replica",
            false => "they are refused, and there is no other replica to repair them from",
        };
        let text = format!(
            "segment {segment} of partition {group}, offsets {from}..{to}: {what}; {remedy}. The rest stays readable"
        );
        actions.push(Action::Log { level: LogLevel::Error, text });
    }

    /// Asks another replica, when it is its turn.
    fn ask_for_repair(&mut self, last: Option<(PeerId, usize)>) {
        let Some(walk) = &mut self.scrub.walk else { return };
        walk.stage = Stage::Waiting { last };
        self.scrub.due_us = None;
        self.recovery_rate.wait(Turn::Repair);
    }

    /// It is the scrubber's turn to ask. False: it has nothing to ask for.
    pub(in crate::engine) fn repair_turn(&mut self, actions: &mut Vec<Action>) -> bool {
        let Some(walk) = &self.scrub.walk else { return false };
        let Stage::Waiting { last } = walk.stage else { return false };
        if walk.is_over {
            self.go_on_walking(actions);
            return false;
        }
        self.ask_for_repair_now(last, actions)
    }

    /// Asks the next of those who can be reached; without one, leaves the damage where it is. Whether it has asked.
    fn ask_for_repair_now(&mut self, last: Option<(PeerId, usize)>, actions: &mut Vec<Action>) -> bool {
        let Some(walk) = &self.scrub.walk else { return false };
        let (group, Some(damage)) = (walk.group, walk.damage) else { return false };
        let (last, refusals) = (last.map(|(source, _)| source), last.map_or(0, |(_, refusals)| refusals));
        let Some((source, term)) = self.source_of_repair(group, last, refusals) else {
            let why = "nobody who can be reached can give them";
            self.leave_damage(why, REPAIR_AGAIN_US, actions);
            return false;
        };
        let question = match self.scrub.question {
            last if QUESTIONS.contains(&(last + 1)) => last + 1,
            _ => *QUESTIONS.start(),
        };
        self.scrub.question = question;
        let node = self.config.node.0;
        let mut message = Message::new(MessageKind::FetchBatches, group, node, source.node.0, term);
        (message.offset, message.index) = (damage.from.offset, self.recovery_ask_bytes() as u64);
        message.read = u64::from(question);
        self.post_beside(source, message);
        if let Some(walk) = &mut self.scrub.walk {
            walk.stage = Stage::Asked { source, refusals };
        }
        self.go_on_at(self.now.monotonic_us + ANSWER_WITHIN_US);
        true
    }

    /// The member behind `last` that can be reached, and the term here.
    fn source_of_repair(
        &self,
        group: GroupId,
        last: Option<PeerId>,
        refusals: usize,
    ) -> Option<(PeerId, u32)> {
        let replica = self.find(group).and_then(|index| self.at(index))?.replica.raft()?;
        if replica.catch_up.is_some() {
            // It may let go of this segment altogether.
            return None;
        }
        let members = &replica.members;
        let own = members.iter().position(|member| member.node == self.config.node);
        let at = last.and_then(|last| members.iter().position(|member| *member == last)).or(own)?;
        let others = members.len().checked_sub(1)?;
        let reached = |member: &&PeerId| member.node != self.config.node && self.is_linked(**member);
        let mut behind = members.iter().cycle().skip(at + 1).take(members.len());
        let source = behind.find(reached).copied().filter(|_| refusals < others)?;
        Some((source, replica.raft.term()))
    }

    /// Who was asked has not answered, or can't.
    pub(super) fn ask_another_for_repair(&mut self) {
        let Some(Stage::Asked { source, refusals }) = self.scrub.walk.as_ref().map(|walk| &walk.stage) else {
            return;
        };
        let last = (*source, refusals + 1);
        self.ask_for_repair(Some(last));
    }

    /// The damage stays for now, and what is behind it is looked at.
    fn leave_damage(&mut self, why: &str, again_us: u64, actions: &mut Vec<Action>) {
        let Some(walk) = &mut self.scrub.walk else { return };
        let Some(damage) = walk.damage.take() else { return };
        walk.pass_over(damage.to);
        let (group, segment, tries) = (walk.group, walk.segment, walk.tries);
        let (from, to) = (damage.from.offset, damage.to.offset);
        let replicated =
            self.find(group).and_then(|index| self.at(index)).is_some_and(Partition::is_replicated);
        if replicated {
            self.counters.scrub.failed += 1;
            let pause_us = again_us * u64::from(tries.min(MOST_TIMES) + 1);
            let not_before_us = self.now.monotonic_us + pause_us;
            let offset = Some(from);
            self.scrub.suspect(Suspect { group, segment, offset, not_before_us, tries: tries + 1 });
        }
        if replicated && tries == 0 {
            let text = format!(
                "offsets {from}..{to} of partition {group} can't be repaired now: {why}; it will be tried again"
            );
            actions.push(Action::Log { level: LogLevel::Warn, text });
        }
        self.go_on_at(self.now.monotonic_us);
    }

    /// What another replica was asked for. False: it is no answer to the scrubber.
    pub(in crate::engine) fn repair_came(
        &mut self,
        from: PeerId,
        message: &Message,
        batches: &[u8],
        actions: &mut Vec<Action>,
    ) -> bool {
        if message.read == 0 {
            return false;
        }
        let is_answer = |walk: &Walk| {
            let asked = matches!(&walk.stage, Stage::Asked { source, .. } if *source == from);
            asked && message.group() == walk.group && message.read == u64::from(self.scrub.question)
        };
        let was_asked = self.scrub.walk.as_ref().is_some_and(is_answer);
        self.recovery_came(batches.len(), was_asked);
        let Some(walk) = self.scrub.walk.as_ref().filter(|_| was_asked) else { return true };
        let Some(damage) = walk.damage.filter(|_| !walk.is_over) else { return true };
        let epoch = walk.epoch.filter(|_| walk.of_all);
        match fitting(message, damage, epoch) {
            Some(bytes) if bytes <= batches.len() && !message.reject => {
                let batches = batches.get(..bytes).unwrap_or_default();
                self.write_repair(damage.from.position, batches, actions);
            }
            _ => self.ask_another_for_repair(),
        }
        true
    }

    fn write_repair(&mut self, position: u64, batches: &[u8], actions: &mut Vec<Action>) {
        let Some(chunk) = self.misc_pool.chunk(batches.len()) else {
            // The question stays, and is asked again when its time is over.
            return;
        };
        chunk.append(batches);
        let token = self.next_token();
        let Some(walk) = &mut self.scrub.walk else { return };
        walk.stage = Stage::Writing(token);
        self.scrub.due_us = None;
        self.counters.scrub.repaired_bytes += batches.len() as u64;
        let file = FileId::Segment(walk.group, walk.segment);
        let data = vec![ChunkSlice::new(chunk, 0, batches.len())];
        actions.push(Action::Io { token, op: IoOp::Write { file, offset: position, data } });
    }

    pub(super) fn repair_written(&mut self, result: IoResult, actions: &mut Vec<Action>) {
        if let Err(error) = result {
            return self.repair_failed(&error, actions);
        }
        let token = self.next_token();
        let Some(walk) = &mut self.scrub.walk else { return };
        walk.stage = Stage::Syncing(token);
        let file = FileId::Segment(walk.group, walk.segment);
        actions.push(Action::Io { token, op: IoOp::Sync { file } });
    }

    /// It is read again before anybody is served with it.
    pub(super) fn repair_synced(&mut self, result: IoResult, actions: &mut Vec<Action>) {
        if let Err(error) = result {
            return self.repair_failed(&error, actions);
        }
        let Some(walk) = &mut self.scrub.walk else { return };
        walk.written = walk.damage.take().map(|damage| damage.from.offset);
        let (group, segment) = (walk.group, walk.segment);
        self.cold.forget_segment(group, segment);
        self.go_on_walking(actions);
    }

    /// What a write that failed has left of the range is not known; it is refused anyway. Of a file to which more is
    /// appended nobody would be told again what else was lost with it.
    fn repair_failed(&mut self, error: &IoError, actions: &mut Vec<Action>) {
        let grows = self.scrub.walk.as_ref().is_some_and(|walk| walk.grows());
        match error.kind {
            IoErrorKind::NoSpace => self.leave_damage(&error.detail, REPAIR_AGAIN_US, actions),
            _ if grows => self.fence(&error.detail, actions),
            _ => self.leave_damage(&error.detail, WRITE_AGAIN_US, actions),
        }
    }
}

/// How many bytes of the batches that came belong to the damaged range; `None` when they do not fit it.
fn fitting(message: &Message, damage: Damage, epoch: Option<u32>) -> Option<usize> {
    let Damage { from, to } = damage;
    let room = to.position - from.position;
    let (mut at, mut bytes) = (from.offset, 0u64);
    for entry in &message.entries {
        if entry.base_offset != at || entry.next_offset > to.offset {
            break;
        }
        if epoch.is_some_and(|epoch| epoch != entry.term) {
            // It has rotted there.
            return None;
        }
        (at, bytes) = (entry.next_offset, bytes + u64::from(entry.bytes));
        if bytes > room {
            return None;
        }
    }
    let whole = (at == to.offset) == (bytes == room);
    let fits = whole && bytes > 0;
    fits.then_some(bytes as usize)
}
