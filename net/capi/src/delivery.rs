//! What became of a record.

use std::ffi::{CString, c_char, c_void};
use std::mem::size_of;
use std::ptr;

use pyralog_net::client::{DeliveryError, RecordMetadata};

use crate::error::Failure;
use crate::sized::{self, Growing};
use crate::status::*;

/// What became of a record. Before passing one to a function that fills it in, set its size.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DeliveryParts {
    /// Bytes of this struct.
    pub size: usize,
    /// PYRALOG_OK when the record is acknowledged, else why not.
    pub status: i32,
    /// A PYRALOG_OUTCOME_ number: whether the record is in the log.
    pub outcome: i32,
    /// 1 when the same record can be accepted later without anybody changing it, else 0.
    pub retriable: i32,
    /// What was reached: a PYRALOG_DURABILITY_ number. -1 without an acknowledgement.
    pub durability: i32,
    /// The record's offset. -1 without an acknowledgement.
    pub offset: i64,
    /// The record's partition; 0 without an acknowledgement.
    pub partition: u32,
    /// 1 when the node had the record already, from an earlier attempt, else 0.
    pub duplicate: i32,
    /// What went wrong, UTF-8; NULL when nothing did, or where pyralog_last_error_message() has it. Valid as long as
    /// this delivery is.
    pub message: *const c_char,
    /// What pyralog_producer_send() was given.
    pub user: *mut c_void,
    /// What pyralog_producer_send_queued() was given, or pyralog_direct_submit() gave.
    pub tag: u64,
}

// SAFETY: `repr(C)`; a size, pointers and integers whose sizes leave no padding.
unsafe impl Growing for DeliveryParts {
    const FIRST_BYTES: usize = size_of::<Self>();
    const NAME: &'static str = "pyralog_delivery_t";

    fn with_size(self, size: usize) -> Self {
        Self { size, ..self }
    }
}

impl DeliveryParts {
    /// Nothing is known.
    pub(crate) const NONE: Self = Self {
        size: size_of::<Self>(),
        status: PYRALOG_ERROR_INTERNAL,
        outcome: PYRALOG_OUTCOME_UNKNOWN,
        retriable: 0,
        durability: -1,
        offset: -1,
        partition: 0,
        duplicate: 0,
        message: ptr::null(),
        user: ptr::null_mut(),
        tag: 0,
    };

    pub(crate) fn acknowledged(metadata: &RecordMetadata) -> Self {
        Self {
            status: PYRALOG_OK,
            outcome: PYRALOG_OUTCOME_ACCEPTED,
            durability: metadata.durability as i32,
            offset: metadata.offset,
            partition: metadata.partition,
            duplicate: i32::from(metadata.duplicate),
            ..Self::NONE
        }
    }

    pub(crate) fn failed(failure: &Failure) -> Self {
        Self {
            status: failure.status,
            outcome: failure.outcome,
            retriable: i32::from(failure.retriable),
            ..Self::NONE
        }
    }

    /// Makes a call whose result is a delivery, and fills it in whatever becomes of it; null is one that is not wanted.
    /// Nothing is called when it can't be filled in.
    ///
    /// # Safety
    /// `into` is null or points to a struct that begins with its size.
    pub(crate) unsafe fn settle(
        into: *mut Self,
        call: impl FnOnce() -> Result<RecordMetadata, Failure>,
    ) -> Result<(), Failure> {
        if into.is_null() {
            return call().map(drop);
        }
        // SAFETY: as for this function. Before the call, so that a struct of a wrong size sends nothing.
        unsafe { sized::fill(Self::NONE, into) }?;
        let result = call();
        let parts = result.as_ref().map_or_else(Self::failed, Self::acknowledged);
        // SAFETY: as for this function.
        unsafe { sized::fill(parts, into) }?;
        result.map(drop)
    }
}

/// The result of a record, with the text that its parts point to.
#[derive(Debug)]
pub(crate) struct Delivered {
    parts: DeliveryParts,
    message: Option<CString>,
}

// SAFETY: `parts.message` is null until `parts` sets it to the text that is held here; `parts.user` is only carried.
unsafe impl Send for Delivered {}

impl Delivered {
    pub(crate) fn new(result: Result<RecordMetadata, DeliveryError>) -> Self {
        match result {
            Ok(metadata) => Self { parts: DeliveryParts::acknowledged(&metadata), message: None },
            Err(error) => Self::failed(Failure::from(&error)),
        }
    }

    pub(crate) fn failed(failure: Failure) -> Self {
        Self { parts: DeliveryParts::failed(&failure), message: Some(failure.message) }
    }

    pub(crate) fn with_user(mut self, user: *mut c_void) -> Self {
        self.parts.user = user;
        self
    }

    pub(crate) fn with_tag(mut self, tag: u64) -> Self {
        self.parts.tag = tag;
        self
    }

    /// What the caller gets, valid as long as `self` is there.
    pub(crate) fn parts(&self) -> DeliveryParts {
        DeliveryParts {
            message: self.message.as_ref().map_or(ptr::null(), |text| text.as_ptr()),
            ..self.parts
        }
    }
}
