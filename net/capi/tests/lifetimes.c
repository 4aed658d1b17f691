/*
 * Handles that are closed, freed and used from callbacks at the wrong moment: each record has exactly one outcome, misuse
 * is an error, nothing leaks. Run by test.sh against a node, under valgrind when it is there.
 */

#include <pyralog.h>

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RECORDS = 200, WAIT_MS = 30000 };

static const char topic[] = "c-lifetimes";

static void demand(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "this does not hold: %s (last error: %s)\n", what, pyralog_last_error_message());
        exit(1);
    }
}

static pyralog_record_t record_of(const char *value)
{
    pyralog_record_t record;
    memset(&record, 0, sizeof record);
    record.value = value;
    record.value_len = strlen(value);
    record.flags = PYRALOG_RECORD_PARTITION;
    return record;
}

static pyralog_producer_t *producer_that_lingers(pyralog_client_t *client)
{
    pyralog_producer_config_t config;
    pyralog_producer_t *producer = NULL;
    demand(pyralog_producer_config_init(&config, sizeof config) == PYRALOG_OK, "settings");
    config.linger_us = (uint64_t)WAIT_MS * 1000;
    demand(pyralog_producer_new(client, topic, &config, &producer) == PYRALOG_OK, "a producer");
    return producer;
}

struct outcomes {
    atomic_int called[RECORDS];
    atomic_int acknowledged;
    atomic_int given_up;
};

struct one {
    struct outcomes *outcomes;
    int index;
};

static void on_delivery(const pyralog_delivery_t *delivery, void *user)
{
    const struct one *one = (const struct one *)user;
    atomic_fetch_add(&one->outcomes->called[one->index], 1);
    if (delivery->status == PYRALOG_OK) {
        atomic_fetch_add(&one->outcomes->acknowledged, 1);
    } else {
        demand(delivery->message != NULL && delivery->outcome != PYRALOG_OUTCOME_ACCEPTED, "a failure has words");
        atomic_fetch_add(&one->outcomes->given_up, 1);
    }
}

/* Sends records that linger; frees or closes the producer meanwhile. */
static void ends_early(pyralog_client_t *client, int closes)
{
    static struct outcomes outcomes;
    static struct one ones[RECORDS];
    pyralog_producer_t *producer = producer_that_lingers(client);
    pyralog_record_t record = record_of("lingers");
    memset(&outcomes, 0, sizeof outcomes);
    for (int i = 0; i < RECORDS; i++) {
        ones[i].outcomes = &outcomes;
        ones[i].index = i;
        demand(pyralog_producer_send(producer, &record, on_delivery, &ones[i]) == PYRALOG_OK, "sending");
    }
    if (closes) {
        demand(pyralog_producer_close(producer, WAIT_MS) == PYRALOG_OK, "closing");
        demand(atomic_load(&outcomes.acknowledged) == RECORDS, "closing waits for all records");
        demand(pyralog_producer_close(producer, 0) == PYRALOG_CLOSED, "closing once is enough");
        demand(pyralog_producer_send(producer, &record, on_delivery, &ones[0]) == PYRALOG_CLOSED, "no more sending");
        demand(pyralog_producer_flush(producer, 0) == PYRALOG_CLOSED, "no more flushing");
    }
    pyralog_producer_free(producer);
    for (int i = 0; i < RECORDS; i++) {
        demand(atomic_load(&outcomes.called[i]) == 1, "each record has one outcome, told before the handle is gone");
    }
    demand(atomic_load(&outcomes.acknowledged) + atomic_load(&outcomes.given_up) == RECORDS, "and no other");
}

static void queue_goes_first(pyralog_client_t *client)
{
    pyralog_queue_t *queue = NULL;
    pyralog_producer_t *producer = producer_that_lingers(client);
    pyralog_record_t record = record_of("told nobody");
    pyralog_producer_stats_t stats;
    demand(pyralog_queue_new(0, &queue) == PYRALOG_OK, "a queue");
    for (uint64_t i = 0; i < RECORDS; i++) {
        demand(pyralog_producer_send_queued(producer, &record, queue, i) == PYRALOG_OK, "sending");
    }
    pyralog_queue_free(queue);
    demand(pyralog_producer_send(producer, &record, NULL, NULL) == PYRALOG_OK, "sending without a callback");
    demand(pyralog_producer_flush(producer, WAIT_MS) == PYRALOG_OK, "flushing");
    memset(&stats, 0, sizeof stats);
    demand(pyralog_producer_stats(producer, &stats) == PYRALOG_INVALID_ARGUMENT, "a struct needs its size");
    stats.size = sizeof stats;
    demand(pyralog_producer_stats(producer, &stats) == PYRALOG_OK, "what it has done");
    demand(stats.acked_records == RECORDS + 1 && stats.failed_records == 0, "everything was sent all the same");
    demand(pyralog_producer_close(producer, WAIT_MS) == PYRALOG_OK, "closing");
    pyralog_producer_free(producer);
}

struct visit {
    pyralog_consumer_t *consumer;
    int visited;
};

/* Uses the consumer that calls it, and stops at the second record. */
static int32_t on_message(const pyralog_message_t *message, void *user)
{
    struct visit *visit = (struct visit *)user;
    const pyralog_message_t *const *messages = NULL;
    size_t count = 0;
    int64_t position = 0;
    demand(message->value != NULL, "a value");
    demand(pyralog_consumer_poll(visit->consumer, 0, &messages, &count) == PYRALOG_BUSY, "no poll in a visit");
    demand(pyralog_consumer_position(visit->consumer, 0, &position) == PYRALOG_BUSY, "nothing else, either");
    visit->visited += 1;
    return visit->visited == 2;
}

static void consumer_is_used_in_its_callback(pyralog_client_t *client)
{
    const pyralog_message_t *const *messages = NULL;
    struct visit visit = {NULL, 0};
    size_t count = 0;
    int64_t position = 0;
    demand(pyralog_consumer_new(client, topic, 0, PYRALOG_START_EARLIEST, 0, NULL, &visit.consumer) == PYRALOG_OK,
           "a consumer");
    demand(pyralog_consumer_visit(visit.consumer, WAIT_MS, on_message, &visit, &count) == PYRALOG_OK, "visiting");
    demand(count == 1 && visit.visited == 2, "the second record was refused");
    demand(pyralog_consumer_position(visit.consumer, 0, &position) == PYRALOG_OK && position == 1, "and comes again");
    demand(pyralog_consumer_poll(visit.consumer, WAIT_MS, &messages, &count) == PYRALOG_OK, "polling");
    demand(count > 0 && messages[0]->offset == 1, "there it is");
    demand(pyralog_consumer_seek(visit.consumer, 7, PYRALOG_START_LATEST, 0) == PYRALOG_INVALID_ARGUMENT,
           "a partition that is not assigned");
    demand(pyralog_consumer_visit(visit.consumer, 0, NULL, NULL, &count) == PYRALOG_NULL_POINTER, "no callback");
    pyralog_consumer_free(visit.consumer);
}

int main(int argc, char **argv)
{
    pyralog_client_t *client = NULL;
    demand(argc == 2, "the node's address is given");
    demand(pyralog_client_new(argv[1], NULL, &client) == PYRALOG_OK, "a client");
    demand(pyralog_topic_create(client, topic, NULL) == PYRALOG_OK, "a topic");
    ends_early(client, 1);
    ends_early(client, 0);
    queue_goes_first(client);
    consumer_is_used_in_its_callback(client);
    demand(pyralog_topic_delete(client, topic) == PYRALOG_OK, "deleting the topic");
    pyralog_client_free(client);
    printf("handles end as they should\n");
    return 0;
}
