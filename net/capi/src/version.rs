//! Which version this is.

use std::ffi::{CStr, c_char};

/// Major version of this header.
pub const PYRALOG_VERSION_MAJOR: u32 = 0;
/// Minor version of this header.
pub const PYRALOG_VERSION_MINOR: u32 = 1;
/// Patch version of this header.
pub const PYRALOG_VERSION_PATCH: u32 = 0;
/// Version of this header as one number: major * 1000000 + minor * 1000 + patch. The library's own is
/// pyralog_version_number().
pub const PYRALOG_VERSION_NUMBER: u32 = 1000;

const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(version) => version,
    Err(_) => c"",
};

/// The version of the library, like "0.1.0". Static.
#[unsafe(no_mangle)]
pub extern "C" fn pyralog_version() -> *const c_char {
    VERSION.as_ptr()
}

/// The version of the library as a number; compare it with PYRALOG_VERSION_NUMBER.
#[unsafe(no_mangle)]
pub extern "C" fn pyralog_version_number() -> u32 {
    PYRALOG_VERSION_NUMBER
}
