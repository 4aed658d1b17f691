//! Who counts as in sync.

use super::World;

/// Nothing is said in a group that nobody writes to. Its followers have everything all that time.
#[test]
fn the_first_writes_after_a_quiet_time_are_taken() {
    let mut world = World::new(2, 3, 1, 2);
    world.heal();
    let group = world.groups[0];
    let leader = world.leader(group).unwrap();
    for _ in 0..60_000 {
        world.go_on();
        world.tick(1_000);
    }
    assert_eq!(world.leader(group), Some(leader), "sixty quiet seconds");
    world.sent.clear();
    let before = world.acknowledged.len();
    // The second comes before anybody has answered for the first.
    world.produce(leader, group);
    world.produce(leader, group);
    assert_eq!(world.sent.len(), 2, "neither is refused");
    for _ in 0..1_000 {
        world.go_on();
    }
    assert_eq!(world.acknowledged.len(), before + 2);
}
