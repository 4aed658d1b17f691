//! Who belongs to the group: quorums of a configuration that may be joint, and the change to the next one.

use pyralog_core::limits::MAX_REPLICATION_FACTOR;
use raft::RawNode;
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};

use crate::metadata::Replica;

use super::configuration::{Configuration, is_among};
use super::group::{NotLeader, Proposed, RaftGroup, Refused, Role};
use super::log::{EntryKind, Header, HeaderLog};

/// Why a change of the group was not proposed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeRefused {
    /// Only a leader changes the group.
    #[error(transparent)]
    NotLeader(#[from] NotLeader),
    /// The leader does not know all yet that earlier ones had committed, or the last change is not in force yet.
    #[error("the leader is new, or the last change of its group is not committed yet; try again")]
    NotYet,
    /// It would lead a group that it has left.
    #[error("this replica leads and is none of the new voters; hand the leadership to one of them first")]
    LeaderLeaves,
    /// It does not follow from the configuration that there is.
    #[error("{0}")]
    Impossible(&'static str),
}

impl RaftGroup {
    /// Who belongs to the group, as far as this replica has applied it.
    pub fn configuration(&self) -> &Configuration {
        self.raw.store().applied()
    }

    /// Who belonged to it where the entries begin.
    pub fn base_configuration(&self) -> &Configuration {
        self.raw.store().base()
    }

    /// Who belonged to it behind the entry `index`, which is held, or where the entries begin.
    pub fn configuration_behind(&self, index: u64) -> &Configuration {
        self.raw.store().newest_configuration(index)
    }

    /// What the entry at `index` says about the replicas, if that is what it does.
    pub fn configuration_at(&self, index: u64) -> Option<&Configuration> {
        self.raw.store().configuration(index)
    }

    /// Of a configuration from the past of the group and the one in force here, the newer one: this replica may have been made
    /// later.
    pub fn newer_of(&self, said: Option<&Configuration>) -> Configuration {
        let own = self.configuration();
        said.filter(|said| said.version() > own.version()).unwrap_or(own).clone()
    }

    /// Counts the changes that have come into force; a snapshot may be one.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Puts a change of the replicas at the end of the leader's log. It is in force, on each replica, when it is committed
    /// and persisted there. One at a time.
    ///
    /// # Errors
    /// Why it may not be, see [`ChangeRefused`].
    pub fn propose_change(&mut self, now_us: u64, next: Configuration) -> Result<Proposed, ChangeRefused> {
        let not_leader = NotLeader { leader: self.leader().filter(|leader| *leader != self.id) };
        if !self.is_leader() || self.raw.raft.lead_transferee.is_some() {
            return Err(not_leader.into());
        }
        let store = self.raw.store();
        let not_in_force = self.raw.raft.raft_log.applied + 1..=store.last();
        if !self.leads_surely() || store.first_configuration(not_in_force).is_some() {
            return Err(ChangeRefused::NotYet);
        }
        self.configuration().check_next(&next).map_err(ChangeRefused::Impossible)?;
        if !next.is_joint() && !is_among(next.voters(), self.id) {
            return Err(ChangeRefused::LeaderLeaves);
        }
        Ok(self.append_change(now_us, next))
    }

    /// The same, whatever follows from it.
    pub(super) fn append_change(&mut self, now_us: u64, next: Configuration) -> Proposed {
        self.wake(now_us);
        let (index, term, offset) = (self.last_index() + 1, self.term(), self.log_end());
        let kind = EntryKind::Configuration;
        let header = Header { term, kind, base_offset: offset, next_offset: offset, bytes: 0 };
        let store = self.raw.mut_store();
        store.propose(header);
        store.put_configuration(index, next);
        Proposed { index, term, base_offset: offset, next_offset: offset }
    }

    /// Everybody else.
    pub(super) fn peers(&self) -> impl Iterator<Item = u32> + '_ {
        self.configuration().members().map(|member| member.node).filter(|node| *node != self.id)
    }

    /// Whether it is the only one there is.
    pub(super) fn is_alone(&self) -> bool {
        self.configuration().is_voter(self.id) && self.peers().next().is_none()
    }

    /// Of every half of the configuration so many, this replica included, that nothing is decided without them.
    pub(super) fn has_quorum(&self, has: impl Fn(u32) -> bool) -> bool {
        let counts = |voter: &&Replica| voter.node == self.id || has(voter.node);
        self.configuration().halves().all(|half| half.iter().filter(counts).count() >= majority(half))
    }

    /// Whether it hears as many replicas as it takes to decide something.
    pub(super) fn hears_quorum(&self, now_us: u64) -> bool {
        self.has_quorum(|node| self.timers.hears(node, now_us))
    }

    /// When a leader will have heard too few, if nothing more comes, µs.
    pub(super) fn quorum_lost_us(&self) -> u64 {
        let lost = |half: &[Replica]| {
            let needed = majority(half) - usize::from(is_among(half, self.id));
            let others = half.iter().map(|voter| voter.node).filter(|node| *node != self.id);
            self.timers.quorum_lost_us(others, needed)
        };
        self.configuration().halves().map(lost).min().unwrap_or(u64::MAX)
    }

    /// From now on an acknowledgement takes so many copies, as in [`super::GroupConfig::write_quorum`].
    pub fn set_write_quorum(&mut self, write_quorum: usize) {
        self.write_quorum = write_quorum;
    }

    /// Durable copies that an acknowledgement takes in one half of the configuration.
    fn copies(&self, half: &[Replica]) -> usize {
        self.write_quorum.clamp(majority(half), half.len())
    }

    /// Whether an acknowledgement takes no more than a commit.
    pub(super) fn commits_are_acknowledged(&self) -> bool {
        self.configuration().halves().all(|half| self.copies(half) == majority(half))
    }

    /// The entry up to which `write_quorum` replicas are durable, of former voters as well (on the leader; elsewhere the commit).
    pub fn acknowledged(&self) -> u64 {
        if !self.is_leader() {
            return self.commit();
        }
        let held = |half: &[Replica]| {
            let mut matched: Vec<u64> = half.iter().map(|voter| self.matched_of(voter.node)).collect();
            matched.sort_unstable_by(|a, b| b.cmp(a));
            matched.get(self.copies(half) - 1).copied().unwrap_or(0)
        };
        self.configuration().halves().map(held).fold(self.commit(), u64::min)
    }

    /// Has the core and the timers follow what is committed.
    pub(super) fn apply_committed(&mut self) -> Result<(), Refused> {
        let changed = self.guarded(|raw| Ok(apply(raw)))?;
        if changed {
            self.note_configuration();
        }
        Ok(())
    }

    /// Another configuration is in force.
    pub(super) fn note_configuration(&mut self) {
        self.changes += 1;
        // It may have fallen quiet with the change on its way to its own disk only: whoever is new has heard nothing.
        self.wake(self.now_us);
        let peers: Vec<u32> = self.peers().collect();
        self.timers.set_peers(&peers, self.now_us);
        self.snapshots.retain(|(node, _)| peers.contains(node));
        if self.role() != Role::Follower && !self.configuration().is_voter(self.id) {
            // Elected by former voters, or about to be, it has come to commit that it is none: the others elect one of them.
            self.stop_leading();
        }
    }

    /// Whether a change is committed that is not in force here: until then it would count the wrong votes.
    pub(super) fn has_change_to_apply(&self) -> bool {
        let log = &self.raw.raft.raft_log;
        self.raw.store().first_configuration(log.applied + 1..=log.committed).is_some()
    }
}

pub(super) fn majority(half: &[Replica]) -> usize {
    half.len() / 2 + 1
}

/// There is nothing to apply but configurations: what is committed and persisted is applied. Whether one came into force.
fn apply(raw: &mut RawNode<HeaderLog>) -> bool {
    let log = &raw.raft.raft_log;
    let (until, mut changed) = (log.committed.min(log.persisted), false);
    while let Some((index, next)) = raw.store().first_configuration(raw.raft.raft_log.applied + 1..=until) {
        let next = next.clone();
        raw.advance_apply_to(index);
        if next.version() <= raw.store().applied().version() {
            // From before this replica was made: it may have been another one's predecessor's then, with a voice.
            continue;
        }
        enter(raw, &next);
        raw.mut_store().set_applied(next);
        changed = true;
    }
    if until > raw.raft.raft_log.applied {
        raw.advance_apply_to(until);
    }
    changed
}

/// Brings the core from whatever configuration it is in to `next`. A leader is one step away from it; a follower that was
/// made later than the entries that it is sent may begin with a newer one than theirs.
fn enter(raw: &mut RawNode<HeaderLog>, next: &Configuration) {
    let wanted = next.conf_state();
    let is = raw.raft.prs().conf().to_conf_state();
    let same = |a: &[u64], b: &[u64]| a.len() == b.len() && a.iter().all(|id| b.contains(id));
    if !next.is_joint() {
        if !same(&is.voters, &wanted.voters) {
            set_voters(raw, &wanted.voters);
        }
        leave(raw);
        return set_learners(raw, &wanted.learners);
    }
    if same(&is.voters_outgoing, &wanted.voters_outgoing) && same(&is.voters, &wanted.voters) {
        return;
    }
    if !is.voters_outgoing.is_empty() || !same(&is.voters, &wanted.voters_outgoing) {
        set_voters(raw, &wanted.voters_outgoing);
    }
    // In a joint configuration learners stay as they are. Who becomes a voter keeps what is known of it as a learner.
    let learners = wanted.learners.iter().chain(is.learners.iter().filter(|id| wanted.voters.contains(id)));
    set_learners(raw, &learners.copied().collect::<Vec<_>>());
    change(raw, ConfChangeTransition::Explicit, differences(raw, &wanted.voters));
}

fn set_voters(raw: &mut RawNode<HeaderLog>, voters: &[u64]) {
    leave(raw);
    change(raw, ConfChangeTransition::Explicit, differences(raw, voters));
    leave(raw);
}

fn leave(raw: &mut RawNode<HeaderLog>) {
    if !raw.raft.prs().conf().to_conf_state().voters_outgoing.is_empty() {
        change(raw, ConfChangeTransition::Auto, Vec::new());
    }
}

/// Who has to be added and removed so that `voters` are the incoming ones.
fn differences(raw: &RawNode<HeaderLog>, voters: &[u64]) -> Vec<ConfChangeSingle> {
    let is = raw.raft.prs().conf().to_conf_state().voters;
    let added = voters.iter().filter(|id| !is.contains(id)).map(|id| single(*id, ConfChangeType::AddNode));
    let removed =
        is.iter().filter(|id| !voters.contains(id)).map(|id| single(*id, ConfChangeType::RemoveNode));
    added.chain(removed).collect()
}

/// One by one: more than one change at once is a joint configuration to the core.
fn set_learners(raw: &mut RawNode<HeaderLog>, learners: &[u64]) {
    let is = raw.raft.prs().conf().to_conf_state().learners;
    for id in learners.iter().filter(|id| !is.contains(id)) {
        change(raw, ConfChangeTransition::Auto, vec![single(*id, ConfChangeType::AddLearnerNode)]);
    }
    for id in is.iter().filter(|id| !learners.contains(id)) {
        change(raw, ConfChangeTransition::Auto, vec![single(*id, ConfChangeType::RemoveNode)]);
    }
}

fn single(id: u64, kind: ConfChangeType) -> ConfChangeSingle {
    ConfChangeSingle { node_id: id, change_type: kind, ..ConfChangeSingle::default() }
}

fn change(raw: &mut RawNode<HeaderLog>, how: ConfChangeTransition, changes: Vec<ConfChangeSingle>) {
    let mut change = ConfChangeV2::default();
    change.set_transition(how);
    change.set_changes(changes.into());
    // What is refused here contradicts the log, as a panic of the core does; who calls catches that.
    let entered = raw.apply_conf_change(&change);
    assert!(entered.is_ok(), "the core refuses a configuration: {entered:?}");
}

/// Bounds of what a caller may ask for.
pub(super) fn check_write_quorum(write_quorum: usize) -> Result<(), Refused> {
    match write_quorum {
        1.. if write_quorum <= usize::from(MAX_REPLICATION_FACTOR) => Ok(()),
        _ => Err(Refused::Impossible("a write quorum of no replicas, or of too many")),
    }
}
