//! Links between nodes over real sockets and rings: order, sizes, restarts, refusals, bounds, dead peers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(unused_imports)]
mod common;
#[path = "common/links.rs"]
mod links;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::time::Instant;

use common::PATIENCE;
use links::{CLUSTER, End, PATIENT, Raw, Told, hello, peer, port, start};
use pyralog_core::limits::*;
use pyralog_core::{FeatureLevels, NodeId};
use pyralog_net::peer::frame::FrameKind;
use pyralog_net::peer::{PROTOCOL_VERSION, RefusalCode};
use pyralog_shard::runtime::peers::LinkTiming;

fn addresses<const N: usize>(of: [SocketAddr; N]) -> BTreeMap<NodeId, SocketAddr> {
    (1..).map(NodeId).zip(of).collect()
}

/// Node 1 with one shard, and the listener of node 2, which the test plays itself.
fn against_a_raw_peer(timing: LinkTiming) -> (End, SocketAddr, TcpListener) {
    let (mine, mut raw) = (port(), port());
    let address = mine.address();
    let nodes = addresses([address, raw.address()]);
    let end = start(1, 1, mine, &nodes, |config| config.timing = timing).remove(0);
    (end, address, raw.listener().unwrap())
}

/// Both links of a raw peer: the one that node 1 dialled, and our own.
fn link_up(end: &End, address: SocketAddr, listener: &TcpListener, session: u64) -> (Raw, Raw) {
    let mut inbound = Raw::accept(listener);
    inbound.welcome(session);
    let mut out = Raw::dial(address);
    assert_eq!(out.hello(&hello(2, peer(1, 0), session)).refusal, None);
    assert_eq!(end.up(peer(2, 0)), session);
    (inbound, out)
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn frames_arrive_once_in_order_and_whole_in_both_directions() {
    let (one, two) = (port(), port());
    let nodes = addresses([one.address(), two.address()]);
    let ends = [start(1, 2, one, &nodes, |_| {}), start(2, 2, two, &nodes, |_| {})];
    let others = |node: usize| [peer(2 - node as u32, 0), peer(2 - node as u32, 1)];
    for (node, shards) in ends.iter().enumerate() {
        shards.iter().for_each(|end| end.want(&others(node)));
    }
    // Every pair comes up, once, before anything is sent.
    for (node, shards) in ends.iter().enumerate() {
        for end in shards {
            let mut up: Vec<_> = (0..2)
                .map(|_| match end.next() {
                    Told::Up(peer, _) => peer,
                    other => panic!("{other:?}"),
                })
                .collect();
            up.sort();
            assert_eq!(up, others(node));
        }
    }
    // Sizes around every bound: nothing, one receive buffer, several, the largest frame.
    let buffer = PEER_RECV_BUFFER_BYTES - PEER_FRAME_HEADER_BYTES - 8;
    let sizes = [0, 1, 61, buffer - 1, buffer, buffer + 1, 3 << 20, 100, MAX_PEER_PAYLOAD_BYTES, 5, 300_000];
    let mut rounds: Vec<Vec<usize>> = sizes.iter().map(|size| vec![*size]).collect();
    rounds.push(sizes.iter().copied().filter(|size| *size < 1 << 20).collect());
    rounds.push((0..800).map(|at| at * 7 % 1500).collect());
    let mut number = 0u64;
    for round in rounds {
        for (node, shards) in ends.iter().enumerate() {
            for end in shards {
                for to in others(node) {
                    for (at, size) in round.iter().enumerate() {
                        let at = number + at as u64;
                        end.send(to, &at.to_le_bytes(), &bytes(at, *size));
                    }
                }
            }
        }
        for (node, shards) in ends.iter().enumerate() {
            for end in shards {
                let mut next = others(node).map(|peer| (peer, number));
                for _ in 0..2 * round.len() {
                    let Told::Frame { from, control, payload } = end.next() else { panic!("a frame") };
                    let (_, at) = next.iter_mut().find(|(peer, _)| *peer == from).unwrap();
                    assert_eq!(control, at.to_le_bytes(), "out of order from {from:?}");
                    assert!(payload == bytes(*at, round[(*at - number) as usize]), "frame {at} is damaged");
                    *at += 1;
                }
            }
        }
        number += round.len() as u64;
    }
    for end in ends.iter().flatten() {
        assert!(end.told.is_empty(), "nothing comes twice: {:?}", end.told.try_recv());
        let stats = end.stats();
        assert_eq!((stats.up, stats.links, stats.dropped, stats.assembly_bytes), (2, 4, 0, 0));
    }
}

#[test]
fn control_parts_may_be_as_large_as_their_bound_and_no_larger() {
    let (one, two) = (port(), port());
    let nodes = addresses([one.address(), two.address()]);
    let (one, two) = (start(1, 1, one, &nodes, |_| {}), start(2, 1, two, &nodes, |_| {}));
    one[0].want(&[peer(2, 0)]);
    two[0].want(&[peer(1, 0)]);
    one[0].up(peer(2, 0));
    two[0].up(peer(1, 0));
    let largest = bytes(3, MAX_PEER_CONTROL_BYTES);
    one[0].send(peer(2, 0), &largest, b"p");
    let Told::Frame { control, payload, .. } = two[0].next() else { panic!("a frame") };
    assert!(control == largest && payload == b"p");
    one[0].send(peer(2, 0), &bytes(3, MAX_PEER_CONTROL_BYTES + 1), b"");
    assert_eq!(one[0].next(), Told::Dropped(peer(2, 0)));
    one[0].log("too large");
}

#[test]
fn a_peer_that_dies_goes_down_and_comes_back_with_another_session() {
    let (one, two) = (port(), port());
    let nodes = addresses([one.address(), two.address()]);
    let address = two.address();
    let survivor = start(1, 1, one, &nodes, |_| {}).remove(0);
    survivor.want(&[peer(2, 0)]);
    survivor.send(peer(2, 0), b"too early", b"");
    assert_eq!(survivor.next(), Told::Dropped(peer(2, 0)));
    let mut port = Some(two);
    let mut sessions = Vec::new();
    for round in 0..3u8 {
        let two = port.take().unwrap_or_else(|| pyralog_net::socket::SharedPort::open(address).unwrap());
        let mortal = start(2, 1, two, &nodes, |_| {}).remove(0);
        mortal.want(&[peer(1, 0)]);
        mortal.up(peer(1, 0));
        sessions.push(survivor.up(peer(2, 0)));
        mortal.send(peer(1, 0), &[round], b"hi");
        let frame = Told::Frame { from: peer(2, 0), control: vec![round], payload: b"hi".to_vec() };
        assert_eq!(survivor.next(), frame);
        drop(mortal);
        assert_eq!(survivor.next(), Told::Down(peer(2, 0)));
        survivor.send(peer(2, 0), b"too late", b"");
        assert_eq!(survivor.next(), Told::Dropped(peer(2, 0)));
    }
    sessions.sort_unstable();
    sessions.dedup();
    assert_eq!(sessions.len(), 3, "each life has its own session");
}

#[test]
fn a_peer_that_is_not_wanted_any_more_goes_down_on_both_sides() {
    let (one, two) = (port(), port());
    let nodes = addresses([one.address(), two.address()]);
    let (one, two) = (start(1, 1, one, &nodes, |_| {}).remove(0), start(2, 1, two, &nodes, |_| {}).remove(0));
    two.want(&[peer(1, 0)]);
    for _ in 0..3 {
        one.want(&[peer(2, 0)]);
        one.up(peer(2, 0));
        two.up(peer(1, 0));
        one.want(&[]);
        assert_eq!(one.next(), Told::Down(peer(2, 0)));
        assert_eq!(two.next(), Told::Down(peer(1, 0)));
    }
}

#[test]
fn who_does_not_belong_here_is_refused_and_told_what_to_do() {
    let (end, address, listener) = against_a_raw_peer(PATIENT);
    let good = hello(2, peer(1, 0), 5);
    let cases = [
        (
            pyralog_net::peer::Hello { cluster_id: 7, ..good },
            RefusalCode::WrongCluster,
            "give both the same cluster id",
        ),
        (hello(2, peer(3, 0), 5), RefusalCode::WrongNode, "this is node 1, not node 3"),
        (
            hello(9, peer(1, 0), 5),
            RefusalCode::UnknownNode,
            "add it with `pyralog-admin cluster add-node`, or to node.cluster_nodes on node 1",
        ),
        (hello(1, peer(1, 0), 5), RefusalCode::UnknownNode, "two nodes have the id 1"),
        (hello(2, peer(1, 4), 5), RefusalCode::NoSuchShard, "has no shard 4: it has 1"),
        (
            pyralog_net::peer::Hello { version_min: 8, version_max: 9, ..good },
            RefusalCode::UnknownVersion,
            "versions 8 to 9",
        ),
    ];
    for (hello, code, text) in cases {
        let mut raw = Raw::dial(address);
        let refusal = raw.hello(&hello).refusal.expect("refused");
        assert_eq!(refusal.code, code);
        assert!(refusal.text.contains(text), "{}", refusal.text);
        assert!(raw.read().is_none(), "closed after the refusal");
        end.log(text);
    }
    // Links that are there stay, as all nodes support a level before it is raised.
    end.set_feature_level(2);
    let refused = |levels: FeatureLevels| {
        let hello = pyralog_net::peer::Hello { levels, ..good };
        Raw::dial(address).hello(&hello).refusal
    };
    for (levels, text) in [
        (
            FeatureLevels { min: 1, max: 1 },
            "the cluster's feature level is 2, and this node supports 1: start a release",
        ),
        (FeatureLevels { min: 3, max: 4 }, "supports 3 to 4: upgrade the cluster with a release in between"),
    ] {
        let refusal = refused(levels).expect("refused");
        assert_eq!(refusal.code, RefusalCode::FeatureLevel);
        assert!(
            refusal.text.contains("node 2 can't be in the cluster") && refusal.text.contains(text),
            "{refusal:?}"
        );
    }
    assert_eq!(refused(FeatureLevels { min: 2, max: 9 }), None);
    let cluster = format!("to cluster {CLUSTER}");
    let mut raw = Raw::dial(address);
    let refusal = raw.hello(&pyralog_net::peer::Hello { cluster_id: 7, ..good }).refusal.unwrap();
    assert!(refusal.text.contains("cluster 7") && refusal.text.contains(&cluster), "{}", refusal.text);
    // The side that is refused logs the text too, and tries again.
    end.want(&[peer(2, 0)]);
    for _ in 0..2 {
        let mut inbound = Raw::accept(&listener);
        let (kind, ..) = inbound.read().unwrap();
        assert_eq!(kind, FrameKind::Hello);
        let refusal = pyralog_net::peer::Refusal::new(RefusalCode::WrongCluster, "some advice");
        let reply = pyralog_net::peer::HelloReply {
            node: NodeId(2),
            shard: peer(2, 0).shard,
            shards: 1,
            version: PROTOCOL_VERSION,
            session: 0,
            refusal: Some(refusal),
        };
        let mut out = Vec::new();
        reply.encode(&mut out);
        inbound.stream.write_all(&out).unwrap();
        assert!(inbound.read().is_none());
    }
    let line = end.log("some advice");
    assert!(line.contains("shard 0 of node 2") && line.contains("WrongCluster"), "{line}");
    link_up(&end, address, &listener, 6);
}

#[test]
fn garbage_on_the_internal_port_harms_nobody() {
    let (end, address, listener) = against_a_raw_peer(PATIENT);
    end.want(&[peer(2, 0)]);
    let (mut inbound, mut out) = link_up(&end, address, &listener, 5);
    let mut hello_frame = Vec::new();
    hello(2, peer(1, 0), 5).encode(&mut hello_frame);
    let mut damaged = hello_frame.clone();
    damaged[30] ^= 1;
    let mut early = Vec::new();
    pyralog_net::peer::frame::encode(FrameKind::Messages, b"x", 0, &mut early);
    let other_version = [0xF5, 9];
    let garbage =
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 100], &damaged, &early, &bytes(1, 5000), &other_version];
    for bytes in garbage {
        let mut raw = Raw::dial(address);
        // It may be closed while we write.
        let _ = raw.stream.write_all(bytes);
        if bytes == other_version {
            let (_, control, _) = raw.read().unwrap();
            let refusal = pyralog_net::peer::HelloReply::decode(&control).unwrap().refusal.unwrap();
            assert_eq!(refusal.code, RefusalCode::UnknownVersion);
        }
        assert!(raw.read().is_none());
    }
    // More silent strangers than are kept: none of them, and not the peer, is in anybody's way.
    let strangers: Vec<Raw> = (0..MAX_PEER_HANDSHAKES_PER_SHARD + 10).map(|_| Raw::dial(address)).collect();
    out.send(FrameKind::Messages, b"still", b"here");
    let frame = Told::Frame { from: peer(2, 0), control: b"still".to_vec(), payload: b"here".to_vec() };
    assert_eq!(end.next(), frame);
    drop(strangers);
    // What breaks the rules on a link that is up takes it down.
    out.send(FrameKind::HelloReply, b"", b"");
    assert_eq!(end.next(), Told::Down(peer(2, 0)));
    assert!(inbound.read_frame().is_none(), "the other direction is closed with it");
}

#[test]
fn a_slow_reader_bounds_the_memory_and_what_is_dropped_is_told() {
    let (end, address, listener) = against_a_raw_peer(PATIENT);
    end.want(&[peer(2, 0)]);
    let (mut inbound, _out) = link_up(&end, address, &listener, 5);
    let size = 1 << 20;
    let mut sent = 0u32;
    // Nobody reads: sooner or later the queue is full.
    let started = Instant::now();
    while end.told.is_empty() {
        assert!(started.elapsed() < PATIENCE && sent < 1000, "nothing is ever dropped");
        end.send(peer(2, 0), &sent.to_le_bytes(), &bytes(sent.into(), size));
        sent += 1;
        assert!(end.stats().queued_bytes <= PEER_QUEUE_BYTES as u64);
    }
    assert_eq!(end.next(), Told::Dropped(peer(2, 0)));
    assert!(end.stats().queued_bytes > (PEER_QUEUE_BYTES - 2 * size) as u64, "the queue is used");
    // What was not dropped arrives, whole and in order; then there is room again.
    let arrives = sent - end.stats().dropped as u32;
    for at in 0..arrives {
        let (_, control, payload) = inbound.read_frame().unwrap();
        assert_eq!(control, at.to_le_bytes());
        assert!(payload == bytes(at.into(), size));
    }
    end.send(peer(2, 0), b"again", b"");
    assert_eq!(inbound.read_frame().unwrap().1, b"again");
    assert_eq!(end.stats().queued_bytes, 0);
}

#[test]
fn idle_links_are_pinged_and_a_silent_peer_is_dead() {
    let timing = LinkTiming { timeout_us: 2_000_000, ..PATIENT };
    let (end, address, listener) = against_a_raw_peer(timing);
    end.want(&[peer(2, 0)]);
    let mut inbound = Raw::accept(&listener);
    inbound.welcome(5);
    let mut out = Raw::dial(address);
    out.hello(&hello(2, peer(1, 0), 5));
    assert_eq!(end.up(peer(2, 0)), 5);
    // We say nothing: pings come on both links, then both end.
    for raw in [&mut inbound, &mut out] {
        assert_eq!(raw.read().expect("a ping").0, FrameKind::Ping);
    }
    assert_eq!(end.next(), Told::Down(peer(2, 0)));
    assert!(end.log("are down").contains("nothing was heard for 2000 ms"));
    assert!(inbound.read_frame().is_none() && out.read_frame().is_none(), "both directions are closed");
}

#[test]
fn messages_wait_until_both_links_are_greeted() {
    let (end, address, listener) = against_a_raw_peer(PATIENT);
    // The peer believes that it is up and speaks; our own link to it is not greeted yet.
    let mut out = Raw::dial(address);
    out.hello(&hello(2, peer(1, 0), 5));
    out.send(FrameKind::Messages, b"1", b"");
    out.send(FrameKind::Messages, b"2", b"payload");
    end.want(&[peer(2, 0)]);
    let mut inbound = Raw::accept(&listener);
    inbound.welcome(5);
    assert_eq!(end.up(peer(2, 0)), 5);
    for (control, payload) in [(&b"1"[..], &b""[..]), (b"2", b"payload")] {
        let frame = Told::Frame { from: peer(2, 0), control: control.to_vec(), payload: payload.to_vec() };
        assert_eq!(end.next(), frame);
    }
    // A restarted peer dials before its old link is seen to be broken: the old life ends first.
    let mut again = Raw::dial(address);
    again.hello(&hello(2, peer(1, 0), 6));
    assert_eq!(end.next(), Told::Down(peer(2, 0)));
    assert!(out.read_frame().is_none() && inbound.read_frame().is_none());
    let mut inbound = Raw::accept(&listener);
    inbound.welcome(6);
    assert_eq!(end.up(peer(2, 0)), 6);
}
