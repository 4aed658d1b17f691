//! Header compression (RFC 7541), as far as a peer without a dynamic table uses it. Static names that matter here are few;
//! others are passed by.

use anyhow::Context;

/// Printable characters by length of their Huffman code, in the order of the codes (RFC 7541, appendix B). Longer codes are
/// of characters that no header of gRPC holds.
const BY_LENGTH: [(u32, &[u8]); 10] = [
    (5, b"012aceiost"),
    (6, b" %-./3456789=A_bdfghlmnpru"),
    (7, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, b"&*,;XZ"),
    (10, b"!\"()?"),
    (11, b"'+|"),
    (12, b"#>"),
    (13, b"\0$@[]~"),
    (14, b"^}"),
    (15, b"<`{"),
];

/// Decodes a Huffman-coded string. The codes are canonical: those of one length follow one another, and the next length goes
/// on from there.
fn huffman(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let bit = |at: usize| bytes.get(at / 8).map(|byte| u32::from(byte >> (7 - at % 8) & 1));
    let (mut text, mut at) = (Vec::new(), 0);
    'characters: while bit(at).is_some() {
        let (mut code, mut length, mut first) = (0, 0, 0);
        for (wanted, characters) in BY_LENGTH {
            first <<= wanted - length;
            while length < wanted {
                let Some(next) = bit(at + length as usize) else {
                    // The rest is padding: fewer than 8 bits, all 1.
                    let is_padding = length < 8 && code == (1 << length) - 1;
                    anyhow::ensure!(is_padding, "HTTP/2: a Huffman code that ends early");
                    break 'characters;
                };
                code = code << 1 | next;
                length += 1;
            }
            if let Some(character) = characters.get((code - first) as usize) {
                text.push(*character);
                at += length as usize;
                continue 'characters;
            }
            first += characters.len() as u32;
        }
        anyhow::bail!("HTTP/2: a header with a character that no header of gRPC holds");
    }
    Ok(text)
}

/// An integer whose first byte has `prefix_bits` bits of it, and the rest.
fn integer(bytes: &[u8], prefix_bits: u32) -> anyhow::Result<(usize, &[u8])> {
    let (first, mut rest) = bytes.split_first().context("HTTP/2: headers that end early")?;
    let mask = (1usize << prefix_bits) - 1;
    let mut value = usize::from(*first) & mask;
    if value < mask {
        return Ok((value, rest));
    }
    for shift in [0, 7, 14] {
        let (next, after) = rest.split_first().context("HTTP/2: headers that end early")?;
        rest = after;
        value += usize::from(next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return Ok((value, rest));
        }
    }
    anyhow::bail!("HTTP/2: a number in the headers is too large")
}

fn string(bytes: &[u8]) -> anyhow::Result<(Vec<u8>, &[u8])> {
    let is_huffman = bytes.first().is_some_and(|first| first & 0x80 != 0);
    let (length, rest) = integer(bytes, 7)?;
    let (text, rest) = rest.split_at_checked(length).context("HTTP/2: headers that end early")?;
    Ok((if is_huffman { huffman(text)? } else { text.to_vec() }, rest))
}

/// Appends a literal string, as it is.
pub(super) fn append_string(out: &mut Vec<u8>, text: &str) {
    match text.len() {
        length @ 0..127 => out.push(length as u8),
        // One more byte takes what is above, up to 254: longer than any path or address here.
        length => out.extend_from_slice(&[127, (length - 127).min(127) as u8]),
    }
    out.extend_from_slice(text.as_bytes());
}

/// The names and values in a header block that does not use the dynamic table. Names out of the static table are left empty
/// except `:status` with a value of its own.
pub(super) fn decode(mut block: &[u8]) -> anyhow::Result<Vec<(String, String)>> {
    let mut headers = Vec::new();
    while let Some(first) = block.first() {
        let name_bits = match first {
            0x80.. => {
                let (index, rest) = integer(block, 7)?;
                anyhow::ensure!(index <= 61, "HTTP/2: the server uses a table that it was told not to");
                // Whole entries of the static table: of these only `:status: 200` (8) and its like are sent to clients.
                headers.push((String::new(), String::new()));
                block = rest;
                continue;
            }
            // The size of the dynamic table, which is 0 on our word.
            0x20..0x40 => {
                block = integer(block, 5)?.1;
                continue;
            }
            0x40..0x80 => 6,
            _ => 4,
        };
        let (index, mut rest) = integer(block, name_bits)?;
        let mut name = Vec::new();
        match index {
            0 => (name, rest) = string(rest)?,
            8..=14 => name = b":status".to_vec(),
            _ => anyhow::ensure!(index <= 61, "HTTP/2: the server uses a table that it was told not to"),
        }
        let (value, rest) = string(rest)?;
        block = rest;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        headers.push((text(name), text(value)));
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huffman_strings_of_the_specification() {
        // RFC 7541, C.4 and C.6.
        assert_eq!(huffman(b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff").unwrap(), b"www.example.com");
        assert_eq!(huffman(b"\xa8\xeb\x10\x64\x9c\xbf").unwrap(), b"no-cache");
        assert_eq!(huffman(b"\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf").unwrap(), b"custom-value");
        let date =
            b"\xd0\x7a\xbe\x94\x10\x54\xd4\x44\xa8\x20\x05\x95\x04\x0b\x81\x66\xe0\x82\xa6\x2d\x1b\xff";
        assert_eq!(huffman(date).unwrap(), b"Mon, 21 Oct 2013 20:13:21 GMT");
        assert_eq!(huffman(b"").unwrap(), b"");
        assert!(huffman(b"\x00\x00\x01").is_err(), "zeros are no padding");
        assert!(huffman(b"\xff\xff\xff\xff").is_err());
    }

    #[test]
    fn literal_headers_with_and_without_huffman() {
        // A new size of 0, `:status: 200`, and two literals.
        let mut block = vec![0x20, 0x88, 0x00];
        append_string(&mut block, "grpc-status");
        append_string(&mut block, "14");
        block.extend_from_slice(b"\x40\x86\xa8\xeb\x10\x64\x9c\xbf\x01x");
        let headers = decode(&block).unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(headers, [pair("", ""), pair("grpc-status", "14"), pair("no-cache", "x")]);
        assert_eq!(decode(b"\x48\x03500").unwrap(), [pair(":status", "500")]);
        assert!(decode(b"\xbe").is_err(), "62 is in the dynamic table");
        assert!(decode(b"\x00\x05ab").is_err());
    }

    #[test]
    fn long_strings_have_long_lengths() {
        let mut out = Vec::new();
        append_string(&mut out, &"x".repeat(200));
        assert_eq!(string(&out).unwrap(), (vec![b'x'; 200], &[][..]));
    }
}
