"""The client library of Pyralog, a replicated commit log.

- `Client`: topics, and what the others are made from.
- `Producer`: batches records and sends them in the background; `Producer.send` gives a future.
- `DirectProducer`: one record at a time, by the shortest way to the log.
- `Consumer`: the records of a partition, by `Consumer.poll` or by iterating.
- `PyralogError`: what went wrong, whether the request had an effect, whether it can succeed later.

Times that are waited for are in seconds, timestamps of records in milliseconds since the Unix epoch. Keys and values
are bytes, or anything else with a buffer. Nothing here can be used by a child process after `os.fork()`.
"""

from ._choices import (
    EARLIEST,
    LATEST,
    Acks,
    Compression,
    Consistency,
    Durability,
    ErrorCode,
    Outcome,
    Partitioner,
    StartAt,
)
from ._client import Client
from ._consumer import Consumer, Message
from ._deliveries import Delivery
from ._direct import DirectProducer
from ._errors import NotAccepted, PyralogError, UnknownOutcome
from ._native import ffi as _ffi
from ._native import lib as _lib
from ._producer import Producer, ProducerStats
from ._records import RecordMetadata

__version__: str = _ffi.string(_lib.pyralog_version()).decode()

__all__ = [
    "EARLIEST",
    "LATEST",
    "Acks",
    "Client",
    "Compression",
    "Consistency",
    "Consumer",
    "Delivery",
    "DirectProducer",
    "Durability",
    "ErrorCode",
    "Message",
    "NotAccepted",
    "Outcome",
    "Partitioner",
    "Producer",
    "ProducerStats",
    "PyralogError",
    "RecordMetadata",
    "StartAt",
    "UnknownOutcome",
]
