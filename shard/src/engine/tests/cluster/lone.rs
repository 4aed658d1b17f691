//! The journal of a group's only voter is damaged: nobody else has what it had.

use super::moving::{move_to, resize};
use super::*;

/// A partition that has moved, so that its only replica is a group, with so many batches in the journal and nowhere else.
fn with_a_lone_voter(seed: u64, batches: usize) -> (World, u32) {
    let mut world = World::with_copies(seed, 3, 1, 1, 1);
    world.config.max_buffer_time_us = 3_600_000_000;
    world.ids().for_each(|id| world.crash(id));
    world.heal();
    let group = world.groups[0];
    let to = world.leader(group).unwrap() % 3 + 1;
    assert_eq!(world.answer_to(|world| move_to(world, 0, vec![to])), Response::ReassignPartition);
    world.heal();
    world.produce_in_group(group, batches);
    assert_eq!(world.leader(group), Some(to));
    (world, to)
}

/// Where the journal of a node has batches of a group: file, place of the commit, place of the body, offset.
fn batches(world: &mut World, id: u32, group: GroupId) -> Vec<(FileId, usize, usize, i64)> {
    let mut found = Vec::new();
    for (file, bytes) in &world.node(id).disk.files {
        if !matches!(file, FileId::Journal(_)) {
            continue;
        }
        for at in (0..bytes.len()).step_by(4096) {
            let Ok(header) = CommitHeader::decode(&bytes[at..at + 4096]) else { continue };
            let payload = at + COMMIT_HEADER_BYTES;
            let mut frames = Vec::new();
            let end = payload + header.payload_len as usize;
            if header.verify_frames(&bytes[payload..end], &mut frames).is_err() {
                continue;
            }
            let of_group = frames.iter().filter(|(frame, _)| {
                frame.kind == FrameKind::Batch && frame.group == group && frame.index > 0
            });
            found.extend(of_group.map(|(frame, body)| (*file, at, payload + body, frame.base_offset)));
        }
    }
    found.sort_unstable_by_key(|(.., offset)| *offset);
    found
}

/// By offset.
type Values = BTreeMap<i64, Vec<u8>>;

/// What can be read, and what is refused.
fn readable(world: &mut World, id: u32, group: GroupId) -> (Values, Vec<(i64, i64)>) {
    let engine = world.node(id).engine.as_ref().unwrap();
    let partition = engine.at(engine.find(group).unwrap()).unwrap();
    let (damaged, end) = (partition.damaged.clone(), partition.replica.high_watermark());
    let (mut values, mut offset, mut scratch) = (BTreeMap::new(), 0, Vec::new());
    while offset < end {
        if let Some((_, to)) = damaged.iter().find(|(from, to)| (*from..*to).contains(&offset)) {
            offset = *to;
            continue;
        }
        world.correlation += 1;
        let (correlation_id, consistency) = (world.correlation, Consistency::Leader);
        let (min_bytes, max_bytes, max_wait_ms) = (0, 1 << 20, 0);
        let fetch = FetchRequest { group, offset, min_bytes, max_bytes, max_wait_ms, consistency };
        let bytes = world.fetch(id, correlation_id, fetch);
        let (batch, _) = BatchView::parse(&bytes).unwrap();
        assert!(batch.verify_crc() && batch.base_offset() == offset);
        for record in batch.records(&mut scratch).unwrap() {
            let record = record.unwrap();
            values.insert(record.offset, record.value.unwrap().to_vec());
        }
        offset = batch.last_offset() + 1;
    }
    (values, damaged)
}

fn refuses_writes(world: &mut World, id: u32, group: GroupId) {
    world.admin += 1;
    let (correlation_id, bytes) = (world.admin, batch(world.now.wall_ms, None, &[b"no"]));
    let produce = ProduceRequest { group, acks: Acks::Quorum, timeout_ms: 0, batch: &bytes };
    world.event(id, Event::Request { conn: ConnId(1), correlation_id, request: Request::Produce(produce) });
    let Some(Response::Error(error)) = world.answer.take() else { panic!("{:?}", world.answer) };
    assert_eq!(error.code, ErrorCode::LogEndUnknown, "{error:?}");
}

/// Damages a place of the journal, starts the node, and looks at what is there, also after the next crash.
fn only_that_is_missing(seed: u64, count: usize, damaged: usize, in_header: bool) {
    let (mut world, holder) = with_a_lone_voter(seed, count);
    let group = world.groups[0];
    let acknowledged: BTreeMap<i64, Vec<u8>> =
        world.acknowledged.iter().map(|((_, offset), value)| (*offset, value.clone())).collect();
    let batches = batches(&mut world, holder, group);
    assert_eq!(batches.len(), count);
    let (file, commit, body, offset) = batches[damaged];
    world.crash(holder);
    let node = world.node(holder);
    node.lossy = true;
    node.voted.clear();
    let at = if in_header { commit + 20 } else { body + 70 };
    node.disk.files.get_mut(&file).unwrap()[at] ^= 4;
    for round in 0..3 {
        world.start(holder);
        world.settle_leaders();
        let (values, missing) = readable(&mut world, holder, group);
        let lacking: Vec<i64> = acknowledged.keys().copied().filter(|it| !values.contains_key(it)).collect();
        assert_eq!(lacking, [offset], "round {round}: {missing:?}");
        assert!(values.iter().all(|(offset, value)| acknowledged[offset] == *value));
        refuses_writes(&mut world, holder, group);
        world.crash(holder);
        // In the last round it is in segments.
        world.config.max_buffer_time_us = 1_000;
    }
}

#[test]
fn what_is_intact_is_served_and_nothing_is_taken() {
    for in_header in [false, true] {
        for damaged in [0, 3, 6] {
            only_that_is_missing(31, 8, damaged, in_header);
        }
    }
}

/// With others, it is one of several whose journal is damaged, and they have what it has lost.
#[test]
fn one_that_has_others_by_then_gets_it_from_them() {
    for damaged in [0, 3, 6] {
        let (mut world, holder) = with_a_lone_voter(32, 8);
        let group = world.groups[0];
        let places = batches(&mut world, holder, group);
        let to = [holder, holder % 3 + 1, (holder + 1) % 3 + 1].to_vec();
        assert_eq!(world.answer_to(|world| resize(world, 3)), Response::AlterTopic);
        let answer = world.answer_to(|world| move_to(world, 0, to.clone()));
        assert_eq!(answer, Response::ReassignPartition);
        world.heal();
        world.crash(holder);
        let (file, _, body, _) = places[damaged];
        let node = world.node(holder);
        (node.settled, node.lossy) = (false, true);
        node.voted.clear();
        node.disk.files.get_mut(&file).unwrap()[body + 70] ^= 4;
        world.start(holder);
        world.heal();
        world.check();
        assert_eq!(world.acknowledged.len(), 8);
    }
}
