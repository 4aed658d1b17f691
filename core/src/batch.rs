//! Apache Kafka's RecordBatch v2, byte for byte (decision D1).
