"""Tests of the package against a node: PYRALOG_ADDRESS=127.0.0.1:9092 python -m unittest discover net/python/tests

With PYRALOG_BIN, the path of the program pyralog, those that end a node are run too, each on one of its own.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import warnings
from pathlib import Path

import pyralog
from pyralog import EARLIEST, LATEST, ErrorCode, Outcome, StartAt

ADDRESS = os.environ.get("PYRALOG_ADDRESS", "127.0.0.1:9092")
BIN = os.environ.get("PYRALOG_BIN")
WAIT = 30.0


class WithTopic(unittest.TestCase):
    """A client, and a topic of the test's own with three partitions."""

    def setUp(self) -> None:
        warnings.simplefilter("error", ResourceWarning)
        self.client = pyralog.Client(ADDRESS, name="unittest", retry_for=2.0)
        self.addCleanup(self.client.close)
        self.topic = self.id().rsplit(".", 1)[1].replace("_", "-")
        self.client.create_topic(self.topic, partitions=3)
        self.addCleanup(lambda: pyralog.Client(ADDRESS).delete_topic(self.topic))

    def read(self, count: int, partition: int = 0) -> list[pyralog.Message]:
        """So many records, and no more."""
        with self.client.consumer(self.topic, partition) as consumer:
            messages: list[pyralog.Message] = []
            while len(messages) < count:
                polled = consumer.poll(WAIT)
                self.assertTrue(polled, f"{len(messages)} of {count} records")
                messages += polled
            self.assertEqual(consumer.poll(0), [])
        self.assertEqual(len(messages), count)
        return messages


class Producing(WithTopic):
    def test_futures_have_the_metadata(self) -> None:
        with self.client.producer(self.topic, linger=0.005) as producer:
            self.assertEqual(producer.partitions, 3)
            deliveries = [producer.send(b"%d" % i, partition=1) for i in range(1000)]
            for i, delivery in enumerate(deliveries):
                metadata = delivery.result(WAIT)
                self.assertEqual((metadata.partition, metadata.offset, metadata.duplicate), (1, i, False))
                self.assertGreaterEqual(metadata.durability, pyralog.Durability.LEADER)
            stats = producer.stats
            self.assertEqual((stats.acked_records, stats.failed_records), (1000, 0))
            self.assertLess(stats.acked_batches, 1000)
        self.assertEqual([message.value for message in self.read(1000, 1)], [b"%d" % i for i in range(1000)])

    def test_a_delivery_can_not_be_cancelled(self) -> None:
        with self.client.producer(self.topic) as producer:
            delivery = producer.send(b"v")
            self.assertFalse(delivery.cancel())
            self.assertEqual(delivery.result(WAIT).offset, 0)

    def test_what_was_sent_comes_back_as_it_was(self) -> None:
        odd = "k\udcff"
        records = [
            (None, None, ()),
            (b"", b"", (("", b""), ("none", None))),
            (b"value", b"key", (("a", b"1"), ("a", b"2"))),
            (bytearray(b"array"), memoryview(b"a view")[2:], ((odd, memoryview(b"x")),)),
            (bytes(range(256)) * 400, None, ()),
        ]
        with self.client.producer(self.topic, compression=pyralog.Compression.LZ4) as producer:
            for i, (value, key, headers) in enumerate(records):
                producer.send(value, key=key, partition=2, timestamp_ms=1000 + i, headers=headers)
            before = int(time.time() * 1000)
            producer.send(b"now", partition=2)
        messages = self.read(len(records) + 1, 2)
        for i, (message, (value, key, headers)) in enumerate(zip(messages, records)):
            self.assertEqual((message.partition, message.offset, message.timestamp_ms), (2, i, 1000 + i))
            self.assertEqual(message.value, None if value is None else bytes(value))
            self.assertEqual(message.key, None if key is None else bytes(key))
            self.assertEqual(message.headers, tuple((n, None if v is None else bytes(v)) for n, v in headers))
        self.assertLessEqual(abs(messages[-1].timestamp_ms - before), 60_000)

    def test_a_key_decides_the_partition(self) -> None:
        with self.client.producer(self.topic) as producer:
            chosen = {
                key: {producer.send(b"v", key=key).result(WAIT).partition for _ in range(3)}
                for key in (b"a", b"b", b"c", b"d")
            }
        self.assertTrue(all(len(partitions) == 1 for partitions in chosen.values()), chosen)
        self.assertGreater(len(set.union(*chosen.values())), 1)

    def test_records_without_a_key_go_in_turn(self) -> None:
        with self.client.producer(self.topic, partitioner=pyralog.Partitioner.ROUND_ROBIN) as producer:
            partitions = [producer.send(b"v").result(WAIT).partition for _ in range(6)]
        self.assertEqual(sorted(partitions), [0, 0, 1, 1, 2, 2])

    def test_callbacks_are_called_before_a_flush_is_over(self) -> None:
        called = []
        with self.client.producer(self.topic) as producer:
            for i in range(100):
                producer.post(b"v", partition=0, on_delivery=lambda metadata, error: called.append((metadata, error)))
            producer.post(b"told nobody", partition=0)
            producer.flush(WAIT)
            self.assertEqual([metadata.offset for metadata, _ in called if metadata], list(range(100)))
            self.assertTrue(all(error is None for _, error in called))
        self.assertEqual(self.read(101)[-1].value, b"told nobody")

    def test_a_callback_that_fails_harms_nobody(self) -> None:
        seen, hook = [], sys.excepthook
        sys.excepthook = lambda kind, error, trace: seen.append(error)
        self.addCleanup(setattr, sys, "excepthook", hook)

        def fails(metadata: object, error: object) -> None:
            raise SystemExit("on purpose")

        with self.client.producer(self.topic) as producer:
            producer.post(b"v", on_delivery=fails)
            producer.flush(WAIT)
            self.assertEqual(producer.send(b"v", partition=1).result(WAIT).partition, 1)
        self.assertEqual([str(error) for error in seen], ["on purpose"])

    def test_a_callback_can_send_but_not_wait(self) -> None:
        found: list[object] = []
        with self.client.producer(self.topic) as producer:

            def callback(metadata: object, error: object) -> None:
                try:
                    producer.flush()
                except RuntimeError as refused:
                    found.append(refused)
                found.append(producer.send(b"second", partition=0))

            producer.post(b"first", partition=0, on_delivery=callback)
            producer.flush(WAIT)
            producer.flush(WAIT)
        self.assertIsInstance(found[0], RuntimeError)
        self.assertEqual([message.value for message in self.read(2)], [b"first", b"second"])

    def test_coroutines_await_deliveries(self) -> None:
        async def produce() -> list[pyralog.RecordMetadata]:
            with self.client.producer(self.topic, max_block=0) as producer:
                return await asyncio.gather(*(producer.send(b"v", partition=0) for _ in range(100)))

        async def fails() -> None:
            with self.client.producer(self.topic) as producer:
                await producer.send(b"v", partition=99)

        self.assertEqual([metadata.offset for metadata in asyncio.run(produce())], list(range(100)))
        with self.assertRaises(pyralog.NotAccepted):
            asyncio.run(fails())

    def test_many_threads_share_a_producer(self) -> None:
        with self.client.producer(self.topic) as producer:

            def produce() -> None:
                for _ in range(500):
                    producer.post(b"v", partition=0)
                producer.send(b"v", partition=0).result(WAIT)

            threads = [threading.Thread(target=produce) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertEqual([message.offset for message in self.read(8 * 501)], list(range(8 * 501)))

    def test_a_full_buffer_is_an_error_when_sending_must_not_wait(self) -> None:
        # A batch that lingers keeps its memory.
        with self.client.producer(self.topic, linger=WAIT, buffer_bytes=2000, max_block=0) as producer:
            with self.assertRaises(pyralog.NotAccepted) as caught:
                for _ in range(100):
                    producer.send(b"x" * 1000, partition=0)
            self.assertEqual((caught.exception.code, caught.exception.retriable), (ErrorCode.OVERLOADED, True))
            producer.flush(WAIT)
            self.assertIsNotNone(producer.send(b"there is room again"))

    def test_wrong_arguments_are_refused(self) -> None:
        with self.client.producer(self.topic) as producer:
            for value in ("text", 5, [1]):
                with self.assertRaises(TypeError):
                    producer.send(value)  # type: ignore[arg-type]
            with self.assertRaises(OverflowError):
                producer.send(b"v", partition=-1)
            with self.assertRaises(pyralog.NotAccepted) as caught:
                producer.send(b"x" * (2 << 20))
            self.assertEqual(caught.exception.code, ErrorCode.TOO_LARGE)
            self.assertEqual(producer.send(b"v", partition=0).result(WAIT).offset, 0)
        for options in ({"acks": 7}, {"compression": 1}):
            with self.assertRaises(pyralog.PyralogError) as refused:
                self.client.producer(self.topic, **options)
            self.assertEqual(refused.exception.code, ErrorCode.INVALID_ARGUMENT)
        with self.assertRaises(ValueError):
            self.client.producer(self.topic, linger=-1.0)

    def test_a_closed_producer_says_so(self) -> None:
        producer = self.client.producer(self.topic)
        delivery = producer.send(b"v", partition=0)
        producer.close(WAIT)
        self.assertEqual(delivery.result(0).offset, 0)
        producer.close()
        for use in (lambda: producer.send(b"v"), producer.flush, lambda: producer.stats):
            with self.assertRaises(ValueError):
                use()

    def test_a_producer_that_is_forgotten_still_sends(self) -> None:
        producer = self.client.producer(self.topic)
        delivery = producer.send(b"v", partition=0)
        with self.assertWarns(ResourceWarning):
            del producer
            gc.collect()
        self.assertEqual(delivery.result(WAIT).offset, 0)

    def test_a_program_that_ends_still_sends(self) -> None:
        program = (
            "import pyralog\n"
            f"producer = pyralog.Client({ADDRESS!r}).producer({self.topic!r}, linger=0.5)\n"
            "for i in range(100): producer.post(b'%d' % i, partition=0)\n"
        )
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
        self.assertEqual([message.value for message in self.read(100)], [b"%d" % i for i in range(100)])

    def test_a_child_process_can_not_use_its_parents(self) -> None:
        producer = self.client.producer(self.topic)
        child = os.fork()
        if child == 0:
            try:
                producer.send(b"v")
            except RuntimeError:
                os._exit(7)
            os._exit(1)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 7)
        self.assertEqual(producer.send(b"v", partition=0).result(WAIT).offset, 0)
        producer.close()


class Directly(WithTopic):
    def test_each_record_is_acknowledged_before_the_next(self) -> None:
        with self.client.direct_producer(self.topic, acks=pyralog.Acks.QUORUM, spin=0.0001) as direct:
            for i in range(50):
                metadata = direct.send(b"%d" % i, key=b"k", partition=2)
                self.assertEqual((metadata.partition, metadata.offset), (2, i))
            direct.send(None, partition=2)
            with self.assertRaises(pyralog.NotAccepted):
                direct.send(b"v", partition=3)
            with self.assertRaises(TypeError):
                direct.send("text")  # type: ignore[arg-type]
        with self.assertRaises(ValueError):
            direct.send(b"v")
        messages = self.read(51, 2)
        self.assertEqual((messages[0].key, messages[0].value, messages[50].value), (b"k", b"0", None))

    def test_threads_take_turns(self) -> None:
        with self.client.direct_producer(self.topic) as direct:
            found: list[int] = []
            produce = lambda: found.extend(direct.send(b"v").offset for _ in range(20))
            threads = [threading.Thread(target=produce) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertEqual(sorted(found), list(range(80)))


class Consuming(WithTopic):
    def setUp(self) -> None:
        super().setUp()
        with self.client.producer(self.topic) as producer:
            for i in range(30):
                producer.send(b"%d" % i, partition=i % 3, timestamp_ms=1000 + i).result(WAIT)

    def test_it_starts_where_it_is_told_to(self) -> None:
        starts = {EARLIEST: 0, LATEST: 10, StartAt.offset(4): 4, StartAt.timestamp(1015): 5, 7: 7}
        for start, offset in starts.items():
            with self.client.consumer(self.topic, 0, start) as consumer:
                self.assertEqual(consumer.position(), offset)
                messages = consumer.poll(0 if offset == 10 else WAIT)
                self.assertEqual([message.offset for message in messages], list(range(offset, 10)))
        self.assertEqual(self.client.offset(self.topic, 0, StartAt.timestamp(1015)), 5)
        self.assertEqual(self.client.offset(self.topic, 0, LATEST), 10)

    def test_several_partitions_are_each_in_order(self) -> None:
        with self.client.consumer(self.topic, [0, 2]) as consumer:
            consumer.assign(1, 5)
            read: dict[int, list[int]] = {0: [], 1: [], 2: []}
            while sum(map(len, read.values())) < 25:
                messages = consumer.poll(WAIT)
                self.assertTrue(messages)
                for message in messages:
                    read[message.partition].append(message.offset)
            self.assertEqual(read, {0: list(range(10)), 1: list(range(5, 10)), 2: list(range(10))})
            consumer.unassign(0)
            consumer.seek(8, partition=2)
            self.assertEqual({(m.partition, m.offset) for m in consumer.poll(WAIT)}, {(2, 8), (2, 9)})
            for use in (consumer.position, lambda: consumer.seek(0), lambda: consumer.unassign(0)):
                with self.assertRaises(pyralog.PyralogError) as caught:
                    use()
                self.assertEqual(caught.exception.code, ErrorCode.INVALID_ARGUMENT)

    def test_partitions_that_can_not_be_read_are_refused(self) -> None:
        with self.assertRaises(ValueError):
            self.client.consumer(self.topic, [])
        with self.assertRaises(pyralog.NotAccepted) as caught:
            self.client.consumer(self.topic, 3)
        self.assertEqual(caught.exception.code, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION)

    def test_iterating_and_polling_go_together(self) -> None:
        with self.client.consumer(self.topic, 0) as consumer:
            self.assertEqual((consumer.log_start, consumer.high_watermark), (-1, -1))
            self.assertEqual([next(consumer).offset, next(consumer).offset], [0, 1])
            self.assertEqual((consumer.position(), consumer.log_start, consumer.high_watermark), (2, 0, 10))
            self.assertEqual([message.offset for message in consumer.poll(0)], list(range(2, 10)))
            consumer.seek(9)
            self.assertEqual(next(consumer).offset, 9)

    def test_a_poll_waits_for_what_comes(self) -> None:
        with self.client.consumer(self.topic, 0, LATEST) as consumer:
            begun = time.monotonic()
            self.assertEqual(consumer.poll(0.5), [])
            self.assertGreaterEqual(time.monotonic() - begun, 0.5)
            with self.client.producer(self.topic) as producer:
                timer = threading.Timer(0.3, lambda: producer.post(b"late", partition=0))
                timer.start()
                self.assertEqual([message.value for message in consumer.poll(WAIT)], [b"late"])
                timer.join()

    def test_an_offset_outside_the_log_is_an_error(self) -> None:
        with self.client.consumer(self.topic, 0, 1000) as consumer:
            with self.assertRaises(pyralog.NotAccepted) as caught:
                consumer.poll(WAIT)
            self.assertEqual(caught.exception.code, ErrorCode.OFFSET_OUT_OF_RANGE)
            consumer.seek(9)
            self.assertEqual(next(consumer).offset, 9)

    def test_a_signal_ends_a_poll(self) -> None:
        with self.client.consumer(self.topic, 0, LATEST) as consumer:
            timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
            timer.start()
            begun = time.monotonic()
            with self.assertRaises(KeyboardInterrupt):
                consumer.poll(WAIT)
            self.assertLess(time.monotonic() - begun, WAIT / 2)
            timer.join()


class Errors(WithTopic):
    def test_errors_say_what_happened(self) -> None:
        with self.assertRaises(pyralog.NotAccepted) as caught:
            self.client.create_topic(self.topic)
        error = caught.exception
        self.assertEqual((error.code, error.name), (ErrorCode.TOPIC_ALREADY_EXISTS, "TopicAlreadyExists"))
        self.assertEqual((error.outcome, error.retriable), (Outcome.NOT_ACCEPTED, False))
        self.assertIn("exists", str(error))
        with self.assertRaises(pyralog.NotAccepted) as missing:
            self.client.partitions("there-is-no-such-topic")
        self.assertEqual(missing.exception.code, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION)
        with self.assertRaises(pyralog.PyralogError) as invalid:
            self.client.create_topic("not / a name")
        self.assertEqual(invalid.exception.code, ErrorCode.INVALID_TOPIC)

    def test_nobody_there(self) -> None:
        with pyralog.Client(["127.0.0.1:1", "127.0.0.1:2"], retry_for=0) as client:
            with self.assertRaises(pyralog.NotAccepted) as caught:
                client.ping()
        self.assertEqual((caught.exception.code, caught.exception.retriable), (ErrorCode.NOT_READY, True))
        with self.assertRaises(pyralog.PyralogError):
            pyralog.Client("no port")

    def test_every_code_has_its_name(self) -> None:
        from pyralog._native import lib

        numbers = {getattr(lib, name) for name in dir(lib) if name.startswith("PYRALOG_ERROR_")}
        self.assertEqual(numbers, {code.value for code in ErrorCode if code > 0})
        self.assertEqual(pyralog.__version__.count("."), 2)


@unittest.skipUnless(BIN, "PYRALOG_BIN names no program pyralog")
class WithoutNode(unittest.TestCase):
    """A node of the test's own, which it may end."""

    def setUp(self) -> None:
        warnings.simplefilter("error", ResourceWarning)
        folder = tempfile.TemporaryDirectory(prefix="pyralog-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.address = self.start("127.0.0.1:0")
        self.client = pyralog.Client(self.address, retry_for=5.0)
        self.client.create_topic("t")

    def start(self, listen: str) -> str:
        """A node on the same data. Its address."""
        assert BIN is not None
        command = [BIN, "--listen", listen, "--data-dir", str(self.folder / "data"), "--shards", "1"]
        log = self.folder / "log"
        with log.open("w") as out:
            self.node = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
        node = self.node
        self.addCleanup(node.wait)
        self.addCleanup(node.kill)
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            for line in log.read_text().splitlines():
                if line.startswith("ready on "):
                    return line[len("ready on ") :].split(",")[0]
            self.assertIsNone(node.poll(), "the node has ended")
            time.sleep(0.05)
        self.fail("the node is not ready in time")

    def test_what_is_not_acknowledged_says_so(self) -> None:
        producer = self.client.producer("t", delivery_timeout=1.0)
        self.assertEqual(producer.send(b"v").result(WAIT).offset, 0)
        self.node.kill()
        self.node.wait()
        delivery = producer.send(b"v")
        with self.assertRaises(pyralog.PyralogError) as caught:
            delivery.result(WAIT)
        self.assertEqual(producer.stats.failed_records, 1)
        self.assertIsInstance(caught.exception, (pyralog.NotAccepted, pyralog.UnknownOutcome))
        self.assertEqual(
            isinstance(caught.exception, pyralog.UnknownOutcome), caught.exception.outcome == Outcome.UNKNOWN
        )
        producer.close(WAIT)

    def test_everything_goes_on_after_a_restart(self) -> None:
        consumer = self.client.consumer("t")
        with self.client.producer("t") as producer, self.client.direct_producer("t") as direct:
            producer.send(b"0").result(WAIT)
            direct.send(b"1")
            self.assertEqual([next(consumer).value, next(consumer).value], [b"0", b"1"])
            self.node.kill()
            self.node.wait()
            delivery = producer.send(b"2")
            self.start(self.address)
            self.assertEqual(delivery.result(WAIT).offset, 2)
            self.assertEqual(direct.send(b"3").offset, 3)
            self.assertEqual([next(consumer).value, next(consumer).value], [b"2", b"3"])
        consumer.close()

    def test_closing_does_not_wait_longer_than_told(self) -> None:
        producer = self.client.producer("t")
        producer.send(b"v").result(WAIT)
        self.node.send_signal(signal.SIGSTOP)
        delivery = producer.send(b"v")
        with self.assertRaises(pyralog.PyralogError) as caught:
            producer.close(0.5)
        self.assertEqual(caught.exception.code, ErrorCode.REQUEST_TIMED_OUT)
        with self.assertRaises(pyralog.UnknownOutcome):
            delivery.result(0)
        self.node.send_signal(signal.SIGCONT)


if __name__ == "__main__":
    unittest.main()
