//! Which nodes the replicas of a topic go to where some nodes fail together.

use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Nodes that fail together, while a topic is placed.
#[derive(Default)]
struct Rack {
    /// As indexes, in the order in which they are dealt to.
    nodes: Vec<usize>,
    /// Replicas of other topics on them.
    before: usize,
    /// Replicas of this topic.
    replicas: usize,
    /// Most of them.
    most: usize,
}

impl Rack {
    /// Whose nodes have less of this topic, and then of all: ratios, without dividing.
    fn emptier(&self, other: &Self) -> Ordering {
        let (own, others) = (self.nodes.len(), other.nodes.len());
        let of_topic = (self.replicas * others).cmp(&(other.replicas * own));
        of_topic.then((self.before * others).cmp(&(other.before * own)))
    }
}

/// The nodes of each partition, as indexes into `nodes`, which are racks and what other topics have there, those with least first; none
/// where racks make no difference. An empty rack is one of its own.
///
/// The replicas of a partition lie in as many racks as there are, and no rack has two more than another that has room. As far as
/// that admits, the numbers of replicas on the nodes differ by at most one; between the nodes of a rack they always do.
pub(crate) fn deal<'a>(
    nodes: impl Iterator<Item = (&'a str, u32)>,
    partitions: usize,
    copies: usize,
) -> Option<Vec<Vec<usize>>> {
    let mut racks = racks(nodes);
    if racks.len() < 2 || racks.iter().all(|rack| rack.nodes.len() == 1) {
        return None;
    }
    share_out(&mut racks, partitions, copies);
    // The replicas of one rack lie one behind the other on a circle of the partitions, and those of the next rack behind them: so
    // each partition gets as many as it is to have, and of each rack the same number as the others, or one more.
    let mut lists = vec![Vec::with_capacity(copies); partitions];
    let mut begin = 0;
    for rack in &racks {
        let mut cards = rack.nodes.iter().copied().cycle();
        for (partition, list) in lists.iter_mut().enumerate() {
            let behind = (partition + partitions - begin) % partitions;
            list.extend(cards.by_ref().take(rack.replicas.saturating_sub(behind).div_ceil(partitions)));
        }
        begin = (begin + rack.replicas) % partitions;
    }
    Some(lists)
}

fn racks<'a>(nodes: impl Iterator<Item = (&'a str, u32)>) -> Vec<Rack> {
    let mut racks: Vec<Rack> = Vec::new();
    let mut named: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, (name, before)) in nodes.enumerate() {
        let new = racks.len();
        let at = if name.is_empty() { new } else { *named.entry(name).or_insert(new) };
        if at == new {
            racks.push(Rack::default());
        }
        if let Some(rack) = racks.get_mut(at) {
            rack.nodes.push(index);
            rack.before += before as usize;
        }
    }
    racks
}

/// How many replicas each rack gets. Every partition has as many in each rack as fit in all of them; what is left over goes to those
/// with more room, at most one more of a partition, where the nodes have least.
fn share_out(racks: &mut [Rack], partitions: usize, copies: usize) {
    let in_all = |level: usize| racks.iter().map(|rack| rack.nodes.len().min(level)).sum::<usize>();
    let level = (0..copies).take_while(|level| in_all(level + 1) <= copies).count();
    for rack in racks.iter_mut() {
        rack.replicas = partitions * rack.nodes.len().min(level);
        rack.most = partitions * rack.nodes.len().min(level + 1);
    }
    let given: usize = racks.iter().map(|rack| rack.replicas).sum();
    for _ in given..partitions * copies {
        let room = racks.iter_mut().filter(|rack| rack.replicas < rack.most);
        if let Some(emptiest) = room.min_by(|a, b| a.emptier(b)) {
            emptiest.replicas += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dealt(racks: &[&str], partitions: usize, copies: usize) -> Option<Vec<Vec<usize>>> {
        deal(racks.iter().map(|rack| (*rack, 0)), partitions, copies)
    }

    #[test]
    fn racks_that_separate_nothing_make_no_difference() {
        for racks in [&["", "", ""][..], &["a", "a", "a"], &["a", "b", "c"], &["a", "", "c"], &["a"]] {
            assert_eq!(dealt(racks, 4, 1), None, "{racks:?}");
        }
    }

    #[test]
    fn the_only_node_of_a_rack_has_one_of_each_and_no_more() {
        let lists = dealt(&["a", "a", "b", "a"], 6, 2).unwrap();
        for (partition, list) in lists.iter().enumerate() {
            assert_eq!(list[..], [[0, 1, 3][partition % 3], 2], "partition {partition}");
        }
    }

    #[test]
    fn what_is_left_over_goes_where_there_is_least() {
        let racks = [("a", 3), ("a", 3), ("b", 1), ("b", 1), ("c", 2), ("c", 2)];
        assert_eq!(deal(racks.into_iter(), 1, 2).unwrap(), [[2, 4]]);
        assert_eq!(deal(racks.into_iter(), 1, 4).unwrap(), [[0, 2, 3, 4]]);
    }
}
