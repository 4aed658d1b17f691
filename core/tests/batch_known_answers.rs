//! Batches whose bytes come from elsewhere: written out by hand, and made by a Kafka client.

use pyralog_core::batch::{BatchBuilder, BatchError, BatchView, Compression, Header, TimestampType};

/// Two records, uncompressed, no producer. Written by hand from the layout in `batch/mod.rs`; the checksum was
/// computed bit by bit (polynomial 0x1EDC6F41, reflected) over the bytes from the attributes on. A Kafka client
/// (kafka-python) gives the same bytes for the same records, with leader epoch 0 instead of -1.
#[rustfmt::skip]
const BY_HAND: &[u8] = &[
    0, 0, 0, 0, 0, 0, 0, 0,             // base offset 0
    0, 0, 0, 73,                        // length: 85 bytes in all - 12
    0xff, 0xff, 0xff, 0xff,             // leader epoch -1
    2,                                  // magic
    0x26, 0xab, 0xde, 0xb3,             // CRC32C of what follows
    0, 0,                               // attributes: no compression, create time
    0, 0, 0, 1,                         // last offset delta
    0, 0, 0x01, 0x8b, 0xcf, 0xe5, 0x68, 0x00, // base timestamp 1,700,000,000,000
    0, 0, 0x01, 0x8b, 0xcf, 0xe5, 0x68, 0x05, // largest timestamp, 5 ms later
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, // producer id -1
    0xff, 0xff,                         // producer epoch -1
    0xff, 0xff, 0xff, 0xff,             // base sequence -1
    0, 0, 0, 2,                         // two records
    // first record
    0x20,                               // length 16 (zigzag: 32)
    0,                                  // attributes
    0,                                  // timestamp delta 0
    0,                                  // offset delta 0
    0x02, b'k',                         // key, 1 byte
    0x0a, b'h', b'e', b'l', b'l', b'o', // value, 5 bytes
    0x02,                               // one header
    0x02, b'h',                         //   key, 1 byte
    0x02, b'x',                         //   value, 1 byte
    // second record
    0x0c,                               // length 6
    0,                                  // attributes
    0x0a,                               // timestamp delta 5
    0x02,                               // offset delta 1
    0x01,                               // no key (-1)
    0x01,                               // no value (-1)
    0,                                  // no header
];

/// Twenty records of producer 1234, epoch 7, from sequence 42 on: timestamps from 1,700,000,000,000 on in steps of
/// one, keys `key0` …, values ten times `value `. Made by kafka-python 2 with lz4.
const KAFKA_LZ4: &str = "\
    00000000000000000000013c000000000237946bf70003000000130000018bcfe568000000018bcfe5681300000000000004\
    d200070000002a0000001404224d186840aa0500000000000075f4000000ff028c01000000086b6579307876616c75652006\
    002360008c0100020248001f3148002e20040448001f3248002e20060648001f3348002e20080848001f3448002e200a0a48\
    001f3548002e200c0c48001f3648002e200e0e48001f3748002e20101048001f3848002e20121248001f3948002baf8e0100\
    14140a6b657931d1022c518e0100161649000fd2022c518e0100181849000fd3022c518e01001a1a49000fd4022c518e0100\
    1c1c49000fd5022c518e01001e1e49000fd6022c518e0100202049000fd7022c518e01002222ff010fd8022c518e01002424\
    49000fd9022c518e0100262649000fda0227506c7565200000000000";
/// The same with zstd.
const KAFKA_ZSTD: &str = "\
    0000000000000000000000dd0000000002a2c2a68a0004000000130000018bcfe568000000018bcfe5681300000000000004\
    d200070000002a0000001428b52ffd60aa04150500b4058c01000000086b6579307876616c756520008c0100020231040432\
    0606330808340a0a350c0c360e0e371010381212398e010014140a6b6579318e010016160a8e01001818321a1a331c1c341e\
    1e352020362222372424382626392620c0936a3513d1a2856d9b45b46861db66112d5ad8b659448b76610cb5cf6a62c32aa4\
    26e1c8b5d0c2ace6222cb430abb9080b2dcc6a2ec2420bb39a5bc4b2ad7239db12";

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|d| (d[0] * 16 + d[1]) as u8).collect()
}

/// CRC32C the slow way, so that the library is not its own witness.
fn crc32c_bit_by_bit(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { (c >> 1) ^ 0x82f6_3b78 } else { c >> 1 })
    })
}

#[test]
fn the_hand_written_batch_reads() {
    let batch = BatchView::parse_exact(BY_HAND).unwrap();
    assert_eq!(crc32c_bit_by_bit(&BY_HAND[21..]), 0x26ab_deb3);
    assert!(batch.verify_crc());
    assert_eq!(batch.len_bytes(), 85);
    assert_eq!((batch.base_offset(), batch.last_offset(), batch.record_count()), (0, 1, 2));
    assert_eq!(batch.leader_epoch(), u32::MAX);
    assert_eq!((batch.base_timestamp(), batch.max_timestamp()), (1_700_000_000_000, 1_700_000_000_005));
    assert_eq!((batch.producer_id(), batch.producer_epoch(), batch.base_sequence()), (-1, -1, -1));
    assert!(!batch.has_producer() && !batch.is_control() && !batch.is_transactional());
    assert_eq!((batch.compression(), batch.timestamp_type()), (Compression::None, TimestampType::CreateTime));

    let mut scratch = Vec::new();
    let records: Vec<_> = batch.records(&mut scratch).unwrap().map(Result::unwrap).collect();
    assert_eq!(records.len(), 2);
    assert_eq!((records[0].offset, records[0].timestamp), (0, 1_700_000_000_000));
    assert_eq!((records[0].key, records[0].value), (Some(&b"k"[..]), Some(&b"hello"[..])));
    assert_eq!(records[0].headers.collect::<Vec<_>>(), [Header::new("h", Some(b"x"))]);
    assert_eq!((records[1].offset, records[1].timestamp), (1, 1_700_000_000_005));
    assert_eq!((records[1].key, records[1].value, records[1].headers.len()), (None, None, 0));
    assert_eq!(scratch.capacity(), 0, "uncompressed records are not copied");
}

#[test]
fn the_builder_writes_the_hand_written_batch() {
    let mut builder = BatchBuilder::new();
    // A batch before it must leave nothing behind.
    builder.append(9, None, Some(b"other"), &[]).unwrap();
    builder.build(Compression::Zstd).unwrap();
    builder.clear();
    builder.append(1_700_000_000_000, Some(b"k"), Some(b"hello"), &[Header::new("h", Some(b"x"))]).unwrap();
    builder.append(1_700_000_000_005, None, None, &[]).unwrap();
    assert_eq!(builder.len_bytes(), BY_HAND.len());
    assert_eq!(builder.build(Compression::None).unwrap(), BY_HAND);
}

#[test]
fn a_kafka_clients_compressed_batches_read() {
    for (hex, compression) in [(KAFKA_LZ4, Compression::Lz4), (KAFKA_ZSTD, Compression::Zstd)] {
        let bytes = unhex(hex);
        let batch = BatchView::parse_exact(&bytes).unwrap();
        assert!(batch.verify_crc());
        assert_eq!(batch.compression(), compression);
        assert_eq!((batch.producer_id(), batch.producer_epoch()), (1234, 7));
        assert_eq!((batch.base_sequence(), batch.last_sequence()), (42, 61));
        let mut scratch = Vec::new();
        let mut count = 0;
        for (i, record) in batch.records(&mut scratch).unwrap().enumerate() {
            let record = record.unwrap();
            assert_eq!((record.offset, record.timestamp), (i as i64, 1_700_000_000_000 + i as i64));
            assert_eq!(record.key, Some(format!("key{i}").as_bytes()));
            assert_eq!(record.value, Some("value ".repeat(10).as_bytes()));
            count += 1;
        }
        assert_eq!(count, 20);
    }
}

/// `BY_HAND` with other bytes at `at`, parsed.
fn with(at: usize, bytes: &[u8]) -> Result<(), BatchError> {
    let mut batch = BY_HAND.to_vec();
    batch[at..at + bytes.len()].copy_from_slice(bytes);
    BatchView::parse_exact(&batch).map(|_| ())
}

#[test]
fn bad_headers_are_refused_with_the_right_error() {
    use pyralog_core::ErrorCode;
    use pyralog_core::batch::*;

    assert_eq!(with(MAGIC_AT, &[1]), Err(BatchError::UnsupportedMagic { magic: 1 }));
    assert_eq!(with(LENGTH_AT, &48_i32.to_be_bytes()), Err(BatchError::LengthTooSmall { length: 48 }));
    assert_eq!(with(LENGTH_AT, &(-1_i32).to_be_bytes()), Err(BatchError::LengthTooSmall { length: -1 }));
    assert_eq!(with(LENGTH_AT, &74_i32.to_be_bytes()), Err(BatchError::Truncated { need: 86, have: 85 }));
    assert_eq!(with(LENGTH_AT, &72_i32.to_be_bytes()), Err(BatchError::TrailingBytes { extra: 1 }));
    let huge = with(LENGTH_AT, &i32::MAX.to_be_bytes()).unwrap_err();
    assert_eq!(
        (&huge, huge.code()),
        (&BatchError::TooLarge { bytes: 0x7fff_ffff + 12 }, ErrorCode::TooLarge)
    );
    let gzip = with(ATTRIBUTES_AT, &[0, 1]).unwrap_err();
    assert_eq!(gzip.code(), ErrorCode::UnsupportedCompression);
    assert!(gzip.to_string().contains("gzip"), "{gzip}");
    assert_eq!(with(ATTRIBUTES_AT, &[0, 2]), Err(BatchError::UnsupportedCompression { codec: 2 }));
    assert_eq!(with(ATTRIBUTES_AT, &[0, 0x40]), Err(BatchError::UnknownAttributes { attributes: 0x40 }));
    assert_eq!(with(ATTRIBUTES_AT, &[0x80, 0]), Err(BatchError::UnknownAttributes { attributes: i16::MIN }));
    assert_eq!(with(ATTRIBUTES_AT, &[0, 0x38]), Ok(()), "append time, transactional and control are known");
    assert_eq!(with(RECORD_COUNT_AT, &0_i32.to_be_bytes()), Err(BatchError::RecordCount { count: 0 }));
    assert_eq!(with(RECORD_COUNT_AT, &(-2_i32).to_be_bytes()), Err(BatchError::RecordCount { count: -2 }));
    assert_eq!(
        with(RECORD_COUNT_AT, &3_i32.to_be_bytes()),
        Err(BatchError::LastOffsetDelta { delta: 1, count: 3 })
    );
    assert_eq!(
        with(LAST_OFFSET_DELTA_AT, &2_i32.to_be_bytes()),
        Err(BatchError::LastOffsetDelta { delta: 2, count: 2 })
    );
    assert_eq!(with(BASE_OFFSET_AT, &(-1_i64).to_be_bytes()), Err(BatchError::BaseOffset { offset: -1 }));
    assert_eq!(
        with(BASE_OFFSET_AT, &i64::MAX.to_be_bytes()),
        Err(BatchError::BaseOffset { offset: i64::MAX })
    );
    let producer = |id: i64, epoch: i16, sequence: i32| {
        with(PRODUCER_ID_AT, &[&id.to_be_bytes()[..], &epoch.to_be_bytes(), &sequence.to_be_bytes()].concat())
    };
    assert_eq!(producer(0, 0, 0), Ok(()));
    assert_eq!(producer(-1, 3, 0), Ok(()), "without a producer the others mean nothing");
    assert_eq!(producer(-2, 0, 0), Err(BatchError::Producer { id: -2, epoch: 0, sequence: 0 }));
    assert_eq!(producer(5, -1, 0), Err(BatchError::Producer { id: 5, epoch: -1, sequence: 0 }));
    assert_eq!(producer(5, 0, -1), Err(BatchError::Producer { id: 5, epoch: 0, sequence: -1 }));
    assert_eq!(BatchView::parse(&BY_HAND[..60]).unwrap_err(), BatchError::Truncated { need: 61, have: 60 });
    assert_eq!(
        BatchView::parse(&[0; 200]).unwrap_err().code(),
        ErrorCode::InvalidBatch,
        "zeros are no batch"
    );
}

#[test]
fn the_leader_fills_in_its_fields_without_breaking_the_checksum() {
    use pyralog_core::batch::{patch_base_offset, patch_leader_epoch};

    let mut batch = BY_HAND.to_vec();
    patch_base_offset(&mut batch, 1 << 40).unwrap();
    patch_leader_epoch(&mut batch, 9).unwrap();
    let view = BatchView::parse_exact(&batch).unwrap();
    assert!(view.verify_crc());
    assert_eq!((view.base_offset(), view.last_offset(), view.leader_epoch()), (1 << 40, (1 << 40) + 1, 9));
    assert_eq!(batch[16..], BY_HAND[16..]);
    assert!(patch_base_offset(&mut batch[..60], 0).is_err());
    assert!(patch_leader_epoch(&mut batch[..10], 0).is_err());
}
