//! Shards of several nodes that consist of nothing but their links: real rings and sockets, driven as a shard's driver
//! does it; and a peer that is driven by the test byte by byte.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pyralog_core::{FeatureLevels, NodeId, ShardId};
use pyralog_net::peer::frame::{self, FrameHeader, FrameKind};
use pyralog_net::peer::{Hello, HelloReply, PROTOCOL_VERSION};
use pyralog_net::socket::SharedPort;
use pyralog_shard::engine::{Event, PeerId};
use pyralog_shard::memory::{ChunkPool, ChunkSlice};
use pyralog_shard::runtime::peers::{LinkStats, LinkTiming, Links, LinksConfig, PeerOp, PeerSocket};
use pyralog_shard::runtime::ring::Ring;
use pyralog_shard::runtime::wake::Waker;

use super::common::PATIENCE;

pub(crate) const CLUSTER: u64 = 0xC1;

/// Times that a loaded machine keeps.
pub(crate) const PATIENT: LinkTiming = LinkTiming {
    ping_us: 50_000,
    timeout_us: 25_000_000,
    handshake_us: 25_000_000,
    first_backoff_us: 1_000,
    last_backoff_us: 50_000,
};

pub(crate) fn peer(node: u32, shard: u16) -> PeerId {
    PeerId { node: NodeId(node), shard: ShardId(shard) }
}

/// A port of an address that only this process uses, so that a node that comes back finds it free.
pub(crate) fn port() -> SharedPort {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    SharedPort::open((Ipv4Addr::new(127, 64 + high % 64, middle, low), 0).into()).unwrap()
}

/// What the links told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Frame { from: PeerId, control: Vec<u8>, payload: Vec<u8> },
    Up(PeerId, u64),
    Down(PeerId),
    Dropped(PeerId),
}

enum Command {
    Want(Vec<PeerId>),
    FeatureLevel(u16),
    Send(PeerId, Vec<u8>, Vec<u8>),
    Stats(flume::Sender<LinkStats>),
    TakeOver(PeerSocket),
    Stop,
}

enum Op {
    Wake(#[allow(dead_code)] Box<[u8; 8]>),
    Peer(PeerOp),
}

impl From<PeerOp> for Op {
    fn from(op: PeerOp) -> Self {
        Self::Peer(op)
    }
}

#[derive(Clone)]
struct Way(flume::Sender<Command>, Waker);

impl Way {
    fn send(&self, command: Command) {
        self.0.send(command).unwrap();
        self.1.wake();
    }
}

/// The links of one shard on a thread of their own.
pub(crate) struct End {
    way: Way,
    pub(crate) told: flume::Receiver<Told>,
    pub(crate) logs: flume::Receiver<String>,
    thread: Option<JoinHandle<()>>,
}

impl End {
    pub(crate) fn want(&self, peers: &[PeerId]) {
        self.way.send(Command::Want(peers.to_vec()));
    }

    /// The cluster is at this feature level.
    pub(crate) fn set_feature_level(&self, level: u16) {
        self.way.send(Command::FeatureLevel(level));
    }

    pub(crate) fn send(&self, to: PeerId, control: &[u8], payload: &[u8]) {
        self.way.send(Command::Send(to, control.to_vec(), payload.to_vec()));
    }

    pub(crate) fn stats(&self) -> LinkStats {
        let (sender, answer) = flume::bounded(1);
        self.way.send(Command::Stats(sender));
        answer.recv_timeout(PATIENCE).unwrap()
    }

    pub(crate) fn next(&self) -> Told {
        self.told.recv_timeout(PATIENCE).expect("something is told")
    }

    /// The session with which `from` comes up, the next thing that is told.
    pub(crate) fn up(&self, from: PeerId) -> u64 {
        match self.next() {
            Told::Up(peer, session) if peer == from => session,
            other => panic!("{from:?} should come up, not {other:?}"),
        }
    }

    /// Waits for a line in the log.
    pub(crate) fn log(&self, part: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let line = self.logs.recv_deadline(end).unwrap_or_else(|_| panic!("never logged: {part}"));
            if line.contains(part) {
                return line;
            }
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.way.send(Command::Stop);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Starts the shards of a node; `nodes` are the addresses of all nodes, its own among them.
pub(crate) fn start(
    node: u32,
    shards: u16,
    mut port: SharedPort,
    nodes: &BTreeMap<NodeId, SocketAddr>,
    change: impl Fn(&mut LinksConfig),
) -> Vec<End> {
    let peers: BTreeMap<NodeId, String> =
        nodes.iter().filter(|(id, _)| id.0 != node).map(|(id, address)| (*id, address.to_string())).collect();
    let mut ways = Vec::new();
    let mut receivers = Vec::new();
    for _ in 0..shards {
        let (sender, receiver) = flume::unbounded();
        ways.push(Way(sender, Waker::new().unwrap()));
        receivers.push(receiver);
    }
    let mut ends = Vec::new();
    for (shard, commands) in receivers.into_iter().enumerate() {
        let mut config = LinksConfig {
            cluster_id: CLUSTER,
            node: NodeId(node),
            shard: ShardId(shard as u16),
            shards,
            session: pyralog_shard::runtime::peers::new_session(),
            levels: FeatureLevels::OURS,
            peers: peers.clone(),
            timing: PATIENT,
            seed: u64::from(node),
        };
        change(&mut config);
        let listener = port.listener().unwrap();
        let (tell, told) = flume::unbounded();
        let (log, logs) = flume::unbounded();
        let (all, way) = (ways.clone(), ways[shard].clone());
        let work = move || {
            let waker = all[shard].1.clone();
            run(Links::new(config, listener, None), &commands, &waker, &all, &tell, &log);
        };
        ends.push(End { way, told, logs, thread: Some(std::thread::spawn(work)) });
    }
    ends
}

fn run(
    mut links: Links,
    commands: &flume::Receiver<Command>,
    waker: &Waker,
    shards: &[Way],
    tell: &flume::Sender<Told>,
    log: &flume::Sender<String>,
) {
    let mut ring: Ring<Op> = Ring::new().unwrap();
    let pool = ChunkPool::new(1 << 30);
    let clock = Instant::now();
    let mut waking = false;
    let mut to = |event: Event<'_>| {
        let told = match event {
            Event::PeerFrame { from, control, payload } => {
                Told::Frame { from, control: control.to_vec(), payload: payload.to_vec() }
            }
            Event::PeerUp { peer, session } => Told::Up(peer, session),
            Event::PeerDown { peer } => Told::Down(peer),
            Event::PeerDropped { peer } => Told::Dropped(peer),
            other => panic!("{other:?}"),
        };
        let _ = tell.send(told);
    };
    loop {
        let now_us = clock.elapsed().as_micros() as u64;
        links.begin_pass(now_us, &mut to);
        while let Some(done) = ring.next_completion() {
            match done.owner {
                Op::Wake(_) => {
                    waking = false;
                    waker.clear();
                }
                Op::Peer(op) => {
                    links.completed(op, done.result, done.flags, now_us, &mut to);
                }
            }
        }
        if !waking {
            let mut counter = Box::new([0u8; 8]);
            let fd = io_uring::types::Fd(waker.fd());
            let entry = io_uring::opcode::Read::new(fd, counter.as_mut_ptr(), 8).build();
            // SAFETY: the operation owns the counter.
            unsafe { ring.push(entry, Op::Wake(counter)) };
            waking = true;
        }
        for command in commands.try_iter() {
            match command {
                Command::Want(peers) => links.want(&peers),
                Command::FeatureLevel(level) => links.set_feature_level(level),
                Command::Send(to, control, payload) => {
                    // As batches lie in the cache: in several chunks.
                    let slices = payload.chunks(300_000).map(|part| {
                        let chunk = pool.chunk(part.len().next_multiple_of(4096)).unwrap();
                        chunk.append(part);
                        ChunkSlice::new(chunk, 0, part.len())
                    });
                    links.send(to, &control, slices.collect());
                }
                Command::Stats(to) => to.send(links.stats()).unwrap(),
                Command::TakeOver(socket) => links.take_over(socket, now_us),
                Command::Stop => return,
            }
        }
        links.flush(&mut ring, now_us);
        for (shard, socket) in links.take_leaving() {
            // A shard of a node that stops may have stopped before: the socket ends with it.
            let Way(sender, waker) = &shards[usize::from(shard.0)];
            if sender.send(Command::TakeOver(socket)).is_ok() {
                waker.wake();
            }
        }
        for (_, text) in links.take_logs() {
            let _ = log.send(text);
        }
        let wait =
            links.next_deadline_us().map(|due_us| Duration::from_micros(due_us.saturating_sub(now_us)));
        ring.enter(if links.is_busy() || ring.has_ready() { None } else { Some(wait) }).unwrap();
    }
}

/// One connection of the internal protocol, read and written by the test.
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

impl Raw {
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    pub(crate) fn dial(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).unwrap())
    }

    pub(crate) fn accept(listener: &TcpListener) -> Self {
        listener.set_nonblocking(false).unwrap();
        Self::new(listener.accept().unwrap().0)
    }

    /// The next frame; `None` when the other side has closed.
    pub(crate) fn read(&mut self) -> Option<(FrameKind, Vec<u8>, Vec<u8>)> {
        loop {
            if let Some(header) = FrameHeader::decode(&self.buffer).unwrap()
                && let Some((control, payload)) = header.parts(&self.buffer).unwrap()
            {
                let frame = (header.kind, control.to_vec(), payload.to_vec());
                self.buffer.drain(..header.frame_bytes());
                return Some(frame);
            }
            let mut part = vec![0; 256 << 10];
            match self.stream.read(&mut part) {
                Ok(0) => return None,
                Ok(count) => self.buffer.extend_from_slice(&part[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("nothing came: {error}"),
            }
        }
    }

    /// The next frame that is no ping.
    pub(crate) fn read_frame(&mut self) -> Option<(FrameKind, Vec<u8>, Vec<u8>)> {
        loop {
            match self.read()? {
                (FrameKind::Ping, ..) => {}
                frame => return Some(frame),
            }
        }
    }

    pub(crate) fn hello(&mut self, hello: &Hello) -> HelloReply {
        let mut out = Vec::new();
        hello.encode(&mut out);
        self.stream.write_all(&out).unwrap();
        let (kind, control, _) = self.read().expect("an answer");
        assert_eq!(kind, FrameKind::HelloReply);
        HelloReply::decode(&control).unwrap()
    }

    /// Answers the `Hello` that comes.
    pub(crate) fn welcome(&mut self, session: u64) -> Hello {
        let (kind, control, _) = self.read().expect("a hello");
        assert_eq!(kind, FrameKind::Hello);
        let hello = Hello::decode(&control).unwrap();
        let reply = HelloReply {
            node: hello.to_node,
            shard: hello.to_shard,
            shards: 1,
            version: PROTOCOL_VERSION,
            session,
            refusal: None,
        };
        let mut out = Vec::new();
        reply.encode(&mut out);
        self.stream.write_all(&out).unwrap();
        hello
    }

    pub(crate) fn send(&mut self, kind: FrameKind, control: &[u8], payload: &[u8]) {
        let mut out = Vec::new();
        frame::encode(kind, control, payload.len(), &mut out);
        out.extend_from_slice(payload);
        self.stream.write_all(&out).unwrap();
    }
}

/// From shard 0 of node `from`, which has one shard.
pub(crate) fn hello(from: u32, to: PeerId, session: u64) -> Hello {
    Hello {
        version_min: PROTOCOL_VERSION,
        version_max: PROTOCOL_VERSION,
        cluster_id: CLUSTER,
        from_node: NodeId(from),
        from_shard: ShardId(0),
        from_shards: 1,
        to_node: to.node,
        to_shard: to.shard,
        session,
        levels: FeatureLevels::OURS,
    }
}
