//! The end of a life: faults stop, and within a bound of virtual time the cluster must agree on everything, take a write in
//! every partition, and hold what it ever acknowledged or let anybody read, in every replica that takes part.

use std::collections::BTreeSet;
use std::fmt;
use std::rc::Rc;

use pyralog_core::features::LEVEL_OF_MOVES;
use pyralog_core::limits::PEER_QUEUE_BYTES;
use pyralog_core::{ErrorCode, GroupId};
use pyralog_net::message::{
    Acks, Consistency, FetchRequest, ListOffsetsRequest, OffsetSpec, PartitionHealth, PartitionState,
    ReplicaRole, Response,
};
use pyralog_replication::metadata::Catalog;

use super::audit::Held;
use super::books::is_alone;
use super::clients::Role;
use super::world::{Happening, Node, NodeState, Seat, World};
use crate::faults::{FaultKind, FaultPlan};
use crate::model::Existence;
use crate::request::{Owned, Reply};

/// Virtual time in which a healed cluster must agree, microseconds.
const AGREE_US: u64 = 90_000_000;
/// Virtual time in which a request to a healed cluster must get through, wherever one has to ask, microseconds.
const SERVE_US: u64 = 30_000_000;
/// Between two looks at whether the cluster agrees, microseconds.
const LOOK_US: u64 = 50_000;
/// Replicas are read at most so often until all end at the same place.
const READINGS: u32 = 4;

impl World {
    /// No more faults; then everything that has to hold at the end.
    pub(crate) fn last_days(&mut self) {
        self.heal();
        self.gather("after all faults");
        if self.config.upgrades && self.rng.percent(75) {
            self.finish_upgrade();
            self.gather("after the upgrade");
        }
        self.scrub_all();
        self.write_to_all();
        self.read_all();
        if self.rng.percent(50) {
            self.restart_all();
            self.gather("after a restart");
            self.read_all();
        }
        self.await_agreement("all nodes at the end");
        self.compare_replicas();
        let result = self.model.sequences(|_| false);
        self.check(result);
        self.count_aside();
    }

    /// Has everybody agree: first the nodes whose disks have not lied, then all.
    fn gather(&mut self, when: &str) {
        let mut lying: Vec<usize> = (0..self.config.nodes).filter(|node| self.has_lied(*node)).collect();
        if self.has_not_begun() {
            // One of the first nodes lost what it had written down before the others were as far: its owner has to tell that it
            // has nothing, as nobody else can know.
            lying.drain(..).for_each(|node| self.make_anew(node));
        }
        // A replica that does not know what it has promised, or whether it is one of the first, has to hear from all.
        let until = self.now_us + AGREE_US;
        let waits = |world: &Self, node: usize| {
            let here = |group: GroupId| {
                world.seats_of_group(group).into_iter().filter(|seat| seat.node == node).collect::<Vec<_>>()
            };
            let asks = |seat: &Seat, group: GroupId| {
                let state = world.shard(*seat).state_of(group);
                state.is_none_or(|state| state.health == PartitionHealth::Rejoining)
            };
            let groups = world.all_groups();
            let asks = groups.into_iter().any(|group| here(group).iter().any(|seat| asks(seat, group)));
            world.nodes[node].state == NodeState::Down || world.nodes[node].state == NodeState::Up && asks
        };
        while self.now_us < until
            && !self.over()
            && (0..self.config.nodes).any(|node| !lying.contains(&node) && waits(self, node))
        {
            self.pause(LOOK_US);
        }
        lying.iter().for_each(|node| self.keep_down(*node));
        self.await_agreement(&format!("the nodes with honest disks, {when},"));
        for node in lying {
            self.nodes[node].kept_down = false;
            if self.nodes[node].state == NodeState::Down {
                self.schedule(1, Happening::Start { node, attempt: 0 });
            }
        }
        self.await_agreement(&format!("all nodes, {when},"));
    }

    fn heal(&mut self) {
        self.note(|| "faults off".into());
        self.closing = true;
        let disks = &mut self.config.disks;
        (disks.lying, disks.honest) = (FaultPlan::none(), FaultPlan::none());
        (self.config.troubles.drop, self.config.troubles.disconnect) = (0, 0);
        // A node's has room for the largest frame behind others (`core::limits`). In a shorter one a large frame finds room only
        // when nothing waits, and with steady heartbeats that may never be.
        self.config.network.queue_bytes = PEER_QUEUE_BYTES;
        self.mend_all();
        for node in &mut self.nodes {
            node.paused_until_us = 0;
            node.shards.iter_mut().for_each(|shard| shard.disk.faults_off());
        }
        // Passes that were put off come when they were to; that is soon enough.
        for node in 0..self.config.nodes {
            if self.nodes[node].state == NodeState::Down {
                self.schedule(1, Happening::Start { node, attempt: 0 });
            }
        }
    }

    /// All nodes read their segments again: what has rotted in one replica is repaired from the others.
    fn scrub_all(&mut self) {
        let until = self.now_us + AGREE_US;
        let seats: Vec<Seat> = self.seats().collect();
        let mut begun = BTreeSet::new();
        while !self.over() {
            let (mut running, mut repaired) = (false, 0);
            for seat in &seats {
                if self.nodes[seat.node].state != NodeState::Up {
                    continue;
                }
                let start = !begun.contains(seat);
                let told = self.call_once(*seat, Owned::Scrub { start }, None);
                let Some(Reply::Message(Response::Scrub(told))) = told else {
                    running = true;
                    continue;
                };
                begun.insert(*seat);
                running |= told.running;
                repaired += told.repaired;
            }
            let damaged = self.damaged_replica();
            match damaged {
                None if !running => {
                    self.repaired = repaired;
                    return;
                }
                Some(what) if self.now_us > until => {
                    return self.fail(format!("on a healthy cluster {what} stays damaged"));
                }
                // One that was under way may have been past what is damaged.
                Some(_) if !running => begun.clear(),
                _ => {}
            }
            self.pause(LOOK_US);
        }
    }

    /// A replica that takes part and holds damage that others can repair: nothing of the group is ever removed.
    fn damaged_replica(&self) -> Option<String> {
        let keeps_all = |group: &GroupId| self.model.groups.get(group).is_none_or(|model| model.keeps_all);
        for group in self.all_groups().into_iter().filter(keeps_all) {
            for seat in self.seats_of_group(group) {
                let up = self.nodes[seat.node].state == NodeState::Up && !self.is_aside(seat, group);
                let state = self.shard(seat).state_of(group).filter(|_| up);
                if state.is_some_and(|state| state.health == PartitionHealth::Damaged) {
                    return Some(format!("{seat} {group}"));
                }
            }
        }
        None
    }

    fn has_lied(&self, node: usize) -> bool {
        self.nodes[node].shards.iter().any(|shard| shard.disk.tracker.lied())
    }

    /// Takes a node down until it is started.
    fn keep_down(&mut self, node: usize) {
        self.nodes[node].kept_down = true;
        let until = self.now_us + SERVE_US;
        while !self.over() && matches!(self.nodes[node].state, NodeState::Up | NodeState::Stopping) {
            let patient = self.now_us < until;
            let up = self.nodes[node].state == NodeState::Up;
            // A disk that never shows what it lost is the end of its node.
            let kind = if patient { FaultKind::Crash } else { FaultKind::CleanStop };
            if up && self.crash(node, kind) {
                return;
            }
            self.pause(5_000);
        }
    }

    /// The power of all nodes goes, and comes back.
    fn restart_all(&mut self) {
        for node in 0..self.config.nodes {
            self.crash_soon(node);
            if self.nodes[node].state == NodeState::Up {
                // Its disk is not ready for it.
                self.pause(20_000);
                self.crash_soon(node);
            }
        }
    }

    // ---- agreement ----

    fn await_agreement(&mut self, who: &str) {
        let until = self.now_us + AGREE_US;
        while !self.over() {
            let Err(what) = self.agreement() else { return };
            if self.now_us > until {
                return self.fail(format!("{who} do not agree on a healthy cluster: {what}"));
            }
            self.pause(LOOK_US);
        }
    }

    /// Whether a node that came later can't get the metadata: one that holds it and is out for good has never registered, and keeps the
    /// cluster at a level at which nobody else does.
    fn is_held_back(&self, newest: &Catalog, node: usize) -> bool {
        let unheard = |(other, state): (usize, &Node)| {
            state.state == NodeState::Out && !newest.nodes.contains_key(&(other as u32 + 1))
        };
        node >= self.config.first_nodes
            && newest.feature_level < LEVEL_OF_MOVES
            && self.nodes.iter().enumerate().any(unheard)
    }

    /// Whether everybody who takes part is at the same place, and who is not if not.
    fn agreement(&self) -> Result<(), String> {
        if let Some(index) = self.clients.iter().position(|client| self.has_work(client)) {
            return Err(format!("client {index} waits for what it sent"));
        }
        for (node, state) in self.nodes.iter().enumerate() {
            let down_for_now = state.state == NodeState::Down && state.kept_down;
            if state.state != NodeState::Up && state.state != NodeState::Out && !down_for_now {
                return Err(format!("n{} is {:?}", node + 1, state.state));
            }
        }
        if !self.is_linked_up() {
            return Err("a link is missing".into());
        }
        let Some(newest) = &self.catalog else { return Err("there is no catalogue".into()) };
        for (node, state) in self.nodes.iter().enumerate().filter(|(_, node)| node.state == NodeState::Up) {
            let version = state.catalog.as_ref().map_or(0, |catalog| catalog.version);
            let metadata = Seat { node, shard: 0 };
            if self.is_aside(metadata, GroupId::METADATA) {
                continue;
            }
            if version != newest.version || !newest.nodes.contains_key(&metadata.peer().node.0) {
                let newest = newest.version;
                let node = node + 1;
                return Err(format!(
                    "n{node} has version {version} of the catalogue {newest}, or is not in it"
                ));
            }
            if !self.is_shown(node) {
                return Err(format!("n{} is in the catalogue as it was before a restart", node + 1));
            }
        }
        let all_up = self.nodes.iter().all(|node| node.state == NodeState::Up);
        let holders = self.leader_of(GroupId::METADATA).map_or(0, |leader| leader.replicas.len());
        if all_up && holders < self.config.nodes {
            return Err(format!("{holders} nodes hold the metadata"));
        }
        if let Some((group, wanted)) = newest.moves.first_key_value().filter(|_| all_up) {
            return Err(format!("{group} does not arrive where it is wanted, {:?}", wanted.to));
        }
        self.level_is_raised()?;
        self.all_groups().into_iter().try_for_each(|group| self.group_agrees(group))
    }

    fn group_agrees(&self, group: GroupId) -> Result<(), String> {
        let mut first: Option<(Seat, PartitionState)> = None;
        for seat in self.seats_of_group(group) {
            if self.nodes[seat.node].state != NodeState::Up || self.is_aside(seat, group) {
                continue;
            }
            let Some(state) = self.shard(seat).state_of(group) else {
                return Err(format!("{seat} does not have {group}"));
            };
            let place =
                |state: &PartitionState| (state.leader, state.epoch, state.high_watermark, state.log_end);
            if state.leader == 0 || state.high_watermark != state.log_end {
                return Err(format!("{seat} {group}: {:?} (leader, term, committed, end)", place(&state)));
            }
            match &first {
                None => first = Some((seat, state)),
                Some((other, known)) if place(known) != place(&state) => {
                    return Err(format!(
                        "{group}: {other} is at {:?}, {seat} at {:?} (leader, term, committed, end)",
                        place(known),
                        place(&state)
                    ));
                }
                Some(_) => {}
            }
        }
        match first {
            Some(_) => Ok(()),
            None => Err(format!("nobody takes part in {group}")),
        }
    }

    /// Whether a replica is no member, and need not be: damage hides what it promised, or that of the metadata that would
    /// tell it of the group, or its disk is a new one, and some node is out that it has to ask.
    fn is_aside(&self, seat: Seat, group: GroupId) -> bool {
        if self.catalog.as_ref().is_some_and(|newest| self.is_held_back(newest, seat.node)) {
            return true;
        }
        let hidden = |seat: Seat, group: GroupId| {
            let state = self.shard(seat).state_of(group);
            state.is_some_and(|state| state.health == PartitionHealth::Rejoining)
        };
        let somebody_is_out = self.nodes.iter().any(|node| node.state != NodeState::Up);
        let lost = self.nodes[seat.node].emptied || self.has_lied(seat.node);
        let may = somebody_is_out && self.nodes[seat.node].lies && lost;
        may && (hidden(seat, group) || hidden(Seat { shard: 0, ..seat }, GroupId::METADATA))
    }

    fn count_aside(&mut self) {
        for group in self.all_groups() {
            for seat in self.seats_of_group(group) {
                let up = self.nodes[seat.node].state == NodeState::Up;
                self.aside += u64::from(up && self.is_aside(seat, group));
            }
        }
    }

    fn all_groups(&self) -> Vec<GroupId> {
        let there = self.model.groups.iter().filter(|(_, model)| model.exists == Existence::Yes);
        std::iter::once(GroupId::METADATA).chain(there.map(|(group, _)| *group)).collect()
    }

    fn seats_of_group(&self, group: GroupId) -> Vec<Seat> {
        if group == GroupId::METADATA {
            return self.seats().filter(|seat| seat.shard == 0).collect();
        }
        let Some(catalog) = &self.catalog else { return Vec::new() };
        if catalog.moves.contains_key(&group)
            && let Some(leader) = self.leader_of(group)
        {
            // A node is out that it waits for: its leader knows how far it has come.
            let members = leader.replicas.iter().filter(|replica| replica.role != ReplicaRole::Joining);
            return members.map(|replica| self.home_on(replica.node, group, replica.shard)).collect();
        }
        catalog.replicas(group).map(|place| self.home(place)).collect()
    }

    /// What its newest leader says of a group.
    fn leader_of(&self, group: GroupId) -> Option<PartitionState> {
        let states = self.seats().filter_map(|seat| Some((seat, self.shard(seat).state_of(group)?)));
        let leaders = states.filter(|(seat, state)| state.leader == seat.peer().node.0);
        leaders.map(|(_, state)| state).max_by_key(|state| state.epoch)
    }

    // ---- requests of the simulator itself ----

    /// Sends a request to where the harness believes that it belongs, until it is answered with anything but an error
    /// that passes.
    fn call(&mut self, group: GroupId, request: &Owned) -> Option<Reply> {
        let until = self.now_us + SERVE_US;
        let mut last = "nothing".to_owned();
        while !self.over() && self.now_us < until {
            match self.attempt(group, request, None) {
                Some(reply) if !reply.error().is_some_and(ErrorCode::retriable) => return Some(reply),
                other => last = other.map_or("nothing".into(), |reply| reply.describe()),
            }
            self.pause(20_000);
        }
        let what = request.describe();
        self.fail(format!("on a healthy cluster {what} does not get through; the last answer was {last}"));
        None
    }

    /// Sends a request once. `None`: it came to nothing that counts.
    fn attempt(&mut self, group: GroupId, request: &Owned, batch: Option<u64>) -> Option<Reply> {
        self.ask_the_way();
        let seat = self.leader_seat(0, group)?;
        let reply = self.call_once(seat, request.clone(), batch)?;
        if !self.is_spoilt(seat, &reply) {
            return Some(reply);
        }
        self.model.damage_reported += 1;
        if self.leads_group(seat, group) {
            // It leads what it can't serve: the operator has somebody else do it.
            self.keep_down(seat.node);
            self.await_agreement("the nodes without one with a damaged disk");
        }
        self.clients[0].forget_the_way();
        None
    }

    /// Whether an answer says that a disk which has lied can't give what is wanted.
    fn is_spoilt(&self, seat: Seat, reply: &Reply) -> bool {
        let damaged = matches!(reply.error(), Some(ErrorCode::CorruptRange | ErrorCode::LogEndUnknown));
        damaged && self.has_lied(seat.node)
    }

    fn leads_group(&self, seat: Seat, group: GroupId) -> bool {
        let state = self.shard(seat).state_of(group);
        state.is_some_and(|state| state.leader == seat.peer().node.0)
    }

    fn call_once(&mut self, seat: Seat, request: Owned, batch: Option<u64>) -> Option<Reply> {
        self.clients[0].role = Role::Harness { answer: None };
        if !self.request(0, seat, request, batch) {
            return None;
        }
        let until = self.now_us + SERVE_US;
        while !self.over() && self.now_us < until {
            if let Role::Harness { answer } = &mut self.clients[0].role
                && let Some(answer) = answer.take()
            {
                return answer;
            }
            self.step();
        }
        None
    }

    /// Asks some node for the metadata, as any client would.
    fn ask_the_way(&mut self) {
        if !self.clients[0].needs_a_map() {
            return;
        }
        let node = self.rng.below(self.config.nodes as u64) as usize;
        let reply = self.call_once(Seat { node, shard: 0 }, Owned::Metadata { start_after: 0 }, None);
        self.looked_around(0, reply.as_ref());
    }

    /// Every partition takes a write.
    fn write_to_all(&mut self) {
        for group in self.all_groups().into_iter().skip(1) {
            self.write_one(group);
        }
    }

    /// Each attempt has a batch of its own, as the outcome of the one before may be unknown.
    fn write_one(&mut self, group: GroupId) {
        let until = self.now_us + SERVE_US;
        let mut last = "nothing".to_owned();
        while !self.over() && self.now_us < until {
            let id = self.make_batch(group, None);
            let Some(batch) = self.model.batch(id).map(|batch| Rc::clone(&batch.bytes)) else { return };
            let request = Owned::Produce { group, acks: Acks::Quorum, timeout_ms: 0, batch };
            match self.attempt(group, &request, Some(id)) {
                Some(Reply::Message(Response::Produce(reply))) => {
                    let result = self.model.acked(id, &reply, true);
                    return self.check(result);
                }
                other => last = other.map_or("nothing".into(), |reply| reply.describe()),
            }
            self.pause(20_000);
        }
        self.fail(format!("{group} takes no write on a healthy cluster; the last answer was {last}"));
    }

    /// Reads every partition from its leader, from start to end: what was ever acknowledged or read is there.
    fn read_all(&mut self) {
        for group in self.all_groups().into_iter().skip(1) {
            if self.over() {
                return;
            }
            self.read_one(group);
        }
    }

    fn read_one(&mut self, group: GroupId) {
        let list = Owned::ListOffsets(ListOffsetsRequest {
            group,
            spec: OffsetSpec::Earliest,
            consistency: Consistency::Linearizable,
        });
        let Some(Reply::Message(Response::ListOffsets(start))) = self.call(group, &list) else {
            return self.fail(format!("{group}: nobody tells where the log starts"));
        };
        let (log_start, mut offset) = (start.offset, start.offset);
        let mut bases = BTreeSet::new();
        while !self.over() {
            let max_bytes = self.rng.magnitude(1, 4 << 20) as u32;
            let fetch = FetchRequest {
                group,
                offset,
                min_bytes: 0,
                max_bytes,
                max_wait_ms: 0,
                consistency: Consistency::Leader,
            };
            let reply = self.call(group, &Owned::Fetch(fetch));
            let trimmed = reply.as_ref().and_then(Reply::error) == Some(ErrorCode::OffsetOutOfRange);
            if trimmed && self.model.groups.get(&group).is_some_and(|model| !model.keeps_all) {
                return self.read_one(group);
            }
            let Some(reply @ Reply::Fetch { .. }) = reply else {
                let answer = reply.map_or("not at all".into(), |reply| reply.describe());
                return self
                    .fail(format!("{group}: a read at {offset} on a healthy cluster is answered {answer}"));
            };
            let Some(next) = self.check_fetch(&fetch, &reply) else { return };
            if next == offset {
                break;
            }
            let read = self.model.groups.get(&group);
            bases.extend(
                read.into_iter().flat_map(|model| model.entries.range(offset..next)).map(|(at, _)| *at),
            );
            offset = next;
        }
        self.check_start(group, "a reader", log_start);
        let Some(model) = self.model.groups.get(&group) else { return };
        let missing = model.entries.range(log_start..).find(|(base, _)| !bases.contains(base));
        if let Some((base, entry)) = missing {
            let id = entry.id;
            self.fail(format!(
                "{group}: batch {id} at {base} was committed and is gone; the log ends at {offset}"
            ));
        }
    }

    // ---- the replicas side by side ----

    /// All replicas that take part hold the same bytes.
    fn compare_replicas(&mut self) {
        // What a lying disk made of an epoch goes to others with a catch-up.
        let lied = self.nodes.iter().any(|node| node.lies);
        for group in self.all_groups() {
            let mut held = self.read_replicas(group);
            // Reading takes time, and what is committed meanwhile only those hold that are read later.
            for _ in 1..READINGS {
                if held.windows(2).all(|pair| matches!(pair, [(_, one), (_, other)] if one.end == other.end))
                {
                    break;
                }
                held = self.read_replicas(group);
            }
            for pair in held.windows(2) {
                let [(one, left), (other, right)] = pair else { continue };
                let agree = match lied {
                    true => left.without_epochs().agrees_with(&right.without_epochs()),
                    false => left.agrees_with(right),
                };
                if !agree {
                    self.fail(format!(
                        "{group}: {one} and {other} hold different bytes in {}..{} and {}..{}",
                        left.log_start, left.end, right.log_start, right.end
                    ));
                }
            }
        }
    }

    /// What the replicas hold that take part, one read after the other.
    fn read_replicas(&mut self, group: GroupId) -> Vec<(Seat, Held)> {
        let mut held: Vec<(Seat, Held)> = Vec::new();
        for seat in self.seats_of_group(group) {
            let state = self.shard(seat).state_of(group);
            let takes_part = self.nodes[seat.node].state == NodeState::Up && !self.is_aside(seat, group);
            if self.over() || !takes_part || state.is_none_or(|state| is_alone(&state)) {
                continue;
            }
            match self.read_replica(seat, group) {
                Some(read) => {
                    self.check_start(group, seat, read.log_start);
                    held.push((seat, read));
                }
                None if self.shard(seat).disk.tracker.lied() => self.model.damage_reported += 1,
                None => self.fail(format!("{seat} {group} can't be read though its disk never lied")),
            }
        }
        held
    }

    /// A log from which nothing may be removed starts where it began.
    fn check_start(&mut self, group: GroupId, seen_by: impl fmt::Display, log_start: i64) {
        let keeps_all = self.model.groups.get(&group).is_some_and(|model| model.keeps_all);
        if keeps_all && log_start > 0 {
            self.fail(format!("{seen_by}: {group} starts at {log_start} though nothing may be removed"));
        }
    }
}
