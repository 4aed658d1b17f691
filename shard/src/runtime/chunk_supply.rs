//! Makes the memory of the next chunks before they are needed. The first touch of 4 MiB takes from half a millisecond to
//! more than ten, on a machine whose host has to find the memory first; in the middle of a group commit that is the
//! slowest request of the second.
//!
//! So it must not be in front of anything else either: the thread runs only where a core has nothing to do. On an equal
//! footing it ran for up to 12 ms at a time before the kernel's worker that ends a durable write, on the core that takes
//! the disk's interrupt (`docs/decisions/0010-helpers-keep-off-the-shards-cpus.md`).

use std::io;

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
    let thread = threads::spawn_idle("pyra-memory", move || supply(to_shard, at_start))?;
    Ok(ChunkSupply::new(ready, thread))
}

/// Fills `to_shard` until the other end is gone.
fn supply(mut to_shard: rtrb::Producer<Pages>, at_start: usize) {
    let mut made = 0;
    while !to_shard.is_abandoned() {
        let ready = to_shard.buffer().capacity() - to_shard.slots();
        if made >= at_start && ready >= CHUNKS_AHEAD_PER_SHARD {
            std::thread::park();
        } else {
            let pushed = to_shard.push(touched());
            debug_assert!(
                pushed.is_ok(),
                "there is room for what is made at the start and for what is kept ready"
            );
            made += 1;
        }
    }
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

    #[test]
    fn a_supply_ends_when_it_is_dropped_full_or_not() {
        let (ended_sender, ended) = flume::bounded(2);
        std::thread::spawn(move || {
            let full = start(0).unwrap();
            full.wait_until(CHUNKS_AHEAD_PER_SHARD);
            drop(full);
            ended_sender.send(()).unwrap();
            drop(start(1_000).unwrap());
            ended_sender.send(()).unwrap();
        });
        for _ in 0..2 {
            ended.recv_timeout(std::time::Duration::from_secs(20)).expect("the supply ends");
        }
    }

    #[test]
    fn what_is_taken_is_made_again() {
        let mut supply = start(0).unwrap();
        for _ in 0..3 * CHUNKS_AHEAD_PER_SHARD {
            supply.wait_until(CHUNKS_AHEAD_PER_SHARD);
            drop(supply.take().expect("it is there"));
        }
    }

    #[test]
    fn what_the_cache_grows_by_is_made_at_the_start_and_once() {
        const AT_START: usize = 3 * CHUNKS_AHEAD_PER_SHARD;
        let mut supply = start(AT_START).unwrap();
        supply.wait_until(AT_START);
        for left in (CHUNKS_AHEAD_PER_SHARD..AT_START).rev() {
            supply.take().expect("it is there");
            assert_eq!(supply.ready(), left, "no more is made than is to be ready");
        }
        supply.take().expect("it is there");
        supply.wait_until(CHUNKS_AHEAD_PER_SHARD);
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
