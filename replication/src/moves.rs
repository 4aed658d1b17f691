//! Which replicas move when nodes come, go, or hold too much: a pure function of what is where, the same on every node.

use std::collections::{BTreeMap, VecDeque};

use pyralog_core::GroupId;

use crate::metadata::Replica;

/// A node that may hold replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host<'a> {
    /// Its id.
    pub node: u32,
    /// Its number of shards.
    pub shards: u16,
    /// What fails together with it; empty = nothing else.
    pub rack: &'a str,
    /// It is to hold nothing any more.
    pub leaves: bool,
}

/// A partition as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The partition.
    pub group: GroupId,
    /// Its replicas, the preferred leader first.
    pub replicas: Vec<Replica>,
    /// How many it is to have.
    pub copies: usize,
    /// What one replica holds, bytes.
    pub bytes: u64,
}

/// A partition whose replicas are to be others, or in another order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// The partition.
    pub group: GroupId,
    /// Its replicas now.
    pub from: Vec<Replica>,
    /// Its replicas then, the preferred leader first.
    pub to: Vec<Replica>,
    /// What has to be copied, bytes.
    pub bytes: u64,
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Every replica of a partition needs a node of its own.
    #[error(
        "partition {group} has {copies} replicas and {left} nodes would be left: add nodes first, or lower the topic's \
         replication factor"
    )]
    TooFewNodes {
        /// The first partition that has too many.
        group: GroupId,
        /// Its replicas.
        copies: usize,
        /// Nodes that stay.
        left: usize,
    },
    /// A replica lies on a node that nobody knows.
    #[error("partition {group} has a replica on node {node}, which is not registered")]
    UnknownNode {
        /// The partition.
        group: GroupId,
        /// The node.
        node: u32,
    },
}

/// The moves after which every partition has as many replicas as it is to have, no node that leaves holds anything, the replicas of a partition lie in as many racks as there
/// are, and the numbers of replicas on the nodes that stay differ by at most one, unless racks stand against it; then
/// leaders are evened out by the order of replicas, which moves nothing. Few bytes are moved: what has to move goes
/// where there is least, and to even out, the smallest partitions go first.
///
/// # Errors
/// Too few nodes are left for a partition, or one is not known.
pub fn plan(hosts: &[Host<'_>], holdings: &[Holding]) -> Result<Vec<Move>, PlanError> {
    let mut plan = Plan::new(hosts, holdings)?;
    plan.resize();
    plan.leave();
    plan.spread_over_racks();
    plan.even_out();
    even_out_leaders(plan.nodes.keys().copied(), &mut plan.now);
    Ok(plan.moves())
}

/// The moves after which every partition has as many replicas as it is to have, and nothing else has changed: who comes goes to a rack
/// without one, and where there is least; who goes is no leader, unless it shares a rack.
///
/// # Errors
/// As [`plan`].
pub fn resize(hosts: &[Host<'_>], holdings: &[Holding]) -> Result<Vec<Move>, PlanError> {
    let mut plan = Plan::new(hosts, holdings)?;
    plan.resize();
    Ok(plan.moves())
}

struct Plan<'a> {
    hosts: BTreeMap<u32, Host<'a>>,
    holdings: &'a [Holding],
    /// Of each holding, what it is to be.
    now: Vec<Vec<Replica>>,
    /// Replicas on each shard of the nodes that stay.
    shards: BTreeMap<Replica, u32>,
    /// Replicas on each node that stays.
    nodes: BTreeMap<u32, u32>,
}

impl<'a> Plan<'a> {
    fn new(hosts: &[Host<'a>], holdings: &'a [Holding]) -> Result<Self, PlanError> {
        let hosts: BTreeMap<u32, Host<'a>> = hosts.iter().map(|host| (host.node, *host)).collect();
        let stay = hosts.values().filter(|host| !host.leaves && host.shards > 0);
        let nodes: BTreeMap<u32, u32> = stay.clone().map(|host| (host.node, 0)).collect();
        let shards =
            stay.flat_map(|host| (0..host.shards).map(move |shard| (Replica { node: host.node, shard }, 0)));
        let mut plan = Self { holdings, now: Vec::new(), shards: shards.collect(), nodes, hosts };
        for holding in holdings {
            let (group, copies, left) = (holding.group, holding.copies, plan.nodes.len());
            if copies > left {
                return Err(PlanError::TooFewNodes { group, copies, left });
            }
            for replica in &holding.replicas {
                if !plan.hosts.contains_key(&replica.node) {
                    return Err(PlanError::UnknownNode { group, node: replica.node });
                }
                plan.count(*replica, 1);
            }
            plan.now.push(holding.replicas.clone());
        }
        Ok(plan)
    }

    /// Counts a replica in, or out again. One on a node that leaves counts nowhere.
    fn count(&mut self, replica: Replica, by: i32) {
        let add = |count: &mut u32| *count = count.saturating_add_signed(by);
        self.shards.get_mut(&replica).map(add);
        self.nodes.get_mut(&replica.node).map(add);
    }

    fn rack(&self, node: u32) -> Option<&'a str> {
        self.hosts.get(&node).map(|host| host.rack).filter(|rack| !rack.is_empty())
    }

    /// How many replicas of the list share a rack with `node`, that of `without` left out.
    fn in_rack_of(&self, node: u32, replicas: &[Replica], without: u32) -> usize {
        let Some(rack) = self.rack(node) else { return 0 };
        let others = replicas.iter().filter(|other| other.node != without && other.node != node);
        others.filter(|other| self.rack(other.node) == Some(rack)).count()
    }

    /// The least loaded shard of a node.
    fn shard_of(&self, node: u32) -> Option<Replica> {
        let first = Replica { node, shard: 0 };
        let last = Replica { node, shard: u16::MAX };
        self.shards.range(first..=last).min_by_key(|(_, count)| **count).map(|(replica, _)| *replica)
    }

    /// Where the replica at `place` of a holding would go best: another node, which has none of it.
    fn best_for(&self, at: usize, place: usize) -> Option<Replica> {
        self.best_beside(self.now.get(at)?, self.now.get(at)?.get(place)?.node)
    }

    /// Where one more replica would go best beside these, of which the one on node `gone` does not count.
    fn best_beside(&self, replicas: &[Replica], gone: u32) -> Option<Replica> {
        let free = self.nodes.iter().filter(|(node, _)| replicas.iter().all(|held| held.node != **node));
        let best =
            free.min_by_key(|(node, count)| (self.in_rack_of(**node, replicas, gone), **count, **node));
        best.and_then(|(node, _)| self.shard_of(*node))
    }

    fn put(&mut self, at: usize, place: usize, to: Replica) {
        let Some(slot) = self.now.get_mut(at).and_then(|replicas| replicas.get_mut(place)) else { return };
        let from = std::mem::replace(slot, to);
        self.count(from, -1);
        self.count(to, 1);
    }

    /// Every partition gets as many replicas as it is to have.
    fn resize(&mut self) {
        // What goes makes room for what comes.
        for (at, holding) in self.holdings.iter().enumerate() {
            while let Some(place) = self.place_too_many(at, holding.copies)
                && let Some(replicas) = self.now.get_mut(at)
            {
                let gone = replicas.remove(place);
                self.count(gone, -1);
            }
        }
        for (at, holding) in self.holdings.iter().enumerate() {
            while let Some(replicas) = self.now.get(at).filter(|replicas| replicas.len() < holding.copies)
                && let Some(to) = self.best_beside(replicas, 0)
            {
                self.now.get_mut(at).into_iter().for_each(|replicas| replicas.push(to));
                self.count(to, 1);
            }
        }
    }

    /// The place of the replica that is best without, if there are more than `copies`.
    fn place_too_many(&self, at: usize, copies: usize) -> Option<usize> {
        let replicas = self.now.get(at).filter(|replicas| replicas.len() > copies.max(1))?;
        let worth = |(place, replica): &(usize, &Replica)| {
            let count = self.nodes.get(&replica.node);
            let crowd = self.in_rack_of(replica.node, replicas, replica.node);
            (count.is_none(), crowd, *place > 0, count.copied(), *place)
        };
        replicas.iter().enumerate().max_by_key(worth).map(|(place, _)| place)
    }

    /// Nothing stays on a node that leaves.
    fn leave(&mut self) {
        for at in 0..self.now.len() {
            for place in 0..self.now.get(at).map_or(0, Vec::len) {
                let replica = self.now.get(at).and_then(|replicas| replicas.get(place));
                let leaves = replica.is_some_and(|replica| !self.nodes.contains_key(&replica.node));
                if leaves && let Some(to) = self.best_for(at, place) {
                    self.put(at, place, to);
                }
            }
        }
    }

    /// Two replicas in one rack, where another rack has none, are one too many.
    fn spread_over_racks(&mut self) {
        for at in 0..self.now.len() {
            // Followers first: a leader that moves is a hand-over more.
            for place in (0..self.now.get(at).map_or(0, Vec::len)).rev() {
                let Some(replicas) = self.now.get(at) else { continue };
                let Some(replica) = replicas.get(place) else { continue };
                let crowd = self.in_rack_of(replica.node, replicas, replica.node);
                if let Some(to) = self.best_for(at, place)
                    && self.in_rack_of(to.node, replicas, replica.node) < crowd
                {
                    self.put(at, place, to);
                }
            }
        }
    }

    /// Replicas go from nodes with more to nodes with fewer, as long as that evens out.
    fn even_out(&mut self) {
        let mut by_bytes: Vec<usize> = (0..self.now.len()).collect();
        by_bytes.sort_by_key(|at| self.holdings.get(*at).map(|holding| (holding.bytes, holding.group)));
        while let Some((at, place, to)) = self.next_step(&by_bytes) {
            self.put(at, place, to);
        }
    }

    /// From the fullest node that can give to the emptiest that can take. Each step lessens the sum of the squares of
    /// the counts, so they end.
    fn next_step(&self, by_bytes: &[usize]) -> Option<(usize, usize, Replica)> {
        let mut pairs: Vec<(u32, u32, u32)> = Vec::new();
        for (giver, more) in &self.nodes {
            for (taker, less) in self.nodes.iter().filter(|(_, less)| **less + 1 < *more) {
                pairs.push((more - less, *giver, *taker));
            }
        }
        pairs.sort_by_key(|(apart, giver, taker)| (std::cmp::Reverse(*apart), *giver, *taker));
        pairs.into_iter().find_map(|(_, giver, taker)| {
            by_bytes
                .iter()
                .find_map(|at| Some((*at, self.place_to_give(*at, giver, taker)?, self.shard_of(taker)?)))
        })
    }

    /// The place of `giver`'s replica of a holding, if `taker` may have it.
    fn place_to_give(&self, at: usize, giver: u32, taker: u32) -> Option<usize> {
        let replicas = self.now.get(at)?;
        let place = replicas.iter().position(|replica| replica.node == giver)?;
        let has = replicas.iter().any(|replica| replica.node == taker);
        let crowds = self.in_rack_of(taker, replicas, giver) > self.in_rack_of(giver, replicas, giver);
        (!has && !crowds).then_some(place)
    }

    fn moves(self) -> Vec<Move> {
        let pairs = self.holdings.iter().zip(self.now);
        let changed = pairs.filter(|(holding, now)| holding.replicas != *now);
        let one = |(holding, to): (&Holding, Vec<Replica>)| {
            let new = to.iter().filter(|replica| !holding.replicas.contains(replica)).count();
            let bytes = holding.bytes.saturating_mul(new as u64);
            Move { group: holding.group, from: holding.replicas.clone(), to, bytes }
        };
        changed.map(one).collect()
    }
}

/// The first of a partition's replicas leads: who of these nodes leads too much steps back behind who leads least.
pub(crate) fn even_out_leaders(nodes: impl Iterator<Item = u32>, partitions: &mut [Vec<Replica>]) {
    let mut leaders =
        Leaders { led: nodes.map(|node| (node, 0)).collect(), ways: BTreeMap::new(), partitions };
    // The first partition of a way is taken first: it is noted last.
    for at in (0..leaders.partitions.len()).rev() {
        leaders.note(at);
    }
    while let Some(path) = leaders.path() {
        path.windows(2).for_each(|step| {
            if let [from, to] = *step {
                leaders.step(from, to);
            }
        });
    }
}

/// Who leads what, and who could instead.
struct Leaders<'a> {
    led: BTreeMap<u32, u32>,
    /// By leader and by another node of its partitions, those partitions. Some have another leader by now.
    ways: BTreeMap<u32, BTreeMap<u32, Vec<usize>>>,
    partitions: &'a mut [Vec<Replica>],
}

impl Leaders<'_> {
    /// Counts the leader of a partition in.
    fn note(&mut self, at: usize) {
        let Some([leader, others @ ..]) = self.partitions.get(at).map(Vec::as_slice) else { return };
        *self.led.entry(leader.node).or_default() += 1;
        let ways = self.ways.entry(leader.node).or_default();
        others.iter().for_each(|other| ways.entry(other.node).or_default().push(at));
    }

    /// Has a partition that `from` leads be led by `to`.
    fn step(&mut self, from: u32, to: u32) {
        let way = self.ways.get_mut(&from).and_then(|ways| ways.get_mut(&to));
        let Some(at) = way.and_then(Vec::pop) else { return };
        let Some(replicas) = self.partitions.get_mut(at) else { return };
        if let Some(place) = replicas.iter().position(|replica| replica.node == to) {
            replicas.swap(0, place);
            self.led.entry(from).and_modify(|count| *count -= 1);
            self.note(at);
        }
    }

    /// Nodes by which one leader goes from the first, which leads most, to the last, which leads two less at least; over others where
    /// none goes directly.
    fn path(&mut self) -> Option<Vec<u32>> {
        let mut givers: Vec<(u32, u32)> = self.led.iter().map(|(node, count)| (*count, *node)).collect();
        givers.sort_by_key(|(count, node)| (std::cmp::Reverse(*count), *node));
        givers.into_iter().find_map(|(most, giver)| {
            let mut come_from = BTreeMap::from([(giver, giver)]);
            let mut reached = VecDeque::from([giver]);
            while let Some(node) = reached.pop_front() {
                if self.led.get(&node).is_some_and(|count| count + 1 < most) {
                    return Some(way_back(&come_from, node));
                }
                for (other, way) in self.ways.get_mut(&node).into_iter().flatten() {
                    let leads = |at: &usize| {
                        self.partitions
                            .get(*at)
                            .and_then(|list| list.first())
                            .is_some_and(|first| first.node == node)
                    };
                    while way.pop_if(|at| !leads(at)).is_some() {}
                    if !way.is_empty() && !come_from.contains_key(other) {
                        come_from.insert(*other, node);
                        reached.push_back(*other);
                    }
                }
            }
            None
        })
    }
}

/// The nodes from where it began to `node`.
fn way_back(come_from: &BTreeMap<u32, u32>, node: u32) -> Vec<u32> {
    let before = |node: &u32| come_from.get(node).copied().filter(|before| before != node);
    let mut path: Vec<u32> = std::iter::successors(Some(node), before).collect();
    path.reverse();
    path
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const RACKS: [&str; 4] = ["a", "b", "c", "d"];

    fn hosts(count: u32) -> Vec<Host<'static>> {
        (1..=count).map(|node| Host { node, shards: 2, rack: "", leaves: false }).collect()
    }

    fn holding(partition: u32, nodes: &[u32], bytes: u64) -> Holding {
        let replicas = nodes.iter().map(|node| Replica { node: *node, shard: 0 }).collect();
        Holding { group: GroupId::new(1, partition), copies: nodes.len(), replicas, bytes }
    }

    fn after(holdings: &[Holding], moves: &[Move]) -> Vec<Vec<Replica>> {
        let moved: BTreeMap<GroupId, &Move> = moves.iter().map(|one| (one.group, one)).collect();
        let to = |holding: &Holding| {
            moved.get(&holding.group).map_or_else(|| holding.replicas.clone(), |one| one.to.clone())
        };
        holdings.iter().map(to).collect()
    }

    fn counts(hosts: &[Host<'_>], of: impl Iterator<Item = u32>) -> Vec<u32> {
        let mut counts: BTreeMap<u32, u32> =
            hosts.iter().filter(|host| !host.leaves).map(|host| (host.node, 0)).collect();
        of.for_each(|node| *counts.entry(node).or_default() += 1);
        counts.into_values().collect()
    }

    fn apart(counts: &[u32]) -> u32 {
        counts.iter().max().unwrap_or(&0) - counts.iter().min().unwrap_or(&0)
    }

    proptest! {
        #[test]
        fn nothing_stays_on_who_leaves_and_the_rest_is_even(
            nodes in 3u32..9, leaving in proptest::collection::btree_set(1u32..9, 0..3), racks in 0usize..5,
            partitions in proptest::collection::vec((1u64..1000, 1usize..4, 0u32..9, 0usize..6), 1..60),
        ) {
            let mut hosts = hosts(nodes);
            for host in &mut hosts {
                host.leaves = leaving.contains(&host.node);
                host.rack = if racks == 0 { "" } else { RACKS[host.node as usize % racks.min(4)] };
            }
            let stay: Vec<Host<'_>> = hosts.iter().filter(|host| !host.leaves).copied().collect();
            let holdings: Vec<Holding> = (0..).zip(&partitions).map(|(number, (bytes, copies, first, wanted))| {
                let list: Vec<u32> = (0..*copies as u32).map(|copy| (first + copy) % nodes + 1).collect();
                // Some are to have another number.
                let copies = if (1..4).contains(wanted) { *wanted } else { *copies };
                Holding { copies, ..holding(number, &list, *bytes) }
            }).collect();
            let copies = holdings.iter().map(|holding| holding.copies).max().unwrap();
            let plan = plan(&hosts, &holdings);
            if copies > stay.len() {
                let refused = matches!(plan, Err(PlanError::TooFewNodes { .. }));
                prop_assert!(refused);
                return Ok(());
            }
            let moves = plan.unwrap();
            prop_assert_eq!(&super::plan(&hosts, &holdings).unwrap(), &moves, "the same again");
            let resized = after(&holdings, &resize(&hosts, &holdings).unwrap());
            for (holding, resized) in holdings.iter().zip(&resized) {
                prop_assert_eq!(resized.len(), holding.copies);
                let kept = resized.iter().filter(|replica| holding.replicas.contains(replica)).count();
                prop_assert_eq!(kept, holding.copies.min(holding.replicas.len()), "one comes or one goes");
            }
            let now = after(&holdings, &moves);
            for (replicas, holding) in now.iter().zip(&holdings) {
                prop_assert_eq!(replicas.len(), holding.copies);
                let on: BTreeSet<u32> = replicas.iter().map(|replica| replica.node).collect();
                prop_assert_eq!(on.len(), replicas.len(), "no node twice");
                prop_assert!(on.iter().all(|node| stay.iter().any(|host| host.node == *node)));
                prop_assert!(replicas.iter().all(|replica| replica.shard < 2));
                if racks > 0 {
                    let there: BTreeSet<&str> = stay.iter().map(|host| host.rack).collect();
                    let rack = |node: &u32| stay.iter().find(|host| host.node == *node).unwrap().rack;
                    let used: BTreeSet<&str> = on.iter().map(rack).collect();
                    prop_assert_eq!(used.len(), there.len().min(replicas.len()), "{:?}", replicas);
                }
            }
            if racks == 0 {
                let replicas = counts(&hosts, now.iter().flatten().map(|replica| replica.node));
                prop_assert!(apart(&replicas) <= 1, "{:?}", replicas);
            }
            // What is even stays as it is.
            let again: Vec<Holding> = holdings.iter().zip(&now)
                .map(|(holding, replicas)| Holding { replicas: replicas.clone(), ..holding.clone() }).collect();
            prop_assert_eq!(super::plan(&hosts, &again).unwrap(), []);
            for one in &moves {
                let new = one.to.iter().filter(|replica| !one.from.contains(replica)).count() as u64;
                let whole = holdings.iter().find(|holding| holding.group == one.group).unwrap().bytes;
                prop_assert_eq!(one.bytes, new * whole);
            }
        }
    }

    #[test]
    fn a_new_node_gets_its_share_of_the_smallest() {
        let mut holdings: Vec<Holding> =
            (0..8).map(|number| holding(number, &[number % 2 + 1], 1 << number)).collect();
        holdings.reverse();
        let moves = plan(&hosts(3), &holdings).unwrap();
        assert_eq!(moves.iter().map(|one| one.bytes).sum::<u64>(), 1 + 2, "{moves:?}");
        assert!(moves.iter().all(|one| one.to.iter().all(|replica| replica.node == 3)));
        let shards: BTreeSet<u16> = moves.iter().map(|one| one.to[0].shard).collect();
        assert_eq!(shards.len(), 2, "both of its shards");
    }

    #[test]
    fn a_topic_gets_more_replicas_and_fewer_evenly_and_keeps_its_leaders() {
        let mut hosts = hosts(5);
        for (host, rack) in hosts.iter_mut().zip(["a", "a", "b", "b", "c"]) {
            host.rack = rack;
        }
        let lists = [[1, 3], [2, 4], [3, 1], [4, 2], [5, 1], [2, 5]];
        let grows: Vec<Holding> =
            (0..).zip(lists).map(|(at, list)| Holding { copies: 3, ..holding(at, &list, 7) }).collect();
        let moves = resize(&hosts, &grows).unwrap();
        assert!(moves.iter().all(|one| one.bytes == 7 && one.to[..2] == one.from), "{moves:?}");
        let grown = after(&grows, &moves);
        let rack = |replica: &Replica| hosts[replica.node as usize - 1].rack;
        assert!(
            grown.iter().all(|list| list.iter().map(rack).collect::<BTreeSet<_>>().len() == 3),
            "{grown:?}"
        );
        let shrinks: Vec<Holding> = (0..)
            .zip(&grown)
            .map(|(at, list)| Holding {
                group: GroupId::new(1, at),
                replicas: list.clone(),
                copies: 2,
                bytes: 7,
            })
            .collect();
        let moves = resize(&hosts, &shrinks).unwrap();
        assert!(moves.iter().all(|one| one.bytes == 0 && one.to[0] == one.from[0]), "{moves:?}");
        assert!(
            apart(&counts(&hosts, after(&shrinks, &moves).iter().flatten().map(|r| r.node))) <= 1,
            "{moves:?}"
        );
        // Two in a rack are one too many, also when one of them leads.
        let crowded = [Holding { copies: 2, ..holding(0, &[1, 3, 2], 1) }];
        let moves = resize(&hosts, &crowded).unwrap();
        assert_eq!(after(&crowded, &moves)[0].iter().map(|r| r.node).collect::<Vec<_>>(), [1, 3]);
        let too_many = resize(&hosts, &[Holding { copies: 6, ..holding(0, &[1, 2], 1) }]);
        assert!(too_many.unwrap_err().to_string().contains("add nodes first"));
    }

    #[test]
    fn leaders_are_evened_out_by_order_alone_and_over_a_third_node() {
        // Node 1 leads three, 2 two and 3 one; 1 and 3 have no partition in common.
        let holdings = [
            holding(0, &[1, 2], 9),
            holding(1, &[1], 9),
            holding(2, &[1], 9),
            holding(3, &[2, 3], 9),
            holding(4, &[2, 3], 9),
            holding(5, &[3], 9),
        ];
        let hosts = hosts(3);
        let moves = plan(&hosts, &holdings).unwrap();
        let now = after(&holdings, &moves);
        assert_eq!(counts(&hosts, now.iter().map(|replicas| replicas[0].node)), [2, 2, 2], "{now:?}");
        assert!(moves.iter().all(|one| one.bytes == 0), "{moves:?}");
    }

    #[test]
    fn too_few_nodes_and_unknown_ones_are_told() {
        let mut three = hosts(3);
        three[2].leaves = true;
        let error = plan(&three, &[holding(0, &[1, 2, 3], 1)]).unwrap_err();
        assert_eq!(error, PlanError::TooFewNodes { group: GroupId::new(1, 0), copies: 3, left: 2 });
        assert!(error.to_string().contains("add nodes first"), "{error}");
        let error = plan(&hosts(2), &[holding(0, &[7], 1)]).unwrap_err();
        assert_eq!(error, PlanError::UnknownNode { group: GroupId::new(1, 0), node: 7 });
        assert_eq!(plan(&hosts(3), &[]).unwrap(), []);
    }

    #[test]
    fn the_largest_cluster_has_a_plan() {
        let mut hosts = hosts(64);
        let holdings: Vec<Holding> = (0..50_000u32)
            .map(|number| {
                holding(number, &[number % 62 + 1, (number + 1) % 62 + 1, (number + 7) % 62 + 1], 1)
            })
            .collect();
        hosts[5].leaves = true;
        let moves = plan(&hosts, &holdings).unwrap();
        let now = after(&holdings, &moves);
        let replicas = counts(&hosts, now.iter().flatten().map(|replica| replica.node));
        assert!(replicas.len() == 63 && apart(&replicas) <= 1, "{replicas:?}");
        assert!(apart(&counts(&hosts, now.iter().map(|replicas| replicas[0].node))) <= 1);
        // What the node that leaves held, and the shares of the two that came.
        let copied: u64 = moves.iter().map(|one| one.bytes).sum();
        assert!(copied <= 150_000 / 62 + 2 * 150_000 / 63 + 63, "{copied}");
    }
}
