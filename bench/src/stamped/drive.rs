//! One thread that sends stamped requests at fixed times over many connections to many partitions.
//!
//! It waits in `epoll`, so that a thousand connections that say nothing cost nothing: what the client does per
//! connection must not be taken for the server's doing.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::Context;
use pyralog_core::GroupId;
use pyralog_net::FrameHeader;
use pyralog_net::message::TopicMetadata;

use super::{MonotonicClock, StampedFrame, Window};
use crate::host;
use crate::latency::Latencies;
use crate::live::Tap;
use crate::pace::{Clock, Lane, Pace};
use crate::produce::{BatchShape, check_produce_reply};
use crate::session::Session;

const LAST_REPLIES_NS: u64 = 30_000_000_000;
/// Replies to produces are small; a connection that sends more than this at once is read again.
const RECEIVE_BYTES: usize = 16 << 10;
const EVENTS: usize = 256;

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub struct StampedLoad {
    /// The number of the run, in every record.
    pub run: u64,
    /// Requests a second over all connections.
    pub rate: f64,
    /// Requests under way over all connections, at most.
    pub outstanding: usize,
    /// What each request carries.
    pub batch: BatchShape,
    /// CPU of the thread.
    pub cpu: Option<usize>,
}

/// A connection with the partitions that it writes to, in turns.
pub struct StampedConnection {
    socket: TcpStream,
    topic: u32,
    partitions: Box<[u32]>,
    next: usize,
    send: Vec<u8>,
    sent: usize,
    received: Box<[u8]>,
    filled: usize,
    waits_for_room: bool,
}

/// What came of it.
pub struct Driven {
    /// From the intended send time to the acknowledgement, of requests that were due in the measured time.
    pub acks: Latencies,
    /// Records acknowledged, warm-up included.
    pub records: u64,
}

/// Connections to the nodes and shards that lead the topic's partitions, spread evenly; each one writes to all
/// partitions of its shard in turns, beginning with another one.
///
/// # Errors
/// When a partition has no leader, or when there are fewer connections than shards that lead partitions.
pub fn connect(addr: SocketAddr, topic: &str, connections: usize) -> anyhow::Result<Vec<StampedConnection>> {
    let (topic, nodes) = Session::connect(addr, None)?.topic(topic)?;
    let places = shards_of(&topic);
    anyhow::ensure!(
        connections >= places.len(),
        "{connections} connection(s) for partitions of {} shards; give --connections {} or more",
        places.len(),
        places.len()
    );
    let open = |(number, ShardPartitions { leader, shard, partitions }): (usize, &ShardPartitions)| {
        let node = nodes.iter().find(|node| node.id == *leader).with_context(|| {
            format!("a partition of {} has no leader at the moment; try again", topic.name)
        })?;
        let address = node.address.parse().with_context(|| format!("the address {}", node.address))?;
        let socket = Session::connect(address, Some(*shard))?.into_socket()?;
        StampedConnection::new(socket, topic.id, partitions, number / places.len())
    };
    places.iter().cycle().take(connections).enumerate().map(open).collect()
}

/// The partitions of a topic that one shard leads.
struct ShardPartitions {
    leader: u32,
    shard: u16,
    partitions: Vec<u32>,
}

fn shards_of(topic: &TopicMetadata) -> Vec<ShardPartitions> {
    let mut shards: Vec<ShardPartitions> = Vec::new();
    for (partition, at) in (0u32..).zip(&topic.partitions) {
        match shards.iter_mut().find(|known| (known.leader, known.shard) == (at.leader, at.shard)) {
            Some(known) => known.partitions.push(partition),
            None => {
                shards.push(ShardPartitions {
                    leader: at.leader,
                    shard: at.shard,
                    partitions: vec![partition],
                });
            }
        }
    }
    shards
}

/// Sends what is due in `window` and awaits every reply, on the calling thread.
///
/// # Errors
/// When a reply is an error, less durable than asked for, or does not come.
pub fn run(
    connections: Vec<StampedConnection>,
    load: &StampedLoad,
    window: Window,
    tap: Tap,
) -> anyhow::Result<Driven> {
    if let Some(cpu) = load.cpu {
        host::pin_to_cpu(cpu)?;
    }
    host::tighten_timer_slack();
    let poll = Epoll::new(&connections)?;
    let pace = Pace::Open { first_ns: window.begin_ns, interval_ns: ((1e9 / load.rate) as u64).max(1) };
    let mut driver = Driver {
        connections,
        frame: StampedFrame::new(load.run, load.batch)?,
        lane: Lane::new(pace, load.outstanding),
        window,
        tap,
        records_per_request: load.batch.records as u64,
        driven: Driven { acks: Latencies::new()?, records: 0 },
        unsent: Vec::with_capacity(EVENTS),
        poll,
    };
    driver.drive()?;
    Ok(driver.driven)
}

struct Driver {
    connections: Vec<StampedConnection>,
    frame: StampedFrame,
    /// One for all connections: correlation ids are told apart over all of them.
    lane: Lane,
    window: Window,
    tap: Tap,
    records_per_request: u64,
    driven: Driven,
    /// Connections with something new to send.
    unsent: Vec<usize>,
    poll: Epoll,
}

impl Driver {
    fn drive(&mut self) -> anyhow::Result<()> {
        let give_up_ns = self.window.end_ns + LAST_REPLIES_NS;
        let mut ready = Vec::with_capacity(EVENTS);
        loop {
            self.send_due(MonotonicClock.now_ns())?;
            let due_ns = self.lane.due_ns().filter(|due_ns| *due_ns < self.window.end_ns);
            let now_ns = MonotonicClock.now_ns();
            let under_way = self.lane.outstanding();
            if under_way == 0 && due_ns.is_none() {
                return Ok(());
            }
            anyhow::ensure!(now_ns < give_up_ns, "{under_way} requests without a reply for 30 s");
            self.poll.wait(due_ns.unwrap_or(give_up_ns).saturating_sub(now_ns), &mut ready)?;
            for index in ready.drain(..) {
                self.receive(index)?;
                self.flush(index)?;
            }
        }
    }

    /// Sends everything that is due, late or not: leaving out what a stall held up would hide the stall.
    fn send_due(&mut self, now_ns: u64) -> anyhow::Result<()> {
        let count = self.connections.len() as u64;
        while let Some(due_ns) = self.lane.due_ns().filter(|due_ns| *due_ns < self.window.end_ns)
            && let Some(correlation) = self.lane.begin(now_ns)
        {
            let index = (correlation % count) as usize;
            let connection = self.connections.get_mut(index).context("no such connection")?;
            let partitions = &connection.partitions;
            let partition = partitions.get(connection.next % partitions.len()).context("no partition")?;
            let group = GroupId::new(connection.topic, *partition);
            connection.next += 1;
            self.frame.append_to(&mut connection.send, correlation, group, due_ns)?;
            self.unsent.push(index);
            // A long burst does not wait for its end.
            if self.unsent.len() == EVENTS {
                self.flush_unsent()?;
            }
        }
        self.flush_unsent()
    }

    fn flush_unsent(&mut self) -> anyhow::Result<()> {
        let unsent = std::mem::take(&mut self.unsent);
        let flushed = unsent.iter().try_for_each(|index| self.flush(*index));
        self.unsent = unsent;
        self.unsent.clear();
        flushed
    }

    fn flush(&mut self, index: usize) -> anyhow::Result<()> {
        let connection = self.connections.get_mut(index).context("no such connection")?;
        let blocked = connection.flush()?;
        if blocked != connection.waits_for_room {
            connection.waits_for_room = blocked;
            self.poll.change(connection.socket.as_raw_fd(), index, blocked)?;
        }
        Ok(())
    }

    fn receive(&mut self, index: usize) -> anyhow::Result<()> {
        let connection = self.connections.get_mut(index).context("no such connection")?;
        if !connection.fill()? {
            return Ok(());
        }
        let now_ns = MonotonicClock.now_ns();
        let mut taken = 0;
        while let Some(frame) = whole_frame(connection.received.get(taken..connection.filled))? {
            check_produce_reply(frame)?;
            let header = FrameHeader::decode_reply(frame)?.context("a reply without a header")?;
            let (begin_ns, latency_ns) = self.lane.end(header.correlation_id, now_ns)?;
            self.driven.records += self.records_per_request;
            self.tap.reply(latency_ns, now_ns);
            if begin_ns >= self.window.warm_ns {
                self.driven.acks.record_ns(latency_ns);
            }
            taken += frame.len();
        }
        connection.received.copy_within(taken..connection.filled, 0);
        connection.filled -= taken;
        Ok(())
    }
}

/// The whole frame at the front, if there is one.
fn whole_frame(bytes: Option<&[u8]>) -> anyhow::Result<Option<&[u8]>> {
    let bytes = bytes.unwrap_or_default();
    let Some(header) = FrameHeader::decode_reply(bytes)? else { return Ok(None) };
    let len = header.frame_bytes();
    anyhow::ensure!(len <= RECEIVE_BYTES, "a reply of {len} bytes to a produce");
    Ok(bytes.get(..len))
}

impl StampedConnection {
    /// On a socket after its handshake; the first request goes to the partition of number `first`.
    fn new(socket: TcpStream, topic: u32, partitions: &[u32], first: usize) -> anyhow::Result<Self> {
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            topic,
            partitions: partitions.into(),
            next: first,
            send: Vec::with_capacity(16 << 10),
            sent: 0,
            received: vec![0; RECEIVE_BYTES].into_boxed_slice(),
            filled: 0,
            waits_for_room: false,
        })
    }

    /// Returns whether some of it waits for room in the socket.
    fn flush(&mut self) -> anyhow::Result<bool> {
        while let Some(rest) = self.send.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match self.socket.write(rest) {
                Ok(0) => anyhow::bail!("the server took no bytes"),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("sending failed"),
            }
        }
        self.send.clear();
        self.sent = 0;
        Ok(false)
    }

    /// Takes what has come; `false` when nothing has.
    fn fill(&mut self) -> anyhow::Result<bool> {
        let room = self.received.get_mut(self.filled..).unwrap_or_default();
        match self.socket.read(room) {
            Ok(0) => anyhow::bail!("the server closed the connection"),
            Ok(count) => {
                self.filled += count;
                Ok(true)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
            Err(error) => Err(error).context("receiving failed"),
        }
    }
}

struct Epoll(OwnedFd);

impl Epoll {
    fn new(connections: &[StampedConnection]) -> anyhow::Result<Self> {
        // SAFETY: no preconditions; the result is checked before it is owned.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error()).context("can't create an epoll");
        }
        // SAFETY: just opened and owned by nobody else.
        let poll = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        for (index, connection) in connections.iter().enumerate() {
            poll.control(libc::EPOLL_CTL_ADD, connection.socket.as_raw_fd(), index, false)?;
        }
        Ok(poll)
    }

    fn change(&self, fd: i32, index: usize, wants_room: bool) -> anyhow::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, index, wants_room)
    }

    fn control(&self, how: i32, fd: i32, index: usize, wants_room: bool) -> anyhow::Result<()> {
        let events = libc::EPOLLIN | if wants_room { libc::EPOLLOUT } else { 0 };
        let mut event = libc::epoll_event { events: events as u32, u64: index as u64 };
        // SAFETY: both descriptors are open and `event` is valid for the call.
        match unsafe { libc::epoll_ctl(self.0.as_raw_fd(), how, fd, &mut event) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()).context("epoll_ctl failed"),
        }
    }

    /// Waits until a connection is ready or the time is over. `epoll_wait` alone counts in milliseconds, which is
    /// longer than what is measured here.
    fn wait(&self, timeout_ns: u64, ready: &mut Vec<usize>) -> anyhow::Result<()> {
        let timeout = libc::timespec {
            tv_sec: (timeout_ns / 1_000_000_000) as libc::time_t,
            tv_nsec: (timeout_ns % 1_000_000_000) as libc::c_long,
        };
        let mut polled = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the one entry and the timeout are valid for the call; no signal mask is given.
        let woken = unsafe { libc::ppoll(&mut polled, 1, &timeout, std::ptr::null()) };
        if woken < 0 {
            let error = std::io::Error::last_os_error();
            return if error.kind() == ErrorKind::Interrupted {
                Ok(())
            } else {
                Err(error).context("ppoll failed")
            };
        }
        if woken == 0 {
            return Ok(());
        }
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS];
        // SAFETY: the array has room for as many events as the call is told.
        let count = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), EVENTS as i32, 0) };
        if count < 0 {
            return Err(std::io::Error::last_os_error()).context("epoll_wait failed");
        }
        ready.extend(events.iter().take(count as usize).map(|event| event.u64 as usize));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread::JoinHandle;
    use std::time::Duration;

    use pyralog_core::batch::BatchView;
    use pyralog_net::message::{Durability, ProduceReply, Request, Response};

    use crate::stamped::intended_ns;

    const RUN: u64 = 12;

    /// (partition, intended send time) of each request that came.
    type Came = Vec<(u32, u64)>;

    /// Answers every produce of one connection, the first one after `stall`.
    fn serve(listener: TcpListener, stall: Duration, durability: Durability) -> JoinHandle<Came> {
        std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let (mut bytes, mut came) = (Vec::new(), Came::new());
            let mut piece = [0; 4096];
            loop {
                let count = socket.read(&mut piece).unwrap_or(0);
                if count == 0 {
                    return came;
                }
                bytes.extend_from_slice(&piece[..count]);
                if came.is_empty() {
                    std::thread::sleep(stall);
                }
                while let Some(header) = FrameHeader::decode_request(&bytes).unwrap()
                    && bytes.len() >= header.frame_bytes()
                {
                    let frame: Vec<u8> = bytes.drain(..header.frame_bytes()).collect();
                    let body = &frame[frame.len() - header.body_bytes as usize..];
                    let Request::Produce(produce) = Request::decode(header.kind, body).unwrap() else {
                        panic!()
                    };
                    let mut scratch = Vec::new();
                    let view = BatchView::parse_exact(produce.batch).unwrap();
                    view.check_crc().unwrap();
                    let value = view.records(&mut scratch).unwrap().next().unwrap().unwrap().value.unwrap();
                    came.push((produce.group.partition, intended_ns(value, RUN).unwrap()));
                    let mut reply = Vec::new();
                    let (base_offset, high_watermark) = (0, 1);
                    Response::Produce(ProduceReply {
                        base_offset,
                        high_watermark,
                        durability,
                        duplicate: false,
                    })
                    .encode(header.correlation_id, &mut reply);
                    socket.write_all(&reply).unwrap();
                }
            }
        })
    }

    /// 200 requests in 200 ms over as many connections as there are servers.
    fn drive(stall: Duration, durability: Durability, servers: usize) -> (anyhow::Result<Driven>, Vec<Came>) {
        let (mut connections, mut threads) = (Vec::new(), Vec::new());
        for number in 0..servers {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            connections.push(StampedConnection::new(socket, 3, &[0, 1, 2], number).unwrap());
            threads.push(serve(listener, stall, durability));
        }
        let begin_ns = MonotonicClock.now_ns() + 1_000_000;
        let window = Window { begin_ns, warm_ns: begin_ns, end_ns: begin_ns + 200_000_000 };
        let batch = BatchShape { records: 2, record_bytes: 64 };
        let load = StampedLoad { run: RUN, rate: 1000.0, outstanding: 512, batch, cpu: None };
        let driven = run(connections, &load, window, Tap::off());
        (driven, threads.into_iter().map(|thread| thread.join().unwrap()).collect())
    }

    #[test]
    fn every_request_is_sent_once_at_its_time_to_each_partition_in_turns() {
        let (driven, came) = drive(Duration::ZERO, Durability::QuorumDurable, 2);
        let driven = driven.unwrap();
        assert_eq!((driven.acks.count(), driven.records), (200, 400));
        assert_eq!([came[0].len(), came[1].len()], [100, 100]);
        // Each connection has every other request, and begins with a partition of its own.
        assert_eq!(came[0][..4].iter().map(|c| c.0).collect::<Vec<_>>(), [0, 1, 2, 0]);
        assert_eq!(came[1][..4].iter().map(|c| c.0).collect::<Vec<_>>(), [1, 2, 0, 1]);
        for came in &came {
            assert!(came.windows(2).all(|pair| pair[1].1 - pair[0].1 == 2_000_000), "{came:?}");
        }
        assert_eq!(came[1][0].1 - came[0][0].1, 1_000_000);
    }

    #[test]
    fn a_stall_counts_for_everything_that_it_held_up() {
        let (driven, came) = drive(Duration::from_millis(100), Durability::QuorumDurable, 1);
        let driven = driven.unwrap();
        assert_eq!((driven.acks.count(), came[0].len()), (200, 200));
        // About half of the requests were due while the first one waited: a quarter for 50 ms and more.
        assert!(driven.acks.quantile_us(0.8) > 45_000.0, "{:?}", driven.acks.summary());
        assert!(driven.acks.summary().max_us >= 99_000.0, "{:?}", driven.acks.summary());
    }

    #[test]
    fn less_durable_than_asked_for_is_an_error() {
        let (driven, _) = drive(Duration::ZERO, Durability::Written, 1);
        assert!(driven.err().unwrap().to_string().contains("every_write"));
    }

    #[test]
    fn frames_are_taken_whole() {
        let mut bytes = Vec::new();
        let reply = ProduceReply {
            base_offset: 1,
            high_watermark: 2,
            durability: Durability::QuorumDurable,
            duplicate: false,
        };
        Response::Produce(reply).encode(7, &mut bytes);
        let len = bytes.len();
        Response::Pong.encode(8, &mut bytes);
        assert_eq!(whole_frame(Some(&bytes)).unwrap().map(<[u8]>::len), Some(len));
        assert!(whole_frame(Some(&bytes[..len - 1])).unwrap().is_none());
        assert!(whole_frame(Some(&bytes[..3])).unwrap().is_none());
        assert!(whole_frame(None).unwrap().is_none());
        assert!(whole_frame(Some(b"HTTP/1.1 200 OK\r\n")).is_err());
    }

    #[test]
    fn the_clock_is_monotonic_and_runs() {
        let first = MonotonicClock.now_ns();
        let begin = std::time::Instant::now();
        while begin.elapsed().as_micros() < 200 {}
        let passed = MonotonicClock.now_ns() - first;
        assert!((200_000..5_000_000_000).contains(&passed), "{passed}");
    }
}
