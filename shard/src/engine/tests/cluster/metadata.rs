//! What the leader of the metadata answers administrators, as leaders come and go.

use super::*;

impl World {
    /// A frame arrives, and in the same pass a request. True: the request was refused at once.
    fn deliver_with(&mut self, request: Request<'_>) -> bool {
        let Some((way, queue)) = self.network.iter_mut().find(|(_, queue)| !queue.is_empty()) else {
            return true;
        };
        let ((from, to), Some((control, payload))) = (*way, queue.pop_front()) else { return true };
        self.admin += 1;
        let (now, correlation_id) = (self.now, self.admin);
        let Some(engine) = self.node(to).engine.as_mut() else { return true };
        let mut actions = Vec::new();
        let frame = Event::PeerFrame { from: peer(from), control: &control, payload: &payload };
        engine.handle(now, frame, &mut actions);
        engine.handle(now, Event::Request { conn: ConnId(1), correlation_id, request }, &mut actions);
        engine.end_of_pass(now, &mut actions);
        self.carry_out(to, actions);
        self.answer.take().is_some_and(|answer| {
            assert!(
                matches!(&answer, Response::Error(error) if error.code == ErrorCode::NotController),
                "{answer:?}"
            );
            true
        })
    }
}

#[test]
fn a_new_controller_goes_on_from_what_it_has_followed() {
    let followed = || {
        let mut world = World::new(1, 3, 1, 2);
        world.heal();
        let leader = world.leader(GroupId::METADATA).unwrap();
        world.crash(leader);
        world.await_controller_but(leader);
        world
    };
    let mut world = followed();
    let next = world.groups[0].topic.0 + 1;
    let created = world.answer_to(|world| world.create_topic("new", 1));
    assert!(matches!(&created, Response::CreateTopic(reply) if reply.id == next), "{created:?}");
    let delete = Request::DeleteTopic(DeleteTopicRequest { name: "replicated" });
    let deleted = followed().answer_to(|world| world.administer(delete.clone()));
    assert!(matches!(deleted, Response::DeleteTopic), "{deleted:?}");
}

#[test]
fn a_controller_forgets_what_it_could_not_commit() {
    let mut world = World::new(2, 3, 1, 2);
    world.heal();
    let first = world.leader(GroupId::METADATA).unwrap();
    // Its command goes nowhere; the one that the others commit takes its place.
    for other in world.ids() {
        world.cut.insert(pair(first, other));
        world.unlink(first, other);
    }
    world.create_topic("lost", 1);
    world.await_controller_but(first);
    let lost = world.answer_to(|_| {});
    assert!(matches!(&lost, Response::Error(error) if error.code == ErrorCode::LeaderChanged), "{lost:?}");
    let created = world.answer_to(|world| world.create_topic("kept", 1));
    assert!(matches!(created, Response::CreateTopic(_)), "{created:?}");
    let mut leader = 0;
    while leader != first {
        world.heal();
        let before = world.leader(GroupId::METADATA).unwrap();
        world.crash(before);
        leader = world.await_controller_but(before);
    }
    let again = world.answer_to(|world| world.create_topic("lost", 1));
    assert!(matches!(again, Response::CreateTopic(_)), "{again:?}");
}

/// The new leader learns in one pass that a topic is committed, and is asked to delete it.
#[test]
fn a_new_controller_answers_from_all_that_was_committed() {
    let mut world = World::new(3, 3, 1, 2);
    world.heal();
    let first = world.leader(GroupId::METADATA).unwrap();
    world.create_topic("late", 1);
    // The others have it, and do not know that it is committed.
    for other in world.ids().filter(|other| *other != first) {
        while let Some((control, payload)) =
            world.network.get_mut(&(first, other)).and_then(VecDeque::pop_front)
        {
            world.event(other, Event::PeerFrame { from: peer(first), control: &control, payload: &payload });
        }
        while !world.node(other).io.is_empty() {
            world.io(other);
        }
    }
    world.crash(first);
    let delete = Request::DeleteTopic(DeleteTopicRequest { name: "late" });
    let mut refused = true;
    for _ in 0..40_000 {
        for id in world.ids() {
            (1..id).for_each(|other| world.link(other, id));
            while !world.node(id).io.is_empty() {
                world.io(id);
            }
        }
        if world.network.values().all(VecDeque::is_empty) {
            world.tick(5_000);
        } else {
            refused = world.deliver_with(delete.clone());
        }
        if !refused {
            break;
        }
    }
    assert!(!refused, "nobody leads the metadata");
    let deleted = world.answer_to(|_| {});
    assert!(matches!(deleted, Response::DeleteTopic), "{deleted:?}");
}
