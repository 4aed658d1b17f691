//! Whether bytes of a segment are the batches that belong there, and where it goes on behind damage.
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

use crate::format::batch::{BatchError, BatchHead};
use crate::format::index::Index;

/// How far a piece of a segment was whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Checked {
    /// Bytes of whole batches.
    pub(super) to: usize,
    /// The offset behind them.
    pub(super) offset: i64,
    pub(super) stop: Stop,
}

/// What ended it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Everything is whole.
    End,
    /// The next batch is not all there: it needs so many bytes, as far as that is known.
    Cut { need: usize },
    /// What comes is not what belongs there.
    Broken(String),
}

/// What is known of the epochs of a segment's batches, which no checksum covers.
#[derive(Debug)]
pub(super) struct Epochs<'a> {
    /// That of all of them, or of the batch before; afterwards of the last one.
    pub(super) known: &'a mut Option<u32>,
    /// It is that of all of them. Else they do not go back.
    pub(super) of_all: bool,
}

impl Epochs<'_> {
    fn fits(&self, epoch: u32) -> bool {
        self.known.is_none_or(|known| epoch == known || !self.of_all && epoch > known)
    }
}

/// Checks the batches at the start of `bytes`, the first of which has to begin at `offset` and the last to end at `end` at
/// most. `found` is given each one's position in `bytes` and its header.
pub(super) fn check(
    bytes: &[u8],
    offset: i64,
    end: i64,
    epochs: Epochs<'_>,
    mut found: impl FnMut(usize, &BatchHead),
) -> Checked {
    let (mut to, mut offset) = (0, offset);
    loop {
        let rest = bytes.get(to..).unwrap_or_default();
        if rest.is_empty() {
            return Checked { to, offset, stop: Stop::End };
        }
        let head = match BatchHead::parse(rest) {
            Ok(head) => head,
            Err(BatchError::Incomplete(need)) => return Checked { to, offset, stop: Stop::Cut { need } },
            Err(error) => return Checked { to, offset, stop: Stop::Broken(error.to_string()) },
        };
        let (base, next) = (head.base_offset, head.end_offset());
        let wrong = if base != offset {
            Some(format!("a batch with offset {base} is where {offset} belongs"))
        } else if next > end {
            Some(format!("the batch at {base} ends at {next}, its segment at {end}"))
        } else if !epochs.fits(head.epoch) {
            let known = epochs.known.unwrap_or(0);
            Some(format!("the batch at {base} is of epoch {}, where {known} belongs", head.epoch))
        } else {
            match rest.get(..head.total_bytes).map(|batch| head.verify_crc(batch)) {
                None => return Checked { to, offset, stop: Stop::Cut { need: head.total_bytes } },
                Some(Err(error)) => Some(format!("the batch at {base}: {error}")),
                Some(Ok(())) => None,
            }
        };
        if let Some(what) = wrong {
            return Checked { to, offset, stop: Stop::Broken(what) };
        }
        found(to, &head);
        *epochs.known = Some(head.epoch);
        (to, offset) = (to + head.total_bytes, next);
    }
}

/// A place in a segment at which a batch begins, or its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: i64,
    pub(super) position: u64,
}

/// Where the segment goes on behind damage at `from`. The damaged batch's own header says it, if the next one's agrees; else
/// the index does; else nothing before the segment's end is known. `local` begins at `from`.
pub(super) fn behind(from: Place, end: Place, local: &[u8], index: &Index) -> Place {
    by_header(from, end, local).or_else(|| by_index(from, end, index)).unwrap_or(end)
}

fn by_header(from: Place, end: Place, local: &[u8]) -> Option<Place> {
    let head = BatchHead::parse(local).ok().filter(|head| head.base_offset == from.offset)?;
    let next = Place { offset: head.end_offset(), position: from.position + head.total_bytes as u64 };
    if next == end {
        return Some(end);
    }
    let follows = BatchHead::parse(local.get(head.total_bytes..)?).ok()?;
    (follows.base_offset == next.offset && next.offset < end.offset && next.position < end.position)
        .then_some(next)
}

fn by_index(from: Place, end: Place, index: &Index) -> Option<Place> {
    let entries = index.entries();
    let at = entries.partition_point(|entry| u64::from(entry.position) <= from.position);
    let entry = entries.get(at)?;
    let place = Place { offset: entry.base_offset, position: u64::from(entry.position) };
    (place.offset > from.offset && place.offset < end.offset && place.position < end.position)
        .then_some(place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::batch::testing::batch;
    use crate::format::index::IndexEntry;
    use proptest::prelude::*;

    fn parts() -> [Vec<u8>; 3] {
        [batch(5, 1, 2, 0, b"a"), batch(7, 1, 1, 0, b"bb"), batch(8, 3, 2, 7, &[9; 300])]
    }

    fn checked(bytes: &[u8]) -> (Checked, Vec<usize>) {
        let mut places = Vec::new();
        let epochs = Epochs { known: &mut None, of_all: false };
        let checked = check(bytes, 5, 10, epochs, |at, _| places.push(at));
        (checked, places)
    }

    #[test]
    fn whole_batches_are_whole() {
        let parts = parts();
        let bytes = parts.concat();
        let starts = vec![0, parts[0].len(), parts[0].len() + parts[1].len()];
        assert_eq!(
            checked(&bytes),
            (Checked { to: bytes.len(), offset: 10, stop: Stop::End }, starts.clone())
        );
        let (cut, seen) = checked(&bytes[..bytes.len() - 1]);
        assert_eq!((cut.to, cut.offset, seen.len()), (starts[2], 8, 2));
        assert_eq!(cut.stop, Stop::Cut { need: parts[2].len() });
    }

    #[test]
    fn epochs_do_not_go_back_and_offsets_leave_no_gap() {
        let back = [batch(5, 3, 2, 0, b"a"), batch(7, 1, 1, 0, b"bb")].concat();
        let gap = [batch(5, 1, 2, 0, b"a"), batch(8, 1, 1, 0, b"bb")].concat();
        let beyond = [batch(5, 1, 2, 0, b"a"), batch(7, 1, 4, 0, b"bb")].concat();
        for bytes in [back, gap, beyond] {
            let (checked, _) = checked(&bytes);
            assert!(checked.offset == 7 && matches!(checked.stop, Stop::Broken(_)), "{checked:?}");
        }
    }

    #[test]
    fn what_lies_behind_damage_is_found_by_the_header_the_index_or_not_at_all() {
        let parts = parts();
        let end = Place { offset: 10, position: parts.concat().len() as u64 };
        let from = Place { offset: 5, position: 0 };
        let second = Place { offset: 7, position: parts[0].len() as u64 };
        let third = Place { offset: 8, position: second.position + parts[1].len() as u64 };
        let mut index = Index::empty(5);
        // The payload is damaged, the header is not.
        let mut bytes = parts.concat();
        bytes[61] ^= 1;
        assert_eq!(behind(from, end, &bytes[..], &index), second);
        // Nothing tells where the next one begins.
        bytes[11] ^= 1;
        assert_eq!(behind(from, end, &bytes, &index), end);
        index.push(IndexEntry { base_offset: 8, max_timestamp: 0, position: third.position as u32 });
        assert_eq!(behind(from, end, &bytes, &index), third);
        assert_eq!(behind(third, end, &bytes[third.position as usize..], &index), end);
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_found(bit in 0usize..8 * 1000) {
            let parts = parts();
            let mut bytes = parts.concat();
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let (checked, seen) = checked(&bytes);
            // Of the epoch only what goes back, or makes the next one go back, can be told.
            let in_batch = [0, parts[0].len(), parts[0].len() + parts[1].len()].into_iter()
                .rfind(|start| bit / 8 >= *start).unwrap();
            prop_assume!(!(12..16).contains(&(bit / 8 - in_batch)));
            prop_assert!(!matches!(checked.stop, Stop::End));
            prop_assert!(checked.to <= in_batch && seen.iter().all(|at| *at < in_batch));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let (checked, _) = checked(&bytes);
            prop_assert!(checked.to <= bytes.len());
            let end = Place { offset: 10, position: 1_000 };
            behind(Place { offset: 5, position: 0 }, end, &bytes, &Index::empty(5));
        }
    }
}
