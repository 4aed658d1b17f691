//! Three real nodes whose links to each other are cut, late and slow, and which are paused and killed: what was
//! acknowledged stays, once and in order, and nobody acknowledges what does not.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use pyralog_net::client::IdempotentProducer;

use crate::harness::{Cluster, Reader, eventually, producer, value};
use crate::history::{History, Load, Stray, TOPIC, await_in_sync, check, go_on_without_the_leader};
use crate::proxy::Way;
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
    let network = cluster.network();
    for way in [Way::Closed, Way::Swallowed] {
        let cut = |leader| network.set_around(leader, way);
        go_on_without_the_leader(&cluster, &load, "cut off", cut, || network.heal());
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
    let network = cluster.network();
    let unheard = |leader| network.set_from(leader, Way::Swallowed);
    go_on_without_the_leader(&cluster, &load, "not heard", unheard, || network.heal());
    let deaf = |leader| network.set_to(leader, Way::Swallowed);
    go_on_without_the_leader(&cluster, &load, "hears nothing", deaf, || network.heal());
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
