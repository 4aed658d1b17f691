//! One replica of a group: the core, its header log and its timers behind one face.
//!
//! The order of calls: any number of [`RaftGroup::propose`], [`RaftGroup::step`], [`RaftGroup::tick`]; then
//! [`RaftGroup::output`], whose entries and hard state go to the journal. Messages in `Output::messages` may leave
//! at once; those in `Output::after_persist` leave when the journal holds what came with them; then
//! [`RaftGroup::persisted`] with the output's number, and `output` again. After a `step` with entries, `output` comes
//! before anything else: it tells which of them are new.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pyralog_core::GroupId;
use raft::eraftpb::{Entry, Message as CoreMessage, MessageType};
use raft::{Config, ProgressState, RawNode, StateRole};

use super::configuration::{Configuration, is_among};
use super::log::{EntryKind, HardState, Header, HeaderLog, Position, RecoveredLog};
use super::members::check_write_quorum;
use super::message::{EntryHead, Message, MessageKind, configurations_in, core_type};
use super::timers::{Timers, Timing};

/// Bytes of batches in one append that the core makes; the sender may split further.
const APPEND_BYTES: u64 = 1 << 20;
/// Appends on their way to one follower before it has answered.
const APPENDS_IN_FLIGHT: usize = 256;
/// Ticks of the core are never given; this many would have to be.
const NEVER_TICKS: usize = 1_000_000;

/// What a replica is told when it is made.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// The group.
    pub group: GroupId,
    /// This node, not 0.
    pub id: u32,
    /// Durable copies behind an acknowledgement: at least a majority of the voters and at most all of them, whatever it says.
    pub write_quorum: usize,
    /// Its times.
    pub timing: Timing,
    /// Of its randomness.
    pub seed: u64,
}

/// Terms beyond this one are refused: no cluster has so many elections, and the last ones leave no room for another.
pub const MAX_TERM: u32 = u32::MAX / 2;

/// Indexes beyond this one are refused: no log is so long, and the core counts on from what it is told.
pub(super) const MAX_INDEX: u64 = u64::MAX / 2;

/// In which terms a replica votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Votes {
    /// In all.
    All,
    /// In those above this one.
    InTermsAbove(u32),
    /// In none.
    None,
}

impl Votes {
    fn in_term(self, term: u32) -> bool {
        match self {
            Self::All => true,
            Self::InTermsAbove(floor) => term > floor,
            Self::None => false,
        }
    }
}

/// What a replica is at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Follows, or waits to hear from a leader.
    Follower,
    /// Asks for votes, or whether it would get them.
    Candidate,
    /// Leads.
    Leader,
}

/// A batch that the leader has put at the end of its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proposed {
    /// Its entry.
    pub index: u64,
    /// The leader's term.
    pub term: u32,
    /// Offset of its first record.
    pub base_offset: i64,
    /// Offset after its last record.
    pub next_offset: i64,
}

/// Only a leader takes proposals; it may be this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this replica does not lead the group{}", .leader.map_or(String::new(), |node| format!("; node {node} does")))]
pub struct NotLeader {
    /// Who does, if known.
    pub leader: Option<u32>,
}

/// Why a message was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is not for this replica, or from nobody of the group.
    #[error("a message from node {from} to node {to} is not for this replica")]
    NotForUs {
        /// Its sender.
        from: u32,
        /// Its receiver.
        to: u32,
    },
    /// No correct peer sends this.
    #[error("a message that no correct replica sends: {0}; check that all nodes run the same version")]
    Impossible(&'static str),
    /// The core panicked; the group must be rebuilt from the journal.
    #[error("the consensus core failed, the replica must be rebuilt from its journal")]
    Broken,
}

/// What is to be done.
#[derive(Clone, Debug, Default)]
pub struct Output {
    /// To be given to [`RaftGroup::persisted`].
    pub number: u64,
    /// New term, vote or commit.
    pub hard_state: Option<HardState>,
    /// Term or vote changed: they must be durable before `after_persist` leaves.
    pub must_sync: bool,
    /// The log begins anew here.
    pub snapshot: Option<Position>,
    /// Entries to be persisted, first and number; they replace whatever was at these indexes and behind.
    pub first_entry: u64,
    /// How many.
    pub entries: u64,
    /// May leave at once.
    pub messages: Vec<Message>,
    /// Leave when all of the above is durable.
    pub after_persist: Vec<Message>,
    /// Reads that are confirmed, with the index that they must see.
    pub reads: Vec<(u64, u64)>,
}

impl Output {
    fn clear(&mut self) {
        *self = Self {
            messages: std::mem::take(&mut self.messages),
            after_persist: std::mem::take(&mut self.after_persist),
            reads: std::mem::take(&mut self.reads),
            ..Self::default()
        };
        self.messages.clear();
        self.after_persist.clear();
        self.reads.clear();
    }
}

/// The append or snapshot that was just stepped.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    /// Index of the first entry.
    pub(super) first: u64,
    pub(super) entries: Vec<EntryHead>,
    /// What those of them say that are configurations, in their order.
    pub(super) configurations: Vec<Configuration>,
}

impl Incoming {
    fn entry(&self, index: u64) -> Option<&EntryHead> {
        self.entries.get(usize::try_from(index.checked_sub(self.first)?).ok()?)
    }

    /// What the entry at `index` says, which is a configuration.
    fn configuration(&self, index: u64) -> Option<&Configuration> {
        let before = self.entries.iter().take(usize::try_from(index.checked_sub(self.first)?).ok()?);
        self.configurations.get(configurations_in(before))
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.configurations.clear();
    }
}

/// One replica.
pub struct RaftGroup {
    pub(super) group: GroupId,
    pub(super) id: u32,
    pub(super) write_quorum: usize,
    pub(super) raw: RawNode<HeaderLog>,
    pub(super) timers: Timers,
    pub(super) incoming: Incoming,
    /// The newest term in which it led; 0 = none.
    led_term: u32,
    /// Leader and followers agree on everything and rely on their links being up.
    quiet: bool,
    /// Whoever it votes for has this entry, term and index.
    made_after: (u32, u64),
    /// For whom it votes. With less than for all it is not voted for either.
    votes: Votes,
    /// Followers that were told to begin at a snapshot, and when.
    pub(super) snapshots: Vec<(u32, u64)>,
    /// Elections that it has begun and nobody has asked for yet.
    campaigns: u32,
    /// Configurations that have come into force since it was made.
    pub(super) changes: u64,
    pub(super) now_us: u64,
    high_watermark: i64,
    broken: bool,
}

impl std::fmt::Debug for RaftGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (role, term, last) = (self.role(), self.term(), self.last_index());
        write!(f, "RaftGroup({} {role:?} term {term} last {last} commit {})", self.group, self.commit())
    }
}

impl RaftGroup {
    /// A replica that goes on from its log. It waits for a leader, or for its time to campaign; a replica without
    /// others leads at once.
    ///
    /// # Errors
    /// [`Refused::Impossible`] when the configuration or the log contradict themselves.
    pub fn new(config: GroupConfig, mut recovered: RecoveredLog, now_us: u64) -> Result<Self, Refused> {
        if config.id == 0 {
            return Err(Refused::Impossible("a replica of node 0"));
        }
        check_write_quorum(config.write_quorum)?;
        check_recovered(&recovered)?;
        // A leader of an older term may still count on what a predecessor of this replica, which has followed a newer one,
        // would not tell it any more.
        if recovered.hard.term < recovered.made_after.0 {
            (recovered.hard.term, recovered.hard.vote) = (recovered.made_after.0, 0);
        }
        let high_watermark = recovered.start.offset;
        let (start, made_after) = (recovered.start.index, recovered.made_after);
        let log = HeaderLog::new(recovered);
        let peers = log.applied().members().map(|member| member.node).filter(|node| *node != config.id);
        let timers = Timers::new(config.timing, config.seed, peers, now_us);
        let core = core_config(config.id, start);
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = catch_unwind(AssertUnwindSafe(|| RawNode::new(&core, log, &logger)));
        let raw = raw.map_err(|_| Refused::Broken)?.map_err(|_| Refused::Broken)?;
        let mut group = Self {
            group: config.group,
            id: config.id,
            write_quorum: config.write_quorum,
            raw,
            timers,
            incoming: Incoming::default(),
            led_term: 0,
            quiet: false,
            made_after,
            votes: Votes::All,
            snapshots: Vec::new(),
            campaigns: 0,
            changes: 0,
            now_us,
            high_watermark,
            broken: false,
        };
        group.raw.raft.skip_bcast_commit(true);
        group.apply_committed()?;
        if group.is_alone() {
            group.campaign(now_us);
        }
        Ok(group)
    }

    /// Runs the core, which knows everything that was proposed before; what it does after a panic is not to be trusted.
    pub(super) fn guarded<T>(
        &mut self,
        run: impl FnOnce(&mut RawNode<HeaderLog>) -> Result<T, Refused>,
    ) -> Result<T, Refused> {
        if self.broken {
            return Err(Refused::Broken);
        }
        let raw = &mut self.raw;
        match catch_unwind(AssertUnwindSafe(|| tell_proposed(raw).and_then(|()| run(raw)))) {
            Ok(result) => result,
            Err(_) => {
                self.broken = true;
                Err(Refused::Broken)
            }
        }
    }

    /// Whether it may vote and be voted for: not as long as it does not know everything that it has promised.
    pub fn set_votes(&mut self, votes: Votes) {
        self.votes = votes;
    }

    /// See [`RecoveredLog::made_after`].
    pub fn made_after(&self) -> (u32, u64) {
        self.made_after
    }

    /// Whether the core panicked: the group must be rebuilt from the journal.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// The group.
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// The node that holds it.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// What this replica is.
    pub fn role(&self) -> Role {
        match self.raw.raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Follower => Role::Follower,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
        }
    }

    /// Whether it leads.
    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// Whether it leads and an entry of its own term is committed: everything that earlier leaders had committed is
    /// known as such.
    pub fn leads_surely(&self) -> bool {
        self.is_leader() && self.raw.raft.commit_to_current_term()
    }

    /// Who leads, if known.
    pub fn leader(&self) -> Option<u32> {
        u32::try_from(self.raw.raft.leader_id).ok().filter(|node| *node != 0)
    }

    /// The current term.
    pub fn term(&self) -> u32 {
        u32::try_from(self.raw.raft.term).unwrap_or(u32::MAX)
    }

    /// The node voted for in the current term; 0 = none.
    pub fn vote(&self) -> u32 {
        u32::try_from(self.raw.raft.vote).unwrap_or(0)
    }

    /// The last entry, durable or not.
    pub fn last_index(&self) -> u64 {
        self.raw.store().last()
    }

    /// Whether the core has entries that [`Self::output`] has not told yet: a leader's first one.
    pub fn has_untold_entries(&self) -> bool {
        let proposed = self.raw.store().untold() as u64;
        self.raw.raft.raft_log.last_index() + proposed > self.last_index()
    }

    /// Where the entries begin.
    pub fn start(&self) -> Position {
        self.raw.store().start()
    }

    /// The place behind an entry that is held.
    pub fn position(&self, index: u64) -> Option<Position> {
        self.raw.store().position(index)
    }

    /// An entry that is held.
    pub fn header(&self, index: u64) -> Option<&Header> {
        self.raw.store().header(index)
    }

    /// The highest entry that is committed, as far as this replica knows.
    pub fn commit(&self) -> u64 {
        self.raw.raft.raft_log.committed
    }

    /// Offset after the last record in the log.
    pub fn log_end(&self) -> i64 {
        self.position(self.last_index()).map_or(0, |position| position.offset)
    }

    /// Offset after the last record that `write_quorum` replicas are known to hold durably. A majority is as good as the commit,
    /// which everybody learns of; of more only a leader knows, and only of what it still holds.
    pub fn acknowledged_offset(&self) -> Option<i64> {
        let index = match self.commits_are_acknowledged() {
            true => self.commit(),
            false if self.is_leader() => self.acknowledged(),
            false => return None,
        };
        self.position(index).map(|position| position.offset)
    }

    /// Records below this are acknowledged. Never moves back.
    pub fn high_watermark(&mut self) -> i64 {
        let position = self.position(self.acknowledged()).unwrap_or_else(|| self.start());
        self.high_watermark = self.high_watermark.max(position.offset);
        self.high_watermark
    }

    /// How far a voter's durable log is known to agree with the leader's (0 = not known, or not the leader).
    pub fn matched_of(&self, voter: u32) -> u64 {
        self.raw.raft.prs().get(u64::from(voter)).map_or(0, |progress| progress.matched)
    }

    /// Whether a voter lacks entries that are not held here any more, and has been told to begin behind them.
    pub fn lacks_what_is_gone(&self, voter: u32) -> bool {
        let progress = self.raw.raft.prs().get(u64::from(voter));
        progress.is_some_and(|progress| progress.state == ProgressState::Snapshot)
    }

    /// How many elections it has begun since this was last asked, those of a hand-over included.
    pub fn take_campaigns(&mut self) -> u32 {
        std::mem::take(&mut self.campaigns)
    }

    /// Puts a batch at the end of the leader's log. The core learns of it, together with those that follow, before it does
    /// anything else: a step of its own for each would cost more than all the rest of a small produce.
    ///
    /// # Errors
    /// [`NotLeader`] when this replica does not lead, or is handing over.
    pub fn propose(&mut self, now_us: u64, records: u32, bytes: u32) -> Result<Proposed, NotLeader> {
        let not_leader = NotLeader { leader: self.leader().filter(|leader| *leader != self.id) };
        if !self.is_leader() || self.raw.raft.lead_transferee.is_some() {
            return Err(not_leader);
        }
        self.wake(now_us);
        let (index, term, base_offset) = (self.last_index() + 1, self.term(), self.log_end());
        let next_offset = base_offset.checked_add(i64::from(records)).ok_or(not_leader)?;
        self.raw.mut_store().propose(Header {
            term,
            kind: EntryKind::Batch,
            base_offset,
            next_offset,
            bytes,
        });
        Ok(Proposed { index, term, base_offset, next_offset })
    }

    /// Takes a message of another replica. One with entries is followed by [`Self::output`] at once.
    ///
    /// # Errors
    /// What was wrong with it; nothing has changed then, except after [`Refused::Broken`].
    pub fn step(&mut self, now_us: u64, message: &Message) -> Result<(), Refused> {
        let (from, to) = (message.from, message.to);
        // A sender that is no member here may have become one by a change that this replica does not know yet.
        if to != self.id || from == self.id || from == 0 || message.group() != self.group {
            return Err(Refused::NotForUs { from, to });
        }
        let Some(kind) = core_type(message.kind) else {
            return Err(Refused::Impossible("a message that is not for the core"));
        };
        self.check(message)?;
        self.now_us = now_us;
        let asks = matches!(message.kind, MessageKind::RequestVote | MessageKind::RequestPreVote);
        let lacks = (message.log_term, message.index) < self.made_after;
        if asks && (lacks || !self.votes.in_term(message.term))
            || message.kind == MessageKind::TimeoutNow && !self.may_campaign()
        {
            return Ok(());
        }
        // An answer of one that has left meanwhile, or joined under another leader.
        if message.kind.is_answer() && self.raw.raft.prs().get(u64::from(from)).is_none() {
            return Ok(());
        }
        if message.kind == MessageKind::Quiesce {
            return self.quiesce_told(now_us, message);
        }
        // A leader that sleeps and is asked for its voice still leads.
        let lease = self.lease_holds(now_us);
        if self.quiet {
            self.wake(now_us);
        }
        self.timers.heard_peer(from, now_us);
        self.raw.raft.election_elapsed = if lease { 0 } else { NEVER_TICKS };
        let term_before = self.raw.raft.term;
        if message.kind == MessageKind::TimeoutNow && u64::from(message.term) == term_before {
            self.campaigns = self.campaigns.saturating_add(1);
        }
        self.notice_new_replica(message);
        let core = self.core_message(message, kind);
        self.guarded(|raw| raw.step(core).map_err(|_| Refused::NotForUs { from, to }))?;
        if message.kind == MessageKind::Append {
            self.incoming = Incoming {
                first: message.index + 1,
                entries: message.entries.clone(),
                configurations: message.configurations.clone(),
            };
        }
        let from_leader =
            matches!(message.kind, MessageKind::Append | MessageKind::Heartbeat | MessageKind::Snapshot);
        if from_leader && self.leader() == Some(from) && message.term == self.term() {
            self.timers.heard_leader(now_us);
        } else if self.raw.raft.term != term_before || message.kind == MessageKind::RequestVote {
            self.timers.rearm_election(now_us);
        }
        if message.kind == MessageKind::HeartbeatResponse {
            self.retry_snapshot(from);
        }
        self.note_leading(now_us);
        Ok(())
    }

    /// A follower refuses what it once said it has: the replica that said so is gone, and another one is there in its place. The core
    /// would take that for an old message for ever.
    fn notice_new_replica(&mut self, message: &Message) {
        let refuses = message.kind == MessageKind::AppendResponse && message.reject;
        if refuses
            && self.is_leader()
            && message.term == self.term()
            && message.reject_hint < self.matched_of(message.from)
            && message.index <= self.matched_of(message.from)
        {
            self.peer_restarted(message.from, self.now_us);
        }
    }

    /// The core waits for ever for the end of a snapshot; a follower that lives and has not taken it is told again.
    fn retry_snapshot(&mut self, peer: u32) {
        let Some(at) = self.snapshots.iter().position(|(known, _)| *known == peer) else { return };
        let waits =
            self.raw.raft.prs().get(u64::from(peer)).is_some_and(|p| p.state == ProgressState::Snapshot);
        let due = self.snapshots.get(at).map_or(0, |(_, sent_us)| sent_us + self.timers.snapshot_retry_us());
        if !waits {
            self.snapshots.swap_remove(at);
        } else if self.now_us >= due {
            self.snapshots.swap_remove(at);
            self.snapshot_failed(peer);
        }
    }

    fn lease_holds(&self, now_us: u64) -> bool {
        match self.role() {
            Role::Leader => self.quiet || self.hears_quorum(now_us),
            _ => self.quiet || self.timers.leader_lease_holds(now_us),
        }
    }

    /// The leader goes quiet: follow it, if this replica holds just what it holds.
    fn quiesce_told(&mut self, now_us: u64, message: &Message) -> Result<(), Refused> {
        if message.term != self.term() || self.leader() != Some(message.from) {
            // It woke up alone and asked for votes: nothing else tells it that there is a leader, or the leader that this one
            // has a newer term, as long as the others sleep.
            let mut alive = message.clone();
            (alive.kind, alive.commit) = (MessageKind::Heartbeat, 0);
            return self.step(now_us, &alive);
        }
        let last = self.last_index();
        let same = !self.is_leader()
            && message.index == last
            && message.commit == last
            && self.position(last).is_some_and(|position| position.term == message.log_term);
        if !same {
            return Ok(());
        }
        self.timers.heard_leader(now_us);
        self.guarded(|raw| {
            raw.raft.raft_log.commit_to(last);
            Ok(())
        })?;
        self.quiet = true;
        Ok(())
    }

    /// On the leader, when nothing has happened for a while: if all replicas that can be reached hold everything
    /// and it is committed, tells them so in `messages` and stops its heartbeats. True when the group is quiet.
    pub fn try_quiesce(&mut self, reachable: impl Fn(u32) -> bool, messages: &mut Vec<Message>) -> bool {
        if self.quiet || !self.is_leader() || self.raw.raft.lead_transferee.is_some() {
            return self.quiet;
        }
        let last = self.last_index();
        let peers: Vec<u32> = self.peers().filter(|peer| reachable(*peer)).collect();
        let agreed = self.commit() == last
            && !self.has_change_to_apply()
            && peers.iter().all(|peer| self.matched_of(*peer) == last);
        if !agreed || !self.has_quorum(|node| peers.contains(&node)) {
            return false;
        }
        let log_term = self.position(last).map_or(0, |position| position.term);
        for peer in peers {
            let mut message = Message::new(MessageKind::Quiesce, self.group, self.id, peer, self.term());
            (message.index, message.log_term, message.commit) = (last, log_term, last);
            messages.push(message);
        }
        self.quiet = true;
        true
    }

    /// Whether the group sleeps until somebody calls.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Ends the quiet: a link to a replica of the group went down or came up.
    pub(super) fn wake(&mut self, now_us: u64) {
        if !std::mem::take(&mut self.quiet) {
            return;
        }
        if self.is_leader() {
            self.timers.begin_leading(now_us);
        } else {
            self.timers.rearm_election(now_us);
        }
    }

    /// The link to a peer broke.
    pub fn link_lost(&mut self, peer: u32, now_us: u64) {
        self.wake(now_us);
        if self.leader() == Some(peer) {
            // Not in the same order in each group: the leaderships of a node that dies are spread over the others.
            let others = self.configuration().voters().iter().filter(|voter| voter.node != peer);
            let at = others.clone().position(|voter| voter.node == self.id).unwrap_or(0);
            let turn = (at + self.group.partition as usize) % others.count().max(1);
            self.timers.leader_lost(turn, now_us);
        }
    }

    /// A peer's connection is new: what was sent and not answered may be lost, and what it held may be less now.
    pub fn peer_restarted(&mut self, peer: u32, now_us: u64) {
        self.wake(now_us);
        if !self.is_leader() || peer == self.id {
            return;
        }
        let next = self.last_index() + 1;
        let _ = self.guarded(|raw| {
            if let Some(progress) = raw.raft.mut_prs().get_mut(u64::from(peer)) {
                progress.become_probe();
                progress.matched = 0;
                progress.next_idx = next;
            }
            Ok(())
        });
        self.timers.heartbeat_due_us = now_us;
    }

    /// An append to `peer` was not sent; the next answer from it begins again.
    pub fn not_sent(&mut self, peer: u32) {
        let _ = self.guarded(|raw| {
            raw.report_unreachable(u64::from(peer));
            Ok(())
        });
    }

    /// A snapshot to `peer` did not arrive.
    pub fn snapshot_failed(&mut self, peer: u32) {
        let _ = self.guarded(|raw| {
            raw.report_snapshot(u64::from(peer), raft::SnapshotStatus::Failure);
            Ok(())
        });
    }

    /// Begins to hand the leadership to `peer`; no proposals until it leads or [`Self::abort_transfer`].
    pub fn transfer(&mut self, peer: u32, now_us: u64) {
        self.wake(now_us);
        if self.is_leader() && is_among(self.configuration().voters(), peer) {
            let _ = self.guarded(|raw| {
                raw.transfer_leader(u64::from(peer));
                Ok(())
            });
        }
    }

    /// Gives a hand-over up that took too long.
    pub fn abort_transfer(&mut self) {
        self.raw.raft.abort_leader_transfer();
    }

    /// Asks for a confirmation that this replica still leads; it comes as [`Output::reads`] with `read`, not 0.
    ///
    /// # Errors
    /// [`NotLeader`] when it does not lead, or has not committed an entry of its term yet.
    pub fn confirm_read(&mut self, read: u64, now_us: u64) -> Result<(), NotLeader> {
        if !self.is_leader() || !self.raw.raft.commit_to_current_term() {
            return Err(NotLeader { leader: self.leader().filter(|leader| *leader != self.id) });
        }
        self.wake(now_us);
        let confirmed = self.guarded(|raw| {
            raw.read_index(read.to_le_bytes().to_vec());
            Ok(())
        });
        confirmed.map_err(|_| NotLeader { leader: None })
    }

    /// When [`Self::tick`] has something to do; `u64::MAX` = nothing is timed.
    pub fn deadline_us(&self) -> u64 {
        if self.quiet || self.broken || self.is_leader() && self.is_alone() {
            return u64::MAX;
        }
        if self.is_leader() {
            return self.timers.heartbeat_due_us.min(self.quorum_lost_us());
        }
        match self.configuration().is_voter(self.id) {
            true => self.timers.election_due_us,
            false => u64::MAX,
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now_us: u64) {
        self.now_us = now_us;
        if now_us < self.deadline_us() {
            return;
        }
        if !self.is_leader() {
            self.campaign(now_us);
            return;
        }
        if !self.hears_quorum(now_us) {
            // Without a majority behind it, it may have been replaced: it must not say that it leads.
            return self.stop_leading();
        }
        if now_us >= self.timers.heartbeat_due_us {
            self.timers.rearm_heartbeat(now_us);
            let _ = self.guarded(|raw| {
                raw.ping();
                Ok(())
            });
        }
    }

    /// Neither leads nor campaigns in its term any more, and follows nobody yet.
    pub(super) fn stop_leading(&mut self) {
        let term = self.raw.raft.term;
        let _ = self.guarded(|raw| {
            raw.raft.become_follower(term, raft::INVALID_ID);
            Ok(())
        });
        self.timers.rearm_election(self.now_us);
        self.note_leading(self.now_us);
    }

    /// Whether the next [`Self::tick`] has it campaign.
    pub fn would_campaign(&self, now_us: u64) -> bool {
        !self.is_leader() && now_us >= self.deadline_us() && self.may_campaign()
    }

    /// Campaigns now, whatever the timers say; not while a snapshot that it has taken is not durable.
    pub fn campaign(&mut self, now_us: u64) {
        self.wake(now_us);
        self.timers.rearm_election(now_us);
        if !self.may_campaign() {
            return;
        }
        self.campaigns = self.campaigns.saturating_add(1);
        let _ = self.guarded(|raw| raw.campaign().map_err(|_| Refused::Broken));
        self.note_leading(now_us);
    }

    fn may_campaign(&self) -> bool {
        self.votes == Votes::All
            && self.raw.raft.raft_log.applied >= self.start().index
            && self.configuration().is_voter(self.id)
            && !self.has_change_to_apply()
            // Alone it is elected at once, by what is durable.
            && (!self.is_alone() || self.raw.raft.raft_log.persisted == self.raw.raft.raft_log.last_index())
    }

    fn note_leading(&mut self, now_us: u64) {
        if self.is_leader() {
            self.led_term = self.term();
        }
        if self.is_leader() && self.timers.heartbeat_due_us == u64::MAX {
            self.timers.begin_leading(now_us);
        } else if !self.is_leader() {
            self.timers.heartbeat_due_us = u64::MAX;
        }
    }

    /// What is to be done now; false when it is nothing.
    ///
    /// # Errors
    /// [`Refused::Broken`].
    pub fn output(&mut self, out: &mut Output) -> Result<bool, Refused> {
        out.clear();
        let Some(mut ready) = self.guarded(|raw| Ok(raw.has_ready().then(|| raw.ready())))? else {
            return Ok(false);
        };
        out.number = ready.number();
        out.must_sync = ready.must_sync();
        if let Some(hard) = ready.hs() {
            let term =
                u32::try_from(hard.term).map_err(|_| Refused::Impossible("a term beyond all terms"))?;
            out.hard_state = Some(HardState { term, vote: hard.vote as u32, commit: hard.commit });
        }
        if !ready.snapshot().is_empty() {
            let metadata = ready.snapshot().get_metadata();
            let start = Position {
                index: metadata.index,
                term: metadata.term as u32,
                offset: self.incoming_offset(),
            };
            let base = self.incoming.configurations.first().cloned().ok_or(Refused::Broken)?;
            self.raw.mut_store().reset(start, base);
            self.note_configuration();
            out.snapshot = Some(start);
        }
        let entries = ready.take_entries();
        if let Some(first) = entries.first() {
            out.first_entry = first.index;
            out.entries = entries.len() as u64;
        }
        for entry in &entries {
            self.note_entry(entry.index, entry.term as u32)?;
        }
        for read in ready.take_read_states() {
            if let Ok(name) = <[u8; 8]>::try_from(read.request_ctx.as_slice()) {
                out.reads.push((u64::from_le_bytes(name), read.index));
            }
        }
        for message in ready.take_messages() {
            out.messages.extend(self.wire_message(&message));
        }
        for message in ready.take_persisted_messages() {
            out.after_persist.extend(self.wire_message(&message));
        }
        self.incoming.clear();
        self.guarded(|raw| {
            raw.advance_append_async(ready);
            Ok(())
        })?;
        self.apply_committed()?;
        Ok(true)
    }

    /// The offset of a snapshot that is being taken over.
    fn incoming_offset(&self) -> i64 {
        self.incoming.entries.first().map_or(0, |head| head.base_offset)
    }

    /// Holds the header of an entry that the core wants persisted.
    fn note_entry(&mut self, index: u64, term: u32) -> Result<(), Refused> {
        if self.header(index).is_some_and(|known| known.term == term) {
            return Ok(());
        }
        let before = self.position(index - 1).ok_or(Refused::Broken)?;
        // Its own, even if it has stopped leading since.
        let header = if term == self.led_term {
            let (base_offset, next_offset) = (before.offset, before.offset);
            Header { term, kind: EntryKind::NewTerm, base_offset, next_offset, bytes: 0 }
        } else {
            let head = self.incoming.entry(index).filter(|head| head.term == term).ok_or(Refused::Broken)?;
            let kind = EntryKind::from_number(head.kind).ok_or(Refused::Broken)?;
            let EntryHead { base_offset, next_offset, bytes, .. } = *head;
            Header { term, kind, base_offset, next_offset, bytes }
        };
        if header.base_offset != before.offset || !self.raw.mut_store().put(index, header) {
            self.broken = true;
            return Err(Refused::Broken);
        }
        if header.kind == EntryKind::Configuration {
            let configuration = self.incoming.configuration(index).cloned().ok_or(Refused::Broken)?;
            self.raw.mut_store().put_configuration(index, configuration);
        }
        Ok(())
    }

    /// The journal holds everything up to the output of this number. [`Self::output`] may have more to do.
    ///
    /// # Errors
    /// [`Refused::Broken`].
    pub fn persisted(&mut self, number: u64) -> Result<(), Refused> {
        self.guarded(|raw| {
            raw.on_persist_ready(number);
            Ok(())
        })?;
        self.apply_committed()
    }

    /// The entries up to `index`, committed, durable here and in segments, need not be held any more.
    pub fn compact(&mut self, index: u64) {
        let index = index.min(self.raw.raft.raft_log.applied);
        if index > self.start().index {
            self.raw.mut_store().compact(index);
        }
    }
}

/// Has the core take what was proposed since it was last called.
fn tell_proposed(raw: &mut RawNode<HeaderLog>) -> Result<(), Refused> {
    let count = raw.store().untold();
    if count == 0 {
        return Ok(());
    }
    let mut message = CoreMessage::default();
    message.set_msg_type(MessageType::MsgPropose);
    message.from = raw.raft.id;
    message.set_entries(vec![Entry::default(); count].into());
    // Nobody but a leader that is not handing over takes proposals, and it has not been called since.
    raw.raft.step(message).map_err(|_| Refused::Broken)?;
    raw.mut_store().told();
    Ok(())
}

fn check_recovered(recovered: &RecoveredLog) -> Result<(), Refused> {
    let mut term = recovered.start.term;
    let mut offset = recovered.start.offset;
    for header in &recovered.headers {
        if header.term < term || header.base_offset != offset || header.next_offset < offset {
            return Err(Refused::Impossible("a recovered log whose terms or offsets go back"));
        }
        (term, offset) = (header.term, header.next_offset);
    }
    recovered.configuration.check().map_err(Refused::Impossible)?;
    let kinds = recovered.headers.iter().zip(recovered.start.index + 1..);
    let marked = kinds.filter(|(header, _)| header.kind == EntryKind::Configuration).map(|(_, index)| index);
    if !marked.eq(recovered.configurations.iter().map(|(index, _)| *index)) {
        return Err(Refused::Impossible(
            "a recovered log whose changes of the replicas are not where its entries say",
        ));
    }
    if recovered.configurations.iter().any(|(_, configuration)| configuration.check().is_err()) {
        return Err(Refused::Impossible("a recovered log with a change to no valid configuration"));
    }
    if recovered.hard.term < term {
        return Err(Refused::Impossible("a recovered term below that of the last entry"));
    }
    Ok(())
}

fn core_config(id: u32, applied: u64) -> Config {
    Config {
        id: u64::from(id),
        election_tick: NEVER_TICKS,
        min_election_tick: NEVER_TICKS,
        max_election_tick: 2 * NEVER_TICKS,
        heartbeat_tick: NEVER_TICKS / 2,
        applied,
        max_size_per_msg: APPEND_BYTES,
        max_inflight_msgs: APPENDS_IN_FLIGHT,
        check_quorum: true,
        pre_vote: true,
        batch_append: true,
        ..Config::default()
    }
}
