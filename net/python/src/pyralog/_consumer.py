"""Consumers."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Any, Iterable, NamedTuple, Optional, Tuple

from ._choices import EARLIEST, StartAt
from ._errors import check, last_error
from ._handles import SLICE, Deadline, Handle, milliseconds, settings
from ._native import ffi, lib

if TYPE_CHECKING:
    from ._client import Client


RETRY_FOR = 60.0


class Message(NamedTuple):
    """A record that was read."""

    partition: int
    offset: int
    timestamp_ms: int
    """Milliseconds since the Unix epoch; -1: none."""
    key: Optional[bytes]
    value: Optional[bytes]
    headers: Tuple[Tuple[str, Optional[bytes]], ...]


def _bytes(pointer: Any, length: int) -> bytes | None:
    return bytes(ffi.buffer(pointer, length)) if pointer else None


def _headers(message: Any) -> tuple[tuple[str, bytes | None], ...]:
    headers = message.headers
    return tuple(
        (
            bytes(ffi.buffer(headers[i].key, headers[i].key_len)).decode("utf-8", "surrogateescape"),
            _bytes(headers[i].value, headers[i].value_len),
        )
        for i in range(message.header_count)
    )


def _message(message: Any) -> Message:
    return Message(
        message.partition,
        message.offset,
        message.timestamp_ms,
        _bytes(message.key, message.key_len),
        _bytes(message.value, message.value_len),
        _headers(message) if message.header_count else (),
    )


class Consumer:
    """The records of one or more partitions of a topic, each in the order of its offsets: by `poll`, or by iterating,
    which waits for more without end. Calls from several threads wait for each other.

    `start`, here and elsewhere, is an offset, `EARLIEST`, `LATEST`, `StartAt.offset(n)` or `StartAt.timestamp(ms)`.
    """

    def __init__(
        self,
        client: Client,
        topic: str,
        partitions: int | Iterable[int] = 0,
        start: StartAt | int = EARLIEST,
        *,
        max_bytes: int | None = None,
        retry_for: float = RETRY_FOR,
    ) -> None:
        """For partitions that exist, all from `start` on; `assign` adds others. `max_bytes` is the most that one fetch of
        a partition gets, but for a batch that is larger alone; `retry_for` is how long it keeps trying after errors that
        pass, seconds."""
        wanted = [partitions] if isinstance(partitions, int) else list(partitions)
        if not wanted:
            raise ValueError("a consumer needs a partition to read")
        first, *others = wanted
        where = _start(start)
        # Longer tries are made of several, between which signals are handled.
        config = settings("consumer", max_bytes=max_bytes, retry_for_ms=milliseconds(min(retry_for, SLICE)))
        pointer, name = client._handle.pointer, topic.encode()
        self._handle = Handle(
            "consumer",
            lambda into: lib.pyralog_consumer_new(
                pointer, name, first, where.start, where.value, config, into
            ),
        )
        self._retry_for = retry_for
        self._first = first
        self._ahead: deque[Message] = deque()
        self._lock = threading.RLock()
        self._messages = ffi.new("pyralog_message_t const *const **")
        self._count = ffi.new("size_t *")
        for partition in others:
            self.assign(partition, where)

    def poll(self, max_wait: float = 1.0) -> list[Message]:
        """The records that come next; waits up to `max_wait` seconds for the first. No record in time is no error: then
        there are none. The position moves behind them."""
        deadline = Deadline(max_wait)
        with self._lock:
            messages = list(self._ahead)
            self._ahead.clear()
            while not messages:
                messages = self._fetch(deadline.left())
                if deadline.is_over:
                    break
            return messages

    def _fetch(self, max_wait: float) -> list[Message]:
        tries = None
        while True:
            wait = milliseconds(max_wait)
            status = lib.pyralog_consumer_poll(self._handle.pointer, wait, self._messages, self._count)
            if status == lib.PYRALOG_OK:
                return [_message(message) for message in ffi.unpack(self._messages[0], self._count[0])]
            error = last_error(status)
            tries = tries or Deadline(max(self._retry_for - SLICE, 0.0))
            if not error.retriable or tries.is_over:
                raise error

    def assign(self, partition: int, start: StartAt | int = EARLIEST) -> None:
        """Reads a partition too, or goes on elsewhere in one that it reads."""
        where = _start(start)
        with self._lock:
            pointer = self._handle.pointer
            check(lib.pyralog_consumer_assign(pointer, partition, where.start, where.value))
            self._forget(partition)

    def unassign(self, partition: int) -> None:
        """Reads a partition no more."""
        with self._lock:
            check(lib.pyralog_consumer_unassign(self._handle.pointer, partition))
            self._forget(partition)

    def seek(self, start: StartAt | int, partition: int | None = None) -> None:
        """Goes on elsewhere in a partition that it reads; None is the first that it was made with."""
        partition = self._first if partition is None else partition
        where = _start(start)
        with self._lock:
            check(lib.pyralog_consumer_seek(self._handle.pointer, partition, where.start, where.value))
            self._forget(partition)

    def _forget(self, partition: int) -> None:
        self._ahead = deque(message for message in self._ahead if message.partition != partition)

    def position(self, partition: int | None = None) -> int:
        """The offset of the record that comes next from a partition; None is the first that it was made with."""
        partition = self._first if partition is None else partition
        with self._lock:
            for message in self._ahead:
                if message.partition == partition:
                    return message.offset
            offset = ffi.new("int64_t *")
            check(lib.pyralog_consumer_position(self._handle.pointer, partition, offset))
            return int(offset[0])

    def _bounds(self) -> tuple[int, int]:
        bounds = ffi.new("int64_t[2]")
        with self._lock:
            check(lib.pyralog_consumer_bounds(self._handle.pointer, bounds, bounds + 1))
        return bounds[0], bounds[1]

    @property
    def log_start(self) -> int:
        """The first offset of the first partition that was still there at the last poll; -1 before it."""
        return self._bounds()[0]

    @property
    def high_watermark(self) -> int:
        """The records of the first partition below this offset were committed at the last poll; -1 before it."""
        return self._bounds()[1]

    def __iter__(self) -> Consumer:
        return self

    def __next__(self) -> Message:
        with self._lock:
            while not self._ahead:
                self._ahead.extend(self._fetch(SLICE))
            return self._ahead.popleft()

    def close(self) -> None:
        """Closes its connection."""
        self._handle.drop()

    def __enter__(self) -> Consumer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _start(start: StartAt | int) -> StartAt:
    return start if isinstance(start, StartAt) else StartAt.offset(start)
