//! A node that is killed again and again under an idempotent producer. In the end the log must hold the file's
//! lines: each once, in order, and nothing else.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use pyralog_net::client::{
    Client, ClientConfig, Consumer, ConsumerConfig, IdempotentProducer, ProducerConfig, ProducerStats,
    StartAt,
};

use crate::cli::KillArgs;
use crate::process::{NodeSetup, OwnedProcess};
use crate::rng::Rng;
use crate::session::Session;

const TOPIC: &str = "torture-kill";
const LOOK: Duration = Duration::from_millis(1);
/// Longest time between reaching a kill's place in the file and the kill.
const MOST_DELAY_US: usize = 20_000;
/// A node that was just started may be killed this long after it: in the middle of its recovery.
const MOST_UPTIME_US: usize = 150_000;
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(300);

/// What producer and killer tell each other.
#[derive(Default)]
struct Progress {
    acked: AtomicU64,
    /// Acknowledgements whose offset is not that of the line: lost, doubled or swapped lines.
    misplaced: AtomicU64,
    ended: AtomicBool,
}

/// Runs it; an error says what is wrong and where the node's folder is kept.
pub fn run(args: &KillArgs) -> anyhow::Result<()> {
    crate::pairs::ensure_program(&args.server)?;
    let lines = count_lines(&args.file)?;
    anyhow::ensure!(lines > 0, "{}: no lines", args.file.display());
    std::fs::create_dir_all(&args.dir)?;
    let folder = tempfile::Builder::new().prefix("pyralog-kill-").tempdir_in(&args.dir)?;
    match run_in(args, folder.path(), lines) {
        Ok(()) => Ok(()),
        Err(error) => {
            let kept = folder.keep();
            Err(error.context(format!("seed {}; the node's folder is kept: {}", args.seed, kept.display())))
        }
    }
}

fn run_in(args: &KillArgs, folder: &Path, lines: u64) -> anyhow::Result<()> {
    let setup = NodeSetup::new(&args.server, folder, None)?;
    let mut node = setup.start()?;
    Session::connect(setup.addr, Some(0))?.create_topic(TOPIC, 1)?;
    let progress = Arc::new(Progress::default());
    let begin = Instant::now();
    let (produced, killed) = std::thread::scope(|scope| {
        let producer = scope.spawn(|| {
            let produced = produce(setup.addr, &args.file, &progress);
            progress.ended.store(true, Ordering::Relaxed);
            produced
        });
        let killed = kill_again_and_again(args, &setup, &mut node, lines, &progress);
        if killed.is_err() {
            // Without a node the producer would try on until its deadline.
            progress.ended.store(true, Ordering::Relaxed);
        }
        let produced =
            producer.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the producer's thread panicked")));
        (produced, killed)
    });
    // The killer first: a node that doesn't come back explains the producer's error.
    let killed = killed?;
    let stats = produced.context("the producer failed")?;
    println!(
        "{lines} lines acknowledged in {:.1} s through {} kills ({} of them while producing); {} batches were there \
         already when sent again, {} reconnects",
        begin.elapsed().as_secs_f64(),
        killed.total,
        killed.while_producing,
        stats.duplicates,
        stats.reconnects
    );
    let misplaced = progress.misplaced.load(Ordering::Relaxed);
    anyhow::ensure!(misplaced == 0, "{misplaced} batches were acknowledged with the offset of other lines");
    // Read what recovery finds, not what the last process remembers.
    node.kill()?;
    let mut node = setup.start().context("restart before reading back")?;
    let begin = Instant::now();
    compare(setup.addr, &args.file, lines)?;
    println!(
        "{lines} lines read back in {:.1} s: each once, in order, equal to the file",
        begin.elapsed().as_secs_f64()
    );
    node.stop()?;
    verify(args, &setup)
}

struct Killed {
    total: u64,
    while_producing: u64,
}

fn kill_again_and_again(
    args: &KillArgs,
    setup: &NodeSetup,
    node: &mut OwnedProcess,
    lines: u64,
    progress: &Progress,
) -> anyhow::Result<Killed> {
    let mut rng = Rng::new(args.seed);
    let mut places: Vec<u64> = (0..args.kills).map(|_| rng.below(lines as usize) as u64).collect();
    places.sort_unstable();
    let mut killed = Killed { total: 0, while_producing: 0 };
    let mut answers = true;
    for place in places {
        let hasty = rng.below(4) == 0;
        if answers && !hasty {
            while progress.acked.load(Ordering::Relaxed) < place && !progress.ended.load(Ordering::Relaxed) {
                node.ensure_running()?;
                std::thread::sleep(LOOK);
            }
        }
        let delay_us = rng.below(if answers { MOST_DELAY_US } else { MOST_UPTIME_US });
        std::thread::sleep(Duration::from_micros(delay_us as u64));
        killed.while_producing += u64::from(!progress.ended.load(Ordering::Relaxed));
        // A node that died of its own accord must not pass as killed.
        node.ensure_running()?;
        node.kill()?;
        killed.total += 1;
        eprintln!(
            "kill {} after {} of {lines} lines{}",
            killed.total,
            progress.acked.load(Ordering::Relaxed),
            if answers { "" } else { ", during its start" }
        );
        *node = setup.spawn()?;
        // One in three is killed again while it starts.
        answers = rng.below(3) != 0;
        if answers {
            setup.wait_until_it_answers(node).context("restart after a kill")?;
        }
    }
    setup.wait_until_it_answers(node).context("restart after the last kill")?;
    Ok(killed)
}

fn client(addr: SocketAddr) -> Client {
    let config = ClientConfig { retry_for: DELIVERY_TIMEOUT, ..ClientConfig::default() };
    Client::new(&[addr.to_string()], config)
}

/// Produces every line; returns when all are acknowledged.
fn produce(addr: SocketAddr, file: &Path, progress: &Arc<Progress>) -> anyhow::Result<ProducerStats> {
    let config = ProducerConfig { delivery_timeout: DELIVERY_TIMEOUT, ..ProducerConfig::default() };
    let mut producer = IdempotentProducer::new(client(addr), TOPIC, config)?;
    let shared = Arc::clone(progress);
    let mut expected = 0i64;
    producer.on_ack(Box::new(move |ack| {
        shared.misplaced.fetch_add(u64::from(ack.base_offset != expected), Ordering::Relaxed);
        expected += i64::from(ack.records);
        shared.acked.fetch_add(u64::from(ack.records), Ordering::Relaxed);
    }));
    let mut lines = Lines::open(file)?;
    while let Some(line) = lines.next_line()? {
        anyhow::ensure!(!progress.ended.load(Ordering::Relaxed), "the node did not come back");
        producer.send(0, 0, None, Some(line), &[])?;
    }
    producer.flush()?;
    Ok(producer.stats())
}

/// Reads the whole partition beside the file.
fn compare(addr: SocketAddr, file: &Path, wanted: u64) -> anyhow::Result<()> {
    let config = ConsumerConfig { max_bytes: 4 << 20, ..ConsumerConfig::default() };
    let mut consumer = Consumer::new(client(addr), TOPIC, 0, StartAt::Earliest, config)?;
    anyhow::ensure!(consumer.position() == 0, "the log begins at offset {}", consumer.position());
    let mut lines = Lines::open(file)?;
    let mut found = 0u64;
    loop {
        let polled = consumer.poll(Duration::ZERO, |record| {
            let line = lines.next_line()?;
            anyhow::ensure!(
                record.offset == found as i64 && record.value == line && line.is_some(),
                "the record at offset {} is not line {} of the file",
                record.offset,
                found + 1
            );
            found += 1;
            anyhow::Ok(())
        })?;
        if polled.records == 0 || consumer.position() >= polled.high_watermark {
            anyhow::ensure!(found == wanted, "{found} records in the log, {wanted} lines acknowledged");
            return Ok(());
        }
    }
}

/// Offline verification by the admin program, when it is there.
fn verify(args: &KillArgs, setup: &NodeSetup) -> anyhow::Result<()> {
    let beside: PathBuf = args.server.with_file_name("pyralog-admin");
    let program = args.admin.clone().unwrap_or(beside);
    if !program.is_file() {
        println!("offline verification skipped: no program {}; name it with --admin", program.display());
        return Ok(());
    }
    let output = Command::new(&program).args(["log", "verify"]).arg(setup.data_dir()).output()?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    anyhow::ensure!(
        output.status.success(),
        "log verify found damage: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    println!("log verify: clean");
    Ok(())
}

/// The lines of a file as bytes, without their ends; one buffer for all.
struct Lines {
    reader: BufReader<File>,
    line: Vec<u8>,
}

impl Lines {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("{}: can't be opened", path.display()))?;
        Ok(Self { reader: BufReader::with_capacity(1 << 20, file), line: Vec::new() })
    }

    fn next_line(&mut self) -> anyhow::Result<Option<&[u8]>> {
        self.line.clear();
        if self.reader.read_until(b'\n', &mut self.line)? == 0 {
            return Ok(None);
        }
        Ok(Some(self.line.strip_suffix(b"\n").unwrap_or(&self.line)))
    }
}

fn count_lines(path: &Path) -> anyhow::Result<u64> {
    let mut lines = Lines::open(path)?;
    let mut count = 0;
    while lines.next_line()?.is_some() {
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_without_their_ends_and_the_last_one_needs_none() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, b"one\n\ntwo\r\n\xff\xfe").unwrap();
        let mut lines = Lines::open(file.path()).unwrap();
        for wanted in [&b"one"[..], b"", b"two\r", b"\xff\xfe"] {
            assert_eq!(lines.next_line().unwrap(), Some(wanted));
        }
        assert_eq!(lines.next_line().unwrap(), None);
        assert_eq!(count_lines(file.path()).unwrap(), 4);
    }
}
