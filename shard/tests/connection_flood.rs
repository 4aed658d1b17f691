//! 12,000 connections that end in every bad way. A file of its own, as it counts the descriptors of its process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Write;
use std::net::Shutdown;
use std::time::Duration;

use common::{Client, Rig};
use pyralog_net::frame::MAGIC;
use pyralog_net::message::{Request, Response};

const SHARDS: usize = 2;

/// Memory of this process, bytes.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn a_flood_of_broken_off_connections_leaves_nothing_behind() {
    let rig = Rig::new(SHARDS);
    // The cache's memory is made at the start, in idle time: it is not to be counted.
    let cache = SHARDS * common::options(rig.dir.path(), SHARDS).engine.cache_bytes;
    rig.until("the cache's memory is made", |_| resident_bytes() > cache);
    let before = descriptors_but_files();
    let memory = resident_bytes();
    let mut good = Client::new(rig.addr(), 1);
    for _ in 0..30 {
        let mut clients: Vec<Client> = (0..400).map(|_| Client::silent(rig.addr())).collect();
        for (index, client) in clients.iter_mut().enumerate() {
            match index % 5 {
                0 => {}
                1 => client.stream.write_all(&[MAGIC, 1, 1]).unwrap(),
                2 => drop(client.hello((index % 2) as u16).unwrap()),
                3 => client.stream.shutdown(Shutdown::Write).unwrap(),
                _ => {
                    client.hello((index % 2) as u16).unwrap();
                    client.send(&Request::Ping);
                    // Closed with the answer unread: a reset.
                    socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
                }
            }
        }
        drop(clients);
        assert_eq!(good.ask(&Request::Ping), Response::Pong);
    }
    rig.until("all are gone", |_| rig.connections() == 1);
    drop(good);
    rig.until("the last one is gone", |_| rig.connections() == 0);
    assert_eq!(descriptors_but_files(), before);
    // Receive buffers are populated by use: that much is no leak.
    let allowed = memory + (48 << 20);
    assert!(resident_bytes() < allowed, "{} bytes of memory, {memory} before", resident_bytes());
}

/// Open descriptors without those of files, which come and go with what the shards write meanwhile.
fn descriptors_but_files() -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = open.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    // A path for a file; `socket:[…]`, `anon_inode:…` and the like for everything else.
    targets.filter(|target| !target.is_absolute()).count()
}
