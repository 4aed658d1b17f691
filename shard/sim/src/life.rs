//! One life: a node is born, serves, fails, comes back, and is at last read from start to end.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use pyralog_core::{ErrorCode, GroupId, Quorums};
use pyralog_net::message::{
    Acks, Consistency, FetchRequest, ListOffsetsRequest, OffsetSpec, PartitionHealth, Response,
};
use pyralog_shard::engine::planted::PlantedBug;

use crate::batch::{self, Spec};
use crate::clients::{Client, Owned, Reply, Rogue, Role, Session};
use crate::config::{Ending, LifeConfig};
use crate::faults::{FaultCounts, FaultKind, FaultPlan};
use crate::model::{Existence, Produced};
use crate::rng::Rng;
use crate::world::{CutShort, World};

/// Happenings after which a life is given up as endless.
const MAX_EVENTS: u64 = 2_000_000;

/// What a life came to.
#[derive(Clone, Debug)]
pub struct LifeReport {
    /// Its seed.
    pub seed: u64,
    /// What went wrong first, if anything.
    pub violation: Option<String>,
    /// Why it ended early with nothing wrong.
    pub cut_short: Option<CutShort>,
    /// Happenings.
    pub events: u64,
    /// Faults by kind.
    pub faults: FaultCounts,
    /// Batches acknowledged.
    pub acknowledged: u64,
    /// Reads refused because the disk had lied about what they wanted.
    pub damage_reported: u64,
    /// What the engines did, all their lives together.
    pub coverage: Coverage,
    /// Line by line, when asked for.
    pub trace: Vec<String>,
}

/// What the engines' counters say was exercised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Group commits.
    pub commits: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Bytes written to segments.
    pub segment_bytes: u64,
    /// Fetches that read segments.
    pub cold_reads: u64,
    /// Produces answered as duplicates.
    pub duplicates: u64,
    /// Partitions whose log start moved.
    pub trimmed: u64,
    /// Journal files that were begun again.
    pub recycled: u64,
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let inside = PANIC.with(|cell| cell.try_borrow().is_ok_and(|text| text.is_some()));
            if inside {
                PANIC.with(|cell| *cell.borrow_mut() = Some(info.to_string()));
            } else {
                before(info);
            }
        }));
    });
}

/// The last panic that was caught on the way, in the life that runs.
pub(crate) fn last_panic() -> String {
    PANIC
        .with(|cell| cell.try_borrow().ok().and_then(|text| text.clone()))
        .unwrap_or_default()
        .replace('\n', " ")
}

/// Runs `live` and says which panic ended it, if one did.
pub(crate) fn guarded(live: impl FnOnce()) -> Result<(), String> {
    quiet_panics();
    PANIC.with(|cell| *cell.borrow_mut() = Some(String::new()));
    let outcome = catch_unwind(AssertUnwindSafe(live));
    let text = PANIC.with(|cell| cell.borrow_mut().take());
    outcome.map_err(|_| format!("panic: {}", text.unwrap_or_default().replace('\n', " ")))
}

/// Runs the life of `seed`. The same seed, bug and build give the same life to the last event.
pub fn run(seed: u64, bug: Option<PlantedBug>, trace: bool) -> LifeReport {
    let mut rng = Rng::new(seed);
    let config = LifeConfig::draw(&mut rng, bug);
    let mut world = World::new(config, rng, trace);
    if let Err(what) = guarded(|| world.live()) {
        world.fail(what);
    }
    LifeReport {
        seed,
        violation: world.violation.clone(),
        cut_short: world.cut_short,
        events: world.events,
        faults: world.all_counts(),
        acknowledged: world.model.acknowledged,
        damage_reported: world.model.damage_reported,
        coverage: world.coverage,
        trace: world.take_trace(),
    }
}

impl World {
    fn live(&mut self) {
        let config = format!("{:?}", self.config);
        self.note(|| config);
        self.add_client(Client::new(Role::Harness { answer: None }));
        self.schedule_faults();
        self.boot();
        self.await_ready(false);
        self.create_topics();
        self.invite();
        for (events, ending) in self.config.phases.clone() {
            self.run_for(events);
            match ending {
                Ending::Crash => self.crash(FaultKind::Crash),
                Ending::CleanStop => self.clean_stop(),
                Ending::GoOn => continue,
            }
            self.boot();
            self.await_ready(false);
            if self.rng.percent(50) {
                self.scan_all(false);
            }
        }
        if !self.over() {
            self.last_days();
        }
        self.count_coverage();
    }

    fn run_for(&mut self, events: u64) {
        let until = self.events + events;
        while self.events < until && !self.over() && self.step() {}
        if self.events > MAX_EVENTS {
            self.fail("the life does not end".into());
        }
    }

    /// Lets time pass.
    fn pause(&mut self, us: u64) {
        let until = self.now_us + us;
        while !self.over() && self.now_us < until {
            if !self.step() {
                self.now_us = until;
            }
        }
    }

    fn await_ready(&mut self, must: bool) {
        let until = self.now_us + 30_000_000;
        while !self.over() && self.now_us < until {
            let ready = |world: &Self| {
                world
                    .shards
                    .iter()
                    .all(|shard| shard.engine.as_ref().is_some_and(|engine| engine.status().ready))
            };
            if ready(self) {
                return;
            }
            if !self.step() {
                break;
            }
        }
        if must && !self.over() {
            self.fail("the node does not become ready on a disk without errors".into());
        }
    }

    fn create_topics(&mut self) {
        for (index, topic) in self.config.topics.clone().into_iter().enumerate() {
            let (partitions, retention_bytes, retention_ms) = topic;
            let name = format!("topic-{index}");
            for _ in 0..40 {
                if self.over() {
                    return;
                }
                let request = Owned::CreateTopic {
                    name: name.clone(),
                    partitions,
                    quorums: Quorums::UNSET,
                    retention_bytes,
                    retention_ms,
                };
                match self.call(0, request, None) {
                    Some((_, Reply::Message(Response::CreateTopic(_)))) => break,
                    Some((_, Reply::Message(Response::Error(error)))) => match error.code {
                        ErrorCode::TopicAlreadyExists => break,
                        code if code.retriable() => self.pause(50_000),
                        code => {
                            let damaged = matches!(code, ErrorCode::LogEndUnknown | ErrorCode::CorruptRange);
                            if !(damaged && self.shards[0].disk.tracker.journal_hit) {
                                self.fail(format!("creating {name} was answered {}", code.name()));
                            }
                            return;
                        }
                    },
                    Some((_, reply)) => {
                        self.fail(format!("creating a topic was answered {}", reply.describe()))
                    }
                    None => self.pause(20_000),
                }
            }
        }
    }

    fn invite(&mut self) {
        let [idempotent, plain, consumers, rogues] = self.config.clients;
        (0..idempotent).for_each(|_| _ = self.add_client(Client::new(Role::Idempotent(Session::default()))));
        (0..plain).for_each(|_| _ = self.add_client(Client::new(Role::Plain)));
        (0..consumers).for_each(|_| _ = self.add_client(Client::reader()));
        (0..rogues).for_each(|_| _ = self.add_client(Client::new(Role::Rogue(Rogue::default()))));
        self.add_client(Client::new(Role::Admin { topics: 0, busy: false }));
    }

    /// The end of a life: no more faults, everything answered, one more restart, everything read and compared.
    fn last_days(&mut self) {
        self.closing = true;
        self.config.plan = FaultPlan::none();
        self.shards.iter_mut().for_each(|shard| shard.disk.faults_off());
        self.note(|| "faults off".into());
        self.await_quiet();
        match self.rng.percent(60) {
            true => self.crash(FaultKind::Crash),
            false => self.clean_stop(),
        }
        self.boot();
        self.await_ready(true);
        self.pause(200_000);
        self.scan_all(true);
        self.write_to_all();
        self.scan_all(true);
        if self.over() {
            return;
        }
        let lied: Vec<bool> = self.shards.iter().map(|shard| shard.disk.tracker.lied()).collect();
        let result = match self.config.strict() {
            true => self.model.sequences(|shard| lied.get(usize::from(shard)).copied().unwrap_or(true)),
            false => Ok(()),
        };
        self.check(result);
    }

    /// Waits until every request is answered and every session has got through.
    fn await_quiet(&mut self) {
        let until = self.now_us + 90_000_000;
        let busy = |world: &Self| {
            world.sent.values().any(|sent| !sent.abandoned)
                || world.clients.iter().any(|client| world.has_work(client))
        };
        while !self.over() && busy(self) {
            if self.now_us > until {
                let what =
                    self.sent.values().find(|sent| !sent.abandoned).map(|sent| sent.request.describe());
                self.fail(format!("on a healthy disk work is never done; a request that waits: {what:?}"));
            }
            self.step();
        }
    }

    // ---- reading everything ----

    fn live_groups(&self) -> Vec<(GroupId, usize)> {
        self.model
            .groups
            .iter()
            .filter(|(_, model)| model.exists == Existence::Yes)
            .map(|(group, model)| (*group, usize::from(model.shard)))
            .collect()
    }

    fn scan_all(&mut self, must: bool) {
        for (group, shard) in self.live_groups() {
            if self.over() {
                return;
            }
            let done = self.scan(group, shard);
            let exists = self.model.groups.get(&group).is_some_and(|model| model.exists == Existence::Yes);
            if must && !done && exists && !self.over() {
                self.fail(format!("{group} can't be read to its end on a healthy disk"));
            }
        }
    }

    /// Reads one partition from its start to its end. False when the node did not let that happen.
    fn scan(&mut self, group: GroupId, shard: usize) -> bool {
        let mut offset = None;
        let mut tries = 0;
        while tries < 60 && !self.over() {
            let Some(from) = offset else {
                let list = ListOffsetsRequest {
                    group,
                    spec: OffsetSpec::Earliest,
                    consistency: Consistency::Leader,
                };
                match self.call(shard, Owned::ListOffsets(list), None) {
                    Some((_, Reply::Message(Response::ListOffsets(reply)))) => offset = Some(reply.offset),
                    _ => self.pause(20_000),
                }
                tries += 1;
                continue;
            };
            let max_bytes = self.rng.magnitude(1, 4 << 20) as u32;
            let fetch = FetchRequest {
                group,
                offset: from,
                min_bytes: 0,
                max_bytes,
                max_wait_ms: 0,
                consistency: Consistency::Leader,
            };
            let Some((sent, reply)) = self.call(shard, Owned::Fetch(fetch), None) else {
                tries += 1;
                self.pause(20_000);
                continue;
            };
            let next = self.check_fetch(&sent, &reply);
            let Some(told) = self.told(shard, group) else {
                tries += 1;
                self.pause(20_000);
                continue;
            };
            match next {
                Some(next) if next != from => offset = Some(next),
                Some(_) if from < told.high_watermark => {
                    tries += 1;
                    self.pause(20_000);
                }
                None if from < told.log_start => {
                    tries += 1;
                    offset = None;
                }
                // At the end, or beyond the last batch known behind damage.
                _ => {
                    let tracker = &self.shards[shard].disk.tracker;
                    let result = self.model.reached_end(group, &told, tracker);
                    self.check(result);
                    return true;
                }
            }
        }
        false
    }

    /// Every partition that is not read-only by the disk's fault takes a write.
    fn write_to_all(&mut self) {
        for (group, shard) in self.live_groups() {
            for attempt in 0.. {
                if self.over() || self.write_one(group, shard, attempt) {
                    break;
                }
            }
        }
    }

    fn write_one(&mut self, group: GroupId, shard: usize, attempt: u32) -> bool {
        let health = self.health(shard, group);
        let id = self.model.batches.len() as u64;
        let (records, timestamp) = (2, self.now().wall_ms);
        let spec = Spec {
            id,
            records,
            value_bytes: 64,
            timestamp,
            producer_id: -1,
            producer_epoch: -1,
            sequence: -1,
        };
        let bytes: std::rc::Rc<[u8]> = batch::encode(&spec).into();
        let batch = std::rc::Rc::clone(&bytes);
        self.model.produced(Produced {
            group,
            bytes,
            records,
            timestamp,
            made_ms: timestamp,
            session: None,
            refused: false,
            hostile: false,
        });
        let request = Owned::Produce { group, acks: Acks::Quorum, timeout_ms: 0, batch };
        match self.call(shard, request, Some(id)) {
            Some((sent, Reply::Message(Response::Produce(reply)))) => {
                let result = self.model.acked(id, &reply, sent.claim_holds);
                self.check(result);
                true
            }
            Some((_, Reply::Message(Response::Error(error)))) => {
                let damaged = matches!(error.code, ErrorCode::LogEndUnknown | ErrorCode::CorruptRange)
                    && health == Some(PartitionHealth::LogEndUnknown)
                    && self.shards[shard].disk.tracker.journal_hit;
                if damaged {
                    return true;
                }
                if attempt > 20 || !error.code.retriable() {
                    let text = format!("{}: {}", error.code.name(), error.detail);
                    self.fail(format!("{group} takes no write on a healthy disk: {text}"));
                }
                self.pause(50_000);
                false
            }
            other => {
                if attempt > 20 {
                    self.fail(format!("{group}: a write on a healthy disk is not answered: {other:?}"));
                }
                self.pause(50_000);
                false
            }
        }
    }
}
