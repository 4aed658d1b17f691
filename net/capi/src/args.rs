//! What comes from the caller, checked.

use std::ffi::{CStr, c_char, c_void};
use std::slice;
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::Duration;

use crate::error::Failure;

/// The longest time that a call waits: times beyond it could not be added to a clock.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Refuses a pointer that can't be one to a `T`.
pub(crate) fn aligned<T>(pointer: *const T, name: &str) -> Result<(), Failure> {
    match pointer.is_aligned() {
        true => Ok(()),
        false => {
            Err(Failure::argument(format!("{name} is at {pointer:p}, where nothing of its type can be")))
        }
    }
}

/// What a pointer points to.
///
/// # Safety
/// `pointer` is null or points to a `T` that nobody changes or frees during `'a`.
pub(crate) unsafe fn reference<'a, T>(pointer: *const T, name: &str) -> Result<&'a T, Failure> {
    aligned(pointer, name)?;
    // SAFETY: it is null or valid, and it is aligned.
    unsafe { pointer.as_ref() }.ok_or_else(|| Failure::null(name))
}

/// A place for a result.
#[derive(Debug)]
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Nothing is written yet.
    ///
    /// # Safety
    /// `pointer` is null or writable for as long as this is used.
    pub(crate) unsafe fn new(pointer: *mut T, name: &str) -> Result<Self, Failure> {
        aligned(pointer, name)?;
        if pointer.is_null() { Err(Failure::null(name)) } else { Ok(Self(pointer)) }
    }

    pub(crate) fn set(&self, value: T) {
        // SAFETY: not null, aligned and writable, as `new` was promised. The old content is nothing to drop.
        unsafe { self.0.write(value) }
    }
}

/// A handle made for the caller.
pub(crate) fn into_handle<T>(value: T) -> *mut T {
    Box::into_raw(Box::new(value))
}

/// Takes a handle back; null is none.
///
/// # Safety
/// `handle` is null or came from [`into_handle`] and is not used again.
pub(crate) unsafe fn from_handle<T>(handle: *mut T) -> Option<Box<T>> {
    // SAFETY: a handle that is not null is a box's, given back once.
    (!handle.is_null()).then(|| unsafe { Box::from_raw(handle) })
}

/// What only one call at a time may use.
pub(crate) fn alone<T>(lock: &Mutex<T>) -> Result<MutexGuard<'_, T>, Failure> {
    match lock.try_lock() {
        Ok(guard) => Ok(guard),
        Err(TryLockError::WouldBlock) => Err(Failure::busy()),
        Err(TryLockError::Poisoned(_)) => {
            Err(Failure::panicked("an earlier call on this handle was cut short"))
        }
    }
}

/// What calls use one after the other.
pub(crate) fn in_turn<T>(lock: &Mutex<T>) -> Result<MutexGuard<'_, T>, Failure> {
    lock.lock().map_err(|_| Failure::panicked("an earlier call on this handle was cut short"))
}

/// A text that ends with a zero byte.
///
/// # Safety
/// `pointer` is null or points to such a text, which nobody changes during `'a`.
pub(crate) unsafe fn text<'a>(pointer: *const c_char, name: &str) -> Result<&'a str, Failure> {
    if pointer.is_null() {
        return Err(Failure::null(name));
    }
    // SAFETY: not null, and it ends with a zero byte.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map_err(|_| Failure::argument(format!("{name} is not UTF-8")))
}

/// Bytes; NULL with length 0 is none at all, which is not the same as no bytes.
///
/// # Safety
/// `pointer` is null or points to `length` bytes, which nobody changes during `'a`.
pub(crate) unsafe fn bytes<'a>(
    pointer: *const c_void,
    length: usize,
    name: &str,
) -> Result<Option<&'a [u8]>, Failure> {
    // SAFETY: as for this function.
    let bytes = unsafe { array(pointer.cast::<u8>(), length, name) }?;
    Ok((!pointer.is_null()).then_some(bytes))
}

/// Elements one behind the other; NULL with length 0 is none.
///
/// # Safety
/// `pointer` is null or points to `length` elements, which nobody changes during `'a`.
pub(crate) unsafe fn array<'a, T>(pointer: *const T, length: usize, name: &str) -> Result<&'a [T], Failure> {
    if pointer.is_null() {
        return if length == 0 {
            Ok(&[])
        } else {
            Err(Failure::misuse(
                crate::status::PYRALOG_NULL_POINTER,
                format!("{name} is NULL, but its length is {length}"),
            ))
        };
    }
    aligned(pointer, name)?;
    if length.checked_mul(size_of::<T>()).is_none_or(|bytes| bytes > isize::MAX as usize) {
        return Err(Failure::argument(format!(
            "the length of {name} is {length}, more than memory can hold"
        )));
    }
    // SAFETY: not null, aligned, that many elements are there, and no more bytes than an object can have.
    Ok(unsafe { slice::from_raw_parts(pointer, length) })
}

/// A choice by its number.
pub(crate) fn choice<T: Copy>(number: i32, name: &str, choices: &[(i32, T)]) -> Result<T, Failure> {
    let known = choices.iter().find(|(known, _)| *known == number);
    known.map(|(_, choice)| *choice).ok_or_else(|| {
        let numbers: Vec<String> = choices.iter().map(|(number, _)| number.to_string()).collect();
        Failure::argument(format!("{name} is {number}; the header defines {}", numbers.join(", ")))
    })
}

/// 0 or 1.
pub(crate) fn flag(number: i32, name: &str) -> Result<bool, Failure> {
    choice(number, name, &[(0, false), (1, true)])
}

/// A field that has no meaning yet.
pub(crate) fn zero(number: u32) -> Result<(), Failure> {
    match number {
        0 => Ok(()),
        other => {
            Err(Failure::argument(format!("a reserved field is {other}; call the _init function first")))
        }
    }
}

/// A number that has to fit into a smaller type.
pub(crate) fn fitting<T: TryFrom<u64>>(number: u64, name: &str) -> Result<T, Failure> {
    T::try_from(number).map_err(|_| Failure::argument(format!("{name} is {number}, which is too much")))
}

pub(crate) fn milliseconds(number: u64) -> Duration {
    Duration::from_millis(number).min(LONGEST)
}

pub(crate) fn microseconds(number: u64) -> Duration {
    Duration::from_micros(number).min(LONGEST)
}

/// As many milliseconds as a duration has, for settings.
pub(crate) fn as_milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
