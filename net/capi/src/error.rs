//! What went wrong: a status for the caller, and words, outcome and retriability kept for the thread.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use pyralog_core::{ErrorCode, Outcome};
use pyralog_net::client::{ClientError, DeliveryError};

use crate::status::*;

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) status: i32,
    pub(crate) outcome: i32,
    pub(crate) retriable: bool,
    pub(crate) message: CString,
}

impl Failure {
    /// The call itself is wrong; nothing was done.
    pub(crate) fn misuse(status: i32, message: impl Into<String>) -> Self {
        Self {
            status,
            outcome: PYRALOG_OUTCOME_NOT_ACCEPTED,
            retriable: false,
            message: text(message.into()),
        }
    }

    pub(crate) fn null(name: &str) -> Self {
        Self::misuse(PYRALOG_NULL_POINTER, format!("{name} is NULL; it must point to what the header says"))
    }

    pub(crate) fn argument(message: impl Into<String>) -> Self {
        Self::misuse(PYRALOG_INVALID_ARGUMENT, message)
    }

    pub(crate) fn busy() -> Self {
        Self::misuse(
            PYRALOG_BUSY,
            "another call on this handle is under way; use a handle from one thread at a time, and not from callbacks",
        )
    }

    pub(crate) fn closed() -> Self {
        Self::misuse(PYRALOG_CLOSED, "the producer was closed; create a new one")
    }

    pub(crate) fn panicked(what: &str) -> Self {
        let message = format!("a bug in the library: {what}; free the handle, start anew and report it");
        Self { outcome: PYRALOG_OUTCOME_UNKNOWN, ..Self::misuse(PYRALOG_PANICKED, message) }
    }

    fn from_payload(payload: &(dyn Any + Send)) -> Self {
        let what = payload.downcast_ref::<&str>().copied();
        let what = what.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        Self::panicked(what.unwrap_or("it says nothing more"))
    }

    /// Keeps it as the thread's last error and gives its status.
    pub(crate) fn remember(self) -> i32 {
        let status = self.status;
        // A thread that is ending may have no such place any more.
        let _ = LAST.try_with(|last| last.replace(self));
        status
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::from(&error)
    }
}

impl From<&ClientError> for Failure {
    fn from(error: &ClientError) -> Self {
        Self {
            status: status_of(error.code()),
            outcome: outcome_of(error.outcome()),
            retriable: error.retriable(),
            message: text(error.to_string()),
        }
    }
}

impl From<&DeliveryError> for Failure {
    fn from(error: &DeliveryError) -> Self {
        Self {
            status: status_of(error.code()),
            outcome: outcome_of(error.outcome()),
            // What may be in the log already is not to be sent again.
            retriable: error.outcome() == Outcome::NotAccepted && error.code().retriable(),
            message: text(error.to_string()),
        }
    }
}

/// An error is never success, whatever its code says.
fn status_of(code: ErrorCode) -> i32 {
    match code {
        ErrorCode::None => PYRALOG_ERROR_INTERNAL,
        code => i32::from(code as u16),
    }
}

pub(crate) fn outcome_of(outcome: Outcome) -> i32 {
    match outcome {
        Outcome::NotAccepted => PYRALOG_OUTCOME_NOT_ACCEPTED,
        Outcome::Unknown => PYRALOG_OUTCOME_UNKNOWN,
    }
}

/// Text for C. A zero byte would end it early, so such bytes are replaced.
fn text(message: String) -> CString {
    let bytes = message.into_bytes().into_iter().map(|byte| if byte == 0 { b'?' } else { byte });
    CString::new(bytes.collect::<Vec<u8>>()).unwrap_or_default()
}

thread_local! {
    static LAST: RefCell<Failure> = RefCell::new(Failure {
        status: PYRALOG_OK,
        outcome: PYRALOG_OUTCOME_ACCEPTED,
        retriable: false,
        message: CString::default(),
    });
}

/// Runs a call: its failure becomes the thread's last error, and a panic becomes a failure.
pub(crate) fn guard(call: impl FnOnce() -> Result<(), Failure>) -> i32 {
    // What a panic left behind is not used again: the locks around it are poisoned, and give an error from then on.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(())) => PYRALOG_OK,
        Ok(Err(failure)) => failure.remember(),
        Err(payload) => {
            let failure = Failure::from_payload(&*payload);
            // Its destructor could panic once more.
            std::mem::forget(payload);
            failure.remember()
        }
    }
}

/// Likewise for what gives nothing back, like freeing.
pub(crate) fn guard_quietly(call: impl FnOnce()) {
    guard(|| {
        call();
        Ok(())
    });
}

fn of_last<T>(otherwise: T, of: impl FnOnce(&Failure) -> T) -> T {
    LAST.try_with(|last| last.try_borrow().map(|last| of(&last)).ok()).ok().flatten().unwrap_or(otherwise)
}

/// The status of the last call that failed on this thread; PYRALOG_OK when none has. A call that works leaves it as it
/// is.
#[unsafe(no_mangle)]
pub extern "C" fn pyralog_last_error_status() -> i32 {
    of_last(PYRALOG_OK, |last| last.status)
}

/// What the last call that failed on this thread says: what happened, to what, and what to do about it. UTF-8, never
/// NULL; valid until another call fails on this thread, or the thread ends.
#[unsafe(no_mangle)]
pub extern "C" fn pyralog_last_error_message() -> *const c_char {
    of_last(c"".as_ptr(), |last| last.message.as_ptr())
}

/// What may be concluded about the effect of the last call that failed on this thread: a PYRALOG_OUTCOME_ number.
#[unsafe(no_mangle)]
pub extern "C" fn pyralog_last_error_outcome() -> i32 {
    of_last(PYRALOG_OUTCOME_UNKNOWN, |last| last.outcome)
}

/// 1 when the last call that failed on this thread can succeed later without anybody changing it, else 0.
#[unsafe(no_mangle)]
pub extern "C" fn pyralog_last_error_retriable() -> i32 {
    of_last(0, |last| i32::from(last.retriable))
}

/// The name of a status, like "UnknownTopicOrPartition". Static, never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn pyralog_status_name(status: i32) -> *const c_char {
    static NAMES: OnceLock<Vec<CString>> = OnceLock::new();
    let known: &CStr = match status {
        PYRALOG_OK => c"Ok",
        PYRALOG_NULL_POINTER => c"NullPointer",
        PYRALOG_INVALID_ARGUMENT => c"InvalidArgument",
        PYRALOG_BUSY => c"Busy",
        PYRALOG_CLOSED => c"Closed",
        PYRALOG_PANICKED => c"Panicked",
        code => {
            let names = NAMES
                .get_or_init(|| ErrorCode::ALL.iter().map(|code| text(code.name().to_owned())).collect());
            let name = usize::try_from(code).ok().and_then(|code| names.get(code));
            name.map_or(c"Unknown", CString::as_c_str)
        }
    };
    known.as_ptr()
}
