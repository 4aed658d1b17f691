//! Re-reads segments at a set pace and checks every checksum, so that rot is found while others still have what rots.
//! What is damaged is refused from then on (`Partition::damaged`), fetched from another replica and written again where it
//! was, and read once more before it is served.
//!
//! One segment at a time: first those that somebody has come upon (*suspects*), then the next one of the *pass* over all of
//! them. A walk goes from batch to batch; the bytes of a committed batch are the same on every replica, so what is fetched
//! has to end exactly where the next undamaged batch begins.
//!
//! Segments are written in place here and nowhere else: a range that is refused anyway, in which every byte is known, and
//! which a crash leaves as damaged as it was or whole.

mod check;
mod repair;
mod walk;

use std::collections::VecDeque;

use pyralog_core::GroupId;
use pyralog_net::message::{Response, ScrubReply, ScrubRequest};

use super::api::{ConnId, IoToken};
use super::{Action, Engine, LogLevel, Mode, reply};
use walk::Walk;

/// Suspects that are kept; the pass finds the others again.
const MAX_SUSPECTS: usize = 1_024;
/// A damaged range that nobody could give is asked for again after this time, microseconds.
const REPAIR_AGAIN_US: u64 = 10_000_000;
/// The same of one that the disk did not keep.
const WRITE_AGAIN_US: u64 = 600_000_000;
/// Before a read that found no memory is tried again, microseconds.
const MEMORY_AGAIN_US: u64 = 20_000;
/// The first pass of a life begins no later, microseconds: a node that is restarted often is to be scrubbed as well.
const FIRST_PASS_US: u64 = 3_600_000_000;

/// A segment to look at before others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Suspect {
    group: GroupId,
    segment: i64,
    /// The batch that holds this offset; `None`: all of it.
    offset: Option<i64>,
    not_before_us: u64,
    /// It was tried so often to repair it.
    tries: u32,
}

/// A pass over all segments.
#[derive(Clone, Copy, Debug, Default)]
struct Pass {
    /// The slot of the partition that is next, and where in it.
    index: u32,
    base: i64,
    /// Read so far, bytes.
    done_bytes: u64,
}

/// What scrubbing has come to since the engine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubCounters {
    /// Bytes of segments that were read and checked.
    pub bytes: u64,
    /// Passes over all segments that came to their end.
    pub passes: u64,
    /// Damaged ranges that were found, by it or by a reader.
    pub damaged: u64,
    /// Bytes that were fetched from others and written again.
    pub repaired_bytes: u64,
    /// Damaged ranges that are whole again.
    pub repaired: u64,
    /// Times that nobody could give what is damaged, or that the disk did not keep it.
    pub failed: u64,
    /// Indexes that were made again.
    pub indexes: u64,
}

/// The scrubber of one shard.
#[derive(Debug, Default)]
pub(super) struct Scrub {
    walk: Option<Walk>,
    pass: Option<Pass>,
    suspects: VecDeque<Suspect>,
    /// When to go on; `None` = an operation is under way, or there is nothing to do.
    due_us: Option<u64>,
    /// When the next pass begins.
    pass_due_us: Option<u64>,
    /// When the last pass ended, by the wall clock; 0 = none has.
    ended_ms: i64,
    /// Names what is asked for, so that a late answer is known for one.
    question: u16,
}

impl Scrub {
    pub(super) fn owns(&self, token: IoToken) -> bool {
        self.walk.as_ref().is_some_and(|walk| walk.stage.token() == Some(token))
    }

    /// Whether a file of the group is being written.
    pub(super) fn writes_to(&self, group: GroupId) -> bool {
        self.walk.as_ref().is_some_and(|walk| walk.group == group && walk.stage.writes())
    }

    /// The group is dropped; one of the same name may come.
    pub(super) fn forget_group(&mut self, group: GroupId) {
        self.suspects.retain(|suspect| suspect.group != group);
        if let Some(walk) = self.walk.as_mut().filter(|walk| walk.group == group) {
            walk.is_over = true;
        }
    }

    pub(super) fn deadline_us(&self) -> Option<u64> {
        self.due_us
    }

    fn suspect(&mut self, suspect: Suspect) {
        let same = |known: &&mut Suspect| {
            (known.group, known.segment, known.offset) == (suspect.group, suspect.segment, suspect.offset)
        };
        if let Some(known) = self.suspects.iter_mut().find(same) {
            known.not_before_us = known.not_before_us.min(suspect.not_before_us);
        } else if self.suspects.len() < MAX_SUSPECTS {
            self.suspects.push_back(suspect);
        } else {
            return;
        }
        if self.walk.is_none() {
            let due = suspect.not_before_us;
            self.due_us = Some(self.due_us.map_or(due, |known| known.min(due)));
        }
    }
}

impl Engine {
    /// At the start of a life: what is known to be damaged is repaired first.
    pub(super) fn begin_scrub(&mut self) {
        let now_us = self.now.monotonic_us;
        let interval_us = self.config.scrub_interval_us;
        self.scrub.pass_due_us = interval_us.map(|interval| now_us + interval.min(FIRST_PASS_US));
        self.scrub.due_us = self.scrub.pass_due_us;
        let mut suspects = Vec::new();
        for partition in self.each_partition() {
            for (from, to) in &partition.damaged {
                let hit = |segment: &&super::partition::Segment| segment.base < *to && *from < segment.end;
                let hit = partition.segments.iter().filter(hit);
                suspects.extend(hit.map(|segment| (partition.group, segment.base, segment.base.max(*from))));
            }
        }
        for (group, segment, offset) in suspects {
            let offset = Some(offset);
            self.scrub.suspect(Suspect { group, segment, offset, not_before_us: now_us, tries: 0 });
        }
    }

    /// A reader came upon damage in a segment.
    pub(super) fn suspect_segment(&mut self, group: GroupId, segment: i64, offset: i64) {
        let not_before_us = self.now.monotonic_us;
        let offset = Some(offset);
        self.scrub.suspect(Suspect { group, segment, offset, not_before_us, tries: 0 });
    }

    /// Begins a pass over all segments now, unless one is under way.
    pub(super) fn begin_pass(&mut self) {
        if self.scrub.pass.is_none() {
            self.scrub.pass = Some(Pass::default());
            self.scrub.pass_due_us = None;
            if self.scrub.walk.is_none() {
                self.scrub.due_us = Some(self.now.monotonic_us);
            }
        }
    }

    /// The time that [`Scrub::deadline_us`] gave has come.
    pub(super) fn tick_scrub(&mut self, actions: &mut Vec<Action>) {
        let now_us = self.now.monotonic_us;
        if self.scrub.due_us.is_none_or(|due| due > now_us) {
            return;
        }
        self.scrub.due_us = None;
        if self.mode != Mode::Serving {
            // One that stops begins nothing more.
            self.scrub.due_us = (self.mode == Mode::Starting).then_some(now_us + MEMORY_AGAIN_US);
            return;
        }
        match self.scrub.walk {
            Some(_) => self.go_on_walking(actions),
            None => self.begin_walk(actions),
        }
    }

    /// Takes the next segment; without one, waits until there is one.
    fn begin_walk(&mut self, actions: &mut Vec<Action>) {
        let now_us = self.now.monotonic_us;
        if self.scrub.pass_due_us.is_some_and(|due| due <= now_us) {
            self.begin_pass();
            self.scrub.due_us = None;
        }
        let ready = self.scrub.suspects.iter().position(|suspect| suspect.not_before_us <= now_us);
        let walk = match ready.and_then(|at| self.scrub.suspects.remove(at)) {
            Some(Suspect { group, segment, offset, tries, .. }) => {
                let walk = self.walk_of(group, segment, offset, false);
                walk.map(|walk| walk.after(tries))
            }
            None => self.next_of_pass(actions),
        };
        match walk {
            Some(walk) => {
                self.scrub.walk = Some(walk);
                self.go_on_walking(actions);
            }
            None => self.await_work(),
        }
    }

    /// With nothing under way: when there is something to do again.
    fn await_work(&mut self) {
        let now_us = self.now.monotonic_us;
        let scrub = &mut self.scrub;
        let suspect = scrub.suspects.iter().map(|suspect| suspect.not_before_us.max(now_us)).min();
        let pass = if scrub.pass.is_some() { Some(now_us) } else { scrub.pass_due_us };
        scrub.due_us = suspect.into_iter().chain(pass).min();
    }

    /// The next segment of the pass. When there is none the pass ends.
    fn next_of_pass(&mut self, actions: &mut Vec<Action>) -> Option<Walk> {
        let Pass { mut index, base, done_bytes } = self.scrub.pass?;
        let mut base = Some(base);
        while (index as usize) < self.partitions.len() {
            if let Some(partition) = self.at(index).filter(|partition| !partition.unconfirmed) {
                let from = base.unwrap_or(i64::MIN);
                let at = partition.segments.partition_point(|segment| segment.base < from);
                if let Some(segment) = partition.segments.get(at) {
                    let (group, base) = (partition.group, segment.base);
                    self.scrub.pass = Some(Pass { index, base: base + 1, done_bytes });
                    return self.walk_of(group, base, None, true);
                }
            }
            (index, base) = (index + 1, None);
        }
        self.end_pass(done_bytes, actions);
        None
    }

    fn end_pass(&mut self, done_bytes: u64, actions: &mut Vec<Action>) {
        self.scrub.pass = None;
        self.scrub.ended_ms = self.now.wall_ms;
        self.scrub.pass_due_us =
            self.config.scrub_interval_us.map(|interval| self.now.monotonic_us + interval);
        self.counters.scrub.passes += 1;
        let damaged: usize = self.each_partition().map(|partition| partition.damaged.len()).sum();
        let text = format!(
            "shard {}: all segments are scrubbed, {done_bytes} bytes; {damaged} ranges are damaged",
            self.config.shard
        );
        actions.push(Action::Log { level: LogLevel::Info, text });
    }

    /// How far it is, and with `start` a pass over all segments, unless one is under way.
    pub(super) fn scrub_asked(
        &mut self,
        conn: ConnId,
        correlation_id: u64,
        request: ScrubRequest,
        actions: &mut Vec<Action>,
    ) {
        if request.start {
            self.begin_pass();
        }
        reply(conn, correlation_id, Response::Scrub(self.scrub_state()), actions);
    }

    /// What is told of it.
    pub(super) fn scrub_state(&self) -> ScrubReply {
        let segments = || self.each_partition().flat_map(|partition| partition.segments.iter());
        let counters = self.counters.scrub;
        ScrubReply {
            running: self.scrub.pass.is_some(),
            done_bytes: self.scrub.pass.map_or(0, |pass| pass.done_bytes),
            total_bytes: segments().map(|segment| segment.bytes).sum(),
            ended_ms: self.scrub.ended_ms,
            damaged: self.each_partition().map(|partition| partition.damaged.len() as u32).sum(),
            found: counters.damaged,
            repaired: counters.repaired,
            repaired_bytes: counters.repaired_bytes,
            failed: counters.failed,
        }
    }
}
