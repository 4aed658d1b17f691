//! The links between shards of different nodes: frames in order on each, nothing twice; what is in flight is lost with
//! its link, at both ends unequally late. A frame may be dropped where too much waits, and its sender is told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pyralog_shard::engine::PeerId;

use super::faults::ClusterFault;
use super::world::{Happening, Input, NodeState, SEATS, Seat, World};

/// From one shard to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Way {
    pub from: Seat,
    pub to: Seat,
}

impl Way {
    fn back(self) -> Self {
        Self { from: self.to, to: self.from }
    }

    /// The same for both directions.
    fn pair(self) -> Self {
        if self.from < self.to { self } else { self.back() }
    }
}

/// One end of a link, which receives.
#[derive(Debug, Default)]
struct End {
    state: EndState,
    /// When the last frame that was sent to it arrives.
    arrival_us: u64,
    /// Bytes on their way to it.
    waiting: usize,
    /// What arrives from then on is lost.
    lost_from_us: Option<u64>,
    /// Frames that came before the end was up.
    held: VecDeque<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum EndState {
    #[default]
    Coming,
    Up,
    Down,
}

/// A link: the two ends by the way that leads to each.
#[derive(Debug)]
struct Link {
    number: u64,
    broken: bool,
    ends: BTreeMap<Way, End>,
}

/// All links, and what keeps others from being made.
#[derive(Debug, Default)]
pub(crate) struct Network {
    /// By their pair.
    links: BTreeMap<Way, Link>,
    next_number: u64,
    /// Ways between nodes on which nothing passes, by the cut that they belong to.
    cuts: BTreeMap<u64, Vec<(usize, usize)>>,
    next_cut: u64,
    /// What frames between two nodes take longer, microseconds.
    slow: BTreeMap<(usize, usize), u64>,
}

impl Network {
    fn is_blocked(&self, from: usize, to: usize) -> bool {
        self.cuts.values().any(|ways| ways.contains(&(from, to)))
    }

    fn end(&mut self, way: Way, number: u64) -> Option<&mut End> {
        let link = self.links.get_mut(&way.pair()).filter(|link| link.number == number)?;
        link.ends.get_mut(&way)
    }

    /// The ways of links between two nodes, by their pairs.
    fn pairs_between(&self, one: usize, other: usize) -> Vec<Way> {
        let between = |way: &&Way| {
            let nodes = (way.from.node, way.to.node);
            nodes == (one, other) || nodes == (other, one)
        };
        self.links.keys().filter(between).copied().collect()
    }
}

impl World {
    // ---- making links ----

    /// An engine wants links to exactly these.
    pub(crate) fn want(&mut self, seat: Seat, mut peers: Vec<PeerId>) {
        // Of a node that the engine has not heard of the shard is a guess, and may be one that no node has: it is refused there.
        peers.retain(|peer| Seat::of(*peer).shard < SEATS);
        let before = std::mem::replace(&mut self.shard_mut(seat).wanted, peers.iter().copied().collect());
        for peer in before.difference(&peers.iter().copied().collect::<BTreeSet<_>>()) {
            self.break_link(Way { from: seat, to: Seat::of(*peer) }, true);
        }
        for peer in peers {
            self.dial_soon(Way { from: seat, to: Seat::of(peer) });
        }
    }

    fn dial_soon(&mut self, way: Way) {
        let delay = self.rng.magnitude(100, self.config.network.dial_us);
        self.schedule(delay, Happening::Dial(way.pair()));
    }

    /// Makes a link, if both ends want it and nothing keeps them from it.
    pub(crate) fn dial(&mut self, pair: Way) {
        let wants = |way: Way| {
            let driver = self.shard(way.from);
            driver.engine.is_some() && !driver.fencing && driver.wanted.contains(&way.to.peer())
        };
        let (one, other) = (pair.from.node, pair.to.node);
        let blocked = self.network.is_blocked(one, other) || self.network.is_blocked(other, one);
        let paused = [one, other].iter().any(|node| self.nodes[*node].paused_until_us > self.now_us);
        if blocked || !wants(pair) || !wants(pair.back()) || self.network.links.contains_key(&pair) {
            return;
        }
        if paused {
            return self.dial_soon(pair);
        }
        self.network.next_number += 1;
        let number = self.network.next_number;
        let ends = [pair, pair.back()].map(|way| (way, End::default())).into_iter().collect();
        self.network.links.insert(pair, Link { number, broken: false, ends });
        for way in [pair, pair.back()] {
            let delay = self.latency(way.from.node, way.to.node);
            self.schedule(delay, Happening::EndUp { way, number });
        }
    }

    /// The end to which `way` leads knows that the link is there.
    pub(crate) fn end_up(&mut self, way: Way, number: u64) {
        let broken = self.network.links.get(&way.pair()).is_none_or(|link| link.broken);
        let session = self.session(way.from);
        let Some(end) = self.network.end(way, number).filter(|end| end.state == EndState::Coming) else {
            return;
        };
        if broken {
            return;
        }
        end.state = EndState::Up;
        let held = std::mem::take(&mut end.held);
        self.note(|| format!("{} up at {}", way.from, way.to));
        self.input(way.to, Input::Up(way.from.peer(), session));
        for (control, payload) in held {
            self.input(way.to, Input::Frame(way.from.peer(), control, payload));
        }
    }

    /// Names the life of a shard.
    fn session(&self, seat: Seat) -> u64 {
        (seat.node as u64 + 1) << 40 | (seat.shard as u64) << 32 | self.shard(seat).life
    }

    // ---- breaking links ----

    /// Breaks a link. Where `both`, what is in flight the other way is lost, too.
    fn break_link(&mut self, way: Way, both: bool) {
        let now_us = self.now_us;
        let Some(link) = self.network.links.get_mut(&way.pair()).filter(|link| !link.broken) else { return };
        link.broken = true;
        let number = link.number;
        for (end_way, end) in &mut link.ends {
            if both || *end_way == way {
                // Of what is in flight a part may have arrived and lie in the receiver's memory.
                let in_flight_us = end.arrival_us.saturating_sub(now_us);
                end.lost_from_us = Some(now_us + self.rng.below(in_flight_us + 1));
            }
        }
        for end_way in [way, way.back()] {
            let delay = self.rng.magnitude(10, self.config.network.notice_us);
            self.schedule(delay, Happening::EndDown { way: end_way, number });
        }
    }

    /// The end to which `way` leads notices that the link is broken.
    pub(crate) fn end_down(&mut self, way: Way, number: u64) {
        let Some(end) = self.network.end(way, number) else { return };
        let was = std::mem::replace(&mut end.state, EndState::Down);
        if was == EndState::Up {
            self.note(|| format!("{} down at {}", way.from, way.to));
            self.input(way.to, Input::Down(way.from.peer()));
        }
        self.forget_link(way);
    }

    /// A link of which both ends know that it is broken is gone, and made anew.
    fn forget_link(&mut self, way: Way) {
        let pair = way.pair();
        let gone = |link: &Link| link.ends.values().all(|end| end.state == EndState::Down);
        if self.network.links.get(&pair).is_some_and(gone) {
            self.network.links.remove(&pair);
            self.dial_soon(pair);
        }
    }

    /// The process behind a seat is gone: it notices nothing more, the others later.
    pub(crate) fn unlink(&mut self, seat: Seat) {
        let pairs: Vec<Way> =
            self.network.links.keys().filter(|way| way.from == seat || way.to == seat).copied().collect();
        for pair in pairs {
            self.break_link(pair, true);
            let to_seat = if pair.to == seat { pair } else { pair.back() };
            if let Some(link) = self.network.links.get_mut(&pair)
                && let Some(end) = link.ends.get_mut(&to_seat)
            {
                end.state = EndState::Down;
            }
            self.forget_link(pair);
        }
    }

    /// Breaks some link.
    pub(crate) fn break_one(&mut self) {
        let pairs: Vec<Way> = self.network.links.keys().copied().collect();
        if !pairs.is_empty() {
            let pair = self.rng.pick(&pairs);
            self.note(|| format!("link of {} and {} breaks", pair.from, pair.to));
            self.counts.add(ClusterFault::Break);
            self.break_link(pair, true);
        }
    }

    /// Lets nothing pass on these ways between nodes. Returns the cut's number.
    pub(crate) fn cut(&mut self, ways: Vec<(usize, usize)>) -> u64 {
        self.network.next_cut += 1;
        let number = self.network.next_cut;
        for (from, to) in &ways {
            let both = ways.contains(&(*to, *from));
            for pair in self.network.pairs_between(*from, *to) {
                let way = if pair.from.node == *from { pair } else { pair.back() };
                self.break_link(way, both);
            }
        }
        self.network.cuts.insert(number, ways);
        number
    }

    /// The end of a cut.
    pub(crate) fn mend(&mut self, number: u64) {
        if self.network.cuts.remove(&number).is_some() {
            self.dial_all();
        }
    }

    /// The end of all cuts and slow ways.
    pub(crate) fn mend_all(&mut self) {
        self.network.cuts.clear();
        self.network.slow.clear();
        self.dial_all();
    }

    fn dial_all(&mut self) {
        let seats: Vec<Seat> = self.seats().collect();
        for from in seats {
            for peer in self.shard(from).wanted.clone() {
                self.dial_soon(Way { from, to: Seat::of(peer) });
            }
        }
    }

    /// Makes a way slow, or as it was with 0.
    pub(crate) fn slow_down(&mut self, from: usize, to: usize, extra_us: u64) {
        match extra_us {
            0 => _ = self.network.slow.remove(&(from, to)),
            _ => _ = self.network.slow.insert((from, to), extra_us),
        }
    }

    // ---- frames ----

    fn latency(&mut self, from: usize, to: usize) -> u64 {
        let (low, high) = self.config.network.latency_us;
        let extra_us = self.network.slow.get(&(from, to)).copied().unwrap_or(0);
        self.rng.range(low, high) + self.rng.below(extra_us + 1)
    }

    /// Sends a frame on its way.
    pub(crate) fn send_frame(&mut self, from: Seat, peer: PeerId, control: Vec<u8>, payload: Vec<u8>) {
        if self.auditor.is(peer) {
            return self.audited(from, &control, &payload);
        }
        let way = Way { from, to: Seat::of(peer) };
        let bytes = control.len() + payload.len();
        let bound = self.config.network.queue_bytes;
        // A byte takes its time, so that large frames are slower.
        let latency_us = self.latency(from.node, way.to.node) + bytes as u64 / 1024;
        let unlucky = self.rng.one_in(self.config.troubles.drop);
        let link = self.network.links.get_mut(&way.pair());
        let up = |link: &Link| link.ends.get(&way.back()).is_some_and(|end| end.state == EndState::Up);
        let Some(link) = link.filter(|link| up(link)) else { return self.dropped(from, peer) };
        let number = link.number;
        let Some(end) = link.ends.get_mut(&way) else { return };
        let full = end.waiting > 0 && end.waiting + bytes > bound;
        if unlucky || full {
            self.counts.add(ClusterFault::Drop);
            return self.dropped(from, peer);
        }
        end.waiting += bytes;
        end.arrival_us = end.arrival_us.max(self.now_us + latency_us);
        let delay = end.arrival_us - self.now_us;
        self.schedule(delay, Happening::Frame { way, number, control, payload });
    }

    /// Tells a shard in a later pass that a frame of it was dropped.
    fn dropped(&mut self, seat: Seat, peer: PeerId) {
        if self.shard_mut(seat).told_dropped.insert(peer) {
            self.input_later(1, seat, Input::Dropped(peer));
        }
    }

    /// A frame arrives, unless its link was broken before.
    pub(crate) fn frame(&mut self, way: Way, number: u64, control: Vec<u8>, payload: Vec<u8>) {
        let now_us = self.now_us;
        let Some(end) = self.network.end(way, number) else { return };
        end.waiting -= control.len() + payload.len();
        if end.lost_from_us.is_some_and(|lost_us| lost_us <= now_us) {
            return;
        }
        match end.state {
            EndState::Coming => end.held.push_back((control, payload)),
            EndState::Up => {
                self.check_commands(way.to, &control, &payload);
                self.input(way.to, Input::Frame(way.from.peer(), control, payload));
            }
            EndState::Down => {}
        }
    }

    /// Whether every link that both ends want is there.
    pub(crate) fn is_linked_up(&self) -> bool {
        let up = |node: usize| self.nodes[node].state == NodeState::Up;
        self.seats().filter(|seat| up(seat.node)).all(|from| {
            self.shard(from).wanted.iter().map(|peer| Seat::of(*peer)).all(|to| {
                let way = Way { from, to };
                let wanted = up(to.node) && self.shard(to).wanted.contains(&from.peer());
                let link = self.network.links.get(&way.pair());
                !wanted || link.is_some_and(|link| link.ends.values().all(|end| end.state == EndState::Up))
            })
        })
    }
}
