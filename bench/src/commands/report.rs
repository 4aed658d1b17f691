//! `report`: runs beside each other.

use anyhow::Context;

use crate::options::ReportArgs;
use crate::report::overlay;

/// Prints the table and writes the plot.
///
/// # Errors
/// When there is no run in the folders or the plot can't be written.
pub fn report(args: &ReportArgs) -> anyhow::Result<()> {
    let (table, svg) = overlay(&args.dirs)?;
    std::fs::write(&args.svg, svg).with_context(|| format!("{}: can't be written", args.svg.display()))?;
    print!("{table}");
    eprintln!("written: {}", args.svg.display());
    Ok(())
}
