//! A follower that lacks entries which its leader does not hold any more gets the batches before them from the leader's
//! segments, straight into segments of its own, and then begins anew behind them.
//!
//! The leader says where its entries begin (a snapshot of nothing but a place). The follower asks for committed batches
//! up to there, from behind its own segments on; the leader answers as it answers a consumer, without touching its
//! tail. While an answer is written the next one is on its way. When all are durable here the replica is put aside: a checkpoint says that its log begins at that place and
//! that what the journal holds of it so far means nothing; when that is durable the replica takes part again. Until
//! then it promises nothing, and a crash leaves it as it was before.
//!
//! What is committed is the same everywhere: where the leader can't read its segments, the others are asked in turn.

use pyralog_core::batch::BatchView;
use pyralog_core::{GroupId, NodeId, ShardId};
use pyralog_replication::metadata::Command;
use pyralog_replication::raft::{
    Configuration, EntryHead, EntryKind, HardState, Message, MessageKind, Position, RecoveredLog,
};

use smallvec::SmallVec;

use crate::format::checkpoint::ProducerCheckpoint;
use crate::memory::ChunkSlice;

use super::api::{ConnId, IoErrorKind, IoResult, IoToken, LogLevel, PeerId};
use super::catch_up_writes::{Run, SegmentWrites};
use super::controller::commands;
use super::fetch::Slices;
use super::outbox::ENTRIES_PER_MESSAGE;
use super::partition::Told;
use super::producers::Producers;
use super::recovery_rate::{Share, Turn};
use super::replica::{Replica, Unplaced};
use super::{Action, Engine};

/// Questions of a catch-up under way at once: as many as keep the disks of both ends and what is between them busy.
const QUESTIONS: u64 = 4;
/// So much may be on its way here or wait to be written, bytes.
const IN_FLIGHT_BYTES: usize = 4 << 20;
/// An answer that did not come for so long was lost, microseconds: the follower asks again when the leader tells it again
/// where to begin.
const ANSWER_WITHIN_US: u64 = 3_000_000;
/// Connections of this number and above are no client's: the shard of another node asks.
const PEERS: u64 = 1 << 63;

/// A catch-up under way.
#[derive(Debug)]
pub(super) struct CatchUp {
    leader: PeerId,
    /// The term in which it said where to begin. What it told the replica that was here before this one may come first.
    term: u32,
    /// Who is asked: the leader, until it can't read what is wanted.
    source: PeerId,
    /// So many could not.
    refusals: usize,
    /// Where the leader's entries begin.
    target: Position,
    /// Who the replicas are there.
    configuration: Configuration,
    /// Offset of the next record to ask for: those before it have come.
    next: i64,
    /// The leader's log begins later than the own segments end: those are dropped.
    log_start: Option<i64>,
    /// What is known of producers from before there has to be asked for.
    wants_producers: bool,
    writes: SegmentWrites,
    producers: Producers,
    /// Of the metadata group: the commands in what was fetched.
    commands: Vec<(i64, Command)>,
    stage: Stage,
    /// It waits for its turn to ask.
    waits: bool,
    /// Questions that are not answered yet.
    asked: u64,
    /// Where it began, and what has come since, bytes: they tell how much will come.
    began_at: i64,
    came: u64,
    changed_us: u64,
    /// The link to who was asked broke since.
    lost: bool,
    /// What of it is on its way or not written yet.
    share: Share,
}

#[derive(Debug)]
enum Stage {
    /// Batches are asked for.
    Fetching,
    /// All has come, and is written.
    Writing,
    /// It is given up for this reason, or because nobody needs it any more, when nothing of it is on its way to the disk.
    Ending { why: Option<String> },
    /// Everything is there; the replica is put aside when nothing of it is on its way to the journal.
    Done,
}

/// The other shard that a request came from, if no client sent it.
fn peer_of(conn: ConnId) -> Option<PeerId> {
    let number = conn.0.checked_sub(PEERS)?;
    Some(PeerId { node: NodeId((number >> 16) as u32), shard: ShardId(number as u16) })
}

/// Whether another shard asks, not a client.
pub(super) fn is_peer(conn: ConnId) -> bool {
    peer_of(conn).is_some()
}

/// What the other shard asks is named so, 0 to catch up; 15 bits.
fn question_of(conn: ConnId) -> u64 {
    conn.0 >> 48 & 0x7fff
}

pub(super) fn conn_of(peer: PeerId, question: u64) -> ConnId {
    ConnId(PEERS | (question & 0x7fff) << 48 | u64::from(peer.node.0) << 16 | u64::from(peer.shard.0))
}

impl Engine {
    /// Answers a request of another shard. False: a client sent it.
    pub(super) fn answer_peer(&mut self, conn: ConnId, name: u64, slices: Option<&Slices>) -> bool {
        let Some(peer) = peer_of(conn) else { return false };
        let group = GroupId::new((name >> 32) as u32, name as u32);
        let Some(partition) = self.find(group).and_then(|index| self.at(index)) else { return true };
        let (node, term) = (self.config.node.0, partition.replica.epoch());
        let mut message = Message::new(MessageKind::Batches, group, node, peer.node.0, term);
        message.offset = partition.log_start;
        message.read = question_of(conn);
        message.reject = slices.is_none();
        let mut batches = SmallVec::new();
        for slice in slices.into_iter().flatten() {
            // As many as one message may name; the follower asks for the rest.
            let room = ENTRIES_PER_MESSAGE - message.entries.len();
            let entries: Vec<EntryHead> = heads(slice.bytes()).take(room).collect();
            let bytes: usize = entries.iter().map(|entry| entry.bytes as usize).sum();
            message.entries.extend(entries);
            batches.push(slice.slice(0, bytes));
            if bytes < slice.len() {
                break;
            }
        }
        if message.read == 0 {
            self.replication.answers.answered(peer, &message);
        }
        self.replication.outbox.add(peer, message, batches);
        true
    }

    // --- the follower's part -----------------------------------------------------------------------------

    /// The leader's entries begin behind what this replica holds. False: nothing has to be fetched for that.
    pub(super) fn begin_catch_up(&mut self, index: u32, from: PeerId, message: &Message) -> bool {
        let now_us = self.now.monotonic_us;
        let Some(partition) = self.at(index) else { return true };
        let Some(replica) = partition.replica.raft() else { return true };
        let target = Position { index: message.index, term: message.log_term, offset: message.offset };
        if message.term < replica.raft.term()
            || message.index <= replica.raft.commit()
            || replica.holds(target)
        {
            return false;
        }
        let stuck = replica.catch_up.as_ref().map(|under_way| under_way.is_stuck(now_us));
        let group = partition.group;
        if stuck == Some(false) || self.flush.busy_with(group) {
            self.flush.hurry(group);
            return true;
        }
        // Another one may write to the same files.
        if self.catches_up(group) {
            return true;
        }
        let Some(configuration) = message.configurations.first().filter(|said| said.check().is_ok()) else {
            return true;
        };
        if self.go_on(index, from, message.term, target, configuration) {
            return true;
        }
        let Some(partition) = self.at(index) else { return true };
        let all_there = message.offset <= partition.flushed_to;
        let share = self.recovery_rate.share();
        let mut producers = partition.producers.clone();
        producers.undo(partition.flushed_to);
        let catch_up = CatchUp {
            leader: from,
            term: message.term,
            source: from,
            refusals: 0,
            target,
            configuration: configuration.clone(),
            next: partition.flushed_to,
            log_start: None,
            wants_producers: false,
            writes: SegmentWrites::new(group),
            producers,
            commands: Vec::new(),
            stage: if all_there { Stage::Done } else { Stage::Fetching },
            waits: false,
            asked: 0,
            began_at: partition.flushed_to,
            came: 0,
            changed_us: now_us,
            lost: false,
            share,
        };
        if let Some(replica) = self.raft_mut(index) {
            replica.catch_up = Some(Box::new(catch_up));
        }
        self.counters.replication.catch_ups += 1;
        match all_there {
            true => self.queue_group(index),
            false => self.ask(index),
        }
        true
    }

    /// What a catch-up wanted last was lost: asks again, and nothing that came before is fetched twice. False: there is none,
    /// or the leader's entries do not begin behind what it has fetched.
    fn go_on(
        &mut self,
        index: u32,
        from: PeerId,
        term: u32,
        target: Position,
        configuration: &Configuration,
    ) -> bool {
        let Some(replica) = self.raft_mut(index) else { return false };
        let Some(catch_up) = &mut replica.catch_up else { return false };
        if target.offset <= catch_up.next {
            return false;
        }
        (catch_up.leader, catch_up.source, catch_up.refusals) = (from, from, 0);
        catch_up.term = term;
        (catch_up.target, catch_up.configuration) = (target, configuration.clone());
        self.ask_anew(index);
        true
    }

    /// What this shard and another one had on the way to each other may be lost: whoever asked it for batches need not wait.
    pub(super) fn answers_lost(&mut self, peer: PeerId) {
        let replicas = self.partitions.iter_mut().flatten().filter_map(|p| p.replica.raft_mut());
        for catch_up in replicas.filter_map(|replica| replica.catch_up.as_mut()) {
            if catch_up.source == peer && catch_up.asked > 0 {
                catch_up.lost = true;
                catch_up.account(0);
            }
        }
    }

    /// Asks for what comes next as if nothing had been asked for.
    fn ask_anew(&mut self, index: u32) {
        if let Some(catch_up) = self.raft_mut(index).and_then(|replica| replica.catch_up.as_mut()) {
            (catch_up.asked, catch_up.lost) = (0, false);
        }
        self.ask(index);
    }

    /// Asks for the next batches, when it is its turn, if there is room for more.
    fn ask(&mut self, index: u32) {
        let (now_us, bytes) = (self.now.monotonic_us, self.recovery_ask_bytes());
        let Some(group) = self.at(index).map(|partition| partition.group) else { return };
        let Some(replica) = self.raft_mut(index) else { return };
        let Some(catch_up) = &mut replica.catch_up else { return };
        if catch_up.waits || !catch_up.wants_more(bytes) {
            return;
        }
        catch_up.changed_us = now_us;
        if group == GroupId::METADATA {
            return self.ask_now(index);
        }
        catch_up.waits = true;
        self.recovery_rate.wait(Turn::CatchUp(group));
    }

    /// It is the turn of a group. False: it does not want it any more.
    pub(super) fn catch_up_turn(&mut self, group: GroupId) -> bool {
        let bytes = self.recovery_ask_bytes();
        let Some(index) = self.find(group) else { return false };
        let catch_up = self.raft_mut(index).and_then(|replica| replica.catch_up.as_mut());
        let Some(catch_up) = catch_up.filter(|catch_up| catch_up.waits) else { return false };
        catch_up.waits = false;
        let wants = catch_up.wants_more(bytes);
        if wants {
            self.ask_now(index);
            self.ask(index);
        }
        wants
    }

    fn ask_now(&mut self, index: u32) {
        let (now_us, bytes) = (self.now.monotonic_us, self.recovery_ask_bytes());
        let node = self.config.node.0;
        let Some(group) = self.at(index).map(|partition| partition.group) else { return };
        let Some(replica) = self.raft_mut(index) else { return };
        let term = replica.raft.term();
        let Some(catch_up) = &mut replica.catch_up else { return };
        let to = catch_up.source;
        let kind = match catch_up.wants_producers {
            true => MessageKind::FetchProducers,
            false => MessageKind::FetchBatches,
        };
        let mut message = Message::new(kind, group, node, to.node.0, term);
        (message.offset, message.index) = (catch_up.next, bytes as u64);
        message.commit = catch_up.asked;
        (catch_up.asked, catch_up.changed_us) = (catch_up.asked + 1, now_us);
        catch_up.account(bytes);
        self.post_beside(to, message);
    }

    /// Asks another one for what the last one could not give. False: there is nobody left.
    fn ask_another(&mut self, index: u32) -> bool {
        let Some(next) = self.next_source(index) else { return false };
        if let Some(catch_up) = self.raft_mut(index).and_then(|replica| replica.catch_up.as_mut()) {
            (catch_up.source, catch_up.refusals) = (next, catch_up.refusals + 1);
        }
        self.ask_anew(index);
        true
    }

    /// The next member that can be reached, unless all others were asked.
    fn next_source(&self, index: u32) -> Option<PeerId> {
        let replica = self.at(index)?.replica.raft()?;
        let (catch_up, members) = (replica.catch_up.as_ref()?, &replica.members);
        let others = members.len() - 1;
        let at = members.iter().position(|member| *member == catch_up.source)?;
        let mut behind = members.iter().cycle().skip(at + 1).take(others);
        let reached = |member: &&PeerId| member.node != self.config.node && self.is_linked(**member);
        behind.find(reached).copied().filter(|_| catch_up.refusals + 1 < others)
    }

    fn give_up(&mut self, index: u32, why: &str, actions: &mut Vec<Action>) {
        self.end_catch_up(index, Some(why.to_owned()), actions);
    }

    /// Nothing may go to the partition's segments from elsewhere before what is on its way to them has arrived.
    pub(super) fn end_catch_up(&mut self, index: u32, why: Option<String>, actions: &mut Vec<Action>) {
        let Some(partition) = self.at_mut(index) else { return };
        let group = partition.group;
        let Some(replica) = partition.replica.raft_mut() else { return };
        let Some(catch_up) = &mut replica.catch_up else { return };
        if !catch_up.writes.is_idle() {
            catch_up.stage = Stage::Ending { why };
            return;
        }
        replica.catch_up = None;
        let Some(why) = why else { return };
        self.counters.replication.catch_ups_given_up += 1;
        let text =
            format!("partition {group} can't catch up with its leader now: {why}; it will be tried again");
        actions.push(Action::Log { level: LogLevel::Info, text });
    }

    /// Batches that were asked for: into the segment, as far as they lie before the leader's entries.
    pub(super) fn batches_came(
        &mut self,
        index: u32,
        from: PeerId,
        message: &Message,
        batches: &[u8],
        actions: &mut Vec<Action>,
    ) -> Result<(), String> {
        if self.repair_came(from, message, batches, actions) {
            return Ok(());
        }
        let now_us = self.now.monotonic_us;
        let catch_up = self.raft_mut(index).and_then(|replica| replica.catch_up.as_ref());
        let was_asked =
            catch_up.is_some_and(|catch_up| catch_up.has_asked(from) && !catch_up.wants_producers);
        if message.group() != GroupId::METADATA {
            self.recovery_came(batches.len(), was_asked);
        }
        let Some(replica) = self.raft_mut(index).filter(|_| was_asked) else { return Ok(()) };
        let Some(catch_up) = &mut replica.catch_up else { return Ok(()) };
        let by_leader = from == catch_up.leader;
        if message.offset > catch_up.next && catch_up.writes.is_empty() && by_leader {
            // Retention has taken what comes next, so also everything that is here; it may have come further than to where
            // the leader's entries begin.
            let from = message.offset.min(catch_up.target.offset);
            (catch_up.next, catch_up.log_start) = (from, Some(from));
            // Who wrote what is gone is known to others only. Nobody writes to the metadata in sessions.
            catch_up.wants_producers = message.group() != GroupId::METADATA;
            catch_up.began_at = from;
            self.go_on_behind_what_is_gone(index);
            return Ok(());
        }
        if message.offset > catch_up.next && by_leader {
            self.give_up(index, "the leader's log begins behind what was fetched by now", actions);
            return Ok(());
        }
        if message.reject {
            if !self.ask_another(index) {
                self.give_up(index, "nobody who can be reached can read them", actions);
            }
            return Ok(());
        }
        if message.entries.first().is_some_and(|entry| entry.base_offset != catch_up.next) {
            // Asked for twice, and the first answer was only late, or asked for before this replica began anew.
            return Ok(());
        }
        (catch_up.asked, catch_up.changed_us) = (catch_up.asked - 1, now_us);
        let runs = runs(&message.entries, catch_up.next, catch_up.target.offset)?;
        if runs.is_empty() {
            self.give_up(index, "it came to nothing", actions);
            return Ok(());
        }
        let mut rest = batches;
        for (run, bytes) in runs {
            let (batches, later) =
                rest.split_at_checked(bytes).ok_or("the batches end before their entries")?;
            rest = later;
            if !self.keep_batches(index, run, batches)? {
                self.give_up(index, "no memory is free", actions);
                return Ok(());
            }
        }
        self.write_on(index, actions);
        Ok(())
    }

    /// What another replica knows of producers whose batches are gone.
    pub(super) fn take_producers(&mut self, index: u32, producers: &[ProducerCheckpoint], now_us: u64) {
        let Some(catch_up) = self.raft_mut(index).and_then(|replica| replica.catch_up.as_mut()) else {
            return;
        };
        producers.iter().for_each(|producer| catch_up.producers.restore(producer, now_us));
        catch_up.wants_producers = false;
        self.go_on_behind_what_is_gone(index);
    }

    /// Asks for what is still there, if anything is.
    fn go_on_behind_what_is_gone(&mut self, index: u32) {
        let Some(catch_up) = self.raft_mut(index).and_then(|replica| replica.catch_up.as_mut()) else {
            return;
        };
        if catch_up.wants_producers || catch_up.next < catch_up.target.offset {
            self.ask_anew(index);
        } else {
            catch_up.stage = Stage::Done;
            self.queue_group(index);
        }
    }

    /// Has batches written. False: there is no memory for them.
    fn keep_batches(&mut self, index: u32, run: Run, batches: &[u8]) -> Result<bool, String> {
        let (now, bound) = (self.now, self.config.segment_max_bytes);
        let Some(chunk) = self.misc_pool.chunk(batches.len()) else { return Ok(false) };
        chunk.append(batches);
        let Some(partition) = self.at_mut(index) else { return Ok(true) };
        let metadata = partition.group == GroupId::METADATA;
        let Some(catch_up) = partition.replica.raft_mut().and_then(|replica| replica.catch_up.as_mut())
        else {
            return Ok(true);
        };
        let max_timestamp = catch_up.note(batches, metadata, now.monotonic_us)?;
        let data = ChunkSlice::new(chunk, 0, batches.len());
        catch_up.writes.take(Run { max_timestamp, ..run }, data, bound, now.wall_ms);
        (catch_up.next, catch_up.came) = (run.end, catch_up.came + batches.len() as u64);
        if run.end >= catch_up.target.offset {
            // What was asked for beyond it is not waited for.
            (catch_up.stage, catch_up.asked) = (Stage::Writing, 0);
        }
        self.counters.replication.catch_up_bytes += batches.len() as u64;
        Ok(true)
    }

    /// Goes on with what a catch-up writes, and with what it asks for while there is room for that.
    fn write_on(&mut self, index: u32, actions: &mut Vec<Action>) {
        let most = self.recovery_ask_bytes();
        let (write, flush) = (self.next_token(), self.next_token());
        let Some(partition) = self.at_mut(index) else { return };
        let group = partition.group;
        let Some(catch_up) = partition.replica.raft_mut().and_then(|replica| replica.catch_up.as_mut())
        else {
            return;
        };
        let is_all = matches!(catch_up.stage, Stage::Writing);
        let ops = [
            (write, catch_up.writes.next_write(write, most, is_all)),
            (flush, catch_up.writes.next_sync(flush, is_all)),
        ];
        catch_up.account(most);
        let done = is_all && catch_up.writes.is_durable();
        if done {
            catch_up.stage = Stage::Done;
        }
        for (token, op) in ops.into_iter().filter_map(|(token, op)| Some((token, op?))) {
            self.replication.catch_up_io.insert(token, group);
            actions.push(Action::Io { token, op });
        }
        self.ask(index);
        if done {
            self.queue_group(index);
        }
    }

    /// An operation of a catch-up ended. False: it is none of them.
    pub(super) fn catch_up_io_done(
        &mut self,
        token: IoToken,
        result: &IoResult,
        actions: &mut Vec<Action>,
    ) -> bool {
        let Some(group) = self.replication.catch_up_io.remove(&token) else { return false };
        let Some(index) = self.find(group) else {
            self.delete_what_waits(group, actions);
            return true;
        };
        let Some(catch_up) = self.raft_mut(index).and_then(|replica| replica.catch_up.as_mut()) else {
            return true;
        };
        catch_up.writes.ended(token);
        match result {
            Ok(_) => {}
            Err(error) if error.kind == IoErrorKind::NoSpace => self.give_up(index, &error.detail, actions),
            Err(error) => {
                self.fence(&error.detail, actions);
                return true;
            }
        }
        self.after_write(index, actions);
        true
    }

    fn after_write(&mut self, index: u32, actions: &mut Vec<Action>) {
        let Some(catch_up) = self.raft_mut(index).and_then(|replica| replica.catch_up.as_mut()) else {
            return;
        };
        let is_idle = catch_up.writes.is_idle();
        match &mut catch_up.stage {
            Stage::Ending { why } if is_idle => {
                let why = why.take();
                self.end_catch_up(index, why, actions);
            }
            Stage::Ending { .. } => {}
            _ => self.write_on(index, actions),
        }
        if is_idle {
            // It may have become needless meanwhile.
            self.queue_group(index);
        }
    }

    /// Whether operations of a catch-up of the group are on their way.
    pub(super) fn catches_up(&self, group: GroupId) -> bool {
        self.replication.catch_up_io.values().any(|other| *other == group)
    }

    /// When everything is there and nothing of the replica is on its way to the journal: puts it aside.
    pub(super) fn settle_catch_up(&mut self, index: u32, actions: &mut Vec<Action>) {
        let next_lsn = self.journal.next_lsn();
        let after_seq = self.flush.seq_of_next_checkpoint();
        let Some(partition) = self.at_mut(index) else { return };
        let Replica::Raft(replica) = &mut partition.replica else { return };
        let Some(CatchUp { target, stage, .. }) = replica.catch_up.as_deref() else { return };
        let needless = target.index <= replica.raft.commit() || replica.holds(*target);
        match stage {
            Stage::Ending { .. } => return,
            // Another leader holds the entries. Nobody may answer any more, and nothing of the partition goes to segments meanwhile.
            _ if needless => return self.end_catch_up(index, None, actions),
            Stage::Done if replica.laid.is_empty() && !replica.queued => {}
            _ => return,
        }
        let Some(catch_up) = replica.catch_up.take() else { return };
        let CatchUp { term, target, configuration, log_start, mut writes, producers, commands, .. } =
            *catch_up;
        let configuration = replica.raft.newer_of(Some(&configuration));
        let (known, vote) = (replica.raft.term(), replica.raft.vote());
        let hard = HardState {
            term: term.max(known),
            vote: if term > known { 0 } else { vote },
            commit: target.index,
        };
        let made_after = replica.raft.made_after();
        let log = RecoveredLog { hard, start: target, configuration, made_after, ..RecoveredLog::default() };
        partition.replica = Replica::Unplaced(Box::new(Unplaced { log, ..Unplaced::default() }));
        partition.entries_from_lsn = next_lsn;
        partition.place_after_seq = after_seq;
        partition.told = Told::No;
        let unflushed: u64 = partition.unflushed().map(|batch| batch.data.len() as u64).sum();
        let cached = partition.tail.len();
        partition.tail.clear();
        let mut dropped = Vec::new();
        if let Some(log_start) = log_start {
            dropped.extend(partition.segments.drain(..).map(|segment| segment.base));
            partition.log_start = log_start;
            partition.damaged.clear();
        }
        // No more is added to the segment before them.
        if let Some(last) = partition.segments.back_mut() {
            last.index = None;
        }
        partition.segments.extend(writes.take_segments());
        (partition.flushed_to, partition.log_end) = (target.offset, target.offset);
        let (known, group) = (partition.producers.len(), partition.group);
        partition.producers = producers;
        self.producer_count = self.producer_count - known + self.at(index).map_or(0, |p| p.producers.len());
        self.cached_batches -= cached;
        self.recount_uncommitted(index);
        self.flush.note_cut(unflushed);
        for base in dropped {
            self.cold.forget_segment(group, base);
            self.flush.drop_segment(group, base);
        }
        self.flush.want_checkpoint();
        self.counters.replication.catch_ups_done += 1;
        if !commands.is_empty() {
            self.apply_fetched(&commands, actions);
        }
    }
}

impl CatchUp {
    /// Whether `source` was asked for the producers of batches below `offset`.
    pub(super) fn wants_producers_of(&self, source: PeerId, offset: i64) -> bool {
        self.has_asked(source) && self.wants_producers && self.next == offset
    }

    fn has_asked(&self, source: PeerId) -> bool {
        matches!(self.stage, Stage::Fetching) && self.asked > 0 && self.source == source
    }

    fn is_stuck(&self, now_us: u64) -> bool {
        let late = self.asked > 0 && now_us.saturating_sub(self.changed_us) > ANSWER_WITHIN_US;
        // After the link broke an answer may have come that was on its way, and nothing is asked for before it is told again.
        matches!(self.stage, Stage::Fetching) && (self.lost || late)
    }

    /// Tells how much is on its way, at so many bytes an answer, or waits to be written.
    fn account(&mut self, answer_bytes: usize) {
        self.share.set(self.asked as usize * answer_bytes + self.writes.unwritten());
    }

    /// Whether to ask for so many bytes more: they have room, and will be there as far as can be told.
    fn wants_more(&self, bytes: usize) -> bool {
        let asked = self.asked * bytes as u64;
        // By the records that have come.
        let left = (self.target.offset - self.next).max(0) as u128 * u128::from(self.came);
        let known = (self.next - self.began_at).max(1) as u128;
        matches!(self.stage, Stage::Fetching)
            && !self.lost
            && self.asked < if self.wants_producers { 1 } else { QUESTIONS }
            && self.writes.unwritten() as u64 + asked + bytes as u64 <= IN_FLIGHT_BYTES as u64
            && (self.asked == 0 || left > u128::from(asked) * known)
    }

    /// Notes the producers of batches. Returns the largest timestamp.
    fn note(&mut self, mut batches: &[u8], metadata: bool, now_us: u64) -> Result<i64, String> {
        let mut max_timestamp = i64::MIN;
        while !batches.is_empty() {
            let (batch, behind) = BatchView::parse(batches).map_err(|error| error.to_string())?;
            batches = behind;
            max_timestamp = max_timestamp.max(batch.max_timestamp());
            if metadata {
                self.commands.extend(commands(&batch)?);
            }
            self.producers.note_batch(&batch, batch.base_offset(), now_us, i64::MAX);
        }
        Ok(max_timestamp)
    }
}

/// What follows on `next` up to `target`, in runs of one term, as a segment holds them; with the bytes of each.
fn runs(entries: &[EntryHead], next: i64, target: i64) -> Result<SmallVec<[(Run, usize); 2]>, String> {
    let (mut end, mut runs) = (next, SmallVec::<[(Run, usize); 2]>::new());
    for entry in entries.iter().take_while(|entry| entry.next_offset <= target) {
        if entry.base_offset != end {
            return Err("batches that do not follow on one another".into());
        }
        end = entry.next_offset;
        match runs.last_mut() {
            Some((run, bytes)) if run.term == entry.term => {
                (run.end, *bytes) = (end, *bytes + entry.bytes as usize);
            }
            _ => {
                let (base, term) = (entry.base_offset, entry.term);
                runs.push((Run { base, end, term, max_timestamp: i64::MIN }, entry.bytes as usize));
            }
        }
    }
    Ok(runs)
}

/// What the batches in `bytes` are, one after the other.
pub(super) fn heads(mut bytes: &[u8]) -> impl Iterator<Item = EntryHead> + '_ {
    std::iter::from_fn(move || {
        let (batch, behind) = BatchView::parse(bytes).ok()?;
        let len = bytes.len() - behind.len();
        bytes = behind;
        Some(EntryHead {
            term: batch.leader_epoch(),
            kind: EntryKind::Batch as u8,
            base_offset: batch.base_offset(),
            next_offset: batch.last_offset() + 1,
            bytes: len as u32,
        })
    })
}
