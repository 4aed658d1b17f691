//! How many copies a topic has and how many of them each operation needs, and the rules between these numbers.

use crate::limits::MAX_REPLICATION_FACTOR;

/// Copies of each partition of a topic, and how many of them an operation needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quorums {
    /// Copies of each partition, each on a node of its own.
    pub replication_factor: u8,
    /// Copies that must be durable before a produce with `acks: quorum` is acknowledged.
    pub write_quorum: u8,
    /// Copies that a linearizable read asks.
    pub read_quorum: u8,
    /// Copies that must be in sync for the partition to take writes.
    pub min_insync_replicas: u8,
}

impl Default for Quorums {
    /// One copy.
    fn default() -> Self {
        Self::of(1)
    }
}

/// More than half of `replication_factor` copies.
pub const fn majority(replication_factor: u8) -> u8 {
    replication_factor / 2 + 1
}

impl Quorums {
    /// Everything left open, for [`Self::resolve`].
    pub const UNSET: Self =
        Self { replication_factor: 0, write_quorum: 0, read_quorum: 0, min_insync_replicas: 0 };

    /// The usual numbers for so many copies: majorities, and writes only while a write quorum is in sync.
    pub const fn of(replication_factor: u8) -> Self {
        let quorum = majority(replication_factor);
        Self { replication_factor, write_quorum: quorum, read_quorum: quorum, min_insync_replicas: quorum }
    }

    /// The numbers of a topic that asks for `wanted`, in which 0 stands for what it leaves open. When it leaves the
    /// number of copies open, all that it leaves open are the node's `defaults`; when it names another number of
    /// copies, those would not fit and the rest follows from its own.
    pub const fn resolve(wanted: Self, defaults: Self) -> Self {
        let base = match wanted.replication_factor {
            0 => defaults,
            copies if copies == defaults.replication_factor => defaults,
            copies => Self::of(copies),
        };
        let write_quorum = or(wanted.write_quorum, base.write_quorum);
        // Unless it was set apart from the write quorum, it follows it.
        let in_sync = match base.min_insync_replicas == base.write_quorum {
            true => write_quorum,
            false => base.min_insync_replicas,
        };
        Self {
            replication_factor: base.replication_factor,
            write_quorum,
            read_quorum: or(wanted.read_quorum, base.read_quorum),
            min_insync_replicas: or(wanted.min_insync_replicas, in_sync),
        }
    }

    /// The numbers for a partition that has another number of copies than its topic is to have, because it is on its way there. With
    /// fewer, as many may be missing as will be then, if that leaves a majority; with more, no more are asked for than a majority, unless
    /// the topic asks for more.
    pub const fn with_copies(self, copies: u8) -> Self {
        let lacking = self.replication_factor.saturating_sub(copies);
        let write_quorum = within(self.write_quorum.saturating_sub(lacking), majority(copies), copies);
        let in_sync = self.min_insync_replicas.saturating_sub(lacking);
        let in_sync = within(in_sync, majority(copies), copies);
        Self {
            replication_factor: copies,
            write_quorum,
            read_quorum: within(self.read_quorum, copies.saturating_sub(write_quorum) + 1, copies),
            min_insync_replicas: within(self.min_insync_replicas, 1, in_sync),
        }
    }

    /// Whether these numbers fit each other.
    ///
    /// # Errors
    /// Which one does not, why that matters and what would do.
    pub fn check(&self) -> Result<(), String> {
        let Self { replication_factor: copies, write_quorum, read_quorum, min_insync_replicas } = *self;
        if copies == 0 || copies > MAX_REPLICATION_FACTOR {
            return Err(format!(
                "replication_factor {copies}: a partition has 1 to {MAX_REPLICATION_FACTOR} copies"
            ));
        }
        let least = majority(copies);
        if !(least..=copies).contains(&write_quorum) {
            return Err(format!(
                "write_quorum {write_quorum} of {copies} copies: it has to be {least} to {copies}. With fewer than a \
                 majority two leaders could acknowledge different records, and there are no more than {copies} copies"
            ));
        }
        if read_quorum == 0 || read_quorum > copies {
            return Err(format!("read_quorum {read_quorum} of {copies} copies: it has to be 1 to {copies}"));
        }
        if u16::from(write_quorum) + u16::from(read_quorum) <= u16::from(copies) {
            return Err(format!(
                "write_quorum {write_quorum} and read_quorum {read_quorum} of {copies} copies: together they have to be \
                 more than {copies}, or a read could ask only copies that an acknowledged write has not reached; use a \
                 read_quorum of {} or more",
                copies - write_quorum + 1
            ));
        }
        if min_insync_replicas == 0 || min_insync_replicas > copies {
            return Err(format!(
                "min_insync_replicas {min_insync_replicas} of {copies} copies: it has to be 1 to {copies}; with more the \
                 topic would never take a write"
            ));
        }
        Ok(())
    }
}

const fn or(wanted: u8, default: u8) -> u8 {
    if wanted == 0 { default } else { wanted }
}

const fn within(number: u8, least: u8, most: u8) -> u8 {
    if number < least {
        least
    } else if number > most {
        most
    } else {
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quorums(numbers: [u8; 4]) -> Quorums {
        let [replication_factor, write_quorum, read_quorum, min_insync_replicas] = numbers;
        Quorums { replication_factor, write_quorum, read_quorum, min_insync_replicas }
    }

    #[test]
    fn the_usual_numbers_are_valid_and_majorities() {
        for copies in 1..=MAX_REPLICATION_FACTOR {
            Quorums::of(copies).check().unwrap();
        }
        assert_eq!(Quorums::of(3), quorums([3, 2, 2, 2]));
        assert_eq!(Quorums::of(4), quorums([4, 3, 3, 3]));
    }

    /// Every combination: what passes keeps the promises, what does not says why.
    #[test]
    fn what_passes_is_safe() {
        for numbers in (0..5u32.pow(4)).map(|n| [n / 125, n / 25 % 5, n / 5 % 5, n % 5].map(|n| n as u8 + 1))
        {
            let [copies, write, read, in_sync] = numbers;
            let safe = 2 * write > copies
                && write <= copies
                && read <= copies
                && write + read > copies
                && in_sync <= copies;
            assert_eq!(quorums(numbers).check().is_ok(), safe, "{numbers:?}");
        }
    }

    /// On the way from any numbers to any other number of copies, what holds is safe, and no more may be missing than before.
    #[test]
    fn what_holds_on_the_way_is_safe() {
        for numbers in (0..5u32.pow(4)).map(|n| [n / 125, n / 25 % 5, n / 5 % 5, n % 5].map(|n| n as u8 + 1))
        {
            let topic = quorums(numbers);
            if topic.check().is_err() {
                continue;
            }
            assert_eq!(topic.with_copies(topic.replication_factor), topic);
            for copies in 1..=MAX_REPLICATION_FACTOR {
                let now = topic.with_copies(copies);
                now.check().unwrap();
                let missing = |quorums: Quorums| quorums.replication_factor - quorums.write_quorum;
                assert!(
                    copies > topic.replication_factor || missing(now) <= missing(topic),
                    "{topic:?} {now:?}"
                );
            }
        }
        assert_eq!(quorums([5, 3, 3, 3]).with_copies(3), quorums([3, 2, 3, 2]));
        assert_eq!(quorums([5, 3, 3, 1]).with_copies(3).min_insync_replicas, 1);
        assert_eq!(quorums([3, 2, 2, 2]).with_copies(5), quorums([5, 3, 3, 2]));
    }

    #[test]
    fn refusals_say_why() {
        for (numbers, parts) in [
            ([0, 1, 1, 1], ["replication_factor 0", "1 to 5 copies"]),
            ([6, 4, 4, 1], ["replication_factor 6", "1 to 5 copies"]),
            ([3, 1, 3, 1], ["write_quorum 1 of 3", "two leaders"]),
            ([3, 4, 3, 1], ["write_quorum 4 of 3", "has to be 2 to 3"]),
            ([3, 2, 1, 1], ["together they have to be more than 3", "read_quorum of 2 or more"]),
            ([3, 2, 4, 1], ["read_quorum 4", "1 to 3"]),
            ([3, 2, 2, 4], ["min_insync_replicas 4", "never take a write"]),
            ([3, 2, 2, 0], ["min_insync_replicas 0", "1 to 3"]),
        ] {
            let text = quorums(numbers).check().unwrap_err();
            assert!(parts.iter().all(|part| text.contains(part)), "{numbers:?}: {text}");
        }
    }

    #[test]
    fn what_is_left_open_is_filled_in() {
        let node = quorums([3, 3, 1, 2]);
        assert_eq!(Quorums::resolve(quorums([0; 4]), node), node);
        assert_eq!(Quorums::resolve(quorums([3, 0, 0, 0]), node), node);
        assert_eq!(Quorums::resolve(quorums([5, 0, 0, 0]), node), Quorums::of(5));
        assert_eq!(Quorums::resolve(quorums([5, 4, 2, 0]), node), quorums([5, 4, 2, 4]));
        assert_eq!(Quorums::resolve(quorums([0, 0, 0, 1]), node), quorums([3, 3, 1, 1]));
        assert_eq!(Quorums::resolve(quorums([0, 3, 0, 0]), Quorums::of(3)), quorums([3, 3, 2, 3]));
    }
}
