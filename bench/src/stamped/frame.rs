//! Produce frames that are patched, not built, for each request: correlation id, partition, the time in each record, and
//! the batch's checksum over it.

use anyhow::Context;
use pyralog_core::GroupId;
use pyralog_core::batch::{ATTRIBUTES_AT, BatchBuilder, BatchView, CRC_AT, Compression};
use pyralog_net::message::{Acks, ProduceRequest, Request};

use crate::produce::BatchShape;

/// What each value begins with: the intended send time, nanoseconds, and the number of the run, both little-endian.
pub const STAMP_BYTES: usize = 16;
/// Where the correlation id and, behind the header, topic and partition are (docs/protocol.md).
const CORRELATION_AT: usize = 8;
const TOPIC_AT: usize = pyralog_core::limits::FRAME_HEADER_BYTES;
const PARTITION_AT: usize = TOPIC_AT + 4;

/// A frame, to be sent again and again.
#[derive(Clone)]
pub struct StampedFrame {
    bytes: Vec<u8>,
    batch_at: usize,
    /// Where the values are.
    values_at: Vec<usize>,
}

impl StampedFrame {
    /// Frames of this shape, for the run of this number.
    ///
    /// # Errors
    /// When the values have no room for the stamp or the batch is larger than allowed.
    pub fn new(run: u64, shape: BatchShape) -> anyhow::Result<Self> {
        anyhow::ensure!(
            shape.record_bytes >= STAMP_BYTES,
            "records of {} bytes have no room for the time; give at least {STAMP_BYTES}",
            shape.record_bytes
        );
        // Not all the same byte: nothing on the way may profit from it.
        let mut value: Vec<u8> =
            (0..shape.record_bytes).map(|at| (at.wrapping_mul(151) >> 2) as u8).collect();
        put(&mut value, 0, &[0; 8])?;
        put(&mut value, 8, &run.to_le_bytes())?;
        let now_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let mut builder = BatchBuilder::new();
        for _ in 0..shape.records {
            builder.append(now_ms.as_millis() as i64, None, Some(&value), &[])?;
        }
        let batch = builder.build(Compression::None)?;
        let mut bytes = Vec::with_capacity(batch.len() + 64);
        let group = GroupId::new(0, 0);
        let request = ProduceRequest { group, acks: Acks::Quorum, timeout_ms: 0, batch };
        Request::Produce(request).encode(0, &mut bytes)?;
        let batch_at = bytes.len() - batch.len();
        let values_at = values_at(batch)?.into_iter().map(|at| batch_at + at).collect();
        Ok(Self { bytes, batch_at, values_at })
    }

    /// The frame's length, bytes.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Appends the frame of one request. Allocates nothing while `out` has room.
    ///
    /// # Errors
    /// None for a frame made by [`Self::new`].
    pub fn append_to(
        &mut self,
        out: &mut Vec<u8>,
        correlation: u64,
        group: GroupId,
        intended_ns: u64,
    ) -> anyhow::Result<()> {
        put(&mut self.bytes, CORRELATION_AT, &correlation.to_le_bytes())?;
        put(&mut self.bytes, TOPIC_AT, &group.topic.0.to_le_bytes())?;
        put(&mut self.bytes, PARTITION_AT, &group.partition.to_le_bytes())?;
        for at in &self.values_at {
            put(&mut self.bytes, *at, &intended_ns.to_le_bytes())?;
        }
        let covered = self.bytes.get(self.batch_at + ATTRIBUTES_AT..).context("a frame without a batch")?;
        let checksum = crc32c::crc32c(covered);
        put(&mut self.bytes, self.batch_at + CRC_AT, &checksum.to_be_bytes())?;
        out.extend_from_slice(&self.bytes);
        Ok(())
    }
}

fn put(bytes: &mut [u8], at: usize, what: &[u8]) -> anyhow::Result<()> {
    let place = bytes.get_mut(at..at + what.len()).context("a frame shorter than its fields")?;
    place.copy_from_slice(what);
    Ok(())
}

/// Where the values of a batch's records are in it.
fn values_at(batch: &[u8]) -> anyhow::Result<Vec<usize>> {
    let mut scratch = Vec::new();
    let view = BatchView::parse_exact(batch)?;
    let mut places = Vec::new();
    for record in view.records(&mut scratch)? {
        let value = record?.value.context("a record without a value")?;
        // Uncompressed records are borrowed from the batch itself.
        places.push(value.as_ptr().addr() - batch.as_ptr().addr());
    }
    Ok(places)
}

/// The intended send time in a record's value; `None` when it is not of this run.
pub fn intended_ns(value: &[u8], run: u64) -> Option<u64> {
    let (stamp, rest) = value.split_first_chunk::<8>()?;
    let number = u64::from_le_bytes(*rest.first_chunk()?);
    (number == run).then(|| u64::from_le_bytes(*stamp))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pyralog_net::FrameHeader;

    #[test]
    fn every_request_is_valid_and_every_record_tells_its_time() {
        let shape = BatchShape { records: 3, record_bytes: 200 };
        let mut frame = StampedFrame::new(77, shape).unwrap();
        let mut out = Vec::new();
        for (correlation, partition, intended) in [(5, 0, 1u64), (6, 900, u64::MAX - 3)] {
            out.clear();
            frame.append_to(&mut out, correlation, GroupId::new(9, partition), intended).unwrap();
            assert_eq!(out.len(), frame.len_bytes());
            let header = FrameHeader::decode_request(&out).unwrap().unwrap();
            assert_eq!((header.correlation_id, header.frame_bytes()), (correlation, out.len()));
            let Request::Produce(request) = Request::decode(header.kind, &out[TOPIC_AT..]).unwrap() else {
                panic!()
            };
            assert_eq!(request.group, GroupId::new(9, partition));
            let view = BatchView::parse_exact(request.batch).unwrap();
            view.check_crc().unwrap();
            let mut scratch = Vec::new();
            let stamps: Vec<_> = view
                .records(&mut scratch)
                .unwrap()
                .map(|record| intended_ns(record.unwrap().value.unwrap(), 77))
                .collect();
            assert_eq!(stamps, [Some(intended); 3]);
        }
    }

    #[test]
    fn records_of_others_have_no_time() {
        let mut value = vec![0; 40];
        value[8] = 7;
        assert_eq!(intended_ns(&value, 7), Some(0));
        assert_eq!(intended_ns(&value, 8), None);
        assert_eq!(intended_ns(&value[..15], 7), None);
        let small = BatchShape { records: 1, record_bytes: STAMP_BYTES - 1 };
        assert!(StampedFrame::new(1, small).err().unwrap().to_string().contains("16"));
    }
}
