//! What holds for every batch and for every string of bytes.

#![allow(clippy::unwrap_used)]

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use pyralog_core::batch::{
    ATTRIBUTES_AT, BatchBuilder, BatchError, BatchView, CRC_AT, Compression, Header, patch_base_offset,
    peek_len,
};
use pyralog_core::limits::{BATCH_HEADER_BYTES, MAX_BATCH_BYTES};

#[derive(Clone, Debug, PartialEq)]
struct Rec {
    timestamp: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

fn any_record() -> impl Strategy<Value = Rec> {
    // Timestamps of either sign that can't be too far apart.
    let timestamp = (i64::MIN / 4)..(i64::MAX / 4);
    let header = (vec(any::<u8>(), 0..20), option::of(vec(any::<u8>(), 0..20)));
    let value =
        prop_oneof![vec(any::<u8>(), 0..300), (any::<u8>(), 0..5000_usize).prop_map(|(b, n)| vec![b; n])];
    (timestamp, option::of(vec(any::<u8>(), 0..80)), option::of(value), vec(header, 0..4))
        .prop_map(|(timestamp, key, value, headers)| Rec { timestamp, key, value, headers })
}

fn any_compression() -> impl Strategy<Value = Compression> {
    prop::sample::select(&Compression::ALL[..])
}

fn build(records: &[Rec], compression: Compression, producer: Option<(i64, i16, i32)>) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    if let Some((id, epoch, sequence)) = producer {
        builder.set_producer(id, epoch, sequence);
    }
    for r in records {
        let headers: Vec<_> = r.headers.iter().map(|(k, v)| Header { key: k, value: v.as_deref() }).collect();
        builder.append(r.timestamp, r.key.as_deref(), r.value.as_deref(), &headers).unwrap();
    }
    builder.build(compression).unwrap().to_vec()
}

/// Makes the length field say what is there.
fn set_length(bytes: &mut [u8]) {
    let behind = bytes.len() as i32 - 12;
    bytes[8..12].copy_from_slice(&behind.to_be_bytes());
}

/// Reads everything that can be read; only the absence of panics and the bounds matter.
fn read_all(bytes: &[u8]) -> Result<u32, BatchError> {
    let (view, _) = BatchView::parse(bytes)?;
    let _ = format!("{view:?} {} {}", view.last_offset(), view.last_sequence());
    view.verify_crc();
    let mut scratch = Vec::new();
    let mut read = 0;
    for record in view.records(&mut scratch)? {
        let record = record?;
        assert!(record.offset <= view.last_offset());
        assert_eq!(record.headers.len(), record.headers.count());
        read += 1;
    }
    assert_eq!(read, view.record_count());
    Ok(read)
}

proptest! {
    #[test]
    fn what_is_built_is_read(
        records in vec(any_record(), 1..40),
        compression in any_compression(),
        producer in option::of((0..i64::MAX, 0..i16::MAX, 0..i32::MAX)),
        base_offset in 0..i64::MAX / 2,
    ) {
        let mut bytes = build(&records, compression, producer);
        patch_base_offset(&mut bytes, base_offset).unwrap();
        prop_assert_eq!(peek_len(&bytes), Some(bytes.len()));
        let view = BatchView::parse_exact(&bytes).unwrap();
        prop_assert!(view.verify_crc());
        prop_assert!(view.compression() == compression || view.compression() == Compression::None);
        prop_assert_eq!(view.record_count() as usize, records.len());
        prop_assert_eq!(view.last_offset(), base_offset + records.len() as i64 - 1);
        prop_assert_eq!(Some(view.max_timestamp()), records.iter().map(|r| r.timestamp).max());
        prop_assert_eq!(view.has_producer(), producer.is_some());
        if let Some(producer) = producer {
            prop_assert_eq!((view.producer_id(), view.producer_epoch(), view.base_sequence()), producer);
            let last = (i64::from(producer.2) + records.len() as i64 - 1) % (1 << 31);
            prop_assert_eq!(i64::from(view.last_sequence()), last);
        }
        let mut scratch = Vec::new();
        let mut read = Vec::new();
        for (i, record) in view.records(&mut scratch).unwrap().enumerate() {
            let record = record.unwrap();
            prop_assert_eq!(record.offset, base_offset + i as i64);
            read.push(Rec {
                timestamp: record.timestamp,
                key: record.key.map(<[u8]>::to_vec),
                value: record.value.map(<[u8]>::to_vec),
                headers: record.headers.map(|h| (h.key.to_vec(), h.value.map(<[u8]>::to_vec))).collect(),
            });
        }
        prop_assert_eq!(read, records);
    }

    #[test]
    fn a_flipped_bit_never_verifies(
        records in vec(any_record(), 1..10),
        compression in any_compression(),
        at: prop::sample::Index,
        bit in 0..8_u32,
    ) {
        let mut bytes = build(&records, compression, None);
        // Anywhere in the checksum or in what it covers.
        let at = CRC_AT + at.index(bytes.len() - CRC_AT);
        bytes[at] ^= 1 << bit;
        if let Ok(view) = BatchView::parse_exact(&bytes) {
            prop_assert!(!view.verify_crc());
        }
        let _ = read_all(&bytes);
    }

    #[test]
    fn truncation_is_told(records in vec(any_record(), 1..10), compression in any_compression(), at: prop::sample::Index) {
        let bytes = build(&records, compression, None);
        let cut = &bytes[..at.index(bytes.len())];
        let need = if cut.len() < BATCH_HEADER_BYTES { BATCH_HEADER_BYTES } else { bytes.len() };
        prop_assert_eq!(BatchView::parse(cut).unwrap_err(), BatchError::Truncated { need, have: cut.len() });
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..400)) {
        let _ = read_all(&bytes);
        let _ = peek_len(&bytes);
    }

    /// Past the header checks, which arbitrary bytes hardly ever pass.
    #[test]
    fn arbitrary_records_do_no_harm(
        body in vec(any::<u8>(), 1..400),
        compression in any_compression(),
        count in 1..60_i32,
        edits in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        real in any::<bool>(),
        records in vec(any_record(), 1..5),
    ) {
        let mut bytes = if real {
            build(&records, compression, None)
        } else {
            let mut bytes = build(&[Rec { timestamp: 0, key: None, value: None, headers: vec![] }], Compression::None, None);
            bytes.truncate(BATCH_HEADER_BYTES);
            bytes.extend(body);
            set_length(&mut bytes);
            bytes[ATTRIBUTES_AT + 1] = compression as u8;
            bytes[23..27].copy_from_slice(&(count - 1).to_be_bytes());
            bytes[57..61].copy_from_slice(&count.to_be_bytes());
            bytes
        };
        for (at, byte) in edits {
            let at = BATCH_HEADER_BYTES + at.index(bytes.len() - BATCH_HEADER_BYTES);
            bytes[at] = byte;
        }
        let _ = read_all(&bytes);
    }
}

#[test]
fn the_builder_fills_a_batch_to_the_bound_and_no_further() {
    let mut builder = BatchBuilder::with_capacity(MAX_BATCH_BYTES);
    let value = vec![7; 1000];
    let refused = loop {
        if let Err(e) = builder.append(5, None, Some(&value), &[]) {
            break e;
        }
    };
    let records = builder.record_count();
    assert_eq!(refused, BatchError::Full { bytes: builder.len_bytes(), records });
    assert!(builder.len_bytes() > MAX_BATCH_BYTES - 1020 && builder.len_bytes() <= MAX_BATCH_BYTES);
    assert_eq!(read_all(builder.build(Compression::None).unwrap()), Ok(records));
    assert!(builder.build(Compression::Lz4).unwrap().len() < MAX_BATCH_BYTES / 50);

    // The largest record there is, and one byte more.
    builder.clear();
    let overhead = BATCH_HEADER_BYTES + 3 + 1 + 1 + 1 + 1 + 3 + 1;
    let largest = vec![7; MAX_BATCH_BYTES - overhead];
    builder.append(5, None, Some(&largest), &[]).unwrap();
    assert_eq!(builder.len_bytes(), MAX_BATCH_BYTES);
    assert_eq!(read_all(builder.build(Compression::None).unwrap()), Ok(1));
    builder.clear();
    let too_large = builder.append(5, None, Some(&vec![7; largest.len() + 1]), &[]).unwrap_err();
    assert_eq!(too_large, BatchError::RecordTooLarge { bytes: MAX_BATCH_BYTES as u64 + 1 });
    assert_eq!(builder.build(Compression::None).unwrap_err(), BatchError::Empty);
}

#[test]
fn incompressible_records_stay_as_they_are() {
    // A xorshift generator: nothing for a compressor to find.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(100_000)
    .collect();
    let mut builder = BatchBuilder::new();
    builder.append(0, None, Some(&noise), &[]).unwrap();
    let plain = builder.build(Compression::None).unwrap().to_vec();
    for compression in Compression::ALL {
        assert_eq!(builder.build(compression).unwrap(), plain);
    }
}

#[test]
fn log_append_time_overrides_the_records_timestamps() {
    let rec = |timestamp| Rec { timestamp, key: None, value: None, headers: vec![] };
    let mut bytes = build(&[rec(10), rec(20), rec(15)], Compression::None, None);
    bytes[ATTRIBUTES_AT + 1] |= 8;
    let view = BatchView::parse_exact(&bytes).unwrap();
    let mut scratch = Vec::new();
    let times: Vec<_> = view.records(&mut scratch).unwrap().map(|r| r.unwrap().timestamp).collect();
    assert_eq!(times, [20, 20, 20]);
}

#[test]
fn bytes_behind_the_last_record_are_told_once() {
    let mut bytes =
        build(&[Rec { timestamp: 0, key: None, value: None, headers: vec![] }], Compression::None, None);
    bytes.extend([1, 2, 3]);
    set_length(&mut bytes);
    let view = BatchView::parse_exact(&bytes).unwrap();
    let mut scratch = Vec::new();
    let mut records = view.records(&mut scratch).unwrap();
    assert!(records.next().unwrap().is_ok());
    assert_eq!(records.next(), Some(Err(BatchError::BytesAfterRecords { extra: 3 })));
    assert_eq!(records.next(), None);
    assert_eq!(view.check_records(&mut Vec::new()), Err(BatchError::BytesAfterRecords { extra: 3 }));
}
