//! Gives the shared library its soname: programs that are linked with it ask the loader for that, so that a library
//! whose functions no longer fit can be installed beside it.

/// Counted up with each change that programs built before it can't be run with.
const ABI: u32 = 0;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libpyralog.so.{ABI}");
}
