//! The producer for applications, and the one for each record at once, against a peer that breaks connections and
//! refuses requests.

#![allow(clippy::unwrap_used, clippy::panic)]

mod peer;

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use peer::{Peer, TOPIC};
use pyralog_core::{ErrorCode, Outcome};
use pyralog_net::client::*;

const LONG: Duration = Duration::from_secs(60);

fn client(peer: &Peer) -> Client {
    Client::new(&[&peer.address], ClientConfig { name: "test".into(), ..ClientConfig::default() })
}

fn producer(peer: &Peer, config: ProducerConfig) -> Producer {
    Producer::new(client(peer), TOPIC, config).unwrap()
}

/// A time of one's own for records, and everything else as usual.
fn impatient(delivery_timeout: Duration) -> ProducerConfig {
    ProducerConfig { delivery_timeout, ..ProducerConfig::default() }
}

/// Several threads send; each record is where its outcome says, once, and those of one thread are in its order.
fn every_outcome_is_true(seed: u64, config: ProducerConfig) -> ProducerStats {
    const THREADS: u32 = 4;
    const RECORDS: u32 = 3_000;
    let peer = Peer::start(2, 3, seed);
    let producer = producer(&peer, config);
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let producer = producer.clone();
            std::thread::spawn(move || {
                let deliveries: Vec<_> = (0..RECORDS)
                    .map(|index| {
                        let value = format!("{thread}/{index}").into_bytes();
                        let record = ProducerRecord::value(&value).to(index % 3);
                        let delivery = producer.send(record).unwrap();
                        (value, delivery)
                    })
                    .collect();
                let told = |(value, delivery): (_, Delivery)| (value, delivery.wait().unwrap());
                deliveries.into_iter().map(told).collect::<Vec<_>>()
            })
        })
        .collect();
    let told: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let log: Vec<_> = (0..3).map(|partition| peer.values(partition)).collect();
    assert_eq!(log.iter().map(Vec::len).sum::<usize>() as u32, THREADS * RECORDS, "each once");
    for of_thread in told {
        let mut last = [-1; 3];
        for (value, placed) in of_thread {
            assert_eq!(log[placed.partition as usize][placed.offset as usize], value);
            assert!(placed.offset > last[placed.partition as usize], "in the order of the thread");
            last[placed.partition as usize] = placed.offset;
        }
    }
    let stats = producer.stats();
    assert_eq!((stats.acked_records, stats.failed_records), (u64::from(THREADS * RECORDS), 0));
    producer.close(LONG).unwrap();
    stats
}

#[test]
fn many_threads_send_and_each_record_has_an_outcome_that_is_true() {
    let stats = every_outcome_is_true(0, ProducerConfig::default());
    assert_eq!((stats.retries, stats.duplicates, stats.reconnects), (0, 0, 0));
    assert!(stats.acked_batches < 12_000, "batches form while others are under way");
}

#[test]
fn faults_neither_lose_nor_repeat_a_record() {
    let config = ProducerConfig { batch_size: 300, buffer_memory: 4_000, ..ProducerConfig::default() };
    let mut duplicates = 0;
    for seed in [21, 22, 23, 24] {
        let stats = every_outcome_is_true(seed, config.clone());
        assert!(stats.retries > 0 && stats.reconnects > 0, "{stats:?}");
        duplicates += stats.duplicates;
    }
    assert!(duplicates > 0, "some attempt got through before its connection broke");
}

#[test]
fn a_batch_lingers_for_more_until_it_is_full_or_flushed() {
    let peer = Peer::start(1, 1, 0);
    let config = ProducerConfig { linger: LONG, batch_size: 1 << 10, ..ProducerConfig::default() };
    let producer = producer(&peer, config);
    for _ in 0..10 {
        drop(producer.send(ProducerRecord::value(b"small")).unwrap());
    }
    let last = producer.send(ProducerRecord::value(b"small")).unwrap();
    assert!(last.wait_timeout(Duration::from_millis(50)).is_none());
    producer.flush(LONG).unwrap();
    assert_eq!((last.wait().unwrap().offset, peer.batches(0)), (10, 1));
    let full = producer.send(ProducerRecord::value(&[7; 2 << 10])).unwrap();
    full.wait_timeout(LONG).unwrap().unwrap();
    // What lingers at the end goes, too.
    let at_the_end = producer.send(ProducerRecord::value(b"end")).unwrap();
    producer.close(LONG).unwrap();
    assert_eq!(at_the_end.try_get().unwrap().unwrap().offset, 12);
}

#[test]
fn a_small_linger_is_over_by_itself() {
    let peer = Peer::start(1, 1, 0);
    let config = ProducerConfig { linger: Duration::from_millis(20), ..ProducerConfig::default() };
    let producer = producer(&peer, config);
    let deliveries: Vec<_> =
        (0..5).map(|_| producer.send(ProducerRecord::value(b"together")).unwrap()).collect();
    assert!(deliveries.into_iter().all(|delivery| delivery.wait_timeout(LONG).unwrap().is_ok()));
}

#[test]
fn keys_go_where_kafka_sends_them_and_others_everywhere() {
    let peer = Peer::start(2, 6, 0);
    for partitioner in [Partitioner::Sticky, Partitioner::RoundRobin] {
        let producer = producer(&peer, ProducerConfig { partitioner, ..ProducerConfig::default() });
        for key in [b"alice".as_slice(), b"bob", b"carol"] {
            let placed = producer.send(ProducerRecord::keyed(key, b"v")).unwrap().wait().unwrap();
            assert_eq!(placed.partition, partition_for_key(key, 6));
        }
        let mut used = [0; 6];
        for _ in 0..60 {
            let placed = producer.send(ProducerRecord::value(b"v")).unwrap().wait().unwrap();
            used[placed.partition as usize] += 1;
        }
        assert_eq!(used, [10; 6], "{partitioner:?}");
    }
}

#[test]
fn what_can_not_be_sent_is_refused_at_once() {
    let peer = Peer::start(1, 2, 0);
    let producer = producer(&peer, ProducerConfig::default());
    let refused = producer.send(ProducerRecord::value(b"v").to(2)).unwrap_err();
    assert!(refused.to_string().contains("2 partitions"), "{refused}");
    let refused = producer.send(ProducerRecord::value(&[0; 2 << 20])).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::TooLarge);
    let clone = producer.clone();
    producer.flush(LONG).unwrap();
    producer.close(LONG).unwrap();
    let refused = clone.send(ProducerRecord::value(b"late")).unwrap_err();
    assert!(refused.to_string().contains("closed"), "{refused}");
}

#[test]
fn without_room_a_send_waits_for_as_long_as_it_may() {
    let peer = Peer::start(1, 1, 0);
    peer.refuse_all();
    let max_block = Duration::from_millis(30);
    let producer = producer(&peer, ProducerConfig { buffer_memory: 5_000, max_block, ..impatient(LONG) });
    let full = loop {
        match producer.try_send(ProducerRecord::value(&[1; 400])) {
            Ok(_) => assert!(peer.values(0).is_empty()),
            Err(error) => break error,
        }
    };
    assert!(matches!(full, ClientError::BufferFull { buffered_bytes } if buffered_bytes >= 5_000), "{full}");
    assert_eq!((full.code(), full.outcome()), (ErrorCode::Overloaded, Outcome::NotAccepted));
    let full = producer.send(ProducerRecord::value(b"more")).unwrap_err();
    assert!(matches!(full, ClientError::BufferFull { .. }), "{full}");
    // Nothing was ever accepted, so that is what the end tells.
    let error = producer.close(Duration::from_millis(1)).unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
}

#[test]
fn the_outcome_is_unknown_only_when_the_record_may_be_there() {
    let refusing = Peer::start(1, 1, 0);
    refusing.refuse_all();
    let refused = producer(&refusing, impatient(Duration::from_millis(200)));
    let error = refused.send(ProducerRecord::value(b"v")).unwrap().wait().unwrap_err();
    assert_eq!((error.outcome(), error.code()), (Outcome::NotAccepted, ErrorCode::NotReady), "{error}");
    assert!(refusing.values(0).is_empty());

    let silent = Peer::start(1, 1, 0);
    let unanswered = producer(&silent, impatient(Duration::from_millis(200)));
    silent.swallow();
    let told = Arc::new(Mutex::new(None));
    let tell = Arc::clone(&told);
    unanswered
        .send_with(ProducerRecord::value(b"v"), move |outcome| *tell.lock().unwrap() = Some(outcome))
        .unwrap();
    unanswered.flush(LONG).unwrap();
    let error = told.lock().unwrap().take().unwrap().unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    assert_eq!(silent.values(0).len(), 1);
    assert_eq!(unanswered.stats().failed_records, 1);
}

#[test]
fn what_is_left_at_the_end_fails_and_says_so() {
    let peer = Peer::start(1, 1, 0);
    let producer = producer(&peer, impatient(LONG));
    peer.swallow();
    let delivery = producer.send(ProducerRecord::value(b"v")).unwrap();
    while peer.batches(0) == 0 {
        std::thread::yield_now();
    }
    assert!(producer.close(Duration::from_millis(20)).is_err());
    let error = delivery.wait().unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
}

#[test]
fn after_a_failure_the_others_go_on_in_a_new_session() {
    let peer = Peer::start(1, 2, 0);
    let producer = producer(&peer, impatient(LONG));
    let send = |partition| {
        let value = format!("{partition}");
        producer.send(ProducerRecord::value(value.as_bytes()).to(partition)).unwrap().wait()
    };
    send(0).unwrap();
    send(1).unwrap();
    peer.fence_sessions();
    let error = send(0).unwrap_err();
    assert_eq!((error.code(), error.outcome()), (ErrorCode::ProducerFenced, Outcome::NotAccepted));
    assert_eq!(send(0).unwrap().offset, 1);
    assert_eq!(send(0).unwrap().offset, 2);
    // The other partition learns of it by itself.
    assert_eq!(send(1).unwrap_err().code(), ErrorCode::ProducerFenced);
    assert_eq!(send(1).unwrap().offset, 1);
}

#[test]
fn what_was_sent_is_delivered_after_the_last_handle_is_gone() {
    let peer = Peer::start(1, 1, 0);
    let producer = producer(&peer, ProducerConfig { linger: LONG, ..impatient(LONG) });
    let delivery = producer.send(ProducerRecord::value(b"v")).unwrap();
    drop(producer);
    assert_eq!(delivery.wait().unwrap().offset, 0);
}

#[test]
fn without_idempotence_batches_carry_no_session_and_arrive_at_least_once() {
    let peer = Peer::start(1, 1, 31);
    let config = ProducerConfig { idempotent: false, max_in_flight: 1, batch_size: 100, ..impatient(LONG) };
    let producer = producer(&peer, config);
    let deliveries: Vec<_> = (0..2_000u32)
        .map(|index| producer.send(ProducerRecord::value(&index.to_le_bytes())).unwrap())
        .collect();
    producer.flush(LONG).unwrap();
    let values = peer.values(0);
    for (index, delivery) in (0u32..).zip(deliveries) {
        let placed = delivery.try_get().unwrap().unwrap();
        assert_eq!(values[placed.offset as usize], index.to_le_bytes());
    }
    assert!(producer.stats().retries > 0);
}

#[test]
fn a_direct_producer_sends_each_record_at_once() {
    for (seed, spin) in [(0, Duration::ZERO), (0, Duration::from_micros(50)), (41, Duration::ZERO)] {
        let peer = Peer::start(2, 2, seed);
        let config = DirectConfig { spin, ..DirectConfig::default() };
        let mut producer = DirectProducer::new(client(&peer), TOPIC, config).unwrap();
        for index in 0..500u32 {
            let placed = producer.send(index % 2, None, Some(&index.to_le_bytes())).unwrap();
            assert_eq!((placed.partition, placed.offset), (index % 2, i64::from(index / 2)));
        }
        assert_eq!((peer.batches(0), peer.batches(1)), (250, 250));
        let numbers: Vec<_> =
            (0..20).map(|index: u32| producer.submit(0, None, Some(&index.to_le_bytes())).unwrap()).collect();
        assert!(producer.send(0, None, None).is_err(), "others have to be received first");
        let mut received = Vec::new();
        let (number, outcome) = producer.receive(LONG).unwrap();
        assert_eq!(outcome.unwrap().offset, 250);
        received.push(number);
        assert!(producer.send(0, None, None).is_err(), "whether or not their replies are there");
        while let Some((number, outcome)) = producer.receive(LONG) {
            assert_eq!(outcome.unwrap().offset, 250 + received.len() as i64);
            received.push(number);
        }
        assert_eq!(received, numbers);
        assert!(producer.receive(Duration::ZERO).is_none());
        let refused = producer.send(7, None, None).unwrap_err();
        assert_eq!(refused.outcome(), Outcome::NotAccepted);
    }
}

#[test]
fn a_session_that_the_node_has_forgotten_goes_on_as_another() {
    let peer = Peer::start(1, 1, 0);
    let producer = producer(&peer, impatient(LONG));
    for round in 0..3 {
        for number in 0..10 {
            let placed = producer.send(ProducerRecord::value(b"v")).unwrap().wait().unwrap();
            assert_eq!(placed.offset, round * 10 + number);
        }
        peer.forget_producers();
    }
    assert_eq!(producer.stats().failed_records, 0);
}

#[test]
fn what_waits_for_its_turn_grows_old_too() {
    let peer = Peer::start(1, 1, 0);
    peer.refuse_all();
    let config = ProducerConfig { batch_size: 1, max_in_flight: 1, ..impatient(Duration::from_millis(300)) };
    let producer = producer(&peer, config);
    let deliveries: Vec<_> = (0..200).map(|_| producer.send(ProducerRecord::value(b"v")).unwrap()).collect();
    // Each after the other, they would take a minute.
    producer.flush(Duration::from_secs(20)).unwrap();
    assert!(deliveries.iter().all(|delivery| delivery.try_get().unwrap().is_err()));
    producer.close(Duration::MAX).unwrap();
}

#[test]
fn a_waker_or_a_callback_that_panics_harms_nobody_else() {
    struct Panics;
    impl std::task::Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("on purpose");
        }
    }
    let peer = Peer::start(1, 1, 0);
    let config = ProducerConfig { linger: LONG, ..impatient(Duration::MAX) };
    let producer = producer(&peer, config);
    let mut polled = producer.send(ProducerRecord::value(b"v")).unwrap();
    let waker = std::task::Waker::from(Arc::new(Panics));
    let mut context = std::task::Context::from_waker(&waker);
    assert!(std::pin::Pin::new(&mut polled).poll(&mut context).is_pending());
    producer.send_with(ProducerRecord::value(b"v"), |_| panic!("on purpose")).unwrap();
    let other = producer.send(ProducerRecord::value(b"v")).unwrap();
    producer.flush(LONG).unwrap();
    assert_eq!(other.wait().unwrap().offset, 2);
    let later = producer.send(ProducerRecord::value(b"v")).unwrap();
    producer.flush(LONG).unwrap();
    assert_eq!(later.wait().unwrap().offset, 3);
}

/// CPU time of this thread so far.
fn cpu_time() -> Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel fills the structure, for which zeros are valid, too.
    let usage = unsafe {
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()), 0);
        usage.assume_init()
    };
    let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}

#[test]
fn who_waits_for_a_leader_does_not_burn_a_cpu() {
    let peer = Peer::start(1, 2, 0);
    let config = ConsumerConfig { retry_for: Duration::from_millis(600), ..ConsumerConfig::default() };
    let starts = [(0, StartAt::Earliest), (1, StartAt::Earliest)];
    let mut consumer = Consumer::assigned(client(&peer), TOPIC, &starts, config).unwrap();
    peer.refuse_fetches();
    let before = cpu_time();
    let begun = Instant::now();
    let error = consumer.poll::<ClientError>(Duration::ZERO, |_| Ok(())).unwrap_err();
    assert_eq!(error.code(), ErrorCode::NotReady);
    let (waited, used) = (begun.elapsed(), cpu_time() - before);
    assert!(waited >= Duration::from_millis(300), "it tries again: {waited:?}");
    assert!(used < waited / 4, "{used:?} of {waited:?}");
}

#[test]
fn those_behind_a_refused_first_batch_are_sent_again_with_it() {
    let peer = Peer::start(1, 1, 0);
    let config = ProducerConfig { batch_size: 1, linger: LONG, ..impatient(LONG) };
    let producer = producer(&peer, config);
    peer.refuse_next();
    let deliveries: Vec<_> = (0..20).map(|_| producer.send(ProducerRecord::value(b"v")).unwrap()).collect();
    for (offset, delivery) in (0..).zip(deliveries) {
        assert_eq!(delivery.wait().unwrap().offset, offset);
    }
}
