//! The load generator's loop: one thread drives a few connections over plain sockets.
//!
//! Nothing is allocated per request. A thread with a single connection in a closed loop blocks in `recv`, which
//! is one system call per wake-up; otherwise it waits in `ppoll`.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::Context;

use crate::host;
use crate::latency::Latencies;
use crate::live::{Board, Tap};
use crate::pace::{Clock, Lane, Pace, SystemClock};
use crate::protocol::Protocol;

/// How long replies are waited for after the last request.
const LAST_REPLIES: Duration = Duration::from_secs(30);
const RECEIVE_BYTES: usize = 256 << 10;
/// A send goes out when this much is ready, so that a long burst doesn't wait for its end.
const SEND_BYTES: usize = 64 << 10;

/// Shape of a run.
#[derive(Clone, Copy, Debug)]
pub struct LoadShape {
    /// Requests under way per connection, at most.
    pub outstanding: usize,
    /// Requests a second over all connections, evenly spread; `None` = closed loop.
    pub rate: Option<f64>,
    /// Not measured, at the beginning.
    pub warmup: Duration,
    /// Measured.
    pub measured: Duration,
}

/// What a run measured.
pub struct LoadResult {
    /// Latencies of the requests whose latency began in the measured time.
    pub latencies: Latencies,
    /// Replies that came in the measured time.
    pub acks: u64,
    /// Every reply, warm-up included.
    pub replies: u64,
    /// The measured time, seconds.
    pub seconds: f64,
}

impl LoadResult {
    /// Replies a second over the measured time.
    pub fn acks_per_second(&self) -> f64 {
        self.acks as f64 / self.seconds
    }
}

/// A connection with what it speaks. The handshake is done.
pub struct LoadConnection {
    /// The socket, blocking.
    pub socket: TcpStream,
    /// Requests and replies.
    pub protocol: Box<dyn Protocol>,
}

struct Driven {
    socket: TcpStream,
    protocol: Box<dyn Protocol>,
    lane: Lane,
    send: Vec<u8>,
    sent: usize,
    receive: Box<[u8]>,
    start: usize,
    end: usize,
}

/// Runs the load over `connections`, spread over `threads` threads (on `cpu`, if given), and merges what they
/// measured.
pub fn run(
    connections: Vec<LoadConnection>,
    threads: usize,
    cpu: Option<usize>,
    shape: LoadShape,
) -> anyhow::Result<LoadResult> {
    run_watched(connections, threads, cpu, shape, None)
}

/// The same while `board`, if there is one, is told of every reply.
pub fn run_watched(
    connections: Vec<LoadConnection>,
    threads: usize,
    cpu: Option<usize>,
    shape: LoadShape,
    board: Option<&Board>,
) -> anyhow::Result<LoadResult> {
    let total = connections.len();
    anyhow::ensure!(total > 0, "no connections");
    let threads = threads.clamp(1, total);
    let clock = SystemClock::start();
    // A little ahead, so that every thread is up when the first request is due.
    let begin_ns = 20_000_000;
    let mut groups: Vec<Vec<Driven>> = (0..threads).map(|_| Vec::new()).collect();
    for (index, connection) in connections.into_iter().enumerate() {
        let pace = match shape.rate {
            None => Pace::Closed,
            Some(rate) => {
                anyhow::ensure!(
                    rate.is_finite() && rate > 0.0,
                    "a rate of {rate} a second; give one above 0"
                );
                let interval = 1e9 * total as f64 / rate;
                let first_ns = begin_ns + (interval * index as f64 / total as f64) as u64;
                Pace::Open { first_ns, interval_ns: (interval as u64).max(1) }
            }
        };
        let group = groups.get_mut(index % threads).context("no such thread")?;
        group.push(Driven::new(connection, Lane::new(pace, shape.outstanding)));
    }
    let warm_ns = begin_ns + shape.warmup.as_nanos() as u64;
    let window = Window { begin_ns, warm_ns, end_ns: warm_ns + shape.measured.as_nanos() as u64 };
    std::thread::scope(|scope| {
        let running: Vec<_> = groups
            .into_iter()
            .map(|group| scope.spawn(move || drive_watched(group, cpu, clock, window, board)))
            .collect();
        let mut merged = LoadResult {
            latencies: Latencies::new()?,
            acks: 0,
            replies: 0,
            seconds: shape.measured.as_secs_f64(),
        };
        for thread in running {
            let part = thread.join().map_err(|_| anyhow::anyhow!("a load thread panicked"))??;
            merged.latencies.merge(&part.latencies)?;
            merged.acks += part.acks;
            merged.replies += part.replies;
        }
        Ok(merged)
    })
}

#[derive(Clone, Copy)]
struct Window {
    begin_ns: u64,
    warm_ns: u64,
    end_ns: u64,
}

struct Measured {
    latencies: Latencies,
    acks: u64,
    replies: u64,
    window: Window,
    tap: Tap,
}

impl Driven {
    fn new(connection: LoadConnection, lane: Lane) -> Self {
        let capacity = SEND_BYTES + connection.protocol.request_bytes();
        Self {
            socket: connection.socket,
            protocol: connection.protocol,
            lane,
            send: Vec::with_capacity(capacity),
            sent: 0,
            receive: vec![0; RECEIVE_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    /// Sends what is due before `end_ns`; in an open loop also when that is over, as leaving out what a stall
    /// held up would hide the stall. Returns whether some of it waits for room in the socket.
    fn send_due(&mut self, now_ns: u64, end_ns: u64) -> anyhow::Result<bool> {
        loop {
            while self.send.len() < SEND_BYTES
                && (now_ns < end_ns || self.lane.is_open_loop())
                && self.lane.due_ns().is_some_and(|due| due < end_ns)
                && self.protocol.may_send()
                && let Some(correlation) = self.lane.begin(now_ns)
            {
                self.protocol.append_request(&mut self.send, correlation)?;
            }
            let Some(rest) = self.send.get(self.sent..).filter(|rest| !rest.is_empty()) else {
                return Ok(false);
            };
            match self.socket.write(rest) {
                Ok(0) => anyhow::bail!("the server took no bytes"),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("sending failed"),
            }
            if self.sent == self.send.len() {
                self.send.clear();
                self.sent = 0;
            }
        }
    }

    /// Takes what has come; without anything there and with a blocking socket, waits for it.
    fn receive_replies(&mut self, clock: SystemClock, measured: &mut Measured) -> anyhow::Result<()> {
        if self.start > 0 {
            self.receive.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let room = self.receive.get_mut(self.end..).unwrap_or_default();
        match self.socket.read(room) {
            Ok(0) => anyhow::bail!("the server closed the connection"),
            Ok(count) => self.end += count,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(());
            }
            Err(error) => return Err(error).context("receiving failed"),
        }
        let now_ns = clock.now_ns();
        let pending = self.receive.get(self.start..self.end).unwrap_or_default();
        let lane = &mut self.lane;
        let taken = self.protocol.take_replies(pending, &mut self.send, &mut |correlation| {
            let (begin_ns, latency_ns) = lane.end(correlation, now_ns)?;
            measured.reply(begin_ns, latency_ns, now_ns);
            Ok(())
        })?;
        anyhow::ensure!(
            taken > 0 || pending.len() < RECEIVE_BYTES,
            "a reply of more than {RECEIVE_BYTES} bytes"
        );
        self.start += taken;
        Ok(())
    }

    /// Whether a request is due before `end_ns` that only the protocol holds back.
    fn is_held_back(&self, end_ns: u64) -> bool {
        !self.protocol.may_send() && self.lane.due_ns().is_some_and(|due| due < end_ns)
    }
}

impl Measured {
    fn reply(&mut self, begin_ns: u64, latency_ns: u64, now_ns: u64) {
        self.replies += 1;
        self.tap.reply(latency_ns, now_ns);
        if (self.window.warm_ns..self.window.end_ns).contains(&now_ns) {
            self.acks += 1;
        }
        if begin_ns >= self.window.warm_ns {
            self.latencies.record_ns(latency_ns);
        }
    }
}

fn drive_watched(
    group: Vec<Driven>,
    cpu: Option<usize>,
    clock: SystemClock,
    window: Window,
    board: Option<&Board>,
) -> anyhow::Result<Measured> {
    let tap = board.map_or(Ok(Tap::off()), |board| board.tap(clock.now_ns(), window.begin_ns))?;
    drive(group, cpu, clock, window, tap).inspect_err(|_| board.iter().for_each(|board| board.error()))
}

fn drive(
    mut group: Vec<Driven>,
    cpu: Option<usize>,
    clock: SystemClock,
    window: Window,
    tap: Tap,
) -> anyhow::Result<Measured> {
    if let Some(cpu) = cpu {
        host::pin_to_cpu(cpu)?;
    }
    host::tighten_timer_slack();
    let mut measured = Measured { latencies: Latencies::new()?, acks: 0, replies: 0, window, tap };
    let give_up_ns = window.end_ns + LAST_REPLIES.as_nanos() as u64;
    std::thread::sleep(Duration::from_nanos(window.begin_ns.saturating_sub(clock.now_ns())));
    let closed = group.iter().all(|driven| !driven.lane.is_open_loop());
    if closed && let [driven] = group.as_mut_slice() {
        driven.socket.set_read_timeout(Some(LAST_REPLIES))?;
        loop {
            driven.send_due(clock.now_ns(), window.end_ns)?;
            if driven.lane.outstanding() == 0
                && (clock.now_ns() >= window.end_ns || !driven.is_held_back(window.end_ns))
            {
                return Ok(measured);
            }
            driven.receive_replies(clock, &mut measured)?;
            anyhow::ensure!(clock.now_ns() < give_up_ns, "no reply for {LAST_REPLIES:?}");
        }
    }
    for driven in &group {
        driven.socket.set_nonblocking(true)?;
    }
    let mut polled: Vec<libc::pollfd> = group
        .iter()
        .map(|driven| libc::pollfd { fd: driven.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    loop {
        let now_ns = clock.now_ns();
        let mut wake_ns = give_up_ns;
        let (mut under_way, mut held_back) = (0, false);
        for (driven, entry) in group.iter_mut().zip(&mut polled) {
            let blocked = driven.send_due(now_ns, window.end_ns)?;
            entry.events = if blocked { libc::POLLIN | libc::POLLOUT } else { libc::POLLIN };
            under_way += driven.lane.outstanding();
            if driven.is_held_back(window.end_ns) {
                held_back = true;
            } else if let Some(due_ns) =
                driven.lane.due_ns().filter(|&due_ns| due_ns < window.end_ns && !blocked)
            {
                wake_ns = wake_ns.min(due_ns);
            }
        }
        let now_ns = clock.now_ns();
        let is_idle = wake_ns == give_up_ns && !held_back;
        if under_way == 0 && (is_idle || (closed && now_ns >= window.end_ns)) {
            return Ok(measured);
        }
        anyhow::ensure!(now_ns < give_up_ns, "{under_way} requests without a reply for {LAST_REPLIES:?}");
        wait(&mut polled, wake_ns.saturating_sub(now_ns))?;
        for (driven, entry) in group.iter_mut().zip(&polled) {
            if entry.revents & !libc::POLLOUT != 0 {
                driven.receive_replies(clock, &mut measured)?;
            }
        }
    }
}

fn wait(polled: &mut [libc::pollfd], timeout_ns: u64) -> anyhow::Result<()> {
    let timeout = libc::timespec {
        tv_sec: (timeout_ns / 1_000_000_000) as libc::time_t,
        tv_nsec: (timeout_ns % 1_000_000_000) as libc::c_long,
    };
    // SAFETY: the array and the timeout are valid for the call; no signal mask is given.
    let ready =
        unsafe { libc::ppoll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, &timeout, std::ptr::null()) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error).context("ppoll failed");
        }
        for entry in polled {
            entry.revents = 0;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;
    use crate::protocol::Answered;

    /// Requests and replies are 8 bytes; a request needs the credit that the server sends some time after the last reply.
    struct Credited {
        credits: u64,
    }

    const CREDIT: u64 = u64::MAX;

    impl Protocol for Credited {
        fn request_bytes(&self) -> usize {
            8
        }

        fn may_send(&self) -> bool {
            self.credits > 0
        }

        fn append_request(&mut self, out: &mut Vec<u8>, number: u64) -> anyhow::Result<()> {
            assert!(self.credits > 0, "sent without a credit");
            self.credits -= 1;
            out.extend_from_slice(&number.to_be_bytes());
            Ok(())
        }

        fn take_replies(
            &mut self,
            received: &[u8],
            _out: &mut Vec<u8>,
            answered: Answered<'_>,
        ) -> anyhow::Result<usize> {
            let words = received.chunks_exact(8);
            let taken = received.len() - words.remainder().len();
            for word in words {
                match u64::from_be_bytes(*word.first_chunk().unwrap()) {
                    CREDIT => self.credits += 1,
                    number => answered(number)?,
                }
            }
            Ok(taken)
        }
    }

    /// Answers each request, then gives its credit back in a packet of its own, until the connection ends.
    fn serve(mut socket: TcpStream) {
        let mut request = [0; 8];
        socket.set_nodelay(true).unwrap();
        while socket.read_exact(&mut request).is_ok() {
            if socket.write_all(&request).and_then(|()| socket.write_all(&CREDIT.to_be_bytes())).is_err() {
                return;
            }
        }
    }

    fn run_credited(connections: usize, outstanding: usize, rate: Option<f64>) -> LoadResult {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let connect = |_| {
            let socket = TcpStream::connect(addr).unwrap();
            let served = listener.accept().unwrap().0;
            std::thread::spawn(move || serve(served));
            LoadConnection { socket, protocol: Box::new(Credited { credits: 1 }) }
        };
        let connections = (0..connections).map(connect).collect();
        let measured = Duration::from_millis(200);
        run(connections, 1, None, LoadShape { outstanding, rate, warmup: Duration::ZERO, measured }).unwrap()
    }

    #[test]
    fn a_protocol_may_hold_requests_back() {
        // One connection blocks in `recv`, several wait in `ppoll`; there is room for more requests than credits.
        for connections in [1, 3] {
            let result = run_credited(connections, 4, None);
            assert!(result.replies > connections as u64, "{} replies", result.replies);
            assert_eq!(result.latencies.count(), result.replies);
        }
    }

    #[test]
    fn an_open_loop_sends_all_that_is_due_though_it_was_held_back() {
        for connections in [1, 3] {
            // 200 ms at 500 requests a second.
            assert_eq!(run_credited(connections, 4, Some(500.0)).replies, 100, "{connections} connections");
        }
    }
}
