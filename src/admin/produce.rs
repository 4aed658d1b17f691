//! `produce`: lines in, acknowledged records out.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressStyle};
use pyralog_core::batch::{BatchError, Compression, Header};
use pyralog_core::limits::MAX_BATCH_BYTES;
use pyralog_net::client::{Client, ClientError, IdempotentProducer, ProducerConfig, partition_for_key};
use pyralog_net::message::{Acks, Durability};
use serde::Serialize;

use super::cli::{AcksArg, CompressionArg, Format, Produce};
use super::consume::check_partition;
use super::lines::{Line, LineError, Lines};
use super::{EOL_HEADER, explain, output, topic};
use crate::failure::Failure;
use crate::units;

/// The progress bar moves after this many bytes of input.
const PROGRESS_BYTES: u64 = 1 << 20;

/// Runs the command.
pub(crate) fn run(
    cluster: &[String],
    mut client: Client,
    format: Format,
    arguments: &Produce,
) -> Result<(), Failure> {
    let topic = topic::find(&mut client, &arguments.topic)?;
    if let Some(partition) = arguments.partition {
        check_partition(&topic, partition)?;
    }
    let batch_bytes =
        usize::try_from(arguments.batch_size).ok().filter(|size| (1..=MAX_BATCH_BYTES).contains(size));
    let config = ProducerConfig {
        acks: acks(arguments.acks),
        compression: compression(arguments.compression),
        batch_size: batch_bytes.ok_or_else(|| {
            Failure::usage(format!(
                "--batch-size {} is outside 1 to {MAX_BATCH_BYTES} bytes",
                arguments.batch_size
            ))
        })?,
        delivery_timeout: Duration::from_secs(arguments.retry_for),
        ..ProducerConfig::default()
    };
    let input = Input::open(&arguments.file)?;
    let client = super::client(cluster, Duration::from_secs(arguments.retry_for));
    let mut session =
        Session::new(client, arguments, config).map_err(|error| explain(error, Some(&arguments.topic)))?;
    let bar = input.progress_bar(arguments.quiet);
    let started = Instant::now();
    let ended = session.send_all(input, &bar);
    // Whatever stopped the input, the lines before it are on their way: only now is it known what became of them.
    let flushed = session.producer.flush().map_err(|error| explain(error, Some(&arguments.topic)));
    bar.finish_and_clear();
    let report = session.report(started.elapsed());
    match ended.and(flushed) {
        Err(failure) => {
            let (acked, read) = (report.acknowledged, report.records);
            Err(Failure::new(
                failure.exit,
                format!("{failure} ({acked} of {read} lines read before were acknowledged)"),
            ))
        }
        Ok(()) if report.acknowledged != report.records => Err(Failure::failed(format!(
            "{} lines were read and {} acknowledged",
            report.records, report.acknowledged
        ))),
        Ok(()) => output::print(format, &report, Report::line),
    }
}

fn acks(acks: AcksArg) -> Acks {
    match acks {
        AcksArg::None => Acks::None,
        AcksArg::Leader => Acks::Leader,
        AcksArg::Quorum => Acks::Quorum,
    }
}

fn compression(compression: CompressionArg) -> Compression {
    match compression {
        CompressionArg::None => Compression::None,
        CompressionArg::Lz4 => Compression::Lz4,
        CompressionArg::Zstd => Compression::Zstd,
    }
}

/// What `produce` tells in the end.
#[derive(Serialize)]
struct Report {
    records: u64,
    acknowledged: u64,
    /// Of the input, newlines included.
    bytes: u64,
    seconds: f64,
    bytes_per_second: f64,
    records_per_second: f64,
    /// The least that any acknowledgement said; `null` when there was none.
    durability: Option<&'static str>,
    duplicates: u64,
    reconnects: u64,
}

impl Report {
    fn line(&self) -> String {
        let mut line = format!(
            "{} records, {} in {}: {:.1} MB/s, {} records/s",
            units::count(self.acknowledged),
            units::bytes(self.bytes),
            units::duration(Duration::from_secs_f64(self.seconds)),
            self.bytes_per_second / 1e6,
            units::count(self.records_per_second as u64)
        );
        if let Some(durability) = self.durability {
            line.push_str(&format!("; all acknowledged, {durability}"));
        }
        if self.reconnects > 0 {
            let (reconnects, duplicates) = (self.reconnects, self.duplicates);
            line.push_str(&format!(
                "; connected again {reconnects} times, {duplicates} batches recognised as duplicates"
            ));
        }
        line
    }
}

/// What the acknowledgements said.
const LEVELS: [(Durability, &str); 4] = [
    (Durability::Memory, "in memory"),
    (Durability::Written, "written, not flushed"),
    (Durability::LeaderDurable, "durable on the leader"),
    (Durability::QuorumDurable, "durable on a quorum"),
];

/// Where the lines come from.
struct Input {
    file: File,
    /// Size of a regular file, whose reads never wait for somebody.
    file_bytes: Option<u64>,
}

impl Input {
    fn open(path: &Path) -> Result<Self, Failure> {
        let unreadable =
            |error: io::Error| Failure::failed(format!("cannot read {}: {error}", path.display()));
        // Not `Stdin`: its buffer would hide from `would_wait` what has been read already.
        let file = match path == Path::new("-") {
            true => io::stdin().as_fd().try_clone_to_owned().map(File::from),
            false => File::open(path),
        };
        let file = file.map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if metadata.is_dir() {
            return Err(Failure::failed(format!("cannot read {}: it is a folder", path.display())));
        }
        Ok(Self { file_bytes: metadata.is_file().then_some(metadata.len()), file })
    }

    fn progress_bar(&self, quiet: bool) -> ProgressBar {
        if quiet {
            return ProgressBar::hidden();
        }
        let (bar, template) = match self.file_bytes {
            Some(bytes) => (
                ProgressBar::new(bytes),
                "{wide_bar} {binary_bytes}/{binary_total_bytes} {decimal_bytes_per_sec} {eta}",
            ),
            None => {
                (ProgressBar::new_spinner(), "{spinner} {binary_bytes} {decimal_bytes_per_sec} {elapsed}")
            }
        };
        match ProgressStyle::with_template(template) {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        }
    }

    /// Whether the next read would wait for whoever writes the input.
    fn would_wait(&self) -> bool {
        if self.file_bytes.is_some() {
            return false;
        }
        let mut poll = libc::pollfd { fd: self.file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd, of a descriptor that `file` keeps open.
        unsafe { libc::poll(&mut poll, 1, 0) == 0 }
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

/// One producer session fed with lines.
struct Session<'a> {
    arguments: &'a Produce,
    producer: IdempotentProducer,
    /// The least durability acknowledged, as its number; beyond all of them while there is none.
    least: Arc<AtomicU8>,
    /// Lines without a key go to this partition until a batch is full, then to the next.
    current: u32,
    current_bytes: u64,
    records: u64,
    bytes: u64,
}

impl<'a> Session<'a> {
    fn new(client: Client, arguments: &'a Produce, config: ProducerConfig) -> Result<Self, ClientError> {
        let mut producer = IdempotentProducer::new(client, &arguments.topic, config)?;
        let least = Arc::new(AtomicU8::new(u8::MAX));
        let lowered = Arc::clone(&least);
        producer.on_ack(Box::new(move |ack| {
            lowered.fetch_min(ack.durability as u8, Ordering::Relaxed);
        }));
        let current = arguments.partition.unwrap_or(0);
        Ok(Self { arguments, producer, least, current, current_bytes: 0, records: 0, bytes: 0 })
    }

    fn send_all(&mut self, input: Input, bar: &ProgressBar) -> Result<(), Failure> {
        let mut lines = Lines::new(input);
        let mut shown = 0;
        loop {
            if !lines.has_buffered_line() && lines.input().would_wait() {
                self.producer.flush().map_err(|error| explain(error, Some(&self.arguments.topic)))?;
            }
            match lines.next() {
                Ok(Some(line)) => self.send(line)?,
                Ok(None) => return Ok(()),
                Err(LineError::Read(error)) => {
                    return Err(Failure::failed(format!(
                        "reading stopped after line {}: {error}",
                        self.records
                    )));
                }
                Err(LineError::TooLong(number)) => return Err(too_long(number, "more than 4 MiB".into())),
            }
            if self.bytes - shown >= PROGRESS_BYTES {
                shown = self.bytes;
                bar.set_position(shown);
            }
        }
    }

    fn send(&mut self, line: Line<'_>) -> Result<(), Failure> {
        let (key, value) = match &self.arguments.key_separator {
            Some(separator) => split_key(line.bytes, separator.as_bytes()),
            None => (None, line.bytes),
        };
        let partition = self.partition(key, line.bytes.len() as u64);
        let no_newline = [Header::new(EOL_HEADER, Some(b"none"))];
        let headers: &[Header<'_>] = if line.terminated { &[] } else { &no_newline };
        match self.producer.send(partition, now_ms(), key, Some(value), headers) {
            Ok(()) => {
                self.records += 1;
                self.bytes += line.bytes.len() as u64 + u64::from(line.terminated);
                Ok(())
            }
            Err(ClientError::Batch(BatchError::RecordTooLarge { .. })) => {
                Err(too_long(line.number, units::bytes(line.bytes.len() as u64)))
            }
            Err(error) => Err(explain(error, Some(&self.arguments.topic))),
        }
    }

    fn partition(&mut self, key: Option<&[u8]>, line_bytes: u64) -> u32 {
        let partitions = self.producer.partitions();
        match (self.arguments.partition, key) {
            (Some(partition), _) => partition,
            (None, Some(key)) => partition_for_key(key, partitions),
            (None, None) => {
                if self.current_bytes >= self.arguments.batch_size {
                    self.current = (self.current + 1) % partitions.max(1);
                    self.current_bytes = 0;
                }
                self.current_bytes += line_bytes;
                self.current
            }
        }
    }

    fn report(&self, elapsed: Duration) -> Report {
        let stats = self.producer.stats();
        let least = self.least.load(Ordering::Relaxed);
        Report {
            records: self.records,
            acknowledged: stats.acked_records,
            bytes: self.bytes,
            seconds: elapsed.as_secs_f64(),
            bytes_per_second: units::per_s(self.bytes, elapsed),
            records_per_second: units::per_s(stats.acked_records, elapsed),
            durability: LEVELS.iter().find(|(level, _)| *level as u8 == least).map(|(_, name)| *name),
            duplicates: stats.duplicates,
            reconnects: stats.reconnects,
        }
    }
}

fn too_long(number: u64, size: String) -> Failure {
    Failure::failed(format!(
        "line {number} has {size} and one record holds at most {} with its batch's header; split the line",
        units::bytes(MAX_BATCH_BYTES as u64)
    ))
}

fn split_key<'a>(line: &'a [u8], separator: &[u8]) -> (Option<&'a [u8]>, &'a [u8]) {
    match memchr::memmem::find(line, separator) {
        Some(at) => (line.get(..at), line.get(at + separator.len()..).unwrap_or_default()),
        None => (None, line),
    }
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_end_at_the_first_separator() {
        assert_eq!(split_key(b"a=b=c", b"="), (Some(&b"a"[..]), &b"b=c"[..]));
        assert_eq!(split_key(b"=b", b"="), (Some(&b""[..]), &b"b"[..]));
        assert_eq!(split_key(b"plain", b"="), (None, &b"plain"[..]));
        assert_eq!(split_key(b"k::", b"::"), (Some(&b"k"[..]), &b""[..]));
    }

    #[test]
    fn every_level_of_durability_has_a_name() {
        for (i, (level, _)) in LEVELS.iter().enumerate() {
            assert_eq!(*level as usize, i);
        }
    }
}
