//! Makes the first inputs of the fuzz targets: the examples of `docs/protocol.md`, batches of every compression, and
//! mutations of both. The same run gives the same files.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use pyralog_core::batch::{BatchBuilder, Compression, Header};

const MUTATIONS: usize = 6;

fn main() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let page = std::fs::read_to_string(root.join("docs/protocol.md")).unwrap();
    let frames = examples(&page);
    let all = frames.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    write(&root.join("fuzz/corpus/frame"), frames.into_iter().chain([("all".to_owned(), all)]));
    write(&root.join("fuzz/corpus/batch"), batches().into_iter());
}

fn examples(page: &str) -> Vec<(String, Vec<u8>)> {
    let blocks = page.split("```hex ").skip(1);
    blocks
        .map(|block| {
            let (title, block) = block.split_once('\n').unwrap();
            let hex = block.split("```").next().unwrap();
            let digits =
                hex.lines().map(|line| line.split('#').next().unwrap()).flat_map(str::split_whitespace);
            let bytes = digits.map(|digits| u8::from_str_radix(digits, 16).unwrap()).collect();
            (title.trim().to_lowercase().replace(' ', "-"), bytes)
        })
        .collect()
}

fn batches() -> Vec<(String, Vec<u8>)> {
    let mut batches = Vec::new();
    for compression in Compression::ALL {
        let mut builder = BatchBuilder::new();
        builder.set_producer(7, 0, 0);
        let headers = [Header::new("trace", Some(b"abc")), Header::new("none", None)];
        builder.append(1_700_000_000_000, Some(b"key"), Some(&[b'x'; 300]), &headers).unwrap();
        builder.append(1_699_999_999_999, None, Some(&[b'y'; 300]), &[]).unwrap();
        builder.append(1_700_000_000_500, Some(b""), None, &[]).unwrap();
        let bytes = builder.build(compression).unwrap().to_vec();
        batches.push((format!("{}-two", compression.name()), [&bytes[..], &bytes[..]].concat()));
        batches.push((compression.name().to_owned(), bytes));
    }
    batches
}

/// Writes each input, and mutations of it: a changed byte, a cut, a removed and a doubled piece.
fn write(folder: &Path, inputs: impl Iterator<Item = (String, Vec<u8>)>) {
    std::fs::create_dir_all(folder).unwrap();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = move |end: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % end.max(1) as u64) as usize
    };
    for (name, bytes) in inputs {
        for number in 0..MUTATIONS {
            let mut mutated = bytes.clone();
            let at = below(bytes.len());
            match number % 4 {
                0 | 1 => mutated[at] ^= 1 << below(8),
                2 => mutated.truncate(at),
                _ => {
                    let piece = bytes[at..(at + 16).min(bytes.len())].to_vec();
                    mutated.splice(at..at, piece);
                }
            }
            std::fs::write(folder.join(format!("{name}-mutated-{number}")), mutated).unwrap();
        }
        std::fs::write(folder.join(name), bytes).unwrap();
    }
}
