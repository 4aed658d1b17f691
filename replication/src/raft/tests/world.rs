//! A few replicas of one group, a network that misbehaves, and disks that forget what was not flushed; all drawn
//! from one seed. What must never happen is checked after every step.

use std::collections::{BTreeMap, VecDeque};

use pyralog_core::GroupId;

use crate::raft::{
    EntryKind, GroupConfig, HardState, Header, Message, MessageKind, NotLeader, Output, Position, RaftGroup,
    RecoveredLog, Timing,
};

pub(super) const GROUP: GroupId = GroupId::new(7, 3);
pub(super) const TIMING: Timing =
    Timing { election_min_us: 150_000, election_max_us: 300_000, heartbeat_us: 30_000 };

/// What a planted bug does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bug {
    /// Messages that depend on a flush leave before it.
    SendBeforePersist,
    /// A crash takes the vote along.
    ForgetVote,
    /// A replica comes back blank and is not told apart from itself.
    BlankDisk,
}

pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Something laid into a journal that is not flushed yet.
struct Write {
    number: u64,
    hard: Option<HardState>,
    /// A new start, with the values before it.
    snapshot: Option<(Position, BTreeMap<u64, u64>)>,
    first: u64,
    entries: Vec<(Header, u64)>,
    after: Vec<Message>,
}

/// What survives a crash.
#[derive(Clone, Default)]
struct Disk {
    log: RecoveredLog,
    /// Values of the entries, those before the log's start included.
    values: BTreeMap<u64, u64>,
}

struct Node {
    replica: Option<RaftGroup>,
    disk: Disk,
    /// Values of all entries, durable or not.
    values: BTreeMap<u64, u64>,
    writes: VecDeque<Write>,
    /// Batches fetched for a snapshot that the replica may take.
    fetched: BTreeMap<u64, u64>,
}

struct Packet {
    message: Message,
    values: Vec<u64>,
}

pub(super) struct World {
    pub(super) rng: Rng,
    pub(super) now_us: u64,
    nodes: Vec<Node>,
    write_quorum: usize,
    network: Vec<Packet>,
    /// Links that are cut, sender and receiver.
    cut: Vec<(u32, u32)>,
    pub(super) loss_percent: u64,
    /// What some replica knew to be committed, by index: term and value.
    committed: BTreeMap<u64, (u32, u64)>,
    checked: Vec<u64>,
    /// Acknowledged to a client: index and value.
    pub(super) acknowledged: BTreeMap<u64, u64>,
    leaders: BTreeMap<u32, u32>,
    next_value: u64,
    pub(super) bug: Option<Bug>,
    pub(super) snapshots: u64,
    pub(super) quiets: u64,
}

impl World {
    pub(super) fn new(seed: u64, replicas: usize, write_quorum: usize) -> Self {
        let mut world = Self {
            rng: Rng(seed),
            now_us: 1_000_000,
            nodes: Vec::new(),
            write_quorum,
            network: Vec::new(),
            cut: Vec::new(),
            loss_percent: 0,
            committed: BTreeMap::new(),
            checked: vec![0; replicas],
            acknowledged: BTreeMap::new(),
            leaders: BTreeMap::new(),
            next_value: 1,
            bug: None,
            snapshots: 0,
            quiets: 0,
        };
        for _ in 0..replicas {
            world.nodes.push(Node {
                replica: None,
                disk: Disk::default(),
                values: BTreeMap::new(),
                writes: VecDeque::new(),
                fetched: BTreeMap::new(),
            });
        }
        for id in 1..=replicas as u32 {
            world.restart(id);
        }
        world
    }

    pub(super) fn ids(&self) -> std::ops::RangeInclusive<u32> {
        1..=self.nodes.len() as u32
    }

    fn node(&mut self, id: u32) -> &mut Node {
        &mut self.nodes[id as usize - 1]
    }

    pub(super) fn replica(&mut self, id: u32) -> Option<&mut RaftGroup> {
        self.node(id).replica.as_mut()
    }

    pub(super) fn is_up(&self, id: u32) -> bool {
        self.nodes[id as usize - 1].replica.is_some()
    }

    pub(super) fn leader(&self) -> Option<u32> {
        let leading =
            |id: &u32| self.nodes[*id as usize - 1].replica.as_ref().is_some_and(RaftGroup::is_leader);
        let term = |id: &u32| self.nodes[*id as usize - 1].replica.as_ref().map_or(0, RaftGroup::term);
        self.ids().filter(leading).max_by_key(term)
    }

    pub(super) fn crash(&mut self, id: u32) {
        let bug = self.bug;
        let node = self.node(id);
        node.replica = None;
        node.writes.clear();
        if bug == Some(Bug::ForgetVote) {
            node.disk.log.hard.vote = 0;
        }
        if bug == Some(Bug::BlankDisk) {
            node.disk = Disk::default();
        }
        let now_us = self.now_us;
        for peer in self.ids() {
            if let Some(replica) = self.replica(peer) {
                replica.link_lost(id, now_us);
            }
        }
    }

    pub(super) fn restart(&mut self, id: u32) {
        let (now_us, write_quorum) = (self.now_us, self.write_quorum);
        let voters: Vec<u32> = self.ids().collect();
        let seed = self.rng.next();
        let node = self.node(id);
        node.fetched.clear();
        node.values = node.disk.values.clone();
        let config = GroupConfig { group: GROUP, id, voters, write_quorum, timing: TIMING, seed };
        let replica = RaftGroup::new(config, node.disk.log.clone(), now_us).unwrap();
        node.replica = Some(replica);
        self.checked[id as usize - 1] = 0;
        self.network.retain(|packet| packet.message.to != id);
        for peer in self.ids() {
            if let Some(replica) = self.replica(peer) {
                replica.peer_restarted(id, now_us);
            }
        }
    }

    /// Nothing gets from `from` to `to` any more; both notice that their link is gone.
    pub(super) fn cut(&mut self, from: u32, to: u32) {
        self.cut.push((from, to));
        let now_us = self.now_us;
        for (id, other) in [(from, to), (to, from)] {
            if let Some(replica) = self.replica(id) {
                replica.link_lost(other, now_us);
            }
        }
    }

    pub(super) fn heal(&mut self) {
        let now_us = self.now_us;
        for (from, to) in std::mem::take(&mut self.cut) {
            for (id, other) in [(from, to), (to, from)] {
                if let Some(replica) = self.replica(id) {
                    replica.peer_restarted(other, now_us);
                }
            }
        }
    }

    pub(super) fn propose(&mut self, id: u32) -> Result<u64, NotLeader> {
        let (now_us, value) = (self.now_us, self.next_value);
        let node = self.node(id);
        let replica = node.replica.as_mut().ok_or(NotLeader { leader: None })?;
        let proposed = replica.propose(now_us, 1 + (value % 3) as u32, 100)?;
        node.values.retain(|index, _| *index < proposed.index);
        node.values.insert(proposed.index, value);
        self.next_value += 1;
        Ok(proposed.index)
    }

    /// Takes what a replica has to do and lays it into its journal.
    pub(super) fn drain(&mut self, id: u32, incoming: &[u64], incoming_first: u64) {
        let bug = self.bug;
        let mut out = Output::default();
        loop {
            let node = self.node(id);
            let Some(replica) = node.replica.as_mut() else { return };
            if !replica.output(&mut out).unwrap() {
                break;
            }
            let snapshot = out.snapshot.map(|start| {
                node.values = std::mem::take(&mut node.fetched);
                node.values.retain(|index, _| *index <= start.index);
                (start, node.values.clone())
            });
            let mut entries = Vec::new();
            for index in out.first_entry..out.first_entry + out.entries {
                let header = *replica.header(index).unwrap();
                let incoming = index.checked_sub(incoming_first).and_then(|at| incoming.get(at as usize));
                let value = match (header.kind, incoming) {
                    (EntryKind::NewTerm, _) => 0,
                    (EntryKind::Batch, Some(value)) => *value,
                    // Its own proposal, which it may have stopped leading after.
                    (EntryKind::Batch, None) => node.values[&index],
                };
                if node.values.get(&index) != Some(&value) {
                    node.values.retain(|known, _| *known < index);
                    node.values.insert(index, value);
                }
                entries.push((header, value));
            }
            let write = Write {
                number: out.number,
                hard: out.hard_state,
                snapshot,
                first: out.first_entry,
                entries,
                after: out.after_persist.clone(),
            };
            let early = if bug == Some(Bug::SendBeforePersist) { write.after.clone() } else { Vec::new() };
            node.writes.push_back(write);
            for message in out.messages.drain(..).chain(early) {
                self.send(message);
            }
        }
        self.check(id);
    }

    fn send(&mut self, message: Message) {
        let values = &self.node(message.from).values;
        let indexes = message.index + 1..=message.index + message.entries.len() as u64;
        let values: Vec<u64> = indexes.map(|index| values.get(&index).copied().unwrap_or(u64::MAX)).collect();
        assert!(message.entries.is_empty() || values.iter().all(|value| *value != u64::MAX));
        if self.cut.contains(&(message.from, message.to)) || self.rng.chance(self.loss_percent) {
            if message.kind == MessageKind::Append && self.rng.chance(50) {
                let (from, to) = (message.from, message.to);
                if let Some(replica) = self.replica(from) {
                    replica.not_sent(to);
                }
            }
            return;
        }
        if self.rng.chance(self.loss_percent / 2) {
            let (message, values) = (message.clone(), values.clone());
            self.network.push(Packet { message, values });
        }
        self.network.push(Packet { message, values });
    }

    /// Flushes the oldest write of a replica's journal.
    pub(super) fn flush(&mut self, id: u32) -> bool {
        let node = self.node(id);
        let Some(write) = node.writes.pop_front() else { return false };
        let Some(replica) = node.replica.as_mut() else { return false };
        let disk = &mut node.disk;
        if let Some(hard) = write.hard {
            disk.log.hard = hard;
        }
        if let Some((start, values)) = write.snapshot {
            disk.log.start = start;
            disk.log.headers.clear();
            disk.values = values;
        }
        for (index, (header, value)) in (write.first..).zip(write.entries) {
            disk.log.headers.truncate((index - disk.log.start.index - 1) as usize);
            disk.log.headers.push(header);
            disk.values.retain(|known, _| *known < index);
            disk.values.insert(index, value);
        }
        // A term is durable with the first entry of it at the latest.
        replica.persisted(write.number).unwrap();
        if self.bug != Some(Bug::SendBeforePersist) {
            for message in write.after {
                self.send(message);
            }
        }
        self.drain(id, &[], 0);
        true
    }

    /// Writes the committed part of a replica's log to segments and forgets its headers.
    pub(super) fn compact(&mut self, id: u32) {
        let up_to = self.rng.next();
        let node = self.node(id);
        let Some(replica) = node.replica.as_mut() else { return };
        let durable = node.disk.log.start.index + node.disk.log.headers.len() as u64;
        let limit = replica.commit().min(durable);
        let from = replica.start().index;
        if limit <= from {
            return;
        }
        let index = from + 1 + up_to % (limit - from);
        replica.compact(index);
        let start = replica.start();
        let disk = &mut node.disk.log;
        if start.index > disk.start.index {
            disk.headers.drain(..(start.index - disk.start.index) as usize);
            disk.start = start;
        }
    }

    pub(super) fn in_network(&self) -> usize {
        self.network.len()
    }

    /// Delivers one of the packets on their way; any of them may be next.
    pub(super) fn deliver(&mut self) {
        if self.network.is_empty() {
            return;
        }
        let at = self.rng.below(self.network.len() as u64) as usize;
        let Packet { message, values } = self.network.swap_remove(at);
        let now_us = self.now_us;
        if message.kind == MessageKind::Snapshot && self.is_up(message.to) {
            self.transfer_segments(&message);
        }
        let Some(replica) = self.replica(message.to) else { return };
        replica.step(now_us, &message).unwrap();
        self.drain(message.to, &values, message.index + 1);
    }

    /// What a follower does before it takes a snapshot: it fetches the committed batches before it.
    fn transfer_segments(&mut self, message: &Message) {
        self.snapshots += 1;
        let from = self.node(message.from).values.clone();
        if (1..=message.index).all(|index| from.contains_key(&index)) {
            self.node(message.to).fetched = from;
        }
    }

    pub(super) fn tick(&mut self, us: u64) {
        self.now_us += us;
        let now_us = self.now_us;
        for id in self.ids() {
            if let Some(replica) = self.replica(id) {
                replica.tick(now_us);
                self.drain(id, &[], 0);
            }
        }
    }

    pub(super) fn try_quiesce(&mut self, id: u32) {
        let up: Vec<u32> = self.ids().filter(|id| self.is_up(*id)).collect();
        let mut messages = Vec::new();
        let cut = self.cut.clone();
        let Some(replica) = self.replica(id) else { return };
        let was = replica.is_quiet();
        let reachable = |peer| up.contains(&peer) && !cut.contains(&(id, peer)) && !cut.contains(&(peer, id));
        let quiet = replica.try_quiesce(reachable, &mut messages);
        self.quiets += u64::from(quiet && !was);
        for message in messages {
            self.send(message);
        }
    }

    /// What must hold after every step.
    fn check(&mut self, id: u32) {
        let at = id as usize - 1;
        let Some(replica) = self.nodes[at].replica.as_mut() else { return };
        let before = replica.high_watermark();
        let (term, leads, commit, acknowledged) =
            (replica.term(), replica.is_leader(), replica.commit(), replica.acknowledged());
        assert!(replica.high_watermark() >= before);
        if leads {
            let first = *self.leaders.entry(term).or_insert(id);
            assert_eq!(first, id, "two leaders in term {term}");
        }
        for index in self.checked[at] + 1..=commit {
            let node = &self.nodes[at];
            let replica = node.replica.as_ref().unwrap();
            let value = node.values.get(&index).copied();
            let value = value.unwrap_or_else(|| panic!("node {id} misses committed entry {index}"));
            let term = replica.header(index).map(|header| header.term);
            let (known_term, known_value) =
                *self.committed.entry(index).or_insert((term.unwrap_or(0), value));
            assert_eq!(known_value, value, "entry {index} differs on node {id}");
            if let Some(term) = term.filter(|_| known_term != 0) {
                assert_eq!(known_term, term, "the term of entry {index} differs on node {id}");
            }
        }
        self.checked[at] = self.checked[at].max(commit);
        if leads {
            let from = self.acknowledged.last_key_value().map_or(0, |(index, _)| *index) + 1;
            for index in from..=acknowledged {
                let value = self.nodes[at].values[&index];
                let copies = self.nodes.iter().filter(|n| n.disk.values.get(&index) == Some(&value)).count();
                assert!(copies >= self.write_quorum, "entry {index} is acknowledged with {copies} copies");
                self.acknowledged.insert(index, value);
            }
        }
    }

    /// All replicas hold the same, and everything that was acknowledged.
    pub(super) fn check_converged(&self) {
        let first = &self.nodes[0];
        for node in &self.nodes {
            assert!(node.values == first.values, "replicas differ");
            assert!(node.disk.values == first.disk.values, "disks differ");
        }
        for (index, value) in &self.acknowledged {
            assert_eq!(first.disk.values.get(index), Some(value), "acknowledged entry {index} is lost");
        }
    }
}
