//! Where the replicas of a topic's partitions are: explicit, never a hash (decision D9), and packed.

use std::collections::BTreeSet;

use pyralog_core::limits::{MAX_PARTITIONS_PER_TOPIC, MAX_REPLICATION_FACTOR};
use rkyv::{Archive, Deserialize, Serialize};

/// A place for a replica.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[rkyv(attr(allow(missing_docs)))]
pub struct Replica {
    /// The node.
    pub node: u32,
    /// The shard on that node.
    pub shard: u16,
}

/// The replicas of every partition of one topic, in order; the first is the preferred leader.
///
/// Two bytes a replica: so the largest topic still fits one record of the metadata group, and a copy is cheap.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[rkyv(attr(allow(missing_docs)))]
pub struct Assignment {
    /// Replicas of each partition.
    replication_factor: u8,
    /// Every place in use, ascending.
    homes: Vec<Replica>,
    /// Per partition `replication_factor` indexes into `homes`.
    slots: Vec<u16>,
}

impl Assignment {
    /// Packs the replicas of each partition. All partitions have as many.
    ///
    /// # Errors
    /// What is wrong with the lists; see [`Self::check`].
    pub fn new(partitions: &[Vec<Replica>]) -> Result<Self, String> {
        let factor = partitions.first().map_or(0, Vec::len);
        let factor = u8::try_from(factor).map_err(|_| format!("{factor} replicas of a partition"))?;
        if partitions.iter().any(|replicas| replicas.len() != usize::from(factor)) {
            return Err("partitions with different numbers of replicas".into());
        }
        let homes: BTreeSet<Replica> = partitions.iter().flatten().copied().collect();
        let homes: Vec<Replica> = homes.into_iter().collect();
        let slot = |replica: &Replica| {
            let place = homes.binary_search(replica).ok().and_then(|place| u16::try_from(place).ok());
            place.ok_or_else(|| format!("replicas in {} places", homes.len()))
        };
        let slots = partitions.iter().flatten().map(slot).collect::<Result<_, _>>()?;
        let assignment = Self { replication_factor: factor, homes, slots };
        assignment.check()?;
        Ok(assignment)
    }

    /// The same with more partitions behind those that there are.
    ///
    /// # Errors
    /// What is wrong with them; see [`Self::check`].
    pub fn extended(&self, added: &[Vec<Replica>]) -> Result<Self, String> {
        let known = (0..self.partitions()).map(|partition| self.replicas(partition).collect());
        Self::new(&known.chain(added.iter().cloned()).collect::<Vec<_>>())
    }

    /// The same with other replicas of one partition, as many as it has.
    ///
    /// # Errors
    /// What is wrong with them; see [`Self::check`].
    pub fn with(&self, partition: u32, replicas: &[Replica]) -> Result<Self, String> {
        let factor = usize::from(self.replication_factor);
        let first = (partition as usize).saturating_mul(factor);
        if replicas.len() != factor || first >= self.slots.len() {
            return Err(format!("{} replicas of partition {partition}", replicas.len()));
        }
        let replaced = first..first + factor;
        let kept = self.slots.iter().enumerate().filter(|(at, _)| !replaced.contains(at));
        let mut homes: BTreeSet<Replica> = kept.map(|(_, slot)| self.home(*slot)).collect();
        homes.extend(replicas);
        let homes: Vec<Replica> = homes.into_iter().collect();
        // Where each place is now, by where it was.
        let place =
            |home: &Replica| homes.binary_search(home).ok().and_then(|place| u16::try_from(place).ok());
        let moved: Vec<Option<u16>> = self.homes.iter().map(place).collect();
        let slots = self.slots.iter().enumerate().map(|(at, slot)| match replaced.contains(&at) {
            true => replicas.get(at - first).and_then(place),
            false => moved.get(usize::from(*slot)).copied().flatten(),
        });
        let slots =
            slots.collect::<Option<_>>().ok_or_else(|| format!("replicas in {} places", homes.len()))?;
        let assignment = Self { replication_factor: self.replication_factor, homes, slots };
        assignment.check()?;
        Ok(assignment)
    }

    /// Replicas of each partition.
    pub fn replication_factor(&self) -> u8 {
        self.replication_factor
    }

    /// How many partitions.
    pub fn partitions(&self) -> u32 {
        (self.slots.len() / usize::from(self.replication_factor.max(1))) as u32
    }

    /// The replicas of a partition, the preferred leader first; none of a partition that is not there.
    pub fn replicas(&self, partition: u32) -> impl ExactSizeIterator<Item = Replica> + Clone + '_ {
        let factor = usize::from(self.replication_factor);
        let first = (partition as usize).saturating_mul(factor);
        let slots = self.slots.get(first..first.saturating_add(factor)).unwrap_or_default();
        slots.iter().map(|slot| self.home(*slot))
    }

    /// The preferred leader of a partition.
    pub fn preferred_leader(&self, partition: u32) -> Option<Replica> {
        self.replicas(partition).next()
    }

    /// The shard of `node` that holds a replica of this partition.
    pub fn shard_on(&self, node: u32, partition: u32) -> Option<u16> {
        self.replicas(partition).find(|replica| replica.node == node).map(|replica| replica.shard)
    }

    /// Every place in use, ascending.
    pub fn homes(&self) -> &[Replica] {
        &self.homes
    }

    /// Every replica of every partition, and whether it is the preferred leader.
    pub fn iter(&self) -> impl Iterator<Item = (Replica, bool)> + '_ {
        let factor = usize::from(self.replication_factor.max(1));
        self.slots.iter().enumerate().map(move |(at, slot)| (self.home(*slot), at.is_multiple_of(factor)))
    }

    /// Indexes are checked when an assignment is made or decoded; one beyond the list would be no node.
    fn home(&self, slot: u16) -> Replica {
        self.homes.get(usize::from(slot)).copied().unwrap_or(Replica { node: 0, shard: 0 })
    }

    /// Whether it is what [`Self::new`] makes: bounds, every index good, no node twice in a partition, every home
    /// used and in order, so that an assignment has one encoding.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        let factor = usize::from(self.replication_factor);
        if factor == 0 || factor > usize::from(MAX_REPLICATION_FACTOR) {
            return Err(format!(
                "{factor} replicas of a partition; 1 to {MAX_REPLICATION_FACTOR} are allowed"
            ));
        }
        let partitions = self.slots.len() / factor;
        if partitions == 0 || partitions > MAX_PARTITIONS_PER_TOPIC as usize {
            return Err(format!("{partitions} partitions; 1 to {MAX_PARTITIONS_PER_TOPIC} are allowed"));
        }
        if !self.slots.len().is_multiple_of(factor) {
            return Err("the last partition lacks replicas".into());
        }
        if !self.homes.is_sorted_by(|a, b| a < b) {
            return Err("places out of order or twice".into());
        }
        let mut used = vec![false; self.homes.len()];
        for (partition, slots) in self.slots.chunks(factor).enumerate() {
            let mut nodes = [0; MAX_REPLICATION_FACTOR as usize];
            for (slot, seen) in slots.iter().zip(0..) {
                let (Some(home), Some(used)) =
                    (self.homes.get(usize::from(*slot)), used.get_mut(usize::from(*slot)))
                else {
                    return Err(format!("partition {partition} has a replica in a place that is not listed"));
                };
                *used = true;
                if nodes.iter().take(seen).any(|node| *node == home.node) {
                    return Err(format!("partition {partition} has two replicas on node {}", home.node));
                }
                if let Some(place) = nodes.get_mut(seen) {
                    *place = home.node;
                }
            }
        }
        match used.iter().all(|used| *used) {
            true => Ok(()),
            false => Err("a place without a replica".into()),
        }
    }
}
