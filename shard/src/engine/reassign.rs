//! Requests about partitions that move to other nodes.

use pyralog_core::{ErrorCode, GroupId};
use pyralog_net::message::{
    AddNodeRequest, ListReassignmentsReply, ListReassignmentsRequest, ReassignPartitionRequest, Reassignment,
    RemoveNodeRequest, Response,
};
use pyralog_replication::metadata::{Command, Replica};

use super::controller::{Client, Controller};
use super::{Action, ConnId, Engine, reply};

/// Partitions in one page.
const PAGE: usize = 1_000;

impl Engine {
    /// Has the replicas of a partition be on other nodes.
    pub(super) fn reassign_partition(
        &mut self,
        conn: ConnId,
        correlation_id: u64,
        request: &ReassignPartitionRequest<'_>,
        actions: &mut Vec<Action>,
    ) {
        let Some(newest) = self.newest_for(conn, correlation_id, actions) else { return };
        let Some(topic) = newest.topic_by_name(request.topic).map(|topic| topic.id) else {
            let detail = format!("no topic {:?}", request.topic);
            return self.refuse(conn, correlation_id, ErrorCode::UnknownTopicOrPartition, detail, actions);
        };
        let partition = request.partition;
        let group = GroupId::new(topic, partition);
        let to = match request.nodes.is_empty() {
            true if !newest.moves.contains_key(&group) => {
                let detail =
                    format!("partition {partition} of {:?} is not on its way anywhere", request.topic);
                return self.refuse(conn, correlation_id, ErrorCode::InvalidRequest, detail, actions);
            }
            true => newest.replicas(group).collect(),
            false => newest.slots_on(group, &request.nodes),
        };
        let command = Command::Reassign { topic, partition, to };
        self.admin(Client { conn, correlation_id, answer: Response::ReassignPartition }, command, actions);
    }

    /// Lets a node come.
    pub(super) fn add_node(
        &mut self,
        conn: ConnId,
        correlation_id: u64,
        request: AddNodeRequest<'_>,
        actions: &mut Vec<Action>,
    ) {
        if !self.takes_admin(conn, correlation_id, actions) {
            return;
        }
        let client = Client { conn, correlation_id, answer: Response::AddNode };
        let internal_address = request.internal_address.to_owned();
        self.admin(client, Command::AddNode { node: request.node, internal_address }, actions);
    }

    /// Removes a node that holds nothing.
    pub(super) fn remove_node(
        &mut self,
        conn: ConnId,
        correlation_id: u64,
        request: RemoveNodeRequest,
        actions: &mut Vec<Action>,
    ) {
        if !self.takes_admin(conn, correlation_id, actions) {
            return;
        }
        let client = Client { conn, correlation_id, answer: Response::RemoveNode };
        self.admin(client, Command::RemoveNode { node: request.node }, actions);
    }

    /// Tells which partitions are on their way.
    pub(super) fn list_reassignments(
        &mut self,
        conn: ConnId,
        correlation_id: u64,
        request: ListReassignmentsRequest,
        actions: &mut Vec<Action>,
    ) {
        if !self.takes_admin(conn, correlation_id, actions) {
            return;
        }
        let Some(catalog) = self.controller.as_ref().map(Controller::catalog) else { return };
        let nodes =
            |replicas: &mut dyn Iterator<Item = Replica>| replicas.map(|replica| replica.node).collect();
        let mut page = catalog.moves.range(request.from..);
        let reassignments = page.by_ref().take(PAGE).map(|(group, wanted)| Reassignment {
            group: *group,
            from: nodes(&mut catalog.replicas(*group)),
            to: nodes(&mut wanted.to.iter().copied()),
        });
        let reassignments = reassignments.collect();
        let answer = ListReassignmentsReply { reassignments, more: page.next().is_some() };
        reply(conn, correlation_id, Response::ListReassignments(answer), actions);
    }
}
