//! The cluster's metadata as a deterministic state machine: commands in the log of the metadata group, folded
//! into a [`Catalog`]. Encoded with rkyv and always validated when decoded (decision D8).

use std::collections::BTreeMap;

use pyralog_core::limits::{
    MAX_PARTITIONS_PER_NODE, MAX_PARTITIONS_PER_TOPIC, MAX_TOPIC_NAME_BYTES, MAX_TOPICS,
};
use pyralog_core::{ErrorCode, GroupId};
use rkyv::rancor;
use rkyv::{Archive, Deserialize, Serialize};

/// A change of the metadata. Validated by [`Catalog::check`] before it is appended, applied when committed.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[rkyv(attr(allow(missing_docs)))]
pub enum Command {
    /// Create a topic; its id is `next_topic_id`.
    CreateTopic {
        /// Its name.
        name: String,
        /// The shard of each partition: placement is explicit, never a hash (decision D9).
        shards: Vec<u16>,
        /// Bytes per partition; -1 = the node's default, 0 = unlimited.
        retention_bytes: i64,
        /// Milliseconds; -1 = the node's default, 0 = unlimited.
        retention_ms: i64,
    },
    /// Delete a topic. Its id is never used again.
    DeleteTopic {
        /// Its id.
        topic: u32,
    },
    /// Reserve the next `count` producer ids.
    ReserveProducerIds {
        /// How many.
        count: u32,
    },
}

/// A topic.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[rkyv(attr(allow(missing_docs)))]
pub struct Topic {
    /// Its id.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// The shard of each partition.
    pub shards: Vec<u16>,
    /// Bytes per partition; -1 = the node's default, 0 = unlimited.
    pub retention_bytes: i64,
    /// Milliseconds; -1 = the node's default, 0 = unlimited.
    pub retention_ms: i64,
}

/// All metadata at one version.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[rkyv(attr(allow(missing_docs)))]
pub struct Catalog {
    /// Commands applied so far.
    pub version: u64,
    /// Id of the next topic, from 1.
    pub next_topic_id: u32,
    /// First producer id not yet reserved.
    pub next_producer_id: i64,
    /// Topics by id.
    pub topics: BTreeMap<u32, Topic>,
}

impl Default for Catalog {
    fn default() -> Self {
        Self { version: 0, next_topic_id: 1, next_producer_id: 1, topics: BTreeMap::new() }
    }
}

/// Bytes that are no valid command or catalogue.
#[derive(Debug, thiserror::Error)]
#[error("metadata does not decode: {0}")]
pub struct DecodeError(String);

impl Command {
    /// The command's bytes.
    pub fn encode(&self) -> Vec<u8> {
        to_bytes(rkyv::to_bytes::<rancor::Error>(self))
    }

    /// The command of these bytes, validated.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        rkyv::from_bytes::<Self, rancor::Error>(&aligned(bytes))
            .map_err(|error| DecodeError(error.to_string()))
    }
}

impl Catalog {
    /// The topic of that name.
    pub fn topic_by_name(&self, name: &str) -> Option<&Topic> {
        self.topics.values().find(|topic| topic.name == name)
    }

    /// The shard that owns `group`.
    pub fn shard_of(&self, group: GroupId) -> Option<u16> {
        if group == GroupId::METADATA {
            return Some(0);
        }
        self.topics.get(&group.topic.0)?.shards.get(group.partition as usize).copied()
    }

    /// All partitions.
    pub fn partitions(&self) -> usize {
        self.topics.values().map(|topic| topic.shards.len()).sum()
    }

    /// Spreads `partitions` over `shards` so that the counts per shard, all topics together, stay even.
    pub fn place(&self, partitions: u32, shards: u16) -> Vec<u16> {
        let mut load = vec![0u32; usize::from(shards.max(1))];
        for shard in self.topics.values().flat_map(|topic| &topic.shards) {
            if let Some(count) = load.get_mut(usize::from(*shard)) {
                *count += 1;
            }
        }
        (0..partitions)
            .map(|_| {
                let (least, count) = load
                    .iter_mut()
                    .enumerate()
                    .min_by_key(|(_, count)| **count)
                    .unwrap_or_else(|| unreachable!());
                *count += 1;
                least as u16
            })
            .collect()
    }

    /// Whether `command` may be appended now.
    pub fn check(&self, command: &Command) -> Result<(), (ErrorCode, String)> {
        match command {
            Command::CreateTopic { name, shards, .. } => {
                if !valid_topic_name(name) {
                    return Err((ErrorCode::InvalidTopic, format!("the name {name:?} is not allowed")));
                }
                if shards.is_empty() || shards.len() > MAX_PARTITIONS_PER_TOPIC as usize {
                    let text =
                        format!("{} partitions; 1 to {MAX_PARTITIONS_PER_TOPIC} are allowed", shards.len());
                    return Err((ErrorCode::InvalidTopic, text));
                }
                if self.topic_by_name(name).is_some() {
                    return Err((ErrorCode::TopicAlreadyExists, format!("topic {name:?} exists")));
                }
                if self.topics.len() >= MAX_TOPICS as usize || self.next_topic_id == u32::MAX {
                    return Err((ErrorCode::LimitReached, format!("{MAX_TOPICS} topics is the bound")));
                }
                if self.partitions() + shards.len() > MAX_PARTITIONS_PER_NODE as usize {
                    let text = format!("{MAX_PARTITIONS_PER_NODE} partitions per node is the bound");
                    return Err((ErrorCode::LimitReached, text));
                }
                Ok(())
            }
            Command::DeleteTopic { topic } => match self.topics.contains_key(topic) {
                true => Ok(()),
                false => Err((ErrorCode::UnknownTopicOrPartition, format!("no topic with id {topic}"))),
            },
            Command::ReserveProducerIds { count } => {
                match self.next_producer_id.checked_add(i64::from(*count)) {
                    Some(_) => Ok(()),
                    None => Err((ErrorCode::LimitReached, "producer ids are used up".into())),
                }
            }
        }
    }

    /// Applies a committed command. One that no longer passes [`Self::check`] changes nothing but the version.
    pub fn apply(&mut self, command: &Command) {
        let valid = self.check(command).is_ok();
        self.version += 1;
        if !valid {
            return;
        }
        match command {
            Command::CreateTopic { name, shards, retention_bytes, retention_ms } => {
                let id = self.next_topic_id;
                self.next_topic_id += 1;
                let topic = Topic {
                    id,
                    name: name.clone(),
                    shards: shards.clone(),
                    retention_bytes: *retention_bytes,
                    retention_ms: *retention_ms,
                };
                self.topics.insert(id, topic);
            }
            Command::DeleteTopic { topic } => {
                self.topics.remove(topic);
            }
            Command::ReserveProducerIds { count } => self.next_producer_id += i64::from(*count),
        }
    }

    /// The catalogue's bytes, for a snapshot.
    pub fn encode(&self) -> Vec<u8> {
        to_bytes(rkyv::to_bytes::<rancor::Error>(self))
    }

    /// The catalogue of a snapshot, validated.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        rkyv::from_bytes::<Self, rancor::Error>(&aligned(bytes))
            .map_err(|error| DecodeError(error.to_string()))
    }
}

/// 1 to 249 ASCII letters, digits, `.`, `_`, `-`; neither `.` nor `..`.
pub fn valid_topic_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_TOPIC_NAME_BYTES
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

fn to_bytes(result: Result<rkyv::util::AlignedVec, rancor::Error>) -> Vec<u8> {
    match result {
        Ok(bytes) => bytes.into_vec(),
        // The serialiser only allocates; it has no other way to fail.
        Err(error) => unreachable!("serialising metadata: {error}"),
    }
}

fn aligned(bytes: &[u8]) -> rkyv::util::AlignedVec {
    let mut aligned = rkyv::util::AlignedVec::with_capacity(bytes.len());
    aligned.extend_from_slice(bytes);
    aligned
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn create(name: &str, partitions: u32, catalog: &Catalog) -> Command {
        Command::CreateTopic {
            name: name.into(),
            shards: catalog.place(partitions, 2),
            retention_bytes: -1,
            retention_ms: -1,
        }
    }

    #[test]
    fn topics_come_and_go_and_ids_are_never_reused() {
        let mut catalog = Catalog::default();
        catalog.apply(&create("a", 3, &catalog));
        assert_eq!(catalog.topic_by_name("a").unwrap().shards, [0, 1, 0]);
        assert_eq!(catalog.check(&create("a", 1, &catalog)).unwrap_err().0, ErrorCode::TopicAlreadyExists);
        catalog.apply(&Command::DeleteTopic { topic: 1 });
        catalog.apply(&create("a", 1, &catalog));
        assert_eq!(catalog.topic_by_name("a").unwrap().id, 2);
        assert_eq!(catalog.version, 3);
        assert_eq!(Catalog::decode(&catalog.encode()).unwrap(), catalog);
    }

    #[test]
    fn placement_evens_out_what_is_there() {
        let mut catalog = Catalog::default();
        catalog.apply(&create("a", 3, &catalog));
        assert_eq!(catalog.place(1, 2), [1]);
    }

    #[test]
    fn names_are_checked() {
        for bad in ["", ".", "..", "a/b", "ä", "a b", &"x".repeat(250)] {
            assert!(!valid_topic_name(bad), "{bad}");
        }
        assert!(valid_topic_name("orders.v2_eu-west"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = Command::decode(&bytes);
            let _ = Catalog::decode(&bytes);
        }
    }
}
