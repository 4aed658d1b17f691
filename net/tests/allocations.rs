//! What the way of a record allocates in the thread that sends it, counted by the allocator.

#![allow(clippy::unwrap_used)]

mod peer;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use peer::{Peer, TOPIC};
use pyralog_net::client::*;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that is ending has no counter any more, and is not one of those measured.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every call goes to the system's allocator as it is; counting touches a thread-local cell and allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of this thread during `work`.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

fn client(peer: &Peer) -> Client {
    Client::new(&[&peer.address], ClientConfig::default())
}

#[test]
fn a_direct_producer_allocates_nothing_once_it_is_warm() {
    let peer = Peer::start(1, 1, 0);
    for spin in [Duration::ZERO, Duration::from_micros(20)] {
        let config = DirectConfig { spin, ..DirectConfig::default() };
        let mut producer = DirectProducer::new(client(&peer), TOPIC, config).unwrap();
        let mut send = |records: u32| {
            let mut longest = Duration::ZERO;
            for index in 0..records {
                let begun = Instant::now();
                producer.send(0, Some(b"key"), Some(&[index as u8; 256])).unwrap();
                longest = longest.max(begun.elapsed());
            }
            longest
        };
        assert!(allocations(|| _ = send(100)) > 0, "the counter counts");
        // After half a second of silence others are asked, which allocates: on a machine that stood still for so long it
        // says nothing.
        loop {
            let mut longest = Duration::ZERO;
            let allocated = allocations(|| longest = send(5_000));
            if longest < Duration::from_millis(400) {
                assert_eq!(allocated, 0);
                break;
            }
        }
    }
}

#[test]
fn a_producer_allocates_a_few_times_per_batch_and_not_per_record() {
    const RECORDS: u32 = 100_000;
    let peer = Peer::start(1, 1, 0);
    let producer = Producer::new(client(&peer), TOPIC, ProducerConfig::default()).unwrap();
    let send = |records: u32| {
        for index in 0..records {
            drop(producer.send(ProducerRecord::value(&[index as u8; 256])).unwrap());
        }
        producer.flush(Duration::from_secs(60)).unwrap();
    };
    send(RECORDS);
    // On a busy machine more batches are in memory in one round than in those before, and their builders have to grow.
    let round = |_| {
        let before = producer.stats().acked_batches;
        let allocated = allocations(|| send(RECORDS));
        (allocated, producer.stats().acked_batches - before)
    };
    let per_batch = |(allocated, batches): &(u64, u64)| allocated / (*batches).max(1);
    let (allocated, batches) = (0..3).map(round).min_by_key(per_batch).unwrap();
    assert!(batches < u64::from(RECORDS) / 10, "{batches} batches");
    // What a batch's records share, and what its builder grows by when more are in memory than before.
    assert!(
        allocated <= 8 * batches + 64,
        "{allocated} allocations for {batches} batches of {RECORDS} records"
    );
}
