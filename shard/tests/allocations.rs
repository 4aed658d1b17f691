//! What a produce allocates on its way through a shard, counted by the allocator.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Client, Rig, batch, produce, topic};
use pyralog_net::message::Response;

/// Counts what every thread allocates but those of the test.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static IS_CLIENT: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    // A thread that is ending is none that answers requests.
    if !IS_CLIENT.try_with(Cell::get).unwrap_or(true) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator as it is; counting touches a thread-local cell and an atomic, and
// allocates nothing.
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

/// Sends `batch` so many times, `window` at once, and gives the allocations of the node meanwhile.
fn allocations(client: &mut Client, topic: u32, batch: &[u8], times: usize, window: usize) -> u64 {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let mut sent = 0;
    for answered in 0..times {
        while sent < times && sent < answered + window {
            client.send(&produce(topic, 0, batch));
            sent += 1;
        }
        let (_, reply, _) = client.reply().unwrap();
        assert!(matches!(reply, Response::Produce(_)), "{reply:?}");
    }
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

#[test]
fn a_produce_allocates_nothing_per_record_and_next_to_nothing_per_batch() {
    const TIMES: usize = 5_000;
    IS_CLIENT.set(true);
    let rig = Rig::new(1);
    let (topic, mut client) = topic(&rig, "t", 1);
    let value = [7; 256];
    let one = batch(0, &[&value]);
    let hundred = batch(0, &[value.as_slice(); 100]);
    allocations(&mut client, topic, &one, 2 * TIMES, 64);
    for (records, batch, window) in [(1, &one, 1), (1, &one, 64), (100, &hundred, 4)] {
        let allocated = allocations(&mut client, topic, batch, TIMES, window);
        println!(
            "{records} records in a batch, {window} batches at once: {allocated} allocations for {TIMES} batches"
        );
        // A handful per pass of the shard, whatever is in it; ticks and checkpoints take some, too.
        assert!(allocated < 5 * TIMES as u64, "{allocated} allocations for {TIMES} batches of {records}");
    }
}
