//! Real nodes that lose what is on their disks.

use pyralog_net::message::{DescribePartitionsRequest, PartitionHealth, PartitionState, Request, Response};

use crate::common::{Node, pyralog};
use crate::harness::{Cluster, eventually, producer, value};

const TOPIC: &str = "t";

/// What a node says of its own replicas of the topic, whoever leads.
fn replicas_on(cluster: &Cluster, id: u16, topic: u32) -> Option<Vec<PartitionState>> {
    let describe = DescribePartitionsRequest { topic, first: 0, count: 10 };
    match cluster.ask(id, 0, &Request::DescribePartitions(describe)).ok()? {
        Response::DescribePartitions(states) => Some(states),
        _ => None,
    }
}

/// Waits until a node knows everything that it has promised, and holds as much as was acknowledged.
fn await_member(cluster: &Cluster, id: u16, topic: u32, partitions: usize, records: i64) {
    eventually(|| {
        let states = replicas_on(cluster, id, topic)?;
        let whole = |state: &PartitionState| {
            state.health == PartitionHealth::Online && state.high_watermark >= records
        };
        (states.len() == partitions && states.iter().all(whole)).then_some(())
    });
}

#[test]
fn a_node_with_an_empty_disk_gets_everything_back_before_it_votes() {
    let mut cluster = Cluster::formed(3);
    cluster.admin_ok(&["topic", "create", TOPIC, "--partitions", "2"]);
    let topic = cluster.client().topic(TOPIC).unwrap().id;
    let mut producer = producer(cluster.client(), TOPIC);
    let mut sent = 0;
    let mut send = |count: u64| {
        for number in sent..sent + count {
            for partition in 0..2 {
                producer.send(partition, 0, None, Some(&value(partition, number)), &[]).unwrap();
            }
        }
        producer.flush().unwrap();
        sent += count;
        sent
    };
    send(2_000);
    // Each of them in turn, and then another one is gone: what the new disk holds has to be enough.
    for id in 1..=3 {
        cluster.kill(id);
        std::fs::remove_dir_all(cluster.data(id)).unwrap();
        let sent = send(500);
        cluster.start(id);
        await_member(&cluster, id, topic, 2, sent as i64);
        let other = id % 3 + 1;
        cluster.kill(other);
        let sent = send(500);
        for partition in 0..2 {
            let expected: Vec<_> = (0..sent).map(|number| value(partition, number)).collect();
            assert!(
                cluster.read(TOPIC, partition) == expected,
                "node {id} was emptied, node {other} is gone"
            );
        }
        cluster.start(other);
        await_member(&cluster, other, topic, 2, sent as i64);
    }
}

#[test]
fn a_cluster_begins_when_all_of_its_nodes_have_been_there() {
    let mut cluster = Cluster::new(3);
    cluster.start(1);
    cluster.start(2);
    let told = cluster.admin(&["topic", "create", TOPIC]);
    assert!(!told.status.success(), "two new nodes can't know whether the third one knows better: {told:?}");
    cluster.start(3);
    cluster.await_formed();
    cluster.admin_ok(&["topic", "create", TOPIC]);
    // From now on two are enough.
    for id in 1..=3 {
        cluster.kill(id);
    }
    cluster.start(2);
    cluster.start(3);
    cluster.admin_ok(&["topic", "create", "u"]);
}

#[test]
fn a_shard_whose_files_are_gone_does_not_begin_anew_in_silence() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("node");
    let node = Node::start(&data);
    assert!(node.stop().0.success());
    for folder in [data.clone(), data.join("journal")] {
        std::fs::remove_dir_all(folder.join("shard-0")).unwrap();
    }
    let again = pyralog().arg("--data-dir").arg(&data).args(["--listen", "127.0.0.1:0"]).output().unwrap();
    let told = String::from_utf8_lossy(&again.stderr);
    assert!(!again.status.success() && told.contains("its files are gone"), "{again:?}");
}
