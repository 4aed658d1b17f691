//! Many groups that want a leader at the same moment.

use pyralog_core::GroupId;
use pyralog_replication::raft::Role;

use super::World;

fn candidates(world: &World, id: u32) -> usize {
    let engine = world.nodes[id as usize - 1].engine.as_ref().unwrap();
    let roles = engine.each_partition().filter_map(|partition| partition.replica.raft());
    roles.filter(|replica| replica.raft.role() == Role::Candidate).count()
}

fn go_on_until_all_are_led(world: &mut World) {
    for _ in 0..200_000 {
        world.go_on();
        let led = |group: &GroupId| world.leader(*group).is_some();
        if !world.groups.is_empty() && world.groups.iter().all(led) {
            return;
        }
    }
    let led = world.groups.iter().filter(|group| world.leader(**group).is_some()).count();
    panic!("{led} of {} groups have a leader", world.groups.len());
}

#[test]
fn only_so_many_groups_campaign_at_once_and_all_get_their_leader() {
    let mut world = World::new(3, 3, 400, 2);
    go_on_until_all_are_led(&mut world);
    let leads =
        |world: &World, id| world.groups.iter().filter(|group| world.leader(**group) == Some(id)).count();
    let victim = world.ids().max_by_key(|id| leads(&world, *id)).unwrap();
    assert!(leads(&world, victim) > 128, "more than two shards may campaign for at once");
    world.crash(victim);
    // The time of all of them comes before anybody answers.
    world.tick(1_000_000);
    for id in world.ids().filter(|id| *id != victim) {
        // One whose campaign has come to nothing is a candidate until its next turn.
        assert!((64..=66).contains(&candidates(&world, id)), "node {id}: {}", candidates(&world, id));
    }
    go_on_until_all_are_led(&mut world);
}
