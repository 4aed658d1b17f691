//! The content of a simulated file: sparse pages, shared between the platter and the page cache until one of
//! them changes. A page that is not there is zeros.

use std::rc::Rc;

/// Bytes of one page; also the alignment of journal writes.
pub(crate) const PAGE: usize = 4096;

type Page = Rc<[u8; PAGE]>;

/// A file's bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pages {
    pages: Vec<Option<Page>>,
    len: u64,
}

impl Pages {
    /// A file of `len` zeros.
    pub(crate) fn zeros(len: u64) -> Self {
        Self { pages: Vec::new(), len }
    }

    /// Length, bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Whether the file has no bytes.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Cuts or extends (with zeros) to `len`.
    pub(crate) fn set_len(&mut self, len: u64) {
        if len < self.len {
            let whole = (len as usize).div_ceil(PAGE);
            self.pages.truncate(whole);
            let within = len as usize % PAGE;
            if within != 0
                && let Some(Some(page)) = self.pages.get_mut(len as usize / PAGE)
            {
                Rc::make_mut(page)[within..].fill(0);
            }
        }
        self.len = len;
    }

    /// Writes `bytes` at `offset`, extending the file when they reach beyond its end.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len() as u64;
        self.len = self.len.max(end);
        let needed = (end as usize).div_ceil(PAGE);
        if self.pages.len() < needed {
            self.pages.resize(needed, None);
        }
        let (mut at, mut rest) = (offset as usize, bytes);
        while !rest.is_empty() {
            let within = at % PAGE;
            let (now, later) = rest.split_at(rest.len().min(PAGE - within));
            let slot = &mut self.pages[at / PAGE];
            match (now.first_chunk::<PAGE>(), slot.as_mut()) {
                (Some(whole), _) => *slot = Some(Rc::new(*whole)),
                (None, Some(page)) => Rc::make_mut(page)[within..within + now.len()].copy_from_slice(now),
                (None, None) => {
                    let mut page = [0; PAGE];
                    page[within..within + now.len()].copy_from_slice(now);
                    *slot = Some(Rc::new(page));
                }
            }
            at += now.len();
            rest = later;
        }
    }

    /// Takes over the whole pages of `from` that lie in `offset..offset + len`, by reference.
    pub(crate) fn share(&mut self, from: &Self, offset: u64, len: u64) {
        let (first, last) = (offset as usize / PAGE, (offset + len) as usize / PAGE);
        if self.pages.len() < last {
            self.pages.resize(last, None);
        }
        self.len = self.len.max(offset + len);
        for page in first..last {
            self.pages[page] = from.pages.get(page).cloned().flatten();
        }
    }

    /// Fills `buffer` from `offset`; returns fewer bytes only at the end of the file.
    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let len = self.len.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let mut done = 0;
        while done < len {
            let at = offset as usize + done;
            let within = at % PAGE;
            let now = (len - done).min(PAGE - within);
            let target = &mut buffer[done..done + now];
            match self.pages.get(at / PAGE) {
                Some(Some(page)) => target.copy_from_slice(&page[within..within + now]),
                _ => target.fill(0),
            }
            done += now;
        }
        len
    }

    /// Flips one bit.
    pub(crate) fn flip(&mut self, offset: u64, bit: u8) {
        let mut byte = [0];
        if self.read(offset, &mut byte) == 1 {
            self.write(offset, &[byte[0] ^ (1 << bit)]);
        }
    }

    /// Indexes of the pages that hold something.
    pub(crate) fn written_pages(&self) -> Vec<usize> {
        (0..self.pages.len()).filter(|&page| self.pages[page].is_some()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn behaves_like_a_plain_vector() {
        let mut rng = Rng::new(3);
        let mut plain: Vec<u8> = Vec::new();
        let mut pages = Pages::default();
        for step in 0..2000u32 {
            let offset = rng.below(40_000) as usize;
            let len = rng.below(9000) as usize;
            match rng.below(8) {
                0 => {
                    plain.resize(offset, 0);
                    pages.set_len(offset as u64);
                }
                _ => {
                    let bytes = vec![step as u8; len];
                    if plain.len() < offset + len && len > 0 {
                        plain.resize(offset + len, 0);
                    }
                    let at = offset.min(plain.len());
                    plain[at..][..len].copy_from_slice(&bytes);
                    pages.write(offset as u64, &bytes);
                }
            }
            assert_eq!(pages.len() as usize, plain.len());
            let mut buffer = vec![1; 60_000];
            let from = rng.below(50_000) as usize;
            let got = pages.read(from as u64, &mut buffer);
            assert_eq!(&buffer[..got], plain.get(from..).unwrap_or_default());
        }
    }
}
