//! A partition whose quorum is lost for good goes on with what one node has, when somebody asks for it.

use crate::harness::{Cluster, eventually, producer, value};

const RECORDS: u64 = 500;

fn produce(cluster: &Cluster, numbers: std::ops::Range<u64>) {
    let mut producer = producer(cluster.client(), "t");
    for number in numbers {
        producer.send(0, 0, None, Some(&value(0, number)), &[]).unwrap();
    }
    producer.flush().unwrap();
}

fn holders(cluster: &Cluster) -> Vec<u16> {
    let topic = cluster.client().topic_for_sure("t").unwrap();
    topic.partitions[0].replicas.iter().map(|replica| replica.node as u16).collect()
}

#[test]
fn a_partition_goes_on_with_the_replica_that_is_left() {
    let mut cluster = Cluster::formed(3);
    cluster.admin_ok(&["topic", "create", "t", "--replication-factor", "2", "--partitions", "1"]);
    produce(&cluster, 0..RECORDS);
    let recover = ["partition", "recover", "t/0"];
    let fails = |cluster: &Cluster, arguments: &[&str]| {
        let output = cluster.admin(&[&recover[..], arguments].concat());
        assert!(!output.status.success(), "{output:?}");
        let said = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (said(output.stdout), said(output.stderr))
    };
    let (_, error) = fails(&cluster, &["--accept-data-loss"]);
    assert!(error.contains("2 of the 2 nodes") && error.contains("are enough"), "{error}");

    // The one that leads is gone for good, its disk with it.
    let lost = cluster.leader("t", 0);
    let survivor = *holders(&cluster).iter().find(|id| **id != lost).unwrap();
    cluster.kill(lost);
    std::fs::remove_dir_all(cluster.data(lost)).unwrap();
    let (told, error) = fails(&cluster, &[]);
    for part in ["silent", "Lost for good", "Nothing was done", "--accept-data-loss"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(error.contains("nothing was done"), "{error}");
    assert_eq!(holders(&cluster).len(), 2, "nothing was done");
    let (_, error) = fails(&cluster, &["--from", &lost.to_string(), "--accept-data-loss"]);
    assert!(error.contains("does not answer"), "{error}");

    // Refused until it has been away for a while.
    let told = eventually(|| {
        let output = cluster.admin(&[&recover[..], &["--accept-data-loss"]].concat());
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    });
    assert!(told.contains(&format!("goes on with node {survivor} alone")), "{told}");
    assert_eq!(holders(&cluster), [survivor]);
    produce(&cluster, RECORDS..2 * RECORDS);
    let expected: Vec<_> = (0..2 * RECORDS).map(|number| value(0, number)).collect();
    assert!(cluster.read("t", 0) == expected);
    // It knows that after a crash as well.
    cluster.kill(survivor);
    cluster.start(survivor);
    eventually(|| (cluster.leader("t", 0) == survivor).then_some(()));
    assert!(cluster.read("t", 0) == expected);

    // The lost node comes back with an empty disk, and the partition gets its second copy.
    cluster.start(lost);
    eventually(|| cluster.admin(&["rebalance", "--yes", "--quiet"]).status.success().then_some(()));
    eventually(|| (holders(&cluster).len() == 2).then_some(()));
    cluster.kill(survivor);
    cluster.start(survivor);
    produce(&cluster, 2 * RECORDS..3 * RECORDS);
    assert_eq!(cluster.read("t", 0).len() as u64, 3 * RECORDS);
}

#[test]
fn a_lost_node_that_comes_back_with_what_it_had_throws_it_away() {
    let mut cluster = Cluster::formed(3);
    cluster.admin_ok(&["topic", "create", "t", "--replication-factor", "2", "--partitions", "1"]);
    produce(&cluster, 0..RECORDS);
    let lost = cluster.leader("t", 0);
    let survivor = *holders(&cluster).iter().find(|id| **id != lost).unwrap();
    cluster.kill(lost);
    eventually(|| {
        let output = cluster.admin(&["partition", "recover", "t/0", "--accept-data-loss"]);
        output.status.success().then_some(())
    });
    produce(&cluster, RECORDS..2 * RECORDS);
    cluster.start(lost);
    let topic = cluster.client().topic("t").unwrap().id;
    let segments = cluster.data(lost).join("shard-0").join(format!("{topic}-0"));
    eventually(|| (!segments.exists()).then_some(()));
    assert_eq!(holders(&cluster), [survivor]);
    let expected: Vec<_> = (0..2 * RECORDS).map(|number| value(0, number)).collect();
    assert!(cluster.read("t", 0) == expected);
    cluster.admin_ok(&["rebalance", "--yes", "--quiet"]);
    eventually(|| (holders(&cluster).len() == 2).then_some(()));
    assert!(cluster.read("t", 0) == expected);
}
