//! The client library: producers and consumers for programs, over `std::net` and without any async runtime of its own.
//!
//! # A cluster and a topic
//!
//! Any node knows the whole cluster; the addresses of one or a few are enough to begin with. A [`Client`] asks and
//! administers; producers and consumers are made from one.
//!
//! ```no_run
//! use pyralog_net::client::{Client, ClientConfig};
//! use pyralog_net::message::CreateTopicRequest;
//! # fn main() -> Result<(), pyralog_net::client::ClientError> {
//! let addresses = ["10.0.0.1:9092", "10.0.0.2:9092", "10.0.0.3:9092"];
//! let config = ClientConfig { name: "orders-service".into(), ..ClientConfig::default() };
//! let mut client = Client::new(&addresses, config);
//! client.create_topic("orders", 6, -1, -1)?; // six partitions, the node's retention
//! # Ok(())
//! # }
//! ```
//!
//! # Producing
//!
//! A [`Producer`] is shared by all threads and tasks of a program. Records are put into batches, batches go to the
//! leaders of their partitions in the background, and each record gets an outcome. It is idempotent: whatever is sent again
//! after a lost connection or a dead leader is in the log once, and in the order of `send`.
//!
//! ```no_run
//! use std::time::Duration;
//! use pyralog_core::Outcome;
//! use pyralog_net::client::{Client, ClientConfig, Producer, ProducerConfig, ProducerRecord};
//! # async fn f() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::new(&["10.0.0.1:9092"], ClientConfig::default());
//! let config = ProducerConfig { linger: Duration::from_millis(2), ..ProducerConfig::default() };
//! let producer = Producer::new(client, "orders", config)?;
//!
//! // In a task of any runtime. `try_send` never blocks; it refuses when `buffer_memory` is used up.
//! let delivery = producer.try_send(ProducerRecord::keyed(b"customer 7", b"two pizzas"))?;
//! match delivery.await {
//!     Ok(placed) => println!("partition {} offset {}", placed.partition, placed.offset),
//!     Err(error) if error.outcome() == Outcome::NotAccepted => println!("not in the log: {error}"),
//!     Err(error) => println!("may be in the log, don't send it again blindly: {error}"),
//! }
//!
//! // In a thread: `send` waits for room, `wait` for the outcome. Or a callback, which must not block.
//! producer.send(ProducerRecord::value(b"one more"))?.wait()?;
//! producer.send_with(ProducerRecord::value(b"and another"), |outcome| println!("{outcome:?}"))?;
//!
//! producer.close(Duration::from_secs(30))?; // what has no outcome by then fails, and says so
//! # Ok(())
//! # }
//! ```
//!
//! Batches grow by themselves: with `linger` zero a batch goes as soon as fewer than `max_in_flight` of its partition are
//! under way, so that a lone record waits for nobody, and under load the next batch gathers what comes meanwhile.
//!
//! ## The slowest request
//!
//! A thread that cares about the time of each record has a [`DirectProducer`]: the record is sent by the calling thread, at
//! once, without another thread, a lock or an allocation. With a CPU of its own it may spin for the reply, which saves the
//! wake-up.
//!
//! ```no_run
//! use std::time::Duration;
//! use pyralog_net::client::{Client, ClientConfig, DirectConfig, DirectProducer};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::new(&["10.0.0.1:9092"], ClientConfig::default());
//! let config = DirectConfig { spin: Duration::from_micros(200), ..DirectConfig::default() };
//! let mut producer = DirectProducer::new(client, "ticks", config)?;
//! let placed = producer.send(0, None, Some(b"EURUSD 1.0842"))?; // durable on a quorum when this returns
//! # drop(placed);
//! # Ok(())
//! # }
//! ```
//!
//! [`IdempotentProducer`] is for one thread that moves much data and must stop at the first failure: it has no thread of its
//! own, and no record's outcome is told but by the end of [`IdempotentProducer::flush`].
//!
//! # Consuming
//!
//! A [`Consumer`] reads partitions in their order and keeps its positions, across lost connections and new leaders. While
//! records are visited, the next ones are fetched. Checksums are checked, compressed batches are decompressed, and records
//! borrow from the buffer that they were received into. Where to go on after a restart is the program's to keep: the offset
//! behind the last record that it has dealt with.
//!
//! ```no_run
//! use std::time::Duration;
//! use pyralog_net::client::{Client, ClientConfig, ClientError, Consumer, ConsumerConfig, StartAt};
//! # fn main() -> Result<(), ClientError> {
//! let client = Client::new(&["10.0.0.1:9092"], ClientConfig::default());
//! let starts = [(0, StartAt::Earliest), (1, StartAt::Offset(4711)), (2, StartAt::Latest)];
//! let mut consumer = Consumer::assigned(client, "orders", &starts, ConsumerConfig::default())?;
//! loop {
//!     consumer.poll_partitions(Duration::from_secs(1), |partition, record| -> Result<(), ClientError> {
//!         println!("{partition}/{}: {:?}", record.offset, record.value);
//!         Ok(())
//!     })?;
//! }
//! # }
//! ```
//!
//! # Errors
//!
//! Every error says what may be concluded: [`ClientError::outcome`] whether the request may have had an effect,
//! [`ClientError::retriable`] whether it can succeed without anybody changing it, [`ClientError::code`] the protocol's code.
//! What passes by itself is tried again within the times of the configuration before anybody hears of it.
//!
//! # Underneath
//!
//! [`Connection`] is one socket to one shard of a node: pipelined requests, replies borrowed from its buffer, for those who
//! want the protocol itself. Nothing but [`Producer`] starts threads (two). A connection that was never used for anything
//! large holds a few kilobytes.

mod api;
mod backoff;
mod connection;
mod consumer;
mod describe;
mod error;
mod place;
mod producer;
mod reassign;

pub use api::{Client, ClientConfig, NodeInfo};
pub use connection::{Connection, Received};
pub use consumer::{Consumer, ConsumerConfig, Polled, StartAt};
pub use describe::{Described, NodeAnswer};
pub use error::ClientError;
pub use place::Place;
pub use producer::{
    Ack, Delivery, DeliveryError, DirectConfig, DirectProducer, IdempotentProducer, OnAck, Partitioner,
    Producer, ProducerConfig, ProducerRecord, ProducerStats, RecordMetadata,
};
pub use pyralog_core::murmur2::partition_for_key;
