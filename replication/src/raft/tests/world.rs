//! A few replicas of one group, a network that misbehaves, and disks that forget what was not flushed; all drawn
//! from one seed. What must never happen is checked after every step.

use std::collections::{BTreeMap, VecDeque};

use pyralog_core::GroupId;

use crate::metadata::Replica;
use crate::raft::{
    ChangeRefused, Configuration, EntryKind, GroupConfig, HardState, Header, Message, MessageKind, NotLeader,
    Output, Position, RaftGroup, RecoveredLog, Step, Timing,
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
    /// The voters change from one moment to the next, without a joint configuration.
    NoJoint,
    /// A change begins before the last one is in force.
    TwoChanges,
    /// Who is no voter any more goes before the others know for good that nobody has to ask it.
    EarlyDeparture,
    /// A replica that is made anew follows changes from before that.
    OldChanges,
    /// A restart takes what is known of changes along.
    ForgetChange,
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
    snapshot: Option<(Position, Configuration, BTreeMap<u64, u64>)>,
    first: u64,
    entries: Vec<(Header, u64, Option<Configuration>)>,
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
    /// It has no replica of the group, and is to have none.
    absent: bool,
}

struct Packet {
    message: Message,
    values: Vec<u64>,
}

pub(super) struct World {
    pub(super) rng: Rng,
    pub(super) now_us: u64,
    nodes: Vec<Node>,
    /// With how many the group began.
    replicas: usize,
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
    /// Which nodes the voters should be, if they are to change.
    pub(super) wanted: Option<Vec<u32>>,
    /// Changes that have come to their end.
    pub(super) moves: u64,
    /// When a leader that leaves began to hand over: it gives that up after a while.
    handing_over_us: Option<u64>,
    /// What the last change has ended with; a node that is told to hold a replica begins with that.
    settled: Configuration,
    /// An entry that was committed then, term and index.
    settled_after: (u32, u64),
}

impl World {
    /// `replicas` nodes with a replica and `others` without.
    pub(super) fn new(seed: u64, replicas: usize, others: usize, write_quorum: usize) -> Self {
        let mut world = Self {
            rng: Rng(seed),
            now_us: 1_000_000,
            nodes: Vec::new(),
            replicas,
            write_quorum,
            network: Vec::new(),
            cut: Vec::new(),
            loss_percent: 0,
            committed: BTreeMap::new(),
            checked: vec![0; replicas + others],
            acknowledged: BTreeMap::new(),
            leaders: BTreeMap::new(),
            next_value: 1,
            bug: None,
            snapshots: 0,
            quiets: 0,
            wanted: None,
            moves: 0,
            handing_over_us: None,
            settled_after: (0, 0),
            settled: Configuration::of((1..=replicas as u32).map(|node| Replica { node, shard: 0 })),
        };
        for id in 1..=replicas + others {
            world.nodes.push(Node {
                replica: None,
                disk: Disk::default(),
                values: BTreeMap::new(),
                writes: VecDeque::new(),
                fetched: BTreeMap::new(),
                absent: id > replicas,
            });
        }
        for id in 1..=replicas as u32 {
            world.open(id);
        }
        world
    }

    /// Has a node hold an empty replica, which knows who the others are and waits to be sent everything, or is one of the first.
    fn open(&mut self, id: u32) {
        let voters = match self.bug {
            Some(Bug::OldChanges) => Configuration::of(self.settled.voters().iter().copied()),
            _ => self.settled.clone(),
        };
        let joins = !voters.is_voter(id);
        let configuration = if joins { voters.joined_by(Replica { node: id, shard: 0 }) } else { voters };
        let made_after = if self.bug == Some(Bug::OldChanges) { (0, 0) } else { self.settled_after };
        let node = self.node(id);
        node.absent = false;
        node.writes.clear();
        let log = RecoveredLog { configuration, made_after, ..RecoveredLog::default() };
        node.disk = Disk { log, ..Disk::default() };
        self.begin(id);
    }

    /// Goes on with the change to the voters that are wanted, as far as its leader can: what the owner of a group does.
    pub(super) fn drive(&mut self) {
        let Some((wanted, leader)) = self.wanted.clone().zip(self.leader()) else { return };
        for id in wanted.clone() {
            if self.nodes[id as usize - 1].absent {
                self.open(id);
            }
        }
        let (now_us, bug) = (self.now_us, self.bug);
        let gives_up =
            self.handing_over_us.take_if(|begun| now_us > *begun + TIMING.election_min_us).is_some();
        let Some(replica) = self.replica(leader) else { return };
        if gives_up {
            replica.abort_transfer();
        }
        if !replica.leads_surely() {
            return;
        }
        let commit = replica.commit();
        let has_all = |node| replica.matched_of(node) >= commit;
        match replica.configuration().step_to(&at(&wanted), has_all) {
            Step::Wait(_) => {}
            Step::Propose(next) if bug == Some(Bug::NoJoint) && next.is_joint() => {
                let proposed = replica.append_change(now_us, next.left());
                self.node(leader).values.insert(proposed.index, 0);
                self.drain(leader, &[], 0);
            }
            Step::Propose(next)
                if bug == Some(Bug::EarlyDeparture) && next.is_confirmed() && next.learners().is_empty() =>
            {
                self.settle_on(next);
            }
            Step::Propose(next) if bug == Some(Bug::TwoChanges) => {
                let proposed = replica.append_change(now_us, next);
                self.node(leader).values.insert(proposed.index, 0);
                self.drain(leader, &[], 0);
            }
            Step::Propose(next) => match replica.propose_change(now_us, next) {
                Ok(proposed) => {
                    self.node(leader).values.insert(proposed.index, 0);
                    self.drain(leader, &[], 0);
                }
                Err(ChangeRefused::LeaderLeaves) => {
                    let to = replica.configuration().voters()[0].node;
                    replica.transfer(to, now_us);
                    self.handing_over_us.get_or_insert(now_us);
                    self.drain(leader, &[], 0);
                }
                Err(ChangeRefused::NotYet | ChangeRefused::NotLeader(_)) => {}
                Err(error @ ChangeRefused::Impossible(_)) => panic!("{error}"),
            },
            Step::Done => {
                let settled = replica.configuration().clone();
                let committed = replica.position(replica.commit());
                self.settled_after = committed.map_or((0, 0), |last| (last.term, last.index));
                self.settle_on(settled);
            }
        }
    }

    /// The change is through: who is no voter any more deletes what it has. What it has sent may still arrive.
    fn settle_on(&mut self, settled: Configuration) {
        self.moves += 1;
        self.wanted = None;
        for id in self.ids().filter(|id| !settled.is_voter(*id)) {
            let node = self.node(id);
            (node.replica, node.absent, node.disk) = (None, true, Disk::default());
            node.values.clear();
            node.writes.clear();
            self.network.retain(|packet| packet.message.to != id);
        }
        self.settled = settled;
    }

    /// Who is to have the same in the end.
    pub(super) fn settled(&self) -> Vec<u32> {
        self.settled.voters().iter().map(|voter| voter.node).collect()
    }

    pub(super) fn is_absent(&self, id: u32) -> bool {
        self.nodes[id as usize - 1].absent
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
            let configuration = node.disk.log.configuration.clone();
            node.disk =
                Disk { log: RecoveredLog { configuration, ..RecoveredLog::default() }, ..Disk::default() };
        }
        let now_us = self.now_us;
        for peer in self.ids() {
            if let Some(replica) = self.replica(peer) {
                replica.link_lost(id, now_us);
            }
        }
    }

    pub(super) fn restart(&mut self, id: u32) {
        self.begin(id);
        self.network.retain(|packet| packet.message.to != id);
        let now_us = self.now_us;
        for peer in self.ids() {
            if let Some(replica) = self.replica(peer) {
                replica.peer_restarted(id, now_us);
            }
        }
    }

    /// A replica goes on from its disk. Nobody else is told.
    fn begin(&mut self, id: u32) {
        let (now_us, write_quorum) = (self.now_us, self.write_quorum);
        let seed = self.rng.next();
        let forgets = self.bug == Some(Bug::ForgetChange);
        let first: Vec<u32> = (1..=self.replicas as u32).collect();
        let node = self.node(id);
        if forgets {
            let log = &mut node.disk.log;
            log.configuration = Configuration::of(at(&first));
            log.configurations.clear();
            let changes = log.headers.iter_mut().filter(|header| header.kind == EntryKind::Configuration);
            changes.for_each(|header| header.kind = EntryKind::NewTerm);
        }
        node.fetched.clear();
        node.values = node.disk.values.clone();
        let config = GroupConfig { group: GROUP, id, write_quorum, timing: TIMING, seed };
        let replica = RaftGroup::new(config, node.disk.log.clone(), now_us).unwrap();
        node.replica = Some(replica);
        self.checked[id as usize - 1] = 0;
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
                (start, replica.base_configuration().clone(), node.values.clone())
            });
            let mut entries = Vec::new();
            for index in out.first_entry..out.first_entry + out.entries {
                let header = *replica.header(index).unwrap();
                let incoming = index.checked_sub(incoming_first).and_then(|at| incoming.get(at as usize));
                let value = match (header.kind, incoming) {
                    (EntryKind::NewTerm | EntryKind::Configuration, _) => 0,
                    (EntryKind::Batch, Some(value)) => *value,
                    // Its own proposal, which it may have stopped leading after.
                    (EntryKind::Batch, None) => node.values[&index],
                };
                if node.values.get(&index) != Some(&value) {
                    node.values.retain(|known, _| *known < index);
                    node.values.insert(index, value);
                }
                entries.push((header, value, replica.configuration_at(index).cloned()));
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
        if let Some((start, configuration, values)) = write.snapshot {
            disk.log.start = start;
            disk.log.headers.clear();
            disk.log.configuration = configuration;
            disk.log.configurations.clear();
            disk.values = values;
        }
        for (index, (header, value, configuration)) in (write.first..).zip(write.entries) {
            disk.log.headers.truncate((index - disk.log.start.index - 1) as usize);
            disk.log.headers.push(header);
            disk.log.configurations.retain(|(known, _)| *known < index);
            disk.log.configurations.extend(configuration.map(|configuration| (index, configuration)));
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
            disk.configurations.retain(|(index, _)| *index > start.index);
            disk.configuration = replica.base_configuration().clone();
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
                let replicas = self.nodes[at].replica.as_ref().unwrap().configuration();
                for half in replicas.halves() {
                    let wanted = self.write_quorum.clamp(half.len() / 2 + 1, half.len());
                    let copies =
                        half.iter().filter(|voter| self.has_durably(voter.node, index, value)).count();
                    assert!(
                        copies >= wanted,
                        "entry {index} is acknowledged with {copies} copies of {half:?}"
                    );
                }
                self.acknowledged.insert(index, value);
            }
        }
    }

    fn has_durably(&self, id: u32, index: u64, value: u64) -> bool {
        self.nodes[id as usize - 1].disk.values.get(&index) == Some(&value)
    }

    /// All replicas hold the same, and everything that was acknowledged.
    pub(super) fn check_converged(&self) {
        let settled = self.settled();
        let replicas = || settled.iter().map(|id| &self.nodes[*id as usize - 1]);
        let Some(first) = replicas().next() else { panic!("a group without replicas") };
        for node in replicas() {
            assert!(node.values == first.values, "replicas differ");
            assert!(node.disk.values == first.disk.values, "disks differ");
        }
        for (index, value) in &self.acknowledged {
            assert_eq!(first.disk.values.get(index), Some(value), "acknowledged entry {index} is lost");
        }
    }
}

pub(super) fn at(nodes: &[u32]) -> Vec<Replica> {
    nodes.iter().map(|node| Replica { node: *node, shard: 0 }).collect()
}
