//! What comes in one pass, before the group's output is taken.

use pyralog_replication::raft::{EntryHead, EntryKind, Message};

use super::*;

impl World {
    /// Hands a produce and a frame of another node to a node in one pass, in this order or the other. Returns the value produced.
    fn produce_beside(
        &mut self,
        id: u32,
        group: GroupId,
        from: u32,
        frame: &Frame,
        frame_first: bool,
    ) -> Vec<u8> {
        let (now, value) = (self.now, self.value(group));
        let own = batch(now.wall_ms, None, &[&value]);
        self.correlation += 1;
        let correlation_id = self.correlation;
        self.sent.insert(correlation_id, Sent { group, value: value.clone(), session: None });
        let produce = ProduceRequest { group, acks: Acks::Quorum, timeout_ms: 0, batch: &own };
        let (control, payload) = frame;
        let mut events = [
            Event::Request { conn: ConnId(1), correlation_id, request: Request::Produce(produce) },
            Event::PeerFrame { from: peer(from), control, payload },
        ];
        if frame_first {
            events.reverse();
        }
        let engine = self.node(id).engine.as_mut().unwrap();
        let mut actions = Vec::new();
        for event in events {
            engine.handle(now, event, &mut actions);
        }
        engine.end_of_pass(now, &mut actions);
        self.carry_out(id, actions);
        value
    }
}

/// An append of the leader before comes late, for the very entry that the present one has just proposed.
#[test]
fn what_an_old_leader_sent_does_not_take_the_place_of_a_new_ones_batch() {
    let mut world = World::new(8, 3, 1, 2);
    world.heal();
    let group = world.groups[0];
    let old = world.leader(group).unwrap();
    world.crash(old);
    while world.leader(group).is_none_or(|leader| leader == old) {
        world.go_on();
    }
    world.heal();
    while !world.sent.is_empty() {
        world.go_on();
    }
    let leader = world.leader(group).unwrap();
    let replica = world.nodes[leader as usize - 1].engine.as_ref().unwrap();
    let state = replica.partition(group).unwrap();
    let last = replica.find(group).and_then(|index| replica.at(index)).unwrap();
    let last = last.replica.raft().unwrap().raft.last_index();
    let term = state.epoch - 1;
    assert!(term > 0, "there was a leader before");
    let from = world.ids().find(|id| *id != leader).unwrap();
    // As the old leader would have laid it down.
    let mut stale = batch(world.now.wall_ms, None, &[b"of the old leader"]);
    stale[..8].copy_from_slice(&state.log_end.to_be_bytes());
    stale[12..16].copy_from_slice(&term.to_be_bytes());
    let mut message = Message::new(MessageKind::Append, group, from, leader, term);
    (message.index, message.log_term) = (last, term);
    message.entries = vec![EntryHead {
        term,
        kind: EntryKind::Batch as u8,
        base_offset: state.log_end,
        next_offset: state.log_end + 1,
        bytes: stale.len() as u32,
    }];
    let control = frame::encode(&[message]);
    let value = world.produce_beside(leader, group, from, &(control, stale), false);
    world.heal();
    assert_eq!(world.acknowledged.get(&(group, state.log_end)), Some(&value));
    world.check();
}

/// A leader's first entry comes before the batches of those who wrote in the pass in which it was elected.
#[test]
fn a_batch_that_comes_with_the_last_vote_lies_behind_the_leaders_first_entry() {
    let mut world = World::new(10, 3, 1, 2);
    world.heal();
    let group = world.groups[0];
    let old = world.leader(group).unwrap();
    world.crash(old);
    let is_vote = |control: &[u8]| {
        let mut messages = frame::decode(control).unwrap().into_iter();
        messages.any(|message| {
            message.group() == group && message.kind == MessageKind::RequestVoteResponse && !message.reject
        })
    };
    let (from, to) = loop {
        let front = |queue: &VecDeque<Frame>| queue.front().is_some_and(|(control, _)| is_vote(control));
        for id in world.ids() {
            while !world.node(id).io.is_empty() {
                world.io(id);
            }
        }
        if let Some((way, _)) = world.network.iter().find(|(_, queue)| front(queue)) {
            break *way;
        }
        world.deliver();
        if world.network.values().all(VecDeque::is_empty) {
            world.tick(5_000);
        }
        assert_eq!(world.leader(group), None, "the vote was not seen");
    };
    let last_vote = world.network.get_mut(&(from, to)).and_then(VecDeque::pop_front).unwrap();
    let value = world.produce_beside(to, group, from, &last_vote, true);
    let engine = world.nodes[to as usize - 1].engine.as_ref().unwrap();
    let raft = &engine.find(group).and_then(|index| engine.at(index)).unwrap().replica.raft().unwrap().raft;
    assert!(raft.is_leader());
    let kinds = (raft.start().index + 1..=raft.last_index()).map(|index| raft.header(index).unwrap());
    let own: Vec<_> = kinds.filter(|header| header.term == raft.term()).map(|header| header.kind).collect();
    assert_eq!(own, [EntryKind::NewTerm, EntryKind::Batch]);
    world.heal();
    assert!(world.acknowledged.values().any(|known| *known == value));
    world.check();
}
