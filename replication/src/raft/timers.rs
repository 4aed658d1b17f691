//! When a replica campaigns, and when a leader gives up. The core's own ticks are never used: they can't be seeded.

/// The times of a group, microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A follower campaigns when it has not heard from a leader for a time drawn from this on …
    pub election_min_us: u64,
    /// … up to this.
    pub election_max_us: u64,
    /// A leader that has nothing to send lets its followers hear this often.
    pub heartbeat_us: u64,
}

/// The deadlines of one replica.
#[derive(Debug)]
pub(super) struct Timers {
    timing: Timing,
    random: u64,
    /// When to campaign.
    pub(super) election_due_us: u64,
    /// When a leader's next heartbeat is due; `u64::MAX` in a replica that does not lead.
    pub(super) heartbeat_due_us: u64,
    /// When the leader of this term was last heard.
    leader_heard_us: Option<u64>,
    /// When each peer was last heard.
    peers: Vec<(u32, u64)>,
}

impl Timers {
    pub(super) fn new(timing: Timing, seed: u64, peers: impl Iterator<Item = u32>, now_us: u64) -> Self {
        let mut timers = Self {
            timing,
            random: seed,
            election_due_us: 0,
            heartbeat_due_us: u64::MAX,
            leader_heard_us: None,
            peers: peers.map(|peer| (peer, now_us)).collect(),
        };
        timers.rearm_election(now_us);
        timers
    }

    /// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A follower that was told to begin at a snapshot and says nothing of it for so long is told again.
    pub(super) fn snapshot_retry_us(&self) -> u64 {
        self.timing.election_max_us
    }

    pub(super) fn rearm_election(&mut self, now_us: u64) {
        let span = self.timing.election_max_us.saturating_sub(self.timing.election_min_us).max(1);
        let wait = self.timing.election_min_us + self.draw() % span;
        self.election_due_us = now_us.saturating_add(wait);
    }

    pub(super) fn rearm_heartbeat(&mut self, now_us: u64) {
        self.heartbeat_due_us = now_us.saturating_add(self.timing.heartbeat_us);
    }

    pub(super) fn heard_peer(&mut self, peer: u32, now_us: u64) {
        if let Some((_, heard)) = self.peers.iter_mut().find(|(known, _)| *known == peer) {
            *heard = now_us;
        }
    }

    pub(super) fn heard_leader(&mut self, now_us: u64) {
        self.leader_heard_us = Some(now_us);
        self.rearm_election(now_us);
    }

    /// The link to the leader broke, as it does when its process dies: it is not waited for. The others are asked soon; who
    /// still hears the leader says no. The replicas take turns, so that they don't split the votes.
    pub(super) fn leader_lost(&mut self, turn: usize, now_us: u64) {
        self.leader_heard_us = None;
        let step = self.timing.election_min_us / 6;
        let wait = step * (turn as u64).saturating_mul(2) + self.draw() % step.max(1);
        let due_us = now_us.saturating_add(wait);
        self.election_due_us = self.election_due_us.min(due_us);
    }

    /// A leader counts from now on who answers it.
    pub(super) fn begin_leading(&mut self, now_us: u64) {
        self.rearm_heartbeat(now_us);
        for (_, heard) in &mut self.peers {
            *heard = now_us;
        }
    }

    /// Nobody may be voted for while a leader was heard within the shortest time to an election.
    pub(super) fn leader_lease_holds(&self, now_us: u64) -> bool {
        self.leader_heard_us.is_some_and(|heard| now_us.saturating_sub(heard) < self.timing.election_min_us)
    }

    /// Whether a peer was heard within the longest time to an election.
    pub(super) fn hears(&self, peer: u32, now_us: u64) -> bool {
        self.heard_us(peer) >= now_us.saturating_sub(self.timing.election_max_us)
    }

    /// When so many of `peers` will not have been heard that fewer than `needed` are left, if nothing more comes.
    pub(super) fn quorum_lost_us(&self, peers: impl Iterator<Item = u32>, needed: usize) -> u64 {
        let mut heard: Vec<_> = peers.map(|peer| self.heard_us(peer)).collect();
        heard.sort_unstable_by(|a, b| b.cmp(a));
        let deciding = needed.checked_sub(1).and_then(|at| heard.get(at));
        deciding.map_or(u64::MAX, |heard| heard.saturating_add(self.timing.election_max_us).saturating_add(1))
    }

    fn heard_us(&self, peer: u32) -> u64 {
        self.peers.iter().find(|(known, _)| *known == peer).map_or(0, |(_, heard)| *heard)
    }

    /// These are the others now. One that is new counts as heard.
    pub(super) fn set_peers(&mut self, peers: &[u32], now_us: u64) {
        self.peers.retain(|(known, _)| peers.contains(known));
        for peer in peers {
            if !self.peers.iter().any(|(known, _)| known == peer) {
                self.peers.push((*peer, now_us));
            }
        }
    }
}
