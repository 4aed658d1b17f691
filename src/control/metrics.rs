//! `/metrics`: the shards' numbers as OpenMetrics text, one sample per shard.
//!
//! The numbers are plain totals inside the shards, copied out when somebody scrapes; so they are encoded as
//! constants here, and nothing is registered or counted twice.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use pyralog_core::ErrorCode;
use pyralog_replication::metadata::Catalog;
use pyralog_shard::engine::{Counters, PeerStatus, ShardStatus};

use super::view::{Latencies, NodeFacts, ShardView};

/// Content type of what [`render`] returns.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The page.
pub(crate) fn render(
    node: &NodeFacts,
    shards: Vec<ShardView>,
    catalog: &Catalog,
) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("pyralog");
    let (catalog_version, feature_level) = (catalog.version, catalog.feature_level);
    let snapshot = Snapshot { node: node.clone(), shards, catalog_version, feature_level };
    registry.register_collector(Box::new(Arc::new(snapshot)));
    let mut text = String::with_capacity(16 << 10);
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Snapshot {
    node: NodeFacts,
    shards: Vec<ShardView>,
    catalog_version: u64,
    feature_level: u16,
}

type Total = (&'static str, &'static str, Option<Unit>, fn(&Counters) -> u64);
type Level = (&'static str, &'static str, Option<Unit>, fn(&ShardStatus) -> u64);

/// Running totals; the encoder appends `_total`.
const TOTALS: &[Total] = &[
    ("writes", "Record batches appended.", None, |c| c.batches),
    ("records", "Records appended.", None, |c| c.records),
    ("written", "Bytes of record batches appended.", Some(Unit::Bytes), |c| c.bytes),
    (
        "duplicate_writes",
        "Produces recognised as duplicates and answered with the first offset.",
        None,
        |c| c.duplicates,
    ),
    ("fetches", "Fetches answered.", None, |c| c.fetches),
    ("fetched", "Bytes of record batches sent to readers.", Some(Unit::Bytes), |c| c.fetched_bytes),
    ("cache_hits", "Fetches answered from the tail cache.", None, |c| c.cache_hits),
    ("cache_misses", "Fetches that read segments.", None, |c| c.cache_misses),
    ("journal_commits", "Group commits written to the journal.", None, |c| c.commits),
    ("journal_written", "Bytes written to the journal, padding included.", Some(Unit::Bytes), |c| {
        c.journal_bytes
    }),
    ("segment_written", "Bytes written to segments.", Some(Unit::Bytes), |c| c.segment_bytes),
    ("checkpoints", "Checkpoints made.", None, |c| c.checkpoints),
    ("elections", "Elections begun: a replica asked whether it would be elected.", None, |c| {
        c.replication.elections
    }),
    ("elections_won", "Leaderships begun.", None, |c| c.replication.elections_won),
    ("leaderships_lost", "Leaderships ended, those handed over included.", None, |c| {
        c.replication.leaderships_lost
    }),
    ("hand_overs", "Leaderships handed over to another replica.", None, |c| c.replication.hand_overs),
    ("ack_timeouts", "Produces that got their offset and not their quorum in time.", None, |c| {
        c.replication.ack_timeouts
    }),
    ("stale_messages", "Messages of leaders refused because a later epoch is known.", None, |c| {
        c.replication.stale_messages
    }),
    ("catch_ups", "Times that a follower began to fetch from its leader's segments.", None, |c| {
        c.replication.catch_ups
    }),
    ("catch_ups_done", "Of those, done.", None, |c| c.replication.catch_ups_done),
    ("catch_ups_given_up", "Of those, given up, to be tried again.", None, |c| {
        c.replication.catch_ups_given_up
    }),
    ("catch_up", "Bytes of record batches fetched from leaders' segments.", Some(Unit::Bytes), |c| {
        c.replication.catch_up_bytes
    }),
    ("recovery", "Bytes that came under replication.recovery_rate.", Some(Unit::Bytes), |c| {
        c.replication.recovery_bytes
    }),
    (
        "recovery_wait_us",
        "Microseconds in which something waited for replication.recovery_rate.",
        None,
        |c| c.replication.recovery_waited_us,
    ),
    ("scrubbed", "Bytes of segments read again and checked.", Some(Unit::Bytes), |c| c.scrub.bytes),
    ("scrubs", "Times that all segments had been read again.", None, |c| c.scrub.passes),
    ("damaged_ranges_found", "Damaged ranges found in segments, by a scrub or a reader.", None, |c| {
        c.scrub.damaged
    }),
    ("damaged_ranges_repaired", "Damaged ranges that are whole again.", None, |c| c.scrub.repaired),
    ("repaired", "Bytes fetched from other replicas to repair segments.", Some(Unit::Bytes), |c| {
        c.scrub.repaired_bytes
    }),
    (
        "repairs_failed",
        "Times that nobody could give what is damaged, or the disk did not keep it.",
        None,
        |c| c.scrub.failed,
    ),
    ("indexes_rebuilt", "Indexes of segments that were damaged or missing and made again.", None, |c| {
        c.scrub.indexes
    }),
];

/// Present values.
const LEVELS: &[Level] = &[
    ("ready", "1 while the shard serves requests.", None, |s| s.ready.into()),
    ("fenced", "1 while the shard re-reads its disk after an I/O error.", None, |s| {
        s.fenced.is_some().into()
    }),
    ("disk_full", "1 while writes are refused because the disk is full.", None, |s| s.disk_full.into()),
    ("cache_live", "Cache memory alive.", Some(Unit::Bytes), |s| s.cache_live_bytes),
    ("cache_budget", "Cache memory allowed.", Some(Unit::Bytes), |s| s.cache_budget_bytes),
    ("unflushed", "Batches not yet written to segments.", Some(Unit::Bytes), |s| s.unflushed_bytes),
    ("uncommitted", "Batches that wait for a quorum of replicas.", Some(Unit::Bytes), |s| {
        s.uncommitted_bytes
    }),
    ("journal_files", "Journal files, in use and free.", None, |s| s.journal_files.into()),
    ("journal_files_free", "Journal files waiting to be used again.", None, |s| s.journal_files_free.into()),
    ("partitions", "Partitions of the shard.", None, |s| s.partitions.into()),
    ("damaged_partitions", "Partitions with a damaged range or an unknown end.", None, |s| {
        s.damaged_partitions.into()
    }),
    (
        "recovery_rate",
        "What catch-ups and repairs of the whole node keep to, per second; 0 = no limit.",
        Some(Unit::Bytes),
        |s| s.recovery_bytes_per_s,
    ),
    ("waiting_fetches", "Fetches waiting for data.", None, |s| s.waiting_fetches.into()),
    ("leaders", "Partitions that the shard leads.", None, |s| s.replication.led.into()),
    ("followers", "Replicas of the shard that follow a leader.", None, |s| s.replication.followed.into()),
    ("leaderless_partitions", "Replicas of the shard that know of no leader.", None, |s| {
        s.replication.leaderless.into()
    }),
    ("offline_partitions", "Replicas of the shard that take no part.", None, |s| {
        s.replication.offline.into()
    }),
    (
        "under_replicated_partitions",
        "Partitions that the shard leads of which not all replicas are in sync.",
        None,
        |s| s.replication.under_replicated.into(),
    ),
    (
        "below_min_insync_partitions",
        "Partitions that the shard leads which take no quorum writes, as too few replicas are in sync.",
        None,
        |s| s.replication.below_min_insync.into(),
    ),
    (
        "replication_lag_records",
        "The most records that a follower of the shard's leaders lacks.",
        None,
        |s| s.replication.lag_records,
    ),
    (
        "replication_lag",
        "The most bytes that a follower of the shard's leaders lacks.",
        Some(Unit::Bytes),
        |s| s.replication.lag_bytes,
    ),
    ("waiting_produces", "Produces waiting for their quorum.", None, |s| {
        s.replication.waiting_produces.into()
    }),
];

/// Of exemplars, which there are none of.
type NoLabels = [(&'static str, u64); 0];

/// Values that the driver, not the engine, knows.
type DriverValue = (&'static str, &'static str, Option<Unit>, fn(&ShardView) -> u64);
const DRIVER_LEVELS: &[DriverValue] = &[
    ("connections", "Client connections.", None, |shard| shard.connections),
    ("queued_replies", "Replies waiting to be sent.", Some(Unit::Bytes), |shard| shard.queued_reply_bytes),
    ("open_files", "Segments and indexes open.", None, |shard| shard.open_files),
];
const DRIVER_TOTALS: &[DriverValue] = &[
    ("connections_accepted", "Connections accepted.", None, |shard| shard.connections_accepted),
    ("connections_refused", "Connections refused at the bound.", None, |shard| shard.connections_refused),
    ("connections_timed_out", "Connections closed as nothing moved.", None, |shard| {
        shard.connections_timed_out
    }),
    ("connections_shed", "Connections closed as they read too slowly.", None, |shard| shard.connections_shed),
];

impl Snapshot {
    fn counters(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, unit, value) in TOTALS {
            let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
            for (shard, status) in self.answered() {
                family
                    .encode_family(&[("shard", shard)])?
                    .encode_counter::<NoLabels, u64, u64>(&value(&status.counters), None)?;
            }
        }
        Ok(())
    }

    fn driver_counters(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, unit, value) in DRIVER_TOTALS {
            let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
            for shard in self.shards.iter().filter(|shard| shard.status.is_some()) {
                let labels = [("shard", shard.shard)];
                family.encode_family(&labels)?.encode_counter::<NoLabels, u64, u64>(&value(shard), None)?;
            }
        }
        Ok(())
    }

    /// Every code is there from the start, so that a rate over a code seen for the first time is right.
    fn errors(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Requests answered with an error, by its code.";
        let mut family = encoder.encode_descriptor("errors", help, None, MetricType::Counter)?;
        for (shard, status) in self.answered() {
            for code in ErrorCode::ALL.iter().filter(|code| **code != ErrorCode::None) {
                let count = status.counters.errors.get(*code as usize).copied().unwrap_or_default();
                let labels = [("shard", shard.to_string()), ("code", code.name().to_owned())];
                family.encode_family(&labels)?.encode_counter::<NoLabels, u64, u64>(&count, None)?;
            }
        }
        Ok(())
    }

    fn gauges(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, unit, value) in LEVELS {
            let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            for (shard, status) in self.answered() {
                family.encode_family(&[("shard", shard)])?.encode_gauge(&value(status))?;
            }
        }
        for (name, help, unit, value) in DRIVER_LEVELS {
            let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            for shard in self.shards.iter().filter(|shard| shard.status.is_some()) {
                family.encode_family(&[("shard", shard.shard)])?.encode_gauge(&value(shard))?;
            }
        }
        Ok(())
    }

    /// What is counted in seconds, and the links to other nodes.
    fn replication(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "The longest that a follower of the shard's leaders has not had everything.";
        let seconds = Some(&Unit::Seconds);
        let mut family = encoder.encode_descriptor("replication_lag", help, seconds, MetricType::Gauge)?;
        for (shard, status) in self.answered() {
            let lag_s = status.replication.lag_us as f64 / 1e6;
            family.encode_family(&[("shard", shard)])?.encode_gauge(&lag_s)?;
        }
        let help = "1 while all links of the shard to that node are up.";
        let mut family = encoder.encode_descriptor("link_up", help, None, MetricType::Gauge)?;
        for (labels, peer) in self.peers() {
            family.encode_family(&labels)?.encode_gauge(&u64::from(peer.links_up == peer.links))?;
        }
        let help = "Links of the shard to that node that went down.";
        let mut family = encoder.encode_descriptor("link_downs", help, None, MetricType::Counter)?;
        for (labels, peer) in self.peers() {
            family.encode_family(&labels)?.encode_counter::<NoLabels, u64, u64>(&peer.downs, None)?;
        }
        Ok(())
    }

    /// The other nodes of each shard, as labels.
    fn peers(&self) -> impl Iterator<Item = ([(&'static str, u32); 2], &PeerStatus)> {
        self.answered().flat_map(|(shard, status)| {
            let peers = status.replication.peers.iter();
            peers.map(move |peer| ([("shard", u32::from(shard)), ("peer", peer.node)], peer))
        })
    }

    fn histogram(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        latencies: fn(&ShardView) -> &Latencies,
    ) -> fmt::Result {
        let mut family =
            encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for shard in &self.shards {
            let found = latencies(shard);
            let labels = [("shard", shard.shard)];
            family.encode_family(&labels)?.encode_histogram::<NoLabels>(
                found.sum_s,
                found.count,
                &found.buckets,
                None,
            )?;
        }
        Ok(())
    }

    fn node(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let labels =
            [("version", env!("CARGO_PKG_VERSION").to_owned()), ("node", self.node.node_id.to_string())];
        encoder.encode_descriptor("build", "The program.", None, MetricType::Info)?.encode_info(&labels)?;
        let gauges: [(&str, &str, Option<Unit>, f64); 4] = [
            (
                "uptime",
                "Time since the node started.",
                Some(Unit::Seconds),
                self.node.started.elapsed().as_secs_f64(),
            ),
            (
                "memory_bound",
                "Most memory that the node may use.",
                Some(Unit::Bytes),
                self.node.memory_bound_bytes as f64,
            ),
            ("catalog_version", "Version of the catalogue of topics.", None, self.catalog_version as f64),
            ("feature_level", "Feature level of the cluster.", None, self.feature_level.into()),
        ];
        for (name, help, unit, value) in gauges {
            encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn answered(&self) -> impl Iterator<Item = (u16, &ShardStatus)> {
        self.shards.iter().filter_map(|shard| Some((shard.shard, shard.status.as_ref()?)))
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.node(&mut encoder)?;
        self.counters(&mut encoder)?;
        self.driver_counters(&mut encoder)?;
        self.errors(&mut encoder)?;
        self.gauges(&mut encoder)?;
        self.replication(&mut encoder)?;
        let (write, flush) = ("write_latency", "journal_flush_latency");
        self.histogram(&mut encoder, write, "From a produce's arrival to its reply.", |shard| {
            &shard.write_latency
        })?;
        self.histogram(
            &mut encoder,
            "write_wait",
            "From a produce's arrival until its journal write begins.",
            |shard| &shard.write_stages[0],
        )?;
        self.histogram(&mut encoder, "write_flush", "The journal write of a produce.", |shard| {
            &shard.write_stages[1]
        })?;
        self.histogram(
            &mut encoder,
            "write_quorum",
            "From a produce's journal write to its reply: other replicas.",
            |shard| &shard.write_stages[2],
        )?;
        self.histogram(
            &mut encoder,
            "write_reply",
            "Sends of replies, until the shard has seen their end at its next wake-up.",
            |shard| &shard.write_stages[3],
        )?;
        self.histogram(&mut encoder, flush, "Journal writes, durable ones to stable storage.", |shard| {
            &shard.flush_latency
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn page() -> String {
        let facts = NodeFacts {
            node_id: 7,
            cluster_name: "pyralog".into(),
            cluster_id: 1,
            address: "127.0.0.1:9092".into(),
            data_dir: "data".into(),
            fsync_policy: "every_write".into(),
            memory_bound_bytes: 1 << 30,
            started: Instant::now(),
        };
        let mut status = ShardStatus { ready: true, cache_live_bytes: 4096, ..ShardStatus::default() };
        status.counters.batches = 42;
        status.counters.errors[ErrorCode::DiskFull as usize] = 3;
        status.counters.replication.elections = 4;
        status.replication.lag_us = 1_500_000;
        status.replication.peers =
            vec![PeerStatus { node: 2, links: 2, links_up: 1, downs: 3, ..PeerStatus::default() }];
        let write_latency =
            Latencies { buckets: vec![(0.001, 5), (0.01, 2), (f64::INFINITY, 1)], sum_s: 0.5, count: 8 };
        let up = ShardView { status: Some(status), connections: 9, write_latency, ..ShardView::default() };
        let starting = ShardView { shard: 1, ..ShardView::default() };
        let mut catalog = Catalog::at_level(2).unwrap();
        catalog.version = 11;
        render(&facts, vec![up, starting], &catalog).unwrap()
    }

    #[test]
    fn samples_carry_names_units_types_and_shards() {
        let page = page();
        for line in [
            "# TYPE pyralog_writes counter",
            "pyralog_writes_total{shard=\"0\"} 42",
            "# UNIT pyralog_written_bytes bytes",
            "pyralog_written_bytes_total{shard=\"0\"} 0",
            "pyralog_errors_total{shard=\"0\",code=\"DiskFull\"} 3",
            "pyralog_cache_live_bytes{shard=\"0\"} 4096",
            "pyralog_connections{shard=\"0\"} 9",
            "# UNIT pyralog_queued_replies_bytes bytes",
            "# TYPE pyralog_write_latency_seconds histogram",
            "pyralog_write_latency_seconds_bucket{le=\"0.01\",shard=\"0\"} 7",
            "pyralog_write_latency_seconds_bucket{le=\"+Inf\",shard=\"0\"} 8",
            "pyralog_write_latency_seconds_count{shard=\"0\"} 8",
            "pyralog_memory_bound_bytes 1073741824.0",
            "pyralog_catalog_version 11.0",
            "pyralog_feature_level 2.0",
            "pyralog_elections_total{shard=\"0\"} 4",
            "pyralog_replication_lag_seconds{shard=\"0\"} 1.5",
            "# UNIT pyralog_replication_lag_bytes bytes",
            "pyralog_link_up{shard=\"0\",peer=\"2\"} 0",
            "pyralog_link_downs_total{shard=\"0\",peer=\"2\"} 3",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is missing in\n{page}");
        }
        assert!(page.ends_with("# EOF\n"), "{page}");
    }

    #[test]
    fn a_shard_that_has_not_answered_has_no_made_up_numbers() {
        assert!(!page().contains("pyralog_writes_total{shard=\"1\"}"));
    }
}
