//! Commands that are not a client's: a node registers itself, a leader tells that its group has moved. They go to the metadata's leader,
//! from the shard that holds the metadata here, and are sent again until the catalogue holds them.

use std::collections::BTreeSet;

use pyralog_core::batch::BatchView;
use pyralog_core::{ErrorCode, GroupId, NodeId};
use pyralog_replication::metadata::{Command, NodeInfo};
use pyralog_replication::raft::{Message, MessageKind};

use crate::memory::ChunkSlice;

use super::api::{LogLevel, PeerId};
use super::controller::{Controller, build_command, commands};
use super::{Action, Engine};

/// How often a node that is not registered asks to be, microseconds.
pub(super) const REGISTER_EVERY_US: u64 = 500_000;

impl Engine {
    /// Registers this node as it is now, unless the catalogue knows it so. Replicas are placed on registered nodes.
    pub(super) fn register_node(&mut self) -> Result<(), (ErrorCode, String)> {
        let Some(command) = self.registration() else { return Ok(()) };
        self.append_command(command, None)
    }

    /// What registers this node, unless the catalogue knows it as it is now.
    pub(super) fn registration(&self) -> Option<Command> {
        let newest = self.controller.as_ref().map(Controller::newest)?;
        let known = newest.nodes.get(&self.config.node.0);
        // Not all understand it before.
        let rack = Some(&self.config.rack).filter(|_| Self::may_change_replicas(newest));
        let node = NodeInfo {
            id: self.config.node.0,
            client_address: self.config.advertised_address.clone(),
            internal_address: self.config.internal_address.clone(),
            rack: rack.cloned().unwrap_or_default(),
            shards: self.config.shards,
            disk: self.config.disk_id,
            level_min: self.config.feature_levels.min,
            level_max: self.config.feature_levels.max,
            disk_since: known.map_or(0, |known| known.disk_since),
        };
        (known != Some(&node)).then_some(Command::RegisterNode(node))
    }

    /// Asks whoever leads the metadata group to register this node, as long as it is not.
    pub(super) fn keep_registered(&mut self, actions: &mut Vec<Action>) {
        let Some(command) = self.registration() else {
            self.register_due_us = None;
            return self.raise_feature_level();
        };
        self.register_due_us = Some(self.now.monotonic_us + REGISTER_EVERY_US);
        if let Err((code, detail)) = self.relay(command) {
            let text = format!("this node is not registered: {detail}; {code}");
            actions.push(Action::Log { level: LogLevel::Warn, text });
        }
    }

    /// Has the node's shard that holds the metadata see to it that a command gets into the catalogue. It may be lost: whoever
    /// wants it asks again.
    pub(super) fn tell_controller(&mut self, command: Command, actions: &mut Vec<Action>) {
        match self.controller.is_some() {
            true => self.controller_told(command),
            false => actions.push(Action::TellController { command: Box::new(command) }),
        }
    }

    /// Another shard of this node wants a command in the catalogue.
    pub(super) fn controller_told(&mut self, command: Command) {
        // It is told again.
        let _ = self.relay(command);
    }

    /// Appends a command if this shard leads the metadata, or sends it to who does.
    ///
    /// # Errors
    /// It can't be put into a batch. What passes is no error: it is tried again then.
    fn relay(&mut self, command: Command) -> Result<(), (ErrorCode, String)> {
        let timestamp = self.now.wall_ms;
        let Some(replica) = self.raft_of(GroupId::METADATA) else { return Ok(()) };
        if replica.raft.is_leader() {
            let _ = self.append_command(command, None);
            return Ok(());
        }
        let leader = replica.raft.leader().and_then(|node| replica.member(node));
        let term = replica.raft.term();
        // A node that is new hears of no leader before that knows it: one of all others is.
        let to: Vec<PeerId> = match leader {
            Some(leader) => vec![leader],
            None => {
                let named = self.config.metadata_replicas.iter().copied().chain(replica.voters());
                named.filter(|peer| self.is_linked(*peer)).collect::<BTreeSet<_>>().into_iter().collect()
            }
        };
        let Some(controller) = self.controller.as_mut() else { return Ok(()) };
        let bytes = build_command(&mut controller.builder, timestamp, &command)?;
        for peer in to {
            self.send_command(peer, term, &bytes);
        }
        Ok(())
    }

    /// Sends a command to the leader of the metadata group.
    fn send_command(&mut self, to: PeerId, term: u32, batch: &[u8]) {
        let Some(chunk) = self.misc_pool.chunk(batch.len()) else { return };
        chunk.append(batch);
        let node = self.config.node.0;
        let mut message = Message::new(MessageKind::Command, GroupId::METADATA, node, to.node.0, term);
        message.entries = super::catch_up::heads(batch).collect();
        let batches = [ChunkSlice::new(chunk, 0, batch.len())].into_iter().collect();
        self.replication.outbox.add(to, message, batches);
    }

    /// Whether a node is registered as it wants to be, and has not heard of that yet.
    fn is_in_catalog(&self, command: &Command) -> bool {
        let newest = self.controller.as_ref().map(Controller::newest);
        let Some((newest, Command::RegisterNode(node))) = newest.zip(Some(command)) else { return false };
        let known = newest.nodes.get(&node.id);
        known.is_some_and(|known| *known == NodeInfo { disk_since: known.disk_since, ..node.clone() })
    }

    /// Another node sent a command: nodes register themselves, and tell which of their groups have moved.
    pub(super) fn command_came(&mut self, from: NodeId, batch: &[u8]) -> Result<(), String> {
        let batch = BatchView::parse_exact(batch).map_err(|error| error.to_string())?;
        for (_, command) in commands(&batch)? {
            let own = match &command {
                Command::RegisterNode(node) => node.id == from.0,
                Command::Reassigned { configuration, .. } => configuration.is_voter(from.0),
                _ => false,
            };
            if !own {
                return Err("a command that is not the sender's to give".into());
            }
            if self.is_in_catalog(&command) {
                continue;
            }
            // It asks again when this one can't take it now.
            let _ = self.append_command(command, None);
        }
        Ok(())
    }
}
