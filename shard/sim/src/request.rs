//! Requests and replies as the simulated network holds them: owned, until a shard borrows them.

use std::rc::Rc;

use pyralog_core::{ErrorCode, GroupId, Quorums};
use pyralog_net::message::{
    Acks, AlterTopicRequest, CreateTopicRequest, DeleteTopicRequest, DescribePartitionsRequest,
    FetchReplyHead, FetchRequest, ListOffsetsRequest, MetadataRequest, OffsetSpec, ProduceRequest,
    ReassignPartitionRequest, Request, Response, ScrubRequest,
};
use pyralog_shard::engine::ReplyBody;
use pyralog_shard::memory::ChunkSlice;

/// A request on its way.
#[derive(Clone, Debug)]
pub(crate) enum Owned {
    Produce { group: GroupId, acks: Acks, timeout_ms: u32, batch: Rc<[u8]> },
    Fetch(FetchRequest),
    ListOffsets(ListOffsetsRequest),
    Metadata { start_after: u32 },
    InitProducerId,
    CreateTopic { name: String, partitions: u32, quorums: Quorums, retention_bytes: i64, retention_ms: i64 },
    DeleteTopic { name: String },
    Reassign { topic: String, partition: u32, nodes: Vec<u32> },
    Resize { topic: String, copies: u8 },
    Describe(DescribePartitionsRequest),
    Scrub { start: bool },
    Ping,
}

impl Owned {
    pub(crate) fn is_produce(&self) -> bool {
        matches!(self, Self::Produce { .. })
    }

    pub(crate) fn borrow(&self) -> Request<'_> {
        match self {
            Self::Produce { group, acks, timeout_ms, batch } => Request::Produce(ProduceRequest {
                group: *group,
                acks: *acks,
                timeout_ms: *timeout_ms,
                batch,
            }),
            Self::Fetch(fetch) => Request::Fetch(*fetch),
            Self::ListOffsets(list) => Request::ListOffsets(*list),
            Self::Metadata { start_after } => {
                Request::Metadata(MetadataRequest { topic: None, start_after: *start_after })
            }
            Self::InitProducerId => Request::InitProducerId,
            Self::CreateTopic { name, partitions, quorums, retention_bytes, retention_ms } => {
                Request::CreateTopic(CreateTopicRequest {
                    name,
                    partitions: *partitions,
                    quorums: *quorums,
                    retention_bytes: *retention_bytes,
                    retention_ms: *retention_ms,
                })
            }
            Self::DeleteTopic { name } => Request::DeleteTopic(DeleteTopicRequest { name }),
            Self::Reassign { topic, partition, nodes } => {
                Request::ReassignPartition(ReassignPartitionRequest {
                    topic,
                    partition: *partition,
                    nodes: nodes.clone(),
                })
            }
            Self::Resize { topic, copies } => Request::AlterTopic(AlterTopicRequest {
                name: topic,
                partitions: 0,
                quorums: Quorums::of(*copies),
                retention_bytes: AlterTopicRequest::AS_IT_IS,
                retention_ms: AlterTopicRequest::AS_IT_IS,
            }),
            Self::Describe(describe) => Request::DescribePartitions(*describe),
            Self::Scrub { start } => Request::Scrub(ScrubRequest { start: *start }),
            Self::Ping => Request::Ping,
        }
    }

    /// The partition that it is about.
    pub(crate) fn group(&self) -> Option<GroupId> {
        match self {
            Self::Produce { group, .. } => Some(*group),
            Self::Fetch(fetch) => Some(fetch.group),
            Self::ListOffsets(list) => Some(list.group),
            _ => None,
        }
    }

    pub(crate) fn offset_spec(&self) -> Option<OffsetSpec> {
        match self {
            Self::ListOffsets(list) => Some(list.spec),
            _ => None,
        }
    }

    pub(crate) fn fetch_offset(&self) -> Option<i64> {
        match self {
            Self::Fetch(fetch) => Some(fetch.offset),
            _ => None,
        }
    }

    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Produce { group, acks, batch, .. } => {
                format!("produce {group} {acks:?} {} bytes", batch.len())
            }
            Self::Fetch(fetch) => {
                format!("fetch {} at {} wait {} ms", fetch.group, fetch.offset, fetch.max_wait_ms)
            }
            Self::ListOffsets(list) => format!("list {} {:?}", list.group, list.spec),
            other => format!("{other:?}"),
        }
    }
}

/// A reply on its way. A fetch's slices stay alive until a slow reader has taken them.
#[derive(Debug)]
pub(crate) enum Reply {
    Message(Response),
    Fetch { head: FetchReplyHead, slices: Vec<ChunkSlice> },
}

impl Reply {
    pub(crate) fn from_body(body: ReplyBody) -> Self {
        match body {
            ReplyBody::Message(message) => Self::Message(message),
            ReplyBody::Fetch { head, slices } => Self::Fetch { head, slices: slices.into_iter().collect() },
        }
    }

    pub(crate) fn error(&self) -> Option<ErrorCode> {
        match self {
            Self::Message(Response::Error(error)) => Some(error.code),
            _ => None,
        }
    }

    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Message(message) => format!("{message:?}"),
            Self::Fetch { head, .. } => format!("{head:?}"),
        }
    }
}
