//! Makes the memory of the next chunks before they are needed. The first touch of 4 MiB takes from half a millisecond to
//! more than ten, on a machine whose host has to find the memory first; in the middle of a group commit that is the
//! slowest request of the second.

use std::io;

use pyralog_core::limits::{CHUNK_BYTES, CHUNKS_AHEAD_PER_SHARD, JOURNAL_ALIGN};

use super::threads;
use crate::memory::ChunkSupply;
use crate::pages::Pages;

/// Starts the thread behind a [`ChunkSupply`]; it ends when the supply is dropped.
pub(super) fn start() -> io::Result<ChunkSupply> {
    let (wanted_sender, wanted) = flume::bounded::<()>(CHUNKS_AHEAD_PER_SHARD);
    let (ready_sender, ready) = flume::bounded(CHUNKS_AHEAD_PER_SHARD);
    let thread = threads::spawn("pyra-memory", move || {
        while wanted.recv().is_ok() {
            if ready_sender.send(touched()).is_err() {
                return;
            }
        }
    })?;
    Ok(ChunkSupply::new(wanted_sender, ready, thread))
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
    fn a_supply_ends_even_when_its_thread_has_more_than_there_is_room_for() {
        let (wanted_sender, wanted) = flume::bounded::<()>(4);
        let (ready_sender, ready) = flume::bounded(1);
        let supplier = move || while wanted.recv().is_ok() && ready_sender.send(touched()).is_ok() {};
        let supply = ChunkSupply::new(wanted_sender, ready, std::thread::spawn(supplier));
        supply.wait_until_full();
        let (ended_sender, ended) = flume::bounded(1);
        std::thread::spawn(move || {
            drop(supply);
            let _ = ended_sender.send(());
        });
        ended.recv_timeout(std::time::Duration::from_secs(20)).expect("the supply ends");
    }

    #[test]
    fn chunks_come_touched() {
        let supply = start().unwrap();
        let pool = ChunkPool::new(16 * CHUNK_BYTES);
        let lazy = pool.journal_chunk().unwrap();
        assert!(resident(&lazy) < CHUNK_BYTES / 4096, "without a supply memory comes with its first use");
        supply.wait_until_full();
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
