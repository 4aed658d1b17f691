"""The numbers that settings and results choose from, by name."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from ._native import lib


class Acks(IntEnum):
    """When a record is acknowledged."""

    NONE = lib.PYRALOG_ACKS_NONE
    """As soon as it has its offset; nothing is on stable storage yet."""
    LEADER = lib.PYRALOG_ACKS_LEADER
    """When the leader's journal holds it as its fsync policy demands."""
    QUORUM = lib.PYRALOG_ACKS_QUORUM
    """When a quorum of journals holds it as their fsync policy demands."""


class Durability(IntEnum):
    """What was reached when a record was acknowledged. More is larger."""

    MEMORY = lib.PYRALOG_DURABILITY_MEMORY
    """In the leader's memory."""
    WRITTEN = lib.PYRALOG_DURABILITY_WRITTEN
    """Written to the leader's journal file, not flushed."""
    LEADER = lib.PYRALOG_DURABILITY_LEADER
    """On the leader's stable storage."""
    QUORUM = lib.PYRALOG_DURABILITY_QUORUM
    """On the stable storage of a quorum of the partition's replicas."""


class Compression(IntEnum):
    """How batches are compressed."""

    NONE = lib.PYRALOG_COMPRESSION_NONE
    LZ4 = lib.PYRALOG_COMPRESSION_LZ4
    ZSTD = lib.PYRALOG_COMPRESSION_ZSTD


class Partitioner(IntEnum):
    """Where records without key and partition go."""

    STICKY = lib.PYRALOG_PARTITIONER_STICKY
    """They stay with one partition until its batch is sent."""
    ROUND_ROBIN = lib.PYRALOG_PARTITIONER_ROUND_ROBIN
    """To one partition after the other."""


class Consistency(IntEnum):
    """Who may answer reads."""

    LEADER = lib.PYRALOG_CONSISTENCY_LEADER
    """The leader, from what it knows."""
    LINEARIZABLE = lib.PYRALOG_CONSISTENCY_LINEARIZABLE
    """The leader, after a majority has confirmed that it leads."""
    ANY_REPLICA = lib.PYRALOG_CONSISTENCY_ANY_REPLICA
    """Any replica, which may know less than another one."""


class Outcome(IntEnum):
    """What may be concluded about the effect of a request."""

    ACCEPTED = lib.PYRALOG_OUTCOME_ACCEPTED
    """It took effect."""
    NOT_ACCEPTED = lib.PYRALOG_OUTCOME_NOT_ACCEPTED
    """It had no effect. It may be sent again."""
    UNKNOWN = lib.PYRALOG_OUTCOME_UNKNOWN
    """It may or may not have taken effect. Sending it again may do it twice."""


class ErrorCode(IntEnum):
    """The errors of the protocol, and the ways to misuse the library (below zero)."""

    NULL_POINTER = lib.PYRALOG_NULL_POINTER
    INVALID_ARGUMENT = lib.PYRALOG_INVALID_ARGUMENT
    BUSY = lib.PYRALOG_BUSY
    CLOSED = lib.PYRALOG_CLOSED
    PANICKED = lib.PYRALOG_PANICKED
    INVALID_REQUEST = lib.PYRALOG_ERROR_INVALID_REQUEST
    UNSUPPORTED_VERSION = lib.PYRALOG_ERROR_UNSUPPORTED_VERSION
    UNKNOWN_TOPIC_OR_PARTITION = lib.PYRALOG_ERROR_UNKNOWN_TOPIC_OR_PARTITION
    NOT_LEADER = lib.PYRALOG_ERROR_NOT_LEADER
    NOT_CONTROLLER = lib.PYRALOG_ERROR_NOT_CONTROLLER
    INVALID_BATCH = lib.PYRALOG_ERROR_INVALID_BATCH
    CORRUPT_BATCH = lib.PYRALOG_ERROR_CORRUPT_BATCH
    TOO_LARGE = lib.PYRALOG_ERROR_TOO_LARGE
    OFFSET_OUT_OF_RANGE = lib.PYRALOG_ERROR_OFFSET_OUT_OF_RANGE
    OUT_OF_ORDER_SEQUENCE = lib.PYRALOG_ERROR_OUT_OF_ORDER_SEQUENCE
    PRODUCER_FENCED = lib.PYRALOG_ERROR_PRODUCER_FENCED
    UNKNOWN_PRODUCER_ID = lib.PYRALOG_ERROR_UNKNOWN_PRODUCER_ID
    OVERLOADED = lib.PYRALOG_ERROR_OVERLOADED
    DISK_FULL = lib.PYRALOG_ERROR_DISK_FULL
    STORAGE_FAILED = lib.PYRALOG_ERROR_STORAGE_FAILED
    FENCED = lib.PYRALOG_ERROR_FENCED
    CORRUPT_RANGE = lib.PYRALOG_ERROR_CORRUPT_RANGE
    LOG_END_UNKNOWN = lib.PYRALOG_ERROR_LOG_END_UNKNOWN
    NOT_READY = lib.PYRALOG_ERROR_NOT_READY
    REQUEST_TIMED_OUT = lib.PYRALOG_ERROR_REQUEST_TIMED_OUT
    TOPIC_ALREADY_EXISTS = lib.PYRALOG_ERROR_TOPIC_ALREADY_EXISTS
    INVALID_TOPIC = lib.PYRALOG_ERROR_INVALID_TOPIC
    LIMIT_REACHED = lib.PYRALOG_ERROR_LIMIT_REACHED
    UNSUPPORTED_COMPRESSION = lib.PYRALOG_ERROR_UNSUPPORTED_COMPRESSION
    INTERNAL = lib.PYRALOG_ERROR_INTERNAL
    CONNECTION_LOST = lib.PYRALOG_ERROR_CONNECTION_LOST
    LEADER_CHANGED = lib.PYRALOG_ERROR_LEADER_CHANGED
    NOT_ENOUGH_REPLICAS = lib.PYRALOG_ERROR_NOT_ENOUGH_REPLICAS


class StartAt(NamedTuple):
    """Where in a partition to begin: `EARLIEST`, `LATEST`, `StartAt.offset(n)` or `StartAt.timestamp(ms)`."""

    start: int
    value: int = 0

    @staticmethod
    def offset(offset: int) -> StartAt:
        """At this offset."""
        return StartAt(lib.PYRALOG_START_OFFSET, offset)

    @staticmethod
    def timestamp(timestamp_ms: int) -> StartAt:
        """At the first batch with a record of this time or later, milliseconds since the Unix epoch."""
        return StartAt(lib.PYRALOG_START_TIMESTAMP, timestamp_ms)


EARLIEST = StartAt(lib.PYRALOG_START_EARLIEST)
"""At the first record that is still there."""
LATEST = StartAt(lib.PYRALOG_START_LATEST)
"""At what comes from now on."""
