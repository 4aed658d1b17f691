"""Producers."""

from __future__ import annotations

import warnings
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any, Iterable, NamedTuple

from ._choices import Acks, Compression, Partitioner
from ._deliveries import Callback, Deliveries, Delivery, Sink
from ._errors import check, last_error
from ._handles import SLICE, Deadline, Handle, microseconds, milliseconds, settings
from ._native import ffi, lib
from ._records import Bytes, Header, fill

if TYPE_CHECKING:
    from ._client import Client

AT_EXIT_MS = 5_000
"""How long the end of a producer's thread may take, and a producer that nobody has closed waits for its records."""
MAX_BLOCK = 60.0


class ProducerStats(NamedTuple):
    """What a producer has done."""

    acked_batches: int
    acked_records: int
    acked_bytes: int
    """Bytes of the batches acknowledged."""
    duplicates: int
    """Of the batches, how many the node had already."""
    failed_records: int
    retries: int
    """Failures of requests and connections after which something was sent again."""
    reconnects: int
    """Connections made after the first of each shard."""


class Producer:
    """Sends records of one topic in the background: batches them, and sends them again after errors that pass. Any
    threads may use one at the same time. Close it, or use it in a `with` block: that waits for what was sent.

    `send` gives a future, `post` calls a callback or tells nobody, which costs less.
    """

    def __init__(
        self,
        client: Client,
        topic: str,
        *,
        acks: Acks | None = None,
        compression: Compression | None = None,
        linger: float | None = None,
        batch_bytes: int | None = None,
        buffer_bytes: int | None = None,
        max_in_flight: int | None = None,
        idempotent: bool | None = None,
        partitioner: Partitioner | None = None,
        delivery_timeout: float | None = None,
        max_block: float = MAX_BLOCK,
    ) -> None:
        """For a topic that exists. None is the library's default.

        `linger`: how long a batch waits for more records although it could go, seconds. `batch_bytes`: when it goes at
        the latest. `buffer_bytes`: memory for records without an outcome. `max_in_flight`: batches of one partition under
        way at once. `idempotent`: each record is in the log at most once, whatever is sent again. `delivery_timeout`:
        when a record without an acknowledgement has failed, seconds. `max_block`: how long sending waits for room,
        seconds; 0 never waits, which is what coroutines need.
        """
        config = settings(
            "producer",
            acks=acks,
            compression=compression,
            linger_us=microseconds(linger),
            batch_bytes=batch_bytes,
            buffer_bytes=buffer_bytes,
            max_in_flight=max_in_flight,
            idempotent=idempotent,
            partitioner=partitioner,
            delivery_timeout_ms=milliseconds(delivery_timeout),
            # Longer waits are made of several, between which signals are handled.
            max_block_ms=milliseconds(min(max_block, SLICE)),
        )
        pointer, name = client._handle.pointer, topic.encode()
        self._handle = Handle("producer", lambda into: lib.pyralog_producer_new(pointer, name, config, into))
        self._max_block = max_block
        self._deliveries = Deliveries(topic)
        self._finish = weakref.finalize(self, _finish, self._handle, self._deliveries, topic)

    def send(
        self,
        value: Bytes | None,
        *,
        key: Bytes | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: Iterable[Header] = (),
    ) -> Delivery:
        """Takes a copy of the record and returns; what becomes of it comes as the future's result. Waits up to
        `max_block` seconds for room.

        Records of the same key go to the same partition unless `partition` says otherwise. Raises `PyralogError` when
        the record was not taken: with the code `ErrorCode.OVERLOADED` when there was no room.
        """
        delivery = Delivery()
        self._send(value, key, partition, timestamp_ms, headers, delivery)
        return delivery

    def post(
        self,
        value: Bytes | None,
        *,
        key: Bytes | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: Iterable[Header] = (),
        on_delivery: Callback | None = None,
    ) -> None:
        """As `send`, without a future. `on_delivery` is called as on_delivery(metadata, error), one of which is None, by
        the producer's thread: it should return soon, and must not wait for this producer."""
        self._send(value, key, partition, timestamp_ms, headers, on_delivery)

    def _send(
        self,
        value: Bytes | None,
        key: Bytes | None,
        partition: int | None,
        timestamp_ms: int | None,
        headers: Iterable[Header],
        sink: Sink,
    ) -> None:
        record = ffi.new("pyralog_record_t *")
        # Names what the record points to, until the call has copied it.
        kept = fill(record, value, key, partition, timestamp_ms, headers)
        tag = self._deliveries.expect(sink) if sink else None
        try:
            self._hand_over(record, tag)
        except BaseException:
            if tag is not None:
                self._deliveries.forget(tag)
            raise
        finally:
            del kept

    def _hand_over(self, record: Any, tag: int | None) -> None:
        producer, queue = self._handle.pointer, self._deliveries.queue.pointer
        deadline = None
        while True:
            if tag is None:
                status = lib.pyralog_producer_send(producer, record, ffi.NULL, ffi.NULL)
            else:
                status = lib.pyralog_producer_send_queued(producer, record, queue, tag)
            if status == lib.PYRALOG_OK:
                return
            error = last_error(status)
            if status != lib.PYRALOG_ERROR_OVERLOADED or self._deliveries.is_own_thread:
                raise error
            deadline = deadline or Deadline(max(self._max_block - SLICE, 0.0))
            if deadline.is_over:
                raise error

    def flush(self, timeout: float | None = None) -> None:
        """Waits until everything that was sent before has its outcome, and callbacks were called. A record that failed
        is no error of this: its own delivery tells. Raises `PyralogError` with the code
        `ErrorCode.REQUEST_TIMED_OUT` when that takes longer than `timeout` seconds; None waits as long as it takes, which
        is the delivery timeout at most."""
        self._refuse_own_thread()
        deadline = Deadline(timeout)
        while True:
            wait = milliseconds(deadline.left())
            status = lib.pyralog_producer_flush(self._handle.pointer, wait)
            if status == lib.PYRALOG_OK:
                break
            error = last_error(status)
            if status != lib.PYRALOG_ERROR_REQUEST_TIMED_OUT or deadline.is_over:
                raise error
        self._deliveries.wait(deadline)

    def close(self, timeout: float | None = None) -> None:
        """Flushes, then ends the producer's thread in any case; records without an outcome by then get one. Closing it
        again does nothing."""
        self._refuse_own_thread()
        if not self._finish.alive:
            return
        grace, late = 0, None
        try:
            self.flush(timeout)
            grace = AT_EXIT_MS
        finally:
            if self._finish.detach():
                # Records had their time in the flush; ending the thread takes a moment.
                status = lib.pyralog_producer_close(self._handle.pointer, grace)
                late = last_error(status) if status else None
                self._deliveries.close()
                self._handle.drop()
        if late:
            raise late

    def _refuse_own_thread(self) -> None:
        if self._deliveries.is_own_thread:
            raise RuntimeError("a callback can't wait for its own producer")

    @property
    def partitions(self) -> int:
        """How many partitions the topic had when the producer was made."""
        count = ffi.new("uint32_t *")
        check(lib.pyralog_producer_partitions(self._handle.pointer, count))
        return int(count[0])

    @property
    def stats(self) -> ProducerStats:
        """What it has done so far."""
        stats = ffi.new("pyralog_producer_stats_t *")
        stats.size = ffi.sizeof(stats[0])
        check(lib.pyralog_producer_stats(self._handle.pointer, stats))
        return ProducerStats(*(getattr(stats, name) for name in ProducerStats._fields))

    def __enter__(self) -> Producer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _finish(handle: Handle, deliveries: Deliveries, topic: str) -> None:
    """Closes a producer that nobody has closed, when it goes or the program ends."""
    if not handle.is_open:
        return
    warnings.warn(f"a producer for {topic} was not closed", ResourceWarning, stacklevel=2)
    if lib.pyralog_producer_close(handle.pointer, AT_EXIT_MS):
        warnings.warn(f"records for {topic} were lost with a producer that was not closed", RuntimeWarning, 2)
    deliveries.close()
    handle.drop()
