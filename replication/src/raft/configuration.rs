//! Who the replicas of a group are, and what each of them counts for.
//!
//! A configuration is an entry of the log, whole, not the difference to the one before. It is in force from when its
//! entry is committed and the replica has persisted it. The voters change by joint consensus only (Ongaro, Ousterhout, "In Search of
//! an Understandable Consensus Algorithm", 2014, section 6): from the old ones to old and new together, where every
//! decision takes a majority of both, and from there to the new ones. Who is to become a voter follows as a learner
//! first, which is sent everything and asked nothing.
//!
//! That the new voters are alone is said twice. The first time it is committed by the old ones too, and a new voter that
//! starts again holds it without knowing that it is committed: it would go on asking the old ones. Whoever holds the second
//! one knows, because a change is proposed only when the one before it is in force. So the old ones are needed until a majority of the
//! new ones holds that.

use std::collections::BTreeSet;
use std::fmt;

use pyralog_core::limits::MAX_REPLICATION_FACTOR;
use raft::eraftpb::ConfState;
use rkyv::{Archive, Deserialize, Serialize};

use crate::metadata::Replica;

/// No group changes so often, and the count goes on from what it is told.
const MAX_VERSION: u64 = u64::MAX / 2;
/// Versions of forced configurations are multiples of this. No group changes so often without the catalogue hearing of it.
const FORCED: u64 = 1 << 20;
/// Bytes of one replica on a disk.
const REPLICA_BYTES: usize = 6;
/// Most bytes of a configuration on a disk.
pub const MAX_CONFIGURATION_BYTES: usize = 12 + 3 * MAX_REPLICATION_FACTOR as usize * REPLICA_BYTES;

/// Who the replicas of a group are. Each list is in the order of the nodes; a node is in `voters` and `outgoing`, or in
/// `learners`, with one shard.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[rkyv(attr(allow(missing_docs)))]
pub struct Configuration {
    voters: Vec<Replica>,
    outgoing: Vec<Replica>,
    learners: Vec<Replica>,
    /// The voters were the only ones already when this was proposed, so that whoever holds it knows that nobody else has to be
    /// asked.
    confirmed: bool,
    /// How many changes there were before. A replica that is made later than the entries that it is sent begins with a newer
    /// configuration than theirs, and they do not count.
    version: u64,
}

/// What is to be done next so that a group has other voters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Its voters are the wanted ones, and nobody else is with them.
    Done,
    /// The configuration to propose.
    Propose(Configuration),
    /// These nodes follow as learners and do not have everything yet.
    Wait(Vec<u32>),
}

impl Configuration {
    /// These voters and nobody else.
    pub fn of(voters: impl IntoIterator<Item = Replica>) -> Self {
        Self {
            voters: sorted(voters),
            outgoing: Vec::new(),
            learners: Vec::new(),
            confirmed: true,
            version: 0,
        }
    }

    /// One voter that goes on alone by decree, whatever the group has become since this version: fewer than [`FORCED`] changes.
    pub fn forced(voter: Replica, version: u64) -> Self {
        Self { version: (version / FORCED + 1) * FORCED, ..Self::of([voter]) }
    }

    /// Whether it was not decided by the voters before it.
    pub fn is_forced(&self) -> bool {
        self.version > 0 && self.version.is_multiple_of(FORCED)
    }

    /// As a replica begins that joins: it follows, and nothing else has changed. One that is a member is what it is.
    #[must_use]
    pub fn joined_by(&self, learner: Replica) -> Self {
        if self.place(learner.node).is_some() {
            return self.clone();
        }
        let learners = self.learners.iter().copied().chain([learner]);
        Self { version: self.version, ..self.with_learners(learners) }
    }

    /// The same voters with these learners, without those that are voters.
    #[must_use]
    pub fn with_learners(&self, learners: impl IntoIterator<Item = Replica>) -> Self {
        let mut learners = sorted(learners);
        learners.retain(|learner| !self.is_voter(learner.node));
        Self { learners, version: self.version + 1, ..self.clone() }
    }

    /// From these voters to `voters`, as long as both decide.
    #[must_use]
    pub fn entering(&self, voters: impl IntoIterator<Item = Replica>) -> Self {
        let voters = sorted(voters);
        let (outgoing, version) = (self.voters.clone(), self.version + 1);
        Self { outgoing, voters, learners: Vec::new(), confirmed: false, version }
    }

    /// The new voters alone.
    #[must_use]
    pub fn left(&self) -> Self {
        Self { outgoing: Vec::new(), version: self.version + 1, ..self.clone() }
    }

    /// The same once more, when it is in force.
    #[must_use]
    pub fn confirmed(&self) -> Self {
        Self { confirmed: true, version: self.version + 1, ..self.clone() }
    }

    /// How many changes there were before it.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether former voters can go: a majority of the voters knows for good that it needs none of them when this is
    /// committed.
    pub fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// Nobody knows who they are: it is none, and where one is needed another source has to say.
    pub fn is_unknown(&self) -> bool {
        self.voters.is_empty()
    }

    /// Whose majority decides.
    pub fn voters(&self) -> &[Replica] {
        &self.voters
    }

    /// Of a joint configuration, the former voters, whose majority decides too; otherwise none.
    pub fn outgoing(&self) -> &[Replica] {
        &self.outgoing
    }

    /// Who follows without a voice.
    pub fn learners(&self) -> &[Replica] {
        &self.learners
    }

    /// Old and new voters decide together.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// The voters of which a majority is needed: one list, of a joint configuration two.
    pub fn halves(&self) -> impl Iterator<Item = &[Replica]> {
        [self.voters.as_slice(), self.outgoing.as_slice()].into_iter().filter(|half| !half.is_empty())
    }

    /// Everybody, each once: voters, former voters, learners.
    pub fn members(&self) -> impl Iterator<Item = Replica> + '_ {
        let former = self.outgoing.iter().filter(|old| !is_among(&self.voters, old.node));
        self.voters.iter().chain(former).chain(&self.learners).copied()
    }

    /// Where the replica of a node is.
    pub fn place(&self, node: u32) -> Option<Replica> {
        self.members().find(|replica| replica.node == node)
    }

    /// Whether a node has a voice, be it a former one's.
    pub fn is_voter(&self, node: u32) -> bool {
        is_among(&self.voters, node) || is_among(&self.outgoing, node)
    }

    /// Whether it is what the functions above make, within the bounds.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), &'static str> {
        let lists = [&self.voters, &self.outgoing, &self.learners];
        if self.voters.is_empty() {
            return Err("a configuration without voters");
        }
        if lists.iter().any(|list| list.len() > usize::from(MAX_REPLICATION_FACTOR)) {
            return Err("a configuration of too many replicas");
        }
        if lists.iter().any(|list| !list.is_sorted_by(|a, b| a.node < b.node)) {
            return Err("a configuration out of order, or with a node twice");
        }
        if lists.iter().any(|list| list.first().is_some_and(|replica| replica.node == 0)) {
            return Err("a configuration with node 0");
        }
        if self.version > MAX_VERSION {
            return Err("a configuration beyond all versions");
        }
        if self.is_joint() && self.confirmed {
            return Err("a joint configuration that is confirmed");
        }
        let twice = self.learners.iter().any(|learner| self.is_voter(learner.node));
        let moved =
            self.outgoing.iter().any(|old| is_among(&self.voters, old.node) && !self.voters.contains(old));
        match twice || moved {
            true => Err("a configuration with a node in two places"),
            false => Ok(()),
        }
    }

    /// Whether a group in this configuration may go on to `next`.
    ///
    /// # Errors
    /// Why not.
    pub fn check_next(&self, next: &Self) -> Result<(), &'static str> {
        next.check()?;
        let elsewhere = next.members().any(|new| self.place(new.node).is_some_and(|old| old != new));
        if elsewhere {
            return Err("a replica does not change its shard by a change of its group");
        }
        if next.version != self.version + 1 {
            return Err("a configuration that is not the next one");
        }
        match (self.is_joint(), next.is_joint()) {
            (true, true) => Err("the last change of this group has not ended"),
            (true, false) if next.voters == self.voters && !next.confirmed => Ok(()),
            (true, false) => Err("a joint configuration ends with its new voters"),
            (false, true) if next.outgoing == self.voters => Ok(()),
            (false, true) => Err("a joint configuration begins with the voters that there are"),
            (false, false) if next.voters == self.voters && next.confirmed >= self.confirmed => Ok(()),
            (false, false) => Err("voters change by a joint configuration only"),
        }
    }

    /// What has to be done next so that `wanted` are the voters. `has_all` says of a learner whether it has followed far
    /// enough to become one.
    pub fn step_to(&self, wanted: &[Replica], has_all: impl Fn(u32) -> bool) -> Step {
        if self.is_joint() {
            return Step::Propose(self.left());
        }
        if !self.confirmed {
            return Step::Propose(self.confirmed());
        }
        let wanted = sorted(wanted.iter().copied());
        let learners = self.with_learners(wanted.iter().copied());
        if learners.learners != self.learners {
            return Step::Propose(learners);
        }
        if wanted == self.voters {
            return Step::Done;
        }
        let behind: Vec<u32> =
            self.learners.iter().map(|learner| learner.node).filter(|node| !has_all(*node)).collect();
        match behind.is_empty() {
            true => Step::Propose(self.entering(wanted)),
            false => Step::Wait(behind),
        }
    }

    /// Its bytes on a disk: its version, whether it is confirmed, the lengths of the three lists, then node and shard of each replica,
    /// little endian.
    pub fn encode(&self) -> Vec<u8> {
        let lists = [&self.voters, &self.outgoing, &self.learners];
        let mut bytes = self.version.to_le_bytes().to_vec();
        bytes.push(u8::from(self.confirmed));
        // The bound of each list is checked before a configuration gets here.
        bytes.extend(lists.iter().map(|list| list.len() as u8));
        for replica in lists.into_iter().flatten() {
            bytes.extend(replica.node.to_le_bytes());
            bytes.extend(replica.shard.to_le_bytes());
        }
        bytes
    }

    /// The configuration that these bytes begin with, and what stands behind it; `None` when they are none.
    pub fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (version, rest) = bytes.split_first_chunk::<8>()?;
        let ([confirmed @ (0 | 1), lengths @ ..], mut rest) = rest.split_first_chunk::<4>()? else {
            return None;
        };
        let mut list = |length: u8| {
            let within = usize::from(length) <= usize::from(MAX_REPLICATION_FACTOR);
            let (replicas, behind) = rest.split_at_checked(usize::from(length) * REPLICA_BYTES)?;
            rest = behind;
            let replicas = replicas.chunks_exact(REPLICA_BYTES).map(|bytes| {
                let (node, shard) = bytes.split_first_chunk::<4>()?;
                let shard = shard.first_chunk::<2>()?;
                Some(Replica { node: u32::from_le_bytes(*node), shard: u16::from_le_bytes(*shard) })
            });
            within.then(|| replicas.collect::<Option<Vec<_>>>()).flatten()
        };
        let [voters, outgoing, learners] = lengths.map(&mut list);
        let (confirmed, version) = (*confirmed == 1, u64::from_le_bytes(*version));
        let decoded = Self { voters: voters?, outgoing: outgoing?, learners: learners?, confirmed, version };
        decoded.check().is_ok().then_some((decoded, rest))
    }

    /// As the core knows it.
    pub(super) fn conf_state(&self) -> ConfState {
        let nodes = |list: &[Replica]| list.iter().map(|replica| u64::from(replica.node)).collect();
        ConfState {
            voters: nodes(&self.voters),
            voters_outgoing: nodes(&self.outgoing),
            learners: nodes(&self.learners),
            ..ConfState::default()
        }
    }
}

/// As in `1 2 3`, `3 4 5 (from 1 2 3)`, `1 2 3 + 4`.
impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = |list: &[Replica]| {
            list.iter().map(|replica| replica.node.to_string()).collect::<Vec<_>>().join(" ")
        };
        f.write_str(&nodes(&self.voters))?;
        if self.is_joint() {
            write!(f, " (from {})", nodes(&self.outgoing))?;
        }
        match self.learners.is_empty() {
            true => Ok(()),
            false => write!(f, " + {}", nodes(&self.learners)),
        }
    }
}

impl ArchivedConfiguration {
    /// Whether its lists are short enough to be made.
    pub(super) fn is_bounded(&self) -> bool {
        let lists = [self.voters.len(), self.outgoing.len(), self.learners.len()];
        lists.iter().all(|replicas| *replicas <= usize::from(MAX_REPLICATION_FACTOR))
    }
}

pub(super) fn is_among(list: &[Replica], node: u32) -> bool {
    list.iter().any(|replica| replica.node == node)
}

fn sorted(replicas: impl IntoIterator<Item = Replica>) -> Vec<Replica> {
    replicas.into_iter().collect::<BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nodes: &[u32]) -> Vec<Replica> {
        nodes.iter().map(|node| Replica { node: *node, shard: 0 }).collect()
    }

    /// Every way from some voters to others ends with them, each step is one that the check allows, nobody becomes a voter
    /// who has not followed, and what was wanted may change at any time.
    #[test]
    fn any_voters_become_any_others_in_steps_that_are_allowed() {
        let sets: Vec<Vec<u32>> =
            (1_u32..32).map(|bits| (1..=5).filter(|node| bits & (1 << (node - 1)) != 0).collect()).collect();
        for from in &sets {
            for to in &sets {
                for turned_at in 0..6 {
                    walk(from, to, turned_at);
                }
            }
        }
    }

    /// Walks from `from` to `to`; after `turned_at` steps `from` is wanted again.
    fn walk(from: &[u32], to: &[u32], turned_at: usize) {
        let mut now = Configuration::of(at(from));
        let mut caught_up: BTreeSet<u32> = BTreeSet::new();
        for steps in 0.. {
            assert!(steps < 15, "no end from {from:?} to {to:?}: {now:?}");
            let wanted = if steps < turned_at { to } else { from };
            match now.step_to(&at(wanted), |node| caught_up.contains(&node)) {
                Step::Done => {
                    let done = Configuration { version: now.version, ..Configuration::of(at(wanted)) };
                    assert_eq!(now, done);
                    if steps >= turned_at {
                        return;
                    }
                }
                Step::Wait(behind) => {
                    assert!(behind.iter().all(|node| is_among(now.learners(), *node)));
                    caught_up.extend(behind);
                }
                Step::Propose(next) => {
                    assert_eq!(now.check_next(&next), Ok(()), "{now:?} to {next:?}");
                    let new = next.voters().iter().filter(|voter| !now.is_voter(voter.node));
                    assert!(new.clone().all(|voter| caught_up.contains(&voter.node)), "{next:?}");
                    now = next;
                }
            }
        }
    }

    #[test]
    fn it_comes_back_from_its_bytes_and_nothing_else_does() {
        let places =
            |nodes: &[u32]| nodes.iter().map(|node| Replica { node: *node, shard: 9 }).collect::<Vec<_>>();
        let first = Configuration::of(places(&[1, 2, 3]));
        let all = [
            first.clone(),
            first.with_learners(places(&[4, 70_000])),
            Configuration::of(places(&[1, 2, 3, 4, 5])).entering(places(&[5, 6, 7, 8, 9])),
        ];
        for configuration in all {
            let bytes = configuration.encode();
            assert!(bytes.len() <= MAX_CONFIGURATION_BYTES, "{}", bytes.len());
            let more = [bytes.as_slice(), &[7, 8]].concat();
            assert_eq!(Configuration::decode(&more), Some((configuration, &[7, 8][..])));
            for cut in 0..bytes.len() {
                assert_eq!(Configuration::decode(&bytes[..cut]), None);
            }
        }
        assert_eq!(Configuration::decode(&[[0; 8].as_slice(), &[1, 0, 0, 0]].concat()), None, "no voters");
        let many = [[0; 8].as_slice(), &[1, 6, 0, 0], &[1; 36]].concat();
        assert_eq!(Configuration::decode(&many), None, "too many, and one node six times");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_configuration_or_none(bytes in proptest::collection::vec(0_u8..4, 0..60)) {
            if let Some((configuration, rest)) = Configuration::decode(&bytes) {
                proptest::prop_assert_eq!(configuration.check(), Ok(()));
                proptest::prop_assert_eq!([configuration.encode().as_slice(), rest].concat(), bytes);
            }
        }
    }

    #[test]
    fn what_skips_a_step_is_refused() {
        let (old, new) = (Configuration::of(at(&[1, 2, 3])), Configuration::of(at(&[3, 4, 5])));
        let joint = old.entering(at(&[3, 4, 5]));
        assert!(joint.check_next(&new).is_err(), "confirmed before it is in force");
        let new = joint.left();
        assert_eq!(joint.members().map(|replica| replica.node).collect::<Vec<_>>(), [3, 4, 5, 1, 2]);
        assert!(old.check_next(&new).is_err(), "voters change without a joint configuration");
        assert!(new.check_next(&joint).is_err(), "it does not begin with the voters that there are");
        assert!(joint.check_next(&old).is_err(), "it does not end with the new voters");
        assert!(joint.check_next(&joint.left().entering(at(&[1]))).is_err(), "two changes at once");
        assert!(joint.check_next(&new).is_ok() && old.check_next(&joint).is_ok());
        assert!(new.check_next(&new.confirmed()).is_ok() && new.confirmed().check_next(&new).is_err());
        let elsewhere = old.entering([Replica { node: 1, shard: 7 }]);
        assert!(elsewhere.check().is_err() && old.check_next(&elsewhere).is_err());
        for broken in [
            Configuration::default(),
            Configuration::of(at(&[0, 1])),
            Configuration::of(at(&[1, 2, 3, 4, 5, 6])),
            Configuration { voters: at(&[2, 1]), ..Configuration::default() },
            Configuration { voters: at(&[1, 1]), ..Configuration::default() },
            Configuration { learners: at(&[1]), ..old.clone() },
            joint.confirmed(),
            Configuration { version: u64::MAX, ..old.clone() },
        ] {
            assert!(broken.check().is_err(), "{broken:?}");
        }
    }
}
