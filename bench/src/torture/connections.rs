//! Connections that come and go in every way but the proper one.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use pyralog_net::message::Request;

use crate::cli::ConnectionsArgs;
use crate::session::{PATIENCE, Session, hello_frame};
use crate::{host, torture};

/// How long the server may take to notice that a wave is gone.
const SETTLE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(10);
/// Descriptors that may differ without being a leak: files that the node opens meanwhile for its own purposes.
const DESCRIPTOR_SLACK: usize = 4;

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Says nothing, then closes.
    Idle,
    /// Half a handshake, then closes.
    HalfFrame,
    /// Half a handshake, then a reset.
    HalfFrameReset,
    /// Reset without a word.
    Reset,
    /// Closes its sending side without a word and waits for the server's end.
    HalfClose,
    /// A handshake and a ping, then closes only its sending side and waits for the server's end.
    ServedHalfClose,
    /// A handshake and half a request, then a reset.
    ServedReset,
    /// A handshake, then silence, then closes.
    ServedIdle,
}

impl Fate {
    const ALL: [Self; 8] = [
        Self::Idle,
        Self::HalfFrame,
        Self::HalfFrameReset,
        Self::Reset,
        Self::HalfClose,
        Self::ServedHalfClose,
        Self::ServedReset,
        Self::ServedIdle,
    ];

    fn open(self, addr: SocketAddr) -> anyhow::Result<TcpStream> {
        match self {
            Self::ServedHalfClose => {
                let mut session = Session::connect(addr, None)?;
                session.call(&Request::Ping)?;
                session.into_socket()
            }
            Self::ServedIdle => Session::connect(addr, None)?.into_socket(),
            Self::ServedReset => {
                let mut socket = Session::connect(addr, None)?.into_socket()?;
                let mut ping = Vec::new();
                Request::Ping.encode(9, &mut ping)?;
                socket.write_all(ping.get(..ping.len() / 2).unwrap_or_default())?;
                Ok(socket)
            }
            Self::Idle | Self::Reset | Self::HalfClose | Self::HalfFrame | Self::HalfFrameReset => {
                let mut socket = TcpStream::connect_timeout(&addr, PATIENCE)?;
                if matches!(self, Self::HalfFrame | Self::HalfFrameReset) {
                    let mut hello = Vec::new();
                    hello_frame().encode(0, &mut hello)?;
                    socket.write_all(hello.get(..hello.len() / 2).unwrap_or_default())?;
                }
                Ok(socket)
            }
        }
    }

    /// Ends it; returns whether the server did its part.
    fn end(self, mut socket: TcpStream) -> anyhow::Result<bool> {
        match self {
            Self::Reset | Self::HalfFrameReset | Self::ServedReset => {
                reset_on_close(&socket)?;
                Ok(true)
            }
            Self::HalfClose | Self::ServedHalfClose => {
                socket.shutdown(Shutdown::Write)?;
                socket.set_read_timeout(Some(SETTLE))?;
                // The server must end it too: end of file or a reset, not silence.
                let ended = match socket.read(&mut [0; 64]) {
                    Ok(0) => true,
                    Ok(_) => false,
                    Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
                };
                Ok(ended)
            }
            Self::Idle | Self::HalfFrame | Self::ServedIdle => Ok(true),
        }
    }
}

/// Makes the close of this socket a reset.
pub(super) fn reset_on_close(socket: &TcpStream) -> anyhow::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the option's value is a readable linger of the given size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    };
    if result != 0 { Err(std::io::Error::last_os_error()).context("can't set SO_LINGER") } else { Ok(()) }
}

/// Runs the waves.
pub fn run(args: &ConnectionsArgs) -> anyhow::Result<()> {
    let own_limit = host::raise_nofile_limit()?;
    anyhow::ensure!(
        args.wave + 100 < own_limit,
        "a wave of {} needs more descriptors than this process may have ({own_limit}); raise ulimit -n or lower --wave",
        args.wave
    );
    // A connection before the first look, so that what the node opens lazily is open.
    Session::connect(args.addr, None)?.call(&Request::Ping)?;
    let before = settled_descriptors(args.pid, 0)?;
    let resident_before = host::resident_bytes(args.pid)?;
    println!("before: {:.1} MiB resident, {before} descriptors", torture::mib(resident_before));
    let (mut opened, mut after_first, mut unanswered) = (0, None, 0u64);
    while opened < args.count {
        let wave = args.wave.min(args.count - opened);
        let mut open = Vec::with_capacity(wave as usize);
        for fate in Fate::ALL.iter().copied().cycle().take(wave as usize) {
            let socket = fate.open(args.addr).with_context(|| {
                format!(
                    "connection {} of a wave of {wave} ({fate:?}); is max_connections above it?",
                    open.len() + 1
                )
            })?;
            open.push((fate, socket));
        }
        let peak = host::open_descriptors(args.pid)?;
        for (fate, socket) in open {
            unanswered += u64::from(!fate.end(socket)?);
        }
        opened += wave;
        let descriptors = settled_descriptors(args.pid, before)?;
        let resident = host::resident_bytes(args.pid)?;
        println!(
            "{opened:6} connections: {:.1} MiB resident, {descriptors} descriptors, {peak} at the peak",
            torture::mib(resident)
        );
        after_first.get_or_insert(resident);
        anyhow::ensure!(
            descriptors <= before + DESCRIPTOR_SLACK,
            "descriptors are not flat: {before} before, {descriptors} after {opened} connections"
        );
    }
    anyhow::ensure!(unanswered == 0, "the server left {unanswered} half-closed connections open");
    Session::connect(args.addr, None)?.call(&Request::Ping).context("the node no longer serves")?;
    let (first, last) = (after_first.unwrap_or(resident_before), host::resident_bytes(args.pid)?);
    anyhow::ensure!(
        last <= first + (args.slack_mib << 20),
        "memory is not flat: {:.1} MiB after the first wave, {:.1} MiB at the end",
        torture::mib(first),
        torture::mib(last)
    );
    println!(
        "flat: {} connections, memory {:+.1} MiB since the first wave",
        opened,
        torture::mib(last) - torture::mib(first)
    );
    Ok(())
}

/// The server's descriptors once they are down to `wanted`, or what they are when the time is up.
fn settled_descriptors(pid: u32, wanted: usize) -> anyhow::Result<usize> {
    let begin = Instant::now();
    let mut last = host::open_descriptors(pid)?;
    let mut same = 0;
    // With nothing to compare with, wait until the number stays what it is for a while.
    while begin.elapsed() < SETTLE && last > wanted && (wanted > 0 || same < 20) {
        std::thread::sleep(PAUSE);
        let now = host::open_descriptors(pid)?;
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    Ok(last)
}
