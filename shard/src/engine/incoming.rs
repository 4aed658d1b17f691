//! The batches that come with an append of another replica.

use pyralog_core::batch::BatchView;
use pyralog_replication::raft::{EntryHead, Message};

/// The batches of an append that just came, which are wanted in the order of their entries.
pub(super) struct Incoming<'a> {
    message: &'a Message,
    batches: &'a [u8],
    /// The next entry, counted within the message, and where its batch begins.
    next: (usize, usize),
}

impl<'a> Incoming<'a> {
    pub(super) fn new(message: &'a Message, batches: &'a [u8]) -> Self {
        Self { message, batches, next: (0, 0) }
    }

    /// Whether it is an entry that came.
    pub(super) fn has(&self, entry: u64, term: u32) -> bool {
        let nth = entry.checked_sub(self.message.index + 1).and_then(|nth| usize::try_from(nth).ok());
        nth.and_then(|nth| self.message.entries.get(nth)).is_some_and(|head| head.term == term)
    }

    /// The batch of an entry, if it is one that came: of what an older leader sent, a leader takes nothing in place of its own.
    pub(super) fn batch(&mut self, entry: u64, term: u32) -> Option<&'a [u8]> {
        let nth = usize::try_from(entry.checked_sub(self.message.index + 1)?).ok()?;
        if self.message.entries.get(nth)?.term != term {
            return None;
        }
        if nth < self.next.0 {
            self.next = (0, 0);
        }
        let (from, at) = self.next;
        let skipped = self.message.entries.get(from..nth)?.iter().map(|head| head.bytes as usize);
        let at = at + skipped.sum::<usize>();
        let bytes = self.message.entries.get(nth)?.bytes as usize;
        self.next = (nth + 1, at + bytes);
        (bytes > 0).then(|| self.batches.get(at..at + bytes)).flatten()
    }
}

/// Every batch of an append is whole, undamaged, and what its entry says.
pub(super) fn check_batches(message: &Message, batches: &[u8]) -> Result<(), String> {
    let mut rest = batches;
    for EntryHead { term, base_offset, next_offset, bytes, .. } in &message.entries {
        let Some((bytes, later)) = rest.split_at_checked(*bytes as usize) else {
            return Err("an append with less batches than entries".into());
        };
        rest = later;
        if bytes.is_empty() {
            continue;
        }
        let batch = BatchView::parse_exact(bytes).map_err(|error| error.to_string())?;
        let told = next_offset.checked_sub(*base_offset);
        if batch.base_offset() != *base_offset
            || told != Some(i64::from(batch.record_count()))
            || batch.leader_epoch() != *term
        {
            return Err("a batch that is not the one its entry names".into());
        }
        if !batch.verify_crc() {
            return Err("a batch whose checksum does not match its bytes".into());
        }
    }
    Ok(())
}
