//! Feature levels: what nodes of different releases may ask of each other while a cluster is upgraded.
//!
//! A level is a promise that every node understands certain commands and messages. A node supports a range of levels; the
//! cluster is at one of them, and goes up when every node supports the next. `docs/operations/upgrade.md` has the table.

use std::fmt;

/// The level of a cluster that nobody has raised.
pub const FIRST_LEVEL: u16 = 1;
/// From here on replicas may be others: partitions move, the metadata gets other holders, topics are altered, nodes are
/// removed and have racks.
pub const LEVEL_OF_MOVES: u16 = 2;

/// The feature levels that a node supports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureLevels {
    /// The lowest, at least 1.
    pub min: u16,
    /// The highest.
    pub max: u16,
}

impl FeatureLevels {
    /// Those of this release.
    pub const OURS: Self = Self { min: FIRST_LEVEL, max: LEVEL_OF_MOVES };

    /// Whether a node with these can be in a cluster at this level.
    pub fn contains(self, level: u16) -> bool {
        (self.min..=self.max).contains(&level)
    }

    /// Whether there is any level in it.
    pub fn is_valid(self) -> bool {
        FIRST_LEVEL <= self.min && self.min <= self.max
    }

    /// The same with a lower highest one.
    #[must_use]
    pub fn up_to(self, max: u16) -> Self {
        Self { max: self.max.min(max), ..self }
    }
}

impl Default for FeatureLevels {
    fn default() -> Self {
        Self::OURS
    }
}

/// `1 to 2`, or `1` alone.
impl fmt::Display for FeatureLevels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.min == self.max {
            true => write!(f, "{}", self.min),
            false => write!(f, "{} to {}", self.min, self.max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_both_ends() {
        let levels = FeatureLevels { min: 2, max: 4 };
        assert_eq!([1, 2, 4, 5].map(|level| levels.contains(level)), [false, true, true, false]);
        assert_eq!((levels.up_to(3).max, levels.up_to(9).max), (3, 4));
        assert!(
            levels.is_valid() && !levels.up_to(1).is_valid() && !FeatureLevels { min: 0, max: 4 }.is_valid()
        );
        assert_eq!((levels.to_string(), levels.up_to(2).to_string()), ("2 to 4".into(), "2".into()));
    }
}
