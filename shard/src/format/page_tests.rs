//! Holds `docs/storage-format.md` against the code: its hex examples are what the encoders write and what the
//! decoders read, and its numbers are the constants.

use super::batch::{BatchHead, testing::batch};
use super::checkpoint::*;
use super::index::*;
use super::journal::*;
use pyralog_core::GroupId;
use pyralog_core::limits::{CHUNK_BYTES, INDEX_INTERVAL_BYTES, JOURNAL_ALIGN, MAX_CHECKPOINT_BYTES};
use pyralog_replication::metadata::Replica;
use pyralog_replication::raft::{Configuration, Standing};

const PAGE: &str = include_str!("../../../docs/storage-format.md");
const JOURNAL_ID: u64 = 0x1122_3344_5566_7788;

/// The bytes of the example with this name: the hex columns of a block that begins with "```hex NAME".
fn example(name: &str) -> Vec<u8> {
    let block = PAGE.split("```").find_map(|block| block.strip_prefix(&format!("hex {name}\n")));
    hex(block.unwrap_or_else(|| panic!("the page has no example {name}")))
}

/// The bytes in the hex columns.
fn hex(block: &str) -> Vec<u8> {
    let bytes =
        block.lines().flat_map(|line| line.split_whitespace().skip(1).take_while(|word| *word != "|"));
    bytes.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

/// The block as it has to be in the page.
fn block(bytes: &[u8]) -> String {
    let lines = bytes.chunks(16).enumerate().map(|(i, line)| {
        let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{:04x}  {}\n", i * 16, hex.join(" "))
    });
    lines.collect()
}

fn check(name: &str, bytes: &[u8]) {
    assert!(example(name) == bytes, "the example {name} has to be\n{}", block(bytes));
}

#[test]
fn the_example_of_a_commit() {
    let mut header = CommitHeader {
        journal_id: JOURNAL_ID,
        generation: 3,
        lsn: 42,
        incarnation: 2,
        durable_lsn: 41,
        position: 8192,
        prev_crc: 0xAABB_CCDD,
        file: 5,
        frame_count: 2,
        ..CommitHeader::default()
    };
    let (seed, group) = (header.frame_seed(), GroupId::new(7, 2));
    assert!(PAGE.contains(&format!("seed is `{seed:#010x}`")), "seed {seed:#010x}");
    let body = batch(100, 2, 1, 1_700_000_000_000, b"\x10\0\0\0\x01\x04hi\0");
    let mut crc = FramesCrc::default();
    let mut payload = Vec::new();
    for (frame, body) in [
        (FrameHeader::bodyless(FrameKind::OpenGroup, group, 100, 2), &[][..]),
        (FrameHeader::batch(group, &BatchHead::parse(&body).unwrap(), 9), &body[..]),
    ] {
        let encoded = frame.encode(seed);
        crc.add(&encoded);
        payload.extend(encoded);
        payload.extend(body);
        payload.resize(payload.len().next_multiple_of(FRAME_ALIGN), 0);
    }
    header.payload_len = payload.len() as u32;
    header.frames_crc = crc.value();
    let bytes = [&header.encode()[..], &payload].concat();
    check("commit", &bytes);
    let read = example("commit");
    let decoded = CommitHeader::decode(&read).unwrap();
    let mut frames = Vec::new();
    decoded.verify_frames(&read[COMMIT_HEADER_BYTES..], &mut frames).unwrap();
    assert_eq!((decoded, frames.len(), decoded.padded_len()), (header, 2, 4096));
    assert_eq!(&read[COMMIT_HEADER_BYTES + frames[1].1..][..body.len()], body);
}

#[test]
fn the_example_of_a_checkpoint() {
    let checkpoint = Checkpoint {
        seq: 9,
        journal_id: JOURNAL_ID,
        incarnation: 2,
        replay_from: ReplayPoint {
            lsn: 42,
            file: 5,
            generation: 3,
            position: 8192,
            prev_crc: 0xAABB_CCDD,
            incarnation: 2,
        },
        groups: vec![GroupCheckpoint {
            group: GroupId::new(7, 2),
            log_start: 10,
            flushed_to: 100,
            epoch: 2,
            standing: Standing::Rejoining,
            replicated: Some(ReplicatedCheckpoint {
                replicas: Some((Configuration::of((1..4).map(|node| Replica { node, shard: 2 })), (1, 5))),
                vote: 3,
                start_index: 8,
                start_term: 1,
                entries_from_lsn: 6,
            }),
            end_unknown: false,
            damaged: vec![(50, 60)],
            segments: vec![SegmentMeta {
                base: 10,
                end_offset: 100,
                epoch: Some(1),
                bytes: 4096,
                max_timestamp: 1_700_000_000_000,
            }],
            producers: vec![ProducerCheckpoint {
                producer_id: 77,
                epoch: 1,
                last_used_ms: 1_700_000_000_001,
                batches: vec![ProducerBatch { first_seq: 0, last_seq: 4, base_offset: 95 }],
            }],
        }],
        catalog: None,
        opens_are_suspect: false,
        dropped_at: 12,
        founders: vec![(2, 0x0102_0304_0506_0708)],
    };
    check("checkpoint", &checkpoint.encode().unwrap());
    assert_eq!(Checkpoint::decode(&example("checkpoint")).unwrap(), checkpoint);
}

/// What earlier versions have written is read for ever: the same values, of which those know less.
#[test]
fn version_3_is_read() {
    let written = hex(include_str!("fixtures/checkpoint-3.hex"));
    let mut checkpoint = Checkpoint::decode(&example("checkpoint")).unwrap();
    for group in &mut checkpoint.groups {
        group.replicated.iter_mut().for_each(|replicated| replicated.replicas = None);
        group.segments.iter_mut().for_each(|segment| segment.epoch = None);
    }
    assert_eq!(Checkpoint::decode(&written).unwrap(), checkpoint);
    let (written, now) = (hex(include_str!("fixtures/commit-3.hex")), example("commit"));
    let header = |bytes: &[u8]| CommitHeader { header_crc: 0, ..CommitHeader::decode(bytes).unwrap() };
    assert_eq!(header(&written), header(&now));
    let (mut frames, mut frames_now) = (Vec::new(), Vec::new());
    header(&written).verify_frames(&written[COMMIT_HEADER_BYTES..], &mut frames).unwrap();
    header(&now).verify_frames(&now[COMMIT_HEADER_BYTES..], &mut frames_now).unwrap();
    assert_eq!(frames, frames_now);
}

/// The page follows the code; these files never do: they are what the version of their name looks like, and are not written again.
#[test]
fn version_4_is_read() {
    let written = hex(include_str!("fixtures/checkpoint-4.hex"));
    assert_eq!(Checkpoint::decode(&written).unwrap(), Checkpoint::decode(&example("checkpoint")).unwrap());
    let (written, now) = (hex(include_str!("fixtures/commit-4.hex")), example("commit"));
    let header = |bytes: &[u8]| CommitHeader { header_crc: 0, ..CommitHeader::decode(bytes).unwrap() };
    assert_eq!(header(&written), header(&now));
    let (mut frames, mut frames_now) = (Vec::new(), Vec::new());
    header(&written).verify_frames(&written[COMMIT_HEADER_BYTES..], &mut frames).unwrap();
    header(&now).verify_frames(&now[COMMIT_HEADER_BYTES..], &mut frames_now).unwrap();
    assert_eq!(frames, frames_now);
    let index = Index::parse(&hex(include_str!("fixtures/index-1.hex")), 100, 1 << 20).unwrap();
    assert_eq!(index, Index::parse(&example("index"), 100, 1 << 20).unwrap());
}

#[test]
fn the_example_of_an_index() {
    let entry = IndexEntry { base_offset: 137, max_timestamp: 1_700_000_000_000, position: 66_309 };
    check("index", &[&index_header(100)[..], &entry.encode()].concat());
    assert_eq!(Index::parse(&example("index"), 100, 1 << 20).unwrap().entries(), [entry]);
}

#[test]
fn the_numbers_are_those_of_the_code() {
    for wanted in [
        format!("{CHUNK_BYTES} bytes (one *region*)"),
        format!("a multiple of {JOURNAL_ALIGN}"),
        format!("header of {COMMIT_HEADER_BYTES} bytes"),
        format!("frame header of {FRAME_HEADER_BYTES} bytes"),
        format!("at most {MAX_CHECKPOINT_BYTES} bytes"),
        format!("header of {CHECKPOINT_HEADER_BYTES} bytes"),
        format!("header of {INDEX_HEADER_BYTES} bytes"),
        format!("entries of {INDEX_ENTRY_BYTES} bytes"),
        format!("every {INDEX_INTERVAL_BYTES} bytes"),
    ] {
        assert!(PAGE.contains(&wanted), "the page has to say: {wanted}");
    }
}
