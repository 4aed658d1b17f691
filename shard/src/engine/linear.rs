//! Linearizable reads: the leader asks a majority whether it still leads before it answers (Raft's read index; Ongaro,
//! "Consensus: Bridging Theory and Practice", 2014, section 6.4). What was acknowledged before the question is committed and
//! below the high watermark by then.

use std::collections::BTreeMap;

use pyralog_core::limits::MAX_WAITING_FETCHES_PER_SHARD;
use pyralog_core::{ErrorCode, GroupId};
use pyralog_net::message::{Consistency, FetchRequest, ListOffsetsRequest};

use super::produce::Refusal;
use super::{Action, ConnId, Engine};

/// A read that waits for its leader to be confirmed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Read {
    Fetch(FetchRequest),
    ListOffsets(ListOffsetsRequest),
}

impl Read {
    fn consistency(self) -> Consistency {
        match self {
            Self::Fetch(fetch) => fetch.consistency,
            Self::ListOffsets(list) => list.consistency,
        }
    }

    fn group(self) -> GroupId {
        match self {
            Self::Fetch(fetch) => fetch.group,
            Self::ListOffsets(list) => list.group,
        }
    }
}

#[derive(Debug)]
struct Waiting {
    conn: ConnId,
    correlation_id: u64,
    read: Read,
    deadline_us: u64,
}

/// Reads under way, by the number that their round of heartbeats carries; not 0.
#[derive(Debug, Default)]
pub(super) struct LinearReads {
    newest: u64,
    waiting: BTreeMap<u64, Waiting>,
}

impl LinearReads {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn forget_connection(&mut self, conn: ConnId) {
        self.waiting.retain(|_, waiting| waiting.conn != conn);
    }
}

impl Engine {
    /// Has a linearizable read wait until a majority has confirmed this leader, or refuses it. False: nobody has to be asked.
    pub(super) fn confirms_first(
        &mut self,
        conn: ConnId,
        correlation_id: u64,
        index: u32,
        read: Read,
        actions: &mut Vec<Action>,
    ) -> bool {
        if read.consistency() != Consistency::Linearizable {
            return false;
        }
        let asked = self.ask_majority(conn, correlation_id, index, read);
        asked.unwrap_or_else(|(code, detail)| {
            self.refuse(conn, correlation_id, code, detail, actions);
            true
        })
    }

    fn ask_majority(
        &mut self,
        conn: ConnId,
        correlation_id: u64,
        index: u32,
        read: Read,
    ) -> Result<bool, Refusal> {
        let now_us = self.now.monotonic_us;
        if self.linear_reads.waiting.len() >= MAX_WAITING_FETCHES_PER_SHARD {
            let text = format!("{MAX_WAITING_FETCHES_PER_SHARD} reads wait on this shard");
            return Err((ErrorCode::Overloaded, text));
        }
        let number = self.linear_reads.newest + 1;
        let Some(replica) = self.raft_mut(index) else { return Ok(false) };
        let asked = replica.raft.confirm_read(number, now_us);
        asked.map_err(|error| (ErrorCode::NotLeader, error.to_string()))?;
        let deadline_us = now_us.saturating_add(self.config.request_timeout_us);
        self.linear_reads.newest = number;
        self.linear_reads.waiting.insert(number, Waiting { conn, correlation_id, read, deadline_us });
        self.queue_group(index);
        Ok(true)
    }

    /// A majority has confirmed the leader of these reads.
    pub(super) fn reads_confirmed(&mut self, numbers: Vec<u64>, actions: &mut Vec<Action>) {
        for number in numbers {
            let Some(waiting) = self.linear_reads.waiting.remove(&number) else { continue };
            let Waiting { conn, correlation_id, read, .. } = waiting;
            let consistency = Consistency::Leader;
            match read {
                Read::Fetch(fetch) => {
                    self.fetch(conn, correlation_id, &FetchRequest { consistency, ..fetch }, actions);
                }
                Read::ListOffsets(list) => {
                    let list = ListOffsetsRequest { consistency, ..list };
                    self.list_offsets(conn, correlation_id, &list, actions);
                }
            }
        }
    }

    /// Nobody will confirm the reads of this group any more, or of any.
    pub(super) fn fail_reads(&mut self, group: Option<GroupId>, code: ErrorCode, actions: &mut Vec<Action>) {
        let ours = |waiting: &Waiting| group.is_none_or(|group| waiting.read.group() == group);
        self.refuse_reads(ours, code, actions);
    }

    /// Refuses reads whose time is over.
    pub(super) fn expire_reads(&mut self, actions: &mut Vec<Action>) {
        let now_us = self.now.monotonic_us;
        self.refuse_reads(|waiting| waiting.deadline_us <= now_us, ErrorCode::RequestTimedOut, actions);
    }

    fn refuse_reads(&mut self, which: impl Fn(&Waiting) -> bool, code: ErrorCode, actions: &mut Vec<Action>) {
        let refused = self.linear_reads.waiting.extract_if(.., |_, waiting| which(waiting));
        for (_, Waiting { conn, correlation_id, .. }) in refused.collect::<Vec<_>>() {
            let detail = "the leader was not confirmed by a majority".into();
            self.refuse(conn, correlation_id, code, detail, actions);
        }
    }
}
