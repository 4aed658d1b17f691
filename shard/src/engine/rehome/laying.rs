//! A journal that is written in one go: the frames of groups that come from other shards, as group commits in new files.

use pyralog_core::GroupId;
use pyralog_core::limits::CHUNK_BYTES;

use crate::format::checkpoint::ReplayPoint;
use crate::format::journal::{
    COMMIT_HEADER_BYTES, CommitHeader, FRAME_ALIGN, FrameHeader, FrameKind, FramesCrc, frame_len, frame_seed,
};

use super::super::{FileId, IoError, RecoveryDisk};

/// Number of the first commit. Not 1: a journal that begins with that is whole without a checkpoint, and this one is not.
pub(super) const FIRST_LSN: u64 = 2;
/// The life that the commits are of. The checkpoint names a later one, and the next life is later still.
const INCARNATION: u64 = 1;
/// Of the first file.
const FIRST_GENERATION: u64 = 1;

/// The journal of one shard while it is written.
#[derive(Debug)]
pub(super) struct Laying {
    journal_id: u64,
    file_bytes: u64,
    file: u32,
    generation: u64,
    position: u64,
    lsn: u64,
    prev_crc: u32,
    /// Frames of the commit that is being laid down.
    payload: Vec<u8>,
    frames: u32,
    frames_crc: FramesCrc,
}

impl Laying {
    /// A journal in files of `file_bytes`, of which the first one is made, with the commit that begins it.
    pub(super) fn begin(
        disk: &mut dyn RecoveryDisk,
        journal_id: u64,
        file_bytes: u64,
    ) -> Result<Self, IoError> {
        disk.create_zeroed(FileId::Journal(0), file_bytes)?;
        let mut laying = Self {
            journal_id,
            file_bytes,
            file: 0,
            generation: FIRST_GENERATION,
            position: 0,
            lsn: FIRST_LSN,
            prev_crc: 0,
            payload: Vec::new(),
            frames: 0,
            frames_crc: FramesCrc::default(),
        };
        let life = FrameHeader::bodyless(FrameKind::NewLife, GroupId::METADATA, 0, INCARNATION as u32);
        laying.lay(disk, &life, &[])?;
        laying.seal(disk)?;
        Ok(laying)
    }

    /// Where a replay has to begin.
    pub(super) fn replay_from() -> ReplayPoint {
        ReplayPoint {
            lsn: FIRST_LSN,
            file: 0,
            generation: FIRST_GENERATION,
            position: 0,
            prev_crc: 0,
            incarnation: INCARNATION,
        }
    }

    /// Lays one frame down. `body` has at most `MAX_BATCH_BYTES`.
    pub(super) fn lay(
        &mut self,
        disk: &mut dyn RecoveryDisk,
        frame: &FrameHeader,
        body: &[u8],
    ) -> Result<(), IoError> {
        let need = frame_len(body.len());
        if self.left_in_region() < COMMIT_HEADER_BYTES + self.payload.len() + need {
            self.seal(disk)?;
            if self.left_in_region() < COMMIT_HEADER_BYTES + need {
                self.position = self.position.next_multiple_of(CHUNK_BYTES as u64);
            }
        }
        let header = frame.encode(frame_seed(self.journal_id, INCARNATION, self.lsn));
        self.frames_crc.add(&header);
        self.frames += 1;
        self.payload.extend_from_slice(&header);
        self.payload.extend_from_slice(body);
        self.payload.resize(self.payload.len().next_multiple_of(FRAME_ALIGN), 0);
        Ok(())
    }

    /// Writes what is laid down, says that it is durable, and makes it so.
    pub(super) fn end(mut self, disk: &mut dyn RecoveryDisk) -> Result<(), IoError> {
        self.seal(disk)?;
        self.write_commit(disk, true)?;
        (0..=self.file).try_for_each(|file| disk.sync(FileId::Journal(file)))
    }

    fn left_in_region(&self) -> usize {
        CHUNK_BYTES - (self.position % CHUNK_BYTES as u64) as usize
    }

    /// Writes the commit that is being laid down, if there is one.
    fn seal(&mut self, disk: &mut dyn RecoveryDisk) -> Result<(), IoError> {
        match self.frames {
            0 => Ok(()),
            _ => self.write_commit(disk, false),
        }
    }

    fn write_commit(&mut self, disk: &mut dyn RecoveryDisk, marker: bool) -> Result<(), IoError> {
        if self.position >= self.file_bytes {
            (self.file, self.generation, self.position) = (self.file + 1, self.generation + 1, 0);
            disk.create_zeroed(FileId::Journal(self.file), self.file_bytes)?;
        }
        let mut header = CommitHeader {
            marker,
            journal_id: self.journal_id,
            generation: self.generation,
            lsn: self.lsn,
            incarnation: INCARNATION,
            // Nobody reads it before all of it is.
            durable_lsn: self.lsn - 1,
            position: self.position,
            payload_len: self.payload.len() as u32,
            frame_count: self.frames,
            prev_crc: self.prev_crc,
            file: self.file,
            frames_crc: std::mem::take(&mut self.frames_crc).value(),
            header_crc: 0,
        };
        let mut bytes = header.encode().to_vec();
        bytes.append(&mut self.payload);
        bytes.resize(header.padded_len(), 0);
        disk.write(FileId::Journal(self.file), self.position, &bytes)?;
        self.position += bytes.len() as u64;
        self.lsn += 1;
        self.prev_crc = header.header_crc;
        self.frames = 0;
        Ok(())
    }
}
