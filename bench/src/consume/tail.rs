//! A consumer at the end of a partition: how long a record takes from the intention to send it until it is in hand.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use pyralog_core::batch::BatchView;
use pyralog_net::message::{Consistency, FetchRequest, OffsetSpec, Request, Response};

use super::Partition;
use crate::host;
use crate::latency::Latencies;
use crate::live::Tap;
use crate::pace::Clock;
use crate::session::Session;
use crate::stamped::{MonotonicClock, Window, intended_ns};

const MAX_BYTES: u32 = 1 << 20;
/// A long poll ends after this, so that the end of the run is seen.
const MAX_WAIT_MS: u32 = 200;

/// A connection of its own that stands at the end of one partition.
pub struct TailConsumer {
    session: Session,
    partition: Partition,
    position: i64,
}

/// What it got.
pub struct Tailed {
    /// From the intended send time until the record was in hand, of records due in the measured time.
    pub latencies: Latencies,
    /// Records of the run, warm-up included.
    pub records: u64,
}

impl TailConsumer {
    /// Connects and finds the end.
    ///
    /// # Errors
    /// When the partition's leader does not answer.
    pub fn connect(partition: Partition) -> anyhow::Result<Self> {
        let mut session = partition.connect()?;
        let position = partition.offset(&mut session, OffsetSpec::Latest)?;
        Ok(Self { session, partition, position })
    }

    /// Reads on until `stop` is set and everything that was acknowledged before has come. Every batch must pass its
    /// checksum and begin where the one before ended.
    ///
    /// # Errors
    /// When the node refuses, or a batch is damaged, missing or there twice.
    pub fn follow(
        mut self,
        run: u64,
        window: Window,
        cpu: Option<usize>,
        stop: &AtomicBool,
        mut tap: Tap,
    ) -> anyhow::Result<Tailed> {
        cpu.map_or(Ok(()), host::pin_to_cpu)?;
        let mut tailed = Tailed { latencies: Latencies::new()?, records: 0 };
        loop {
            // Asked before the fetch: what was acknowledged until then is committed, so an empty reply is the end.
            let is_last = stop.load(Ordering::Acquire);
            let request = FetchRequest {
                group: self.partition.group,
                offset: self.position,
                min_bytes: u32::from(!is_last),
                max_bytes: MAX_BYTES,
                max_wait_ms: MAX_WAIT_MS,
                consistency: Consistency::Leader,
            };
            let reply = self.session.call(&Request::Fetch(request)).context("a consumer's fetch")?;
            let Response::Fetch(_) = reply.response else {
                anyhow::bail!("an unexpected reply to Fetch: {:?}", reply.response)
            };
            if is_last && reply.batches.is_empty() {
                return Ok(tailed);
            }
            self.position = take(reply.batches, self.position, run, window, &mut tailed, &mut tap)?;
        }
    }
}

/// Takes the records of whole batches that begin at `position`; where the next one begins.
fn take(
    mut batches: &[u8],
    mut position: i64,
    run: u64,
    window: Window,
    tailed: &mut Tailed,
    tap: &mut Tap,
) -> anyhow::Result<i64> {
    let mut scratch = Vec::new();
    while !batches.is_empty() {
        let (batch, rest) = BatchView::parse(batches).with_context(|| format!("at offset {position}"))?;
        batch.check_crc().with_context(|| format!("at offset {position}"))?;
        anyhow::ensure!(
            batch.base_offset() == position,
            "a batch at offset {} where {position} should be: records are missing or there twice",
            batch.base_offset()
        );
        // In hand only now: a record whose checksum has not been looked at is of no use to anybody.
        let now_ns = MonotonicClock.now_ns();
        for record in batch.records(&mut scratch)? {
            let Some(intended_ns) = record?.value.and_then(|value| intended_ns(value, run)) else { continue };
            let latency_ns = now_ns.saturating_sub(intended_ns);
            tailed.records += 1;
            tap.reply(latency_ns, now_ns);
            if intended_ns >= window.warm_ns {
                tailed.latencies.record_ns(latency_ns);
            }
        }
        position = batch.last_offset() + 1;
        batches = rest;
    }
    Ok(position)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pyralog_core::GroupId;
    use pyralog_core::batch::patch_base_offset;
    use pyralog_net::FrameHeader;

    use crate::produce::BatchShape;
    use crate::stamped::StampedFrame;

    /// Two batches of two records, from offset 10 on, the second one due before the measured time.
    fn fetched() -> Vec<u8> {
        let mut frame = StampedFrame::new(5, BatchShape { records: 2, record_bytes: 64 }).unwrap();
        let mut bytes = Vec::new();
        for (base, intended_ns) in [(10, 1_000), (12, 10)] {
            let mut request = Vec::new();
            frame.append_to(&mut request, 0, GroupId::new(1, 0), intended_ns).unwrap();
            let header = FrameHeader::decode_request(&request).unwrap().unwrap();
            let body = &request[request.len() - header.body_bytes as usize..];
            let Request::Produce(produce) = Request::decode(header.kind, body).unwrap() else { panic!() };
            let mut batch = produce.batch.to_vec();
            patch_base_offset(&mut batch, base).unwrap();
            bytes.extend_from_slice(&batch);
        }
        bytes
    }

    const WINDOW: Window = Window { begin_ns: 0, warm_ns: 100, end_ns: u64::MAX };

    fn taken(bytes: &[u8], position: i64, run: u64) -> anyhow::Result<(i64, u64, u64)> {
        let mut tailed = Tailed { latencies: Latencies::new().unwrap(), records: 0 };
        let next = take(bytes, position, run, WINDOW, &mut tailed, &mut Tap::off())?;
        Ok((next, tailed.records, tailed.latencies.count()))
    }

    #[test]
    fn records_of_the_run_count_and_those_of_the_measured_time_are_measured() {
        assert_eq!(taken(&fetched(), 10, 5).unwrap(), (14, 4, 2));
        assert_eq!(taken(&fetched(), 10, 6).unwrap(), (14, 0, 0), "another run's");
    }

    #[test]
    fn gaps_repetitions_and_damage_are_errors() {
        assert!(taken(&fetched(), 9, 5).unwrap_err().to_string().contains("missing"));
        assert!(taken(&fetched(), 12, 5).unwrap_err().to_string().contains("twice"));
        let mut damaged = fetched();
        *damaged.last_mut().unwrap() ^= 1;
        assert!(format!("{:#}", taken(&damaged, 10, 5).unwrap_err()).contains("offset 12"));
    }
}
