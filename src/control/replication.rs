//! `/replication/status`: how the partitions of this node and their replicas are doing, and what sums that up.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use pyralog_core::GroupId;
use pyralog_net::message::{PartitionState, ReplicaRole, ReplicaState, ReplicationState};
use pyralog_replication::metadata::{Catalog, Topic};
use pyralog_shard::engine::{PeerStatus, ReplicationCounters, ReplicationStatus};
use serde_json::{Value, json};

use super::http::problem;
use super::source::Source;
use super::view::{ShardView, health_name, replica_role_name, replication_state_name};

/// Partitions on a page when nobody says how many, and at most.
const PAGE: (usize, usize) = (100, 1_000);

/// What of the partitions is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Query {
    topic: Option<String>,
    /// Those behind this one, in the order of topic ids and partitions.
    start_after: Option<GroupId>,
    limit: Option<usize>,
}

impl Query {
    fn parse(text: &str) -> Result<Self, String> {
        let mut query = Self::default();
        for part in text.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            match name {
                "topic" => query.topic = Some(value.to_owned()),
                "start_after" => {
                    let text = "start_after is what `next` of the page before says, such as 5-17";
                    query.start_after = Some(group(value).ok_or(text)?);
                }
                "limit" => match value.parse() {
                    Ok(limit) if (1..=PAGE.1).contains(&limit) => query.limit = Some(limit),
                    _ => return Err(format!("limit is a number from 1 to {}", PAGE.1)),
                },
                _ => return Err(format!("there is no {name:?}; there are topic, start_after and limit")),
            }
        }
        Ok(query)
    }
}

/// A partition as [`GroupId`] is written.
fn group(text: &str) -> Option<GroupId> {
    let (topic, partition) = text.split_once('-')?;
    Some(GroupId::new(topic.parse().ok()?, partition.parse().ok()?))
}

/// The page.
pub(crate) async fn page(State(source): State<Arc<Source>>, RawQuery(query): RawQuery) -> Response {
    let query = match Query::parse(&query.unwrap_or_default()) {
        Ok(query) => query,
        Err(text) => return problem(StatusCode::BAD_REQUEST, text),
    };
    let catalog = source.catalog();
    if let Some(name) = query.topic.as_deref().filter(|name| catalog.topic_by_name(name).is_none()) {
        return problem(StatusCode::NOT_FOUND, format!("no topic {name:?}"));
    }
    let facts = source.facts();
    let limit = query.limit.unwrap_or(PAGE.0);
    let mut groups = held(&catalog, facts.node_id, &query).take(limit + 1).collect::<Vec<_>>();
    let more = groups.len() > limit;
    groups.truncate(limit);
    let next = groups.last().filter(|_| more).map(|(_, group)| group.to_string());
    let states = source.partitions(groups.iter().map(|(_, group)| *group).collect()).await;
    let shards = source.shards().await;
    let partitions = groups.iter().map(|(topic, group)| partition_json(topic, *group, states.get(group)));
    Json(json!({
        "node": facts.node_id,
        "cluster": { "name": facts.cluster_name, "id": format!("{:016x}", facts.cluster_id) },
        "controller": controller(&shards),
        "summary": summary_json(&summary(&shards)),
        "peers": peers_json(&shards, &catalog),
        "shards": shards.iter().map(shard_json).collect::<Vec<_>>(),
        "partitions": partitions.collect::<Vec<_>>(),
        "next": next,
    }))
    .into_response()
}

/// The partitions of which `node` has a replica, in their order.
fn held<'c>(
    catalog: &'c Catalog,
    node: u32,
    query: &'c Query,
) -> impl Iterator<Item = (&'c Topic, GroupId)> + 'c {
    let after = query.start_after;
    let from = after.map_or(Bound::Unbounded, |after| Bound::Included(after.topic.0));
    let topics = catalog.topics.range((from, Bound::Unbounded)).map(|(_, topic)| topic.as_ref());
    let topics = topics.filter(|topic| query.topic.as_deref().is_none_or(|name| name == topic.name()));
    topics.flat_map(move |topic| {
        let groups = (0..topic.partitions()).map(move |partition| (topic, GroupId::new(topic.id, partition)));
        groups.filter(move |(_, group)| {
            let mut replicas = topic.spec.assignment.replicas(group.partition);
            after.is_none_or(|after| *group > after) && replicas.any(|replica| replica.node == node)
        })
    })
}

/// The node that leads the metadata, as the shards know it.
pub(super) fn controller(shards: &[ShardView]) -> Option<u32> {
    let told = shards.iter().filter_map(|shard| Some(shard.status.as_ref()?.replication.controller));
    told.max().filter(|node| *node != 0)
}

/// All shards that answered, in sums and largest values.
pub(super) fn summary(shards: &[ShardView]) -> ReplicationStatus {
    let mut sum = ReplicationStatus::default();
    for status in shards.iter().filter_map(|shard| shard.status.as_ref()) {
        let of = &status.replication;
        sum.led += of.led;
        sum.followed += of.followed;
        sum.leaderless += of.leaderless;
        sum.offline += of.offline;
        sum.under_replicated += of.under_replicated;
        sum.below_min_insync += of.below_min_insync;
        sum.waiting_produces += of.waiting_produces;
        sum.lag_records = sum.lag_records.max(of.lag_records);
        sum.lag_bytes = sum.lag_bytes.max(of.lag_bytes);
        sum.lag_us = sum.lag_us.max(of.lag_us);
    }
    sum
}

pub(super) fn summary_json(of: &ReplicationStatus) -> Value {
    json!({
        "partitions_led": of.led,
        "partitions_followed": of.followed,
        "under_replicated": of.under_replicated,
        "below_min_insync": of.below_min_insync,
        "leaderless": of.leaderless,
        "offline": of.offline,
        "waiting_produces": of.waiting_produces,
        "largest_lag": {
            "records": of.lag_records,
            "bytes": of.lag_bytes,
            "ms": of.lag_us / 1_000,
        },
    })
}

/// The links of all shards to each other node.
fn peers_json(shards: &[ShardView], catalog: &Catalog) -> Vec<Value> {
    let mut nodes = BTreeMap::<u32, PeerStatus>::new();
    let peers = shards.iter().filter_map(|shard| shard.status.as_ref());
    for peer in peers.flat_map(|status| &status.replication.peers) {
        let sum = nodes.entry(peer.node).or_default();
        sum.links += peer.links;
        sum.links_up += peer.links_up;
        sum.down_us = sum.down_us.max(peer.down_us);
        sum.ups += peer.ups;
        sum.downs += peer.downs;
    }
    let node = |(node, links): (u32, PeerStatus)| {
        let known = catalog.nodes.get(&node);
        json!({
            "node": node,
            "address": known.map(|known| &known.client_address),
            "internal_address": known.map(|known| &known.internal_address),
            "state": match links.links_up {
                0 => "down",
                up if up < links.links => "partly_up",
                _ => "up",
            },
            "links": links.links,
            "links_up": links.links_up,
            "down_ms": links.down_us / 1_000,
            "ups": links.ups,
            "downs": links.downs,
        })
    };
    nodes.into_iter().map(node).collect()
}

fn shard_json(view: &ShardView) -> Value {
    let Some(status) = &view.status else { return json!({ "shard": view.shard, "trouble": view.trouble() }) };
    let mut shard = summary_json(&status.replication);
    if let Some(fields) = shard.as_object_mut() {
        fields.insert("shard".into(), view.shard.into());
        fields.insert("counters".into(), counters_json(&status.counters.replication));
    }
    shard
}

/// Totals since the shard started.
pub(super) fn counters_json(of: &ReplicationCounters) -> Value {
    json!({
        "elections": of.elections,
        "elections_won": of.elections_won,
        "leaderships_lost": of.leaderships_lost,
        "hand_overs": of.hand_overs,
        "ack_timeouts": of.ack_timeouts,
        "stale_messages": of.stale_messages,
        "catch_ups": of.catch_ups,
        "catch_ups_done": of.catch_ups_done,
        "catch_ups_given_up": of.catch_ups_given_up,
        "catch_up_bytes": of.catch_up_bytes,
        "recovery_bytes": of.recovery_bytes,
        "recovery_waited_us": of.recovery_waited_us,
    })
}

fn partition_json(topic: &Topic, group: GroupId, state: Option<&PartitionState>) -> Value {
    let replicas = topic.spec.assignment.replicas(group.partition).map(|replica| replica.node);
    let replicas: Vec<u32> = replicas.collect();
    let Some(state) = state else {
        return json!({
            "topic": topic.name(), "topic_id": topic.id, "partition": group.partition, "replicas": replicas,
            "role": "unavailable", "leader": null, "in_sync": null, "followers": [],
        });
    };
    let leads = !state.replicas.is_empty();
    let followers = state.replicas.iter().filter(|replica| replica.state != ReplicationState::Leader);
    json!({
        "topic": topic.name(),
        "topic_id": topic.id,
        "partition": group.partition,
        "role": if leads { "leader" } else { "follower" },
        "leader": Some(state.leader).filter(|leader| *leader != 0),
        "epoch": state.epoch,
        "replicas": replicas,
        // Only the leader knows.
        "in_sync": leads.then(|| in_sync(state)),
        "health": health_name(state.health),
        "log_start": state.log_start,
        "high_watermark": state.high_watermark,
        "log_end": state.log_end,
        "followers": followers.map(|follower| follower_json(follower, state.log_end)).collect::<Vec<_>>(),
    })
}

/// Nodes of the replicas in sync.
pub(super) fn in_sync(state: &PartitionState) -> Vec<u32> {
    let in_sync = |replica: &&ReplicaState| replica.in_sync && replica.role != ReplicaRole::Joining;
    state.replicas.iter().filter(in_sync).map(|replica| replica.node).collect()
}

/// A replica as its leader, whose log ends at `log_end`, sees it. What is not known is null.
pub(super) fn follower_json(replica: &ReplicaState, log_end: i64) -> Value {
    json!({
        "node": replica.node,
        "shard": replica.shard,
        "role": replica_role_name(replica.role),
        "state": replication_state_name(replica.state),
        "in_sync": replica.in_sync,
        "log_end": replica.known_end(),
        "lag_records": replica.lag_records(log_end),
        "lag_bytes": replica.known_lag_bytes(),
        "lag_ms": replica.lag_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_understood_or_refused() {
        let all = Query::parse("topic=orders&start_after=5-17&limit=20").unwrap();
        let expected =
            Query { topic: Some("orders".into()), start_after: Some(GroupId::new(5, 17)), limit: Some(20) };
        assert_eq!((all, Query::parse("").unwrap()), (expected, Query::default()));
        for wrong in
            ["limit=0", "limit=1001", "limit=x", "start_after=5", "start_after=-", "order=1", "topics"]
        {
            assert!(Query::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sums_are_of_all_shards_and_lags_are_the_largest() {
        let view = |led, lag_us, controller| {
            let mut view = ShardView { status: Some(Default::default()), ..ShardView::default() };
            if let Some(status) = &mut view.status {
                status.replication = ReplicationStatus { led, lag_us, controller, ..Default::default() };
            }
            view
        };
        let shards = [view(2, 9_000, 0), view(3, 4_000, 2), ShardView::default()];
        let sum = summary(&shards);
        assert_eq!((sum.led, sum.lag_us, controller(&shards)), (5, 9_000, Some(2)));
        assert_eq!(controller(&shards[..1]), None);
    }
}
