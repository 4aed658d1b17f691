//! How far the followers of a partition are behind, as its leader sees it: what pages, metrics and `DescribePartitions`
//! tell of it. Everything is put together when somebody asks; on the way of a batch only [`Progress`] is kept.

use pyralog_core::GroupId;
use pyralog_net::message::{ReplicaRole, ReplicaState, ReplicationState};
use pyralog_replication::metadata::Replica as Place;
use pyralog_replication::raft::Standing;

use super::Engine;
use super::api::PeerId;
use super::partition::Partition;
use super::replica::{RaftReplica, Replica};
use super::status::ReplicationStatus;

/// A replica that had everything less than this ago is in sync, microseconds: long enough for a garbage collection of
/// a disk, short enough to see one that does not come along (Kafka's replica.lag.time.max.ms was 10 s for years). One that
/// can't be reached is not in sync.
const IN_SYNC_US: u64 = 10_000_000;
/// A follower that asked for batches of segments less than this ago goes on with that, microseconds.
const CATCHES_UP_US: u64 = 5_000_000;

/// How far a member of a group has come, as far as its leader knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// The leader's last entry at `mark_us`.
    mark: u64,
    mark_us: u64,
    /// It had everything that there was then, monotonic microseconds.
    had_all_us: u64,
    /// It was last heard to hold the records below this; `None` = it was not heard by this leader yet.
    end: Option<i64>,
    /// When it last asked for batches of segments.
    fetched_us: Option<u64>,
    /// It has said that it does not know what it has promised, and has not had everything since then.
    rejoins: bool,
}

impl Progress {
    /// A leadership begins: nobody is behind yet.
    pub(super) fn begun(last: u64, now_us: u64) -> Self {
        Self { mark: last, mark_us: now_us, had_all_us: now_us, end: None, fetched_us: None, rejoins: false }
    }

    /// A member that nobody expects to have anything yet.
    pub(super) fn new(last: u64, now_us: u64) -> Self {
        Self { had_all_us: 0, ..Self::begun(last, now_us) }
    }

    /// The member is known to hold the entries up to `matched`, which end at the offset `end` as far as that is known; the
    /// leader's last one is `last`.
    fn note(&mut self, matched: u64, end: Option<i64>, last: u64, now_us: u64) {
        if matched >= last {
            // Not when it was marked last: since then the group may have been idle for long.
            (self.had_all_us, self.rejoins) = (now_us, false);
            (self.mark, self.mark_us) = (last, now_us);
        } else if matched >= self.mark {
            (self.had_all_us, self.mark, self.mark_us) = (self.mark_us, last, now_us);
        }
        // Of what lies before the leader's first entry the offset is not known any more; it was noted when it was.
        if matched > 0 && end.is_some() {
            self.end = end;
        }
    }

    /// The member asked for the committed batches from `offset` on: it has those before.
    fn note_fetch(&mut self, offset: i64, now_us: u64) {
        (self.end, self.fetched_us) = (Some(offset), Some(now_us));
    }
}

impl RaftReplica {
    /// Notes how far the members have come.
    pub(super) fn note_progress(&mut self, now_us: u64) {
        let last = self.raft.last_index();
        for (member, progress) in self.members.iter().zip(&mut self.progress) {
            let matched = self.raft.matched_of(member.node.0);
            let end = self.raft.position(matched).map(|position| position.offset);
            progress.note(matched, end, last, now_us);
        }
    }

    /// This replica leads now.
    pub(super) fn begin_progress(&mut self, now_us: u64) {
        let last = self.raft.last_index();
        let before = std::mem::take(&mut self.progress);
        let rejoins = before.iter().map(|progress| progress.rejoins).chain(std::iter::repeat(false));
        let begun =
            self.members.iter().map(|member| match self.raft.configuration().is_voter(member.node.0) {
                true => Progress::begun(last, now_us),
                false => Progress::new(last, now_us),
            });
        self.progress = begun.zip(rejoins).map(|(begun, rejoins)| Progress { rejoins, ..begun }).collect();
    }

    /// A member asked for batches that lie in segments.
    pub(super) fn note_fetch(&mut self, member: PeerId, offset: i64, now_us: u64) {
        if let Some(progress) = self.progress_mut(member) {
            progress.note_fetch(offset, now_us);
        }
    }

    /// A member does not know what it has promised.
    pub(super) fn note_rejoins(&mut self, member: PeerId) {
        if let Some(progress) = self.progress_mut(member) {
            (progress.rejoins, progress.end) = (true, None);
        }
    }

    fn progress_mut(&mut self, member: PeerId) -> Option<&mut Progress> {
        let at = self.members.iter().position(|known| *known == member)?;
        self.progress.get_mut(at)
    }

    pub(super) fn progress(&self, member: PeerId) -> Option<&Progress> {
        let at = self.members.iter().position(|known| *known == member)?;
        self.progress.get(at)
    }

    /// How long a member has not had everything that this leader has, microseconds; 0 while it has.
    pub(super) fn lag_us(&self, member: PeerId, now_us: u64) -> u64 {
        match self.raft.matched_of(member.node.0) == self.raft.last_index() {
            true => 0,
            false => now_us.saturating_sub(self.progress(member).map_or(0, |progress| progress.had_all_us)),
        }
    }

    /// Whether a member has, or had lately, everything that this leader has.
    pub(super) fn is_in_sync(&self, member: PeerId, now_us: u64, linked: bool) -> bool {
        let own = self.raft.id() == member.node.0;
        self.lag_us(member, now_us) < IN_SYNC_US && (linked || own)
    }

    /// How many voters are in sync; of former and new ones together, in the half that has fewer.
    pub(super) fn in_sync(&self, now_us: u64, linked: impl Fn(PeerId) -> bool) -> usize {
        let in_sync = |voter: &&Place| {
            let peer = self.member(voter.node);
            peer.is_some_and(|peer| self.is_in_sync(peer, now_us, linked(peer)))
        };
        let halves = self.raft.configuration().halves();
        halves.map(|half| half.iter().filter(in_sync).count()).min().unwrap_or(0)
    }

    /// What a member counts for.
    fn role(&self, member: PeerId) -> ReplicaRole {
        let configuration = self.raft.configuration();
        let node = member.node.0;
        match configuration.voters().iter().any(|voter| voter.node == node) {
            true => ReplicaRole::Voter,
            false if configuration.is_voter(node) => ReplicaRole::Leaving,
            false => ReplicaRole::Joining,
        }
    }

    /// What a member does at present.
    fn state(&self, member: PeerId, now_us: u64, linked: bool) -> ReplicationState {
        if self.raft.id() == member.node.0 {
            return ReplicationState::Leader;
        }
        let Some(progress) = self.progress(member).filter(|_| linked) else {
            return ReplicationState::Unreachable;
        };
        let asked = progress.fetched_us.is_some_and(|us| now_us.saturating_sub(us) < CATCHES_UP_US);
        let (matched, last) = (self.raft.matched_of(member.node.0), self.raft.last_index());
        match matched {
            _ if progress.rejoins => ReplicationState::Rejoining,
            matched if matched < last && (asked || self.raft.lacks_what_is_gone(member.node.0)) => {
                ReplicationState::CatchingUp
            }
            0 if last > 0 => ReplicationState::Unknown,
            _ => ReplicationState::Replicating,
        }
    }

    /// Where a member's log is known to end.
    fn end_of(&self, member: PeerId) -> Option<i64> {
        let matched = self.raft.matched_of(member.node.0);
        let held = self.raft.position(matched).filter(|_| matched > 0).map(|position| position.offset);
        held.or_else(|| self.progress(member)?.end)
    }
}

impl Partition {
    /// What the leader knows of a member of its group.
    pub(super) fn member_state(
        &self,
        replica: &RaftReplica,
        member: PeerId,
        now_us: u64,
        linked: bool,
    ) -> ReplicaState {
        let log_end = replica.end_of(member);
        ReplicaState {
            node: member.node.0,
            shard: member.shard.0,
            in_sync: replica.is_in_sync(member, now_us, linked),
            role: replica.role(member),
            state: replica.state(member, now_us, linked),
            log_end: log_end.unwrap_or(ReplicaState::UNKNOWN_END),
            lag_bytes: log_end.map_or(0, |end| self.bytes_from(end)),
            lag_ms: replica.lag_us(member, now_us) / 1_000,
        }
    }

    /// Bytes of the batches from `offset` on. Exact as far as the cache reaches back; of a segment that holds `offset` somewhere
    /// in its middle as large a part as of its records.
    pub(super) fn bytes_from(&self, offset: i64) -> u64 {
        let (cached_from, cached) = match self.tail.front() {
            Some(first) => (first.base_offset, self.appended_bytes - first.bytes_before),
            None => (self.log_end, 0),
        };
        if offset >= cached_from {
            let behind = self.tail.partition_point(|batch| batch.next_offset <= offset);
            return self.tail.get(behind).map_or(0, |batch| self.appended_bytes - batch.bytes_before);
        }
        let first = self.segments.partition_point(|segment| segment.end <= offset);
        let before = self.segments.range(first..).take_while(|segment| segment.base < cached_from);
        let before: u64 = before
            .map(|segment| {
                let wanted = segment.end.min(cached_from) - segment.base.max(offset);
                let (wanted, records) = (wanted.max(0) as u128, (segment.end - segment.base).max(1) as u128);
                (u128::from(segment.bytes) * wanted / records) as u64
            })
            .sum();
        before + cached
    }
}

impl Engine {
    /// The replicas of this shard in sums. Looks at every partition: a few dozen nanoseconds for each that is quiet.
    pub(super) fn replication_status(&self) -> ReplicationStatus {
        let controller = self.metadata_leader();
        let peers = self.replication.links.status(self.now.monotonic_us);
        let mut status = ReplicationStatus { controller, peers, ..ReplicationStatus::default() };
        for partition in self.each_partition().filter(|partition| partition.group != GroupId::METADATA) {
            match &partition.replica {
                _ if partition.end_unknown => status.offline += 1,
                Replica::Single(_) => status.led += 1,
                Replica::Unplaced(_) => status.offline += 1,
                Replica::Raft(_) if partition.standing != Standing::Member => status.offline += 1,
                Replica::Raft(replica) if replica.raft.is_leader() => {
                    status.led += 1;
                    self.add_followers(partition, replica, &mut status);
                }
                Replica::Raft(replica) if replica.raft.leader().is_some() => status.followed += 1,
                Replica::Raft(_) => status.leaderless += 1,
            }
        }
        status
    }

    /// Adds what a leader knows of its followers.
    fn add_followers(&self, partition: &Partition, replica: &RaftReplica, status: &mut ReplicationStatus) {
        let now_us = self.now.monotonic_us;
        let in_sync = replica.in_sync(now_us, |member| self.is_linked(member));
        // Who is only on the way here is not missed.
        for member in replica.voters() {
            let member = &member;
            let lag_us = replica.lag_us(*member, now_us);
            if lag_us == 0 {
                continue;
            }
            status.lag_us = status.lag_us.max(lag_us);
            if let Some(end) = replica.end_of(*member) {
                let records = partition.log_end.saturating_sub(end).max(0).unsigned_abs();
                status.lag_records = status.lag_records.max(records);
                status.lag_bytes = status.lag_bytes.max(partition.bytes_from(end));
            }
        }
        status.under_replicated += u32::from(in_sync < replica.raft.configuration().voters().len());
        status.below_min_insync += u32::from(in_sync < replica.min_insync_replicas);
        status.waiting_produces += replica.waiting.len() as u32;
    }
}

#[cfg(test)]
mod tests {
    use pyralog_core::GroupId;

    use super::super::partition::Segment;
    use super::*;

    #[test]
    fn a_member_that_had_everything_is_behind_from_the_next_entry_on_only() {
        let mut progress = Progress::begun(5, 100);
        progress.note(5, Some(50), 5, 200);
        assert_eq!((progress.had_all_us, progress.end), (200, Some(50)));
        // Nothing happens for an hour; then there is one entry more.
        progress.note(5, Some(50), 5, 3_600_000_000);
        progress.note(5, Some(50), 6, 3_600_000_500);
        assert_eq!(progress.had_all_us, 3_600_000_000, "it was behind for as long as the group was idle");
        // It follows one behind, and so had everything at each mark.
        progress.note(6, Some(60), 7, 3_600_001_000);
        assert_eq!((progress.had_all_us, progress.end), (3_600_000_500, Some(60)));
        // Where it stands is known although the entries there are forgotten.
        progress.note(0, Some(0), 9, 3_600_002_000);
        progress.note(6, None, 9, 3_600_002_000);
        assert_eq!((progress.had_all_us, progress.end), (3_600_000_500, Some(60)));
    }

    #[test]
    fn bytes_before_the_cache_are_told_from_the_segments() {
        let mut partition = Partition::empty(GroupId::new(1, 0), 1, 0);
        let segment = |base, end, bytes| Segment {
            base,
            end,
            epoch: None,
            bytes,
            max_timestamp: 0,
            written_ms: 0,
            index: None,
        };
        partition.segments.extend([segment(0, 100, 1_000), segment(100, 300, 4_000)]);
        partition.log_end = 300;
        assert_eq!(partition.bytes_from(300), 0);
        assert_eq!(partition.bytes_from(200), 2_000);
        assert_eq!(partition.bytes_from(50), 4_500);
        assert_eq!(partition.bytes_from(0), 5_000);
    }
}
