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
    /// Its *slot* on that node, which never changes: [`on_shard`] says which shard has it. Below `MAX_SHARDS`.
    pub shard: u16,
}

/// The shard that has a slot on a node with so many shards. With another number of them replicas are on other shards, and
/// neither the catalogue nor the log of any group changes.
pub fn on_shard(slot: u16, shards: u16) -> u16 {
    slot % shards.max(1)
}

/// The replicas of every partition of one topic, in order; the first is the preferred leader.
///
/// Two bytes a replica: so the largest topic still fits one record of the metadata group, and a copy is cheap. While a topic is on its
/// way to another number of replicas some partitions have more than others.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[rkyv(attr(allow(missing_docs)))]
pub struct Assignment {
    /// Most replicas of a partition.
    width: u8,
    /// Every place in use, ascending.
    homes: Vec<Replica>,
    /// Per partition `width` indexes into `homes`, of which those behind its last replica are [`NOBODY`].
    slots: Vec<u16>,
}

/// No index of a place: there are not so many.
const NOBODY: u16 = u16::MAX;

/// The indexes of one partition, without what stands behind its last replica.
fn row(slots: &[u16]) -> &[u16] {
    let end = slots.iter().position(|slot| *slot == NOBODY).unwrap_or(slots.len());
    slots.get(..end).unwrap_or_default()
}

/// The index of a place.
fn place_among(homes: &[Replica], replica: &Replica) -> Result<u16, String> {
    let place = homes.binary_search(replica).ok().and_then(|place| u16::try_from(place).ok());
    place.filter(|place| *place != NOBODY).ok_or_else(|| format!("replicas in {} places", homes.len()))
}

impl Assignment {
    /// Packs the replicas of each partition. All partitions have as many.
    ///
    /// # Errors
    /// What is wrong with the lists; see [`Self::check`].
    pub fn new(partitions: &[Vec<Replica>]) -> Result<Self, String> {
        let first = partitions.first().map_or(0, Vec::len);
        if partitions.iter().any(|replicas| replicas.len() != first) {
            return Err("partitions with different numbers of replicas".into());
        }
        Self::pack(partitions)
    }

    /// The same of partitions with different numbers.
    fn pack(partitions: &[Vec<Replica>]) -> Result<Self, String> {
        let width = partitions.iter().map(Vec::len).max().unwrap_or(0);
        let homes: BTreeSet<Replica> = partitions.iter().flatten().copied().collect();
        let homes: Vec<Replica> = homes.into_iter().collect();
        let mut slots = Vec::with_capacity(partitions.len().saturating_mul(width));
        for replicas in partitions {
            let end = slots.len() + width;
            for replica in replicas {
                slots.push(place_among(&homes, replica)?);
            }
            slots.resize(end, NOBODY);
        }
        Self::checked(width, homes, slots)
    }

    fn checked(width: usize, homes: Vec<Replica>, slots: Vec<u16>) -> Result<Self, String> {
        let width = u8::try_from(width).map_err(|_| format!("{width} replicas of a partition"))?;
        let assignment = Self { width, homes, slots };
        assignment.check()?;
        Ok(assignment)
    }

    /// The same with more partitions behind those that there are.
    ///
    /// # Errors
    /// What is wrong with them; see [`Self::check`].
    pub fn extended(&self, added: &[Vec<Replica>]) -> Result<Self, String> {
        let known = (0..self.partitions()).map(|partition| self.replicas(partition).collect());
        Self::pack(&known.chain(added.iter().cloned()).collect::<Vec<_>>())
    }

    /// The same with other replicas of one partition.
    ///
    /// # Errors
    /// What is wrong with them; see [`Self::check`].
    pub fn with(&self, partition: u32, replicas: &[Replica]) -> Result<Self, String> {
        if partition >= self.partitions() {
            return Err(format!("{} replicas of partition {partition}", replicas.len()));
        }
        let rows = || (0..).zip(self.slots.chunks(usize::from(self.width.max(1))).map(row));
        let others = || rows().filter(|(number, _)| *number != partition).map(|(_, row)| row);
        let width = others().map(<[u16]>::len).max().unwrap_or(0).max(replicas.len());
        let mut homes: BTreeSet<Replica> = others().flatten().map(|slot| self.home(*slot)).collect();
        homes.extend(replicas);
        let homes: Vec<Replica> = homes.into_iter().collect();
        // Where each place is now, by where it was; one that is left by the partition is asked for by nobody.
        let moved: Vec<u16> =
            self.homes.iter().map(|home| place_among(&homes, home).unwrap_or(NOBODY)).collect();
        let slot = |slot: &u16| moved.get(usize::from(*slot)).copied().unwrap_or(NOBODY);
        let mut slots = Vec::with_capacity(self.partitions() as usize * width);
        for (number, row) in rows() {
            let end = slots.len() + width;
            match number == partition {
                true => {
                    for replica in replicas {
                        slots.push(place_among(&homes, replica)?);
                    }
                }
                false => slots.extend(row.iter().map(slot)),
            }
            slots.resize(end, NOBODY);
        }
        Self::checked(width, homes, slots)
    }

    /// Most replicas of a partition.
    pub fn width(&self) -> u8 {
        self.width
    }

    /// Whether every partition has so many replicas.
    pub fn is_even(&self, replicas: u8) -> bool {
        self.width == replicas && !self.slots.contains(&NOBODY)
    }

    /// How many partitions.
    pub fn partitions(&self) -> u32 {
        (self.slots.len() / usize::from(self.width.max(1))) as u32
    }

    /// The replicas of a partition, the preferred leader first; none of a partition that is not there.
    pub fn replicas(&self, partition: u32) -> impl ExactSizeIterator<Item = Replica> + Clone + '_ {
        let width = usize::from(self.width);
        let first = (partition as usize).saturating_mul(width);
        let slots = self.slots.get(first..first.saturating_add(width)).unwrap_or_default();
        row(slots).iter().map(|slot| self.home(*slot))
    }

    /// The preferred leader of a partition.
    pub fn preferred_leader(&self, partition: u32) -> Option<Replica> {
        self.replicas(partition).next()
    }

    /// The slot of `node` that a replica of this partition is in.
    pub fn slot_on(&self, node: u32, partition: u32) -> Option<u16> {
        self.replicas(partition).find(|replica| replica.node == node).map(|replica| replica.shard)
    }

    /// Every place in use, ascending.
    pub fn homes(&self) -> &[Replica] {
        &self.homes
    }

    /// Every replica of every partition, and whether it is the preferred leader.
    pub fn iter(&self) -> impl Iterator<Item = (Replica, bool)> + '_ {
        let width = usize::from(self.width.max(1));
        let slots = self.slots.iter().enumerate().filter(|(_, slot)| **slot != NOBODY);
        slots.map(move |(at, slot)| (self.home(*slot), at.is_multiple_of(width)))
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
        let factor = usize::from(self.width);
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
        let mut widest = 0;
        for (partition, slots) in self.slots.chunks(factor).enumerate() {
            let row = row(slots);
            if row.is_empty() || slots.iter().skip(row.len()).any(|slot| *slot != NOBODY) {
                return Err(format!("partition {partition} has no replicas, or lacks one among them"));
            }
            widest = widest.max(row.len());
            let mut nodes = [0; MAX_REPLICATION_FACTOR as usize];
            for (slot, seen) in row.iter().zip(0..) {
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
            true if widest < factor => Err("no partition has as many replicas as there is room for".into()),
            true => Ok(()),
            false => Err("a place without a replica".into()),
        }
    }
}
