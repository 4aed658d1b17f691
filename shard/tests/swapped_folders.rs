//! Two shards whose folders were put back in the wrong places.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Client, PATIENCE, Rig, batch, options, produce, topic};
use pyralog_net::message::Response;
use pyralog_shard::offline::verify;
use pyralog_shard::runtime::{ControlEvent, Node};

#[test]
fn a_shard_does_not_start_on_the_folder_of_another() {
    let mut rig = Rig::new(2);
    let (topic, first) = topic(&rig, "t", 8);
    let mut clients = [first, Client::new(rig.addr(), 1)];
    let mut taken = [0; 2];
    for partition in 0..8 {
        for (client, taken) in clients.iter_mut().zip(&mut taken) {
            let reply = client.ask(&produce(topic, partition, &batch(0, &[b"x"])));
            *taken += u32::from(matches!(reply, Response::Produce(_)));
        }
    }
    assert!(taken.iter().all(|taken| *taken > 0), "both shards hold data");
    rig.stop();
    let dir = rig.dir.path();
    let verified = || verify(dir, dir, &mut |_| {}).unwrap();
    assert!(verified().clean(), "{:?}", verified().findings);
    let swap = || {
        std::fs::rename(dir.join("shard-0"), dir.join("aside")).unwrap();
        std::fs::rename(dir.join("shard-1"), dir.join("shard-0")).unwrap();
        std::fs::rename(dir.join("aside"), dir.join("shard-1")).unwrap();
    };
    swap();
    let found = verified().findings;
    assert!(found.iter().any(|finding| finding.what.contains("of another node or shard")), "{found:?}");
    let (sender, control) = flume::unbounded();
    let node = Node::start(options(dir, 2), sender).unwrap();
    let mut failed = 0;
    while failed < 2 {
        match control.recv_timeout(PATIENCE).expect("both shards say so") {
            ControlEvent::ShardFailed { .. } => failed += 1,
            ControlEvent::ShardReady { shard } => panic!("shard {shard} serves the other's data"),
            _ => {}
        }
    }
    drop(node);
    swap();
    assert!(verified().clean(), "nothing was changed");
    rig.start(2, |_| {});
}
