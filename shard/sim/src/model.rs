//! What the log must hold, as far as clients have seen it: the batches that were produced, the offsets that
//! were promised, and what a crash may still take back.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use pyralog_core::GroupId;
use pyralog_net::message::{Durability, OffsetSpec, PartitionHealth, ProduceReply};

use crate::batch;
use crate::damage::{LostTail, Tracker};

/// A batch that a client made. Its id is its index.
#[derive(Clone, Debug)]
pub(crate) struct Produced {
    /// Where it was sent.
    pub group: GroupId,
    /// Its bytes as sent.
    pub bytes: Rc<[u8]>,
    /// Records.
    pub records: u32,
    /// Timestamp of all its records.
    pub timestamp: i64,
    /// Wall time at which it was made, milliseconds.
    pub made_ms: i64,
    /// Session and first sequence of an idempotent batch.
    pub session: Option<(i64, i16, i32)>,
    /// Every attempt was refused for certain: it may never show up.
    pub refused: bool,
    /// It breaks the format or the session's rules: it may never be accepted.
    pub hostile: bool,
}

/// A batch at its offset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    /// The batch.
    pub id: u64,
    /// Records.
    pub records: u32,
    /// It survives every crash: acknowledged as durable, or seen below the high watermark.
    pub must: bool,
    /// A lying disk may have taken it without a trace.
    pub may_vanish: bool,
}

/// Whether the topic of a partition still exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Existence {
    /// It does.
    Yes,
    /// Its deletion was asked for.
    Maybe,
    /// Its deletion was confirmed.
    No,
}

/// One partition.
#[derive(Clone, Debug)]
pub(crate) struct GroupModel {
    /// The shard that owns it.
    pub shard: u16,
    /// Known batches by base offset.
    pub entries: BTreeMap<i64, Entry>,
    placed: BTreeMap<u64, i64>,
    /// Highest high watermark told that must hold after a crash.
    pub high_watermark: i64,
    /// Highest log start told.
    pub log_start: i64,
    /// Nothing may be removed by retention.
    pub keeps_all: bool,
    /// Retention by age alone, milliseconds.
    pub retention_ms: Option<i64>,
    /// Whether it exists.
    pub exists: Existence,
    /// A lying disk has cost it something: sequences may have gaps.
    pub had_loss: bool,
}

/// What the engine says of a partition at the moment of a check.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    /// First offset.
    pub log_start: i64,
    /// Committed below this.
    pub high_watermark: i64,
    /// Health.
    pub health: PartitionHealth,
}

/// All that clients know.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    /// Batches by id.
    pub batches: Vec<Produced>,
    by_crc: BTreeMap<u32, Vec<u64>>,
    /// Partitions.
    pub groups: BTreeMap<GroupId, GroupModel>,
    /// Producer ids handed out.
    pub producer_ids: BTreeSet<i64>,
    /// Batches acknowledged.
    pub acknowledged: u64,
    /// Reads that answered `CorruptRange` where the disk had lied.
    pub damage_reported: u64,
    /// Latest wall time that was shown, milliseconds.
    latest_wall_ms: i64,
    /// The wall clock does not only go on.
    pub clock_jumps: bool,
}

fn end(base: i64, entry: &Entry) -> i64 {
    base + i64::from(entry.records)
}

impl GroupModel {
    /// A new, empty partition.
    pub(crate) fn new(shard: u16, keeps_all: bool) -> Self {
        Self {
            shard,
            entries: BTreeMap::new(),
            placed: BTreeMap::new(),
            high_watermark: 0,
            log_start: 0,
            keeps_all,
            retention_ms: None,
            exists: Existence::Yes,
            had_loss: false,
        }
    }

    /// The known batch that holds `offset`.
    pub(crate) fn covering(&self, offset: i64) -> Option<(i64, Entry)> {
        let (base, entry) = self.entries.range(..=offset).next_back()?;
        (end(*base, entry) > offset).then_some((*base, *entry))
    }

    fn forget(&mut self, base: i64) {
        if let Some(entry) = self.entries.remove(&base) {
            self.placed.remove(&entry.id);
        }
    }

    fn place(&mut self, base: i64, id: u64, records: u32, must: bool) -> Result<(), String> {
        if let Some(old) = self.placed.get(&id).copied().filter(|old| *old != base) {
            match self.entries.get(&old) {
                Some(entry) if !entry.may_vanish => {
                    return Err(format!("batch {id} is at offset {base} and at {old}: it is there twice"));
                }
                _ => self.forget(old),
            }
        }
        let last = base + i64::from(records);
        let clashes: Vec<i64> = self
            .entries
            .range(..last)
            .rev()
            .take_while(|(at, entry)| end(**at, entry) > base)
            .filter(|(at, entry)| entry.id != id || **at != base)
            .map(|(at, _)| *at)
            .collect();
        for at in clashes {
            match self.entries.get(&at) {
                Some(entry) if !entry.may_vanish => {
                    return Err(format!(
                        "batch {id} at offsets {base}..{last} replaces batch {} at {at}..{}",
                        entry.id,
                        end(at, entry)
                    ));
                }
                _ => self.forget(at),
            }
        }
        let entry = self.entries.entry(base).or_insert(Entry { id, records, must, may_vanish: false });
        entry.must |= must;
        entry.may_vanish = false;
        self.placed.insert(id, base);
        Ok(())
    }
}

impl Model {
    /// The wall clock shows this.
    pub(crate) fn clock_reached(&mut self, wall_ms: i64) {
        self.latest_wall_ms = self.latest_wall_ms.max(wall_ms);
    }

    /// Whether retention may have removed the batch with this id by now.
    fn is_old(&self, id: u64, retention_ms: i64) -> bool {
        let Some(batch) = self.batch(id) else { return true };
        let horizon_ms = self.latest_wall_ms - retention_ms;
        match batch.timestamp >= 0 {
            true => batch.timestamp < horizon_ms,
            // It counts from when it was written out, which is later; but a clock that jumps tells nothing.
            false => self.clock_jumps || batch.made_ms < horizon_ms,
        }
    }

    /// Takes a batch that is about to be sent; returns its id.
    pub(crate) fn produced(&mut self, batch: Produced) -> u64 {
        let id = self.batches.len() as u64;
        if let Some(head) = batch::head(&batch.bytes) {
            self.by_crc.entry(head.crc).or_default().push(id);
        }
        self.batches.push(batch);
        id
    }

    /// The batch with this id.
    pub(crate) fn batch(&self, id: u64) -> Option<&Produced> {
        self.batches.get(id as usize)
    }

    /// The partition, which exists in the model once its topic was created.
    pub(crate) fn group(&mut self, group: GroupId) -> Result<&mut GroupModel, String> {
        self.groups.get_mut(&group).ok_or_else(|| format!("an answer about the unknown partition {group}"))
    }

    /// A produce was acknowledged.
    pub(crate) fn acked(
        &mut self,
        id: u64,
        reply: &ProduceReply,
        durable_claims_hold: bool,
    ) -> Result<(), String> {
        let Some(batch) = self.batches.get(id as usize) else { return Err(format!("no batch {id}")) };
        let (group, records) = (batch.group, batch.records);
        if batch.hostile {
            return Err(format!("batch {id} to {group} breaks the rules and was acknowledged: {reply:?}"));
        }
        if reply.base_offset < 0 {
            return Err(format!("batch {id} acknowledged at offset {}", reply.base_offset));
        }
        let durable = reply.durability >= Durability::LeaderDurable;
        if durable && !durable_claims_hold {
            return Err(format!(
                "batch {id} to {group} was acknowledged as {:?} before its bytes and all before them were",
                reply.durability
            ));
        }
        self.acknowledged += 1;
        let model = self.group(group)?;
        if model.exists == Existence::No {
            // Answered before the topic was deleted, heard of after it.
            return Ok(());
        }
        model.place(reply.base_offset, id, records, durable).map_err(|text| format!("{group}: {text}"))
    }

    /// A high watermark and log start were told in a reply.
    pub(crate) fn told(
        &mut self,
        group: GroupId,
        told: &Told,
        strict: bool,
        tracker: &Tracker,
    ) -> Result<(), String> {
        let model = self.group(group)?;
        if told.high_watermark < model.high_watermark {
            let reported = told.health == PartitionHealth::LogEndUnknown && tracker.journal_hit;
            if strict && !reported && model.exists == Existence::Yes {
                return Err(format!(
                    "{group}: the high watermark fell from {} to {}",
                    model.high_watermark, told.high_watermark
                ));
            }
        }
        model.high_watermark = told.high_watermark;
        if told.log_start > told.high_watermark {
            return Err(format!("{group}: log start {} beyond the high watermark", told.log_start));
        }
        if told.log_start > 0 && model.keeps_all {
            return Err(format!("{group}: log start {} though nothing may be removed", told.log_start));
        }
        let before = model.log_start;
        model.log_start = before.max(told.log_start);
        let Some(retention_ms) = model.retention_ms else { return Ok(()) };
        let Some(model) = self.groups.get(&group) else { return Ok(()) };
        let early = model
            .entries
            .range(before..model.log_start)
            .find(|(_, entry)| !entry.may_vanish && !self.is_old(entry.id, retention_ms));
        match early {
            Some((base, entry)) => Err(format!(
                "{group}: batch {} at {base} is removed before its {retention_ms} ms are over",
                entry.id
            )),
            None => Ok(()),
        }
    }

    /// Checks a fetched run of batches that starts at the wanted offset; returns the next offset.
    pub(crate) fn fetched(
        &mut self,
        group: GroupId,
        offset: i64,
        high_watermark: i64,
        bytes: &[u8],
        must: bool,
    ) -> Result<i64, String> {
        let (mut next, mut rest) = (None, bytes);
        while !rest.is_empty() {
            let Some(head) = batch::head(rest).filter(|head| head.len <= rest.len()) else {
                return Err(format!("{group}: a fetch at {offset} answered bytes that are no whole batch"));
            };
            let (stored, later) = rest.split_at(head.len);
            let base = head.base_offset;
            let last = base + i64::from(head.records);
            match next {
                None if base > offset || last <= offset => {
                    return Err(format!("{group}: a fetch at {offset} began with offsets {base}..{last}"));
                }
                Some(next) if next != base => {
                    return Err(format!("{group}: a fetch at {offset} skipped from {next} to {base}"));
                }
                _ => {}
            }
            if last > high_watermark {
                return Err(format!("{group}: offsets {base}..{last} served beyond the high watermark"));
            }
            let id = self.identify(group, &head, stored)?;
            self.group(group)?
                .place(base, id, head.records, must)
                .map_err(|text| format!("{group}: {text}"))?;
            next = Some(last);
            rest = later;
        }
        Ok(next.unwrap_or(offset))
    }

    fn identify(&self, group: GroupId, head: &batch::Head, stored: &[u8]) -> Result<u64, String> {
        let candidates = self.by_crc.get(&head.crc).map(Vec::as_slice).unwrap_or_default();
        let id = candidates.iter().copied().find(|id| {
            self.batch(*id).is_some_and(|made| made.group == group && batch::same(&made.bytes, stored))
        });
        let base = head.base_offset;
        let Some(id) = id else {
            return Err(format!("{group}: offset {base} holds {} bytes that nobody produced", head.len));
        };
        match self.batch(id) {
            Some(made) if made.hostile => Err(format!("{group}: offset {base} holds hostile batch {id}")),
            Some(made) if made.refused => {
                Err(format!("{group}: offset {base} holds batch {id}, every attempt of which was refused"))
            }
            _ => Ok(id),
        }
    }

    /// A read at `offset` was answered with "damaged": may it be? Returns where to go on.
    pub(crate) fn damaged(&mut self, group: GroupId, offset: i64, tracker: &Tracker) -> Result<i64, String> {
        let model = self.group(group)?;
        match model.covering(offset) {
            // Retention had removed it; an older checkpoint may name it again.
            _ if offset < model.log_start => {}
            Some((base, entry)) => {
                let hit = tracker.tainted(group, base) || tracker.shadowed(group, base);
                if entry.must && !entry.may_vanish && !hit {
                    return Err(format!(
                        "{group}: batch {} at {base} was acknowledged, not hit by the disk, and is unreadable",
                        entry.id
                    ));
                }
            }
            None if !tracker.lied() => {
                return Err(format!("{group}: offset {offset} is called damaged on a disk that never lied"));
            }
            None => {}
        }
        model.had_loss = true;
        let known = model.entries.range(offset + 1..).next().map(|(base, _)| *base);
        self.damage_reported += 1;
        Ok(known.unwrap_or(i64::MAX))
    }

    /// A read at `offset` was answered with "out of range": may it be?
    pub(crate) fn out_of_range(
        &mut self,
        group: GroupId,
        offset: i64,
        told: &Told,
        tracker: &Tracker,
    ) -> Result<(), String> {
        if offset < told.log_start || offset > told.high_watermark {
            return self.reached_end(group, told, tracker);
        }
        Err(format!(
            "{group}: offset {offset} is called out of range of {}..{}",
            told.log_start, told.high_watermark
        ))
    }

    /// The log was read up to its high watermark: nothing promised may lie beyond.
    pub(crate) fn reached_end(
        &mut self,
        group: GroupId,
        told: &Told,
        tracker: &Tracker,
    ) -> Result<(), String> {
        let model = self.group(group)?;
        let beyond: Vec<(i64, Entry)> = model
            .entries
            .iter()
            .map(|(base, entry)| (*base, *entry))
            .filter(|(b, e)| end(*b, e) > told.high_watermark)
            .collect();
        for (base, entry) in beyond {
            if !entry.must {
                continue;
            }
            let reported = told.health == PartitionHealth::LogEndUnknown && tracker.tainted(group, base);
            if !entry.may_vanish && !reported {
                return Err(format!(
                    "{group}: batch {} at {base}..{} was acknowledged and is gone; the log ends at {}",
                    entry.id,
                    end(base, &entry),
                    told.high_watermark
                ));
            }
            model.had_loss = true;
            model.forget(base);
        }
        Ok(())
    }

    /// Checks the answer to a search by position or time, made by the engine just now.
    pub(crate) fn found(
        &self,
        group: GroupId,
        spec: OffsetSpec,
        offset: i64,
        told: &Told,
        tracker: &Tracker,
    ) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("{group}: {spec:?} answered {offset}: {what} ({told:?})"));
        match spec {
            OffsetSpec::Earliest if offset != told.log_start => wrong("not the log start"),
            OffsetSpec::Latest if offset != told.high_watermark => wrong("not the high watermark"),
            OffsetSpec::Timestamp(wanted) => {
                let Some(model) = self.groups.get(&group) else { return wrong("unknown partition") };
                let late_enough =
                    |entry: &Entry| self.batch(entry.id).is_some_and(|made| made.timestamp >= wanted);
                if offset > told.high_watermark || offset < told.log_start {
                    return wrong("outside the log");
                }
                if let Some((base, entry)) = model.covering(offset)
                    && offset < told.high_watermark
                    && !entry.may_vanish
                    && (base != offset || !late_enough(&entry))
                {
                    return wrong("that batch is too early");
                }
                let missed = model.entries.range(told.log_start..offset).find(|(base, entry)| {
                    late_enough(entry)
                        && entry.must
                        && !entry.may_vanish
                        && !tracker.tainted(group, **base)
                        && !tracker.shadowed(group, **base)
                });
                match missed {
                    Some((base, _)) => wrong(&format!("the batch at {base} comes first")),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// The shard's memory is gone (a crash, or recovery after an I/O error): what was not promised may be, too.
    pub(crate) fn memory_lost(
        &mut self,
        shard: u16,
        strict: bool,
        lost: Option<LostTail>,
        tracker: &Tracker,
    ) {
        for (group, model) in self.groups.iter_mut().filter(|(_, model)| model.shard == shard) {
            let unsure: Vec<i64> =
                model.entries.iter().filter(|(_, entry)| !entry.must).map(|(base, _)| *base).collect();
            unsure.into_iter().for_each(|base| model.forget(base));
            if !strict {
                model.high_watermark = 0;
            }
            let Some(lost) = lost else { continue };
            if let Some(floor) = tracker.first_at_or_after(*group, lost.lsn) {
                model.had_loss = true;
                model.high_watermark = model.high_watermark.min(floor);
            }
            for (base, entry) in &mut model.entries {
                if tracker.place(*group, *base).is_some_and(|place| place.lsn >= lost.lsn) {
                    entry.may_vanish = true;
                }
            }
        }
    }

    /// The shard has stopped in good order: everything that was acknowledged in any way is promised now.
    pub(crate) fn stopped(&mut self, shard: u16) {
        for model in self.groups.values_mut().filter(|model| model.shard == shard) {
            model.entries.values_mut().for_each(|entry| entry.must = true);
        }
    }

    /// At the end: sequences of each idempotent session are in order, without gaps, in every partition.
    pub(crate) fn sequences(&self, tracker_of: impl Fn(u16) -> bool) -> Result<(), String> {
        for (group, model) in &self.groups {
            // What retention or a deletion took may never have been seen.
            let whole = model.keeps_all && model.exists == Existence::Yes;
            if !whole || model.had_loss || tracker_of(model.shard) {
                continue;
            }
            let mut next: BTreeMap<(i64, i16), i32> = BTreeMap::new();
            for (base, entry) in &model.entries {
                let Some((id, epoch, first)) = self.batch(entry.id).and_then(|made| made.session) else {
                    continue;
                };
                let follows = first.wrapping_add(entry.records as i32);
                let expected = next.insert((id, epoch), follows);
                if expected.is_some_and(|expected| expected != first) {
                    return Err(format!(
                        "{group}: at offset {base} producer {id} has sequence {first} after {:?}",
                        expected.map(|next| next.wrapping_sub(1))
                    ));
                }
            }
        }
        Ok(())
    }
}
