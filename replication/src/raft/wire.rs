//! Messages of the core as they go over the wire, and back.

use raft::eraftpb::{Message as CoreMessage, MessageType};

use super::group::{Incoming, RaftGroup};
use super::log::{EntryKind, Header, Position, core_entry, core_snapshot};
use super::message::{EntryHead, Message, MessageKind, message_kind};

/// What the core writes into votes of a hand-over.
const TRANSFER: &[u8] = b"CampaignTransfer";

impl RaftGroup {
    pub(super) fn core_message(&mut self, message: &Message, kind: MessageType) -> CoreMessage {
        let mut core = CoreMessage::default();
        core.set_msg_type(kind);
        core.from = u64::from(message.from);
        core.to = u64::from(message.to);
        core.term = u64::from(message.term);
        core.log_term = u64::from(message.log_term);
        core.index = message.index;
        core.commit = message.commit;
        core.commit_term = u64::from(message.commit_term);
        core.reject = message.reject;
        core.reject_hint = message.reject_hint;
        match message.kind {
            // A follower that lost its log knows less than the leader thinks.
            MessageKind::Heartbeat => core.commit = message.commit.min(self.last_index()),
            MessageKind::Snapshot => {
                let start = Position { index: message.index, term: message.log_term, offset: message.offset };
                let base = self.newer_of(message.configurations.first());
                let mut members = base.conf_state();
                let own = u64::from(self.id);
                let lists = [&members.voters, &members.voters_outgoing, &members.learners];
                if !lists.iter().any(|list| list.contains(&own)) {
                    // It joins by an entry behind this place. Until that is in force it is there for the core alone, which takes no
                    // snapshot otherwise.
                    members.learners.push(own);
                }
                core.set_snapshot(core_snapshot(start, members));
                let base_offset = message.offset;
                let head = EntryHead { term: 0, kind: 0, base_offset, next_offset: base_offset, bytes: 0 };
                self.incoming = Incoming { first: 0, entries: vec![head], configurations: vec![base] };
            }
            _ => {}
        }
        if message.read != 0 {
            core.context = message.read.to_le_bytes().to_vec().into();
        }
        if message.transfer {
            core.context = TRANSFER.to_vec().into();
        }
        let entries = message.entries.iter().zip(message.index + 1..);
        let entries = entries.map(|(head, index)| {
            let header = Header {
                term: head.term,
                kind: EntryKind::Batch,
                base_offset: head.base_offset,
                next_offset: head.next_offset,
                bytes: head.bytes,
            };
            core_entry(index, &header)
        });
        core.set_entries(entries.collect::<Vec<_>>().into());
        core
    }

    /// A message of the core as it goes over the wire; `None` for what stays inside.
    pub(super) fn wire_message(&mut self, core: &CoreMessage) -> Option<Message> {
        let kind = message_kind(core.get_msg_type())?;
        let leads = matches!(kind, MessageKind::Append | MessageKind::Heartbeat | MessageKind::Snapshot);
        if leads && (!self.is_leader() || core.term != self.raw.raft.term) {
            // It stopped leading before it came to send this, and may not hold the entries any more.
            return None;
        }
        let mut message = Message::new(
            kind,
            self.group,
            self.id,
            u32::try_from(core.to).ok()?,
            u32::try_from(core.term).ok()?,
        );
        message.log_term = u32::try_from(core.log_term).ok()?;
        message.index = core.index;
        message.commit = core.commit;
        message.commit_term = u32::try_from(core.commit_term).ok()?;
        message.reject = core.reject;
        message.reject_hint = core.reject_hint;
        message.transfer = core.context.as_ref() == TRANSFER;
        if let Ok(read) = <[u8; 8]>::try_from(core.context.as_ref()) {
            message.read = u64::from_le_bytes(read);
        }
        if kind == MessageKind::Snapshot {
            let metadata = core.get_snapshot().get_metadata();
            let start = self.position(metadata.index)?;
            let now_us = self.now_us;
            match self.snapshots.iter_mut().find(|(known, _)| *known == message.to) {
                Some((_, sent_us)) => *sent_us = now_us,
                None => self.snapshots.push((message.to, now_us)),
            }
            (message.index, message.log_term, message.offset) = (start.index, start.term, start.offset);
            message.configurations = vec![self.base_configuration().clone()];
        }
        message.entries = (core.index + 1..)
            .zip(core.get_entries())
            .map_while(|(index, _)| self.header(index).map(EntryHead::of))
            .collect();
        let entries = message.index + 1..=message.index + message.entries.len() as u64;
        if kind == MessageKind::Append {
            message.configurations = self.raw.store().configurations(entries).cloned().collect();
        }
        Some(message)
    }
}
