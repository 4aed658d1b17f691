//! The journal's group commits and the frames in them (`docs/storage-format.md`, "Journal").
//!
//! A commit is a header, frames, and zeros up to a multiple of [`JOURNAL_ALIGN`]. Every byte that matters is
//! covered: the commit header by its CRC, each frame header by a CRC that is also bound to the commit it was
//! written for, the sequence of frame headers by `frames_crc`, and a batch by its own CRC together with the
//! frame header's copy of the fields which that CRC leaves out.
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

use std::ops::Range;

use pyralog_core::GroupId;
use pyralog_core::limits::{
    BATCH_HEADER_BYTES, CHUNK_BYTES, JOURNAL_ALIGN, MAX_BATCH_BYTES, MAX_BATCH_RECORDS,
};

use pyralog_replication::raft::{Configuration, MAX_CONFIGURATION_BYTES};

use super::batch::{BatchError, BatchHead};
use super::bytes::{array_at, i64_le, put, u16_le, u32_le, u64_le};

/// First bytes of a commit header.
pub const COMMIT_MAGIC: [u8; 4] = [0xB7, b'P', b'J', b'C'];
/// Version of the journal's format.
pub const JOURNAL_VERSION: u16 = 4;
/// The oldest version that is read: it has no frames of [`FrameKind::Configuration`].
pub const OLDEST_JOURNAL_VERSION: u16 = 3;
/// Bytes of a commit header.
pub const COMMIT_HEADER_BYTES: usize = 96;
/// Bytes of a frame header.
pub const FRAME_HEADER_BYTES: usize = 48;
/// Frames start at multiples of this, counted from the commit's start.
pub const FRAME_ALIGN: usize = 8;
/// Largest commit, padding included: one region.
pub const MAX_COMMIT_BYTES: usize = CHUNK_BYTES;
/// `flags` bit: nothing but a newer durable point.
const FLAG_MARKER: u16 = 1;

/// Bytes that a commit with this payload takes in the journal: header, payload and padding.
pub const fn padded_len(payload_bytes: usize) -> usize {
    (COMMIT_HEADER_BYTES + payload_bytes).next_multiple_of(JOURNAL_ALIGN)
}

/// Bytes that a frame with this body takes in a commit's payload: header, body and padding.
pub const fn frame_len(body_bytes: usize) -> usize {
    FRAME_HEADER_BYTES + body_bytes.next_multiple_of(FRAME_ALIGN)
}

/// Header of a group commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CommitHeader {
    /// The commit has no frames: it was written when the shard fell idle, to record the durable point.
    pub marker: bool,
    /// Identity of the journal, drawn once when the data folder was made.
    pub journal_id: u64,
    /// Generation of the file's current use, from 1; the next file in the log has the next one.
    pub generation: u64,
    /// Number of the commit, from 1, without gaps.
    pub lsn: u64,
    /// Life of the journal, from 1; one more after each recovery, never falls along the log.
    pub incarnation: u64,
    /// All commits up to this one were known durable when this one was submitted.
    pub durable_lsn: u64,
    /// Byte position of this commit in its file.
    pub position: u64,
    /// Bytes from the header's end to the end of the last frame (padded to 8).
    pub payload_len: u32,
    /// Frames.
    pub frame_count: u32,
    /// `header_crc` of the commit before; 0 for the first.
    pub prev_crc: u32,
    /// Number of the file that this commit is in.
    pub file: u32,
    /// CRC32C over the first 44 bytes of all frame headers, one after the other; see [`FramesCrc`].
    pub frames_crc: u32,
    /// CRC32C over the header before it. Filled in by [`Self::encode`] and [`Self::decode`].
    pub header_crc: u32,
}

/// Why bytes are no group commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// Fewer bytes than the commit needs.
    #[error("the bytes end inside the commit")]
    Incomplete,
    /// No commit starts here.
    #[error("no commit starts here")]
    Magic,
    /// A version that this program does not know.
    #[error(
        "the journal has version {0}; this program reads versions {OLDEST_JOURNAL_VERSION} to {JOURNAL_VERSION}: use the program that wrote it"
    )]
    Version(u16),
    /// The header's bytes are not those that were written.
    #[error("the commit header's checksum does not match")]
    Checksum,
    /// A field holds a value that a commit never has.
    #[error("the commit header's {0} is out of its bounds")]
    Field(&'static str),
    /// The frames are not those that the header was sealed with.
    #[error("the commit's frames are not those that its header names")]
    Frames,
    /// A frame is broken.
    #[error("the frame at byte {at} of the commit's payload is broken: {error}")]
    Frame {
        /// Position of its header in the payload.
        at: usize,
        /// How.
        error: FrameError,
    },
}

impl CommitHeader {
    /// The header's bytes. Computes `header_crc`, which the next commit names as its `prev_crc`.
    pub fn encode(&mut self) -> [u8; COMMIT_HEADER_BYTES] {
        let mut bytes = [0; COMMIT_HEADER_BYTES];
        let flags = if self.marker { FLAG_MARKER } else { 0 };
        put(&mut bytes, 0, &COMMIT_MAGIC);
        put(&mut bytes, 4, &JOURNAL_VERSION.to_le_bytes());
        put(&mut bytes, 6, &flags.to_le_bytes());
        put(&mut bytes, 8, &self.journal_id.to_le_bytes());
        put(&mut bytes, 16, &self.generation.to_le_bytes());
        put(&mut bytes, 24, &self.lsn.to_le_bytes());
        put(&mut bytes, 32, &self.incarnation.to_le_bytes());
        put(&mut bytes, 40, &self.durable_lsn.to_le_bytes());
        put(&mut bytes, 48, &self.position.to_le_bytes());
        put(&mut bytes, 56, &self.payload_len.to_le_bytes());
        put(&mut bytes, 60, &self.frame_count.to_le_bytes());
        put(&mut bytes, 64, &self.prev_crc.to_le_bytes());
        put(&mut bytes, 68, &self.file.to_le_bytes());
        put(&mut bytes, 72, &self.frames_crc.to_le_bytes());
        self.header_crc = bytes.get(..92).map_or(0, crc32c::crc32c);
        put(&mut bytes, 92, &self.header_crc.to_le_bytes());
        bytes
    }

    /// Reads the header at the start of `bytes`: magic, version, CRC and bounds are checked; whether it belongs
    /// to this journal and place is the caller's question.
    pub fn decode(bytes: &[u8]) -> Result<Self, CommitError> {
        // Most blocks looked at are no commits: decide on the magic before anything else.
        if array_at(bytes, 0) != Some(COMMIT_MAGIC) {
            return Err(CommitError::Magic);
        }
        let header = bytes.get(..COMMIT_HEADER_BYTES).ok_or(CommitError::Incomplete)?;
        let (covered, crc) = header.split_last_chunk::<4>().ok_or(CommitError::Incomplete)?;
        let header_crc = u32::from_le_bytes(*crc);
        if crc32c::crc32c(covered) != header_crc {
            return Err(CommitError::Checksum);
        }
        let version = u16_le(header, 4).ok_or(CommitError::Incomplete)?;
        if !(OLDEST_JOURNAL_VERSION..=JOURNAL_VERSION).contains(&version) {
            return Err(CommitError::Version(version));
        }
        let decoded = Self::fields(header, header_crc).ok_or(CommitError::Incomplete)?;
        decoded.check(header)?;
        Ok(decoded)
    }

    fn fields(header: &[u8], header_crc: u32) -> Option<Self> {
        Some(Self {
            marker: u16_le(header, 6)? & FLAG_MARKER != 0,
            journal_id: u64_le(header, 8)?,
            generation: u64_le(header, 16)?,
            lsn: u64_le(header, 24)?,
            incarnation: u64_le(header, 32)?,
            durable_lsn: u64_le(header, 40)?,
            position: u64_le(header, 48)?,
            payload_len: u32_le(header, 56)?,
            frame_count: u32_le(header, 60)?,
            prev_crc: u32_le(header, 64)?,
            file: u32_le(header, 68)?,
            frames_crc: u32_le(header, 72)?,
            header_crc,
        })
    }

    fn check(&self, header: &[u8]) -> Result<(), CommitError> {
        let payload = self.payload_len as usize;
        let frames = u64::from(self.frame_count);
        let wrong = if u16_le(header, 6).is_none_or(|flags| flags & !FLAG_MARKER != 0) {
            "flags"
        } else if self.generation == 0 {
            "generation"
        } else if self.lsn == 0 || self.lsn == u64::MAX {
            "lsn"
        } else if self.incarnation == 0 {
            "incarnation"
        } else if self.durable_lsn >= self.lsn {
            "durable lsn"
        } else if !self.position.is_multiple_of(JOURNAL_ALIGN as u64) {
            "position"
        } else if payload > MAX_COMMIT_BYTES - COMMIT_HEADER_BYTES || !payload.is_multiple_of(FRAME_ALIGN) {
            "payload length"
        } else if frames * FRAME_HEADER_BYTES as u64 > payload as u64 || (frames == 0) != (payload == 0) {
            "frame count"
        } else if self.marker && frames != 0 {
            "marker flag"
        } else if header.get(76..92).is_none_or(|zeros| zeros.iter().any(|byte| *byte != 0)) {
            "reserved bytes"
        } else {
            return Ok(());
        };
        Err(CommitError::Field(wrong))
    }

    /// Bytes that the commit takes in the journal, padding included.
    pub fn padded_len(&self) -> usize {
        padded_len(self.payload_len as usize)
    }

    /// Byte position after the commit and its padding.
    pub fn end_position(&self) -> u64 {
        self.position.saturating_add(self.padded_len() as u64)
    }

    /// What this commit's frame headers are bound to; see [`frame_seed`].
    pub fn frame_seed(&self) -> u32 {
        frame_seed(self.journal_id, self.incarnation, self.lsn)
    }

    /// Checks every frame of `payload` (exactly `payload_len` bytes) and lists them with the position of their
    /// body, counted from the payload's start. `frames` is cleared first; on an error it holds the frames
    /// before the broken one.
    pub fn verify_frames(
        &self,
        payload: &[u8],
        frames: &mut Vec<(FrameHeader, usize)>,
    ) -> Result<(), CommitError> {
        frames.clear();
        if payload.len() != self.payload_len as usize {
            return Err(CommitError::Incomplete);
        }
        let mut walk = Frames::new(payload, self.frame_seed());
        let mut at = 0;
        while let Some(next) = walk.next() {
            let (frame, body) = next.map_err(|error| CommitError::Frame { at, error })?;
            let bytes = payload.get(body.clone()).ok_or(CommitError::Incomplete)?;
            frame.verify_body(bytes).map_err(|error| CommitError::Frame { at, error })?;
            frames.push((frame, body.start));
            at = walk.position;
        }
        match frames.len() == self.frame_count as usize && walk.headers_crc() == self.frames_crc {
            true => Ok(()),
            false => Err(CommitError::Frames),
        }
    }
}

/// What a frame is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// A record batch; the body.
    Batch = 1,
    /// The group is on this shard from here on; `base_offset` is where its log starts. With a `record_count` of 1 it was
    /// here before, on a disk that is lost, and the replica begins as with [`FrameKind::Rejoin`]; with 2 it was the only one.
    /// With an `index` of 1 it came by a move, and earlier frames of the group are of one that was here before it and has gone.
    OpenGroup = 2,
    /// The group is gone; earlier frames of it mean nothing. `index` is the version of the catalogue that says so.
    DropGroup = 3,
    /// A new life of the journal begins; `epoch` is the low half of its incarnation.
    NewLife = 4,
    /// The first entry of a leader: it has an index and an epoch, and no records. `base_offset` is the log's end.
    NewTerm = 5,
    /// The replica's term (`epoch`) and vote (`record_count`: the node, 0 = none); `index` is a commit known then.
    Vote = 6,
    /// What the replica has promised is lost in part: what earlier frames say of the group's entries means nothing, and it
    /// votes for nobody until [`FrameKind::Joined`]. What its segments hold still counts: `index` and `epoch` are those of
    /// the last entry in them, `base_offset` is the place behind it.
    Rejoin = 7,
    /// The replica knows everything that it has promised, from here on. What its segments hold then, as in
    /// [`FrameKind::Rejoin`].
    Joined = 8,
    /// A node (`record_count`) with which the metadata group began, and the number of its disk (`index`).
    Founder = 9,
    /// Who the replicas are from entry `index` on; the body is a `Configuration`. With `index` 0 it is no entry: it says
    /// who they are where the log begins, and `epoch` and `base_offset` are term and index of an entry that was committed
    /// before the replica was made.
    Configuration = 10,
    /// The only replica of a partition is a group from here on, with itself as the only voter: its log begins with `index` 1 at
    /// `base_offset`, in term `epoch`, behind everything that it has had until now. The body is its `Configuration`.
    BeginGroup = 11,
}

impl FrameKind {
    /// The kind of this number.
    pub const fn from_u8(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Batch),
            2 => Some(Self::OpenGroup),
            3 => Some(Self::DropGroup),
            4 => Some(Self::NewLife),
            5 => Some(Self::NewTerm),
            6 => Some(Self::Vote),
            7 => Some(Self::Rejoin),
            8 => Some(Self::Joined),
            9 => Some(Self::Founder),
            10 => Some(Self::Configuration),
            11 => Some(Self::BeginGroup),
            _ => None,
        }
    }
}

/// Index of the place at which a group begins that was the only replica before.
pub const FIRST_INDEX: u64 = 1;

/// Header of one frame of a group commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What it is about.
    pub kind: FrameKind,
    /// Bytes of the body, its padding not counted.
    pub body_len: u32,
    /// The group. Zero for [`FrameKind::NewLife`].
    pub group: GroupId,
    /// Offset of the batch's first record; the log start for [`FrameKind::OpenGroup`].
    pub base_offset: i64,
    /// The leader's epoch that the batch was appended in.
    pub epoch: u32,
    /// Records of the batch.
    pub record_count: u32,
    /// Index of the entry in the log of a group with several replicas; 0 in a group of one. A frame with an index
    /// takes the place of the entries of its group from that index on.
    pub index: u64,
    /// The batch's own CRC; of another body its CRC32C.
    pub body_crc: u32,
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The payload ends inside the frame.
    #[error("the payload ends inside it")]
    Incomplete,
    /// The header's bytes are not those that were written for this commit.
    #[error("its header's checksum does not match")]
    Checksum,
    /// A field holds a value that a frame never has.
    #[error("its header's {0} is out of its bounds")]
    Field(&'static str),
    /// The body is not the batch that the header describes.
    #[error("its body's {0} is not what its header says")]
    Disagrees(&'static str),
    /// The body is no intact batch.
    #[error("its batch is broken: {0}")]
    Batch(BatchError),
    /// The body has its checksum and is no configuration.
    #[error("its body is no configuration")]
    Configuration,
}

/// Start value of the CRC of every frame header in one commit. It binds the frame to its commit: in a recycled
/// file, a block that a write never reached may well hold an older frame of the same size at the same place,
/// intact in itself. It also keeps record bytes, which clients choose, from ever looking like a frame, because
/// they can't know the journal's id.
pub fn frame_seed(journal_id: u64, incarnation: u64, lsn: u64) -> u32 {
    let seed = crc32c::crc32c(&journal_id.to_le_bytes());
    let seed = crc32c::crc32c_append(seed, &incarnation.to_le_bytes());
    crc32c::crc32c_append(seed, &lsn.to_le_bytes())
}

impl FrameHeader {
    /// A header without a body.
    pub fn bodyless(kind: FrameKind, group: GroupId, base_offset: i64, epoch: u32) -> Self {
        Self { kind, body_len: 0, group, base_offset, epoch, record_count: 0, index: 0, body_crc: 0 }
    }

    /// The header of a batch of `group`, from the batch's own header, as entry `index`.
    pub fn batch(group: GroupId, head: &BatchHead, index: u64) -> Self {
        Self {
            kind: FrameKind::Batch,
            body_len: head.total_bytes as u32,
            group,
            base_offset: head.base_offset,
            epoch: head.epoch,
            record_count: head.record_count,
            index,
            body_crc: head.crc,
        }
    }

    /// The header of a configuration, whose bytes are `body`, of entry `index`; 0 = of the place where the log begins.
    pub fn of_configuration(group: GroupId, base_offset: i64, epoch: u32, index: u64, body: &[u8]) -> Self {
        Self {
            body_len: body.len() as u32,
            body_crc: crc32c::crc32c(body),
            index,
            ..Self::bodyless(FrameKind::Configuration, group, base_offset, epoch)
        }
    }

    /// The header of the beginning of a group, whose only voter's configuration is `body`.
    pub fn of_beginning(group: GroupId, base_offset: i64, epoch: u32, body: &[u8]) -> Self {
        Self {
            kind: FrameKind::BeginGroup,
            ..Self::of_configuration(group, base_offset, epoch, FIRST_INDEX, body)
        }
    }

    /// What the body of a frame of [`FrameKind::Configuration`] or [`FrameKind::BeginGroup`] says.
    ///
    /// # Errors
    /// It is not what was written.
    pub fn configuration(&self, body: &[u8]) -> Result<Configuration, FrameError> {
        if body.len() != self.body_len as usize {
            return Err(FrameError::Disagrees("length"));
        }
        if crc32c::crc32c(body) != self.body_crc {
            return Err(FrameError::Disagrees("checksum"));
        }
        match Configuration::decode(body) {
            Some((configuration, [])) => Ok(configuration),
            _ => Err(FrameError::Configuration),
        }
    }

    /// The header's bytes; `seed` is [`frame_seed`] of the commit that it is laid into.
    pub fn encode(&self, seed: u32) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        put(&mut bytes, 0, &[self.kind as u8]);
        put(&mut bytes, 4, &self.body_len.to_le_bytes());
        put(&mut bytes, 8, &self.group.topic.0.to_le_bytes());
        put(&mut bytes, 12, &self.group.partition.to_le_bytes());
        put(&mut bytes, 16, &self.base_offset.to_le_bytes());
        put(&mut bytes, 24, &self.epoch.to_le_bytes());
        put(&mut bytes, 28, &self.record_count.to_le_bytes());
        put(&mut bytes, 32, &self.index.to_le_bytes());
        put(&mut bytes, 40, &self.body_crc.to_le_bytes());
        let crc = bytes.get(..44).map_or(0, |covered| crc32c::crc32c_append(seed, covered));
        put(&mut bytes, 44, &crc.to_le_bytes());
        bytes
    }

    /// Reads the header at the start of `bytes`: CRC and bounds are checked, the body is not looked at.
    pub fn decode(bytes: &[u8], seed: u32) -> Result<Self, FrameError> {
        let header = bytes.get(..FRAME_HEADER_BYTES).ok_or(FrameError::Incomplete)?;
        let (covered, crc) = header.split_last_chunk::<4>().ok_or(FrameError::Incomplete)?;
        let kind = header.first().copied().and_then(FrameKind::from_u8).ok_or(FrameError::Field("kind"))?;
        if crc32c::crc32c_append(seed, covered) != u32::from_le_bytes(*crc) {
            return Err(FrameError::Checksum);
        }
        let decoded = Self::fields(header, kind).ok_or(FrameError::Incomplete)?;
        decoded.check(header)?;
        Ok(decoded)
    }

    fn fields(header: &[u8], kind: FrameKind) -> Option<Self> {
        Some(Self {
            kind,
            body_len: u32_le(header, 4)?,
            group: GroupId::new(u32_le(header, 8)?, u32_le(header, 12)?),
            base_offset: i64_le(header, 16)?,
            epoch: u32_le(header, 24)?,
            record_count: u32_le(header, 28)?,
            index: u64_le(header, 32)?,
            body_crc: u32_le(header, 40)?,
        })
    }

    fn check(&self, header: &[u8]) -> Result<(), FrameError> {
        let body = self.body_len as usize;
        let bodies = match self.kind {
            FrameKind::Batch => BATCH_HEADER_BYTES..=MAX_BATCH_BYTES,
            FrameKind::Configuration | FrameKind::BeginGroup => 1..=MAX_CONFIGURATION_BYTES,
            _ => 0..=0,
        };
        let records = self.record_count;
        let wrong = if header.get(1..4) != Some(&[0; 3]) {
            "flags"
        } else if !bodies.contains(&body) {
            "body length"
        } else if match self.kind {
            FrameKind::Batch => !(1..=MAX_BATCH_RECORDS).contains(&records),
            FrameKind::Vote | FrameKind::Founder => false,
            FrameKind::OpenGroup => records > 2,
            _ => records != 0,
        } {
            "record count"
        } else if match self.kind {
            FrameKind::NewTerm => self.index == 0,
            FrameKind::OpenGroup => self.index > 1,
            FrameKind::BeginGroup => self.index != 1,
            FrameKind::NewLife => self.index != 0,
            FrameKind::Batch
            | FrameKind::DropGroup
            | FrameKind::Vote
            | FrameKind::Rejoin
            | FrameKind::Joined
            | FrameKind::Founder
            | FrameKind::Configuration => false,
        } || self.index == u64::MAX
        {
            "index"
        } else if self.base_offset < 0 || self.base_offset.checked_add(i64::from(records)).is_none() {
            "base offset"
        } else {
            return Ok(());
        };
        Err(FrameError::Field(wrong))
    }

    /// The offset after the batch's last record.
    pub fn end_offset(&self) -> i64 {
        self.base_offset.saturating_add(i64::from(self.record_count))
    }

    /// Checks that `body` is what this header describes: for a batch, its CRC and the fields that the CRC does
    /// not cover. This is the one pass over the batch's bytes.
    pub fn verify_body(&self, body: &[u8]) -> Result<(), FrameError> {
        match self.kind {
            FrameKind::Batch => verify_batch_frame(self, body),
            FrameKind::Configuration | FrameKind::BeginGroup => self.configuration(body).map(drop),
            _ if body.is_empty() => Ok(()),
            _ => Err(FrameError::Disagrees("length")),
        }
    }
}

/// Checks that `body` is the intact batch that the frame header describes.
pub fn verify_batch_frame(frame: &FrameHeader, body: &[u8]) -> Result<(), FrameError> {
    let head = BatchHead::parse(body).map_err(FrameError::Batch)?;
    let wrong = if head.total_bytes != body.len() || body.len() != frame.body_len as usize {
        "length"
    } else if head.base_offset != frame.base_offset {
        "base offset"
    } else if head.epoch != frame.epoch {
        "leader epoch"
    } else if head.record_count != frame.record_count {
        "record count"
    } else if head.crc != frame.body_crc {
        "checksum"
    } else {
        return head.verify_crc(body).map_err(FrameError::Batch);
    };
    Err(FrameError::Disagrees(wrong))
}

/// The running CRC over a commit's frame headers, for `frames_crc`. Each header counts without its own CRC: a CRC
/// over bytes that end with their own CRC is a constant, so that the sum would depend on nothing but the count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FramesCrc(u32);

impl FramesCrc {
    /// Takes the next frame header.
    pub fn add(&mut self, header: &[u8; FRAME_HEADER_BYTES]) {
        let [covered @ .., _, _, _, _] = header;
        self.0 = crc32c::crc32c_append(self.0, covered);
    }

    /// The value over all headers so far.
    pub fn value(self) -> u32 {
        self.0
    }
}

/// Walks over the frames of a commit's payload: header and the body's range in the payload. Ends after the
/// first error. Bodies are not verified.
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    payload: &'a [u8],
    seed: u32,
    position: usize,
    crc: FramesCrc,
}

impl<'a> Frames<'a> {
    /// A walk over `payload`; `seed` is the commit's [`CommitHeader::frame_seed`].
    pub fn new(payload: &'a [u8], seed: u32) -> Self {
        Self { payload, seed, position: 0, crc: FramesCrc::default() }
    }

    /// CRC over the frame headers so far.
    pub fn headers_crc(&self) -> u32 {
        self.crc.value()
    }

    /// Position of the next frame header in the payload.
    pub fn position(&self) -> usize {
        self.position
    }

    fn step(&mut self) -> Result<(FrameHeader, Range<usize>), FrameError> {
        let rest = self.payload.get(self.position..).ok_or(FrameError::Incomplete)?;
        let frame = FrameHeader::decode(rest, self.seed)?;
        let start = self.position + FRAME_HEADER_BYTES;
        let end = start + frame.body_len as usize;
        let next = self.position + frame_len(frame.body_len as usize);
        if next > self.payload.len() {
            return Err(FrameError::Incomplete);
        }
        let header = rest.first_chunk().ok_or(FrameError::Incomplete)?;
        self.crc.add(header);
        self.position = next;
        Ok((frame, start..end))
    }
}

impl Iterator for Frames<'_> {
    type Item = Result<(FrameHeader, Range<usize>), FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.position >= self.payload.len() {
            return None;
        }
        let item = self.step();
        if item.is_err() {
            self.position = usize::MAX;
        }
        Some(item)
    }
}

/// The frames of `payload`; see [`Frames`].
pub fn frames(payload: &[u8], seed: u32) -> Frames<'_> {
    Frames::new(payload, seed)
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
