//! Producers: three faces of one machine that brings batches of a topic to their leaders ([`sender`]).
//!
//! - [`Producer`]: for applications. Any thread or task sends; batches form and go in the background; each record has a
//!   future, or a callback.
//! - [`DirectProducer`]: for threads that care about the time of each record. It is sent now, by the calling thread.
//! - [`IdempotentProducer`]: for one thread that moves much and stops at the first failure.

mod config;
mod delivery;
mod direct;
mod handle;
mod idempotent;
mod link;
mod queue;
mod record;
mod resolver;
mod sender;
mod shared;

pub use config::{Ack, Partitioner, ProducerConfig, ProducerStats};
pub use delivery::{Delivery, DeliveryError, RecordMetadata};
pub use direct::{DirectConfig, DirectProducer};
pub use handle::Producer;
pub use idempotent::{IdempotentProducer, OnAck};
pub use record::ProducerRecord;
