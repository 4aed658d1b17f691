//! Partitions go to another number of shards, on disks in memory.

use pyralog_core::{GroupId, ShardId};
use pyralog_net::message::Response;

use super::disk::MemDisk;
use super::harness::{Shard, batch, catalog, config};
use crate::engine::{
    Engine, EngineConfig, Event, FileId, IoError, IoErrorKind, LogLevel, Now, RecoveryDisk, Rehomed,
    RehomingDisks, recover, rehome,
};

const PARTITIONS: u32 = 6;
const NOW: Now = Now { monotonic_us: 1_000_000, wall_ms: 1_700_000_000_000 };

fn group(partition: u32) -> GroupId {
    GroupId::new(1, partition)
}

#[derive(Default)]
struct Disks {
    old: Vec<MemDisk>,
    new: Vec<MemDisk>,
    links_left: Option<usize>,
    told: Vec<(LogLevel, String)>,
}

impl RehomingDisks for Disks {
    fn before(&mut self, shard: ShardId) -> &mut dyn RecoveryDisk {
        &mut self.old[usize::from(shard.0)]
    }

    fn done_with(&mut self, _: ShardId) {}

    fn after(&mut self, shard: ShardId) -> &mut dyn RecoveryDisk {
        &mut self.new[usize::from(shard.0)]
    }

    fn link(&mut self, file: FileId, from: ShardId, to: ShardId) -> Result<(), IoError> {
        if let Some(left) = &mut self.links_left {
            *left = left
                .checked_sub(1)
                .ok_or_else(|| IoError { kind: IoErrorKind::Other, detail: "no more links".into() })?;
        }
        let missing = || IoError { kind: IoErrorKind::NotFound, detail: format!("{file:?} is not there") };
        let bytes = self.old[usize::from(from.0)].files.get(&file).cloned().ok_or_else(missing)?;
        self.new[usize::from(to.0)].files.insert(file, bytes);
        Ok(())
    }

    fn tell(&mut self, level: LogLevel, text: String) {
        self.told.push((level, text));
    }
}

fn id(generation: u64, shard: u16) -> u64 {
    77 + generation * 1_000 + u64::from(shard)
}

fn ids(generation: u64, shards: usize) -> Vec<u64> {
    (0..shards as u16).map(|shard| id(generation, shard)).collect()
}

/// What is on these disks, on so many others.
fn go(generation: u64, old: Vec<MemDisk>, shards: u16) -> (Disks, Result<Rehomed, String>) {
    let from = ids(generation, old.len());
    let new = vec![MemDisk::default(); usize::from(shards)];
    let mut disks = Disks { old, new, ..Disks::default() };
    let config = EngineConfig { shards, has_begun: true, ..config() };
    let to = ids(generation + 1, usize::from(shards));
    let done = rehome(&config, &from, &to, &mut disks, NOW).map_err(|error| error.to_string());
    (disks, done)
}

/// The shards on these disks, each with the catalogue of shard 0.
fn start(generation: u64, disks: Vec<MemDisk>) -> Vec<Shard> {
    let shards = disks.len() as u16;
    let mut all: Vec<Shard> = (0..)
        .zip(disks)
        .map(|(shard, disk)| {
            let config = EngineConfig {
                shard: ShardId(shard),
                shards,
                journal_id: id(generation, shard),
                has_begun: true,
                ..config()
            };
            Shard::start(config, disk)
        })
        .collect();
    let catalog = all[0].engine.catalog.clone().unwrap();
    for shard in &mut all[1..] {
        shard.event(Event::CatalogPublished { catalog: catalog.clone() });
    }
    for shard in &all {
        let bad: Vec<_> = shard.logs.iter().filter(|(level, _)| *level != LogLevel::Info).collect();
        assert!(bad.is_empty() && shard.recover_wanted.is_none(), "{bad:?}");
    }
    all
}

fn values(shards: &mut [Shard], partition: u32) -> Vec<Vec<u8>> {
    let count = shards.len() as u32;
    let shard = &mut shards[(partition % count) as usize];
    shard.read_all(group(partition)).into_iter().map(|(_, value)| value).collect()
}

/// Sends record `number` of a producer of its own to each partition; which offset each got.
fn send(shards: &mut [Shard], number: i32) -> Vec<i64> {
    let count = shards.len() as u32;
    let send = |partition: u32| {
        let value = [partition as u8, number as u8];
        let bytes = batch(i64::from(number), Some((500 + i64::from(partition), 0, number)), &[&value]);
        match shards[(partition % count) as usize].produce(group(partition), &bytes) {
            Response::Produce(reply) => reply.base_offset,
            other => panic!("partition {partition}: {other:?}"),
        }
    };
    (0..PARTITIONS).map(send).collect()
}

fn disks_of(shards: Vec<Shard>) -> Vec<MemDisk> {
    shards.into_iter().map(|shard| shard.disk).collect()
}

fn grown_and_shrunk(stops: bool) {
    let mut one = Shard::start(config(), MemDisk::default());
    one.create("t", PARTITIONS);
    let mut shards = vec![one];
    let mut sent = 0;
    for (generation, count) in [3, 2, 5, 1].into_iter().enumerate() {
        let generation = generation as u64;
        for _ in 0..4 {
            assert_eq!(send(&mut shards, sent), [i64::from(sent); PARTITIONS as usize]);
            sent += 1;
        }
        if stops {
            for shard in &mut shards {
                shard.event(Event::Shutdown);
                assert!(shard.stopped);
            }
        }
        let epoch = |engine: &Engine| engine.journal.incarnation();
        let newest = shards.iter().map(|shard| epoch(&shard.engine)).max().unwrap();
        let (disks, done) = go(generation, disks_of(shards), count);
        assert_eq!(done.unwrap().groups, PARTITIONS as usize + 1);
        shards = start(generation + 1, disks.new);
        assert!(shards.iter().all(|shard| epoch(&shard.engine) > newest), "an epoch went back");
        for partition in 0..PARTITIONS {
            let expected: Vec<Vec<u8>> =
                (0..sent).map(|number| vec![partition as u8, number as u8]).collect();
            assert_eq!(values(&mut shards, partition), expected, "on {count} shards");
        }
        // The last one once more.
        assert_eq!(send(&mut shards, sent - 1), [i64::from(sent) - 1; PARTITIONS as usize]);
    }
}

#[test]
fn partitions_go_to_other_shards_with_all_that_they_hold() {
    grown_and_shrunk(true);
}

#[test]
fn what_is_in_the_journal_only_goes_with_them() {
    grown_and_shrunk(false);
}

#[test]
fn the_first_start_has_little_to_replay_and_both_checkpoints_are_there() {
    let mut one = Shard::start(config(), MemDisk::default());
    one.create("t", PARTITIONS);
    let mut shards = vec![one];
    (0..20).for_each(|number| drop(send(&mut shards, number)));
    let (disks, done) = go(0, disks_of(shards), 2);
    assert_eq!(done.unwrap().entries, 0);
    for slot in [0, 1] {
        let mut new = disks.new.clone();
        for (shard, disk) in new.iter_mut().enumerate() {
            let used = disk.files.iter().filter(|(file, _)| matches!(file, FileId::Journal(_)));
            let blocks = used
                .flat_map(|(_, bytes)| bytes.chunks(4096))
                .filter(|block| block.iter().any(|byte| *byte != 0));
            assert_eq!(blocks.count(), 2, "shard {shard}: the commit that begins the journal, and a marker");
            disk.files.get_mut(&FileId::Checkpoint(slot)).unwrap()[50] ^= 1;
        }
        let mut shards: Vec<Shard> = (0..)
            .zip(new)
            .map(|(shard, disk)| {
                let config = EngineConfig {
                    shard: ShardId(shard),
                    shards: 2,
                    journal_id: id(1, shard),
                    has_begun: true,
                    ..config()
                };
                Shard::start(config, disk)
            })
            .collect();
        assert_eq!(values(&mut shards, 0).len(), 20);
        assert_eq!(values(&mut shards, 1).len(), 20);
    }
    // Without either it is not taken for an empty one.
    let mut disk = disks.new[1].clone();
    (0..2).for_each(|slot| disk.files.get_mut(&FileId::Checkpoint(slot)).unwrap()[50] ^= 1);
    let config =
        EngineConfig { shard: ShardId(1), shards: 2, journal_id: id(1, 1), has_begun: true, ..config() };
    let error = recover(config, &mut disk, NOW).unwrap_err().to_string();
    assert!(error.contains("no valid checkpoint, and the journal does not hold its beginning"), "{error}");
}

#[test]
fn what_fails_on_the_way_leaves_the_shards_as_they_were() {
    let mut one = Shard::start(config(), MemDisk::default());
    one.create("t", PARTITIONS);
    let mut shards = vec![one];
    (0..3).for_each(|number| drop(send(&mut shards, number)));
    let before = disks_of(shards);
    let mut failed = 0;
    for links in 0.. {
        let new = vec![MemDisk::default(); 2];
        let mut disks = Disks { old: before.clone(), new, links_left: Some(links), ..Disks::default() };
        let config = EngineConfig { shards: 2, has_begun: true, ..config() };
        match rehome(&config, &ids(0, 1), &ids(1, 2), &mut disks, NOW) {
            Ok(done) => {
                assert_eq!(done.files, links);
                break;
            }
            Err(error) => assert!(error.to_string().contains("no more links"), "{error}"),
        }
        failed += 1;
        let mut again = start(0, disks.old);
        (0..PARTITIONS).for_each(|partition| assert_eq!(values(&mut again, partition).len(), 3));
    }
    assert!(failed > PARTITIONS, "{failed}");
}

#[test]
fn what_the_metadata_does_not_know_stays_where_it_is() {
    let begin = |shard| {
        let config = EngineConfig { shard: ShardId(shard), shards: 2, journal_id: id(0, shard), ..config() };
        Shard::start(config, MemDisk::default())
    };
    let (first, mut second) = (begin(0), begin(1));
    second.event(Event::CatalogPublished { catalog: std::sync::Arc::new(catalog(&["t"])) });
    let reply = second.produce(group(0), &batch(0, None, &[b"x"]));
    assert!(matches!(reply, Response::Produce(_)), "{reply:?}");
    let (_, done) = go(0, vec![first.disk, second.disk], 1);
    let error = done.unwrap_err();
    for text in
        ["shard 1 has partition 1-0, which its metadata does not know yet", "runtime.shards = 2", "linked"]
    {
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn a_journal_with_damage_stays_on_its_shards() {
    let mut one = Shard::start(config(), MemDisk::default());
    one.create("t", PARTITIONS);
    let mut shards = vec![one];
    (0..9).for_each(|number| drop(send(&mut shards, number)));
    let mut disks = disks_of(shards);
    let journal = disks[0].files.get_mut(&FileId::Journal(0)).unwrap();
    // In the middle of what was written, behind its first commits.
    let used = journal.chunks(4096).take_while(|block| block.iter().any(|byte| *byte != 0)).count();
    journal[used / 2 * 4096 + 200] ^= 1;
    let (_, done) = go(0, disks, 2);
    let error = done.unwrap_err();
    for text in ["can't go from 1 shards to 2", "runtime.shards = 1", "Nothing was changed"] {
        assert!(error.contains(text), "{error}");
    }
}
