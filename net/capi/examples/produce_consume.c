/*
 * Creates a topic, writes to it with callbacks, with a queue and with the low-latency path, reads everything back and
 * checks it. Exits 0 only when all of it is there, once and in order.
 *
 *     cc produce_consume.c $(pkg-config --cflags --libs pyralog) -o produce_consume
 *     ./produce_consume 127.0.0.1:9092
 *
 * C11, and C++17 as well.
 */

#include <pyralog.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PARTITIONS = 2, BATCHED = 10000, QUEUED = 100, SUBMITTED = 20, WAIT_MS = 30000 };
/* Offset of the first record that is sent directly, and all of them. */
enum { DIRECT = BATCHED + QUEUED + 1, RECORDS = DIRECT + SUBMITTED + 1 };

static const char topic[] = "c-example";

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s (%s, outcome %d, %s)\n", what, pyralog_last_error_message(),
            pyralog_status_name(pyralog_last_error_status()), (int)pyralog_last_error_outcome(),
            pyralog_last_error_retriable() ? "can be tried again" : "final");
    exit(1);
}

static void check(int32_t status, const char *what)
{
    if (status != PYRALOG_OK) {
        fail(what);
    }
}

static void demand(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "this does not hold: %s\n", what);
        exit(1);
    }
}

/* What the callbacks count. They all run on the producer's one thread, and main looks only after a flush. */
struct outcomes {
    uint32_t acknowledged;
    uint32_t failed;
    int64_t last_offset;
};

static void on_delivery(const pyralog_delivery_t *delivery, void *user)
{
    struct outcomes *outcomes = (struct outcomes *)user;
    if (delivery->status == PYRALOG_OK && delivery->durability >= PYRALOG_DURABILITY_LEADER) {
        outcomes->acknowledged += 1;
        outcomes->last_offset = delivery->offset;
    } else {
        outcomes->failed += 1;
        fprintf(stderr, "a record failed: %s\n", delivery->message ? delivery->message : "not durable");
    }
}

/* Record number i of partition 0: its number as the value, and as the value of a header. */
static size_t text_of(uint32_t i, char *text, size_t size)
{
    return (size_t)snprintf(text, size, "record %" PRIu32, i);
}

static void fill_record(pyralog_record_t *record, pyralog_header_t *header, char *text, size_t size, uint32_t i)
{
    memset(record, 0, sizeof *record);
    memset(header, 0, sizeof *header);
    record->value = text;
    record->value_len = text_of(i, text, size);
    record->flags = PYRALOG_RECORD_PARTITION | PYRALOG_RECORD_TIMESTAMP;
    record->partition = 0;
    record->timestamp_ms = 1700000000000 + (int64_t)i;
    header->key = "number";
    header->key_len = strlen("number");
    header->value = record->value;
    header->value_len = record->value_len;
    record->headers = header;
    record->header_count = 1;
}

static void create_topic(pyralog_client_t *client)
{
    pyralog_topic_config_t config;
    uint32_t partitions = 0;
    int32_t status = pyralog_topic_partitions(client, topic, &partitions);
    if (status == PYRALOG_OK) {
        check(pyralog_topic_delete(client, topic), "deleting the topic of an earlier run");
    } else if (status != PYRALOG_ERROR_UNKNOWN_TOPIC_OR_PARTITION) {
        fail("looking for the topic of an earlier run");
    }
    check(pyralog_topic_config_init(&config, sizeof config), "the topic's settings");
    config.partitions = PARTITIONS;
    check(pyralog_topic_create(client, topic, &config), "creating the topic");
    check(pyralog_topic_partitions(client, topic, &partitions), "looking at the topic");
    demand(partitions == PARTITIONS, "the topic has the partitions that were asked for");
    status = pyralog_topic_create(client, topic, &config);
    demand(status == PYRALOG_ERROR_TOPIC_ALREADY_EXISTS, "a topic is not created twice");
    demand(pyralog_last_error_outcome() == PYRALOG_OUTCOME_NOT_ACCEPTED, "the second topic was not accepted");
}

static void produce_with_callbacks(pyralog_producer_t *producer)
{
    struct outcomes outcomes = {0, 0, -1};
    pyralog_record_t record;
    pyralog_header_t header;
    char text[32];
    for (uint32_t i = 0; i < BATCHED; i++) {
        fill_record(&record, &header, text, sizeof text, i);
        check(pyralog_producer_send(producer, &record, on_delivery, &outcomes), "sending");
    }
    check(pyralog_producer_flush(producer, WAIT_MS), "flushing");
    demand(outcomes.failed == 0 && outcomes.acknowledged == BATCHED, "every record was acknowledged");
    demand(outcomes.last_offset == BATCHED - 1, "offsets are counted from 0 without gaps");
}

static void produce_with_queue(pyralog_producer_t *producer)
{
    pyralog_queue_t *queue = NULL;
    pyralog_record_t record;
    pyralog_header_t header;
    char text[32];
    check(pyralog_queue_new(0, &queue), "a queue");
    for (uint32_t i = BATCHED; i < BATCHED + QUEUED; i++) {
        fill_record(&record, &header, text, sizeof text, i);
        check(pyralog_producer_send_queued(producer, &record, queue, i), "sending");
    }
    for (uint32_t polled = 0; polled < QUEUED;) {
        const pyralog_delivery_t *const *deliveries = NULL;
        size_t count = 0;
        check(pyralog_queue_poll(queue, WAIT_MS, &deliveries, &count), "polling the queue");
        demand(count > 0, "deliveries come in time");
        for (size_t i = 0; i < count; i++, polled++) {
            demand(deliveries[i]->status == PYRALOG_OK, "every record was acknowledged");
            demand((uint64_t)deliveries[i]->offset == deliveries[i]->tag, "each delivery has the tag of its record");
        }
    }
    pyralog_queue_free(queue);
}

static void produce_and_wait(pyralog_producer_t *producer)
{
    pyralog_record_t record;
    pyralog_header_t header;
    pyralog_delivery_t delivery;
    char text[32];
    fill_record(&record, &header, text, sizeof text, BATCHED + QUEUED);
    memset(&delivery, 0, sizeof delivery);
    delivery.size = sizeof delivery;
    check(pyralog_producer_send_wait(producer, &record, &delivery), "sending one record");
    demand(delivery.offset == BATCHED + QUEUED && delivery.partition == 0, "it is behind the others");
}

static void produce(pyralog_client_t *client)
{
    pyralog_producer_config_t config;
    pyralog_producer_t *producer = NULL;
    check(pyralog_producer_config_init(&config, sizeof config), "the producer's settings");
    config.compression = PYRALOG_COMPRESSION_LZ4;
    config.linger_us = 1000;
    check(pyralog_producer_new(client, topic, &config, &producer), "a producer");
    produce_with_callbacks(producer);
    produce_with_queue(producer);
    produce_and_wait(producer);
    check(pyralog_producer_close(producer, WAIT_MS), "closing the producer");
    pyralog_producer_free(producer);
}

/* The low-latency path: records without headers; the last one has a key. */
static void produce_directly(pyralog_client_t *client)
{
    pyralog_direct_t *direct = NULL;
    pyralog_delivery_t delivery;
    char text[32];
    size_t length = 0;
    uint64_t numbers[SUBMITTED];
    int32_t received = 0;
    memset(&delivery, 0, sizeof delivery);
    delivery.size = sizeof delivery;
    check(pyralog_direct_new(client, topic, NULL, &direct), "a direct producer");
    /* Several under way at once. */
    for (uint32_t i = 0; i < SUBMITTED; i++) {
        length = text_of(DIRECT + i, text, sizeof text);
        check(pyralog_direct_submit(direct, 0, NULL, 0, text, length, &numbers[i]), "submitting");
    }
    for (uint32_t i = 0; i < SUBMITTED; i++) {
        check(pyralog_direct_receive(direct, WAIT_MS, &delivery, &received), "receiving");
        demand(received == 1 && delivery.status == PYRALOG_OK, "every record was acknowledged");
        demand(delivery.tag == numbers[i] && delivery.offset == DIRECT + i, "those of a partition in their order");
    }
    check(pyralog_direct_receive(direct, 0, &delivery, &received), "receiving at the end");
    demand(received == 0, "nothing is under way");
    /* One, and wait. */
    length = text_of(RECORDS - 1, text, sizeof text);
    check(pyralog_direct_send(direct, 0, "key", strlen("key"), text, length, &delivery), "sending directly");
    demand(delivery.offset == RECORDS - 1, "it is the last one");
    demand(delivery.durability >= PYRALOG_DURABILITY_LEADER, "it is durable");
    pyralog_direct_free(direct);
}

static void check_message(const pyralog_message_t *message, uint32_t i)
{
    char text[32];
    size_t length = text_of(i, text, sizeof text);
    demand(message->offset == (int64_t)i && message->partition == 0, "records come in order");
    demand(message->value_len == length && memcmp(message->value, text, length) == 0, "values are what was sent");
    if (i == RECORDS - 1) {
        demand(message->key_len == strlen("key") && memcmp(message->key, "key", message->key_len) == 0, "the key");
        demand(message->header_count == 0, "no headers");
        return;
    }
    demand(message->key == NULL, "no key");
    if (i >= DIRECT) {
        return;
    }
    demand(message->timestamp_ms == 1700000000000 + (int64_t)i, "timestamps are what was sent");
    demand(message->header_count == 1, "one header");
    demand(message->headers[0].key_len == strlen("number"), "the header's key");
    demand(memcmp(message->headers[0].key, "number", strlen("number")) == 0, "the header's key");
    demand(message->headers[0].value_len == length, "the header's value");
    demand(memcmp(message->headers[0].value, text, length) == 0, "the header's value");
}

struct visit {
    uint32_t next;
    uint32_t stop_before;
};

static int32_t on_message(const pyralog_message_t *message, void *user)
{
    struct visit *visit = (struct visit *)user;
    if (visit->next == visit->stop_before) {
        return 1;
    }
    check_message(message, visit->next);
    visit->next += 1;
    return 0;
}

static void consume(pyralog_client_t *client)
{
    const pyralog_message_t *const *messages = NULL;
    pyralog_consumer_t *consumer = NULL;
    struct visit visit = {0, BATCHED / 2};
    size_t count = 0;
    int64_t position = -1;

    check(pyralog_consumer_new(client, topic, 0, PYRALOG_START_EARLIEST, 0, NULL, &consumer), "a consumer");
    for (uint32_t next = 0; next < RECORDS;) {
        check(pyralog_consumer_poll(consumer, WAIT_MS, &messages, &count), "polling");
        demand(count > 0, "records come in time");
        for (size_t i = 0; i < count; i++, next++) {
            demand(next < RECORDS, "nothing is there twice");
            check_message(messages[i], next);
        }
    }
    check(pyralog_consumer_poll(consumer, 0, &messages, &count), "polling at the end");
    demand(count == 0, "nothing comes at the end");

    /* Once more with a callback, which stops half-way. */
    check(pyralog_consumer_seek(consumer, 0, PYRALOG_START_OFFSET, 0), "going back");
    do {
        check(pyralog_consumer_visit(consumer, WAIT_MS, on_message, &visit, &count), "visiting");
    } while (count > 0 && visit.next < visit.stop_before);
    check(pyralog_consumer_position(consumer, 0, &position), "the position");
    demand(position == BATCHED / 2, "a record that a callback stops at is not consumed");
    check(pyralog_consumer_seek(consumer, 0, PYRALOG_START_LATEST, 0), "going to the end");
    check(pyralog_consumer_position(consumer, 0, &position), "the position");
    demand(position == RECORDS, "the end is behind the last record");
    pyralog_consumer_free(consumer);
}

int main(int argc, char **argv)
{
    const char *addresses = argc > 1 ? argv[1] : "127.0.0.1:9092";
    pyralog_client_config_t config;
    pyralog_client_t *client = NULL;
    demand(pyralog_version_number() >= PYRALOG_VERSION_NUMBER, "the library is at least as new as its header");
    check(pyralog_client_config_init(&config, sizeof config), "the client's settings");
    config.name = "produce_consume.c";
    config.retry_for_ms = WAIT_MS;
    check(pyralog_client_new(addresses, &config, &client), "a client");
    check(pyralog_client_ping(client), "connecting");
    create_topic(client);
    produce(client);
    produce_directly(client);
    consume(client);
    check(pyralog_topic_delete(client, topic), "deleting the topic");
    pyralog_client_free(client);
    printf("%d records written and read back\n", RECORDS);
    return 0;
}
