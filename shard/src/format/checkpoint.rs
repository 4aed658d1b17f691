//! The checkpoint: where replay of the journal begins, and what is known without it
//! (`docs/storage-format.md`, "Checkpoint"). Two slots are written in turns; the newest valid one wins.
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

use pyralog_core::GroupId;
use pyralog_core::limits::{BATCHES_PER_PRODUCER, MAX_CHECKPOINT_BYTES};
use pyralog_replication::raft::{Configuration, Standing};

use super::bytes::{Reader, array_at, put, u16_le, u32_le, u64_le};

/// First bytes of a checkpoint.
pub const CHECKPOINT_MAGIC: [u8; 4] = [0xB7, b'P', b'C', b'K'];
/// Version of the checkpoint's format.
pub const CHECKPOINT_VERSION: u16 = 4;
/// The oldest version that is read: in it no replica knows who the others are, as nothing could change them.
pub const OLDEST_CHECKPOINT_VERSION: u16 = 3;
/// Bytes of the checkpoint's header.
pub const CHECKPOINT_HEADER_BYTES: usize = 40;
/// Most batches that a checkpoint holds of one producer.
const MAX_BATCHES: usize = BATCHES_PER_PRODUCER + 1;

/// The bytes that each item of a list takes at least: bounds every count before it is believed.
const GROUP_BYTES: usize = 8 + 8 + 8 + 4 + 1 + 1 + 1 + 3 * 4;
const FOUNDER_BYTES: usize = 4 + 8;
const RANGE_BYTES: usize = 16;
/// At least: 4 more of the newest version.
const SEGMENT_BYTES: usize = 32;
/// Of a segment whose epoch is not known.
const UNKNOWN_EPOCH: u32 = u32::MAX;
const PRODUCER_BYTES: usize = 8 + 2 + 8 + 1;
const BATCH_BYTES: usize = 16;

/// Where in the journal the replay begins: the place and the chain state of the first commit that is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ReplayPoint {
    /// The commit expected there.
    pub lsn: u64,
    /// The journal file.
    pub file: u32,
    /// The file's generation.
    pub generation: u64,
    /// Byte position in the file.
    pub position: u64,
    /// `header_crc` of commit `lsn - 1`.
    pub prev_crc: u32,
    /// Incarnation of commit `lsn - 1`.
    pub incarnation: u64,
}

/// A segment of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentMeta {
    /// Offset of its first record; names the file.
    pub base: i64,
    /// Offset after its last record.
    pub end_offset: i64,
    /// Epoch of all its batches; `None`: not known, of one written by a version that did not keep them apart.
    pub epoch: Option<u32>,
    /// Valid bytes of the `.log`.
    pub bytes: u64,
    /// Largest timestamp in it, milliseconds, where a batch without one counts with the wall time of its flush.
    pub max_timestamp: i64,
}

/// One appended batch of an idempotent producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerBatch {
    /// Sequence of its first record.
    pub first_seq: i32,
    /// Sequence of its last record.
    pub last_seq: i32,
    /// Offset of its first record.
    pub base_offset: i64,
}

/// An idempotent producer as a group knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerCheckpoint {
    /// Its id.
    pub producer_id: i64,
    /// Newest epoch seen.
    pub epoch: i16,
    /// When it last appended, wall clock, milliseconds.
    pub last_used_ms: i64,
    /// Its newest batches, oldest first.
    pub batches: Vec<ProducerBatch>,
}

/// What a replica of several needs besides its segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicatedCheckpoint {
    /// The node voted for in the group's epoch; 0 = none.
    pub vote: u32,
    /// The last entry that the segments hold.
    pub start_index: u64,
    /// Its term.
    pub start_term: u32,
    /// What commits below this one hold of the group's entries is no part of its log.
    pub entries_from_lsn: u64,
    /// Who the replicas are behind that entry, and term and index of an entry that was committed before this one was made;
    /// `None`: as the catalogue says, nothing has changed it.
    pub replicas: Option<(Configuration, (u32, u64))>,
}

/// One group at the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupCheckpoint {
    /// The group.
    pub group: GroupId,
    /// First offset of its log.
    pub log_start: i64,
    /// The segments hold everything below this.
    pub flushed_to: i64,
    /// Epoch of its leader; the replica's term in a group with several.
    pub epoch: u32,
    /// Whether it knows everything that it has promised to other replicas.
    pub standing: Standing,
    /// In a group with several replicas.
    pub replicated: Option<ReplicatedCheckpoint>,
    /// Corruption hides where the log ends: it takes no writes.
    pub end_unknown: bool,
    /// Offsets that are damaged and have no other copy, each from (included) to (excluded).
    pub damaged: Vec<(i64, i64)>,
    /// Its segments, oldest first.
    pub segments: Vec<SegmentMeta>,
    /// Its producers.
    pub producers: Vec<ProducerCheckpoint>,
}

/// A checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Number of the checkpoint; it goes to slot `seq % 2`.
    pub seq: u64,
    /// Identity of the journal that it belongs to.
    pub journal_id: u64,
    /// Life of the journal in which it was made.
    pub incarnation: u64,
    /// Where the replay begins.
    pub replay_from: ReplayPoint,
    /// The groups, ascending.
    pub groups: Vec<GroupCheckpoint>,
    /// Shard 0: the metadata (opaque here).
    pub catalog: Option<Vec<u8>>,
    /// Damage may hide groups: what the catalogue names and the disk does not hold may be lost.
    pub opens_are_suspect: bool,
    /// Version of the newest catalogue by which a group was dropped.
    pub dropped_at: u64,
    /// Shard 0: the other nodes with which the metadata group began, and the numbers of their disks.
    pub founders: Vec<(u32, u64)>,
}

/// Why bytes are no checkpoint, or a checkpoint can't be encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// The bytes end before the checkpoint does: it was not written whole.
    #[error("the file ends inside the checkpoint: it was not written whole")]
    Incomplete,
    /// No checkpoint.
    #[error("no checkpoint starts here")]
    Magic,
    /// A version that this program does not know.
    #[error(
        "the checkpoint has version {0}; this program reads versions {OLDEST_CHECKPOINT_VERSION} to {CHECKPOINT_VERSION}: use the program that wrote it"
    )]
    Version(u16),
    /// The bytes are not those that were written.
    #[error("the checkpoint's checksum does not match its bytes")]
    Checksum,
    /// Larger than the bound.
    #[error("a checkpoint of {0} bytes exceeds the bound of {MAX_CHECKPOINT_BYTES}")]
    TooLarge(usize),
    /// A field or count holds a value that a checkpoint never has.
    #[error("the checkpoint's {0} is out of its bounds")]
    Field(&'static str),
}

impl Checkpoint {
    /// The slot that this checkpoint is written to.
    pub fn slot(&self) -> u8 {
        (self.seq % 2) as u8
    }

    /// The checkpoint's bytes. Groups may be in any order, but none twice.
    pub fn encode(&self) -> Result<Vec<u8>, CheckpointError> {
        let mut bytes = vec![0; CHECKPOINT_HEADER_BYTES];
        self.encode_payload(&mut bytes)?;
        let payload_len = bytes.len() - CHECKPOINT_HEADER_BYTES;
        if bytes.len() > MAX_CHECKPOINT_BYTES {
            return Err(CheckpointError::TooLarge(bytes.len()));
        }
        let payload_crc = bytes.get(CHECKPOINT_HEADER_BYTES..).map_or(0, crc32c::crc32c);
        put(&mut bytes, 0, &CHECKPOINT_MAGIC);
        put(&mut bytes, 4, &CHECKPOINT_VERSION.to_le_bytes());
        put(&mut bytes, 8, &self.seq.to_le_bytes());
        put(&mut bytes, 16, &self.journal_id.to_le_bytes());
        put(&mut bytes, 24, &(payload_len as u32).to_le_bytes());
        put(&mut bytes, 28, &payload_crc.to_le_bytes());
        let header_crc = bytes.get(..36).map_or(0, crc32c::crc32c);
        put(&mut bytes, 36, &header_crc.to_le_bytes());
        Ok(bytes)
    }

    fn encode_payload(&self, out: &mut Vec<u8>) -> Result<(), CheckpointError> {
        let from = &self.replay_from;
        out.extend(self.incarnation.to_le_bytes());
        out.extend(from.lsn.to_le_bytes());
        out.extend(from.file.to_le_bytes());
        out.extend(from.generation.to_le_bytes());
        out.extend(from.position.to_le_bytes());
        out.extend(from.prev_crc.to_le_bytes());
        out.extend(from.incarnation.to_le_bytes());
        let mut groups: Vec<&GroupCheckpoint> = self.groups.iter().collect();
        groups.sort_unstable_by_key(|group| group.group);
        if groups.iter().zip(groups.iter().skip(1)).any(|(a, b)| a.group == b.group) {
            return Err(CheckpointError::Field("groups (one is there twice)"));
        }
        put_count(out, groups.len())?;
        for group in groups {
            group.encode(out)?;
        }
        out.push(u8::from(self.catalog.is_some()));
        let catalog = self.catalog.as_deref().unwrap_or_default();
        put_count(out, catalog.len())?;
        out.extend(catalog);
        out.push(u8::from(self.opens_are_suspect));
        out.extend(self.dropped_at.to_le_bytes());
        put_count(out, self.founders.len())?;
        for (node, disk) in &self.founders {
            out.extend(node.to_le_bytes());
            out.extend(disk.to_le_bytes());
        }
        Ok(())
    }

    /// The checkpoint in a slot's file. Bytes after it are ignored: an older, longer one may have left them.
    pub fn decode(bytes: &[u8]) -> Result<Self, CheckpointError> {
        use CheckpointError::{Checksum, Field, Incomplete, Magic, TooLarge, Version};
        if array_at(bytes, 0).ok_or(Incomplete)? != CHECKPOINT_MAGIC {
            return Err(Magic);
        }
        let header = bytes.get(..CHECKPOINT_HEADER_BYTES).ok_or(Incomplete)?;
        let header_crc = u32_le(header, 36).ok_or(Incomplete)?;
        if header.get(..36).map(crc32c::crc32c) != Some(header_crc) {
            return Err(Checksum);
        }
        let version = u16_le(header, 4).ok_or(Incomplete)?;
        if !(OLDEST_CHECKPOINT_VERSION..=CHECKPOINT_VERSION).contains(&version) {
            return Err(Version(version));
        }
        let payload_len = u32_le(header, 24).ok_or(Incomplete)? as usize;
        if payload_len > MAX_CHECKPOINT_BYTES - CHECKPOINT_HEADER_BYTES {
            return Err(TooLarge(payload_len));
        }
        let rest = bytes.get(CHECKPOINT_HEADER_BYTES..).ok_or(Incomplete)?;
        let payload = rest.get(..payload_len).ok_or(Incomplete)?;
        if Some(crc32c::crc32c(payload)) != u32_le(header, 28) {
            return Err(Checksum);
        }
        let seq = u64_le(header, 8).ok_or(Incomplete)?;
        let journal_id = u64_le(header, 16).ok_or(Incomplete)?;
        let mut reader = Reader::new(payload);
        let decoded = Self::decode_payload(&mut reader, version, seq, journal_id).ok_or(Field("payload"))?;
        match reader.remaining() {
            0 => Ok(decoded),
            _ => Err(Field("payload length")),
        }
    }

    fn decode_payload(reader: &mut Reader<'_>, version: u16, seq: u64, journal_id: u64) -> Option<Self> {
        let incarnation = reader.u64()?;
        let replay_from = ReplayPoint {
            lsn: reader.u64()?,
            file: reader.u32()?,
            generation: reader.u64()?,
            position: reader.u64()?,
            prev_crc: reader.u32()?,
            incarnation: reader.u64()?,
        };
        let count = reader.count(GROUP_BYTES)?;
        let mut groups: Vec<GroupCheckpoint> = Vec::with_capacity(count);
        for _ in 0..count {
            let group = GroupCheckpoint::decode(reader, version)?;
            if groups.last().is_some_and(|last| last.group >= group.group) {
                return None;
            }
            groups.push(group);
        }
        let has_catalog = flag(reader)?;
        let len = reader.count(1)?;
        let catalog = reader.bytes(len)?;
        if !has_catalog && len > 0 {
            return None;
        }
        let catalog = has_catalog.then(|| catalog.to_vec());
        let opens_are_suspect = flag(reader)?;
        let dropped_at = reader.u64()?;
        let founders = list(reader, FOUNDER_BYTES, |reader| Some((reader.u32()?, reader.u64()?)))?;
        Some(Self {
            seq,
            journal_id,
            incarnation,
            replay_from,
            groups,
            catalog,
            opens_are_suspect,
            dropped_at,
            founders,
        })
    }
}

impl GroupCheckpoint {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), CheckpointError> {
        out.extend(self.group.topic.0.to_le_bytes());
        out.extend(self.group.partition.to_le_bytes());
        out.extend(self.log_start.to_le_bytes());
        out.extend(self.flushed_to.to_le_bytes());
        out.extend(self.epoch.to_le_bytes());
        out.push(self.standing as u8);
        out.push(u8::from(self.replicated.is_some()));
        if let Some(replicated) = &self.replicated {
            out.extend(replicated.vote.to_le_bytes());
            out.extend(replicated.start_index.to_le_bytes());
            out.extend(replicated.start_term.to_le_bytes());
            out.extend(replicated.entries_from_lsn.to_le_bytes());
            out.push(u8::from(replicated.replicas.is_some()));
            if let Some((configuration, (term, index))) = &replicated.replicas {
                out.extend(term.to_le_bytes());
                out.extend(index.to_le_bytes());
                out.extend(configuration.encode());
            }
        }
        out.push(u8::from(self.end_unknown));
        put_count(out, self.damaged.len())?;
        for (from, to) in &self.damaged {
            out.extend(from.to_le_bytes());
            out.extend(to.to_le_bytes());
        }
        put_count(out, self.segments.len())?;
        for segment in &self.segments {
            out.extend(segment.base.to_le_bytes());
            out.extend(segment.end_offset.to_le_bytes());
            out.extend(segment.bytes.to_le_bytes());
            out.extend(segment.max_timestamp.to_le_bytes());
            out.extend(segment.epoch.unwrap_or(UNKNOWN_EPOCH).to_le_bytes());
        }
        put_count(out, self.producers.len())?;
        self.producers.iter().try_for_each(|producer| producer.encode(out))
    }

    fn decode(reader: &mut Reader<'_>, version: u16) -> Option<Self> {
        let group = GroupId::new(reader.u32()?, reader.u32()?);
        let log_start = reader.i64()?;
        let flushed_to = reader.i64()?;
        let epoch = reader.u32()?;
        let standing = Standing::from_number(u64::from(reader.u8()?))?;
        let replicated = match flag(reader)? {
            true => Some(ReplicatedCheckpoint {
                vote: reader.u32()?,
                start_index: reader.u64()?,
                start_term: reader.u32()?,
                entries_from_lsn: reader.u64()?,
                replicas: match version > OLDEST_CHECKPOINT_VERSION && flag(reader)? {
                    true => {
                        let made_after = (reader.u32()?, reader.u64()?);
                        Some((configuration(reader)?, made_after))
                    }
                    false => None,
                },
            }),
            false => None,
        };
        let end_unknown = flag(reader)?;
        let damaged = list(reader, RANGE_BYTES, |reader| Some((reader.i64()?, reader.i64()?)))?;
        let segments = list(reader, SEGMENT_BYTES, |reader| {
            Some(SegmentMeta {
                base: reader.i64()?,
                end_offset: reader.i64()?,
                bytes: reader.u64()?,
                max_timestamp: reader.i64()?,
                epoch: match version > OLDEST_CHECKPOINT_VERSION {
                    true => Some(reader.u32()?).filter(|epoch| *epoch != UNKNOWN_EPOCH),
                    false => None,
                },
            })
        })?;
        let producers = list(reader, PRODUCER_BYTES, ProducerCheckpoint::decode)?;
        Some(Self {
            group,
            log_start,
            flushed_to,
            epoch,
            standing,
            replicated,
            end_unknown,
            damaged,
            segments,
            producers,
        })
    }
}

impl ProducerCheckpoint {
    /// A list of them.
    ///
    /// # Errors
    /// One has more batches than there may be.
    pub fn encode_all(producers: &[Self]) -> Result<Vec<u8>, CheckpointError> {
        let mut out = Vec::new();
        put_count(&mut out, producers.len())?;
        producers.iter().try_for_each(|producer| producer.encode(&mut out))?;
        Ok(out)
    }

    /// The list in these bytes; `None`: they are not one.
    pub fn decode_all(bytes: &[u8]) -> Option<Vec<Self>> {
        let mut reader = Reader::new(bytes);
        let producers = list(&mut reader, PRODUCER_BYTES, Self::decode)?;
        (reader.remaining() == 0).then_some(producers)
    }

    fn encode(&self, out: &mut Vec<u8>) -> Result<(), CheckpointError> {
        if self.batches.len() > MAX_BATCHES {
            return Err(CheckpointError::Field("batches of a producer"));
        }
        out.extend(self.producer_id.to_le_bytes());
        out.extend(self.epoch.to_le_bytes());
        out.extend(self.last_used_ms.to_le_bytes());
        out.push(self.batches.len() as u8);
        for batch in &self.batches {
            out.extend(batch.first_seq.to_le_bytes());
            out.extend(batch.last_seq.to_le_bytes());
            out.extend(batch.base_offset.to_le_bytes());
        }
        Ok(())
    }

    fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        let producer_id = reader.i64()?;
        let epoch = reader.i16()?;
        let last_used_ms = reader.i64()?;
        let count = usize::from(reader.u8()?);
        if count > MAX_BATCHES || count * BATCH_BYTES > reader.remaining() {
            return None;
        }
        let mut batches = Vec::with_capacity(count);
        for _ in 0..count {
            batches.push(ProducerBatch {
                first_seq: reader.i32()?,
                last_seq: reader.i32()?,
                base_offset: reader.i64()?,
            });
        }
        Some(Self { producer_id, epoch, last_used_ms, batches })
    }
}

fn configuration(reader: &mut Reader<'_>) -> Option<Configuration> {
    let (configuration, behind) = Configuration::decode(reader.rest())?;
    reader.bytes(reader.remaining() - behind.len())?;
    Some(configuration)
}

fn put_count(out: &mut Vec<u8>, count: usize) -> Result<(), CheckpointError> {
    let count = u32::try_from(count).map_err(|_| CheckpointError::TooLarge(count))?;
    out.extend(count.to_le_bytes());
    Ok(())
}

fn flag(reader: &mut Reader<'_>) -> Option<bool> {
    match reader.u8()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

/// A counted list whose items take at least `item_bytes` each.
fn list<'a, T>(
    reader: &mut Reader<'a>,
    item_bytes: usize,
    mut item: impl FnMut(&mut Reader<'a>) -> Option<T>,
) -> Option<Vec<T>> {
    let count = reader.count(item_bytes)?;
    let mut items = Vec::with_capacity(count);
    for _ in 0..count {
        items.push(item(reader)?);
    }
    Some(items)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use pyralog_replication::metadata::Replica;

    fn sample() -> Checkpoint {
        let group = |partition| GroupCheckpoint {
            group: GroupId::new(1, partition),
            log_start: 5,
            flushed_to: 100,
            epoch: 1,
            standing: Standing::Undecided,
            replicated: (partition == 1).then(|| ReplicatedCheckpoint {
                replicas: Some((Configuration::of((1..4).map(|node| Replica { node, shard: 2 })), (2, 9))),
                vote: 3,
                start_index: 7,
                start_term: 1,
                entries_from_lsn: 5,
            }),
            end_unknown: partition == 1,
            damaged: vec![(50, 60)],
            segments: vec![SegmentMeta {
                base: 5,
                end_offset: 100,
                epoch: Some(3),
                bytes: 4_000,
                max_timestamp: 9,
            }],
            producers: vec![ProducerCheckpoint {
                producer_id: 77,
                epoch: 2,
                last_used_ms: 1_000,
                batches: vec![ProducerBatch { first_seq: 0, last_seq: 4, base_offset: 95 }],
            }],
        };
        Checkpoint {
            seq: 9,
            journal_id: 0x1122_3344_5566_7788,
            incarnation: 3,
            replay_from: ReplayPoint {
                lsn: 42,
                file: 5,
                generation: 3,
                position: 8192,
                prev_crc: 1,
                incarnation: 2,
            },
            groups: vec![group(0), group(1)],
            catalog: Some(b"catalog".to_vec()),
            opens_are_suspect: true,
            dropped_at: 6,
            founders: vec![(3, 1 << 60)],
        }
    }

    #[test]
    fn reads_back_also_from_a_longer_file() {
        let checkpoint = sample();
        let mut bytes = checkpoint.encode().unwrap();
        assert_eq!(Checkpoint::decode(&bytes).unwrap(), checkpoint);
        bytes.extend([7; 100]);
        assert_eq!(Checkpoint::decode(&bytes).unwrap(), checkpoint);
        assert_eq!(checkpoint.slot(), 1);
        let empty = Checkpoint { groups: vec![], catalog: None, ..checkpoint };
        assert_eq!(Checkpoint::decode(&empty.encode().unwrap()).unwrap(), empty);
    }

    #[test]
    fn groups_are_put_in_order_and_never_twice() {
        let mut checkpoint = sample();
        checkpoint.groups.reverse();
        assert_eq!(Checkpoint::decode(&checkpoint.encode().unwrap()).unwrap(), sample());
        checkpoint.groups[1].group = checkpoint.groups[0].group;
        assert!(checkpoint.encode().is_err());
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_noticed() {
        let good = sample().encode().unwrap();
        for len in 0..good.len() {
            assert!(Checkpoint::decode(&good[..len]).is_err(), "cut to {len}");
        }
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Checkpoint::decode(&bytes).is_err(), "bit {bit}");
        }
        assert_eq!(Checkpoint::decode(&[0; 100]), Err(CheckpointError::Magic));
    }

    #[test]
    fn a_count_larger_than_the_rest_is_refused_before_it_is_allocated() {
        let mut payload = sample().encode().unwrap().split_off(CHECKPOINT_HEADER_BYTES);
        payload[52..56].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Checkpoint::decode(&sealed(&payload)), Err(CheckpointError::Field("payload")));
    }

    /// The payload under a header with right checksums.
    fn sealed(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; CHECKPOINT_HEADER_BYTES];
        bytes[..4].copy_from_slice(&CHECKPOINT_MAGIC);
        bytes[4..6].copy_from_slice(&CHECKPOINT_VERSION.to_le_bytes());
        bytes[24..28].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        bytes[28..32].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..36]);
        bytes[36..40].copy_from_slice(&crc.to_le_bytes());
        bytes.extend(payload);
        bytes
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = Checkpoint::decode(&bytes);
            let _ = Checkpoint::decode(&sealed(&bytes));
        }

        #[test]
        fn a_changed_payload_under_right_checksums_never_panics(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let mut payload = sample().encode().unwrap().split_off(CHECKPOINT_HEADER_BYTES);
            for (at, value) in changes {
                let at = at.index(payload.len());
                payload[at] = value;
            }
            if let Ok(decoded) = Checkpoint::decode(&sealed(&payload)) {
                prop_assert_eq!(Checkpoint::decode(&decoded.encode().unwrap()).unwrap(), decoded);
            }
        }
    }
}
