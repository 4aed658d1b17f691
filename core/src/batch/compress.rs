//! Compression of a batch's records: LZ4 frames and zstd frames, as Kafka's clients write and read them.

use std::io::{Read, Write};

use lz4_flex::frame::{BlockMode, BlockSize, FrameDecoder, FrameEncoder, FrameInfo};

use super::BatchError;
use crate::limits::MAX_DECOMPRESSED_BYTES;

/// How a batch's records are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Compression {
    /// Not at all.
    #[default]
    None = 0,
    /// LZ4 frame format, independent blocks of 64 KiB.
    Lz4 = 3,
    /// Zstandard, level 3.
    Zstd = 4,
}

impl Compression {
    /// Every compression that is read and written.
    pub const ALL: [Self; 3] = [Self::None, Self::Lz4, Self::Zstd];

    /// The compression that the attributes name.
    ///
    /// # Errors
    /// [`BatchError::UnsupportedCompression`] for gzip, snappy and unknown numbers.
    pub const fn from_attributes(attributes: i16) -> Result<Self, BatchError> {
        match (attributes & super::ATTRIBUTE_COMPRESSION_MASK) as u8 {
            0 => Ok(Self::None),
            3 => Ok(Self::Lz4),
            4 => Ok(Self::Zstd),
            codec => Err(BatchError::UnsupportedCompression { codec }),
        }
    }

    /// Its name: `none`, `lz4`, `zstd`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// The compression of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.name() == name)
    }
}

/// Appends `input`, compressed, to `out`. `false` when that failed (`out` then holds rubbish behind its old end);
/// the caller sends the records as they are.
pub(super) fn compress(compression: Compression, input: &[u8], out: &mut Vec<u8>) -> bool {
    match compression {
        Compression::None => {
            out.extend_from_slice(input);
            true
        }
        Compression::Lz4 => {
            // Kafka's Java reader refuses frames whose blocks depend on each other.
            let frame = FrameInfo::new().block_mode(BlockMode::Independent).block_size(BlockSize::Max64KB);
            let mut encoder = FrameEncoder::with_frame_info(frame, out);
            encoder.write_all(input).is_ok() && encoder.finish().is_ok()
        }
        Compression::Zstd => match zstd::bulk::compress(input, zstd::DEFAULT_COMPRESSION_LEVEL) {
            Ok(compressed) => {
                out.extend_from_slice(&compressed);
                true
            }
            Err(_) => false,
        },
    }
}

/// Replaces the content of `out` by `input`, decompressed; at most [`MAX_DECOMPRESSED_BYTES`].
///
/// zstd may reserve up to 128 MiB of addresses for its window when a frame asks for it, but it touches only as
/// much as it decompresses, so memory stays within twice the bound.
pub(super) fn decompress(
    compression: Compression,
    input: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), BatchError> {
    out.clear();
    let failed =
        |e: std::io::Error| BatchError::Decompression { codec: compression.name(), reason: e.to_string() };
    let read = match compression {
        Compression::None => {
            out.extend_from_slice(input);
            return Ok(());
        }
        Compression::Lz4 => read_bounded(FrameDecoder::new(input), out),
        Compression::Zstd => {
            zstd::stream::read::Decoder::with_buffer(input).and_then(|d| read_bounded(d, out))
        }
    };
    read.map_err(failed)?;
    if out.len() > MAX_DECOMPRESSED_BYTES {
        // Give back what a hostile batch made us take.
        *out = Vec::new();
        return Err(BatchError::DecompressedTooLarge);
    }
    Ok(())
}

/// Reads one byte more than allowed, so that the caller sees a result that is too large.
fn read_bounded(from: impl Read, out: &mut Vec<u8>) -> std::io::Result<()> {
    from.take((MAX_DECOMPRESSED_BYTES as u64).saturating_add(1)).read_to_end(out).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bomb_is_refused() {
        let zeros = vec![0_u8; MAX_DECOMPRESSED_BYTES + 1];
        for compression in [Compression::Lz4, Compression::Zstd] {
            let mut bomb = Vec::new();
            assert!(compress(compression, &zeros, &mut bomb));
            assert!(bomb.len() < 1 << 20, "{compression:?}: fits into a batch: {}", bomb.len());
            let mut out = Vec::new();
            assert_eq!(decompress(compression, &bomb, &mut out), Err(BatchError::DecompressedTooLarge));
            assert_eq!(out.capacity(), 0);

            bomb.clear();
            assert!(compress(compression, &zeros[..MAX_DECOMPRESSED_BYTES], &mut bomb));
            assert_eq!(decompress(compression, &bomb, &mut out), Ok(()));
            assert_eq!(out.len(), MAX_DECOMPRESSED_BYTES);
        }
    }

    #[test]
    fn names_round_trip() {
        for c in Compression::ALL {
            assert_eq!(Compression::from_name(c.name()), Some(c));
            assert_eq!(Compression::from_attributes(c as i16), Ok(c));
        }
        assert_eq!(Compression::from_name("gzip"), None);
    }
}
