"""Records on their way into the library, and what becomes of them."""

from __future__ import annotations

from typing import Any, Iterable, NamedTuple, Optional, Tuple, Union

from ._choices import Durability
from ._native import ffi, lib

Bytes = Union[bytes, bytearray, memoryview]
Header = Tuple[str, Optional[Bytes]]

_NOTHING = ffi.new("char[1]")


class RecordMetadata(NamedTuple):
    """Where a record is that was acknowledged."""

    partition: int
    offset: int
    durability: Durability
    """What was reached."""
    duplicate: bool
    """The node had it already, from an earlier attempt."""


_DURABILITIES = {int(durability): durability for durability in Durability}


def metadata_of(delivery: Any) -> RecordMetadata:
    """What a delivery that worked says."""
    reached = _DURABILITIES[delivery.durability]
    return RecordMetadata(delivery.partition, delivery.offset, reached, bool(delivery.duplicate))


def buffer_of(data: Bytes, name: str) -> Any:
    """The memory of `data`, never NULL, as long as the result is there."""
    try:
        buffer = ffi.from_buffer(data)
    except TypeError as error:
        raise TypeError(f"{name} must be bytes or None, not {type(data).__name__}") from error
    return buffer if len(buffer) else _NOTHING


def length_of(buffer: Any) -> int:
    """How many bytes `buffer_of` has found."""
    return 0 if buffer is _NOTHING else len(buffer)


def fill(
    record: Any,
    value: Bytes | None,
    key: Bytes | None,
    partition: int | None,
    timestamp_ms: int | None,
    headers: Iterable[Header],
) -> list[Any]:
    """Fills in a record that is all zeros. Its memory is there as long as the result is."""
    keep = []
    if value is not None:
        buffer = buffer_of(value, "value")
        record.value, record.value_len = buffer, length_of(buffer)
        keep.append(buffer)
    if key is not None:
        buffer = buffer_of(key, "key")
        record.key, record.key_len = buffer, length_of(buffer)
        keep.append(buffer)
    if partition is not None:
        record.partition = partition
        record.flags |= lib.PYRALOG_RECORD_PARTITION
    if timestamp_ms is not None:
        record.timestamp_ms = timestamp_ms
        record.flags |= lib.PYRALOG_RECORD_TIMESTAMP
    if headers:
        keep.append(_fill_headers(record, list(headers), keep))
    return keep


def _fill_headers(record: Any, headers: list[Header], keep: list[Any]) -> Any:
    parts = ffi.new("pyralog_header_t[]", len(headers))
    for part, (name, content) in zip(parts, headers):
        buffer = buffer_of(name.encode("utf-8", "surrogateescape"), "a header's name")
        part.key, part.key_len = buffer, length_of(buffer)
        keep.append(buffer)
        if content is not None:
            buffer = buffer_of(content, "a header's value")
            part.value, part.value_len = buffer, length_of(buffer)
            keep.append(buffer)
    record.headers, record.header_count = parts, len(headers)
    return parts
