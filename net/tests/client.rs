//! The client against a peer that breaks connections and refuses requests.

#![allow(clippy::unwrap_used)]

mod peer;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use peer::{Peer, TOPIC};
use pyralog_core::batch::{Compression, Record};
use pyralog_core::{ErrorCode, Outcome};
use pyralog_net::client::*;
use pyralog_net::message::{Consistency, FetchRequest, OffsetSpec, Request, Response};

const TIMEOUT: Duration = Duration::from_secs(30);

fn client(peer: &Peer) -> Client {
    Client::new(&[&peer.address], ClientConfig { name: "test".into(), ..ClientConfig::default() })
}

fn value(partition: u32, index: u32) -> Vec<u8> {
    format!("{partition}/{index}").into_bytes()
}

/// An error that carries a client's, as a program's own would.
#[derive(Debug)]
enum Failure {
    Client(#[allow(dead_code)] ClientError),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

fn consume(peer: &Peer, partition: u32, count: usize) -> Vec<Vec<u8>> {
    let config = ConsumerConfig::default();
    let mut consumer = Consumer::new(client(peer), TOPIC, partition, StartAt::Earliest, config).unwrap();
    let mut values = Vec::new();
    while values.len() < count {
        let polled = consumer
            .poll(Duration::ZERO, |record| {
                assert_eq!(record.offset, values.len() as i64);
                values.push(record.value.unwrap().to_vec());
                Ok::<_, Failure>(())
            })
            .unwrap();
        assert!(polled.records > 0, "the log ends at {} of {count}", values.len());
    }
    assert_eq!(consumer.position(), count as i64);
    values
}

fn every_record_once_and_in_order(seed: u64, compression: Compression) -> ProducerStats {
    const RECORDS: u32 = 4_000;
    let peer = Peer::start(2, 3, seed);
    let config = ProducerConfig { batch_size: 300, compression, ..ProducerConfig::default() };
    let mut producer = IdempotentProducer::new(client(&peer), TOPIC, config).unwrap();
    let acks = Arc::new(Mutex::new(Vec::new()));
    let seen = acks.clone();
    producer.on_ack(Box::new(move |ack| seen.lock().unwrap().push(*ack)));
    for index in 0..RECORDS {
        for partition in 0..3 {
            producer.send(partition, i64::from(index), None, Some(&value(partition, index)), &[]).unwrap();
        }
        if index % 1000 == 0 {
            producer.flush().unwrap();
            assert_eq!(producer.unacknowledged_records(), 0);
        }
    }
    producer.flush().unwrap();
    for partition in 0..3 {
        let expected: Vec<_> = (0..RECORDS).map(|index| value(partition, index)).collect();
        assert!(peer.values(partition) == expected, "partition {partition} of seed {seed} differs");
        assert!(consume(&peer, partition, RECORDS as usize) == expected, "consumed from seed {seed}");
        let acks = acks.lock().unwrap();
        let mut next = 0;
        for ack in acks.iter().filter(|ack| ack.partition == partition) {
            assert_eq!(
                ack.base_offset, next,
                "acknowledgements come in order and name the first append's offset"
            );
            next += i64::from(ack.records);
        }
        assert_eq!(next, i64::from(RECORDS));
    }
    assert_eq!(producer.stats().acked_records, 3 * u64::from(RECORDS));
    producer.stats()
}

#[test]
fn without_faults_nothing_is_sent_twice() {
    let stats = every_record_once_and_in_order(0, Compression::None);
    assert_eq!((stats.retries, stats.duplicates, stats.reconnects), (0, 0, 0));
}

#[test]
fn lost_connections_refusals_and_timeouts_neither_lose_nor_repeat_a_record() {
    let mut duplicates = 0;
    for seed in [11, 12, 13, 14] {
        let stats = every_record_once_and_in_order(seed, Compression::None);
        assert!(stats.retries > 0 && stats.reconnects > 0, "{stats:?}");
        duplicates += stats.duplicates;
    }
    assert!(duplicates > 0, "some attempt got through before its connection broke");
}

#[test]
fn compressed_batches_survive_faults_too() {
    every_record_once_and_in_order(21, Compression::Lz4);
    every_record_once_and_in_order(22, Compression::Zstd);
}

#[test]
fn a_fenced_session_fails_for_good() {
    let peer = Peer::start(1, 1, 0);
    let mut producer = IdempotentProducer::new(client(&peer), TOPIC, ProducerConfig::default()).unwrap();
    producer.send(0, 1, None, Some(b"first"), &[]).unwrap();
    producer.flush().unwrap();
    peer.fence_producers();
    producer.send(0, 1, None, Some(b"second"), &[]).unwrap();
    let error = producer.flush().unwrap_err();
    assert_eq!((error.code(), error.outcome()), (ErrorCode::ProducerFenced, Outcome::NotAccepted));
    let error = producer.send(0, 1, None, Some(b"third"), &[]).unwrap_err();
    assert_eq!(error.code(), ErrorCode::ProducerFenced);
    assert!(error.to_string().contains("start a new one"), "{error}");
    assert_eq!(peer.values(0), [b"first"]);
}

#[test]
fn a_node_that_is_gone_fails_the_producer_at_its_deadline_with_an_unknown_outcome() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = listener.local_addr().unwrap().to_string();
    let peer = Peer::start(1, 1, 0);
    let config = ProducerConfig { delivery_timeout: Duration::from_millis(50), ..ProducerConfig::default() };
    let client = Client::new(&[&peer.address], ClientConfig::default());
    let mut producer = IdempotentProducer::new(client, TOPIC, config).unwrap();
    drop(listener);
    let missing =
        Client::new(&[&nobody], ClientConfig { retry_for: Duration::ZERO, ..ClientConfig::default() });
    let error = IdempotentProducer::new(missing, TOPIC, ProducerConfig::default()).unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error}");
    assert!(error.retriable() && error.outcome() == Outcome::NotAccepted);

    peer.refuse_all();
    producer.send(0, 1, None, Some(b"x"), &[]).unwrap();
    let error = producer.flush().unwrap_err();
    assert!(matches!(error, ClientError::DeliveryTimeout { records: 1, .. }), "{error}");
    assert_eq!(error.outcome(), Outcome::Unknown);
    assert!(!error.retriable());
}

#[test]
fn a_record_that_no_batch_can_hold_is_refused_and_the_producer_goes_on() {
    let peer = Peer::start(1, 1, 0);
    let mut producer = IdempotentProducer::new(client(&peer), TOPIC, ProducerConfig::default()).unwrap();
    producer.send(0, 1, None, Some(b"a"), &[]).unwrap();
    let error = producer.send(0, 1, None, Some(&vec![0; 2 << 20]), &[]).unwrap_err();
    assert!(matches!(error, ClientError::Batch(_)), "{error}");
    assert!(matches!(producer.send(1, 1, None, None, &[]), Err(ClientError::Usage(_))));
    producer.send(0, 1, None, Some(&vec![b'x'; 1_000_000]), &[]).unwrap();
    producer.send(0, 1, None, Some(&vec![b'y'; 1_000_000]), &[]).unwrap();
    producer.flush().unwrap();
    let lengths: Vec<_> = peer.values(0).iter().map(Vec::len).collect();
    assert_eq!(lengths, [1, 1_000_000, 1_000_000]);
}

#[test]
fn requests_are_pipelined_and_replies_name_theirs() {
    let peer = Peer::start(2, 1, 0);
    let mut connection = Connection::connect(&peer.address, Some(1), TIMEOUT).unwrap();
    assert_eq!((connection.hello().shard, connection.hello().shards), (1, 2));
    assert!(matches!(connection.recv(), Err(ClientError::Usage(_))));
    let ids: Vec<_> = (0..500).map(|_| connection.send(&Request::Ping).unwrap()).collect();
    assert_eq!(connection.outstanding(), 500);
    assert!(matches!(connection.call(&Request::Ping), Err(ClientError::Usage(_))));
    for id in ids {
        let received = connection.recv().unwrap();
        assert_eq!((received.correlation_id, received.response), (id, Response::Pong));
    }
    assert_eq!(connection.call(&Request::Ping).unwrap().response, Response::Pong);
}

#[test]
fn a_shard_that_does_not_exist_is_refused_with_the_count() {
    let peer = Peer::start(2, 1, 0);
    let error = Connection::connect(&peer.address, Some(2), TIMEOUT).unwrap_err();
    assert!(error.to_string().contains("has 2 shards"), "{error}");
    assert!(!error.retriable());
}

#[test]
fn an_address_that_keeps_silent_does_not_keep_a_client_from_the_others() {
    // The system takes the connection; nobody ever answers on it.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = Peer::start(1, 1, 0);
    let addresses = [silent.local_addr().unwrap().to_string(), peer.address.clone()];
    let config = ClientConfig { connect_timeout: TIMEOUT, ..ClientConfig::default() };
    let begun = Instant::now();
    Client::new(&addresses, config).topic(TOPIC).unwrap();
    assert!(begun.elapsed() < TIMEOUT / 2, "{:?}", begun.elapsed());
}

#[test]
fn a_wait_that_times_out_can_go_on() {
    // A peer that shakes hands and answers only when it is told to.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (answer, wait) = std::sync::mpsc::channel::<()>();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        peer::shake_hands(&mut stream);
        wait.recv().unwrap();
        peer::answer_pings(&mut stream);
    });
    let mut connection = Connection::connect(&address, None, TIMEOUT).unwrap();
    let id = connection.send(&Request::Ping).unwrap();
    let error = connection.recv_within(Duration::from_millis(1)).unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { timeout_ms: 1, .. }), "{error}");
    answer.send(()).unwrap();
    assert_eq!(connection.recv().unwrap().correlation_id, id);
    drop(connection);
    server.join().unwrap();
}

#[test]
fn what_is_no_pyralog_node_is_told_as_such() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        stream
    });
    let error = Connection::connect(&address, None, TIMEOUT).unwrap_err();
    assert!(matches!(error, ClientError::Protocol { .. }), "{error}");
    assert!(error.to_string().contains("something else listens there"), "{error}");
    drop(server.join().unwrap());
}

#[test]
fn offsets_fetches_and_positions() {
    let peer = Peer::start(2, 2, 0);
    let mut producer = IdempotentProducer::new(client(&peer), TOPIC, ProducerConfig::default()).unwrap();
    for index in 0..10 {
        producer.send(1, 1, None, Some(&value(1, index)), &[]).unwrap();
    }
    producer.flush().unwrap();
    let mut client = client(&peer);
    assert_eq!(client.list_offsets(TOPIC, 1, OffsetSpec::Latest).unwrap().offset, 10);
    let error = client.list_offsets(TOPIC, 9, OffsetSpec::Latest).unwrap_err();
    assert_eq!(error.code(), ErrorCode::UnknownTopicOrPartition);
    let error = client.list_offsets("no-such-topic", 0, OffsetSpec::Latest).unwrap_err();
    assert!(error.to_string().contains("no-such-topic"), "{error}");
    let group = pyralog_core::GroupId::METADATA;
    let request = FetchRequest {
        group,
        offset: 0,
        min_bytes: 0,
        max_bytes: 1 << 20,
        max_wait_ms: 0,
        consistency: Consistency::Leader,
    };
    let mut bytes = Vec::new();
    let head = client.fetch(TOPIC, 1, request, &mut bytes).unwrap();
    assert_eq!((head.high_watermark, head.batch_bytes as usize), (10, bytes.len()));

    // In the middle of a batch: what comes before is left out; an error of the visitor keeps the position.
    let config = ConsumerConfig::default();
    let mut consumer = Consumer::new(client, TOPIC, 1, StartAt::Offset(4), config).unwrap();
    let stopped = consumer.poll(Duration::ZERO, |record| match record.offset {
        4 | 5 => Ok(()),
        _ => Err(ClientError::Usage("stop".into())),
    });
    assert!(matches!(stopped, Err(ClientError::Usage(_))));
    assert_eq!(consumer.position(), 6);
    let polled = consumer.poll::<ClientError>(Duration::ZERO, |_| Ok(())).unwrap();
    assert_eq!((polled.records, consumer.position()), (4, 10));
}

#[test]
fn several_partitions_are_read_each_once_and_in_its_order_whatever_breaks() {
    const RECORDS: u32 = 500;
    for seed in [0, 51, 52, 53] {
        let peer = Peer::start(2, 3, seed);
        let config = ProducerConfig { batch_size: 300, ..ProducerConfig::default() };
        let mut producer = IdempotentProducer::new(client(&peer), TOPIC, config).unwrap();
        for index in 0..RECORDS {
            for partition in 0..3 {
                producer.send(partition, 1, None, Some(&value(partition, index)), &[]).unwrap();
            }
        }
        producer.flush().unwrap();
        let starts = [(0, StartAt::Earliest), (1, StartAt::Offset(100)), (2, StartAt::Earliest)];
        let config = ConsumerConfig::default();
        let mut consumer = Consumer::assigned(client(&peer), TOPIC, &starts, config).unwrap();
        let mut next = [0, 100, 0];
        let mut left = 3 * RECORDS - 100;
        while left > 0 {
            let polled = consumer
                .poll_partitions(Duration::ZERO, |partition, record| {
                    let place = &mut next[partition as usize];
                    assert_eq!(record.offset, *place, "partition {partition}, seed {seed}");
                    assert_eq!(record.value.unwrap(), value(partition, *place as u32));
                    *place += 1;
                    Ok::<_, Failure>(())
                })
                .unwrap();
            assert!(polled.records > 0, "{left} are left of seed {seed}");
            left -= polled.records as u32;
        }
        assert_eq!(consumer.position_of(1), Some(i64::from(RECORDS)));
        // Back, while the next fetch may be under way, and one of them no more.
        consumer.assign(1, StartAt::Offset(490)).unwrap();
        consumer.unassign(0);
        let mut read = Vec::new();
        let mut visit = |partition, record: Record<'_>| {
            read.push((partition, record.offset));
            Ok::<_, Failure>(())
        };
        while consumer.poll_partitions(Duration::ZERO, &mut visit).unwrap().records > 0 {}
        assert_eq!(read, (490..500).map(|offset| (1, offset)).collect::<Vec<_>>());
    }
}
