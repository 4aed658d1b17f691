//! Memory that slow readers hold.

use std::sync::Arc;

use pyralog_core::{GroupId, ShardId};
use pyralog_net::message::{Request, Response};

use super::disk::MemDisk;
use super::harness::{Got, Shard, batch, catalog, config};
use crate::engine::Event;

const P0: GroupId = GroupId::new(1, 0);

/// A shard whose chunk memory is all held by readers, down to the last batch that fits.
fn starved() -> Shard {
    let mut config = config();
    (config.shard, config.shards) = (ShardId(1), 2);
    config.cache_bytes = 16 << 20;
    let mut shard = Shard::start(config, MemDisk::default());
    shard.event(Event::CatalogPublished { catalog: Arc::new(catalog(&["t"])) });
    shard.readers_are_slow = true;
    let big = batch(0, None, &[&vec![1; 900_000]]);
    while shard.engine.accepts_produce() {
        let Response::Produce(reply) = shard.produce(P0, &big) else { panic!("refused with room") };
        assert!(matches!(shard.fetch(P0, reply.base_offset, 1), Got::Batches(_, bytes) if !bytes.is_empty()));
        assert!(shard.unsent.len() < 1_000, "memory has to be short at some point");
    }
    let small = batch(0, None, &[b"x"]);
    while matches!(shard.produce(P0, &small), Response::Produce(_)) {}
    shard.advance(11_000_000);
    assert_eq!(shard.engine.status().unflushed_bytes, 0);
    assert!(!shard.engine.accepts_produce());
    shard
}

#[test]
fn slow_readers_are_disconnected_a_few_at_a_time() {
    let mut shard = starved();
    assert!(shard.sheds > 0);
    shard.advance(1_000_000);
    let sheds = shard.sheds;
    for _ in 0..100 {
        // The connections are being closed; what they held comes free a little later.
        shard.call(Request::Ping);
    }
    assert_eq!(shard.sheds, sheds, "one disconnection is given time");
    shard.advance(1_000_000);
    assert_eq!(shard.sheds, sheds + 1, "it did not free enough");
    shard.unsent.clear();
    for _ in 0..10 {
        shard.advance(1_000_000);
    }
    assert_eq!(shard.sheds, sheds + 1);
    assert!(shard.engine.accepts_produce());
    shard.produce(P0, &batch(0, None, &[b"goes on"]));
}

#[test]
fn a_catalogue_that_found_no_memory_is_applied_when_there_is_some() {
    let mut shard = starved();
    let second = GroupId::new(2, 0);
    shard.event(Event::CatalogPublished { catalog: Arc::new(catalog(&["t", "u"])) });
    assert!(shard.engine.partition(second).is_none(), "no room for the frame that opens it");
    shard.unsent.clear();
    let due = shard.engine.next_deadline_us().expect("a look for room");
    shard.advance(due.saturating_sub(shard.now.monotonic_us));
    assert!(shard.engine.partition(second).is_some());
}
