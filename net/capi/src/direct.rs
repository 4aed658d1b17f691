//! The low-latency path: one record at a time, from the caller's own thread.

use std::ffi::{c_char, c_void};
use std::mem::size_of;
use std::sync::Mutex;

use pyralog_net::client::{DirectConfig, DirectProducer};

use crate::args::{self, Out};
use crate::client::ClientHandle;
use crate::delivery::DeliveryParts;
use crate::error::{Failure, guard, guard_quietly};
use crate::producer::ACKS;
use crate::sized::{self, Growing};

/// How a direct producer behaves. Set it up with pyralog_direct_config_init().
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DirectSettings {
    /// Bytes of this struct.
    pub size: usize,
    /// When a record is acknowledged: a PYRALOG_ACKS_ number.
    pub acks: i32,
    /// 0.
    pub reserved: u32,
    /// How long a wait for an acknowledgement keeps the CPU busy before it sleeps, microseconds; 0: it sleeps at once.
    pub spin_us: u64,
    /// A record without an acknowledgement after this time has failed, milliseconds.
    pub delivery_timeout_ms: u64,
}

// SAFETY: `repr(C)`; a size and integers whose sizes leave no padding.
unsafe impl Growing for DirectSettings {
    const FIRST_BYTES: usize = size_of::<Self>();
    const NAME: &'static str = "pyralog_direct_config_t";

    fn with_size(self, size: usize) -> Self {
        Self { size, ..self }
    }
}

impl DirectSettings {
    pub(crate) fn new() -> Self {
        let config = DirectConfig::default();
        Self {
            size: size_of::<Self>(),
            acks: config.acks as i32,
            reserved: 0,
            spin_us: u64::try_from(config.spin.as_micros()).unwrap_or(u64::MAX),
            delivery_timeout_ms: args::as_milliseconds(config.delivery_timeout),
        }
    }

    fn config(&self) -> Result<DirectConfig, Failure> {
        args::zero(self.reserved)?;
        Ok(DirectConfig {
            acks: args::choice(self.acks, "acks", &ACKS)?,
            spin: args::microseconds(self.spin_us),
            delivery_timeout: args::milliseconds(self.delivery_timeout_ms),
        })
    }
}

/// A producer for one topic that sends each record at once, from the thread that calls it, and waits for its
/// acknowledgement: the shortest way to the log. One thread at a time may use it; have one for each thread.
#[derive(Debug)]
pub struct DirectHandle {
    producer: Mutex<DirectProducer>,
}

/// Fills in the defaults. size: sizeof(pyralog_direct_config_t).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_direct_config_init(config: *mut DirectSettings, size: usize) -> i32 {
    // SAFETY: the caller has a struct of this size there.
    guard(|| unsafe { sized::write(DirectSettings::new(), config, size) })
}

/// A direct producer for a topic that exists. config may be NULL: defaults. It does not need the client any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_direct_new(
    client: *const ClientHandle,
    topic: *const c_char,
    config: *const DirectSettings,
    direct: *mut *mut DirectHandle,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's pointers are null or what the header says.
        let (client, topic, config, direct) = unsafe {
            let direct = Out::new(direct, "direct")?;
            let client = args::reference(client, "client")?;
            let topic = args::text(topic, "topic")?;
            (client, topic, sized::read(config, DirectSettings::new())?.config()?, direct)
        };
        let producer = Mutex::new(DirectProducer::new(client.another(), topic, config)?);
        direct.set(args::into_handle(DirectHandle { producer }));
        Ok(())
    })
}

/// Sends one record and waits for its acknowledgement. key and value may be NULL: none. The record's status is returned;
/// delivery may be NULL, else it is filled in in any case, its message left out (pyralog_last_error_message() has it).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_direct_send(
    direct: *const DirectHandle,
    partition: u32,
    key: *const c_void,
    key_len: usize,
    value: *const c_void,
    value_len: usize,
    delivery: *mut DeliveryParts,
) -> i32 {
    let send = || {
        // SAFETY: the caller's pointers are null or what the header says.
        let (direct, key, value) = unsafe {
            let direct = args::reference(direct, "direct")?;
            (direct, args::bytes(key, key_len, "key")?, args::bytes(value, value_len, "value")?)
        };
        let mut producer = args::alone(&direct.producer)?;
        producer.send(partition, key, value).map_err(|error| Failure::from(&error))
    };
    // SAFETY: the caller's struct is null or of the size that it begins with.
    guard(|| unsafe { DeliveryParts::settle(delivery, send) })
}

/// Sends one record at once without waiting, and sets number, which its delivery has as its tag. Some records of a
/// partition are under way at once, others wait in memory for their turn. pyralog_direct_send() is refused until all that
/// was submitted has been received.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_direct_submit(
    direct: *const DirectHandle,
    partition: u32,
    key: *const c_void,
    key_len: usize,
    value: *const c_void,
    value_len: usize,
    number: *mut u64,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's pointers are null or what the header says.
        let (direct, key, value, number) = unsafe {
            let (direct, number) = (args::reference(direct, "direct")?, Out::new(number, "number")?);
            (direct, args::bytes(key, key_len, "key")?, args::bytes(value, value_len, "value")?, number)
        };
        let mut producer = args::alone(&direct.producer)?;
        number.set(producer.submit(partition, key, value).map_err(|error| Failure::from(&error))?);
        Ok(())
    })
}

/// The next outcome of what was submitted; waits up to timeout_ms. received is set to 1 when there is one, which is filled
/// in, its message left out (pyralog_last_error_message() has it); to 0 when there is none by then, or nothing is under
/// way. A record that failed is no error of this: the delivery's status tells.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_direct_receive(
    direct: *const DirectHandle,
    timeout_ms: u64,
    delivery: *mut DeliveryParts,
    received: *mut i32,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's pointers are null or what the header says.
        let (direct, received) = unsafe {
            // An outcome that can't be told must not be taken.
            sized::fill(DeliveryParts::NONE, delivery)?;
            (args::reference(direct, "direct")?, Out::new(received, "received")?)
        };
        let outcome = args::alone(&direct.producer)?.receive(args::milliseconds(timeout_ms));
        received.set(i32::from(outcome.is_some()));
        let Some((number, result)) = outcome else { return Ok(()) };
        let result = result.map_err(|error| Failure::from(&error));
        let parts = result.as_ref().map_or_else(DeliveryParts::failed, DeliveryParts::acknowledged);
        if let Err(failure) = result {
            failure.remember();
        }
        // SAFETY: the caller's struct is of the size that it begins with.
        unsafe { sized::fill(DeliveryParts { tag: number, ..parts }, delivery) }
    })
}

/// Frees a direct producer; NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pyralog_direct_free(direct: *mut DirectHandle) {
    // SAFETY: the caller's handle is null or valid, and not used again.
    guard_quietly(|| drop(unsafe { args::from_handle(direct) }));
}
