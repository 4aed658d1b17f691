//! Partitions that move to other nodes.

use pyralog_core::GroupId;

use super::api::{Client, Kind, metadata_reply, unknown_topic};
use super::error::ClientError;
use crate::message::{
    ListReassignmentsRequest, MetadataRequest, ReassignPartitionRequest, Reassignment, Request, Response,
    TopicMetadata,
};

impl Client {
    /// Has the replicas of a partition be on these nodes, the preferred leader first; none: they stay where they are, and a move
    /// that is under way is taken back. Returns when that is decided: [`Self::reassignments`] tells when it is done.
    ///
    /// # Errors
    /// `InvalidRequest` with the reason, where the nodes can't have it.
    pub fn reassign_partition(
        &mut self,
        topic: &str,
        partition: u32,
        nodes: &[u32],
    ) -> Result<(), ClientError> {
        let nodes = nodes.to_vec();
        let request = Request::ReassignPartition(ReassignPartitionRequest { topic, partition, nodes });
        self.call_controller(&request, Kind::Question, |received| match received.response {
            Response::ReassignPartition => Some(()),
            _ => None,
        })
    }

    /// The partitions on their way to other nodes, in their order, as the node knows it that decides.
    pub fn reassignments(&mut self) -> Result<Vec<Reassignment>, ClientError> {
        let mut found: Vec<Reassignment> = Vec::new();
        loop {
            let from = found.last().map_or(GroupId::METADATA, |last| {
                let GroupId { topic, partition } = last.group;
                partition
                    .checked_add(1)
                    .map_or(GroupId::new(topic.0.saturating_add(1), 0), |next| GroupId::new(topic.0, next))
            });
            let request = Request::ListReassignments(ListReassignmentsRequest { from });
            let page =
                self.call_controller(&request, Kind::Question, |received| match received.response {
                    Response::ListReassignments(page) => Some(page),
                    _ => None,
                })?;
            let more = page.more && !page.reassignments.is_empty();
            found.extend(page.reassignments);
            if !more {
                return Ok(found);
            }
        }
    }

    /// One topic as the node knows it that decides: what others know of it may be older.
    ///
    /// # Errors
    /// [`ErrorCode::UnknownTopicOrPartition`] when there is none of that name.
    pub fn topic_for_sure(&mut self, name: &str) -> Result<TopicMetadata, ClientError> {
        self.forget_topic(name);
        let request = Request::Metadata(MetadataRequest { topic: Some(name), start_after: 0 });
        let page = self.call_controller(&request, Kind::Question, metadata_reply)?;
        page.topics.into_iter().find(|topic| topic.name == name).ok_or_else(|| unknown_topic(name))
    }
}
