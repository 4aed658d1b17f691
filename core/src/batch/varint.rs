//! Zigzag variable-length integers as in Kafka's records (and Protocol Buffers' `sint32`/`sint64`).

// Bit twiddling on values whose ranges are visible on the same line.
#![allow(clippy::arithmetic_side_effects)]

/// Most bytes of a 64-bit value.
pub(super) const MAX_VARLONG_BYTES: usize = 10;

const fn zigzag(value: i64) -> u64 {
    ((value as u64) << 1) ^ ((value >> 63) as u64)
}

const fn unzigzag(value: u64) -> i64 {
    ((value >> 1) as i64) ^ -((value & 1) as i64)
}

/// Bytes that `value` takes.
pub(super) const fn encoded_len(value: i64) -> usize {
    let bits = 64 - (zigzag(value) | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Appends `value`.
pub(super) fn write(out: &mut Vec<u8>, value: i64) {
    let mut rest = zigzag(value);
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Takes a 64-bit value off the front. `None` when the bytes end early or the value has more than 64 bits.
pub(super) fn read_i64(bytes: &mut &[u8]) -> Option<i64> {
    let mut value = 0_u64;
    for i in 0..MAX_VARLONG_BYTES {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let low = u64::from(byte & 0x7f);
        // The tenth byte holds bit 63 alone.
        if i == MAX_VARLONG_BYTES - 1 && byte > 1 {
            return None;
        }
        value |= low << (7 * i as u32);
        if byte & 0x80 == 0 {
            return Some(unzigzag(value));
        }
    }
    None
}

/// Takes a 32-bit value off the front. `None` also when the value has more than 32 bits.
pub(super) fn read_i32(bytes: &mut &[u8]) -> Option<i32> {
    // Most lengths and deltas are below 64: one byte.
    if let Some((&byte, rest)) = bytes.split_first()
        && byte & 0x80 == 0
    {
        *bytes = rest;
        return Some(unzigzag(u64::from(byte)) as i32);
    }
    i32::try_from(read_i64(bytes)?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(value: i64) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out, value);
        out
    }

    #[test]
    fn known_values() {
        // From the definition: zigzag maps 0, -1, 1, -2 … to 0, 1, 2, 3 …; seven bits a byte, low ones first.
        for (value, bytes) in [
            (0, &[0x00][..]),
            (-1, &[0x01]),
            (1, &[0x02]),
            (63, &[0x7e]),
            (-64, &[0x7f]),
            (64, &[0x80, 0x01]),
            (-65, &[0x81, 0x01]),
            (8191, &[0xfe, 0x7f]),
            (i64::from(i32::MAX), &[0xfe, 0xff, 0xff, 0xff, 0x0f]),
            (i64::from(i32::MIN), &[0xff, 0xff, 0xff, 0xff, 0x0f]),
            (i64::MAX, &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
            (i64::MIN, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
        ] {
            assert_eq!(encoded(value), bytes, "{value}");
            assert_eq!(read_i64(&mut &*bytes), Some(value));
        }
    }

    #[test]
    fn too_long_and_too_short_are_refused() {
        assert_eq!(read_i64(&mut &[0x80; 11][..]), None, "never ends");
        assert_eq!(
            read_i64(&mut &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02][..]),
            None,
            "65 bits"
        );
        assert_eq!(read_i64(&mut &[0x80][..]), None, "cut short");
        assert_eq!(read_i64(&mut &[][..]), None, "empty");
        assert_eq!(read_i32(&mut &encoded(i64::from(i32::MAX) + 1)[..]), None, "33 bits");
    }

    proptest! {
        #[test]
        fn round_trip(value: i64) {
            let bytes = encoded(value);
            prop_assert_eq!(bytes.len(), encoded_len(value));
            let mut rest = &bytes[..];
            prop_assert_eq!(read_i64(&mut rest), Some(value));
            prop_assert!(rest.is_empty());
            let mut rest = &bytes[..];
            prop_assert_eq!(read_i32(&mut rest), i32::try_from(value).ok());
        }
    }
}
