//! Messages between the replicas of a group. One frame on a link carries many, and the batches of their entries
//! behind them. Encoded with rkyv and validated when decoded (decision D8).

use pyralog_core::GroupId;
use raft::eraftpb::MessageType;
use rkyv::{Archive, Deserialize, Serialize};

use super::configuration::Configuration;
use super::log::{EntryKind, Header};

/// What a message is.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[rkyv(attr(allow(missing_docs)))]
pub enum MessageKind {
    /// Leader to follower: entries behind `index` of term `log_term`, and the commit.
    Append,
    /// Follower to leader: durable up to `index`, or `reject`ed with a hint where the logs may agree.
    AppendResponse,
    /// Would you vote for me? Changes nothing.
    RequestPreVote,
    /// The answer.
    RequestPreVoteResponse,
    /// Vote for me.
    RequestVote,
    /// The answer.
    RequestVoteResponse,
    /// Leader to follower: alive; the commit.
    Heartbeat,
    /// The answer.
    HeartbeatResponse,
    /// Leader to a follower behind its log's start: begin at `index`, `log_term`, `offset`.
    Snapshot,
    /// Leader to its successor: campaign now.
    TimeoutNow,
    /// Leader to follower: we agree on everything; no heartbeats from now on while our link is up.
    Quiesce,
    /// Beside the core: send me about `index` bytes of committed batches from `offset` on. `read` is 0 from a follower that
    /// catches up: so many as `commit` says of its questions before this one are not answered yet, and this one is for what comes
    /// behind those answers. One that repairs what it has names its question by `read`, below 32,768, and is answered with the
    /// same number.
    FetchBatches,
    /// The answer: the batches as entries without an index; `offset` is where the sender's log begins; `reject`ed when
    /// they can't be read.
    Batches,
    /// Beside the core: send me what you know of idempotent producers from batches below `offset`, of which retention has taken the
    /// batches themselves.
    FetchProducers,
    /// The answer, of the same `offset`: one entry without a meaning, whose bytes are the producers; `reject`ed when it is not known.
    Producers,
    /// To the leader of the metadata group, beside the core: append this command.
    Command,
    /// A replica that may not vote to all others, beside the core: what are you, and do you know me? `index` is the number
    /// of its disk.
    RequestStanding,
    /// The answer: `term`; the last entry, `index`; `commit` is the number of a [`super::Standing`]; `transfer`ed to: it
    /// leads; `read` is the number of its disk; `reject`ed: it does not know the asker's disk as one of the group's first;
    /// `configurations`: who the replicas are as far as it knows that this is committed, and by the newest entry of its log.
    RequestStandingResponse,
}

impl MessageKind {
    /// Whether it answers another one, of the core.
    pub fn is_answer(self) -> bool {
        matches!(
            self,
            Self::AppendResponse
                | Self::RequestPreVoteResponse
                | Self::RequestVoteResponse
                | Self::HeartbeatResponse
        )
    }

    /// Whether only a leader sends it, to those who follow it.
    pub fn is_from_leader(self) -> bool {
        matches!(self, Self::Append | Self::Heartbeat | Self::Snapshot | Self::Quiesce)
    }
}

/// An entry in an [`MessageKind::Append`].
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[rkyv(attr(allow(missing_docs)))]
pub struct EntryHead {
    /// Term in which it was made.
    pub term: u32,
    /// Number of an [`super::EntryKind`].
    pub kind: u8,
    /// Offset of its first record.
    pub base_offset: i64,
    /// Offset after its last record.
    pub next_offset: i64,
    /// Bytes of its batch, which follow the messages in the order of the entries.
    pub bytes: u32,
}

/// A message of one group.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[rkyv(attr(allow(missing_docs)))]
pub struct Message {
    /// What it is.
    pub kind: MessageKind,
    /// Topic of the group.
    pub topic: u32,
    /// Partition of the group.
    pub partition: u32,
    /// Node that sends.
    pub from: u32,
    /// Node that is to receive.
    pub to: u32,
    /// The sender's term (in pre-votes: the term it would take).
    pub term: u32,
    /// Term of entry `index`.
    pub log_term: u32,
    /// An index; see the kinds.
    pub index: u64,
    /// The sender's commit.
    pub commit: u64,
    /// Term of entry `commit` (votes only).
    pub commit_term: u32,
    /// Refused.
    pub reject: bool,
    /// Where the logs may agree.
    pub reject_hint: u64,
    /// A vote on behalf of a leader that hands over: valid within its lease.
    pub transfer: bool,
    /// Names a round of heartbeats that confirms a read; 0 = none.
    pub read: u64,
    /// Of a snapshot: the offset of the first record behind it.
    pub offset: i64,
    /// Of an append.
    pub entries: Vec<EntryHead>,
    /// What the entries that are configurations say, in their order; of a snapshot the one at its place; of the answer about a
    /// standing see there.
    pub configurations: Vec<Configuration>,
}

impl Message {
    /// A message with nothing but its kind and where it goes.
    pub fn new(kind: MessageKind, group: GroupId, from: u32, to: u32, term: u32) -> Self {
        Self {
            kind,
            topic: group.topic.0,
            partition: group.partition,
            from,
            to,
            term,
            log_term: 0,
            index: 0,
            commit: 0,
            commit_term: 0,
            reject: false,
            reject_hint: 0,
            transfer: false,
            read: 0,
            offset: 0,
            entries: Vec::new(),
            configurations: Vec::new(),
        }
    }

    /// The group.
    pub fn group(&self) -> GroupId {
        GroupId::new(self.topic, self.partition)
    }

    /// How many of the first `entries` entries are configurations.
    pub fn configurations_among(&self, entries: usize) -> usize {
        configurations_in(self.entries.iter().take(entries))
    }

    /// An append without the entries behind the first `entries`, which are given back with what they say.
    pub fn split_off(&mut self, entries: usize) -> (Vec<EntryHead>, Vec<Configuration>) {
        let configurations = self.configurations_among(entries);
        (self.entries.split_off(entries), self.configurations.split_off(configurations))
    }

    /// Bytes of the batches that belong to it.
    pub fn payload_bytes(&self) -> u64 {
        self.entries.iter().map(|entry| u64::from(entry.bytes)).sum()
    }
}

impl EntryHead {
    pub(super) fn of(header: &Header) -> Self {
        Self {
            term: header.term,
            kind: header.kind as u8,
            base_offset: header.base_offset,
            next_offset: header.next_offset,
            bytes: header.bytes,
        }
    }
}

/// How many of these entries are configurations.
pub(super) fn configurations_in<'a>(entries: impl Iterator<Item = &'a EntryHead>) -> usize {
    entries.filter(|entry| entry.kind == EntryKind::Configuration as u8).count()
}

/// The core's name of a kind; `None` for those beside it.
pub(super) fn core_type(kind: MessageKind) -> Option<MessageType> {
    Some(match kind {
        MessageKind::Append => MessageType::MsgAppend,
        MessageKind::AppendResponse => MessageType::MsgAppendResponse,
        MessageKind::RequestPreVote => MessageType::MsgRequestPreVote,
        MessageKind::RequestPreVoteResponse => MessageType::MsgRequestPreVoteResponse,
        MessageKind::RequestVote => MessageType::MsgRequestVote,
        MessageKind::RequestVoteResponse => MessageType::MsgRequestVoteResponse,
        MessageKind::Heartbeat | MessageKind::Quiesce => MessageType::MsgHeartbeat,
        MessageKind::HeartbeatResponse => MessageType::MsgHeartbeatResponse,
        MessageKind::Snapshot => MessageType::MsgSnapshot,
        MessageKind::TimeoutNow => MessageType::MsgTimeoutNow,
        MessageKind::FetchBatches
        | MessageKind::Batches
        | MessageKind::FetchProducers
        | MessageKind::Producers
        | MessageKind::Command
        | MessageKind::RequestStanding
        | MessageKind::RequestStandingResponse => return None,
    })
}

/// The kind of a core's message; `None` for those that stay inside.
pub(super) fn message_kind(core: MessageType) -> Option<MessageKind> {
    Some(match core {
        MessageType::MsgAppend => MessageKind::Append,
        MessageType::MsgAppendResponse => MessageKind::AppendResponse,
        MessageType::MsgRequestPreVote => MessageKind::RequestPreVote,
        MessageType::MsgRequestPreVoteResponse => MessageKind::RequestPreVoteResponse,
        MessageType::MsgRequestVote => MessageKind::RequestVote,
        MessageType::MsgRequestVoteResponse => MessageKind::RequestVoteResponse,
        MessageType::MsgHeartbeat => MessageKind::Heartbeat,
        MessageType::MsgHeartbeatResponse => MessageKind::HeartbeatResponse,
        MessageType::MsgSnapshot => MessageKind::Snapshot,
        MessageType::MsgTimeoutNow => MessageKind::TimeoutNow,
        _ => return None,
    })
}
