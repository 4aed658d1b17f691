//! The well-behaved connection: produces, reads back and checks every byte while others misbehave.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use pyralog_core::GroupId;
use pyralog_core::batch::{BatchBuilder, BatchView, Compression};
use pyralog_net::message::{Acks, Consistency, FetchRequest, ProduceRequest, Request, Response};

use crate::latency::{Latencies, Summary};
use crate::session::Session;

/// What the good connection saw.
pub struct GoodResult {
    /// Records produced, each read back and compared.
    pub records: u64,
    /// Latency of its produces.
    pub latency: Summary,
}

/// Produces and checks one record after the other until told to stop; on one connection throughout, which must
/// stay open.
pub fn run(addr: SocketAddr, topic: &str, stop: &AtomicBool) -> anyhow::Result<GoodResult> {
    let (topic, _) = Session::connect(addr, None)?.topic(topic)?;
    let place = topic.partitions.first().context("the topic has no partition")?;
    let mut session = Session::connect(addr, Some(place.shard))?;
    let group = GroupId::new(topic.id, 0);
    let mut latencies = Latencies::new()?;
    let mut records = 0u64;
    let mut builder = BatchBuilder::new();
    // At least one, so that a run too short to see anything can't pass.
    while records == 0 || !stop.load(Ordering::Relaxed) {
        let value = format!("record {records} of the good connection");
        builder.clear();
        builder.append(records as i64, None, Some(value.as_bytes()), &[])?;
        let batch = builder.build(Compression::None)?;
        let begin = Instant::now();
        let request = ProduceRequest { group, acks: Acks::Quorum, timeout_ms: 0, batch };
        let reply =
            session.call(&Request::Produce(request)).context("the good connection's produce")?.response;
        latencies.record_ns(begin.elapsed().as_nanos() as u64);
        let Response::Produce(reply) = reply else {
            anyhow::bail!("an unexpected reply to Produce: {reply:?}")
        };
        anyhow::ensure!(
            reply.base_offset == records as i64,
            "the good connection's record {records} got offset {}: somebody else wrote there or it was lost",
            reply.base_offset
        );
        check(&mut session, group, records as i64, value.as_bytes())?;
        records += 1;
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(GoodResult { records, latency: latencies.summary() })
}

fn check(session: &mut Session, group: GroupId, offset: i64, value: &[u8]) -> anyhow::Result<()> {
    let fetch = FetchRequest {
        group,
        offset,
        min_bytes: 1,
        max_bytes: 1 << 20,
        max_wait_ms: 1000,
        consistency: Consistency::Leader,
    };
    let reply = session.call(&Request::Fetch(fetch)).context("the good connection's fetch")?;
    let (batch, _) = BatchView::parse(reply.batches).with_context(|| format!("fetch at offset {offset}"))?;
    batch.check_crc()?;
    let mut scratch = Vec::new();
    let record = batch.records(&mut scratch)?.next().context("an empty batch")??;
    anyhow::ensure!(
        record.offset == offset && record.value == Some(value),
        "offset {offset} does not hold what was produced there"
    );
    Ok(())
}
