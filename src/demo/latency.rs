//! How long a durable acknowledgement takes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use pyralog_core::batch::{BatchBuilder, Compression};
use pyralog_core::{ErrorCode, GroupId};
use pyralog_net::client::{ClientError, Connection};
use pyralog_net::message::{Acks, Durability, ProduceRequest, Request, Response};

use super::checked;
use crate::failure::Failure;
use crate::units;

/// Size of each record's value.
const VALUE_BYTES: usize = 256;
/// Acknowledgements before the clock counts.
const WARM_UP: u64 = 200;

/// What one run gave.
pub(crate) struct Run {
    name: &'static str,
    latency_ns: Histogram<u64>,
    elapsed: Duration,
    /// Acknowledgements, those of the warm-up included: so many records are in the log now.
    pub(crate) acknowledged: u64,
}

/// Produces records of 256 bytes, each a batch of its own with a durable acknowledgement, `window` at once. `None`: the
/// partition is led elsewhere by now.
pub(crate) fn run(
    connection: &mut Connection,
    group: GroupId,
    name: &'static str,
    window: usize,
    time: Duration,
) -> Result<Option<Run>, Failure> {
    let batch = batch()?;
    let request =
        Request::Produce(ProduceRequest { group, acks: Acks::Quorum, timeout_ms: 0, batch: &batch });
    let bounds = Histogram::new_with_bounds(1_000, 60_000_000_000, 3);
    let mut latency_ns = bounds.map_err(|error| Failure::failed(format!("no histogram: {error}")))?;
    let mut begun = VecDeque::with_capacity(window);
    let mut acknowledged = 0u64;
    let mut started = Instant::now();
    loop {
        let running = acknowledged < WARM_UP || started.elapsed() < time;
        if !running && begun.is_empty() {
            break;
        }
        while running && begun.len() < window {
            begun.push_back(Instant::now());
            checked(connection.send(&request))?;
        }
        if !durable(&checked(connection.recv())?.response)? {
            return Ok(None);
        }
        acknowledged += 1;
        if let Some(begun) = begun.pop_front()
            && acknowledged > WARM_UP
        {
            latency_ns.saturating_record(begun.elapsed().as_nanos() as u64);
        }
        if acknowledged == WARM_UP {
            started = Instant::now();
        }
    }
    Ok(Some(Run { name, latency_ns, elapsed: started.elapsed(), acknowledged }))
}

fn batch() -> Result<Vec<u8>, Failure> {
    let mut builder = BatchBuilder::new();
    let built = builder
        .append(0, None, Some(&[b'x'; VALUE_BYTES]), &[])
        .and_then(|()| builder.build(Compression::None));
    built.map(<[u8]>::to_vec).map_err(|error| Failure::failed(error.to_string()))
}

/// The reply must say that the record is on stable storage. False: that it is led elsewhere.
fn durable(response: &Response) -> Result<bool, Failure> {
    match response {
        Response::Produce(reply) if reply.durability == Durability::QuorumDurable => Ok(true),
        Response::Produce(reply) => {
            let reached = reply.durability;
            Err(Failure::failed(format!(
                "an acknowledgement says {reached:?} where durable on a quorum was asked for"
            )))
        }
        Response::Error(error) if matches!(error.code, ErrorCode::NotLeader | ErrorCode::LeaderChanged) => {
            Ok(false)
        }
        Response::Error(error) => {
            let error = ClientError::Server { code: error.code, detail: error.detail.clone() };
            Err(Failure::failed(format!("a produce was refused: {error}")))
        }
        other => Err(Failure::failed(format!("a produce was answered with {other:?}"))),
    }
}

/// The runs as a table, microseconds.
pub(crate) fn table(runs: &[Run]) -> String {
    let mut table = format!(
        "  {:<18}{:>9}{:>9}{:>9}{:>9}{:>9}{:>12}{:>9}\n",
        "µs until durable", "p50", "p90", "p99", "p999", "max", "acks/s", "MB/s"
    );
    for run in runs {
        let count = run.latency_ns.len();
        let us = |quantile| units::count(run.latency_ns.value_at_quantile(quantile) / 1_000);
        table.push_str(&format!(
            "  {:<18}{:>9}{:>9}{:>9}{:>9}{:>9}{:>12}{:>9.1}\n",
            run.name,
            us(0.5),
            us(0.9),
            us(0.99),
            us(0.999),
            units::count(run.latency_ns.max() / 1_000),
            units::count(units::per_s(count, run.elapsed) as u64),
            units::mb_per_s(count * VALUE_BYTES as u64, run.elapsed),
        ));
    }
    table
}
