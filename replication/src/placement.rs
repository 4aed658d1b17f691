//! Where new replicas go, and which leaders go home: pure functions of the catalogue, the same on every node.

use std::collections::BTreeMap;

use pyralog_core::limits::{MAX_PARTITIONS_PER_TOPIC, MAX_REPLICATION_FACTOR};
use pyralog_core::{GroupId, NodeId};

use crate::metadata::{Assignment, Catalog, Load, NodeInfo, Replica};
use crate::moves::even_out_leaders;
use crate::racks;
use crate::slots::Slots;

/// Why a topic can't be placed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// Every replica of a partition needs a node of its own.
    #[error(
        "{wanted} copies need {wanted} nodes, {registered} registered: start more nodes or ask for fewer copies"
    )]
    TooFewNodes {
        /// Copies asked for.
        wanted: u8,
        /// Nodes that have registered.
        registered: usize,
    },
    /// A bound of topics.
    #[error("{0}")]
    Bound(String),
}

/// Places `partitions` partitions with `copies` replicas each on the nodes of the catalogue.
///
/// Per topic, the numbers of replicas and of preferred leaders differ by at most one between nodes, and between the
/// shards of a node, whatever was placed before. Where one more has to go somewhere, it goes where all topics
/// together have least. Nodes count the same whatever their number of shards. No node holds two replicas of a
/// partition, and as long as there are racks without one, no rack does; to that end nodes may get more than others.
///
/// # Errors
/// Fewer nodes than copies, or a number out of its bounds.
pub fn place(catalog: &Catalog, partitions: u32, copies: u8) -> Result<Assignment, PlacementError> {
    if partitions == 0 || partitions > MAX_PARTITIONS_PER_TOPIC {
        let text = format!("{partitions} partitions; 1 to {MAX_PARTITIONS_PER_TOPIC} are allowed");
        return Err(PlacementError::Bound(text));
    }
    if copies == 0 || copies > MAX_REPLICATION_FACTOR {
        let text = format!("{copies} copies; 1 to {MAX_REPLICATION_FACTOR} are allowed");
        return Err(PlacementError::Bound(text));
    }
    let mut nodes: Vec<Node> = catalog.nodes.values().map(|node| Node::new(catalog, node)).collect();
    if nodes.len() < usize::from(copies) {
        return Err(PlacementError::TooFewNodes { wanted: copies, registered: nodes.len() });
    }
    nodes.sort_by_key(|node| (node.before.replicas, node.before.leaders, node.id));
    let (partitions, copies) = (partitions as usize, usize::from(copies));
    let racked = nodes.iter().map(|node| (node.rack, node.before.replicas));
    let dealt = match racks::deal(racked, partitions, copies) {
        Some(dealt) => lead_evenly(&mut nodes, dealt),
        None => deal(&mut nodes, partitions, copies),
    };
    let replicas = spread_over_shards(&mut nodes, &dealt);
    Assignment::new(&replicas).map_err(PlacementError::Bound)
}

/// A node while a topic is placed.
struct Node<'a> {
    id: u32,
    rack: &'a str,
    /// What other topics have on it.
    before: Load,
    /// Preferred leaders of this topic.
    leaders: u32,
    slots: Slots,
}

impl<'a> Node<'a> {
    fn new(catalog: &Catalog, node: &'a NodeInfo) -> Self {
        let sum = |of: fn(Load) -> u32| catalog.loads(node.id).map(|(_, load)| of(load)).sum();
        let before = Load { replicas: sum(|load| load.replicas), leaders: sum(|load| load.leaders) };
        let slots = Slots::new(catalog.feature_level, node.shards, catalog.loads(node.id));
        Self { id: node.id, rack: &node.rack, before, leaders: 0, slots }
    }
}

/// The nodes of each partition, as indexes, the preferred leader first.
///
/// Replicas are dealt like cards, `copies` to a partition, so that no node is ever two ahead. Which of them leads is
/// chosen where there are fewest leaders; if that should leave one node two ahead of another, the leaders are dealt
/// as well.
fn deal(nodes: &mut [Node<'_>], partitions: usize, copies: usize) -> Vec<Vec<usize>> {
    let count = nodes.len();
    let window = |partition: usize| (0..copies).map(move |card| (partition * copies + card) % count);
    let mut dealt: Vec<Vec<usize>> = Vec::with_capacity(partitions);
    for partition in 0..partitions {
        let mut members: Vec<usize> = window(partition).collect();
        choose_leader(nodes, &mut members);
        dealt.push(members);
    }
    let most = nodes.iter().map(|node| node.leaders).max().unwrap_or(0);
    let least = nodes.iter().map(|node| node.leaders).min().unwrap_or(0);
    if most - least > 1 {
        // A round is as many windows as come before the first one repeats; their first members are `step` apart. In
        // round r the members at place r lead, so that `step` rounds make every node the leader once.
        let step = greatest_common_divisor(count, copies);
        let round = count / step;
        for (partition, members) in dealt.iter_mut().enumerate() {
            *members = window(partition).collect();
            members.rotate_left(partition / round % step);
        }
    }
    dealt
}

/// Puts first who leads least.
fn choose_leader(nodes: &mut [Node<'_>], members: &mut [usize]) {
    let fewest = |member: &usize| {
        nodes.get(*member).map_or((u32::MAX, 0), |n| (n.leaders, n.before.leaders + n.leaders))
    };
    let leader = (0..members.len()).min_by_key(|at| members.get(*at).map(fewest)).unwrap_or(0);
    members.rotate_left(leader);
    if let Some(node) = members.first().and_then(|first| nodes.get_mut(*first)) {
        node.leaders += 1;
    }
}

/// Chooses who leads each partition, whose nodes are given.
fn lead_evenly(nodes: &mut [Node<'_>], mut dealt: Vec<Vec<usize>>) -> Vec<Vec<usize>> {
    dealt.iter_mut().for_each(|members| choose_leader(nodes, members));
    let as_replica = |member: usize| Replica { node: member as u32, shard: 0 };
    let mut lists: Vec<Vec<Replica>> =
        dealt.iter().map(|members| members.iter().copied().map(as_replica).collect()).collect();
    even_out_leaders(0..nodes.len() as u32, &mut lists);
    lists.iter().map(|list| list.iter().map(|replica| replica.node as usize).collect()).collect()
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Picks a shard for every replica: for the leaders first, which have more to do, then for the others.
fn spread_over_shards(nodes: &mut [Node<'_>], dealt: &[Vec<usize>]) -> Vec<Vec<Replica>> {
    let mut placed: Vec<Vec<Replica>> =
        dealt.iter().map(|members| Vec::with_capacity(members.len())).collect();
    for (members, replicas) in dealt.iter().zip(&mut placed) {
        if let Some(node) = members.first().and_then(|first| nodes.get_mut(*first)) {
            replicas.push(Replica { node: node.id, shard: node.slots.take_leader() });
        }
    }
    for (members, replicas) in dealt.iter().zip(&mut placed) {
        for member in members.iter().skip(1) {
            if let Some(node) = nodes.get_mut(*member) {
                replicas.push(Replica { node: node.id, shard: node.slots.take_follower() });
            }
        }
    }
    placed
}

/// Who leads a partition now and who should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leadership {
    /// The partition.
    pub group: GroupId,
    /// The node that leads it.
    pub leader: NodeId,
    /// The node of its first replica.
    pub preferred: NodeId,
    /// Whether the preferred replica is there and in sync: only then can it take over without a gap.
    pub ready: bool,
}

/// The next leaders to hand over to their preferred nodes, at most `at_most` so that a node that comes back is not
/// stormed: those first that even out the nodes most. Ask again when they are done; nothing left to do gives none.
pub fn rebalance(partitions: &[Leadership], at_most: usize) -> Vec<(GroupId, NodeId)> {
    let mut led: BTreeMap<NodeId, i64> = BTreeMap::new();
    for partition in partitions {
        *led.entry(partition.leader).or_default() += 1;
    }
    let mut moves: Vec<&Leadership> =
        partitions.iter().filter(|p| p.ready && p.leader != p.preferred).collect();
    moves.sort_by_key(|p| p.group);
    let mut plan = Vec::new();
    while plan.len() < at_most {
        let gain = |p: &&Leadership| {
            let of = |node| led.get(&node).copied().unwrap_or(0);
            of(p.leader) - of(p.preferred)
        };
        // The first of those with the largest gain.
        let best = moves.iter().enumerate().rev().max_by_key(|(_, p)| gain(p)).map(|(at, _)| at);
        let Some(next) = best.map(|at| moves.remove(at)) else { break };
        *led.entry(next.leader).or_default() -= 1;
        *led.entry(next.preferred).or_default() += 1;
        plan.push((next.group, next.preferred));
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::{Command, TopicSpec, on_shard};
    use crate::moves::{Holding, Host, plan};
    use proptest::prelude::*;
    use pyralog_core::Quorums;
    use std::collections::BTreeSet;

    fn catalog(nodes: u32, shards: u16) -> Catalog {
        racked(&vec![""; nodes as usize], shards)
    }

    fn racked(racks: &[&str], shards: u16) -> Catalog {
        let mut catalog = Catalog::at_level(2).unwrap();
        for (id, rack) in (1..).zip(racks) {
            let client_address = format!("n{id}:9092");
            let node = NodeInfo {
                id,
                client_address,
                internal_address: String::new(),
                rack: (*rack).to_owned(),
                shards,
                disk: 1,
                level_min: 1,
                level_max: 2,
                disk_since: 0,
            };
            catalog.apply(&Command::RegisterNode(node)).unwrap();
        }
        catalog
    }

    fn create(catalog: &mut Catalog, name: &str, assignment: Assignment) {
        let quorums = Quorums::of(assignment.width());
        let command = Command::CreateTopic(TopicSpec {
            name: name.into(),
            assignment,
            replication_factor: quorums.replication_factor,
            write_quorum: quorums.write_quorum,
            read_quorum: quorums.read_quorum,
            min_insync_replicas: quorums.min_insync_replicas,
            retention_bytes: -1,
            retention_ms: -1,
        });
        catalog.apply(&command).unwrap();
    }

    fn spread(counts: impl Iterator<Item = u32> + Clone) -> u32 {
        counts.clone().max().unwrap_or(0) - counts.min().unwrap_or(0)
    }

    /// The largest differences that these replicas make: of replicas and of leaders between nodes, then the same
    /// between the shards of one node.
    fn differences(
        replicas: impl Iterator<Item = (Replica, bool)>,
        nodes: u32,
        shards: u16,
    ) -> (u32, u32, u32, u32) {
        let mut load: BTreeMap<Replica, Load> = BTreeMap::new();
        for (replica, leader) in replicas {
            let place = Replica { shard: on_shard(replica.shard, shards), ..replica };
            let load = load.entry(place).or_default();
            load.replicas += 1;
            load.leaders += u32::from(leader);
        }
        let of = |node, shard| load.get(&Replica { node, shard }).copied().unwrap_or_default();
        let node = |pick: fn(Load) -> u32| {
            (1..=nodes).map(move |node| (0..shards).map(|shard| pick(of(node, shard))).sum::<u32>())
        };
        let within = |pick: fn(Load) -> u32| {
            (1..=nodes).map(|node| spread((0..shards).map(|shard| pick(of(node, shard))))).max().unwrap_or(0)
        };
        let nodes_apart = (spread(node(|load| load.replicas)), spread(node(|load| load.leaders)));
        (nodes_apart.0, nodes_apart.1, within(|load| load.replicas), within(|load| load.leaders))
    }

    proptest! {
        #[test]
        fn a_topic_is_even_and_all_topics_stay_so(
            nodes in 1u32..9, shards in 1u16..6,
            topics in proptest::collection::vec((1u32..40, 1u8..=5, any::<bool>()), 1..12),
        ) {
            let mut catalog = catalog(nodes, shards);
            let mut deleted = false;
            for (number, (partitions, copies, delete)) in topics.into_iter().enumerate() {
                let copies = copies.min(nodes as u8);
                let placed = place(&catalog, partitions, copies).unwrap();
                prop_assert_eq!(&place(&catalog, partitions, copies).unwrap(), &placed, "the same again");
                prop_assert_eq!((placed.partitions(), placed.width()), (partitions, copies));
                let (a, b, c, d) = differences(placed.iter(), nodes, shards);
                prop_assert!(a <= 1 && b <= 1 && c <= 1 && d <= 1, "one topic: {:?}", (a, b, c, d));
                create(&mut catalog, &format!("t{number}"), placed);
                if delete {
                    let topic = *catalog.topics.keys().next().unwrap();
                    catalog.apply(&Command::DeleteTopic { topic }).unwrap();
                    deleted = true;
                }
                if !deleted {
                    let all = catalog.topics.values().flat_map(|topic| topic.spec.assignment.iter());
                    let (replicas, leaders, on_shards, _) = differences(all, nodes, shards);
                    prop_assert!(replicas <= 1, "replicas of all topics per node: {}", replicas);
                    prop_assert!(leaders <= 3, "leaders of all topics per node: {}", leaders);
                    prop_assert!(on_shards <= 3, "replicas of all topics per shard: {}", on_shards);
                }
            }
        }

        /// In as many racks as there are, as even as that admits: a plan finds nothing to move.
        #[test]
        fn replicas_lie_in_different_racks(
            racks in proptest::collection::vec(0usize..5, 2..10), shards in 1u16..4,
            topics in proptest::collection::vec((1u32..40, 1u8..=5), 1..6),
        ) {
            let racks: Vec<&str> = racks.iter().map(|rack| ["", "a", "b", "c", "d"][*rack]).collect();
            let rack = |node: u32| match racks[node as usize - 1] {
                "" => format!("of node {node}"),
                named => named.to_owned(),
            };
            let there: BTreeSet<String> = (1..=racks.len() as u32).map(rack).collect();
            let hosts = |node: u32| Host { node, shards, rack: racks[node as usize - 1], leaves: false };
            let hosts: Vec<Host<'_>> = (1..=racks.len() as u32).map(hosts).collect();
            let mut catalog = racked(&racks, shards);
            for (number, (partitions, copies)) in topics.into_iter().enumerate() {
                let copies = copies.min(racks.len() as u8);
                let placed = place(&catalog, partitions, copies).unwrap();
                prop_assert_eq!(&place(&catalog, partitions, copies).unwrap(), &placed, "the same again");
                prop_assert_eq!((placed.partitions(), placed.width()), (partitions, copies));
                let mut holdings = Vec::new();
                for partition in 0..partitions {
                    let replicas: Vec<Replica> = placed.replicas(partition).collect();
                    let used: BTreeSet<String> = replicas.iter().map(|replica| rack(replica.node)).collect();
                    prop_assert_eq!(used.len(), there.len().min(replicas.len()), "{:?}", replicas);
                    holdings.push(Holding { group: GroupId::new(1, partition), copies: replicas.len(), replicas, bytes: 1 });
                }
                prop_assert_eq!(plan(&hosts, &holdings).unwrap(), []);
                for name in &there {
                    let counts = (1..=racks.len() as u32).filter(|node| rack(*node) == *name).map(|node| {
                        placed.iter().filter(|(replica, _)| replica.node == node).count() as u32
                    });
                    prop_assert!(spread(counts) <= 1, "nodes of rack {}", name);
                }
                create(&mut catalog, &format!("t{number}"), placed);
            }
        }

        #[test]
        fn leaders_come_home_a_few_at_a_time(
            partitions in proptest::collection::vec((1u32..5, 1u32..5, any::<bool>()), 0..60), at_most in 1usize..9,
        ) {
            let mut now: Vec<Leadership> = partitions
                .iter()
                .zip(0..)
                .map(|((leader, preferred, ready), n)| Leadership {
                    group: GroupId::new(1, n), leader: NodeId(*leader), preferred: NodeId(*preferred), ready: *ready,
                })
                .collect();
            let wanted = now.iter().filter(|p| p.ready && p.leader != p.preferred).count();
            let mut moved = 0;
            loop {
                let plan = rebalance(&now, at_most);
                prop_assert!(plan.len() <= at_most);
                prop_assert_eq!(&plan, &rebalance(&now, at_most));
                if plan.is_empty() {
                    break;
                }
                for (group, to) in &plan {
                    let partition = &mut now[group.partition as usize];
                    prop_assert!(partition.ready && partition.leader != *to && partition.preferred == *to);
                    partition.leader = *to;
                }
                moved += plan.len();
            }
            prop_assert_eq!(moved, wanted, "every leader that can go home does, once");
        }
    }

    #[test]
    fn what_one_topic_leaves_over_the_next_ones_fill() {
        let mut catalog = catalog(3, 2);
        for number in 0..6 {
            let placed = place(&catalog, 1, 3).unwrap();
            create(&mut catalog, &format!("t{number}"), placed);
        }
        let all = catalog.topics.values().flat_map(|topic| topic.spec.assignment.iter());
        assert_eq!(
            differences(all, 3, 2),
            (0, 0, 0, 0),
            "18 replicas and 6 leaders on 3 nodes with 2 shards"
        );
    }

    #[test]
    fn a_single_node_evens_out_its_shards() {
        let mut catalog = catalog(1, 2);
        let placed = place(&catalog, 3, 1).unwrap();
        assert_eq!(placed.iter().map(|(replica, _)| replica.shard).collect::<Vec<_>>(), [0, 1, 2]);
        create(&mut catalog, "a", placed);
        assert_eq!(place(&catalog, 1, 1).unwrap().slot_on(1, 0), Some(3), "on shard 1");
    }

    #[test]
    fn too_few_nodes_are_told() {
        let error = place(&catalog(2, 4), 1, 3).unwrap_err();
        assert_eq!(error, PlacementError::TooFewNodes { wanted: 3, registered: 2 });
        assert!(error.to_string().contains("3 copies need 3 nodes, 2 registered"), "{error}");
        assert!(place(&catalog(3, 1), 0, 1).is_err() && place(&catalog(3, 1), 65_537, 1).is_err());
        assert!(place(&catalog(3, 1), 1, 0).is_err() && place(&catalog(8, 1), 1, 6).is_err());
    }

    #[test]
    fn the_largest_topic_fits() {
        let mut catalog = catalog(64, 256);
        let placed = place(&catalog, 65_536, 5).unwrap();
        let bytes = placed.clone();
        create(&mut catalog, "large", placed);
        let topic = catalog.topic_by_name("large").unwrap();
        let command = Command::CreateTopic(topic.spec.clone()).encode();
        assert!(command.len() <= pyralog_core::limits::MAX_BATCH_BYTES - 1024, "{} bytes", command.len());
        assert_eq!(Catalog::decode(&catalog.encode()).unwrap(), catalog);
        assert_eq!(differences(bytes.iter(), 64, 256).0, 0);
    }

    /// A shard places it between requests: a look at all partitions for each leader that is evened out would take seconds.
    #[test]
    fn the_largest_topic_is_placed_in_uneven_racks() {
        let rack = |node: usize| ["a", "b", "c", "b"][node % 4];
        let racks: Vec<&str> = (0..64).map(rack).collect();
        for copies in [2, 3, 5] {
            let placed = place(&racked(&racks, 4), 65_536, copies).unwrap();
            let mut led = BTreeMap::new();
            let leaders = placed.iter().filter(|(_, leads)| *leads);
            leaders.for_each(|(replica, _)| *led.entry(replica.node).or_insert(0u32) += 1);
            assert!(led.len() == 64 && led.values().all(|count| *count == 1024), "{copies}: {led:?}");
        }
    }

    #[test]
    fn the_fullest_node_hands_over_first() {
        let at = |n, leader, preferred, ready| Leadership {
            group: GroupId::new(1, n),
            leader: NodeId(leader),
            preferred: NodeId(preferred),
            ready,
        };
        // Node 3 came back: 1 leads four partitions, 2 leads three.
        let now = [
            at(0, 1, 1, true),
            at(1, 2, 3, true),
            at(2, 1, 3, true),
            at(3, 2, 2, true),
            at(4, 1, 3, false),
            at(5, 2, 2, true),
            at(6, 1, 1, true),
        ];
        assert_eq!(rebalance(&now, 1), [(GroupId::new(1, 2), NodeId(3))]);
        assert_eq!(rebalance(&now, 9), [(GroupId::new(1, 2), NodeId(3)), (GroupId::new(1, 1), NodeId(3))]);
        assert_eq!(rebalance(&now, 0), []);
    }
}
