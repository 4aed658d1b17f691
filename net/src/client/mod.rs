//! A plain blocking client over `std::net`: what the admin tool, the demo, the tests and the bench need.
//!
//! - [`Connection`]: one socket, pipelined requests, replies borrowed from its buffer.
//! - [`Client`]: topics, offsets and fetches, with one connection per shard of each node and retries. It learns the
//!   cluster from any node, and goes to whoever leads.
//! - [`IdempotentProducer`]: every record exactly once and in order, whatever happens to the connections.
//! - [`Consumer`]: the records of one partition, checked and decompressed.
//!
//! Nothing here starts a thread. A connection that was never used for anything large holds a few kilobytes.

mod api;
mod backoff;
mod connection;
mod consumer;
mod describe;
mod error;
mod place;
mod producer;

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
