//! Which faults a life has, how often, and a count of those that happened.

use crate::rng::Rng;

/// Kinds of faults, each with its name, and a count of those that happened.
macro_rules! kinds {
    ($kind:ident, $counts:ident; $( $(#[doc = $doc:literal])+ $name:ident = $text:literal; )+) => {
        /// A kind of fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $kind { $( $(#[doc = $doc])+ $name, )+ }

        impl $kind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[ $( Self::$name, )+ ];

            /// Its name in the counts.
            pub const fn name(self) -> &'static str {
                match self { $( Self::$name => $text, )+ }
            }
        }

        /// Faults that happened, by kind.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct $counts([u64; $kind::ALL.len()]);

        impl $counts {
            /// One more.
            pub fn add(&mut self, kind: $kind) {
                self.0[kind as usize] += 1;
            }

            /// How many of a kind.
            pub fn of(&self, kind: $kind) -> u64 {
                self.0[kind as usize]
            }

            /// Adds another life's.
            pub fn merge(&mut self, other: &Self) {
                for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
                    *mine += theirs;
                }
            }
        }

        impl std::fmt::Display for $counts {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                for (index, kind) in $kind::ALL.iter().enumerate() {
                    let gap = if index == 0 { "" } else { " " };
                    write!(f, "{gap}{} {}", kind.name(), self.of(*kind))?;
                }
                Ok(())
            }
        }
    };
}
pub(crate) use kinds;

kinds! {
    FaultKind, FaultCounts;
    /// A write reported durable, or a flush reported done, that never reached the platter.
    LostWrite = "lost";
    /// A write that landed at another place.
    MisdirectedWrite = "misdirected";
    /// A flipped bit on the platter.
    BitRot = "rot";
    /// A write under way at a crash of which some sectors arrived.
    TornWrite = "torn";
    /// A write or truncation that failed.
    WriteError = "write-error";
    /// A flush that failed.
    SyncError = "sync-error";
    /// A read that failed.
    ReadError = "read-error";
    /// An operation refused because the disk is full.
    NoSpace = "no-space";
    /// An operation that took very long.
    Stall = "stall";
    /// A jump of the wall clock.
    ClockJump = "clock-jump";
    /// A connection cut by the network.
    Disconnect = "disconnect";
    /// Power lost while serving.
    Crash = "crash";
    /// Power lost while recovering.
    CrashInRecovery = "crash-in-recovery";
    /// Stopped in good order.
    CleanStop = "clean-stop";
}

/// How often each fault strikes in this life; 0 = never, else once in so many chances.
#[derive(Clone, Debug, Default)]
pub struct FaultPlan {
    /// Per durable write or flush.
    pub lost: u64,
    /// Per write.
    pub misdirected: u64,
    /// Mean virtual time between flipped bits, microseconds.
    pub rot_every_us: u64,
    /// Whether writes under way at a crash may arrive in part.
    pub torn: bool,
    /// Per write.
    pub write_error: u64,
    /// Per flush.
    pub sync_error: u64,
    /// Per read.
    pub read_error: u64,
    /// Whether a failed read keeps failing at that place.
    pub read_error_lasts: bool,
    /// Mean virtual time between spells of a full disk, microseconds.
    pub full_every_us: u64,
    /// Per operation.
    pub stall: u64,
    /// Mean virtual time between jumps of the wall clock, microseconds.
    pub jump_every_us: u64,
    /// Per client step.
    pub disconnect: u64,
    /// Chance of a hundred that a recovery is interrupted by a crash.
    pub crash_in_recovery_percent: u64,
    /// Most lies in this life: few of them keep the checks sharp.
    pub lies_left: u64,
}

impl FaultPlan {
    /// The plan of a life. Each kind is on or off by itself ("swarm"): a fault that is on everywhere hides others.
    pub fn draw(rng: &mut Rng) -> Self {
        let often = Rng::often;
        let lying = rng.percent(45);
        let errors = rng.percent(50);
        let mut plan = Self {
            lost: often(rng, 45, &[30, 150, 600]),
            misdirected: often(rng, 40, &[30, 150, 600]),
            rot_every_us: often(rng, 50, &[30_000, 150_000, 600_000]),
            torn: rng.percent(80),
            write_error: often(rng, 40, &[40, 200, 1000]),
            sync_error: often(rng, 40, &[10, 40, 150]),
            read_error: often(rng, 40, &[10, 40, 200]),
            read_error_lasts: rng.percent(30),
            full_every_us: often(rng, 30, &[100_000, 500_000]),
            stall: often(rng, 40, &[20, 100, 500]),
            jump_every_us: often(rng, 30, &[50_000, 300_000]),
            disconnect: often(rng, 40, &[20, 100, 500]),
            crash_in_recovery_percent: often(rng, 50, &[15, 40, 70]),
            lies_left: rng.magnitude(1, 8),
        };
        if !lying {
            plan.be_honest();
        }
        if !errors {
            (plan.write_error, plan.sync_error, plan.read_error, plan.full_every_us) = (0, 0, 0, 0);
        }
        plan
    }

    /// A disk that may fail but never lies.
    pub fn be_honest(&mut self) {
        (self.lost, self.misdirected, self.rot_every_us, self.lies_left) = (0, 0, 0, 0);
    }

    /// A disk that neither lies nor fails: what a crash takes is all that is ever lost.
    pub fn be_faultless(&mut self) {
        *self = Self { torn: self.torn, ..Self::default() };
    }

    /// Whether no operation of the disk ever fails.
    pub fn is_quiet(&self) -> bool {
        self.write_error == 0 && self.sync_error == 0 && self.read_error == 0 && self.full_every_us == 0
    }

    /// No faults at all: the end of a life.
    pub fn none() -> Self {
        Self { torn: true, ..Self::default() }
    }
}
