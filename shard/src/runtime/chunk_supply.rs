//! Makes the memory of the next chunks before they are needed. The first touch of 4 MiB takes from half a millisecond to
//! more than ten, on a machine whose host has to find the memory first; in the middle of a group commit that is the
//! slowest request of the second.
//!
//! So it must not be in front of anything else either: the thread runs only where a core has nothing to do. On an equal
//! footing it ran for up to 12 ms at a time before the kernel's worker that ends a durable write, on the core that takes
//! the disk's interrupt (`docs/decisions/0010-helpers-keep-off-the-shards-cpus.md`).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pyralog_core::limits::{CHUNK_BYTES, CHUNKS_AHEAD_PER_SHARD, JOURNAL_ALIGN};

use super::threads;
use crate::memory::ChunkSupply;
use crate::pages::Pages;

/// Starts the thread behind a [`ChunkSupply`]; it ends when the supply is dropped.
///
/// It makes `at_start` chunks as soon as it can, which is to be what the cache still grows by: then that has its memory
/// before there is load. Later it has [`CHUNKS_AHEAD_PER_SHARD`] ready.
pub(super) fn start(at_start: usize) -> io::Result<ChunkSupply> {
    let (to_shard, ready) = rtrb::RingBuffer::new(at_start.max(CHUNKS_AHEAD_PER_SHARD));
    let missed = Arc::new(AtomicUsize::new(0));
    let shards = Arc::clone(&missed);
    let thread = threads::spawn_idle("pyra-memory", move || supply(to_shard, at_start, &missed))?;
    Ok(ChunkSupply::new(ready, thread.thread().clone(), shards))
}

/// Fills `to_shard` until the other end is gone.
fn supply(mut to_shard: rtrb::Producer<Pages>, at_start: usize, missed: &AtomicUsize) {
    let mut made = 0;
    while !to_shard.is_abandoned() {
        if !supply_one(&mut to_shard, &mut made, at_start, missed) {
            std::thread::park();
        }
    }
}

/// Makes a chunk if one is wanted. Those that the shard `missed` and made itself are not made again.
fn supply_one(
    to_shard: &mut rtrb::Producer<Pages>,
    made: &mut usize,
    at_start: usize,
    missed: &AtomicUsize,
) -> bool {
    let ready = to_shard.buffer().capacity() - to_shard.slots();
    if *made + missed.load(Ordering::Relaxed) >= at_start && ready >= CHUNKS_AHEAD_PER_SHARD {
        return false;
    }
    let pushed = to_shard.push(touched());
    debug_assert!(pushed.is_ok(), "there is room for what is made at the start and for what is kept ready");
    *made += 1;
    true
}

fn touched() -> Pages {
    let mut pages = Pages::zeroed(CHUNK_BYTES);
    for byte in pages.bytes_mut().iter_mut().step_by(JOURNAL_ALIGN) {
        // SAFETY: an exclusive reference; volatile, so that the write of a zero over a zero is not left out.
        unsafe { std::ptr::write_volatile(byte, 0) };
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::ChunkPool;

    /// Pages of the range that are in memory.
    fn resident(chunk: &crate::memory::Chunk) -> usize {
        let mut pages = vec![0_u8; CHUNK_BYTES / 4096];
        // SAFETY: the range is the chunk's and mapped; the vector has a byte for each of its pages.
        let told =
            unsafe { libc::mincore(chunk.as_ptr().cast_mut().cast(), CHUNK_BYTES, pages.as_mut_ptr()) };
        assert_eq!(told, 0);
        pages.iter().filter(|page| **page & 1 == 1).count()
    }

    /// How many chunks are ready in the end when so many are taken, one whenever nothing more is wanted.
    fn ready_at_rest(at_start: usize, missed: usize, take: usize) -> usize {
        let (mut to_shard, mut ready) = rtrb::RingBuffer::new(at_start.max(CHUNKS_AHEAD_PER_SHARD));
        let (mut made, missed) = (0, AtomicUsize::new(missed));
        let mut make = || while supply_one(&mut to_shard, &mut made, at_start, &missed) {};
        make();
        for _ in 0..take {
            drop(ready.pop().unwrap());
            make();
        }
        ready.slots()
    }

    #[test]
    fn what_the_cache_grows_by_is_made_once() {
        assert_eq!(ready_at_rest(0, 0, 0), CHUNKS_AHEAD_PER_SHARD);
        assert_eq!(ready_at_rest(6, 0, 0), 6);
        assert_eq!(ready_at_rest(6, 0, 3), 3, "what was taken is not made again");
        assert_eq!(ready_at_rest(6, 0, 6), CHUNKS_AHEAD_PER_SHARD, "but for what is kept ready");
        assert_eq!(ready_at_rest(6, 3, 0), 3, "nor what the shard made itself");
        assert_eq!(ready_at_rest(6, 100, 0), CHUNKS_AHEAD_PER_SHARD);
    }

    #[test]
    fn the_thread_ends_when_nobody_takes_anything_any_more() {
        for at_start in [0, 6] {
            let (to_shard, ready) = rtrb::RingBuffer::new(at_start.max(CHUNKS_AHEAD_PER_SHARD));
            let thread = std::thread::spawn(move || supply(to_shard, at_start, &AtomicUsize::new(0)));
            drop(ready);
            thread.thread().unpark();
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_shard_that_finds_nothing_ready_counts_it() {
        let missed = Arc::new(AtomicUsize::new(0));
        let (_to_shard, ready) = rtrb::RingBuffer::new(1);
        let pool = ChunkPool::new(16 * CHUNK_BYTES);
        pool.supply(ChunkSupply::new(ready, std::thread::current(), Arc::clone(&missed)));
        let chunks = [pool.journal_chunk().unwrap(), pool.journal_chunk().unwrap()];
        assert_eq!(missed.load(Ordering::Relaxed), 2);
        drop(chunks);
        pool.journal_chunk().unwrap();
        assert_eq!(missed.load(Ordering::Relaxed), 2, "it had a spare one");
    }

    #[test]
    fn a_supply_ends_with_its_pool_whatever_outlives_it() {
        let (to_shard, ready) = rtrb::RingBuffer::new(1);
        let pool = ChunkPool::new(16 * CHUNK_BYTES);
        pool.supply(ChunkSupply::new(ready, std::thread::current(), Arc::default()));
        let chunk = pool.journal_chunk().unwrap();
        assert!(!to_shard.is_abandoned());
        drop(pool);
        assert!(to_shard.is_abandoned());
        drop(chunk);
    }

    #[test]
    fn chunks_come_touched() {
        let supply = start(0).unwrap();
        let pool = ChunkPool::new(16 * CHUNK_BYTES);
        let lazy = pool.journal_chunk().unwrap();
        assert!(resident(&lazy) < CHUNK_BYTES / 4096, "without a supply memory comes with its first use");
        supply.wait_until(CHUNKS_AHEAD_PER_SHARD);
        pool.supply(supply);
        for _ in 0..CHUNKS_AHEAD_PER_SHARD {
            let chunk = pool.journal_chunk().unwrap();
            assert_eq!(resident(&chunk), CHUNK_BYTES / 4096);
            assert_eq!(chunk.filled(), 0);
            std::mem::forget(chunk);
        }
        drop(lazy);
    }
}
