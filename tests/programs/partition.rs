//! Three real nodes whose links to each other are cut, late and slow, and which are paused and killed: what was
//! acknowledged stays, once and in order, and nobody acknowledges what does not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pyralog_core::GroupId;
use pyralog_core::batch::{BatchBuilder, Compression};
use pyralog_net::client::{Connection, IdempotentProducer, Place};
use pyralog_net::message::{Acks, ProduceRequest, Request, Response};

use crate::common::PATIENCE;
use crate::harness::{Cluster, Reader, eventually, producer, value};
use crate::proxy::{Network, Way};

const TOPIC: &str = "t";
/// What is sent past the producer's session begins like this.
const STRAY: &[u8] = b"stray";

/// Offsets of what was acknowledged: of each partition, those of the values 0, 1, 2 ….
type History = Vec<Vec<i64>>;

/// A producer that never pauses, and what it is told.
struct Load {
    stop: Arc<AtomicBool>,
    told: Arc<(Mutex<History>, Condvar)>,
    thread: JoinHandle<()>,
}

impl Load {
    /// Begins to send to a topic with so many partitions. It is given the address of one node, which leads one of them.
    fn begin(cluster: &Cluster, partitions: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::new((Mutex::new(vec![Vec::new(); partitions as usize]), Condvar::new()));
        let address = cluster.address(cluster.leader(TOPIC, 0));
        let mut producer = producer(Cluster::client_at(&[address]), TOPIC);
        producer.on_ack(Box::new({
            let told = Arc::clone(&told);
            move |ack| {
                let offsets = ack.base_offset..ack.base_offset + i64::from(ack.records);
                told.0.lock().unwrap()[ack.partition as usize].extend(offsets);
                told.1.notify_all();
            }
        }));
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || send_until(&stop, partitions, &mut producer)
        });
        Self { stop, told, thread }
    }

    fn acknowledged(&self, partition: usize) -> usize {
        self.told.0.lock().unwrap()[partition].len()
    }

    /// Waits until so many more of each partition are acknowledged.
    fn await_more(&self, records: usize) {
        let history = self.told.0.lock().unwrap();
        let wanted: Vec<usize> = history.iter().map(|told| told.len() + records).collect();
        let lacks =
            |history: &mut History| history.iter().zip(&wanted).any(|(told, wanted)| told.len() < *wanted);
        let (history, waited) = self.told.1.wait_timeout_while(history, PATIENCE, lacks).unwrap();
        let acknowledged: Vec<usize> = history.iter().map(Vec::len).collect();
        drop(history);
        assert!(!waited.timed_out(), "{acknowledged:?} acknowledged, {wanted:?} wanted");
    }

    /// Stops when everything is acknowledged.
    fn end(self) -> History {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.told.0.lock().unwrap().clone()
    }
}

fn send_until(stop: &AtomicBool, partitions: u32, producer: &mut IdempotentProducer) {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        for partition in 0..partitions {
            producer.send(partition, 0, None, Some(&value(partition, number)), &[]).unwrap();
        }
        producer.send_open_batches().unwrap();
        number += 1;
    }
    producer.flush().unwrap();
}

/// Everything acknowledged is where it was said to be, and the session's records are there once and in order.
fn check(partition: usize, records: &BTreeMap<i64, Vec<u8>>, history: &History) {
    let told = &history[partition];
    for (number, offset) in told.iter().enumerate() {
        let expected = value(partition as u32, number as u64);
        assert_eq!(records.get(offset), Some(&expected), "record {number} was acknowledged at {offset}");
    }
    let own = records.values().filter(|value| !value.starts_with(STRAY)).cloned();
    let expected = (0..told.len() as u64).map(|number| value(partition as u32, number));
    assert!(own.eq(expected), "all of the session, once and in order, and nothing else of it");
    assert!(records.keys().copied().eq(0..records.len() as i64), "an offset is missing");
}

/// A connection to a node that is to lead a partition, whoever leads it by then.
struct Stray {
    connection: Connection,
    group: GroupId,
    sent: u32,
}

impl Stray {
    fn to(cluster: &Cluster, node: u16, partition: usize) -> Self {
        let topic = cluster.client().topic(TOPIC).unwrap();
        let shard = Place::leader_of(&topic.partitions[partition]).unwrap().shard;
        let connection = Connection::connect(&cluster.address(node), Some(shard), PATIENCE).unwrap();
        Self { connection, group: GroupId::new(topic.id, partition as u32), sent: 0 }
    }

    fn send(&mut self) {
        let mut builder = BatchBuilder::new();
        let value = [STRAY, &self.sent.to_le_bytes()].concat();
        builder.append(0, None, Some(&value), &[]).unwrap();
        let batch = builder.build(Compression::None).unwrap();
        let request = ProduceRequest { group: self.group, acks: Acks::Quorum, timeout_ms: 0, batch };
        self.connection.send(&Request::Produce(request)).unwrap();
        self.connection.flush().unwrap();
        self.sent += 1;
    }

    /// The node's answers to everything sent are refusals.
    fn is_refused(&mut self) {
        while self.connection.outstanding() > 0 {
            let answer = self.connection.recv().unwrap().response;
            assert!(matches!(answer, Response::Error(_)), "a node that is cut off acknowledged: {answer:?}");
        }
    }
}

/// All replicas hold everything and their leader knows it.
fn await_in_sync(cluster: &Cluster) {
    let mut client = cluster.client();
    eventually(|| {
        let states = client.describe_topic(TOPIC).ok()?;
        let in_sync = |replica: &pyralog_net::message::ReplicaState| replica.in_sync;
        let all = states
            .iter()
            .all(|state| state.replicas.iter().count() == 3 && state.replicas.iter().all(in_sync));
        (!states.is_empty() && all).then_some(())
    });
}

/// Cuts the leader of the only partition off while records flow; the others go on without it, and it acknowledges
/// nothing.
fn go_on_without_the_leader(cluster: &Cluster, load: &Load, cut: impl Fn(&Network, u16)) {
    load.await_more(200);
    let old = cluster.leader(TOPIC, 0);
    let mut stray = Stray::to(cluster, old, 0);
    cut(cluster.network(), old);
    stray.send();
    cluster.leader_but(TOPIC, 0, old);
    load.await_more(200);
    stray.is_refused();
    stray.send();
    stray.is_refused();
    cluster.network().heal();
    await_in_sync(cluster);
}

/// Has every node lead the partition in its turn and looks at what it holds.
fn each_holds(cluster: &Cluster, history: &History) {
    let mut seen = BTreeSet::new();
    while seen.len() < 3 {
        let leader = cluster.leader(TOPIC, 0);
        let records = cluster.records(TOPIC, 0);
        if cluster.leader(TOPIC, 0) == leader && seen.insert(leader) {
            check(0, &records, history);
        }
        cluster.network().set_around(leader, Way::Closed);
        cluster.leader_but(TOPIC, 0, leader);
        cluster.network().heal();
        await_in_sync(cluster);
    }
}

#[test]
fn a_leader_that_is_cut_off_acknowledges_nothing_and_the_others_go_on() {
    let cluster = Cluster::behind_proxies(3, &[]);
    cluster.admin_ok(&["topic", "create", TOPIC]);
    let load = Load::begin(&cluster, 1);
    let reader = Reader::begin(cluster.client(), TOPIC, 0);
    for way in [Way::Closed, Way::Swallowed] {
        go_on_without_the_leader(&cluster, &load, |network, leader| network.set_around(leader, way));
    }
    let history = load.end();
    each_holds(&cluster, &history);
    let records = cluster.records(TOPIC, 0);
    assert!(
        reader.end(records.len() as u64).iter().eq(records.values()),
        "who has read along has read the same"
    );
}

#[test]
fn a_leader_that_is_not_heard_or_hears_nothing_is_replaced() {
    let cluster = Cluster::behind_proxies(3, &[]);
    cluster.admin_ok(&["topic", "create", TOPIC]);
    let load = Load::begin(&cluster, 1);
    go_on_without_the_leader(&cluster, &load, |network, leader| network.set_from(leader, Way::Swallowed));
    go_on_without_the_leader(&cluster, &load, |network, leader| network.set_to(leader, Way::Swallowed));
    each_holds(&cluster, &load.end());
}

/// Times of single records, one after the other.
fn median_ack(producer: &mut IdempotentProducer, next: &mut u64) -> Duration {
    let mut times: Vec<Duration> = (0..21)
        .map(|_| {
            let begun = Instant::now();
            producer.send(0, 0, None, Some(&value(0, *next)), &[]).unwrap();
            producer.flush().unwrap();
            *next += 1;
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
fn a_late_slow_or_absent_follower_holds_nothing_up() {
    const LATE: Duration = Duration::from_millis(50);
    // So that a busy machine deposes nobody: here the leader is to stay.
    let cluster = Cluster::behind_proxies(
        3,
        &[
            ("PYRALOG__REPLICATION__ELECTION_TIMEOUT__MIN_MS", "3000"),
            ("PYRALOG__REPLICATION__ELECTION_TIMEOUT__MAX_MS", "5000"),
        ],
    );
    cluster.admin_ok(&["topic", "create", TOPIC]);
    // Another one would hand over to it on the way.
    let leader = cluster.client().topic(TOPIC).unwrap().partitions[0].replicas[0].node as u16;
    eventually(|| (cluster.leader(TOPIC, 0) == leader).then_some(()));
    let network = cluster.network();
    let followers: Vec<u16> = (1..=3).filter(|id| *id != leader).collect();
    let late = |follower: u16| {
        network.set(leader, follower, Way::Late(LATE));
        network.set(follower, leader, Way::Late(LATE));
    };
    let mut producer = producer(cluster.client(), TOPIC);
    let mut next = 0;
    late(followers[0]);
    let one_late = median_ack(&mut producer, &mut next);
    assert!(one_late < LATE, "the other follower is enough: {one_late:?}");
    late(followers[1]);
    let both_late = median_ack(&mut producer, &mut next);
    assert!(both_late >= 2 * LATE, "there and back again: {both_late:?}");
    network.heal();
    for way in [Way::Swallowed, Way::Closed, Way::Slow(20_000)] {
        network.set_around(followers[0], way);
        for _ in 0..20_000 {
            producer.send(0, 0, None, Some(&value(0, next)), &[]).unwrap();
            next += 1;
        }
        producer.flush().unwrap();
        assert_eq!(cluster.leader(TOPIC, 0), leader, "{way:?}");
        network.heal();
        await_in_sync(&cluster);
    }
    assert_eq!(cluster.leader(TOPIC, 0), leader);
    let history = vec![(0..next as i64).collect()];
    check(0, &cluster.records(TOPIC, 0), &history);
    each_holds(&cluster, &history);
}

#[test]
fn a_leader_that_was_paused_finds_itself_replaced() {
    const PARTITIONS: u32 = 3;
    /// From the pause until records flow again, for clients that give a request as long.
    const BOUND: Duration = Duration::from_secs(5);
    let cluster = Cluster::formed(3);
    cluster.admin_ok(&["topic", "create", TOPIC, "--partitions", &PARTITIONS.to_string()]);
    let load = Load::begin(&cluster, PARTITIONS);
    let reader = Reader::begin(cluster.client(), TOPIC, 0);
    // Back after others have gone on for a while, and back as soon as another leads.
    for more in [2_000, 0] {
        load.await_more(200);
        let old = cluster.leader(TOPIC, 0);
        let mut stray = Stray::to(&cluster, old, 0);
        let node = &cluster.nodes[&old];
        node.signal(libc::SIGSTOP);
        while !node.is_stopped() {}
        let paused = Instant::now();
        stray.send();
        cluster.leader_but(TOPIC, 0, old);
        if more > 0 {
            load.await_more(100);
            assert!(paused.elapsed() < BOUND, "no acknowledgement for {:?}", paused.elapsed());
            let acknowledged = load.acknowledged(0) as u64;
            eventually(|| (reader.records() >= acknowledged).then_some(()));
            assert!(paused.elapsed() < BOUND, "nothing to read for {:?}", paused.elapsed());
            load.await_more(more);
        }
        node.signal(libc::SIGCONT);
        stray.is_refused();
        load.await_more(200);
        await_in_sync(&cluster);
    }
    let history = load.end();
    (0..PARTITIONS).for_each(|partition| {
        check(partition as usize, &cluster.records(TOPIC, partition), &history);
    });
    let records = cluster.records(TOPIC, 0);
    assert!(
        reader.end(records.len() as u64).iter().eq(records.values()),
        "who has read along has read the same"
    );
}

#[test]
fn nodes_that_are_all_killed_at_once_lose_nothing_acknowledged() {
    const PARTITIONS: u32 = 3;
    let mut cluster = Cluster::formed(3);
    cluster.admin_ok(&["topic", "create", TOPIC, "--partitions", &PARTITIONS.to_string()]);
    let load = Load::begin(&cluster, PARTITIONS);
    for _ in 0..3 {
        load.await_more(300);
        cluster.nodes.values().for_each(|node| node.signal(libc::SIGKILL));
        // Waits for each.
        cluster.nodes.clear();
        (1..=3).for_each(|id| cluster.start(id));
    }
    load.await_more(300);
    let history = load.end();
    (0..PARTITIONS).for_each(|partition| {
        check(partition as usize, &cluster.records(TOPIC, partition), &history);
    });
}
