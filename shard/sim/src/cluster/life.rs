//! One life of a cluster: its nodes are born and find each other, serve and fail; then faults stop, and it must agree.

use std::fmt;

use pyralog_shard::engine::planted::PlantedBug;

use super::books::Traffic;
use super::clients::{Admin, Reader, Role};
use super::config::{ClusterConfig, Kind};
use super::faults::ClusterFaultCounts;
use super::session::Session;
use super::trouble::Trouble;
use super::world::{Coverage, Happening, World};
use crate::faults::FaultCounts;
use crate::life::guarded;
use crate::rng::Rng;

/// Happenings after which a life is given up as endless.
const MAX_EVENTS: u64 = 3_000_000;

/// What a life of a cluster came to.
#[derive(Clone, Debug)]
pub struct ClusterReport {
    /// Its seed.
    pub seed: u64,
    /// What went wrong first, if anything, and at which happening.
    pub violation: Option<Violation>,
    /// Nodes.
    pub nodes: usize,
    /// Happenings.
    pub events: u64,
    /// Faults of network and nodes.
    pub cluster_faults: ClusterFaultCounts,
    /// Faults of disks, and of single nodes.
    pub faults: FaultCounts,
    /// Batches acknowledged by a quorum.
    pub acknowledged: u64,
    /// Leaderships.
    pub elections: u64,
    /// What replicas told each other.
    pub traffic: Traffic,
    /// What the engines did.
    pub coverage: Coverage,
    /// Moves of partitions that have ended.
    pub moved: u64,
    /// Damaged ranges of segments that were repaired since the nodes were started last.
    pub repaired: u64,
    /// Replicas that take no part at the end, as damage hides what they promised.
    pub aside: u64,
    /// Reads of replicas refused at the end because their disks had lied.
    pub damage_reported: u64,
    /// Line by line, when asked for.
    pub trace: Vec<String>,
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The number of the happening that showed it.
    pub event: u64,
    /// What.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at event {}: {}", self.event, self.what)
    }
}

/// Runs the life of `seed`. The same seed, bug and build give the same life to the last event.
pub fn run(seed: u64, kind: Kind, bug: Option<PlantedBug>, trace: bool) -> ClusterReport {
    run_as(seed, kind, bug, trace, |_| {})
}

/// The same in other circumstances: `change` sees what was drawn for the life before it begins.
pub fn run_as(
    seed: u64,
    kind: Kind,
    bug: Option<PlantedBug>,
    trace: bool,
    change: impl FnOnce(&mut ClusterConfig),
) -> ClusterReport {
    let mut rng = Rng::new(seed);
    let mut config = ClusterConfig::draw(&mut rng, bug, kind);
    change(&mut config);
    let mut world = World::new(config, rng, trace);
    if let Err(what) = guarded(|| world.live()) {
        world.fail(what);
    }
    let mut faults = world.node_counts.clone();
    faults.merge(&world.old_disks);
    for shard in world.nodes.iter().flat_map(|node| &node.shards) {
        faults.merge(&shard.disk.counts);
    }
    ClusterReport {
        seed,
        violation: world.violation.clone().map(|(event, what)| Violation { event, what }),
        nodes: world.config.nodes,
        events: world.events,
        cluster_faults: world.counts.clone(),
        faults,
        acknowledged: world.model.acknowledged,
        elections: world.books.elections(),
        traffic: world.books.traffic,
        coverage: Coverage { recycled: world.recycled(), ..world.coverage },
        moved: world.moved,
        repaired: world.repaired,
        aside: world.aside,
        damage_reported: world.model.damage_reported,
        trace: world.take_trace(),
    }
}

impl World {
    fn live(&mut self) {
        let config = format!("{:?}", self.config);
        self.note(|| config);
        self.add_client(Role::Harness { answer: None });
        for node in 0..self.config.first_nodes {
            let delay = self.rng.magnitude(1, 100_000);
            self.schedule(delay, Happening::Start { node, attempt: 0 });
        }
        self.begin_troubles();
        if self.config.first_nodes < self.config.nodes {
            let delay = self.rng.range(self.config.active_us / 10, self.config.active_us / 2);
            self.schedule(delay, Happening::Trouble(Trouble::Grow));
        }
        if self.config.upgrades {
            let delay = self.rng.range(1, self.config.active_us / 3);
            self.schedule(delay, Happening::Trouble(Trouble::Upgrade));
        }
        self.invite();
        let until = self.now_us + self.config.active_us;
        while self.now_us < until && !self.over() && self.step() {
            if self.events > MAX_EVENTS {
                self.fail("the life does not end".into());
            }
        }
        if !self.over() {
            self.last_days();
        }
        let seats: Vec<_> = self.seats().collect();
        seats.into_iter().for_each(|seat| self.count_engine(seat));
    }

    fn invite(&mut self) {
        let [idempotent, plain, consumers] = self.config.clients;
        let first = self.config.topics.iter().enumerate();
        let first = first.map(|(index, plan)| (format!("topic-{index}"), *plan)).collect();
        self.add_client(Role::Admin(Admin::new(first)));
        (0..idempotent).for_each(|_| _ = self.add_client(Role::Idempotent(Session::default())));
        (0..plain).for_each(|_| _ = self.add_client(Role::Plain));
        (0..consumers).for_each(|_| _ = self.add_client(Role::Consumer(Reader::default())));
    }
}
