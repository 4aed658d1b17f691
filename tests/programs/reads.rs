//! Reads that any replica answers, and reads that only a confirmed leader answers.

use pyralog_core::{ErrorCode, GroupId};
use pyralog_net::message::{Consistency, ListOffsetsRequest, OffsetSpec, Request, Response};

use crate::common::admin;
use crate::harness::{Cluster, eventually, producer, value};
use crate::proxy::Way;

const TOPIC: &str = "t";
const RECORDS: u64 = 500;

/// The end of the only partition, as one node tells it.
fn end(cluster: &Cluster, id: u16, topic: u32, consistency: Consistency) -> Result<i64, ErrorCode> {
    let group = GroupId::new(topic, 0);
    let list = ListOffsetsRequest { group, spec: OffsetSpec::Latest, consistency };
    match cluster.ask(id, 0, &Request::ListOffsets(list))? {
        Response::ListOffsets(reply) => Ok(reply.offset),
        other => panic!("{other:?}"),
    }
}

fn fill(cluster: &Cluster) -> u32 {
    cluster.admin_ok(&["topic", "create", TOPIC]);
    let mut producer = producer(cluster.client(), TOPIC);
    for number in 0..RECORDS {
        producer.send(0, 0, None, Some(&value(0, number)), &[]).unwrap();
    }
    producer.flush().unwrap();
    cluster.client().topic(TOPIC).unwrap().id
}

#[test]
fn any_replica_answers_whoever_asks_for_no_more_and_a_single_one_confirms_nobody() {
    let mut cluster = Cluster::formed(3);
    let topic = fill(&cluster);
    let all = RECORDS as i64;
    for id in 1..=3 {
        eventually(|| (end(&cluster, id, topic, Consistency::AnyReplica) == Ok(all)).then_some(()));
    }
    let leader = cluster.leader(TOPIC, 0);
    assert_eq!(end(&cluster, leader, topic, Consistency::Linearizable), Ok(all));
    for follower in (1..=3).filter(|id| *id != leader) {
        for consistency in [Consistency::Leader, Consistency::Linearizable] {
            assert_eq!(end(&cluster, follower, topic, consistency), Err(ErrorCode::NotLeader));
        }
    }
    let last = (1..=3).find(|id| *id != leader).unwrap();
    (1..=3).filter(|id| *id != last).for_each(|id| cluster.kill(id));
    let consume = |consistency: &str| {
        let arguments = ["consume", TOPIC, "--exit-at-end", "--consistency", consistency];
        admin().args(["--cluster", &cluster.address(last)]).args(arguments).output().unwrap()
    };
    let output = consume("any-replica");
    assert!(output.status.success(), "{output:?}");
    let lines: Vec<&[u8]> = output.stdout.split(|byte| *byte == b'\n').collect();
    let expected: Vec<Vec<u8>> = (0..RECORDS).map(|number| value(0, number)).collect();
    assert!(lines[..lines.len() - 1] == expected, "{} lines", lines.len());
    assert_eq!(end(&cluster, last, topic, Consistency::Linearizable), Err(ErrorCode::NotLeader));
    let following = ["consume", TOPIC, "--follow", "--consistency", "any-replica"];
    let told = admin().args(["--cluster", &cluster.address(last)]).args(following).output().unwrap();
    assert_eq!(told.status.code(), Some(2), "{told:?}");
}

#[test]
fn a_leader_that_was_replaced_unawares_confirms_no_read() {
    let cluster = Cluster::behind_proxies(3, &[]);
    let topic = fill(&cluster);
    let leader = cluster.leader(TOPIC, 0);
    cluster.network().set_around(leader, Way::Swallowed);
    // Whatever it answers to others, it can't have been confirmed after that.
    let told = end(&cluster, leader, topic, Consistency::Linearizable);
    assert!(matches!(told, Err(ErrorCode::NotLeader)), "{told:?}");
    let next = cluster.leader_but(TOPIC, 0, leader);
    eventually(|| {
        (end(&cluster, next, topic, Consistency::Linearizable) == Ok(RECORDS as i64)).then_some(())
    });
    cluster.network().heal();
}
