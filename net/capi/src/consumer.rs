//! The consumer.

use std::ffi::{c_char, c_void};
use std::mem::size_of;
use std::ops::Range;
use std::ptr;
use std::sync::Mutex;

use pyralog_core::batch::{Header, Record};
use pyralog_net::client::{ClientError, Consumer, ConsumerConfig, Polled};

use crate::args::{self, Out};
use crate::client::ClientHandle;
use crate::error::{Failure, guard, guard_quietly};
use crate::record::{HeaderParts, parts};
use crate::sized::{self, Growing};
use crate::topic::start_at;

/// How a consumer behaves. Set it up with pyralog_consumer_config_init().
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ConsumerSettings {
    /// Bytes of this struct.
    pub size: usize,
    /// Most bytes of batches per fetch of a partition; one batch is always fetched whole. Up to twice as much is in
    /// memory for each partition: what is being read, and what is fetched meanwhile.
    pub max_bytes: u32,
    /// 0.
    pub reserved: u32,
    /// How long it keeps trying after errors that pass and lost connections, milliseconds.
    pub retry_for_ms: u64,
}

// SAFETY: `repr(C)`; a size and integers whose sizes leave no padding.
unsafe impl Growing for ConsumerSettings {
    const FIRST_BYTES: usize = size_of::<Self>();
    const NAME: &'static str = "pyralog_consumer_config_t";

    fn with_size(self, size: usize) -> Self {
        Self { size, ..self }
    }
}

impl ConsumerSettings {
    pub(crate) fn new() -> Self {
        let config = ConsumerConfig::default();
        Self {
            size: size_of::<Self>(),
            max_bytes: config.max_bytes,
            reserved: 0,
            retry_for_ms: args::as_milliseconds(config.retry_for),
        }
    }

    fn config(&self) -> Result<ConsumerConfig, Failure> {
        args::zero(self.reserved)?;
        Ok(ConsumerConfig { max_bytes: self.max_bytes, retry_for: args::milliseconds(self.retry_for_ms) })
    }
}

/// A record that was read.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct MessageParts {
    /// Its offset in the partition.
    pub offset: i64,
    /// Milliseconds since the Unix epoch; -1: none.
    pub timestamp_ms: i64,
    /// Its key; NULL: it has none.
    pub key: *const c_void,
    /// Bytes of its key.
    pub key_len: usize,
    /// Its value; NULL: it has none.
    pub value: *const c_void,
    /// Bytes of its value.
    pub value_len: usize,
    /// Its headers.
    pub headers: *const HeaderParts,
    /// How many headers it has.
    pub header_count: usize,
    /// Its partition.
    pub partition: u32,
    /// 0.
    pub reserved: u32,
}

/// Is given a record; the message is valid during the call. Returns 0 to go on, anything else to stop: then this record
/// is not consumed, and is the next one again. user: what pyralog_consumer_visit() was given.
pub type MessageCallback =
    Option<unsafe extern "C" fn(message: *const MessageParts, user: *mut c_void) -> i32>;

/// Why a visit ended early.
enum Stop {
    Asked,
    Failed(ClientError),
}

impl From<ClientError> for Stop {
    fn from(error: ClientError) -> Self {
        Self::Failed(error)
    }
}

/// Where in a batch's bytes a record is.
#[derive(Debug)]
struct Span {
    place: (u32, i64, i64),
    key: Option<Range<usize>>,
    value: Option<Range<usize>>,
    headers: Range<usize>,
}

/// Memory that is kept between polls; records that were compressed well may need more for a while.
const KEEP_BYTES: usize = 8 << 20;

/// The records of one poll, kept until the next: copied out of what they were fetched in, behind each other.
#[derive(Debug, Default)]
struct Batch {
    bytes: Vec<u8>,
    spans: Vec<Span>,
    header_spans: Vec<(Range<usize>, Option<Range<usize>>)>,
    headers: Vec<HeaderParts>,
    messages: Vec<MessageParts>,
    pointers: Vec<*const MessageParts>,
}

// SAFETY: the pointers lead to what is owned here.
unsafe impl Send for Batch {}

impl Batch {
    fn clear(&mut self) {
        self.pointers.clear();
        self.messages.clear();
        self.headers.clear();
        self.header_spans.clear();
        self.spans.clear();
        self.bytes.clear();
        self.bytes.shrink_to(KEEP_BYTES);
    }

    fn keep(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        start..self.bytes.len()
    }

    fn add(&mut self, partition: u32, record: &Record<'_>) {
        let key = record.key.map(|key| self.keep(key));
        let value = record.value.map(|value| self.keep(value));
        let first = self.header_spans.len();
        for header in record.headers {
            let span = (self.keep(header.key), header.value.map(|value| self.keep(value)));
            self.header_spans.push(span);
        }
        let headers = first..self.header_spans.len();
        self.spans.push(Span { place: (partition, record.offset, record.timestamp), key, value, headers });
    }

    /// Makes the pointers, now that nothing moves any more.
    fn seal(&mut self) -> &[*const MessageParts] {
        let Self { bytes, spans, header_spans, headers, messages, pointers } = self;
        let found = |span: &Range<usize>| bytes.get(span.clone()).unwrap_or_default();
        headers.extend(header_spans.iter().map(|(key, value)| {
            HeaderParts::of(&Header { key: found(key), value: value.as_ref().map(found) })
        }));
        messages.extend(spans.iter().map(|span| {
            let (key, value) = (span.key.as_ref().map(found), span.value.as_ref().map(found));
            let headers = headers.get(span.headers.clone()).unwrap_or_default();
            MessageParts::of(span.place, key, value, headers)
        }));
        pointers.extend(messages.iter().map(ptr::from_ref));
        pointers
    }
}

impl MessageParts {
    fn of(
        (partition, offset, timestamp_ms): (u32, i64, i64),
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[HeaderParts],
    ) -> Self {
        let ((key, key_len), (value, value_len)) = (parts(key), parts(value));
        let (header_count, headers) = (headers.len(), headers.as_ptr());
        Self {
            offset,
            timestamp_ms,
            key,
            key_len,
            value,
            value_len,
            headers,
            header_count,
            partition,
            reserved: 0,
        }
    }
}

#[derive(Debug)]
struct Reader {
    consumer: Consumer,
    batch: Batch,
    /// What the last poll said of the log.
    polled: Option<Polled>,
}

/// A consumer of one or more partitions of a topic: the records of each in the order of their offsets. While records are
/// read, the next ones are fetched. One thread at a time may use it.
#[derive(Debug)]
pub struct ConsumerHandle {
    reader: Mutex<Reader>,
}

/// Fills in the defaults. size: sizeof(pyralog_consumer_config_t).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_consumer_config_init(config: *mut ConsumerSettings, size: usize) -> i32 {
    // SAFETY: the caller has a struct of this size there.
    guard(|| unsafe { sized::write(ConsumerSettings::new(), config, size) })
}

/// A consumer of a partition that exists; pyralog_consumer_assign() adds others. start: a PYRALOG_START_ number; value:
/// the offset or timestamp that it names, else not looked at. config may be NULL: defaults. It does not need the client
/// any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_consumer_new(
    client: *const ClientHandle,
    topic: *const c_char,
    partition: u32,
    start: i32,
    value: i64,
    config: *const ConsumerSettings,
    consumer: *mut *mut ConsumerHandle,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's pointers are null or what the header says.
        let (client, topic, config, made) = unsafe {
            let made = Out::new(consumer, "consumer")?;
            let client = args::reference(client, "client")?;
            let topic = args::text(topic, "topic")?;
            (client, topic, sized::read(config, ConsumerSettings::new())?.config()?, made)
        };
        let start = start_at(start, value)?;
        let consumer = Consumer::new(client.another(), topic, partition, start, config)?;
        let reader = Reader { consumer, batch: Batch::default(), polled: None };
        made.set(args::into_handle(ConsumerHandle { reader: Mutex::new(reader) }));
        Ok(())
    })
}

/// Fetches records; waits up to max_wait_ms for the first. messages is set to an array of count pointers; everything in
/// them is valid until the next poll or visit of this consumer, or until it is freed. No record in time is no error:
/// count is 0. The position moves behind the last record given.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_consumer_poll(
    consumer: *const ConsumerHandle,
    max_wait_ms: u64,
    messages: *mut *const *const MessageParts,
    count: *mut usize,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's pointers are null or what the header says.
        let (consumer, messages, count) = unsafe {
            let (messages, count) = (Out::new(messages, "messages")?, Out::new(count, "count")?);
            (args::reference(consumer, "consumer")?, messages, count)
        };
        let mut reader = args::alone(&consumer.reader)?;
        let Reader { consumer, batch, polled } = &mut *reader;
        batch.clear();
        let result = consumer.poll_partitions(args::milliseconds(max_wait_ms), |partition, record| {
            batch.add(partition, &record);
            Ok::<_, ClientError>(())
        });
        match result {
            Ok(told) => *polled = Some(told),
            // What came before the error is given first; the next poll meets the error again.
            Err(error) if batch.spans.is_empty() => return Err(error.into()),
            Err(_) => {}
        }
        let pointers = batch.seal();
        messages.set(pointers.as_ptr());
        count.set(pointers.len());
        Ok(())
    })
}

/// Likewise, but calls callback with each record, without any copy: from the thread that calls this. count may be NULL,
/// else it is set to the number of records consumed, also when the status is an error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_consumer_visit(
    consumer: *const ConsumerHandle,
    max_wait_ms: u64,
    callback: MessageCallback,
    user: *mut c_void,
    count: *mut usize,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's handle is null or valid.
        let consumer = unsafe { args::reference(consumer, "consumer") }?;
        let callback = callback.ok_or_else(|| Failure::null("callback"))?;
        let mut reader = args::alone(&consumer.reader)?;
        let Reader { consumer, batch, polled } = &mut *reader;
        batch.clear();
        let (mut headers, mut visited) = (Vec::new(), 0_usize);
        let result = consumer.poll_partitions(args::milliseconds(max_wait_ms), |partition, record| {
            headers.clear();
            headers.extend(record.headers.map(|header| HeaderParts::of(&header)));
            let place = (partition, record.offset, record.timestamp);
            let message = MessageParts::of(place, record.key, record.value, &headers);
            // SAFETY: the caller's function, called with a message that is valid meanwhile.
            match unsafe { callback(&raw const message, user) } {
                0 => visited += 1,
                _ => return Err(Stop::Asked),
            }
            Ok(())
        });
        if !count.is_null() {
            // SAFETY: the caller's pointer is not null and so writable.
            unsafe { Out::new(count, "count") }?.set(visited);
        }
        match result {
            Ok(told) => *polled = Some(told),
            Err(Stop::Asked) => {}
            Err(Stop::Failed(error)) => return Err(error.into()),
        }
        Ok(())
    })
}

/// Reads a partition too, or goes on elsewhere in one that it reads. start: a PYRALOG_START_ number; value: the offset or
/// timestamp that it names, else not looked at.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_consumer_assign(
    consumer: *const ConsumerHandle,
    partition: u32,
    start: i32,
    value: i64,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's handle is null or valid.
        let consumer = unsafe { args::reference(consumer, "consumer") }?;
        let start = start_at(start, value)?;
        Ok(args::alone(&consumer.reader)?.consumer.assign(partition, start)?)
    })
}

/// Reads a partition no more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_consumer_unassign(consumer: *const ConsumerHandle, partition: u32) -> i32 {
    guard(|| {
        // SAFETY: the caller's handle is null or valid.
        let consumer = unsafe { args::reference(consumer, "consumer") }?;
        let mut reader = args::alone(&consumer.reader)?;
        assigned(&reader.consumer, partition)?;
        reader.consumer.unassign(partition);
        Ok(())
    })
}

/// Goes on elsewhere in a partition that it reads. start and value are as for pyralog_consumer_assign().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_consumer_seek(
    consumer: *const ConsumerHandle,
    partition: u32,
    start: i32,
    value: i64,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's handle is null or valid.
        let consumer = unsafe { args::reference(consumer, "consumer") }?;
        let start = start_at(start, value)?;
        let mut reader = args::alone(&consumer.reader)?;
        assigned(&reader.consumer, partition)?;
        Ok(reader.consumer.assign(partition, start)?)
    })
}

/// The offset of the record that comes next from a partition that it reads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_consumer_position(
    consumer: *const ConsumerHandle,
    partition: u32,
    offset: *mut i64,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's pointers are null or what the header says.
        let (consumer, offset) =
            unsafe { (args::reference(consumer, "consumer")?, Out::new(offset, "offset")?) };
        offset.set(assigned(&args::alone(&consumer.reader)?.consumer, partition)?);
        Ok(())
    })
}

/// The position in a partition.
fn assigned(consumer: &Consumer, partition: u32) -> Result<i64, Failure> {
    let position = consumer.position_of(partition);
    position
        .ok_or_else(|| Failure::argument(format!("partition {partition} is not assigned to this consumer")))
}

/// What the last poll or visit that worked said of the partition that was assigned first: the records from log_start on are still there, those below
/// high_watermark are committed. -1 each before the first.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_consumer_bounds(
    consumer: *const ConsumerHandle,
    log_start: *mut i64,
    high_watermark: *mut i64,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's pointers are null or what the header says.
        let (consumer, log_start, high_watermark) = unsafe {
            let (first, last) =
                (Out::new(log_start, "log_start")?, Out::new(high_watermark, "high_watermark")?);
            (args::reference(consumer, "consumer")?, first, last)
        };
        let polled = args::alone(&consumer.reader)?.polled;
        log_start.set(polled.map_or(-1, |polled| polled.log_start));
        high_watermark.set(polled.map_or(-1, |polled| polled.high_watermark));
        Ok(())
    })
}

/// Frees a consumer and the messages that it gave; NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_consumer_free(consumer: *mut ConsumerHandle) {
    // SAFETY: the caller's handle is null or valid, and not used again.
    guard_quietly(|| drop(unsafe { args::from_handle(consumer) }));
}
