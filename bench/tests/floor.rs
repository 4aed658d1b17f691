//! The floor server and the load generator against each other, and the program's own command line.

#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

use pyralog_bench::aligned::ALIGN;
use pyralog_bench::floor::{
    Exchange, FILE_NAME, FloorConfig, FloorServer, FloorTotals, RECV_BYTES, Side, StopHandle, WrittenFile,
    append_latencies, loopback_latencies, round_trips,
};
use pyralog_bench::load::{self, LoadShape};
use pyralog_bench::produce::{BatchShape, batch, connect_floor, produce_frame, produce_reply_body_bytes};
use pyralog_bench::wire;
use pyralog_core::GroupId;

const ONE: BatchShape = BatchShape { records: 1, record_bytes: 256 };

struct Floor {
    addr: SocketAddr,
    stop: StopHandle,
    thread: JoinHandle<anyhow::Result<FloorTotals>>,
}

fn start(dir: &Path, writes_in_flight: usize) -> Floor {
    start_with(dir, writes_in_flight, Vec::new())
}

fn start_with(dir: &Path, writes_in_flight: usize, followers: Vec<SocketAddr>) -> Floor {
    start_as(dir, writes_in_flight, false, followers)
}

fn start_spinning(dir: &Path) -> Floor {
    start_as(dir, 1, true, Vec::new())
}

fn start_as(dir: &Path, writes_in_flight: usize, spin: bool, followers: Vec<SocketAddr>) -> Floor {
    let server = FloorServer::bind(FloorConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        dir: dir.to_owned(),
        file_bytes: 4 << 20,
        cpu: None,
        writes_in_flight,
        reply_body_bytes: produce_reply_body_bytes(),
        spin,
        followers,
    })
    .unwrap();
    let (addr, stop) = (server.local_addr().unwrap(), server.stop_handle().unwrap());
    Floor { addr, stop, thread: std::thread::spawn(move || server.run()) }
}

impl Floor {
    fn stop(self) -> FloorTotals {
        self.stop.stop().unwrap();
        self.thread.join().unwrap().unwrap()
    }
}

/// A missing reply ends the test instead of hanging it.
fn connect(floor: &Floor) -> TcpStream {
    let socket = TcpStream::connect(floor.addr).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    socket
}

/// A folder on the disk that the sources are on: O_DIRECT is refused by some temporary file systems.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn shape(outstanding: usize, rate: Option<f64>, measured_ms: u64) -> LoadShape {
    LoadShape { outstanding, rate, warmup: Duration::ZERO, measured: Duration::from_millis(measured_ms) }
}

#[test]
fn every_request_is_answered_once_and_its_bytes_are_in_the_file() {
    let dir = folder();
    let floor = start(dir.path(), 1);
    let mut socket = connect(&floor);
    let mut frames = Vec::new();
    for partition in 0..100u32 {
        let frame = produce_frame(GroupId::new(1, partition), &batch(ONE).unwrap()).unwrap();
        frame.append_to(&mut frames, u64::from(partition) + 1000);
    }
    // Cut in the middle of a frame: the server must put it together again.
    let (first, rest) = frames.split_at(frames.len() / 2 + 7);
    socket.write_all(first).unwrap();
    let reply_bytes = wire::HEADER + produce_reply_body_bytes();
    let mut replies = vec![0; reply_bytes * 100];
    socket.read_exact(&mut replies[..reply_bytes]).unwrap();
    socket.write_all(rest).unwrap();
    socket.read_exact(&mut replies[reply_bytes..]).unwrap();
    for (reply, wanted) in replies.chunks(reply_bytes).zip(1000u64..) {
        assert_eq!(wire::frame_len(reply), Some(reply_bytes));
        assert_eq!(wire::correlation_id(reply), Some(wanted));
    }
    let totals = floor.stop();
    assert_eq!(totals.requests, 100);
    assert!((2..=100).contains(&totals.appends), "{totals:?}");

    // What was acknowledged is in the file: whole frames, each append from a 4 KiB border on.
    let file = std::fs::read(dir.path().join(FILE_NAME)).unwrap();
    let (mut at, mut found) = (0, Vec::new());
    while at < totals.appends as usize * frames.len().next_multiple_of(ALIGN) && found.len() < frames.len() {
        match wire::frame_len(&file[at..]) {
            Some(len) if file[at] == 0xB7 => {
                found.extend_from_slice(&file[at..at + len]);
                at += len;
            }
            _ => at = (at + 1).next_multiple_of(ALIGN),
        }
    }
    assert!(found == frames, "{} of {} bytes found", found.len(), frames.len());
}

#[test]
fn the_load_generator_counts_what_the_server_counts() {
    let dir = folder();
    for (writes, connections, threads, outstanding, rate) in
        [(1, 1, 1, 1, None), (1, 1, 1, 64, None), (2, 5, 2, 16, None), (1, 3, 1, 8, Some(500.0))]
    {
        let floor = start(dir.path(), writes);
        let all = connect_floor(floor.addr, connections, ONE).unwrap();
        let result = load::run(all, threads, None, shape(outstanding, rate, 200)).unwrap();
        let totals = floor.stop();
        assert!(result.replies > 0);
        assert_eq!(result.replies, totals.requests);
        assert_eq!(result.latencies.count(), result.replies, "without warm-up all are measured");
        if let Some(rate) = rate {
            let wanted = (rate * 0.2) as u64;
            // However slow the machine: what was due is sent, late if need be.
            assert!(result.replies.abs_diff(wanted) <= connections as u64, "{} sent", result.replies);
        }
    }
}

#[test]
fn an_append_goes_to_all_followers_and_is_answered_with_the_first_of_them() {
    let dirs = [folder(), folder()];
    let live = start(dirs[0].path(), 1);
    // One follower of two is this test: it answers when it wants to.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let leader = start_with(dirs[1].path(), 1, vec![listener.local_addr().unwrap()]);
    let (mut follower, _) = listener.accept().unwrap();
    let mut socket = connect(&leader);
    let mut frame = Vec::new();
    produce_frame(GroupId::new(1, 0), &batch(ONE).unwrap()).unwrap().append_to(&mut frame, 5);
    socket.write_all(&frame).unwrap();
    let mut copy = vec![0; wire::HEADER + frame.len()];
    follower.read_exact(&mut copy).unwrap();
    assert_eq!(wire::frame_len(&copy), Some(copy.len()));
    assert!(copy.ends_with(&frame), "the follower gets what was produced");
    // Its own disk is done when the file holds it, and that is not enough.
    let in_file = || std::fs::read(dirs[1].path().join(FILE_NAME)).unwrap().starts_with(&frame);
    while !in_file() {
        std::thread::yield_now();
    }
    socket.set_nonblocking(true).unwrap();
    let error = socket.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock, "answered without the follower");
    socket.set_nonblocking(false).unwrap();
    let mut answer = Vec::new();
    wire::append_floor_reply(&mut answer, wire::correlation_id(&copy).unwrap(), 8);
    follower.write_all(&answer).unwrap();
    let mut reply = vec![0; wire::HEADER + produce_reply_body_bytes()];
    socket.read_exact(&mut reply).unwrap();
    assert_eq!(wire::correlation_id(&reply), Some(5));
    leader.stop();

    // With two, one that does not answer holds nothing up.
    let leader = start_with(dirs[1].path(), 2, vec![listener.local_addr().unwrap(), live.addr]);
    let (silent, _) = listener.accept().unwrap();
    let all = connect_floor(leader.addr, 2, ONE).unwrap();
    let result = load::run(all, 1, None, shape(16, None, 100)).unwrap();
    let totals = leader.stop();
    assert!(result.replies > 0);
    assert_eq!(result.replies, totals.requests);
    drop(silent);
    let copied = live.stop();
    // The last ones may still have been on their way.
    assert!(copied.requests > 0 && copied.requests <= totals.appends, "{copied:?} of {totals:?}");
}

#[test]
fn the_parts_of_the_floor_are_measured_sleeping_and_spinning() {
    let dir = folder();
    let time = Duration::from_millis(50);
    let mut file = WrittenFile::create(&dir.path().join("append"), 1 << 20).unwrap();
    let exchange = Exchange { request: vec![7; 300], reply_bytes: 40 };
    for spin in [false, true] {
        let side = Side { cpu: None, spin };
        let appends = append_latencies(&mut file, spin, time).unwrap();
        assert!(appends.count() > 0 && appends.summary().max_us < 10e6, "{:?}", appends.summary());
        let trips = loopback_latencies(&exchange, side, side, Duration::ZERO, time).unwrap();
        assert!(trips.count() > 0, "{:?}", trips.summary());
    }
    let nowhere = Side { cpu: Some(100_000), spin: false };
    let error = loopback_latencies(&exchange, nowhere, nowhere, Duration::ZERO, time).err().unwrap();
    assert!(error.to_string().contains("choose one of"), "{error}");
}

#[test]
fn a_spinning_floor_server_answers_and_stops_like_another() {
    let dir = folder();
    let floor = start_spinning(dir.path());
    let mut frame = Vec::new();
    produce_frame(GroupId::new(1, 0), &batch(ONE).unwrap()).unwrap().append_to(&mut frame, 5);
    let exchange = Exchange { request: frame, reply_bytes: wire::HEADER + produce_reply_body_bytes() };
    let side = Side { cpu: None, spin: false };
    let trips =
        round_trips(connect(&floor), &exchange, side, Duration::ZERO, Duration::from_millis(100)).unwrap();
    let totals = floor.stop();
    assert_eq!((trips.count(), trips.count()), (totals.requests, totals.appends), "one at a time");
}

#[test]
fn a_frame_that_fits_no_buffer_closes_that_connection_only() {
    let dir = folder();
    let floor = start(dir.path(), 1);
    let (mut good, mut bad) = (connect(&floor), connect(&floor));
    let mut header = [0xB7; 16];
    header[4..8].copy_from_slice(&(RECV_BYTES as u32).to_le_bytes());
    bad.write_all(&header).unwrap();
    assert_eq!(bad.read(&mut [0; 8]).unwrap(), 0);
    let mut frame = Vec::new();
    produce_frame(GroupId::new(1, 0), &batch(BatchShape { records: 1, record_bytes: 9 }).unwrap())
        .unwrap()
        .append_to(&mut frame, 5);
    good.write_all(&frame).unwrap();
    let mut reply = vec![0; wire::HEADER + produce_reply_body_bytes()];
    good.read_exact(&mut reply).unwrap();
    assert_eq!(wire::correlation_id(&reply), Some(5));
    assert_eq!(floor.stop().requests, 1);
}

#[test]
fn a_server_that_goes_away_is_an_error_not_a_figure() {
    let dir = folder();
    let floor = start(dir.path(), 1);
    let all = connect_floor(floor.addr, 1, ONE).unwrap();
    floor.stop();
    let error = load::run(all, 1, None, shape(1, None, 200)).err().unwrap();
    assert!(format!("{error:#}").contains("closed") || format!("{error:#}").contains("failed"), "{error:#}");
}

#[test]
fn the_program_says_what_is_wrong_and_fails() {
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_pyralog-bench")).args(args).output().unwrap();
        assert!(!output.status.success(), "{args:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let missing = run(&["pairs", "--server", "/nonexistent/pyralog"]);
    assert!(missing.contains("cargo build --release --bin pyralog"), "{missing}");
    let folder = run(&["floor-server", "--dir", "/nonexistent"]);
    assert!(folder.contains("/nonexistent"), "{folder}");
    // A port that was free a moment ago: nobody listens there.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let refused = run(&["produce", "--floor", "--addr", &free]);
    assert!(refused.contains(&free), "{refused}");
}
