//! `log verify` and `log dump`: the files of a node that does not run.

use std::io::{self, BufWriter};
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use pyralog_shard::offline::{self, Finding, OfflineError, Report, Severity};
use serde::Serialize;

use super::cli::{Format, LogCommand};
use super::output;
use crate::failure::Failure;
use crate::units;

/// Runs the command.
pub(crate) fn run(format: Format, command: LogCommand) -> Result<(), Failure> {
    match command {
        LogCommand::Verify { dir, journal_dir } => {
            let journal_dir = journal_dir.unwrap_or_else(|| default_journal_dir(&dir));
            verify(format, &dir, &journal_dir)
        }
        LogCommand::Dump { file } => {
            match offline::dump(&file, &mut BufWriter::with_capacity(1 << 16, io::stdout().lock())) {
                Err(OfflineError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                other => other.map_err(|error| Failure::failed(error.to_string())),
            }
        }
    }
}

/// Where a node keeps its journals when it is not told: `journal` in its data folder.
fn default_journal_dir(data_dir: &Path) -> std::path::PathBuf {
    let inside = data_dir.join("journal");
    if inside.is_dir() { inside } else { data_dir.to_owned() }
}

#[derive(Serialize)]
struct Verified {
    clean: bool,
    shards: u64,
    checkpoints: u64,
    partitions: u64,
    journal_files: u64,
    commits_to_replay: u64,
    journal_batches: u64,
    segments: u64,
    segment_batches: u64,
    records: u64,
    bytes: u64,
    findings: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    severity: &'static str,
    shard: u16,
    file: String,
    position: Option<u64>,
    partition: Option<String>,
    /// From (included) to (excluded).
    offsets: Option<(i64, i64)>,
    what: String,
    remedy: &'static str,
}

impl Row {
    fn of(finding: Finding) -> Self {
        Self {
            severity: match finding.severity {
                Severity::Damage => "damage",
                Severity::Warning => "warning",
                Severity::Note => "note",
            },
            shard: finding.shard.0,
            file: finding.file.display().to_string(),
            position: finding.position,
            partition: finding.group.map(|group| group.to_string()),
            offsets: finding.offsets,
            what: finding.what,
            remedy: finding.remedy,
        }
    }

    fn text(&self) -> String {
        let position = self.position.map(|position| format!(" at byte {position}")).unwrap_or_default();
        let partition =
            self.partition.as_ref().map(|group| format!(", partition {group}")).unwrap_or_default();
        let offsets = self.offsets.map(|(from, to)| format!(", offsets {from} to {to}")).unwrap_or_default();
        let Self { severity, file, what, remedy, .. } = self;
        format!("{severity}: {file}{position}{partition}{offsets}: {what}; {remedy}")
    }
}

fn verify(format: Format, data_dir: &Path, journal_dir: &Path) -> Result<(), Failure> {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {binary_bytes}/{binary_total_bytes}") {
        bar.set_style(style);
    }
    let report = offline::verify(data_dir, journal_dir, &mut |progress| {
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.done_bytes);
    });
    bar.finish_and_clear();
    let verified = verified(report.map_err(|error| Failure::failed(error.to_string()))?);
    output::print(format, &verified, table)?;
    match verified.clean {
        true => Ok(()),
        false => Err(Failure::failed(format!("{} is damaged; the findings say where", data_dir.display()))),
    }
}

fn verified(report: Report) -> Verified {
    Verified {
        clean: report.clean(),
        shards: report.shards,
        checkpoints: report.checkpoints,
        partitions: report.partitions,
        journal_files: report.journal_files,
        commits_to_replay: report.commits,
        journal_batches: report.journal_batches,
        segments: report.segments,
        segment_batches: report.segment_batches,
        records: report.records,
        bytes: report.bytes,
        findings: report.findings.into_iter().map(Row::of).collect(),
    }
}

fn table(report: &Verified) -> String {
    let facts = output::pairs(&[
        ("shards", report.shards.to_string()),
        ("checkpoints", report.checkpoints.to_string()),
        ("partitions", report.partitions.to_string()),
        ("journal files", report.journal_files.to_string()),
        ("commits to replay", units::count(report.commits_to_replay)),
        ("batches in journals", units::count(report.journal_batches)),
        ("segments", report.segments.to_string()),
        ("batches in segments", units::count(report.segment_batches)),
        ("records", units::count(report.records)),
        ("bytes read", units::bytes(report.bytes)),
    ]);
    let findings: String = report.findings.iter().map(|finding| format!("{}\n", finding.text())).collect();
    let verdict = if report.clean { "clean" } else { "DAMAGED" };
    format!("{facts}\n\n{findings}{verdict}")
}
