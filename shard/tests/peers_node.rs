//! The internal port of a real node.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(unused_imports)]
mod common;
#[allow(dead_code)]
#[path = "common/links.rs"]
mod links;

use common::{Client, Rig};
use links::{CLUSTER, PATIENT, Raw, hello, peer};
use pyralog_core::NodeId;
use pyralog_net::message::{Request, Response};
use pyralog_net::peer::RefusalCode;
use pyralog_net::peer::frame::FrameKind;
use pyralog_shard::runtime::InternalOptions;

#[test]
fn a_node_hands_links_to_the_shard_they_want_and_keeps_them_alive() {
    let mut rig = Rig::with(3, |options| {
        options.internal = Some(InternalOptions {
            listen: "127.0.0.1:0".parse().unwrap(),
            cluster_id: CLUSTER,
            peers: [(NodeId(2), "127.0.0.1:1".to_owned())].into(),
            timing: PATIENT,
        });
    });
    let address = rig.node().internal_addr().expect("an internal port");
    assert_ne!(address, rig.addr());
    // The kernel picks the accepting shard: with this many most are handed over.
    let mut raws = Vec::new();
    for index in 0..24u16 {
        let mut raw = Raw::dial(address);
        let hello = pyralog_net::peer::Hello {
            from_shard: pyralog_core::ShardId(index / 3),
            from_shards: 8,
            ..hello(2, peer(1, index % 3), 9)
        };
        let reply = raw.hello(&hello);
        assert_eq!((reply.refusal, reply.node, reply.shard.0), (None, NodeId(1), index % 3));
        assert_eq!(reply.shards, 3);
        assert_ne!(reply.session, 0);
        raws.push(raw);
    }
    for raw in &mut raws {
        assert_eq!(raw.read().expect("a ping").0, FrameKind::Ping);
    }
    let mut wrong = Raw::dial(address);
    let refusal = wrong.hello(&pyralog_net::peer::Hello { cluster_id: 1, ..hello(2, peer(1, 0), 9) }).refusal;
    assert_eq!(refusal.unwrap().code, RefusalCode::WrongCluster);
    assert!(wrong.read().is_none());
    // Clients are served as ever, and not on the internal port.
    assert_eq!(Client::new(rig.addr(), 1).ask(&Request::Ping), Response::Pong);
    assert!(Client::silent(address).try_hello(0).is_none());
    rig.stop();
    for raw in &mut raws {
        assert!(raw.read_frame().is_none(), "a stopped node closes its links");
    }
}

#[test]
fn a_node_that_is_alone_has_no_internal_port() {
    let rig = Rig::new(1);
    assert_eq!(rig.node().internal_addr(), None);
}
