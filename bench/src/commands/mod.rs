//! What the subcommands that measure one node, or show what was measured, do with their arguments.

mod consume;
mod floor;
mod produce;
mod report;

pub use consume::{consume, mixed, sweep};
pub use floor::{floor, floor_server};
pub use produce::produce;
pub use report::report;

use serde_json::Value;

use crate::cli::Output;

/// Prints a report as it was asked for.
pub fn show(output: Output, table: &str, json: &Value) {
    match output {
        Output::Table => print!("{table}"),
        Output::Json => println!("{json:#}"),
    }
}
