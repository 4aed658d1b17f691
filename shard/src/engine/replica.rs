//! What a partition knows of its replicas: this is the only one, or one of several, or it was found on the disk as one
//! of several and the catalogue has not named the others yet.

use std::collections::VecDeque;

use pyralog_core::ErrorCode;
use pyralog_core::limits::WAITING_MESSAGES_PER_REPLICA;
use pyralog_replication::raft::{Configuration, Header, Message, Position, RaftGroup, RecoveredLog};
use pyralog_replication::{Group, SingleVoter};

use crate::format::checkpoint::ReplicatedCheckpoint;
use crate::format::journal::FIRST_INDEX;

use super::api::PeerId;
use super::catch_up::CatchUp;
use super::lag::Progress;
use super::moves::Moving;
use super::pending::Pending;
use super::produce::Refusal;

/// This node's replica of a partition.
#[derive(Debug)]
pub(super) enum Replica {
    /// The only one.
    Single(SingleVoter),
    /// One of several that takes no part: its others are not named yet, or damage hides what it has promised. It
    /// serves what is committed for sure.
    Unplaced(Box<Unplaced>),
    /// One of several.
    Raft(Box<RaftReplica>),
}

/// A replica as the disk has it.
#[derive(Debug, Default)]
pub(super) struct Unplaced {
    pub(super) log: RecoveredLog,
    /// The commits of the journal that hold the entries of `log`, in their order.
    pub(super) lsns: VecDeque<u64>,
    /// Term and index of the newest entry that the journal is known to have held: with less than that at the end of
    /// the replay, something is missing.
    pub(super) newest: (u32, u64),
}

/// A group that took no batch for so long is looked at before it takes the next one, microseconds: how late its members may
/// seem at most is the same.
const IDLE_US: u64 = 1_000_000;

/// Outputs that wait for one commit of the journal: the first laid frames down, later ones may have had none.
#[derive(Debug)]
pub(super) struct LaidOutput {
    /// The first one's number.
    pub(super) number: u64,
    /// The last one's.
    pub(super) newest: u64,
    /// The commit.
    pub(super) lsn: u64,
    /// What leaves when it is durable.
    pub(super) messages: Vec<Message>,
}

impl LaidOutput {
    /// One more that waits for nothing else. As long as a disk stalls, a leader goes on to ask: not all answers are kept.
    pub(super) fn join(&mut self, number: u64, messages: Vec<Message>) {
        self.newest = number;
        let room = WAITING_MESSAGES_PER_REPLICA.saturating_sub(self.messages.len());
        self.messages.extend(messages.into_iter().take(room));
    }
}

/// One replica of several.
#[derive(Debug)]
pub(super) struct RaftReplica {
    pub(super) raft: RaftGroup,
    /// The shards of all replicas by the configuration in force, this one included if it is one of them: voters, former voters,
    /// learners.
    pub(super) members: Vec<PeerId>,
    /// Replicas that have asked this one and are no members here, or not in that place: one for each node at most.
    pub(super) strangers: Vec<PeerId>,
    /// How often the configuration had changed when that was last looked at.
    pub(super) changes: u64,
    /// So many of them have to be in sync for a write that wants a quorum.
    pub(super) min_insync_replicas: usize,
    /// How far each of them has followed, as known while this one leads; in the order of `members`.
    pub(super) progress: Vec<Progress>,
    /// The commits of the journal that hold the entries behind the group's start, in their order.
    pub(super) lsns: VecDeque<u64>,
    /// The last entry that the segments hold.
    pub(super) flushed: Position,
    /// Outputs whose frames are laid down and not durable, oldest first.
    pub(super) laid: VecDeque<LaidOutput>,
    /// Produces that wait for a write quorum, in the order of their offsets.
    pub(super) waiting: VecDeque<Pending>,
    /// Records below this are committed, as it was last told to those who read.
    pub(super) high_watermark: i64,
    /// Records below this are held by a write quorum, which may be more than a commit takes, as it was last told to those who
    /// wait; known anew by each leadership.
    pub(super) acknowledged: i64,
    /// Whether it led when that was last looked at.
    pub(super) led: bool,
    /// Its leadership is being given to another one.
    pub(super) handing_over: bool,
    /// Leader and term as they were last told.
    pub(super) told: (u32, u32),
    /// Its replicas are to be others.
    pub(super) moves: Option<Moving>,
    /// It gets batches from its leader's segments.
    pub(super) catch_up: Option<Box<CatchUp>>,
    /// On the engine's list of groups that may have something to do.
    pub(super) queued: bool,
    /// The earliest of its timers; `u64::MAX` = none is set.
    pub(super) timer_us: u64,
    /// When it last took a batch, monotonic microseconds: a group that took none for a while falls quiet.
    pub(super) active_us: u64,
}

impl Unplaced {
    fn position(&self, index: u64) -> Option<Position> {
        let start = self.log.start;
        if index == start.index {
            return Some(start);
        }
        let at = usize::try_from(index.checked_sub(start.index + 1)?).ok()?;
        let header = self.log.headers.get(at)?;
        Some(Position { index, term: header.term, offset: header.next_offset })
    }

    /// The place behind the last entry.
    pub(super) fn end(&self) -> Position {
        self.position(self.log.start.index + self.log.headers.len() as u64).unwrap_or(self.log.start)
    }

    /// The place behind the entry `index`, if it is held.
    pub(super) fn behind(&self, index: u64) -> Option<Position> {
        self.position(index)
    }

    /// Who the replicas are by its newest entry that says so, committed or not.
    pub(super) fn newest_configuration(&self) -> &Configuration {
        let first = &self.log.configuration;
        let newest = self.log.configurations.last().map_or(first, |(_, said)| said);
        // One that was forced does not come of the entries.
        if first.is_forced() && first.version() > newest.version() { first } else { newest }
    }

    /// Forgets the entries from `index` on.
    pub(super) fn cut(&mut self, index: u64) {
        let keep = index.saturating_sub(self.log.start.index + 1) as usize;
        self.log.headers.truncate(keep);
        self.log.configurations.retain(|(known, _)| *known < index);
        self.lsns.truncate(keep);
    }

    /// Forgets everything that is not in segments, but not the term.
    pub(super) fn forget(&mut self) {
        self.cut(self.log.start.index + 1);
        self.log.hard.commit = self.log.start.index;
        self.newest = (0, 0);
    }

    /// Committed for sure: what the segments hold, and what a leader was known to have committed.
    fn high_watermark(&self) -> i64 {
        let known = self.position(self.log.hard.commit.min(self.end().index));
        known.map_or(self.log.start.offset, |position| position.offset.max(self.log.start.offset))
    }

    /// The segments hold everything committed below `flushed_to`: the log begins behind it.
    pub(super) fn note_flushed(&mut self, flushed_to: i64) {
        let commit = self.log.hard.commit.min(self.end().index);
        let flushed = self.log.headers.iter().zip(self.log.start.index + 1..);
        let flushed =
            flushed.take_while(|(header, index)| *index <= commit && header.next_offset <= flushed_to);
        let count = flushed.count();
        if let Some(start) = self.position(self.log.start.index + count as u64) {
            self.log.start = start;
            self.log.headers.drain(..count);
            self.lsns.drain(..count);
            let before = self.log.configurations.partition_point(|(index, _)| *index <= start.index);
            if let Some((_, newest)) = self.log.configurations.drain(..before).next_back() {
                self.log.configuration = newest;
            }
        }
    }
}

impl RaftReplica {
    /// The commit of the journal that holds an entry.
    fn lsn(&self, index: u64) -> Option<u64> {
        let at = index.checked_sub(self.raft.start().index + 1)?;
        self.lsns.get(usize::try_from(at).ok()?).copied()
    }

    /// Whether the journal has been given every entry that is held.
    pub(super) fn has_laid_all(&self) -> bool {
        self.lsns.len() as u64 == self.raft.last_index() - self.raft.start().index
    }

    /// The entry `index` is laid into the commit `lsn`; what was there and behind is gone.
    pub(super) fn note_laid(&mut self, index: u64, lsn: u64) {
        let keep = index.saturating_sub(self.raft.start().index + 1) as usize;
        self.lsns.truncate(keep);
        debug_assert_eq!(self.lsns.len(), keep, "entries are laid down without gaps");
        self.lsns.push_back(lsn);
    }

    /// The segments hold everything committed below `flushed_to` that the commits up to `cut` hold.
    pub(super) fn note_flushed(&mut self, flushed_to: i64, cut: u64) {
        let commit = self.raft.commit();
        loop {
            let index = self.flushed.index + 1;
            let Some(next) = self.raft.position(index) else { return };
            if index > commit || next.offset > flushed_to || self.lsn(index).is_none_or(|lsn| lsn > cut) {
                return;
            }
            self.flushed = next;
        }
    }

    /// Puts a batch of `records` at the end of the log. Returns its entry.
    pub(super) fn propose(&mut self, now_us: u64, records: u32, bytes: u32) -> Result<u64, Refusal> {
        if now_us.saturating_sub(self.active_us) >= IDLE_US {
            // Nobody has looked while the group was quiet: who has everything until now is not behind with this batch.
            self.note_progress(now_us);
        }
        self.active_us = now_us;
        let proposed = self.raft.propose(now_us, records, bytes);
        proposed.map(|proposed| proposed.index).map_err(|error| (ErrorCode::NotLeader, error.to_string()))
    }

    /// Has a produce wait for a write quorum.
    pub(super) fn wait(&mut self, pending: Pending) {
        let at = self.waiting.partition_point(|other| other.next_offset() <= pending.next_offset());
        self.waiting.insert(at, pending);
    }

    /// Takes notice of what a write quorum holds, as far as this replica can know.
    pub(super) fn note_acknowledged(&mut self) {
        if let Some(offset) = self.raft.acknowledged_offset() {
            self.acknowledged = offset.max(self.acknowledged);
        }
    }

    /// This replica leads now.
    pub(super) fn begin_leading(&mut self, now_us: u64) {
        self.acknowledged = 0;
        self.begin_progress(now_us);
    }

    /// Gives its leadership to the replica on `node`.
    pub(super) fn hand_over(&mut self, node: u32, now_us: u64) {
        self.raft.transfer(node, now_us);
        self.handing_over = self.raft.is_leader();
    }

    /// Keeps its leadership: nobody has taken it in time.
    pub(super) fn keep_leading(&mut self) {
        self.raft.abort_transfer();
        self.handing_over = false;
    }

    /// Whether its log goes through this place. What it holds behind it may be committed, and it may have answered for it:
    /// that must not be given up for a log that begins there.
    pub(super) fn holds(&self, place: Position) -> bool {
        self.raft.position(place.index).is_some_and(|held| held.term == place.term)
    }

    /// Forgets the entries before `index` that the segments hold. Followers that lack them begin at a snapshot.
    pub(super) fn compact_below(&mut self, index: u64) {
        let before = self.raft.start().index;
        self.raft.compact(self.flushed.index.min(index.saturating_sub(1)));
        let gone = self.raft.start().index.saturating_sub(before) as usize;
        self.lsns.drain(..gone.min(self.lsns.len()));
    }

    /// Who the replicas are by the newest entry that says so, committed or not.
    pub(super) fn newest_configuration(&self) -> &Configuration {
        self.raft.configuration_behind(self.raft.last_index())
    }

    /// The shards of those whose voices count, each once.
    pub(super) fn voters(&self) -> impl Iterator<Item = PeerId> + '_ {
        let configuration = self.raft.configuration();
        self.members.iter().copied().filter(|member| configuration.is_voter(member.node.0))
    }

    /// Whether a message of another shard counts. Who asks may be one that this replica has not heard of yet, or know it in another
    /// place: it is answered where it asks. Who answers is in the place where this one knows it, or it has moved away from there.
    pub(super) fn is_heard(&mut self, from: PeerId, message: &Message) -> bool {
        let known = self.member(from.node.0) == Some(from);
        if message.kind.is_answer() {
            return known;
        }
        self.strangers.retain(|stranger| stranger.node != from.node);
        if !known {
            self.strangers.push(from);
        }
        true
    }

    /// Where a message to `node` goes: an answer to where it was asked, everything else to the member there.
    pub(super) fn place_of(&self, node: u32, answers: bool) -> Option<PeerId> {
        let strangers = self.strangers.iter().filter(|_| answers);
        strangers.copied().find(|stranger| stranger.node.0 == node).or_else(|| self.member(node))
    }

    /// The shard of the replica on `node`.
    pub(super) fn member(&self, node: u32) -> Option<PeerId> {
        self.members.iter().copied().find(|member| member.node.0 == node)
    }
}

impl Replica {
    /// The leader's epoch.
    pub(super) fn epoch(&self) -> u32 {
        match self {
            Self::Single(single) => single.epoch(),
            Self::Unplaced(unplaced) => unplaced.log.hard.term,
            Self::Raft(replica) => replica.raft.term(),
        }
    }

    /// Records below this are committed.
    pub(super) fn high_watermark(&self) -> i64 {
        match self {
            Self::Single(single) => single.high_watermark(),
            Self::Unplaced(unplaced) => unplaced.high_watermark(),
            Self::Raft(replica) => replica.high_watermark,
        }
    }

    /// This shard's journal holds the log below `log_end`. Several replicas are told by their outputs instead.
    pub(super) fn persisted(&mut self, log_end: i64) {
        if let Self::Single(single) = self {
            single.persisted(log_end);
        }
    }

    /// The oldest commit of the journal that the segments do not replace yet, on behalf of several replicas: an
    /// entry may still be cut off, so it can't be in a segment.
    pub(super) fn oldest_needed_lsn(&self) -> Option<u64> {
        match self {
            Self::Single(_) => None,
            Self::Unplaced(unplaced) => unplaced.lsns.iter().min().copied(),
            Self::Raft(replica) => {
                let flushed = replica.flushed.index.saturating_sub(replica.raft.start().index);
                replica.lsns.iter().skip(flushed as usize).min().copied()
            }
        }
    }

    /// Of several replicas: the last entry that the segments hold.
    pub(super) fn in_segments(&self) -> Option<Position> {
        match self {
            Self::Single(_) => None,
            Self::Unplaced(unplaced) => Some(unplaced.log.start),
            Self::Raft(replica) => Some(replica.flushed),
        }
    }

    /// Of several replicas: the offset behind the last entry that the segments hold.
    pub(super) fn segments_end(&self) -> Option<i64> {
        self.in_segments().map(|last| last.offset)
    }

    /// Of several replicas: the entries that the flusher leaves in the journal, as they may still be cut off.
    pub(super) fn held_back_entries(&self) -> std::ops::Range<u64> {
        match self {
            Self::Single(_) => 0..0,
            Self::Unplaced(unplaced) => unplaced.log.start.index + 1..unplaced.end().index + 1,
            Self::Raft(replica) => {
                let written_out = match replica.catch_up {
                    // What it gets goes behind the segments that are there.
                    Some(_) => replica.flushed.index,
                    None => replica.flushed.index.max(replica.raft.acknowledged()),
                };
                written_out + 1..replica.raft.last_index() + 1
            }
        }
    }

    /// The oldest commit of the journal that holds one of [`Self::held_back_entries`].
    pub(super) fn oldest_held_back_lsn(&self) -> Option<u64> {
        match self {
            Self::Raft(replica) => {
                let before = self.held_back_entries().start - 1 - replica.raft.start().index;
                replica.lsns.range((before as usize).min(replica.lsns.len())..).min().copied()
            }
            _ => self.oldest_needed_lsn(),
        }
    }

    /// Of several replicas: an entry.
    pub(super) fn header(&self, index: u64) -> Option<Header> {
        match self {
            Self::Single(_) => None,
            Self::Unplaced(unplaced) => {
                let at = usize::try_from(index.checked_sub(unplaced.log.start.index + 1)?).ok()?;
                unplaced.log.headers.get(at).copied()
            }
            Self::Raft(replica) => replica.raft.header(index).copied(),
        }
    }

    /// Of several replicas: who they are from the entry `index` on, if it says that.
    pub(super) fn configuration_at(&self, index: u64) -> Option<&Configuration> {
        match self {
            Self::Single(_) => None,
            Self::Unplaced(unplaced) => {
                let mut said = unplaced.log.configurations.iter();
                said.find(|(at, _)| *at == index).map(|(_, configuration)| configuration)
            }
            Self::Raft(replica) => replica.raft.configuration_at(index),
        }
    }

    /// The entry `index` is laid into the commit `lsn` once more.
    pub(super) fn note_laid_again(&mut self, index: u64, lsn: u64) {
        let (start, lsns) = match self {
            Self::Single(_) => return,
            Self::Unplaced(unplaced) => (unplaced.log.start.index, &mut unplaced.lsns),
            Self::Raft(replica) => (replica.raft.start().index, &mut replica.lsns),
        };
        if let Some(known) = lsns.get_mut(index.saturating_sub(start + 1) as usize) {
            *known = lsn;
        }
    }

    /// Whether the group's log begins behind what the segments hold up to `flushed_to`: of what the only replica had before it
    /// became a group some is on its way to them.
    pub(super) fn begins_behind(&self, flushed_to: i64) -> bool {
        self.in_segments().is_some_and(|last| last.index == FIRST_INDEX && last.offset > flushed_to)
    }

    /// What a checkpoint holds of one of several, when the segments hold what is below `flushed_to`.
    pub(super) fn checkpoint(&self, entries_from_lsn: u64, flushed_to: i64) -> Option<ReplicatedCheckpoint> {
        if self.begins_behind(flushed_to) {
            // The frame with which it begins comes behind what the checkpoint holds.
            return None;
        }
        let (vote, start, configuration, made_after) = match self {
            Self::Single(_) => return None,
            Self::Unplaced(unplaced) => {
                let log = &unplaced.log;
                (log.hard.vote, log.start, &log.configuration, log.made_after)
            }
            Self::Raft(replica) => {
                let start = replica.flushed;
                let raft = &replica.raft;
                (raft.vote(), start, raft.configuration_behind(start.index), raft.made_after())
            }
        };
        let (start_index, start_term) = (start.index, start.term);
        let replicas = (!configuration.is_unknown()).then(|| (configuration.clone(), made_after));
        Some(ReplicatedCheckpoint { vote, start_index, start_term, entries_from_lsn, replicas })
    }

    /// As the disk has it; a group that was opened and never written to is empty.
    pub(super) fn unplaced_mut(&mut self) -> Option<&mut Unplaced> {
        if let Self::Single(_) = self {
            *self = Self::Unplaced(Box::default());
        }
        match self {
            Self::Unplaced(unplaced) => Some(unplaced),
            Self::Single(_) | Self::Raft(_) => None,
        }
    }

    /// The one of several.
    pub(super) fn raft(&self) -> Option<&RaftReplica> {
        match self {
            Self::Raft(replica) => Some(replica),
            Self::Single(_) | Self::Unplaced(_) => None,
        }
    }

    /// The one of several.
    pub(super) fn raft_mut(&mut self) -> Option<&mut RaftReplica> {
        match self {
            Self::Raft(replica) => Some(replica),
            Self::Single(_) | Self::Unplaced(_) => None,
        }
    }
}
