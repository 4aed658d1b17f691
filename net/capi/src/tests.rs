//! Tests of what needs no node: the checks of what comes from the caller, and the words for what went wrong.

use std::ffi::{CStr, CString, c_char};
use std::mem::size_of;
use std::ptr::{self, null, null_mut};
use std::sync::Arc;
use std::time::Duration;

use pyralog_core::ErrorCode;
use pyralog_net::client::{ClientError, DeliveryError, RecordMetadata};
use pyralog_net::message::Durability;

use crate::args;
use crate::client::*;
use crate::consumer::*;
use crate::delivery::{Delivered, DeliveryParts};
use crate::direct::*;
use crate::error::*;
use crate::producer::*;
use crate::queue::*;
use crate::record::*;
use crate::status::*;
use crate::topic::*;
use crate::version::*;

/// Nobody listens there: connecting fails at once.
const NOBODY: &CStr = c"127.0.0.1:1";

fn text(pointer: *const c_char) -> String {
    // SAFETY: the library's texts end with a zero byte.
    unsafe { CStr::from_ptr(pointer) }.to_str().unwrap().to_owned()
}

fn last_message() -> String {
    text(pyralog_last_error_message())
}

/// A client that gives up at once.
fn client() -> *mut ClientHandle {
    let config = ClientSettings { retry_for_ms: 0, connect_timeout_ms: 2_000, ..ClientSettings::new() };
    let mut client = null_mut();
    // SAFETY: all of it is valid.
    assert_eq!(unsafe { pyralog_client_new(NOBODY.as_ptr(), &config, &mut client) }, PYRALOG_OK);
    client
}

fn queue(capacity: usize) -> *mut QueueHandle {
    let mut queue = null_mut();
    // SAFETY: the place is valid.
    assert_eq!(unsafe { pyralog_queue_new(capacity, &mut queue) }, PYRALOG_OK);
    queue
}

#[test]
fn statuses_are_the_protocols_error_codes() {
    for code in ErrorCode::ALL.iter().filter(|code| **code != ErrorCode::None) {
        assert_eq!(text(pyralog_status_name(*code as i32)), code.name());
    }
    // Each code has a constant of its name: the header is all that a C program sees.
    let source = include_str!("status.rs");
    for code in &ErrorCode::ALL[1..] {
        let mut name = String::from("PYRALOG_ERROR");
        for letter in code.name().chars() {
            if letter.is_ascii_uppercase() {
                name.push('_');
            }
            name.push(letter.to_ascii_uppercase());
        }
        let line = format!("pub const {name}: i32 = {};", *code as u16);
        assert!(source.contains(&line), "status.rs has no `{line}`");
    }
    for (status, name) in
        [(PYRALOG_OK, "Ok"), (PYRALOG_BUSY, "Busy"), (9_999, "Unknown"), (-9_999, "Unknown")]
    {
        assert_eq!(text(pyralog_status_name(status)), name);
    }
}

#[test]
fn the_versions_agree() {
    let numbers = [PYRALOG_VERSION_MAJOR, PYRALOG_VERSION_MINOR, PYRALOG_VERSION_PATCH];
    let written = numbers.map(|number| number.to_string()).join(".");
    assert_eq!(written, env!("CARGO_PKG_VERSION"));
    assert_eq!(text(pyralog_version()), written);
    let [major, minor, patch] = numbers;
    assert_eq!(pyralog_version_number(), major * 1_000_000 + minor * 1_000 + patch);
}

/// Every pointer that must not be null, null in turn.
#[test]
fn null_pointers_are_refused() {
    let client = client();
    let queue = queue(0);
    let (topic, mut offset, mut partitions, mut count) = (c"t".as_ptr(), 0, 0, 0);
    let record = record();
    let (mut producer, mut direct, mut consumer) = (null_mut(), null_mut(), null_mut());
    let (mut deliveries, mut messages) = (null(), null());
    let (mut delivery, mut number, mut received) = (DeliveryParts::NONE, 0, 0);
    let mut made = null_mut();
    // SAFETY: every pointer is null or valid.
    let statuses = unsafe {
        [
            pyralog_client_config_init(null_mut(), size_of::<ClientSettings>()),
            pyralog_client_new(null(), null(), &mut made),
            pyralog_client_new(NOBODY.as_ptr(), null(), null_mut()),
            pyralog_client_ping(null()),
            pyralog_topic_config_init(null_mut(), size_of::<TopicSettings>()),
            pyralog_topic_create(null(), topic, null()),
            pyralog_topic_create(client, null(), null()),
            pyralog_topic_delete(null(), topic),
            pyralog_topic_delete(client, null()),
            pyralog_topic_partitions(null(), topic, &mut partitions),
            pyralog_topic_partitions(client, null(), &mut partitions),
            pyralog_topic_partitions(client, topic, null_mut()),
            pyralog_topic_offset(null(), topic, 0, PYRALOG_START_LATEST, 0, &mut offset),
            pyralog_topic_offset(client, null(), 0, PYRALOG_START_LATEST, 0, &mut offset),
            pyralog_topic_offset(client, topic, 0, PYRALOG_START_LATEST, 0, null_mut()),
            pyralog_producer_config_init(null_mut(), size_of::<ProducerSettings>()),
            pyralog_producer_new(null(), topic, null(), &mut producer),
            pyralog_producer_new(client, null(), null(), &mut producer),
            pyralog_producer_new(client, topic, null(), null_mut()),
            pyralog_producer_send(null(), &record, None, null_mut()),
            pyralog_producer_send_queued(null(), &record, queue, 0),
            pyralog_producer_send_queued(null(), &record, null(), 0),
            pyralog_producer_send_wait(null(), &record, null_mut()),
            pyralog_producer_flush(null(), 0),
            pyralog_producer_close(null(), 0),
            pyralog_producer_partitions(null(), &mut partitions),
            pyralog_producer_stats(null(), null_mut()),
            pyralog_direct_config_init(null_mut(), size_of::<DirectSettings>()),
            pyralog_direct_new(null(), topic, null(), &mut direct),
            pyralog_direct_new(client, null(), null(), &mut direct),
            pyralog_direct_new(client, topic, null(), null_mut()),
            pyralog_direct_send(null(), 0, null(), 0, null(), 0, null_mut()),
            pyralog_direct_submit(null(), 0, null(), 0, null(), 0, &mut number),
            pyralog_direct_receive(null(), 0, &mut delivery, &mut received),
            pyralog_direct_receive(null(), 0, null_mut(), &mut received),
            pyralog_consumer_config_init(null_mut(), size_of::<ConsumerSettings>()),
            pyralog_consumer_new(null(), topic, 0, PYRALOG_START_EARLIEST, 0, null(), &mut consumer),
            pyralog_consumer_new(client, null(), 0, PYRALOG_START_EARLIEST, 0, null(), &mut consumer),
            pyralog_consumer_new(client, topic, 0, PYRALOG_START_EARLIEST, 0, null(), null_mut()),
            pyralog_consumer_poll(null(), 0, &mut messages, &mut count),
            pyralog_consumer_visit(null(), 0, None, null_mut(), &mut count),
            pyralog_consumer_assign(null(), 0, PYRALOG_START_EARLIEST, 0),
            pyralog_consumer_unassign(null(), 0),
            pyralog_consumer_seek(null(), 0, PYRALOG_START_EARLIEST, 0),
            pyralog_consumer_position(null(), 0, &mut offset),
            pyralog_consumer_bounds(null(), &mut offset, &mut offset),
            pyralog_queue_new(0, null_mut()),
            pyralog_queue_poll(null(), 0, &mut deliveries, &mut count),
            pyralog_queue_poll(queue, 0, null_mut(), &mut count),
            pyralog_queue_poll(queue, 0, &mut deliveries, null_mut()),
            pyralog_queue_wake(null()),
        ]
    };
    assert_eq!(statuses, [PYRALOG_NULL_POINTER; 51]);
    assert_eq!(pyralog_last_error_status(), PYRALOG_NULL_POINTER);
    assert_eq!(pyralog_last_error_outcome(), PYRALOG_OUTCOME_NOT_ACCEPTED);
    assert_eq!(pyralog_last_error_retriable(), 0);
    assert!(last_message().starts_with("queue is NULL"), "{}", last_message());
    assert!(made.is_null() && producer.is_null() && direct.is_null() && consumer.is_null());
    // SAFETY: each handle is valid or null, and not used again.
    unsafe {
        pyralog_client_free(client);
        pyralog_queue_free(queue);
        pyralog_client_free(null_mut());
        pyralog_queue_free(null_mut());
        pyralog_producer_free(null_mut());
        pyralog_direct_free(null_mut());
        pyralog_consumer_free(null_mut());
    }
}

#[test]
fn addresses_are_checked_before_anything_is_connected() {
    let refused =
        [c"", c" , ,", c"localhost", c":9092", c"localhost:", c"localhost:99999", c"a:1,b", c"\xff:1"];
    for addresses in refused {
        let mut client = null_mut();
        // SAFETY: all of it is valid.
        let status = unsafe { pyralog_client_new(addresses.as_ptr(), null(), &mut client) };
        assert_eq!(status, PYRALOG_INVALID_ARGUMENT, "{addresses:?}");
        assert!(client.is_null());
    }
    for addresses in [c"localhost:9092", c" a:1 , b:2,", c"[::1]:9092"] {
        let mut client = null_mut();
        // SAFETY: all of it is valid.
        unsafe {
            assert_eq!(
                pyralog_client_new(addresses.as_ptr(), null(), &mut client),
                PYRALOG_OK,
                "{addresses:?}"
            );
            pyralog_client_free(client);
        }
    }
}

#[test]
fn a_node_that_is_not_there_is_an_error_with_words() {
    let client = client();
    let mut consumer = null_mut();
    // SAFETY: all of it is valid.
    unsafe {
        assert_eq!(pyralog_client_ping(client), PYRALOG_ERROR_NOT_READY);
        let start = PYRALOG_START_EARLIEST;
        let status = pyralog_consumer_new(client, c"t".as_ptr(), 0, start, 0, null(), &mut consumer);
        assert_eq!((status, consumer), (PYRALOG_ERROR_NOT_READY, null_mut()));
        pyralog_client_free(client);
    }
    assert!(last_message().contains("can't connect to 127.0.0.1:1"), "{}", last_message());
    assert_eq!(pyralog_last_error_outcome(), PYRALOG_OUTCOME_NOT_ACCEPTED);
    assert_eq!(pyralog_last_error_retriable(), 1);
    // Another thread has an error of its own.
    std::thread::spawn(|| {
        assert_eq!((pyralog_last_error_status(), last_message()), (PYRALOG_OK, String::new()))
    })
    .join()
    .unwrap();
}

#[test]
fn settings_out_of_their_bounds_are_refused() {
    let name = CString::new("n".repeat(129)).unwrap();
    let clients = [
        ClientSettings { consistency: 3, ..ClientSettings::new() },
        ClientSettings { reserved: 1, ..ClientSettings::new() },
        ClientSettings { name: name.as_ptr(), ..ClientSettings::new() },
        ClientSettings { size: size_of::<ClientSettings>() - 1, ..ClientSettings::new() },
        ClientSettings { size: 0, ..ClientSettings::new() },
        ClientSettings { size: usize::MAX, ..ClientSettings::new() },
    ];
    for config in clients {
        let mut client = null_mut();
        // SAFETY: all of it is valid, but sizes, which are refused before they are believed.
        let status = unsafe { pyralog_client_new(NOBODY.as_ptr(), &config, &mut client) };
        assert_eq!(status, PYRALOG_INVALID_ARGUMENT, "{config:?}");
    }
    let producers = [
        ProducerSettings { acks: 3, ..ProducerSettings::new() },
        ProducerSettings { acks: -1, ..ProducerSettings::new() },
        ProducerSettings { compression: 1, ..ProducerSettings::new() },
        ProducerSettings { partitioner: 2, ..ProducerSettings::new() },
        ProducerSettings { idempotent: 2, ..ProducerSettings::new() },
        ProducerSettings { reserved: 1, ..ProducerSettings::new() },
    ];
    for config in producers {
        assert_eq!(config.config().unwrap_err().status, PYRALOG_INVALID_ARGUMENT, "{config:?}");
    }
    for start in [-1, 4] {
        assert_eq!(start_at(start, 0).unwrap_err().status, PYRALOG_INVALID_ARGUMENT);
    }
}

#[test]
fn defaults_are_those_of_the_library() {
    let (config, defaults) = (ProducerSettings::new().config().unwrap(), Default::default());
    assert_eq!(format!("{config:?}"), format!("{:?}", pyralog_net::client::ProducerConfig { ..defaults }));
    // The longest times are as good as none.
    let patient =
        ProducerSettings { delivery_timeout_ms: u64::MAX, linger_us: u64::MAX, ..ProducerSettings::new() };
    assert_eq!(patient.config().unwrap().linger, Duration::from_secs(365 * 24 * 3600));
}

#[test]
fn structs_of_other_versions_are_understood() {
    // A caller of a later version, whose struct is larger: eight bytes that only it knows.
    #[repr(C)]
    struct Later {
        known: TopicSettings,
        more: u64,
    }
    let size = size_of::<Later>();
    let mut later = Later { known: TopicSettings::new(), more: 7 };
    let known = ptr::from_mut(&mut later).cast::<TopicSettings>();
    // SAFETY: the struct has that size.
    assert_eq!(unsafe { pyralog_topic_config_init(known, size) }, PYRALOG_OK);
    assert_eq!((later.known.size, later.known.partitions, later.more), (size, 1, 0));
    // What it leaves at zero is nothing new; what it sets is more than this version can do.
    let client = client();
    for (more, status) in [(0, PYRALOG_ERROR_NOT_READY), (1, PYRALOG_INVALID_ARGUMENT)] {
        later.more = more;
        let known = ptr::from_ref(&later).cast::<TopicSettings>();
        // SAFETY: all of it is valid, and the struct has the size that it says.
        assert_eq!(unsafe { pyralog_topic_create(client, c"t".as_ptr(), known) }, status);
    }
    // SAFETY: the handle is valid and not used again.
    unsafe { pyralog_client_free(client) };
    // A struct can't be where none of its type can be.
    let bytes = [0_u64; 16];
    // SAFETY: the place is not looked at: it is not aligned.
    let status = unsafe { pyralog_topic_config_init(bytes.as_ptr().byte_add(1).cast_mut().cast(), size) };
    assert_eq!(status, PYRALOG_INVALID_ARGUMENT);
}

fn record() -> RecordParts {
    RecordParts {
        flags: 0,
        partition: 0,
        timestamp_ms: 0,
        key: null(),
        key_len: 0,
        value: null(),
        value_len: 0,
        headers: null(),
        header_count: 0,
    }
}

#[test]
fn records_are_taken_as_they_are_described() {
    let header = |key: &'static [u8], value: Option<&'static [u8]>| {
        HeaderParts::of(&pyralog_core::batch::Header { key, value })
    };
    let headers = [header(b"a", Some(b"1")), header(b"", None)];
    let full = RecordParts {
        flags: PYRALOG_RECORD_PARTITION | PYRALOG_RECORD_TIMESTAMP,
        partition: 3,
        timestamp_ms: 4,
        key: b"key".as_ptr().cast(),
        key_len: 3,
        value: b"".as_ptr().cast(),
        value_len: 0,
        headers: headers.as_ptr(),
        header_count: 2,
    };
    // SAFETY: all of it is valid.
    unsafe {
        full.with(|record| {
            assert_eq!((record.partition, record.timestamp), (Some(3), Some(4)));
            assert_eq!((record.key, record.value), (Some(&b"key"[..]), Some(&b""[..])));
            assert_eq!((record.headers[0].key, record.headers[0].value), (&b"a"[..], Some(&b"1"[..])));
            assert_eq!((record.headers[1].key, record.headers[1].value), (&b""[..], None));
            Ok(())
        })
        .unwrap();
        record()
            .with(|record| {
                assert_eq!((record.partition, record.timestamp), (None, None));
                assert_eq!((record.key, record.value, record.headers.len()), (None, None, 0));
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn records_that_can_not_be_are_refused() {
    let byte = b"x".as_ptr().cast();
    let no_key = [HeaderParts { key: null(), key_len: 0, value: null(), value_len: 0 }];
    let header_length = [HeaderParts { key: byte, key_len: 1, value: null(), value_len: 1 }];
    let refused = [
        (RecordParts { flags: 4, ..record() }, PYRALOG_INVALID_ARGUMENT),
        (RecordParts { key_len: 1, ..record() }, PYRALOG_NULL_POINTER),
        (RecordParts { value_len: 1, ..record() }, PYRALOG_NULL_POINTER),
        (RecordParts { header_count: 1, ..record() }, PYRALOG_NULL_POINTER),
        (RecordParts { headers: no_key.as_ptr(), header_count: 1, ..record() }, PYRALOG_NULL_POINTER),
        (RecordParts { headers: header_length.as_ptr(), header_count: 1, ..record() }, PYRALOG_NULL_POINTER),
        (RecordParts { value: byte, value_len: usize::MAX, ..record() }, PYRALOG_INVALID_ARGUMENT),
        (
            RecordParts { headers: no_key.as_ptr(), header_count: usize::MAX / 8, ..record() },
            PYRALOG_INVALID_ARGUMENT,
        ),
    ];
    for (record, status) in refused {
        // SAFETY: what is not there is refused before it is looked at.
        let result = unsafe { record.with(|_| Ok(())) };
        assert_eq!(result.unwrap_err().status, status, "{record:?}");
    }
}

#[test]
fn a_panic_ends_at_the_boundary() {
    assert_eq!(guard(|| panic!("on purpose")), PYRALOG_PANICKED);
    assert_eq!(pyralog_last_error_outcome(), PYRALOG_OUTCOME_UNKNOWN);
    assert!(last_message().contains("on purpose"), "{}", last_message());
    // What it left half-way is not used again.
    let lock = std::sync::Mutex::new(0);
    let poisoning = || {
        let _guard = args::alone(&lock)?;
        panic!("with the lock held")
    };
    assert_eq!(guard(poisoning), PYRALOG_PANICKED);
    assert_eq!(args::alone(&lock).unwrap_err().status, PYRALOG_PANICKED);
    assert_eq!(args::in_turn(&lock).unwrap_err().status, PYRALOG_PANICKED);
}

#[test]
fn two_calls_at_once_are_told_apart_from_one() {
    let lock = std::sync::Mutex::new(0);
    let first = args::alone(&lock).unwrap();
    assert_eq!(args::alone(&lock).unwrap_err().status, PYRALOG_BUSY);
    drop(first);
    assert!(args::alone(&lock).is_ok());
}

fn acknowledged(offset: i64) -> Delivered {
    let durability = Durability::QuorumDurable;
    Delivered::new(Ok(RecordMetadata { partition: 2, offset, durability, duplicate: true }))
}

#[test]
fn deliveries_say_what_became_of_the_record() {
    let parts = acknowledged(40).with_tag(9).parts();
    assert_eq!((parts.status, parts.outcome, parts.retriable), (PYRALOG_OK, PYRALOG_OUTCOME_ACCEPTED, 0));
    assert_eq!((parts.partition, parts.offset, parts.durability), (2, 40, PYRALOG_DURABILITY_QUORUM));
    assert_eq!((parts.duplicate, parts.tag), (1, 9));
    assert!(parts.message.is_null());
    let full = || Arc::new(ClientError::Server { code: ErrorCode::DiskFull, detail: "it\0is".into() });
    // It may be sent again only when it is not in the log.
    let outcomes = [
        (DeliveryError::NotAccepted(full()), PYRALOG_OUTCOME_NOT_ACCEPTED, 1),
        (DeliveryError::Unknown(full()), PYRALOG_OUTCOME_UNKNOWN, 0),
    ];
    for (error, outcome, retriable) in outcomes {
        let delivered = Delivered::new(Err(error));
        let parts = delivered.parts();
        assert_eq!((parts.status, parts.outcome), (PYRALOG_ERROR_DISK_FULL, outcome));
        assert_eq!((parts.retriable, parts.offset, parts.durability), (retriable, -1, -1));
        assert!(text(parts.message).ends_with("it?is"), "{}", text(parts.message));
    }
}

#[test]
fn a_delivery_is_filled_in_whatever_happens() {
    let mut delivery = DeliveryParts { offset: 5, ..DeliveryParts::NONE };
    // SAFETY: the delivery is valid and has its size.
    let refused = unsafe { DeliveryParts::settle(&mut delivery, || Err(Failure::closed())) };
    assert_eq!(refused.unwrap_err().status, PYRALOG_CLOSED);
    assert_eq!((delivery.status, delivery.outcome), (PYRALOG_CLOSED, PYRALOG_OUTCOME_NOT_ACCEPTED));
    assert_eq!(delivery.offset, -1);
    // One that can't be is known before the record is sent.
    let mut unset = DeliveryParts { size: 0, ..DeliveryParts::NONE };
    // SAFETY: the delivery is valid; its size is refused.
    let refused = unsafe { DeliveryParts::settle(&mut unset, || panic!("sent")) };
    assert_eq!(refused.unwrap_err().status, PYRALOG_INVALID_ARGUMENT);
}

/// Tags of what a poll gives.
fn poll(queue: *mut QueueHandle, timeout_ms: u64) -> Vec<u64> {
    let (mut deliveries, mut count) = (null(), 0);
    // SAFETY: all of it is valid, and the deliveries are until the next poll.
    unsafe {
        assert_eq!(pyralog_queue_poll(queue, timeout_ms, &mut deliveries, &mut count), PYRALOG_OK);
        args::array(deliveries, count, "deliveries")
            .unwrap()
            .iter()
            .map(|delivery| (**delivery).tag)
            .collect()
    }
}

#[test]
fn a_queue_gives_deliveries_in_their_order() {
    let queue = queue(0);
    // SAFETY: the handle is valid.
    let shared = Arc::clone(unsafe { &*queue }.shared());
    assert_eq!(poll(queue, 0), [0; 0]);
    for tag in 0..5_000 {
        shared.push(acknowledged(0).with_tag(tag));
    }
    let mut tags = poll(queue, 0);
    assert!((1..5_000).contains(&tags.len()), "no more than it gives at once: {}", tags.len());
    tags.extend(poll(queue, 0));
    assert_eq!(tags, (0..5_000).collect::<Vec<u64>>());
    // One that comes later ends the wait for it.
    let later = std::thread::spawn({
        let shared = Arc::clone(&shared);
        move || shared.push(acknowledged(0).with_tag(7))
    });
    assert_eq!(poll(queue, 30_000), [7]);
    later.join().unwrap();
    // So does waking it, before or meanwhile.
    // SAFETY: the handle is valid, and not used after it was freed.
    unsafe {
        assert_eq!(pyralog_queue_wake(queue), PYRALOG_OK);
        assert_eq!(poll(queue, 30_000), [0; 0]);
        pyralog_queue_free(queue);
    }
    // Nobody is told of what comes after that.
    shared.push(acknowledged(0));
}

#[test]
fn a_full_queue_holds_back_what_is_sent_with_it() {
    let queue = queue(2);
    // SAFETY: the handle is valid.
    let shared = Arc::clone(unsafe { &*queue }.shared());
    for tag in 0..2 {
        shared.wait_for_room(Duration::ZERO).unwrap();
        shared.push(acknowledged(0).with_tag(tag));
    }
    let failure = shared.wait_for_room(Duration::ZERO).unwrap_err();
    assert_eq!((failure.status, failure.retriable), (PYRALOG_ERROR_OVERLOADED, true));
    assert_eq!(failure.outcome, PYRALOG_OUTCOME_NOT_ACCEPTED);
    let waiting = std::thread::spawn({
        let shared = Arc::clone(&shared);
        move || shared.wait_for_room(Duration::from_secs(30))
    });
    assert_eq!(poll(queue, 0), [0, 1]);
    assert_eq!(waiting.join().unwrap(), Ok(()));
    // SAFETY: the handle is valid and not used again.
    unsafe { pyralog_queue_free(queue) };
}
