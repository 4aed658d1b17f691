//! Makes `include/pyralog.h` from the sources of the C library, or with `--check` says whether it is current.

use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

fn main() -> ExitCode {
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let header = library.join("include/pyralog.h");
    match run(&library, &header, env::args().any(|argument| argument == "--check")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", header.display());
            ExitCode::FAILURE
        }
    }
}

fn run(library: &Path, header: &Path, check: bool) -> Result<(), String> {
    let made = made_from(library)?;
    if !check {
        return fs::write(header, made).map_err(|error| error.to_string());
    }
    let there = fs::read_to_string(header).map_err(|error| error.to_string())?;
    if there == made {
        return Ok(());
    }
    let differs = there.lines().zip(made.lines()).position(|(there, made)| there != made);
    let line = differs.unwrap_or(there.lines().count().min(made.lines().count())) + 1;
    Err(format!("not what the sources make of it, from line {line} on; run make -C net/capi header"))
}

fn made_from(library: &Path) -> Result<String, String> {
    let config = cbindgen::Config::from_file(library.join("cbindgen.toml"))?;
    let made = cbindgen::Builder::new()
        .with_crate(library)
        .with_config(config)
        .generate()
        .map_err(|error| error.to_string())?;
    let mut text = Vec::new();
    made.write(&mut text);
    String::from_utf8(text).map_err(|error| error.to_string())
}
