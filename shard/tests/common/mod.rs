//! A node on a temporary folder, and a client that writes and reads raw frames.
#![allow(dead_code, reason = "not every test uses everything")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use pyralog_core::batch::{BatchBuilder, Compression};
use pyralog_core::{ErrorCode, GroupId, NodeId, Quorums, ShardId};
use pyralog_net::frame::kind;
use pyralog_net::message::{
    Acks, Consistency, CreateTopicRequest, FetchRequest, ProduceRequest, Request, Response,
};
use pyralog_net::{FrameHeader, Hello, HelloReply};
use pyralog_shard::engine::{EngineConfig, FsyncPolicy};
use pyralog_shard::runtime::{ControlEvent, Node, NodeOptions};

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A running node and its folder.
pub(crate) struct Rig {
    pub(crate) node: Option<Node>,
    pub(crate) control: flume::Receiver<ControlEvent>,
    pub(crate) dir: tempfile::TempDir,
}

/// Options for a node of `shards` shards in `dir`.
pub(crate) fn options(dir: &std::path::Path, shards: usize) -> NodeOptions {
    NodeOptions {
        shards: vec![None; shards],
        data_dir: dir.to_owned(),
        journal_dir: dir.to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        internal: None,
        max_connections: 10_000,
        request_timeout: Duration::from_secs(30),
        spin_us: 0,
        transparent_hugepages: false,
        engine: EngineConfig {
            node: NodeId(1),
            shard: ShardId(0),
            shards: 0,
            advertised_address: String::new(),
            internal_address: String::new(),
            rack: String::new(),
            feature_levels: pyralog_core::FeatureLevels::OURS,
            topic_quorums: Quorums::default(),
            election: EngineConfig::default().election,
            metadata_replicas: Vec::new(),
            cluster_name: "test".into(),
            server_version: "test".into(),
            journal_id: 0,
            disk_id: 0,
            has_begun: false,
            cache_bytes: 32 << 20,
            replay_memory_bytes: 4 << 20,
            cache_enabled: true,
            max_buffer_time_us: 1_000_000,
            fsync: FsyncPolicy::EveryWrite,
            journal_file_bytes: 16 << 20,
            journal_files_ahead: true,
            journal_writes_in_flight: 4,
            segment_max_bytes: 64 << 20,
            segment_sync_on_write: false,
            retention_bytes: None,
            retention_ms: None,
            scrub_interval_us: None,
            scrub_bytes_per_s: 1 << 30,
            recovery_bytes_per_s: None,
            request_timeout_us: 30_000_000,
            ack_timeout_us: 30_000_000,
            // On when the whole workspace is built, for the simulator.
            #[cfg(feature = "planted-bugs")]
            planted: None,
        },
    }
}

impl Rig {
    /// A node with default options, ready.
    pub(crate) fn new(shards: usize) -> Self {
        Self::with(shards, |_| {})
    }

    /// A node with changed options, ready.
    pub(crate) fn with(shards: usize, change: impl FnOnce(&mut NodeOptions)) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut rig = Self { node: None, control: flume::unbounded().1, dir };
        rig.start(shards, change);
        rig
    }

    /// Starts (again) on the same folder.
    pub(crate) fn start(&mut self, shards: usize, change: impl FnOnce(&mut NodeOptions)) {
        let mut options = options(self.dir.path(), shards);
        change(&mut options);
        let (sender, control) = flume::unbounded();
        self.node = Some(Node::start(options, sender).unwrap());
        self.control = control;
        let mut ready = 0;
        while ready < shards {
            match self.control.recv_timeout(PATIENCE).expect("the shards come up") {
                ControlEvent::ShardReady { .. } => ready += 1,
                ControlEvent::ShardFailed { error, .. } => panic!("{error}"),
                _ => {}
            }
        }
    }

    pub(crate) fn node(&self) -> &Node {
        self.node.as_ref().unwrap()
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.node().addr()
    }

    /// Waits until something about the node is true.
    pub(crate) fn until(&self, what: &str, mut test: impl FnMut(&Node) -> bool) {
        let end = std::time::Instant::now() + PATIENCE;
        while !test(self.node()) {
            assert!(std::time::Instant::now() < end, "never came true: {what}");
            std::thread::yield_now();
        }
    }

    /// Connections open, all shards together.
    pub(crate) fn connections(&self) -> u64 {
        self.node().status().iter().map(|report| report.connections).sum()
    }

    pub(crate) fn stop(&mut self) {
        self.node.take().unwrap().shutdown().unwrap();
    }
}

/// One connection.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
    correlation: u64,
}

impl Client {
    /// Connects and says nothing.
    pub(crate) fn silent(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream, buffer: Vec::new(), correlation: 0 }
    }

    /// Connects to `shard`.
    pub(crate) fn new(addr: SocketAddr, shard: u16) -> Self {
        let mut client = Self::silent(addr);
        assert_eq!(client.hello(shard).unwrap().shard, shard);
        client
    }

    pub(crate) fn hello(&mut self, shard: u16) -> Result<HelloReply, (ErrorCode, String)> {
        self.try_hello(shard).expect("an answer to Hello")
    }

    /// The same with a server that may close the connection: `None` then.
    pub(crate) fn try_hello(&mut self, shard: u16) -> Option<Result<HelloReply, (ErrorCode, String)>> {
        let mut out = Vec::new();
        let hello = Hello { protocol_min: 1, protocol_max: 1, wanted_shard: shard, client_name: "test" };
        hello.encode(7, &mut out).unwrap();
        self.stream.write_all(&out).ok()?;
        let (header, body) = self.read_frame()?;
        assert_eq!(header.correlation_id, 7);
        if header.kind == kind::ERROR {
            return Some(Err(self.error(header, &body)));
        }
        Some(Ok(HelloReply::decode(&body).unwrap()))
    }

    fn error(&self, header: FrameHeader, body: &[u8]) -> (ErrorCode, String) {
        match Response::decode(header.kind, body).unwrap().response {
            Response::Error(error) => (error.code, error.detail),
            other => panic!("not an error: {other:?}"),
        }
    }

    /// Sends a request; returns its correlation id.
    pub(crate) fn send(&mut self, request: &Request<'_>) -> u64 {
        self.try_send(request).expect("an open connection")
    }

    /// The same with a server that may close the connection: `None` then.
    pub(crate) fn try_send(&mut self, request: &Request<'_>) -> Option<u64> {
        self.correlation += 1;
        let mut out = Vec::new();
        request.encode(self.correlation, &mut out).unwrap();
        self.stream.write_all(&out).ok()?;
        Some(self.correlation)
    }

    /// The next frame; `None` when the server has closed.
    pub(crate) fn read_frame(&mut self) -> Option<(FrameHeader, Vec<u8>)> {
        loop {
            if let Some(header) = FrameHeader::decode_reply(&self.buffer).unwrap()
                && self.buffer.len() >= header.frame_bytes()
            {
                let rest = self.buffer.split_off(header.frame_bytes());
                let frame = std::mem::replace(&mut self.buffer, rest);
                return Some((header, frame[16..].to_vec()));
            }
            let mut part = vec![0; 64 << 10];
            match self.stream.read(&mut part) {
                Ok(0) => return None,
                Ok(count) => self.buffer.extend_from_slice(&part[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no answer: {error}"),
            }
        }
    }

    /// The next reply with its correlation id and the batches of a fetch.
    pub(crate) fn reply(&mut self) -> Option<(u64, Response, Vec<u8>)> {
        let (header, body) = self.read_frame()?;
        let reply = Response::decode(header.kind, &body).unwrap();
        Some((header.correlation_id, reply.response, reply.batches.to_vec()))
    }

    /// Sends and awaits the one reply.
    pub(crate) fn ask(&mut self, request: &Request<'_>) -> Response {
        let sent = self.send(request);
        let (correlation, response, _) = self.reply().expect("a reply");
        assert_eq!(correlation, sent);
        response
    }
}

/// Descriptors of this process.
pub(crate) fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// A batch of records without producer, its first timestamp `timestamp`.
pub(crate) fn batch(timestamp: i64, values: &[&[u8]]) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    for value in values {
        builder.append(timestamp, None, Some(value), &[]).unwrap();
    }
    builder.build(Compression::None).unwrap().to_vec()
}

/// A produce with the default acknowledgement.
pub(crate) fn produce(topic: u32, partition: u32, batch: &[u8]) -> Request<'_> {
    Request::Produce(ProduceRequest {
        group: GroupId::new(topic, partition),
        acks: Acks::Quorum,
        timeout_ms: 0,
        batch,
    })
}

/// A fetch of all that fits.
pub(crate) fn fetch(topic: u32, partition: u32, offset: i64) -> Request<'static> {
    let group = GroupId::new(topic, partition);
    Request::Fetch(FetchRequest {
        group,
        offset,
        min_bytes: 0,
        max_bytes: 8 << 20,
        max_wait_ms: 0,
        consistency: Consistency::Leader,
    })
}

/// Creates a topic; returns its id and the connection to shard 0.
pub(crate) fn topic(rig: &Rig, name: &str, partitions: u32) -> (u32, Client) {
    let mut client = Client::new(rig.addr(), 0);
    let request = CreateTopicRequest {
        name,
        partitions,
        quorums: Quorums::UNSET,
        retention_bytes: -1,
        retention_ms: -1,
    };
    match client.ask(&Request::CreateTopic(request)) {
        Response::CreateTopic(reply) => (reply.id, client),
        other => panic!("{other:?}"),
    }
}
