//! Error codes of the protocol. The numbers are stable: they are never reused and never change meaning.

use std::fmt;

/// What a caller may conclude about a request that was answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The request had no effect. It may be sent again anywhere.
    NotAccepted,
    /// The request may or may not have taken effect. Retry it only within the same idempotent producer
    /// session, where the server removes the duplicate.
    Unknown,
}

macro_rules! error_codes {
    ($( $(#[doc = $doc:literal])+ $name:ident = $num:literal, $retriable:literal, $outcome:ident, $text:literal; )+) => {
        /// An error code of the protocol, as sent in every reply (`0` is success).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum ErrorCode {
            $( $(#[doc = $doc])+ $name = $num, )+
        }

        impl ErrorCode {
            /// Every code, in the order of their numbers.
            pub const ALL: &'static [Self] = &[ $( Self::$name, )+ ];

            /// The code with this number, or `None` for a number that this version does not know.
            pub const fn from_u16(number: u16) -> Option<Self> {
                match number {
                    $( $num => Some(Self::$name), )+
                    _ => None,
                }
            }

            /// Whether the same request can succeed later without anybody changing it.
            pub const fn retriable(self) -> bool {
                match self { $( Self::$name => $retriable, )+ }
            }

            /// What may be concluded about the request's effect.
            pub const fn outcome(self) -> Outcome {
                match self { $( Self::$name => Outcome::$outcome, )+ }
            }

            /// The code's name as in the documentation, e.g. `UnknownTopicOrPartition`.
            pub const fn name(self) -> &'static str {
                match self { $( Self::$name => stringify!($name), )+ }
            }

            /// What happened and what to do, in one sentence each.
            pub const fn text(self) -> &'static str {
                match self { $( Self::$name => $text, )+ }
            }
        }
    };
}

error_codes! {
    /// Success.
    None = 0, false, NotAccepted, "success";
    /// The frame or a message in it breaks the protocol's rules; the connection is closed after this reply.
    InvalidRequest = 1, false, NotAccepted,
        "the request does not follow the protocol; check the client's version against docs/protocol.md";
    /// The protocol version or the message kind is not known to this node.
    UnsupportedVersion = 2, false, NotAccepted,
        "this node does not speak that protocol version or message; upgrade the node or use an older client";
    /// The topic or partition is not known here.
    UnknownTopicOrPartition = 3, true, NotAccepted,
        "no such topic or partition here; create it or refresh the client's metadata";
    /// The partition belongs to another shard or node.
    NotLeader = 4, true, NotAccepted,
        "this shard does not lead the partition; refresh the metadata and connect to the shard it names";
    /// An administrative request reached a shard that is not the controller.
    NotController = 5, true, NotAccepted, "administrative requests go to shard 0 of the node that leads the metadata; refresh the metadata and go to its controller";
    /// The record batch is malformed.
    InvalidBatch = 6, false, NotAccepted, "the record batch is malformed; the producer's encoder is at fault";
    /// The record batch's checksum does not match its bytes.
    CorruptBatch = 7, true, NotAccepted,
        "the record batch's checksum does not match; it was damaged on the way, send it again";
    /// The batch or frame exceeds its bound.
    TooLarge = 8, false, NotAccepted, "larger than the bound in docs/protocol.md; send smaller batches";
    /// The fetch offset lies outside the log.
    OffsetOutOfRange = 9, false, NotAccepted,
        "the offset is below the log start or above the log end; ask ListOffsets for the valid range";
    /// The sequence number does not follow the last one of this producer.
    OutOfOrderSequence = 10, false, NotAccepted,
        "the producer's sequence has a gap; an earlier batch is missing, send it first";
    /// The producer's epoch is older than the newest one seen.
    ProducerFenced = 11, false, NotAccepted,
        "a newer session of this producer id exists; stop this one";
    /// A sequence other than 0 from a producer that this partition does not remember.
    UnknownProducerId = 12, false, NotAccepted,
        "the partition holds no state for this producer; start a new producer session";
    /// A bounded resource of the shard is used up: in-flight bytes, producers, waiting fetches.
    Overloaded = 13, true, NotAccepted, "the shard is at a bound; slow down and send again";
    /// The disk is full; nothing was written.
    DiskFull = 14, true, NotAccepted,
        "the node's disk is full; free space or lower the retention, writing resumes by itself";
    /// The shard saw an I/O error and has fenced itself; the request's fate is decided when it re-reads its disk.
    StorageFailed = 15, true, Unknown,
        "the shard's disk failed while this was being written; retry in the same producer session";
    /// The shard is fenced (recovering from an I/O error) and accepted nothing.
    Fenced = 16, true, NotAccepted, "the shard is re-reading its disk after an I/O error; send again shortly";
    /// The wanted range is damaged on disk and there is no other copy.
    CorruptRange = 17, false, NotAccepted,
        "this range is damaged on disk; it is repaired if another replica has it, and offsets outside it stay readable";
    /// The end of the partition's log can't be established after corruption; it is read-only.
    LogEndUnknown = 18, false, NotAccepted,
        "corruption hides where this log ends; it is readable but takes no writes until it is repaired";
    /// The node is starting or stopping.
    NotReady = 19, true, NotAccepted, "the shard is starting or shutting down; send again shortly";
    /// The request was not answered within its time.
    RequestTimedOut = 20, true, Unknown,
        "no answer in time; the write may still happen, retry in the same producer session";
    /// A topic of that name exists.
    TopicAlreadyExists = 21, false, NotAccepted, "a topic of that name exists; choose another name";
    /// The topic's name or settings are not valid.
    InvalidTopic = 22, false, NotAccepted,
        "a topic's name, partitions, quorums or retention are not allowed; docs/protocol.md says what is";
    /// A bound on topics or partitions is reached.
    LimitReached = 23, false, NotAccepted, "the node holds as many topics or partitions as its bound allows";
    /// The compression named by the batch is not supported.
    UnsupportedCompression = 24, false, NotAccepted, "use none, lz4 or zstd";
    /// A bug in the server; the shard's log names it.
    Internal = 25, false, Unknown, "an internal error; see the node's log and report it";
    /// The connection was closed before the reply came.
    ConnectionLost = 26, true, Unknown,
        "the connection closed before the reply; retry in the same producer session";
    /// The leader of the partition changed while the batch was on its way to a quorum.
    LeaderChanged = 27, true, Unknown,
        "the partition's leader changed; refresh metadata, then retry in the same producer session";
    /// Fewer replicas are in sync than the topic asks for.
    NotEnoughReplicas = 28, true, NotAccepted,
        "fewer replicas are in sync than the topic's min_insync_replicas; start the missing nodes, or wait until they have caught up";
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.name(), *self as u16, self.text())
    }
}

impl std::error::Error for ErrorCode {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_round_trip() {
        for (i, code) in ErrorCode::ALL.iter().enumerate() {
            assert_eq!(*code as usize, i);
            assert_eq!(ErrorCode::from_u16(i as u16), Some(*code));
        }
        assert_eq!(ErrorCode::from_u16(ErrorCode::ALL.len() as u16), None);
    }
}
