//! A replica that goes on alone by decree, because the others are lost for good: the last resort of an operator
//! (`docs/replication.md`, "A quorum that is gone for good").
//!
//! The catalogue says so with a configuration of a version that no group comes to by itself, and a term that none of the lost ones has led in.
//! The replica begins its log anew with that, and with every entry that it holds, which are committed then. What its entries
//! say of the replicas is void.

use std::sync::Arc;

use pyralog_core::{ErrorCode, GroupId};
use pyralog_net::message::{RecoverPartitionRequest, Response};
use pyralog_replication::metadata::{Catalog, Command};
use pyralog_replication::raft::{HardState, MAX_TERM, RecoveredLog, Standing};

use super::api::{ConnId, LogLevel};
use super::controller::Client;
use super::partition::Told;
use super::replica::{RaftReplica, Replica, Unplaced};
use super::{Action, Engine};

/// So many terms are left out: nobody who was lost has led in the next one.
const TERMS: u32 = 1 << 16;

/// What entries before a forced configuration say of the replicas is void.
pub(super) fn override_older(log: &mut RecoveredLog) {
    if !log.configuration.is_forced() {
        return;
    }
    for (_, said) in &mut log.configurations {
        if said.version() < log.configuration.version() {
            *said = log.configuration.clone();
        }
    }
}

impl Engine {
    /// Has one replica of a partition go on alone.
    pub(super) fn recover_partition(
        &mut self,
        conn: ConnId,
        correlation_id: u64,
        request: RecoverPartitionRequest<'_>,
        actions: &mut Vec<Action>,
    ) {
        let down = self.replication.links.down_nodes(self.now.monotonic_us);
        let Some(newest) = self.newest_for(conn, correlation_id, actions) else { return };
        let Some(topic) = newest.topic_by_name(request.topic).map(|topic| topic.id) else {
            let detail = format!("no topic {:?}", request.topic);
            return self.refuse(conn, correlation_id, ErrorCode::UnknownTopicOrPartition, detail, actions);
        };
        let (partition, node) = (request.partition, request.node);
        let group = GroupId::new(topic, partition);
        let replicas: Vec<u32> = newest.replicas(group).map(|replica| replica.node).collect();
        let up = replicas.iter().filter(|other| !down.contains(other)).count();
        if up > replicas.len() / 2 {
            let detail = format!(
                "{up} of the {} nodes that have partition {partition} of {:?} are there, or were a few seconds ago: they are enough to \
                 go on without losing anything",
                replicas.len(),
                request.topic
            );
            return self.refuse(conn, correlation_id, ErrorCode::InvalidRequest, detail, actions);
        }
        let Some(to) = newest.replicas(group).find(|replica| replica.node == node) else {
            let detail =
                format!("node {node} has no replica of partition {partition} of {:?}", request.topic);
            return self.refuse(conn, correlation_id, ErrorCode::InvalidRequest, detail, actions);
        };
        let (_, (settled, _)) = newest.begins_with(group);
        let term = request.epoch.max(settled).saturating_add(TERMS).min(MAX_TERM);
        let text = format!(
            "partition {group} is to go on with what node {node} has of it, for a client: what only the others had is lost"
        );
        actions.push(Action::Log { level: LogLevel::Warn, text });
        let client = Client { conn, correlation_id, answer: Response::RecoverPartition };
        self.admin(client, Command::Force { topic, partition, to, term }, actions);
    }

    /// Whether the catalogue has this replica go on alone, and it does not know that yet.
    pub(super) fn is_forced(&self, catalog: &Catalog, index: u32) -> bool {
        let Some(partition) = self.at(index) else { return false };
        let Some(settled) = catalog.settled.get(&partition.group) else { return false };
        let said = &settled.configuration;
        let known = match &partition.replica {
            Replica::Single(_) => return false,
            Replica::Unplaced(unplaced) => unplaced.newest_configuration().version(),
            Replica::Raft(replica) => replica.newest_configuration().version(),
        };
        // A later change has been decided by the voters: it comes as an entry.
        said.is_forced() && said.is_voter(self.config.node.0) && known < said.version()
    }

    /// When nothing of the replica is on its way to the journal: goes on alone, if that is wanted.
    pub(super) fn settle_forced(&mut self, index: u32, actions: &mut Vec<Action>) {
        let Some(catalog) = self.catalog.clone() else { return };
        if !self.is_forced(&catalog, index) {
            return;
        }
        let Some(replica) = self.raft_mut(index) else { return };
        if !replica.laid.is_empty() || replica.queued {
            return;
        }
        if replica.catch_up.is_some() {
            self.end_catch_up(index, Some("its leader is lost for good".into()), actions);
            return self.queue_group(index);
        }
        self.force(&catalog, index, actions);
        if let Some(group) = self.at(index).map(|partition| partition.group) {
            self.replication.place_due.insert(group);
        }
    }

    /// Begins anew with what is here.
    pub(super) fn force(&mut self, catalog: &Arc<Catalog>, index: u32, actions: &mut Vec<Action>) {
        let Some(group) = self.at(index).map(|partition| partition.group) else { return };
        let (configuration, made_after) = catalog.begins_with(group);
        let Some(mut partition) = self.partitions.get_mut(index as usize).and_then(Option::take) else {
            return;
        };
        self.fail_group(&mut partition.replica, false, actions);
        let mut unplaced = match std::mem::replace(&mut partition.replica, Replica::Unplaced(Box::default()))
        {
            Replica::Raft(replica) => replica.put_aside(),
            Replica::Unplaced(unplaced) => *unplaced,
            Replica::Single(_) => Unplaced::default(),
        };
        if partition.end_unknown {
            // What is behind the damage nobody can say: the segments are what there is.
            unplaced.forget();
            let start = unplaced.log.start;
            let cut = partition.cut_entries(start.index + 1);
            self.cached_batches -= cut.batches;
            self.producer_count -= cut.producers;
            self.flush.note_cut(cut.bytes);
            partition.log_end = partition.log_end.min(start.offset.max(partition.flushed_to));
            partition.end_unknown = false;
        }
        (unplaced.log.configuration, unplaced.log.made_after) = (configuration, made_after);
        override_older(&mut unplaced.log);
        let (before, end) = (partition.log_end, unplaced.end());
        let node = self.config.node;
        partition.replica = Replica::Unplaced(Box::new(unplaced));
        (partition.standing, partition.told, partition.asking) = (Standing::Member, Told::No, None);
        if let Some(slot) = self.partitions.get_mut(index as usize) {
            *slot = Some(partition);
        }
        self.recount_uncommitted(index);
        self.flush.want_checkpoint();
        let text = format!(
            "partition {group} goes on with node {node} alone, as it was told to: entry {} of epoch {} is its last, offset {before} its end. \
             What only the others had is lost",
            end.index, end.term
        );
        actions.push(Action::Log { level: LogLevel::Warn, text });
    }
}

impl RaftReplica {
    /// As a disk has it that lost nothing.
    fn put_aside(&self) -> Unplaced {
        let raft = &self.raft;
        let start = raft.start();
        let entries = start.index + 1..=raft.last_index();
        let configurations =
            entries.clone().filter_map(|index| Some((index, raft.configuration_at(index)?.clone())));
        let log = RecoveredLog {
            hard: HardState { term: raft.term(), vote: raft.vote(), commit: raft.commit() },
            start,
            headers: entries.clone().filter_map(|index| raft.header(index).copied()).collect(),
            configuration: raft.configuration_behind(start.index).clone(),
            configurations: configurations.collect(),
            made_after: raft.made_after(),
        };
        let newest = raft.position(raft.last_index()).map_or((0, 0), |last| (last.term, last.index));
        Unplaced { log, lsns: self.lsns.clone(), newest }
    }
}
