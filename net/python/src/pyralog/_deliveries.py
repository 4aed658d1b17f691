"""What becomes of records, from the library's queue to whoever waits for it.

The library's own thread never waits for Python: it puts deliveries into a queue, from which a thread of Python's takes
many at once.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Callable, Generator, Optional, Union

from ._errors import PyralogError, check, delivery_error
from ._handles import Deadline, Handle
from ._native import ffi, lib
from ._records import RecordMetadata, metadata_of

if TYPE_CHECKING:
    FutureOfMetadata = Future[RecordMetadata]
else:
    FutureOfMetadata = Future

Callback = Callable[[Optional[RecordMetadata], Optional[PyralogError]], object]

POLL_MS = 60_000


class Delivery(FutureOfMetadata):
    """What becomes of a record: a `concurrent.futures.Future` whose result is its `RecordMetadata` or raises its
    `PyralogError`. In a coroutine it can be awaited. It can't be cancelled: the record is on its way."""

    def cancel(self) -> bool:
        """False: it can't be."""
        return False

    def __await__(self) -> Generator[Any, None, RecordMetadata]:
        return asyncio.wrap_future(self).__await__()


Sink = Union[Delivery, Callback, None]


class Deliveries:
    """A queue of the library's, the thread that empties it, and who waits for what is to come."""

    def __init__(self, name: str) -> None:
        self.queue = Handle("queue", lambda into: lib.pyralog_queue_new(0, into))
        self._tags = itertools.count()
        self._pending: dict[int, Sink] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"pyralog-{name}", daemon=True)
        self._thread.start()

    def expect(self, sink: Sink) -> int:
        """A tag under which a delivery is to come."""
        tag = next(self._tags)
        self._pending[tag] = sink
        return tag

    def forget(self, tag: int) -> None:
        """It will not come: the record was not taken."""
        self._pending.pop(tag, None)

    @property
    def is_own_thread(self) -> bool:
        """Whether a callback is asking."""
        return threading.current_thread() is self._thread

    def wait(self, deadline: Deadline) -> bool:
        """Waits until everything that is expected by now has come; whether it has."""
        expected = list(self._pending)
        with self._changed:
            while expected:
                if expected[-1] not in self._pending:
                    expected.pop()
                elif deadline.is_over:
                    return False
                else:
                    self._changed.wait(deadline.left())
        return True

    def close(self) -> None:
        """Ends the thread when it has handed on what has come; nothing is sent any more."""
        self._closed = True
        check(lib.pyralog_queue_wake(self.queue.pointer))
        if not self.is_own_thread:
            self._thread.join()

    def _run(self) -> None:
        deliveries = ffi.new("pyralog_delivery_t const *const **")
        count = ffi.new("size_t *")
        pointer = self.queue.pointer
        while True:
            # Once it is closed all that is to come is there.
            closed = self._closed
            check(lib.pyralog_queue_poll(pointer, 0 if closed else POLL_MS, deliveries, count))
            for delivery in ffi.unpack(deliveries[0], count[0]):
                self._hand_on(delivery)
            with self._changed:
                self._changed.notify_all()
            if closed and not count[0]:
                return

    def _hand_on(self, delivery: Any) -> None:
        sink = self._pending.pop(delivery.tag, None)
        if sink is None:
            return
        try:
            if isinstance(sink, Delivery):
                if delivery.status:
                    sink.set_exception(delivery_error(delivery))
                else:
                    sink.set_result(metadata_of(delivery))
            elif delivery.status:
                sink(None, delivery_error(delivery))
            else:
                sink(metadata_of(delivery), None)
        except BaseException:
            # The program's callback; the others still want their deliveries.
            sys.excepthook(*sys.exc_info())
