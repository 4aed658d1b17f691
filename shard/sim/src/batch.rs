//! Record batches of the simulated producers, written here by hand from the layout of RecordBatch v2, so that
//! the engine's reading of it is checked against a second one.

use std::rc::Rc;

use crate::rng::mix;

/// Bytes before the first record.
pub(crate) const HEADER: usize = 61;

/// What a batch is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    /// Unique within the life; the first record starts with it and the rest is derived from it.
    pub id: u64,
    /// Records.
    pub records: u32,
    /// Bytes of values, all records together, at least 8.
    pub value_bytes: usize,
    /// Timestamp of all records, milliseconds.
    pub timestamp: i64,
    /// Producer id, -1 when not idempotent.
    pub producer_id: i64,
    /// Its epoch, -1 when not idempotent.
    pub producer_epoch: i16,
    /// Sequence of the first record, -1 when not idempotent.
    pub sequence: i32,
}

fn varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn varint_len(value: i64) -> usize {
    let mut bytes = Vec::with_capacity(10);
    varint(&mut bytes, value);
    bytes.len()
}

/// The batch's bytes, base offset and leader epoch zero, its checksum right.
pub(crate) fn encode(spec: &Spec) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + spec.value_bytes + 16 * spec.records as usize);
    out.resize(HEADER, 0);
    let records = spec.records.max(1) as usize;
    for index in 0..records {
        let share = spec.value_bytes / records;
        let len = if index == 0 { (spec.value_bytes - share * (records - 1)).max(8) } else { share };
        let body = 1 + 1 + varint_len(index as i64) + 1 + varint_len(len as i64) + len + 1;
        varint(&mut out, body as i64);
        out.push(0);
        varint(&mut out, 0);
        varint(&mut out, index as i64);
        varint(&mut out, -1);
        varint(&mut out, len as i64);
        let end = out.len() + len;
        let mut word = 0u64;
        while out.len() < end {
            let bytes = match (index, word) {
                (0, 0) => spec.id.to_le_bytes(),
                _ => mix(spec.id ^ (word << 32) ^ index as u64).to_le_bytes(),
            };
            out.extend_from_slice(&bytes[..bytes.len().min(end - out.len())]);
            word += 1;
        }
        varint(&mut out, 0);
    }
    let length = (out.len() - 12) as i32;
    out[8..12].copy_from_slice(&length.to_be_bytes());
    out[16] = 2;
    out[23..27].copy_from_slice(&(records as i32 - 1).to_be_bytes());
    out[27..35].copy_from_slice(&spec.timestamp.to_be_bytes());
    out[35..43].copy_from_slice(&spec.timestamp.to_be_bytes());
    out[43..51].copy_from_slice(&spec.producer_id.to_be_bytes());
    out[51..53].copy_from_slice(&spec.producer_epoch.to_be_bytes());
    out[53..57].copy_from_slice(&spec.sequence.to_be_bytes());
    out[57..61].copy_from_slice(&(records as i32).to_be_bytes());
    seal(&mut out);
    out
}

/// Puts the right checksum in.
pub(crate) fn seal(batch: &mut [u8]) {
    if let Some((head, covered)) = batch.split_at_mut_checked(21) {
        head[17..21].copy_from_slice(&crc32c::crc32c(covered).to_be_bytes());
    }
}

/// The fields of a batch that the simulator looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Offset of the first record.
    pub base_offset: i64,
    /// Bytes of the whole batch.
    pub len: usize,
    /// Records.
    pub records: u32,
    /// Its checksum field.
    pub crc: u32,
    /// The leader's epoch.
    pub epoch: u32,
}

/// Reads the header of the batch that `bytes` begins with.
pub(crate) fn head(bytes: &[u8]) -> Option<Head> {
    let header = bytes.first_chunk::<HEADER>()?;
    let int = |at: usize| i32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let mut base = [0; 8];
    base.copy_from_slice(&header[..8]);
    let len = usize::try_from(int(8)).ok()?.checked_add(12)?;
    let records = u32::try_from(int(57)).ok()?;
    if header[16] != 2 || len < HEADER {
        return None;
    }
    let (crc, epoch) = (int(17) as u32, int(12) as u32);
    Some(Head { base_offset: i64::from_be_bytes(base), len, records, crc, epoch })
}

/// Whether two batches are the same except for the two fields that the leader fills in.
pub(crate) fn same(produced: &[u8], stored: &[u8]) -> bool {
    produced.len() == stored.len()
        && produced.get(8..12) == stored.get(8..12)
        && produced.get(16..) == stored.get(16..)
}

/// A batch that breaks the format in one of several ways; `which` chooses.
pub(crate) fn malformed(good: &[u8], which: u64) -> Rc<[u8]> {
    let mut bad = good.to_vec();
    match which % 8 {
        0 => bad[HEADER + 3] ^= 0x10,
        1 => bad[17] ^= 1,
        2 => {
            bad.truncate(HEADER - 1);
        }
        3 => bad[16] = 1,
        4 => {
            let length = (bad.len() as i32 - 12) + 1;
            bad[8..12].copy_from_slice(&length.to_be_bytes());
        }
        5 => bad.push(0),
        6 => {
            bad[57..61].copy_from_slice(&0i32.to_be_bytes());
            seal(&mut bad);
        }
        _ => bad.clear(),
    }
    bad.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_and_checksums_agree() {
        let spec = Spec {
            id: 9,
            records: 3,
            value_bytes: 100,
            timestamp: 5,
            producer_id: 4,
            producer_epoch: 0,
            sequence: 2,
        };
        let batch = encode(&spec);
        let head = head(&batch).unwrap();
        assert_eq!((head.len, head.records, head.base_offset), (batch.len(), 3, 0));
        assert_eq!(head.crc, crc32c::crc32c(&batch[21..]));
        let mut stored = batch.clone();
        stored[..8].copy_from_slice(&77i64.to_be_bytes());
        stored[12..16].copy_from_slice(&3u32.to_be_bytes());
        assert!(same(&batch, &stored));
        stored[60] ^= 1;
        assert!(!same(&batch, &stored));
        for which in 0..8 {
            assert!(!same(&batch, &malformed(&batch, which)));
        }
    }
}
