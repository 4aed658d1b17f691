"""Clients."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Iterable, Sequence

from ._choices import EARLIEST, Consistency, StartAt
from ._consumer import Consumer
from ._direct import DirectProducer
from ._errors import check
from ._handles import Handle, milliseconds, settings
from ._native import ffi, lib
from ._producer import Producer


class Client:
    """A client of a cluster: creates and deletes topics, and makes producers and consumers, which do not need it any
    more then. Any threads may use one; their calls wait for each other.

    `addresses` is "host:port,host:port" or a sequence of such; one node that answers is enough. Nothing is connected
    before it has to be; `ping` makes sure.
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        *,
        name: str = "",
        connect_timeout: float | None = None,
        request_timeout: float | None = None,
        retry_for: float | None = None,
        consistency: Consistency | None = None,
    ) -> None:
        """`name` is for the operator of the node. Times are in seconds; None is the library's default."""
        called = ffi.new("char[]", name.encode())
        config = settings(
            "client",
            name=called,
            connect_timeout_ms=milliseconds(connect_timeout),
            request_timeout_ms=milliseconds(request_timeout),
            retry_for_ms=milliseconds(retry_for),
            consistency=consistency,
        )
        if not isinstance(addresses, str):
            addresses = ",".join(addresses)
        listed = addresses.encode()
        self._handle = Handle("client", lambda into: lib.pyralog_client_new(listed, config, into))

    def ping(self) -> None:
        """Makes sure that a node answers; waits up to `retry_for` for one."""
        check(lib.pyralog_client_ping(self._handle.pointer))

    def create_topic(
        self,
        name: str,
        partitions: int = 1,
        *,
        replication_factor: int | None = None,
        write_quorum: int | None = None,
        read_quorum: int | None = None,
        min_insync_replicas: int | None = None,
        retention_bytes: int | None = None,
        retention_ms: int | None = None,
    ) -> None:
        """Creates a topic. None is the node's default; a retention of 0 is unlimited. Not tried again when the outcome
        is unknown: then `partitions` tells whether it is there."""
        config = settings(
            "topic",
            partitions=partitions,
            replication_factor=replication_factor,
            write_quorum=write_quorum,
            read_quorum=read_quorum,
            min_insync_replicas=min_insync_replicas,
            retention_bytes=retention_bytes,
            retention_ms=retention_ms,
        )
        check(lib.pyralog_topic_create(self._handle.pointer, name.encode(), config))

    def delete_topic(self, name: str) -> None:
        """Deletes a topic and its data. One that is not there may be one that the node has not heard of yet: it is
        tried again for `retry_for`."""
        check(lib.pyralog_topic_delete(self._handle.pointer, name.encode()))

    def partitions(self, topic: str) -> int:
        """How many partitions a topic has."""
        count = ffi.new("uint32_t *")
        check(lib.pyralog_topic_partitions(self._handle.pointer, topic.encode(), count))
        return int(count[0])

    def offset(self, topic: str, partition: int, start: StartAt) -> int:
        """The offset of a partition where `EARLIEST`, `LATEST` or `StartAt.timestamp(ms)` is."""
        offset = ffi.new("int64_t *")
        pointer = self._handle.pointer
        check(lib.pyralog_topic_offset(pointer, topic.encode(), partition, start.start, start.value, offset))
        return int(offset[0])

    def producer(self, topic: str, **options: Any) -> Producer:
        """A `Producer` for a topic, with the options of its class."""
        return Producer(self, topic, **options)

    def direct_producer(self, topic: str, **options: Any) -> DirectProducer:
        """A `DirectProducer` for a topic, with the options of its class."""
        return DirectProducer(self, topic, **options)

    def consumer(
        self, topic: str, partitions: int | Iterable[int] = 0, start: StartAt | int = EARLIEST, **options: Any
    ) -> Consumer:
        """A `Consumer` of one or more partitions, with the options of its class."""
        return Consumer(self, topic, partitions, start, **options)

    def close(self) -> None:
        """Closes its connections. Producers and consumers made from it go on."""
        self._handle.drop()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
