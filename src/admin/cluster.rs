//! `cluster info`.

use std::time::Duration;

use pyralog_core::FeatureLevels;
use pyralog_net::client::{Client, Described, NodeAnswer, NodeInfo};
use pyralog_net::message::{NodeMetadata, ReplicaRole, TopicMetadata};
use serde::Serialize;

use super::cli::{AddNode, Format};
use super::{explain, output};
use crate::failure::Failure;

const LOOK: Duration = Duration::from_millis(200);

#[derive(Serialize)]
struct ClusterInfo {
    /// Its name.
    cluster: String,
    /// Version of the node that answered first.
    server: String,
    /// The node that takes administrative requests; 0 = nobody is known to.
    controller: u32,
    catalog_version: u64,
    /// What all its nodes understand.
    feature_level: u16,
    topics: usize,
    partitions: usize,
    /// Partitions of which not all replicas are in sync, as their leaders tell.
    under_replicated: usize,
    /// Partitions that nobody leads.
    leaderless: usize,
    /// Partitions whose leader could not be asked.
    leader_unreachable: usize,
    nodes: Vec<NodeRow>,
}

#[derive(Serialize)]
struct NodeRow {
    node: u32,
    address: String,
    /// Whether it answers this program.
    up: bool,
    /// Its version, or why it does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    shards: u16,
    /// What fails together with it, if that is known.
    rack: Option<String>,
    /// Lowest and highest feature level that it supports.
    feature_levels: [u16; 2],
    /// Copies of partitions that it holds.
    replicas: usize,
    /// Those of them in sync, as their leaders tell.
    replicas_in_sync: usize,
    partitions_led: usize,
    /// Partitions whose preferred leader it is.
    partitions_preferred: usize,
}

impl NodeRow {
    fn of(node: &NodeMetadata, answer: Option<&NodeAnswer>, partitions: &[Described]) -> Self {
        let places = || partitions.iter().map(|partition| &partition.place);
        let holds = |id: u32| places().filter(move |place| place.replicas.iter().any(|held| held.node == id));
        let preferred = places().filter(|place| place.replicas.first().is_some_and(|it| it.node == node.id));
        let states = partitions.iter().filter_map(|partition| partition.state.as_ref());
        let replicas = states.flat_map(|state| state.replicas.iter());
        let told = answer.map(|answer| answer.server.clone());
        Self {
            node: node.id,
            address: node.address.clone(),
            up: matches!(told, Some(Ok(_))),
            version: told.clone().and_then(Result::ok),
            error: told.and_then(Result::err),
            shards: node.shards,
            rack: Some(node.rack.clone()).filter(|rack| !rack.is_empty()),
            feature_levels: [node.level_min, node.level_max],
            replicas: holds(node.id).count(),
            replicas_in_sync: replicas.filter(|replica| replica.node == node.id && replica.in_sync).count(),
            partitions_led: partitions
                .iter()
                .filter(|partition| partition.is_from_leader() && partition.place.leader == node.id)
                .count(),
            partitions_preferred: preferred.count(),
        }
    }
}

impl ClusterInfo {
    fn of(
        node: NodeInfo,
        topics: &[TopicMetadata],
        partitions: &[Described],
        answers: &[NodeAnswer],
    ) -> Self {
        let answer = |id: u32| answers.iter().find(|answer| answer.node == id);
        let rows = node.nodes.iter().map(|node| NodeRow::of(node, answer(node.id), partitions));
        let under_replicated = partitions.iter().filter(|partition| {
            let replicas = partition.state.iter().flat_map(|state| state.replicas.iter());
            let mut voters = replicas.filter(|replica| replica.role != ReplicaRole::Joining);
            partition.is_from_leader() && voters.any(|replica| !replica.in_sync)
        });
        let unasked = || partitions.iter().filter(|partition| !partition.is_from_leader());
        // A node that was cut off may go on naming the controller of before: the newest catalogue knows better.
        let controller = answers.iter().filter(|answer| answer.controller != 0);
        let controller = controller.max_by_key(|answer| answer.catalog_version);
        Self {
            nodes: rows.collect(),
            cluster: node.cluster,
            server: node.server,
            controller: controller.map_or(node.controller, |answer| answer.controller),
            catalog_version: node.catalog_version,
            feature_level: node.feature_level,
            topics: topics.len(),
            partitions: partitions.len(),
            under_replicated: under_replicated.count(),
            leaderless: unasked().filter(|partition| partition.place.leader == 0).count(),
            leader_unreachable: unasked().filter(|partition| partition.place.leader != 0).count(),
        }
    }

    fn table(&self) -> String {
        let facts = output::pairs(&[
            ("cluster", self.cluster.clone()),
            ("controller", none_or(self.controller)),
            ("topics", self.topics.to_string()),
            ("partitions", self.partitions.to_string()),
            ("under-replicated", self.under_replicated.to_string()),
            ("without a leader", self.leaderless.to_string()),
            ("leader unreachable", self.leader_unreachable.to_string()),
            ("catalogue version", self.catalog_version.to_string()),
            ("feature level", self.feature_level.to_string()),
        ]);
        let rows = self.nodes.iter().map(|node| {
            vec![
                node.node.to_string(),
                node.address.clone(),
                if node.up { "up" } else { "down" }.to_owned(),
                node.version.clone().unwrap_or_else(|| "?".into()),
                FeatureLevels { min: node.feature_levels[0], max: node.feature_levels[1] }.to_string(),
                node.shards.to_string(),
                node.rack.clone().unwrap_or_else(|| "-".into()),
                node.replicas.to_string(),
                node.replicas_in_sync.to_string(),
                node.partitions_led.to_string(),
                node.partitions_preferred.to_string(),
            ]
        });
        let head = [
            "NODE",
            "ADDRESS",
            "STATE",
            "VERSION",
            "LEVELS",
            "SHARDS",
            "RACK",
            "REPLICAS",
            "IN SYNC",
            "LEADS",
            "SHOULD LEAD",
        ];
        format!("{facts}\n\n{}", output::table(&head, rows))
    }
}

fn none_or(node: u32) -> String {
    match node {
        0 => "none".to_owned(),
        node => node.to_string(),
    }
}

/// `cluster info`.
pub(crate) fn info(client: &mut Client, format: Format) -> Result<(), Failure> {
    let (node, topics) = client.metadata().map_err(|error| explain(error, None))?;
    let partitions: Vec<Described> = client.describe(&topics).into_iter().flatten().collect();
    let answers = client.ask_nodes();
    output::print(format, &ClusterInfo::of(node, &topics, &partitions, &answers), ClusterInfo::table)
}

#[derive(Serialize)]
struct Added {
    /// Its id.
    node: u32,
    /// Where the others look for it.
    internal_address: String,
    /// It is part of the cluster, and holds the metadata.
    joined: bool,
}

/// `cluster add-node`.
pub(crate) fn add_node(client: &mut Client, format: Format, arguments: &AddNode) -> Result<(), Failure> {
    let (node, internal_address) = arguments.node.clone();
    client.add_node(node, &internal_address).map_err(|error| explain(error, None))?;
    let mut added = Added { node, internal_address, joined: false };
    while arguments.wait && !added.joined {
        let (known, _) = client.metadata().map_err(|error| explain(error, None))?;
        let holders = client.metadata_holders().map_err(|error| explain(error, None))?;
        added.joined = known.nodes.iter().any(|known| known.id == node) && holders.contains(&node);
        std::thread::sleep(LOOK);
    }
    output::print(format, &added, |added| match added.joined {
        true => format!("node {node} is part of the cluster"),
        false => format!(
            "node {node} may come: start it with an empty data folder, and with itself and the others in its \
             node.cluster_nodes; the others find it at {}",
            added.internal_address
        ),
    })
}
