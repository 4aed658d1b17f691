//! The messages of the client protocol, as typed values. Their bytes are in `docs/protocol.md`.
//!
//! Requests borrow from the receive buffer: nothing is allocated to decode one, but for a list of nodes. Byte strings from the wire
//! have been checked against their bounds when a value of these types exists.

use pyralog_core::{ErrorCode, GroupId, Quorums};

pub use crate::replicas::ReplicaList;

/// When a produce may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Acks {
    /// As soon as the batch has its offset; nothing is on stable storage yet.
    None = 0,
    /// When the leader's journal holds it as its fsync policy demands.
    Leader = 1,
    /// When a quorum of journals holds it as their fsync policy demands (the default).
    Quorum = 2,
}

/// What was reached when a produce was answered. The reply always says it (decision D4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Durability {
    /// In the leader's memory.
    Memory = 0,
    /// Written to the leader's journal file, not flushed.
    Written = 1,
    /// On the leader's stable storage.
    LeaderDurable = 2,
    /// On the stable storage of a quorum of the partition's replicas.
    QuorumDurable = 3,
}

/// A request, borrowed from the buffer that it was received in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Append one record batch.
    Produce(ProduceRequest<'a>),
    /// Read batches.
    Fetch(FetchRequest),
    /// Find an offset by position or time.
    ListOffsets(ListOffsetsRequest),
    /// Ask for the node, its shards and topics.
    Metadata(MetadataRequest<'a>),
    /// Ask for a producer id (controller shard only).
    InitProducerId,
    /// Create a topic (controller shard only).
    CreateTopic(CreateTopicRequest<'a>),
    /// Delete a topic and its data (controller shard only).
    DeleteTopic(DeleteTopicRequest<'a>),
    /// Ask for the state of partitions that this shard owns.
    DescribePartitions(DescribePartitionsRequest),
    /// Ask for nothing: a round trip.
    Ping,
    /// Have the replicas of a partition be on other nodes (controller shard only).
    ReassignPartition(ReassignPartitionRequest<'a>),
    /// Ask which partitions are on their way to other nodes (controller shard only).
    ListReassignments(ListReassignmentsRequest),
    /// Remove a node for good (controller shard only).
    RemoveNode(RemoveNodeRequest),
    /// Have one replica of a partition go on alone.
    RecoverPartition(RecoverPartitionRequest<'a>),
    /// See [`AddNodeRequest`].
    AddNode(AddNodeRequest<'a>),
    /// Change the settings of a topic, or add partitions (controller shard only).
    AlterTopic(AlterTopicRequest<'a>),
    /// Ask how far this shard is with scrubbing, and have it begin.
    Scrub(ScrubRequest),
}

/// Append one batch to one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProduceRequest<'a> {
    /// The partition.
    pub group: GroupId,
    /// When to answer.
    pub acks: Acks,
    /// Give up after this time, milliseconds; 0 = the node's `request_timeout_ms`.
    pub timeout_ms: u32,
    /// Exactly one RecordBatch v2.
    pub batch: &'a [u8],
}

/// Who may answer a read, and what it sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Consistency {
    /// The leader, from what it knows. One that was cut off from the others may not know that it has been replaced for as
    /// long as an election takes at most.
    #[default]
    Leader = 0,
    /// The leader, after a majority has confirmed that it leads: everything that was acknowledged before the request.
    Linearizable = 1,
    /// Any replica, from what it knows to be committed, which may be less than another one knows: also without a leader.
    AnyReplica = 2,
}

impl Consistency {
    /// The one with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Leader),
            1 => Some(Self::Linearizable),
            2 => Some(Self::AnyReplica),
            _ => None,
        }
    }
}

/// Read whole batches from one partition, from the batch that holds `offset` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchRequest {
    /// The partition.
    pub group: GroupId,
    /// First offset wanted; the reply may begin with earlier records of the same batch.
    pub offset: i64,
    /// Wait until at least this many bytes are there (or `max_wait_ms` is over); 0 answers at once.
    pub min_bytes: u32,
    /// Return at most this many bytes, but always at least one whole batch.
    pub max_bytes: u32,
    /// How long to wait for `min_bytes`, milliseconds.
    pub max_wait_ms: u32,
    /// Who may answer.
    pub consistency: Consistency,
}

/// Which offset is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetSpec {
    /// The log start.
    Earliest,
    /// The high watermark.
    Latest,
    /// The base offset of the first batch whose largest timestamp is at least this, milliseconds since the
    /// Unix epoch; the high watermark when there is none.
    Timestamp(i64),
}

/// Find an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListOffsetsRequest {
    /// The partition.
    pub group: GroupId,
    /// What to find.
    pub spec: OffsetSpec,
    /// Who may answer.
    pub consistency: Consistency,
}

/// Metadata of one topic, or of all when `topic` is `None`. Topics come in the order of their ids and in
/// pages: `start_after` is the last topic id of the page before (0 for the first).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetadataRequest<'a> {
    /// Name of the one topic wanted.
    pub topic: Option<&'a str>,
    /// Last topic id already seen.
    pub start_after: u32,
}

/// Create a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateTopicRequest<'a> {
    /// Its name.
    pub name: &'a str,
    /// How many partitions.
    pub partitions: u32,
    /// Copies and quorums; 0 = the node's default.
    pub quorums: Quorums,
    /// Retention by size per partition, bytes; -1 = the node's default, 0 = unlimited.
    pub retention_bytes: i64,
    /// Retention by age, milliseconds; -1 = the node's default, 0 = unlimited.
    pub retention_ms: i64,
}

/// Delete a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeleteTopicRequest<'a> {
    /// Its name.
    pub name: &'a str,
}

/// Have the replicas of a partition be on these nodes. It is answered when that is decided; the partition is on its way then, and serves
/// as before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReassignPartitionRequest<'a> {
    /// Name of the topic.
    pub topic: &'a str,
    /// The partition.
    pub partition: u32,
    /// As many as the partition has replicas, the preferred leader first. None: it stays where it is, a move that is under way is
    /// taken back.
    pub nodes: Vec<u32>,
}

/// Change the settings of a topic, or add partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlterTopicRequest<'a> {
    /// Its name.
    pub name: &'a str,
    /// How many partitions it is to have, not fewer than it has; 0 = as many as it has.
    pub partitions: u32,
    /// Quorums; 0 = as they are. The replication factor stays: it is 0.
    pub quorums: Quorums,
    /// Retention by size per partition, bytes; -1 = the node's default, 0 = unlimited, -2 = as it is.
    pub retention_bytes: i64,
    /// Retention by age, milliseconds; -1 = the node's default, 0 = unlimited, -2 = as it is.
    pub retention_ms: i64,
}

impl AlterTopicRequest<'_> {
    /// A retention that stays as it is.
    pub const AS_IT_IS: i64 = -2;
}

/// Let a node come that is not named in the settings of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddNodeRequest<'a> {
    /// Its id, from 1.
    pub node: u32,
    /// Where the other nodes connect, `host:port`; at most `MAX_ADDRESS_BYTES`.
    pub internal_address: &'a str,
}

/// Have one replica of a partition go on alone, whose others are lost for good. What only those held is lost with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoverPartitionRequest<'a> {
    /// The topic's name.
    pub topic: &'a str,
    /// The partition.
    pub partition: u32,
    /// The node whose replica goes on.
    pub node: u32,
    /// The highest epoch that any replica knows which can be asked: the partition goes on in a higher one.
    pub epoch: u32,
}

/// Remove a node that holds no replica and to which none is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoveNodeRequest {
    /// Its id.
    pub node: u32,
}

/// How far a shard is with scrubbing: reading its segments again to find what has rotted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubRequest {
    /// Begin a scrub of all segments now, unless one is under way.
    pub start: bool,
}

/// Partitions whose replicas are on their way to other nodes, in their order and in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListReassignmentsRequest {
    /// Those before this one were told in pages before; the first page begins at partition 0 of topic 0.
    pub from: GroupId,
}

/// State of the partitions `first..first+count` of a topic that this shard owns (others are left out).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescribePartitionsRequest {
    /// The topic.
    pub topic: u32,
    /// First partition.
    pub first: u32,
    /// How many partitions, at most 1,000.
    pub count: u32,
}

/// A reply other than an error. Every reply can also be [`ErrorReply`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// To any request.
    Error(ErrorReply),
    /// To `Produce`.
    Produce(ProduceReply),
    /// To `Fetch`: the head; `batch_bytes` bytes of whole batches follow it in the frame.
    Fetch(FetchReplyHead),
    /// To `ListOffsets`.
    ListOffsets(ListOffsetsReply),
    /// To `Metadata`.
    Metadata(Box<MetadataReply>),
    /// To `InitProducerId`.
    InitProducerId(InitProducerIdReply),
    /// To `CreateTopic`.
    CreateTopic(CreateTopicReply),
    /// To `DeleteTopic`.
    DeleteTopic,
    /// To `DescribePartitions`.
    DescribePartitions(Vec<PartitionState>),
    /// To `Ping`.
    Pong,
    /// To `ReassignPartition`.
    ReassignPartition,
    /// To `ListReassignments`.
    ListReassignments(ListReassignmentsReply),
    /// To `RemoveNode`.
    RemoveNode,
    /// To `RecoverPartition`.
    RecoverPartition,
    /// To `AddNode`.
    AddNode,
    /// To `AlterTopic`.
    AlterTopic,
    /// To `Scrub`.
    Scrub(ScrubReply),
}

/// How far a shard is with scrubbing. Counts are of the time since the node started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubReply {
    /// All segments are being read.
    pub running: bool,
    /// Damaged ranges at present: they are refused.
    pub damaged: u32,
    /// Read of them so far, bytes.
    pub done_bytes: u64,
    /// All segments, bytes.
    pub total_bytes: u64,
    /// When all of them had been read last, milliseconds since the Unix epoch; 0 = not yet.
    pub ended_ms: i64,
    /// Damaged ranges that were found, by a scrub or by a reader.
    pub found: u64,
    /// Damaged ranges that are whole again.
    pub repaired: u64,
    /// Bytes that were fetched from other replicas for that.
    pub repaired_bytes: u64,
    /// Times that no other replica could give them, or that the disk did not keep them.
    pub failed: u64,
}

/// A request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorReply {
    /// Why.
    pub code: ErrorCode,
    /// What exactly, for a person; may be empty. At most 1,024 bytes on the wire.
    pub detail: String,
}

/// A batch was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProduceReply {
    /// Offset of the batch's first record.
    pub base_offset: i64,
    /// The high watermark when the reply was made.
    pub high_watermark: i64,
    /// What was reached.
    pub durability: Durability,
    /// The batch was there already; `base_offset` is the first one's.
    pub duplicate: bool,
}

/// The head of a fetch's reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchReplyHead {
    /// First offset that is still in the log.
    pub log_start: i64,
    /// Records below this offset are committed.
    pub high_watermark: i64,
    /// Bytes of batches that follow.
    pub batch_bytes: u32,
}

/// An offset was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListOffsetsReply {
    /// The offset.
    pub offset: i64,
    /// The largest timestamp of the batch found, milliseconds; -1 when there is none.
    pub timestamp: i64,
}

/// The cluster and a page of its topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataReply {
    /// Id of the node that answers.
    pub node: u32,
    /// The node whose shard 0 takes administrative requests; 0 when the node that answers knows none.
    pub controller: u32,
    /// The cluster's name, at most 64 bytes.
    pub cluster: String,
    /// The cluster's nodes, in the order of their ids, the one that answers among them.
    pub nodes: Vec<NodeMetadata>,
    /// Version of the catalogue; grows with each change.
    pub version: u64,
    /// The cluster's feature level; 0 from a node that does not know any.
    pub feature_level: u16,
    /// The server's version string.
    pub server: String,
    /// More topics follow: ask again with `start_after` = the last id of this page.
    pub more: bool,
    /// The page of topics.
    pub topics: Vec<TopicMetadata>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeMetadata {
    /// Its id.
    pub id: u32,
    /// Its number of shards.
    pub shards: u16,
    /// Address that clients should use, `host:port`.
    pub address: String,
    /// What fails together with it, at most 64 bytes; empty when nobody has said.
    pub rack: String,
    /// Lowest feature level that it supports; 0 = not known.
    pub level_min: u16,
    /// Highest feature level that it supports; 0 = not known.
    pub level_max: u16,
}

/// One topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicMetadata {
    /// Its id, used in all other requests.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Copies and quorums.
    pub quorums: Quorums,
    /// Retention by size per partition, bytes; -1 = the node's default, 0 = unlimited.
    pub retention_bytes: i64,
    /// Retention by age, milliseconds; -1 = the node's default, 0 = unlimited.
    pub retention_ms: i64,
    /// Where each partition is, in the order of their indexes.
    pub partitions: Vec<PartitionMetadata>,
}

/// Where one partition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionMetadata {
    /// The node that leads it; 0 when the node that answers knows none.
    pub leader: u32,
    /// Epoch of that leadership; 0 when the node that answers does not know it.
    pub epoch: u32,
    /// The shard of the leader that owns it.
    pub shard: u16,
    /// Its replicas, the preferred leader first.
    pub replicas: ReplicaList<ReplicaMetadata>,
}

impl PartitionMetadata {
    /// One of its replicas leads it, in this epoch; 0 = nothing is known of that.
    pub fn lead_by(&mut self, node: u32, epoch: u32) {
        if let Some(replica) = self.replicas.iter().find(|replica| replica.node == node) {
            (self.leader, self.shard, self.epoch) = (node, replica.shard, epoch);
        }
    }
}

/// One replica of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplicaMetadata {
    /// Its node.
    pub node: u32,
    /// The shard there.
    pub shard: u16,
    /// Whether it leads, as far as the node that answers knows. Who else is in sync only the leader knows: ask it with
    /// `DescribePartitions`.
    pub in_sync: bool,
}

/// A producer id was assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitProducerIdReply {
    /// Never assigned before.
    pub producer_id: i64,
    /// The session's epoch.
    pub producer_epoch: i16,
}

/// A topic was created and every shard serves its partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateTopicReply {
    /// Its id.
    pub id: u32,
}

/// How a partition is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PartitionHealth {
    /// Reads and writes.
    Online = 0,
    /// Some range is damaged; the rest is readable and writes go on.
    Damaged = 1,
    /// The end of the log is unknown after corruption: readable, no writes.
    LogEndUnknown = 2,
    /// This replica has lost what it held, by damage or with its disk, and votes for nobody until it has it from the others.
    Rejoining = 3,
}

/// State of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionState {
    /// Index within the topic.
    pub partition: u32,
    /// The node that leads it; 0 when this replica knows none.
    pub leader: u32,
    /// The leader's epoch.
    pub epoch: u32,
    /// First offset still there.
    pub log_start: i64,
    /// Committed below this.
    pub high_watermark: i64,
    /// Offset that the next record gets.
    pub log_end: i64,
    /// Committed records below this are in segments.
    pub flushed: i64,
    /// Segment files.
    pub segments: u32,
    /// Bytes in segments.
    pub segment_bytes: u64,
    /// Bytes in the tail cache.
    pub cached_bytes: u64,
    /// Producers remembered.
    pub producers: u32,
    /// Its health.
    pub health: PartitionHealth,
    /// Its replicas as their leader sees them, the preferred leader first; from a replica that does not lead, none.
    pub replicas: ReplicaList<ReplicaState>,
}

/// What a replica does, as its leader sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum ReplicationState {
    /// This leader has not heard how much it has.
    #[default]
    Unknown = 0,
    /// It is the leader.
    Leader = 1,
    /// It takes what the leader appends.
    Replicating = 2,
    /// It lacks more than the leader holds in memory and is given it from segments.
    CatchingUp = 3,
    /// It has lost what it held, by damage or with its disk, and gets it from the others.
    Rejoining = 4,
    /// There is no link to it.
    Unreachable = 5,
}

impl ReplicationState {
    /// The one with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        let all = [
            Self::Unknown,
            Self::Leader,
            Self::Replicating,
            Self::CatchingUp,
            Self::Rejoining,
            Self::Unreachable,
        ];
        all.into_iter().find(|state| *state as u8 == number)
    }
}

/// What a replica counts for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplicaRole {
    /// It votes, and is one of those whose copies are counted.
    #[default]
    Voter,
    /// It is on its way here: it follows, and counts for nothing yet.
    Joining,
    /// It is about to go: former and new replicas decide together until then.
    Leaving,
}

/// State of one replica, as its leader sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplicaState {
    /// Its node.
    pub node: u32,
    /// The shard there.
    pub shard: u16,
    /// Whether it is in sync: it can be reached, and had everything that its leader has within the last ten seconds.
    pub in_sync: bool,
    /// What it counts for.
    pub role: ReplicaRole,
    /// What it does.
    pub state: ReplicationState,
    /// Records below this are in its journal as its fsync policy demands, as far as the leader has heard;
    /// [`Self::UNKNOWN_END`] when it has heard nothing yet.
    pub log_end: i64,
    /// Bytes of batches that it lacks; an estimate where the leader does not have them in memory any more. 0 when
    /// `log_end` is not known.
    pub lag_bytes: u64,
    /// How long ago it had everything, milliseconds; 0 while it has.
    pub lag_ms: u64,
}

impl ReplicaState {
    /// A `log_end` that is not known.
    pub const UNKNOWN_END: i64 = -1;

    /// Where its log ends, if that is known.
    pub fn known_end(&self) -> Option<i64> {
        (self.log_end >= 0).then_some(self.log_end)
    }

    /// Records that it lacks of a leader's log that ends at `log_end`, if it is known where its own one ends.
    pub fn lag_records(&self, log_end: i64) -> Option<u64> {
        self.known_end().map(|end| log_end.saturating_sub(end).max(0).unsigned_abs())
    }

    /// Bytes that it lacks, if it is known where its log ends.
    pub fn known_lag_bytes(&self) -> Option<u64> {
        self.known_end().map(|_| self.lag_bytes)
    }
}

/// Partitions on their way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListReassignmentsReply {
    /// In the order of topic and partition; at most 1,000.
    pub reassignments: Vec<Reassignment>,
    /// There are more behind the last one.
    pub more: bool,
}

/// A partition on its way to other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reassignment {
    /// The partition.
    pub group: GroupId,
    /// The nodes of its replicas before, the preferred leader first.
    pub from: Vec<u32>,
    /// The nodes that are to have them.
    pub to: Vec<u32>,
}
