//! Tests of `connections` without a driver: each completion is handed in as the test wants it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use pyralog_net::FrameHeader;
use pyralog_net::frame::kind;
use pyralog_net::message::Request;

use super::super::connection::Assembly;
use super::super::paths::Paths;
use super::super::recovery_disk::RealDisk;
use super::*;
use crate::engine::{EngineConfig, recover};

/// How long a client waits.
const PATIENCE: Duration = Duration::from_secs(20);

/// The connections of a shard that serves nobody yet: every request is refused, at once by a shard that recovers,
/// with the pass's actions by an engine that has not started. The time stands still.
struct Rig {
    ring: Ring<Op>,
    connections: Connections,
    engine: Option<Engine>,
    actions: Vec<Action>,
    most_in_flight: usize,
    most_queued: usize,
}

impl Rig {
    fn new() -> Self {
        let mut ring = Ring::new().unwrap();
        ring.provide_recv_buffers(8, RECV_BUFFER_BYTES).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let identity =
            Identity { node: 1, shard: 0, shards: 1, server_version: "test".into(), catalog_version: 0 };
        let connections = Connections::new(listener, identity, Arc::default(), 100, 30_000_000).unwrap();
        let actions = Vec::new();
        Self { ring, connections, engine: None, actions, most_in_flight: 0, most_queued: 0 }
    }

    /// A client beyond its handshake.
    fn connect(&mut self) -> (TcpStream, ConnId) {
        let listener = self.connections.listener.as_ref().unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        let id = self.connections.insert(socket.into(), 0);
        self.conn(id).phase = Phase::Open;
        (client, id)
    }

    /// What the driver does in a pass, as far as it is about connections.
    fn pass(&mut self) {
        let now = Now { monotonic_us: 1, wall_ms: 1 };
        let Self { ring, connections, engine, actions, .. } = self;
        let mut access = EngineAccess { engine: engine.as_mut(), actions, now };
        while let Some(done) = ring.next_completion() {
            match done.owner {
                Op::Receive(id) => connections.receive_done(ring, id, done.result, done.flags, &mut access),
                Op::ReceiveRest(id, bytes) => {
                    connections.receive_rest_done(id, bytes, done.result, done.flags, &mut access);
                }
                Op::Send(id, op) => connections.send_done(ring, id, op, done.result, &mut access),
                _ => {}
            }
        }
        connections.resume(ring, &mut access);
        self.most_in_flight = self.most_in_flight.max(connections.load.in_flight);
        self.most_queued = self.most_queued.max(connections.spares.queued_bytes());
        for action in access.actions.drain(..) {
            if let Action::Reply { conn, correlation_id, body } = action {
                connections.reply(conn, correlation_id, body, 1);
            }
        }
        connections.flush(ring, &mut access);
        let wait = match connections.can_resume(engine.as_ref()) || connections.stats.open == 0 {
            true => None,
            // Longer than the clients wait: who is not woken is forgotten.
            false => Some(Some(2 * PATIENCE)),
        };
        ring.enter(wait).unwrap();
    }

    /// Runs until every client has sent `count` pings at once, read their answers and gone.
    fn serve(&mut self, clients: usize, count: u64) {
        // None goes before all have their answers: its end would wake the shard.
        let unanswered = Arc::new(AtomicUsize::new(clients));
        let clients: Vec<_> = (0..clients)
            .map(|_| {
                let (mut client, _) = self.connect();
                client.write_all(&pings(count)).unwrap();
                let unanswered = Arc::clone(&unanswered);
                std::thread::spawn(move || {
                    let client = take_answers(client, count);
                    unanswered.fetch_sub(1, Ordering::Relaxed);
                    let end = Instant::now() + PATIENCE;
                    while unanswered.load(Ordering::Relaxed) > 0 && Instant::now() < end {
                        std::thread::yield_now();
                    }
                    drop(client);
                })
            })
            .collect();
        while self.connections.stats.open > 0 && clients.iter().any(|client| !client.is_finished()) {
            self.pass();
        }
        clients.into_iter().for_each(|client| client.join().unwrap());
        while self.connections.stats.open > 0 {
            self.pass();
        }
        let connections = &self.connections;
        assert_eq!((connections.load.in_flight, connections.spares.queued_bytes()), (0, 0));
        assert_eq!(connections.budget.used(), 0);
    }

    fn conn(&mut self, id: ConnId) -> &mut Connection {
        find(&mut self.connections.slots, id).unwrap()
    }
}

fn access(actions: &mut Vec<Action>) -> EngineAccess<'_> {
    EngineAccess { engine: None, actions, now: Now { monotonic_us: 1, wall_ms: 1 } }
}

#[test]
fn an_interrupted_receive_keeps_the_part_of_the_frame_that_is_there() {
    let mut rig = Rig::new();
    let (_client, id) = rig.connect();
    let header = FrameHeader { kind: kind::PRODUCE, body_bytes: 100_000, correlation_id: 5 };
    let mut part = header.encode().to_vec();
    part.resize(40_000, 7);
    for error in [libc::EINTR, libc::EAGAIN] {
        let total = Some(header.frame_bytes());
        rig.conn(id).assembly = Some(Assembly { bytes: Vec::new(), total, reserved: 0 });
        let access = &mut access(&mut rig.actions);
        rig.connections.receive_rest_done(id, part.clone(), -error, 0, access);
        let conn = rig.conn(id);
        assert_eq!(conn.phase, Phase::Open);
        assert!(conn.assembly.as_ref().unwrap().bytes == part, "what was received is gone");
    }
}

/// An engine that has not written its first commit yet.
fn engine(dir: &std::path::Path) -> Engine {
    let config =
        EngineConfig { journal_file_bytes: 4 << 20, cache_bytes: 16 << 20, ..EngineConfig::default() };
    let mut disk = RealDisk::new(Paths::new(dir, dir, config.shard), Box::new(|_, _| {}));
    recover(config, &mut disk, Now { monotonic_us: 1, wall_ms: 1 }).unwrap()
}

fn pings(count: u64) -> Vec<u8> {
    let mut out = Vec::new();
    (0..count).for_each(|id| Request::Ping.encode(id, &mut out).unwrap());
    out
}

/// Reads the answers to so many pings.
fn take_answers(mut client: TcpStream, count: u64) -> TcpStream {
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = Vec::new();
    for expected in 0..count {
        let header = loop {
            match FrameHeader::decode_reply(&bytes).unwrap() {
                Some(header) if bytes.len() >= header.frame_bytes() => break header,
                _ => {}
            }
            let mut part = [0; 1000];
            let len = client.read(&mut part).expect("the answers come");
            assert!(len > 0, "closed");
            bytes.extend_from_slice(&part[..len]);
        };
        assert_eq!(header.correlation_id, expected);
        bytes.drain(..header.frame_bytes());
    }
    client
}

#[test]
fn the_requests_in_flight_of_a_shard_stay_below_their_bound_and_nobody_is_forgotten() {
    let mut rig = Rig::new();
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    rig.engine = Some(engine(dir.path()));
    rig.connections.load.max_in_flight = 10;
    rig.serve(5, 300);
    assert_eq!(rig.most_in_flight, 10);
}

#[test]
fn the_replies_queued_on_a_shard_stay_below_their_bound_and_nobody_is_forgotten() {
    let mut rig = Rig::new();
    // Less than the answers to one connection take, and few enough that nobody is woken when they are sent.
    let bound = 16 << 10;
    rig.connections.load.max_queued_bytes = bound;
    rig.serve(20, 350);
    assert!(rig.most_queued >= bound, "nothing was held back");
    assert!(rig.most_queued < 2 * bound, "{} bytes", rig.most_queued);
}
