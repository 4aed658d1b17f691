//! What a message must not hold: it is refused before the core sees it.

use super::group::{MAX_INDEX, MAX_TERM, RaftGroup, Refused};
use super::log::EntryKind;
use super::message::{Message, MessageKind};

impl RaftGroup {
    /// What the core would panic on, and what would break the log.
    pub(super) fn check(&self, message: &Message) -> Result<(), Refused> {
        let start = self.start();
        let last = self.last_index();
        // To the core a message without a term is one of its own replica's.
        if message.term == 0 || message.term > MAX_TERM {
            return Err(Refused::Impossible("a message of no term, or of one beyond all terms"));
        }
        if message.index.max(message.commit).max(message.reject_hint) > MAX_INDEX {
            return Err(Refused::Impossible("an index beyond all indexes"));
        }
        check_configurations(message)?;
        match message.kind {
            MessageKind::Append => {
                if message.index > 0 && message.log_term == 0 {
                    return Err(Refused::Impossible("an append behind an entry of no term"));
                }
                // One that was deposed and has not heard of it may have anything in its log; the core tells it.
                let of_now = message.term >= self.term();
                if of_now && message.index >= self.commit() && message.log_term < start.term {
                    return Err(Refused::Impossible("an append that reaches below the committed term"));
                }
                self.check_entries(message)
            }
            MessageKind::AppendResponse if !message.reject && message.index > last => {
                match self.is_leader() && message.term == self.term() {
                    true => Err(Refused::Impossible("a follower that holds more than its leader")),
                    false => Ok(()),
                }
            }
            // The core takes term 0 for that of each entry it does not hold.
            MessageKind::Snapshot if message.index == 0 || message.log_term == 0 || message.offset < 0 => {
                Err(Refused::Impossible("a snapshot of nothing"))
            }
            _ => Ok(()),
        }
    }

    fn check_entries(&self, message: &Message) -> Result<(), Refused> {
        let (mut term, mut offset) = (message.log_term, None);
        if let Some(before) = self.position(message.index)
            && before.term == message.log_term
        {
            offset = Some(before.offset);
        }
        for entry in &message.entries {
            let kind = EntryKind::from_number(entry.kind);
            let records = entry.next_offset.checked_sub(entry.base_offset);
            let fits = match kind {
                Some(EntryKind::Batch) => entry.bytes > 0 && records.is_some_and(|records| records > 0),
                Some(EntryKind::NewTerm | EntryKind::Configuration) => entry.bytes == 0 && records == Some(0),
                None => false,
            };
            if !fits || entry.base_offset < 0 {
                return Err(Refused::Impossible("an entry whose parts contradict each other"));
            }
            if entry.term < term || entry.term > message.term {
                return Err(Refused::Impossible("entries whose terms go back"));
            }
            if offset.is_some_and(|offset| offset != entry.base_offset) {
                return Err(Refused::Impossible("entries with a gap in their offsets"));
            }
            term = entry.term;
            offset = Some(entry.next_offset);
        }
        Ok(())
    }
}

/// As many configurations as there are entries that are one; one in a snapshot.
fn check_configurations(message: &Message) -> Result<(), Refused> {
    let expected = match message.kind {
        MessageKind::Append => message.configurations_among(message.entries.len()),
        MessageKind::Snapshot => 1,
        _ => 0,
    };
    if message.configurations.len() != expected {
        return Err(Refused::Impossible("as many configurations as the entries do not have"));
    }
    message.configurations.iter().try_for_each(|said| said.check().map_err(Refused::Impossible))
}
