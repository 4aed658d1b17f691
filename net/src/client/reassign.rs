//! Partitions that move to other nodes.

use pyralog_core::GroupId;

use super::api::{Client, Kind, NodeInfo, all_pages, metadata_reply, unknown_topic};
use super::error::ClientError;
use crate::message::{
    AddNodeRequest, DescribePartitionsRequest, ListReassignmentsReply, ListReassignmentsRequest,
    MetadataRequest, ReassignPartitionRequest, Reassignment, RecoverPartitionRequest, RemoveNodeRequest,
    ReplicaRole, Request, Response, TopicMetadata,
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

    /// Lets a node come that the settings of the others do not name: they find it at this address. Returns when that is decided;
    /// the node joins when it is started.
    ///
    /// # Errors
    /// `InvalidRequest` when it is there, or another one is at that address.
    pub fn add_node(&mut self, node: u32, internal_address: &str) -> Result<(), ClientError> {
        let request = Request::AddNode(AddNodeRequest { node, internal_address });
        self.call_controller(&request, Kind::Question, |received| match received.response {
            Response::AddNode => Some(()),
            _ => None,
        })
    }

    /// Has one replica of a partition go on alone, whose others are lost for good. Returns when that is decided; the replica leads when
    /// its node has heard of it. `epoch` is the highest that any replica knows which can be asked.
    ///
    /// # Errors
    /// `InvalidRequest` when the node has no replica, or enough others answer.
    pub fn recover_partition(
        &mut self,
        topic: &str,
        partition: u32,
        node: u32,
        epoch: u32,
    ) -> Result<(), ClientError> {
        let request = Request::RecoverPartition(RecoverPartitionRequest { topic, partition, node, epoch });
        self.call_controller(&request, Kind::Change, |received| match received.response {
            Response::RecoverPartition => Some(()),
            _ => None,
        })
    }

    /// Removes a node for good that holds nothing. Returns when that is decided; it leaves the metadata after that.
    ///
    /// # Errors
    /// `InvalidRequest` while it holds a replica or one is on its way to it.
    pub fn remove_node(&mut self, node: u32) -> Result<(), ClientError> {
        let request = Request::RemoveNode(RemoveNodeRequest { node });
        self.call_controller(&request, Kind::Question, |received| match received.response {
            Response::RemoveNode => Some(()),
            _ => None,
        })
    }

    /// The nodes that hold the metadata, in their order, as the one tells that leads it.
    pub fn metadata_holders(&mut self) -> Result<Vec<u32>, ClientError> {
        self.find_controller()?;
        let request = Request::DescribePartitions(DescribePartitionsRequest { topic: 0, first: 0, count: 1 });
        let states = self.call_controller(&request, Kind::Question, |received| match received.response {
            Response::DescribePartitions(states) => Some(states),
            _ => None,
        })?;
        let voters = states.iter().flat_map(|state| state.replicas.iter());
        Ok(voters.filter(|replica| replica.role == ReplicaRole::Voter).map(|replica| replica.node).collect())
    }

    /// The partitions on their way to other nodes, in their order.
    pub fn reassignments(&mut self) -> Result<Vec<Reassignment>, ClientError> {
        let mut found: Vec<Reassignment> = Vec::new();
        loop {
            let from = found.last().map_or(GroupId::METADATA, |last| {
                let GroupId { topic, partition } = last.group;
                partition
                    .checked_add(1)
                    .map_or(GroupId::new(topic.0.saturating_add(1), 0), |next| GroupId::new(topic.0, next))
            });
            let page = self.reassignments_from(from)?;
            let more = page.more && !page.reassignments.is_empty();
            found.extend(page.reassignments);
            if !more {
                return Ok(found);
            }
        }
    }

    fn reassignments_from(&mut self, from: GroupId) -> Result<ListReassignmentsReply, ClientError> {
        let request = Request::ListReassignments(ListReassignmentsRequest { from });
        self.call_controller(&request, Kind::Question, |received| match received.response {
            Response::ListReassignments(page) => Some(page),
            _ => None,
        })
    }

    /// Has what is asked of the controller next reach it: nobody else answers this, while every node describes the cluster.
    fn find_controller(&mut self) -> Result<(), ClientError> {
        self.reassignments_from(GroupId::new(u32::MAX, u32::MAX)).map(|_| ())
    }

    /// The nodes and all topics as the node knows them that decides: what others know may be older.
    pub fn metadata_for_sure(&mut self) -> Result<(NodeInfo, Vec<TopicMetadata>), ClientError> {
        all_pages(|start_after| {
            self.find_controller()?;
            let request = Request::Metadata(MetadataRequest { topic: None, start_after });
            let page = self.call_controller(&request, Kind::Question, metadata_reply)?;
            // Who was asked first may have been the one that decides: nothing else has told of the nodes then.
            self.learn(&page);
            Ok(page)
        })
    }

    /// One topic as the node knows it that decides: what others know of it may be older.
    ///
    /// # Errors
    /// [`ErrorCode::UnknownTopicOrPartition`] when there is none of that name.
    pub fn topic_for_sure(&mut self, name: &str) -> Result<TopicMetadata, ClientError> {
        self.forget_topic(name);
        self.find_controller()?;
        let request = Request::Metadata(MetadataRequest { topic: Some(name), start_after: 0 });
        let page = self.call_controller(&request, Kind::Question, metadata_reply)?;
        page.topics.into_iter().find(|topic| topic.name == name).ok_or_else(|| unknown_topic(name))
    }
}
