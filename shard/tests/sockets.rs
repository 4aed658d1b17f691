//! Client sockets through a real node: hand-over, HTTP, protocol errors, bounds, the end of connections.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use common::{Client, PATIENCE, Rig, batch, produce, topic};
use pyralog_core::{ErrorCode, GroupId};
use pyralog_net::frame::{MAGIC, kind};
use pyralog_net::message::{Consistency, DescribePartitionsRequest, FetchRequest, Request, Response};
use pyralog_net::{FrameHeader, Hello};
use pyralog_shard::runtime::{ControlEvent, Node};

#[test]
fn every_connection_ends_up_at_the_shard_that_it_wants() {
    let mut rig = Rig::new(3);
    // The kernel picks the accepting shard: with this many most are handed over.
    let mut clients: Vec<(u16, Client)> =
        (0..48).map(|index| (index % 3, Client::new(rig.addr(), index % 3))).collect();
    for (_, client) in &mut clients {
        assert_eq!(client.ask(&Request::Ping), Response::Pong);
    }
    let reports = rig.node().status();
    assert_eq!(reports.iter().map(|report| report.connections).collect::<Vec<_>>(), [16, 16, 16]);
    let mut wrong = Client::silent(rig.addr());
    assert_eq!(wrong.hello(3).unwrap_err().0, ErrorCode::InvalidRequest);
    assert!(wrong.read_frame().is_none(), "closed after the error");
    rig.stop();
    for (_, client) in &mut clients {
        assert!(client.read_frame().is_none(), "a stopped node closes its connections");
    }
}

#[test]
fn requests_behind_the_hello_move_with_the_connection() {
    let rig = Rig::new(2);
    for shard in [0, 1, 0, 1, 0, 1] {
        let mut client = Client::silent(rig.addr());
        let mut out = Vec::new();
        Hello { protocol_min: 1, protocol_max: 1, wanted_shard: shard, client_name: "t" }
            .encode(1, &mut out)
            .unwrap();
        Request::Ping.encode(2, &mut out).unwrap();
        Request::Ping.encode(3, &mut out).unwrap();
        // The last one arrives in pieces.
        let (now, later) = out.split_at(out.len() - 5);
        client.stream.write_all(now).unwrap();
        assert_eq!(client.read_frame().unwrap().0.correlation_id, 1);
        assert_eq!(client.reply().unwrap().0, 2);
        client.stream.write_all(later).unwrap();
        assert_eq!(client.reply().unwrap().0, 3);
    }
}

#[test]
fn http_goes_to_the_control_thread_with_its_first_bytes() {
    let rig = Rig::new(2);
    for pieces in [&["GET /health HTTP/1.1\r\n\r\n"][..], &["G", "ET /health HTTP/1.1\r\n\r\n"]] {
        let mut browser = TcpStream::connect(rig.addr()).unwrap();
        browser.set_nodelay(true).unwrap();
        for piece in pieces {
            browser.write_all(piece.as_bytes()).unwrap();
        }
        let (mut stream, prefix) = loop {
            match rig.control.recv_timeout(PATIENCE).unwrap() {
                ControlEvent::HttpSocket { stream, prefix } => break (stream, prefix),
                _ => continue,
            }
        };
        let mut request = prefix.clone();
        while request.len() < 24 {
            let mut more = [0; 64];
            let count = stream.read(&mut more).unwrap();
            request.extend_from_slice(&more[..count]);
        }
        assert_eq!(request, b"GET /health HTTP/1.1\r\n\r\n");
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        drop(stream);
        let mut answer = String::new();
        browser.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"));
    }
    rig.until("HTTP does not count as a client connection", |_| rig.connections() == 0);
}

#[test]
fn what_breaks_the_protocol_is_told_why_and_closed() {
    let rig = Rig::new(1);
    // Not a word of any protocol.
    let mut client = Client::silent(rig.addr());
    client.stream.write_all(b"\x16\x03\x01garbage").unwrap();
    assert!(client.read_frame().is_none());
    // A request before the handshake.
    let mut client = Client::silent(rig.addr());
    client.send(&Request::Ping);
    assert!(
        matches!(client.reply().unwrap().1, Response::Error(error) if error.code == ErrorCode::InvalidRequest)
    );
    assert!(client.read_frame().is_none());
    // A length beyond every bound.
    let mut client = Client::new(rig.addr(), 0);
    client.ask(&Request::Ping);
    let header = FrameHeader { kind: kind::PRODUCE, body_bytes: u32::MAX, correlation_id: 9 };
    client.stream.write_all(&header.encode()).unwrap();
    let (correlation, reply, _) = client.reply().unwrap();
    assert!(matches!(reply, Response::Error(error) if error.code == ErrorCode::TooLarge) && correlation == 9);
    assert!(client.read_frame().is_none());
    // An unknown kind leaves the framing intact: answered, not closed.
    let mut client = Client::new(rig.addr(), 0);
    let header = FrameHeader { kind: 0x7777, body_bytes: 0, correlation_id: 11 };
    client.stream.write_all(&header.encode()).unwrap();
    let (_, reply, _) = client.reply().unwrap();
    assert!(matches!(reply, Response::Error(error) if error.code == ErrorCode::UnsupportedVersion));
    assert_eq!(client.ask(&Request::Ping), Response::Pong);
    rig.until("only the last one is left", |_| rig.connections() == 1);
}

#[test]
fn garbage_harms_nobody_else() {
    let rig = Rig::new(1);
    let mut good = Client::new(rig.addr(), 0);
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..600 {
        let mut bytes: Vec<u8> = (0..random() % 200).map(|_| random() as u8).collect();
        let mut client = Client::silent(rig.addr());
        if round % 3 > 0 {
            // Gets past the handshake.
            client.hello(0).unwrap();
            let kind = (random() % 12) as u16;
            let body_bytes = if round % 3 == 1 { bytes.len() as u32 } else { (random() % 2000) as u32 };
            let mut framed = FrameHeader { kind, body_bytes, correlation_id: round }.encode().to_vec();
            framed.append(&mut bytes);
            bytes = framed;
        } else if let Some(first) = bytes.first_mut() {
            *first = MAGIC;
        }
        let _ = client.stream.write_all(&bytes);
        if round % 2 == 0 {
            let _ = client.stream.shutdown(Shutdown::Write);
        }
        assert_eq!(good.ask(&Request::Ping), Response::Pong);
    }
    rig.until("the others are gone", |_| rig.connections() == 1);
}

#[test]
fn half_closed_clients_get_their_answers() {
    let rig = Rig::new(1);
    let mut client = Client::new(rig.addr(), 0);
    for _ in 0..100 {
        client.send(&Request::Ping);
    }
    client.stream.shutdown(Shutdown::Write).unwrap();
    for expected in 1..=100 {
        assert_eq!(client.reply().unwrap().0, expected);
    }
    assert!(client.read_frame().is_none());
}

#[test]
fn pings_in_pieces_of_every_size_all_come_back() {
    let rig = Rig::new(1);
    let mut client = Client::new(rig.addr(), 0);
    let mut out = Vec::new();
    for correlation in 0..20_000u64 {
        Request::Ping.encode(correlation, &mut out).unwrap();
    }
    let writer = client.stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        let mut writer = writer;
        let mut rest = &out[..];
        for step in (1..).map(|step| step * 7919 % 9001 + 1) {
            if rest.is_empty() {
                return;
            }
            let (now, later) = rest.split_at(step.min(rest.len()));
            writer.write_all(now).unwrap();
            rest = later;
        }
    });
    for expected in 0..20_000 {
        assert_eq!(client.reply().unwrap().0, expected);
    }
    sender.join().unwrap();
}

#[test]
fn connections_beyond_the_bound_are_told_so() {
    let rig = Rig::with(1, |options| options.max_connections = 3);
    let mut clients: Vec<Client> = (0..3).map(|_| Client::new(rig.addr(), 0)).collect();
    let mut refused = Client::silent(rig.addr());
    let (_, reply, _) = refused.reply().unwrap();
    assert!(matches!(reply, Response::Error(error) if error.detail.contains("max_connections")));
    assert!(refused.read_frame().is_none());
    clients.pop();
    rig.until("there is room again", |_| rig.connections() == 2);
    Client::new(rig.addr(), 0);
}

#[test]
fn a_partial_frame_and_a_missing_hello_are_given_up() {
    let rig = Rig::with(1, |options| options.request_timeout = Duration::from_millis(200));
    let mut idle = Client::new(rig.addr(), 0);
    let mut stuck = Client::new(rig.addr(), 0);
    let header = FrameHeader { kind: kind::PRODUCE, body_bytes: 300_000, correlation_id: 9 };
    stuck.stream.write_all(&header.encode()).unwrap();
    stuck.stream.write_all(&[0; 1000]).unwrap();
    assert!(stuck.read_frame().is_none(), "closed");
    assert_eq!(idle.ask(&Request::Ping), Response::Pong, "an idle connection is fine");
    let reports = rig.node().status();
    assert_eq!(reports[0].timed_out, 1);
}

#[test]
fn a_client_that_does_not_read_is_not_read_and_then_closed() {
    let rig = Rig::with(1, |options| options.request_timeout = Duration::from_secs(2));
    let mut good = Client::new(rig.addr(), 0);
    let client = Client::new(rig.addr(), 0);
    let mut out = Vec::new();
    (0..2000u64).for_each(|id| Request::Ping.encode(id, &mut out).unwrap());
    let mut stream = client.stream.try_clone().unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let end = Instant::now() + PATIENCE;
    let mut most = 0;
    loop {
        assert!(Instant::now() < end, "a connection without end");
        let broken = match stream.write(&out) {
            Ok(_) => false,
            Err(error) => {
                !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
            }
        };
        most = most.max(rig.node().status()[0].queued_reply_bytes);
        assert_eq!(good.ask(&Request::Ping), Response::Pong);
        if broken {
            break;
        }
    }
    // One receive buffer full of pings beyond the bound, at most.
    assert!(most <= (256 << 10) + (64 << 10), "{most} bytes of replies queued");
}

#[test]
fn large_replies_to_small_requests_wait_their_turn() {
    let rig = Rig::new(1);
    let (topic, mut good) = topic(&rig, "t", 1000);
    // One packet of these asks for 150 MB of replies.
    let mut client = Client::new(rig.addr(), 0);
    let mut out = Vec::new();
    for correlation in 0..2_000 {
        let request = DescribePartitionsRequest { topic, first: 0, count: 1000 };
        Request::DescribePartitions(request).encode(correlation, &mut out).unwrap();
    }
    client.stream.write_all(&out).unwrap();
    let mut most = 0;
    rig.until("replies are held back", |node| {
        most = most.max(node.status()[0].queued_reply_bytes);
        most >= 256 << 10
    });
    assert!(most <= 512 << 10, "{most} bytes of replies queued");
    assert_eq!(good.ask(&Request::Ping), Response::Pong);
    for expected in 0..2_000 {
        let (correlation, reply, _) = client.reply().unwrap();
        assert_eq!(correlation, expected);
        assert!(matches!(reply, Response::DescribePartitions(states) if states.len() == 1000));
    }
    assert_eq!(client.ask(&Request::Ping), Response::Pong);
}

#[test]
fn requests_in_flight_are_bounded_within_one_packet() {
    let rig = Rig::new(1);
    let (topic, mut good) = topic(&rig, "t", 1);
    let mut client = Client::new(rig.addr(), 0);
    let group = GroupId::new(topic, 0);
    let request = FetchRequest {
        group,
        offset: 0,
        min_bytes: 1,
        max_bytes: 1 << 20,
        max_wait_ms: 60_000,
        consistency: Consistency::Leader,
    };
    let mut out = Vec::new();
    (0..6_000u64).for_each(|id| Request::Fetch(request).encode(id, &mut out).unwrap());
    let waiting = |node: &Node| node.status()[0].status.waiting_fetches;
    // So that the bound does not fall between two receive buffers.
    let (first, rest) = out.split_at(out.len() / 12);
    client.stream.write_all(first).unwrap();
    rig.until("the first ones wait", |node| waiting(node) == 500);
    client.stream.write_all(rest).unwrap();
    rig.until("as many as may wait do", |node| waiting(node) >= 4096);
    // The rest is with the node already, or in its socket.
    for _ in 0..100 {
        assert_eq!(good.ask(&Request::Ping), Response::Pong);
        assert_eq!(waiting(rig.node()), 4096);
    }
    assert!(matches!(good.ask(&produce(topic, 0, &batch(0, &[b"x"]))), Response::Produce(_)));
    let mut answered = vec![false; 6_000];
    for _ in 0..6_000 {
        let (correlation, reply, _) = client.reply().unwrap();
        assert!(matches!(reply, Response::Fetch(_)), "{reply:?}");
        assert!(!std::mem::replace(&mut answered[correlation as usize], true));
    }
}
