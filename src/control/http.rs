//! The HTTP pages. Everything is read-only and answered from a copy of the shards' state.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use axum::{Json, Router};
use pyralog_core::{ErrorCode, GroupId};
use pyralog_net::message::PartitionState;
use pyralog_replication::metadata::{Catalog, NodeInfo, Topic};
use serde_json::{Value, json};

use super::replication::{follower_json, in_sync};
use super::source::Source;
use super::view::{ShardView, health_name};
use super::{metrics, replication};

/// Partitions in one reply of `/partitions/{n}/status`.
const MAX_PARTITIONS_SHOWN: usize = 1_000;

/// All pages.
pub(crate) fn router(source: Arc<Source>) -> Router {
    Router::new()
        .route("/health", page(get(health)))
        .route("/status", page(get(status)))
        .route("/replication/status", page(get(replication::page)))
        .route("/partitions/{partition}/status", page(get(partition_of_all_topics)))
        .route("/topics/{topic}/partitions/{partition}", page(get(partition_of_topic)))
        .route("/metrics", page(get(metrics_page)))
        .fallback(async || {
            let pages = "/health, /status, /replication/status, /partitions/{n}/status, \
                         /topics/{topic}/partitions/{n}, /metrics";
            problem(StatusCode::NOT_FOUND, format!("no such page; there are {pages}"))
        })
        .with_state(source)
}

fn page(methods: MethodRouter<Arc<Source>>) -> MethodRouter<Arc<Source>> {
    methods.fallback(async || {
        let reply = problem(StatusCode::METHOD_NOT_ALLOWED, "this page is read with GET or HEAD".into());
        ([(header::ALLOW, "GET, HEAD")], reply)
    })
}

pub(super) fn problem(status: StatusCode, text: String) -> Response {
    (status, Json(json!({ "error": text }))).into_response()
}

/// 200 when every shard serves reads and writes, 503 with the reasons otherwise.
async fn health(State(source): State<Arc<Source>>) -> Response {
    let troubles = match source.stopping() {
        true => vec!["the node is shutting down".to_owned()],
        false => source.shards().await.iter().filter_map(ShardView::trouble).collect(),
    };
    match troubles.is_empty() {
        true => Json(json!({ "status": "ready" })).into_response(),
        false => {
            let body = Json(json!({ "status": "unavailable", "reasons": troubles }));
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
    }
}

async fn status(State(source): State<Arc<Source>>) -> Json<Value> {
    let facts = source.facts();
    let catalog = source.catalog();
    let shards = source.shards().await;
    Json(json!({
        "node": facts.node_id,
        "cluster": facts.cluster_name,
        "controller": replication::controller(&shards),
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": facts.started.elapsed().as_secs(),
        "address": facts.address,
        "data_dir": facts.data_dir,
        "durability": { "fsync_policy": facts.fsync_policy, "acks": "quorum" },
        "memory_bound_bytes": facts.memory_bound_bytes,
        "nodes": nodes_json(&catalog),
        "replication": replication::summary_json(&replication::summary(&shards)),
        "feature_level": catalog.feature_level,
        "catalog": { "version": catalog.version, "topics": catalog.topics.len(), "partitions": catalog.partitions() },
        "shards": shards.iter().map(shard_json).collect::<Vec<_>>(),
    }))
}

/// The nodes that have registered.
fn nodes_json(catalog: &Catalog) -> Vec<Value> {
    let node = |node: &NodeInfo| {
        json!({
            "node": node.id,
            "address": node.client_address,
            "internal_address": node.internal_address,
            "rack": Some(&node.rack).filter(|rack| !rack.is_empty()),
            "feature_levels": [node.level_min, node.level_max],
            "shards": node.shards,
        })
    };
    catalog.nodes.values().map(node).collect()
}

fn shard_json(view: &ShardView) -> Value {
    let mut shard = json!({
        "shard": view.shard,
        "cpu": view.cpu,
        "trouble": view.trouble(),
        "connections": view.connections,
        "ready": false,
    });
    let (Some(status), Some(fields)) = (&view.status, shard.as_object_mut()) else { return shard };
    let counters = &status.counters;
    let errors: serde_json::Map<String, Value> = ErrorCode::ALL
        .iter()
        .zip(counters.errors)
        .filter(|(_, count)| *count > 0)
        .map(|(code, count)| (code.name().to_owned(), count.into()))
        .collect();
    let more = json!({
        "ready": status.ready,
        "fenced": status.fenced,
        "disk_full": status.disk_full,
        "incarnation": status.incarnation,
        "durable_lsn": status.durable_lsn,
        "journal_files": status.journal_files,
        "journal_files_free": status.journal_files_free,
        "unflushed_bytes": status.unflushed_bytes,
        "uncommitted_bytes": status.uncommitted_bytes,
        "cache_live_bytes": status.cache_live_bytes,
        "cache_budget_bytes": status.cache_budget_bytes,
        "partitions": status.partitions,
        "damaged_partitions": status.damaged_partitions,
        "waiting_fetches": status.waiting_fetches,
        "counters": {
            "batches": counters.batches,
            "records": counters.records,
            "bytes": counters.bytes,
            "duplicates": counters.duplicates,
            "fetches": counters.fetches,
            "fetched_bytes": counters.fetched_bytes,
            "cache_hits": counters.cache_hits,
            "cache_misses": counters.cache_misses,
            "commits": counters.commits,
            "journal_bytes": counters.journal_bytes,
            "segment_bytes": counters.segment_bytes,
            "checkpoints": counters.checkpoints,
            "errors": errors,
            "replication": replication::counters_json(&counters.replication),
            "scrub": {
                "bytes": counters.scrub.bytes,
                "passes": counters.scrub.passes,
                "damaged": counters.scrub.damaged,
                "repaired": counters.scrub.repaired,
                "repaired_bytes": counters.scrub.repaired_bytes,
                "failed": counters.scrub.failed,
                "indexes": counters.scrub.indexes,
            },
        },
    });
    if let Value::Object(more) = more {
        fields.extend(more);
    }
    shard
}

/// Partition `n` of every topic that has one.
async fn partition_of_all_topics(
    State(source): State<Arc<Source>>,
    partition: Result<Path<u32>, PathRejection>,
) -> Response {
    let Ok(Path(partition)) = partition else { return not_a_number() };
    let catalog = source.catalog();
    let wanted: Vec<&Topic> =
        catalog.topics.values().map(Arc::as_ref).filter(|topic| topic.partitions() > partition).collect();
    if wanted.is_empty() {
        return problem(StatusCode::NOT_FOUND, format!("no topic has a partition {partition}"));
    }
    let shown = wanted.get(..MAX_PARTITIONS_SHOWN).unwrap_or(&wanted);
    let groups: Vec<GroupId> = shown.iter().map(|topic| GroupId::new(topic.id, partition)).collect();
    let states = source.partitions(groups.clone()).await;
    let list: Vec<Value> = groups
        .iter()
        .zip(shown)
        .map(|(group, topic)| partition_json(source.facts().node_id, topic, *group, states.get(group)))
        .collect();
    Json(json!({ "partition": partition, "partitions": list, "more": wanted.len() > shown.len() }))
        .into_response()
}

async fn partition_of_topic(
    State(source): State<Arc<Source>>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Response {
    let Ok(Path((name, partition))) = path else { return not_a_number() };
    let Ok(partition) = partition.parse::<u32>() else { return not_a_number() };
    let catalog = source.catalog();
    let Some(topic) = catalog.topic_by_name(&name) else {
        return problem(StatusCode::NOT_FOUND, format!("no topic {name:?}"));
    };
    if partition >= topic.partitions() {
        let text = format!("topic {name:?} has {} partitions, from 0 on", topic.partitions());
        return problem(StatusCode::NOT_FOUND, text);
    }
    let group = GroupId::new(topic.id, partition);
    let node = source.facts().node_id;
    let replicas: Vec<u32> = topic.spec.assignment.replicas(partition).map(|replica| replica.node).collect();
    if !replicas.contains(&node) {
        let text = format!("node {node} has no replica of this partition; ask one of the nodes {replicas:?}");
        return problem(StatusCode::NOT_FOUND, text);
    }
    let states = source.partitions(vec![group]).await;
    match states.get(&group) {
        Some(state) => Json(partition_json(node, topic, group, Some(state))).into_response(),
        None => problem(StatusCode::SERVICE_UNAVAILABLE, "the partition's shard does not answer yet".into()),
    }
}

fn not_a_number() -> Response {
    problem(StatusCode::BAD_REQUEST, "a partition is a number from 0 on".into())
}

/// The replica on `node`, as its shard sees it.
fn partition_json(node: u32, topic: &Topic, group: GroupId, state: Option<&PartitionState>) -> Value {
    let own = topic.spec.assignment.replicas(group.partition).find(|replica| replica.node == node);
    let shard = own.map(|own| own.shard);
    let Some(state) = state else {
        return json!({ "topic": topic.name(), "partition": group.partition, "shard": shard, "health": "unavailable" });
    };
    json!({
        "topic": topic.name(),
        "topic_id": topic.id,
        "partition": group.partition,
        "shard": shard,
        "health": health_name(state.health),
        "write_quorum": topic.spec.write_quorum,
        "min_insync_replicas": topic.spec.min_insync_replicas,
        "leader": state.leader,
        "replicas": state.replicas.iter().map(|replica| follower_json(replica, state.log_end)).collect::<Vec<_>>(),
        "isr": in_sync(state),
        "epoch": state.epoch,
        "log_start": state.log_start,
        "high_watermark": state.high_watermark,
        "log_end": state.log_end,
        "flushed": state.flushed,
        "segments": state.segments,
        "segment_bytes": state.segment_bytes,
        "cached_bytes": state.cached_bytes,
        "producers": state.producers,
    })
}

async fn metrics_page(State(source): State<Arc<Source>>) -> Response {
    let shards = source.shards().await;
    match metrics::render(source.facts(), shards, &source.catalog()) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => {
            problem(StatusCode::INTERNAL_SERVER_ERROR, format!("the metrics could not be written: {error}"))
        }
    }
}
