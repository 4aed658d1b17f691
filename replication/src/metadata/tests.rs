mod fixtures;

use super::*;
use crate::placement::place;
use crate::raft::{self, Configuration};
use proptest::prelude::*;
use pyralog_core::{ErrorCode, FeatureLevels, GroupId};

fn node(id: u32, shards: u16) -> NodeInfo {
    let (client_address, internal_address) = (format!("n{id}:9092"), format!("n{id}:9093"));
    let rack = String::new();
    let (level_min, level_max) = (FeatureLevels::OURS.min, FeatureLevels::OURS.max);
    let disk = u64::from(id);
    NodeInfo { id, client_address, internal_address, rack, shards, disk, level_min, level_max, disk_since: 0 }
}

/// An empty catalogue of a cluster in which everything may be used.
fn newest() -> Catalog {
    Catalog::at_level(FeatureLevels::OURS.max).unwrap()
}

fn cluster(nodes: u32) -> Catalog {
    let mut catalog = newest();
    (1..=nodes).for_each(|id| catalog.apply(&Command::RegisterNode(node(id, 2))).unwrap());
    catalog
}

fn spec(name: &str, assignment: Assignment) -> TopicSpec {
    let quorums = Quorums::of(assignment.width());
    TopicSpec {
        name: name.into(),
        assignment,
        replication_factor: quorums.replication_factor,
        write_quorum: quorums.write_quorum,
        read_quorum: quorums.read_quorum,
        min_insync_replicas: quorums.min_insync_replicas,
        retention_bytes: -1,
        retention_ms: -1,
    }
}

fn create(name: &str, partitions: u32, copies: u8, catalog: &Catalog) -> Command {
    Command::CreateTopic(spec(name, place(catalog, partitions, copies).unwrap()))
}

fn replica(node: u32, shard: u16) -> Replica {
    Replica { node, shard }
}

#[track_caller]
fn refused(catalog: &Catalog, command: &Command, code: ErrorCode, text: &str) {
    let (found, detail) = catalog.check(command).unwrap_err();
    assert_eq!(found, code, "{detail}");
    assert!(detail.contains(text), "{text:?} is not in {detail:?}");
    let mut applied = catalog.clone();
    assert_eq!(applied.apply(command), Err((found, detail)));
    applied.version -= 1;
    assert_eq!(&applied, catalog, "a refused command that was committed changes nothing but the version");
}

#[test]
fn topics_come_and_go_and_ids_are_never_reused() {
    let mut catalog = cluster(1);
    catalog.apply(&create("a", 3, 1, &catalog)).unwrap();
    let shards: Vec<_> = (0..4).map(|p| catalog.shard_on(1, GroupId::new(1, p))).collect();
    assert_eq!(shards, [Some(0), Some(1), Some(0), None]);
    assert_eq!(catalog.shard_on(1, GroupId::METADATA), Some(0));
    assert_eq!(catalog.shard_on(2, GroupId::new(1, 0)), None);
    refused(&catalog, &create("a", 1, 1, &catalog), ErrorCode::TopicAlreadyExists, "exists");
    catalog.apply(&create("b", 1, 1, &catalog)).unwrap();
    let slots: Vec<(u16, u32)> = catalog.loads(1).map(|(slot, load)| (slot, load.replicas)).collect();
    assert_eq!((catalog.partitions(), slots), (4, vec![(0, 1), (1, 1), (2, 1), (3, 1)]));
    catalog.apply(&Command::DeleteTopic { topic: 1 }).unwrap();
    assert!(catalog.topic_by_name("a").is_none());
    refused(&catalog, &Command::DeleteTopic { topic: 1 }, ErrorCode::UnknownTopicOrPartition, "id 1");
    catalog.apply(&create("a", 1, 1, &catalog)).unwrap();
    assert_eq!(catalog.topic_by_name("a").unwrap().id, 3);
    assert_eq!(catalog.topic_by_name("b").unwrap().id, 2);
    assert_eq!((catalog.version, catalog.partitions()), (5, 2));
}

#[test]
fn replicas_are_where_they_were_put() {
    let mut catalog = cluster(3);
    let lists = [
        vec![replica(2, 1), replica(1, 0), replica(3, 0)],
        vec![replica(3, 1), replica(1, 1), replica(2, 0)],
    ];
    let assignment = Assignment::new(&lists).unwrap();
    assert_eq!(assignment.preferred_leader(1), Some(replica(3, 1)));
    assert_eq!(assignment.preferred_leader(2), None);
    catalog.apply(&Command::CreateTopic(spec("t", assignment))).unwrap();
    for (list, partition) in lists.iter().zip(0..) {
        let group = GroupId::new(1, partition);
        assert_eq!(&catalog.replicas(group).collect::<Vec<_>>(), list);
        list.iter().for_each(|r| assert_eq!(catalog.shard_on(r.node, group), Some(r.shard)));
    }
    assert_eq!(
        catalog.replicas(GroupId::new(1, 2)).count() + catalog.replicas(GroupId::new(9, 0)).count(),
        0
    );
}

#[test]
fn what_a_topic_may_not_be_is_refused() {
    let catalog = cluster(3);
    let good = Assignment::new(&[vec![replica(1, 0), replica(2, 0), replica(3, 1)]]).unwrap();
    let with = |change: fn(&mut TopicSpec)| {
        let mut spec = spec("t", good.clone());
        change(&mut spec);
        Command::CreateTopic(spec)
    };
    catalog.check(&with(|_| {})).unwrap();
    let invalid = ErrorCode::InvalidTopic;
    refused(&catalog, &with(|s| s.name = "a/b".into()), invalid, "not allowed");
    refused(&catalog, &with(|s| s.write_quorum = 1), invalid, "two leaders");
    refused(&catalog, &with(|s| s.write_quorum = 4), invalid, "2 to 3");
    refused(&catalog, &with(|s| s.read_quorum = 1), invalid, "more than 3");
    refused(&catalog, &with(|s| s.min_insync_replicas = 0), invalid, "1 to 3");
    refused(&catalog, &with(|s| s.retention_bytes = -2), invalid, "retention_bytes -2");
    refused(&catalog, &with(|s| s.retention_ms = i64::MIN), invalid, "retention_ms");
    let at = |home| Command::CreateTopic(spec("t", Assignment::new(&[vec![home]]).unwrap()));
    refused(&catalog, &at(replica(4, 0)), invalid, "node 4 is not registered");
    refused(&catalog, &at(replica(3, 256)), invalid, "node 3 has 2 shards and no slot 256");
    catalog.check(&at(replica(3, 255))).unwrap();
}

#[test]
fn an_assignment_without_meaning_is_not_made() {
    let one = vec![replica(1, 0)];
    for (lists, text) in [
        (vec![], "0 replicas"),
        (vec![vec![]], "0 replicas"),
        (vec![one.clone(), vec![replica(1, 0), replica(2, 0)]], "different numbers"),
        (vec![vec![replica(1, 0), replica(1, 1)]], "two replicas on node 1"),
        (vec![(1..=6).map(|node| replica(node, 0)).collect()], "6 replicas"),
        (vec![one; 65_537], "65537 partitions"),
    ] {
        let error = Assignment::new(&lists).unwrap_err();
        assert!(error.contains(text), "{text:?} is not in {error:?}");
    }
}

#[test]
fn nodes_join_and_come_back() {
    let mut catalog = cluster(2);
    catalog.apply(&create("t", 4, 2, &catalog)).unwrap();
    let invalid = ErrorCode::InvalidRequest;
    let with = |change: fn(&mut NodeInfo)| {
        let mut node = node(2, 2);
        change(&mut node);
        Command::RegisterNode(node)
    };
    refused(&catalog, &with(|n| n.id = 0), invalid, "ids begin at 1");
    refused(&catalog, &with(|n| n.shards = 0), invalid, "0 shards");
    refused(&catalog, &with(|n| n.shards = 257), invalid, "1 to 256");
    let mut old = Catalog::at_level(1).unwrap();
    (1..=2).for_each(|id| old.apply(&Command::RegisterNode(node(id, 2))).unwrap());
    old.apply(&create("t", 4, 2, &old)).unwrap();
    refused(&old, &with(|n| n.shards = 1), invalid, "on shard 1: start it with at least 2");
    let at_2 = Command::CreateTopic(spec("u", Assignment::new(&[vec![replica(2, 2)]]).unwrap()));
    refused(&old, &at_2, ErrorCode::InvalidTopic, "node 2 has 2 shards and no slot 2");
    old.apply(&with(|n| n.shards = 3)).unwrap();
    catalog.check(&with(|n| n.shards = 1)).unwrap();
    for bad in ["", "host", ":1", "host:x", "a b:1", "h\n:1", &format!("{}:1", "h".repeat(511))] {
        let mut bad_node = node(2, 2);
        bad_node.client_address = bad.into();
        refused(&catalog, &Command::RegisterNode(bad_node), invalid, "no address for clients");
    }
    refused(&catalog, &with(|n| n.internal_address = "x".into()), invalid, "no address for nodes");
    refused(&catalog, &with(|n| n.rack = "two words".into()), invalid, "no name of a rack");
    refused(&catalog, &with(|n| n.rack = "r".repeat(65)), invalid, "no name of a rack");
    catalog.apply(&with(|n| n.rack = "r".repeat(64))).unwrap();
    catalog.apply(&with(|n| n.shards = 3)).unwrap();
    catalog.apply(&with(|n| (n.shards, n.internal_address) = (4, String::new()))).unwrap();
    assert_eq!((catalog.nodes.len(), catalog.nodes[&2].shards), (2, 4));
    for id in 3..=64 {
        catalog.apply(&Command::RegisterNode(node(id, 1))).unwrap();
    }
    refused(&catalog, &Command::RegisterNode(node(65, 1)), ErrorCode::LimitReached, "64 nodes");
    catalog.check(&Command::RegisterNode(node(64, 2))).unwrap();
}

#[test]
fn names_are_checked() {
    for bad in ["", ".", "..", "a/b", "ä", "a b", &"x".repeat(250)] {
        assert!(!valid_topic_name(bad), "{bad}");
    }
    assert!(valid_topic_name("orders.v2_eu-west"));
}

#[test]
fn an_unknown_version_is_refused_with_what_to_do() {
    let catalog = cluster(3);
    let mut bytes = catalog.encode();
    assert_eq!(Catalog::decode(&bytes).unwrap(), catalog);
    bytes[0] = 7;
    let error = Catalog::decode(&bytes).unwrap_err();
    assert_eq!(error, DecodeError::UnknownVersion { found: 7 });
    assert!(
        error.to_string().contains("format 7") && error.to_string().contains("start the version"),
        "{error}"
    );
    assert_eq!(Catalog::decode(&[]).unwrap_err(), DecodeError::Empty);
    assert!(matches!(Catalog::decode(&[catalog.encode()[0], 1, 2, 3]), Err(DecodeError::Malformed(_))));
    let command = Command::DeleteTopic { topic: 3 };
    assert_eq!(Command::decode(&command.encode()).unwrap(), command);
}

/// What earlier versions have written is read for ever.
#[test]
fn version_3_is_read() {
    let mut catalog = Catalog::default();
    let old = |id| NodeInfo { level_max: 1, ..node(id, 2) };
    (1..=3).for_each(|id| catalog.apply(&Command::RegisterNode(old(id))).unwrap());
    let commands = [
        Command::RegisterNode(old(2)),
        create("x", 2, 2, &catalog),
        Command::DeleteTopic { topic: 7 },
        Command::ReserveProducerIds { count: 1_000 },
    ];
    for (name, partitions, copies) in [("orders", 3, 3), ("alone", 2, 1)] {
        catalog.apply(&create(name, partitions, copies, &catalog)).unwrap();
    }
    catalog.apply(&Command::ReserveProducerIds { count: 1_000 }).unwrap();
    let written = include_str!("fixtures/format-3.txt").lines().map(|line| {
        let (kind, hex) = line.split_once(' ').unwrap();
        let digits = hex.as_bytes().chunks(2).map(|digits| std::str::from_utf8(digits).unwrap());
        (kind, digits.map(|digits| u8::from_str_radix(digits, 16).unwrap()).collect::<Vec<u8>>())
    });
    let (mut catalogs, mut read) = (0, Vec::new());
    for (kind, bytes) in written {
        assert_eq!(bytes[0], 3);
        if kind == "catalog" {
            assert_eq!(Catalog::decode(&bytes).unwrap(), catalog);
            catalogs += 1;
        } else {
            read.push(Command::decode(&bytes).unwrap());
        }
    }
    assert_eq!((catalogs, read.len()), (1, 4));
    // Where "x" was put depends on the topics that there were.
    let placed = |command: &Command| matches!(command, Command::CreateTopic(spec) if spec.name == "x");
    assert!(
        read.iter().zip(&commands).all(|(read, wanted)| read == wanted || placed(read) && placed(wanted))
    );
}

/// What a disk does not hold of a topic it has lost, if the topic is older than the disk.
#[test]
fn a_topic_is_older_than_the_disk_that_came_after_it() {
    let mut catalog = cluster(3);
    catalog.apply(&create("a", 2, 3, &catalog)).unwrap();
    let group = |topic| GroupId::new(topic, 0);
    assert!(catalog.is_younger_than_disk(group(1), 2, 2));
    assert!(!catalog.is_younger_than_disk(group(1), 2, 99), "this disk is not registered");
    catalog.apply(&Command::RegisterNode(NodeInfo { disk: 99, ..node(2, 2) })).unwrap();
    assert!(!catalog.is_younger_than_disk(group(1), 2, 99) && !catalog.is_younger_than_disk(group(1), 2, 2));
    assert!(catalog.is_younger_than_disk(group(1), 1, 1), "the others have theirs");
    catalog.apply(&create("b", 2, 3, &catalog)).unwrap();
    assert!(catalog.is_younger_than_disk(group(2), 2, 99));
    let since = catalog.nodes[&2].disk_since;
    let moved = NodeInfo { disk: 99, client_address: "elsewhere:1".into(), ..node(2, 2) };
    catalog.apply(&Command::RegisterNode(moved)).unwrap();
    assert_eq!(catalog.nodes[&2].disk_since, since, "another address is not another disk");
    assert_eq!(Catalog::decode(&catalog.encode()).unwrap(), catalog);
}

fn reassign(topic: u32, partition: u32, nodes: &[u32]) -> Command {
    Command::Reassign { topic, partition, to: nodes.iter().map(|node| replica(*node, 0)).collect() }
}

/// Takes the group of a partition to other voters as its log would, up to what it says in the end.
fn walked(catalog: &Catalog, group: GroupId) -> Configuration {
    let wanted = &catalog.moves[&group].to;
    let (mut now, _) = catalog.begins_with(group);
    loop {
        match now.step_to(wanted, |_| true) {
            raft::Step::Propose(next) => now = next,
            raft::Step::Done if now.version() == catalog.begins_with(group).0.version() => {
                now = now.confirmed()
            }
            raft::Step::Done => return now,
            raft::Step::Wait(behind) => panic!("nobody is behind: {behind:?}"),
        }
    }
}

fn reassigned(topic: u32, partition: u32, configuration: Configuration) -> Command {
    Command::Reassigned { topic, partition, configuration, term: 4, index: 77 }
}

#[test]
fn a_partition_moves_when_its_group_says_so() {
    let mut catalog = cluster(5);
    let lists = vec![vec![replica(1, 0), replica(2, 0), replica(3, 0)]; 2];
    catalog.apply(&Command::CreateTopic(spec("t", Assignment::new(&lists).unwrap()))).unwrap();
    let group = GroupId::new(1, 1);
    catalog.apply(&reassign(1, 1, &[5, 4, 3])).unwrap();
    assert_eq!((catalog.shard_on(5, group), catalog.wanted_on(5, group)), (None, Some(0)));
    assert_eq!((catalog.wanted_on(1, group), catalog.wanted_on(5, GroupId::new(1, 0))), (Some(0), None));
    assert_eq!(catalog.begins_with(group), (Configuration::of(lists[1].clone()), (0, 0)));
    assert!(catalog.is_younger_than_disk(group, 5, 5), "it has come to the disk that is there");
    // What the group has not become is not believed.
    let end = walked(&catalog, group);
    let invalid = ErrorCode::InvalidRequest;
    let elsewhere = Configuration::of([replica(1, 0), replica(2, 0), replica(4, 0)]);
    refused(&catalog, &reassigned(1, 1, elsewhere), invalid, "not where they are wanted");
    let joint = catalog.begins_with(group).0.entering(catalog.moves[&group].to.iter().copied());
    refused(&catalog, &reassigned(1, 1, joint.clone()), invalid, "not where they are wanted");
    refused(&catalog, &reassigned(1, 1, joint.left()), invalid, "not where they are wanted");
    refused(&catalog, &reassigned(1, 0, end.clone()), invalid, "not where they are wanted");
    refused(&catalog, &reassigned(1, 0, Configuration::of(lists[0].clone())), invalid, "not being moved");
    refused(&catalog, &reassigned(7, 0, end.clone()), invalid, "not being moved");
    assert_eq!(Catalog::decode(&catalog.encode()).unwrap(), catalog);
    catalog.apply(&reassigned(1, 1, end.clone())).unwrap();
    let replicas: Vec<u32> = catalog.replicas(group).map(|replica| replica.node).collect();
    assert_eq!((replicas, catalog.moves.len()), (vec![5, 4, 3], 0));
    assert_eq!(catalog.begins_with(group), (end, (4, 77)));
    assert_eq!((catalog.wanted_on(1, group), catalog.load(replica(1, 0)).replicas), (None, 1));
    assert_eq!(
        (catalog.load(replica(5, 0)), catalog.load(replica(1, 0)).leaders),
        (Load { replicas: 1, leaders: 1 }, 1)
    );
    // Who has a new disk has lost what came to it before, and not what comes to it then.
    catalog.apply(&Command::RegisterNode(NodeInfo { disk: 99, ..node(5, 2) })).unwrap();
    assert!(!catalog.is_younger_than_disk(group, 5, 99) && catalog.is_younger_than_disk(group, 3, 3));
    catalog.apply(&reassign(1, 0, &[1, 2, 5])).unwrap();
    assert!(catalog.is_younger_than_disk(GroupId::new(1, 0), 5, 99));
    assert_eq!(Catalog::decode(&catalog.encode()).unwrap(), catalog);
    catalog.apply(&Command::DeleteTopic { topic: 1 }).unwrap();
    assert_eq!((catalog.moves.len(), catalog.settled.len()), (0, 0));
}

#[test]
fn a_move_is_taken_back_and_an_order_changed_at_once() {
    let mut catalog = cluster(5);
    let list = vec![replica(1, 0), replica(2, 0), replica(3, 0)];
    catalog.apply(&Command::CreateTopic(spec("t", Assignment::new(&[list]).unwrap()))).unwrap();
    let group = GroupId::new(1, 0);
    catalog.apply(&reassign(1, 0, &[4, 5, 3])).unwrap();
    catalog.apply(&reassign(1, 0, &[1, 2, 3])).unwrap();
    assert_eq!(catalog.moves[&group].passed, [replica(4, 0), replica(5, 0)]);
    assert_eq!(catalog.wanted_on(4, group), Some(0), "the group may have come there");
    assert_eq!(catalog.places(group).map(|place| place.node).max(), Some(5));
    assert_eq!(Catalog::decode(&catalog.encode()).unwrap(), catalog);
    refused(
        &catalog,
        &Command::Reassign { topic: 1, partition: 0, to: vec![replica(1, 0), replica(2, 0), replica(4, 1)] },
        ErrorCode::InvalidRequest,
        "in slot 0",
    );
    catalog.apply(&reassign(1, 0, &[1, 2, 4])).unwrap();
    assert_eq!(catalog.moves[&group].passed, [replica(3, 0), replica(5, 0)]);
    catalog.apply(&reassign(1, 0, &[1, 2, 3])).unwrap();
    // Who is wanted from a later version on is there from that on.
    let first = catalog.moves[&group].since.iter().map(|(_, since)| *since).min().unwrap();
    catalog.apply(&Command::RegisterNode(node(6, 2))).unwrap();
    catalog.apply(&reassign(1, 0, &[1, 2, 6])).unwrap();
    let since = catalog.moves[&group].since.iter().map(|(node, since)| (*node, since - first));
    assert_eq!(since.collect::<Vec<_>>(), [(1, 1), (2, 1), (3, 0), (4, 0), (5, 0), (6, 5)]);
    assert!(catalog.is_younger_than_disk(group, 6, 6));
    catalog.apply(&reassign(1, 0, &[1, 2, 3])).unwrap();
    let end = walked(&catalog, group);
    catalog.apply(&reassigned(1, 0, end)).unwrap();
    assert_eq!((catalog.moves.len(), catalog.load(replica(4, 0)).replicas), (0, 0));
    assert_eq!((catalog.wanted_on(4, group), catalog.wanted_on(5, group)), (None, None));
    // The group had gone on for a move to where it was already.
    let (settled, _) = catalog.begins_with(group);
    let on = settled.with_learners([replica(5, 0)]);
    assert!(catalog.is_settled(group, &settled) && !catalog.is_settled(group, &on));
    let back = on.with_learners([]);
    refused(&catalog, &reassigned(1, 0, settled), ErrorCode::InvalidRequest, "not being moved");
    refused(&catalog, &reassigned(1, 0, on), ErrorCode::InvalidRequest, "not where they are wanted");
    catalog.apply(&reassigned(1, 0, back.clone())).unwrap();
    assert_eq!(catalog.begins_with(group), (back, (4, 77)));
    catalog.apply(&reassign(1, 0, &[3, 1, 2])).unwrap();
    let leads = catalog.replicas(group).next();
    assert_eq!(
        (leads, catalog.moves.len(), catalog.load(replica(3, 0)).leaders),
        (Some(replica(3, 0)), 0, 1)
    );
}

#[test]
fn what_a_move_may_not_be_is_refused() {
    let mut catalog = cluster(4);
    let list = vec![replica(1, 0), replica(2, 1), replica(3, 0)];
    catalog.apply(&Command::CreateTopic(spec("t", Assignment::new(&[list]).unwrap()))).unwrap();
    catalog.apply(&create("alone", 1, 1, &catalog)).unwrap();
    let invalid = ErrorCode::InvalidRequest;
    refused(&catalog, &reassign(9, 0, &[1]), ErrorCode::UnknownTopicOrPartition, "no partition 9-0");
    refused(&catalog, &reassign(1, 1, &[1]), ErrorCode::UnknownTopicOrPartition, "no partition 1-1");
    refused(&catalog, &reassign(2, 0, &[]), invalid, "1 to 5 replicas, 0 nodes");
    refused(&catalog, &reassign(2, 0, &[1, 2]), invalid, "has 1 replicas, 2 nodes");
    refused(&catalog, &reassign(1, 0, &[1, 3]), invalid, "has 3 replicas, 2 nodes");
    refused(&catalog, &reassign(1, 0, &[1, 3, 9]), invalid, "node 9 is not registered");
    refused(&catalog, &reassign(1, 0, &[1, 3, 3]), invalid, "node 3 is named twice");
    refused(&catalog, &reassign(1, 0, &[1, 2, 3]), invalid, "in slot 1");
    let to = |shard| Command::Reassign {
        topic: 1,
        partition: 0,
        to: vec![replica(1, 0), replica(3, 0), replica(4, shard)],
    };
    refused(&catalog, &to(256), invalid, "no slot 256");
    catalog.apply(&to(1)).unwrap();
    let mut old = catalog.clone();
    old.feature_level = 1;
    refused(&old, &Command::RegisterNode(node(4, 1)), invalid, "on its way to shard 1");
    catalog.check(&Command::RegisterNode(node(4, 1))).unwrap();
    catalog.check(&Command::RegisterNode(node(4, 3))).unwrap();
    let same =
        Command::Reassign { topic: 1, partition: 0, to: catalog.replicas(GroupId::new(1, 0)).collect() };
    catalog.check(&same).unwrap();
    catalog.apply(&reassigned(1, 0, walked(&catalog, GroupId::new(1, 0)))).unwrap();
    refused(&catalog, &to(1), invalid, "on these nodes already");
}

#[test]
fn replicas_go_to_other_shards_with_their_node() {
    let mut catalog = cluster(1);
    catalog.apply(&create("t", 8, 1, &catalog)).unwrap();
    let shards = |catalog: &Catalog| -> Vec<u16> {
        (0..8).map(|partition| catalog.wanted_on(1, GroupId::new(1, partition)).unwrap()).collect()
    };
    let before: Vec<_> = catalog.topics[&1].spec.assignment.iter().collect();
    for (count, on) in [
        (2, [0, 1, 0, 1, 0, 1, 0, 1]),
        (4, [0, 1, 2, 3, 0, 1, 2, 3]),
        (1, [0; 8]),
        (3, [0, 1, 2, 0, 1, 2, 0, 1]),
    ] {
        catalog.apply(&Command::RegisterNode(node(1, count))).unwrap();
        assert_eq!(shards(&catalog), on, "{count} shards");
        assert_eq!(Catalog::decode(&catalog.encode()).unwrap(), catalog);
    }
    assert!(
        catalog.topics[&1].spec.assignment.iter().eq(before),
        "and the catalogue says where they are as before"
    );
    assert_eq!(catalog.wanted_on(1, GroupId::METADATA), Some(0));
}

/// Snapshots whose bytes are in order and whose contents are not.
#[test]
fn a_snapshot_that_contradicts_itself_is_refused() {
    let mut good = cluster(3);
    good.apply(&create("a", 2, 3, &good)).unwrap();
    good.apply(&create("b", 1, 1, &good)).unwrap();
    let inconsistent = |change: &dyn Fn(&mut Catalog), text: &str| {
        let mut bad = good.clone();
        change(&mut bad);
        match Catalog::decode(&bad.encode()) {
            Err(DecodeError::Inconsistent(found)) => assert!(found.contains(text), "{text:?}: {found:?}"),
            other => panic!("{text:?}: {other:?}"),
        }
    };
    inconsistent(&|c| c.next_topic_id = 2, "not below the next id");
    inconsistent(&|c| c.next_topic_id = 0, "not positive");
    inconsistent(&|c| c.next_producer_id = 0, "not positive");
    inconsistent(&|c| drop(c.nodes.remove(&2)), "node 2 is not registered");
    inconsistent(&|c| c.nodes.get_mut(&1).unwrap().shards = 0, "0 shards");
    inconsistent(&|c| c.nodes.get_mut(&1).unwrap().id = 3, "out of order");
    fn change_topic(c: &mut Catalog, id: u32, change: impl FnOnce(&mut Topic)) {
        change(std::sync::Arc::make_mut(c.topics.get_mut(&id).unwrap()));
    }
    inconsistent(&|c| change_topic(c, 2, |t| t.spec.name = "a".into()), "\"a\" exists");
    inconsistent(&|c| change_topic(c, 2, |t| t.spec.name = "a b".into()), "not allowed");
    inconsistent(&|c| change_topic(c, 2, |t| t.id = 1), "out of order");
    inconsistent(&|c| change_topic(c, 1, |t| t.spec.write_quorum = 1), "two leaders");
    let group = GroupId::new(1, 0);
    let passed = Vec::new;
    let wanted = || {
        let to = (1..4).map(|node| replica(node, 300)).collect();
        Move { to, passed: passed(), since: vec![(1, 1), (2, 1), (3, 1)] }
    };
    inconsistent(&|c| drop(c.moves.insert(GroupId::new(9, 0), wanted())), "no partition 9-0");
    inconsistent(&|c| drop(c.moves.insert(group, wanted())), "no slot 300");
    let to = |c: &Catalog| c.replicas(GroupId::new(1, 0)).collect::<Vec<_>>();
    inconsistent(
        &|c| {
            drop(
                c.moves.insert(
                    group,
                    Move { to: to(c), passed: passed(), since: vec![(1, 1), (2, 99), (3, 1)] },
                ),
            )
        },
        "a version to come",
    );
    for place in [replica(9, 0), replica(2, 7), replica(1, 1), replica(1, 0)] {
        let wanted =
            |c: &Catalog| Move { to: to(c), passed: vec![place], since: vec![(1, 1), (2, 1), (3, 1)] };
        inconsistent(&|c| drop(c.moves.insert(group, wanted(c))), "was wanted before where it could not be");
    }
    let settled = |c: &Catalog, configuration: Configuration| {
        let placed = c.replicas(group).map(|replica| (replica.node, 1)).collect();
        Settled { configuration, term: 1, index: 1, placed }
    };
    inconsistent(
        &|c| drop(c.settled.insert(group, settled(c, Configuration::of([replica(1, 0)])))),
        "not what there is",
    );
    inconsistent(
        &|c| drop(c.settled.insert(group, settled(c, Configuration::of(to(c)).entering(to(c)).left()))),
        "not what there is",
    );
}

/// What can happen to a catalogue.
#[derive(Clone, Debug)]
enum Step {
    Node(u32, u16),
    Create(u8, u32, u8, [u8; 3]),
    Delete(u32),
    Reserve(u32),
    Reassign(u32, u32, Vec<(u32, u16)>),
    Settle(u32, u32),
    Resize(u32, u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u32..6, 0u16..5).prop_map(|(id, shards)| Step::Node(id, shards)),
        (0u8..6, 1u32..9, 1u8..5, [0u8..5, 0u8..5, 0u8..5])
            .prop_map(|(name, partitions, copies, quorums)| Step::Create(name, partitions, copies, quorums)),
        (0u32..9).prop_map(Step::Delete),
        any::<u32>().prop_map(Step::Reserve),
        (0u32..5, 0u8..5).prop_map(|(topic, copies)| Step::Resize(topic, copies)),
        (0u32..5, 0u32..4, proptest::collection::vec((1u32..6, 0u16..3), 2..4))
            .prop_map(|(topic, partition, to)| Step::Reassign(topic, partition, to)),
        (0u32..5, 0u32..4).prop_map(|(topic, partition)| Step::Settle(topic, partition)),
    ]
}

fn command(step: Step, catalog: &Catalog) -> Option<Command> {
    Some(match step {
        Step::Node(id, shards) => {
            let rack = ["", "east", "west"][(id as usize + usize::from(shards)) % 3].into();
            Command::RegisterNode(NodeInfo { rack, ..node(id, shards) })
        }
        Step::Create(name, partitions, copies, [write_quorum, read_quorum, min_insync_replicas]) => {
            let spec = spec(&format!("t{name}"), place(catalog, partitions, copies).ok()?);
            // Half of them are in order.
            Command::CreateTopic(match write_quorum {
                0 | 1 => spec,
                _ => TopicSpec { write_quorum, read_quorum, min_insync_replicas, ..spec },
            })
        }
        Step::Delete(topic) => Command::DeleteTopic { topic },
        Step::Reserve(count) => Command::ReserveProducerIds { count },
        Step::Reassign(topic, partition, to) => {
            let to = to.into_iter().map(|(node, shard)| replica(node, shard)).collect();
            Command::Reassign { topic, partition, to }
        }
        Step::Resize(topic, replication_factor) => {
            let Quorums { write_quorum, read_quorum, min_insync_replicas, .. } =
                Quorums::of(replication_factor);
            Command::AlterTopic {
                topic,
                replication_factor,
                quorums: (write_quorum, read_quorum, min_insync_replicas),
                retention_bytes: -1,
                retention_ms: -1,
                added: Vec::new(),
            }
        }
        Step::Settle(topic, partition) => {
            let group = GroupId::new(topic, partition);
            catalog.moves.get(&group)?;
            reassigned(topic, partition, walked(catalog, group))
        }
    })
}

proptest! {
    /// A catalogue made by commands, whatever they are, is the one that its snapshot gives back, tables included.
    #[test]
    fn every_catalogue_survives_its_snapshot(steps in proptest::collection::vec(step(), 0..60)) {
        let (mut catalog, mut twin) = (newest(), newest());
        for step in steps {
            let Some(command) = command(step, &catalog) else { continue };
            prop_assert_eq!(&Command::decode(&command.encode()).unwrap(), &command);
            prop_assert_eq!(catalog.apply(&command), twin.apply(&command));
        }
        prop_assert_eq!(&Catalog::decode(&catalog.encode()).unwrap(), &catalog);
        prop_assert_eq!(&twin, &catalog);
        for topic in catalog.topics.values() {
            prop_assert_eq!(catalog.topic_by_name(topic.name()).map(|t| t.id), Some(topic.id));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _ = Command::decode(&bytes);
        let _ = Catalog::decode(&[&[2], &bytes[..]].concat());
        let _ = Command::decode(&[&[2], &bytes[..]].concat());
    }

    /// Changes a few bytes of a real snapshot: what still decodes is a catalogue that works.
    #[test]
    fn damaged_snapshots_never_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut catalog = cluster(3);
        catalog.apply(&create("a", 5, 3, &catalog)).unwrap();
        catalog.apply(&create("b", 2, 1, &catalog)).unwrap();
        let mut bytes = catalog.encode();
        for (index, value) in changes {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(mut damaged) = Catalog::decode(&bytes) {
            let _ = damaged.apply(&Command::DeleteTopic { topic: 1 });
            prop_assert_eq!(&Catalog::decode(&damaged.encode()).unwrap(), &damaged);
        }
    }
}

/// Not a measurement that can fail: prints what 10,000 creates with a published copy each take.
#[test]
#[ignore = "a measurement; run it with --release --ignored --nocapture"]
fn ten_thousand_creates() {
    for copies_kept in [false, true] {
        let mut catalog = cluster(3);
        let begin = std::time::Instant::now();
        let mut published = std::sync::Arc::new(catalog.clone());
        for number in 0..10_000 {
            catalog.apply(&create(&format!("topic-{number:05}"), 3, 3, &catalog)).unwrap();
            if copies_kept {
                published = std::sync::Arc::new(catalog.clone());
            }
        }
        let creates = begin.elapsed();
        let begin = std::time::Instant::now();
        let bytes = catalog.encode();
        let encoded = begin.elapsed();
        let begin = std::time::Instant::now();
        assert_eq!(Catalog::decode(&bytes).unwrap().topics.len(), 10_000);
        println!(
            "published {copies_kept}: 10,000 creates {creates:?}, {} kept; snapshot of {} bytes written in {encoded:?}, read in {:?}",
            published.topics.len(),
            bytes.len(),
            begin.elapsed()
        );
    }
}

#[test]
fn a_node_goes_when_nothing_is_on_it_and_comes_again_with_another_disk() {
    let mut catalog = cluster(4);
    let list = vec![replica(1, 0), replica(2, 0), replica(3, 0)];
    catalog.apply(&Command::CreateTopic(spec("t", Assignment::new(&[list]).unwrap()))).unwrap();
    let remove = |node| Command::RemoveNode { node };
    let invalid = ErrorCode::InvalidRequest;
    refused(&catalog, &remove(9), invalid, "node 9 is not registered");
    refused(&catalog, &remove(3), invalid, "node 3 has 1 replicas");
    catalog.apply(&reassign(1, 0, &[1, 2, 4])).unwrap();
    refused(&catalog, &remove(4), invalid, "on their way to it");
    let group = GroupId::new(1, 0);
    catalog.apply(&reassigned(1, 0, walked(&catalog, group))).unwrap();
    let voters = [replica(1, 0), replica(2, 0), replica(3, 0)];
    assert_eq!(catalog.metadata_wanted(&voters), [voters.as_slice(), &[replica(4, 0)]].concat());
    catalog.apply(&remove(3)).unwrap();
    assert_eq!(catalog.metadata_wanted(&voters), [replica(1, 0), replica(2, 0), replica(4, 0)]);
    assert_eq!(Catalog::decode(&catalog.encode()).unwrap(), catalog);
    let same = catalog.check(&Command::RegisterNode(node(3, 2)));
    assert!(same.is_err_and(|(_, text)| text.contains("was removed")));
    let mut wrong = catalog.clone();
    wrong.nodes.insert(3, node(3, 2));
    assert!(matches!(Catalog::decode(&wrong.encode()), Err(DecodeError::Inconsistent(_))));
    catalog.apply(&Command::RegisterNode(NodeInfo { disk: 99, ..node(3, 2) })).unwrap();
    assert_eq!((catalog.removed.len(), catalog.nodes.len()), (0, 4));
    let mut alone = cluster(1);
    refused(&alone, &remove(1), invalid, "the last one");
    alone.apply(&Command::RegisterNode(node(2, 1))).unwrap();
    alone.apply(&remove(1)).unwrap();
}

#[test]
fn a_node_that_was_added_may_come_or_be_taken_back() {
    let mut catalog = cluster(3);
    let add = |node, address: &str| Command::AddNode { node, internal_address: address.to_owned() };
    let invalid = ErrorCode::InvalidRequest;
    refused(&catalog, &add(0, "h:1"), invalid, "ids begin at 1");
    refused(&catalog, &add(3, "h:1"), invalid, "part of the cluster already");
    refused(&catalog, &add(4, "h"), invalid, "is no address");
    let taken = catalog.nodes[&2].internal_address.clone();
    refused(&catalog, &add(4, &taken), invalid, "node 2 is at");
    catalog.apply(&add(4, "h:1")).unwrap();
    refused(&catalog, &add(5, "h:1"), invalid, "node 4 is at h:1");
    // It may be corrected.
    catalog.apply(&add(4, "h:2")).unwrap();
    catalog.apply(&add(5, "h:3")).unwrap();
    refused(&catalog, &add(6, "h:4"), ErrorCode::LimitReached, "5 nodes is the bound");
    assert_eq!(catalog.internal_addresses().skip(3).collect::<Vec<_>>(), [(4, "h:2"), (5, "h:3")]);
    assert_eq!(Catalog::decode(&catalog.encode()).unwrap(), catalog);
    catalog.apply(&Command::RemoveNode { node: 5 }).unwrap();
    catalog.apply(&Command::RegisterNode(node(4, 1))).unwrap();
    assert_eq!((catalog.expected.len(), catalog.nodes.len(), catalog.removed.len()), (0, 4, 0));
    let mut wrong = catalog.clone();
    wrong.expected.insert(4, "h:9".into());
    assert!(matches!(Catalog::decode(&wrong.encode()), Err(DecodeError::Inconsistent(_))));
}

#[test]
fn a_topic_gets_other_settings_and_more_partitions() {
    let mut catalog = cluster(4);
    let list = vec![replica(1, 0), replica(2, 0), replica(3, 0)];
    catalog.apply(&Command::CreateTopic(spec("t", Assignment::new(&[list]).unwrap()))).unwrap();
    catalog.apply(&Command::RegisterNode(NodeInfo { disk: 99, ..node(3, 2) })).unwrap();
    let alter = |quorums, retention_bytes, added: Vec<Vec<Replica>>| Command::AlterTopic {
        topic: 1,
        replication_factor: 3,
        quorums,
        retention_bytes,
        retention_ms: 5,
        added,
    };
    let more = vec![vec![replica(3, 0), replica(4, 0), replica(2, 1)]; 2];
    catalog.apply(&alter((2, 2, 2), 7, Vec::new())).unwrap();
    assert_eq!((catalog.topics[&1].partitions(), catalog.grown.len()), (1, 0));
    catalog.apply(&alter((3, 1, 3), 7, more.clone())).unwrap();
    let spec = &catalog.topics[&1].spec;
    assert_eq!(
        (spec.assignment.partitions(), catalog.partitions(), catalog.load(replica(3, 0)).leaders),
        (3, 3, 2)
    );
    assert_eq!((spec.write_quorum, spec.retention_bytes, spec.retention_ms), (3, 7, 5));
    // The first one was on node 3 before it had its disk, those that were added never were.
    let young = |partition| catalog.is_younger_than_disk(GroupId::new(1, partition), 3, 99);
    assert_eq!((young(0), young(1), young(2)), (false, true, true));
    assert_eq!(Catalog::decode(&catalog.encode()).unwrap(), catalog);
    let mut wrong = catalog.clone();
    wrong.grown.insert(GroupId::new(1, 3), 1);
    assert!(matches!(Catalog::decode(&wrong.encode()), Err(DecodeError::Inconsistent(_))));
    refused(&catalog, &alter((1, 1, 1), 7, Vec::new()), ErrorCode::InvalidTopic, "two leaders");
    refused(&catalog, &alter((2, 2, 2), -5, Vec::new()), ErrorCode::InvalidTopic, "retention_bytes");
    refused(
        &catalog,
        &alter((2, 2, 2), 7, vec![vec![replica(1, 0)]]),
        ErrorCode::InvalidTopic,
        "different numbers",
    );
    let nowhere = vec![vec![replica(1, 0), replica(2, 0), replica(9, 0)]];
    refused(&catalog, &alter((2, 2, 2), 7, nowhere), ErrorCode::InvalidTopic, "node 9 is not registered");
    catalog.apply(&Command::DeleteTopic { topic: 1 }).unwrap();
    assert_eq!((catalog.grown.len(), catalog.partitions()), (0, 0));
    assert!(catalog.check(&alter((2, 2, 2), 7, more)).is_err());
}

/// A topic is to have other numbers of replicas: its partitions get there one after the other, or stay, and what holds for each
/// follows from how many it has.
#[test]
fn one_replica_goes_on_alone_by_decree() {
    let mut catalog = cluster(5);
    let list = vec![replica(1, 0), replica(2, 0), replica(3, 0)];
    catalog.apply(&Command::CreateTopic(spec("t", Assignment::new(&[list]).unwrap()))).unwrap();
    catalog.apply(&create("alone", 1, 1, &catalog)).unwrap();
    let group = GroupId::new(1, 0);
    let force = |topic, to, term| Command::Force { topic, partition: 0, to, term };
    let invalid = ErrorCode::InvalidRequest;
    let unknown = ErrorCode::UnknownTopicOrPartition;
    refused(&catalog, &force(9, replica(1, 0), 5), unknown, "no partition 9-0");
    refused(&catalog, &force(2, replica(1, 0), 5), invalid, "has one replica");
    refused(&catalog, &force(1, replica(4, 0), 5), invalid, "node 4 has no replica");
    refused(&catalog, &force(1, replica(2, 0), 0), invalid, "no epoch behind");
    // On its way elsewhere, which nobody can say how far it has come.
    catalog.apply(&reassign(1, 0, &[3, 4, 5])).unwrap();
    catalog.apply(&force(1, replica(2, 0), 70_000)).unwrap();
    assert!(catalog.moves.is_empty() && catalog.is_group(group));
    assert_eq!(catalog.replicas(group).collect::<Vec<_>>(), [replica(2, 0)]);
    let (first, after) = catalog.begins_with(group);
    assert_eq!((first.voters(), first.is_forced(), after), (&[replica(2, 0)][..], true, (70_000, 0)));
    assert_eq!(Catalog::decode(&catalog.encode()).unwrap(), catalog);
    // It gets others as any group does, and may come to need it again.
    catalog.apply(&reassign(1, 0, &[2, 4, 5])).unwrap();
    catalog.apply(&reassigned(1, 0, walked(&catalog, group))).unwrap();
    let (settled, _) = catalog.begins_with(group);
    assert!(!settled.is_forced() && settled.version() > first.version());
    catalog.apply(&force(1, replica(5, 0), 80_000)).unwrap();
    let (again, _) = catalog.begins_with(group);
    assert!(again.is_forced() && again.version() > settled.version());
}

#[test]
fn the_only_replica_becomes_a_group_and_stays_one() {
    let mut catalog = cluster(3);
    catalog.apply(&create("alone", 1, 1, &catalog)).unwrap();
    let group = GroupId::new(1, 0);
    let first = catalog.replicas(group).next().unwrap().node;
    let other = first % 3 + 1;
    assert!(!catalog.is_group(group));
    catalog.apply(&reassign(1, 0, &[other])).unwrap();
    assert!(catalog.is_group(group), "it moves");
    // It may have begun by now, even if it is to stay.
    catalog.apply(&reassign(1, 0, &[first])).unwrap();
    assert!(catalog.is_group(group) && catalog.places(group).count() > 1);
    catalog.apply(&reassigned(1, 0, walked(&catalog, group))).unwrap();
    assert!(catalog.is_group(group) && catalog.moves.is_empty());
    assert_eq!(catalog.begins_with(group).0.voters(), [replica(first, 0)]);
    let again = Catalog::decode(&catalog.encode()).unwrap();
    assert!(again == catalog && again.is_group(group));
    assert_eq!(again.quorums(group).unwrap(), Quorums::of(1));
}

#[test]
fn a_topic_gets_more_replicas_and_fewer() {
    let mut catalog = cluster(5);
    let lists = [[1, 2, 3], [3, 4, 5]].map(|nodes| nodes.map(|node| replica(node, 0)).to_vec());
    catalog.apply(&Command::CreateTopic(spec("t", Assignment::new(&lists).unwrap()))).unwrap();
    let alter = |topic, replication_factor, quorums| Command::AlterTopic {
        topic,
        replication_factor,
        quorums,
        retention_bytes: -1,
        retention_ms: -1,
        added: Vec::new(),
    };
    let invalid = ErrorCode::InvalidTopic;
    refused(&catalog, &alter(1, 5, (2, 2, 2)), invalid, "write_quorum 2 of 5 copies");
    refused(&catalog, &alter(1, 6, (4, 4, 4)), invalid, "need as many nodes, and 5");
    refused(&catalog, &alter(1, 1, (2, 2, 2)), invalid, "write_quorum 2 of 1 copies");
    refused(&catalog, &alter(1, 0, (2, 2, 2)), invalid, "replication_factor 0");
    refused(
        &catalog,
        &reassign(1, 0, &[1, 2, 3, 4, 5]),
        ErrorCode::InvalidRequest,
        "has 3 replicas, 5 nodes",
    );
    catalog.apply(&alter(1, 5, (3, 3, 3))).unwrap();
    let (first, second) = (GroupId::new(1, 0), GroupId::new(1, 1));
    let holds = |catalog: &Catalog, group| {
        let quorums = catalog.quorums(group).unwrap();
        (quorums.replication_factor, quorums.write_quorum, quorums.min_insync_replicas)
    };
    assert_eq!((holds(&catalog, first), holds(&catalog, second)), ((3, 2, 2), (3, 2, 2)));
    refused(
        &catalog,
        &reassign(1, 0, &[1, 2, 4]),
        ErrorCode::InvalidRequest,
        "has 3 replicas and is to have 5, 3 nodes",
    );
    // Another order of those that there are is no move, fewer of them are one.
    catalog.apply(&reassign(1, 1, &[4, 3, 5])).unwrap();
    assert!(catalog.moves.is_empty());
    catalog.apply(&reassign(1, 0, &[1, 2, 3, 4, 5])).unwrap();
    assert_eq!((catalog.moves.len(), catalog.replicas(first).count()), (1, 3));
    catalog.apply(&reassigned(1, 0, walked(&catalog, first))).unwrap();
    assert_eq!((catalog.replicas(first).count(), catalog.replicas(second).count()), (5, 3));
    assert_eq!((holds(&catalog, first), holds(&catalog, second)), ((5, 3, 3), (3, 2, 2)));
    assert_eq!(Catalog::decode(&catalog.encode()).unwrap(), catalog);
    // Partitions that are added have as many as the topic is to have.
    let added = Command::AlterTopic {
        topic: 1,
        replication_factor: 5,
        quorums: (3, 3, 3),
        retention_bytes: -1,
        retention_ms: -1,
        added: vec![lists[0].clone()],
    };
    refused(&catalog, &added, invalid, "different numbers");
    // And down to two; the one that has not got there yet is taken back on its way.
    catalog.apply(&reassign(1, 1, &[4, 3, 5, 1, 2])).unwrap();
    catalog.apply(&alter(1, 2, (2, 2, 1))).unwrap();
    assert_eq!((holds(&catalog, first), holds(&catalog, second)), ((5, 3, 1), (3, 2, 1)));
    let back = Command::Reassign { topic: 1, partition: 1, to: catalog.replicas(second).collect() };
    catalog.apply(&back).unwrap();
    assert_eq!(Catalog::decode(&catalog.encode()).unwrap(), catalog);
    catalog.apply(&reassigned(1, 1, walked(&catalog, second))).unwrap();
    for group in [first, second] {
        catalog.apply(&reassign(1, group.partition, &[3, 5])).unwrap();
        assert!(catalog.moves.contains_key(&group), "fewer of the same take a change of the group");
        catalog.apply(&reassigned(1, group.partition, walked(&catalog, group))).unwrap();
        assert_eq!(holds(&catalog, group), (2, 2, 1));
    }
    let assignment = &catalog.topics[&1].spec.assignment;
    assert!(assignment.is_even(2) && assignment.homes().len() == 2, "{assignment:?}");
    assert_eq!((catalog.load(replica(3, 0)).leaders, catalog.load(replica(1, 0)).leaders), (2, 0));
    assert_eq!(Catalog::decode(&catalog.encode()).unwrap(), catalog);
}

#[test]
fn the_level_goes_up_when_all_nodes_support_it_and_never_down() {
    let mut catalog = Catalog::default();
    let at =
        |id, level_min, level_max| Command::RegisterNode(NodeInfo { level_min, level_max, ..node(id, 2) });
    let raise = |level| Command::RaiseFeatureLevel { level };
    let invalid = ErrorCode::InvalidRequest;
    refused(&catalog, &raise(2), invalid, "above what all nodes support");
    for id in 1..=3 {
        catalog.apply(&at(id, 1, if id == 3 { 1 } else { 2 })).unwrap();
    }
    catalog.apply(&create("t", 2, 3, &catalog)).unwrap();
    let unsupported = ErrorCode::UnsupportedVersion;
    let to = catalog.slots_on(GroupId::new(1, 0), &[2, 1, 3]);
    let moves = Command::Reassign { topic: 1, partition: 0, to };
    refused(&catalog, &raise(2), invalid, "node 3 supports only 1");
    refused(
        &catalog,
        &moves,
        unsupported,
        "feature level is 1, moving a partition takes 2: node 3 supports only 1, upgrade",
    );
    refused(&catalog, &Command::RemoveNode { node: 3 }, unsupported, "removing a node takes 2");
    let racked = Command::RegisterNode(NodeInfo { rack: "east".into(), ..node(1, 2) });
    refused(&catalog, &racked, unsupported, "a node with a rack takes 2");
    catalog.apply(&at(3, 1, 2)).unwrap();
    refused(&catalog, &moves, unsupported, "as soon as all nodes have registered");
    refused(&catalog, &raise(1), invalid, "never goes down");
    refused(&catalog, &raise(3), invalid, "node 1 supports only 1 to 2");
    // Until then one may go back.
    catalog.apply(&at(2, 1, 1)).unwrap();
    refused(&catalog, &raise(2), invalid, "node 2 supports only 1");
    catalog.apply(&at(2, 1, 2)).unwrap();
    catalog.apply(&raise(2)).unwrap();
    assert_eq!(catalog.feature_level, 2);
    catalog.apply(&moves).unwrap();
    catalog.apply(&racked).unwrap();
    refused(
        &catalog,
        &at(2, 1, 1),
        invalid,
        "the cluster's feature level is 2, and this node supports 1: start",
    );
    refused(
        &catalog,
        &at(4, 3, 5),
        invalid,
        "supports 3 to 5: upgrade the cluster with a release in between",
    );
    refused(&catalog, &at(4, 2, 1), invalid, "feature levels 2 to 1");
    refused(&catalog, &at(4, 0, 2), invalid, "feature levels 0 to 2");
    refused(&catalog, &raise(2), invalid, "never goes down");
    assert_eq!(Catalog::decode(&catalog.encode()).unwrap(), catalog, "a snapshot keeps the level");
}

/// What the levels are is what nodes of other releases go by: it does not change.
#[test]
fn commands_keep_their_level() {
    let catalog = cluster(3);
    let of_level = |level| move |command: &Command| command.level() == level;
    assert!(
        [create("t", 1, 3, &catalog), Command::DeleteTopic { topic: 1 }, Command::RegisterNode(node(1, 1))]
            .iter()
            .all(of_level(1))
    );
    assert!([reassign(1, 0, &[1]), Command::RemoveNode { node: 1 }].iter().all(of_level(2)));
    assert!(of_level(7)(&Command::RaiseFeatureLevel { level: 7 }));
}
