//! A segment's `.log`: committed batches back to back and nothing else.
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

use super::batch::{BatchError, BatchHead};

/// One batch of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredBatch<'a> {
    /// Its position in the walked bytes.
    pub position: usize,
    /// Its header fields.
    pub head: BatchHead,
    /// All its bytes.
    pub bytes: &'a [u8],
}

/// Walks over the batches in a part of a segment that begins at a batch. CRCs are not checked
/// ([`BatchHead::verify_crc`] does that).
///
/// Ends where the bytes end inside a batch ([`Self::incomplete`]) or where no batch can begin
/// ([`Self::broken`]).
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    bytes: &'a [u8],
    position: usize,
    needed: usize,
    broken: Option<BatchError>,
}

impl<'a> Batches<'a> {
    /// A walk over `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0, needed: 0, broken: None }
    }

    /// Where the walk is: after the last batch it gave.
    pub fn position(&self) -> usize {
        self.position
    }

    /// After the walk: bytes of a batch at the end that is not all there, and how many it needs as far as that
    /// is known.
    pub fn incomplete(&self) -> (usize, usize) {
        (self.bytes.len().saturating_sub(self.position), self.needed)
    }

    /// After the walk: why no batch begins at [`Self::position`], if that is so.
    pub fn broken(&self) -> Option<BatchError> {
        self.broken
    }
}

impl<'a> Iterator for Batches<'a> {
    type Item = StoredBatch<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.bytes.get(self.position..)?;
        if rest.is_empty() || self.broken.is_some() {
            return None;
        }
        let head = match BatchHead::parse(rest) {
            Ok(head) => head,
            Err(BatchError::Incomplete(needed)) => {
                self.needed = needed;
                return None;
            }
            Err(error) => {
                self.broken = Some(error);
                return None;
            }
        };
        let Some(bytes) = rest.get(..head.total_bytes) else {
            self.needed = head.total_bytes;
            return None;
        };
        let position = self.position;
        self.position += head.total_bytes;
        Some(StoredBatch { position, head, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::testing::batch;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn walks_batches_and_tells_what_is_left() {
        let parts = [batch(0, 1, 2, 0, b"a"), batch(2, 1, 1, 0, b"bb"), batch(3, 1, 7, 0, &[9; 300])];
        let bytes = parts.concat();
        let whole: Vec<_> = Batches::new(&bytes).collect();
        assert_eq!(whole.len(), 3);
        assert!(whole.iter().zip(&parts).all(|(found, part)| found.bytes == part));
        assert_eq!(whole[2].head.base_offset, whole[1].head.end_offset());
        let two = parts[0].len() + parts[1].len();
        for cut in two + 1..bytes.len() {
            let mut walk = Batches::new(&bytes[..cut]);
            assert_eq!(walk.by_ref().count(), 2);
            let needed = if cut - two < 61 { 61 } else { parts[2].len() };
            assert_eq!((walk.incomplete(), walk.broken()), ((cut - two, needed), None));
        }
    }

    #[test]
    fn zeros_are_no_batch() {
        let mut walk = Batches::new(&[0; 200]);
        assert_eq!(walk.next(), None);
        assert_eq!(walk.broken(), Some(BatchError::Field("version")));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let mut walk = Batches::new(&bytes);
            let covered: usize = walk.by_ref().map(|found| found.bytes.len()).sum();
            prop_assert_eq!(covered, walk.position());
        }
    }
}
