//! What clients are told of the cluster: nodes, topics, where each partition is and who leads it.

use pyralog_core::{ErrorCode, GroupId};
use pyralog_net::message::{
    MetadataReply, MetadataRequest, NodeMetadata, PartitionMetadata, ReplicaMetadata, Response, TopicMetadata,
};
use pyralog_replication::metadata::{Catalog, Replica as Place, Topic};

use super::{Action, ConnId, Engine, reply};

/// Partitions in one page of metadata; a single topic with more is a page of its own.
const PAGE_PARTITIONS: usize = 16_384;

impl Engine {
    /// The node whose shard 0 takes administrative requests; 0 while nobody is known to.
    pub(super) fn metadata_leader(&self) -> u32 {
        if !self.config.is_clustered() {
            return self.config.node.0;
        }
        self.leaders.get(&GroupId::METADATA).map_or(0, |told| told.node)
    }

    /// Where a partition is. Its leader is known where one of its replicas is; elsewhere the first one stands for it that is
    /// on none of the nodes `down`, as it knows better.
    fn partition_metadata(&self, catalog: &Catalog, group: GroupId, down: &[u32]) -> PartitionMetadata {
        let replicas: Vec<_> = catalog.replicas(group).collect();
        let knows =
            replicas.iter().map(|replica| replica.node).find(|node| !down.contains(node)).unwrap_or(0);
        let (leader, epoch) = match self.leaders.get(&group) {
            _ if !catalog.is_group(group) => (knows, 0),
            Some(told) => (told.node, told.epoch),
            None if replicas.iter().any(|replica| replica.node == self.config.node.0) => (0, 0),
            None => (knows, 0),
        };
        // A replica that is on its way here may lead already.
        let shard_on =
            |node| catalog.wanted_slot(node, group).map(|shard| self.peer_of(Place { node, shard }));
        let shard = shard_on(leader).map_or(0, |peer| peer.shard.0);
        let replicas = replicas.iter().map(|replica| ReplicaMetadata {
            node: replica.node,
            shard: self.peer_of(*replica).shard.0,
            in_sync: replica.node == leader,
        });
        PartitionMetadata { leader, epoch, shard, replicas: replicas.collect() }
    }

    pub(super) fn metadata(
        &mut self,
        conn: ConnId,
        correlation_id: u64,
        request: &MetadataRequest<'_>,
        actions: &mut Vec<Action>,
    ) {
        let Some(catalog) = self.catalog.clone() else {
            let detail = "the catalogue is not loaded yet".into();
            return self.refuse(conn, correlation_id, ErrorCode::NotReady, detail, actions);
        };
        let down = self.replication.links.down_nodes(self.now.monotonic_us);
        let describe = |topic: &Topic| TopicMetadata {
            id: topic.id,
            name: topic.spec.name.clone(),
            quorums: topic.spec.quorums(),
            retention_bytes: topic.spec.retention_bytes,
            retention_ms: topic.spec.retention_ms,
            partitions: (0..topic.partitions())
                .map(|partition| self.partition_metadata(&catalog, GroupId::new(topic.id, partition), &down))
                .collect(),
        };
        let mut more = false;
        let mut topics = Vec::new();
        if let Some(name) = request.topic {
            let Some(topic) = catalog.topic_by_name(name) else {
                let detail = format!("no topic {name:?}");
                return self.refuse(
                    conn,
                    correlation_id,
                    ErrorCode::UnknownTopicOrPartition,
                    detail,
                    actions,
                );
            };
            topics.push(describe(topic));
        } else {
            let mut partitions = 0;
            for topic in catalog.topics.range(request.start_after.saturating_add(1)..).map(|(_, topic)| topic)
            {
                if !topics.is_empty()
                    && (partitions + topic.partitions() as usize > PAGE_PARTITIONS || topics.len() >= 1_000)
                {
                    more = true;
                    break;
                }
                partitions += topic.partitions() as usize;
                topics.push(describe(topic));
            }
        }
        // What counts is what it has registered.
        let levels = catalog.nodes.get(&self.config.node.0).map(|known| known.levels());
        let levels = levels.unwrap_or(self.config.feature_levels);
        let own = NodeMetadata {
            id: self.config.node.0,
            shards: self.config.shards,
            address: self.config.advertised_address.clone(),
            rack: self.config.rack.clone(),
            level_min: levels.min,
            level_max: levels.max,
        };
        // What this node knows of itself is newer than what it registered.
        let others = catalog.nodes.values().filter(|node| node.id != own.id).map(|node| NodeMetadata {
            id: node.id,
            shards: node.shards,
            address: node.client_address.clone(),
            rack: node.rack.clone(),
            level_min: node.level_min,
            level_max: node.level_max,
        });
        let mut nodes: Vec<NodeMetadata> = others.collect();
        nodes.push(own);
        nodes.sort_by_key(|node| node.id);
        let answer = MetadataReply {
            node: self.config.node.0,
            controller: self.metadata_leader(),
            cluster: self.config.cluster_name.clone(),
            nodes,
            version: catalog.version,
            feature_level: catalog.feature_level,
            server: self.config.server_version.clone(),
            more,
            topics,
        };
        reply(conn, correlation_id, Response::Metadata(Box::new(answer)), actions);
    }
}
