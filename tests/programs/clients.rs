//! The client library's faces against real nodes: any runtime, leaders that die, consumers of several partitions.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pyralog_net::client::{
    ClientError, Consumer, ConsumerConfig, DeliveryError, DirectConfig, DirectProducer, Producer,
    ProducerConfig, ProducerRecord, RecordMetadata, StartAt,
};

use crate::common::PATIENCE;
use crate::harness::{Cluster, value};

const TASKS: u64 = 20;
const RECORDS: u64 = 50;

fn cluster(partitions: u32) -> Cluster {
    let cluster = Cluster::formed(3);
    cluster.admin_ok(&["topic", "create", "t", "--partitions", &partitions.to_string()]);
    cluster
}

fn producer(cluster: &Cluster) -> Producer {
    let config = ProducerConfig { delivery_timeout: PATIENCE, ..ProducerConfig::default() };
    Producer::new(cluster.client(), "t", config).unwrap()
}

/// One task: each record awaits the one before.
async fn task(producer: Producer, task: u64) -> Result<Vec<(u64, RecordMetadata)>, DeliveryError> {
    let mut placed = Vec::new();
    for number in 0..RECORDS {
        let number = task * RECORDS + number;
        let delivery = producer.try_send(ProducerRecord::value(&value(0, number))).unwrap();
        placed.push((number, delivery.await?));
    }
    Ok(placed)
}

/// Each is where its outcome says.
fn check(cluster: &Cluster, partitions: u32, placed: &[(u64, RecordMetadata)]) {
    let logs: Vec<_> = (0..partitions).map(|partition| cluster.records("t", partition)).collect();
    for (number, placed) in placed {
        assert_eq!(logs[placed.partition as usize][&placed.offset], value(0, *number));
    }
}

#[test]
fn tasks_of_any_runtime_await_their_records() {
    let cluster = cluster(3);
    let producer = producer(&cluster);

    let tokio = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let of_tokio = tokio.block_on(async {
        let tasks: Vec<_> = (0..TASKS).map(|number| tokio::spawn(task(producer.clone(), number))).collect();
        let mut placed = Vec::new();
        for task in tasks {
            placed.extend(task.await.unwrap().unwrap());
        }
        placed
    });
    check(&cluster, 3, &of_tokio);

    let glommio = glommio::LocalExecutorBuilder::default().io_memory(1 << 20).make().unwrap();
    let of_glommio = Rc::new(RefCell::new(Vec::new()));
    glommio.run({
        let (producer, placed) = (producer.clone(), Rc::clone(&of_glommio));
        async move {
            let tasks: Vec<_> = (TASKS..2 * TASKS)
                .map(|number| glommio::spawn_local(task(producer.clone(), number)).detach())
                .collect();
            for task in tasks {
                let of_task = task.await.unwrap().unwrap();
                placed.borrow_mut().extend(of_task);
            }
        }
    });
    check(&cluster, 3, &of_glommio.borrow());
    producer.close(PATIENCE).unwrap();
    let records: usize = (0..3).map(|partition| cluster.read("t", partition).len()).sum();
    assert_eq!(records as u64, 2 * TASKS * RECORDS, "each once");
}

#[test]
fn a_dead_leader_costs_no_record_of_either_producer() {
    const EACH: u64 = 400;
    let mut cluster = cluster(2);
    let shared = producer(&cluster);
    let config = DirectConfig { delivery_timeout: PATIENCE, ..DirectConfig::default() };
    let mut direct = DirectProducer::new(cluster.client(), "t", config).unwrap();
    let done = Arc::new(AtomicU64::new(0));
    let of_direct = std::thread::spawn({
        let done = Arc::clone(&done);
        move || {
            let send = |number: u64| {
                let placed = direct.send(1, None, Some(&value(0, number))).unwrap();
                done.fetch_add(1, Ordering::Relaxed);
                (number, placed)
            };
            (0..EACH).map(send).collect::<Vec<_>>()
        }
    });
    let of_shared = std::thread::spawn({
        let done = Arc::clone(&done);
        move || {
            let send = |number: u64| {
                let record = value(0, number);
                let delivery = shared.send(ProducerRecord::value(&record).to((number % 2) as u32)).unwrap();
                let placed = delivery.wait().unwrap();
                done.fetch_add(1, Ordering::Relaxed);
                (number, placed)
            };
            (EACH..2 * EACH).map(send).collect::<Vec<_>>()
        }
    });
    for round in 1..=2 {
        crate::harness::eventually(|| (done.load(Ordering::Relaxed) >= round * EACH / 2).then_some(()));
        let leader = cluster.leader("t", round as usize % 2);
        cluster.kill(leader);
        cluster.start(leader);
        cluster.await_formed();
    }
    let mut placed = of_direct.join().unwrap();
    placed.extend(of_shared.join().unwrap());
    check(&cluster, 2, &placed);
    let records: usize = (0..2).map(|partition| cluster.read("t", partition).len()).sum();
    assert_eq!(records as u64, 2 * EACH, "each once");
}

#[test]
fn a_consumer_of_all_partitions_reads_on_when_leaders_die() {
    const EACH: u64 = 300;
    let mut cluster = cluster(4);
    let config = ConsumerConfig::default();
    let starts = [0, 1, 2, 3].map(|partition| (partition, StartAt::Earliest));
    let mut consumer = Consumer::assigned(cluster.client(), "t", &starts, config).unwrap();
    let mut producer = crate::harness::producer(cluster.client(), "t");
    let mut next = [0; 4];
    for round in 1..=3 {
        for number in (round - 1) * EACH..round * EACH {
            for partition in 0..4 {
                producer.send(partition, 0, None, Some(&value(partition, number)), &[]).unwrap();
            }
        }
        producer.flush().unwrap();
        while next.iter().sum::<u64>() < 4 * round * EACH {
            consumer
                .poll_partitions(Duration::from_millis(100), |partition, record| -> Result<(), ClientError> {
                    let place = &mut next[partition as usize];
                    assert_eq!(record.offset as u64, *place);
                    assert_eq!(record.value.unwrap(), value(partition, *place));
                    *place += 1;
                    Ok(())
                })
                .unwrap();
        }
        let leader = cluster.leader("t", round as usize);
        cluster.kill(leader);
        cluster.start(leader);
    }
}
