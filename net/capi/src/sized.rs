//! Structs that may grow: they begin with their size as the caller knows it.

use std::mem::size_of;
use std::slice;

use crate::args;
use crate::error::Failure;

/// Longest size that is believed: what was never set is mostly larger.
const MAX_BYTES: usize = 4096;

/// A struct that later versions may add fields to, at its end.
///
/// # Safety
/// `repr(C)`, without padding at its end; begins with a `usize`, its size; the other fields are integers and raw
/// pointers, of which any bits are a value.
pub(crate) unsafe trait Growing: Copy {
    /// Bytes that it had in the first version that had it.
    const FIRST_BYTES: usize;
    /// Its name in C.
    const NAME: &'static str;

    /// The same with this size in it.
    fn with_size(self, size: usize) -> Self;
}

fn check<T: Growing>(size: usize) -> Result<(), Failure> {
    if (T::FIRST_BYTES..=MAX_BYTES).contains(&size) {
        return Ok(());
    }
    let name = T::NAME;
    Err(Failure::argument(format!(
        "the size of a {name} is {size}; set it to sizeof({name}), or call its _init function first"
    )))
}

/// What the caller gives, laid over the defaults; NULL is all defaults.
///
/// # Safety
/// `given` is null or points to a `T` of the size that it begins with.
pub(crate) unsafe fn read<T: Growing>(given: *const T, defaults: T) -> Result<T, Failure> {
    if given.is_null() {
        return Ok(defaults);
    }
    args::aligned(given, T::NAME)?;
    // SAFETY: a `T` begins with its size, and it is aligned.
    let size = unsafe { given.cast::<usize>().read() };
    check::<T>(size)?;
    let known = size.min(size_of::<T>());
    // SAFETY: the caller has that many bytes there, and any bytes are a value of `T`'s fields.
    let bytes = unsafe { slice::from_raw_parts(given.cast::<u8>(), size) };
    if bytes.iter().skip(known).any(|byte| *byte != 0) {
        return Err(Failure::argument(format!(
            "a {} has settings that this version of the library does not know; install the one of its header",
            T::NAME
        )));
    }
    let mut value = defaults;
    // SAFETY: `known` is at most the size of either; they can't overlap.
    unsafe { bytes.as_ptr().copy_to_nonoverlapping((&raw mut value).cast::<u8>(), known) };
    Ok(value.with_size(size_of::<T>()))
}

/// Gives the caller as much of `value` as fits into the struct that it has, zeros for what only it knows, and its size.
///
/// # Safety
/// `into` is null or points to `size` writable bytes.
pub(crate) unsafe fn write<T: Growing>(value: T, into: *mut T, size: usize) -> Result<(), Failure> {
    if into.is_null() {
        return Err(Failure::null(T::NAME));
    }
    args::aligned(into, T::NAME)?;
    check::<T>(size)?;
    let value = value.with_size(size);
    let known = size.min(size_of::<T>());
    // SAFETY: the caller has `size` bytes there, and `known` is at most the size of either.
    unsafe {
        into.cast::<u8>().write_bytes(0, size);
        (&raw const value).cast::<u8>().copy_to_nonoverlapping(into.cast::<u8>(), known);
    }
    Ok(())
}

/// Likewise, into a struct that has its size set.
///
/// # Safety
/// `into` is null or points to a `T` of the size that it begins with.
pub(crate) unsafe fn fill<T: Growing>(value: T, into: *mut T) -> Result<(), Failure> {
    if into.is_null() {
        return Err(Failure::null(T::NAME));
    }
    args::aligned(into, T::NAME)?;
    // SAFETY: a `T` begins with its size; the rest as for this function.
    unsafe { write(value, into, into.cast::<usize>().read()) }
}
