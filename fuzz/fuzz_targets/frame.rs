//! Any bytes as a stream of frames: no panic, and what decodes has one encoding.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = pyralog_net::roundtrip::check_frames(bytes);
});
