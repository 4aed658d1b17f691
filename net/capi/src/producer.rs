//! The producer: a thread of its own that batches and sends.

use std::ffi::{c_char, c_void};
use std::mem::size_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pyralog_core::batch::Compression;
use pyralog_net::client::{Partitioner, Producer, ProducerConfig, ProducerRecord, ProducerStats};
use pyralog_net::message::Acks;

use crate::args::{self, Out};
use crate::client::ClientHandle;
use crate::delivery::{Delivered, DeliveryParts};
use crate::error::{Failure, guard, guard_quietly};
use crate::queue::QueueHandle;
use crate::record::RecordParts;
use crate::sized::{self, Growing};
use crate::status::*;

/// How a producer behaves. Set it up with pyralog_producer_config_init().
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ProducerSettings {
    /// Bytes of this struct.
    pub size: usize,
    /// When a record is acknowledged: a PYRALOG_ACKS_ number.
    pub acks: i32,
    /// Compression of the batches: a PYRALOG_COMPRESSION_ number.
    pub compression: i32,
    /// How long a batch waits for more records, microseconds. 0: it goes as soon as its partition has room in flight.
    pub linger_us: u64,
    /// A batch goes at the latest when it has reached this size, bytes; at most 1 MiB.
    pub batch_bytes: u64,
    /// Memory for records without an outcome, bytes.
    pub buffer_bytes: u64,
    /// Batches of one partition under way at once; at most 5 when idempotent.
    pub max_in_flight: u32,
    /// 1: each record is in the log at most once and in the order of its sending, whatever happens to the connections.
    /// 0: a record that is sent again may be there twice.
    pub idempotent: i32,
    /// Where records without key and partition go: a PYRALOG_PARTITIONER_ number.
    pub partitioner: i32,
    /// 0.
    pub reserved: u32,
    /// A record without an acknowledgement after this time has failed, milliseconds.
    pub delivery_timeout_ms: u64,
    /// Longest time that sending waits for room in the buffer, milliseconds. 0: it fails at once with
    /// PYRALOG_ERROR_OVERLOADED.
    pub max_block_ms: u64,
}

// SAFETY: `repr(C)`; a size and integers whose sizes leave no padding.
unsafe impl Growing for ProducerSettings {
    const FIRST_BYTES: usize = size_of::<Self>();
    const NAME: &'static str = "pyralog_producer_config_t";

    fn with_size(self, size: usize) -> Self {
        Self { size, ..self }
    }
}

pub(crate) const ACKS: [(i32, Acks); 3] = [
    (PYRALOG_ACKS_NONE, Acks::None),
    (PYRALOG_ACKS_LEADER, Acks::Leader),
    (PYRALOG_ACKS_QUORUM, Acks::Quorum),
];
const COMPRESSIONS: [(i32, Compression); 3] = [
    (PYRALOG_COMPRESSION_NONE, Compression::None),
    (PYRALOG_COMPRESSION_LZ4, Compression::Lz4),
    (PYRALOG_COMPRESSION_ZSTD, Compression::Zstd),
];

impl ProducerSettings {
    pub(crate) fn new() -> Self {
        let config = ProducerConfig::default();
        Self {
            size: size_of::<Self>(),
            acks: config.acks as i32,
            compression: config.compression as i32,
            linger_us: u64::try_from(config.linger.as_micros()).unwrap_or(u64::MAX),
            batch_bytes: config.batch_size as u64,
            buffer_bytes: config.buffer_memory as u64,
            max_in_flight: config.max_in_flight as u32,
            idempotent: i32::from(config.idempotent),
            partitioner: match config.partitioner {
                Partitioner::Sticky => PYRALOG_PARTITIONER_STICKY,
                Partitioner::RoundRobin => PYRALOG_PARTITIONER_ROUND_ROBIN,
            },
            reserved: 0,
            delivery_timeout_ms: args::as_milliseconds(config.delivery_timeout),
            max_block_ms: args::as_milliseconds(config.max_block),
        }
    }

    pub(crate) fn config(&self) -> Result<ProducerConfig, Failure> {
        args::zero(self.reserved)?;
        let partitioners = [
            (PYRALOG_PARTITIONER_STICKY, Partitioner::Sticky),
            (PYRALOG_PARTITIONER_ROUND_ROBIN, Partitioner::RoundRobin),
        ];
        Ok(ProducerConfig {
            acks: args::choice(self.acks, "acks", &ACKS)?,
            compression: args::choice(self.compression, "compression", &COMPRESSIONS)?,
            linger: args::microseconds(self.linger_us),
            batch_size: args::fitting(self.batch_bytes, "batch_bytes")?,
            buffer_memory: args::fitting(self.buffer_bytes, "buffer_bytes")?,
            max_in_flight: args::fitting(u64::from(self.max_in_flight), "max_in_flight")?,
            idempotent: args::flag(self.idempotent, "idempotent")?,
            partitioner: args::choice(self.partitioner, "partitioner", &partitioners)?,
            delivery_timeout: args::milliseconds(self.delivery_timeout_ms),
            max_block: args::milliseconds(self.max_block_ms),
        })
    }
}

/// Is told what became of a record, once for each send that returned PYRALOG_OK. Called by the producer's thread, which
/// sends nothing meanwhile; the delivery is valid during the call. user: what pyralog_producer_send() was given.
pub type DeliveryCallback = Option<unsafe extern "C" fn(delivery: *const DeliveryParts, user: *mut c_void)>;

/// What a producer has done. Before passing one to a function that fills it in, set its size.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ProducerTotals {
    /// Bytes of this struct.
    pub size: usize,
    /// Batches acknowledged.
    pub acked_batches: u64,
    /// Records acknowledged.
    pub acked_records: u64,
    /// Bytes of the batches acknowledged.
    pub acked_bytes: u64,
    /// Of the batches, how many the node had already.
    pub duplicates: u64,
    /// Records that have failed.
    pub failed_records: u64,
    /// Failures of requests and connections after which something was sent again.
    pub retries: u64,
    /// Connections made after the first of each shard.
    pub reconnects: u64,
}

// SAFETY: `repr(C)`; a size and integers whose sizes leave no padding.
unsafe impl Growing for ProducerTotals {
    const FIRST_BYTES: usize = size_of::<Self>();
    const NAME: &'static str = "pyralog_producer_stats_t";

    fn with_size(self, size: usize) -> Self {
        Self { size, ..self }
    }
}

impl ProducerTotals {
    fn of(stats: ProducerStats) -> Self {
        Self {
            size: size_of::<Self>(),
            acked_batches: stats.acked_batches,
            acked_records: stats.acked_records,
            acked_bytes: stats.acked_bytes,
            duplicates: stats.duplicates,
            failed_records: stats.failed_records,
            retries: stats.retries,
            reconnects: stats.reconnects,
        }
    }
}

/// A producer for one topic: batches records, sends them from a thread of its own, sends them again after errors that
/// pass. Any threads may use one at the same time, but for closing and freeing it.
#[derive(Debug)]
pub struct ProducerHandle {
    producer: Producer,
    max_block: Duration,
    closed: AtomicBool,
}

/// What the caller gave with a record, on its way to the producer's thread and back.
#[derive(Clone, Copy, Debug)]
struct User(*mut c_void);

// SAFETY: it is not looked at, only given back; the header says on which thread.
unsafe impl Send for User {}

impl User {
    fn pointer(self) -> *mut c_void {
        self.0
    }
}

impl ProducerHandle {
    fn open(&self) -> Result<&Producer, Failure> {
        if self.closed.load(Ordering::Acquire) { Err(Failure::closed()) } else { Ok(&self.producer) }
    }
}

/// The handle and the record of a call.
///
/// # Safety
/// The pointers are null or valid; the record's may not be changed during `with`.
unsafe fn with_record<T>(
    producer: *const ProducerHandle,
    record: *const RecordParts,
    with: impl FnOnce(&ProducerHandle, ProducerRecord<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    // SAFETY: as for this function.
    unsafe {
        let producer = args::reference(producer, "producer")?;
        producer.open()?;
        args::reference(record, "record")?.with(|record| with(producer, record))
    }
}

/// Fills in the defaults. size: sizeof(pyralog_producer_config_t).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_producer_config_init(config: *mut ProducerSettings, size: usize) -> i32 {
    // SAFETY: the caller has a struct of this size there.
    guard(|| unsafe { sized::write(ProducerSettings::new(), config, size) })
}

/// A producer for a topic that exists. config may be NULL: defaults. It does not need the client any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_producer_new(
    client: *const ClientHandle,
    topic: *const c_char,
    config: *const ProducerSettings,
    producer: *mut *mut ProducerHandle,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's pointers are null or what the header says.
        let (client, topic, config, producer) = unsafe {
            let producer = Out::new(producer, "producer")?;
            let client = args::reference(client, "client")?;
            let topic = args::text(topic, "topic")?;
            (client, topic, sized::read(config, ProducerSettings::new())?.config()?, producer)
        };
        let max_block = config.max_block;
        let made = Producer::new(client.another(), topic, config)?;
        let closed = AtomicBool::new(false);
        producer.set(args::into_handle(ProducerHandle { producer: made, max_block, closed }));
        Ok(())
    })
}

/// Sends a record: takes a copy of it and returns; waits up to max_block_ms for room. What becomes of it is told to
/// callback, which may be NULL: then only pyralog_producer_stats() knows.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_producer_send(
    producer: *const ProducerHandle,
    record: *const RecordParts,
    callback: DeliveryCallback,
    user: *mut c_void,
) -> i32 {
    let send = |producer: &ProducerHandle, record: ProducerRecord<'_>| {
        let user = User(user);
        producer.open()?.send_with(record, move |result| {
            let Some(callback) = callback else { return };
            let delivered = Delivered::new(result).with_user(user.pointer());
            let parts = delivered.parts();
            // SAFETY: the caller's function, called with a delivery that is valid meanwhile.
            unsafe { callback(&raw const parts, user.pointer()) }
        })?;
        Ok(())
    };
    // SAFETY: the caller's pointers are null or what the header says.
    guard(|| unsafe { with_record(producer, record, send) })
}

/// Likewise, but what becomes of the record comes to queue, with tag. Waits up to max_block_ms for room in the queue too.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_producer_send_queued(
    producer: *const ProducerHandle,
    record: *const RecordParts,
    queue: *const QueueHandle,
    tag: u64,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's handle is null or valid.
        let queue = unsafe { args::reference(queue, "queue") }?.shared();
        let send = |producer: &ProducerHandle, record: ProducerRecord<'_>| {
            queue.wait_for_room(producer.max_block)?;
            let queue = Arc::clone(queue);
            let done = move |result| queue.push(Delivered::new(result).with_tag(tag));
            Ok(producer.open()?.send_with(record, done)?)
        };
        // SAFETY: the caller's pointers are null or what the header says.
        unsafe { with_record(producer, record, send) }
    })
}

/// Sends a record and waits for what becomes of it. Its status is returned; delivery may be NULL, else it is filled in
/// in any case, its message left out (pyralog_last_error_message() has it).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_producer_send_wait(
    producer: *const ProducerHandle,
    record: *const RecordParts,
    delivery: *mut DeliveryParts,
) -> i32 {
    let send = |producer: &ProducerHandle, record: ProducerRecord<'_>| Ok(producer.open()?.send(record)?);
    let send_and_wait = || {
        // SAFETY: the caller's pointers are null or what the header says.
        let sent = unsafe { with_record(producer, record, send) }?;
        sent.wait().map_err(|error| Failure::from(&error))
    };
    // SAFETY: the caller's struct is null or of the size that it begins with.
    guard(|| unsafe { DeliveryParts::settle(delivery, send_and_wait) })
}

/// Waits until everything that was sent before has its outcome; PYRALOG_ERROR_REQUEST_TIMED_OUT when that takes longer.
/// A record that failed makes no flush fail: its own delivery tells. Not to be called from callbacks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_producer_flush(producer: *const ProducerHandle, timeout_ms: u64) -> i32 {
    guard(|| {
        // SAFETY: the caller's handle is null or valid.
        let producer = unsafe { args::reference(producer, "producer") }?;
        Ok(producer.open()?.flush(args::milliseconds(timeout_ms))?)
    })
}

/// Waits as pyralog_producer_flush() does, then ends the producer's thread, in any case. What has no outcome by then
/// gets one: unknown, or not accepted if it was never sent. The handle still has to be freed. Not to be called from
/// callbacks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_producer_close(producer: *const ProducerHandle, timeout_ms: u64) -> i32 {
    guard(|| {
        // SAFETY: the caller's handle is null or valid.
        let producer = unsafe { args::reference(producer, "producer") }?;
        if producer.closed.swap(true, Ordering::AcqRel) {
            return Err(Failure::closed());
        }
        Ok(producer.producer.clone().close(args::milliseconds(timeout_ms))?)
    })
}

/// Frees a producer; NULL is fine. Without pyralog_producer_close() before, records that have no outcome are given up.
/// Not to be called from callbacks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_producer_free(producer: *mut ProducerHandle) {
    guard_quietly(|| {
        // SAFETY: the caller's handle is null or valid, and not used again.
        let Some(producer) = (unsafe { args::from_handle(producer) }) else { return };
        if !producer.closed.load(Ordering::Acquire) {
            // Nobody is left to be told that records were given up.
            let _ = producer.producer.close(Duration::ZERO);
        }
    });
}

/// How many partitions the producer's topic had when the producer last looked.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_producer_partitions(
    producer: *const ProducerHandle,
    partitions: *mut u32,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's pointers are null or what the header says.
        let (producer, partitions) =
            unsafe { (args::reference(producer, "producer")?, Out::new(partitions, "partitions")?) };
        partitions.set(producer.producer.partitions());
        Ok(())
    })
}

/// Fills in what the producer has done so far.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_producer_stats(
    producer: *const ProducerHandle,
    stats: *mut ProducerTotals,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's handle is null or valid.
        let producer = unsafe { args::reference(producer, "producer") }?;
        // SAFETY: the caller's struct is null or of the size that it begins with.
        unsafe { sized::fill(ProducerTotals::of(producer.producer.stats()), stats) }
    })
}
