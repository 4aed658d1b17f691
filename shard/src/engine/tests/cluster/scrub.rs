//! Segments that rot on one node and are whole on the others.

use super::*;
use pyralog_net::message::ScrubRequest;

/// What becomes of a segment's file.
#[derive(Clone, Copy, Debug)]
enum Rot {
    /// A bit of this byte flips.
    Flip(usize),
    /// So many bytes are left.
    Cut(usize),
    Gone,
}

impl Rot {
    fn hit(self, disk: &mut MemDisk, file: FileId) {
        let bytes = disk.files.get_mut(&file).unwrap();
        match self {
            Self::Flip(at) => bytes[at] ^= 0x10,
            Self::Cut(len) => bytes.truncate(len),
            Self::Gone => _ = disk.files.remove(&file),
        }
    }
}

/// Three nodes with a partition that is in segments, and the segment that they all have.
fn with_segments(seed: u64) -> (World, GroupId, FileId) {
    let mut world = World::new(seed, 3, 1, 2);
    world.heal();
    world.settle_leaders();
    let group = world.groups[0];
    world.values_bytes = 9_000;
    world.produce_in_group(group, 60);
    world.go_on_until("all have it in segments", |world| {
        let state = |id| world.nodes[id as usize - 1].engine.as_ref()?.partition(group);
        world.ids().all(|id| state(id).is_some_and(|state| state.flushed == state.log_end))
    });
    // None of them has anything in memory, or a segment to which it appends.
    world.ids().for_each(|id| world.crash(id));
    world.heal();
    let longest = |id: u32| {
        let files = world.nodes[id as usize - 1].disk.files.iter();
        let segments = files.filter(|(file, _)| matches!(file, FileId::Segment(of, _) if *of == group));
        segments.max_by_key(|(_, bytes)| bytes.len()).map(|(file, _)| *file)
    };
    let file = longest(1).unwrap();
    (world, group, file)
}

fn scrub(world: &mut World, id: u32) {
    let request = Request::Scrub(ScrubRequest { start: true });
    world.event(id, Event::Request { conn: ConnId(1), correlation_id: ADMIN, request });
}

fn counters(world: &World, id: u32) -> crate::engine::ScrubCounters {
    world.nodes[id as usize - 1].engine.as_ref().unwrap().status().counters.scrub
}

fn health(world: &World, id: u32, group: GroupId) -> PartitionHealth {
    world.nodes[id as usize - 1].engine.as_ref().unwrap().partition(group).unwrap().health
}

#[test]
fn what_rots_is_found_and_repaired_from_another_replica() {
    let (mut world, group, file) = with_segments(1);
    let id = 1;
    let whole = world.node(id).disk.files[&file].clone();
    let len = whole.len();
    assert!(len > 200_000, "{len}");
    // The length, the version, the checksum and a record of the first batch; one in the middle; the end.
    let flips = [10, 16, 18, 100, len / 2, len - 1].map(Rot::Flip);
    let rots = flips.into_iter().chain([Rot::Cut(len / 2), Rot::Cut(0), Rot::Cut(len - 1), Rot::Gone]);
    world.node(id).lossy = true;
    for (nth, rot) in (1..).zip(rots) {
        rot.hit(&mut world.node(id).disk, file);
        scrub(&mut world, id);
        world.go_on_until("it is repaired", |world| counters(world, id).passes == nth);
        assert_eq!(world.node(id).disk.files[&file], whole, "{rot:?}");
        assert_eq!(health(&world, id, group), PartitionHealth::Online, "{rot:?}");
        let counters = counters(&world, id);
        assert_eq!((counters.damaged, counters.repaired, counters.failed), (nth, nth, 0), "{rot:?}");
    }
    // Not the whole segment for each of them: four of ten were about the half of it, or all.
    let repaired = counters(&world, id).repaired_bytes;
    assert!(repaired < 4 * len as u64, "{repaired} bytes were fetched");
    world.node(id).lossy = false;
    world.heal();
    world.check();
}

/// While nobody can give what is damaged it is refused, also after a restart; as soon as somebody can it is repaired, without
/// another scrub.
#[test]
fn damage_stays_refused_until_somebody_can_repair_it() {
    let (mut world, group, file) = with_segments(2);
    let id = 1;
    let whole = world.node(id).disk.files[&file].clone();
    world.node(id).lossy = true;
    for other in [2, 3] {
        world.cut.insert(pair(id, other));
        world.unlink(id, other);
    }
    Rot::Flip(whole.len() / 2).hit(&mut world.node(id).disk, file);
    let checkpoints =
        |world: &World| world.nodes[id as usize - 1].engine.as_ref().unwrap().status().counters.checkpoints;
    let before = checkpoints(&world);
    scrub(&mut world, id);
    world.go_on_until("it is found", |world| counters(world, id).passes == 1);
    assert_eq!(health(&world, id, group), PartitionHealth::Damaged);
    world.go_on_until("a checkpoint says so", |world| checkpoints(world) > before);
    world.crash(id);
    world.start(id);
    world.go_on_until("it serves again", |world| {
        world.nodes[id as usize - 1].engine.as_ref().is_some_and(|engine| engine.status().ready)
    });
    assert_eq!(health(&world, id, group), PartitionHealth::Damaged);
    world.cut.clear();
    world.go_on_until("it is repaired", |world| counters(world, id).repaired == 1);
    assert_eq!(world.node(id).disk.files[&file], whole);
    assert_eq!(health(&world, id, group), PartitionHealth::Online);
    world.node(id).lossy = false;
    world.heal();
    world.check();
}

/// Others of which one has rotted at the same place.
#[test]
fn who_has_rotted_as_well_is_passed_over() {
    let (mut world, group, file) = with_segments(3);
    let whole = world.node(1).disk.files[&file].clone();
    for id in [1, 2] {
        world.node(id).lossy = true;
        Rot::Flip(whole.len() / 2).hit(&mut world.node(id).disk, file);
    }
    for id in [1, 2] {
        scrub(&mut world, id);
        world.go_on_until("it is repaired", |world| counters(world, id).repaired == 1);
        assert_eq!(world.node(id).disk.files[&file], whole);
        assert_eq!(health(&world, id, group), PartitionHealth::Online);
        world.node(id).lossy = false;
    }
    world.heal();
    world.check();
}

/// A leader that was cut off has a batch of its own where the others have committed another one, of the same size. One of these has
/// rotted, and can reach only the first; and one that has rotted as well.
fn repaired_by_who_was_cut_off(change: impl Fn(&mut EngineConfig)) -> Result<PartitionHealth, String> {
    let mut world = World::new(8, 3, 1, 2);
    change(&mut world.config);
    world.ids().for_each(|id| world.crash(id));
    world.heal();
    world.settle_leaders();
    let group = world.groups[0];
    let former = world.leader(group).unwrap();
    for other in world.ids().filter(|id| *id != former) {
        world.unlink(former, other);
        world.cut.insert(pair(former, other));
    }
    world.produce_for(former, group, Acks::Leader, &[1; 500]);
    while !world.node(former).io.is_empty() {
        world.io(former);
    }
    assert!(matches!(world.answer.take(), Some(Response::Produce(_))));
    let led_by = |world: &World| world.leader(group).filter(|id| *id != former);
    world.go_on_until("another one leads", |world| led_by(world).is_some());
    let leader = led_by(&world).unwrap();
    let others: Vec<u32> = world.ids().filter(|id| *id != former).collect();
    world.produce_for(leader, group, Acks::Quorum, &[2; 500]);
    world.go_on_until("it is in segments", |world| {
        let state = |id: u32| world.nodes[id as usize - 1].engine.as_ref()?.partition(group);
        others.iter().all(|id| state(*id).is_some_and(|state| state.flushed > 0))
    });
    // Neither has it in memory.
    others.iter().for_each(|id| world.crash(*id));
    others.iter().for_each(|id| world.start(*id));
    world.go_on_until("one of them leads again", |world| led_by(world).is_some());
    let leader = led_by(&world).unwrap();
    let last = others.iter().copied().find(|id| *id != leader).unwrap();
    let files = world.node(last).disk.files.keys().copied();
    let file = files.into_iter().find(|file| matches!(file, FileId::Segment(of, _) if *of == group)).unwrap();
    let whole = world.node(last).disk.files[&file].clone();
    for id in [leader, last] {
        world.node(id).lossy = true;
        Rot::Flip(whole.len() / 2).hit(&mut world.node(id).disk, file);
    }
    // The last one reaches both, and they don't reach each other: who was cut off hears nothing of what was decided.
    world.cut.remove(&pair(former, last));
    let health_of = |world: &World| health(world, last, group);
    scrub(&mut world, last);
    world.go_on_until("it is repaired, or not", |world| {
        let told = counters(world, last);
        told.passes == 1 && (told.failed > 0 || told.repaired > 0)
    });
    match health_of(&world) {
        PartitionHealth::Online if world.node(last).disk.files[&file] != whole => {
            Err("what was never committed is served".into())
        }
        health => Ok(health),
    }
}

#[test]
fn what_is_not_committed_repairs_nothing() {
    assert_eq!(repaired_by_who_was_cut_off(|_| {}), Ok(PartitionHealth::Damaged));
}

#[cfg(feature = "planted-bugs")]
#[test]
fn repair_from_an_uncommitted_peer_is_caught() {
    use crate::engine::planted::PlantedBug;
    let planted = |config: &mut EngineConfig| config.planted = Some(PlantedBug::RepairFromUncommitted);
    assert!(repaired_by_who_was_cut_off(planted).is_err());
}

/// A disk that takes every write and keeps none of what is written where it has rotted.
#[test]
fn a_disk_that_does_not_keep_what_is_written_stays_refused() {
    let (mut world, group, file) = with_segments(6);
    let id = 1;
    world.node(id).lossy = true;
    let at = world.node(id).disk.files[&file].len() / 2;
    Rot::Flip(at).hit(&mut world.node(id).disk, file);
    scrub(&mut world, id);
    // It rots again as soon as it is written.
    for _ in 0..100_000 {
        if counters(&world, id).failed > 0 {
            break;
        }
        while !world.node(id).io.is_empty() {
            let before = world.node(id).disk.files[&file].clone();
            world.io(id);
            let bytes = world.node(id).disk.files.get_mut(&file).unwrap();
            if *bytes != before {
                bytes[at] ^= 0x10;
            }
        }
        world.go_on();
    }
    let told = counters(&world, id);
    assert_eq!((told.damaged, told.repaired, told.failed), (1, 0, 1), "{told:?}");
    assert!(told.repaired_bytes > 0 && health(&world, id, group) == PartitionHealth::Damaged);
}

/// A topic that goes while one of its segments is repaired: its files go when the write is done.
#[test]
fn a_topic_that_goes_while_it_is_repaired_leaves_no_file() {
    let (mut world, group, file) = with_segments(4);
    let id = 1;
    world.node(id).lossy = true;
    Rot::Flip(500).hit(&mut world.node(id).disk, file);
    scrub(&mut world, id);
    let writes = |world: &World| {
        let ops = world.nodes[id as usize - 1].io.iter();
        ops.into_iter().any(|(_, op)| matches!(op, IoOp::Write { file: of, .. } if *of == file))
    };
    while !writes(&world) {
        world.step();
    }
    let leader = world.leader(GroupId::METADATA).unwrap();
    let request = Request::DeleteTopic(DeleteTopicRequest { name: "replicated" });
    world.event(leader, Event::Request { conn: ConnId(1), correlation_id: ADMIN, request });
    let here = |world: &World| world.nodes[id as usize - 1].engine.as_ref().unwrap().partition(group);
    // Everything but the write goes on.
    let at = world
        .node(id)
        .io
        .iter()
        .position(|(_, op)| matches!(op, IoOp::Write { file: of, .. } if *of == file));
    let write = at.map(|at| world.node(id).io.swap_remove(at)).unwrap();
    world.sent.clear();
    while here(&world).is_some() || !world.node(id).io.is_empty() {
        for id in world.ids() {
            world.io(id);
        }
        world.deliver();
        world.tick(1_000);
    }
    let (token, op) = write;
    let result = world.node(id).disk.run(op);
    world.event(id, Event::IoDone { token, result });
    for _ in 0..1_000 {
        world.io(id);
        world.tick(1_000);
    }
    world.node(id).lossy = false;
    assert!(!world.has_files_of(id, group), "{:?}", world.node(id).disk.files.keys());
}

/// The index is derived: it is made again from the segment.
#[test]
fn an_index_that_has_rotted_is_made_again() {
    let (mut world, group, file) = with_segments(5);
    let FileId::Segment(_, base) = file else { panic!("{file:?}") };
    let (id, index) = (1, FileId::Index(group, base));
    let whole = world.node(id).disk.files[&index].clone();
    assert!(whole.len() > 32 + 2 * 24, "{}", whole.len());
    world.node(id).lossy = true;
    let rots = [Rot::Flip(3), Rot::Flip(whole.len() - 10), Rot::Cut(40), Rot::Gone];
    for (nth, rot) in (1..).zip(rots) {
        rot.hit(&mut world.node(id).disk, index);
        scrub(&mut world, id);
        world.go_on_until("all is read", |world| counters(world, id).passes == nth);
        assert_eq!(world.node(id).disk.files[&index], whole, "{rot:?}");
        assert_eq!((counters(&world, id).indexes, counters(&world, id).damaged), (nth, 0), "{rot:?}");
    }
    // What is behind its end goes.
    world.node(id).disk.files.get_mut(&index).unwrap().extend_from_slice(&[7; 30]);
    scrub(&mut world, id);
    world.go_on_until("all is read", |world| counters(world, id).passes == 5);
    assert_eq!(world.node(id).disk.files[&index], whole);
}
