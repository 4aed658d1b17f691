//! What clients are told by replicas that damage has put aside.

use super::*;

/// Its journal hides what it has promised, and it leads nothing: whoever wants to write has to ask another one.
#[test]
fn a_replica_that_lost_what_it_promised_sends_writers_to_the_others() {
    let mut sent_on = 0;
    for seed in 0..10 {
        let mut world = World::new(seed, 3, 1, 2);
        world.heal();
        let group = world.groups[0];
        world.damage_journal(2);
        world.start(2);
        for _ in 0..200 {
            world.admin += 1;
            let correlation_id = world.admin;
            let batch = batch(world.now.wall_ms, None, &[b"to whoever leads"]);
            let produce = ProduceRequest { group, acks: Acks::Quorum, timeout_ms: 0, batch: &batch };
            let request = Request::Produce(produce);
            world.event(2, Event::Request { conn: ConnId(1), correlation_id, request });
            match world.answer.take() {
                Some(Response::Error(error)) => {
                    assert!(error.code.retriable(), "seed {seed}: {error:?}");
                    sent_on += usize::from(error.code == ErrorCode::NotLeader);
                }
                other => panic!("seed {seed}: node 2 leads nothing and answers {other:?}"),
            }
            world.io(2);
        }
    }
    assert!(sent_on > 0, "nobody was sent on");
}
