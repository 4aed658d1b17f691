//! A reader from the beginning of a partition, as fast as one connection can.
//!
//! It asks for the next piece as soon as it knows where that begins, and checks the piece in hand while the next one is
//! on its way. So neither the disk nor the checksums wait for each other for long.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Context;
use pyralog_core::batch::BatchView;
use pyralog_core::limits::FRAME_HEADER_BYTES;
use pyralog_net::FrameHeader;
use pyralog_net::message::{Consistency, FetchRequest, OffsetSpec, Request, Response};

use super::Partition;
use crate::host;
use crate::latency::Latencies;
use crate::session::{PATIENCE, refusal};

/// What one fetch asks for: enough that the request itself weighs nothing.
const MAX_BYTES: u32 = 4 << 20;

/// A connection that reads one partition from its beginning.
pub struct ColdReader {
    socket: TcpStream,
    partition: Partition,
    start: i64,
    end: i64,
    request: Vec<u8>,
    /// In hand, and on its way.
    pieces: [Vec<u8>; 2],
}

/// What was read.
#[derive(Clone)]
pub struct ColdRead {
    /// Bytes of batches, checked.
    pub bytes: u64,
    /// Their records.
    pub records: u64,
    /// How long that took, seconds.
    pub seconds: f64,
    /// Of each fetch, from the request to the last byte of its reply.
    pub fetches: Latencies,
}

impl ColdReader {
    /// Connects, and finds out from where to where the log goes now.
    ///
    /// # Errors
    /// When the leader does not answer or the log is empty.
    pub fn connect(partition: Partition) -> anyhow::Result<Self> {
        let mut session = partition.connect()?;
        let start = partition.offset(&mut session, OffsetSpec::Earliest)?;
        let end = partition.offset(&mut session, OffsetSpec::Latest)?;
        anyhow::ensure!(start < end, "the partition {} is empty: there is nothing to read", partition.group);
        let socket = session.into_socket()?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let pieces = [Vec::new(), Vec::new()];
        Ok(Self { socket, partition, start, end, request: Vec::new(), pieces })
    }

    /// Reads all of it once, or until `stop` is set, and checks every batch. The calling thread lets others go first from
    /// then on.
    ///
    /// # Errors
    /// When the node refuses, or a batch is damaged or not where it should be.
    pub fn read(&mut self, cpu: Option<usize>, stop: &AtomicBool) -> anyhow::Result<ColdRead> {
        cpu.map_or(Ok(()), host::pin_to_cpu)?;
        host::yield_to_others();
        let mut read = ColdRead { bytes: 0, records: 0, seconds: 0.0, fetches: Latencies::new()? };
        let begin = Instant::now();
        let mut position = self.start;
        self.ask(position)?;
        loop {
            let asked = Instant::now();
            let [mut in_hand, other] = std::mem::take(&mut self.pieces);
            let len = self.receive(&mut in_hand)?;
            read.fetches.record_ns(asked.elapsed().as_nanos() as u64);
            let batches = batches_of(in_hand.get(..len).unwrap_or_default())?;
            let next = end_of(batches, position)?;
            let goes_on = next < self.end && !stop.load(Ordering::Relaxed);
            if goes_on {
                self.ask(next)?;
            }
            check(batches, position, &mut read)?;
            position = next;
            self.pieces = [other, in_hand];
            if !goes_on {
                read.seconds = begin.elapsed().as_secs_f64();
                return Ok(read);
            }
        }
    }

    fn ask(&mut self, offset: i64) -> anyhow::Result<()> {
        let fetch = FetchRequest {
            group: self.partition.group,
            offset,
            min_bytes: 1,
            max_bytes: MAX_BYTES,
            max_wait_ms: 1000,
            consistency: Consistency::Leader,
        };
        self.request.clear();
        Request::Fetch(fetch).encode(offset as u64, &mut self.request)?;
        self.socket.write_all(&self.request).context("a reader can't send")
    }

    /// The next reply into `piece`, which grows to the largest; its length.
    fn receive(&mut self, piece: &mut Vec<u8>) -> anyhow::Result<usize> {
        let mut header = [0; FRAME_HEADER_BYTES];
        self.socket.read_exact(&mut header).context("a reader got no reply")?;
        let len = FrameHeader::decode_reply(&header)?.context("a reply without a header")?.frame_bytes();
        if piece.len() < len {
            piece.resize(len, 0);
        }
        if let Some((head, body)) =
            piece.get_mut(..len).and_then(|frame| frame.split_at_mut_checked(header.len()))
        {
            head.copy_from_slice(&header);
            self.socket.read_exact(body).context("a reply to a reader was cut off")?;
        }
        Ok(len)
    }
}

/// The batches in a fetch's reply.
fn batches_of(frame: &[u8]) -> anyhow::Result<&[u8]> {
    let header = FrameHeader::decode_reply(frame)?.context("a reply without a header")?;
    let body = frame.get(FRAME_HEADER_BYTES..).unwrap_or_default();
    let reply = Response::decode(header.kind, body)?;
    match reply.response {
        Response::Fetch(_) => Ok(reply.batches),
        _ => Err(refusal(header.kind, body)),
    }
}

/// Where the log goes on behind these batches, by their headers alone.
fn end_of(mut batches: &[u8], position: i64) -> anyhow::Result<i64> {
    anyhow::ensure!(!batches.is_empty(), "nothing at offset {position}, which is below the high watermark");
    let mut end = position;
    while !batches.is_empty() {
        let (batch, rest) = BatchView::parse(batches).with_context(|| format!("at offset {end}"))?;
        end = batch.last_offset() + 1;
        batches = rest;
    }
    anyhow::ensure!(end > position, "a fetch at offset {position} brought only older records");
    Ok(end)
}

fn check(mut batches: &[u8], mut position: i64, read: &mut ColdRead) -> anyhow::Result<()> {
    while !batches.is_empty() {
        let (batch, rest) = BatchView::parse(batches)?;
        batch.check_crc().with_context(|| format!("at offset {position}"))?;
        // The first one may begin before what was asked for.
        let follows = batch.base_offset() == position || (read.bytes == 0 && batch.base_offset() < position);
        anyhow::ensure!(follows, "a batch at offset {} where {position} should be", batch.base_offset());
        read.bytes += batch.len_bytes() as u64;
        read.records += u64::from(batch.record_count());
        position = batch.last_offset() + 1;
        batches = rest;
    }
    Ok(())
}

impl ColdRead {
    /// Adds another read.
    ///
    /// # Errors
    /// None for what [`ColdReader::read`] returns.
    pub fn merge(&mut self, other: &Self) -> anyhow::Result<()> {
        self.bytes += other.bytes;
        self.records += other.records;
        self.seconds += other.seconds;
        self.fetches.merge(&other.fetches)
    }

    /// Of batches.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pyralog_core::batch::patch_base_offset;

    use crate::produce::{BatchShape, batch};

    fn two_batches() -> Vec<u8> {
        let mut bytes = Vec::new();
        for base in [100, 103] {
            let mut one = batch(BatchShape { records: 3, record_bytes: 20 }).unwrap();
            patch_base_offset(&mut one, base).unwrap();
            bytes.extend_from_slice(&one);
        }
        bytes
    }

    fn nothing() -> ColdRead {
        ColdRead { bytes: 0, records: 0, seconds: 0.0, fetches: Latencies::new().unwrap() }
    }

    #[test]
    fn all_batches_are_counted_and_the_next_offset_known_before_they_are_checked() {
        let bytes = two_batches();
        assert_eq!(end_of(&bytes, 100).unwrap(), 106);
        let mut read = nothing();
        check(&bytes, 100, &mut read).unwrap();
        assert_eq!((read.bytes, read.records), (bytes.len() as u64, 6));
        let mut twice = read.clone();
        read.seconds = 2.0;
        twice.merge(&read).unwrap();
        assert_eq!((twice.records, twice.bytes_per_second()), (12, bytes.len() as f64));
    }

    #[test]
    fn gaps_damage_and_emptiness_are_errors() {
        assert!(end_of(&[], 5).unwrap_err().to_string().contains("nothing at offset 5"));
        let mut bytes = two_batches();
        assert!(check(&bytes, 99, &mut nothing()).is_err());
        assert!(check(&bytes, 101, &mut nothing()).is_ok(), "the first may begin earlier");
        assert!(end_of(&bytes, 106).is_err());
        *bytes.last_mut().unwrap() ^= 1;
        assert!(format!("{:#}", check(&bytes, 100, &mut nothing()).unwrap_err()).contains("103"));
    }
}
