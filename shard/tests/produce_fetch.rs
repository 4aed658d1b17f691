//! Producing and fetching through a real node: sockets, journal, segments, restart.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Write;
use std::time::Duration;

use common::{Client, Rig, batch, fetch, produce, topic};
use pyralog_core::ErrorCode;
use pyralog_core::batch::BatchView;
use pyralog_net::message::{Durability, Request, Response};

/// The values of the records in whole batches, in order.
fn values(batches: &[u8]) -> Vec<Vec<u8>> {
    let (mut rest, mut values, mut scratch) = (batches, Vec::new(), Vec::new());
    while !rest.is_empty() {
        let (batch, after) = BatchView::parse(rest).unwrap();
        assert!(batch.verify_crc());
        for record in batch.records(&mut scratch).unwrap() {
            values.push(record.unwrap().value.unwrap().to_vec());
        }
        rest = after;
    }
    values
}

/// Everything in a partition from its start.
fn read_all(client: &mut Client, topic: u32, partition: u32) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        client.send(&fetch(topic, partition, all.len() as i64));
        let (_, reply, batches) = client.reply().unwrap();
        let Response::Fetch(head) = reply else { panic!("{reply:?}") };
        assert_eq!(head.batch_bytes as usize, batches.len());
        if batches.is_empty() {
            assert_eq!(head.high_watermark, all.len() as i64);
            return all;
        }
        all.append(&mut values(&batches));
    }
}

#[test]
fn what_is_acknowledged_reads_back_and_survives_a_restart() {
    let mut rig = Rig::new(2);
    let (topic, first) = topic(&rig, "t", 4);
    let mut clients = [first, Client::new(rig.addr(), 1)];
    let mut expected = vec![Vec::new(); 4];
    for round in 0..50u32 {
        for partition in 0..4u32 {
            let value = format!("{partition}/{round}").repeat(40).into_bytes();
            let batch = batch(i64::from(round), &[&value, b"second"]);
            let mut answered = false;
            for client in &mut clients {
                match client.ask(&produce(topic, partition, &batch)) {
                    Response::Produce(reply) => {
                        assert_eq!(reply.base_offset, i64::from(round) * 2);
                        assert_eq!(reply.durability, Durability::QuorumDurable);
                        answered = true;
                    }
                    Response::Error(error) => assert_eq!(error.code, ErrorCode::NotLeader),
                    other => panic!("{other:?}"),
                }
            }
            assert!(answered, "some shard leads the partition");
            expected[partition as usize].extend([value, b"second".to_vec()]);
        }
    }
    let owner = |rig: &Rig, partition: u32| -> u16 {
        let led = rig.node().ask_partitions(Some(topic));
        drop(led);
        (0..2)
            .find(|shard| {
                let mut client = Client::new(rig.addr(), *shard);
                client.send(&fetch(topic, partition, 0));
                matches!(client.reply().unwrap().1, Response::Fetch(_))
            })
            .unwrap()
    };
    assert_eq!(rig.node().partitions(Some(topic)).len(), 4);
    for restart in [false, true] {
        if restart {
            rig.stop();
            rig.start(2, |_| {});
        }
        for partition in 0..4 {
            let mut client = Client::new(rig.addr(), owner(&rig, partition));
            assert_eq!(read_all(&mut client, topic, partition), expected[partition as usize]);
        }
    }
}

#[test]
fn large_batches_span_receive_buffers_and_come_back_whole() {
    let rig = Rig::new(1);
    let (topic, mut client) = topic(&rig, "t", 1);
    let mut expected = Vec::new();
    for (index, len) in [1usize, 60_000, 65_400, 65_536, 131_000, 400_000, 1_000_000].into_iter().enumerate()
    {
        let value: Vec<u8> = (0..len).map(|at| (at * (index + 3) % 251) as u8).collect();
        // Between small ones, in one go.
        let mut out = Vec::new();
        Request::Ping.encode(1000, &mut out).unwrap();
        produce(topic, 0, &batch(0, &[&value])).encode(1001, &mut out).unwrap();
        Request::Ping.encode(1002, &mut out).unwrap();
        let mut writer = client.stream.try_clone().unwrap();
        let sender = std::thread::spawn(move || writer.write_all(&out).unwrap());
        let mut seen: Vec<u64> = (0..3).map(|_| client.reply().unwrap().0).collect();
        seen.sort_unstable();
        assert_eq!(seen, [1000, 1001, 1002]);
        sender.join().unwrap();
        expected.push(value);
    }
    assert_eq!(read_all(&mut client, topic, 0), expected);
}

#[test]
fn many_writers_at_once_get_distinct_offsets() {
    let rig = Rig::new(1);
    let (topic, _first) = topic(&rig, "t", 1);
    let addr = rig.addr();
    let writers: Vec<_> = (0..16u32)
        .map(|writer| {
            std::thread::spawn(move || {
                let mut client = Client::new(addr, 0);
                let batch = batch(0, &[writer.to_le_bytes().as_slice()]);
                (0..100).for_each(|_| _ = client.send(&produce(topic, 0, &batch)));
                let offset = |client: &mut Client| match client.reply().unwrap().1 {
                    Response::Produce(reply) => reply.base_offset,
                    other => panic!("{other:?}"),
                };
                (0..100).map(|_| offset(&mut client)).collect::<Vec<i64>>()
            })
        })
        .collect();
    let mut offsets = Vec::new();
    for writer in writers {
        let of_one = writer.join().unwrap();
        assert!(of_one.is_sorted(), "replies of one partition come in the order of the requests");
        offsets.extend(of_one);
    }
    offsets.sort_unstable();
    assert_eq!(offsets, (0..1600).collect::<Vec<i64>>());
    let report = rig.node().status().remove(0);
    assert!(report.status.counters.commits < 1600, "group commits: {}", report.status.counters.commits);
    assert_eq!(report.produce_us.len(), 1600);
}

#[test]
fn a_reader_that_stops_reading_costs_bounded_memory_and_the_writer_goes_on() {
    let rig = Rig::with(1, |options| {
        options.request_timeout = Duration::from_secs(60);
        options.engine.max_buffer_time_us = 50_000;
    });
    let (topic, mut writer) = topic(&rig, "t", 1);
    let value = vec![5; 900_000];
    let batch = batch(0, &[&value]);
    writer.ask(&produce(topic, 0, &batch));
    // Asks for everything, reads nothing.
    let mut slow: Vec<Client> = (0..8).map(|_| Client::new(rig.addr(), 0)).collect();
    for round in 0..150 {
        for client in &mut slow {
            // Given up on by the shard it can't write any more: that is what is wanted.
            let mut out = Vec::new();
            fetch(topic, 0, round).encode(1, &mut out).unwrap();
            let _ = client.stream.write(&out);
        }
        let reply = loop {
            match writer.ask(&produce(topic, 0, &batch)) {
                Response::Error(error) if error.code == ErrorCode::Overloaded => {}
                reply => break reply,
            }
        };
        assert!(matches!(reply, Response::Produce(_)), "{reply:?}");
        let status = rig.node().status().remove(0).status;
        assert!(
            status.cache_live_bytes <= status.cache_budget_bytes,
            "{} of {} bytes",
            status.cache_live_bytes,
            status.cache_budget_bytes
        );
    }
}

#[test]
fn an_idle_node_sleeps() {
    let rig = Rig::new(2);
    let (topic, mut client) = topic(&rig, "t", 2);
    client.ask(&produce(topic, 0, &batch(0, &[b"x"])));
    // What follows from the produce, the flush of the cache above all, takes a moment.
    let mut before = 0;
    rig.until("the shards come to rest", |node| {
        std::thread::sleep(Duration::from_millis(1500));
        let passes = node.status().iter().map(|report| report.passes).sum::<u64>();
        let rested = passes - before <= 12;
        before = passes;
        rested
    });
}

#[test]
fn more_large_frames_than_memory_for_them_all_get_through() {
    let rig = Rig::with(1, |options| options.engine.cache_bytes = 256 << 20);
    let (topic, mut good) = topic(&rig, "t", 1);
    let batch = batch(0, &[&vec![9; 1_000_000]]);
    let mut frame = Vec::new();
    produce(topic, 0, &batch).encode(77, &mut frame).unwrap();
    // 72 frames of 1 MB begun; there is memory for 67 of them.
    let mut clients: Vec<Client> = (0..72).map(|_| Client::new(rig.addr(), 0)).collect();
    for _ in 0..2 {
        for client in &mut clients {
            client.stream.write_all(&frame[..90_000]).unwrap();
        }
        assert_eq!(good.ask(&Request::Ping), Response::Pong);
        let frame = &frame;
        std::thread::scope(|scope| {
            for client in &mut clients {
                scope.spawn(move || {
                    client.stream.write_all(&frame[90_000..]).unwrap();
                    loop {
                        let (correlation, reply, _) = client.reply().unwrap();
                        assert_eq!(correlation, 77);
                        match reply {
                            Response::Produce(_) => return,
                            // The one that finds the cache or the journal full is told so; the others wait.
                            Response::Error(error) if error.code == ErrorCode::Overloaded => {
                                client.stream.write_all(frame).unwrap();
                            }
                            other => panic!("{other:?}"),
                        }
                    }
                });
            }
        });
    }
    assert_eq!(rig.node().partitions(Some(topic))[0].1.high_watermark, 144);
}
