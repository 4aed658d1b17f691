//! A disk that refuses writes for a while. A file of its own: the refusal (RLIMIT_FSIZE) is for the whole process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Instant;

use common::{Client, PATIENCE, Rig, batch, fetch, produce, topic};
use pyralog_core::batch::BatchView;
use pyralog_core::{GroupId, Outcome};
use pyralog_net::message::{Consistency, FetchRequest, Request, Response};
use pyralog_shard::runtime::ControlEvent;

/// Writes at or above this position of any file fail from now on.
fn refuse_writes_from(bytes: libc::rlim_t) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: a live struct; and a signal disposition that no other test of this process needs.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
    }
}

/// Produces; whether it was acknowledged. Anything else must say that its fate is open or that nothing happened.
fn try_produce(client: &mut Client, topic: u32, batch: &[u8]) -> Option<bool> {
    client.try_send(&produce(topic, 0, batch))?;
    match client.reply()?.1 {
        Response::Produce(_) => Some(true),
        Response::Error(error) => {
            let known = matches!(error.code.outcome(), Outcome::NotAccepted | Outcome::Unknown);
            assert!(known && error.code.retriable(), "{}", error.code);
            Some(false)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_shard_whose_disk_fails_fences_itself_and_comes_back_with_all_it_acknowledged() {
    let rig = Rig::new(1);
    let (topic, mut client) = topic(&rig, "t", 1);
    let value = vec![3; 200_000];
    let mut acknowledged = 0i64;
    for _ in 0..10 {
        assert_eq!(try_produce(&mut client, topic, &batch(0, &[&value])), Some(true));
        acknowledged += 1;
    }
    refuse_writes_from(1 << 20);
    let mut refused = 0;
    for _ in 0..3 {
        match try_produce(&mut client, topic, &batch(0, &[&value])) {
            Some(true) => panic!("acknowledged what the disk refused"),
            Some(false) => refused += 1,
            // Fenced: clients are disconnected.
            None => {
                refused += 1;
                break;
            }
        }
    }
    assert!(refused > 0);
    refuse_writes_from(libc::RLIM_INFINITY);
    let end = Instant::now() + PATIENCE;
    let mut client = loop {
        assert!(Instant::now() < end, "never served again");
        let mut client = Client::silent(rig.addr());
        // Who comes before the disk was read again is disconnected.
        let welcome = client.try_hello(0).is_some_and(|reply| reply.is_ok());
        if welcome && try_produce(&mut client, topic, &batch(0, &[b"after"])) == Some(true) {
            acknowledged += 1;
            break client;
        }
    };
    let (mut records, mut whole) = (0i64, 0);
    loop {
        client.send(&fetch(topic, 0, records));
        let (_, reply, batches) = client.reply().unwrap();
        assert!(matches!(reply, Response::Fetch(_)), "{reply:?}");
        let mut rest = &batches[..];
        if rest.is_empty() {
            break;
        }
        while !rest.is_empty() {
            let (batch, after) = BatchView::parse(rest).unwrap();
            assert!(batch.verify_crc());
            assert_eq!(batch.base_offset(), records);
            records = batch.last_offset() + 1;
            whole += 1;
            rest = after;
        }
    }
    assert!(
        (acknowledged..=acknowledged + refused).contains(&whole),
        "{whole} of {acknowledged} acknowledged"
    );
    let status = rig.node().status().remove(0).status;
    assert_eq!(status.fenced, None);
    let lines: Vec<String> = rig
        .control
        .try_iter()
        .filter_map(|event| match event {
            ControlEvent::Log { text, .. } => Some(text),
            _ => None,
        })
        .collect();
    assert!(
        lines.iter().any(|line| line.contains("fenced") && line.contains("File too large")),
        "{lines:#?}"
    );
    assert!(lines.iter().any(|line| line.starts_with("recovered after")), "{lines:#?}");

    // It fails again soon, so the node pauses before it reads the disk. Who asks the fenced shard meanwhile is not
    // left waiting when its engine goes.
    refuse_writes_from(1 << 20);
    while try_produce(&mut client, topic, &batch(0, &[&value])).is_some() {}
    rig.until("fenced again", |node| node.status().iter().any(|report| report.status.fenced.is_some()));
    refuse_writes_from(libc::RLIM_INFINITY);
    let mut waiting = Client::silent(rig.addr());
    let group = GroupId::new(topic, 0);
    let request = FetchRequest {
        group,
        offset: records,
        min_bytes: 1,
        max_bytes: 1 << 20,
        max_wait_ms: 5_000,
        consistency: Consistency::Leader,
    };
    if waiting.try_hello(0).is_some() && waiting.try_send(&Request::Fetch(request)).is_some() {
        let _closed_or_answered = waiting.reply();
    }
    drop((client, waiting));
    rig.until("serves again", |node| node.status().iter().all(|report| report.status.fenced.is_none()));
    rig.until("no connection is left", |_| rig.connections() == 0);
}
