//! Commands and catalogues as bytes: one byte of version, then rkyv's.

use pyralog_core::features::FIRST_LEVEL;
use rkyv::rancor;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};

use super::{Assignment, Catalog, Command, Move, NodeInfo, Settled, Topic, TopicSpec};

/// Version of the bytes behind it. 1 (without nodes) and 2 (without their disks) are not read any more; 3 (without moves, racks, and partitions
/// with other numbers of replicas than their topic) is.
const VERSION: u8 = 4;
/// The oldest version that is read.
const OLDEST: u8 = 3;

/// Bytes that are no valid command or catalogue.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Nothing there.
    #[error("the metadata is empty")]
    Empty,
    /// Written by another version of the program.
    #[error(
        "the metadata has format {found}, this program reads formats {OLDEST} to {VERSION}: start the version that wrote it, or an \
         empty data folder"
    )]
    UnknownVersion {
        /// What was found.
        found: u8,
    },
    /// Not what that version writes.
    #[error("the metadata does not decode: {0}")]
    Malformed(String),
    /// It decodes, and contradicts itself or breaks a bound.
    #[error("the metadata is not consistent: {0}")]
    Inconsistent(String),
}

/// A catalogue as it is written down: without what follows from the rest.
#[derive(Archive, Serialize, Deserialize)]
#[rkyv(attr(allow(missing_docs)))]
struct Image {
    version: u64,
    next_topic_id: u32,
    next_producer_id: i64,
    nodes: Vec<NodeInfo>,
    topics: Vec<Topic>,
    moves: Vec<(u32, u32, Move)>,
    settled: Vec<(u32, u32, Settled)>,
    removed: Vec<(u32, u64)>,
    grown: Vec<(u32, u32, u64)>,
    expected: Vec<(u32, String)>,
    feature_level: u16,
}

/// A node in version 3.
#[derive(Archive, Serialize, Deserialize)]
#[rkyv(attr(allow(missing_docs)))]
struct Node3 {
    id: u32,
    client_address: String,
    internal_address: String,
    shards: u16,
    disk: u64,
    disk_since: u64,
}

impl From<Node3> for NodeInfo {
    fn from(node: Node3) -> Self {
        let Node3 { id, client_address, internal_address, shards, disk, disk_since } = node;
        let (level_min, level_max) = (FIRST_LEVEL, FIRST_LEVEL);
        let rack = String::new();
        Self { id, client_address, internal_address, rack, shards, disk, level_min, level_max, disk_since }
    }
}

/// What a topic was created with in version 3.
#[derive(Archive, Serialize, Deserialize)]
#[rkyv(attr(allow(missing_docs)))]
struct TopicSpec3 {
    name: String,
    assignment: Assignment,
    write_quorum: u8,
    read_quorum: u8,
    min_insync_replicas: u8,
    retention_bytes: i64,
    retention_ms: i64,
}

impl From<TopicSpec3> for TopicSpec {
    fn from(spec: TopicSpec3) -> Self {
        let TopicSpec3 { name, assignment, write_quorum, read_quorum, min_insync_replicas, .. } = spec;
        let (retention_bytes, retention_ms) = (spec.retention_bytes, spec.retention_ms);
        Self {
            name,
            replication_factor: assignment.width(),
            assignment,
            write_quorum,
            read_quorum,
            min_insync_replicas,
            retention_bytes,
            retention_ms,
        }
    }
}

/// A topic in version 3.
#[derive(Archive, Serialize, Deserialize)]
#[rkyv(attr(allow(missing_docs)))]
struct Topic3 {
    id: u32,
    created: u64,
    spec: TopicSpec3,
}

impl From<Topic3> for Topic {
    fn from(Topic3 { id, created, spec }: Topic3) -> Self {
        Self { id, created, spec: spec.into() }
    }
}

/// The catalogue in version 3.
#[derive(Archive, Serialize, Deserialize)]
#[rkyv(attr(allow(missing_docs)))]
struct Image3 {
    version: u64,
    next_topic_id: u32,
    next_producer_id: i64,
    nodes: Vec<Node3>,
    topics: Vec<Topic3>,
}

/// The commands of version 3.
#[derive(Archive, Serialize, Deserialize)]
#[rkyv(attr(allow(missing_docs)))]
enum Command3 {
    RegisterNode(Node3),
    CreateTopic(TopicSpec3),
    DeleteTopic { topic: u32 },
    ReserveProducerIds { count: u32 },
}

impl From<Command3> for Command {
    fn from(command: Command3) -> Self {
        match command {
            Command3::RegisterNode(node) => Self::RegisterNode(node.into()),
            Command3::CreateTopic(spec) => Self::CreateTopic(spec.into()),
            Command3::DeleteTopic { topic } => Self::DeleteTopic { topic },
            Command3::ReserveProducerIds { count } => Self::ReserveProducerIds { count },
        }
    }
}

impl Command {
    /// The command's bytes.
    pub fn encode(&self) -> Vec<u8> {
        versioned(rkyv::to_bytes::<rancor::Error>(self))
    }

    /// The command of these bytes, validated as far as it can be without a catalogue.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        match unversioned(bytes)? {
            (OLDEST, bytes) => {
                rkyv::from_bytes::<Command3, rancor::Error>(&bytes).map(Self::from).map_err(malformed)
            }
            (_, bytes) => rkyv::from_bytes::<Self, rancor::Error>(&bytes).map_err(malformed),
        }
    }
}

impl Catalog {
    /// Version of the bytes that [`Self::encode`] gives.
    pub const FORMAT: u8 = VERSION;
    /// The oldest version that [`Self::decode`] reads.
    pub const OLDEST_FORMAT: u8 = OLDEST;

    /// The catalogue's bytes, for a snapshot.
    pub fn encode(&self) -> Vec<u8> {
        let image = Image {
            version: self.version,
            next_topic_id: self.next_topic_id,
            next_producer_id: self.next_producer_id,
            nodes: self.nodes.values().cloned().collect(),
            topics: self.topics.values().map(|topic| Topic::clone(topic)).collect(),
            moves: self
                .moves
                .iter()
                .map(|(group, known)| (group.topic.0, group.partition, known.clone()))
                .collect(),
            settled: self
                .settled
                .iter()
                .map(|(group, known)| (group.topic.0, group.partition, known.clone()))
                .collect(),
            removed: self.removed.iter().map(|(node, disk)| (*node, *disk)).collect(),
            grown: self.grown.iter().map(|(group, since)| (group.topic.0, group.partition, *since)).collect(),
            expected: self.expected.iter().map(|(node, address)| (*node, address.clone())).collect(),
            feature_level: self.feature_level,
        };
        versioned(rkyv::to_bytes::<rancor::Error>(&image))
    }

    /// The catalogue of a snapshot. Nothing in the bytes is believed: every bound and every rule of a change is
    /// checked again.
    ///
    /// # Errors
    /// What is wrong with the bytes, or with what they say.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let image = match unversioned(bytes)? {
            (OLDEST, bytes) => {
                let old = rkyv::from_bytes::<Image3, rancor::Error>(&bytes).map_err(malformed)?;
                let Image3 { version, next_topic_id, next_producer_id, nodes, topics } = old;
                Image {
                    version,
                    next_topic_id,
                    next_producer_id,
                    nodes: nodes.into_iter().map(NodeInfo::from).collect(),
                    topics: topics.into_iter().map(Topic::from).collect(),
                    moves: Vec::new(),
                    settled: Vec::new(),
                    removed: Vec::new(),
                    grown: Vec::new(),
                    expected: Vec::new(),
                    feature_level: FIRST_LEVEL,
                }
            }
            (_, bytes) => rkyv::from_bytes::<Image, rancor::Error>(&bytes).map_err(malformed)?,
        };
        let Image { version, next_topic_id, next_producer_id, nodes, topics, moves, .. } = image;
        let (settled, removed, grown, expected) = (image.settled, image.removed, image.grown, image.expected);
        let mut catalog = Self::at_level(image.feature_level).map_err(DecodeError::Inconsistent)?;
        catalog
            .rebuild(version, next_topic_id, next_producer_id, nodes, topics)
            .map_err(DecodeError::Inconsistent)?;
        catalog.rebuild_grown(grown).map_err(DecodeError::Inconsistent)?;
        catalog.rebuild_moves(moves, settled).map_err(DecodeError::Inconsistent)?;
        catalog.rebuild_removed(removed).map_err(DecodeError::Inconsistent)?;
        catalog.rebuild_expected(expected).map_err(DecodeError::Inconsistent)?;
        Ok(catalog)
    }
}

fn malformed(error: rancor::Error) -> DecodeError {
    DecodeError::Malformed(error.to_string())
}

fn versioned(result: Result<AlignedVec, rancor::Error>) -> Vec<u8> {
    match result {
        Ok(bytes) => {
            let mut out = Vec::with_capacity(1 + bytes.len());
            out.push(VERSION);
            out.extend_from_slice(&bytes);
            out
        }
        // The serialiser only allocates; it has no other way to fail.
        Err(error) => unreachable!("serialising metadata: {error}"),
    }
}

/// The version, and what stands behind it, at an address that rkyv can read from.
fn unversioned(bytes: &[u8]) -> Result<(u8, AlignedVec), DecodeError> {
    match bytes.split_first() {
        None => Err(DecodeError::Empty),
        Some((&version @ OLDEST..=VERSION, rest)) => {
            let mut aligned = AlignedVec::with_capacity(rest.len());
            aligned.extend_from_slice(rest);
            Ok((version, aligned))
        }
        Some((&found, _)) => Err(DecodeError::UnknownVersion { found }),
    }
}
