/*
 * The client library of Pyralog, a replicated commit log. docs/clients.md is a tutorial.
 *
 * Made from the sources in net/capi/src; change it there, then: make -C net/capi header
 *
 * Statuses. Functions return PYRALOG_OK (0), a negative number for misuse, or the number of a PYRALOG_ERROR_. The
 * functions pyralog_last_error_...() say more about the last failure of the thread that calls them: a text, whether
 * the request had an effect (the outcome) and whether it can succeed later (retriable). Results are written only when
 * a function returns PYRALOG_OK, unless it says otherwise.
 *
 * Pointers. A pointer is NULL, which every function checks for, or valid: a handle comes from this library and is not
 * used after it was freed, a text ends with a zero byte, a pointer with a length has that many bytes behind it, a
 * struct that begins with its size has that size. What is passed in is only read during the call.
 *
 * Threads. Each handle's type says which threads may use it. Handles may be moved between threads. They can't be used
 * by a child process after fork().
 *
 * Callbacks must not block, must not throw C++ exceptions, and may not free the handle that calls them.
 */

#ifndef PYRALOG_H
#define PYRALOG_H

#include <stddef.h>
#include <stdint.h>

/**
 * The record goes to the partition in its field partition.
 */
#define PYRALOG_RECORD_PARTITION 1

/**
 * The record has the time in its field timestamp_ms.
 */
#define PYRALOG_RECORD_TIMESTAMP 2

/**
 * It worked.
 */
#define PYRALOG_OK 0

/**
 * Misuse: a pointer that must not be NULL is. Nothing was done.
 */
#define PYRALOG_NULL_POINTER -1

/**
 * Misuse: a length, a number, a text or the size of a struct is not allowed. Nothing was done.
 */
#define PYRALOG_INVALID_ARGUMENT -2

/**
 * Misuse: another call on this handle is under way, from another thread or from a callback. Nothing was done.
 */
#define PYRALOG_BUSY -3

/**
 * Misuse: the producer was closed. Nothing was done.
 */
#define PYRALOG_CLOSED -4

/**
 * A bug in this library; the outcome is unknown. Free the handle, start anew and report it.
 */
#define PYRALOG_PANICKED -5

/**
 * The request breaks the protocol's rules.
 */
#define PYRALOG_ERROR_INVALID_REQUEST 1

/**
 * The node does not know that protocol version or message.
 */
#define PYRALOG_ERROR_UNSUPPORTED_VERSION 2

/**
 * No such topic or partition.
 */
#define PYRALOG_ERROR_UNKNOWN_TOPIC_OR_PARTITION 3

/**
 * The partition is led elsewhere.
 */
#define PYRALOG_ERROR_NOT_LEADER 4

/**
 * Another node takes administrative requests.
 */
#define PYRALOG_ERROR_NOT_CONTROLLER 5

/**
 * A record batch is malformed.
 */
#define PYRALOG_ERROR_INVALID_BATCH 6

/**
 * A record batch's checksum does not match.
 */
#define PYRALOG_ERROR_CORRUPT_BATCH 7

/**
 * Larger than the bound.
 */
#define PYRALOG_ERROR_TOO_LARGE 8

/**
 * The offset lies outside the log.
 */
#define PYRALOG_ERROR_OFFSET_OUT_OF_RANGE 9

/**
 * The producer's sequence has a gap.
 */
#define PYRALOG_ERROR_OUT_OF_ORDER_SEQUENCE 10

/**
 * A newer session of this producer exists.
 */
#define PYRALOG_ERROR_PRODUCER_FENCED 11

/**
 * The partition does not remember this producer.
 */
#define PYRALOG_ERROR_UNKNOWN_PRODUCER_ID 12

/**
 * The shard, or a buffer of this library, is at its bound.
 */
#define PYRALOG_ERROR_OVERLOADED 13

/**
 * The node's disk is full.
 */
#define PYRALOG_ERROR_DISK_FULL 14

/**
 * The shard's disk failed during the write.
 */
#define PYRALOG_ERROR_STORAGE_FAILED 15

/**
 * The shard re-reads its disk after an error.
 */
#define PYRALOG_ERROR_FENCED 16

/**
 * The range is damaged on disk, and not repaired from another replica yet.
 */
#define PYRALOG_ERROR_CORRUPT_RANGE 17

/**
 * Corruption hides where the log ends; it is read-only.
 */
#define PYRALOG_ERROR_LOG_END_UNKNOWN 18

/**
 * The node is starting, stopping or not there.
 */
#define PYRALOG_ERROR_NOT_READY 19

/**
 * No answer in time.
 */
#define PYRALOG_ERROR_REQUEST_TIMED_OUT 20

/**
 * A topic of that name exists.
 */
#define PYRALOG_ERROR_TOPIC_ALREADY_EXISTS 21

/**
 * The topic's name or settings are not allowed.
 */
#define PYRALOG_ERROR_INVALID_TOPIC 22

/**
 * A bound on topics or partitions is reached.
 */
#define PYRALOG_ERROR_LIMIT_REACHED 23

/**
 * The node does not support that compression.
 */
#define PYRALOG_ERROR_UNSUPPORTED_COMPRESSION 24

/**
 * A bug in the node, or what answers is no node.
 */
#define PYRALOG_ERROR_INTERNAL 25

/**
 * The connection was lost before the reply came.
 */
#define PYRALOG_ERROR_CONNECTION_LOST 26

/**
 * The partition's leader changed while the write was on its way.
 */
#define PYRALOG_ERROR_LEADER_CHANGED 27

/**
 * Fewer replicas are in sync than the topic asks for.
 */
#define PYRALOG_ERROR_NOT_ENOUGH_REPLICAS 28

/**
 * Outcome: it took effect.
 */
#define PYRALOG_OUTCOME_ACCEPTED 0

/**
 * Outcome: it had no effect. It may be sent again.
 */
#define PYRALOG_OUTCOME_NOT_ACCEPTED 1

/**
 * Outcome: it may or may not have taken effect. Sending it again may do it twice.
 */
#define PYRALOG_OUTCOME_UNKNOWN 2

/**
 * Acknowledged as soon as a record has its offset; nothing is on stable storage yet.
 */
#define PYRALOG_ACKS_NONE 0

/**
 * Acknowledged when the leader's journal holds it as its fsync policy demands.
 */
#define PYRALOG_ACKS_LEADER 1

/**
 * Acknowledged when a quorum of journals holds it as their fsync policy demands (the default).
 */
#define PYRALOG_ACKS_QUORUM 2

/**
 * Reached: in the leader's memory.
 */
#define PYRALOG_DURABILITY_MEMORY 0

/**
 * Reached: written to the leader's journal file, not flushed.
 */
#define PYRALOG_DURABILITY_WRITTEN 1

/**
 * Reached: on the leader's stable storage.
 */
#define PYRALOG_DURABILITY_LEADER 2

/**
 * Reached: on the stable storage of a quorum of the partition's replicas.
 */
#define PYRALOG_DURABILITY_QUORUM 3

/**
 * Batches are not compressed (the default).
 */
#define PYRALOG_COMPRESSION_NONE 0

/**
 * LZ4: fast.
 */
#define PYRALOG_COMPRESSION_LZ4 3

/**
 * Zstandard: small.
 */
#define PYRALOG_COMPRESSION_ZSTD 4

/**
 * Records without key and partition stay with one partition until its batch is sent (the default).
 */
#define PYRALOG_PARTITIONER_STICKY 0

/**
 * Records without key and partition go to one partition after the other.
 */
#define PYRALOG_PARTITIONER_ROUND_ROBIN 1

/**
 * Reads are answered by the leader, from what it knows (the default).
 */
#define PYRALOG_CONSISTENCY_LEADER 0

/**
 * Reads are answered by the leader after a majority has confirmed that it leads.
 */
#define PYRALOG_CONSISTENCY_LINEARIZABLE 1

/**
 * Reads are answered by any replica, which may know less than another one.
 */
#define PYRALOG_CONSISTENCY_ANY_REPLICA 2

/**
 * Begin at the first record that is still there.
 */
#define PYRALOG_START_EARLIEST 0

/**
 * Begin with what comes from now on.
 */
#define PYRALOG_START_LATEST 1

/**
 * Begin at an offset.
 */
#define PYRALOG_START_OFFSET 2

/**
 * Begin at the first batch with a record of this time or later, milliseconds since the Unix epoch.
 */
#define PYRALOG_START_TIMESTAMP 3

/**
 * Major version of this header.
 */
#define PYRALOG_VERSION_MAJOR 0

/**
 * Minor version of this header.
 */
#define PYRALOG_VERSION_MINOR 1

/**
 * Patch version of this header.
 */
#define PYRALOG_VERSION_PATCH 0

/**
 * Version of this header as one number: major * 1000000 + minor * 1000 + patch. The library's own is
 * pyralog_version_number().
 */
#define PYRALOG_VERSION_NUMBER 1000

/**
 * A client of a cluster: creates and deletes topics, and is what producers and consumers are made from. Any threads may
 * use one at the same time; their calls wait for each other.
 */
typedef struct pyralog_client_t pyralog_client_t;

/**
 * A consumer of one or more partitions of a topic: the records of each in the order of their offsets. While records are
 * read, the next ones are fetched. One thread at a time may use it.
 */
typedef struct pyralog_consumer_t pyralog_consumer_t;

/**
 * A producer for one topic that sends each record at once, from the thread that calls it, and waits for its
 * acknowledgement: the shortest way to the log. One thread at a time may use it; have one for each thread.
 */
typedef struct pyralog_direct_t pyralog_direct_t;

/**
 * A producer for one topic: batches records, sends them from a thread of its own, sends them again after errors that
 * pass. Any threads may use one at the same time, but for closing and freeing it.
 */
typedef struct pyralog_producer_t pyralog_producer_t;

/**
 * A queue of deliveries. Any threads may send with it at the same time; one thread at a time may poll it.
 */
typedef struct pyralog_queue_t pyralog_queue_t;

/**
 * How a client behaves. Set it up with pyralog_client_config_init().
 */
typedef struct pyralog_client_config_t {
    /**
     * Bytes of this struct.
     */
    size_t size;
    /**
     * Who it is, for the operator of the node; at most 128 bytes. NULL: no name. Only read during the call.
     */
    const char *name;
    /**
     * Longest time to connect and shake hands with one address, milliseconds.
     */
    uint64_t connect_timeout_ms;
    /**
     * Longest wait for one reply, milliseconds.
     */
    uint64_t request_timeout_ms;
    /**
     * How long requests that change nothing are tried again after errors that pass, milliseconds.
     */
    uint64_t retry_for_ms;
    /**
     * Who may answer its reads: a PYRALOG_CONSISTENCY_ number.
     */
    int32_t consistency;
    /**
     * 0.
     */
    uint32_t reserved;
} pyralog_client_config_t;

/**
 * How a consumer behaves. Set it up with pyralog_consumer_config_init().
 */
typedef struct pyralog_consumer_config_t {
    /**
     * Bytes of this struct.
     */
    size_t size;
    /**
     * Most bytes of batches per fetch of a partition; one batch is always fetched whole. Up to twice as much is in
     * memory for each partition: what is being read, and what is fetched meanwhile.
     */
    uint32_t max_bytes;
    /**
     * 0.
     */
    uint32_t reserved;
    /**
     * How long it keeps trying after errors that pass and lost connections, milliseconds.
     */
    uint64_t retry_for_ms;
} pyralog_consumer_config_t;

/**
 * One header of a record.
 */
typedef struct pyralog_header_t {
    /**
     * Its key: UTF-8, not ended by a zero byte.
     */
    const void *key;
    /**
     * Bytes of its key.
     */
    size_t key_len;
    /**
     * Its value; NULL: it has none.
     */
    const void *value;
    /**
     * Bytes of its value.
     */
    size_t value_len;
} pyralog_header_t;

/**
 * A record that was read.
 */
typedef struct pyralog_message_t {
    /**
     * Its offset in the partition.
     */
    int64_t offset;
    /**
     * Milliseconds since the Unix epoch; -1: none.
     */
    int64_t timestamp_ms;
    /**
     * Its key; NULL: it has none.
     */
    const void *key;
    /**
     * Bytes of its key.
     */
    size_t key_len;
    /**
     * Its value; NULL: it has none.
     */
    const void *value;
    /**
     * Bytes of its value.
     */
    size_t value_len;
    /**
     * Its headers.
     */
    const struct pyralog_header_t *headers;
    /**
     * How many headers it has.
     */
    size_t header_count;
    /**
     * Its partition.
     */
    uint32_t partition;
    /**
     * 0.
     */
    uint32_t reserved;
} pyralog_message_t;

/**
 * Is given a record; the message is valid during the call. Returns 0 to go on, anything else to stop: then this record
 * is not consumed, and is the next one again. user: what pyralog_consumer_visit() was given.
 */
typedef int32_t (*pyralog_message_fn)(const struct pyralog_message_t *message, void *user);

/**
 * How a direct producer behaves. Set it up with pyralog_direct_config_init().
 */
typedef struct pyralog_direct_config_t {
    /**
     * Bytes of this struct.
     */
    size_t size;
    /**
     * When a record is acknowledged: a PYRALOG_ACKS_ number.
     */
    int32_t acks;
    /**
     * 0.
     */
    uint32_t reserved;
    /**
     * How long a wait for an acknowledgement keeps the CPU busy before it sleeps, microseconds; 0: it sleeps at once.
     */
    uint64_t spin_us;
    /**
     * A record without an acknowledgement after this time has failed, milliseconds.
     */
    uint64_t delivery_timeout_ms;
} pyralog_direct_config_t;

/**
 * What became of a record. Before passing one to a function that fills it in, set its size.
 */
typedef struct pyralog_delivery_t {
    /**
     * Bytes of this struct.
     */
    size_t size;
    /**
     * PYRALOG_OK when the record is acknowledged, else why not.
     */
    int32_t status;
    /**
     * A PYRALOG_OUTCOME_ number: whether the record is in the log.
     */
    int32_t outcome;
    /**
     * 1 when the same record can be accepted later without anybody changing it, else 0.
     */
    int32_t retriable;
    /**
     * What was reached: a PYRALOG_DURABILITY_ number. -1 without an acknowledgement.
     */
    int32_t durability;
    /**
     * The record's offset. -1 without an acknowledgement.
     */
    int64_t offset;
    /**
     * The record's partition; 0 without an acknowledgement.
     */
    uint32_t partition;
    /**
     * 1 when the node had the record already, from an earlier attempt, else 0.
     */
    int32_t duplicate;
    /**
     * What went wrong, UTF-8; NULL when nothing did, or where pyralog_last_error_message() has it. Valid as long as
     * this delivery is.
     */
    const char *message;
    /**
     * What pyralog_producer_send() was given.
     */
    void *user;
    /**
     * What pyralog_producer_send_queued() was given, or pyralog_direct_submit() gave.
     */
    uint64_t tag;
} pyralog_delivery_t;

/**
 * How a producer behaves. Set it up with pyralog_producer_config_init().
 */
typedef struct pyralog_producer_config_t {
    /**
     * Bytes of this struct.
     */
    size_t size;
    /**
     * When a record is acknowledged: a PYRALOG_ACKS_ number.
     */
    int32_t acks;
    /**
     * Compression of the batches: a PYRALOG_COMPRESSION_ number.
     */
    int32_t compression;
    /**
     * How long a batch waits for more records, microseconds. 0: it goes as soon as its partition has room in flight.
     */
    uint64_t linger_us;
    /**
     * A batch goes at the latest when it has reached this size, bytes; at most 1 MiB.
     */
    uint64_t batch_bytes;
    /**
     * Memory for records without an outcome, bytes.
     */
    uint64_t buffer_bytes;
    /**
     * Batches of one partition under way at once; at most 5 when idempotent.
     */
    uint32_t max_in_flight;
    /**
     * 1: each record is in the log at most once and in the order of its sending, whatever happens to the connections.
     * 0: a record that is sent again may be there twice.
     */
    int32_t idempotent;
    /**
     * Where records without key and partition go: a PYRALOG_PARTITIONER_ number.
     */
    int32_t partitioner;
    /**
     * 0.
     */
    uint32_t reserved;
    /**
     * A record without an acknowledgement after this time has failed, milliseconds.
     */
    uint64_t delivery_timeout_ms;
    /**
     * Longest time that sending waits for room in the buffer, milliseconds. 0: it fails at once with
     * PYRALOG_ERROR_OVERLOADED.
     */
    uint64_t max_block_ms;
} pyralog_producer_config_t;

/**
 * A record to be sent. All zeros is a good start: no key, no value, no headers; the partition is chosen by the producer
 * and the time is now. Its bytes are copied during the call. A NULL key or value is none, which is not the same as an
 * empty one.
 */
typedef struct pyralog_record_t {
    /**
     * PYRALOG_RECORD_ numbers added up: which of the next two fields count.
     */
    uint32_t flags;
    /**
     * The partition, with PYRALOG_RECORD_PARTITION. Without it, records of the same key go to the same partition.
     */
    uint32_t partition;
    /**
     * Milliseconds since the Unix epoch, with PYRALOG_RECORD_TIMESTAMP.
     */
    int64_t timestamp_ms;
    /**
     * Its key, or NULL.
     */
    const void *key;
    /**
     * Bytes of its key.
     */
    size_t key_len;
    /**
     * Its value, or NULL.
     */
    const void *value;
    /**
     * Bytes of its value.
     */
    size_t value_len;
    /**
     * Its headers; NULL when header_count is 0.
     */
    const struct pyralog_header_t *headers;
    /**
     * How many headers it has.
     */
    size_t header_count;
} pyralog_record_t;

/**
 * Is told what became of a record, once for each send that returned PYRALOG_OK. Called by the producer's thread, which
 * sends nothing meanwhile; the delivery is valid during the call. user: what pyralog_producer_send() was given.
 */
typedef void (*pyralog_delivery_fn)(const struct pyralog_delivery_t *delivery, void *user);

/**
 * What a producer has done. Before passing one to a function that fills it in, set its size.
 */
typedef struct pyralog_producer_stats_t {
    /**
     * Bytes of this struct.
     */
    size_t size;
    /**
     * Batches acknowledged.
     */
    uint64_t acked_batches;
    /**
     * Records acknowledged.
     */
    uint64_t acked_records;
    /**
     * Bytes of the batches acknowledged.
     */
    uint64_t acked_bytes;
    /**
     * Of the batches, how many the node had already.
     */
    uint64_t duplicates;
    /**
     * Records that have failed.
     */
    uint64_t failed_records;
    /**
     * Failures of requests and connections after which something was sent again.
     */
    uint64_t retries;
    /**
     * Connections made after the first of each shard.
     */
    uint64_t reconnects;
} pyralog_producer_stats_t;

/**
 * What a new topic is like. Set it up with pyralog_topic_config_init(). Where 0 stands for the node's default, that
 * is what its configuration says.
 */
typedef struct pyralog_topic_config_t {
    /**
     * Bytes of this struct.
     */
    size_t size;
    /**
     * Partitions, 1 or more.
     */
    uint32_t partitions;
    /**
     * Copies of each partition; 0 = the node's default.
     */
    uint32_t replication_factor;
    /**
     * Copies that must be durable before PYRALOG_ACKS_QUORUM is acknowledged; 0 = the node's default.
     */
    uint32_t write_quorum;
    /**
     * Copies that a linearizable read asks; 0 = the node's default.
     */
    uint32_t read_quorum;
    /**
     * Copies that must be in sync for a partition to take writes; 0 = the node's default.
     */
    uint32_t min_insync_replicas;
    /**
     * 0.
     */
    uint32_t reserved;
    /**
     * Retention by size per partition, bytes; -1 = the node's default, 0 = unlimited.
     */
    int64_t retention_bytes;
    /**
     * Retention by age, milliseconds; -1 = the node's default, 0 = unlimited.
     */
    int64_t retention_ms;
} pyralog_topic_config_t;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Fills in the defaults. size: sizeof(pyralog_client_config_t).
 */
int32_t pyralog_client_config_init(struct pyralog_client_config_t *config, size_t size);

/**
 * A client of the cluster that the nodes at addresses ("host:port,host:port") belong to; one that answers is enough.
 * config may be NULL: defaults. Does not connect yet: pyralog_client_ping() does.
 */
int32_t pyralog_client_new(const char *addresses,
                           const struct pyralog_client_config_t *config,
                           struct pyralog_client_t **client);

/**
 * Makes sure that a node answers; waits up to retry_for_ms for one.
 */
int32_t pyralog_client_ping(const struct pyralog_client_t *client);

/**
 * Frees a client; NULL is fine. Producers and consumers made from it go on.
 */
void pyralog_client_free(struct pyralog_client_t *client);

/**
 * Fills in the defaults. size: sizeof(pyralog_consumer_config_t).
 */
int32_t pyralog_consumer_config_init(struct pyralog_consumer_config_t *config, size_t size);

/**
 * A consumer of a partition that exists; pyralog_consumer_assign() adds others. start: a PYRALOG_START_ number; value:
 * the offset or timestamp that it names, else not looked at. config may be NULL: defaults. It does not need the client
 * any more.
 */
int32_t pyralog_consumer_new(const struct pyralog_client_t *client,
                             const char *topic,
                             uint32_t partition,
                             int32_t start,
                             int64_t value,
                             const struct pyralog_consumer_config_t *config,
                             struct pyralog_consumer_t **consumer);

/**
 * Fetches records; waits up to max_wait_ms for the first. messages is set to an array of count pointers; everything in
 * them is valid until the next poll or visit of this consumer, or until it is freed. No record in time is no error:
 * count is 0. The position moves behind the last record given.
 */
int32_t pyralog_consumer_poll(const struct pyralog_consumer_t *consumer,
                              uint64_t max_wait_ms,
                              const struct pyralog_message_t *const **messages,
                              size_t *count);

/**
 * Likewise, but calls callback with each record, without any copy: from the thread that calls this. count may be NULL,
 * else it is set to the number of records consumed, also when the status is an error.
 */
int32_t pyralog_consumer_visit(const struct pyralog_consumer_t *consumer,
                               uint64_t max_wait_ms,
                               pyralog_message_fn callback,
                               void *user,
                               size_t *count);

/**
 * Reads a partition too, or goes on elsewhere in one that it reads. start: a PYRALOG_START_ number; value: the offset or
 * timestamp that it names, else not looked at.
 */
int32_t pyralog_consumer_assign(const struct pyralog_consumer_t *consumer,
                                uint32_t partition,
                                int32_t start,
                                int64_t value);

/**
 * Reads a partition no more.
 */
int32_t pyralog_consumer_unassign(const struct pyralog_consumer_t *consumer, uint32_t partition);

/**
 * Goes on elsewhere in a partition that it reads. start and value are as for pyralog_consumer_assign().
 */
int32_t pyralog_consumer_seek(const struct pyralog_consumer_t *consumer,
                              uint32_t partition,
                              int32_t start,
                              int64_t value);

/**
 * The offset of the record that comes next from a partition that it reads.
 */
int32_t pyralog_consumer_position(const struct pyralog_consumer_t *consumer,
                                  uint32_t partition,
                                  int64_t *offset);

/**
 * What the last poll or visit that worked said of the partition that was assigned first: the records from log_start on are still there, those below
 * high_watermark are committed. -1 each before the first.
 */
int32_t pyralog_consumer_bounds(const struct pyralog_consumer_t *consumer,
                                int64_t *log_start,
                                int64_t *high_watermark);

/**
 * Frees a consumer and the messages that it gave; NULL is fine.
 */
void pyralog_consumer_free(struct pyralog_consumer_t *consumer);

/**
 * Fills in the defaults. size: sizeof(pyralog_direct_config_t).
 */
int32_t pyralog_direct_config_init(struct pyralog_direct_config_t *config, size_t size);

/**
 * A direct producer for a topic that exists. config may be NULL: defaults. It does not need the client any more.
 */
int32_t pyralog_direct_new(const struct pyralog_client_t *client,
                           const char *topic,
                           const struct pyralog_direct_config_t *config,
                           struct pyralog_direct_t **direct);

/**
 * Sends one record and waits for its acknowledgement. key and value may be NULL: none. The record's status is returned;
 * delivery may be NULL, else it is filled in in any case, its message left out (pyralog_last_error_message() has it).
 */
int32_t pyralog_direct_send(const struct pyralog_direct_t *direct,
                            uint32_t partition,
                            const void *key,
                            size_t key_len,
                            const void *value,
                            size_t value_len,
                            struct pyralog_delivery_t *delivery);

/**
 * Sends one record at once without waiting, and sets number, which its delivery has as its tag. Some records of a
 * partition are under way at once, others wait in memory for their turn. pyralog_direct_send() is refused until all that
 * was submitted has been received.
 */
int32_t pyralog_direct_submit(const struct pyralog_direct_t *direct,
                              uint32_t partition,
                              const void *key,
                              size_t key_len,
                              const void *value,
                              size_t value_len,
                              uint64_t *number);

/**
 * The next outcome of what was submitted; waits up to timeout_ms. received is set to 1 when there is one, which is filled
 * in, its message left out (pyralog_last_error_message() has it); to 0 when there is none by then, or nothing is under
 * way. A record that failed is no error of this: the delivery's status tells.
 */
int32_t pyralog_direct_receive(const struct pyralog_direct_t *direct,
                               uint64_t timeout_ms,
                               struct pyralog_delivery_t *delivery,
                               int32_t *received);

/**
 * Frees a direct producer; NULL is fine.
 */
void pyralog_direct_free(struct pyralog_direct_t *direct);

/**
 * The status of the last call that failed on this thread; PYRALOG_OK when none has. A call that works leaves it as it
 * is.
 */
int32_t pyralog_last_error_status(void);

/**
 * What the last call that failed on this thread says: what happened, to what, and what to do about it. UTF-8, never
 * NULL; valid until another call fails on this thread, or the thread ends.
 */
const char *pyralog_last_error_message(void);

/**
 * What may be concluded about the effect of the last call that failed on this thread: a PYRALOG_OUTCOME_ number.
 */
int32_t pyralog_last_error_outcome(void);

/**
 * 1 when the last call that failed on this thread can succeed later without anybody changing it, else 0.
 */
int32_t pyralog_last_error_retriable(void);

/**
 * The name of a status, like "UnknownTopicOrPartition". Static, never NULL.
 */
const char *pyralog_status_name(int32_t status);

/**
 * Fills in the defaults. size: sizeof(pyralog_producer_config_t).
 */
int32_t pyralog_producer_config_init(struct pyralog_producer_config_t *config, size_t size);

/**
 * A producer for a topic that exists. config may be NULL: defaults. It does not need the client any more.
 */
int32_t pyralog_producer_new(const struct pyralog_client_t *client,
                             const char *topic,
                             const struct pyralog_producer_config_t *config,
                             struct pyralog_producer_t **producer);

/**
 * Sends a record: takes a copy of it and returns; waits up to max_block_ms for room. What becomes of it is told to
 * callback, which may be NULL: then only pyralog_producer_stats() knows.
 */
int32_t pyralog_producer_send(const struct pyralog_producer_t *producer,
                              const struct pyralog_record_t *record,
                              pyralog_delivery_fn callback,
                              void *user);

/**
 * Likewise, but what becomes of the record comes to queue, with tag. Waits up to max_block_ms for room in the queue too.
 */
int32_t pyralog_producer_send_queued(const struct pyralog_producer_t *producer,
                                     const struct pyralog_record_t *record,
                                     const struct pyralog_queue_t *queue,
                                     uint64_t tag);

/**
 * Sends a record and waits for what becomes of it. Its status is returned; delivery may be NULL, else it is filled in
 * in any case, its message left out (pyralog_last_error_message() has it).
 */
int32_t pyralog_producer_send_wait(const struct pyralog_producer_t *producer,
                                   const struct pyralog_record_t *record,
                                   struct pyralog_delivery_t *delivery);

/**
 * Waits until everything that was sent before has its outcome; PYRALOG_ERROR_REQUEST_TIMED_OUT when that takes longer.
 * A record that failed makes no flush fail: its own delivery tells. Not to be called from callbacks.
 */
int32_t pyralog_producer_flush(const struct pyralog_producer_t *producer,
                               uint64_t timeout_ms);

/**
 * Waits as pyralog_producer_flush() does, then ends the producer's thread, in any case. What has no outcome by then
 * gets one: unknown, or not accepted if it was never sent. The handle still has to be freed. Not to be called from
 * callbacks.
 */
int32_t pyralog_producer_close(const struct pyralog_producer_t *producer,
                               uint64_t timeout_ms);

/**
 * Frees a producer; NULL is fine. Without pyralog_producer_close() before, records that have no outcome are given up.
 * Not to be called from callbacks.
 */
void pyralog_producer_free(struct pyralog_producer_t *producer);

/**
 * How many partitions the producer's topic had when the producer last looked.
 */
int32_t pyralog_producer_partitions(const struct pyralog_producer_t *producer, uint32_t *partitions);

/**
 * Fills in what the producer has done so far.
 */
int32_t pyralog_producer_stats(const struct pyralog_producer_t *producer,
                               struct pyralog_producer_stats_t *stats);

/**
 * A queue for pyralog_producer_send_queued(). Sends with it wait while capacity deliveries are not polled; 0: 65536.
 */
int32_t pyralog_queue_new(size_t capacity,
                          struct pyralog_queue_t **queue);

/**
 * Takes the deliveries that have come, at most some thousand, and waits up to timeout_ms for the first one. deliveries
 * is set to an array of count pointers; both are valid until the next poll of this queue, or until it is freed. No
 * delivery in time is no error: count is 0.
 */
int32_t pyralog_queue_poll(const struct pyralog_queue_t *queue,
                           uint64_t timeout_ms,
                           const struct pyralog_delivery_t *const **deliveries,
                           size_t *count);

/**
 * Ends a poll that waits, or the next one, although nothing has come. Any thread may call it.
 */
int32_t pyralog_queue_wake(const struct pyralog_queue_t *queue);

/**
 * Frees a queue and what is in it; NULL is fine. Records that were sent with it are still sent, and what becomes of
 * them is told nobody.
 */
void pyralog_queue_free(struct pyralog_queue_t *queue);

/**
 * Fills in the defaults. size: sizeof(pyralog_topic_config_t).
 */
int32_t pyralog_topic_config_init(struct pyralog_topic_config_t *config, size_t size);

/**
 * Creates a topic. config may be NULL: one partition, the node's defaults. Not tried again when the outcome is unknown:
 * then pyralog_topic_partitions() tells whether it is there.
 */
int32_t pyralog_topic_create(const struct pyralog_client_t *client,
                             const char *name,
                             const struct pyralog_topic_config_t *config);

/**
 * Deletes a topic and its data. One that is not there may be one that the node has not heard of yet: it is tried again
 * for retry_for_ms.
 */
int32_t pyralog_topic_delete(const struct pyralog_client_t *client,
                             const char *name);

/**
 * How many partitions a topic has; PYRALOG_ERROR_UNKNOWN_TOPIC_OR_PARTITION when there is none of that name.
 */
int32_t pyralog_topic_partitions(const struct pyralog_client_t *client,
                                 const char *name,
                                 uint32_t *partitions);

/**
 * Finds an offset of a partition. start: a PYRALOG_START_ number; value: the timestamp of PYRALOG_START_TIMESTAMP,
 * else not looked at. PYRALOG_START_LATEST finds the offset that the next record gets, as far as it is known.
 */
int32_t pyralog_topic_offset(const struct pyralog_client_t *client,
                             const char *name,
                             uint32_t partition,
                             int32_t start,
                             int64_t value,
                             int64_t *offset);

/**
 * The version of the library, like "0.1.0". Static.
 */
const char *pyralog_version(void);

/**
 * The version of the library as a number; compare it with PYRALOG_VERSION_NUMBER.
 */
uint32_t pyralog_version_number(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* PYRALOG_H */
