"""Creates a topic, writes to it with futures, callbacks, coroutines and the low-latency path, reads everything back and
checks it. Exits 0 only when all of it is there, once and in order.

    python produce_consume.py 127.0.0.1:9092
"""

from __future__ import annotations

import asyncio
import sys
from typing import List, Optional

import pyralog

TOPIC = "python-example"
WAIT = 30.0
FUTURES, CALLBACKS, COROUTINES = 5_000, 5_000, 100
RECORDS = FUTURES + CALLBACKS + COROUTINES + 1


def demand(holds: bool, what: str) -> None:
    if not holds:
        sys.exit(f"this does not hold: {what}")


def value(i: int) -> bytes:
    return b"record %d" % i


def create_topic(client: pyralog.Client) -> None:
    try:
        client.partitions(TOPIC)
        client.delete_topic(TOPIC)  # of an earlier run
    except pyralog.PyralogError as error:
        if error.code != pyralog.ErrorCode.UNKNOWN_TOPIC_OR_PARTITION:
            raise
    client.create_topic(TOPIC, partitions=2)
    demand(client.partitions(TOPIC) == 2, "the topic has the partitions that were asked for")
    try:
        client.create_topic(TOPIC)
        demand(False, "a topic is not created twice")
    except pyralog.NotAccepted as error:
        demand(error.code == pyralog.ErrorCode.TOPIC_ALREADY_EXISTS, "the error says why")


def with_futures(producer: pyralog.Producer) -> None:
    deliveries = [
        producer.send(value(i), partition=0, timestamp_ms=i, headers=[("number", value(i))]) for i in range(FUTURES)
    ]
    for i, delivery in enumerate(deliveries):
        metadata = delivery.result(WAIT)
        demand((metadata.partition, metadata.offset) == (0, i), "offsets are counted from 0 without gaps")
        demand(metadata.durability >= pyralog.Durability.LEADER, "every record is durable")


def with_callbacks(producer: pyralog.Producer) -> None:
    offsets: List[int] = []

    def on_delivery(metadata: Optional[pyralog.RecordMetadata], error: Optional[pyralog.PyralogError]) -> None:
        if error:
            print(f"a record failed: {error}", file=sys.stderr)
        elif metadata:
            offsets.append(metadata.offset)

    for i in range(FUTURES, FUTURES + CALLBACKS):
        producer.post(value(i), partition=0, timestamp_ms=i, headers=[("number", value(i))], on_delivery=on_delivery)
    producer.flush(WAIT)
    demand(offsets == list(range(FUTURES, FUTURES + CALLBACKS)), "every record was acknowledged, in order")


async def with_coroutines(producer: pyralog.Producer) -> None:
    first = FUTURES + CALLBACKS
    for i in range(first, first + COROUTINES):
        metadata = await producer.send(value(i), partition=0, timestamp_ms=i, headers=[("number", value(i))])
        demand(metadata.offset == i, "each record is behind the one before")


def directly(client: pyralog.Client) -> None:
    with client.direct_producer(TOPIC) as direct:
        metadata = direct.send(value(RECORDS - 1), key=b"key", partition=0)
        demand(metadata.offset == RECORDS - 1, "it is the last one")
        demand(metadata.durability >= pyralog.Durability.LEADER, "it is durable")


def check_message(message: pyralog.Message, i: int) -> None:
    demand((message.partition, message.offset) == (0, i), "records come in order")
    demand(message.value == value(i), "values are what was sent")
    if i == RECORDS - 1:
        demand(message.key == b"key" and message.headers == (), "a key and no headers")
    else:
        demand(message.key is None and message.timestamp_ms == i, "no key, and the timestamp that was sent")
        demand(message.headers == (("number", value(i)),), "the header that was sent")


def consume(client: pyralog.Client) -> None:
    with client.consumer(TOPIC, 0, pyralog.EARLIEST) as consumer:
        read = 0
        while read < RECORDS:
            messages = consumer.poll(WAIT)
            demand(bool(messages), "records come in time")
            for message in messages:
                check_message(message, read)
                read += 1
        demand(consumer.poll(0) == [], "nothing comes at the end")
        consumer.seek(RECORDS // 2)
        for expected, message in zip(range(RECORDS // 2, RECORDS), consumer):
            check_message(message, expected)
        demand(consumer.position() == RECORDS, "the end is behind the last record")


def main() -> None:
    addresses = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9092"
    with pyralog.Client(addresses, name="produce_consume.py", retry_for=WAIT) as client:
        client.ping()
        create_topic(client)
        with client.producer(TOPIC, compression=pyralog.Compression.ZSTD, linger=0.001) as producer:
            with_futures(producer)
            with_callbacks(producer)
        with client.producer(TOPIC, max_block=0) as producer:
            asyncio.run(with_coroutines(producer))
        directly(client)
        consume(client)
        client.delete_topic(TOPIC)
    print(f"{RECORDS} records written and read back")


if __name__ == "__main__":
    main()
