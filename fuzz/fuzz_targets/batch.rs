//! Any bytes as record batches: no panic, and what decodes survives being written again.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = pyralog_net::roundtrip::check_batches(bytes);
});
