"""The low-latency path."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING

from ._choices import Acks
from ._errors import check
from ._handles import Handle, microseconds, milliseconds, settings
from ._native import ffi, lib
from ._records import Bytes, RecordMetadata, buffer_of, length_of, metadata_of

if TYPE_CHECKING:
    from ._client import Client


class DirectProducer:
    """Sends each record at once, from the thread that calls it, and waits for its acknowledgement: the shortest way to
    the log. Calls from several threads wait for each other; better have one for each thread.

    `spin` is how long a wait keeps a CPU busy before it sleeps, seconds; other threads of Python run meanwhile.
    """

    def __init__(
        self,
        client: Client,
        topic: str,
        *,
        acks: Acks | None = None,
        spin: float | None = None,
        delivery_timeout: float | None = None,
    ) -> None:
        """For a topic that exists. Times are in seconds; None is the library's default."""
        config = settings(
            "direct",
            acks=acks,
            spin_us=microseconds(spin),
            delivery_timeout_ms=milliseconds(delivery_timeout),
        )
        pointer, name = client._handle.pointer, topic.encode()
        self._handle = Handle("direct", lambda into: lib.pyralog_direct_new(pointer, name, config, into))
        self._delivery = ffi.new("pyralog_delivery_t *")
        self._lock = threading.Lock()

    def send(self, value: Bytes | None, *, key: Bytes | None = None, partition: int = 0) -> RecordMetadata:
        """Sends one record and waits for its acknowledgement; raises `PyralogError` when there is none."""
        values = ffi.NULL if value is None else buffer_of(value, "value")
        keys = ffi.NULL if key is None else buffer_of(key, "key")
        value_len = 0 if value is None else length_of(values)
        key_len = 0 if key is None else length_of(keys)
        with self._lock:
            delivery = self._delivery
            delivery.size = ffi.sizeof(delivery[0])
            pointer = self._handle.pointer
            check(lib.pyralog_direct_send(pointer, partition, keys, key_len, values, value_len, delivery))
            return metadata_of(delivery)

    def close(self) -> None:
        """Closes its connections."""
        self._handle.drop()

    def __enter__(self) -> DirectProducer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
