//! The scan against generated journals: several files, recycled, several lives, torn writes, and damage.

mod model;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::format::journal::{FRAME_HEADER_BYTES, FrameKind};
use crate::memory::ChunkPool;
use model::{Disk, ID, Model, REGION, Rng};

type Frames = Vec<(FrameHeader, Vec<u8>)>;

/// Everything that a scan gave.
struct Found {
    pool: ChunkPool,
    commits: BTreeMap<u64, (CommitHeader, Frames)>,
    /// In the order in which things came: commits by their lsn, damage by its first.
    order: Vec<u64>,
    damages: Vec<Damage>,
    kept: Vec<Rc<Chunk>>,
}

impl Found {
    fn new() -> Self {
        let pool = ChunkPool::new(64 << 20);
        Self { pool, commits: BTreeMap::new(), order: Vec::new(), damages: Vec::new(), kept: Vec::new() }
    }

    fn reports(&self, lsn: u64) -> bool {
        self.damages.iter().any(|damage| (damage.first_lsn..=damage.last_lsn).contains(&lsn))
    }
}

impl ScanSink for Found {
    fn chunk(
        &mut self,
        _disk: &mut dyn RecoveryDisk,
        last: Option<Rc<Chunk>>,
    ) -> Result<Rc<Chunk>, ScanError> {
        let reused = last.filter(|chunk| Rc::strong_count(chunk) == 1);
        reused.or_else(|| self.pool.chunk(REGION)).ok_or_else(|| ScanError::Sink("no memory".into()))
    }

    fn commit(
        &mut self,
        header: &CommitHeader,
        chunk: &Rc<Chunk>,
        frames: &[(FrameHeader, usize)],
    ) -> Result<(), ScanError> {
        let frames =
            frames.iter().map(|(frame, at)| (*frame, chunk.bytes(*at, frame.body_len as usize).to_vec()));
        assert!(self.commits.insert(header.lsn, (*header, frames.collect())).is_none(), "delivered twice");
        self.order.push(header.lsn);
        if header.lsn.is_multiple_of(3) {
            self.kept.push(Rc::clone(chunk));
        }
        Ok(())
    }

    fn damage(&mut self, damage: Damage) -> Result<(), ScanError> {
        assert!(damage.first_lsn <= damage.last_lsn);
        self.order.push(damage.first_lsn);
        self.damages.push(damage);
        Ok(())
    }
}

fn run(disk: &mut Disk, from: Option<ReplayPoint>) -> (Result<ScanEnd, ScanError>, Found) {
    let mut found = Found::new();
    let files = disk.lengths();
    let end = Scanner { journal_id: ID, region_bytes: REGION }.scan(disk, &files, from, &mut found);
    (end, found)
}

/// A journal after `steps` things happened to it.
fn journal(seed: u64, steps: usize) -> Model {
    let mut model = Model::new(seed);
    for _ in 0..steps {
        model.step();
    }
    model
}

/// No wrong record, everything in order: holds whatever the disk did.
fn check_nothing_wrong(model: &Model, found: &Found) -> Result<(), TestCaseError> {
    prop_assert!(found.order.is_sorted(), "in order: {:?}", found.order);
    for (lsn, (_, frames)) in &found.commits {
        let written = model.log.get(lsn);
        prop_assert!(written.is_some(), "commit {lsn} was never part of the log");
        let mut rest = written.unwrap().frames.iter();
        for frame in frames {
            prop_assert!(rest.any(|real| real == frame), "a frame of commit {lsn} that was not written so");
        }
    }
    Ok(())
}

/// Nothing durable is silently missing: what was not delivered whole is reported, up to the log's end, and that is
/// not below the durable point that the disk still proves.
fn check_nothing_hidden(model: &Model, found: &Found, end: &ScanEnd) -> Result<(), TestCaseError> {
    prop_assert!(end.next_lsn > model.proven_durable(), "{} {}", end.next_lsn, model.proven_durable());
    for (lsn, written) in model.log.range(model.from.lsn..end.next_lsn) {
        let delivered = found.commits.get(lsn).map(|commit| commit.1.len());
        prop_assert!(
            delivered == Some(written.frames.len()) || found.reports(*lsn),
            "commit {lsn} is hidden"
        );
    }
    Ok(())
}

/// Everything in `first..end` was delivered whole.
fn check_complete(model: &Model, found: &Found, end: u64) -> Result<(), TestCaseError> {
    prop_assert!(found.damages.is_empty(), "{:?}", found.damages);
    let lsns: Vec<u64> = found.commits.keys().copied().collect();
    prop_assert_eq!(lsns, (model.from.lsn..end).collect::<Vec<_>>());
    for (lsn, (header, frames)) in &found.commits {
        prop_assert_eq!(header, &model.log[lsn].header);
        prop_assert_eq!(frames, &model.log[lsn].frames);
    }
    Ok(())
}

/// Some commit of the log that a replay reads, or `None` when there is none.
fn pick(model: &mut Model, seed: u64) -> Option<u64> {
    let lsns: Vec<u64> = model.log.range(model.from.lsn..).map(|(lsn, _)| *lsn).collect();
    lsns.get(Rng(seed).below(lsns.len())).copied()
}

/// After one commit was damaged: below the durable point it is reported and everything else is delivered, above it
/// the log ends before it.
fn check_one_damaged(model: &mut Model, hit: u64) -> Result<(), TestCaseError> {
    let durable = model.proven_durable();
    let (end, found) = run(&mut model.disk.clone(), Some(model.from));
    let end = end.unwrap();
    check_nothing_wrong(model, &found)?;
    check_nothing_hidden(model, &found, &end)?;
    if hit > durable {
        prop_assert_eq!(end.next_lsn, hit, "a torn tail");
        return check_complete(model, &found, hit);
    }
    prop_assert!(found.reports(hit), "damage below the durable point is reported");
    prop_assert_eq!(end.next_lsn, model.next_lsn(), "and nothing behind it is cut off");
    for (lsn, written) in model.log.range(model.from.lsn..).filter(|(lsn, _)| **lsn != hit) {
        prop_assert_eq!(
            found.commits.get(lsn).map(|commit| &commit.1),
            Some(&written.frames),
            "commit {}",
            lsn
        );
        prop_assert!(!found.reports(*lsn), "commit {} is intact", lsn);
    }
    Ok(())
}

/// A commit whose neighbours a later life can't read any more is still found, behind the damage.
fn check_between(seed: u64, steps: usize, at: u64) -> Result<(), TestCaseError> {
    let mut model = journal(seed, steps);
    model.crash();
    let life = |lsn: u64| model.log.get(&lsn).map(|written| written.header.incarnation);
    let ends = model.log.range(model.from.lsn + 1..).map(|(lsn, _)| *lsn);
    let between: Vec<u64> = ends
        .filter(|lsn| {
            (1..3).all(|step| life(lsn + step) == life(*lsn)) && life(*lsn) < Some(model.incarnation)
        })
        .collect();
    let Some(&hit) = between.get(Rng(at).below(between.len())) else { return Ok(()) };
    model.lose(hit - 1, &|_| true);
    model.lose(hit + 1, &|_| true);
    let (end, found) = run(&mut model.disk.clone(), Some(model.from));
    check_nothing_wrong(&model, &found)?;
    check_nothing_hidden(&model, &found, &end.unwrap())?;
    let frames = found.commits.get(&hit).map(|commit| &commit.1);
    prop_assert_eq!(frames, Some(&model.log[&hit].frames), "commit {} between", hit);
    Ok(())
}

/// Several faults at once.
fn check_whatever(seed: u64, steps: usize, mut faults: Vec<(u8, u64)>) -> Result<(), TestCaseError> {
    let mut model = journal(seed, steps);
    let mut cut = false;
    faults.sort_unstable();
    for (kind, at) in faults {
        let Some(hit) = pick(&mut model, at) else { break };
        let mut rng = Rng(at ^ 3);
        let written = &model.log[&hit];
        match kind {
            0 => {
                let bit = rng.below(written.meaning() * 8);
                model.flip(hit, bit);
            }
            1 => model.lose(hit, &|_| true),
            2 => model.lose(hit, &|block| block % 2 == 1),
            3 => model.misdirect(hit),
            4 => {
                let (file, position) = (written.header.file, written.header.position);
                model.disk.unreadable.insert((file, position));
                cut = true;
            }
            _ => {
                let (file, position) = (written.header.file, written.header.position);
                model.disk.files.get_mut(&file).unwrap().truncate(position as usize + rng.below(5_000));
                cut = true;
            }
        }
    }
    let (end, found) = run(&mut model.disk.clone(), Some(model.from));
    check_nothing_wrong(&model, &found)?;
    match end {
        // An unreadable block hides headers that the model can see.
        Ok(end) if model.disk.unreadable.is_empty() => check_nothing_hidden(&model, &found, &end)?,
        Ok(_) => {}
        Err(error) => prop_assert!(cut || matches!(error, ScanError::ReplayPoint { .. }), "{error}"),
    }
    let (_, found) = run(&mut model.disk.clone(), None);
    let none: Vec<_> = found.commits.keys().filter(|lsn| !model.log.contains_key(lsn)).collect();
    prop_assert!(none.is_empty(), "without a checkpoint: {none:?}");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_undamaged_journal_is_read_completely(seed in any::<u64>(), steps in 0..120usize) {
        let mut model = journal(seed, steps);
        let (end, found) = run(&mut model.disk, Some(model.from));
        let end = end.unwrap();
        check_complete(&model, &found, model.next_lsn())?;
        prop_assert_eq!(end.next_lsn, model.next_lsn());
        prop_assert!(end.incarnation >= model.incarnation);
        let last = model.log.values().next_back().unwrap().header;
        prop_assert_eq!(end.prev_crc, last.header_crc);
        prop_assert_eq!(end.resume, Some(Place { generation: last.generation, position: last.end_position(), file: last.file }));
    }

    #[test]
    fn one_flipped_bit_is_told_from_a_torn_tail(seed in any::<u64>(), steps in 1..120usize, at in any::<u64>()) {
        let mut model = journal(seed, steps);
        let Some(hit) = pick(&mut model, at) else { return Ok(()) };
        let bits = model.log[&hit].meaning() * 8;
        let bit = Rng(at ^ 1).below(bits);
        model.flip(hit, bit);
        let written = &model.log[&hit];
        let byte = bit / 8;
        let frames = written.frame_ranges();
        if byte >= 96 && !frames.iter().any(|range| range.contains(&byte)) {
            // Padding between frames means nothing.
            let (_, found) = run(&mut model.disk.clone(), Some(model.from));
            return check_complete(&model, &found, model.next_lsn());
        }
        check_one_damaged(&mut model, hit)?;
        if byte >= 96 && hit <= model.proven_durable() {
            let (_, found) = run(&mut model.disk.clone(), Some(model.from));
            let written = &model.log[&hit];
            let intact: Vec<_> = written.frames.iter().zip(&frames).filter(|(_, r)| !r.contains(&byte)).map(|(f, _)| f.clone()).collect();
            prop_assert_eq!(&found.commits[&hit].1, &intact, "the other frames of the commit");
            let broken = frames.iter().position(|range| range.contains(&byte)).unwrap();
            let lost = match byte - frames[broken].start < FRAME_HEADER_BYTES {
                true => Lost::Unknown,
                false => Lost::Body(written.frames[broken].0),
            };
            prop_assert_eq!(found.damages[0].lost, lost);
        }
    }

    #[test]
    fn a_lost_write_is_told_from_a_torn_tail(seed in any::<u64>(), steps in 1..120usize, at in any::<u64>()) {
        let mut model = journal(seed, steps);
        let Some(hit) = pick(&mut model, at) else { return Ok(()) };
        let mut which = Rng(at ^ 2);
        match which.below(2) {
            0 => model.lose(hit, &|_| true),
            _ => {
                let some = which.below(256);
                model.lose(hit, &|block| some >> (block % 8) & 1 == 0);
            }
        }
        if model.is_intact(hit) {
            return Ok(());
        }
        check_one_damaged(&mut model, hit)?;
    }

    #[test]
    fn a_commit_between_two_lost_ones_is_found_by_every_later_life(seed in any::<u64>(), steps in 8..120usize, at in any::<u64>()) {
        check_between(seed, steps, at)?;
    }

    #[test]
    fn whatever_the_disk_does_no_record_is_wrong_and_none_is_hidden(
        seed in any::<u64>(), steps in 1..160usize, faults in proptest::collection::vec((0..6u8, any::<u64>()), 1..6),
    ) {
        check_whatever(seed, steps, faults)?;
    }

    #[test]
    fn arbitrary_files_never_panic(
        files in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..4),
        lsn in 0..3u64, position in 0..4u64,
    ) {
        let mut disk = Disk::default();
        for (number, bytes) in files.into_iter().enumerate() {
            let mut file = bytes.repeat(40);
            if let Some(start) = file.get_mut(..4) {
                start.copy_from_slice(&crate::format::journal::COMMIT_MAGIC);
            }
            file.truncate(number * 9_000);
            disk.files.insert(number as u32, file);
        }
        let from = ReplayPoint { lsn, file: 1, generation: 1, position: position * 4096, prev_crc: 0, incarnation: 0 };
        let (_, found) = run(&mut disk, Some(from));
        prop_assert!(found.commits.is_empty());
        let (_, found) = run(&mut disk, None);
        prop_assert!(found.commits.is_empty());
    }
}

/// A journal without crashes and checkpoints, whose last commits are known durable.
fn plain(commits: u64) -> Model {
    (0..)
        .map(|seed| journal(seed, commits as usize))
        .find(|model| model.from.lsn == 1 && model.incarnation == 1)
        .unwrap()
}

#[test]
fn a_new_journal_is_empty() {
    let mut disk = Disk::default();
    disk.files.insert(0, vec![0; REGION * 2]);
    let (end, _) = run(&mut disk, None);
    let end = end.unwrap();
    assert_eq!((end.next_lsn, end.prev_crc, end.incarnation, end.resume), (1, 0, 0, None));
    assert_eq!((end.files, end.torn), (vec![(0, None)], None));
}

#[test]
fn without_a_checkpoint_the_first_file_is_the_start() {
    let mut model = plain(30);
    let (end, found) = run(&mut model.disk, None);
    check_complete(&model, &found, model.next_lsn()).unwrap();
    assert_eq!((end.unwrap().first_lsn, found.commits[&1].1[0].0.kind), (Some(1), FrameKind::NewLife));
    // Its first commit damaged: reported, although nothing says which commit it was.
    model.flip(1, 8);
    let (end, found) = run(&mut model.disk, None);
    assert_eq!(end.unwrap().next_lsn, model.next_lsn());
    assert!(found.reports(1));
    // Its first file gone: nothing of it is hidden, although no commit of it can be found.
    let mut model = (0..).map(|seed| journal(seed, 40)).find(|model| model.disk.files.len() > 2).unwrap();
    let last_of_first =
        model.log.values().filter(|written| written.header.file == 3).map(|w| w.header.lsn).max();
    model.disk.files.remove(&3);
    let (_, found) = run(&mut model.disk, None);
    assert!((1..=last_of_first.unwrap()).all(|lsn| found.reports(lsn)), "{:?}", found.damages);
}

#[test]
fn a_missing_or_blank_or_foreign_journal_is_an_error_and_never_an_empty_log() {
    let model = (0..).map(|seed| journal(seed, 40)).find(|model| model.from.position > 0).unwrap();
    let scan = |disk: &Disk| run(&mut disk.clone(), Some(model.from)).0;
    let mut without = model.disk.clone();
    without.files.remove(&model.from.file);
    assert!(matches!(scan(&without), Err(ScanError::ReplayPoint { why: "there is no such file", .. })));
    let mut blank = model.disk.clone();
    blank.files.values_mut().for_each(|bytes| bytes.fill(0));
    assert!(matches!(scan(&blank), Err(ScanError::ReplayPoint { why: "no file holds a single commit", .. })));
    let mut short = model.disk.clone();
    short.files.get_mut(&model.from.file).unwrap().truncate(model.from.position as usize - 4096);
    assert!(matches!(scan(&short), Err(ScanError::ReplayPoint { why: "the file is shorter", .. })));
    let files = model.disk.lengths();
    let foreign = Scanner { journal_id: 7, region_bytes: REGION };
    let end = foreign.scan(&mut model.disk.clone(), &files, Some(model.from), &mut Found::new());
    assert!(matches!(end, Err(ScanError::Foreign { found: ID, expected: 7, .. })));
}

#[test]
fn an_unreadable_block_at_the_end_is_not_taken_for_the_end() {
    let mut model = plain(20);
    let last = *model.log.keys().next_back().unwrap();
    let header = model.log[&last].header;
    model.disk.unreadable.insert((header.file, header.position));
    let (end, _) = run(&mut model.disk, Some(model.from));
    assert_eq!(end, Err(ScanError::Unreadable { file: header.file, position: header.position }));
    // Below the durable point it is damage like any other.
    let first = model.log[&2].header;
    model.disk.unreadable = [(first.file, first.position)].into();
    let (end, found) = run(&mut model.disk, Some(model.from));
    assert_eq!(end.unwrap().next_lsn, model.next_lsn());
    assert!(found.reports(2) && !found.commits.contains_key(&2));
}

#[test]
fn evidence_is_found_in_the_replay_points_own_file_when_that_was_recycled() {
    let recycled = |model: &Model| {
        let from = model.from;
        let newest = model.log.values().rev().take(3);
        let again = newest.filter(|c| c.header.file == from.file && c.header.generation > from.generation);
        from.position == model.disk.files[&from.file].len() as u64 && again.count() == 3
    };
    let mut model = (0..).map(|seed| journal(seed, 80)).find(recycled).unwrap();
    let last = model.next_lsn() - 1;
    for hit in [model.from.lsn, last - 2] {
        model.lose(hit, &|_| true);
    }
    assert!(model.proven_durable() >= last - 1, "evidence is left");
    let (end, found) = run(&mut model.disk.clone(), Some(model.from));
    check_nothing_wrong(&model, &found).unwrap();
    check_nothing_hidden(&model, &found, &end.unwrap()).unwrap();
    assert!(found.reports(last - 2));
}

/// The block that is lost here held bytes that differ from the commit's in the padding behind a frame only.
#[test]
fn a_lost_block_that_read_the_same_before_is_no_damage() {
    let mut model = journal(6_073_238_918_562_470_368, 56);
    model.lose(51, &|block| block == 2);
    assert!(model.is_intact(51));
    let (end, found) = run(&mut model.disk, Some(model.from));
    check_complete(&model, &found, end.unwrap().next_lsn).unwrap();
    assert_eq!(model.next_lsn(), 54);
}

#[test]
fn seeds_that_failed_once() {
    // The evidence was at the start of the file in which the first of two gaps was, and was looked for only once.
    let faults = vec![(0, 10_974_218_434_724_785_686), (1, 1_457_936_707_691_079_512)];
    check_whatever(16_621_054_873_537_707_514, 106, faults).unwrap();
    check_whatever(
        96_638_850_115_086_792,
        13,
        vec![(5, 13_496_553_212_741_988_685), (1, 12_661_288_290_760_361_881)],
    )
    .unwrap();
    // The highest claims of a life had been in its torn tail.
    check_between(8_111_891_425_439_553_148, 77, 8_768_030_341_506_205_481).unwrap();
}
