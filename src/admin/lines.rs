//! Lines of a file or a pipe, in a buffer that is reused: one copy from the kernel, none after.

use std::io::{self, Read};

/// Memory for input, bytes. A longer line is an error, and far above the bound of a batch.
const BUFFER_BYTES: usize = 4 << 20;

/// One line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// Without its newline.
    pub(crate) bytes: &'a [u8],
    /// Whether there was one: false for a last line that ends with the input.
    pub(crate) terminated: bool,
    /// From 1.
    pub(crate) number: u64,
}

/// Why there is no next line.
#[derive(Debug)]
pub(crate) enum LineError {
    /// Reading failed.
    Read(io::Error),
    /// The line with this number does not fit the buffer.
    TooLong(u64),
}

/// Splits an input into lines.
pub(crate) struct Lines<R> {
    input: R,
    buffer: Vec<u8>,
    /// First byte not yet given out.
    start: usize,
    /// End of what was read.
    end: usize,
    /// Bytes from `start` on that are known to hold no newline.
    searched: usize,
    number: u64,
    at_end: bool,
}

impl<R: Read> Lines<R> {
    pub(crate) fn new(input: R) -> Self {
        Self::with_capacity(input, BUFFER_BYTES)
    }

    fn with_capacity(input: R, capacity: usize) -> Self {
        Self { input, buffer: vec![0; capacity], start: 0, end: 0, searched: 0, number: 0, at_end: false }
    }

    /// What is read from.
    pub(crate) fn input(&self) -> &R {
        &self.input
    }

    /// Whether a next line can be had without reading: a producer that would wait for input sends what it has first.
    pub(crate) fn has_buffered_line(&self) -> bool {
        let unread = self.buffer.get(self.start + self.searched..self.end).unwrap_or_default();
        memchr::memchr(b'\n', unread).is_some()
    }

    /// The next line; `None` at the end of the input.
    pub(crate) fn next(&mut self) -> Result<Option<Line<'_>>, LineError> {
        loop {
            let unread = self.buffer.get(self.start..self.end).unwrap_or_default();
            let fresh = unread.get(self.searched..).unwrap_or_default();
            if let Some(at) = memchr::memchr(b'\n', fresh) {
                let length = self.searched + at;
                return Ok(self.give(length, true));
            }
            self.searched = unread.len();
            if self.at_end {
                let length = unread.len();
                return Ok(if length == 0 { None } else { self.give(length, false) });
            }
            self.fill()?;
        }
    }

    fn give(&mut self, length: usize, terminated: bool) -> Option<Line<'_>> {
        let from = self.start;
        self.start += length + usize::from(terminated);
        self.searched = 0;
        self.number += 1;
        let bytes = self.buffer.get(from..from + length)?;
        Some(Line { bytes, terminated, number: self.number })
    }

    fn fill(&mut self) -> Result<(), LineError> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let room = self.buffer.get_mut(self.end..).unwrap_or_default();
        if room.is_empty() {
            return Err(LineError::TooLong(self.number + 1));
        }
        loop {
            match self.input.read(room) {
                Ok(read) => {
                    self.end += read;
                    self.at_end = read == 0;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(LineError::Read(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in portions.
    struct Portions<'a>(&'a [u8], usize);

    impl Read for Portions<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let n = self.1.min(buffer.len()).min(self.0.len());
            buffer[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    fn joined(text: &[u8], portion: usize, capacity: usize) -> (Vec<u8>, u64) {
        let mut lines = Lines::with_capacity(Portions(text, portion), capacity);
        let (mut out, mut count) = (Vec::new(), 0);
        while let Some(line) = lines.next().unwrap() {
            assert!(!line.bytes.contains(&b'\n'));
            out.extend_from_slice(line.bytes);
            if line.terminated {
                out.push(b'\n');
            }
            count += 1;
            assert_eq!(line.number, count);
        }
        (out, count)
    }

    #[test]
    fn every_byte_comes_through_however_it_is_read() {
        for (text, count) in [
            (&b""[..], 0),
            (b"\n", 1),
            (b"a", 1),
            (b"a\n", 1),
            (b"a\n\n\nb\r\nlast", 5),
            (b"\0\xff\n\xfe", 2),
        ] {
            for portion in 1..8 {
                for capacity in 7..12 {
                    assert_eq!(joined(text, portion, capacity), (text.to_vec(), count), "{text:?}");
                }
            }
        }
    }

    #[test]
    fn a_line_beyond_the_buffer_is_named() {
        let mut lines = Lines::with_capacity(Portions(b"ab\n123456789", 3), 8);
        assert_eq!(lines.next().unwrap().unwrap().bytes, b"ab");
        assert!(matches!(lines.next(), Err(LineError::TooLong(2))));
    }

    #[test]
    fn a_buffered_line_is_seen_without_reading() {
        let mut lines = Lines::with_capacity(Portions(b"a\nb\nc", 16), 16);
        assert!(!lines.has_buffered_line());
        lines.next().unwrap();
        assert!(lines.has_buffered_line());
        lines.next().unwrap();
        assert!(!lines.has_buffered_line());
    }
}
