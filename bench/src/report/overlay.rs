//! Runs that were written before, beside each other: one table, one plot.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value;

use super::FORMAT;
use crate::latency::{Latencies, Summary};
use crate::{hgrm, plot};

/// A run as it was written.
pub struct StoredRun {
    /// The file's name without its ending.
    pub name: String,
    /// When it ran.
    pub date_utc: String,
    /// The version that was measured, as git describes it.
    pub git_revision: String,
    /// One line about its load.
    pub load_line: String,
    /// Its distributions.
    pub curves: Vec<StoredCurve>,
    /// Ratio to the floor of p50, p99 and p999, if one was measured.
    pub floor_ratios: Option<[f64; 3]>,
}

/// One distribution of it.
pub struct StoredCurve {
    /// What it is of.
    pub name: String,
    /// The distribution.
    pub latencies: Latencies,
    /// How many a second.
    pub per_second: f64,
}

impl StoredRun {
    /// Reads a JSON file of [`super::Run::write`].
    ///
    /// # Errors
    /// When it is not one, or of another format.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("{}: can't be read", path.display()))?;
        let json: Value =
            serde_json::from_slice(&bytes).with_context(|| format!("{}: not JSON", path.display()))?;
        Self::of(&json).with_context(|| format!("{}: not a run written with --out", path.display()))
    }

    fn of(json: &Value) -> anyhow::Result<Self> {
        let format = json["format"].as_u64().context("no format")?;
        anyhow::ensure!(format == FORMAT, "format {format} instead of {FORMAT}; measure again");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let curves = json["curves"].as_array().context("no curves")?;
        let ratio = |key: &str| json["floor"]["ratios"][key].as_f64();
        Ok(Self {
            name: text(&json["name"]),
            date_utc: text(&json["date_utc"]),
            git_revision: text(&json["versions"]["git"]),
            load_line: text(&json["load_line"]),
            curves: curves.iter().map(StoredCurve::of).collect::<anyhow::Result<_>>()?,
            floor_ratios: ratio("p50").zip(ratio("p99")).zip(ratio("p999")).map(|((a, b), c)| [a, b, c]),
        })
    }
}

impl StoredCurve {
    fn of(json: &Value) -> anyhow::Result<Self> {
        let histogram =
            json["histogram_ns_v2_deflate_base64"].as_str().context("a curve without histogram")?;
        Ok(Self {
            name: json["name"].as_str().unwrap_or_default().to_owned(),
            latencies: hgrm::from_base64(histogram)?,
            per_second: json["per_second"].as_f64().unwrap_or_default(),
        })
    }
}

/// Every run of these folders beside each other: a Markdown table, and a plot of all curves.
///
/// # Errors
/// When a folder or a file can't be read, or when there is no run at all.
pub fn overlay(dirs: &[PathBuf]) -> anyhow::Result<(String, String)> {
    let mut runs = Vec::new();
    for path in json_files(dirs)? {
        runs.push(StoredRun::read(&path)?);
    }
    anyhow::ensure!(!runs.is_empty(), "no .json file there; give folders that were filled with --out");
    // With a single curve each, the run's name says it all.
    let names: Vec<Vec<String>> = runs.iter().map(curve_names).collect();
    let curves = runs.iter().zip(&names).flat_map(|(run, names)| {
        run.curves.iter().zip(names).map(|(curve, name)| plot::Curve { name, latencies: &curve.latencies })
    });
    let curves: Vec<plot::Curve<'_>> = curves.collect();
    let dates = runs.iter().map(|run| run.date_utc.as_str());
    let subtitle = format!(
        "{} run(s), {} to {}",
        runs.len(),
        dates.clone().min().unwrap_or_default(),
        dates.max().unwrap_or_default()
    );
    let svg =
        plot::percentiles("latency by percentile", &subtitle, &curves).context("every curve is empty")?;
    Ok((table(&runs), svg))
}

fn curve_names(run: &StoredRun) -> Vec<String> {
    match run.curves.as_slice() {
        [_] => vec![run.name.clone()],
        many => many.iter().map(|curve| format!("{} {}", run.name, curve.name)).collect(),
    }
}

/// In the order of folders, and of names within each.
fn json_files(dirs: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for dir in dirs {
        let entries = fs::read_dir(dir).with_context(|| format!("{}: can't be listed", dir.display()))?;
        let mut paths =
            entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<PathBuf>, _>>()?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
        paths.sort();
        files.extend(paths);
    }
    Ok(files)
}

fn table(runs: &[StoredRun]) -> String {
    let mut text = "| run | curve | per second | p50 µs | p90 µs | p99 µs | p999 µs | p9999 µs | max µs | to the floor: p50 / p99 / p999 |\n\
         | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n"
        .to_owned();
    for run in runs {
        for (number, curve) in run.curves.iter().enumerate() {
            let Summary { p50_us, p90_us, p99_us, p999_us, p9999_us, max_us, .. } = curve.latencies.summary();
            let ratios = run.floor_ratios.filter(|_| number == 0);
            let ratios =
                ratios.map_or("".to_owned(), |[p50, p99, p999]| format!("{p50:.2} / {p99:.2} / {p999:.2}"));
            text += &format!(
                "| {} | {} | {:.0} | {p50_us:.1} | {p90_us:.1} | {p99_us:.1} | {p999_us:.1} | {p9999_us:.1} | {max_us:.1} | {ratios} |\n",
                run.name, curve.name, curve.per_second
            );
        }
    }
    text.push('\n');
    for run in runs {
        let revision = if run.git_revision.is_empty() { "unknown" } else { &run.git_revision };
        text += &format!("- {}: {}, revision {revision}; {}\n", run.name, run.date_utc, run.load_line);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Output;
    use crate::report::tests::run_of;

    #[test]
    fn all_runs_of_all_folders_are_in_table_and_plot() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().join("a"), dir.path().join("b")];
        let mut with_floor = run_of(&[100, 150]);
        with_floor.more.insert(
            "floor".into(),
            serde_json::json!({ "ratios": { "p50": 1.25, "p99": 1.5, "p999": 2.0 } }),
        );
        with_floor.write(&Output { dir: dirs[0].clone(), name: "first".into() }).unwrap();
        let mut single = run_of(&[3000]);
        single.curves.truncate(1);
        single.write(&Output { dir: dirs[1].clone(), name: "second".into() }).unwrap();
        let (table, svg) = overlay(&dirs).unwrap();
        assert!(table.contains("| first | node | 10 |") && table.contains("1.25 / 1.50 / 2.00"), "{table}");
        assert!(table.contains("| second | node |") && table.contains("- second: "), "{table}");
        assert_eq!(table.matches("1.25").count(), 1, "only the node has a ratio");
        assert_eq!(svg.matches("<path").count(), 3);
        assert!(svg.contains("first floor") && svg.contains(">second</text>"), "{svg}");
    }

    #[test]
    fn what_is_no_run_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().to_owned()];
        assert!(overlay(&dirs).err().unwrap().to_string().contains("--out"));
        fs::write(dir.path().join("x.json"), "{\"format\": 99}").unwrap();
        let error = format!("{:#}", overlay(&dirs).err().unwrap());
        assert!(error.contains("x.json") && error.contains("99"), "{error}");
    }
}
