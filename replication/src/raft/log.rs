//! What the core reads of the log: headers in memory. Nothing in it ever waits for a disk.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;

use raft::eraftpb::{ConfState, Entry, HardState as CoreHardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use super::configuration::Configuration;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryKind {
    /// A record batch.
    Batch = 0,
    /// The first entry of a leader: no records, no offset.
    NewTerm = 1,
    /// Who the replicas are from here on: no records, no offset.
    Configuration = 2,
}

impl EntryKind {
    /// The kind with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Batch),
            1 => Some(Self::NewTerm),
            2 => Some(Self::Configuration),
            _ => None,
        }
    }
}

/// One entry, without its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Term in which a leader made it.
    pub term: u32,
    /// What it is.
    pub kind: EntryKind,
    /// Offset of its first record; for an entry without records, the log's end before it.
    pub base_offset: i64,
    /// Offset after its last record.
    pub next_offset: i64,
    /// Bytes of its batch.
    pub bytes: u32,
}

/// A place between two entries: behind the entry `index`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Index of the entry before; 0 = before the first.
    pub index: u64,
    /// Its term; 0 for index 0.
    pub term: u32,
    /// Offset of the next record.
    pub offset: i64,
}

/// What must be durable before a message that depends on it leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// Current term.
    pub term: u32,
    /// Node voted for in this term; 0 = none.
    pub vote: u32,
    /// Highest entry known committed: a hint that saves work after a restart, never needed for safety.
    pub commit: u64,
}

/// A group's log as its disk had it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveredLog {
    /// Newest durable term and vote.
    pub hard: HardState,
    /// Where the entries begin: everything before is committed and in segments.
    pub start: Position,
    /// The entries from there on.
    pub headers: Vec<Header>,
    /// Who the replicas are at the start.
    pub configuration: Configuration,
    /// What the entries of kind [`EntryKind::Configuration`] say, with their indexes, ascending.
    pub configurations: Vec<(u64, Configuration)>,
    /// Term and index of an entry that was committed before this replica was made: it votes for nobody who lacks that, and
    /// follows no leader of an older term. A predecessor of the same name, whose promises it does not know, may have helped to
    /// commit it.
    pub made_after: (u32, u64),
}

/// The entries from `start` on, the not yet durable ones included.
#[derive(Debug)]
pub(super) struct HeaderLog {
    start: Position,
    headers: VecDeque<Header>,
    /// So many of the newest ones the core has not been told of yet.
    untold: usize,
    hard: HardState,
    /// The configuration at the start.
    base: Configuration,
    /// Those of the entries, by index.
    configurations: BTreeMap<u64, Configuration>,
    /// The one in force: of what is applied.
    applied: Configuration,
}

impl HeaderLog {
    pub(super) fn new(recovered: RecoveredLog) -> Self {
        let last = recovered.start.index + recovered.headers.len() as u64;
        // A change is proposed when the one before it is committed and in force: whoever holds the one knows the other.
        let known = recovered.configurations.iter().rev().nth(1).map_or(0, |(index, _)| *index);
        // A commit that the entries do not reach, or that lies before them, is stale: it is only a hint.
        let commit = recovered.hard.commit.max(known).clamp(recovered.start.index, last);
        let hard = HardState { commit, ..recovered.hard };
        Self {
            start: recovered.start,
            headers: recovered.headers.into(),
            untold: 0,
            hard,
            applied: recovered.configuration.clone(),
            base: recovered.configuration,
            configurations: recovered.configurations.into_iter().collect(),
        }
    }

    pub(super) fn start(&self) -> Position {
        self.start
    }

    pub(super) fn last(&self) -> u64 {
        self.start.index + self.headers.len() as u64
    }

    pub(super) fn header(&self, index: u64) -> Option<&Header> {
        let at = index.checked_sub(self.start.index + 1)?;
        self.headers.get(usize::try_from(at).ok()?)
    }

    /// The place behind `index`; `None` outside of what is held.
    pub(super) fn position(&self, index: u64) -> Option<Position> {
        if index == self.start.index {
            return Some(self.start);
        }
        self.header(index).map(|header| Position { index, term: header.term, offset: header.next_offset })
    }

    /// Puts `header` at `index`; what was there and behind is gone. `false` when that would leave a gap.
    pub(super) fn put(&mut self, index: u64, header: Header) -> bool {
        let Some(keep) = index.checked_sub(self.start.index + 1) else { return false };
        if keep > self.headers.len() as u64 {
            return false;
        }
        self.headers.truncate(keep as usize);
        self.headers.push_back(header);
        self.configurations.split_off(&index);
        true
    }

    /// What the entry of a configuration at `index`, which was put there, says.
    pub(super) fn put_configuration(&mut self, index: u64, configuration: Configuration) {
        self.configurations.insert(index, configuration);
    }

    /// What the entry at `index` says about the replicas, if it does.
    pub(super) fn configuration(&self, index: u64) -> Option<&Configuration> {
        self.configurations.get(&index)
    }

    /// The first configuration among the entries `indexes`, and where it is.
    pub(super) fn first_configuration(&self, indexes: RangeInclusive<u64>) -> Option<(u64, &Configuration)> {
        // A range that ends before it begins would be a panic, not an empty one.
        let mut found = (!indexes.is_empty()).then(|| self.configurations.range(indexes))?;
        found.next().map(|(index, configuration)| (*index, configuration))
    }

    /// All configurations among the entries `indexes`.
    pub(super) fn configurations(
        &self,
        indexes: RangeInclusive<u64>,
    ) -> impl Iterator<Item = &Configuration> {
        let found = (!indexes.is_empty()).then(|| self.configurations.range(indexes));
        found.into_iter().flatten().map(|(_, configuration)| configuration)
    }

    /// The newest configuration up to the entry `index`, which may be the start's.
    pub(super) fn newest_configuration(&self, index: u64) -> &Configuration {
        self.configurations.range(..=index).next_back().map_or(&self.base, |(_, newest)| newest)
    }

    /// The configuration at the start.
    pub(super) fn base(&self) -> &Configuration {
        &self.base
    }

    /// The one in force.
    pub(super) fn applied(&self) -> &Configuration {
        &self.applied
    }

    pub(super) fn set_applied(&mut self, configuration: Configuration) {
        self.applied = configuration;
    }

    /// Puts `header` behind the last one. The core does not see it before [`Self::told`].
    pub(super) fn propose(&mut self, header: Header) {
        self.headers.push_back(header);
        self.untold += 1;
    }

    /// How many entries were proposed of which the core does not know yet.
    pub(super) fn untold(&self) -> usize {
        self.untold
    }

    /// The core has taken the proposed entries into its own log.
    pub(super) fn told(&mut self) {
        self.untold = 0;
    }

    /// Forgets the entries up to `index`.
    pub(super) fn compact(&mut self, index: u64) {
        let Some(start) = self.position(index) else { return };
        self.headers.drain(..(index - self.start.index) as usize);
        self.start = start;
        let kept = self.configurations.split_off(&(index + 1));
        if let Some((_, newest)) = std::mem::replace(&mut self.configurations, kept).pop_last() {
            self.base = newest;
        }
    }

    /// Begins anew at `start`, without entries.
    pub(super) fn reset(&mut self, start: Position, base: Configuration) {
        self.headers.clear();
        self.configurations.clear();
        self.start = start;
        self.applied = base.clone();
        self.base = base;
    }
}

impl Storage for HeaderLog {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let mut hard = CoreHardState::default();
        hard.term = u64::from(self.hard.term);
        hard.vote = u64::from(self.hard.vote);
        hard.commit = self.hard.commit;
        Ok(RaftState::new(hard, self.base.conf_state()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.start.index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let max_bytes = max_size.into().unwrap_or(u64::MAX);
        let mut bytes = 0_u64;
        let mut entries = Vec::new();
        for index in low..high {
            let Some(header) = self.header(index) else { break };
            bytes = bytes.saturating_add(u64::from(header.bytes));
            if bytes > max_bytes && !entries.is_empty() {
                break;
            }
            entries.push(core_entry(index, header));
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.start.index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        let position = self.position(index).ok_or(raft::Error::Store(StorageError::Unavailable))?;
        Ok(u64::from(position.term))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.start.index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last() - self.untold as u64)
    }

    /// A follower behind the start gets just that start: the batches before it come from segments.
    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        if self.start.index == 0 {
            return Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        Ok(core_snapshot(self.start, self.base.conf_state()))
    }
}

pub(super) fn core_snapshot(start: Position, members: ConfState) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let metadata = snapshot.mut_metadata();
    metadata.index = start.index;
    metadata.term = u64::from(start.term);
    *metadata.mut_conf_state() = members;
    snapshot
}

pub(super) fn core_entry(index: u64, header: &Header) -> Entry {
    Entry { index, term: u64::from(header.term), ..Entry::default() }
}
