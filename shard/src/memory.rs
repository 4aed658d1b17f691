//! Chunks: the memory of the tail cache. A chunk is the image of one region of a journal file, so a batch is
//! copied once (socket buffer to chunk) and then written, cached, sent and flushed from there by reference.
//!
//! Owner: the shard's thread. Chunks are `Rc`, never sent to another thread.

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Thread;

use pyralog_core::limits::{
    CHUNK_BYTES, JOURNAL_ALIGN, READ_MEMORY_BYTES, SPARE_CHUNKS_PER_SHARD, SPARE_READS_PER_SHARD,
};

use crate::pages::Pages;

/// Room of a chunk for a read beyond what is wanted: before it and behind it.
pub(crate) const READ_SLACK: usize = 2 * JOURNAL_ALIGN;

/// One region of memory of a fixed size, filled from the front, aligned for direct I/O.
///
/// A chunk may be *absent*: its content is known and lies in the journal, and its memory comes later, once
/// ([`Chunk::provide`]). Until then its bytes must not be asked for.
pub struct Chunk {
    memory: OnceCell<Pages>,
    capacity: usize,
    /// Where its first byte lies in the memory. Not 0 only after a direct read, which begins where the disk lets it.
    origin: Cell<usize>,
    /// What the pool counts for it.
    counted_bytes: usize,
    /// Bytes below this are written and never change again while the chunk is shared.
    filled: Cell<usize>,
    /// The pool's books, told when the chunk is dropped.
    books: Rc<Books>,
}

/// What a pool and its chunks share.
#[derive(Debug, Default)]
struct Books {
    /// Bytes of chunks alive.
    live: Cell<usize>,
    /// Memory of dropped journal chunks, kept so that the next one costs neither page faults nor zeroing.
    spare: RefCell<Vec<Pages>>,
    /// The same of reads of segments.
    spare_reads: RefCell<Vec<Pages>>,
    /// Where journal chunks come from when there is no spare one.
    supply: RefCell<Option<ChunkSupply>>,
}

/// Memory for journal chunks that another thread has touched before, so that its first use costs nothing.
///
/// That thread may be one that hardly ever gets to run, so nothing here waits for it.
#[derive(Debug)]
pub struct ChunkSupply {
    /// `None` only while the supply is dropped.
    ready: Option<rtrb::Consumer<Pages>>,
    thread: Thread,
    /// How often nothing was ready, so that a chunk came from elsewhere.
    missed: Arc<AtomicUsize>,
}

impl Drop for ChunkSupply {
    fn drop(&mut self) {
        // The thread ends when it finds its queue abandoned. It may be in the middle of a chunk, and not get to run for long.
        self.ready = None;
        self.thread.unpark();
    }
}

impl ChunkSupply {
    /// A supply that finds memory in `ready`, to which `thread` adds when it is unparked; the thread ends when that is
    /// abandoned.
    /// `missed` counts how often nothing was ready.
    pub fn new(ready: rtrb::Consumer<Pages>, thread: Thread, missed: Arc<AtomicUsize>) -> Self {
        Self { ready: Some(ready), thread, missed }
    }

    pub(crate) fn take(&mut self) -> Option<Pages> {
        let pages = self.ready.as_mut()?.pop().ok();
        match &pages {
            Some(_) => self.thread.unpark(),
            None => {
                self.missed.fetch_add(1, Ordering::Relaxed);
            }
        }
        pages
    }

    /// Chunks' memory that could be taken now.
    #[cfg(test)]
    pub(crate) fn ready(&self) -> usize {
        self.ready.as_ref().map_or(0, rtrb::Consumer::slots)
    }

    /// Blocks until so much is ready.
    #[cfg(test)]
    pub(crate) fn wait_until(&self, ready: usize) {
        while self.ready() < ready {
            std::thread::yield_now();
        }
    }
}

impl Chunk {
    fn new(memory: Option<Pages>, capacity: usize, counted_bytes: usize, books: Rc<Books>) -> Self {
        books.live.set(books.live.get() + counted_bytes);
        let memory = memory.map_or_else(OnceCell::new, OnceCell::from);
        Self { memory, capacity, origin: Cell::new(0), counted_bytes, filled: Cell::new(0), books }
    }

    /// Size in bytes.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Whether its bytes are not in memory yet.
    pub fn is_absent(&self) -> bool {
        self.memory.get().is_none()
    }

    /// Gives an absent chunk its bytes: the memory of `read`, into which they were read and which nobody else refers
    /// to. Without effect on a chunk that has its bytes.
    pub fn provide(&self, mut read: Rc<Chunk>) {
        assert_eq!(read.capacity, self.capacity, "a chunk's memory has its size");
        assert!(read.filled() >= self.filled(), "all that is referred to is there");
        let only = Rc::get_mut(&mut read).and_then(|read| read.memory.take());
        if let Some(memory) = only {
            let _ = self.memory.set(memory);
        }
    }

    fn pages(&self) -> &Pages {
        match self.memory.get() {
            Some(memory) => memory,
            None => unreachable!("an absent chunk's bytes are provided before they are used"),
        }
    }

    /// Bytes filled so far.
    pub fn filled(&self) -> usize {
        self.filled.get()
    }

    /// The first byte, for I/O on filled ranges.
    pub fn as_ptr(&self) -> *const u8 {
        self.start()
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: `set_read` has checked that the origin and the capacity behind it lie inside the memory.
        unsafe { self.pages().as_ptr().add(self.origin.get()) }
    }

    /// All of the memory, for a direct read that begins up to [`JOURNAL_ALIGN`] before what is wanted and ends as much
    /// behind it; `None` when there is no such room. Nothing must have been filled yet.
    pub fn direct_room(&self) -> Option<(*mut u8, usize)> {
        let memory = self.memory.get()?;
        let has_room = memory.len() >= self.capacity + READ_SLACK && self.filled.get() == 0;
        has_room.then(|| (memory.as_ptr(), memory.len()))
    }

    /// Declares `filled` bytes written (after a read into [`Self::direct_room`]), the first of them at `origin`.
    pub fn set_read(&self, origin: usize, filled: usize) {
        let bytes = self.memory.get().map_or(0, Pages::len);
        assert!(filled <= self.capacity && origin + self.capacity <= bytes, "a read ends inside its memory");
        self.origin.set(origin);
        self.filled.set(filled);
    }

    /// Appends `parts` at the fill mark and moves it. The caller has checked that they fit.
    pub fn append(&self, bytes: &[u8]) -> usize {
        let at = self.filled.get();
        assert!(
            bytes.len() <= self.capacity() - at,
            "chunk overflow: {at} + {} > {}",
            bytes.len(),
            self.capacity()
        );
        // SAFETY: `at + len <= capacity`, and nobody reads at or above the fill mark: `slice` refuses to.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start().add(at), bytes.len()) };
        self.filled.set(at + bytes.len());
        at
    }

    /// Moves the fill mark to `to`; the bytes in between become zeros.
    pub fn zero_to(&self, to: usize) {
        let at = self.filled.get();
        assert!(to >= at && to <= self.capacity(), "a chunk's fill mark moves forward, inside the chunk");
        // SAFETY: in bounds by the assertion, and above the fill mark, where nobody reads.
        unsafe { std::ptr::write_bytes(self.start().add(at), 0, to - at) };
        self.filled.set(to);
    }

    /// Moves the fill mark to `to` without touching what lies in between: memory of this process, initialised,
    /// but of no meaning until [`Self::overwrite`] fills it in.
    pub fn skip_to(&self, to: usize) {
        assert!(
            to >= self.filled.get() && to <= self.capacity(),
            "a chunk's fill mark moves forward, inside the chunk"
        );
        self.filled.set(to);
    }

    /// The bytes of a filled range.
    pub fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        assert!(offset + len <= self.filled.get(), "read above a chunk's fill mark");
        // SAFETY: the range is below the fill mark; those bytes are initialised and not written again while
        // `self` is borrowed (`overwrite` needs a range that no slice was handed out for).
        unsafe { std::slice::from_raw_parts(self.start().add(offset), len) }
    }

    /// Fills in a reserved range below the fill mark (a header whose content is known only when its commit is
    /// sealed).
    ///
    /// # Safety
    /// No reference to and no I/O on that range may exist.
    pub unsafe fn overwrite(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.filled.get(), "overwrite above a chunk's fill mark");
        // SAFETY: in bounds by the assertion; exclusive by the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start().add(offset), bytes.len()) };
    }

    /// The whole memory, for a read to fill. Only while this is the one reference to the chunk.
    pub fn unfilled_mut(self: &mut Rc<Self>) -> Option<&mut [u8]> {
        Some(self.pages_mut()?.bytes_mut())
    }

    /// The memory itself, for a read that exchanges it for memory already filled. Only while this is the one
    /// reference to the chunk; the size must stay what it is.
    pub(crate) fn pages_mut(self: &mut Rc<Self>) -> Option<&mut Pages> {
        Rc::get_mut(self)?.memory.get_mut()
    }

    /// Declares the first `filled` bytes written (after a read into [`Self::unfilled_mut`]).
    pub fn set_filled(&self, filled: usize) {
        assert!(filled <= self.capacity(), "a chunk holds at most its capacity");
        self.filled.set(filled);
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.books.live.set(self.books.live.get() - self.counted_bytes);
        let Some(memory) = self.memory.take() else { return };
        let (spare, most) = match memory.len() {
            CHUNK_BYTES => (&self.books.spare, SPARE_CHUNKS_PER_SHARD),
            READ_MEMORY_BYTES => (&self.books.spare_reads, SPARE_READS_PER_SHARD),
            _ => return,
        };
        let mut spare = spare.borrow_mut();
        if spare.len() < most {
            spare.push(memory);
        }
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chunk({:?}, filled {})", self.memory.get(), self.filled.get())
    }
}

/// A range of a chunk, keeping it alive. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ChunkSlice {
    chunk: Rc<Chunk>,
    offset: u32,
    len: u32,
}

impl ChunkSlice {
    /// The range `offset..offset + len`, which must be filled.
    pub fn new(chunk: Rc<Chunk>, offset: usize, len: usize) -> Self {
        assert!(offset + len <= chunk.filled(), "a slice covers filled bytes only");
        Self { chunk, offset: offset as u32, len: len as u32 }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.chunk.bytes(self.offset as usize, self.len as usize)
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether it covers no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Offset of the first byte within the chunk.
    pub fn offset(&self) -> usize {
        self.offset as usize
    }

    /// The chunk.
    pub fn chunk(&self) -> &Rc<Chunk> {
        &self.chunk
    }

    /// A part of this slice.
    pub fn slice(&self, offset: usize, len: usize) -> Self {
        assert!(offset + len <= self.len as usize, "a part lies inside its slice");
        Self { chunk: Rc::clone(&self.chunk), offset: self.offset + offset as u32, len: len as u32 }
    }
}

/// Hands out chunks and counts the memory that is alive, wherever its references are.
#[derive(Debug)]
pub struct ChunkPool {
    books: Rc<Books>,
    budget: usize,
}

impl Drop for ChunkPool {
    fn drop(&mut self) {
        // Chunks may outlive the pool, and the books with them.
        *self.books.supply.borrow_mut() = None;
    }
}

impl ChunkPool {
    /// A pool that allows `budget` bytes alive at once.
    pub fn new(budget: usize) -> Self {
        Self { books: Rc::default(), budget }
    }

    /// Takes the memory of journal chunks from `supply` from now on, as far as it has some.
    pub fn supply(&self, supply: ChunkSupply) {
        *self.books.supply.borrow_mut() = Some(supply);
    }

    /// A chunk of [`CHUNK_BYTES`], or `None` when the budget is used up.
    pub fn journal_chunk(&self) -> Option<Rc<Chunk>> {
        self.chunk(CHUNK_BYTES)
    }

    /// A chunk of `capacity` bytes, or `None` when the budget is used up.
    pub fn chunk(&self, capacity: usize) -> Option<Rc<Chunk>> {
        if capacity == 0 || !self.has_room_for(capacity) {
            return None;
        }
        let memory = Some(self.memory(capacity));
        Some(Rc::new(Chunk::new(memory, capacity, capacity, Rc::clone(&self.books))))
    }

    /// A chunk for a read of `capacity` bytes from anywhere in a file, with room to read it directly; `None` when the
    /// budget is used up.
    pub fn chunk_for_read(&self, capacity: usize) -> Option<Rc<Chunk>> {
        let bytes = capacity.next_multiple_of(JOURNAL_ALIGN) + READ_SLACK;
        if capacity == 0 || !self.has_room_for(bytes) {
            return None;
        }
        let spare = match bytes {
            READ_MEMORY_BYTES => self.books.spare_reads.borrow_mut().pop(),
            _ => None,
        };
        let memory = Some(spare.unwrap_or_else(|| Pages::zeroed(bytes)));
        Some(Rc::new(Chunk::new(memory, capacity, bytes, Rc::clone(&self.books))))
    }

    /// An absent chunk of [`CHUNK_BYTES`], which the budget counts as if it were there; `None` when the budget is used
    /// up.
    pub fn absent_chunk(&self) -> Option<Rc<Chunk>> {
        let chunk = || Chunk::new(None, CHUNK_BYTES, CHUNK_BYTES, Rc::clone(&self.books));
        self.has_room_for(CHUNK_BYTES).then(|| Rc::new(chunk()))
    }

    /// A chunk to read an absent one's bytes into. The budget has them in it already.
    pub fn chunk_to_provide(&self) -> Rc<Chunk> {
        let memory = Some(self.memory(CHUNK_BYTES));
        Rc::new(Chunk::new(memory, CHUNK_BYTES, 0, Rc::clone(&self.books)))
    }

    fn memory(&self, capacity: usize) -> Pages {
        if capacity != CHUNK_BYTES {
            return Pages::zeroed(capacity);
        }
        let spare = self.books.spare.borrow_mut().pop();
        let supplied = || self.books.supply.borrow_mut().as_mut().and_then(ChunkSupply::take);
        spare.or_else(supplied).unwrap_or_else(|| Pages::zeroed(capacity))
    }

    /// Whether a chunk of `capacity` bytes is within the budget now.
    pub fn has_room_for(&self, capacity: usize) -> bool {
        self.books.live.get() + capacity <= self.budget
    }

    /// Bytes alive.
    pub fn live_bytes(&self) -> usize {
        self.books.live.get()
    }

    /// Bytes allowed.
    pub fn budget_bytes(&self) -> usize {
        self.budget
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_outlive_the_owner_and_the_pool_counts_them() {
        let pool = ChunkPool::new(8192);
        let chunk = pool.chunk(4096).unwrap();
        let at = chunk.append(b"hello world");
        let slice = ChunkSlice::new(Rc::clone(&chunk), at + 6, 5);
        drop(chunk);
        assert_eq!(slice.bytes(), b"world");
        assert_eq!(slice.slice(1, 3).bytes(), b"orl");
        assert_eq!(pool.live_bytes(), 4096);
        assert!(pool.chunk(8192).is_none(), "the budget holds");
        drop(slice);
        assert_eq!(pool.live_bytes(), 0);
        assert!(pool.chunk(8192).is_some());
    }

    #[test]
    fn a_direct_read_may_begin_before_what_is_wanted() {
        let pool = ChunkPool::new(READ_MEMORY_BYTES);
        let capacity = READ_MEMORY_BYTES - READ_SLACK;
        let chunk = pool.chunk_for_read(capacity).unwrap();
        assert!(pool.chunk_for_read(1).is_none(), "the slack counts");
        let (start, room) = chunk.direct_room().unwrap();
        assert_eq!((room, start.align_offset(JOURNAL_ALIGN)), (READ_MEMORY_BYTES, 0));
        // SAFETY: inside the room, which nobody else refers to.
        unsafe { std::ptr::copy_nonoverlapping(b"before wanted behind".as_ptr(), start, 20) };
        chunk.set_read(7, 6);
        assert!(chunk.direct_room().is_none(), "it is filled");
        assert_eq!(chunk.bytes(0, 6), b"wanted");
        let slice = ChunkSlice::new(Rc::clone(&chunk), 2, 4);
        assert_eq!(slice.bytes(), b"nted");
        assert!(pool.chunk(READ_MEMORY_BYTES).is_none());
        // The memory is used again, and what was in it is not seen.
        drop((chunk, slice));
        let again = pool.chunk_for_read(capacity).unwrap();
        assert_eq!((again.direct_room().unwrap().0, again.filled()), (start, 0));
        again.set_read(0, 0);
        assert!(again.bytes(0, 0).is_empty());
        drop(again);
        assert_eq!(pool.live_bytes(), 0);
        assert!(pool.chunk(4096).unwrap().direct_room().is_none());
    }

    #[test]
    fn a_reserved_header_is_filled_in_later() {
        let pool = ChunkPool::new(4096);
        let chunk = pool.chunk(4096).unwrap();
        chunk.skip_to(8);
        chunk.append(b"body");
        // SAFETY: no slice of the range exists.
        unsafe { chunk.overwrite(0, b"HEADER01") };
        assert_eq!(chunk.bytes(0, 12), b"HEADER01body");
    }
}
