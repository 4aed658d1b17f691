//! Three real nodes on a network of their own, whose wires fail: packets are lost without a word, as between machines.
//! (The proxy's closed links and silences are in `partition`.)

use pyralog_net::client::{Client, ClientConfig};

use crate::harness::{Cluster, Reader, eventually};
use crate::history::{Load, TOPIC, await_in_sync, check, go_on_without_the_leader};
use crate::wires::on_wires;

/// Whether a node, asked from where it is, knows of a leader.
fn knows_a_leader(cluster: &Cluster, id: u16) -> bool {
    let address = cluster.address(id);
    cluster.wires().beside(id, || {
        let mut client = Client::new(&[address], ClientConfig::default());
        client.topic_afresh(TOPIC).unwrap().partitions[0].leader != 0
    })
}

fn followers_of(leader: u16) -> [u16; 2] {
    [leader % 3 + 1, (leader + 1) % 3 + 1]
}

fn all_is_there(cluster: &Cluster, load: Load, reader: Reader) {
    let history = load.end();
    let records = cluster.records(TOPIC, 0);
    check(0, &records, &history);
    let read = reader.end(records.len() as u64);
    assert!(read.iter().eq(records.values()), "who has read along has read the same");
}

#[test]
fn a_node_whose_plug_is_pulled_is_done_without() {
    on_wires(|cluster| {
        cluster.admin_ok(&["topic", "create", TOPIC]);
        let load = Load::begin(cluster, 1);
        let reader = Reader::begin(cluster.client(), TOPIC, 0);
        for _ in 0..2 {
            load.await_more(200);
            load.longest_gap();
            let leader = cluster.leader(TOPIC, 0);
            cluster.wires().plug(leader, false);
            let next = cluster.leader_but(TOPIC, 0, leader);
            load.await_more(200);
            println!("leader without a plug: no acknowledgement for {:?}", load.longest_gap());
            // As far as it can know: it leads no more, and knows nobody who does.
            eventually(|| (!knows_a_leader(cluster, leader)).then_some(()));
            cluster.wires().plug(leader, true);
            await_in_sync(cluster);
            let follower = followers_of(next)[0];
            cluster.wires().plug(follower, false);
            load.longest_gap();
            load.await_more(2_000);
            println!("follower without a plug: no acknowledgement for {:?}", load.longest_gap());
            cluster.wires().plug(follower, true);
            await_in_sync(cluster);
        }
        all_is_there(cluster, load, reader);
    });
}

#[test]
fn packets_lost_one_way_or_between_two_nodes_cost_nothing_acknowledged() {
    on_wires(|cluster| {
        cluster.admin_ok(&["topic", "create", TOPIC]);
        let load = Load::begin(cluster, 1);
        let reader = Reader::begin(cluster.client(), TOPIC, 0);
        let wires = cluster.wires();
        let find = || wires.find();
        let unheard = |leader| followers_of(leader).iter().for_each(|other| wires.lose(leader, *other));
        go_on_without_the_leader(cluster, &load, "not heard", unheard, find);
        let deaf = |leader| followers_of(leader).iter().for_each(|other| wires.lose(*other, leader));
        go_on_without_the_leader(cluster, &load, "hears nothing", deaf, find);
        // Two of three pairs are whole: somebody leads, whom a majority hears.
        for (there, back) in [(true, true), (true, false), (false, true)] {
            load.longest_gap();
            let leader = cluster.leader(TOPIC, 0);
            let other = followers_of(leader)[0];
            if there {
                wires.lose(leader, other);
            }
            if back {
                wires.lose(other, leader);
            }
            load.await_more(5_000);
            println!("one pair cut ({there}, {back}): no acknowledgement for {:?}", load.longest_gap());
            find();
            await_in_sync(cluster);
        }
        all_is_there(cluster, load, reader);
    });
}

#[test]
fn a_network_that_comes_and_goes_loses_nothing() {
    on_wires(|cluster| {
        cluster.admin_ok(&["topic", "create", TOPIC]);
        let load = Load::begin(cluster, 1);
        let reader = Reader::begin(cluster.client(), TOPIC, 0);
        for round in 0..6 {
            load.await_more(200);
            cluster.wires().power(false);
            // A flicker, and as long as it takes until nobody leads.
            if round % 2 == 1 {
                (1..=3).for_each(|id| eventually(|| (!knows_a_leader(cluster, id)).then_some(())));
            }
            let acknowledged = load.acknowledged(0);
            cluster.wires().power(true);
            load.longest_gap();
            load.await_more(1);
            println!("after {acknowledged} records back after {:?}", load.longest_gap());
        }
        await_in_sync(cluster);
        all_is_there(cluster, load, reader);
    });
}
