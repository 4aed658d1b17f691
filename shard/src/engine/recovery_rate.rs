//! What this shard receives to catch up, and to repair what has rotted, keeps to a rate that all shards of the node share: it
//! asks other nodes for nothing before it has its turn. The engine knows no clock; the driver says when a turn is
//! ([`Action::WantRecovery`], [`Event::RecoveryTurn`](super::Event::RecoveryTurn)).
//!
//! A turn is credit. A question takes what its answer is expected to hold, and the answer settles the rest, so that in the end
//! what came is what was paid for, and an answer with one large batch is followed by a pause. The metadata group is exempt:
//! it is small, and who lacks it can do nothing.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

use pyralog_core::GroupId;
use pyralog_core::limits::MAX_PEER_PAYLOAD_BYTES;

use super::api::RECOVERY_TURN_BYTES;
use super::{Action, Engine};

/// Asked for at once without a limit, bytes.
const UNLIMITED_ASK_BYTES: usize = 1 << 20;

/// So much may be on its way to all replicas of the shard that catch up, or wait to be written, bytes.
const IN_FLIGHT_BYTES: usize = 16 << 20;

/// What of that one replica has; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    all: Rc<Cell<usize>>,
    own: usize,
}

impl Share {
    /// It has so many bytes now.
    pub(super) fn set(&mut self, bytes: usize) {
        self.all.set(self.all.get() - self.own + bytes);
        self.own = bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// What waits for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// A replica of the group that catches up.
    CatchUp(GroupId),
    /// The scrubber, which has found damage.
    Repair,
}

/// What the shard may ask for, and what waits to ask.
#[derive(Debug, Default)]
pub(super) struct RecoveryRate {
    /// In their order: who was asked for goes to the end, so that replicas take turns as shards do.
    waiting: VecDeque<Turn>,
    /// What may be asked for, bytes; negative after an answer that held more than was paid for.
    credit: i64,
    /// Since when a turn is wanted, microseconds.
    wanted_us: Option<u64>,
    /// On its way, or not written yet, bytes.
    in_flight: Rc<Cell<usize>>,
}

impl RecoveryRate {
    /// Has it ask when it is its turn.
    pub(super) fn wait(&mut self, turn: Turn) {
        self.waiting.push_back(turn);
    }

    /// For a replica that begins to catch up.
    pub(super) fn share(&self) -> Share {
        Share { all: Rc::clone(&self.in_flight), own: 0 }
    }

    fn settle(&mut self, paid: usize, came: usize) {
        // A turn that was wanted before an answer gave something back comes on top of that.
        let most = 2 * RECOVERY_TURN_BYTES as i64;
        // A peer that sends what nobody asked for does not stop this shard for good.
        let least = -(MAX_PEER_PAYLOAD_BYTES as i64);
        self.credit = self.credit.saturating_add(paid as i64 - came as i64).clamp(least, most);
    }
}

impl Engine {
    /// How much is asked for at once, bytes.
    pub(super) fn recovery_ask_bytes(&self) -> usize {
        match self.config.recovery_bytes_per_s {
            Some(_) => RECOVERY_TURN_BYTES,
            None => UNLIMITED_ASK_BYTES,
        }
    }

    /// A turn has come.
    pub(super) fn recovery_turn(&mut self, bytes: usize) {
        let Some(since_us) = self.recovery_rate.wanted_us.take() else { return };
        self.counters.replication.recovery_waited_us += self.now.monotonic_us.saturating_sub(since_us);
        self.recovery_rate.settle(bytes.min(RECOVERY_TURN_BYTES), 0);
    }

    /// An answer has come, which `was_asked` for.
    pub(super) fn recovery_came(&mut self, bytes: usize, was_asked: bool) {
        self.counters.replication.recovery_bytes += bytes as u64;
        let paid = if was_asked { self.recovery_ask_bytes() } else { 0 };
        self.recovery_rate.settle(paid, bytes);
    }

    /// At the end of a pass: asks for what there is credit for, and wants a turn for the rest.
    pub(super) fn take_recovery_turns(&mut self, actions: &mut Vec<Action>) {
        let is_limited = self.config.recovery_bytes_per_s.is_some();
        while let Some(next) = self.recovery_rate.waiting.front().copied() {
            let in_flight = self.recovery_rate.in_flight.get();
            if in_flight > 0 && in_flight + self.recovery_ask_bytes() > IN_FLIGHT_BYTES {
                // Whatever of it arrives makes another pass.
                return;
            }
            let missing = RECOVERY_TURN_BYTES as i64 - self.recovery_rate.credit;
            if is_limited && missing > 0 {
                if self.recovery_rate.wanted_us.is_none() {
                    self.recovery_rate.wanted_us = Some(self.now.monotonic_us);
                    // Never more than the other shards: what is owed for a large answer takes several turns.
                    let bytes = (missing as usize).min(RECOVERY_TURN_BYTES);
                    actions.push(Action::WantRecovery { bytes });
                }
                return;
            }
            self.recovery_rate.waiting.pop_front();
            let asked = match next {
                Turn::CatchUp(group) => self.catch_up_turn(group),
                Turn::Repair => self.repair_turn(actions),
            };
            if asked {
                self.recovery_rate.settle(0, self.recovery_ask_bytes());
            }
        }
    }
}
