//! Tests of the journal's codecs.

use super::super::batch::testing::batch;
use super::*;
use proptest::prelude::*;

const GROUP: GroupId = GroupId::new(7, 2);

fn header() -> CommitHeader {
    CommitHeader {
        journal_id: 0x1122_3344_5566_7788,
        generation: 3,
        lsn: 42,
        incarnation: 2,
        durable_lsn: 40,
        position: 8192,
        prev_crc: 0xAABB_CCDD,
        file: 5,
        ..CommitHeader::default()
    }
}

/// A sealed commit with three frames.
fn commit() -> (CommitHeader, Vec<u8>) {
    let mut header = header();
    let seed = header.frame_seed();
    let first = batch(100, 1, 3, 10, b"one two three");
    let second = batch(103, 1, 1, 11, b"four");
    let mut payload = Vec::new();
    let mut crc = FramesCrc::default();
    let mut push = |frame: FrameHeader, body: &[u8]| {
        let encoded = frame.encode(seed);
        crc.add(&encoded);
        payload.extend(encoded);
        payload.extend(body);
        payload.resize(payload.len().next_multiple_of(FRAME_ALIGN), 0);
    };
    push(FrameHeader::bodyless(FrameKind::OpenGroup, GROUP, 100, 0), &[]);
    for body in [&first, &second] {
        push(FrameHeader::batch(GROUP, &BatchHead::parse(body).unwrap(), 3), body);
    }
    header.payload_len = payload.len() as u32;
    header.frame_count = 3;
    header.frames_crc = crc.value();
    header.encode();
    (header, payload)
}

#[test]
fn a_commit_reads_back() {
    let (mut header, payload) = commit();
    let bytes = header.encode();
    assert_eq!(CommitHeader::decode(&bytes), Ok(header));
    let mut list = Vec::new();
    header.verify_frames(&payload, &mut list).unwrap();
    assert_eq!(list.len(), 3);
    assert_eq!(list[0].0.kind, FrameKind::OpenGroup);
    let (frame, at) = list[2];
    assert_eq!((frame.base_offset, frame.end_offset(), frame.group), (103, 104, GROUP));
    assert_eq!(payload[at..at + frame.body_len as usize], batch(103, 1, 1, 11, b"four"));
    assert_eq!(padded_len(0), 4096);
    assert_eq!(padded_len(4000), 4096);
    assert_eq!(padded_len(4001), 8192);
}

#[test]
fn every_flipped_bit_of_a_header_is_noticed() {
    let (mut header, _) = commit();
    let good = header.encode();
    for bit in 0..good.len() * 8 {
        let mut bytes = good;
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(CommitHeader::decode(&bytes).is_err(), "bit {bit}");
    }
}

#[test]
fn every_flipped_bit_of_a_frame_is_noticed() {
    let (header, good) = commit();
    let mut list = Vec::new();
    header.verify_frames(&good, &mut list).unwrap();
    let meaning: Vec<Range<usize>> =
        list.iter().map(|(frame, at)| at - FRAME_HEADER_BYTES..at + frame.body_len as usize).collect();
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let padding = !meaning.iter().any(|range| range.contains(&(bit / 8)));
        assert_eq!(header.verify_frames(&bytes, &mut list).is_ok(), padding, "bit {bit}");
    }
}

#[test]
fn a_frame_of_another_commit_is_no_frame_of_this_one() {
    let (header, payload) = commit();
    for other in [
        CommitHeader { lsn: 41, ..header },
        CommitHeader { incarnation: 1, ..header },
        CommitHeader { journal_id: 1, ..header },
    ] {
        assert_eq!(
            FrameHeader::decode(&payload, other.frame_seed()),
            Err(FrameError::Checksum),
            "an intact frame that an older commit left at the same place"
        );
    }
}

#[test]
fn frames_in_another_order_are_not_accepted() {
    let (header, payload) = commit();
    let mut list = Vec::new();
    header.verify_frames(&payload, &mut list).unwrap();
    let second = list[1].1 - FRAME_HEADER_BYTES;
    let third = list[2].1 - FRAME_HEADER_BYTES;
    let swapped = [&payload[..second], &payload[third..], &payload[second..third]].concat();
    assert_eq!(header.verify_frames(&swapped, &mut list), Err(CommitError::Frames));
}

#[test]
fn fields_out_of_bounds_are_refused() {
    let bad = [
        CommitHeader { generation: 0, ..header() },
        CommitHeader { lsn: 0, durable_lsn: 0, ..header() },
        CommitHeader { incarnation: 0, ..header() },
        CommitHeader { durable_lsn: 42, ..header() },
        CommitHeader { position: 4095, ..header() },
        CommitHeader { payload_len: MAX_COMMIT_BYTES as u32, frame_count: 1, ..header() },
        CommitHeader { payload_len: 80, frame_count: 3, ..header() },
        CommitHeader { payload_len: 80, frame_count: 0, ..header() },
        CommitHeader { payload_len: 44, frame_count: 1, ..header() },
        CommitHeader { marker: true, payload_len: 40, frame_count: 1, ..header() },
    ];
    for mut header in bad {
        let bytes = header.encode();
        assert!(matches!(CommitHeader::decode(&bytes), Err(CommitError::Field(_))), "{header:?}");
    }
}

#[test]
fn zeros_never_decode() {
    assert_eq!(CommitHeader::decode(&[0; 4096]), Err(CommitError::Magic));
    assert!(FrameHeader::decode(&[0; 4096], 0).is_err());
    assert!(FrameHeader::decode(&[0; 4096], frame_seed(1, 1, 1)).is_err());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512), seed in any::<u32>()) {
        let _ = CommitHeader::decode(&bytes);
        let _ = FrameHeader::decode(&bytes, seed);
        let _ = frames(&bytes, seed).count();
        let header = CommitHeader { payload_len: bytes.len() as u32, ..header() };
        let _ = header.verify_frames(&bytes, &mut Vec::new());
    }

    #[test]
    fn arbitrary_fields_under_a_right_checksum_never_panic(fields in proptest::collection::vec(any::<u8>(), 96)) {
        let mut bytes = fields;
        bytes[..4].copy_from_slice(&COMMIT_MAGIC);
        bytes[4..6].copy_from_slice(&1u16.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..92]);
        bytes[92..].copy_from_slice(&crc.to_le_bytes());
        if let Ok(header) = CommitHeader::decode(&bytes) {
            let _ = (header.padded_len(), header.end_position());
        }
    }

    #[test]
    fn headers_round_trip(
        ids in any::<(u64, u32, u32, u32)>(), generation in 1..u64::MAX, lsn in 1..u64::MAX,
        incarnation in 1..u64::MAX, block in 0..1u64 << 40, frames in 0..100u32,
    ) {
        let mut header = CommitHeader {
            marker: frames == 0,
            journal_id: ids.0, generation, lsn, incarnation,
            durable_lsn: lsn - 1,
            position: block * 4096,
            payload_len: frames * 48,
            frame_count: frames,
            prev_crc: ids.1, file: ids.2, frames_crc: ids.3,
            header_crc: 0,
        };
        let bytes = header.encode();
        prop_assert_eq!(CommitHeader::decode(&bytes), Ok(header));
    }
}
