//! The control part of a frame between two shards: messages of any number of groups, encoded with rkyv and validated
//! when decoded (decision D8). The batches of their entries travel behind it, in the order of the messages.

use pyralog_core::limits::{
    MAX_BATCH_BYTES, MAX_PEER_CONFIGURATIONS_PER_FRAME, MAX_PEER_CONTROL_BYTES, MAX_PEER_ENTRIES_PER_FRAME,
    MAX_PEER_MESSAGES_PER_FRAME, MAX_PEER_PAYLOAD_BYTES,
};
use rkyv::util::AlignedVec;
use rkyv::with::InlineAsBox;
use rkyv::{Archive, Serialize, rancor};

use super::Message;
use super::configuration::ArchivedConfiguration;

/// Bytes that do not hold messages, or more than a frame may hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// More bytes than a frame may have.
    #[error("{bytes} bytes of messages in a frame, {MAX_PEER_CONTROL_BYTES} is the bound")]
    TooLarge {
        /// How many.
        bytes: usize,
    },
    /// The validation of the bytes failed.
    #[error("the bytes are no messages: {0}")]
    Malformed(String),
    /// More messages than a frame may have.
    #[error("{count} messages in a frame, {MAX_PEER_MESSAGES_PER_FRAME} is the bound")]
    TooManyMessages {
        /// How many.
        count: usize,
    },
    /// More entries than a frame may have, all messages together.
    #[error("{count} entries in a frame, {MAX_PEER_ENTRIES_PER_FRAME} is the bound")]
    TooManyEntries {
        /// How many.
        count: usize,
    },
    /// More configurations than a frame may have, all messages together.
    #[error(
        "{count} configurations in a frame, {MAX_PEER_CONFIGURATIONS_PER_FRAME} is the bound; or one of too many replicas"
    )]
    TooManyConfigurations {
        /// How many.
        count: usize,
    },
    /// A batch larger than any that is accepted.
    #[error("a batch of {bytes} bytes, {MAX_BATCH_BYTES} is the bound")]
    BatchTooLarge {
        /// Its size.
        bytes: u32,
    },
    /// More batch bytes than a frame may have, all messages together.
    #[error("{bytes} bytes of batches in a frame, {MAX_PEER_PAYLOAD_BYTES} is the bound")]
    PayloadTooLarge {
        /// How many.
        bytes: u64,
    },
}

/// What is encoded: a borrowed list, so that nothing is copied before it is written.
#[derive(Archive, Serialize)]
#[rkyv(attr(allow(missing_docs)))]
struct Frame<'a> {
    #[rkyv(with = InlineAsBox)]
    messages: &'a [Message],
}

/// The bytes of `messages`. Whether they are within the bounds of one frame is the caller's to see to: their number, the
/// number of their entries and the bytes of their batches ([`decode`] refuses more).
pub fn encode(messages: &[Message]) -> Vec<u8> {
    match rkyv::api::high::to_bytes_in::<_, rancor::Error>(&Frame { messages }, Vec::new()) {
        Ok(bytes) => bytes,
        // The serialiser only allocates; it has no other way to fail.
        Err(error) => unreachable!("serialising messages: {error}"),
    }
}

/// The messages that `bytes` hold, none of them believed yet: the bytes are validated and within the bounds of a frame, the
/// group checks what the messages say.
pub fn decode(bytes: &[u8]) -> Result<Vec<Message>, DecodeError> {
    if bytes.len() > MAX_PEER_CONTROL_BYTES {
        return Err(DecodeError::TooLarge { bytes: bytes.len() });
    }
    // Validation needs aligned memory, and a frame begins where the one before it ended.
    let mut aligned = AlignedVec::<16>::with_capacity(bytes.len());
    aligned.extend_from_slice(bytes);
    let archived =
        rkyv::access::<rkyv::vec::ArchivedVec<super::message::ArchivedMessage>, rancor::Error>(&aligned)
            .map_err(|error| DecodeError::Malformed(error.to_string()))?;
    // Counted before anything is allocated: entries of several messages may claim the same bytes.
    if archived.len() > MAX_PEER_MESSAGES_PER_FRAME {
        return Err(DecodeError::TooManyMessages { count: archived.len() });
    }
    let count = archived.iter().map(|message| message.entries.len()).fold(0, usize::saturating_add);
    if count > MAX_PEER_ENTRIES_PER_FRAME {
        return Err(DecodeError::TooManyEntries { count });
    }
    let configurations = || archived.iter().flat_map(|message| message.configurations.iter());
    let count = archived.iter().map(|message| message.configurations.len()).fold(0, usize::saturating_add);
    if count > MAX_PEER_CONFIGURATIONS_PER_FRAME || !configurations().all(ArchivedConfiguration::is_bounded) {
        return Err(DecodeError::TooManyConfigurations { count });
    }
    let mut payload = 0u64;
    for entry in archived.iter().flat_map(|message| message.entries.iter()) {
        let bytes = entry.bytes.to_native();
        if bytes as usize > MAX_BATCH_BYTES {
            return Err(DecodeError::BatchTooLarge { bytes });
        }
        payload += u64::from(bytes);
    }
    if payload > MAX_PEER_PAYLOAD_BYTES as u64 {
        return Err(DecodeError::PayloadTooLarge { bytes: payload });
    }
    let owned = |message| rkyv::deserialize::<Message, rancor::Error>(message);
    let messages = archived.iter().map(owned).collect::<Result<_, _>>();
    messages.map_err(|error| DecodeError::Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use pyralog_core::GroupId;
    use pyralog_core::limits::MAX_REPLICATION_FACTOR;

    use super::super::{Configuration, EntryHead, MessageKind};
    use super::*;
    use crate::metadata::Replica;

    const KINDS: [MessageKind; 18] = [
        MessageKind::Append,
        MessageKind::AppendResponse,
        MessageKind::RequestPreVote,
        MessageKind::RequestPreVoteResponse,
        MessageKind::RequestVote,
        MessageKind::RequestVoteResponse,
        MessageKind::Heartbeat,
        MessageKind::HeartbeatResponse,
        MessageKind::Snapshot,
        MessageKind::TimeoutNow,
        MessageKind::Quiesce,
        MessageKind::FetchBatches,
        MessageKind::Batches,
        MessageKind::FetchProducers,
        MessageKind::Producers,
        MessageKind::Command,
        MessageKind::RequestStanding,
        MessageKind::RequestStandingResponse,
    ];

    fn entry() -> impl Strategy<Value = EntryHead> {
        (any::<u32>(), any::<u8>(), any::<i64>(), any::<i64>(), 0u32..4096).prop_map(
            |(term, kind, base_offset, next_offset, bytes)| EntryHead {
                term,
                kind,
                base_offset,
                next_offset,
                bytes,
            },
        )
    }

    fn message() -> impl Strategy<Value = Message> {
        let place = (0..KINDS.len(), any::<[u32; 6]>(), any::<[u64; 5]>());
        let entries = proptest::collection::vec(entry(), 0..6);
        let configurations = proptest::collection::vec(configuration(), 0..3);
        (place, any::<(bool, bool, u32)>(), entries, configurations).prop_map(
            |((kind, small, large), (reject, transfer, commit_term), entries, configurations)| {
                let [topic, partition, from, to, term, log_term] = small;
                let [index, commit, reject_hint, read, offset] = large;
                Message {
                    kind: KINDS[kind],
                    topic,
                    partition,
                    from,
                    to,
                    term,
                    log_term,
                    index,
                    commit,
                    commit_term,
                    reject,
                    reject_hint,
                    transfer,
                    read,
                    offset: offset as i64,
                    entries,
                    configurations,
                }
            },
        )
    }

    fn replicas() -> impl Strategy<Value = Vec<Replica>> {
        let replica = (any::<u32>(), any::<u16>()).prop_map(|(node, shard)| Replica { node, shard });
        proptest::collection::vec(replica, 0..usize::from(MAX_REPLICATION_FACTOR))
    }

    fn configuration() -> impl Strategy<Value = Configuration> {
        (replicas(), replicas()).prop_map(|(voters, others)| {
            let joint = Configuration::of(others.clone()).entering(voters.clone());
            if voters.len() % 2 == 0 { joint } else { joint.left().with_learners(others) }
        })
    }

    fn append(entries: Vec<EntryHead>) -> Message {
        Message { entries, ..Message::new(MessageKind::Append, GroupId::new(1, 2), 3, 4, 5) }
    }

    fn head(bytes: u32) -> EntryHead {
        EntryHead { term: 5, kind: 0, base_offset: 7, next_offset: 8, bytes }
    }

    /// A message of each kind, with something in every field.
    fn one_of_each() -> Vec<Message> {
        let place = |node| Replica { node, shard: 1 };
        let one = |(kind, number): (MessageKind, u32)| Message {
            log_term: number + 1,
            index: u64::from(number) << 33,
            commit: u64::from(number) + 3,
            commit_term: number,
            reject: number.is_multiple_of(2),
            reject_hint: 7,
            transfer: number.is_multiple_of(3),
            read: u64::from(number) * 5,
            offset: -i64::from(number),
            entries: (0..number % 3).map(head).collect(),
            configurations: (0..number % 2)
                .map(|_| Configuration::of((1..4).map(place)).entering((2..5).map(place)))
                .collect(),
            ..Message::new(kind, GroupId::new(number, number + 1), 3, 4, number + 9)
        };
        KINDS.iter().copied().zip(0..).map(one).collect()
    }

    /// What a frame of version 2 holds is read as long as that version is spoken. The file is never written again; a newer version gets
    /// one of its own, which `BLESS=1` writes when it is not there.
    #[test]
    fn messages_of_version_2_are_read() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/raft/fixtures/messages-2.bin");
        if std::env::var_os("BLESS").is_some() && !std::path::Path::new(path).exists() {
            std::fs::write(path, encode(&one_of_each())).unwrap();
        }
        assert_eq!(decode(&std::fs::read(path).unwrap()), Ok(one_of_each()));
    }

    proptest! {
        #[test]
        fn messages_survive_the_wire(messages in proptest::collection::vec(message(), 0..20)) {
            prop_assert_eq!(decode(&encode(&messages)), Ok(messages));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn damaged_messages_never_panic(
            messages in proptest::collection::vec(message(), 1..6),
            flips in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..4),
            keep in any::<prop::sample::Index>(),
            front in 0usize..9,
        ) {
            let mut bytes = encode(&messages);
            for (at, bit) in flips {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            let _ = decode(&bytes);
            let _ = decode(&bytes[..keep.index(bytes.len())]);
            let _ = decode(bytes.get(front..).unwrap_or_default());
        }
    }

    #[test]
    fn messages_are_found_at_any_alignment() {
        let messages = vec![append(vec![head(100), head(61)])];
        let bytes = encode(&messages);
        for shift in 0..16 {
            let mut shifted = vec![0; shift];
            shifted.extend_from_slice(&bytes);
            assert_eq!(decode(&shifted[shift..]).as_ref(), Ok(&messages));
        }
    }

    #[test]
    fn what_exceeds_a_frame_is_refused() {
        let many = vec![append(Vec::new()); MAX_PEER_MESSAGES_PER_FRAME];
        let bytes = encode(&many);
        assert!(
            bytes.len() <= MAX_PEER_CONTROL_BYTES,
            "the largest number of messages fits: {}",
            bytes.len()
        );
        assert_eq!(decode(&bytes).unwrap().len(), MAX_PEER_MESSAGES_PER_FRAME);
        let more = vec![append(Vec::new()); MAX_PEER_MESSAGES_PER_FRAME + 1];
        let count = MAX_PEER_MESSAGES_PER_FRAME + 1;
        assert_eq!(decode(&encode(&more)), Err(DecodeError::TooManyMessages { count }));

        let mut full = many;
        full[0].entries = vec![head(61); MAX_PEER_ENTRIES_PER_FRAME];
        let bytes = encode(&full);
        assert!(bytes.len() <= MAX_PEER_CONTROL_BYTES, "and with it that of entries: {}", bytes.len());
        assert!(decode(&bytes).is_ok());
        full[1].entries = vec![head(61)];
        let count = MAX_PEER_ENTRIES_PER_FRAME + 1;
        assert_eq!(decode(&encode(&full)), Err(DecodeError::TooManyEntries { count }));

        let every = |nodes: std::ops::Range<u32>| nodes.map(|node| Replica { node, shard: u16::MAX });
        let most = Configuration::of(every(1..6)).entering(every(11..16));
        full[1].entries.clear();
        full[2].configurations = vec![most.clone(); MAX_PEER_CONFIGURATIONS_PER_FRAME];
        let bytes = encode(&full);
        assert!(bytes.len() <= MAX_PEER_CONTROL_BYTES, "and that of configurations: {}", bytes.len());
        assert!(decode(&bytes).is_ok());
        full[3].configurations = vec![most];
        let count = MAX_PEER_CONFIGURATIONS_PER_FRAME + 1;
        assert_eq!(decode(&encode(&full)), Err(DecodeError::TooManyConfigurations { count }));
        full[2].configurations.clear();
        full[3].configurations = vec![Configuration::of(every(1..7))];
        assert_eq!(decode(&encode(&full)), Err(DecodeError::TooManyConfigurations { count: 1 }));
        let large = MAX_BATCH_BYTES as u32 + 1;
        assert_eq!(
            decode(&encode(&[append(vec![head(large)])])),
            Err(DecodeError::BatchTooLarge { bytes: large })
        );
        let batches = MAX_PEER_PAYLOAD_BYTES / MAX_BATCH_BYTES + 1;
        let error = decode(&encode(&[append(vec![head(MAX_BATCH_BYTES as u32); batches])])).unwrap_err();
        assert!(matches!(error, DecodeError::PayloadTooLarge { .. }), "{error}");
        let bytes = MAX_PEER_CONTROL_BYTES + 1;
        assert_eq!(decode(&vec![0; bytes]), Err(DecodeError::TooLarge { bytes }));
    }
}
