//! What cold readers read: a topic that is filled for them, and the means to have it in no memory.

use std::path::PathBuf;

use anyhow::Context;
use pyralog_net::message::{Acks, ProduceRequest, Request, Response};

use super::{Partition, partitions};
use crate::options::HistoryArgs;
use crate::produce::{BatchShape, batch};
use crate::stages;
use crate::target::{self, Target};

/// Requests of the filling producer under way.
const PIPELINE: usize = 16;
/// What it writes: large batches, as somebody has whose history is worth reading.
const FILLING: BatchShape = BatchShape { records: 64, record_bytes: 1024 };

/// A topic whose records are old.
pub struct History {
    /// Its partitions.
    pub partitions: Vec<Partition>,
    /// Where the node's files are; `None` = elsewhere, so they may be in the page cache.
    data_dir: Option<PathBuf>,
}

/// How many fetches a node has answered from its own memory and from its files.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Served {
    /// From its cache.
    pub from_cache: f64,
    /// From segments.
    pub from_segments: f64,
}

impl History {
    /// Fills a topic on `target`, or takes the one that was named, and takes it out of every memory that can be reached:
    /// a node that was started here is restarted for that.
    ///
    /// # Errors
    /// When the node refuses, or its files can't be reached.
    pub fn prepare(args: &HistoryArgs, target: &mut Target) -> anyhow::Result<Self> {
        let data_dir = args.data_dir.clone().or_else(|| target.data_dir());
        let topic = match &args.cold_topic {
            Some(topic) => topic.clone(),
            None => {
                let topic = target.new_topic("bench-cold", 1)?;
                eprintln!("filling {topic} with {} MiB", args.mib);
                for partition in partitions(target.addr, &topic)? {
                    fill(&partition, args.mib << 20)?;
                }
                topic
            }
        };
        target.restart(|| {
            data_dir.as_ref().map_or(Ok(()), |dir| {
                let bytes = target::evict(dir, true)?;
                eprintln!("{} MiB of files taken out of the page cache", bytes >> 20);
                Ok(())
            })
        })?;
        if data_dir.is_none() {
            eprintln!(
                "without --data-dir the node's files may be in the page cache: this is no cold reading"
            );
        }
        Ok(Self { partitions: partitions(target.addr, &topic)?, data_dir })
    }

    /// Takes what was read since out of the page cache again.
    ///
    /// # Errors
    /// When the folder can't be listed any more.
    pub fn evict(&self) -> anyhow::Result<()> {
        // Without a flush, which would be in the way of those who write at this moment: what was only read is clean.
        self.data_dir.as_ref().map_or(Ok(()), |dir| target::evict(dir, false).map(drop))
    }

    /// Whether it is certain that nothing was in the page cache.
    pub fn is_evicted(&self) -> bool {
        self.data_dir.is_some()
    }
}

/// Produces until the partition has so many bytes of batches more.
pub(crate) fn fill(partition: &Partition, bytes: u64) -> anyhow::Result<()> {
    let batch = batch(FILLING)?;
    let mut connection = partition.connect()?.into_connection();
    let (mut asked, mut written) = (0, 0);
    while written < bytes {
        while asked < bytes && connection.outstanding() < PIPELINE {
            let request =
                ProduceRequest { group: partition.group, acks: Acks::Quorum, timeout_ms: 0, batch: &batch };
            connection.send(&Request::Produce(request)).context("filling")?;
            asked += batch.len() as u64;
        }
        match connection.recv().context("filling")?.response {
            Response::Produce(_) => written += batch.len() as u64,
            // "Not now": it is asked for again.
            Response::Error(error) if error.code.retriable() => asked -= batch.len() as u64,
            other => anyhow::bail!("filling was answered with {other:?}"),
        }
    }
    Ok(())
}

impl Served {
    /// As the node counts.
    ///
    /// # Errors
    /// When it has no metrics.
    pub fn now(target: &Target) -> anyhow::Result<Self> {
        let page = stages::page(target.addr)?;
        let sum = |name: &str| stages::sum_of(&page, name);
        Ok(Self {
            from_cache: sum("pyralog_cache_hits_total"),
            from_segments: sum("pyralog_cache_misses_total"),
        })
    }

    /// What happened since.
    pub fn since(self, before: Self) -> Self {
        Self {
            from_cache: self.from_cache - before.from_cache,
            from_segments: self.from_segments - before.from_segments,
        }
    }
}
