//! Where leaders are after a restart, and what a leader takes that is not alone but has too few others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pyralog_core::batch::{BatchBuilder, Compression};
use pyralog_core::{ErrorCode, GroupId};
use pyralog_net::message::{Acks, ProduceRequest, Request, Response};

use crate::harness::{Cluster, eventually, producer, value};

const PARTITIONS: u32 = 6;

/// The leaders of all partitions, none of them missing.
fn leaders(cluster: &Cluster, topic: &str) -> Option<Vec<u32>> {
    let topic = cluster.client().topic(topic).ok()?;
    let leaders: Vec<u32> = topic.partitions.iter().map(|partition| partition.leader).collect();
    (!leaders.contains(&0)).then_some(leaders)
}

#[test]
fn leaders_come_home_after_a_restart_and_nothing_is_lost() {
    let mut cluster = Cluster::formed(3);
    cluster.admin_ok(&["topic", "create", "t", "--partitions", &PARTITIONS.to_string()]);
    let preferred: Vec<u32> = {
        let topic = cluster.client().topic("t").unwrap();
        topic.partitions.iter().map(|partition| partition.replicas[0].node).collect()
    };
    let done = Arc::new(AtomicBool::new(false));
    let sender = std::thread::spawn({
        let (mut producer, done) = (producer(cluster.client(), "t"), Arc::clone(&done));
        move || {
            let mut sent = 0;
            while !done.load(Ordering::Relaxed) {
                for partition in 0..PARTITIONS {
                    producer.send(partition, 0, None, Some(&value(partition, sent)), &[]).unwrap();
                }
                sent += 1;
            }
            producer.flush().unwrap();
            sent
        }
    });
    cluster.kill(2);
    eventually(|| leaders(&cluster, "t").filter(|leaders| !leaders.contains(&2)));
    cluster.start(2);
    eventually(|| leaders(&cluster, "t").filter(|leaders| *leaders == preferred));
    done.store(true, Ordering::Relaxed);
    let sent = sender.join().unwrap();
    for partition in 0..PARTITIONS {
        let expected: Vec<_> = (0..sent).map(|number| value(partition, number)).collect();
        assert!(cluster.read("t", partition) == expected, "partition {partition}");
    }
}

/// Sends one record to the leader of a partition, once.
fn send(cluster: &Cluster, topic: &str, acks: Acks) -> Result<(), ErrorCode> {
    let metadata = cluster.client().topic(topic).unwrap();
    let partition = &metadata.partitions[0];
    let mut builder = BatchBuilder::new();
    builder.append(0, None, Some(b"value"), &[]).unwrap();
    let batch = builder.build(Compression::None).unwrap();
    let request = ProduceRequest { group: GroupId::new(metadata.id, 0), acks, timeout_ms: 0, batch };
    // A node that is gone may still be told for the leader.
    match cluster.ask(partition.leader as u16, partition.shard, &Request::Produce(request))? {
        Response::Produce(_) => Ok(()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_topic_takes_writes_while_as_many_replicas_are_in_sync_as_it_asks_for() {
    let mut cluster = Cluster::formed(3);
    cluster.admin_ok(&["topic", "create", "all", "--min-insync-replicas", "3"]);
    cluster.admin_ok(&["topic", "create", "two"]);
    let taken = |topic: &str| send(&cluster, topic, Acks::Quorum).is_ok().then_some(());
    eventually(|| taken("all"));
    eventually(|| taken("two"));
    let gone = (1..=3).find(|id| *id != cluster.leader("all", 0)).unwrap();
    cluster.kill(gone);
    let refused = |result: Result<(), ErrorCode>| match result {
        Err(ErrorCode::NotEnoughReplicas) => Some(()),
        // Its links may not have noticed yet.
        Ok(()) | Err(ErrorCode::NotLeader | ErrorCode::LeaderChanged | ErrorCode::ConnectionLost) => None,
        Err(other) => panic!("{other}"),
    };
    eventually(|| refused(send(&cluster, "all", Acks::Quorum)));
    assert_eq!(send(&cluster, "all", Acks::Leader), Ok(()), "who asks for the leader only is not held up");
    let taken = |topic: &str| send(&cluster, topic, Acks::Quorum).is_ok().then_some(());
    eventually(|| taken("two"));
    cluster.start(gone);
    eventually(|| send(&cluster, "all", Acks::Quorum).is_ok().then_some(()));
}
