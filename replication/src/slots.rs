//! Which slot of a node a new replica gets: one of its least loaded shard, and of those one that leaves the node even when it comes
//! with more shards.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use pyralog_core::features::LEVEL_OF_MOVES;
use pyralog_core::limits::MAX_SHARDS;

use crate::metadata::{Load, on_shard};

/// The slots of a node while replicas are placed on it.
pub(crate) struct Slots {
    shards: Vec<Shard>,
}

struct Shard {
    before: Load,
    /// Placed since.
    replicas: u32,
    leaders: u32,
    /// The shard's slots by how many replicas are in each, then by number.
    free: BinaryHeap<Reverse<(u32, u16)>>,
}

impl Slots {
    /// Those of a node with `shards` shards, of which these have something.
    pub(crate) fn new(feature_level: u16, shards: u16, loads: impl Iterator<Item = (u16, Load)>) -> Self {
        let mut used = vec![0; usize::from(MAX_SHARDS)];
        let mut before = vec![Load::default(); usize::from(shards.max(1))];
        for (slot, load) in loads {
            if let Some(used) = used.get_mut(usize::from(slot)) {
                *used += load.replicas;
            }
            if let Some(before) = before.get_mut(usize::from(on_shard(slot, shards))) {
                before.replicas += load.replicas;
                before.leaders += load.leaders;
            }
        }
        // Where nodes take it for the shard there is one slot a shard.
        let slots = if feature_level < LEVEL_OF_MOVES { shards } else { MAX_SHARDS };
        let shards = before.into_iter().zip(0..).map(|(before, first)| {
            let own = (first..slots.max(first + 1)).step_by(usize::from(shards.max(1)));
            let free = own.map(|slot| Reverse((used.get(usize::from(slot)).copied().unwrap_or(0), slot)));
            Shard { before, replicas: 0, leaders: 0, free: free.collect() }
        });
        Self { shards: shards.collect() }
    }

    /// A slot for a replica that leads, of the shard that leads least of what is placed now, then of everything.
    pub(crate) fn take_leader(&mut self) -> u16 {
        let weight = |shard: &Shard| {
            let all = shard.before.replicas + shard.replicas;
            (shard.leaders, shard.before.leaders + shard.leaders, all)
        };
        self.take(true, weight)
    }

    /// A slot for any other.
    pub(crate) fn take_follower(&mut self) -> u16 {
        self.take(false, |shard| (shard.replicas, shard.before.replicas + shard.replicas, 0))
    }

    fn take(&mut self, leads: bool, weight: impl Fn(&Shard) -> (u32, u32, u32)) -> u16 {
        let Some(shard) = self.shards.iter_mut().min_by_key(|shard| weight(shard)) else { return 0 };
        shard.replicas += 1;
        shard.leaders += u32::from(leads);
        let Some(mut least) = shard.free.peek_mut() else { return 0 };
        let Reverse((used, slot)) = *least;
        *least = Reverse((used + 1, slot));
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// How many more one shard of `shards` has than another.
    fn difference(taken: &[u16], shards: u16) -> usize {
        let count = |shard| taken.iter().filter(|slot| on_shard(**slot, shards) == shard).count();
        let counts: Vec<usize> = (0..shards).map(count).collect();
        counts.iter().max().unwrap() - counts.iter().min().unwrap()
    }

    proptest! {
        #[test]
        fn replicas_are_even_over_the_shards_and_over_twice_and_three_times_as_many(
            shards in 1u16..20, leaders in 0usize..300, followers in 0usize..300,
        ) {
            let mut slots = Slots::new(LEVEL_OF_MOVES, shards, std::iter::empty());
            let led: Vec<u16> = (0..leaders).map(|_| slots.take_leader()).collect();
            let followed: Vec<u16> = (0..followers).map(|_| slots.take_follower()).collect();
            let all = [led.as_slice(), followed.as_slice()].concat();
            for (taken, what) in [(&led, "leaders"), (&all, "all")] {
                prop_assert!(difference(taken, shards) <= 1, "{}: {:?}", what, taken);
                for times in [2, 3] {
                    // Each slot may be used once more than another, and 256 slots are not the same number on each shard.
                    let most = if taken.len() + usize::from(shards * times) <= usize::from(MAX_SHARDS) { 1 } else { 4 };
                    let more = difference(taken, shards * times);
                    prop_assert!(more <= most, "{} on {} times as many: {}", what, times, more);
                }
            }
            prop_assert!(all.iter().all(|slot| *slot < MAX_SHARDS));
        }
    }

    #[test]
    fn what_is_there_counts() {
        let there = [(0, 3), (2, 1), (5, 1)].map(|(slot, replicas)| (slot, Load { replicas, leaders: 0 }));
        // Shard 0 has four, shard 1 one.
        let mut slots = Slots::new(LEVEL_OF_MOVES, 2, there.into_iter());
        let taken: Vec<u16> = (0..4).map(|_| slots.take_leader()).collect();
        assert_eq!(taken, [1, 4, 3, 6]);
    }

    #[test]
    fn below_the_level_of_moves_a_slot_is_a_shard() {
        let mut slots = Slots::new(LEVEL_OF_MOVES - 1, 3, std::iter::empty());
        let taken: Vec<u16> = (0..6).map(|_| slots.take_follower()).collect();
        assert_eq!(taken, [0, 1, 2, 0, 1, 2]);
    }
}
