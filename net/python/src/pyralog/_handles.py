"""Handles of the library for C, their settings, and times."""

from __future__ import annotations

import os
import time
from typing import Any, Callable

from ._errors import check
from ._native import ffi, lib

SLICE = 0.2
"""Seconds after which a call that waits comes back to Python, which may have a signal to handle."""

_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


# A child has no threads but one, and shares its sockets with its parent: nothing of the library is of use to it.
os.register_at_fork(after_in_child=_count_fork)


class Handle:
    """Something of the library's that is freed when nothing uses it any more, also not a call under way."""

    def __init__(self, kind: str, make: Callable[[Any], int]) -> None:
        into = ffi.new(f"pyralog_{kind}_t **")
        check(make(into))
        self._kind = kind
        self._forks = forks = _forks
        free = getattr(lib, f"pyralog_{kind}_free")
        self._pointer = ffi.gc(into[0], lambda pointer: free(pointer) if forks == _forks else None)

    @property
    def pointer(self) -> Any:
        """The pointer, for one call."""
        pointer = self._pointer
        if pointer is None:
            raise ValueError(f"this {self._kind} is closed")
        if self._forks != _forks:
            raise RuntimeError(f"this {self._kind} is of the parent process; make a new one after fork()")
        return pointer

    @property
    def is_open(self) -> bool:
        """Whether `pointer` is there."""
        return self._pointer is not None and self._forks == _forks

    def drop(self) -> None:
        """Has it freed when the last call on it ends."""
        self._pointer = None


def settings(kind: str, **values: Any) -> Any:
    """Settings with the library's defaults for what is None."""
    config = ffi.new(f"pyralog_{kind}_config_t *")
    check(getattr(lib, f"pyralog_{kind}_config_init")(config, ffi.sizeof(config[0])))
    for name, value in values.items():
        if value is not None:
            setattr(config, name, value)
    return config


def milliseconds(seconds: float | None) -> int | None:
    """Whole milliseconds, rounded up; None stays None."""
    return None if seconds is None else _whole(seconds, 1e3)


def microseconds(seconds: float | None) -> int | None:
    """Whole microseconds, rounded up; None stays None."""
    return None if seconds is None else _whole(seconds, 1e6)


def _whole(seconds: float, per_second: float) -> int:
    if not seconds >= 0:
        raise ValueError(f"a time of {seconds} seconds can't be waited for")
    # The library takes whatever is longer than a year as a year.
    return -int(-min(seconds, 1e8) * per_second // 1)


class Deadline:
    """A time to be over by; None: never."""

    def __init__(self, seconds: float | None) -> None:
        if seconds is not None and not seconds >= 0:
            raise ValueError(f"a time of {seconds} seconds can't be waited for")
        self._end = None if seconds is None else time.monotonic() + seconds

    def left(self, most: float = SLICE) -> float:
        """Seconds left, but no more than `most`."""
        return most if self._end is None else min(most, max(self._end - time.monotonic(), 0.0))

    @property
    def is_over(self) -> bool:
        """Whether nothing is left."""
        return self._end is not None and time.monotonic() >= self._end
