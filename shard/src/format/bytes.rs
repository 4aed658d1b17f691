//! Reading and writing integers at fixed places, without a panic in reach.
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

/// `N` bytes at `at`, or `None` when the slice ends before.
pub(crate) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

macro_rules! readers {
    ($($name:ident $type:ty, $from:ident, $doc:literal;)+) => {
        $(
            #[doc = $doc]
            pub(crate) fn $name(bytes: &[u8], at: usize) -> Option<$type> {
                Some(<$type>::$from(array_at(bytes, at)?))
            }
        )+
    };
}

readers! {
    u16_le u16, from_le_bytes, "Little-endian u16 at `at`.";
    u32_le u32, from_le_bytes, "Little-endian u32 at `at`.";
    u64_le u64, from_le_bytes, "Little-endian u64 at `at`.";
    i64_le i64, from_le_bytes, "Little-endian i64 at `at`.";
    i32_be i32, from_be_bytes, "Big-endian i32 at `at`.";
    u32_be u32, from_be_bytes, "Big-endian u32 at `at`.";
    i64_be i64, from_be_bytes, "Big-endian i64 at `at`.";
}

/// Writes `value` at `at` of a header that is being encoded. The places are constants inside the header.
pub(crate) fn put(header: &mut [u8], at: usize, value: &[u8]) {
    match header.get_mut(at..at + value.len()) {
        Some(place) => place.copy_from_slice(value),
        None => unreachable!("header fields lie inside the header"),
    }
}

/// Reads values one after the other; every read says `None` at the end instead of running over it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes not yet read.
    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// The bytes not yet read.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*head)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn i16(&mut self) -> Option<i16> {
        self.array().map(i16::from_le_bytes)
    }

    pub(crate) fn i32(&mut self) -> Option<i32> {
        self.array().map(i32::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    /// A count of items of at least `item_bytes` each: `None` when the rest can't hold that many, so that a
    /// count may be allocated for once it was read.
    pub(crate) fn count(&mut self, item_bytes: usize) -> Option<usize> {
        let count = self.u32()? as usize;
        (count.checked_mul(item_bytes)? <= self.remaining()).then_some(count)
    }
}
