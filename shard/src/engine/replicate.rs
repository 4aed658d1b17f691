//! Groups with several replicas: what they make of events, what of it goes to the journal, and what to the other shards.
//!
//! The way of a batch on the leader: `append` proposes it and lays it into the journal; at the end of the pass
//! [`Engine::pump`] takes the group's output, and the append leaves for the followers while the journal write is on its
//! way. On a follower: [`Engine::peer_frame`] steps the append and lays down what is new; the answer leaves when that is
//! durable. Back on the leader the commit moves, and with it the high watermark; who waited for it is answered.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use pyralog_core::batch::BatchView;
use pyralog_core::limits::{CHUNK_BYTES, COMMIT_TARGET_BYTES, JOURNAL_ALIGN};
use pyralog_core::{ErrorCode, GroupId, NodeId};
use pyralog_replication::raft::{
    Configuration, EntryKind, Header, MAX_CONFIGURATION_BYTES, Message, MessageKind, Output,
};

use crate::format::journal::{FrameHeader, FrameKind};

use super::api::{IoToken, Leadership, PeerId};
use super::campaigns::Campaigns;
use super::catch_up_answers::Answers;
use super::incoming::{Incoming, check_batches};
use super::links::LinkTable;
use super::outbox::Outbox;
use super::pending::Pending;
use super::replica::{LaidOutput, RaftReplica, Replica};
use super::shards::ShardCounts;
use super::uncommitted::UncommittedSums;
use super::{Action, Engine, LogLevel, Mode};

/// Room in the journal that is there before a group's output is taken: for its frames without batches.
pub(super) const SMALL_FRAMES_BYTES: usize = 4 << 10;
/// What an entry takes in the journal besides its batch.
const FRAME_BYTES: usize = 64;
/// A group that took no batch for so long falls quiet, microseconds: its heartbeats stop.
const QUIET_AFTER_US: u64 = 1_000_000;
/// Bytes at the front of a batch that its leader wrote, and everything behind: laid down in two parts.
const HEAD_BYTES: usize = 16;

/// What the groups of a shard share.
#[derive(Debug, Default)]
pub(super) struct Replication {
    /// Groups that may have something to do.
    queue: Vec<u32>,
    /// When groups want a tick; entries may be out of date, never too late.
    timers: BinaryHeap<Reverse<(u64, u32)>>,
    pub(super) outbox: Outbox,
    pub(super) campaigns: Campaigns,
    /// Replicas elsewhere that catch up with what is here.
    pub(super) answers: Answers,
    /// Operations of catch-ups under way.
    pub(super) catch_up_io: BTreeMap<IoToken, GroupId>,
    /// Links to other nodes.
    pub(super) links: LinkTable,
    /// How many shards they have.
    pub(super) shards: ShardCounts,
    /// Where the driver was told that nodes are.
    pub(super) addresses: BTreeMap<NodeId, String>,
    output: Output,
    /// Produces that wait for a high watermark, in all groups.
    waits: bool,
    pub(super) uncommitted: UncommittedSums,
    /// Replicas may be able to take part that were not before.
    pub(super) place_due: BTreeSet<GroupId>,
    /// Leaders that the node's shards have to be told.
    pub(super) leaders: Vec<Leadership>,
    /// Since this shard leads the metadata it has looked whether the feature level can be raised.
    saw_levels: bool,
    /// When to look again at groups that are on their way to other nodes.
    pub(super) moves_due_us: Option<u64>,
}

impl Engine {
    /// Has the next [`Self::pump`] look at the group.
    pub(super) fn queue_group(&mut self, index: u32) {
        let slot = self.partitions.get_mut(index as usize).and_then(Option::as_deref_mut);
        if let Some(replica) = slot.and_then(|partition| partition.replica.raft_mut())
            && !std::mem::replace(&mut replica.queued, true)
        {
            self.replication.queue.push(index);
        }
    }

    /// This node's replica of a group, if it takes part.
    pub(super) fn raft_of(&self, group: GroupId) -> Option<&RaftReplica> {
        self.at(self.find(group)?)?.replica.raft()
    }

    pub(super) fn raft_mut(&mut self, index: u32) -> Option<&mut RaftReplica> {
        self.at_mut(index)?.replica.raft_mut()
    }

    // --- events ------------------------------------------------------------------------------------------

    /// A frame of another shard: its messages one after the other, each with its batches.
    pub(super) fn peer_frame(
        &mut self,
        from: PeerId,
        control: &[u8],
        payload: &[u8],
        actions: &mut Vec<Action>,
    ) {
        // One that stops takes no appends any more when it has handed over, or its journal would never fall idle.
        let stops = self.mode == Mode::Stopping && self.hand_over_until_us.is_none();
        if stops || matches!(self.mode, Mode::Fenced(_) | Mode::Stopped) {
            return;
        }
        let messages = match pyralog_replication::raft::frame::decode(control) {
            Ok(messages) => messages,
            Err(error) => return self.distrust(from, &error.to_string(), actions),
        };
        let mut rest = payload;
        for message in &messages {
            let Some((batches, later)) = rest.split_at_checked(message.payload_bytes() as usize) else {
                return self.distrust(from, "the batches end before the messages do", actions);
            };
            rest = later;
            if message.from != from.node.0 {
                return self.distrust(from, "a message in the name of another node", actions);
            }
            if let Err(what) = self.peer_message(from, message, batches, actions) {
                self.distrust(from, &what, actions);
            }
        }
    }

    /// Something came that no correct peer sends: it is left out, and told.
    fn distrust(&mut self, from: PeerId, what: &str, actions: &mut Vec<Action>) {
        let text = format!("node {} shard {} sent what is not taken: {what}", from.node.0, from.shard);
        actions.push(Action::Log { level: LogLevel::Warn, text });
    }

    fn peer_message(
        &mut self,
        from: PeerId,
        message: &Message,
        batches: &[u8],
        actions: &mut Vec<Action>,
    ) -> Result<(), String> {
        // A group that is not here yet, or takes no part now, will be told again.
        let Some(index) = self.find(message.group()) else { return Ok(()) };
        match message.kind {
            MessageKind::RequestStanding => {
                self.standing_asked(index, from, message);
                return Ok(());
            }
            MessageKind::RequestStandingResponse => return self.standing_told(index, message),
            _ => {}
        }
        let Some(replica) = self.raft_mut(index) else { return Ok(()) };
        if !replica.is_heard(from, message) {
            return Ok(());
        }
        match message.kind {
            MessageKind::FetchProducers => {
                self.producers_asked(index, from, message);
                return Ok(());
            }
            MessageKind::Producers => return self.producers_came(index, from, message, batches),
            _ => check_batches(message, batches)?,
        }
        match message.kind {
            MessageKind::FetchBatches => {
                self.peer_fetch(from, message, actions);
                return Ok(());
            }
            MessageKind::Command => return self.command_came(from.node, batches),
            MessageKind::Batches => return self.batches_came(index, from, message, batches, actions),
            MessageKind::Snapshot if self.begin_catch_up(index, from, message) => return Ok(()),
            _ => {}
        }
        let cut;
        let (message, batches) = match self.entries_taken(message, batches) {
            all if all == message.entries.len() => (message, batches),
            // The leader sends the rest again.
            bare => {
                let mut first = message.clone();
                first.split_off(bare);
                cut = first;
                (&cut, &[][..])
            }
        };
        let appends = !message.entries.is_empty();
        let now_us = self.now.monotonic_us;
        #[cfg(feature = "planted-bugs")]
        let message = &self.planted_accept_old_terms(index, message);
        let Some(replica) = self.raft_mut(index) else { return Ok(()) };
        let is_stale = message.kind.is_from_leader() && message.term < replica.raft.term();
        let stepped = replica.raft.step(now_us, message).map_err(|refused| refused.to_string());
        if appends {
            replica.active_us = now_us;
            self.take_output(index, Some(Incoming::new(message, batches)), actions);
        }
        self.counters.replication.stale_messages += u64::from(is_stale);
        self.queue_group(index);
        stepped
    }

    #[cfg(feature = "planted-bugs")]
    fn planted_accept_old_terms(&mut self, index: u32, message: &Message) -> Message {
        let has_bug = self.has_bug(super::planted::PlantedBug::AcceptOldTerms);
        let term = self.raft_mut(index).map_or(0, |replica| replica.raft.term());
        match has_bug {
            true => Message { term: term.max(message.term), ..message.clone() },
            false => message.clone(),
        }
    }

    /// For how many of an append's entries there is room: for all, or for those without batches that it begins with. These
    /// take nothing of what is short. Nothing that a replica holds after a restart is known to be committed, however much it is,
    /// before a new leader's first entry is taken; and an append without entries still tells where both logs agree, and what
    /// of that is committed.
    fn entries_taken(&mut self, message: &Message, batches: &[u8]) -> usize {
        let all = message.entries.len();
        let configurations = message.configurations.len() * MAX_CONFIGURATION_BYTES;
        let frames = |entries: usize| entries * FRAME_BYTES + configurations + SMALL_FRAMES_BYTES;
        if all == 0
            || !batches.is_empty()
                && self.may_follow(batches.len())
                && self.takes(batches.len() + frames(all))
        {
            return all;
        }
        let bare = message.entries.iter().take_while(|entry| entry.bytes == 0).count();
        if self.has_room_for_frames(frames(bare)) { bare } else { 0 }
    }

    /// Whether so many bytes of frames find room, in the journal and with their batches in the cache.
    fn takes(&mut self, bytes: usize) -> bool {
        if self.cached_batches >= self.config.cache_batches() || !self.has_room_for_frames(bytes) {
            self.stall(super::journal::Full::Memory);
        }
        !self.stalled
    }

    fn has_room_for_frames(&self, bytes: usize) -> bool {
        match bytes <= CHUNK_BYTES / 2 {
            true => self.journal.has_room(&self.pool, bytes + commits_of(bytes) * JOURNAL_ALIGN),
            false => self.journal.has_room_for_all(&self.pool, bytes),
        }
    }

    pub(super) fn peer_up(&mut self, peer: PeerId) {
        let now_us = self.now.monotonic_us;
        self.replication.links.came_up(peer, now_us);
        self.plan_balance();
        if self.ask_due_us.is_some() {
            self.ask_due_us = Some(now_us);
        }
        self.answers_lost(peer);
        self.each_group_with(peer, |replica| replica.raft.peer_restarted(peer.node.0, now_us));
    }

    pub(super) fn is_linked(&self, peer: PeerId) -> bool {
        self.replication.links.is_up(peer)
    }

    /// Since when a link is up.
    pub(super) fn linked_since_us(&self, peer: PeerId) -> Option<u64> {
        self.replication.links.up_since_us(peer)
    }

    pub(super) fn peer_down(&mut self, peer: PeerId) {
        let now_us = self.now.monotonic_us;
        self.replication.links.went_down(peer, now_us);
        self.replication.answers.forget_peer(peer);
        self.answers_lost(peer);
        self.each_group_with(peer, |replica| replica.raft.link_lost(peer.node.0, now_us));
    }

    pub(super) fn peer_dropped(&mut self, peer: PeerId) {
        self.each_group_with(peer, |replica| replica.raft.not_sent(peer.node.0));
    }

    fn each_group_with(&mut self, peer: PeerId, mut each: impl FnMut(&mut RaftReplica)) {
        for index in 0..self.partitions.len() as u32 {
            if let Some(replica) = self.raft_mut(index).filter(|replica| replica.members.contains(&peer)) {
                each(replica);
                self.queue_group(index);
            }
        }
    }

    /// When the next group wants a tick.
    pub(super) fn groups_deadline_us(&self) -> Option<u64> {
        self.replication.timers.peek().map(|Reverse((due_us, _))| *due_us)
    }

    /// Ticks the groups whose time has come.
    pub(super) fn tick_groups(&mut self) {
        let now_us = self.now.monotonic_us;
        while let Some(Reverse((due_us, index))) = self.replication.timers.peek().copied() {
            if due_us > now_us {
                return;
            }
            self.replication.timers.pop();
            if let Some(replica) = self.raft_mut(index) {
                replica.timer_us = u64::MAX;
            }
            if self.lets_campaign(index) {
                self.tick_group(index);
            }
        }
    }

    fn tick_group(&mut self, index: u32) {
        let now_us = self.now.monotonic_us;
        let up: Vec<NodeId> = self.replication.links.up().map(|peer| peer.node).collect();
        let mut goodbyes = Vec::new();
        let Some(replica) = self.raft_mut(index) else { return };
        let idle = now_us.saturating_sub(replica.active_us) >= QUIET_AFTER_US;
        let reachable = |node: u32| up.iter().any(|up| up.0 == node);
        if !idle || !replica.raft.try_quiesce(reachable, &mut goodbyes) {
            replica.raft.tick(now_us);
        }
        for message in goodbyes {
            self.post(index, message);
        }
        self.queue_group(index);
    }

    /// The journal holds what a group laid down with the output of this number.
    pub(super) fn group_persisted(&mut self, index: u32, number: u64, actions: &mut Vec<Action>) {
        let Some(replica) = self.raft_mut(index) else { return };
        let (mut released, mut newest) = (Vec::new(), number);
        while replica.laid.front().is_some_and(|laid| laid.number <= number)
            && let Some(laid) = replica.laid.pop_front()
        {
            newest = laid.newest.max(newest);
            released.extend(laid.messages);
        }
        if let Err(error) = replica.raft.persisted(newest) {
            return self.fence(&format!("a replica of the shard failed: {error}"), actions);
        }
        for message in released {
            self.post(index, message);
        }
        self.queue_group(index);
    }

    // --- the end of a pass -------------------------------------------------------------------------------

    /// Takes what the groups have to do, and sends what is to be sent.
    pub(super) fn pump(&mut self, actions: &mut Vec<Action>) {
        while let Some(group) = self.replication.place_due.pop_first() {
            self.place_one(group, actions);
        }
        self.ask_others();
        let mut left = Vec::new();
        loop {
            while let Some(index) = self.replication.queue.pop() {
                if let Some(replica) = self.raft_mut(index) {
                    replica.queued = false;
                }
                match self.take_output(index, None, actions) {
                    true => self.step_move(index, actions),
                    false => left.push(index),
                }
                self.rearm(index);
                self.settle_catch_up(index, actions);
                self.settle_forced(index, actions);
            }
            if !self.begin_campaigns() {
                break;
            }
        }
        for index in left {
            self.queue_group(index);
        }
        self.answer_next(actions);
        self.take_recovery_turns(actions);
        self.replication.outbox.send(actions);
        let leaders = std::mem::take(&mut self.replication.leaders);
        if !leaders.is_empty() {
            actions.push(Action::TellLeaders { leaders });
        }
    }

    /// Lays down what a group has put out so far, if the next batch has to come behind it in the journal, as it has to
    /// behind a leader's first entry. Batches are laid down when they are proposed: those of a pass leave for the
    /// followers together, at its end. False: there is no room.
    pub(super) fn settle(&mut self, index: u32, actions: &mut Vec<Action>) -> bool {
        let behind = self
            .raft_mut(index)
            .is_some_and(|replica| !replica.has_laid_all() || replica.raft.has_untold_entries());
        !behind || self.take_output(index, None, actions)
    }

    /// Has the next tick of a group come when it wants it.
    fn rearm(&mut self, index: u32) {
        let Some(replica) = self.raft_mut(index) else { return };
        let due_us = replica.raft.deadline_us();
        if due_us < replica.timer_us {
            replica.timer_us = due_us;
            self.replication.timers.push(Reverse((due_us, index)));
        }
    }

    /// Takes a group's output: lays its frames down, and sorts its messages by when they may leave. False: the
    /// journal has no room, the group keeps it.
    fn take_output(
        &mut self,
        index: u32,
        mut incoming: Option<Incoming<'_>>,
        actions: &mut Vec<Action>,
    ) -> bool {
        let mut out = std::mem::take(&mut self.replication.output);
        let mut done = true;
        let mut confirmed = Vec::new();
        loop {
            // What just came in has its room already, and must be told apart from what is held at once.
            if incoming.is_none() && !self.journal.has_room(&self.pool, SMALL_FRAMES_BYTES) {
                done = false;
                break;
            }
            let Some(replica) = self.raft_mut(index) else { break };
            let laid = match replica.raft.output(&mut out) {
                Ok(false) => break,
                Ok(true) => self.lay_output(index, &mut out, incoming.as_mut(), actions),
                Err(error) => Err(error.to_string()),
            };
            if let Err(what) = laid {
                self.fence(&format!("a replica of the shard failed: {what}"), actions);
                break;
            }
            for message in out.messages.drain(..) {
                self.post(index, message);
            }
            confirmed.extend(out.reads.drain(..).map(|(number, _)| number));
        }
        self.replication.output = out;
        self.advance(index, actions);
        self.reads_confirmed(confirmed, actions);
        done
    }

    /// Lays the frames of an output down and notes what leaves when they are durable.
    fn lay_output(
        &mut self,
        index: u32,
        out: &mut Output,
        mut incoming: Option<&mut Incoming<'_>>,
        actions: &mut Vec<Action>,
    ) -> Result<(), String> {
        let Some(group) = self.at(index).map(|partition| partition.group) else { return Ok(()) };
        let mut laid_any = false;
        #[cfg(feature = "planted-bugs")]
        if self.has_bug(super::planted::PlantedBug::VoteWithoutFlush) {
            out.must_sync = false;
        }
        if let Some(hard) = out.hard_state.filter(|_| out.must_sync) {
            let mut frame = FrameHeader::bodyless(FrameKind::Vote, group, 0, hard.term);
            (frame.record_count, frame.index) = (hard.vote, hard.commit);
            self.lay_small(&frame, &[])?;
            laid_any = true;
        }
        for entry in out.first_entry..out.first_entry + out.entries {
            laid_any = true;
            let header = self.raft_mut(index).and_then(|replica| replica.raft.header(entry).copied());
            let header = header.ok_or("a group wants an entry persisted that it does not hold")?;
            let came = incoming.as_ref().is_some_and(|incoming| incoming.has(entry, header.term));
            let sent = incoming.as_mut().and_then(|incoming| incoming.batch(entry, header.term));
            match (header.kind, sent) {
                (EntryKind::NewTerm, _) => {
                    self.cut_entries(index, entry);
                    let mut frame =
                        FrameHeader::bodyless(FrameKind::NewTerm, group, header.base_offset, header.term);
                    frame.index = entry;
                    let lsn = self.lay_small(&frame, &[])?;
                    if let Some(replica) = self.raft_mut(index) {
                        replica.note_laid(entry, lsn);
                    }
                }
                (EntryKind::Configuration, _) if came => {
                    self.cut_entries(index, entry);
                    self.lay_configuration(index, group, entry, &header)?;
                }
                // Its own proposal: laid down when it was made.
                (EntryKind::Configuration, _) => {}
                (EntryKind::Batch, Some(batch)) => {
                    self.cut_entries(index, entry);
                    self.lay_batch(index, group, entry, &header, batch)?;
                }
                // Its own proposal: laid down when it was made.
                (EntryKind::Batch, None) => {}
            }
        }
        let (number, messages) = (out.number, std::mem::take(&mut out.after_persist));
        let lsn = self.journal.newest_unfinished_lsn().unwrap_or(0);
        let Some(replica) = self.raft_mut(index) else { return Ok(()) };
        let nothing_before = replica.laid.is_empty();
        if !laid_any && let Some(last) = replica.laid.back_mut().filter(|last| last.lsn == lsn) {
            last.join(number, messages);
            return Ok(());
        }
        replica.laid.push_back(LaidOutput { number, newest: number, lsn, messages });
        let pending = Pending::Group { partition: index, number };
        if (nothing_before && !laid_any) || self.journal.attach(pending).is_err() {
            self.group_persisted(index, number, actions);
        }
        Ok(())
    }

    /// Lays down who the replicas are from an entry on.
    fn lay_configuration(
        &mut self,
        index: u32,
        group: GroupId,
        entry: u64,
        header: &Header,
    ) -> Result<(), String> {
        let Some(replica) = self.raft_mut(index) else { return Ok(()) };
        let said = replica.raft.configuration_at(entry).map(Configuration::encode);
        let body = said.ok_or("a group wants a configuration persisted that it does not hold")?;
        let frame = FrameHeader::of_configuration(group, header.base_offset, header.term, entry, &body);
        let lsn = self.lay_small(&frame, &body)?;
        if let Some(replica) = self.raft_mut(index) {
            replica.note_laid(entry, lsn);
        }
        Ok(())
    }

    /// Lays down a frame with a small body or none. Returns its commit.
    pub(super) fn lay_small(&mut self, frame: &FrameHeader, body: &[u8]) -> Result<u64, String> {
        let laid = self.journal.lay(&self.pool, frame, &[], body);
        laid.map(|laid| laid.lsn)
            .map_err(|full| format!("the journal has no room for a small frame: {full:?}"))
    }

    /// Lays down a batch that another replica made.
    fn lay_batch(
        &mut self,
        index: u32,
        group: GroupId,
        entry: u64,
        header: &Header,
        bytes: &[u8],
    ) -> Result<(), String> {
        let batch = BatchView::parse_exact(bytes).map_err(|error| error.to_string())?;
        let frame = FrameHeader {
            kind: FrameKind::Batch,
            body_len: bytes.len() as u32,
            group,
            base_offset: header.base_offset,
            epoch: header.term,
            record_count: batch.record_count(),
            index: entry,
            body_crc: batch.crc(),
        };
        let (head, rest) = bytes.split_at_checked(HEAD_BYTES).ok_or("a batch shorter than its head")?;
        let laid = self.journal.lay(&self.pool, &frame, head, rest);
        let laid = laid.map_err(|full| format!("the journal has no room for a batch: {full:?}"))?;
        self.laid(index, &frame, &batch, laid);
        Ok(())
    }

    /// Has a message leave that the group itself does not know of.
    pub(super) fn post_beside(&mut self, to: PeerId, message: Message) {
        self.replication.outbox.add(to, message, Default::default());
    }

    /// Takes the entries from `entry` on back.
    fn cut_entries(&mut self, index: u32, entry: u64) {
        let Some(partition) = self.at_mut(index) else { return };
        let cut = partition.cut_entries(entry);
        self.cached_batches -= cut.batches;
        self.producer_count -= cut.producers;
        self.flush.note_cut(cut.bytes);
        if cut.batches > 0 {
            self.recount_uncommitted(index);
        }
    }

    /// Lays entries down again that can't go to segments yet and hold back the place where a replay begins; those that
    /// the run which begins writes out are left where they are. Returns the last commit that they are in: before it is
    /// done the old ones are still needed.
    pub(super) fn lay_again(&mut self) -> Option<u64> {
        let newest = self.journal.completed.generation;
        let mut last = None;
        for index in 0..self.partitions.len() as u32 {
            let Some(partition) = self.at(index) else { continue };
            let Some(lsn) = partition.replica.oldest_held_back_lsn() else { continue };
            if self.journal.point_at_or_before(lsn).generation < newest {
                last = self.lay_entries_again(index).max(last);
            }
        }
        last
    }

    fn lay_entries_again(&mut self, index: u32) -> Option<u64> {
        let partition = self.at(index)?;
        let (group, entries) = (partition.group, partition.replica.held_back_entries());
        // All or none: of those left where they were the first would hold the place back again.
        let bytes: u64 = entries
            .clone()
            .filter_map(|entry| partition.replica.header(entry))
            .map(|header| match header.kind {
                EntryKind::Configuration => MAX_CONFIGURATION_BYTES as u64,
                _ => u64::from(header.bytes),
            })
            .sum();
        let count = entries.clone().count();
        if !self.journal.has_room_for_all(&self.pool, bytes as usize + count * FRAME_BYTES) {
            return None;
        }
        let mut laid_again = Vec::with_capacity(count);
        for entry in entries.clone() {
            let partition = self.partitions.get_mut(index as usize).and_then(Option::as_deref_mut)?;
            let Some(header) = partition.replica.header(entry) else { break };
            let mut frame = FrameHeader::bodyless(FrameKind::NewTerm, group, header.base_offset, header.term);
            frame.index = entry;
            if header.kind == EntryKind::Configuration {
                let Some(said) = partition.replica.configuration_at(entry) else { break };
                let body = said.encode();
                let frame =
                    FrameHeader::of_configuration(group, header.base_offset, header.term, entry, &body);
                let Ok(laid) = self.journal.lay(&self.pool, &frame, &[], &body) else { break };
                laid_again.push((entry, header.kind, laid));
                continue;
            }
            let data = partition.tail_entry(entry).map(|batch| batch.data.clone());
            let bytes = data.as_ref().map_or(&[][..], |data| data.bytes());
            if header.kind == EntryKind::Batch {
                let Ok(batch) = BatchView::parse_exact(bytes) else { break };
                frame.kind = FrameKind::Batch;
                frame.body_len = bytes.len() as u32;
                frame.record_count = batch.record_count();
                frame.body_crc = batch.crc();
            }
            let (head, rest) = bytes.split_at_checked(HEAD_BYTES).unwrap_or_default();
            let Ok(laid) = self.journal.lay(&self.pool, &frame, head, rest) else { break };
            if header.kind == EntryKind::Batch {
                self.journal.note_cached(index);
            }
            laid_again.push((entry, header.kind, laid));
        }
        if laid_again.len() != count {
            return None;
        }
        let last = laid_again.last().map(|(.., laid)| laid.lsn);
        let partition = self.partitions.get_mut(index as usize).and_then(Option::as_deref_mut)?;
        for (entry, kind, laid) in laid_again {
            partition.replica.note_laid_again(entry, laid.lsn);
            if kind == EntryKind::Batch {
                partition.replace_entry(entry, laid.lsn, laid.data);
            }
        }
        last
    }

    /// Looks at what a group has become: answers those who waited for a write quorum, and those who can't any more
    /// because it does not lead.
    fn advance(&mut self, index: u32, actions: &mut Vec<Action>) {
        let now_us = self.now.monotonic_us;
        self.note_members(index, actions);
        let Some(replica) = self.raft_mut(index) else { return };
        debug_assert!(replica.has_laid_all(), "every entry is laid down");
        let (group, before) = (replica.raft.group(), replica.high_watermark);
        replica.high_watermark = replica.raft.high_watermark().max(before);
        let after = replica.high_watermark;
        let leads = replica.raft.is_leader();
        let surely = replica.raft.leads_surely();
        let led = std::mem::replace(&mut replica.led, leads);
        let handed_over = !leads && std::mem::take(&mut replica.handing_over);
        let campaigns = replica.raft.take_campaigns();
        if leads && !led {
            replica.begin_leading(now_us);
        }
        if leads {
            replica.note_progress(now_us);
        }
        replica.note_acknowledged();
        let acknowledged = replica.acknowledged;
        let seen = (replica.raft.leader().unwrap_or(0), replica.raft.term());
        if std::mem::replace(&mut replica.told, seen) != seen {
            self.replication.leaders.push(Leadership { group, node: seen.0, epoch: seen.1 });
        }
        let counters = &mut self.counters.replication;
        counters.elections += u64::from(campaigns);
        counters.elections_won += u64::from(leads && !led);
        counters.leaderships_lost += u64::from(led && !leads);
        counters.hand_overs += u64::from(led && handed_over);
        if after > before || leads != led {
            self.recount_uncommitted(index);
        }
        if leads && !led {
            self.plan_balance();
        }
        if led && !leads {
            self.fail_reads(Some(group), ErrorCode::NotLeader, actions);
        }
        while let Some(replica) = self.raft_mut(index)
            && let Some(first) = replica.waiting.front().copied()
            && (first.next_offset() <= acknowledged || !leads)
        {
            replica.waiting.pop_front();
            match first.next_offset() <= acknowledged {
                true => self.answer(first, actions),
                false => self.tell_unknown(first, ErrorCode::LeaderChanged, actions),
            }
        }
        self.join_when_complete(index);
        if after > before && self.at(index).is_some_and(|partition| !partition.waiting.is_empty()) {
            self.wake_fetches(index, actions);
        }
        if group == GroupId::METADATA {
            if led && !leads {
                self.metadata_leadership_lost(actions);
            }
            if after > before {
                self.metadata_committed(after, actions);
            }
            if leads && surely && !self.replication.saw_levels {
                self.raise_feature_level();
            }
            self.replication.saw_levels = leads && surely;
        }
    }

    /// Refuses a produce that may have been appended.
    fn tell_unknown(&mut self, pending: Pending, code: ErrorCode, actions: &mut Vec<Action>) {
        if let Pending::Produce { conn, correlation_id, .. } = pending {
            self.refuse(conn, correlation_id, code, String::new(), actions);
        }
    }

    /// Answers produces that waited for a quorum for too long; the outcome is unknown.
    pub(super) fn expire_replicated(&mut self, actions: &mut Vec<Action>) {
        let now_us = self.now.monotonic_us;
        let mut expired = Vec::new();
        let mut waits = false;
        for replica in self.partitions.iter_mut().flatten().filter_map(|p| p.replica.raft_mut()) {
            replica.waiting.retain(|pending| match *pending {
                Pending::Produce { deadline_us, .. } if deadline_us <= now_us => {
                    expired.push(*pending);
                    false
                }
                _ => true,
            });
            waits |= !replica.waiting.is_empty();
        }
        self.replication.waits = waits;
        self.counters.replication.ack_timeouts += expired.len() as u64;
        for pending in expired {
            self.tell_unknown(pending, ErrorCode::RequestTimedOut, actions);
        }
    }

    /// Whether produces may wait for a high watermark.
    pub(super) fn produces_wait(&self) -> bool {
        self.replication.waits
    }

    /// A produce waits for the write quorum of its group.
    pub(super) fn wait_for_quorum(&mut self, index: u32, pending: Pending) {
        self.replication.waits = true;
        if let Some(replica) = self.raft_mut(index) {
            replica.wait(pending);
        }
        self.queue_group(index);
    }

    /// Everybody who waits for a write quorum learns that this engine does not bring it.
    pub(super) fn fail_replicated(&mut self, code: ErrorCode, actions: &mut Vec<Action>) {
        let replicas = self.partitions.iter_mut().flatten().filter_map(|p| p.replica.raft_mut());
        let waiting: Vec<Pending> =
            replicas.flat_map(|replica| std::mem::take(&mut replica.waiting)).collect();
        for pending in waiting {
            self.tell_unknown(pending, code, actions);
        }
    }

    /// The group is dropped: so is who waits for it. Of one that has moved away others may have what was appended.
    pub(super) fn fail_group(&mut self, replica: &mut Replica, deleted: bool, actions: &mut Vec<Action>) {
        let waiting = replica.raft_mut().map(|replica| std::mem::take(&mut replica.waiting));
        let code = if deleted { ErrorCode::UnknownTopicOrPartition } else { ErrorCode::LeaderChanged };
        for pending in waiting.into_iter().flatten() {
            self.tell_unknown(pending, code, actions);
        }
    }

    /// Has a message leave at the end of the pass, with its batches.
    fn post(&mut self, index: u32, message: Message) {
        let Some(partition) = self.partitions.get_mut(index as usize).and_then(Option::as_deref_mut) else {
            return;
        };
        let to = message.to;
        let answers = message.kind.is_answer();
        let place = partition.replica.raft().and_then(|replica| replica.place_of(to, answers));
        let Some(peer) = place else { return };
        if !self.replication.links.is_up(peer) {
            return;
        }
        let batches = (message.index + 1..).zip(&message.entries).filter(|(_, entry)| entry.bytes > 0);
        let batches = batches.map(|(entry, _)| partition.tail_entry(entry).map(|batch| batch.data.clone()));
        let sent = match batches.collect::<Option<_>>() {
            Some(batches) => self.replication.outbox.post(peer, message, batches),
            // Not in the cache any more: the follower has to begin at a snapshot.
            None => false,
        };
        let cached_from = partition.tail.front().map_or(u64::MAX, |batch| batch.index);
        if !sent && let Some(replica) = partition.replica.raft_mut() {
            // When the cache let go of them it may not have been known yet that they are committed.
            replica.compact_below(cached_from);
            replica.raft.not_sent(to);
        }
    }
}

/// In how many commits frames of so many bytes are laid down at most, each of which is filled up to a whole block: two that follow on
/// one another hold more than one is meant to.
const fn commits_of(bytes: usize) -> usize {
    2 * bytes.div_ceil(COMMIT_TARGET_BYTES) + 2
}
