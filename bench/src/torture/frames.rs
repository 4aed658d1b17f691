//! A million frames that are none, while one good connection goes on.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use pyralog_net::message::Request;

use super::connections::reset_on_close;
use super::good;
use super::mutate::Mutator;
use crate::cli::FramesArgs;
use crate::session::{PATIENCE, Session};
use crate::{torture, wire};

/// Frames written to one connection before it is ended.
const MOST_PER_CONNECTION: usize = 32;

#[derive(Default)]
struct Counts {
    sent: u64,
    /// Replies: the server read the frame, judged it and said so.
    answered: u64,
    connections: u64,
    bytes: u64,
}

/// Runs it; an error is a crash, a hang or harm to the good connection.
pub fn run(args: &FramesArgs) -> anyhow::Result<()> {
    let (good_topic, victim) = (torture::fresh_topic("torture-good"), torture::fresh_topic("torture-victim"));
    let mut session = Session::connect(args.addr, Some(0))?;
    let spared = session.create_topic(&good_topic, 1)?;
    let victim_id = session.create_topic(&victim, 1)?;
    let mut mutator = Mutator::new(args.seed, &victim, victim_id, spared)?;
    let stop = AtomicBool::new(false);
    let (counts, good) = std::thread::scope(|scope| {
        let good = scope.spawn(|| good::run(args.addr, &good_topic, &stop));
        let counts = bombard(args, &mut mutator, || good.is_finished());
        stop.store(true, Ordering::Relaxed);
        let good =
            good.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the good connection's thread panicked")));
        (counts, good)
    });
    // The good connection first: its failure explains the other's.
    let good = good.context("harm to the good connection")?;
    let counts = counts?;
    Session::connect(args.addr, None)?.call(&Request::Ping).context("the node no longer serves")?;
    println!(
        "seed {}: {} damaged frames ({} bytes) over {} connections, {} answered; no crash",
        args.seed, counts.sent, counts.bytes, counts.connections, counts.answered
    );
    println!(
        "good connection: {} records produced, read back and equal; produce p50 {:.0} µs, p99 {:.0} µs, max {:.0} µs",
        good.records, good.latency.p50_us, good.latency.p99_us, good.latency.max_us
    );
    Ok(())
}

fn bombard(
    args: &FramesArgs,
    mutator: &mut Mutator,
    good_ended: impl Fn() -> bool,
) -> anyhow::Result<Counts> {
    let begin = Instant::now();
    let mut counts = Counts::default();
    let mut next_line = 100_000;
    let mut buffer = Vec::with_capacity(64 << 10);
    while counts.sent < args.count {
        anyhow::ensure!(!good_ended(), "stopped after {} frames: the good connection failed", counts.sent);
        anyhow::ensure!(
            begin.elapsed() < Duration::from_secs(args.max_seconds),
            "only {} of {} frames in {} s; give --max-seconds",
            counts.sent,
            args.count,
            args.max_seconds
        );
        one_connection(args, mutator, &mut buffer, &mut counts)
            .with_context(|| format!("after {} frames of seed {}", counts.sent, args.seed))?;
        if counts.sent >= next_line {
            eprintln!("{} frames, {} answered", counts.sent, counts.answered);
            next_line += 100_000;
        }
    }
    Ok(counts)
}

/// One connection: most begin with a handshake, all end with a reset after the server had its say.
fn one_connection(
    args: &FramesArgs,
    mutator: &mut Mutator,
    buffer: &mut Vec<u8>,
    counts: &mut Counts,
) -> anyhow::Result<()> {
    let mut socket = if mutator.rng().below(8) == 0 {
        TcpStream::connect_timeout(&args.addr, PATIENCE)?
    } else {
        handshake(args.addr)?
    };
    counts.connections += 1;
    socket.set_read_timeout(Some(PATIENCE))?;
    reset_on_close(&socket)?;
    let frames = (1 + mutator.rng().below(MOST_PER_CONNECTION)).min((args.count - counts.sent) as usize);
    buffer.clear();
    for _ in 0..frames {
        let damaged = mutator.next_frame();
        buffer.extend_from_slice(&damaged.bytes);
        counts.sent += 1;
        if !damaged.framing_intact {
            // Nothing behind it would be read as a frame.
            break;
        }
    }
    counts.bytes += buffer.len() as u64;
    // One in four goes away without listening.
    let listen = mutator.rng().below(4) != 0;
    // The server may close in the middle of it: that is its right.
    if socket.write_all(buffer).is_err() || !listen || socket.shutdown(Shutdown::Write).is_err() {
        return Ok(());
    }
    counts.answered += count_replies(&mut socket)?;
    Ok(())
}

fn handshake(addr: SocketAddr) -> anyhow::Result<TcpStream> {
    Session::connect(addr, None).context("the node refuses good connections")?.into_socket()
}

/// Reads to the end and counts the frames. Silence is a hang of the server and an error.
fn count_replies(socket: &mut TcpStream) -> anyhow::Result<u64> {
    let mut received = Vec::new();
    match socket.read_to_end(&mut received) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => return Err(error).context("the server neither answered nor closed"),
    }
    let (mut rest, mut replies) = (received.as_slice(), 0);
    while let Some((_, behind)) = wire::frame_len(rest).and_then(|len| rest.split_at_checked(len)) {
        rest = behind;
        replies += 1;
    }
    Ok(replies)
}
