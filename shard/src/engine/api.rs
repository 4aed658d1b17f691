//! The engine's border: the events it takes, the actions it returns, and the files it speaks of.
//!
//! Contract between engine and driver:
//! - The driver calls `Engine::handle` once per event, in the order in which they happened, and
//!   `Engine::end_of_pass` after each pass of events: that is where a group commit is sealed.
//! - Every [`Action::Io`] is answered by exactly one [`Event::IoDone`] with its token, in any order.
//! - The driver may run I/O concurrently and complete it out of order. It never retries, reorders within one
//!   operation, or drops one.
//! - Actions are carried out in order as far as they concern one connection.

use std::collections::BTreeMap;
use std::sync::Arc;

use pyralog_core::{GroupId, NodeId, ShardId};
use pyralog_net::message::{FetchReplyHead, Request, Response};
use pyralog_replication::metadata::{Catalog, Command};
use smallvec::SmallVec;

use crate::memory::{Chunk, ChunkSlice};
use crate::pages::Pages;
use std::rc::Rc;

/// The most that [`Action::WantRecovery`] wants at once, bytes: small, so that shards take turns and what one is given is
/// over soon.
pub const RECOVERY_TURN_BYTES: usize = 256 << 10;

/// A client connection, named by the driver. Never reused within the life of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// A shard of another node: the other end of a node-to-node link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId {
    /// The node.
    pub node: NodeId,
    /// Its shard.
    pub shard: ShardId,
}

/// Names one I/O operation until it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IoToken(pub u64);

/// The time of an event, given by the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Now {
    /// Monotonic, microseconds since an arbitrary start; never goes back.
    pub monotonic_us: u64,
    /// Wall clock, milliseconds since the Unix epoch; may jump. Used for retention by age only.
    pub wall_ms: i64,
}

/// A file of the shard. The driver maps it to a path, the simulator to a simulated file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileId {
    /// Journal file number `n`: `<journal_dir>/shard-<s>/<n>.journal`.
    Journal(u32),
    /// One of the two checkpoint slots (0 or 1): `<data_dir>/shard-<s>/checkpoint.<n>`.
    Checkpoint(u8),
    /// A segment's batches: `<data_dir>/shard-<s>/<topic>-<partition>/<base offset, 20 digits>.log`.
    Segment(GroupId, i64),
    /// A segment's index, same name with `.index`. Derived from the segment, never evidence.
    Index(GroupId, i64),
}

/// One operation on a file.
#[derive(Debug)]
pub enum IoOp {
    /// Write one aligned range of a journal file, straight from the chunk (O_DIRECT). With `durable` the
    /// operation completes only when the bytes are on stable storage (RWF_DSYNC).
    JournalWrite {
        /// The journal file.
        file: FileId,
        /// Position in the file, a multiple of `JOURNAL_ALIGN`.
        offset: u64,
        /// The bytes; offset in the chunk and length are multiples of `JOURNAL_ALIGN`.
        data: ChunkSlice,
        /// Complete only when durable.
        durable: bool,
    },
    /// Write a gather list at `offset`, creating the file (durably, with its directory) when it is not there.
    /// Buffered: durable after a later [`IoOp::Sync`] only. A short write is an error.
    Write {
        /// The file.
        file: FileId,
        /// Position in the file.
        offset: u64,
        /// The bytes.
        data: Vec<ChunkSlice>,
    },
    /// Make everything written to the file durable, its length included (fdatasync).
    Sync {
        /// The file.
        file: FileId,
    },
    /// Create the file with `len` bytes of *written* zeros (not only allocated), durably, with its directory.
    CreateZeroed {
        /// The file.
        file: FileId,
        /// Its length, bytes.
        len: u64,
    },
    /// Read up to `len` bytes; the output is shorter only at the end of the file. A file that is not there is
    /// [`IoErrorKind::NotFound`].
    Read {
        /// The file.
        file: FileId,
        /// Position in the file.
        offset: u64,
        /// Most bytes to read, not more than the chunk's capacity.
        len: usize,
        /// Where to: nobody else refers to it.
        into: Rc<Chunk>,
    },
    /// Cut the file to `len` bytes. Durable after a later [`IoOp::Sync`].
    Truncate {
        /// The file.
        file: FileId,
        /// The new length, bytes.
        len: u64,
    },
    /// Remove the file; not there is success. Not durable by itself: it may be back after a crash.
    Delete {
        /// The file.
        file: FileId,
    },
    /// Remove the group's folder with everything in it; not there is success. Not durable by itself.
    DeleteGroup {
        /// The group.
        group: GroupId,
    },
}

/// Why an operation failed, as far as the engine acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoErrorKind {
    /// ENOSPC or EDQUOT: nothing may be assumed written.
    NoSpace,
    /// The file does not exist.
    NotFound,
    /// Anything else, EIO first of all.
    Other,
}

/// A failed operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoError {
    /// What the engine acts on.
    pub kind: IoErrorKind,
    /// For the log: the file and the system's message.
    pub detail: String,
}

/// How an operation ended. Reads deliver the chunk that they filled (`filled()` says how far).
pub type IoResult = Result<Option<Rc<Chunk>>, IoError>;

/// Something that happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// A request arrived on a connection of this shard.
    Request {
        /// The connection.
        conn: ConnId,
        /// Echoed in the reply.
        correlation_id: u64,
        /// The request; its bytes stay valid for this call only.
        request: Request<'a>,
    },
    /// A connection is gone; nothing more is sent to it.
    ConnectionClosed {
        /// The connection.
        conn: ConnId,
    },
    /// An operation ended.
    IoDone {
        /// Its token.
        token: IoToken,
        /// How.
        result: IoResult,
    },
    /// To shard 0: another shard of the node wants this in the catalogue.
    ControllerTold {
        /// What.
        command: Box<Command>,
    },
    /// Shard 0 published a catalogue (to every shard, itself included).
    CatalogPublished {
        /// The catalogue.
        catalog: Arc<Catalog>,
    },
    /// To shard 0: `shard` now serves this version of the catalogue.
    CatalogApplied {
        /// The shard.
        shard: ShardId,
        /// The version.
        version: u64,
    },
    /// Who leads groups of this node that have several replicas, for clients that ask any of its shards.
    LeadersTold {
        /// What changed, or everything.
        leaders: Vec<Leadership>,
    },
    /// A frame arrived from another node's shard. Only between its [`Self::PeerUp`] and [`Self::PeerDown`], once, and in
    /// the order in which it was sent there. The bytes stay valid for this call only.
    PeerFrame {
        /// Who sent it.
        from: PeerId,
        /// The messages, as `pyralog_replication::raft::frame` encodes them; not validated yet.
        control: &'a [u8],
        /// The batches' bytes of those messages, one after the other; not checked yet.
        payload: &'a [u8],
    },
    /// Links to and from that shard are connected. Comes for peers named by [`Action::WantPeers`] only.
    PeerUp {
        /// The other shard.
        peer: PeerId,
        /// Names the life of that shard: another number means that it was restarted. The same number again means
        /// that only the links were broken. In both cases what was in flight before may be lost.
        session: u64,
    },
    /// A link to or from that shard is broken, or it is wanted no more; nothing that is sent there arrives until the
    /// next [`Self::PeerUp`]. Comes once per `PeerUp`.
    PeerDown {
        /// The other shard.
        peer: PeerId,
    },
    /// At least one [`Action::SendPeer`] to that shard was dropped: the links are down or too much waits in them
    /// already. Comes at most once per pass, in a later pass than the one that dropped; do not answer it by sending
    /// the same at once.
    PeerDropped {
        /// The other shard.
        peer: PeerId,
    },
    /// The answer to [`Action::WantRecovery`]: so much may be asked of other nodes now.
    RecoveryTurn {
        /// As was wanted.
        bytes: usize,
    },
    /// The time that `Engine::next_deadline_us` asked for has come (calling it early is harmless).
    Tick,
    /// Stop: take no more requests, make everything durable, write out the cache, then [`Action::Stopped`].
    Shutdown,
}

/// The body of a reply.
#[derive(Debug)]
pub enum ReplyBody {
    /// A message.
    Message(Response),
    /// A fetch: the head, then the slices' bytes in order. They stay alive until the reply is dropped.
    Fetch {
        /// The head; its `batch_bytes` is the sum of the slices.
        head: FetchReplyHead,
        /// Whole batches.
        slices: SmallVec<[ChunkSlice; 4]>,
    },
}

/// Something to do.
#[derive(Debug)]
pub enum Action {
    /// Run an operation on a file.
    Io {
        /// To be given back with its end.
        token: IoToken,
        /// What.
        op: IoOp,
    },
    /// Send a reply.
    Reply {
        /// To whom.
        conn: ConnId,
        /// Of which request.
        correlation_id: u64,
        /// What.
        body: ReplyBody,
    },
    /// Shard 0 only: hand this catalogue to every shard ([`Event::CatalogPublished`]) and the control thread.
    PublishCatalog {
        /// The catalogue, committed.
        catalog: Arc<Catalog>,
    },
    /// Tell shard 0 ([`Event::CatalogApplied`]) that this shard serves that version.
    CatalogApplied {
        /// The version.
        version: u64,
    },
    /// The shard has fenced itself after an I/O error whose effect is unknown. The driver must await every
    /// running operation, then recover from disk (`recovery::recover`) and go on with the engine that it gives;
    /// client connections are closed. Until then this engine answers reads and refuses writes.
    Recover {
        /// What failed, for the log.
        reason: String,
    },
    /// This node can't go on in its cluster: the process is to end. The engine takes nothing any more.
    GiveUp {
        /// Why, and what to do.
        reason: String,
    },
    /// Readers hold evicted cache memory beyond its bound: close the connections whose sends have been
    /// stalled for longest until `bytes` of chunk memory are released.
    ShedSlowReaders {
        /// How much to free.
        bytes: usize,
    },
    /// Send a frame to another node's shard. Frames to one peer arrive in the order of their actions, or a
    /// [`Event::PeerDropped`] or [`Event::PeerDown`] tells that some may not.
    SendPeer {
        /// To whom.
        to: PeerId,
        /// The messages, as `pyralog_replication::raft::frame` encodes them; at most `MAX_PEER_CONTROL_BYTES`.
        control: Vec<u8>,
        /// The batches of those messages in their order; at most `MAX_PEER_PAYLOAD_BYTES` in all.
        payload: SmallVec<[ChunkSlice; 8]>,
    },
    /// Keep links to exactly these shards of other nodes; replaces the set of before.
    WantPeers {
        /// The set.
        peers: Vec<PeerId>,
        /// Where nodes are that the settings don't name.
        addresses: BTreeMap<NodeId, String>,
    },
    /// Tell shard 0 ([`Event::ControllerTold`]). It may be lost.
    TellController {
        /// What the catalogue is to hold.
        command: Box<Command>,
    },
    /// Tell every shard of the node, this one included ([`Event::LeadersTold`]).
    TellLeaders {
        /// What changed, or everything.
        leaders: Vec<Leadership>,
    },
    /// To be answered with [`Event::RecoveryTurn`] as soon as the rate at which the node may bring replicas up to date
    /// allows it ([`crate::recovery_budget`]). One at a time; it may be lost with the engine.
    WantRecovery {
        /// What is to be received, bytes; at most [`RECOVERY_TURN_BYTES`].
        bytes: usize,
    },
    /// A line for the operator's log.
    Log {
        /// How bad.
        level: LogLevel,
        /// What happened, to what, and what to do.
        text: String,
    },
    /// After [`Event::Shutdown`]: everything is on stable storage. From a shard that had fenced itself only what was
    /// answered as durable is.
    Stopped,
}

/// Who leads a group, as one of its replicas knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leadership {
    /// The group.
    pub group: GroupId,
    /// The leader's node; 0 while nobody leads.
    pub node: u32,
    /// The epoch (Raft's term) of that leadership, or of the election.
    pub epoch: u32,
}

/// Severity of [`Action::Log`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Data or availability is affected.
    Error,
    /// Something to look at.
    Warn,
    /// Rare and normal.
    Info,
}

/// The disk as recovery sees it: plain blocking calls, before the shard serves anybody. Each returns only when
/// it is done; `sync` makes the file's content and length durable.
pub trait RecoveryDisk {
    /// Every file of the shard with its length in bytes, in the order of `FileId`.
    fn list(&mut self) -> Result<Vec<(FileId, u64)>, IoError>;
    /// Fills `buffer` from `offset`; returns fewer bytes only at the end of the file.
    fn read(&mut self, file: FileId, offset: u64, buffer: &mut [u8]) -> Result<usize, IoError>;
    /// Fills `pages` from `offset`, as [`Self::read`] does, or exchanges the memory for such that is filled.
    fn read_pages(&mut self, file: FileId, offset: u64, pages: &mut Pages) -> Result<usize, IoError> {
        self.read(file, offset, pages.bytes_mut())
    }
    /// Announces that `file` will be read once, from `offset` to its end, in order.
    fn will_read_sequentially(&mut self, file: FileId, offset: u64);
    /// Writes all bytes, creating the file (durably) when it is not there.
    fn write(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> Result<(), IoError>;
    /// Makes the file durable.
    fn sync(&mut self, file: FileId) -> Result<(), IoError>;
    /// Creates the file with written zeros, durably.
    fn create_zeroed(&mut self, file: FileId, len: u64) -> Result<(), IoError>;
    /// Cuts the file.
    fn truncate(&mut self, file: FileId, len: u64) -> Result<(), IoError>;
    /// Removes the file; not there is success.
    fn delete(&mut self, file: FileId) -> Result<(), IoError>;
    /// Removes a group's folder; not there is success.
    fn delete_group(&mut self, group: GroupId) -> Result<(), IoError>;
    /// Tells how far the replay is, bytes.
    fn progress(&mut self, done: u64, total: u64);
}
