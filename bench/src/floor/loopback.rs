//! Round trips over TCP on the loopback, and the client that measures them and the floor server.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::host;
use crate::latency::Latencies;

/// How long one reply may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What crosses the socket for each request.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// The request, the same each time.
    pub request: Vec<u8>,
    /// Bytes of its reply.
    pub reply_bytes: usize,
}

/// How a side waits for bytes, and where.
#[derive(Clone, Copy, Debug)]
pub struct Side {
    /// Its CPU.
    pub cpu: Option<usize>,
    /// It asks again and again instead of sleeping until they come.
    pub spin: bool,
}

/// Round trips between two threads, one at a time, for this long after a warm-up that is not measured.
///
/// # Errors
/// When the loopback or a CPU is refused.
pub fn loopback_latencies(
    exchange: &Exchange,
    client: Side,
    server: Side,
    warmup: Duration,
    time: Duration,
) -> anyhow::Result<Latencies> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no loopback port")?;
    // Connected before anybody waits for it: a refused connection must not leave the other side waiting.
    let socket = TcpStream::connect_timeout(&listener.local_addr()?, PATIENCE)?;
    std::thread::scope(|scope| {
        let echo = scope.spawn(move || echo(listener, exchange, server));
        // The thread of its own is pinned; the caller's stays as it is.
        let measured = scope.spawn(move || round_trips(socket, exchange, client, warmup, time));
        let measured = measured.join().map_err(|_| anyhow::anyhow!("the client's thread panicked"))?;
        let echoed = echo.join().map_err(|_| anyhow::anyhow!("the echo server's thread panicked"))?;
        // If the server has failed, the client has, too, for that very reason.
        echoed.and(measured)
    })
}

/// Sends the request, takes the whole reply, and again, on a connected socket.
///
/// # Errors
/// When the server closes the connection or does not answer.
pub fn round_trips(
    mut socket: TcpStream,
    exchange: &Exchange,
    side: Side,
    warmup: Duration,
    time: Duration,
) -> anyhow::Result<Latencies> {
    prepare(&socket, side)?;
    let mut latencies = Latencies::new()?;
    let mut reply = vec![0; exchange.reply_bytes];
    let begin = Instant::now();
    loop {
        let sent = Instant::now();
        send(&mut socket, &exchange.request)?;
        anyhow::ensure!(receive(&mut socket, &mut reply, side.spin)?, "the server closed the connection");
        let elapsed = begin.elapsed();
        if elapsed > warmup {
            latencies.record_ns(sent.elapsed().as_nanos() as u64);
        }
        if elapsed > warmup + time {
            return Ok(latencies);
        }
    }
}

/// Answers the one client until it goes.
fn echo(listener: TcpListener, exchange: &Exchange, side: Side) -> anyhow::Result<()> {
    let (mut socket, _) = listener.accept()?;
    prepare(&socket, side)?;
    let mut request = vec![0; exchange.request.len()];
    let reply = vec![0; exchange.reply_bytes];
    while receive(&mut socket, &mut request, side.spin)? {
        send(&mut socket, &reply)?;
    }
    Ok(())
}

fn prepare(socket: &TcpStream, side: Side) -> anyhow::Result<()> {
    if let Some(cpu) = side.cpu {
        host::pin_to_cpu(cpu)?;
    }
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_nonblocking(side.spin)?;
    Ok(())
}

fn send(socket: &mut TcpStream, bytes: &[u8]) -> anyhow::Result<()> {
    // One request or reply is under way, so a socket that does not block has room for all of it.
    socket.write_all(bytes).context("sending failed")
}

/// Fills `bytes`; `false` when the other side is gone before the first.
fn receive(socket: &mut TcpStream, bytes: &mut [u8], spin: bool) -> anyhow::Result<bool> {
    let mut filled = 0;
    let mut begin = None;
    while let Some(room) = bytes.get_mut(filled..).filter(|room| !room.is_empty()) {
        match socket.read(room) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => anyhow::bail!("the connection was closed in the middle of a message"),
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock && spin => {
                let begin = begin.get_or_insert_with(Instant::now);
                anyhow::ensure!(begin.elapsed() < PATIENCE, "no answer for {PATIENCE:?}");
                std::hint::spin_loop();
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("receiving failed"),
        }
    }
    Ok(true)
}
