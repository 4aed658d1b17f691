//! Requests that change a topic.

use pyralog_core::ErrorCode;
use pyralog_net::message::{AlterTopicRequest, Response};
use pyralog_replication::metadata::{Catalog, Command};
use pyralog_replication::placement::place;

use super::controller::Client;
use super::{Action, ConnId, Engine};

impl Engine {
    /// Changes the settings of a topic, or adds partitions.
    pub(super) fn alter_topic(
        &mut self,
        conn: ConnId,
        correlation_id: u64,
        request: &AlterTopicRequest<'_>,
        actions: &mut Vec<Action>,
    ) {
        let Some(newest) = self.newest_for(conn, correlation_id, actions) else { return };
        match altering(newest, request) {
            Ok(command) => {
                let client = Client { conn, correlation_id, answer: Response::AlterTopic };
                self.admin(client, command, actions);
            }
            Err((code, detail)) => self.refuse(conn, correlation_id, code, detail, actions),
        }
    }
}

/// The command that makes of a topic what is asked for.
fn altering(newest: &Catalog, request: &AlterTopicRequest<'_>) -> Result<Command, (ErrorCode, String)> {
    let name = request.name;
    let topic = newest.topic_by_name(name);
    let topic = topic.ok_or_else(|| (ErrorCode::UnknownTopicOrPartition, format!("no topic {name:?}")))?;
    let (spec, there) = (&topic.spec, topic.partitions());
    let invalid = |text: String| (ErrorCode::InvalidRequest, text);
    let or = |wanted: u8, known: u8| if wanted == 0 { known } else { wanted };
    let copies = or(request.quorums.replication_factor, spec.replication_factor);
    let added = match request.partitions {
        0 => 0,
        wanted => wanted.checked_sub(there).ok_or_else(|| {
            invalid(format!("topic {name:?} has {there} partitions, and none can be taken away"))
        })?,
    };
    let added = match added {
        0 => Vec::new(),
        added => {
            let placed = place(newest, added, copies);
            let placed = placed.map_err(|error| (ErrorCode::InvalidTopic, error.to_string()))?;
            (0..added).map(|partition| placed.replicas(partition).collect()).collect()
        }
    };
    let retention = |wanted: i64, known: i64| match wanted {
        AlterTopicRequest::AS_IT_IS => known,
        wanted => wanted,
    };
    Ok(Command::AlterTopic {
        topic: topic.id,
        replication_factor: copies,
        quorums: (
            or(request.quorums.write_quorum, spec.write_quorum),
            or(request.quorums.read_quorum, spec.read_quorum),
            or(request.quorums.min_insync_replicas, spec.min_insync_replicas),
        ),
        retention_bytes: retention(request.retention_bytes, spec.retention_bytes),
        retention_ms: retention(request.retention_ms, spec.retention_ms),
        added,
    })
}
