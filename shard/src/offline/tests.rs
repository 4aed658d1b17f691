//! The check and the dump on a small data folder on disk, whole and damaged.

use std::path::PathBuf;

use super::*;
use crate::format::batch::{BatchHead, testing::batch};
use crate::format::checkpoint::{Checkpoint, GroupCheckpoint, ReplayPoint, SegmentMeta};
use crate::format::index::{IndexBuilder, index_header};
use crate::format::journal::*;
use pyralog_core::limits::CHUNK_BYTES;
use pyralog_replication::raft::Standing;

const ID: u64 = 0x5151_5151_0000_0001;
const GROUP: GroupId = GroupId::new(1, 0);
const BATCHES: i64 = 300;

/// A data folder with one shard: a segment with offsets 0..300, a checkpoint, and a journal with 300..303 behind the
/// replay point and a marker.
struct Data {
    dir: tempfile::TempDir,
    /// Positions of the batches in the segment.
    batches: Vec<u64>,
    /// Positions of the commits in the journal.
    commits: Vec<u64>,
}

impl Data {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut data = Self { dir, batches: Vec::new(), commits: Vec::new() };
        std::fs::create_dir_all(data.path("1-0")).unwrap();
        std::fs::write(data.dir.path().join("lock"), "4711\n").unwrap();
        let segment = data.segment();
        let point = data.journal();
        let checkpoint = Checkpoint {
            seq: 2,
            journal_id: ID,
            incarnation: 1,
            replay_from: point,
            groups: vec![GroupCheckpoint {
                group: GROUP,
                log_start: 0,
                flushed_to: BATCHES,
                epoch: 1,
                standing: Standing::Member,
                replicated: None,
                end_unknown: false,
                damaged: Vec::new(),
                segments: vec![segment],
                producers: Vec::new(),
            }],
            catalog: None,
            opens_are_suspect: false,
            dropped_at: 0,
            founders: Vec::new(),
        };
        std::fs::write(data.path("checkpoint.0"), checkpoint.encode().unwrap()).unwrap();
        data
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("shard-0").join(name)
    }

    fn log(&self) -> PathBuf {
        self.path("1-0/00000000000000000000.log")
    }

    fn index(&self) -> PathBuf {
        self.path("1-0/00000000000000000000.index")
    }

    fn segment(&mut self) -> SegmentMeta {
        let (mut log, mut index, mut builder) = (Vec::new(), index_header(0).to_vec(), IndexBuilder::new());
        for offset in 0..BATCHES {
            let bytes = batch(offset, 1, 1, 1_000 + offset, &[offset as u8; 900]);
            self.batches.push(log.len() as u64);
            if let Some(entry) = builder.add(log.len() as u64, offset, 1_000 + offset) {
                index.extend(entry.encode());
            }
            log.extend(bytes);
        }
        std::fs::write(self.log(), &log).unwrap();
        std::fs::write(self.index(), &index).unwrap();
        SegmentMeta {
            base: 0,
            end_offset: BATCHES,
            epoch: Some(1),
            bytes: log.len() as u64,
            max_timestamp: builder.max_timestamp(),
        }
    }

    fn journal(&mut self) -> ReplayPoint {
        let mut file = vec![0; CHUNK_BYTES];
        let (mut at, mut prev_crc, mut point) = (0, 0, None);
        for lsn in 1..=6u64 {
            let mut header = CommitHeader {
                marker: lsn == 6,
                journal_id: ID,
                generation: 1,
                lsn,
                incarnation: 1,
                durable_lsn: lsn - 1,
                position: at as u64,
                prev_crc,
                file: 7,
                ..CommitHeader::default()
            };
            let (mut payload, mut crc) = (Vec::new(), FramesCrc::default());
            let body = batch(BATCHES + lsn as i64 - 3, 1, 1, 2_000, b"in the journal");
            let frame = match lsn {
                1 => Some((FrameHeader::bodyless(FrameKind::NewLife, GroupId::METADATA, 0, 1), &[][..])),
                2 => Some((FrameHeader::bodyless(FrameKind::OpenGroup, GROUP, 0, 1), &[][..])),
                6 => None,
                _ => Some((FrameHeader::batch(GROUP, &BatchHead::parse(&body).unwrap(), 0), &body[..])),
            };
            if let Some((frame, body)) = frame {
                let encoded = frame.encode(header.frame_seed());
                crc.add(&encoded);
                payload.extend(encoded);
                payload.extend(body);
                payload.resize(payload.len().next_multiple_of(FRAME_ALIGN), 0);
                header.frame_count = 1;
            }
            header.payload_len = payload.len() as u32;
            header.frames_crc = crc.value();
            if lsn == 3 {
                let position = at as u64;
                point = Some(ReplayPoint { lsn, file: 7, generation: 1, position, prev_crc, incarnation: 1 });
            }
            file[at..at + 96].copy_from_slice(&header.encode());
            file[at + 96..at + 96 + payload.len()].copy_from_slice(&payload);
            self.commits.push(at as u64);
            prev_crc = header.header_crc;
            at += header.padded_len();
        }
        std::fs::write(self.path("7.journal"), file).unwrap();
        point.unwrap()
    }

    fn verify(&self) -> Report {
        let mut last = 0;
        let report = verify(self.dir.path(), self.dir.path(), &mut |progress| {
            assert!(progress.done_bytes >= last && progress.done_bytes <= progress.total_bytes);
            last = progress.done_bytes;
        });
        report.unwrap()
    }

    fn flip(&self, path: &Path, at: u64) {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[at as usize] ^= 0x10;
        std::fs::write(path, bytes).unwrap();
    }

    fn cut(&self, path: &Path, len: u64) {
        File::options().write(true).open(path).unwrap().set_len(len).unwrap();
    }
}

/// File name, group, offsets.
type Damaged<'a> = (&'a str, Option<GroupId>, Option<(i64, i64)>);

/// The findings that are damage.
fn damage(report: &Report) -> Vec<Damaged<'_>> {
    let damage = report.findings.iter().filter(|finding| finding.severity == Severity::Damage);
    damage.map(|f| (f.file.file_name().unwrap().to_str().unwrap(), f.group, f.offsets)).collect()
}

#[test]
fn a_whole_folder_is_clean_and_counted() {
    let data = Data::new();
    let report = data.verify();
    assert_eq!(report.findings, []);
    assert!(report.clean());
    assert_eq!((report.shards, report.checkpoints, report.partitions, report.journal_files), (1, 1, 1, 1));
    assert_eq!((report.segments, report.segment_batches), (1, 300));
    assert_eq!((report.commits, report.journal_batches, report.records), (4, 3, 303));
}

#[test]
fn a_folder_in_use_is_refused_and_the_file_named() {
    let data = Data::new();
    let lock = File::open(data.dir.path().join("lock")).unwrap();
    lock.try_lock().unwrap();
    let error = verify(data.dir.path(), data.dir.path(), &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("lock is locked") && error.contains("(process 4711)"), "{error}");
    lock.unlock().unwrap();
    let empty = tempfile::tempdir().unwrap();
    let error = verify(empty.path(), empty.path(), &mut |_| {});
    assert!(matches!(error, Err(OfflineError::NoData(_))));
}

#[test]
fn a_broken_batch_of_a_segment_is_named_with_its_offsets_and_the_rest_is_checked() {
    for within in [0, 5, 8, 16, 30, 58, 500] {
        let data = Data::new();
        data.flip(&data.log(), data.batches[100] + within);
        let report = data.verify();
        let found = damage(&report);
        assert!(!report.clean(), "byte {within}");
        let (file, group, offsets) = found[0];
        assert_eq!((file, group), ("00000000000000000000.log", Some(GROUP)));
        let (from, to) = offsets.unwrap();
        assert!(from.min(to) <= 100 && to > 100, "byte {within}: {from}..{to}");
        if within >= 21 {
            assert_eq!((found.len(), report.findings[0].position), (1, Some(data.batches[100])));
        }
        if within == 500 {
            assert_eq!((offsets, report.segment_batches), (Some((100, 101)), 299));
        }
    }
}

#[test]
fn a_cut_or_missing_segment_is_damage() {
    let data = Data::new();
    data.cut(&data.log(), data.batches[200] + 10);
    let report = data.verify();
    assert!(damage(&report).iter().any(|(_, _, offsets)| offsets.unwrap().0 == 200), "{report:?}");
    std::fs::remove_file(data.log()).unwrap();
    let report = data.verify();
    assert_eq!(damage(&report), [("00000000000000000000.log", Some(GROUP), Some((0, 300)))]);
}

/// As a node leaves it that is killed in the first run of its flusher. That this journal does not hold the batches is told of
/// the journal.
#[test]
fn a_segment_that_no_checkpoint_names_may_end_within_a_batch() {
    let data = Data::new();
    std::fs::remove_file(data.path("checkpoint.0")).unwrap();
    let of_the_log =
        |report: &Report| damage(report).iter().filter(|(file, ..)| file.ends_with(".log")).count();
    for cut in [data.batches[299] + 500, data.batches[298] + 7] {
        data.cut(&data.log(), cut);
        let report = data.verify();
        assert_eq!(of_the_log(&report), 0, "{report:?}");
        assert!(report.findings.iter().any(|f| f.what.contains("ends within the batch at offset 29")));
    }
    data.flip(&data.log(), data.batches[200] + 100);
    assert_eq!(of_the_log(&data.verify()), 1, "what is broken within it is none of that");
}

#[test]
fn a_broken_index_is_a_warning_and_a_longer_segment_a_note() {
    let data = Data::new();
    data.flip(&data.index(), 32 + 24 + 3);
    let report = data.verify();
    assert_eq!((report.clean(), report.findings[0].severity), (true, Severity::Warning));
    // An index of another content, with right checksums.
    let mut index = index_header(0).to_vec();
    let entry = crate::format::index::IndexEntry { base_offset: 99, max_timestamp: 0, position: 50_000 };
    index.extend(entry.encode());
    std::fs::write(data.index(), index).unwrap();
    let report = data.verify();
    assert_eq!((report.findings.len(), report.findings[0].severity), (1, Severity::Warning));

    let data = Data::new();
    let mut log = std::fs::read(data.log()).unwrap();
    log.extend([1, 2, 3]);
    std::fs::write(data.log(), log).unwrap();
    let report = data.verify();
    assert_eq!((report.clean(), report.findings[0].severity), (true, Severity::Note));
    assert_eq!(report.segment_batches, 300);
}

#[test]
fn damage_in_the_journal_is_told_from_its_torn_end() {
    let data = Data::new();
    data.flip(&data.path("7.journal"), data.commits[3] + 96 + 40 + 70);
    assert_eq!(damage(&data.verify()), [("7.journal", Some(GROUP), Some((301, 302)))]);

    let data = Data::new();
    data.flip(&data.path("7.journal"), data.commits[3] + 20);
    let report = data.verify();
    assert_eq!(damage(&report), [("7.journal", None, None), ("7.journal", Some(GROUP), Some((301, 302)))]);

    let data = Data::new();
    data.flip(&data.path("7.journal"), data.commits[5] + 20);
    let report = data.verify();
    assert_eq!((damage(&report), report.commits), (vec![], 3));
}

#[test]
fn a_gap_between_segments_and_journal_is_damage() {
    let data = Data::new();
    let mut checkpoint = Checkpoint::decode(&std::fs::read(data.path("checkpoint.0")).unwrap()).unwrap();
    checkpoint.groups[0].flushed_to = 290;
    checkpoint.groups[0].segments[0].end_offset = 290;
    checkpoint.groups[0].segments[0].bytes = data.batches[290];
    checkpoint.groups[0].segments[0].max_timestamp = 1_289;
    std::fs::write(data.path("checkpoint.0"), checkpoint.encode().unwrap()).unwrap();
    let report = data.verify();
    assert_eq!(damage(&report), [("7.journal", Some(GROUP), Some((290, 300)))]);
    // Segments that end before what the checkpoint says they hold.
    checkpoint.groups[0].flushed_to = 300;
    std::fs::write(data.path("checkpoint.0"), checkpoint.encode().unwrap()).unwrap();
    assert_eq!(damage(&data.verify())[0].2, Some((290, 300)));
    // Known already.
    checkpoint.groups[0].damaged = vec![(290, 300)];
    std::fs::write(data.path("checkpoint.0"), checkpoint.encode().unwrap()).unwrap();
    let report = data.verify();
    assert_eq!(damage(&report), [("checkpoint.0", Some(GROUP), Some((290, 300)))]);
}

#[test]
fn checkpoints_fall_back_to_the_other_slot() {
    let data = Data::new();
    std::fs::write(data.path("checkpoint.1"), b"torn").unwrap();
    let report = data.verify();
    assert_eq!((report.clean(), report.findings.len()), (true, 1));
    std::fs::write(data.path("checkpoint.0"), b"torn as well").unwrap();
    assert!(!data.verify().clean());
    std::fs::remove_file(data.path("checkpoint.0")).unwrap();
    std::fs::remove_file(data.path("checkpoint.1")).unwrap();
    let report = data.verify();
    assert_eq!((report.checkpoints, report.segments, report.commits), (0, 1, 6));
}

#[test]
fn a_missing_journal_is_damage() {
    let data = Data::new();
    std::fs::remove_file(data.path("7.journal")).unwrap();
    let report = data.verify();
    assert!(report.findings[0].what.contains("there is no such file"), "{report:?}");
}

#[test]
fn every_kind_of_file_is_dumped_in_lines() {
    let data = Data::new();
    let dumped = |path: PathBuf| {
        let mut out = Vec::new();
        dump(&path, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    let log = dumped(data.log());
    assert_eq!(log.lines().count(), 300);
    assert!(log.starts_with("@0 offsets 0..1 records 1 bytes 961 epoch 1 max_timestamp 1000 ok\n"), "{log}");
    let journal = dumped(data.path("7.journal"));
    assert_eq!(journal.lines().filter(|line| line.contains("commit") && line.ends_with("ok")).count(), 6);
    assert!(journal.contains("    batch 1-0 offsets 301..302 bytes 75 epoch 1 ok\n"), "{journal}");
    assert!(journal.contains("    open 1-0 log start 0") && journal.contains("    new life 1"));
    assert!(dumped(data.index()).starts_with("@32 offset 69 at 66309 max_timestamp_before 1068\n"));
    let checkpoint = dumped(data.path("checkpoint.0"));
    assert!(checkpoint.contains("segment 00000000000000000000 offsets 0..300 bytes 288300"), "{checkpoint}");
    data.flip(&data.log(), data.batches[299] + 100);
    data.cut(&data.log(), data.batches[299] + 200);
    assert!(dumped(data.log()).ends_with("INCOMPLETE: 200 of 961 bytes\n"));
    assert!(matches!(
        dump(&data.dir.path().join("lock"), &mut Vec::new()),
        Err(OfflineError::UnknownKind(_))
    ));
}
