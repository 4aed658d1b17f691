//! Measurements, not checks: `cargo test --release --test ping_measure -- --ignored --nocapture`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Instant;

use common::{Client, Rig};
use pyralog_net::message::Request;

fn ping(rig: &Rig, rounds: u32) {
    let mut client = Client::new(rig.addr(), 0);
    let mut histogram = hdrhistogram::Histogram::<u64>::new(3).unwrap();
    let before = rig.node().status()[0].ring;
    for _ in 0..rounds {
        let started = Instant::now();
        client.ask(&Request::Ping);
        histogram.record(started.elapsed().as_nanos() as u64 / 100).unwrap();
    }
    let ring = rig.node().status()[0].ring;
    println!(
        "ping: p50 {:.1} us, p99 {:.1} us, p999 {:.1} us; {:.3} enters, {:.3} operations per ping",
        histogram.value_at_quantile(0.5) as f64 / 10.0,
        histogram.value_at_quantile(0.99) as f64 / 10.0,
        histogram.value_at_quantile(0.999) as f64 / 10.0,
        (ring.enters - before.enters) as f64 / f64::from(rounds),
        (ring.submitted - before.submitted) as f64 / f64::from(rounds),
    );
}

#[test]
#[ignore = "a measurement"]
fn ping_one_at_a_time() {
    for spin_us in [0, 50] {
        let rig = Rig::with(1, |options| options.spin_us = spin_us);
        print!("spin {spin_us} us: ");
        ping(&rig, 30_000);
    }
}

#[test]
#[ignore = "a measurement"]
fn produce_one_at_a_time() {
    let rig = Rig::new(1);
    let (topic, mut client) = common::topic(&rig, "t", 1);
    let batch = common::batch(0, &[[7; 256].as_slice()]);
    let mut histogram = hdrhistogram::Histogram::<u64>::new(3).unwrap();
    let before = rig.node().status()[0].ring;
    const ROUNDS: u32 = 10_000;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        client.ask(&common::produce(topic, 0, &batch));
        histogram.record(started.elapsed().as_nanos() as u64 / 100).unwrap();
    }
    let report = rig.node().status().remove(0);
    let value = |quantile| histogram.value_at_quantile(quantile) as f64 / 10.0;
    println!(
        "produce: p50 {:.1}, p99 {:.1}, p999 {:.1} us; journal write p50 {} us; {:.3} enters, {:.3} operations",
        value(0.5),
        value(0.99),
        value(0.999),
        report.journal_write_us.value_at_quantile(0.5),
        (report.ring.enters - before.enters) as f64 / f64::from(ROUNDS),
        (report.ring.submitted - before.submitted) as f64 / f64::from(ROUNDS),
    );
}

#[test]
#[ignore = "a measurement"]
fn idle() {
    let rig = Rig::new(2);
    let (topic, mut client) = common::topic(&rig, "t", 64);
    client.ask(&common::produce(topic, 0, &common::batch(0, &[b"x"])));
    let clients: Vec<Client> = (0..1000).map(|index| Client::new(rig.addr(), index % 2)).collect();
    std::thread::sleep(std::time::Duration::from_secs(5));
    let cpu = || {
        // SAFETY: fills a live struct.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
            usage
        };
        let us = |time: libc::timeval| time.tv_sec as f64 * 1e6 + time.tv_usec as f64;
        us(usage.ru_utime) + us(usage.ru_stime)
    };
    let passes = || rig.node().status().iter().map(|report| report.passes).sum::<u64>();
    let (before, passes_before) = (cpu(), passes());
    std::thread::sleep(std::time::Duration::from_secs(15));
    let (used, passed) = (cpu() - before, passes() - passes_before);
    println!(
        "idle: {:.3} % of a core, {passed} passes in 15 s, {} connections",
        used / 150_000.0,
        clients.len()
    );
}
