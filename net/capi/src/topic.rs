//! Topics.

use std::ffi::c_char;
use std::mem::size_of;

use pyralog_core::Quorums;
use pyralog_net::client::StartAt;
use pyralog_net::message::{CreateTopicRequest, OffsetSpec};

use crate::args::{self, Out};
use crate::client::ClientHandle;
use crate::error::{Failure, guard};
use crate::sized::{self, Growing};
use crate::status::*;

/// What a new topic is like. Set it up with pyralog_topic_config_init(). Where 0 stands for the node's default, that
/// is what its configuration says.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct TopicSettings {
    /// Bytes of this struct.
    pub size: usize,
    /// Partitions, 1 or more.
    pub partitions: u32,
    /// Copies of each partition; 0 = the node's default.
    pub replication_factor: u32,
    /// Copies that must be durable before PYRALOG_ACKS_QUORUM is acknowledged; 0 = the node's default.
    pub write_quorum: u32,
    /// Copies that a linearizable read asks; 0 = the node's default.
    pub read_quorum: u32,
    /// Copies that must be in sync for a partition to take writes; 0 = the node's default.
    pub min_insync_replicas: u32,
    /// 0.
    pub reserved: u32,
    /// Retention by size per partition, bytes; -1 = the node's default, 0 = unlimited.
    pub retention_bytes: i64,
    /// Retention by age, milliseconds; -1 = the node's default, 0 = unlimited.
    pub retention_ms: i64,
}

// SAFETY: `repr(C)`; a size and integers whose sizes leave no padding.
unsafe impl Growing for TopicSettings {
    const FIRST_BYTES: usize = size_of::<Self>();
    const NAME: &'static str = "pyralog_topic_config_t";

    fn with_size(self, size: usize) -> Self {
        Self { size, ..self }
    }
}

impl TopicSettings {
    pub(crate) fn new() -> Self {
        Self {
            size: size_of::<Self>(),
            partitions: 1,
            replication_factor: 0,
            write_quorum: 0,
            read_quorum: 0,
            min_insync_replicas: 0,
            reserved: 0,
            retention_bytes: -1,
            retention_ms: -1,
        }
    }

    fn quorums(&self) -> Result<Quorums, Failure> {
        args::zero(self.reserved)?;
        let copies = |number: u32, name| args::fitting(u64::from(number), name);
        Ok(Quorums {
            replication_factor: copies(self.replication_factor, "replication_factor")?,
            write_quorum: copies(self.write_quorum, "write_quorum")?,
            read_quorum: copies(self.read_quorum, "read_quorum")?,
            min_insync_replicas: copies(self.min_insync_replicas, "min_insync_replicas")?,
        })
    }
}

/// Where to begin, from its two numbers.
pub(crate) fn start_at(start: i32, value: i64) -> Result<StartAt, Failure> {
    args::choice(
        start,
        "start",
        &[
            (PYRALOG_START_EARLIEST, StartAt::Earliest),
            (PYRALOG_START_LATEST, StartAt::Latest),
            (PYRALOG_START_OFFSET, StartAt::Offset(value)),
            (PYRALOG_START_TIMESTAMP, StartAt::Timestamp(value)),
        ],
    )
}

/// Fills in the defaults. size: sizeof(pyralog_topic_config_t).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_topic_config_init(config: *mut TopicSettings, size: usize) -> i32 {
    // SAFETY: the caller has a struct of this size there.
    guard(|| unsafe { sized::write(TopicSettings::new(), config, size) })
}

/// Creates a topic. config may be NULL: one partition, the node's defaults. Not tried again when the outcome is unknown:
/// then pyralog_topic_partitions() tells whether it is there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_topic_create(
    client: *const ClientHandle,
    name: *const c_char,
    config: *const TopicSettings,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's pointers are null or what the header says.
        let (client, name, config) = unsafe {
            let client = args::reference(client, "client")?;
            (client, args::text(name, "name")?, sized::read(config, TopicSettings::new())?)
        };
        let TopicSettings { partitions, retention_bytes, retention_ms, .. } = config;
        let quorums = config.quorums()?;
        let request = CreateTopicRequest { name, partitions, quorums, retention_bytes, retention_ms };
        client.with(|client| client.create_topic_with(request)).map(drop)
    })
}

/// Deletes a topic and its data. One that is not there may be one that the node has not heard of yet: it is tried again
/// for retry_for_ms.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_topic_delete(client: *const ClientHandle, name: *const c_char) -> i32 {
    guard(|| {
        // SAFETY: the caller's pointers are null or what the header says.
        let (client, name) = unsafe { (args::reference(client, "client")?, args::text(name, "name")?) };
        client.with(|client| client.delete_topic(name))
    })
}

/// How many partitions a topic has; PYRALOG_ERROR_UNKNOWN_TOPIC_OR_PARTITION when there is none of that name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_topic_partitions(
    client: *const ClientHandle,
    name: *const c_char,
    partitions: *mut u32,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's pointers are null or what the header says.
        let (client, name, partitions) = unsafe {
            let partitions = Out::new(partitions, "partitions")?;
            (args::reference(client, "client")?, args::text(name, "name")?, partitions)
        };
        let topic = client.with(|client| {
            // It may have been deleted, or made anew, since it was asked for.
            client.forget_topic(name);
            client.topic(name)
        })?;
        partitions.set(args::fitting(topic.partitions.len() as u64, "the number of partitions")?);
        Ok(())
    })
}

/// Finds an offset of a partition. start: a PYRALOG_START_ number; value: the timestamp of PYRALOG_START_TIMESTAMP,
/// else not looked at. PYRALOG_START_LATEST finds the offset that the next record gets, as far as it is known.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_topic_offset(
    client: *const ClientHandle,
    name: *const c_char,
    partition: u32,
    start: i32,
    value: i64,
    offset: *mut i64,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's pointers are null or what the header says.
        let (client, name, offset) = unsafe {
            let offset = Out::new(offset, "offset")?;
            (args::reference(client, "client")?, args::text(name, "name")?, offset)
        };
        let spec = match start_at(start, value)? {
            StartAt::Earliest => OffsetSpec::Earliest,
            StartAt::Latest => OffsetSpec::Latest,
            StartAt::Timestamp(timestamp) => OffsetSpec::Timestamp(timestamp),
            StartAt::Offset(_) => {
                return Err(Failure::argument(
                    "an offset needs no finding; ask for earliest, latest or a timestamp",
                ));
            }
        };
        offset.set(client.with(|client| client.list_offsets(name, partition, spec))?.offset);
        Ok(())
    })
}
