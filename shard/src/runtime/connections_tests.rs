//! Tests of `connections` without a driver: each completion is handed in as the test wants it.

use std::net::{Ipv4Addr, TcpStream};

use pyralog_net::FrameHeader;
use pyralog_net::frame::kind;

use super::super::connection::Assembly;
use super::*;

/// The connections of a shard that recovers (every request is refused), and a time that stands still.
struct Rig {
    #[allow(dead_code)]
    ring: Ring<Op>,
    connections: Connections,
    actions: Vec<Action>,
}

impl Rig {
    fn new() -> Self {
        let mut ring = Ring::new().unwrap();
        ring.provide_recv_buffers(8, RECV_BUFFER_BYTES).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let identity =
            Identity { node: 1, shard: 0, shards: 1, server_version: "test".into(), catalog_version: 0 };
        let connections = Connections::new(listener, identity, Arc::default(), 100, 30_000_000).unwrap();
        Self { ring, connections, actions: Vec::new() }
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
