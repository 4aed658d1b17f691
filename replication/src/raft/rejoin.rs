//! How a replica comes back that can't know what it has promised: its disk is an empty one, or damage hides a part of it.
//!
//! It asks all other replicas, again and again, and promises nothing before all have answered. Then it follows a leader in
//! no term below the highest that it was told, votes for nobody, and is a member again when its log holds what its former
//! self can have helped to commit ([`Floor`]). That is the recovery of Viewstamped Replication (Liskov, Cowling,
//! "Viewstamped Replication Revisited", 2012) with one thing changed: it asks all, not a majority, because a candidate
//! that still counts a vote of the former self may be any of them.
//!
//! The first nodes of a cluster have empty disks too, and nobody has promised anything ([`Standing::Undecided`]). Every
//! one waits until all have answered: when all are undecided they are the founders, and each writes down the disks of all.
//! Who comes later with a disk that every member has written down is a founder as well; with any other it is one that has
//! lost what it held. Why this is safe: `docs/replication.md`, "A disk that is lost".

use std::collections::BTreeSet;

use super::configuration::{Configuration, is_among};
use crate::metadata::Replica;

/// What the word of a replica is worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Standing {
    /// It holds nothing and does not know whether it ever did.
    Undecided = 0,
    /// It has lost what it promised.
    Rejoining = 1,
    /// It knows everything that it promised.
    #[default]
    Member = 2,
}

impl Standing {
    /// The standing with this number.
    pub fn from_number(number: u64) -> Option<Self> {
        match number {
            0 => Some(Self::Undecided),
            1 => Some(Self::Rejoining),
            2 => Some(Self::Member),
            _ => None,
        }
    }
}

/// What another replica says, after the one that asks has begun its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What its word is worth.
    pub standing: Standing,
    /// Its term.
    pub term: u32,
    /// Its last entry, if it leads.
    pub leads: Option<u64>,
    /// The number of its disk.
    pub disk: u64,
    /// It has written the asker's disk down as one of the first.
    pub vouches: bool,
    /// It knows of a node of the asker's name that was registered.
    pub knows: bool,
}

/// What an undecided replica has found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is one of the first; the disks of all others.
    Founder(Vec<(u32, u64)>),
    /// There was one before it under its name.
    Rejoining,
}

/// What a log must hold so that nothing is missing that the former self helped to commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floor {
    /// No other replica was in a higher term.
    pub term: u32,
    /// The last entry of the replica that led in that term, if one did.
    pub index: Option<u64>,
}

impl Floor {
    /// Whether a log that ends with entry `index` of term `term` is long enough. A leader of a later term has everything
    /// that was committed before it, and its first entry behind that.
    pub fn is_reached(&self, term: u32, index: u64) -> bool {
        term > self.term || term == self.term && self.index.is_some_and(|floor| index >= floor)
    }
}

/// The answers so far.
#[derive(Clone, Debug)]
pub struct Rejoin {
    answers: Vec<(u32, Option<Answer>)>,
}

impl Rejoin {
    /// Nobody has answered yet.
    pub fn new(others: impl IntoIterator<Item = u32>) -> Self {
        Self { answers: others.into_iter().map(|other| (other, None)).collect() }
    }

    /// These are all others now. Who has answered need not be asked again.
    pub fn ask(&mut self, others: impl IntoIterator<Item = u32>) {
        let answer =
            |of: u32| self.answers.iter().find(|(known, _)| *known == of).and_then(|(_, told)| *told);
        self.answers = others.into_iter().map(|other| (other, answer(other))).collect();
    }

    /// Node `from` answered. False: it is none of the others.
    pub fn heard(&mut self, from: u32, answer: Answer) -> bool {
        let slot = self.answers.iter_mut().find(|(other, _)| *other == from);
        slot.is_some_and(|(_, known)| {
            *known = Some(answer);
            true
        })
    }

    /// Who has not answered.
    pub fn silent(&self) -> impl Iterator<Item = u32> + '_ {
        self.answers.iter().filter(|(_, answer)| answer.is_none()).map(|(other, _)| *other)
    }

    fn all(&self) -> Option<Vec<(u32, Answer)>> {
        self.answers.iter().map(|(other, answer)| answer.map(|answer| (*other, answer))).collect()
    }

    /// What an undecided replica is, when all have answered and their answers say it.
    pub fn verdict(&self) -> Option<Verdict> {
        let all = self.all()?;
        let founder = || Verdict::Founder(all.iter().map(|(other, answer)| (*other, answer.disk)).collect());
        let mut members = all.iter().filter(|(_, answer)| answer.standing == Standing::Member).peekable();
        if members.peek().is_some() {
            let vouched = members.all(|(_, answer)| answer.vouches);
            return Some(if vouched { founder() } else { Verdict::Rejoining });
        }
        all.iter().all(|(_, answer)| answer.standing == Standing::Undecided).then(founder)
    }

    /// Whether there was nobody before the node `own` under its name: of the voters of every configuration that may have followed on the
    /// first one a majority are members, and none of them knows it. It would have been registered before it became a voter, and a
    /// majority would hold the change that made it one.
    pub fn is_newcomer(&self, electorate: &Electorate, own: u32) -> bool {
        let strangers = |half: &[Replica]| {
            let told = |voter: &&Replica| {
                let answer = self.answers.iter().find(|(other, _)| *other == voter.node);
                answer.and_then(|(_, told)| *told).is_some_and(|told| told.standing == Standing::Member)
            };
            half.iter().filter(told).count() > half.len() / 2
        };
        let known = self.answers.iter().filter_map(|(_, told)| *told).any(|told| told.knows);
        let named = electorate.all().any(|configuration| configuration.place(own).is_some());
        !electorate.guessed
            && !known
            && !named
            && electorate.all().flat_map(Configuration::halves).all(strangers)
    }

    /// Where the log must reach, when all have answered.
    pub fn floor(&self) -> Option<Floor> {
        let all = self.all()?;
        let term = all.iter().map(|(_, answer)| answer.term).max()?;
        let in_it = all.iter().filter(|(_, answer)| answer.term == term);
        let index = in_it.filter_map(|(_, answer)| answer.leads).max();
        Some(Floor { term, index })
    }
}

/// Which replicas have to be asked: the voters that a former self may have promised something to, as far as is known.
///
/// Who the voters are may have changed since the asker's catalogue was current. Whoever is asked says what it knows of that, and
/// who is named there is asked too. Nobody is missed: the change that follows on a configuration was committed by a majority of its
/// voters, so one of the others holds it, and the same is true of the change after that one.
#[derive(Clone, Debug)]
pub struct Electorate {
    base: Configuration,
    /// The base is what the asker was told by its settings, and nobody who knows has said anything.
    guessed: bool,
    said: Vec<Configuration>,
    /// The newest one that is committed for sure.
    committed: Configuration,
}

impl Electorate {
    /// Begins with what the asker knows.
    pub fn new(base: Configuration) -> Self {
        Self { committed: base.clone(), base, guessed: false, said: Vec::new() }
    }

    /// Begins with what the asker was told by its settings: the first member that answers knows better.
    pub fn guess(base: Configuration) -> Self {
        Self { guessed: true, ..Self::new(base) }
    }

    /// The newest configuration that is committed for sure, or guessed as long as nobody has said anything.
    pub fn committed(&self) -> &Configuration {
        &self.committed
    }

    /// A member is in this configuration: it takes the place of a guess.
    pub fn heard_of_member(&mut self, committed: &Configuration) -> bool {
        if std::mem::take(&mut self.guessed) {
            (self.base, self.said) = (committed.clone(), Vec::new());
            self.committed = committed.clone();
            return true;
        }
        if committed.version() > self.committed.version() {
            self.committed = committed.clone();
        }
        self.heard(committed)
    }

    /// The asker knows better now: what came before does not count any more.
    pub fn goes_on_from(&mut self, base: &Configuration) {
        if base.version() > self.base.version() && !self.guessed {
            self.base = base.clone();
            if base.version() > self.committed.version() {
                self.committed = base.clone();
            }
            self.said.retain(|said| said.version() >= base.version());
        }
    }

    /// Somebody who was asked knows of this one. False: it is no news.
    pub fn heard(&mut self, said: &Configuration) -> bool {
        let news = said.version() >= self.base.version() && *said != self.base && !self.said.contains(said);
        if news {
            self.said.push(said.clone());
        }
        news
    }

    fn all(&self) -> impl Iterator<Item = &Configuration> {
        std::iter::once(&self.base).chain(&self.said)
    }

    /// Every voter, each once, in the order of the nodes. A learner is promised nothing.
    pub fn voters(&self) -> BTreeSet<Replica> {
        self.all().flat_map(Configuration::halves).flatten().copied().collect()
    }

    /// Whether nobody can be elected with the voice of `node` and without that of one other, who holds all that was
    /// committed: a majority of two is both.
    pub fn is_pair_with(&self, node: u32) -> bool {
        let pair = |half: &[Replica]| half.len() == 2 && is_among(half, node);
        self.all().all(|known| known.halves().any(pair))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(nodes: &[u32]) -> Vec<Replica> {
        nodes.iter().map(|node| Replica { node: *node, shard: 0 }).collect()
    }

    fn asked_nodes(electorate: &Electorate) -> Vec<u32> {
        electorate.voters().into_iter().map(|voter| voter.node).collect()
    }

    #[test]
    fn voters_of_later_changes_are_asked_and_those_of_earlier_ones_forgotten() {
        let first = Configuration::of(nodes(&[1, 2, 3]));
        let mut electorate = Electorate::new(first.clone());
        assert_eq!(asked_nodes(&electorate), [1, 2, 3]);
        assert!(electorate.heard(&first.with_learners(nodes(&[4]))));
        assert_eq!(asked_nodes(&electorate), [1, 2, 3], "a learner has no voice");
        let joint = first.with_learners(nodes(&[4])).entering(nodes(&[1, 3, 4]));
        assert!(electorate.heard(&joint) && !electorate.heard(&joint));
        assert_eq!(asked_nodes(&electorate), [1, 2, 3, 4]);
        let after = joint.left().confirmed();
        electorate.goes_on_from(&after);
        assert_eq!(asked_nodes(&electorate), [1, 3, 4], "node 2 may have deleted what it had");
        electorate.goes_on_from(&first);
        assert!(!electorate.heard(&joint), "it is older than what is known");
        assert_eq!(asked_nodes(&electorate), [1, 3, 4]);
    }

    #[test]
    fn one_of_two_voters_is_a_pair_with_the_other_as_long_as_nobody_knows_better() {
        let two = Configuration::of(nodes(&[1, 2]));
        let mut electorate = Electorate::new(two.clone());
        assert!(electorate.is_pair_with(1) && electorate.is_pair_with(2) && !electorate.is_pair_with(3));
        let joint = two.with_learners(nodes(&[3])).entering(nodes(&[1, 3]));
        assert!(electorate.heard(&joint));
        assert!(electorate.is_pair_with(1) && electorate.is_pair_with(2));
        assert!(electorate.heard(&joint.left()));
        assert!(electorate.is_pair_with(1) && !electorate.is_pair_with(2), "it has no voice in the newest");
        let mut grown = Electorate::new(two.clone());
        assert!(grown.heard(&two.with_learners(nodes(&[3])).entering(nodes(&[1, 2, 3])).left()));
        assert!(!grown.is_pair_with(1), "node 3 could be elected by it, and need not hold everything");
    }

    fn answer(standing: Standing, term: u32, leads: Option<u64>, vouches: bool) -> Answer {
        Answer { standing, term, leads, disk: 70, vouches, knows: false }
    }

    fn asked(answers: &[(u32, Answer)]) -> Rejoin {
        let mut rejoin = Rejoin::new([2, 3]);
        for (other, answer) in answers {
            assert!(rejoin.heard(*other, *answer));
        }
        rejoin
    }

    #[test]
    fn founders_are_found_when_nobody_knows_better() {
        let new = answer(Standing::Undecided, 0, None, false);
        let voucher = answer(Standing::Member, 1, None, true);
        let stranger = answer(Standing::Member, 1, None, false);
        let lost = answer(Standing::Rejoining, 1, None, true);
        let founder = Some(Verdict::Founder(vec![(2, 70), (3, 70)]));
        assert_eq!(asked(&[(2, new)]).verdict(), None, "one is silent");
        assert_eq!(asked(&[(2, new), (3, new)]).verdict(), founder);
        assert_eq!(asked(&[(2, new), (3, voucher)]).verdict(), founder);
        assert_eq!(asked(&[(2, voucher), (3, voucher)]).verdict(), founder);
        assert_eq!(asked(&[(2, new), (3, stranger)]).verdict(), Some(Verdict::Rejoining));
        assert_eq!(
            asked(&[(2, voucher), (3, stranger)]).verdict(),
            Some(Verdict::Rejoining),
            "one knew another"
        );
        assert_eq!(
            asked(&[(2, new), (3, lost)]).verdict(),
            None,
            "there was a cluster, and nobody is left to ask"
        );
        assert!(!asked(&[]).heard(4, new), "a stranger is not counted");
    }

    #[test]
    fn the_floor_is_the_end_of_the_newest_leader() {
        let follower = |term| answer(Standing::Member, term, None, false);
        let leader = |term, last| answer(Standing::Member, term, Some(last), false);
        assert_eq!(asked(&[(2, leader(5, 10))]).floor(), None);
        assert_eq!(asked(&[(2, leader(5, 10))]).silent().collect::<Vec<_>>(), [3]);
        let floor = asked(&[(2, leader(5, 10)), (3, follower(4))]).floor();
        assert_eq!(floor, Some(Floor { term: 5, index: Some(10) }));
        let floor = floor.unwrap_or(Floor { term: 0, index: None });
        assert!(!floor.is_reached(5, 9) && !floor.is_reached(4, 90) && floor.is_reached(5, 10));
        assert!(floor.is_reached(6, 3), "a later leader's first entry is behind all that was committed");
        let deposed = asked(&[(2, leader(5, 10)), (3, follower(6))]).floor();
        assert_eq!(deposed, Some(Floor { term: 6, index: None }));
        assert!(deposed.is_some_and(|floor| !floor.is_reached(6, 90) && floor.is_reached(7, 1)));
    }

    #[test]
    fn a_newcomer_is_one_whom_a_majority_does_not_know() {
        let member = answer(Standing::Member, 4, None, false);
        let knows = Answer { knows: true, ..member };
        let lost = answer(Standing::Rejoining, 4, None, false);
        let three = Configuration::of(nodes(&[1, 2, 3]));
        let mut electorate = Electorate::guess(Configuration::of(nodes(&[1, 2, 3, 4, 5])));
        let asked = |answers: &[(u32, Answer)]| {
            let mut rejoin = Rejoin::new([1, 2, 3, 5]);
            answers.iter().for_each(|(other, answer)| _ = rejoin.heard(*other, *answer));
            rejoin
        };
        assert!(!asked(&[(1, member), (2, member), (3, member)]).is_newcomer(&electorate, 4), "only guessed");
        assert!(electorate.heard_of_member(&three));
        assert_eq!(asked_nodes(&electorate), [1, 2, 3], "node 5 is not needed");
        assert!(!asked(&[(1, member)]).is_newcomer(&electorate, 4));
        assert!(!asked(&[(1, member), (2, lost)]).is_newcomer(&electorate, 4), "it may have forgotten");
        assert!(!asked(&[(1, member), (2, member), (3, knows)]).is_newcomer(&electorate, 4));
        assert!(!asked(&[(1, member), (2, member)]).is_newcomer(&electorate, 2), "it is one of them");
        assert!(asked(&[(1, member), (2, member)]).is_newcomer(&electorate, 4));
        let joint = three.with_learners(nodes(&[5])).entering(nodes(&[2, 3, 5]));
        assert!(electorate.heard(&joint));
        assert!(!asked(&[(1, member), (2, member)]).is_newcomer(&electorate, 4), "the new ones may know it");
        assert!(asked(&[(1, member), (2, member), (5, member)]).is_newcomer(&electorate, 4));
    }
}
