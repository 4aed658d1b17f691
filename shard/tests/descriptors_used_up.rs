//! A process without a free descriptor when somebody connects. A file of its own: the limit is for the whole process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant};

use common::{Client, Rig};
use pyralog_net::message::{Request, Response};

/// Allows this process `more` descriptors than it has, or all that it may have.
fn allow_descriptors(more: Option<usize>) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a live struct.
    unsafe { assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0) };
    limit.rlim_cur = more.map_or(limit.rlim_max, |more| (common::descriptors() + more) as libc::rlim_t);
    // SAFETY: a live struct.
    unsafe { assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0) };
}

#[test]
fn a_node_without_descriptors_serves_on_and_accepts_again_later() {
    // Nothing has to be written meanwhile, which would open and close files.
    let rig = Rig::with(1, |options| {
        options.engine.max_buffer_time_us = 3_600_000_000;
        options.engine.journal_files_ahead = false;
    });
    let mut good = Client::new(rig.addr(), 0);
    assert_eq!(good.ask(&Request::Ping), Response::Pong);
    allow_descriptors(Some(64));
    let mut hoard = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        hoard.push(file);
    }
    // The last one goes to the client; the node has none for its end.
    hoard.pop().expect("there were some");
    let mut late = Client::silent(rig.addr());
    assert!(File::open("/dev/null").is_err(), "none is left");
    let passes = |rig: &Rig| rig.node().status()[0].passes;
    let (before, started) = (passes(&rig), Instant::now());
    late.stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    assert!(late.stream.read(&mut [0]).is_err(), "nobody answers");
    // It tries ten times a second. The questions for its state cost a few passes each.
    let (tried, bound) = (passes(&rig) - before, 50 + started.elapsed().as_millis() / 10);
    assert!(u128::from(tried) < bound, "{tried} passes in {:?}: it spins", started.elapsed());
    assert_eq!(rig.node().status()[0].accepted, 1);
    assert_eq!(good.ask(&Request::Ping), Response::Pong);
    drop(hoard);
    late.stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
    assert_eq!(late.hello(0).unwrap().shard, 0);
    assert_eq!(late.ask(&Request::Ping), Response::Pong);
    assert_eq!(good.ask(&Request::Ping), Response::Pong);
    assert_eq!(Client::new(rig.addr(), 0).ask(&Request::Ping), Response::Pong);
    allow_descriptors(None);
}
