//! What a producer was told, of every record, and how it is held against what the nodes hold.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pyralog_core::GroupId;
use pyralog_core::batch::{BatchBuilder, Compression};
use pyralog_net::client::{ClientError, Connection, IdempotentProducer, Place};
use pyralog_net::message::{Acks, ProduceRequest, ReplicaState, Request, Response};

use crate::common::PATIENCE;
use crate::harness::{Cluster, eventually, producer, value};

pub(crate) const TOPIC: &str = "t";
/// What is sent past the producer's session begins like this.
const STRAY: &[u8] = b"stray";

/// Offsets of what was acknowledged: of each partition, those of the values 0, 1, 2 ….
pub(crate) type History = Vec<Vec<i64>>;

/// What the producer was told, and when.
struct Told {
    history: History,
    last_ack: Instant,
    longest_gap: Duration,
}

/// A producer that never pauses, and what it is told.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    told: Arc<(Mutex<Told>, Condvar)>,
    thread: JoinHandle<()>,
}

impl Load {
    /// Begins to send to a topic with so many partitions. It is given the address of one node, which leads one of them.
    pub(crate) fn begin(cluster: &Cluster, partitions: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let history = vec![Vec::new(); partitions as usize];
        let told = Told { history, last_ack: Instant::now(), longest_gap: Duration::ZERO };
        let told = Arc::new((Mutex::new(told), Condvar::new()));
        let address = cluster.address(cluster.leader(TOPIC, 0));
        let mut producer = producer(Cluster::client_at(&[address]), TOPIC);
        producer.on_ack(Box::new({
            let told = Arc::clone(&told);
            move |ack| {
                let offsets = ack.base_offset..ack.base_offset + i64::from(ack.records);
                let mut so_far = told.0.lock().unwrap();
                so_far.longest_gap = so_far.longest_gap.max(so_far.last_ack.elapsed());
                so_far.last_ack = Instant::now();
                so_far.history[ack.partition as usize].extend(offsets);
                told.1.notify_all();
            }
        }));
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || send_until(&stop, partitions, &mut producer)
        });
        Self { stop, told, thread }
    }

    pub(crate) fn acknowledged(&self, partition: usize) -> usize {
        self.told.0.lock().unwrap().history[partition].len()
    }

    /// Waits until so many more of each partition are acknowledged.
    pub(crate) fn await_more(&self, records: usize) {
        let told = self.told.0.lock().unwrap();
        let wanted: Vec<usize> = told.history.iter().map(|told| told.len() + records).collect();
        let lacks =
            |told: &mut Told| told.history.iter().zip(&wanted).any(|(told, wanted)| told.len() < *wanted);
        let (told, waited) = self.told.1.wait_timeout_while(told, PATIENCE, lacks).unwrap();
        let acknowledged: Vec<usize> = told.history.iter().map(Vec::len).collect();
        drop(told);
        assert!(!waited.timed_out(), "{acknowledged:?} acknowledged, {wanted:?} wanted");
    }

    /// The longest time without an acknowledgement since this was asked last.
    pub(crate) fn longest_gap(&self) -> Duration {
        let mut told = self.told.0.lock().unwrap();
        std::mem::take(&mut told.longest_gap)
    }

    /// Stops when everything is acknowledged.
    pub(crate) fn end(self) -> History {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.told.0.lock().unwrap().history.clone()
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
pub(crate) fn check(partition: usize, records: &BTreeMap<i64, Vec<u8>>, history: &History) {
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
pub(crate) struct Stray {
    connection: Connection,
    group: GroupId,
    sent: u32,
}

impl Stray {
    pub(crate) fn to(cluster: &Cluster, node: u16, partition: usize) -> Self {
        let topic = cluster.client().topic(TOPIC).unwrap();
        let shard = Place::leader_of(&topic.partitions[partition]).unwrap().shard;
        let connection = Connection::connect(&cluster.address(node), Some(shard), PATIENCE).unwrap();
        Self { connection, group: GroupId::new(topic.id, partition as u32), sent: 0 }
    }

    pub(crate) fn send(&mut self) {
        self.send_for(Acks::Quorum, 0);
    }

    /// Sends one batch; `timeout_ms` 0 is the node's own time-out.
    pub(crate) fn send_for(&mut self, acks: Acks, timeout_ms: u32) {
        let mut builder = BatchBuilder::new();
        let value = [STRAY, &self.sent.to_le_bytes()].concat();
        builder.append(0, None, Some(&value), &[]).unwrap();
        let batch = builder.build(Compression::None).unwrap();
        let request = ProduceRequest { group: self.group, acks, timeout_ms, batch };
        self.connection.send(&Request::Produce(request)).unwrap();
        self.connection.flush().unwrap();
        self.sent += 1;
    }

    /// The node's answers to everything sent are refusals.
    pub(crate) fn is_refused(&mut self) {
        while self.connection.outstanding() > 0 {
            let answer = self.connection.recv().unwrap().response;
            assert!(matches!(answer, Response::Error(_)), "a node that is cut off acknowledged: {answer:?}");
        }
    }

    /// The node's next answer, if it is there already.
    pub(crate) fn answer_so_far(&mut self) -> Option<Response> {
        match self.connection.recv_within(Duration::from_millis(1)) {
            Ok(received) => Some(received.response),
            Err(ClientError::TimedOut { .. }) => None,
            Err(error) => panic!("{error}"),
        }
    }

    pub(crate) fn answer(&mut self) -> Response {
        self.connection.recv().unwrap().response
    }
}

/// All replicas hold everything and their leader knows it.
pub(crate) fn await_in_sync(cluster: &Cluster) {
    let mut client = cluster.client();
    eventually(|| {
        let states = client.describe_topic(TOPIC).ok()?;
        let in_sync = |replica: &ReplicaState| replica.in_sync;
        let all = states
            .iter()
            .all(|state| state.replicas.iter().count() == 3 && state.replicas.iter().all(in_sync));
        (!states.is_empty() && all).then_some(())
    });
}

/// Cuts the leader of the only partition off from the others, not from clients, while records flow; the others go on
/// without it, and it acknowledges nothing.
pub(crate) fn go_on_without_the_leader(
    cluster: &Cluster,
    load: &Load,
    what: &str,
    cut: impl Fn(u16),
    heal: impl Fn(),
) {
    load.await_more(200);
    load.longest_gap();
    let old = cluster.leader(TOPIC, 0);
    let mut stray = Stray::to(cluster, old, 0);
    cut(old);
    stray.send();
    cluster.leader_but(TOPIC, 0, old);
    load.await_more(200);
    println!("leader {what}: no acknowledgement for {:?}", load.longest_gap());
    stray.is_refused();
    stray.send();
    stray.is_refused();
    heal();
    await_in_sync(cluster);
}
